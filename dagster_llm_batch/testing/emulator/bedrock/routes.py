"""Bedrock's routes: batch jobs, the real-time Converse and InvokeModel, and Service Quotas as far as batches need them.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_Operations_Amazon_Bedrock.html
Reads report and never move a job. Files are in S3, on the emulator's S3 server. Signatures are not checked; the access
key identifies the account.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from dagster_llm_batch.testing.emulator.bedrock.batches import LIFECYCLE, BedrockJob
from dagster_llm_batch.testing.emulator.bedrock.requests import Request, respond
from dagster_llm_batch.testing.emulator.bedrock.wire import BEDROCK, ApiError, Body, error_body
from dagster_llm_batch.testing.emulator.books import BatchRecord
from dagster_llm_batch.testing.emulator.calls import account_by_key, json_object, serve_calls
from dagster_llm_batch.testing.emulator.lifecycle import IllegalTransitionError
from dagster_llm_batch.testing.emulator.s3 import S3
from dagster_llm_batch.testing.emulator.shared_state import SharedState
from dagster_llm_batch.testing.emulator.vendors import VendorRoutes
from dagster_llm_batch.testing.emulator.wire import App

# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_CreateModelInvocationJob.html
_S3_URI = r"s3://[a-z0-9][-.a-z0-9]{1,61}[a-z0-9](?:/[-!_*'().a-z0-9A-Z]+(?:/[-!_*'().a-z0-9A-Z]+)*)?/?"
_PATTERNS = {
    "jobName": r"[a-zA-Z0-9]{1,63}(-*[a-zA-Z0-9\+\-\.]){0,63}",
    "clientRequestToken": r"[a-zA-Z0-9]{1,256}(-*[a-zA-Z0-9]){0,256}",
    "roleArn": r"arn:aws(-[^:]+)?:iam::([0-9]{12})?:role/.+",
    "modelId": r"(arn:aws(-[^:]+)?:bedrock:.+)"
    r"|([a-z0-9-]{1,63}[.][a-z0-9-]{1,63}([.]?[a-z0-9-]{1,63})([:][a-z0-9-]{1,63}){0,2})"
    r"|(([0-9a-zA-Z][_-]?)+)",
}
_LENGTHS = {"jobName": 63, "clientRequestToken": 256, "roleArn": 2048, "modelId": 2048}
_REQUIRED = ("jobName", "roleArn", "modelId", "inputDataConfig", "outputDataConfig")
_IDENTIFIER = r"(arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:[0-9]{12}:model-invocation-job/)?[a-z0-9]{12}"
_STATES = frozenset(
    [
        "Submitted",
        "InProgress",
        "Completed",
        "Failed",
        "Stopping",
        "Stopped",
        "PartiallyCompleted",
        "Expired",
        "Validating",
        "Scheduled",
    ]
)
_MOST_JOBS, _DEFAULT_JOBS, _MOST_TAGS = 1000, 10, 200
_OK = 200

Handler = Callable[[HttpRequest, str], Awaitable[Response]]


class BedrockRoutes(VendorRoutes):
    """The routes of Bedrock, on the state that the emulated vendors share."""

    title = "Bedrock"
    base_path = BEDROCK
    lifecycle = LIFECYCLE

    def __init__(self, shared: SharedState) -> None:
        super().__init__(shared)
        self._s3 = None if shared.s3_url is None else S3(shared.s3_url)
        self._jobs: dict[str, BedrockJob] = {}

    def apps(self) -> Mapping[str, App]:
        """See VendorRoutes."""
        return {BEDROCK: self._app()}

    def error_body(self, status: int, message: str | None, *, code: str | None) -> Body:
        """See VendorRoutes."""
        return error_body(status, message, code=code)

    def exports(self, url: str, key: str) -> Mapping[str, str]:
        """See VendorRoutes."""
        return {
            "AWS_ENDPOINT_URL_BEDROCK": f"{url}{self.base_path}",
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": f"{url}{self.base_path}",
            "AWS_ENDPOINT_URL_SERVICE_QUOTAS": f"{url}{self.base_path}",
            **({"AWS_ENDPOINT_URL_S3": self._shared.s3_url} if self._shared.s3_url else {}),
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": "emulator",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def remark(self, url: str) -> str:
        """See VendorRoutes."""
        del url
        s3_url = self._shared.s3_url
        return f", its files in {s3_url}" if s3_url else ", its files nowhere: give --s3-url or --all"

    def _app(self) -> Starlette:
        table: tuple[tuple[str, str, Handler], ...] = (
            ("POST", BEDROCK, self._quotas),
            ("POST", f"{BEDROCK}/model-invocation-job", self._create),
            ("GET", f"{BEDROCK}/model-invocation-jobs", self._list),
            ("POST", f"{BEDROCK}/model-invocation-job/{{id:path}}/stop", self._stop),
            ("GET", f"{BEDROCK}/model-invocation-job/{{id:path}}", self._get),
            ("POST", f"{BEDROCK}/model/{{model:path}}/converse", self._converse),
            ("POST", f"{BEDROCK}/model/{{model:path}}/invoke", self._invoke),
        )
        return serve_calls(
            table,
            account_by_key(self._shared, _refuse_key),
            _refuse_path,
            new_call_id=partial(self._shared.new_id, "", "call"),
            id_header="x-amzn-RequestId",
        )

    def close(self) -> None:
        """Release the results of jobs."""
        for job in self._jobs.values():
            job.close()

    async def _create(self, request: HttpRequest, account: str) -> Response:
        body = await _json(request)
        _check(body)
        if (known := self._shared.limits.known_models) is not None and body["modelId"] not in known:
            raise ApiError(400, "The provided model identifier is invalid.")
        token = body.get("clientRequestToken")
        for job in list(self._jobs.values()):
            if token is not None and job.record.account == account and job.body.get("clientRequestToken") == token:
                # a repeated token is ignored without an error; whether the first ARN comes back is not documented
                if {**job.body} != {**body}:
                    raise ApiError(409, "The client request token was used with other parameters.")
                return JSONResponse({"jobArn": job.record.id})
        live = sum(not job.life.ended for job in self._jobs.values() if job.record.account == account)
        most = self._shared.limits.bedrock_jobs
        if most is not None and live >= most:
            text = f"The number of in-progress and submitted batch inference jobs is at its limit of {most}."
            raise ApiError(400, text, "ServiceQuotaExceededException")
        region = _region(request)
        owner = re.fullmatch(_PATTERNS["roleArn"], body["roleArn"])
        owner_id = (owner and owner[2]) or "123456789012"
        record = BatchRecord(
            id=f"arn:aws:bedrock:{region}:{owner_id}:model-invocation-job/{self._shared.new_id('', 'job')[-12:]}",
            ordinal=len(self._jobs),
            account=account,
            endpoint=body["modelId"],
            input_file_id=body["inputDataConfig"]["s3InputDataConfig"]["s3Uri"],
            metadata={"jobName": body["jobName"], "clientRequestToken": token or ""},
            created_at=int(self._shared.clock()),
        )
        job = BedrockJob(self._shared, self._s3, record, body)
        self._jobs[record.id] = job
        self._shared.books.write(record)
        self._shared.mover.add(job)
        return JSONResponse({"jobArn": record.id})

    async def _get(self, request: HttpRequest, account: str) -> Response:
        return JSONResponse(self._job(request, account).as_json())

    async def _stop(self, request: HttpRequest, account: str) -> Response:
        job = self._job(request, account)
        if job.life.state != "Stopping":
            try:
                job.life.move("cancel", self._shared.clock())
            except IllegalTransitionError:
                raise ApiError(409, f"The job cannot be stopped in the state {job.life.state}.") from None
        return JSONResponse({})

    def _job(self, request: HttpRequest, account: str) -> BedrockJob:
        given = request.path_params["id"]
        if not re.fullmatch(_IDENTIFIER, given):
            raise ApiError(400, f"Value '{given}' at 'jobIdentifier' failed to satisfy its regular expression pattern.")
        if "/" in given and "%2F" not in request.scope.get("emulator.raw_path", "%2F").upper():
            raise ApiError(
                404, "The ARN must be one segment of the path, percent-encoded.", "UnknownOperationException"
            )
        for arn, job in self._jobs.items():
            if given in (arn, arn.rsplit("/", 1)[-1]) and job.record.account == account:
                return job
        raise ApiError(404, "The provided job identifier is not found.")

    async def _list(self, request: HttpRequest, account: str) -> Response:
        asked = request.query_params
        most, state = asked.get("maxResults", str(_DEFAULT_JOBS)), asked.get("statusEquals")
        if not most.isdigit() or not 1 <= int(most) <= _MOST_JOBS or (state is not None and state not in _STATES):
            raise ApiError(400, "maxResults or statusEquals failed to satisfy constraint.")
        jobs = [job for job in self._jobs.values() if job.record.account == account]
        if (name := asked.get("nameContains")) is not None:
            jobs = [job for job in jobs if name in job.body["jobName"]]
        if state is not None:
            jobs = [job for job in jobs if job.life.state == state]
        for word, keeps in (("submitTimeAfter", 1), ("submitTimeBefore", -1)):
            if (given := asked.get(word)) is not None:
                at = datetime.fromisoformat(given).timestamp()
                jobs = [job for job in jobs if (job.created_at - at) * keeps >= 0]
        if asked.get("sortOrder", "Descending") == "Descending":
            jobs.reverse()
        start = int(asked.get("nextToken", "t0")[1:])
        page = [job.as_json() for job in jobs[start : start + int(most)]]
        more = {"nextToken": f"t{start + len(page)}"} if start + len(page) < len(jobs) else {}
        return JSONResponse({"invocationJobSummaries": page, **more})

    async def _converse(self, request: HttpRequest, account: str) -> Response:
        return await self._real_time(request, account, converse=True)

    async def _invoke(self, request: HttpRequest, account: str) -> Response:
        return await self._real_time(request, account, converse=False)

    async def _real_time(self, request: HttpRequest, account: str, *, converse: bool) -> Response:
        model = request.path_params["model"]
        if (known := self._shared.limits.known_models) is not None and model not in known:
            raise ApiError(400, "The provided model identifier is invalid.")
        body = await _json(request)
        # ServiceTier is a field of ConverseRequest, and a header of InvokeModelRequest; the answers have it there too.
        asked = (body.get("serviceTier") or {}).get("type") if converse else request.headers.get(_TIER_HEADER)
        if asked == "flex" and not self._shared.flex.has_room():
            raise ApiError(429, "Too many requests, please wait before trying again.", "ThrottlingException")
        one = Request(account=account, model=model, converse=converse, body=body)
        status, answer, _ = await asyncio.to_thread(respond, self._shared, one)
        if status != _OK or isinstance(answer, str):
            raise ApiError(status, str(answer))
        named = self._shared.flex.name("flex") if asked == "flex" else None
        if named is None:
            return JSONResponse(answer)
        if converse:
            return JSONResponse({**answer, "serviceTier": {"type": named}})
        return JSONResponse(answer, headers={_TIER_HEADER: named})

    async def _quotas(self, request: HttpRequest, account: str) -> Response:
        """https://docs.aws.amazon.com/servicequotas/2019-06-24/apireference/API_ListServiceQuotas.html"""
        del account
        if request.headers.get("x-amz-target") != "ServiceQuotasV20190624.ListServiceQuotas":
            raise ApiError(400, "This operation is not emulated.", "UnknownOperationException")
        body = await _json(request)
        if body.get("ServiceCode") != "bedrock":
            raise ApiError(400, "The service does not exist.", "NoSuchResourceException")
        quotas = list(self._shared.limits.bedrock_quotas.items())
        start, most = int(body.get("NextToken", "0")), int(body.get("MaxResults", 100))
        page = [{"ServiceCode": "bedrock", "QuotaName": name, "Value": value} for name, value in quotas[start:][:most]]
        more = {"NextToken": str(start + most)} if start + most < len(quotas) else {}
        return JSONResponse({"Quotas": page, **more}, media_type="application/x-amz-json-1.1")


