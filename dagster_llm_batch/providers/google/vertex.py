"""Batches on Vertex AI, of Gemini and of Claude, through the official SDKs of google-genai and of its storage.

Requests and results are files in a Cloud Storage bucket, or tables in a BigQuery dataset. Each batch has its own folder
or tables, named by its tag, which stay until you remove them. `find` identifies a batch by its `displayName`, which is
the tag. The create call runs once.

API: https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.batchPredictionJobs
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeVar

from dagster_llm_batch.core.address_secrets import refuse_credentials, secret_parts
from dagster_llm_batch.errors import (
    AmbiguousError,
    ConfigError,
    ProviderError,
)
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.providers.answers import UnknownIdError, answer_line, created_id, result_lines
from dagster_llm_batch.providers.base import FLEX_SECONDS
from dagster_llm_batch.providers.google.clients import FLEX_WITHOUT_EMBEDDINGS, GoogleApi, GoogleProvider
from dagster_llm_batch.providers.google.embeddings import (
    VERTEX_EMBEDDING_LIMITS,
    GoogleEmbeddingLines,
    check_vertex_embeddings,
    is_embedding,
    real_time,
)
from dagster_llm_batch.providers.google.files import upload_copy
from dagster_llm_batch.providers.google.requests import GoogleLines
from dagster_llm_batch.providers.google.vertex_batches import RESULTS, inputs_of, is_job, output_of, read_job
from dagster_llm_batch.providers.google.vertex_bigquery import VertexTables, is_own_table
from dagster_llm_batch.providers.google.vertex_claude import VertexClaudeLines
from dagster_llm_batch.providers.google.vertex_storage import VertexStorage
from dagster_llm_batch.providers.http import Origin, check_address, guard_session, importing_sdk
from dagster_llm_batch.providers.paging import find_among
from dagster_llm_batch.providers.registry import PROVIDERS
from dagster_llm_batch.providers.secrets import masked
from dagster_llm_batch.text import plain_words
from dagster_llm_batch.types import (
    Absent,
    BatchLimits,
    BatchReport,
    Endpoint,
    FindHints,
    Found,
    RequestSpec,
    StatusUnknown,
)

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.cloud.bigquery import Client as TablesClient
    from google.cloud.storage import Client as StorageClient  # type: ignore[import-untyped]
    from google.genai import Client
    from google.genai.types import HttpOptionsDict

__all__ = ["VERTEX_LIMITS", "VertexProvider", "credentials_of", "secrets_of"]

VERTEX_LIMITS = BatchLimits(max_requests=200_000, max_bytes=1_000_000_000)
_JOBS = "batchPredictionJobs"
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_PUBLISHERS = ("google", "anthropic")
_PUBLISHER = re.compile(r"(?:^|/)publishers/([^/]+)/")
_GOOGLES = re.compile(
    r"(models/)?(gemini|learnlm|medlm|text-embedding|text-multilingual-embedding|textembedding-gecko"
    r"|multimodalembedding)(?!.*-maas)"
)
"""Google's models by their short names. Open ones have any other, and new ones appear each month."""
_OWN_MODEL = re.compile(r"projects/[^/]+/locations/[^/]+/models/[^/]+")
_SdkClient = TypeVar("_SdkClient", bound=Any)
_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]


