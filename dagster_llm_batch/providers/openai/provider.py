"""OpenAI's Batch API through the official SDK, and every compatible server: Azure's v1 API, Groq, Doubleword, ….

Differences between servers are data, in `servers`. A batch carries its tag in `metadata`, by which `find` identifies
it, and in the name of its request file, for servers that do not show metadata. The create call runs once, with the
SDK's retries off; uploads and downloads, which cost nothing, are retried. Counts come from reports; results come from
the output file and the error file, and either may be missing.

Ignores the environment: the account that answers must not depend on where the code runs.

API: https://platform.openai.com/docs/api-reference/batch
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

from dagster_llm_batch.core.address_secrets import secret_parts
from dagster_llm_batch.core.pricing import flex_price_gap
from dagster_llm_batch.errors import (
    AmbiguousError,
    CredentialsError,
    ProviderError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.providers.answers import (
    UnknownIdError,
    answer_line,
    created_id,
    parse_reply,
    result_lines,
)
from dagster_llm_batch.providers.base import (
    DOCUMENT_SECONDS,
    FLEX_SECONDS,
    AccessTokens,
    StainlessProvider,
    uploaded_file,
)
from dagster_llm_batch.providers.http import listed_since
from dagster_llm_batch.providers.jsonlines import split_lines
from dagster_llm_batch.providers.openai_api.batches import TAG_KEY, created_at, is_batch, read_batch, window_of
from dagster_llm_batch.providers.openai_api.requests import (
    FORMS,
    OPENAI_LIMITS,
    URLS,
    OpenAILines,
    check_endpoint,
)
from dagster_llm_batch.providers.openai_api.schema import STRICT_RULES
from dagster_llm_batch.providers.openai_api.sdk import LazyClient, provider_error
from dagster_llm_batch.providers.openai_api.servers import OPENAI, Server
from dagster_llm_batch.providers.paging import RepeatedListError, walk_pages
from dagster_llm_batch.providers.registry import PROVIDERS, class_at
from dagster_llm_batch.providers.secrets import masked
from dagster_llm_batch.text import is_id
from dagster_llm_batch.types import (
    Absent,
    BatchLimits,
    BatchReport,
    Endpoint,
    FileCount,
    FindHints,
    Found,
    RequestSpec,
    StatusUnknown,
    UploadedFile,
)

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["OpenAIProvider"]

_CHUNK_BYTES = 1 << 16
_DOCUMENTS_A_PAGE = 10_000
# The name of a request file that this package has uploaded: its tag's form.
_OWN_FILE = re.compile(r"dlb-[0-9a-f]{8}-r[0-9a-f]{16}\.jsonl")
# For at most this many batches that may be ours, the request file is checked.
_MOST_FILES = 100


@masked
class OpenAIProvider(StainlessProvider):
    """Batches in one OpenAI account, or on a compatible server at `base_url`.

    `server` holds the facts about the server; the default is OpenAI. `api_key` is a key, or a function that returns a
    token for each call. `account` identifies the source of the answers; by default the address, organization and
    project. `http_client` is a client of httpx2 for this provider alone: the provider changes it so that it does not
    send secrets to other hosts. `max_retries` is how often the SDK repeats a free call after a failure that passes. The
    constructor makes no call.
    """

    _public_url = "https://api.openai.com/v1"
    _page_after = "after"
    _page_size = 100

    def __init__(
        self,
        api_key: str | Callable[[], str],
        base_url: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        account: str | None = None,
        completion_window: str = "24h",
        timeout_seconds: float = 120.0,
        max_retries: int = 2,
        default_headers: Mapping[str, str] | None = None,
        http_client: Any = None,
        name: str = "openai",
        price_book: str | None = PROVIDERS["openai"].price_book,
        settle_seconds: float = 300.0,
        server: Server = OPENAI,
    ) -> None:
        scope = {"organization": organization, "project": project}
        tokens = None if isinstance(api_key, str) else AccessTokens(api_key, name)
        address = server.base_url.value if base_url is None else base_url
        key = api_key if isinstance(api_key, str) else "a-function-gives-it"
        super().__init__(name, key, address, scope, account, price_book, settle_seconds)
        self._tokens = tokens
        self._server = server
        self.default_output_tokens = None if server.output_tokens is None else server.output_tokens.value
        self._own_calls = None if server.calls is None else class_at(server.calls.value)
        self._has_pages = server.has_pages is None or server.has_pages.value
        self._window = completion_window
        if (window := window_of(completion_window)) is not None:
            self.window = window
        self._max_retries = max_retries
        self._headers = dict(default_headers or {})
        self._sdk = LazyClient(
            name,
            api_key=tokens or self._api_key,
            base_url=self._base_url,
            timeout_seconds=timeout_seconds,
            headers=self._headers,
            http_client=http_client,
            organization=organization,
            project=project,
        )

    @property
    def server(self) -> Server:
        """The facts about the server, as data."""
        return self._server

    def _secrets(self) -> list[str]:
        keys = (self._api_key,) if self._tokens is None else self._tokens.known
        headers = (part for value in self._headers.values() for part in value.split())
        return [*keys, *headers, *secret_parts(self._base_url)]

    def codec(self, spec: RequestSpec) -> OpenAILines:
        """See Provider.codec."""
        server = self._server
        check_endpoint(server, spec.endpoint)
        limits = BatchLimits(
            OPENAI_LIMITS.max_requests if server.max_requests is None else server.max_requests.value,
            OPENAI_LIMITS.max_bytes if server.max_bytes is None else server.max_bytes.value,
        )
        rules = STRICT_RULES if server.strict_schemas else None
        documents = None if server.documents is None else server.documents.value.get(spec.endpoint)
        # At any other address, the server is unknown.
        return OpenAILines(
            spec,
            limits,
            rules,
            enforces_format=self._public,
            dimensions="dimensions" if server.dimensions is None else server.dimensions.value,
            names_url=server.names_url,
            form={**FORMS, **(server.forms or {})}[spec.endpoint],
            is_open=server.has_more_parameters and not self._public,
            documents=documents,
            names_document_url=server.names_document_url,
            uploads=documents if server.stores_documents is not None and server.stores_documents.value else None,
        )

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        """See Provider.submit. The uploaded file is deleted again where there is certainly no batch of it."""
        with self._calls("upload the request file"), _file(lines) as file:
            upload = (_file_name(tag), file, "application/jsonl")
            files = self._client(retries=self._max_retries).files.with_raw_response
            uploaded = parse_reply(files.create(file=upload, purpose="batch", **self._expiry()))
        file_id = uploaded.id
        if not is_id(file_id):
            raise TransientError("Could not upload the request file: the reply names no file.")
        try:
            return self._create(file_id, spec, tag)
        except AmbiguousError:
            raise
        except ProviderError:
            self._forget(file_id)
            raise

    def _expiry(self) -> dict[str, Any]:
        expiry = self._server.expiry
        # At an address of an unknown server, other than OpenAI's, it is unknown whether files may expire.
        if expiry is None or (self._server is OPENAI and not self._public):
            return {}
        return {"expires_after": {"anchor": "created_at", "seconds": expiry.value.seconds}}

    def _create(self, file_id: str, spec: RequestSpec, tag: str) -> str:
        # The API has no idempotency key, and the SDK would make the call three times: each may create a batch.
        # The lines name the model, and OpenAI's call has no such argument. Calls of a server's own may need it.
        more = {} if self._own_calls is None else {"model": spec.model}
        paths = URLS if self._server.create_endpoints is None else {**URLS, **self._server.create_endpoints.value}
        with self._calls("create the batch", creating=True):
            reply = self._batches(retries=0).with_raw_response.create(
                input_file_id=file_id,
                endpoint=paths[spec.endpoint],
                completion_window=self._window,
                metadata={TAG_KEY: tag},
                **more,
            )
            batch_id = parse_reply(reply).id
        return created_id(batch_id)

    def _forget(self, file_id: str) -> None:
        try:
            with self._calls("delete the request file"):
                self._client(retries=0).files.delete(file_id)
        except ProviderError:
            # the file costs nothing and expires later; the error that led here matters more
            pass

    def find(self, tag: str, hints: FindHints) -> Found | Absent | StatusUnknown:
        """See Provider.find.

        Reads on until a whole page is older than the create call, but stops there only if the observed pages are newest
        first, which is not documented; else reads all pages.
        """
        # A compatible server may drop metadata. If every batch on the list lacks a tag of this package, a batch without
        # a tag may be ours, and a wrong "no" would be final: the row would be paid twice. As dicts: a list that grows
        # while it is read may show a batch on two pages.
        ours: dict[str, None] = {}
        untagged: dict[str, object] = {}
        server_keeps_tags = self._public
        times: list[datetime | None] = []
        repeats: RepeatedListError | None = None
        with self._calls("look for the batch"):
            reply = self._batches(retries=0).with_raw_response.list(limit=self._page_size)
            since = listed_since(hints.sent_at, reply.headers)
            try:
                for page in self._pages(parse_reply(reply)):
                    for batch in page:
                        tags = batch.metadata if isinstance(batch.metadata, dict) else {}
                        server_keeps_tags = server_keeps_tags or TAG_KEY in tags
                        time = created_at(batch)
                        if tags.get(TAG_KEY) == tag and batch.id not in hints.known:
                            ours[batch.id] = None
                        elif not tags and (time is None or time >= since):
                            untagged[batch.id] = getattr(batch, "input_file_id", None)
                        times.append(time)
                    if _newest_first(times) and all(time < since for time in times[-len(page) :] if time is not None):
                        break
            except RepeatedListError as error:
                repeats = error
        if len(ours) > 1:
            return StatusUnknown("More than one batch carries this tag.", tuple(ours))
        if ours:
            return Found(next(iter(ours)))
        if repeats is not None:
            return StatusUnknown(str(repeats), tuple(untagged))
        return Absent() if server_keeps_tags else self._find_by_file(_file_name(tag), untagged, hints.known)

    def _find_by_file(
        self, file_name: str, batches: Mapping[str, object], known: Collection[str]
    ) -> Found | Absent | StatusUnknown:
        """Find the batch whose request file has this name, among batches and the ids of their files.

        Another name proves nothing if it is unknown whether the server keeps names, and all names lack our form.
        """
        looked_at = dict(list(batches.items())[:_MOST_FILES])
        names = {batch_id: self._name_of_file(file_id) for batch_id, file_id in looked_at.items()}
        ours = [batch_id for batch_id, name in names.items() if name == file_name and batch_id not in known]
        if len(ours) > 1:
            return StatusUnknown("More than one batch is of the request file of this name.", tuple(ours))
        if ours:
            return Found(ours[0])
        fact = self._server.keeps_file_names
        keeps_names = (fact is not None and fact.value) or any(map(_OWN_FILE.fullmatch, filter(None, names.values())))
        unclear = [one for one in batches if one not in known and not (keeps_names and names.get(one))]
        if unclear:
            return StatusUnknown("The provider shows no metadata, so these may be ours.", tuple(unclear))
        return Absent()

    def _name_of_file(self, file_id: object) -> str | None:
        """Return the name of a file; None without a readable name."""
        if not is_id(file_id):
            return None
        try:
            with self._calls(f"look at the file '{file_id}'"):
                name = parse_reply(
                    self._client(retries=self._max_retries).files.with_raw_response.retrieve(str(file_id))
                ).filename
        except CredentialsError:
            raise
        except RefusedError:
            # it was deleted, or has expired
            return None
        return name if isinstance(name, str) and name else None

    def _list_reports(self, wanted: Collection[str]) -> Iterator[tuple[str, BatchReport]]:
        # Beyond that, single calls are fewer. Pages of a server's own may have no place to begin after.
        most = len(wanted) // 10 + 1 if self._has_pages and self._own_calls is None else 1
        return walk_pages(wanted, self._page, self._read, self._report, most=most)

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        """See Provider.fetch. A download that breaks is a TransientError: start over, since nothing marks the place."""
        batch = self._batch(batch_id, retries=self._max_retries)
        # Failed rows are in a separate file, and the server omits an empty file: a batch whose rows all failed has
        # ended normally, without an output file.
        file_ids = [file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id]
        if not all(is_id(file_id) for file_id in file_ids):
            raise TransientError(f"Could not read the batch '{batch_id}': it names files that can be none.")
        for file_id in file_ids:
            yield from result_lines(split_lines(self._chunks(file_id)), "custom_id", f"the file '{file_id}'")

    def _chunks(self, file_id: str) -> Iterator[bytes]:
        client = self._client(retries=self._max_retries)
        got = 0
        with (
            self._calls(f"download the file '{file_id}'"),
            client.files.with_streaming_response.content(file_id) as response,
        ):
            for chunk in response.iter_bytes():
                got += len(chunk)
                yield chunk
            has_end = "content-length" in response.headers or "transfer-encoding" in response.headers
            if has_end or response.http_response.http_version != "HTTP/1.1":
                return
            # the connection's end is the file's: a cut would go unseen
            size = client.files.retrieve(file_id).bytes
        if isinstance(size, int) and got < size:
            raise TransientError(f"Could not download the file '{file_id}': got {got} of {size} bytes.")

    def delete(self, batch_id: str) -> None:
        """See DeletesBatches. Deletes the request file and the result files. The batch itself names no row."""
        try:
            batch = self._batch(batch_id, retries=self._max_retries)
        except UnknownIdError:
            return
        for file_id in (batch.input_file_id, batch.output_file_id, batch.error_file_id):
            self._delete_file(file_id)

    def delete_request_file(self, batch_id: str) -> None:
        """See DeletesRequestFiles."""
        with suppress(UnknownIdError):
            self._delete_file(self._batch(batch_id, retries=self._max_retries).input_file_id)

    def _delete_file(self, file_id: object) -> None:
        if not is_id(file_id):
            return
        with suppress(UnknownIdError), self._calls(f"delete the file '{file_id}'"):
            reply = parse_reply(self._client(retries=self._max_retries).files.with_raw_response.delete(str(file_id)))
            if reply.deleted is not True:
                raise TransientError(f"Could not delete the file '{file_id}': the answer does not confirm it.")

    def upload_document(self, data: bytes, name: str, media_type: str) -> UploadedFile:
        """See StoresDocuments."""
        # At another address, it is unknown whether files may expire: see `_expiry`.
        expiry = {"expires_after": {"anchor": "created_at", "seconds": DOCUMENT_SECONDS}} if self._public else {}
        with self._calls("upload a document"):
            # The SDK would repeat a call without an answer, and each may store a file.
            files: Any = self._client(retries=0).files.with_raw_response
            stored = parse_reply(files.create(file=(name, data, media_type), purpose="user_data", **expiry))
        return uploaded_file(stored)

    def find_documents(self, names: Collection[str]) -> dict[str, list[UploadedFile]]:
        """See StoresDocuments. The list cannot be filtered by name, so all documents of the account are listed."""
        with self._calls("list the documents"):
            files = self._client(retries=self._max_retries).files.with_raw_response
            return self._documents(parse_reply(files.list(purpose="user_data", limit=_DOCUMENTS_A_PAGE)), names)

    def has_document(self, file_id: str) -> bool:
        """See StoresDocuments."""
        try:
            with self._calls("look at a document"):
                files = self._client(retries=self._max_retries).files.with_raw_response
                return bool(parse_reply(files.retrieve(file_id)).id == file_id)
        except UnknownIdError:
            return False

    def delete_document(self, file_id: str) -> None:
        """See StoresDocuments."""
        self._delete_file(file_id)

    def count_files(self) -> list[FileCount]:
        """See CountsFiles: the request files of the account, where the server's limits on them are known."""
        if self._server.file_limits is None:
            return []
        with self._calls("list the request files"):
            page = parse_reply(self._client(retries=self._max_retries).files.with_raw_response.list(purpose="batch"))
            pages = page.iter_pages() if self._has_pages else [page]
            files = [file for one in pages for file in one.data]
        lasting = sum(getattr(file, "expires_at", None) is None for file in files)
        size = sum(file.bytes for file in files if isinstance(file.bytes, int))
        limits = self._server.file_limits.value
        counts = (
            FileCount("request files without an expiry", lasting, limits.without_expiry),
            FileCount("request files", len(files), limits.files),
            FileCount("bytes of request files", size, limits.bytes),
        )
        return [count for count in counts if count.most is not None]

    def respond(self, line: bytes) -> bytes:
        """See AnswersInRealTime. Returns an HTTP error as the answer, like a batch does; raises for bad credentials."""
        return self._respond(line, {}, None)

    def flex_gap(self, model: str, endpoint: Endpoint) -> str | None:
        """See AnswersInFlex. OpenAI serves all models of its price list for flex, and no others."""
        if self._server is not OPENAI:
            return f"The provider '{self.name}' has no tier 'flex'."
        if endpoint not in (Endpoint.CHAT, Endpoint.RESPONSES):
            return f"OpenAI has the tier 'flex' for chat and responses, not for '{endpoint.value}'."
        return None if self.price_book is None else flex_price_gap(self.price_book, model)

    def respond_flex(self, line: bytes) -> bytes:
        """See AnswersInFlex. Waits for 15 minutes: developers.openai.com/api/docs/guides/flex-processing."""
        return self._respond(line, {"service_tier": "flex"}, FLEX_SECONDS)

    def _respond(self, line: bytes, more: Mapping[str, Any], seconds: float | None) -> bytes:
        """Return the answer to a line and to more fields. `seconds`: the least time limit of the call."""
        request = json.loads(line)
        # See Server.names_url.
        path = request.get("url") or URLS[Endpoint.EMBEDDINGS if "input" in request["body"] else Endpoint.CHAT]
        status, body, failure = self._answer(path.removeprefix("/v1"), {**request["body"], **more}, seconds)
        answer = {
            "id": None,
            "custom_id": request["custom_id"],
            "response": {"status_code": status, "body": body},
            "error": None,
        }
        return answer_line(answer, failure)

    def console_url(self, batch_id: str) -> str | None:
        """See LinksToConsole. Only OpenAI's own address has a console here."""
        return f"https://platform.openai.com/batches/{batch_id}" if self._public else None

    def _client(self, *, retries: int) -> OpenAI:
        return self._sdk.with_retries(retries)

    def _batches(self, retries: int) -> Any:
        client = self._client(retries=retries)
        return client.batches if self._own_calls is None else self._own_calls(client)

    def _is_batch(self, value: Any) -> bool:
        return is_batch(value)

    def _read(self, batch: Any) -> BatchReport:
        return read_batch(batch)

    def _translated(self, error: Exception, doing: str, *, creating: bool = False) -> ProviderError:
        return provider_error(error, f"{doing} at {self._place}", self._secrets(), creating=creating)


def _file_name(tag: str) -> str:
    return f"{tag}.jsonl"


def _newest_first(times: Sequence[datetime | None]) -> bool:
    """Return whether the times are seen to fall; equal ones alone show nothing."""
    known = [time for time in times if time is not None]
    if len(known) < max(len(times), 2) or known[0] == known[-1]:
        return False
    return all(earlier >= later for earlier, later in pairwise(known))


@contextmanager
def _file(lines: BinaryIO) -> Iterator[BinaryIO]:
    """Return `lines` as an object whose length the SDK can find without reading it, else a temporary copy."""
    if _has_length(lines):
        yield lines
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(lines, copy, _CHUNK_BYTES)
        copy.seek(0)
        yield copy


def _has_length(lines: BinaryIO) -> bool:
    """Return whether the SDK's length is right: the length of a file behind `lines`, else the position at the end."""
    if not lines.seekable():
        return False
    if isinstance(lines, io.BufferedReader | io.BufferedRandom) and isinstance(lines.raw, io.FileIO):
        return True
    try:
        lines.fileno()
    except OSError:
        return True
    # The file may be compressed, so its length is not the length of the lines.
    return False