_TIER_HEADER = "X-Amzn-Bedrock-Service-Tier"


def _check(body: Body) -> None:
    for name in _REQUIRED:
        if body.get(name) in (None, ""):
            raise ApiError(400, f"1 validation error detected: Value at '{name}' must not be null.")
    for name, pattern in _PATTERNS.items():
        value = body.get(name)
        if value is not None and (len(value) > _LENGTHS[name] or not re.fullmatch(pattern, value)):
            raise ApiError(
                400, f"1 validation error detected: Value '{value}' at '{name}' failed to satisfy constraint: {pattern}"
            )
    for config, inner in (("inputDataConfig", "s3InputDataConfig"), ("outputDataConfig", "s3OutputDataConfig")):
        uri = body[config].get(inner, {}).get("s3Uri") if isinstance(body[config], dict) else None
        if not isinstance(uri, str) or not re.fullmatch(_S3_URI, uri):
            raise ApiError(400, f"1 validation error detected: Value '{uri}' at '{config}.{inner}.s3Uri'.")
    hours = body.get("timeoutDurationInHours", 24)
    if not isinstance(hours, int) or not 24 <= hours <= 168:  # noqa: PLR2004 -- documented range
        raise ApiError(400, "timeoutDurationInHours must be from 24 to 168.")
    if body.get("modelInvocationType", "InvokeModel") not in ("InvokeModel", "Converse"):
        raise ApiError(400, "modelInvocationType must be InvokeModel or Converse.")
    if len(body.get("tags", ())) > _MOST_TAGS:
        raise ApiError(400, f"At most {_MOST_TAGS} tags are allowed.")


def _refuse_key(_key: str | None) -> ApiError:
    return ApiError(403, "The security token included in the request is invalid.", "UnrecognizedClientException")


def _refuse_path(request: HttpRequest, status: int) -> ApiError:
    return ApiError(status, f"No operation {request.method} {request.url.path}.", "UnknownOperationException")


async def _json(request: HttpRequest) -> Body:
    text = "Malformed input request, please reformat your input and try again."
    return json_object(await request.body(), ApiError(400, text))


def _region(request: HttpRequest) -> str:
    scope = re.search(
        r"Credential=[^/]+/\d{8}/([a-z0-9-]+)/bedrock/aws4_request", request.headers.get("authorization", "")
    )
    if scope is None:
        raise ApiError(403, "Credential should be scoped to the service: 'bedrock'.", "InvalidSignatureException")
    return scope[1]
