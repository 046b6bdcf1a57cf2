"""A cascade in Dagster: the lexicon labels all tweets, and the oracle labels the tweets where the lexicon is unsure.

    one run: rows, gold, submissions ─▶ the lexicon, and the oracle on a sample ─▶ the sensor sets the threshold,

    and sends the rest to the oracle ─▶ labels are materialized ─▶ automation evaluates them

A filter finds the positive tweets in the same way. To check the guarantees, the oracle also labels all tweets, and all
have human labels. By default, the oracle is people, too: others than those whose labels are the gold.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import dagster as dg
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

from dagster_llm_batch.text import money_text
from example_project import settings
from example_project.cascade_definitions import AGREEMENT, CONFIDENCE, PRECISION
from example_project.dagster_dev import RunningDagster
from example_project.definitions import defs, llm_batch
from example_project.journey import JourneyState, launch, watch
from example_project.screen import Screen

__all__ = ["FilterOutcome", "Outcome", "measure", "measure_filter", "show", "travel"]

_DATASETS = ("cascade_sentiment", "oracle_sentiment", "positive_tweets")
_EVALUATIONS = {"cascade_eval": ("cascade_gold", "cascade_sentiment", "oracle_sentiment")}
_SENT = ("cascade_tweets", "cascade_gold", *(f"{name}_batch" for name in _DATASETS))


def travel(running: RunningDagster) -> None:
    """Send, watch, report. Raises DagsterError if a run fails."""
    began = datetime.now(UTC)
    with dg.DagsterInstance.get() as instance, Screen() as screen:
        screen.say(f"[1/3] Dagster {'found running' if running.found else 'started'}: {running.url}")
        screen.say(
            f"[2/3] {settings.cascade_rows()} tweets: the lexicon labels all, {settings.oracle_name()} a sample of them"
        )
        launch(running, instance, screen, began, _SENT)
        with dg.build_resources({"llm_batch": llm_batch}, instance=instance) as resources:
            state = JourneyState(instance, resources.llm_batch, _DATASETS, ("",), _EVALUATIONS)
            screen.say("      " + state.submitted_since(began))
            screen.say("      In round 2 the oracle labels the rows of which the lexicon is unsure;")
            screen.say("      to compare, it also labels all tweets (oracle_sentiment)")
            watch(screen, running, state, began)
        screen.say(f"[3/3] Labeled and evaluated, after {(datetime.now(UTC) - began).total_seconds():.0f} s in all")
        told = instance.get_latest_materialization_event(dg.AssetKey("cascade_sentiment_batch"))
        plan = None if told is None or told.asset_materialization is None else told.asset_materialization.metadata
    with defs.get_asset_value_loader() as loader:
        labels, alone, found, gold = (loader.load_asset_value(name) for name in (*_DATASETS, "cascade_gold"))
    planned = "" if plan is None or "llm_batch/cascade" not in plan else str(plan["llm_batch/cascade"].value)
    show(measure(labels, alone, gold), measure_filter(found, alone, gold), planned, Console(highlight=False))


@dataclass(frozen=True)
class Outcome:
    """The result of a cascade. Shares count rows with both labels, or with a label and gold; None without such rows.

    Attributes:
        rows: The number of rows with a label of the cascade.
        sampled, escalated, invalid: The numbers of rows that the oracle answered, by reason.
        agreement: The share of labels that agree with the oracle, which labels all rows for this comparison.
        cheap_agreement: The same for the cheap labeler alone.
        accuracy: The accuracy of the cheap labeler, the cascade and the oracle, against human labels.
        cost_usd: The cost of the cascade. None: a price is unknown.
        alone_usd: The cost of the oracle alone on all rows. None: a price is unknown.
    """

    rows: int
    sampled: int
    escalated: int
    invalid: int
    agreement: float | None
    cheap_agreement: float | None
    accuracy: tuple[float | None, float | None, float | None]
    cost_usd: Decimal | None
    alone_usd: Decimal | None

    @property
    def asked(self) -> int:
        """The number of rows that the oracle answered."""
        return self.sampled + self.escalated + self.invalid


def measure(labels: pl.DataFrame, alone: pl.DataFrame, gold: pl.DataFrame) -> Outcome:
    """Compare the labels of a cascade with the labels of its oracle alone, and with human labels."""
    both = labels.select(
        "text_id",
        "llm_why",
        cascade="label",
        # The cheap labeler's own label, also for rows with the oracle's; null for rows that it was not asked.
        cheap=pl.when(pl.col("llm_level") == "cheap").then("label").otherwise("llm_cheap_label"),
    )
    both = both.join(alone.select("text_id", oracle="label"), on="text_id", how="left")
    both = both.join(gold.select("text_id", people="label"), on="text_id", how="left")

    def share(one: str, other: str) -> float | None:
        equal: float | None = (both[one] == both[other]).mean()  # type: ignore[assignment]
        return equal

    why = dict(both["llm_why"].value_counts().iter_rows())
    return Outcome(
        rows=len(both),
        sampled=why.get("sampled", 0),
        escalated=why.get("escalated", 0),
        invalid=why.get("invalid", 0),
        agreement=share("cascade", "oracle"),
        cheap_agreement=share("cheap", "oracle"),
        accuracy=(share("cheap", "people"), share("cascade", "people"), share("oracle", "people")),
        cost_usd=_sum(labels),
        alone_usd=_sum(alone),
    )


@dataclass(frozen=True)
class FilterOutcome:
    """The result of the filter for positive tweets. Shares count rows found; None without such rows.

    Attributes:
        rows: The number of rows with a label of the filter.
        asked: The number of rows that the oracle answered.
        found: The number of rows that the filter found.
        precision: The share of the rows found that the oracle calls positive.
        accuracy: The share of them that are positive by human labels.
        recall: The share of the oracle's positive rows that the filter found.
        cost_usd: The cost of the filter. None: a price is unknown.
    """

    rows: int
    asked: int
    found: int
    precision: float | None
    accuracy: float | None
    recall: float | None
    cost_usd: Decimal | None


def measure_filter(filtered: pl.DataFrame, alone: pl.DataFrame, gold: pl.DataFrame) -> FilterOutcome:
    """Compare the rows that a filter found with the labels of its oracle, and with human labels."""
    rows = filtered.select("text_id", "is_positive", "llm_level")
    rows = rows.join(alone.select("text_id", oracle=pl.col("label") == "positive"), on="text_id", how="left")
    rows = rows.join(gold.select("text_id", people=pl.col("label") == "positive"), on="text_id", how="left")
    found = rows.filter("is_positive")

    def share(column: pl.Series) -> float | None:
        positive: float | None = column.mean()  # type: ignore[assignment]
        return positive

    return FilterOutcome(
        rows=len(rows),
        asked=int((rows["llm_level"] == "oracle").sum()),
        found=len(found),
        precision=share(found["oracle"]),
        accuracy=share(found["people"]),
        recall=share(rows.filter("oracle")["is_positive"]),
        cost_usd=_sum(filtered),
    )


def _sum(labels: pl.DataFrame) -> Decimal | None:
    return None if labels["llm_cost_usd"].null_count() else Decimal(labels["llm_cost_usd"].sum())


def show(labels: Outcome, filtered: FilterOutcome, planned: str, console: Console) -> None:
    """Print the guarantees, the results, their effort and the savings. `planned` is the text of the plan."""
    oracle, rows = settings.oracle_name(), f"{labels.rows:,}"
    console.print()
    lines = Table.grid(padding=(0, 2))
    if labels.asked == labels.rows:
        lines.add_row("planned", f"{planned or f'asks {oracle} alone'}")
        lines.add_row("so", "there is no guarantee and no saving: on so few rows a cascade does not pay")
    else:
        lines.add_row(
            "guarantee",
            f"with a confidence of {CONFIDENCE:.0%}, at least {AGREEMENT:.0%} of the labels equal those of {oracle}",
        )
        kept = _verdict(labels.agreement, AGREEMENT)
        lines.add_row("result", f"{_share(labels.agreement)} of {rows} labels do: {kept}")
        lines.add_row(
            "effort",
            f"{oracle} for {labels.asked:,} of {rows} tweets: a random sample of {labels.sampled:,} to measure the "
            f"lexicon, and {labels.escalated + labels.invalid:,} where the lexicon was unsure",
        )
        lines.add_row("savings", _saved(labels.rows - labels.asked, labels.rows, labels.cost_usd, labels.alone_usd))
    console.print(lines)
    console.print()
    console.print(_table(labels, filtered))
    console.print()
    console.print(_filter_text(filtered, labels.alone_usd))
    for line in _warnings(labels):
        console.print(line)


def _verdict(share: float | None, promised: float) -> str:
    if share is not None and share >= promised:
        return "the guarantee holds"
    return "the guarantee is broken, as it may be in one of twenty tables"


def _filter_text(filtered: FilterOutcome, alone_usd: Decimal | None) -> str:
    """Return the guarantee and the result of the filter in sentences."""
    oracle, spared = settings.oracle_name(), filtered.rows - filtered.asked
    if not spared:
        return f"The filter asked {oracle} for all tweets: so few are too few for a guarantee of its own."
    return (
        f"The filter finds the positive tweets, and its line is about those. Guarantee, with the same confidence: at "
        f"least {PRECISION:.0%} of those it finds are positive for {oracle}. Of {filtered.found:,} found, "
        f"{_share(filtered.precision)} are: "
        f"{_verdict(filtered.precision, PRECISION)}. They are {_share(filtered.recall)} of all that are positive for "
        f"{oracle}. It saved {_saved(spared, filtered.rows, filtered.cost_usd, alone_usd)}."
    )


def _saved(spared: int, rows: int, cost_usd: Decimal | None, alone_usd: Decimal | None) -> str:
    told = f"{spared:,} of {rows:,} questions to {settings.oracle_name()}"
    if cost_usd is not None and alone_usd is not None:
        told += f": it cost {money_text(cost_usd)}, {settings.oracle_name()} alone {money_text(alone_usd)}"
        if settings.ORACLE.startswith("command/"):
            told += ", at a crowd's price; here all is free"
    return told


def _table(labels: Outcome, filtered: FilterOutcome) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    oracle = settings.oracle_name()
    for name in ("labeler", "promised", f"asks {oracle}", "agrees", "right, by others", "cost"):
        table.add_column(name, justify="left" if name == "labeler" else "right")
    cheap_right, cascade_right, oracle_right = map(_share, labels.accuracy)
    if labels.cheap_agreement is not None:
        table.add_row("the lexicon alone", "", "0", _share(labels.cheap_agreement), cheap_right, money_text(Decimal(0)))
    # If the oracle is asked all rows, nothing is promised.
    promised, found_promised = (
        f"{share:.0%}" if asked < labels.rows else ""
        for share, asked in ((AGREEMENT, labels.asked), (PRECISION, filtered.asked))
    )
    cost, found_cost, alone_cost = map(_cost, (labels.cost_usd, filtered.cost_usd, labels.alone_usd))
    table.add_row("the cascade", promised, f"{labels.asked:,}", _share(labels.agreement), cascade_right, cost)
    table.add_row(f"{oracle} alone", "", f"{labels.rows:,}", _share(1.0), oracle_right, alone_cost)
    shares = _share(filtered.precision), _share(filtered.accuracy)
    table.add_row("the filter", found_promised, f"{filtered.asked:,}", *shares, found_cost)
    return table


def _warnings(found: Outcome) -> list[str]:
    """Return the limits of a guarantee of agreement, as lines; empty if the oracle is better than the lexicon."""
    cheap, _, oracle = found.accuracy
    if cheap is None or oracle is None or cheap <= oracle or found.cheap_agreement is None:
        return []
    inherited = (
        f"The guarantee is about agreement with {settings.oracle_name()}. Here the lexicon is right more often than "
        "this oracle, so that asking it made the labels worse: a cascade is as good as its oracle. Measure the oracle "
        "first, against people, as the evaluation of `python3 -m example_project` does."
    )
    return ["", inherited, "(The lexicon's authors made it partly from these tweets, so its numbers are too good.)"]


def _cost(usd: Decimal | None) -> str:
    return "unknown" if usd is None else money_text(usd)


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"
