"""The seams, as numbered duties. One implementation a file under `providers/`; contract tests hold each to its duties.

A provider is a codec (pure) and four verbs (I/O): submit, find, poll and fetch. Each further verb is a capability, a
protocol of this one verb. A provider or a codec has it or not, and `isinstance` tells. `providers.capabilities` is the
one place that asks, and decides what happens without it.

`isinstance` looks at the class and at the object's own attributes. From Python 3.12 on, it does not call
`__getattr__`: a wrapper sets the verbs of the provider that it wraps as attributes, as `telemetry.TracedProvider` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, BinaryIO, Protocol, TypeVar, runtime_checkable

import pyarrow as pa

from dagster_llm_batch.types import (
    Absent,
    BatchLimits,
    BatchReport,
    CannotTell,
    FileCount,
    FindHints,
    Found,
    Request,
    RequestSpec,
    Result,
    ResultColumns,
    Undecided,
)

__all__ = [
    "CAPABILITIES",
    "DEFAULT_WINDOW",
    "AnswersInRealTime",
    "CancelsBatches",
    "ChecksParameters",
    "ChecksSetup",
    "Codec",
    "ColumnCodec",
    "CountsFiles",
    "DeletesBatches",
    "DeletesRequestFiles",
    "LinksToConsole",
    "Provider",
    "Workers",
]

DEFAULT_WINDOW = timedelta(hours=24)
"""The window of most vendors, and what is taken where none is documented, as on the user's own machines."""

_Item = TypeVar("_Item")
_Report = TypeVar("_Report")


class Codec(Protocol):
    """Between requests and the provider's lines, for one RequestSpec. Pure: no network, disk, clock or randomness.

    Building one checks what a line is made of:
    1. A response schema that the provider cannot take raises ResponseSchemaError, naming construct and path.
    2. A parameter that a line cannot have, such as one that the spec sets otherwise, raises ConfigError.
    3. Another parameter goes out as it is.
    The codec also reads the results of what an earlier version sent. What a later version refuses beyond that belongs
    into `ChecksParameters`.
    """

    @property
    def limits(self) -> BatchLimits:
        """What one batch may hold."""
        ...

    @property
    def enforces_format(self) -> bool:
        """Whether the server lets no reply pass that does not fit the response schema.

        Where it does not, or nobody knows, a JSON reply within Markdown fences is read all the same, and counted.
        """
        ...

    def encode(self, request: Request, custom_id: str) -> bytes:
        r"""Return the request as one line.

        1. Equal arguments give equal bytes.
        2. The line ends with `\n` and holds no other one; its length is the number of bytes that count for the limits.
        3. Row data stays data: nothing in a request can change the line's structure.
        """
        ...

    def decode(self, line: bytes) -> Result:
        r"""One result line (with or without its line end) as exactly one Result.

        1. Never raises: what cannot be read is a Result with `custom_id=None`.
        2. Unknown fields are ignored; unknown kinds of result are ERRORED, never SUCCEEDED.
        3. SUCCEEDED means that a reply is there, not that it fits the response schema.
        4. `retryable` is True where the same line, sent again, can succeed.
        """
        ...


@runtime_checkable
class ColumnCodec(Codec, Protocol):
    """A codec that reads many lines in less time than each by itself. No codec has to be one."""

    def decode_all(self, lines: Sequence[bytes]) -> ResultColumns:
        """Return the Result that `decode` gives for each of the lines, by column."""
        ...


@runtime_checkable
class ChecksParameters(Protocol):
    """A codec that knows parameters which the provider refuses."""

    def check_parameters(self) -> Sequence[str]:
        """Return a sentence for each parameter of the spec that the provider may refuse. Makes no call.

        It is called before anything is planned or sent.
        Raises ConfigError for a parameter that the provider would refuse in every row.
        """
        ...


