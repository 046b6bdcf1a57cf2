"""Batch inference on Amazon Bedrock (`CreateModelInvocationJob`) through boto3. Requests and results are files in S3.

    s3://<bucket>/<prefix>/<tag>/requests.jsonl          written before the job is created
    s3://<bucket>/<prefix>/<tag>/results/<job id>/…      written by Bedrock

The tag is the job's name and its `clientRequestToken`, so a repeated create call makes no second job. It runs once all
the same, with the SDK's retries off: the answer to a repeated token is not documented. `find` lists jobs by name and
compares the token. After a failed job, the next one of the tag has a number after it.

Uploads go in parts and downloads in pieces, at constant memory. A process killed while it uploads leaves parts behind
that a lifecycle rule of the bucket (`AbortIncompleteMultipartUpload`) should remove.

Rejects a batch below the model's minimum of records before anything is sent: Bedrock itself accepts such a job and
fails it later.

https://docs.aws.amazon.com/bedrock/latest/userguide/batch-inference.html
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from typing import Any, BinaryIO

from dagster_llm_batch.core.address_secrets import refuse_credentials, secret_parts
from dagster_llm_batch.errors import (
    AmbiguousError,
    ConfigError,
    CredentialsError,
    LLMBatchError,
    ProviderError,
    TransientError,
)
from dagster_llm_batch.providers.answers import OddAnswerError, UnknownIdError, answer_line, created_id, json_object
from dagster_llm_batch.providers.base import FLEX_SECONDS, VendorProvider
from dagster_llm_batch.providers.bedrock.batches import add_counts, input_of, is_job_id, job_name, page_jobs, read_job
from dagster_llm_batch.providers.bedrock.clients import Clients, found_secrets
from dagster_llm_batch.providers.bedrock.errors import is_answer, is_of_aws
from dagster_llm_batch.providers.bedrock.files import Files, records
from dagster_llm_batch.providers.bedrock.models import Family, family_of
from dagster_llm_batch.providers.bedrock.quotas import BEDROCK_LIMITS, limits_from
from dagster_llm_batch.providers.bedrock.requests import BedrockLines
from dagster_llm_batch.providers.http import check_address, importing_sdk
from dagster_llm_batch.providers.paging import find_among, poll_batches, unrepeated
from dagster_llm_batch.providers.registry import PROVIDERS
from dagster_llm_batch.providers.secrets import masked
from dagster_llm_batch.providers.time_limits import limit_pools
from dagster_llm_batch.text import is_id
from dagster_llm_batch.types import (
    Absent,
    BatchLimits,
    BatchReport,
    BatchStatus,
    Endpoint,
    FindHints,
    Found,
    RequestSpec,
    StatusUnknown,
)

__all__ = ["BedrockProvider"]

_ROLE = re.compile(r"arn:aws(?:-[^:]+)?:iam::(?P<account>[0-9]{12})?:role/.+")
_S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][-.a-z0-9]{1,61}[a-z0-9])(?:/(?P<prefix>[-!_*'().a-zA-Z0-9/]*))?")
# The client for the tier "flex": bedrock-runtime with a longer time limit.
_SLOW_RUNTIME = "bedrock-runtime in flex"

# the least that S3 takes, and of these 10,000
_PART_BYTES = 5 << 20
# the most that one list call gives
_PAGE = 1_000
_HOURS = range(24, 169)
_SECRETS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


@masked
class BedrockProvider(VendorProvider):
    """Batches in one AWS account and region. The constructor makes no call; it imports boto3 only to find the region.

    `role_arn` is the service role that Bedrock takes on; `s3_uri` a folder that role and caller can read and write.
    `client_options` go to each boto3 client (`use_ssl`, `verify`), `session_options` to the session (`profile_name`,
    `aws_access_key_id`, …). `families` names the form of request for models whose id does not show it, or "converse"
    for models that should go through Converse. Limits are read from Service Quotas, if `read_quotas` and the caller
    may; `min_requests` is for models without a quota there.
    """

    def __init__(
        self,
        region_name: str | None,
        role_arn: str,
        s3_uri: str,
        *,
        session_options: Mapping[str, Any] | None = None,
        client_options: Mapping[str, Any] | None = None,
        endpoint_url: str | None = None,
        runtime_endpoint_url: str | None = None,
        s3_endpoint_url: str | None = None,
        quotas_endpoint_url: str | None = None,
        max_attempts: int = 5,
        timeout_seconds: float = 120.0,
        timeout_hours: int = 24,
        kms_key_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        families: Mapping[str, str] | None = None,
        min_requests: int = BEDROCK_LIMITS.min_requests,
        read_quotas: bool = True,
        account: str | None = None,
        name: str = "bedrock",
        settle_seconds: float = 300.0,
    ) -> None:
        role, place = _ROLE.fullmatch(role_arn), _S3.fullmatch(s3_uri)
        if role is None:
            raise ConfigError(f"role_arn {role_arn!r} is no role; it looks like 'arn:aws:iam::123456789012:role/NAME'.")
        if place is None:
            refuse_credentials(s3_uri, "s3_uri")
            raise ConfigError(
                f"s3_uri {s3_uri!r} is no place in S3 that Bedrock takes; it looks like 's3://bucket/folder', with "
                "letters, digits and -!_*'(). only."
            )
        if timeout_hours not in _HOURS:
            raise ConfigError(f"timeout_hours is {timeout_hours}; Bedrock takes {_HOURS.start} to {_HOURS.stop - 1}.")
        try:
            self._families = {model: Family(word) for model, word in (families or {}).items()}
        except ValueError as error:
            allowed = ", ".join(f"'{family.value}'" for family in Family)
            raise ConfigError(f"families: {error}; the forms of request are {allowed}.") from None
        self._session: Any = None
        # before the base has it: an error on the way to the region names the provider
        self._name = name
        self._session_options = {"region_name": region_name, **(session_options or {})}
        region_name = region_name or self._aws().region_name
        if not region_name:
            raise ConfigError("Bedrock needs a region, such as 'us-east-1': give region_name, or set AWS_REGION.")
        self._role_arn = role_arn
        self._hours = timeout_hours
        self.window = timedelta(hours=timeout_hours)
        self._tags = dict(tags or {})
        self._defaults = replace(BEDROCK_LIMITS, min_requests=min_requests)
        self._reads_quotas = read_quotas
        self._region = region_name
        self._public = endpoint_url is None
        host = f"bedrock.{region_name}.amazonaws.com"
        if endpoint_url is not None:
            host = check_address(endpoint_url, "endpoint_url").netloc
        account = f"{host}/{role['account'] or ''}" if account is None else account
        # the price book has no batch prices of Bedrock: half of the standard ones, as documented
        super().__init__(name, account, PROVIDERS["bedrock"].price_book, settle_seconds)
        self._timeout_seconds = timeout_seconds
        self._client_options = dict(client_options or {})
        self._endpoints = {
            "bedrock": endpoint_url,
            "bedrock-runtime": runtime_endpoint_url or endpoint_url,
            "s3": s3_endpoint_url,
            "service-quotas": quotas_endpoint_url,
        }
        for service, url in self._endpoints.items():
            if url is not None:
                check_address(url, f"endpoint of {service}")
        self._clients = Clients(self._client, max_attempts, self._place, self._secrets)
        self._files = Files(self._clients, place["bucket"], place["prefix"] or "", kms_key_id)
        self._quotas: list[Mapping[str, Any]] | None = None

    def _secrets(self) -> list[str]:
        given = [str(value) for word, value in self._session_options.items() if word in _SECRETS and value]
        return [*given, *found_secrets(self._session), *secret_parts(*self._endpoints.values())]

    def codec(self, spec: RequestSpec) -> BedrockLines:
        """See Provider.codec."""
        return BedrockLines(spec, self._family(spec.model), lambda: self.limits(spec.model))

    def _family(self, model: str) -> Family:
        return self._families.get(model) or family_of(model)

    def limits(self, model: str) -> BatchLimits:
        """Return the limits of one batch of the model: the account's quotas, else the defaults. Read once."""
        if self._quotas is None:
            self._quotas = self._read_quotas() if self._reads_quotas else []
        return limits_from(self._quotas, model, self._defaults)

    def _read_quotas(self) -> list[Mapping[str, Any]]:
        try:
            with self._clients.calls("read the quotas"):
                pages = self._clients.of("service-quotas", attempts=2).get_paginator("list_service_quotas")
                return [quota for page in pages.paginate(ServiceCode="bedrock") for quota in page.get("Quotas", ())]
        except ProviderError:
            # many may not read them; the defaults are documented
            return []

    # Submit

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        """See Provider.submit. Raises RefusedError, with nothing sent, for fewer records than the model's minimum."""
        with records(lines, self.codec(spec)) as source:
            self._files.upload(source, tag, self._transfer_config())
        try:
            return self._create(spec, tag)
        except AmbiguousError:
            raise
        except ProviderError:
            self._files.forget(tag)
            raise

    def _create(self, spec: RequestSpec, tag: str) -> str:
        converse = self._family(spec.model) is Family.CONVERSE
        name = job_name(tag)
        # A repeated token is ignored without an error: after a job that failed, the same name would make no new one.
        failed = sum(read_job(job).status is BatchStatus.FAILED for job in self._jobs_of(tag))
        name = f"{name}-{failed + 1}" if failed else name
        client = self._clients.of("bedrock", attempts=1)
        with self._clients.calls("create the batch", creating=True):
            reply = client.create_model_invocation_job(
                jobName=name,
                clientRequestToken=name,
                roleArn=self._role_arn,
                modelId=spec.model,
                modelInvocationType="Converse" if converse else "InvokeModel",
                inputDataConfig={"s3InputDataConfig": {"s3Uri": self._files.source(tag), "s3InputFormat": "JSONL"}},
                outputDataConfig={"s3OutputDataConfig": self._files.output(tag)},
                timeoutDurationInHours=self._hours,
                tags=[{"key": word, "value": value} for word, value in sorted(self._tags.items())],
            )
        arn = reply.get("jobArn")
        return created_id(arn)

    def find(self, tag: str, hints: FindHints) -> Found | Absent | StatusUnknown:
        """See Provider.find. Lists every job of the name; the token or the input file identifies ours."""
        # the list's filter is "contains", so a longer name passes it too: `_jobs_of` compares tokens as a whole
        return find_among((str(job["jobArn"]) for job in self._jobs_of(tag)), hints.known)

    def _jobs_of(self, tag: str) -> Iterator[Mapping[str, Any]]:
        """Yield the jobs that were ever created for this tag."""
        name, source = job_name(tag), self._files.source(tag)
        own = re.compile(rf"{re.escape(name)}(-[0-9]+)?")
        with self._clients.calls("look for the batch"):
            pages = self._clients.of("bedrock").get_paginator("list_model_invocation_jobs")
            listed = map(page_jobs, pages.paginate(nameContains=name))
            for page in unrepeated(listed, lambda job: str(job["jobArn"])):
                for job in page:
                    token = job.get("clientRequestToken")
                    known_by = job.get("jobName", "") if token is None and input_of(job) == source else token or ""
                    if own.fullmatch(known_by):
                        yield job

    # Poll and fetch

    def poll(self, batch_ids: Sequence[str]) -> Mapping[str, BatchReport]:
        """See Provider.poll. A few are read one by one; of many, as many as possible from list pages."""
        return poll_batches(batch_ids, self._list_reports, lambda batch_id: self._counted(self._report(batch_id)))

    def _list_reports(self, wanted: Collection[str]) -> Iterator[tuple[str, BatchReport]]:
        with self._clients.calls("list the batches"):
            pages = self._clients.of("bedrock").get_paginator("list_model_invocation_jobs")
            newest = {"sortBy": "CreationTime", "sortOrder": "Descending", "PaginationConfig": {"PageSize": _PAGE}}
            for page in islice(pages.paginate(**newest), len(wanted) // 100 + 1):
                for report in (read_job(job) for job in page_jobs(page) if job["jobArn"] in wanted):
                    # an end without counts is left to the single read, which looks for the manifest
                    if not report.status.is_terminal or report.done is not None:
                        yield report.batch_id, report

    def _read_report(self, batch_id: str) -> BatchReport:
        return replace(read_job(self._job(batch_id)), batch_id=batch_id)

    def _report(self, batch_id: str) -> BatchReport:
        report = super()._report(batch_id)
        is_gone = report.status is BatchStatus.NOT_FOUND
        return replace(report, reason="Bedrock does not find this job, or no longer.") if is_gone else report

    def _job(self, batch_id: str) -> Mapping[str, Any]:
        if not is_job_id(batch_id):
            raise UnknownIdError(f"{batch_id!r} is no job of Bedrock: it has neither the form of an ARN nor of an id.")
        with self._clients.calls(f"read the batch '{batch_id}'"):
            job: Mapping[str, Any] = self._clients.of("bedrock").get_model_invocation_job(jobIdentifier=batch_id)
        if not is_id(job.get("jobArn")) or not isinstance(job.get("status"), str):
            raise TransientError(f"Could not read the batch '{batch_id}': the answer is no job.")
        return job

    def _counted(self, report: BatchReport) -> BatchReport:
        """Return the report with the counts of the manifest, if the job itself has no counts."""
        if not report.status.is_terminal or report.status is BatchStatus.FAILED or report.done is not None:
            return report
        try:
            return add_counts(report, self._files.manifest(self._job(report.batch_id)))
        except ProviderError:
            return report

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        """See Provider.fetch. Reads every output file in the job's own folder, even if the job failed."""
        job = self._job(batch_id)
        yield from self._files.results(job, read_job(job))

    def _stop(self, batch_id: str) -> None:
        with self._clients.calls(f"stop the batch '{batch_id}'"):
            reply = self._clients.of("bedrock").stop_model_invocation_job(jobIdentifier=batch_id)
            # The answer is empty: only its request id shows that it is AWS's.
            if not is_of_aws(reply):
                raise OddAnswerError("the answer is not one of AWS.")

    def delete(self, batch_id: str) -> None:
        """See DeletesBatches. Deletes the files in your bucket; if it keeps versions of objects, the versions stay."""
        with suppress(UnknownIdError):
            job = self._job(batch_id)
            self._files.delete(job, input_of(job))

    def delete_request_file(self, batch_id: str) -> None:
        """See DeletesRequestFiles: the file in your bucket, if it is below the prefix of this provider."""
        with suppress(UnknownIdError):
            self._files.delete_source(input_of(self._job(batch_id)))

    def respond(self, line: bytes) -> bytes:
        """See AnswersInRealTime. Returns an HTTP error as the answer, like a batch does; raises for bad credentials."""
        return self._respond(line, None)

    def flex_gap(self, model: str, endpoint: Endpoint) -> str | None:
        """See AnswersInFlex. AWS lists the models on aws.amazon.com/bedrock/service-tiers; no API names them."""
        del model
        return "Bedrock has the tier 'flex' for texts, not for embeddings." if endpoint is Endpoint.EMBEDDINGS else None

    def respond_flex(self, line: bytes) -> bytes:
        """See AnswersInFlex. botocore has the tier as `serviceTier` of Converse, and as a header of InvokeModel."""
        return self._respond(line, "flex")

    def _respond(self, line: bytes, tier: str | None) -> bytes:
        record = json.loads(line)
        model, body = record["modelId"], record["modelInput"]
        family = self._family(model)
        answer: dict[str, Any] = {"recordId": record["recordId"], "modelInput": body}
        try:
            answer["modelOutput"] = (
                self._converse(model, body, tier) if family is Family.CONVERSE else self._invoke(model, body, tier)
            )
        except LLMBatchError:
            raise
        except Exception as error:  # noqa: BLE001 -- the SDK raises what it likes
            failure, status = self._clients.translated(error, "get an answer"), is_answer(error)
            if status is None or isinstance(failure, CredentialsError):
                raise failure from None
            answer["error"] = {"errorCode": status, "errorMessage": str(failure)}
        return answer_line(answer)

    def _runtime(self, tier: str | None) -> Any:
        """Return the client for answers: with the time limit of the tier, and without repeats."""
        return self._clients.of("bedrock-runtime" if tier is None else _SLOW_RUNTIME, attempts=1)

    def _invoke(self, model: str, body: Mapping[str, Any], tier: str | None) -> Any:
        data = json.dumps(body).encode()
        more = {} if tier is None else {"serviceTier": tier}
        reply = self._runtime(tier).invoke_model(
            modelId=model, body=data, contentType="application/json", accept="application/json", **more
        )
        answer = json_object(reply["ResponseMetadata"]["HTTPHeaders"], reply["body"].read())
        # A header names the tier that served the call. It is stored with the answer, in the form of Converse.
        named = reply.get("serviceTier")
        return answer if named is None or tier is None else {**answer, "serviceTier": {"type": named}}

    def _converse(self, model: str, body: Mapping[str, Any], tier: str | None) -> Any:
        parameters = json.loads(json.dumps(body), object_hook=_with_bytes)
        more = {} if tier is None else {"serviceTier": {"type": tier}}
        reply = self._runtime(tier).converse(modelId=model, **parameters, **more)
        if not isinstance(reply.get("output"), dict):
            raise OddAnswerError("the answer holds no output.")
        return {name: value for name, value in reply.items() if name != "ResponseMetadata"}

    def console_url(self, batch_id: str) -> str | None:
        """See LinksToConsole: the region's list of batches, for a job's own page has no documented address."""
        del batch_id
        if not self._public:
            return None
        return f"https://{self._region}.console.aws.amazon.com/bedrock/home?region={self._region}#/batch-inference"

    # The SDK

    def _aws(self) -> Any:
        """Return the session, which has credentials and region. Reads files and environment, and makes no call."""
        if self._session is None:
            with importing_sdk("bedrock", f"The provider '{self._name}'"):
                import boto3  # type: ignore[import-untyped]  # noqa: PLC0415 -- an optional extra
            self._session = boto3.Session(**self._session_options)
        return self._session

    def _client(self, service: str, attempts: int) -> Any:
        session = self._aws()
        from botocore.config import Config  # type: ignore[import-untyped]  # noqa: PLC0415 -- comes with boto3

        seconds = self._timeout_seconds
        if service == _SLOW_RUNTIME:
            service, seconds = "bedrock-runtime", max(seconds, FLEX_SECONDS)
        config = Config(
            retries={"total_max_attempts": attempts, "mode": "standard"},
            connect_timeout=min(10.0, self._timeout_seconds),
            read_timeout=seconds,
        )
        client = session.client(service, endpoint_url=self._endpoints[service], config=config, **self._client_options)
        # No setting of botocore bounds a whole answer. Its managers, the proxies' too, share this table.
        pools = client._endpoint.http_session._pool_classes_by_scheme  # noqa: SLF001
        limit_pools(pools, seconds)
        return client

    def _transfer_config(self) -> Any:
        self._aws()
        from boto3.s3.transfer import TransferConfig  # type: ignore[import-untyped]  # noqa: PLC0415

        return TransferConfig(_PART_BYTES, multipart_chunksize=_PART_BYTES, use_threads=False)


def _with_bytes(value: dict[str, Any]) -> dict[str, Any]:
    """Return the image bytes as boto3 wants them; in a record they are base64."""
    if isinstance(value.get("bytes"), str):
        return {**value, "bytes": base64.b64decode(value["bytes"])}
    return value
