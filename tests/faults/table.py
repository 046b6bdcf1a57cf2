"""The matrix: every fault that can be made at a provider, and its expected effect on twelve rows, four of them struck.

A row of the table is a fault. A cell is one provider's script, or the reason why the fault cannot happen there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagster_llm_batch.providers.registry import SERVER_FOLDERS
from dagster_llm_batch.testing.emulator import BatchFault, FileFault, RowFault, WireFault
from tests.faults.vendor_workspace import MARK, ROWS, STRUCK, Ending, Servers, VendorWorkspace
from tests.faults.vendors import MATRIX_VENDORS, Vendor

FIRST: dict[str, Any] = {"batches": [0]}
STRUCK_ROWS: dict[str, Any] = {"containing": MARK, "times": STRUCK, **FIRST}


@dataclass(frozen=True)
class Expected:
    """The expected ending. `twice`: requests that are billed again, since the vendor billed them without an answer."""

    outcomes: Mapping[str, int] = field(default_factory=lambda: {"succeeded": ROWS})
    twice: int = 0
    reason: str = ""  # part of the rejects' reasons
    stopped: str = ""  # part of the reason against paying for a second round; empty if no reason is expected


@dataclass(frozen=True)
class Never:
    """The fault cannot happen at this provider."""

    why: str


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    `lasts` is the number of steps after which the fault is removed; without it, the fault ends on its own. `limits` are
    the vendors' limits. `script` returns a vendor's faults, or the words for `faulty_command.py`. `but` holds the
    vendors with another expectation, or at which the fault never happens.
    """

    name: str
    script: Callable[[Vendor], Sequence[Any]]
    expected: Expected = Expected()
    but: Mapping[str, Expected | Never] = field(default_factory=dict)
    lasts: int | None = None
    timeout_seconds: float = 10.0
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def at(self, vendor: Vendor) -> Expected | Never:
        return self.but.get(vendor.name, self.expected)


ALL_MISSING = Expected({"missing": ROWS}, stopped="no result names this request")
GONE = Expected({"missing": ROWS}, reason="the provider no longer has the batch or its results")
STRUCK_AGAIN = Expected(twice=STRUCK)
STRUCK_ERRORED = Expected({"succeeded": ROWS - STRUCK, "errored": STRUCK})
ALL_ERRORED = Expected({"errored": ROWS})
NO_NETWORK = {"command": Never("it runs on this machine: no calls over a network")}
LOCAL_FILE = {"command": Never("its results are a file on this machine")}


def scripted(*faults: Any, command: str = "", **at: Sequence[Any]) -> Callable[[Vendor], Sequence[Any]]:
    """Script the same faults everywhere, except for the named vendors."""
    return lambda vendor: command.split() if vendor.name == "command" else at.get(vendor.name, faults)


def every_call(**fault: Any) -> Callable[[Vendor], Sequence[Any]]:
    """Let each of the vendor's calls fail once. Then lose a create's reply, so that its batch must be found."""

    def script(vendor: Vendor) -> Sequence[Any]:
        if vendor.name == "command":
            return []
        once = [WireFault(route=route, **fault) for route in vendor.calls.values()]
        return once if "when" in fault else [*once, WireFault(kind="close", route=vendor.create, when="after")]

    return script


def all_calls(**fault: Any) -> Callable[[Vendor], Sequence[Any]]:
    """Let each call fail each time."""
    return lambda vendor: [WireFault(route=route, times=None, **fault) for route in vendor.calls.values()]


def at_download(*faults: Mapping[str, Any]) -> Callable[[Vendor], Sequence[Any]]:
    return lambda vendor: [WireFault(route=vendor.download, **fault) for fault in faults if "download" in vendor.calls]


# S3's own error: a 404 in other words, such as a proxy's, is temporary. The other vendors' errors are in their
# emulators.
NO_KEY = b"<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>"


def not_there(vendor: Vendor) -> Sequence[Any]:
    """Let the vendor lose its results."""
    own = {"body": NO_KEY, "media_type": "application/xml"} if vendor.name == "bedrock" else {}
    route = vendor.calls.get("download")
    return [WireFault(kind="status", status=404, route=route, times=None, **own)] if route else []


_BUSY = {"kind": "status", "times": 5, "status": 429, "code": "RESOURCE_EXHAUSTED"}


