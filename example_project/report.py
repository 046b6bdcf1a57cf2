"""The example's final report: labels, the evaluation, the shares of all rows, the cost, and links."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dagster_llm_batch.core.label_join import PROVENANCE
from dagster_llm_batch.core.pricing import tariff
from dagster_llm_batch.text import money_text
from dagster_llm_batch.types import Usage
from example_project import settings
from example_project.dagster_dev import RunningDagster
from example_project.definitions import defs

__all__ = ["show"]

_HOSTED = ("openai", "gpt-5-nano")
"""The model for the line "What if"."""
_ROWS = 6
_LOOK: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "title_justify": "left",
    "caption_justify": "left",
    "padding": (0, 1, 0, 0),
}
_OTHERS_WIDTH = 46
"""The width of the table's other columns and its lines."""


def show(running: RunningDagster) -> None:
    """Print the report."""
    console = Console(highlight=False)
    labels, lexicon = _load("tweet_sentiment"), _load("tweet_sentiment_lexicon")
    console.print()
    console.print(_head(labels, _load("tweet_gold"), console.width))
    console.print(_evaluation(_load("sentiment_eval", partitioned=False)))
    console.print(_shares(_load("sentiment_shares", partitioned=False), _load("tweet_gold")))
    console.print(_mistakes(_load("sentiment_eval_mistakes", partitioned=False), console.width))
    for line in _money({settings.MODEL: labels, "command/vader": lexicon}):
        console.print(line, markup=False, soft_wrap=True)
    console.print()
    ui = f"{running.url}/assets/sentiment_eval" if running.found else "python3 -m example_project ui"
    console.print(f"See all of it in Dagster's UI:  {ui}", markup=False, soft_wrap=True)
    console.print("Look at every row and reply:    python3 -m example_project review", markup=False, soft_wrap=True)
    console.print("Judge tweets yourself:          there, the first button of tweet_sentiment", markup=False)
    console.print(f"The tables are Parquet files:   {settings.HOME / 'tables'}", markup=False, soft_wrap=True)


def _load(asset: str, *, partitioned: bool = True) -> pl.DataFrame:
    """Load a table through Dagster's IO manager; of a partitioned one, load the example's days."""
    with defs.get_asset_value_loader() as loader:
        days = settings.EXAMPLE_DAYS if partitioned else (None,)
        tables: list[pl.DataFrame] = [loader.load_asset_value(asset, partition_key=day) for day in days]
    return pl.concat(tables)


def _head(labels: pl.DataFrame, gold: pl.DataFrame, columns: int) -> Table:
    table = Table(title=f"tweet_sentiment: the first {_ROWS} of {len(labels)} labeled rows", **_LOOK)
    for name, style in (("text_id", "dim"), ("text", ""), ("label", "bold"), ("human label", ""), ("mean", "dim")):
        width = max(20, columns - _OTHERS_WIDTH) if name == "text" else None
        table.add_column(name, style=style, no_wrap=True, width=width, justify="right" if name == "mean" else "left")
    said = gold.select("text_id", people="label", mean="mean")
    for row in labels.join(said, on="text_id", how="left", maintain_order="left").head(_ROWS).to_dicts():
        table.add_row(row["text_id"], escape(row["text"]), row["label"], row["people"], f"{row['mean']:.1f}")
    table.caption = f"{len(PROVENANCE)} more columns: model, batch, tokens, cost, run, …"
    return table


def _evaluation(evaluation: pl.DataFrame) -> Table:
    table = Table(title="sentiment_eval: against the human ratings (95 % intervals)", **_LOOK)
    for name in ("candidate", "labeled", "accuracy", "macro F1", "Cohen's κ", "$/correct"):
        table.add_column(name, justify="left" if name == "candidate" else "right")
    rows = evaluation.to_dicts()
    for row in rows:
        table.add_row(
            row["candidate"],
            f"{row['n_labeled']}/{row['n_gold']}",
            _interval(row, "accuracy"),
            _interval(row, "macro_f1"),
            _interval(row, "kappa"),
            "unknown" if row["cost_per_correct_usd"] is None else money_text(row["cost_per_correct_usd"]),
        )
    if rows and rows[0]["baseline_accuracy"] is not None:
        table.caption = (
            f'Always saying "{rows[0]["baseline_class"]}" would be right in {rows[0]["baseline_accuracy"]:.2f}. '
            "The lexicon's authors made it partly from these tweets, so its numbers are too good."
        )
    return table