@masked
class VertexProvider(GoogleProvider):
    """Batches of one project and location. `credentials` None: the application default ones.

    Requests and results are in `bucket` or in `bigquery_dataset` ("dataset" or "project.dataset"), which is in the
    location's region. `account` identifies the source of the answers; by default project and location. `secrets` are
    the secret parts of the credentials, to be masked. `table_page_rows` is how many rows of a results table one call
    reads. The constructor makes no call.
    """

    _batches_path = _JOBS
    _list_names = (_JOBS,)
    # Up to 72 hours in the queue, then 24 hours of running.
    window = timedelta(hours=96)

    def __init__(
        self,
        project: str,
        location: str,
        bucket: str | None = None,
        prefix: str = "dagster-llm-batch",
        credentials: Credentials | None = None,
        base_url: str | None = None,
        storage_url: str | None = None,
        bigquery_dataset: str | None = None,
        bigquery_url: str | None = None,
        account: str | None = None,
        timeout_seconds: float = 120.0,
        name: str = "vertex",
        price_book: str | None = PROVIDERS["vertex"].price_book,
        settle_seconds: float = 300.0,
        secrets: Collection[str] = (),
        table_page_rows: int = 1_000,
    ) -> None:
        if (bucket is None) == (bigquery_dataset is None):
            raise ConfigError(
                f"The provider '{name}' needs a place for requests and results: a Cloud Storage bucket (bucket=) or a "
                "BigQuery dataset (bigquery_dataset=), and not both."
            )
        names = {"project": project, "location": location, "bucket": bucket, "bigquery_dataset": bigquery_dataset}
        for what, value in names.items():
            if value is not None and not re.fullmatch(r"[\w.:-]+", value):
                refuse_credentials(value if "://" in value else f"gs://{value}", f"{what} of provider '{name}'")
                raise ConfigError(
                    f"The {what} of provider '{name}' is {value!r}; give its plain name, without 'gs://'."
                )
        for what, url in (("base_url", base_url), ("storage_url", storage_url), ("bigquery_url", bigquery_url)):
            if url is not None:
                check_address(url, what)
        super().__init__(name, f"{project}/{location}" if account is None else account, price_book, settle_seconds)
        self._project, self._location = project, location
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        self._credentials = credentials
        self._base_url = base_url
        self._given_secrets = tuple(secrets)
        self._storage_url = storage_url
        self._bigquery_url = bigquery_url
        self._timeout_seconds = timeout_seconds
        self._api = GoogleApi(
            self._client,
            self._place,
            lambda: getattr(self._credentials, "token", None),
            timeout_seconds,
            is_gemini=False,
        )
        is_whole = bigquery_dataset is None or "." in bigquery_dataset
        self._dataset = bigquery_dataset if is_whole else f"{project}.{bigquery_dataset}"
        self._storage = VertexStorage(self._storage_client, bucket or "", timeout_seconds, self._api.calls)
        self._tables = VertexTables(self._tables_client, timeout_seconds, self._api.calls, table_page_rows)

    @property
    def price_book(self) -> str | None:
        """See Provider.price_book. Claude costs more at the endpoints of regions than at the global one."""
        book = super().price_book
        return f"{book}/regional" if book == "google" and self._location != "global" else book

    def _secrets(self) -> list[str]:
        addresses = secret_parts(self._base_url, self._storage_url, self._bigquery_url)
        return [*self._given_secrets, *filter(None, [getattr(self._credentials, "token", None)]), *addresses]

    def codec(self, spec: RequestSpec) -> Codec:
        """See Provider.codec. Raises ConfigError for an open model: the ids of its results are not documented."""
        if _is_open(spec.model):
            raise ConfigError(
                f"The model {spec.model!r} is not one of Google's or Claude: batches of open models (Llama, DeepSeek, "
                "Kimi, GLM, Mistral, Qwen, gpt-oss, …) take OpenAI's lines on Vertex AI, whose custom_id the service "
                "does not use by its own documents, and the form of their results is not documented: answers could not "
                "be matched to rows for certain. Nothing was sent. Take a Gemini or Claude model here, or this one at "
                "another provider. A model of Google's with an unusual name is written as 'publishers/google/models/"
                "NAME', a tuned one as 'projects/PROJECT/locations/LOCATION/models/ID'."
            )
        if spec.endpoint is Endpoint.EMBEDDINGS or is_embedding(spec.model):
            check_vertex_embeddings(spec.model, self._location, in_tables=self._dataset is not None)
            return GoogleEmbeddingLines(spec, VERTEX_EMBEDDING_LIMITS, on_vertex=True)
        if not _is_claude(spec.model):
            return GoogleLines(spec, VERTEX_LIMITS, "custom_id", imported=True)
        if self._location == "global":
            raise ConfigError("Batches of Claude do not run at the location 'global'; name a region, as in 'us-east5'.")
        return VertexClaudeLines(spec, VERTEX_LIMITS)

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        """See Provider.submit. The uploaded file or table is deleted again where there is certainly no batch of it."""
        with upload_copy(lines, spec.model) as (file, size):
            uri, places = self._upload(file, size, tag)
        body: dict[str, Any] = {
            "displayName": tag,
            "model": _model_path(spec.model),
            **places,
            **({"labels": {"dagster_llm_batch": tag}} if _LABEL.fullmatch(tag) else {}),
        }
        try:
            job = self._api.call("post", _JOBS, "create the batch", body, creating=True)
        except AmbiguousError:
            raise
        except ProviderError:
            (self._storage if self._dataset is None else self._tables).delete(uri)
            raise
        name = job.get("name")
        return created_id(name)

    def _upload(self, file: IO[bytes], size: int, tag: str) -> tuple[str, dict[str, Any]]:
        """Write the requests; return their address, and the fields for them and for the results in a job."""
        if self._dataset is not None:
            uri = self._tables.upload(self._dataset, tag, file, size)
            source: dict[str, Any] = {"instancesFormat": "bigquery", "bigquerySource": {"inputUri": uri}}
            results = {"outputUri": self._tables.results_of(uri)}
            target: dict[str, Any] = {"predictionsFormat": "bigquery", "bigqueryDestination": results}
        else:
            folder = "/".join(part for part in (self._prefix, tag) if part)
            uri = self._storage.upload(folder, file, size)
            source = {"instancesFormat": "jsonl", "gcsSource": {"uris": [uri]}}
            prefix = {"outputUriPrefix": f"gs://{self._bucket}/{folder}/{RESULTS}"}
            target = {"predictionsFormat": "jsonl", "gcsDestination": prefix}
        return uri, {"inputConfig": source, "outputConfig": target}

    def find(self, tag: str, hints: FindHints) -> Found | Absent | StatusUnknown:
        """See Provider.find. Reads all pages, and compares the entries that a server's filter returns once more."""
        # the filter's grammar has its own quotes and backslashes
        quoted = tag.replace("\\", "\\\\").replace('"', '\\"')
        query = {"filter": f'displayName="{quoted}"'}
        jobs = self._api.pages(_JOBS, "look for the batch", self._list_names, query)
        return find_among((str(job["name"]) for job in jobs if job.get("displayName") == tag), hints.known)

    def _is_batch(self, answer: Mapping[str, Any]) -> bool:
        return is_job(answer)

    def _read(self, batch_id: str, batch: Mapping[str, Any]) -> BatchReport:
        return read_job(batch_id, batch)

    def _path(self, batch_id: str) -> str:
        return batch_id if batch_id.startswith("projects/") else f"{_JOBS}/{batch_id}"

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        """See Provider.fetch. Every file below the batch's results folder is read, or its results table."""
        job = self._batch(batch_id)
        report = read_job(batch_id, job)
        table, folder = output_of(job)
        if table is not None:
            yield from result_lines(self._tables.lines(table, report), "custom_id", f"the table {table}")
        elif folder is not None:
            id_field = "key" if is_embedding(job.get("model")) else "custom_id"
            yield from self._storage.lines(folder, report, id_field)

    def delete(self, batch_id: str) -> str | None:
        """See DeletesBatches. Deletes the files in your bucket, or the tables; versions that it keeps of them stay."""
        try:
            job = self._batch(batch_id)
        except UnknownIdError:
            return None
        table, uris = inputs_of(job)
        results_table, folder = output_of(job)
        tables = [uri for uri in (table, results_table) if uri is not None]
        # Files of a job that other code sent may be essential to somebody.
        others = [uri for uri in tables if not is_own_table(uri, job)]
        for uri in tables:
            if uri not in others:
                self._tables.delete_table(uri)
        if uris or folder:
            self._storage.delete_objects(uris, folder)
        return f"tables that were not made here stay: {', '.join(others)}" if others else None

    def delete_request_file(self, batch_id: str) -> None:
        """See DeletesRequestFiles: the file in your bucket, or the table, if its place is this provider's."""
        with suppress(UnknownIdError):
            job = self._batch(batch_id)
            table, uris = inputs_of(job)
            if table is not None and is_own_table(table, job) and table.startswith(f"bq://{self._dataset}."):
                self._tables.delete_table(table)
            place = f"gs://{self._bucket}/{self._prefix}{'/' if self._prefix else ''}"
            self._storage.delete_objects([uri for uri in uris if uri.startswith(place)], None)

    def respond(self, line: bytes) -> bytes:
        """See AnswersInRealTime. Returns an HTTP error as the answer, like a batch does; raises for bad credentials."""
        return self._respond(line, None)

    def flex_gap(self, model: str, endpoint: Endpoint) -> str | None:
        """See AnswersInFlex. Vertex AI serves Gemini alone, and at its global endpoint alone."""
        if endpoint is Endpoint.EMBEDDINGS:
            return FLEX_WITHOUT_EMBEDDINGS
        if _is_claude(model):
            return "Vertex AI has the tier 'flex' for Gemini's models, not for Claude."
        if self._location != "global":
            return f"Vertex AI has the tier 'flex' at location='global' alone, not at '{self._location}'."
        return None

    def respond_flex(self, line: bytes) -> bytes:
        """See AnswersInFlex. Vertex AI reads headers, and refuses the Gemini API's field (python-genai issue 2433).

        docs.cloud.google.com/gemini-enterprise-agent-platform/models/flex-paygo: "shared" leaves out throughput that
        was bought beforehand.
        """
        headers = {"X-Vertex-AI-LLM-Request-Type": "shared", "X-Vertex-AI-LLM-Shared-Request-Type": "flex"}
        milliseconds = int(max(self._timeout_seconds, FLEX_SECONDS) * 1000)
        return self._respond(line, {"headers": headers, "timeout": milliseconds})

    def _respond(self, line: bytes, options: HttpOptionsDict | None) -> bytes:
        """Return the answer to a line. `options`: the SDK's for this call."""
        given = json.loads(line)
        verb, request = "rawPredict" if _is_claude(given["model"]) else "generateContent", given["request"]
        id_field = "custom_id"
        if "content" in request:
            id_field, (verb, request) = "key", real_time(request, on_vertex=True)
        status, body, failure = self._api.answer(f"{_model_path(given['model'])}:{verb}", request, options)
        ok = status == HTTPStatus.OK
        answer = {
            "status": "" if ok else f"{_phrase(status)}: {_shown(body)}",
            id_field: given[id_field],
            "request": given["request"],
            "response": body if ok else {},
        }
        return answer_line(answer, failure)

    def console_url(self, batch_id: str) -> str | None:
        """See LinksToConsole. Only at Google's own address."""
        if self._base_url is not None:
            return None
        number = batch_id.rpartition("/")[2]
        page = f"https://console.cloud.google.com/vertex-ai/locations/{self._location}/batch-predictions/{number}"
        return f"{page}?project={self._project}"

    def _client(self) -> Client:
        with importing_sdk("google", f"The provider '{self._name}'"):
            from google.genai import Client  # noqa: PLC0415 -- an optional extra
            from google.genai.types import HttpOptions  # noqa: PLC0415
        options = HttpOptions(api_version="v1", timeout=int(self._timeout_seconds * 1000), base_url=self._base_url)
        return Client(
            vertexai=True,
            project=self._project,
            location=self._location,
            credentials=self._access(),
            http_options=options,
        )

    def _storage_client(self) -> StorageClient:
        with importing_sdk("google", f"The provider '{self._name}'"):
            from google.cloud.storage import Client  # noqa: PLC0415 -- an optional extra
        options = {"api_endpoint": self._storage_url} if self._storage_url else None
        client = Client(project=self._project, credentials=self._access(), client_options=options)
        return _guarded(client, self._timeout_seconds)

    def _tables_client(self) -> TablesClient:
        with importing_sdk("bigquery", f"The provider '{self._name}' with bigquery_dataset"):
            from google.cloud.bigquery import Client  # noqa: PLC0415 -- an optional extra
        options = {"api_endpoint": self._bigquery_url} if self._bigquery_url else None
        client = Client(project=self._project, credentials=self._access(), client_options=options)
        return _guarded(client, self._timeout_seconds)

    def _access(self) -> Any:
        if self._credentials is None:
            import google.auth  # noqa: PLC0415 -- an optional extra

            with self._api.calls("find the application default credentials"):
                self._credentials, _ = google.auth.default(scopes=_SCOPES)
        return self._credentials


