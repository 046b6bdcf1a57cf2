"""The nouns: frozen values that walk from rows to labels. No behavior beyond derived names; no I/O.

    rows ─▶ Request ─▶ BatchReport ─▶ Result ─▶ labeled table

Times are aware UTC. Tokens are counts, money is `Decimal` US dollars. `None` always means "not known", never "zero".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

__all__ = [
    "NOT_AWAITED",
    "NO_USAGE",
    "SKIPPED",
    "TOKENS",
    "UNGROUNDED",
    "Absent",
    "BatchLimits",
    "BatchReport",
    "BatchStatus",
    "Cause",
    "Destination",
    "Document",
    "DocumentRules",
    "Endpoint",
    "Extra",
    "FileCount",
    "FindHints",
    "Found",
    "Image",
    "Lane",
    "Outcome",
    "Price",
    "PriceBasis",
    "Request",
    "RequestSpec",
    "ResponseFormat",
    "ResponseKind",
    "Result",
    "ResultColumns",
    "Span",
    "StatusUnknown",
    "TokenLogprob",
    "Turn",
    "Undecided",
    "UploadedFile",
    "Usage",
]


class Outcome(StrEnum):
    """The final status of a request. Every request ends with exactly one."""

    SUCCEEDED = "succeeded"  # the reply fits the response format
    INVALID = "invalid"  # a reply came, and was paid, but does not fit
    ERRORED = "errored"  # the provider answered with an error
    CANCELED = "canceled"  # canceled before it ran
    EXPIRED = "expired"  # the provider's window closed before it ran
    MISSING = "missing"  # the batch ended without a result of this request


class Cause(StrEnum):
    """Why requests of a batch have no answer, if it was stopped or its results are unavailable.

    A batch without a cause ended normally: requests that it left out are sent again, as far as `Resend` allows.
    """

    STOPPED = "stopped"  # this package asked the provider to stop it: its submission was canceled, or is late
    CANCELED = "canceled"  # canceled at the provider, and not by this package
    GONE = "gone"  # the provider does not have the batch, or its results, any more
    GIVEN_UP = "given_up"  # abandoned: it, or its results, are not waited for; answers that come late are used
    ADOPTED = "adopted"  # it was sent elsewhere, and is not polled here
    NOT_TAKEN = "not_taken"  # at each sending, the provider's queue was full, or it failed for now

    @property
    def is_final(self) -> bool:
        """True if such requests are not sent again automatically, but wait for a person's `retry`.

        Only this property decides it. Somebody stopped the batch on purpose, or it may be answered and billed without a
        visible result: sending it again is a decision about money. Requests that the provider has not taken cost
        nothing, and may go to a fallback, if the definition has one.
        """
        return self is not Cause.STOPPED


NOT_AWAITED = (Cause.GIVEN_UP, Cause.GONE)
"""The causes that end the wait for a batch or its results. Its requests may have been billed."""


SKIPPED = "skipped"
"""In the place of an outcome: the row is empty, so there was no request."""

UNGROUNDED = "ungrounded"
"""In the place of an outcome: the reply fits, but a quote in it is not in its text. See Evidence.reject_missing."""


class BatchStatus(StrEnum):
    """Status of a provider's batch. Closed: every vendor word maps to one of these, an unknown one to RUNNING."""

    PENDING = "pending"  # accepted, not started (validating, queued)
    RUNNING = "running"
    CANCELING = "canceling"
    ENDED = "ended"  # implies nothing about the rows
    EXPIRED = "expired"
    CANCELED = "canceled"
    FAILED = "failed"  # as a whole, as in a file that did not pass validation
    NOT_FOUND = "not_found"  # the provider reports no such batch; that is temporary, or it is gone

    @property
    def is_terminal(self) -> bool:
        return self in _TERMINAL

    @property
    def is_stoppable(self) -> bool:
        """Whether a request to stop it changes anything."""
        return self in (BatchStatus.PENDING, BatchStatus.RUNNING)


