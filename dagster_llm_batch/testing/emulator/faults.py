"""Scripted faults: their kind, place and frequency. All are frozen values and any number may be active at once.

    WireFault   the transport and the HTTP answer of a route
    BatchFault  one batch as a whole
    RowFault    the answer to one request line
    FileFault   the bytes of a results file

Choices by fraction depend on the seed, the batch and the custom_id only, so a run can be repeated.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

WireKind = Literal["status", "close", "hang", "slow", "cut", "stall"]
BatchKind = Literal[
    "fails",  # validation ends in `failed` with `code` and `message`
    "expires",  # the window ends after `fraction` of the rows
    "cancels",  # canceled by the service after `fraction` of the rows
    "cancel_drops_row",  # on cancel, the last finished row appears in no file, and leaves the counts
    "stuck",  # never leaves the state `during` (the present one if empty)
    "status",  # reports `status` while really in `during`
    "miscounts",  # request_counts contradict the rows: one too many completed
    "no_output_file",  # it ended well and nothing failed, yet there are no results
    "extra_fields",  # unknown JSON fields in the batch object
    "unpaid",  # OpenRouter: a 402 withholds the results
    "no_counts",  # Bedrock: the job has no counts, like older ones; the manifest has them
    "counts_move",  # Anthropic: counts move with the rows; by the documents they are fixed until the end
]
RowKind = Literal["status", "refusal", "truncated", "model"]
FileKind = Literal[
    "duplicate",  # the row is written twice
    "missing",  # the row is not written
    "malformed",  # the row is cut in its middle
    "renamed",  # the row is written under another custom_id than it was asked under
    "foreign",  # a copy of the row with an unknown custom_id follows it
    "extra_fields",  # unknown JSON fields in the row, its response and its body
    "u2028",  # a raw U+2028 in the reply's text
    "unknown_type",  # the row holds neither a reply nor an error, but something that is not documented
    "bom",  # the file starts with a byte order mark
    "crlf",  # lines end in CR LF
    "blank_lines",  # an empty line after each row
]
WHOLE_FILE_KINDS = frozenset({"bom", "crlf", "blank_lines"})


@dataclass(frozen=True, kw_only=True)
class WireFault:
    """A route misbehaves.

    `route` is a glob over "METHOD /v1/path" (the Azure prefix is taken off first). The fault passes over the first
    `skip` matching calls, then strikes `times` of them (None: all). `when="after"` means that the call has its full
    effect and only the answer is lost. `slow` combines with `cut` or `stall`; the others exclude later faults. A fault
    of a `fraction` strikes calls by chance, which depends on the seed and the order of calls.

    status: answers `status`, with the `retry_after` header if given; with no `body`, in the vendor's form of an error.
    close:  closes the connection without a reply.
    hang:   gives no reply until the client or the emulator closes. Sockets only.
    slow:   waits `seconds`; then, if `chunk_bytes` is set, waits again before every piece of that size.
    stall:  as `cut`, but the connection stays open, and silent, until the client or the emulator closes.
    cut:    ends a reply after `after_lines` lines or `after_bytes` bytes (default: half of it). `framing="close"` sends
            neither Content-Length nor chunks, so that the client can't see that anything is missing.
    """

    kind: WireKind
    route: str = "*"
    when: Literal["before", "after"] = "before"
    times: int | None = 1
    skip: int = 0
    fraction: float = 1.0
    status: int = 500
    code: str | None = None
    message: str | None = None
    retry_after: str | int | None = None
    body: bytes | None = None
    media_type: str = "application/json"
    seconds: float = 0.0
    chunk_bytes: int | None = None
    after_bytes: int | None = None
    after_lines: int | None = None
    framing: Literal["length", "chunked", "close"] = "length"


@dataclass(frozen=True, kw_only=True)
class BatchFault:
    """A batch as a whole misbehaves: those numbered in `batches` (0 is the first created), or every one."""

    kind: BatchKind
    batches: Collection[int] | None = None
    fraction: float = 0.5
    during: str = ""
    status: str = "paused"
    code: str = "token_limit_exceeded"
    message: str = "Enqueued token limit reached. Please try again once some in_progress batches have been completed."


@dataclass(frozen=True, kw_only=True)
class RowFault:
    """A request line is answered badly. A line is struck if every given condition holds, at most `times` in all.

    `containing` is searched in the uploaded request line. `status` answers `status_code` with an error body; `model`
    answers under the name in `model`.
    """

    kind: RowKind = "status"
    custom_ids: Collection[str] | None = None
    containing: str | None = None
    fraction: float = 1.0
    batches: Collection[int] | None = None
    times: int | None = None
    status_code: int = 400
    code: str | None = None
    message: str = "Scripted fault: this request can't be answered."
    model: str = "another-model"


@dataclass(frozen=True, kw_only=True)
class FileFault:
    """A results file is written badly; conditions as for `RowFault`. Whole-file kinds look at `batches` only."""

    kind: FileKind
    custom_ids: Collection[str] | None = None
    containing: str | None = None
    fraction: float = 1.0
    batches: Collection[int] | None = None
    times: int | None = 1
    custom_id: str = "foreign-custom-id"


Fault = WireFault | BatchFault | RowFault | FileFault
LineFault = TypeVar("LineFault", RowFault, FileFault)


def lost_create_reply(
    how: Literal["500", "close", "hang"] = "500", *, times: int | None = 1, route: str = "POST /v1/batches"
) -> WireFault:
    """Create the batch, and drop the reply to the caller: an ambiguous create."""
    if how == "500":
        return WireFault(kind="status", route=route, when="after", status=500, times=times)
    return WireFault(kind=how, route=route, when="after", times=times)


def rate_limited(
    route: str = "*", *, retry_after: str | int | None = None, times: int | None = 1, skip: int = 0
) -> WireFault:
    """Answer 429 on the route, and do nothing."""
    return WireFault(kind="status", route=route, status=429, retry_after=retry_after, times=times, skip=skip)


class FaultScript:
    """The active faults, and how often each has struck. Thread-safe."""

    def __init__(self, faults: Collection[Fault] = (), *, seed: int = 0) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._seen: list[int] = []
        self._struck: list[int] = []
        self.add(*faults)

    def add(self, *faults: Fault) -> None:
        """Let these faults happen too."""
        with self._lock:
            for fault in faults:
                self._faults.append(fault)
                self._seen.append(0)
                self._struck.append(0)

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._faults, self._seen, self._struck = [], [], []

    def struck(self, fault: Fault) -> int:
        """Return how often the fault has struck; batch faults, which are conditions and not events, always give 0."""
        with self._lock:
            return sum(count for known, count in zip(self._faults, self._struck, strict=True) if known == fault)

    def wire(self, call: str) -> list[WireFault]:
        """Return the faults of this call ("METHOD /path"): slow and cut faults, at most one that replaces the reply."""
        chosen: list[WireFault] = []
        with self._lock:
            replaced = False
            for index, fault in enumerate(self._faults):
                if not isinstance(fault, WireFault) or not fnmatchcase(call, fault.route):
                    continue
                replaces = fault.kind not in {"slow", "cut", "stall"}
                if replaces and replaced:
                    continue
                self._seen[index] += 1
                is_drawn = self._drawn(fault.fraction, f"{index}:{self._seen[index]}:{call}")
                if self._seen[index] > fault.skip and is_drawn and self._strike(index, fault.times):
                    replaced = replaced or replaces
                    chosen.append(fault)
        return chosen

    def batch(self, kind: BatchKind, ordinal: int) -> BatchFault | None:
        """Return the fault of this kind that holds for the batch of this number, if any."""
        with self._lock:
            for fault in self._faults:
                if isinstance(fault, BatchFault) and fault.kind == kind and _in(ordinal, fault.batches):
                    return fault
        return None

    def row(self, ordinal: int, custom_id: str, line: bytes) -> list[RowFault]:
        """Return the faults of the answer to this request line."""
        return self._lines(RowFault, ordinal, custom_id, line)

    def file(self, ordinal: int, custom_id: str, line: bytes) -> list[FileFault]:
        """Return the faults of the written result of this request line."""
        return [
            fault for fault in self._lines(FileFault, ordinal, custom_id, line) if fault.kind not in WHOLE_FILE_KINDS
        ]

    def whole_file(self, ordinal: int) -> frozenset[FileKind]:
        """Return the kinds that hold for every line of this batch's results files."""
        with self._lock:
            return frozenset(
                fault.kind
                for fault in self._faults
                if isinstance(fault, FileFault) and fault.kind in WHOLE_FILE_KINDS and _in(ordinal, fault.batches)
            )

    def _lines(self, form: type[LineFault], ordinal: int, custom_id: str, line: bytes) -> list[LineFault]:
        chosen: list[LineFault] = []
        with self._lock:
            for index, fault in enumerate(self._faults):
                if (
                    isinstance(fault, form)
                    and _in(ordinal, fault.batches)
                    and _in(custom_id, fault.custom_ids)
                    and (fault.containing is None or fault.containing.encode() in line)
                    and self._drawn(fault.fraction, f"{index}:{ordinal}:{custom_id}")
                    and self._strike(index, fault.times)
                ):
                    chosen.append(fault)
        return chosen

    def _drawn(self, fraction: float, key: str) -> bool:
        return fraction >= 1 or zlib.crc32(f"{self._seed}:{key}".encode()) / 2**32 < fraction

    def _strike(self, index: int, times: int | None) -> bool:
        if times is not None and self._struck[index] >= times:
            return False
        self._struck[index] += 1
        return True


Item = TypeVar("Item", int, str)


def _in(item: Item, allowed: Collection[Item] | None) -> bool:
    return allowed is None or item in allowed
