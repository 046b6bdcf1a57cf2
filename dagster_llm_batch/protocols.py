"""The seams, as numbered duties. One implementation a file under `providers/`; contract tests hold each to its duties.

A provider is a codec (pure) and four verbs (I/O): submit, find, poll and fetch. Each further verb is a capability, a
protocol of this one verb, which a provider or a codec may have; `isinstance` decides. Only `providers.capabilities`
checks for them, and decides what happens without one.

`isinstance` looks at the class and at the object's own attributes. From Python 3.12 on, it does not call
`__getattr__`: so a wrapper such as `telemetry.TracedProvider` sets the wrapped provider's verbs as attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, BinaryIO, Protocol, TypeVar, runtime_checkable

import pyarrow as pa

from dagster_llm_batch.types import (
    Absent,
    BatchLimits,
    BatchReport,
    DocumentRules,
    Endpoint,
    FileCount,
    FindHints,
    Found,
    Request,
    RequestSpec,
    Result,
    ResultColumns,
    StatusUnknown,
    Undecided,
    UploadedFile,
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
    "StoresDocuments",
    "TakesDocuments",
    "TakesUploads",
    "Workers",
]

DEFAULT_WINDOW = timedelta(hours=24)
"""The window of most vendors, and the default without a documented one, for example on the user's own machines."""

_Item = TypeVar("_Item")
_Report = TypeVar("_Report")


class Codec(Protocol):
    """Between requests and the provider's lines, for one RequestSpec. Pure: no network, disk, clock or randomness.

    Building one checks the parts of a line:
    1. A response schema that the provider cannot take raises ResponseSchemaError, naming construct and path.
    2. A parameter that a line cannot have, such as one that the spec sets otherwise, raises ConfigError.
    3. Any other parameter is sent unchanged.
    The codec also reads the results of requests by an earlier version. If a later version refuses more than that, the
    refusal belongs into `ChecksParameters`.
    """

    @property
    def limits(self) -> BatchLimits:
        """Limits of one batch."""
        ...

    @property
    def enforces_format(self) -> bool:
        """Whether the server enforces the response schema on all replies.

        If not, or if unknown, a JSON reply within Markdown fences is still read, and counted.
        """
        ...

    def encode(self, request: Request, custom_id: str) -> bytes:
        r"""Return the request as one line.

        1. Equal arguments give equal bytes.
        2. The line ends with its only `\n`; its length in bytes counts for the limits.
        3. Row data stays data: nothing in a request can change the line's structure.
        """
        ...

    def decode(self, line: bytes) -> Result:
        r"""Decode one result line (with or without its line end) to exactly one Result.

        1. Never raises: an unreadable line is a Result with `custom_id=None`.
        2. Unknown fields are ignored; unknown kinds of result are ERRORED, never SUCCEEDED.
        3. SUCCEEDED means that a reply exists, not that it fits the response schema.
        4. `retryable` is True if the same line, sent again, can succeed.
        """
        ...


@runtime_checkable
class ColumnCodec(Codec, Protocol):
    """A codec that reads many lines faster than line by line. This is optional for codecs."""

    def decode_all(self, lines: Sequence[bytes]) -> ResultColumns:
        """Return the Result that `decode` gives for each of the lines, by column."""
        ...


@runtime_checkable
class ChecksParameters(Protocol):
    """A codec that checks for parameters which the provider refuses."""

    def check_parameters(self) -> Sequence[str]:
        """Return a sentence for each parameter of the spec that the provider may refuse. Makes no call.

        It is called before anything is planned or sent.
        Raises ConfigError for a parameter that the provider would refuse in every row.
        """
        ...


@runtime_checkable
class TakesDocuments(Protocol):
    """A codec whose requests can have documents."""

    @property
    def documents(self) -> DocumentRules | None:
        """What the vendor allows of the documents of a request; None if this model takes none."""
        ...


@runtime_checkable
class TakesUploads(Protocol):
    """A codec whose requests can name documents that its provider has uploaded (see StoresDocuments)."""

    @property
    def uploads(self) -> DocumentRules | None:
        """What the vendor allows of such documents of a request; None if this model takes none."""
        ...