_TERMINAL = frozenset({BatchStatus.ENDED, BatchStatus.EXPIRED, BatchStatus.CANCELED, BatchStatus.FAILED})


class Lane(StrEnum):
    """Way in which requests are answered."""

    BATCH = "batch"
    REALTIME = "realtime"  # one call for each, at the price of real time


class Endpoint(StrEnum):
    """The provider's API that answers a request, in the field's common names."""

    CHAT = "chat"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    MODERATIONS = "moderations"


class ResponseKind(StrEnum):
    """Form in which a reply is read."""

    TEXT = "text"
    JSON = "json"
    EMBEDDING = "embedding"
    MODERATION = "moderation"


@dataclass(frozen=True, slots=True)
class Turn:
    """One fixed turn of a conversation, for example of few-shot examples. `role` is "user" or "assistant"."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a request: bytes with their media type, or an http(s) URL that the provider loads."""

    media_type: str | None = None
    data: bytes | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A document in a request: bytes with their media type, or an http(s) URL that the provider loads.

    `pages` is the number of pages of a PDF; None for other kinds, and for a document by URL. With a `digest`, the
    document is uploaded once, and requests name it: see core/uploads.py.
    """

    media_type: str | None = None
    data: bytes | None = None
    url: str | None = None
    pages: int | None = None
    digest: str | None = None


class UploadedFile(NamedTuple):
    """A file in a vendor's storage: its id or address for requests, and the time of its end there, if it has one."""

    file_id: str
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DocumentRules:
    """The documents that one request of a vendor may have. A limit of None is unknown, and is not checked.

    Attributes:
        vendor: Whose rules these are, in messages.
        kinds: The allowed media types of documents in the request.
        takes_data: Whether the request can have the bytes of a document.
        takes_urls: Whether the vendor loads PDFs from addresses.
        most_documents: The most documents of a request.
        most_bytes: The most bytes of a document, before base64.
        most_total_bytes: The most bytes of all documents of a request, before base64.
        most_pages: The most pages of a PDF.
        most_total_pages: The most pages of all PDFs of a request.
        counts_all: Whether the whole request is limited: images, the text, and documents that are sent as text count
            towards most_total_bytes, too.
        needs_text: Whether a request with documents needs a text.
    """

    vendor: str
    kinds: tuple[str, ...]
    takes_data: bool = True
    takes_urls: bool = False
    most_documents: int | None = None
    most_bytes: int | None = None
    most_total_bytes: int | None = None
    most_pages: int | None = None
    most_total_pages: int | None = None
    counts_all: bool = False
    needs_text: bool = False


class Request(NamedTuple):
    """One rendered request. `request_id` is a digest of its content: equal content, equal id, sent once."""

    request_id: str
    system: str | None
    user: str
    images: tuple[Image, ...] = ()
    documents: tuple[Document, ...] = ()


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """Required form of a reply. `json_schema` is a self-contained JSON Schema of type object.

    For kind JSON it is given to the vendor; for kind MODERATION it is the schema of the columns.
    """

    kind: ResponseKind = ResponseKind.TEXT
    name: str = "response"
    json_schema: Mapping[str, Any] | None = None
    dimensions: int | None = None  # embeddings only


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """Properties of all requests of a submission. `params` goes to the provider unchanged (temperature, max_tokens,
    …).
    """

    model: str
    response: ResponseFormat = field(default_factory=ResponseFormat)
    endpoint: Endpoint = Endpoint.CHAT
    params: Mapping[str, Any] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()
    cache_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the requests to a model run, as far as the settings of its provider show it.

    Attributes:
        region: The vendor's name of the region or group of regions; None where it is unknown.
        reason: Why the region is unknown.
        is_assumed: The settings name no region, and it is the widest that the vendor documents.
        is_pending: The region comes from an environment variable that is not set in this process.
        named: The region that the model, a parameter or a setting names although `region` is unknown, as behind another
            server. It counts before `runs_in`.
    """

    region: str | None
    reason: str = ""
    is_assumed: bool = False
    is_pending: bool = False
    named: str | None = None


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits of one batch of a provider. Bytes are those written, line ends included."""

    max_requests: int
    max_bytes: int
    max_line_bytes: int | None = None
    max_inputs: int | None = None  # embedding inputs summed over all lines
    min_requests: int = 1
    max_tokens: int | None = None  # of input, by estimate: no provider's, but a declared limit of its queue