def credentials_of(service_account_json: str | None, access_token: str | None) -> Any:
    """Return the credentials of a service account's key, or a ready token; None where neither is given."""
    if service_account_json is None and access_token is None:
        return None
    with importing_sdk("google", "The provider 'vertex'"):
        from google.oauth2 import credentials, service_account  # noqa: PLC0415 -- an optional extra
    if service_account_json is None:
        return credentials.Credentials(token=access_token)
    try:
        info = json.loads(service_account_json)
        return service_account.Credentials.from_service_account_info(info, scopes=_SCOPES)
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(
            "The service account key of provider 'vertex' is no such key. Give the JSON that Google Cloud made, whole."
        ) from None


def secrets_of(service_account_json: str | None, access_token: str | None) -> list[str]:
    """List the secrets that messages must mask: the key, the part of it that signs, the token."""
    secrets = [secret for secret in (service_account_json, access_token) if secret]
    # it is not such a key, and `credentials_of` reports that
    with suppress(ValueError, AttributeError):
        secrets.append(str(json.loads(service_account_json or "{}").get("private_key") or ""))
    return secrets


def _guarded(client: _SdkClient, timeout_seconds: float) -> _SdkClient:
    """Return this client of Cloud Storage or BigQuery; an upload's session is at the address that its start names."""
    # no public argument takes a transport; mounting on this session is the way that the SDK's own documents show
    origin = Origin(client._connection.API_BASE_URL, takes_uploads=True)  # noqa: SLF001
    guard_session(client._http, origin, timeout_seconds)  # noqa: SLF001
    return client


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


def _shown(body: Any) -> str:
    """Return the answer to a failed request, in the form that the vendor writes into a row."""
    try:
        return json.dumps(body)
    except (ValueError, RecursionError):
        return plain_words(body)


def _is_claude(model: str) -> bool:
    return "claude" in model or model.startswith("publishers/anthropic/")


def _is_open(model: str) -> bool:
    if publisher := _PUBLISHER.search(model):
        return publisher[1] not in _PUBLISHERS
    return not (_is_claude(model) or _GOOGLES.match(model) or _OWN_MODEL.match(model))


def _model_path(model: str) -> str:
    if model.startswith(("publishers/", "projects/")):
        return model
    return f"publishers/{'anthropic' if _is_claude(model) else 'google'}/models/{model}"
