"""A batch as a job on a Ray cluster: Ray Data answers the shard's lines by a server, a callable, a command, or vLLM.

The job's `submission_id` is the tag and a digest of `storage`, so starting is idempotent: Ray refuses a second job of
that id, and the first is looked up. Files travel through `storage`, a folder that this process and all of the cluster's
nodes reach; the code for the nodes (`ray_shard`) travels with the job. If a job failed with nothing done, the next one
has a number after its id, since Ray takes an id only once.

    <storage>/<tag>/…    see `ray_shard`; files stay until you remove them

A shard with its last file has ended, even if the cluster lost the job or is gone. A cluster whose head was restarted
has lost all jobs: unfinished ones are NOT_FOUND. When such a shard is abandoned, its finished rows are still fetched.

API: https://docs.ray.io/en/latest/cluster/running-applications/job-submission/sdk.html
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from dagster_llm_batch.core.address_secrets import hide_secrets, refuse_credentials, secret_parts
from dagster_llm_batch.errors import (
    AmbiguousError,
    ConfigError,
    LLMBatchError,
    ProviderError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.providers.answers import count_of, sdk_calls, time_of, words_of
from dagster_llm_batch.providers.http import Origin, check_address, guard_session, importing_sdk
from dagster_llm_batch.providers.openai_api.own_machines import OwnMachines
from dagster_llm_batch.providers.paging import poll_batches
from dagster_llm_batch.providers.ray.answers import RayAnswers
from dagster_llm_batch.providers.ray.batches import read_job, status_of
from dagster_llm_batch.providers.ray.errors import UnknownJobError, provider_error
from dagster_llm_batch.providers.ray.ray_shard.files import PLAN, Files, ended, started
from dagster_llm_batch.providers.secrets import masked
from dagster_llm_batch.types import (
    Absent,
    BatchLimits,
    BatchReport,
    BatchStatus,
    FindHints,
    Found,
    RequestSpec,
)

__all__ = ["RAY_LIMITS", "RayProvider"]

RAY_LIMITS = BatchLimits(max_requests=50_000, max_bytes=1_000_000_000)
_SHARD = Path(__file__).with_name("ray_shard")
_TAG = re.compile(r"[A-Za-z0-9_-]{1,150}")
_ID = re.compile(rf"(?P<tag>{_TAG.pattern})\.(?P<place>[0-9a-f]{{8}})(\.[1-9][0-9]*)?")
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_LOOK_SECONDS = 0.5


@masked
class RayProvider(OwnMachines):
    """Batches as jobs of the cluster whose job server (its dashboard) is at `address`.

    `answers` defines how lines are answered; `runtime_env` is Ray's, with the requirements of the workers. `account`
    identifies the source of the answers; by default the server, callable, command or model of `answers`, at any
    cluster. The constructor makes no call.
    """

    def __init__(
        self,
        address: str,
        storage: str,
        answers: RayAnswers,
        name: str = "ray",
        account: str | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        limits: BatchLimits = RAY_LIMITS,
        timeout_seconds: float = 60.0,
    ) -> None:
        check_address(address, "address of the Ray cluster", "http://ray-head:8265")
        refuse_credentials(storage, "storage")
        super().__init__(name, answers.described() if account is None else account, limits)
        self._address = address
        self._storage = storage.rstrip("/")
        self._answers = answers
        self._runtime_env = dict(runtime_env or {})
        self._headers = dict(headers or {})
        self._timeout_seconds = timeout_seconds
        self._known_client: Any = None

    def _secrets(self) -> list[str]:
        headers = (part for value in self._headers.values() for part in value.split())
        return [*headers, *secret_parts(self._address, self._answers.base_url)]

    def codec(self, spec: RequestSpec) -> Codec:
        """See Provider.codec. The engine may not take all of it."""
        self._answers.check(spec)
        return super().codec(spec)

    # Submit

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        """See Provider.submit. A job that runs or has ended is left alone."""
        if not _TAG.fullmatch(tag):
            raise ConfigError(f"The tag {tag!r} cannot name a job of Ray; letters, digits, '_' and '-' can.")
        known = self._attempts(tag)
        if known and status_of(known[-1]) is not BatchStatus.FAILED:
            return str(known[-1].submission_id)
        submission_id = self._id(tag, len(known))
        files = self._files(submission_id)
        with _reaching(files):
            count = files.write_requests(lines)
            files.write_json(PLAN, {"requests": count, **self._answers.plan(spec.model)})
        return self._start(files, submission_id)

    def _start(self, files: Files, submission_id: str) -> str:
        client = self._client()
        environment = {
            **self._runtime_env,
            "py_modules": [*self._runtime_env.get("py_modules", ()), str(_SHARD)],
            "excludes": [*self._runtime_env.get("excludes", ()), "__pycache__"],
        }
        try:
            with self._calls("start the job", creating=True):
                client.submit_job(
                    entrypoint=f"python -m {_SHARD.name} {shlex.quote(files.folder)} {shlex.quote(submission_id)}",
                    submission_id=submission_id,
                    runtime_env=environment,
                    metadata={"dagster_llm_batch": self._name},
                )
        except LLMBatchError as error:
            # Ray refuses a second job of the id with a mere 500, and a lost reply looks alike. In both cases the first
            # job is the right one: ask the cluster for it.
            try:
                self._job(submission_id)
            except LLMBatchError:
                raise error from None
        return submission_id

    def find(self, tag: str, hints: FindHints) -> Found | Absent:
        """See Provider.find. Always certain: the cluster has the id, or the job itself has left a file."""
        known = [str(job.submission_id) for job in self._attempts(tag)]
        first = self._id(tag)
        files = self._files(first)
        with _reaching(files):
            newest = known[-1] if known else first if files.exists(started(first)) else None
        return Absent() if newest is None or newest in hints.known else Found(newest)

    def _attempts(self, tag: str) -> list[Any]:
        """Return the jobs of this tag on the cluster, oldest first."""
        jobs: list[Any] = []
        while True:
            try:
                jobs.append(self._job(self._id(tag, len(jobs))))
            except UnknownJobError:
                return jobs

    # Poll and fetch

    def poll(self, batch_ids: Sequence[str]) -> Mapping[str, BatchReport]:
        """See Provider.poll. A shard with its last file has ended, in any state of the cluster."""
        over = {batch_id: report for batch_id in batch_ids if (report := self._report_by_files(batch_id)) is not None}
        try:
            open_ids = [batch_id for batch_id in batch_ids if batch_id not in over]
            return {**over, **poll_batches(open_ids, self._list_reports, self._read_report)}
        except ProviderError:
            if not over:
                raise
            return over

    def _list_reports(self, wanted: Collection[str]) -> Iterator[tuple[str, BatchReport]]:
        client = self._client()
        with self._calls("list the jobs"):
            jobs = client.list_jobs()
        for job in jobs:
            if job.submission_id in wanted:
                yield job.submission_id, self._read(job.submission_id, job)

    def _report(self, batch_id: str) -> BatchReport:
        return self._report_by_files(batch_id) or self._read_report(batch_id)

    def _report_by_files(self, batch_id: str) -> BatchReport | None:
        """Return the report that the files give without the cluster: the batch has ended, or was never here."""
        match = _ID.fullmatch(batch_id)
        if match is None or match["place"] != self._place:
            reason = f"'{batch_id}' is no job of this provider, whose files are in {self._storage}."
            return BatchReport(batch_id, BatchStatus.NOT_FOUND, reason=reason)
        files = self._files(batch_id)
        with _reaching(files):
            last = files.read_json(ended(batch_id))
            if last is None:
                return None
            first = files.read_json(started(batch_id)) or last
        started_at, ended_at = (time_of(note.get("at")) for note in (first, last))
        rows = count_of(last.get("rows"))
        return BatchReport(batch_id, BatchStatus.ENDED, rows, rows, created_at=started_at, ended_at=ended_at)

    def _read_report(self, batch_id: str) -> BatchReport:
        try:
            return self._read(batch_id, self._job(batch_id))
        except UnknownJobError:
            return self._lost(batch_id)

    def _read(self, batch_id: str, job: Any) -> BatchReport:
        files = self._files(batch_id)
        with _reaching(files):
            done, total = files.rows_done(), count_of((files.read_json(PLAN) or {}).get("requests"))
        return read_job(batch_id, job, total, done)

    def _lost(self, batch_id: str) -> BatchReport:
        """Return the report of an unfinished job that the cluster lacks."""
        files = self._files(batch_id)
        with _reaching(files):
            total = count_of((files.read_json(PLAN) or {}).get("requests"))
            done = files.rows_done() if total is not None else None
        reason = "The cluster does not find this job: its head was restarted, or this is another cluster."
        if done:
            reason += f" {done} rows are finished and kept."
        return BatchReport(batch_id, BatchStatus.NOT_FOUND, total, done, reason=reason)

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        """See Provider.fetch. For a failed job, returns the finished rows."""
        report = self._report(batch_id)
        if report.status.is_stoppable:
            raise TransientError(f"The job '{batch_id}' still runs; its results are there when it has ended.")
        files = self._files(batch_id)
        with _reaching(files):
            for name in files.results():
                yield from files.lines(name)

    def cancel(self, batch_id: str) -> None:
        """See CancelsBatches."""
        if (report := self._report_by_files(batch_id)) is not None and report.status is BatchStatus.ENDED:
            return
        client = self._client()
        try:
            with self._calls(f"stop the job '{batch_id}'"):
                client.stop_job(batch_id)
        except UnknownJobError as error:
            raise RefusedError(f"The cluster knows no job '{batch_id}', so it cannot stop it.") from error

    def delete(self, batch_id: str) -> str | None:
        """See DeletesBatches. Deletes requests and results. The record of the run stays, without any row."""
        if self._report(batch_id).status.is_stoppable:
            return f"the job '{batch_id}' still runs"
        files = self._files(batch_id)
        with _reaching(files):
            files.remove_rows()
        return None

    def respond(self, line: bytes) -> bytes:
        """See AnswersInRealTime. A job of this one line, and its result: that takes seconds, whatever answers."""
        job_id = self._id(f"respond-{uuid.uuid4().hex}")
        files = self._files(job_id)
        try:
            with _reaching(files):
                files.write_requests(io.BytesIO(line))
                files.write_json(PLAN, {"requests": 1, **self._answers.plan(_model_of(line))})
            self._start(files, job_id)
            while not (report := self._report(job_id)).status.is_terminal:
                if report.status is BatchStatus.NOT_FOUND:
                    raise TransientError(f"The job of one line is gone. {report.reason}")
                time.sleep(_LOOK_SECONDS)
            answers = list(self.fetch(job_id))
        except AmbiguousError as error:
            raise TransientError(str(error)) from error
        finally:
            files.remove()
        if len(answers) != 1:
            raise RefusedError(f"The job of one line gave {len(answers)} answers. {report.reason or ''}".strip())
        return answers[0]

    def console_url(self, batch_id: str) -> str | None:
        """See LinksToConsole. Returns the job's page in Ray's dashboard; None if the address holds a key."""
        if secret_parts(self._address):
            return None
        return f"{self._address.rstrip('/')}/#/jobs/{batch_id}"

    # The SDK and the files

    @property
    def _place(self) -> str:
        return hashlib.blake2b(self._storage.encode(), digest_size=4).hexdigest()

    def _id(self, tag: str, failed: int = 0) -> str:
        """Return the submission id of a tag, after this many failed jobs of it."""
        return f"{tag}.{self._place}" + (f".{failed + 1}" if failed else "")

    def _files(self, batch_id: str) -> Files:
        # a URI's options stay at its end
        place, mark, query = self._storage.partition("?")
        return Files(f"{place.rstrip('/')}/{batch_id.partition('.')[0]}{mark}{query}")

    def _job(self, submission_id: str) -> Any:
        client = self._client()
        with self._calls(f"read the job '{submission_id}'"):
            return client.get_job_info(submission_id)

    def _calls(self, what: str, *, creating: bool = False) -> AbstractContextManager[None]:
        return sdk_calls(lambda error: provider_error(error, what, self._secrets(), creating=creating))

    def _client(self) -> Any:
        """Return the SDK's client. Making it is a call, and it imports Ray."""
        if self._known_client is None:
            self._refuse_other_addresses()
            with importing_sdk("ray", f"The provider '{self._name}'"):
                from ray.job_submission import JobSubmissionClient  # noqa: PLC0415 -- an optional extra
                from requests import Session  # noqa: PLC0415 -- comes with it
            patience, origin = self._timeout_seconds, Origin(self._address)

            class Client(JobSubmissionClient):  # type: ignore[misc]  # it has no types
                """The SDK waits for ever for a server that does not answer, or whose answer comes in drips."""

                def _do_request(
                    self, method: str, endpoint: str, *, data: Any = None, json_data: Any = None, **options: Any
                ) -> Any:
                    # Like the SDK: a session for each call, so that a connection that was closed since is never used.
                    with Session() as session:
                        guard_session(session, origin, patience)
                        common = {"headers": self._headers, "cookies": self._cookies, "verify": self._verify}
                        body = {"data": data, "json": json_data}
                        url = self._address + endpoint
                        return session.request(method, url, **{"timeout": patience, **common, **body, **options})

            with self._calls("reach the cluster"):
                self._known_client = Client(self._address, headers=dict(self._headers))
        return self._known_client

    def _refuse_other_addresses(self) -> None:
        for variable in _ADDRESS_VARIABLES:
            other = os.environ.get(variable)
            if other and other.rstrip("/") != self._address.rstrip("/"):
                raise ConfigError(
                    f"The environment variable {variable} is set, and Ray's SDK would go there in place of "
                    f"{hide_secrets(self._address)}. Unset it, or give both the same address."
                )


def _model_of(line: bytes) -> str:
    return str(json.loads(line)["body"]["model"])


@contextmanager
def _reaching(files: Files) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, RecursionError) as error:
        # A ValueError also comes from a file that is not JSON.
        raise TransientError(f"Could not read or write {files.folder}: {words_of(error)}") from error