class Extra(NamedTuple):
    """Parts of one reply that are not billed as plain tokens at the plain price. Most replies lack them."""

    tier: tuple[str, str] | None = None  # has its own prices, by the price book's name: ("service_tier", "flex")
    geo: str | None = None  # where it ran, if that is dearer: "us" at Anthropic, "regional" for Claude on Vertex AI
    units: tuple[tuple[str, int], ...] = ()  # by the price book's names, as in ("web_searches", 2)
    unpriced: str | None = None  # a part without a known price: then the cost is unknown
    reported_usd: Decimal | None = None  # the vendor's own report of the cost


class Usage(NamedTuple):
    """Tokens of one request. `input_tokens` includes cache reads and writes; `output_tokens` includes reasoning."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0  # part of cache_write_tokens
    reasoning_tokens: int = 0  # part of output_tokens
    extra: Extra | None = None


TOKENS = Usage._fields[:-1]
"""The fields of Usage that are counts of tokens."""

NO_USAGE = (None,) * len(Usage._fields)
"""In the place of a Usage that is not known."""


class Span(NamedTuple):
    """Duration of a submission or a batch, ended or running."""

    began: datetime
    until: datetime | None  # when it ended or was stopped; None: it runs
    has_ended: bool  # by itself. False with an `until`: it would have taken longer
    requests: int
    p50_at: datetime | None = None  # when it was forecast to have ended; None: it was not
    p90_at: datetime | None = None


class TokenLogprob(NamedTuple):
    """A token of a reply, and the natural logarithm of the probability that the LLM gave it."""

    text: bytes
    logprob: float


class Result(NamedTuple):
    """One result line, read. `custom_id` is None if the line cannot be read; `outcome` is never MISSING here."""

    custom_id: str | None
    outcome: Outcome
    text: str | None = None
    embedding: list[float] | None = None
    reason: str | None = None  # reason if it is not SUCCEEDED, in the provider's words
    retryable: bool = False  # sending it again, unchanged, can succeed
    finish_reason: str | None = None
    model: str | None = None  # the model that answered, as the provider names it
    usage: Usage | None = None
    logprobs: Sequence[TokenLogprob] | None = None  # of all tokens of the reply, in their order


class ResultColumns(NamedTuple):
    """Results of many lines by column: a list for each field of Result, in their order, and of Usage in its place."""

    custom_ids: list[str | None]
    outcomes: list[Outcome]
    texts: list[str | None]
    embeddings: list[list[float] | None]
    reasons: list[str | None]
    retryable: list[bool]
    finish_reasons: list[str | None]
    models: list[str | None]
    tokens: list[list[int | None]]  # one for each of TOKENS; null if a reply does not tell its usage
    extras: list[Extra | None]
    logprobs: list[Sequence[TokenLogprob] | None]

    @classmethod
    def of(cls, results: Iterable[Result]) -> ResultColumns:
        """Return results by column; there must be one at least."""
        columns: Any = map(list, zip(*results, strict=True))
        *before, usages, logprobs = columns
        *tokens, extras = map(list, zip(*(usage or NO_USAGE for usage in usages), strict=True))
        return cls._make((*before, tokens, extras, logprobs))

    @classmethod
    def of_texts(
        cls,
        custom_ids: list[Any],
        texts: list[Any],
        finish_reasons: list[str | None],
        models: list[str | None],
        tokens: Sequence[Sequence[int]],
    ) -> ResultColumns:
        """Return replies of a text and plain tokens, all SUCCEEDED. `tokens` has a row of TOKENS for each."""
        count = len(custom_ids)
        return cls(
            custom_ids,
            outcomes=[Outcome.SUCCEEDED] * count,
            texts=texts,
            embeddings=[None] * count,
            reasons=[None] * count,
            retryable=[False] * count,
            finish_reasons=finish_reasons,
            models=models,
            tokens=[list(column) for column in zip(*tokens, strict=True)] or [[] for _ in TOKENS],
            extras=[None] * count,
            logprobs=[None] * count,
        )

    def result(self, at: int) -> Result:
        """Return one of the results."""
        values: list[Any] = [column[at] for column in _flat(self)]
        *before, logprobs = values
        usage = before[-len(Usage._fields) :]
        return Result._make((*before[: -len(usage)], None if usage[0] is None else Usage(*usage), logprobs))

    def insert(self, places: Sequence[int], results: Sequence[Result]) -> ResultColumns:
        """Put results in between, and return all. `places` are those that they have then, in ascending order."""
        if not self.custom_ids:
            return ResultColumns.of(results)
        if results:
            for column, values in zip(_flat(self), _flat(ResultColumns.of(results)), strict=True):
                for at, value in zip(places, values, strict=True):
                    column.insert(at, value)
        return self


def _flat(columns: Any) -> list[list[Any]]:
    """Return the columns of Result, with the columns of Usage in its place."""
    *before, tokens, extras, logprobs = columns
    return [*before, *tokens, extras, logprobs]


class PriceBasis(StrEnum):
    """Source of a price."""

    BATCH = "batch"  # the price book has this model's batch price
    HALF = "rule:half"  # half of the standard price, as the provider documents
    HALF_BUT_CACHED = "rule:half-but-cached"  # the same, but cached input at its standard price
    REALTIME = "realtime"  # the standard price, for answers in real time
    TIER = "tier"  # the price of the tier that the reply names, such as flex
    FREE = "free"  # runs on the user's own machines, or the vendor takes nothing for it
    UNKNOWN = "unknown"  # the price is unknown; the cost is null


class Price(NamedTuple):
    """Cost of one request, and its cost in real time, in USD."""

    cost_usd: Decimal | None
    realtime_usd: Decimal | None
    basis: PriceBasis


@dataclass(frozen=True, slots=True)
class BatchReport:
    """A provider's report of a batch at one moment. Counts are for people; outcomes come from the result lines."""

    batch_id: str
    status: BatchStatus
    total: int | None = None
    done: int | None = None  # finished well or badly
    failed: int | None = None
    reason: str | None = None  # reason of its failure as a whole
    retryable: bool = False  # a batch that FAILED may pass when sent again later
    smaller_helps: bool | None = False  # it FAILED for want of room, and a smaller one may pass; None: not known
    created_at: datetime | None = None
    ended_at: datetime | None = None
    input_tokens: int | None = None  # of all its replies together, where the vendor counts them
    output_tokens: int | None = None
    reported_usd: Decimal | None = None  # the vendor's own report of its total cost
    model: str | None = None  # in the vendor's own words, if it reports one


class FileCount(NamedTuple):
    """Stored number of something at a provider, and its limit."""

    what: str
    used: int
    most: int | None


@dataclass(frozen=True, slots=True)
class FindHints:
    """Known facts of a batch whose create call left no record."""

    sent_at: datetime
    requests: int
    nonce: str
    known: frozenset[str] = frozenset()  # ids of batches that are others for certain


@dataclass(frozen=True, slots=True)
class Found:
    """The batch exists."""

    batch_id: str


@dataclass(frozen=True, slots=True)
class Absent:
    """The provider has no such batch, now. A create call that is still on its way may bring one."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """One of `candidates` may be the batch, or it does not exist. Their end will decide; until then, wait."""

    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StatusUnknown:
    """One of `candidates` may be the batch, or it does not exist."""

    reason: str
    candidates: tuple[str, ...] = ()