@runtime_checkable
class Provider(Protocol):
    """One outside API. Holds credentials and never shows them; safe to build without any network call.

    Several threads call `submit` and `fetch` at once. CAPABILITIES are the optional verbs of a provider. Every verb
    raises TransientError, CredentialsError or RefusedError, and no errors of its SDK.
    """

    @property
    def name(self) -> str:
        """The first part of a model's name ("openai" in "openai/gpt-5-nano"). Part of a row's provenance."""
        ...

    @property
    def account(self) -> str:
        """Source of the answers: address and account, without secrets. Part of the fingerprint.

        Rotating a key must not change it, else finished work would be paid for again.
        """
        ...

    @property
    def price_book(self) -> str | None:
        """The price book's id for this provider ("openai"), or None for a provider that bills nothing.

        If the place changes the price, it follows the id: "google/regional".
        """
        ...

    @property
    def settle_seconds(self) -> float:
        """Time after the end of a create call in which Absent may still become Found; 0 if it is certain at once."""
        ...

    @property
    def window(self) -> timedelta:
        """Documented longest time of a batch, queue included. One that takes longer is overdue."""
        ...

    @property
    def default_output_tokens(self) -> int | None:
        """Number of tokens at which the server ends a reply without a maximum; None: the model's own maximum."""
        ...

    def codec(self, spec: RequestSpec) -> Codec:
        """Return the codec for this spec; see Codec for the specs that it refuses."""
        ...

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        """Create one batch from the uncompressed request file, which can seek, and return its id.

        1. At most one create call reaches the provider: SDK retries are off for it.
        2. `tag` is attached so that `find` can see it.
        3. Raises AmbiguousError if the batch may exist; any other error means that it does not.
        """
        ...

    def find(self, tag: str, hints: FindHints) -> Found | Absent | Undecided | StatusUnknown:
        """Look for the batch of a create call that left no record.

        1. Return Found only if the batch is certainly ours.
        2. Return Absent only if the provider was asked for everything since `hints.sent_at`.
        3. Undecided only where asking again later will tell; StatusUnknown where only a person can.
        """
        ...

    def poll(self, batch_ids: Sequence[str]) -> Mapping[str, BatchReport]:
        """Return reports for these batches, in as few calls as the API allows.

        1. A batch that the provider does not find is NOT_FOUND with the reason. It is abandoned after a long time of
        this. 2. A batch that cannot be read now is left out; raises only if all cannot be read. 3. An unknown status
        word is RUNNING: waiting loses nothing.
        """
        ...

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        r"""Yield the raw result lines of an ended batch, each with its `\n`, in constant memory, from all its files.

        1. Split on b"\n" only: U+2028 and the like are data.
        2. Lines are not parsed, dropped or reordered.
        3. A batch without result files yields nothing.
        """
        ...


@runtime_checkable
class CancelsBatches(Protocol):
    """A provider that can stop a batch. Without it, batches run to their end."""

    def cancel(self, batch_id: str) -> None:
        """Ask to stop the batch. Finished rows are kept. Canceling an ended batch does nothing.

        Raises CannotStopError if the server turns out to have no way to stop one.
        """
        ...


@runtime_checkable
class DeletesBatches(Protocol):
    """A provider that can delete its stored data of a batch. Without it, erased rows stay at the provider."""

    def delete(self, batch_id: str) -> str | None:
        """Delete the stored requests and results of an ended batch; return a description of the rest, if some stays.

        1. Data that is gone already counts as deleted: return None, like without a rest.
        2. Delete only data that belongs to this batch alone.
        """
        ...


@runtime_checkable
class DeletesRequestFiles(Protocol):
    """A provider whose `submit` uploads a file that stays after the batch. Without it, no such file is left."""

    def delete_request_file(self, batch_id: str) -> None:
        """Delete the request file that `submit` uploaded for an ended batch.

        1. A file that is gone already, or that the provider never had, counts as deleted.
        2. Results stay, and can be fetched as before.
        """
        ...