@runtime_checkable
class Provider(Protocol):
    """One outside API. Holds credentials and never shows them; safe to build without any network call.

    Several threads call `submit` and `fetch` at once. CAPABILITIES are the verbs that a provider may have beside these.
    Every verb raises TransientError, CredentialsError or RefusedError, and nothing of its SDK.
    """

    @property
    def name(self) -> str:
        """The first part of a model's name ("openai" in "openai/gpt-5-nano"). Part of a row's provenance."""
        ...

    @property
    def account(self) -> str:
        """Whose answers these are: address and account, without secrets. Part of the fingerprint.

        Rotating a key must not change it, else finished work would be paid for again.
        """
        ...

    @property
    def price_book(self) -> str | None:
        """The price book's id for this provider ("openai"), or None where nothing is billed.

        Where the place changes the price, it stands behind the id: "google/regional".
        """
        ...

    @property
    def settle_seconds(self) -> float:
        """How long after a create call was over Absent may still become Found; 0 where it is certain at once."""
        ...

    @property
    def window(self) -> timedelta:
        """How long a batch may take by what the vendor documents, queue included. One that takes longer is overdue."""
        ...

    @property
    def default_output_tokens(self) -> int | None:
        """At how many tokens the server ends a reply to a request without a maximum; None: at the model's own."""
        ...

    def codec(self, spec: RequestSpec) -> Codec:
        """Return the codec for this spec; see Codec for what it refuses."""
        ...

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        """Create one batch from the uncompressed request file, which can seek, and return its id.

        1. At most one create call reaches the provider: SDK retries are off for it.
        2. `tag` is attached so that `find` can see it.
        3. Raises AmbiguousError where the batch may exist; any other error means that it does not.
        """
        ...

    def find(self, tag: str, hints: FindHints) -> Found | Absent | Undecided | CannotTell:
        """Look for the batch of a create call that left no record.

        1. Found only where it is certainly ours.
        2. Absent only where the provider was asked for everything since `hints.sent_at`.
        3. Undecided only where asking again later will tell; CannotTell where only a person can.
        """
        ...

    def poll(self, batch_ids: Sequence[str]) -> Mapping[str, BatchReport]:
        """Return reports for these batches, in as few calls as the API allows.

        1. One that the provider does not know is NOT_FOUND with the reason. It is given up when that was said for long.
        2. One that cannot be read now is left out; raises only where none can.
        3. A status word never seen before is RUNNING: waiting loses nothing.
        """
        ...

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        r"""Yield the raw result lines of an ended batch, each with its `\n`, in constant memory, from all its files.

        1. Split on b"\n" only: U+2028 and the like are data.
        2. Nothing is parsed, dropped or reordered.
        3. A batch without result files yields nothing.
        """
        ...


@runtime_checkable
class CancelsBatches(Protocol):
    """A provider that can stop a batch. Without it, batches run to their end."""

    def cancel(self, batch_id: str) -> None:
        """Ask to stop the batch. Finished rows are kept. Canceling an ended batch does nothing.

        Raises CannotStopError where the server turns out to have no way to stop one.
        """
        ...


@runtime_checkable
class DeletesBatches(Protocol):
    """A provider that can delete what it stores of a batch. Without it, erased rows stay at the provider."""

    def delete(self, batch_id: str) -> str | None:
        """Delete what the provider stores of an ended batch, requests and results; what stays all the same, in words.

        1. What is gone already is deleted: None, as where nothing stays.
        2. Only what belongs to this batch alone.
        """
        ...


@runtime_checkable
class DeletesRequestFiles(Protocol):
    """A provider whose `submit` uploads a file that stays after the batch. Without it, no such file is left."""

    def delete_request_file(self, batch_id: str) -> None:
        """Delete the request file that `submit` uploaded for an ended batch.

        1. What is gone already is deleted, as is what the provider never had.
        2. Results stay, and can be fetched as before.
        """
        ...


@runtime_checkable
class CountsFiles(Protocol):
    """A provider that limits how many files an account stores."""

    def count_files(self) -> Sequence[FileCount]:
        """Count what the provider's limits on stored files are about; empty where no such limit is known."""
        ...


@runtime_checkable
class AnswersInRealTime(Protocol):
    """A provider that also answers single requests. Without it, requests go in batches alone."""

    def respond(self, line: bytes) -> bytes:
        """Return the answer in real time to one encoded line, as the raw result line that a batch would give.

        One call, never repeated: an HTTP error is an answer too, and a call whose end nobody knows may be billed. Where
        the provider says how long to wait, raises TransientError with that and with the answer.
        """
        ...


@runtime_checkable
class LinksToConsole(Protocol):
    """A provider with a page on which people see its batches."""

    def console_url(self, batch_id: str) -> str | None:
        """Return where a person can look at this batch, or None."""
        ...


@runtime_checkable
class ChecksSetup(Protocol):
    """A provider that can tell without a call that it is set up wrong."""

    def check_setup(self) -> None:
        """Raise ConfigError where this provider can start no batch as it is set up. Makes no call; costs nothing."""
        ...


CAPABILITIES: Mapping[str, type] = MappingProxyType(
    {
        "cancel": CancelsBatches,
        "delete": DeletesBatches,
        "delete_request_file": DeletesRequestFiles,
        "count_files": CountsFiles,
        "respond": AnswersInRealTime,
        "console_url": LinksToConsole,
        "check_setup": ChecksSetup,
    }
)
"""The verbs that a provider may have beside those of Provider, and the protocol of each."""


@runtime_checkable
class Workers(Protocol):
    """Processes, mostly on other machines, that do the heavy part of a step for the one that drives it.

    They share the payload store with it and write files there; the ledger and the providers are the driver's alone. A
    function may run twice for the same input, after a worker was lost: what it writes is the same or has a new name.
    """

    def map_rows(self, rows: Any, function: Callable[[Iterator[pa.RecordBatch]], _Report]) -> list[_Report]:
        """Return what `function` reports of each part of the rows.

        1. Every row is in exactly one part; a part is a stream, never held whole.
        2. Reports come in the order of the parts, which is the order in which the rows are read otherwise.
        3. Rows that these workers cannot read in parts are an InputError that says which they can.
        """
        ...

    def map(self, function: Callable[[_Item], _Report], items: Sequence[_Item]) -> list[_Report]:
        """Return what `function` reports of each item, in their order."""
        ...
