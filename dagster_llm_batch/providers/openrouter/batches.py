r"""Inline batches: the body that creates one, the object that describes one, and pages of its results. Pure.

    {"endpoint":"/v1/chat/completions","model":"…","completion_window":"24h","requests":[{"custom_id":…,"body":…},…]}

The server reads the body as it arrives, so the fields of the batch precede its requests: keys have an order. A batch is
read as the one that OpenAI would show, so that one reader reads both. Its results, which may be all of its rows, are
left as bytes.

Format: https://openrouter.ai/docs/api-reference/batches
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, BinaryIO

import msgspec
from msgspec import Raw, Struct

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.providers.answers import count_of
from dagster_llm_batch.providers.jsonlines import dumps
from dagster_llm_batch.providers.openai_api.requests import URLS, OpenAILines
from dagster_llm_batch.providers.usage import CHAT, extra_of
from dagster_llm_batch.types import Endpoint, Request, RequestSpec

__all__ = ["WRAPPER_BYTES", "Batch", "BatchPage", "CreateBody", "InlineLines", "ResultPage", "as_lines", "url_of"]

WRAPPER_BYTES = 10_000
"""Bytes of a body that are reserved for the fields around the requests."""

_TAIL = b"]}"
_CHUNK_BYTES = 1 << 16


class InlineLines(OpenAILines):
    """The codec for one spec: OpenAI's lines without method and URL. `only_image_urls`: see InlineServer."""

    def __init__(self, spec: RequestSpec, *args: Any, only_image_urls: bool = False, **named: Any) -> None:
        super().__init__(spec, *args, names_url=False, **named)
        self._only_image_urls = only_image_urls

    def encode(self, request: Request, custom_id: str) -> bytes:
        """Encode one line; see Codec.encode. Raises InputError for an image without a required web address."""
        if request.images and self._only_image_urls:
            for image in request.images:
                if image.url is None or not image.url.lower().startswith(("http://", "https://")):
                    raise InputError(
                        "OpenRouter's batches take images by public web address alone, https://…: data in the request "
                        "is rejected at every vendor behind it. Give the image's address, or ask its vendor directly."
                    )
        return super().encode(request, custom_id)


def url_of(body: Mapping[str, Any]) -> str:
    """Return the path of the API that the body of a line of ours is for; the fields of the line show it."""
    if "messages" in body:
        return URLS[Endpoint.CHAT]
    # Only our lines of embeddings have this field, and all of them have it.
    return URLS[Endpoint.EMBEDDINGS if "encoding_format" in body else Endpoint.RESPONSES]


class CreateBody:
    """The body of one create call over a request file of `size` bytes; can be read once.

    `told` are the fields of the batch, in the order in which they are sent. `is_sent` is true once the last bytes were
    handed to the transport: before that, the batch cannot exist.
    """

    def __init__(self, told: Mapping[str, Any], lines: BinaryIO, size: int) -> None:
        self._head = f'{dumps(told)[:-1]},"requests":['.encode("ascii")
        self._lines = lines
        # the last line's end has no comma
        self._left = max(size - 1, 0)
        self.bytes = len(self._head) + self._left + len(_TAIL)
        self.is_sent = False

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces."""
        yield self._head
        while self._left and (piece := self._lines.read(min(_CHUNK_BYTES, self._left))):
            self._left -= len(piece)
            yield piece.replace(b"\n", b",")
        self.is_sent = not self._left
        yield _TAIL


class Batch(SimpleNamespace):
    """A batch, with the names of OpenAI's batch object. `results` are its unchanged rows, if it has them.

    `is_withheld`: the server keeps the results back until somebody pays.
    """

    # parse_reply recognizes an object of an SDK by this
    model_fields: Mapping[str, Any] = {}

    @classmethod
    def of(cls, fields: Mapping[str, Raw], *, is_withheld: bool = False) -> Batch:
        """Read the batch with these fields. Raises MsgspecError for a field that is not JSON."""
        told = {name: msgspec.json.decode(value) for name, value in fields.items() if name != "results"}
        counts = told.get("request_counts")
        counts = counts if isinstance(counts, dict) else {}
        rows = bytes(fields.get("results", Raw(b"null")))
        return cls(
            id=told.get("id"),
            status=told.get("status"),
            metadata=told.get("metadata"),
            created_at=told.get("created_at"),
            **{name: told.get(name) for name in ("completed_at", "failed_at", "expired_at", "cancelled_at")}
            | {"completed_at": told.get("finalized_at") or told.get("completed_at")},
            request_counts=SimpleNamespace(**{name: counts.get(name) for name in ("total", "completed", "failed")}),
            errors=_errors(told),
            usage=told.get("usage"),
            results=msgspec.json.decode(rows, type=list[Raw]) if rows.lstrip().startswith(b"[") else None,
            is_withheld=is_withheld,
        )

    @property
    def requests(self) -> int | None:
        """Number of its requests; None if the server does not report it, as before they are counted."""
        return count_of(self.request_counts.total) or None

    @property
    def reported_usd(self) -> Decimal | None:
        """The cost of the whole batch, as far as the server reports it; None if vendors behind it bill separately."""
        if not isinstance(self.usage, dict):
            return None
        extra = extra_of({name: self.usage.get(name) for name in ("cost", "is_byok")}, CHAT)
        return None if extra is None else extra.reported_usd

    @property
    def ran_nothing(self) -> bool:
        """Whether it failed before the first request ran, so that nothing of it can have been billed."""
        return self.status == "failed" and not self.reported_usd and not count_of(self.request_counts.completed)


class BatchPage:
    """A page of the list of batches, as an SDK's. `read_next` reads the page after a batch."""

    model_fields: Mapping[str, Any] = {}

    def __init__(self, content: bytes, read_next: Any) -> None:
        page = msgspec.json.decode(content, type=_Listed)
        self.data = None if page.data is None else [Batch.of(fields) for fields in page.data]
        self.has_more = page.has_more is True
        self._last_id = page.last_id if isinstance(page.last_id, str) else None
        self._read_next = read_next

    def has_next_page(self) -> bool:
        """Return whether more follow."""
        return self.has_more

    def iter_pages(self) -> Iterator[BatchPage]:
        """Yield this page, and those that follow."""
        page = self
        yield page
        while page.has_more and page.data:
            page = page._read_next(page._last_id or page.data[-1].id)
            yield page


class _Listed(Struct):
    data: list[dict[str, Raw]] | None = None
    has_more: Any = None
    last_id: Any = None


class ResultPage(Struct):
    """A page of results, with unchanged rows."""

    data: list[Raw]
    has_more: bool | None = None
    next_cursor: str | None = None


def as_lines(rows: Sequence[Raw]) -> Iterator[bytes]:
    r"""Yield rows of a JSON list, each as one line: everything outside of texts there is white space."""
    for row in rows:
        yield bytes(row).replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"


def _errors(told: Mapping[str, Any]) -> SimpleNamespace:
    """Return a batch's errors in the form of OpenAI's object."""
    error, several = told.get("error"), told.get("errors")
    found = several.get("data") if isinstance(several, dict) else None
    given = found if isinstance(found, list) and found else [error] if error else []
    return SimpleNamespace(
        data=[
            SimpleNamespace(code=one.get("code"), message=one.get("message"), line=one.get("line"))
            if isinstance(one, dict)
            else SimpleNamespace(code=None, message=one, line=None)
            for one in given
        ]
    )