@runtime_checkable
class CountsFiles(Protocol):
    """A provider that limits how many files an account stores."""

    def count_files(self) -> Sequence[FileCount]:
        """Count the files that the provider's limits are about; empty without a known limit."""
        ...


@runtime_checkable
class AnswersInRealTime(Protocol):
    """A provider that also answers single requests. Without it, requests go in batches alone."""

    def respond(self, line: bytes) -> bytes:
        """Return the answer in real time to one encoded line, as the raw result line that a batch would give.

        One call, never repeated: an HTTP error is an answer too, and a call with an unknown end may be billed. If the
        provider sets a waiting time, raises TransientError with this time and with the answer.
        """
        ...


@runtime_checkable
class AnswersInFlex(Protocol):
    """A provider with a tier of real time that is cheaper, slower, and not always available."""

    def flex_gap(self, model: str, endpoint: Endpoint) -> str | None:
        """Return a sentence on why a model is not served in this tier; None if it is, or if that is unknown."""
        ...

    def respond_flex(self, line: bytes) -> bytes:
        """Do as `AnswersInRealTime.respond`, but ask for the tier "flex". The answer names the tier that served it."""
        ...


@runtime_checkable
class LinksToConsole(Protocol):
    """A provider with a page on which people see its batches."""

    def console_url(self, batch_id: str) -> str | None:
        """Return the address where a person can look at this batch, or None."""
        ...


@runtime_checkable
class ChecksSetup(Protocol):
    """A provider that can tell without a call that it is set up wrong."""

    def check_setup(self) -> None:
        """Raise ConfigError if this provider can start no batch as it is set up. Makes no call; costs nothing."""
        ...


@runtime_checkable
class StoresDocuments(Protocol):
    """A provider whose vendor stores documents that requests name. Without it, documents travel within requests."""

    def upload_document(self, data: bytes, name: str, media_type: str) -> UploadedFile:
        """Upload a document under this name; return its id and the time until which the vendor stores it.

        1. One call: after an error, the vendor may have stored the file.
        2. It goes to the provider's own account alone, and has the longest life that the vendor offers up to 30 days.
        """
        ...

    def find_documents(self, names: Collection[str]) -> Mapping[str, Sequence[UploadedFile]]:
        """Return the stored files with these names. A name without a file is left out.

        Raises if the vendor did not show all of its files.
        """
        ...

    def has_document(self, file_id: str) -> bool:
        """Return whether the vendor still stores this file, so that a request can name it."""
        ...

    def delete_document(self, file_id: str) -> None:
        """Delete an uploaded file. A file that is gone already counts as deleted."""
        ...


CAPABILITIES: Mapping[str, type] = MappingProxyType(
    {
        "cancel": CancelsBatches,
        "delete": DeletesBatches,
        "delete_request_file": DeletesRequestFiles,
        "count_files": CountsFiles,
        "respond": AnswersInRealTime,
        "flex_gap": AnswersInFlex,
        "respond_flex": AnswersInFlex,
        "console_url": LinksToConsole,
        "check_setup": ChecksSetup,
        "upload_document": StoresDocuments,
        "find_documents": StoresDocuments,
        "has_document": StoresDocuments,
        "delete_document": StoresDocuments,
    }
)
"""The optional verbs of a provider, and the protocol of each."""


@runtime_checkable
class Workers(Protocol):
    """Processes, mostly on other machines, that do the heavy part of a step for the one that drives it.

    They share its payload store and write files there; only the driver uses the ledger and the providers. A function
    may run twice for the same input, after a worker was lost: its output is the same or has a new name.
    """

    def map_rows(self, rows: Any, function: Callable[[Iterator[pa.RecordBatch]], _Report]) -> list[_Report]:
        """Return the reports of `function` on the parts of the rows.

        1. Every row is in exactly one part; a part is a stream, never held whole.
        2. Reports come in the order of the parts, which is the order in which the rows are read otherwise.
        3. Rows that these workers cannot read in parts are an InputError that lists the possible kinds.
        """
        ...

    def map(self, function: Callable[[_Item], _Report], items: Sequence[_Item]) -> list[_Report]:
        """Return the reports of `function` for all items, in their order."""
        ...
