"""Documents in Dagster: a chain of two datasets over PDFs, with quotes that are located in the text.

    one run: papers, gold, the question "what kind?" ─▶ labels ─▶ automation asks the invoices for their totals
                                                                   ─▶ labels with quotes ─▶ automation evaluates them

The papers are made by the example. See document_definitions.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

from example_project import settings
from example_project.dagster_dev import RunningDagster
from example_project.definitions import defs, llm_batch
from example_project.journey import JourneyState, launch, watch
from example_project.papers import PAPERS
from example_project.screen import Screen

__all__ = ["Outcome", "measure", "show", "travel"]

_DATASETS = ("paper_kinds", "invoices")
_EVALUATIONS = {"invoice_eval": ("invoice_gold", "invoices")}
_SENT = ("papers", "invoice_gold", "paper_kinds_batch")
_FOUND = ("exact", "folded", "near")


def travel(running: RunningDagster) -> None:
    """Send, watch, report. Raises DagsterError if a run fails."""
    began = datetime.now(UTC)
    with dg.DagsterInstance.get() as instance, Screen() as screen:
        screen.say(f"[1/3] Dagster {'found running' if running.found else 'started'}: {running.url}")
        screen.say(f"[2/3] {PAPERS} papers as PDF, made by this example: rules answer what kind each is,")
        screen.say("      then what an invoice totals, with a quote of the line")
        launch(running, instance, screen, began, _SENT)
        with dg.build_resources({"llm_batch": llm_batch}, instance=instance) as resources:
            state = JourneyState(instance, resources.llm_batch, _DATASETS, ("",), _EVALUATIONS)
            watch(screen, running, state, began)
        screen.say(f"[3/3] Labeled and evaluated, after {(datetime.now(UTC) - began).total_seconds():.0f} s in all")
    with defs.get_asset_value_loader() as loader:
        kinds, invoices, gold = (loader.load_asset_value(name) for name in (*_DATASETS, "invoice_gold"))
    show(measure(kinds, invoices, gold), Console(highlight=False))


@dataclass(frozen=True)
class Outcome:
    """The result of the chain.

    Attributes:
        kinds: The number of papers by the kind that they were given.
        asked: The number of papers that the second step asked about.
        invoices: The number of them that are invoices.
        right: The number of invoices with the right total.
        quotes: The number of quotes by kind of match.
        mistakes: Text, total and quote of the first papers whose total is wrong, with the right total in cents.
    """

    kinds: dict[str, int]
    asked: int
    invoices: int
    right: int
    quotes: dict[str, int]
    mistakes: list[tuple[str, int | None, int, str | None]]

    @property
    def grounded(self) -> float | None:
        """The share of quotes that were found in the paper; None without quotes."""
        given = sum(self.quotes.values())
        return sum(self.quotes.get(match, 0) for match in _FOUND) / given if given else None


def measure(kinds: pl.DataFrame, invoices: pl.DataFrame, gold: pl.DataFrame) -> Outcome:
    """Compare the labels of both steps with the truth about the papers."""
    both = invoices.join(gold.select("paper_id", truth="total_cents"), on="paper_id", how="inner").sort("paper_id")
    wrong = both.filter(pl.col("total_cents").ne_missing(pl.col("truth")))
    return Outcome(
        kinds=dict(kinds["kind"].value_counts().sort("kind").iter_rows()),
        asked=len(invoices),
        invoices=len(both),
        right=len(both) - len(wrong),
        quotes=dict(invoices["quote_match"].drop_nulls().value_counts().sort("quote_match").iter_rows()),
        mistakes=wrong.select("paper_id", "total_cents", "truth", "quote").rows()[:3],
    )


def show(found: Outcome, console: Console) -> None:
    """Print what the two steps found, the share of quotes that are in the papers, and the first mistakes."""
    console.print()
    lines = Table.grid(padding=(0, 2))
    lines.add_row("step 1", ", ".join(f"{count} {kind}s" for kind, count in found.kinds.items()))
    lines.add_row("step 2", f"{found.asked} papers asked for a total; {found.invoices} of them are invoices")
    lines.add_row("right", f"{found.right} of {found.invoices} totals")
    if found.grounded is not None:
        matches = ", ".join(f"{count} {match}" for match, count in found.quotes.items())
        lines.add_row("quotes", f"{found.grounded:.0%} are in the paper ({matches})")
    console.print(lines)
    if found.mistakes:
        table = Table(box=box.SIMPLE_HEAD, title="The first mistakes", title_justify="left", show_edge=False)
        for name in ("paper", "total", "right total", "quote"):
            table.add_column(name, justify="right" if "total" in name else "left")
        for paper, total, truth, quote in found.mistakes:
            table.add_row(paper, _euro(total), _euro(truth), quote or "none")
        console.print()
        console.print(table)
    console.print()
    console.print("The papers are made by this example, and its labeler follows simple rules.", soft_wrap=True)
    console.print("Each paper, with its quote marked:  python3 -m example_project review", markup=False, soft_wrap=True)
    console.print(f"The tables are Parquet files:       {settings.HOME / 'tables'}", markup=False, soft_wrap=True)


def _euro(cents: int | None) -> str:
    return "none" if cents is None else f"{cents / 100:,.2f}"