def queue_is_full(vendor: Vendor) -> Sequence[Any]:
    if vendor.name in ("openai", "azure"):
        return [BatchFault(kind="fails", code="token_limit_exceeded", **FIRST)]
    if vendor.name == "bedrock":
        code = "ServiceQuotaExceededException"
        return [WireFault(route=vendor.create, **{**_BUSY, "status": 400, "code": code})]
    return [WireFault(route=vendor.create, **_BUSY)] if vendor.calls else []


WEB_PAGE = b"<!DOCTYPE html><html><head><title>Welcome</title></head><body>It works!</body></html>"
# answers that tests/providers/odd_answers.py gives to single verbs, here during a whole submission
ODD_BODIES = {
    "a web page": ("text/html", WEB_PAGE),
    "nothing": ("application/json", b""),
    "null": ("application/json", b"null"),
    "a list": ("application/json", b"[]"),
    "bad UTF-8": ("application/json", b'{"id": "\xff\xfe"}'),
    "a lone surrogate": ("application/json", b'{"error": {"message": "\\ud800"}}'),
}

FAULTS = (
    # rows of the results
    Fault(
        "rows shuffled",
        scripted(command="shuffled"),
        but={"gemini": Never("the API keeps the order of the requests, by its contract")},
    ),
    Fault("rows twice", scripted(FileFault(kind="duplicate", **STRUCK_ROWS), command="duplicate")),
    Fault("rows missing", scripted(FileFault(kind="missing", **STRUCK_ROWS), command="missing"), STRUCK_AGAIN),
    Fault("foreign rows", scripted(FileFault(kind="foreign", **STRUCK_ROWS), command="foreign")),
    Fault(
        "malformed rows",
        scripted(FileFault(kind="malformed", **STRUCK_ROWS), command="malformed"),
        STRUCK_AGAIN,
        but={"openrouter": Never("rows are parts of a JSON list, and not lines")},
    ),
    Fault(
        "unknown result type",
        scripted(FileFault(kind="unknown_type", **STRUCK_ROWS), command="unknown"),
        STRUCK_ERRORED,
    ),
    Fault(
        "unknown fields",
        scripted(FileFault(kind="extra_fields", times=None), BatchFault(kind="extra_fields"), command="extra"),
    ),
    Fault(
        "BOM, CRLF, blank lines",
        scripted(*(FileFault(kind=kind) for kind in ("bom", "crlf", "blank_lines")), command="odd-lines"),
        but={"openrouter": Never("rows are parts of a JSON list, and not lines")},
    ),
    Fault("rows fail for now", scripted(RowFault(status_code=503, **STRUCK_ROWS), command="503")),
    Fault("rows fail for good", scripted(RowFault(status_code=400, **STRUCK_ROWS), command="400"), STRUCK_ERRORED),
    Fault("all rows fail for now", scripted(RowFault(status_code=503, **FIRST), command="503 all")),
    Fault("all rows fail for good", scripted(RowFault(status_code=400), command="400 all"), ALL_ERRORED),
    Fault(
        "all ids altered",
        scripted(FileFault(kind="renamed", times=None), command="renamed all"),
        Expected({"missing": ROWS}, stopped="results name custom_ids that were not asked"),
    ),
    Fault("all results missing", scripted(FileFault(kind="missing", times=None), command="missing all"), ALL_MISSING),
    Fault(
        "all replies invalid",
        scripted(RowFault(kind="truncated"), command="invalid all"),
        Expected({"invalid": ROWS}, stopped="12 of 12 requests of round 1 got no reply that fits (12 invalid)"),
    ),
    # the batch as a whole
    Fault(
        "no output file",
        scripted(BatchFault(kind="no_output_file", **FIRST), command="absent"),
        ALL_MISSING,
        but={
            "command": Expected({"errored": ROWS}, reason="wrote no output"),
            # The owner of the bucket may have deleted it.
            **dict.fromkeys(("bedrock", "vertex"), GONE),
        },
    ),
    Fault(
        "no output file, for a while",
        scripted(BatchFault(kind="no_output_file")),
        lasts=2,
        but={
            **dict.fromkeys(("bedrock", "vertex", "gemini"), Never("the job ends after its files are written")),
            **LOCAL_FILE,
        },
    ),
    Fault(
        "fails in validation",
        scripted(
            BatchFault(kind="fails", code="3", message="Not valid.", **FIRST),
            command="fails absent",
            anthropic=[WireFault(kind="status", route="POST /v1/messages/batches", status=400, message="Not valid.")],
        ),
        Expected({"errored": ROWS}, reason="Not valid."),
        but={"command": Expected({"errored": ROWS}, twice=0, reason="ended with code 1")},
    ),
    Fault("queue is full", queue_is_full, but={"command": Never("it has no queue: it starts at once")}),
    Fault(
        "too large for the queue",
        lambda _: [],
        limits={
            "openai": {"enqueued_tokens": 60},
            "azure": {"enqueued_tokens": 60},
            "anthropic": {"queued_requests": 6},
            "gemini": {"enqueued_tokens": 600},
        },
        but={
            **dict.fromkeys(("bedrock", "vertex"), Never("its queue counts batches, and not what is in them")),
            **dict.fromkeys(("openrouter", *SERVER_FOLDERS), Never("it documents no queue")),
            "command": Never("it has no queue: it starts at once"),
        },
    ),
    Fault(
        "fails for now",
        scripted(BatchFault(kind="fails", code="13", message="Internal error, try again.", **FIRST), command="killed"),
        but={
            **dict.fromkeys(("openai", "azure"), Never("it documents no failure that passes but the full queue")),
            **dict.fromkeys(("openrouter", *SERVER_FOLDERS), Never("a batch that failed tells a message, and no code")),
            "anthropic": Never("a batch does not fail as a whole"),
        },
    ),
    Fault(
        "expires half way",
        scripted(BatchFault(kind="expires", fraction=0.5, **FIRST)),
        but={"command": Never("nothing ends it but itself and its user")},
    ),
    Fault(
        "canceled while running",
        scripted(BatchFault(kind="cancels", fraction=0.5, **FIRST)),
        Expected({"succeeded": ROWS // 2, "canceled": ROWS // 2}, reason="not by this package"),
        but={
            # its emulator keeps no answer of a canceled batch
            "gemini": Expected({"canceled": ROWS}, reason="not by this package"),
            "command": Never("nothing ends it but itself and its user"),
        },
    ),
    Fault(
        "stops half way",
        scripted(command="half"),
        but={vendor.name: Never("told by its status: see expires, canceled") for vendor in MATRIX_VENDORS[:-1]},
    ),
    Fault(
        "unknown status, for a while",
        scripted(BatchFault(kind="status", status="brand_new")),
        lasts=3,
        but={"command": Never("its states are this package's own")},
    ),
    Fault(
        "counts that contradict the rows",
        scripted(BatchFault(kind="miscounts")),
        but={"command": Never("its counts are the lines of its output")},
    ),
    # calls
    Fault("429 on every call", every_call(kind="status", status=429), but=NO_NETWORK),
    Fault("429 with Retry-After", every_call(kind="status", status=429, retry_after="0.01"), but=NO_NETWORK),
    Fault("500 on every call", every_call(kind="status", status=500), but=NO_NETWORK),
    Fault("503 on every call", every_call(kind="status", status=503), but=NO_NETWORK),
    Fault("500 after the effect", every_call(kind="status", status=500, when="after"), but=NO_NETWORK),
    Fault(
        "503 on all calls, for a while",
        all_calls(kind="status", status=503, retry_after="0.01"),
        lasts=2,
        timeout_seconds=1,
        but=NO_NETWORK,
    ),
    Fault("401 on all calls, for a while", all_calls(kind="status", status=401), lasts=2, but=NO_NETWORK),
    Fault(
        "404 on a poll",
        lambda vendor: [WireFault(kind="status", route=vendor.calls["poll"], status=404)],
        but=NO_NETWORK,
    ),
    Fault(
        "404 on every poll",
        lambda vendor: [WireFault(kind="status", route=vendor.calls["poll"], status=404, times=None)],
        GONE,
        but=NO_NETWORK,
    ),
    Fault("404 on every download", not_there, GONE, but=LOCAL_FILE),
    Fault("200 without sense", every_call(kind="status", status=200, times=2), but=NO_NETWORK),
    *(
        Fault(
            f"200 with {name}", every_call(kind="status", status=200, body=body, media_type=media_type), but=NO_NETWORK
        )
        for name, (media_type, body) in ODD_BODIES.items()
    ),
    Fault(
        "200 with a web page on all calls, for a while",
        all_calls(kind="status", status=200, body=WEB_PAGE, media_type="text/html"),
        lasts=2,
        but=NO_NETWORK,
    ),
    Fault("connection closed", every_call(kind="close"), but=NO_NETWORK),
    Fault("connection hangs", every_call(kind="hang"), timeout_seconds=0.5, but=NO_NETWORK),
    Fault(
        "a create's reply never comes",
        lambda vendor: [WireFault(kind="hang", route=vendor.create, when="after")],
        timeout_seconds=0.5,
        but=NO_NETWORK,
    ),
    Fault("slow", every_call(kind="slow", seconds=0.02, chunk_bytes=1_000), but=NO_NETWORK),
    # downloads
    Fault("download cut, length known", at_download({"kind": "cut", "framing": "length"}), but=LOCAL_FILE),
    Fault("download cut, chunked", at_download({"kind": "cut", "framing": "chunked"}), but=LOCAL_FILE),
    Fault("download cut, length unknown", at_download({"kind": "cut", "framing": "close"}), but=LOCAL_FILE),
    Fault(
        "download cut between lines, length unknown",
        at_download({"kind": "cut", "framing": "close", "after_lines": 5}),
        but=LOCAL_FILE,
    ),
    Fault(
        "download cut, length unknown, for a while",
        at_download({"kind": "cut", "framing": "close", "after_lines": 5, "times": None}),
        lasts=4,
        but=LOCAL_FILE,
    ),
)


Maker = Callable[[Fault, Vendor, Servers, Path], VendorWorkspace]
"""Returns the workspace of a cell."""


def make_workspace(fault: Fault, vendor: Vendor, servers: Servers, folder: Path) -> VendorWorkspace:
    """Return a workspace of plain rows."""
    return VendorWorkspace(vendor, servers, folder, fault.timeout_seconds, **fault.limits.get(vendor.name, {}))


def run_cell(fault: Fault, vendor: Vendor, servers: Servers, folder: Path, make: Maker = make_workspace) -> Ending:
    """Run one cell, and return its ending."""
    with closing(make(fault, vendor, servers, folder)) as workspace:
        return workspace.run(fault.script(vendor), lasts=fault.lasts)


def run_row(
    fault: Fault,
    servers: Servers,
    folder: Path,
    among: Sequence[Vendor] = MATRIX_VENDORS,
    make: Maker = make_workspace,
) -> dict[str, Ending]:
    """Run a fault at every vendor where it can happen, all at once, and return the endings by vendor."""
    vendors = [vendor for vendor in among if not isinstance(fault.at(vendor), Never)]
    with ThreadPoolExecutor(len(vendors)) as pool:
        endings = pool.map(lambda vendor: run_cell(fault, vendor, servers, _made(folder / vendor.name), make), vendors)
        return {vendor.name: ending for vendor, ending in zip(vendors, endings, strict=True)}


def count_problems(expected: Expected, ending: Ending) -> list[str]:
    """List the differences from the expected outcomes of rows and from the expected billing."""
    found = [f"{ending.lost} rows lost"] if ending.lost else []
    if ending.outcomes != expected.outcomes:
        found.append(f"{dict(ending.outcomes)} in place of {dict(expected.outcomes)}")
    if ending.twice != expected.twice:
        found.append(f"{ending.twice} requests billed twice in place of {expected.twice}")
    return found


def problems(fault: Fault, vendor: Vendor, ending: Ending) -> list[str]:
    """List the differences of a cell from its expectation."""
    expected = fault.at(vendor)
    assert isinstance(expected, Expected)
    found = count_problems(expected, ending)
    if expected.stopped not in (ending.stopped or ""):
        found.append(f"stopped for {ending.stopped!r} in place of {expected.stopped!r}")
    if ending.stopped and not expected.stopped:
        found.append(f"stopped: {ending.stopped}")
    has_unseen = bool(expected.twice or expected.outcomes.get("missing")) and vendor.name != "command"
    if (ending.cost_usd is None) != has_unseen:
        found.append(f"costs {ending.cost_usd} USD, where some were {'' if has_unseen else 'not '}without a result")
    if expected.reason and not any(expected.reason in reason for reason in ending.reasons):
        found.append(f"no reject says {expected.reason!r}, but {sorted(ending.reasons)[:2]}")
    if ending.in_order and fault.name == "rows shuffled":
        found.append("the results came in the order of the requests")
    return found + [f"never struck: {fault.route}" for fault in ending.unstruck]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
