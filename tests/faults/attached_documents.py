"""Faults around documents inside of requests (`Prompt(documents=…)`), at each vendor that takes them.

Twelve rows have three documents, four rows each.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.testing.emulator import RowFault, WireFault
from tests.faults.table import ALL_ERRORED, FIRST, STRUCK_ROWS, Expected, Fault
from tests.faults.vendor_workspace import ROWS, STRUCK, Servers, VendorWorkspace
from tests.faults.vendors import VENDORS, Vendor
from tests.pdfs import pdf

_READERS = ("openai", "anthropic", "bedrock", "vertex", "gemini", "openrouter", "mistral")
ATTACHED_VENDORS = tuple(vendor for vendor in VENDORS if vendor.name in _READERS)

_INVALID = "The PDF is not valid."
_REFUSED = Expected({"succeeded": ROWS - STRUCK, "errored": STRUCK}, reason=_INVALID)


class AttachedWorkspace(VendorWorkspace):
    """A workspace whose rows have documents in their requests; at OpenRouter, which takes no others, by address."""

    def __init__(self, vendor: Vendor, servers: Servers, folder: Path, timeout_seconds: float) -> None:
        super().__init__(vendor, servers, folder, timeout_seconds)
        self.definition = replace(self.definition, prompt=Prompt(user="{{ text }}", documents=["paper"]))

    def rows(self) -> pl.DataFrame:
        papers: list[object] = [pdf(1, mark=str(number % 3)) for number in range(ROWS)]
        if self.vendor.name == "openrouter":
            papers = [f"https://example.org/{number % 3}.pdf" for number in range(ROWS)]
        return super().rows().with_columns(paper=pl.Series(papers))


ATTACHED_FAULTS: tuple[Fault, ...] = (
    Fault("no fault", lambda _: ()),
    Fault(
        "a document is refused (400)", lambda _: [RowFault(status_code=400, message=_INVALID, **STRUCK_ROWS)], _REFUSED
    ),
    Fault(
        "a document is too large (413)",
        lambda _: [RowFault(status_code=413, message=_INVALID, **STRUCK_ROWS)],
        _REFUSED,
    ),
    Fault("a document cannot be read for now (503)", lambda _: [RowFault(status_code=503, **STRUCK_ROWS)]),
    Fault("all documents are refused (400)", lambda _: [RowFault(status_code=400, **FIRST)], ALL_ERRORED),
    Fault(
        "the batch comes too often (429)", lambda vendor: [WireFault(kind="status", route=vendor.create, status=429)]
    ),
    Fault("the batch's answer is lost", lambda vendor: [WireFault(kind="close", route=vendor.create, when="after")]),
)


def make_attached_workspace(fault: Fault, vendor: Vendor, servers: Servers, folder: Path) -> VendorWorkspace:
    """Return the workspace of a cell."""
    return AttachedWorkspace(vendor, servers, folder, fault.timeout_seconds)
