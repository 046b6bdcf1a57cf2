"""Anthropic's Message Batches through the official SDK.

The create call streams the request file, so a batch of 256 MB costs no memory; it runs once, with the SDK's retries
off. A batch cannot carry a tag. It is identified by the nonce at the start of every custom_id. The nonce shows only in
its results, which come after its end: until then `find` answers Undecided with the candidates.

Ignores the environment: the account that answers must not depend on where the code runs.

API: https://platform.claude.com/docs/en/api/creating-message-batches
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlencode, urlsplit

from dagster_llm_batch.core.address_secrets import secret_parts
from dagster_llm_batch.errors import (
    ProviderError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.providers.answers import (
    UnknownIdError,
    answer_line,
    created_id,
    odd_answer,
    parse_reply,
    result_lines,
    sdk_calls,
    time_of,
)
from dagster_llm_batch.providers.anthropic.batches import CreateBody, created_at, is_batch, read_batch, total_requests
from dagster_llm_batch.providers.anthropic.errors import provider_error
from dagster_llm_batch.providers.anthropic.platforms import Platform, refuse_unbatched
from dagster_llm_batch.providers.anthropic.replies import read_line
from dagster_llm_batch.providers.anthropic.requests import ANTHROPIC_VERSION, AnthropicLines
from dagster_llm_batch.providers.base import DOCUMENT_SECONDS, StainlessProvider, address_of, uploaded_file
from dagster_llm_batch.providers.http import Origin, guard_client, importing_sdk, listed_since
from dagster_llm_batch.providers.jsonlines import sized, split_lines
from dagster_llm_batch.providers.paging import RepeatedListError, find_by_results, walk_pages
from dagster_llm_batch.providers.registry import PROVIDERS
from dagster_llm_batch.providers.secrets import masked
from dagster_llm_batch.text import is_id
from dagster_llm_batch.types import (
    Absent,
    BatchReport,
    FindHints,
    Found,
    RequestSpec,
    StatusUnknown,
    Undecided,
    UploadedFile,
)

if TYPE_CHECKING:
    from anthropic import Anthropic

__all__ = ["AnthropicProvider"]

_BATCHES = "/v1/messages/batches"
_MESSAGES = "/v1/messages"
# As the SDK asks for results.
_AS_STREAM = {"Accept": "application/binary", "X-Stainless-Raw-Response": "stream"}
# At least; more where more than that many pages' worth is wanted.
_PAGES_PER_POLL = 3


@masked
class AnthropicProvider(StainlessProvider):
    """Batches in one workspace of Anthropic, the key's own unless `workspace_id` names another.

    `anthropic_version` is the API version, which decides the parameters that rows may have. `betas` are features to
    request, such as "output-300k-2026-03-24". `account` identifies the source of the answers; by default the address
    and the workspace. `platform` is the cloud that passes the API on, if it is not Anthropic's own; it then has the
    credentials. `http_client` is a client of httpx2 for this provider alone: the provider changes it so that it does
    not send secrets to other hosts. `max_retries` is how often the SDK repeats a free call after a failure that passes.
    The constructor makes no call.
    """

    _public_url = "https://api.anthropic.com"
    _page_after = "after_id"
    _page_size = 1_000

    def __init__(
        self,
        api_key: str | None,
        base_url: str | None = None,
        workspace_id: str | None = None,
        account: str | None = None,
        anthropic_version: str = ANTHROPIC_VERSION,
        betas: Sequence[str] = (),
        timeout_seconds: float = 600.0,
        max_retries: int = 2,
        default_headers: Mapping[str, str] | None = None,
        http_client: Any = None,
        name: str = "anthropic",
        price_book: str | None = PROVIDERS["anthropic"].price_book,
        settle_seconds: float = 300.0,
        platform: Platform | None = None,
    ) -> None:
        named_by_header = platform is None or platform.sends_workspace
        scope = {"workspace": workspace_id} if named_by_header else {}
        key, address = api_key or "", base_url
        if platform is not None:
            key, address = "a-cloud-signs", base_url or platform.address
            # The address of a proxy in front of it does not identify an account.
            account = account or address_of(urlsplit(platform.address), urlencode(scope))
        elif base_url is not None:
            refuse_unbatched(base_url)
        super().__init__(name, key, address, scope, account, price_book, settle_seconds)
        self._platform = platform
        self._own_url = base_url
        self._origin = Origin(self._base_url)
        self._version = anthropic_version
        self._secret_headers = [part for value in (default_headers or {}).values() for part in value.split()]
        self._headers = {"anthropic-version": anthropic_version, **(default_headers or {})}
        if workspace_id and named_by_header:
            self._headers["anthropic-workspace-id"] = workspace_id
        if betas:
            self._headers["anthropic-beta"] = ",".join(betas)
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._http_client = http_client
        self._sdk: Anthropic | None = None
        self._workspace_id = workspace_id
        self._betas = tuple(betas)

    def _secrets(self) -> list[str]:
        keys = [self._api_key] if self._platform is None else self._platform.secrets()
        return [*keys, *self._secret_headers, *secret_parts(self._base_url)]

    def codec(self, spec: RequestSpec) -> AnthropicLines:
        """See Provider.codec."""
        # At any other address, the server is unknown.
        return AnthropicLines(spec, self._version, enforces_format=self._public, betas=self._betas)

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        """See Provider.submit. The tag goes nowhere: the custom_ids carry the shard's nonce instead."""
        del spec, tag
        # The API has no idempotency key, and the SDK would make the call three times: each may create a batch. The body
        # is streamed by the SDK's own transport, since its `create` holds all of it in memory.
        client = self._client(retries=0)
        with sized(lines) as (file, size):
            body = CreateBody(file, size)
            with sdk_calls(lambda error: self._translated(error, "create the batch", creating=body.is_sent)):
                reply = client.post(
                    _BATCHES,
                    content=body,
                    cast_to=object,
                    options={"headers": {"Content-Length": str(body.bytes)}},
                )
                if not isinstance(reply, dict):
                    raise odd_answer({}, reply)
        batch_id = reply.get("id")
        return created_id(batch_id)

    def find(self, tag: str, hints: FindHints) -> Found | Absent | Undecided | StatusUnknown:
        """See Provider.find. Candidates: unknown batches of as many requests, created since; results name the nonce."""
        del tag
        # A batch cannot carry an attachment, and only its results name rows, after its end. So batches of the right
        # size and time are candidates until their results show the shard's nonce, or another.
        candidates: dict[str, Any] = {}
        repeats: RepeatedListError | None = None
        with self._calls("look for the batch"):
            reply = self._batches(retries=self._max_retries).with_raw_response.list(limit=self._page_size)
            since = listed_since(hints.sent_at, reply.headers)
            try:
                for batches in self._pages(parse_reply(reply)):
                    times = [created_at(batch) for batch in batches]
                    for batch, time in zip(batches, times, strict=True):
                        recent = time is None or time >= since
                        # a batch without counts may be ours: only its results can show that it is not
                        if recent and batch.id not in hints.known and total_requests(batch) in (hints.requests, None):
                            candidates[batch.id] = batch
                    if times and all(time is not None and time < since for time in times):
                        # the list comes newest first, which is documented
                        break
            except RepeatedListError as error:
                repeats = error
        ended = {batch_id: batch.processing_status == "ended" for batch_id, batch in candidates.items()}
        found = find_by_results(ended, hints.nonce, self.fetch, lambda line: read_line(line).custom_id)
        return StatusUnknown(str(repeats)) if repeats is not None and found == Absent() else found

    def _list_reports(self, wanted: Collection[str]) -> Iterator[tuple[str, BatchReport]]:
        return walk_pages(wanted, self._page, self._read, self._report, most=max(_PAGES_PER_POLL, len(wanted) // 100))

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        """See Provider.fetch. A download that breaks is a TransientError: start over, since nothing marks the place.

        RefusedError where the vendor has deleted the results, 29 days after the batch was created.
        """
        batch = self._batch(batch_id)
        if (archived_at := time_of(batch.archived_at)) is not None:
            raise RefusedError(f"The results of batch '{batch_id}' are gone: archived at {archived_at}.")
        if not batch.results_url and batch.processing_status != "ended":
            raise TransientError(f"The batch '{batch_id}' has no results yet: it is '{batch.processing_status}'.")
        if not batch.results_url:
            return
        if not is_id(batch.results_url):
            raise TransientError(f"Could not read the batch '{batch_id}': it names no address of its results.")
        what, total = f"the results of batch '{batch_id}'", total_requests(batch) or 0
        address = f"{_BATCHES}/{batch_id}/results"
        if self._origin.is_of(batch.results_url):
            yield from result_lines(split_lines(self._chunks(batch_id, batch.results_url, total)), "custom_id", what)
            return
        # a gateway may pass on the vendor's own address, which its key is not for: the path is documented too
        try:
            yield from result_lines(split_lines(self._chunks(batch_id, address, total)), "custom_id", what)
        except UnknownIdError:
            yield from result_lines(split_lines(self._chunks(batch_id, batch.results_url, total)), "custom_id", what)

    def _chunks(self, batch_id: str, address: str, lines: int) -> Iterator[bytes]:
        got = 0
        with (
            self._calls(f"download the results of batch '{batch_id}'"),
            closing(self._stream(address)) as response,
        ):
            has_end = "content-length" in response.headers or "transfer-encoding" in response.headers
            if has_end or response.http_response.http_version != "HTTP/1.1":
                yield from response.iter_bytes()
                return
            for chunk in response.iter_bytes():
                got += chunk.count(b"\n")
                yield chunk
        # The file ends where the connection does, so only the count shows that it was cut.
        if got < lines:
            raise TransientError(f"Could not download the results of batch '{batch_id}': got {got} of {lines} lines.")

    def _stream(self, address: str) -> Any:
        """Return the open response of a GET, which the caller closes."""
        return self._client(retries=self._max_retries).get(address, cast_to=object, options={"headers": _AS_STREAM})

    def delete(self, batch_id: str) -> None:
        """See DeletesBatches: the batch, and with it its requests and results."""
        with suppress(UnknownIdError), self._calls(f"delete the batch '{batch_id}'"):
            reply = parse_reply(self._batches(retries=self._max_retries).with_raw_response.delete(batch_id))
            if reply.id != batch_id:
                raise TransientError(f"Could not delete the batch '{batch_id}': the answer does not confirm it.")

    def respond(self, line: bytes) -> bytes:
        """See AnswersInRealTime. Returns an HTTP error as the answer, like a batch does; raises for bad credentials."""
        request = json.loads(line)
        _, body, failure = self._answer(_MESSAGES, request["params"])
        if failure is None:
            result = {"type": "succeeded", "message": body}
        elif isinstance(body, dict):
            result = {"type": "errored", "error": body}
        else:
            kind = "invalid_request_error" if isinstance(failure, RefusedError) else "api_error"
            error = {"type": kind, "message": str(failure)}
            result = {"type": "errored", "error": {"type": "error", "error": error}}
        return answer_line({"custom_id": request["custom_id"], "result": result}, failure)

    def upload_document(self, data: bytes, name: str, media_type: str) -> UploadedFile:
        """See StoresDocuments."""
        with self._calls("upload a document"):
            # The SDK would repeat a call without an answer, and each may store a file.
            files = self._client(retries=0).files.with_raw_response
            stored = parse_reply(files.upload(file=(name, data, media_type), expires_in_seconds=DOCUMENT_SECONDS))
        return uploaded_file(stored)

    def find_documents(self, names: Collection[str]) -> dict[str, list[UploadedFile]]:
        """See StoresDocuments. The list cannot be filtered by name, so all files of the workspace are listed."""
        with self._calls("list the documents"):
            files = self._client(retries=self._max_retries).files.with_raw_response
            return self._documents(parse_reply(files.list(limit=self._page_size)), names)

    def has_document(self, file_id: str) -> bool:
        """See StoresDocuments."""
        try:
            with self._calls("look at a document"):
                files = self._client(retries=self._max_retries).files.with_raw_response
                return bool(parse_reply(files.retrieve_metadata(file_id)).id == file_id)
        except UnknownIdError:
            return False

    def delete_document(self, file_id: str) -> None:
        """See StoresDocuments."""
        with suppress(UnknownIdError), self._calls("delete a document"):
            files = self._client(retries=self._max_retries).files.with_raw_response
            if parse_reply(files.delete(file_id)).id != file_id:
                raise TransientError("Could not delete a document: the answer does not confirm it.")

    def console_url(self, batch_id: str) -> str | None:
        """See LinksToConsole. The console's list of batches: it documents no address for one of them."""
        del batch_id
        if not self._public:
            return None
        return f"https://platform.claude.com/workspaces/{self._workspace_id or 'default'}/batches"

    def _client(self, *, retries: int) -> Anthropic:
        if self._sdk is None:
            with importing_sdk("anthropic", f"The provider '{self._name}'"):
                from anthropic import Anthropic, DefaultHttpxClient  # noqa: PLC0415 -- an optional extra
            http_client = guard_client(self._http_client or DefaultHttpxClient(), self._origin, self._timeout_seconds)
            options = {"timeout": self._timeout_seconds, "http_client": http_client, "open_telemetry": False}
            self._sdk = (
                Anthropic(api_key=self._api_key, base_url=self._base_url, **options)
                if self._platform is None
                else self._platform.client(self._name, self._own_url, options)
            )
        client = self._sdk.with_options(max_retries=retries)
        if self._platform is not None:
            self._platform.dress(client)
        client._custom_headers = self._headers  # noqa: SLF001 -- else those of the environment would be sent too
        return client

    def _batches(self, retries: int) -> Any:
        return self._client(retries=retries).messages.batches

    def _is_batch(self, value: Any) -> bool:
        return is_batch(value)

    def _read(self, batch: Any) -> BatchReport:
        return read_batch(batch)

    def _translated(self, error: Exception, doing: str, *, creating: bool = False) -> ProviderError:
        return provider_error(error, f"{doing} at {self._place}", self._secrets(), creating=creating)
