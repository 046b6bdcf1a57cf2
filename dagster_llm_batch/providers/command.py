"""A batch as a command on this machine: it reads an OpenAI batch file and writes the results file, as
`vllm run-batch -i {input} -o {output} --model {model}` does.

The command runs detached: it survives the process that started it, and is found again by its folder. The batch id is
the tag, and starting is idempotent under the folder's lock, so there is never any doubt whether a batch exists. A row
that failed is a row of the output; the exit code tells only of the command as a whole.

Refuses to run on another machine than the one that submitted: folder and locks are local. Runs no shell.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from dagster_llm_batch.errors import RefusedError, TransientError
from dagster_llm_batch.providers.command_job import Job
from dagster_llm_batch.providers.command_line import checked_command, filled
from dagster_llm_batch.providers.files import lines_of, time_of
from dagster_llm_batch.providers.openai_lines import OpenAILines
from dagster_llm_batch.types import (
    Absent,
    BatchReport,
    BatchStatus,
    CannotTell,
    FindHints,
    Found,
    Limits,
    RequestSpec,
)

__all__ = ["COMMAND_LIMITS", "CommandProvider"]

COMMAND_LIMITS = Limits(max_requests=50_000, max_bytes=1_000_000_000)
_START_TRIES, _START_WAIT_SECONDS = 100, 0.05
_SUPERVISOR = Path(__file__).with_name("command_supervisor.py")


class CommandProvider:
    """Batches run by `command`, in which {input}, {output} and {model} are replaced. Building starts nothing.

    `env` is added to the environment. `account` names whose answers these are; by default the command as written, so
    that another command's answers are never taken for this one's. What changes answers belongs there, not into `env`.
    """

    def __init__(
        self,
        command: Sequence[str],
        workdir: str,
        name: str = "command",
        account: str | None = None,
        env: Mapping[str, str] | None = None,
        limits: Limits = COMMAND_LIMITS,
        grace_seconds: float = 10.0,
    ) -> None:
        self._command = checked_command(command)
        self._workdir = Path(workdir).expanduser().absolute()
        self._name = name
        self._account = shlex.join(command) if account is None else account
        self._env = dict(env or {})
        self._limits = limits
        self._grace_seconds = grace_seconds

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self._name!r}, account={self._account!r})"

    @property
    def name(self) -> str:
        """See Provider.name."""
        return self._name

    @property
    def account(self) -> str:
        """See Provider.account."""
        return self._account

    @property
    def price_book(self) -> str | None:
        """See Provider.price_book. Nobody bills the user's own machine."""
        return None

    @property
    def settle_seconds(self) -> float:
        """See Provider.settle_seconds. The folder is there before anything runs."""
        return 0.0

    def codec(self, spec: RequestSpec) -> OpenAILines:
        """See Provider.codec. The response schema goes out as it is: guided decoding takes more than strict mode."""
        return OpenAILines(spec, self._limits, dict)

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        """See Provider.submit. A batch that runs or has ended is left alone; one that died is run again."""
        job = Job.of(self._workdir, tag)
        for _ in range(_START_TRIES):
            with job.locked() as lock:
                if lock is not None:
                    if job.exit() is None:
                        self._start(job, lines, spec.model, lock)
                    return tag
                if job.plan() is not None:
                    return tag  # it runs
            time.sleep(_START_WAIT_SECONDS)  # somebody starts it, or only looked
        raise TransientError(f"Could not start the batch '{tag}': another process holds its folder {job.path}.")

    def _start(self, job: Job, lines: BinaryIO, model: str, lock: int) -> None:
        job.prepare(lines, filled(self._command, job.input, job.part, model), self._grace_seconds)
        try:
            with job.log.open("ab") as log:
                subprocess.run(  # noqa: S603 -- our own script; it returns at once and leaves the supervisor behind
                    [sys.executable, "-I", "-S", str(_SUPERVISOR), str(job.path), str(lock)],
                    check=True,
                    env={**os.environ, **self._env},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    pass_fds=(lock,),
                    start_new_session=True,
                )
        except (OSError, subprocess.CalledProcessError) as error:
            job.withdraw()
            raise TransientError(f"Could not start the command in {job.path}: {error} {job.log_tail()}") from error

    def find(self, tag: str, hints: FindHints) -> Found | Absent | CannotTell:
        """See Provider.find. Always certain."""
        exists = Job.of(self._workdir, tag).was_started()
        return Found(tag) if exists and tag not in hints.known else Absent()

    def poll(self, batch_ids: Sequence[str]) -> Mapping[str, BatchReport]:
        """See Provider.poll."""
        return {batch_id: self._report(batch_id) for batch_id in batch_ids}

    def _report(self, batch_id: str) -> BatchReport:
        job = Job.of(self._workdir, batch_id)
        alive = job.is_alive()  # before the exit is looked for: it is written before the lock is given back
        ended = job.exit()
        if ended is None and not alive and job.plan() is None:
            gone = f"There is no batch '{batch_id}' under {self._workdir} on this machine."
            return BatchReport(batch_id, BatchStatus.NOT_FOUND, reason=gone)
        if ended is None and not alive:
            job.clear_leftovers()
        done, total = job.counts()
        status, reason, retryable = _judged(job, ended, alive=alive)
        return BatchReport(
            batch_id,
            status,
            total=total,
            done=done,
            reason=reason,
            retryable=retryable,
            created_at=time_of(job.plan(), "created_at"),
            ended_at=time_of(ended, "ended_at"),
        )

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        """See Provider.fetch. Of a batch that died, what its command had written."""
        job = Job.of(self._workdir, batch_id)
        if job.exit() is None and job.is_alive():
            raise TransientError(f"The batch '{batch_id}' still runs; its results are there when it has ended.")
        yield from lines_of(job.output if job.output.exists() else job.part)

    def cancel(self, batch_id: str) -> None:
        """See Provider.cancel."""
        job = Job.of(self._workdir, batch_id)
        if job.plan() is None:
            raise RefusedError(f"There is no batch '{batch_id}' under {self._workdir} on this machine.")
        if job.exit() is None:
            job.ask_to_stop()

    def respond(self, line: bytes) -> bytes:
        """See Provider.respond. Runs the command on this one line and waits for it."""
        model = json.loads(line)["body"]["model"]
        self._workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._workdir, prefix=".respond-") as folder:
            job = Job(Path(folder))
            job.input.write_bytes(line)
            with job.log.open("ab") as log:
                try:
                    process = subprocess.Popen(  # noqa: S603 -- the user's own command, no shell
                        filled(self._command, job.input, job.output, model),
                        env={**os.environ, **self._env},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                except OSError as error:
                    raise RefusedError(f"Could not run the command: {error}") from error
                try:
                    code = process.wait()
                finally:
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            answer = job.output.read_bytes().strip() if job.output.exists() else b""
            if not answer:
                raise RefusedError(f"The command gave no answer; it ended with code {code}. {job.log_tail()}".strip())
            return answer + b"\n"

    def console_url(self, batch_id: str) -> None:
        """See Provider.console_url. There is none."""
        del batch_id


def _judged(job: Job, ended: Mapping[str, object] | None, *, alive: bool) -> tuple[BatchStatus, str | None, bool]:
    """Status, reason, and whether it may pass when sent again."""
    asked = (job.path / "cancel").exists()
    if ended is None and alive:
        return (BatchStatus.CANCELING if asked else BatchStatus.RUNNING), None, False
    if ended is None:
        if asked:
            return BatchStatus.CANCELED, "Canceled; its process is gone.", False
        tail = job.log_tail()
        return BatchStatus.FAILED, f"Its process is gone (killed, or a restart of the machine). {tail}".strip(), True
    if ended.get("canceled"):
        return BatchStatus.CANCELED, None, False
    code = ended.get("code")
    if code == 0 and not job.output.exists():
        return BatchStatus.FAILED, f"The command ended well but wrote no output. {job.log_tail()}".strip(), False
    if code == 0:
        return BatchStatus.ENDED, None, False
    reason = f"The command ended with code {code}. {job.log_tail()}".strip()
    return (BatchStatus.ENDED if job.output.exists() else BatchStatus.FAILED), reason, False
