"""Faults around documents in vendors' storage (`Prompt(documents_as="upload")`), at each vendor that has one.

Twelve rows name three documents, four rows each. After the submission, the documents are removed, as by ticks. Another
program's file in the same account has to stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from dagster_llm_batch.core.documents import PDF
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.providers.capabilities import document_store_of
from dagster_llm_batch.testing.emulator import WireFault
from dagster_llm_batch.upkeep.stored_documents import DocumentRemover
from tests.faults.table import WEB_PAGE, Expected, Fault, Never, problems
from tests.faults.vendor_workspace import ROWS, STRUCK, Ending, Servers, VendorWorkspace
from tests.faults.vendors import VENDORS, Vendor
from tests.pdfs import pdf

_OTHERS_NAME = "dlb-others.pdf"
_REMOVED_AFTER_SECONDS = 30 * 3600.0  # the grace of a day is over, and Gemini still has the files


@dataclass(frozen=True)
class Routes:
    """A vendor's calls about documents, as globs over "METHOD /path"."""

    store: str
    look: str
    find: str
    delete: str


ROUTES: Mapping[str, Routes] = {
    "openai": Routes("POST /v1/files", "GET /v1/files/*", "GET /v1/files", "DELETE /v1/files/*"),
    "anthropic": Routes(
        "POST /anthropic/v1/files",
        "GET /anthropic/v1/files/*",
        "GET /anthropic/v1/files",
        "DELETE /anthropic/v1/files/*",
    ),
    "gemini": Routes(
        "POST /gemini/upload/*", "GET /gemini/*/files/*", "GET /gemini/*/files", "DELETE /gemini/*/files/*"
    ),
}
UPLOAD_VENDORS = tuple(vendor for vendor in VENDORS if vendor.name in ROUTES)


class DocumentWorkspace(VendorWorkspace):
    """A workspace whose rows name documents that are uploaded."""

    def __init__(self, vendor: Vendor, servers: Servers, folder: Path, timeout_seconds: float) -> None:
        super().__init__(vendor, servers, folder, timeout_seconds)
        prompt = Prompt(user="{{ text }}", documents=["paper"], documents_as="upload")
        self.definition = replace(self.definition, prompt=prompt)
        self.store = document_store_of(self.provider)
        self.while_waiting: Callable[[DocumentWorkspace], None] | None = None

    def rows(self) -> pl.DataFrame:
        return super().rows().with_columns(paper=pl.Series([pdf(1, mark=str(n % 3)) for n in range(ROWS)]))

    def _let_time_pass(self) -> None:
        # The first batch is sent, and nothing of it has run.
        if self.while_waiting is not None:
            self.while_waiting(self)
            self.while_waiting = None
        super()._let_time_pass()

    def stored(self) -> dict[str, Sequence[Any]]:
        """Return the files of documents that the vendor has now, by their names."""
        names = {file.filename for file in self.emulator.books.files if file.filename.endswith(".pdf")}
        return dict(self.store.find_documents(names))

    def delete_documents(self) -> None:
        """Delete the documents of this package, as a person at the console."""
        for name, files in self.stored().items():
            for file in files if name != _OTHERS_NAME else ():
                self.store.delete_document(file.file_id)

    def remove_documents(self) -> None:
        """Do the work of a tick about documents that nothing needs."""
        engine = self.engine()
        remover = DocumentRemover(engine.deployment)
        remover.remove_files(remover.due())
        engine.ledger.close()


@dataclass(frozen=True)
class UploadFault(Fault):
    """One row. `while_waiting` strikes while the first batch waits, and `at_removal` are faults of the removal."""

    while_waiting: Callable[[DocumentWorkspace], None] | None = None
    at_removal: Callable[[Vendor], Sequence[WireFault]] = lambda _: ()


def at(call: str, **fault: Any) -> Callable[[Vendor], Sequence[WireFault]]:
    """Script a fault of one call: "store", "look", "find" or "delete"."""
    return lambda vendor: [WireFault(route=getattr(ROUTES[vendor.name], call), **fault)]


def no_faults(_vendor: Vendor) -> Sequence[WireFault]:
    return ()


def lost_and_not_listed(vendor: Vendor) -> Sequence[WireFault]:
    """Store a document without an answer, and then fail to list the files."""
    return [
        *at("store", kind="close", when="after", **_LAST_CALL[vendor.name])(vendor),
        *at("find", kind="status", status=503, times=4)(vendor),
    ]


