"""Batches of the Gemini Developer API, through the official SDK google-genai.

Small batches travel in the create call (inline), larger ones as a file by resumable upload. `find` identifies a batch
by its `displayName`, which is the tag; the API lists all batches without a filter. The create call runs once. Batches
expire 48 hours after their creation, and uploaded files vanish by then too.

Ignores the environment: the account that answers must not depend on where the code runs.

API: https://ai.google.dev/gemini-api/docs/batch-api
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from dagster_llm_batch.core.address_secrets import secret_parts
from dagster_llm_batch.errors import (
    AmbiguousError,
    ConfigError,
    CredentialsError,
    ProviderError,
    TransientError,
)
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.providers.answers import UnknownIdError, answer_line, created_id, result_lines
from dagster_llm_batch.providers.base import FLEX_SECONDS, check_key
from dagster_llm_batch.providers.google.clients import FLEX_WITHOUT_EMBEDDINGS, GoogleApi, GoogleProvider, time_of
from dagster_llm_batch.providers.google.embeddings import GoogleEmbeddingLines, is_embedding, real_time
from dagster_llm_batch.providers.google.files import CHUNK_BYTES, upload_copy
from dagster_llm_batch.providers.google.gemini_batches import (
    display_name,
    inlined_results,
    is_operation,
    read_operation,
    requests_file,
    responses_file,
)
from dagster_llm_batch.providers.google.requests import GoogleLines, gemini_model
from dagster_llm_batch.providers.http import check_address, importing_sdk
from dagster_llm_batch.providers.jsonlines import split_lines
from dagster_llm_batch.providers.paging import find_among
from dagster_llm_batch.providers.registry import PROVIDERS
from dagster_llm_batch.providers.secrets import masked
from dagster_llm_batch.text import is_id
from dagster_llm_batch.types import (
    Absent,
    BatchLimits,
    BatchReport,
    Endpoint,
    FindHints,
    Found,
    RequestSpec,
    StatusUnknown,
    UploadedFile,
)

if TYPE_CHECKING:
    from google.genai import Client
    from google.genai.types import HttpOptionsDict

__all__ = ["API_VERSION", "GEMINI_LIMITS", "GeminiProvider"]

API_VERSION = "v1beta"
"""Documented and seen live for batches; only this version has the aliases (`gemini-flash-latest`). The SDK itself takes
v1 from 3.0 on."""

GEMINI_LIMITS = BatchLimits(max_requests=50_000, max_bytes=2_000_000_000)
"""The bytes are documented. The number of requests is not, and is the one that other clients use."""

_HOST = "generativelanguage.googleapis.com"
# As a deployment names its batches.
_OWN_NAME = re.compile(r"dlb-[0-9a-f]{8}-r[0-9a-f]{16}")
_BATCHES = "batches"
# The API takes 20 MB a request, everything included.
_MAX_INLINE_BYTES = 15_000_000


@masked
class GeminiProvider(GoogleProvider):
    """Batches of one project of the Gemini API.

    `account` identifies the source of the answers; a key does not show its project, so give one if you use several.
    Batches up to `inline_bytes` travel inline. `api_version` applies to every call. The constructor makes no call.
    """

    _batches_path = _BATCHES
    _list_names = ("operations", _BATCHES)
    # The target is 24 hours; a batch expires 48 hours after it was created.
    window = timedelta(hours=48)

    def __init__(
        self,
        api_key: str,
        base_url: str | None = None,
        account: str | None = None,
        inline_bytes: int = 1_000_000,
        api_version: str = API_VERSION,
        timeout_seconds: float = 120.0,
        name: str = "gemini",
        price_book: str | None = PROVIDERS["gemini"].price_book,
        settle_seconds: float = 300.0,
    ) -> None:
        key = check_key(api_key, name)
        if not re.fullmatch(r"v[0-9]+(alpha|beta)?[0-9]*", api_version):
            raise ConfigError(f"api_version is {api_version!r}; the Gemini API has 'v1beta' and 'v1'.")
        if not 0 <= inline_bytes <= _MAX_INLINE_BYTES:
            raise ConfigError(f"inline_bytes can be 0 (never inline) to {_MAX_INLINE_BYTES}; got {inline_bytes}.")
        host = _HOST if base_url is None else check_address(base_url, "base_url").netloc
        super().__init__(name, host if account is None else account, price_book, settle_seconds)
        self._api_key = key
        self._base_url = base_url
        self._inline_bytes = inline_bytes
        self._api_version = api_version
        self._timeout_seconds = timeout_seconds
        self._api = GoogleApi(self._client, self._place, lambda: api_key, timeout_seconds, is_gemini=True)

    def _secrets(self) -> list[str]:
        return [self._api_key, *secret_parts(self._base_url)]

    def codec(self, spec: RequestSpec) -> Codec:
        """See Provider.codec."""
        if spec.endpoint is Endpoint.EMBEDDINGS or is_embedding(spec.model):
            return GoogleEmbeddingLines(spec, GEMINI_LIMITS, on_vertex=False)
        return GoogleLines(spec, GEMINI_LIMITS, "key", imported=False, is_v1=self._api_version == "v1")

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        """See Provider.submit. The uploaded file is deleted again where there is certainly no batch of it."""
        file_name = None
        embeds = spec.endpoint is Endpoint.EMBEDDINGS
        # It is not documented whether results of embeddings that travel inline repeat a row's key.
        inline_bytes = -1 if embeds else self._inline_bytes
        with upload_copy(lines, spec.model) as (file, size):
            if size <= inline_bytes:
                source: dict[str, Any] = {"requests": {"requests": [_inlined(line) for line in file]}}
            else:
                file_name = self._upload(file, tag)
                source = {"file_name" if embeds else "fileName": file_name}
        body = {"batch": {"displayName": tag, "inputConfig": source}}
        path = f"{gemini_model(spec.model)}:{'asyncBatchEmbedContent' if embeds else 'batchGenerateContent'}"
        try:
            operation = self._api.call("post", path, "create the batch", body, creating=True)
        except AmbiguousError:
            raise
        except ProviderError:
            if file_name is not None:
                self._forget(file_name)
            raise
        name = operation.get("name")
        return created_id(name)

    def _upload(self, file: IO[bytes], tag: str) -> str:
        client = self._api.client
        with self._api.calls("upload the request file"):
            config = {"display_name": tag, "mime_type": "application/jsonl"}
            uploaded = client.files.upload(file=file, config=config)  # type: ignore[arg-type]  # a temporary file is an IOBase
        if not is_id(uploaded.name):
            raise TransientError("Could not upload the request file: the reply names no file.")
        return str(uploaded.name)

    def _forget(self, file_name: str) -> None:
        # The file costs nothing and expires after two days; the error that led here matters more.
        with suppress(ProviderError):
            self._api.call("delete", file_name, "delete the request file")

    def find(self, tag: str, hints: FindHints) -> Found | Absent | StatusUnknown:
        """See Provider.find. All pages are read, since their order is not documented."""
        batches = self._api.pages(_BATCHES, "look for the batch", self._list_names)
        return find_among((str(batch["name"]) for batch in batches if display_name(batch) == tag), hints.known)

    def _is_batch(self, answer: Mapping[str, Any]) -> bool:
        return is_operation(answer)

    def _read(self, batch_id: str, batch: Mapping[str, Any]) -> BatchReport:
        return read_operation(batch_id, batch)

    def _path(self, batch_id: str) -> str:
        return batch_id if batch_id.startswith(f"{_BATCHES}/") else f"{_BATCHES}/{batch_id}"

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        """See Provider.fetch. A file of results comes by way of a temporary file, inline results by the operation."""
        operation = self._batch(batch_id)
        file_name = responses_file(operation)
        if file_name is None:
            inlined = (answer_line(row) for row in inlined_results(operation))
            yield from result_lines(inlined, "key", f"the results of batch '{batch_id}'")
            return
        # the SDK downloads into a file or into memory as a whole, and a results file may have gigabytes
        client = self._api.client
        with tempfile.TemporaryFile() as copy:
            with self._api.calls(f"download the file '{file_name}'"):
                client.files.download(file=file_name, destination=copy)
            copy.seek(0)
            lines = split_lines(iter(lambda: copy.read(CHUNK_BYTES), b""))
            yield from result_lines(lines, "key", f"the file '{file_name}'")

    def delete(self, batch_id: str) -> str | None:
        """See DeletesBatches: the files, and the batch, which holds inline requests and results itself."""
        try:
            operation = self._batch(batch_id)
        except UnknownIdError:
            return None
        files, left = self._request_files(operation)
        for name in filter(None, (*files, responses_file(operation))):
            self._delete_file(name)
        with suppress(UnknownIdError):
            self._api.call("delete", self._path(batch_id), f"delete the batch '{batch_id}'")
        return left

    def delete_request_file(self, batch_id: str) -> None:
        """See DeletesRequestFiles. A small batch has no file: it traveled in the create call."""
        with suppress(UnknownIdError):
            for name in self._request_files(self._batch(batch_id))[0]:
                self._delete_file(name)

    def _request_files(self, operation: Mapping[str, Any]) -> tuple[list[str], str | None]:
        """Return the request files of a batch, and why one may stay.

        If the batch does not list its files, they are found by its display name. Our files have unique names; files of
        a batch that was sent by other code may be shared with other batches, and are kept.
        """
        if (name := requests_file(operation)) is not None:
            return [name], None
        if (tag := display_name(operation)) is None:
            return [], None
        listed = self._api.pages("files", "list the files", ("files",))
        files = [str(file["name"]) for file in listed if file.get("displayName") == tag]
        if not files or _OWN_NAME.fullmatch(tag):
            return files, None
        batches = self._api.pages(_BATCHES, "list the batches", self._list_names)
        if len(files) == 1 and sum(display_name(batch) == tag for batch in batches) == 1:
            return files, None
        why = "other batches or files have its name, and it is unknown which of them has its requests"
        return [], f"its request file stays until it expires, after two days: {why}"

    def _delete_file(self, name: str) -> None:
        # For a missing file, the API answers that the caller lacks the permission; for the batch the caller has it.
        with suppress(UnknownIdError, CredentialsError):
            self._api.call("delete", name, f"delete the file '{name}'")

    def upload_document(self, data: bytes, name: str, media_type: str) -> UploadedFile:
        """See StoresDocuments. The vendor stores files for 48 hours."""
        client = self._api.client
        with self._api.calls("upload a document"):
            config: Any = {"display_name": name, "mime_type": media_type}
            stored = client.files.upload(file=io.BytesIO(data), config=config)
        return _uploaded({"uri": stored.uri, "expirationTime": stored.expiration_time})

    def find_documents(self, names: Collection[str]) -> dict[str, list[UploadedFile]]:
        """See StoresDocuments."""
        found: dict[str, list[UploadedFile]] = {}
        for file in self._api.pages("files", "list the documents", ("files",)):
            if (name := file.get("displayName")) in names:
                found.setdefault(str(name), []).append(_uploaded(file))
        return found

    def has_document(self, file_id: str) -> bool:
        """See StoresDocuments."""
        try:
            return self._api.call("get", _file_name(file_id), "look at a document").get("uri") == file_id
        except UnknownIdError:
            return False

    def delete_document(self, file_id: str) -> None:
        """See StoresDocuments."""
        try:
            self._api.call("delete", _file_name(file_id), "delete a document")
        except UnknownIdError:
            return
        except CredentialsError:
            # The API answers 403 to a missing file, too, and its wording may change: its list decides.
            files = self._api.pages("files", "list the documents", ("files",))
            if any(file.get("uri") == file_id for file in files):
                raise

    def respond(self, line: bytes) -> bytes:
        """See AnswersInRealTime. Returns an HTTP error as the answer, like a batch does; raises for bad credentials."""
        return self._respond(line, {}, None)

    def flex_gap(self, model: str, endpoint: Endpoint) -> str | None:
        """See AnswersInFlex."""
        del model
        return FLEX_WITHOUT_EMBEDDINGS if endpoint is Endpoint.EMBEDDINGS else None

    def respond_flex(self, line: bytes) -> bytes:
        """See AnswersInFlex. The field is in the body: ai.google.dev/gemini-api/docs/flex-inference."""
        options: HttpOptionsDict = {"timeout": int(max(self._timeout_seconds, FLEX_SECONDS) * 1000)}
        return self._respond(line, {"serviceTier": "flex"}, options)

    def _respond(self, line: bytes, more: Mapping[str, Any], options: HttpOptionsDict | None) -> bytes:
        """Return the answer to a line and to more fields. `options`: the SDK's for this call."""
        given = json.loads(line)
        verb, request = "generateContent", given["request"]
        if "content" in request:
            verb, request = real_time(request, on_vertex=False)
        status, body, failure = self._api.answer(f"{gemini_model(given['model'])}:{verb}", {**request, **more}, options)
        answer: dict[str, Any] = {"key": given["key"]}
        if status == HTTPStatus.OK:
            answer["response"] = body
        else:
            inner = body.get("error") if isinstance(body, Mapping) else None
            answer["error"] = inner if isinstance(inner, Mapping) else {"code": status, "message": str(body)}
        return answer_line(answer, failure)

    def _client(self) -> Client:
        with importing_sdk("google", f"The provider '{self._name}'"):
            from google.genai import Client  # noqa: PLC0415 -- an optional extra
            from google.genai.types import HttpOptions  # noqa: PLC0415
        options = HttpOptions(
            api_version=self._api_version,
            timeout=int(self._timeout_seconds * 1000),
            base_url=self._base_url or f"https://{_HOST}",
        )
        return Client(vertexai=False, api_key=self._api_key, http_options=options)


def _uploaded(file: Mapping[str, Any]) -> UploadedFile:
    """Return a stored file. Requests name it by its address. Raises TransientError for an answer that names none."""
    uri, expires_at = file.get("uri"), file.get("expirationTime")
    if not is_id(uri):
        raise TransientError("Could not upload a document: the answer names no address of a file.")
    return UploadedFile(str(uri), time_of(expires_at) if isinstance(expires_at, str) else expires_at)


def _file_name(file_id: str) -> str:
    """Return the name of the file at an address, for calls about it."""
    return f"files/{file_id.rpartition('/')[2]}"


def _inlined(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    return {"request": row["request"], "metadata": {"key": row["key"]}}