def _shares(estimates: pl.DataFrame, gold: pl.DataFrame) -> Table:
    """Show shares of the whole table, estimated from few human labels and many model labels, and the true shares."""
    shares = estimates.filter(pl.col("figure") == "share", pl.col("candidate") == "tweet_sentiment").to_dicts()
    few = shares[0]["n_gold"] if shares else 0
    table = Table(title=f"sentiment_shares: what all {len(gold)} tweets hold (95 % intervals)", **_LOOK)
    for name in ("share", "model alone", f"{few} people's labels", "both together", "in truth"):
        table.add_column(name, justify="left" if name == "share" else "right")
    for row in shares:
        truth = (gold["label"] == row["label"]).mean()
        both = (_interval(row, "gold_only"), _interval(row, "powered"))
        table.add_row(row["label"], f"{row['naive']:.2f}", *both, f"{truth:.2f}")
    table.caption = (
        "Counting a model's labels counts its mistakes; a few labels by people correct them. The better the model is, "
        "the narrower is the interval of both beside that of people alone."
    )
    return table


def _mistakes(mistakes: pl.DataFrame, columns: int) -> Table:
    table = Table(title=f"sentiment_eval_mistakes: the first {_ROWS} of {len(mistakes)} rows to look at", **_LOOK)
    table.add_column("text", no_wrap=True, width=max(20, columns - _OTHERS_WIDTH))
    for name in ("human label", "model", "lexicon"):
        table.add_column(name, style="bold" if name == "human label" else "")
    for row in mistakes.head(_ROWS).to_dicts():
        answers = [row[f"{name}_label"] or "no label" for name in ("tweet_sentiment", "tweet_sentiment_lexicon")]
        table.add_row(escape(row["text"]), row["gold"], *answers)
    return table


def _interval(row: dict[str, float | None], name: str) -> str:
    if row[name] is None:
        return "-"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.2f}" + ("" if low is None or high is None else f"\n{low:.2f}-{high:.2f}")


def _money(tables: dict[str, pl.DataFrame]) -> list[str]:
    lines = ["", "What it cost:"]
    for model, labels in tables.items():
        tokens = f"{labels['llm_input_tokens'].sum():,} input and {labels['llm_output_tokens'].sum():,} output tokens"
        cost, realtime = _sum(labels, "llm_cost_usd"), _sum(labels, "llm_realtime_usd")
        basis = ", ".join(sorted(labels["llm_price_basis"].unique()))
        if basis == "free":
            money = "$0.00, in real time $0.00 as well: it ran on this machine"
        elif cost is None or realtime is None:
            money = "unknown price"
        else:
            money = f"{money_text(cost)}; in real time {money_text(realtime)} (basis: {basis})"
        lines.append(f"  {model}: {money} ({tokens})")
    own = tables[settings.MODEL]
    usage = Usage(int(own["llm_input_tokens"].sum()), int(own["llm_output_tokens"].sum()))
    hosted = tariff(*_HOSTED, datetime.now(UTC)).price(usage)
    if settings.MODEL.startswith("command/") and hosted.cost_usd is not None and hosted.realtime_usd is not None:
        lines.append(
            f"  What if: as many tokens of {'/'.join(_HOSTED)} would cost {money_text(hosted.cost_usd)} as a batch, "
            f"{money_text(hosted.realtime_usd)} in real time (list prices; it counts tokens in its own way)."
        )
    return lines


def _sum(labels: pl.DataFrame, column: str) -> Decimal | None:
    return None if labels[column].null_count() else Decimal(labels[column].sum())