# An upload to Gemini is two calls, and three documents are uploaded at once.
_LAST_CALL: Mapping[str, Mapping[str, Any]] = {"openai": {}, "anthropic": {}, "gemini": {"skip": 5}}
_REFUSED = Expected(
    {"succeeded": ROWS - STRUCK, "canceled": STRUCK}, reason="a document was not uploaded: Could not upload a document"
)
_ODD: Mapping[str, Any] = {"kind": "status", "status": 200, "when": "after"}
_PAGE: Mapping[str, Any] = {"body": WEB_PAGE, "media_type": "text/html"}
_BY_SDK = {"gemini": Never("its SDK repeats a part of an upload whose answer lacks a header")}

UPLOAD_FAULTS: tuple[UploadFault, ...] = (
    UploadFault("no fault", no_faults),
    UploadFault("a document is refused (400)", at("store", kind="status", status=400), _REFUSED),
    UploadFault("a document is too large (413)", at("store", kind="status", status=413), _REFUSED),
    UploadFault(
        "all documents are refused (400)",
        at("store", kind="status", status=400, times=3),
        Expected({"canceled": ROWS}, reason=_REFUSED.reason),
    ),
    UploadFault("too many uploads (429)", at("store", kind="status", status=429, times=5)),
    UploadFault("uploads fail (500)", at("store", kind="status", status=500, times=5)),
    UploadFault("uploads fail (503)", at("store", kind="status", status=503, times=5)),
    UploadFault("a wrong key at an upload (401)", at("store", kind="status", status=401)),
    UploadFault("connection closed before an upload", at("store", kind="close")),
    UploadFault(
        "connection closed after an upload",
        lambda vendor: at("store", kind="close", when="after", **_LAST_CALL[vendor.name])(vendor),
    ),
    UploadFault("uploads hang", at("store", kind="hang", times=2), timeout_seconds=1.0),
    UploadFault("an upload's file is not listed for a while", lost_and_not_listed),
    UploadFault("an upload's answer names no file", at("store", **_ODD, body=b"{}"), but=_BY_SDK),
    UploadFault("an upload's answer is a web page", at("store", **_ODD, **_PAGE), but=_BY_SDK),
    UploadFault("documents gone while the batch waits", no_faults, while_waiting=DocumentWorkspace.delete_documents),
    UploadFault("a deletion is refused (403)", no_faults, at_removal=at("delete", kind="status", status=403)),
    UploadFault(
        "a deletion finds no file (404)", no_faults, at_removal=at("delete", kind="status", status=404, when="after")
    ),
    UploadFault("deletions fail (503)", no_faults, at_removal=at("delete", kind="status", status=503, times=None)),
    UploadFault(
        "connection closed after a deletion", no_faults, at_removal=at("delete", kind="close", when="after", times=None)
    ),
)


def run_upload_fault(
    fault: UploadFault, servers: Servers, folder: Path, among: Sequence[Vendor] = UPLOAD_VENDORS
) -> dict[str, Ending]:
    """Run a fault at every vendor where it can happen, all at once, and return the endings by vendor."""
    vendors = [vendor for vendor in among if not isinstance(fault.at(vendor), Never)]
    with ThreadPoolExecutor(len(vendors)) as pool:
        endings = pool.map(lambda vendor: _run_cell(fault, vendor, servers, folder / vendor.name), vendors)
        return {vendor.name: ending for vendor, ending in zip(vendors, endings, strict=True)}


def _run_cell(fault: UploadFault, vendor: Vendor, servers: Servers, folder: Path) -> Ending:
    folder.mkdir(parents=True)
    with closing(DocumentWorkspace(vendor, servers, folder, fault.timeout_seconds)) as workspace:
        others = workspace.store.upload_document(pdf(1, mark="others"), _OTHERS_NAME, PDF)
        workspace.while_waiting = fault.while_waiting
        ending = workspace.run(fault.script(vendor))
        workspace.clear()
        workspace.pass_time(_REMOVED_AFTER_SECONDS)
        removal = fault.at_removal(vendor)
        workspace.inject(removal)
        workspace.remove_documents()
        ending.unstruck += [one for one in removal if not workspace.emulator.struck(one)]
        workspace.clear()
        workspace.remove_documents()
        ending.left = len(workspace.stored().keys() - {_OTHERS_NAME})
        ending.others_left = workspace.store.has_document(others.file_id)
        return ending


def problems_of_uploads(fault: UploadFault, vendor: Vendor, ending: Ending) -> list[str]:
    """List the differences of a cell from its expectation."""
    found = problems(fault, vendor, ending)
    if ending.left:
        found.append(f"{ending.left} documents left at the vendor")
    if not ending.others_left:
        found.append("another program's file was deleted")
    return found
