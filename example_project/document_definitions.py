"""The Dagster code of `python3 -m example_project documents`, part of the example's definitions.

    papers ─▶ paper_kinds_batch ─▶ paper_kinds ─ invoices alone ─▶ invoices_batch ─▶ invoices ─┐
       └────▶ invoice_gold ────────────────────────────────────────────────────────────────────┴─▶ invoice_eval

The papers are made by the example (papers.py), and the labeler follows simple rules (labelers/clerk.py). The text of
each PDF is sent, so the labeler does not have to read PDF.
"""

from __future__ import annotations

from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel, Field

from dagster_llm_batch import AssetRows, Checks, Evidence, Prompt, evaluation_assets, llm_batch_assets, on_labels_ready
from example_project.papers import load_papers, load_totals

__all__ = ["CLERK", "document_assets"]

CLERK = "command/clerk"


class PaperKind(BaseModel):
    """The kind of a paper."""

    kind: Literal["invoice", "letter", "receipt"]


class Invoice(BaseModel):
    """The content of an invoice."""

    seller: str
    total_cents: int | None = None
    quote: str | None = Field(default=None, description="The words of the paper that show the total, copied exactly.")


@dg.asset(kinds={"table", "polars"})
def papers() -> Any:
    """Invoices, receipts and letters as PDF, made by the example, with their text."""
    return load_papers()


@dg.asset(kinds={"table", "polars"})
def invoice_gold() -> Any:
    """The totals of all invoices, known since the example made them."""
    return load_totals()


def document_assets() -> list[dg.AssetsDefinition]:
    """Return the assets of the two steps and their evaluation."""
    common: dict[str, Any] = {"key": "paper_id", "keep": ["pdf", "text"], "model": CLERK, "frame": "polars"}
    kinds = llm_batch_assets(
        name="paper_kinds",
        rows=papers,
        prompt=Prompt(user="What kind of paper is this?", documents=["pdf"], documents_as="text"),
        response=PaperKind,
        **common,
    )
    invoices = llm_batch_assets(
        name="invoices",
        rows=AssetRows(asset=kinds, when="kind == 'invoice'"),
        prompt=Prompt(user="Who sold, and what is the total? Quote it.", documents=["pdf"], documents_as="text"),
        response=Invoice,
        checks=Checks(evidence=Evidence({"quote": "text"}), min_grounded=0.8),
        automation_condition=on_labels_ready(),
        **common,
    )
    evaluation = evaluation_assets(
        name="invoice_eval",
        gold=invoice_gold,
        candidates=[invoices],
        key="paper_id",
        target="total_cents",
        frame="polars",
    )
    return [papers, invoice_gold, *kinds, *invoices, *evaluation]
