"""Vertex AI's routes: batch prediction jobs and, in real time, generateContent and rawPredict.

https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.batchPredictionJobs
Reads report and never move a job. For the objects of another account or project, the answer is "not found".
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from dagster_llm_batch.testing.emulator.books import BatchRecord
from dagster_llm_batch.testing.emulator.flex import FlexTier
from dagster_llm_batch.testing.emulator.gcs import Storage
from dagster_llm_batch.testing.emulator.google.bigquery import BIGQUERY, BigQueryRoutes, Tables
from dagster_llm_batch.testing.emulator.google.requests import Request, respond
from dagster_llm_batch.testing.emulator.google.routes import Handler, cloud_caller, google_app, json_body, page
from dagster_llm_batch.testing.emulator.google.vertex_batches import LIFECYCLE, VertexJob
from dagster_llm_batch.testing.emulator.google.wire import VERTEX, ApiError, Body, error_body, rfc3339
from dagster_llm_batch.testing.emulator.lifecycle import IllegalTransitionError
from dagster_llm_batch.testing.emulator.shared_state import SharedState
from dagster_llm_batch.testing.emulator.vendors import VendorRoutes
from dagster_llm_batch.testing.emulator.wire import App

_PARENT = "projects/{project}/locations/{location}"
_ROOT = f"{VERTEX}/{{version}}/{_PARENT}"
_FILTER = re.compile(r'\s*(?:displayName|display_name)\s*=\s*"((?:[^"\\]|\\.)*)"\s*')
_LABEL = re.compile(r"[a-z0-9_-]{0,63}")


class VertexRoutes(VendorRoutes):
    """The routes of Vertex AI. Files are on the emulator's Cloud Storage server, or in tables of BigQuery."""

    title = "Vertex AI"
    base_path = VERTEX
    lifecycle = LIFECYCLE

    def __init__(self, shared: SharedState) -> None:
        super().__init__(shared)
        self._tables = Tables()
        self._storage = None if shared.gcs_url is None else Storage(shared.gcs_url)
        self._jobs: dict[str, VertexJob] = {}

    def apps(self) -> Mapping[str, App]:
        """See VendorRoutes."""
        return {VERTEX: self._app(), BIGQUERY: BigQueryRoutes(self._shared, self._tables).app()}

    def error_body(self, status: int, message: str | None, *, code: str | None) -> Body:
        """See VendorRoutes."""
        return error_body(status, message, code=code)

    def exports(self, url: str, key: str) -> Mapping[str, str]:
        """See VendorRoutes. Credentials are Google Cloud's, and not a key."""
        del key
        return {
            "GOOGLE_VERTEX_BASE_URL": f"{url}{self.base_path}",
            "BIGQUERY_EMULATOR_HOST": f"{url}{BIGQUERY}",
            **({"STORAGE_EMULATOR_HOST": self._shared.gcs_url} if self._shared.gcs_url else {}),
        }

    def remark(self, url: str) -> str:
        """See VendorRoutes."""
        del url
        gcs_url = self._shared.gcs_url
        return f", its files in {gcs_url}" if gcs_url else ", its files nowhere: give --gcs-url or --all"

    def close(self) -> None:
        """See VendorRoutes. Does nothing, since results are written only when a batch ends."""

    def _app(self) -> Starlette:
        jobs, model = f"{_ROOT}/batchPredictionJobs", f"{_ROOT}/publishers/{{publisher}}/models/{{model}}"
        table: tuple[tuple[str, str, Handler], ...] = (
            ("POST", jobs, self._create),
            ("GET", jobs, self._list),
            ("POST", f"{jobs}/{{id}}:cancel", self._cancel),
            ("GET", f"{jobs}/{{id}}", self._get),
            ("DELETE", f"{jobs}/{{id}}", self._delete),
            ("POST", f"{model}:generateContent", self._real_time),
            ("POST", f"{model}:rawPredict", self._real_time),
            ("POST", f"{model}:embedContent", self._real_time),
        )
        return google_app(table, cloud_caller(self._shared))

    async def _create(self, request: HttpRequest, account: str) -> Response:
        body = await json_body(request)
        given = request.path_params
        for path in ("displayName", "model", "inputConfig.instancesFormat", "outputConfig.predictionsFormat"):
            value = _at(body, path)
            if not isinstance(value, str) or not value:
                raise ApiError(400, f"Required field is not set: batch_prediction_job.{path}")
        uri = _source(body)
        if any(not _LABEL.fullmatch(str(value)) for value in (body.get("labels") or {}).values()):
            raise ApiError(400, "Label values can be lowercase letters, digits, underscores and dashes, 63 at most.")
        model = body["model"].rpartition("/")[2]
        known = self._shared.limits.known_models
        if known is not None and model not in known:
            raise ApiError(404, f"Publisher Model `{body['model']}` not found.")
        if "/anthropic/" in body["model"] and given["location"] == "global":
            raise ApiError(400, "Batch prediction of this model is not supported at the global location.")
        number = int(self._shared.new_id("", "job")[:15], 16)
        parent = _PARENT.format(project=given["project"], location=given["location"])
        record = BatchRecord(
            id=f"{parent}/batchPredictionJobs/{number}",
            ordinal=len(self._shared.books.batches),
            account=account,
            endpoint="batchPredictionJobs",
            input_file_id=uri,
            metadata={"displayName": body["displayName"]},
            created_at=int(self._shared.clock()),
        )
        job = VertexJob(self._shared, self._storage, self._tables, record, body)
        self._jobs[record.id] = job
        self._shared.books.write(record)
        reply = job.as_json()
        self._shared.mover.add(job)
        return JSONResponse(reply)

    async def _list(self, request: HttpRequest, account: str) -> Response:
        parent = _PARENT.format(**{name: request.path_params[name] for name in ("project", "location")})
        mine = [job for job in self._jobs.values() if job.record.account == account]
        mine = [job for job in mine if job.record.id.startswith(f"{parent}/")]
        wanted = request.query_params.get("filter")
        if wanted:
            match = _FILTER.fullmatch(wanted)
            if match is None:
                raise ApiError(400, f"Invalid filter: {wanted}")
            name = re.sub(r"\\(.)", r"\1", match[1])
            mine = [job for job in mine if job.body["displayName"] == name]
        return JSONResponse(page(request, [job.as_json() for job in mine], "batchPredictionJobs"))

    async def _get(self, request: HttpRequest, account: str) -> Response:
        return JSONResponse(self._job(request, account).as_json())

    async def _cancel(self, request: HttpRequest, account: str) -> Response:
        job = self._job(request, account)
        try:
            job.life.move("cancel", self._shared.clock())
        except IllegalTransitionError:
            text = f"Job cannot be cancelled in the state {job.life.state}."
            raise ApiError(400, text, name="FAILED_PRECONDITION") from None
        return JSONResponse({})

    async def _delete(self, request: HttpRequest, account: str) -> Response:
        job = self._job(request, account)
        del self._jobs[job.record.id]
        return JSONResponse({"name": f"{job.record.id}/operations/1", "done": True})

    async def _real_time(self, request: HttpRequest, account: str) -> Response:
        body = await json_body(request)
        flex = self._flex_of(request, body)
        one = Request(account=account, model=request.path_params["model"], body=body)
        status, answer = await asyncio.to_thread(respond, self._shared, one)
        if flex is not None and status == HTTPStatus.OK:
            answer["usageMetadata"]["trafficType"] = flex.name("ON_DEMAND_FLEX")
        if "embedding" in answer:
            answer["usageMetadata"] = {"promptTokenCount": answer.pop("tokenCount")}
        if status == 200 and "candidates" in answer:  # noqa: PLR2004 -- HTTP
            answer["createTime"] = rfc3339(self._shared.clock())
        return JSONResponse(answer, status)

    def _flex_of(self, request: HttpRequest, body: Body) -> FlexTier | None:
        """Return the tier if a call asks for it, by header and at the global endpoint. Refuses a lack of capacity.

        https://docs.cloud.google.com/gemini-enterprise-agent-platform/models/flex-paygo
        """
        if (named := body.get("serviceTier")) is not None:
            raise ApiError(400, f"Invalid value at 'service_tier', \"{named}\"")
        if request.headers.get("x-vertex-ai-llm-shared-request-type") != "flex":
            return None
        if request.path_params["location"] != "global":
            raise ApiError(400, "Flex PayGo is supported at the global endpoint only.")
        if not self._shared.flex.has_room():
            raise ApiError(429, "Resource exhausted. Please try again later.")
        return self._shared.flex

    def _job(self, request: HttpRequest, account: str) -> VertexJob:
        name = f"{_PARENT}/batchPredictionJobs/{{id}}".format(**request.path_params)
        job = self._jobs.get(name)
        if job is None or job.record.account != account:
            raise ApiError(404, f"The BatchPredictionJob does not exist: {name}")
        return job


def _source(body: Body) -> str:
    """Return where the requests are; input and output are both in Cloud Storage, or both in BigQuery."""
    if _at(body, "inputConfig.instancesFormat") == "bigquery":
        uri, output = _at(body, "inputConfig.bigquerySource.inputUri"), "outputConfig.bigqueryDestination.outputUri"
        prefix = "bq://"
    else:
        uris = _at(body, "inputConfig.gcsSource.uris")
        uri = uris[0] if isinstance(uris, list) and len(uris) == 1 else None
        output, prefix = "outputConfig.gcsDestination.outputUriPrefix", "gs://"
    if not isinstance(uri, str) or not uri.startswith(prefix) or not str(_at(body, output)).startswith(prefix):
        raise ApiError(400, f"The emulator takes one input and an output of one kind, here both at {prefix}.")
    return uri


def _at(body: Body, path: str) -> object:
    value: object = body
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
