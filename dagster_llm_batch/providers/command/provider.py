"""A batch as a command on this machine: it reads an OpenAI batch file and writes the results file, as
`vllm run-batch -i {input} -o {output} --model {model}` does.

The command runs detached: it survives the process that started it, and is found again by its folder. The batch id is
the tag, and starting is idempotent under the folder's lock, so it is always clear whether a batch exists. A failed row
is a row of the output; the exit code is about the command as a whole only.

Refuses to run on another machine than the one that submitted: folder and locks are local. Runs no shell.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from dagster_llm_batch.errors import ConfigError, RefusedError, TransientError
from dagster_llm_batch.providers.answers import UnknownIdError, own_answer, reaching
from dagster_llm_batch.providers.command.batches import CommandBatch
from dagster_llm_batch.providers.files import lines_of, time_of
from dagster_llm_batch.providers.openai_api.own_machines import OwnMachines, check_command, fill_command
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
)

__all__ = ["COMMAND_LIMITS", "CommandProvider"]

COMMAND_LIMITS = BatchLimits(max_requests=50_000, max_bytes=1_000_000_000)
_START_TRIES, _START_WAIT_SECONDS = 100, 0.05
_SUPERVISOR = Path(__file__).with_name("supervisor.py")


class CommandProvider(OwnMachines):
    """Batches run by `command`, in which {input}, {output} and {model} are replaced. The constructor starts nothing.

    `env` is added to the environment. `account` identifies the source of the answers. By default it is the command as
    written, so that another command's answers are never mixed up with this one's. Settings that change answers belong
    there, not in `env`.
    """

    def __init__(
        self,
        command: Sequence[str],
        workdir: str,
        name: str = "command",
        account: str | None = None,
        env: Mapping[str, str] | None = None,
        limits: BatchLimits = COMMAND_LIMITS,
        grace_seconds: float = 10.0,
    ) -> None:
        super().__init__(name, shlex.join(command) if account is None else account, limits)
        self._command = check_command(command)
        self._workdir = Path(workdir).expanduser().absolute()
        self._env = dict(env or {})
        self._grace_seconds = grace_seconds

    def check_setup(self) -> None:
        """See ChecksSetup: the command's program, and the script that it is to run, have to be on this machine."""
        program, *words = self._command
        path = self._env.get("PATH", os.environ.get("PATH"))
        wrong = None
        if shutil.which(program, path=path) is None:
            wrong = f"the program {program!r} is not on this machine, or cannot be run"
        elif words and words[0].endswith((".py", ".sh")) and "{" not in words[0] and not Path(words[0]).is_file():
            wrong = f"there is no file {Path(words[0]).absolute()}"
        if wrong is not None:
            raise ConfigError(
                f"The provider '{self.name}' cannot start its command {shlex.join(self._command)!r}: {wrong}. Nothing "
                "was sent. Install it, or correct `command`."
            )

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        """See Provider.submit. A batch that runs or has ended is left alone; one that died is run again."""
        batch = CommandBatch.of(self._workdir, tag)
        for _ in range(_START_TRIES):
            with reaching(batch.path), batch.locked() as lock:
                if lock is not None:
                    if batch.exit() is None:
                        self._start(batch, lines, spec.model, lock)
                    return tag
                if batch.plan() is not None:
                    # It runs already.
                    return tag
            # another process is about to start it, or holds the lock for a moment to see whether it is alive
            time.sleep(_START_WAIT_SECONDS)
        raise TransientError(f"Could not start the batch '{tag}': another process holds its folder {batch.path}.")

    def _start(self, batch: CommandBatch, lines: BinaryIO, model: str, lock: int) -> None:
        batch.prepare(lines, fill_command(self._command, batch.input, batch.part, model), self._grace_seconds)
        try:
            with batch.log.open("ab") as log:
                subprocess.run(  # noqa: S603 -- our own script; it returns at once and leaves the supervisor behind
                    [sys.executable, "-I", "-S", str(_SUPERVISOR), str(batch.path), str(lock)],
                    check=True,
                    env={**os.environ, **self._env},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    pass_fds=(lock,),
                    start_new_session=True,
                )
        except (OSError, subprocess.CalledProcessError) as error:
            batch.withdraw()
            raise TransientError(f"Could not start the command in {batch.path}: {error} {batch.log_tail()}") from error

    def find(self, tag: str, hints: FindHints) -> Found | Absent | StatusUnknown:
        """See Provider.find. Always certain."""
        with reaching(self._workdir):
            exists = CommandBatch.of(self._workdir, tag).was_started()
        return Found(tag) if exists and tag not in hints.known else Absent()

    def poll(self, batch_ids: Sequence[str]) -> Mapping[str, BatchReport]:
        """See Provider.poll."""
        with reaching(self._workdir):
            return {batch_id: self._report(batch_id) for batch_id in batch_ids}

    def _report(self, batch_id: str) -> BatchReport:
        batch = CommandBatch.of(self._workdir, batch_id)
        # The exit is written before the lock is given back. So the lock is looked at first: in the other order, a batch
        # that ended between the two looks would be taken for one that died.
        alive = batch.is_alive()
        ended = batch.exit()
        if ended is None and not alive and batch.plan() is None:
            gone = f"There is no batch '{batch_id}' under {self._workdir} on this machine."
            return BatchReport(batch_id, BatchStatus.NOT_FOUND, reason=gone)
        if ended is None and not alive:
            batch.clear_leftovers()
        done, total = batch.counts()
        status, reason, retryable = _judge(batch, ended, alive=alive)
        return BatchReport(
            batch_id,
            status,
            total=total,
            done=done,
            reason=reason,
            retryable=retryable,
            created_at=time_of(batch.plan(), "created_at"),
            ended_at=time_of(ended, "ended_at"),
        )

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        """See Provider.fetch. For a batch that died, returns the rows that its command had written."""
        batch = CommandBatch.of(self._workdir, batch_id)
        with reaching(batch.path):
            if batch.exit() is None and batch.is_alive():
                raise TransientError(f"The batch '{batch_id}' still runs; its results are there when it has ended.")
            if not batch.path.exists():
                raise UnknownIdError(f"There is no batch '{batch_id}' under {self._workdir} any more.")
            yield from lines_of(batch.output if batch.output.exists() else batch.part)

    def cancel(self, batch_id: str) -> None:
        """See CancelsBatches."""
        batch = CommandBatch.of(self._workdir, batch_id)
        with reaching(batch.path):
            if batch.plan() is None:
                raise RefusedError(f"There is no batch '{batch_id}' under {self._workdir} on this machine.")
            if batch.exit() is None:
                batch.ask_to_stop()

    def delete(self, batch_id: str) -> str | None:
        """See DeletesBatches. Deletes requests, results and printed output; the record that it ran stays."""
        batch = CommandBatch.of(self._workdir, batch_id)
        with reaching(batch.path):
            # The supervisor writes the exit shortly before it gives its lock back.
            if batch.exit() is None and batch.is_alive():
                return f"the batch '{batch_id}' still runs"
            for path in (batch.input, batch.part, batch.progress, batch.log):
                path.unlink(missing_ok=True)
            if batch.output.exists():
                # Without it the batch would have failed, which is sent again.
                batch.output.write_bytes(b"")
        return None

    def respond(self, line: bytes) -> bytes:
        """See AnswersInRealTime. Runs the command on this one line and waits for it."""
        model = json.loads(line)["body"]["model"]
        with reaching(self._workdir):
            return self._answer(line, model)

    def _answer(self, line: bytes, model: str) -> bytes:
        self._workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._workdir, prefix=".respond-") as folder:
            batch = CommandBatch(Path(folder))
            batch.input.write_bytes(line)
            with batch.log.open("ab") as log:
                try:
                    process = subprocess.Popen(  # noqa: S603 -- the user's own command, no shell
                        fill_command(self._command, batch.input, batch.output, model),
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
            output = batch.output.read_bytes() if batch.output.exists() else b""
            return own_answer(line, output, f"It ended with code {code}. {batch.log_tail()}".strip())


def _judge(
    batch: CommandBatch, ended: Mapping[str, object] | None, *, alive: bool
) -> tuple[BatchStatus, str | None, bool]:
    """Return the status, reason, and whether it may pass when sent again."""
    is_asked_to_stop = (batch.path / "cancel").exists()
    if ended is None and alive:
        return (BatchStatus.CANCELING if is_asked_to_stop else BatchStatus.RUNNING), None, False
    if ended is None:
        if is_asked_to_stop:
            return BatchStatus.CANCELED, "Canceled; its process is gone.", False
        tail = batch.log_tail()
        return BatchStatus.FAILED, f"Its process is gone (killed, or a restart of the machine). {tail}".strip(), True
    if ended.get("canceled"):
        return BatchStatus.CANCELED, None, False
    code = ended.get("code")
    if code == 0 and not batch.output.exists():
        return BatchStatus.FAILED, f"The command ended well but wrote no output. {batch.log_tail()}".strip(), False
    if code == 0:
        return BatchStatus.ENDED, None, False
    reason = f"The command ended with code {plain_words(code)}. {batch.log_tail()}".strip()
    return (BatchStatus.ENDED if batch.output.exists() else BatchStatus.FAILED), reason, False
