"""Batches of OpenRouter and of gateways that have its API: requests and results travel inline, without files.

The create call streams the request file, so a batch of 200 MB costs no memory; it runs once, with the SDK's retries
off. The SDK is OpenAI's, as these gateways have its API in real time. Differences between servers are data, in
`servers`.

A batch of OpenRouter cannot carry a tag. It is identified by the nonce at the start of every custom_id. The nonce shows
only in its results, which come after its end: until then `find` answers Undecided with the candidates. Elsewhere a
batch carries its tag in `metadata`. A 402 to a read is not a refusal: the results exist, and wait until the account is
topped up.

API: https://openrouter.ai/docs/api-reference/batches
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from dagster_llm_batch.core.address_secrets import secret_parts
from dagster_llm_batch.errors import (
    CannotStopError,
    CredentialsError,
    ProviderError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.providers.answers import (
    RAW_ANSWER,
    UnknownIdError,
    answer_line,
    answer_of,
    created_id,
    json_object,
    odd_answer,
    parse_reply,
    result_lines,
    sdk_calls,
)
from dagster_llm_batch.providers.base import StainlessProvider
from dagster_llm_batch.providers.capabilities import no_way_to_delete
from dagster_llm_batch.providers.http import listed_since
from dagster_llm_batch.providers.jsonlines import sized
from dagster_llm_batch.providers.openai_api.batches import TAG_KEY, created_at, is_batch, read_batch, window_of
from dagster_llm_batch.providers.openai_api.requests import FORMS, OPENAI_LIMITS, URLS, check_endpoint
from dagster_llm_batch.providers.openai_api.schema import STRICT_RULES
from dagster_llm_batch.providers.openai_api.sdk import LazyClient, provider_error
from dagster_llm_batch.providers.openrouter.batches import (
    WRAPPER_BYTES,
    Batch,
    BatchPage,
    CreateBody,
    InlineLines,
    ResultPage,
    as_lines,
    url_of,
)
from dagster_llm_batch.providers.openrouter.servers import OPENROUTER, InlineServer
from dagster_llm_batch.providers.paging import RepeatedListError, find_by_results, walk_pages
from dagster_llm_batch.providers.parameters import OPENROUTER as OPENROUTER_FORM
from dagster_llm_batch.providers.registry import PROVIDERS
from dagster_llm_batch.providers.secrets import masked
from dagster_llm_batch.text import plain_words
from dagster_llm_batch.types import (
    Absent,
    BatchLimits,
    BatchReport,
    BatchStatus,
    FindHints,
    Found,
    RequestSpec,
    StatusUnknown,
    Undecided,
)

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["OpenRouterProvider"]

_BATCHES = "/batches"
_WINDOW = "24h"
_ROWS_A_PAGE = 1_000
_PAY_FIRST, _GONE = 402, 410
_TOP_UP = (
    "its results are withheld until the account is topped up; they wait at the provider, and nothing is sent again"
)


@masked
class OpenRouterProvider(StainlessProvider):
    """Batches in one account of OpenRouter, or of another `server` with inline batches.

    `routing` is OpenRouter's `provider` object: which vendors may answer, as {"only": ["openai"]}. `account` names
    whose answers these are; by default the address. `http_client` is one of httpx2, for this provider alone: it is made
    to send nothing secret elsewhere. `max_retries` is how often the SDK makes a call again that costs nothing, after a
    failure that passes. Building makes no call.
    """

    _public_url = "https://openrouter.ai/api/v1"
    _page_after = "after"
    _page_size = 100

    def __init__(
        self,
        api_key: str,
        base_url: str | None = None,
        account: str | None = None,
        routing: Mapping[str, Any] | None = None,
        timeout_seconds: float = 600.0,
        max_retries: int = 2,
        default_headers: Mapping[str, str] | None = None,
        http_client: Any = None,
        name: str = "openrouter",
        price_book: str | None = PROVIDERS["openrouter"].price_book,
        settle_seconds: float = 300.0,
        server: InlineServer = OPENROUTER,
    ) -> None:
        address = server.base_url.value if base_url is None else base_url
        super().__init__(name, api_key, address, {}, account, price_book, settle_seconds)
        self._server = server
        hours = server.longest_hours
        window = window_of(_WINDOW)
        assert window is not None
        self.window = window if hours is None else timedelta(hours=hours.value)
        self._routing = dict(routing or {})
        self._max_retries = max_retries
        self._headers = dict(default_headers or {})
        self._sdk = LazyClient(
            name,
            api_key=self._api_key,
            base_url=self._base_url,
            timeout_seconds=timeout_seconds,
            headers=self._headers,
            http_client=http_client,
        )

    @property
    def server(self) -> InlineServer:
        """The facts about the server, as data."""
        return self._server

    def _secrets(self) -> list[str]:
        headers = (part for value in self._headers.values() for part in value.split())
        return [self._api_key, *headers, *secret_parts(self._base_url)]

    def codec(self, spec: RequestSpec) -> InlineLines:
        """See Provider.codec."""
        server = self._server
        check_endpoint(server, spec.endpoint)
        limits = BatchLimits(
            OPENAI_LIMITS.max_requests if server.max_requests is None else server.max_requests.value,
            (OPENAI_LIMITS.max_bytes if server.max_bytes is None else server.max_bytes.value) - WRAPPER_BYTES,
        )
        only_image_urls = server.only_image_urls is not None and server.only_image_urls.value
        # The vendor that answers is unknown. So it is also unknown whether it follows the schema.
        form = FORMS[spec.endpoint]
        form = form._replace(title=OPENROUTER_FORM.title, names=form.names | OPENROUTER_FORM.names)
        return InlineLines(
            spec,
            limits,
            STRICT_RULES,
            only_image_urls=only_image_urls,
            form=form,
            is_open=True,
            documents=None if server.documents is None else server.documents.value.get(spec.endpoint),
        )

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        """See Provider.submit. If a batch cannot carry metadata, the custom_ids carry the shard's nonce instead."""
        told: dict[str, Any] = {"endpoint": URLS[spec.endpoint], "model": spec.model, "completion_window": _WINDOW}
        if self._routing:
            told["provider"] = self._routing
        if self._takes_metadata:
            told["metadata"] = {TAG_KEY: tag}
        # The API has no idempotency key, and the SDK would make the call three times: each may create a batch. The body
        # is streamed by the SDK's own transport.
        client = self._client(retries=0)
        with sized(lines) as (file, size):
            body = CreateBody(told, file, size)
            with sdk_calls(lambda error: self._not_created(error, is_sent=body.is_sent)):
                headers = {"Content-Length": str(body.bytes), "Content-Type": "application/json"}
                reply = client.post(_BATCHES, content=body, cast_to=object, options={"headers": headers})
                if not isinstance(reply, dict):
                    raise odd_answer({}, reply if isinstance(reply, str) else json.dumps(reply))
        return created_id(reply.get("id"))

    def _not_created(self, error: Exception, *, is_sent: bool) -> ProviderError:
        # A 402 is a plain no here: there are no results that could wait.
        doing = f"create the batch at {self._place}"
        return provider_error(error, doing, self._secrets(), creating=is_sent)

    @property
    def _takes_metadata(self) -> bool:
        return self._server.takes_metadata is not None and self._server.takes_metadata.value

    def find(self, tag: str, hints: FindHints) -> Found | Absent | Undecided | StatusUnknown:
        """See Provider.find. By its tag; else by its nonce, among batches of as many requests, created since."""
        try:
            ours, candidates, repeats = self._look_through_list(tag, hints)
        except UnknownIdError as error:
            return StatusUnknown(f"{self._server.title} gives no list of batches at this address. {error}")
        if len(ours) > 1:
            return StatusUnknown("More than one batch carries this tag.", tuple(ours))
        if ours:
            return Found(next(iter(ours)))
        ended = {batch_id: self._read(batch).status.is_terminal for batch_id, batch in candidates.items()}
        found = find_by_results(ended, hints.nonce, self.fetch, _id_of)
        return StatusUnknown(str(repeats)) if repeats is not None and found == Absent() else found

    def _look_through_list(
        self, tag: str, hints: FindHints
    ) -> tuple[dict[str, None], dict[str, Batch], RepeatedListError | None]:
        """Return the batches with this tag, those that may be ours by size and time, and whether the list ends."""
        ours: dict[str, None] = {}
        candidates: dict[str, Batch] = {}
        shows_tags = False
        repeats: RepeatedListError | None = None
        with self._calls("look for the batch"):
            reply = self._batches(retries=self._max_retries).list(limit=self._page_size)
            since = listed_since(hints.sent_at, reply.headers)
            try:
                for batches in self._pages(parse_reply(reply)):
                    times = [created_at(batch) for batch in batches]
                    for batch, time in zip(batches, times, strict=True):
                        tags = batch.metadata if isinstance(batch.metadata, dict) else {}
                        shows_tags = shows_tags or TAG_KEY in tags
                        if batch.id in hints.known:
                            continue
                        if tags.get(TAG_KEY) == tag:
                            ours[batch.id] = None
                        is_recent = TAG_KEY not in tags and (time is None or time >= since)
                        # A batch without a count may be ours: only its results can show that it is not.
                        if is_recent and batch.requests in (hints.requests, None) and not batch.ran_nothing:
                            candidates[batch.id] = batch
                    if times and all(time is not None and time < since for time in times):
                        # the list comes newest first, which is documented
                        break
            except RepeatedListError as error:
                repeats = error
        # If any batch shows a tag of ours, all of ours do, and one without a tag is foreign.
        return ours, {} if shows_tags else candidates, repeats

    def _list_reports(self, wanted: Collection[str]) -> Iterator[tuple[str, BatchReport]]:
        # beyond that, single calls are fewer
        return walk_pages(wanted, self._page, self._read, self._report, most=len(wanted) // 10 + 1)

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        """See Provider.fetch: from the batch itself where it has its rows, else page by page.

        UnknownIdError where the server has deleted the results, 30 days after the batch was created.
        """
        batch = self._batch(batch_id, retries=self._max_retries)
        report = self._read(batch)
        if batch.is_withheld:
            raise TransientError(f"Could not read the batch '{batch_id}': {_TOP_UP}. {report.reason or ''}".rstrip())
        if not report.status.is_terminal:
            raise TransientError(f"The batch '{batch_id}' has no results yet: it is '{plain_words(batch.status)}'.")
        has_pages = self._server.has_result_pages is None or self._server.has_result_pages.value
        # The rows in a batch may be only the first of them: then, and without rows or a count, read its pages.
        rows = batch.results or ()
        is_whole = bool(rows) and report.done is not None and len(rows) >= report.done
        lines = as_lines(rows) if is_whole or not has_pages else self._paged(batch_id, batch, report)
        yield from result_lines(lines, "custom_id", f"the results of batch '{batch_id}'")

    def _paged(self, batch_id: str, batch: Batch, report: BatchReport) -> Iterator[bytes]:
        """Yield the rows of all pages of results."""
        cursor: str | None = None
        seen: set[str] = set()
        while True:
            try:
                page = self._result_page(batch_id, cursor)
            except CredentialsError:
                raise
            except RefusedError:
                # A batch that failed, expired or was canceled may lack pages: the form of that answer is not
                # documented.
                if report.status is BatchStatus.ENDED or cursor is not None:
                    raise
                yield from as_lines(batch.results or ())
                return
            yield from as_lines(page.data)
            cursor = page.next_cursor
            if page.has_more is False or (cursor is None and page.has_more is None):
                return
            if cursor is None or cursor in seen:
                why = "announces more, and not their place" if cursor is None else "was given before"
                raise TransientError(f"Could not read the results of batch '{batch_id}': a page of them {why}.")
            seen.add(cursor)

    def _result_page(self, batch_id: str, cursor: str | None) -> ResultPage:
        with self._calls(f"read the results of batch '{batch_id}'"):
            response = self._batches(retries=self._max_retries).results(batch_id, cursor)
            try:
                return msgspec.json.decode(response.content, type=ResultPage)
            except msgspec.MsgspecError:
                raise odd_answer(response.headers, response.content, "page of results") from None

    def delete(self, batch_id: str) -> str | None:
        """See DeletesBatches: the batch, and with it its requests and results, as far as the vendor behind it can."""
        if self._server.deletes is None or not self._server.deletes.value:
            return no_way_to_delete(self.name)
        try:
            with self._calls(f"delete the batch '{batch_id}'"):
                response = self._batches(retries=self._max_retries).delete(batch_id)
                told = json_object(response.headers, response.content)
        except UnknownIdError:
            return None
        deletion = told.get("deletion")
        deletion = deletion if isinstance(deletion, dict) else {}
        if told.get("id") != batch_id or deletion.get("openrouter", "deleted") != "deleted":
            raise TransientError(f"Could not delete the batch '{batch_id}': the answer does not confirm it.")
        upstream = deletion.get("upstream")
        if isinstance(upstream, dict) and upstream.get("status") not in ("deleted", "not_applicable"):
            vendor, word = plain_words(upstream.get("provider")), plain_words(upstream.get("status"))
            return f"{self._server.title} deleted the batch; what {vendor} behind it stores stays there ('{word}')"
        return None

    def respond(self, line: bytes) -> bytes:
        """See AnswersInRealTime. Returns an HTTP error as the answer, like a batch does; raises for bad credentials."""
        request = json.loads(line)
        body = {**request["body"], "provider": self._routing} if self._routing else request["body"]
        status, reply, failure = self._answer(url_of(body).removeprefix("/v1"), body)
        answer = {
            "id": None,
            "custom_id": request["custom_id"],
            "response": {"status_code": status, "body": reply},
            "error": None,
        }
        return answer_line(answer, failure)

    def _stop(self, batch_id: str) -> None:
        if not self._read_report(batch_id).status.is_stoppable:
            return
        raise CannotStopError(
            f"{self._server.title} has no call that stops a batch: '{batch_id}' runs on to its end, and is billed. Its "
            "answers are kept."
        )

    def _client(self, *, retries: int) -> OpenAI:
        return self._sdk.with_retries(retries)

    def _batches(self, retries: int) -> _Calls:
        return _Calls(self._client(retries=retries))

    def _is_batch(self, value: Any) -> bool:
        return is_batch(value)

    def _read(self, batch: Batch) -> BatchReport:
        report = replace(read_batch(batch), reported_usd=batch.reported_usd)
        if not batch.is_withheld:
            return report
        # It has ended. Its answers are not to be had, and must not be asked again.
        reason = f"{self._server.title}: {_TOP_UP}. {report.reason or ''}".rstrip()
        return replace(report, status=BatchStatus.RUNNING, reason=reason)

    def _translated(self, error: Exception, doing: str, *, creating: bool = False) -> ProviderError:
        told = provider_error(error, f"{doing} at {self._place}", self._secrets(), creating=creating)
        status = getattr(error, "status_code", None)
        if status == _PAY_FIRST:
            return TransientError(f"{told} ({_TOP_UP})")
        return UnknownIdError(str(told)) if status == _GONE else told


class _Calls:
    """The calls about batches that are there, with answers as the SDK's raw ones. `client` is the SDK's."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def with_raw_response(self) -> _Calls:
        """These calls: each of them gives a raw answer."""
        return self

    def retrieve(self, batch_id: str) -> _Reply:
        """Read a batch. A 402 that holds one is an answer."""
        is_withheld = False
        try:
            response = self._get(f"{_BATCHES}/{batch_id}")
        except Exception as error:
            _, content = answer_of(error)
            if getattr(error, "status_code", None) != _PAY_FIRST or not _has_status(content):
                raise
            response, is_withheld = error.response, True  # type: ignore[attr-defined]  # the SDK's error has one

        def parse() -> Batch:
            fields = msgspec.json.decode(response.content, type=dict[str, msgspec.Raw])
            return Batch.of(fields, is_withheld=is_withheld)

        return _Reply(response, parse)

    def list(self, *, limit: int, after: str | None = None) -> _Reply:
        """List batches, newest first."""
        response = self._get(_BATCHES, {"limit": limit, **({} if after is None else {"after": after})})
        return _Reply(
            response, lambda: BatchPage(response.content, lambda last: self.list(limit=limit, after=last).parse())
        )

    def results(self, batch_id: str, cursor: str | None) -> Any:
        """Read a page of results: the first rows, or the rows at the cursor that the page before it named."""
        query = {"limit": _ROWS_A_PAGE, **({} if cursor is None else {"cursor": cursor})}
        return self._get(f"{_BATCHES}/{batch_id}/results", query)

    def delete(self, batch_id: str) -> Any:
        """Delete a batch."""
        options = {"headers": RAW_ANSWER}
        return self._client.delete(f"{_BATCHES}/{batch_id}", cast_to=object, options=options).http_response

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        options = {"headers": RAW_ANSWER, **({} if query is None else {"params": query})}
        return self._client.get(path, cast_to=object, options=options).http_response


class _Reply:
    """An answer in the form of the SDK's raw ones: with its headers, and its content, which is read on demand."""

    def __init__(self, http_response: Any, parse: Callable[[], Any]) -> None:
        self.http_response = http_response
        self.headers = http_response.headers
        self.parse = parse


def _has_status(content: bytes) -> bool:
    try:
        told = msgspec.json.decode(content, type=_Named)
    except msgspec.MsgspecError:
        return False
    return bool(told.id and told.status)


def _id_of(line: bytes) -> str | None:
    try:
        return msgspec.json.decode(line, type=_Row).custom_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class _Named(msgspec.Struct):
    id: str | None = None
    status: str | None = None


class _Row(msgspec.Struct):
    custom_id: str | None = None
