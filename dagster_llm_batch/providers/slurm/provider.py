"""A batch as one sbatch job: a command on compute nodes that reads an OpenAI batch file and writes the results file, as
`vllm run-batch -i {input} -o {output} --model {model}` does.

    one batch = one folder in a shared directory = one call of sbatch = one job, or an array of tasks with a cap

A batch of more than `requests_per_task` requests is a job array: each task runs the command on its part, at most
`max_running_tasks` at once, and is started again automatically if its node fails. So one create call makes any number
of parts, one name finds them all, and the cap is Slurm's own.

The batch id is the name of the folder and of the job, `<tag>.<try>`; the comment repeats it. The sources of a state
are, in this order: the folder, in which the tasks write, the controller (squeue), and the accounting (sacct, where it
runs). Slurm's record of an end is copied into the folder. So a batch is found even after the controller has dropped it.

Does not pass on the environment: jobs get the usual variables and the ones named in `export`. Runs no shell.
"""

from __future__ import annotations

import json
import shlex
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from dagster_llm_batch.errors import ConfigError, RefusedError, TransientError
from dagster_llm_batch.providers.answers import own_answer, reaching
from dagster_llm_batch.providers.files import time_of
from dagster_llm_batch.providers.openai_api.own_machines import OwnMachines, check_command, fill_command
from dagster_llm_batch.providers.slurm.batches import SlurmBatch
from dagster_llm_batch.providers.slurm.client import SlurmClient
from dagster_llm_batch.providers.slurm.options import SlurmOptions
from dagster_llm_batch.providers.slurm.states import LATE, ArrayTask, Standing, of_all, of_exit, of_state
from dagster_llm_batch.types import Absent, BatchLimits, BatchReport, BatchStatus, FindHints, Found, RequestSpec

__all__ = ["SLURM_LIMITS", "SlurmProvider"]

SLURM_LIMITS = BatchLimits(max_requests=200_000, max_bytes=4_000_000_000)
_BODY = Path(__file__).with_name("job_body.py")
_COMMENT = "dagster-llm-batch "
# Slurm's default for MaxArraySize is 1,001, and the highest index is one less.
_MAX_TASKS = 1_000
# The accounting is asked for jobs since a time by this machine's clock, and compares with its own.
_CLOCKS_APART = timedelta(hours=1)


class SlurmProvider(OwnMachines):
    """Batches run by `command`, in which {input}, {output} and {model} are replaced. The constructor calls nothing.

    Args:
        command: As in CommandProvider; it must exist on the nodes.
        workdir: A directory that this machine and all nodes see under the same path.
        options: The options for Slurm.
        requests_per_task, max_running_tasks: How a batch is split.
        row_by_row: The command writes each row when it is answered. A task that starts again keeps good rows.
        requeue: Whether Slurm starts a task again after a node failure or preemption.
        export: Names of environment variables that the command gets.
        account: The source of the answers; by default the command as written. It is not Slurm's account.
        python: Python on the nodes, 3.6 or later; it runs a script that uses only the standard library.
        lag_seconds: Longest time until a file that a node wrote is visible here.
    """

    def __init__(
        self,
        command: Sequence[str],
        workdir: str,
        options: SlurmOptions | None = None,
        name: str = "slurm",
        account: str | None = None,
        export: Sequence[str] = (),
        limits: BatchLimits = SLURM_LIMITS,
        requests_per_task: int = 50_000,
        max_running_tasks: int | None = None,
        row_by_row: bool = False,
        requeue: bool = True,
        python: str = "python3",
        timeout_seconds: float = 60.0,
        settle_seconds: float = 60.0,
        grace_seconds: float = 10.0,
        lag_seconds: float = 60.0,
    ) -> None:
        _at_least_one("requests_per_task", requests_per_task)
        if max_running_tasks is not None:
            _at_least_one("max_running_tasks", max_running_tasks)
        super().__init__(
            name,
            shlex.join(command) if account is None else account,
            replace(limits, max_requests=min(limits.max_requests, requests_per_task * _MAX_TASKS)),
            # the controller may still read a request whose sender is dead
            settle_seconds,
        )
        self._command = check_command(command)
        self._workdir = Path(workdir).expanduser().absolute()
        self._options = options or SlurmOptions()
        self._requests_per_task = requests_per_task
        self._max_running_tasks = max_running_tasks
        self._row_by_row = row_by_row
        self._requeue = requeue
        self._python = python
        self._grace_seconds = grace_seconds
        self._lag_seconds = lag_seconds
        self._slurm = SlurmClient(export, timeout_seconds)

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        """See Provider.submit. The folder with the intent is on disk before sbatch is called, once."""
        # report a missing variable before anything is written
        self._slurm.environment()
        plan: dict[str, Any] = {
            "command": list(self._command),
            "model": spec.model,
            "row_by_row": self._row_by_row,
            "grace_seconds": self._grace_seconds,
        }
        script = f"#!/usr/bin/env -S {self._python} -I -S\n{_BODY.read_text(encoding='utf-8')}"
        try:
            batch = SlurmBatch.create(self._workdir, tag, lines, self._requests_per_task, _MAX_TASKS, plan, script)
        except OSError as error:
            raise TransientError(f"Could not write the batch '{tag}' below {self._workdir}: {error}") from error
        try:
            job_id = self._slurm.submit(self._submit_options(batch), batch.script, batch.path)
        except (RefusedError, TransientError):
            # Slurm has not taken it, for certain
            batch.discard()
            raise
        batch.accepted(job_id)
        return batch.batch_id

    def _submit_options(self, batch: SlurmBatch) -> list[str]:
        tasks = len(batch.requests())
        cap = f"%{self._max_running_tasks}" if self._max_running_tasks is not None else ""
        return [
            *self._options.words(),
            f"--job-name={batch.batch_id}",
            f"--comment={_COMMENT}{batch.batch_id}",
            f"--output={batch.log_path(array=tasks > 1)}",
            "--open-mode=append",
            # all of an environment that holds only the requested variables
            "--export=ALL",
            "--requeue" if self._requeue else "--no-requeue",
            "--kill-on-invalid-dep=yes",
            *([f"--array=0-{tasks - 1}{cap}"] if tasks > 1 else []),
        ]

    def find(self, tag: str, hints: FindHints) -> Found | Absent:
        """See Provider.find. Folder, controller and accounting are asked in turn; raises where one cannot be asked."""
        tries = [batch for batch in SlurmBatch.tries(self._workdir, tag) if batch.batch_id not in hints.known]
        # by the folder first: the controller drops a job some minutes after its end, and the accounting is optional
        for batch in tries:
            if batch.has_left_traces():
                return Found(batch.batch_id)
        for tasks in (self._slurm.queue, partial(self._slurm.accounts, hints.sent_at - _CLOCKS_APART)):
            for task in tasks():
                if task.name.rpartition(".")[0] == tag and _is_ours(task) and task.name not in hints.known:
                    return Found(task.name)
        return Absent()

    def poll(self, batch_ids: Sequence[str]) -> Mapping[str, BatchReport]:
        """See Provider.poll. The controller is asked once for all that have not ended by their own account."""
        with reaching(self._workdir):
            return self._reports(batch_ids)

    def _reports(self, batch_ids: Sequence[str]) -> dict[str, BatchReport]:
        batches = {batch_id: SlurmBatch(self._workdir / Path(batch_id).name) for batch_id in batch_ids}
        open_ids = [batch_id for batch_id, batch in batches.items() if not _ended_well(batch)]
        known = _by_name(self._slurm.queue(open_ids)) if open_ids else {}
        if lost := [batch_id for batch_id in open_ids if batch_id not in known]:
            created = [at for batch_id in lost if (at := time_of(batches[batch_id].plan(), "created_at"))]
            since = min(created, default=datetime.now(UTC) - timedelta(days=30)) - _CLOCKS_APART
            known |= _by_name(self._slurm.accounts(since, lost))
        for batch_id in open_ids:
            batches[batch_id].note_ends(known.get(batch_id, {}))
        return {batch_id: self._report(batch, known.get(batch_id, {})) for batch_id, batch in batches.items()}

    def _report(self, batch: SlurmBatch, known: Mapping[int, ArrayTask]) -> BatchReport:
        plan = batch.plan() or {}
        requests = batch.requests() or [0] * len(known)
        exits = batch.exits()
        known = {**batch.noted_ends(), **known}
        standings = {
            task: self._standing(batch, task, exits.get(task), known.get(task)) for task in range(len(requests))
        }
        whole = of_all(standings, exits) if standings else Standing(None)
        status, reason = whole.status, whole.reason
        if status is None:
            where = f"Slurm has no job named '{batch.batch_id}', and {batch.path} does not show how it ended."
            return BatchReport(batch.batch_id, BatchStatus.NOT_FOUND, reason=where)
        if status.is_stoppable and batch.is_asked_to_stop():
            status = BatchStatus.CANCELING
        ends = [at for end in exits.values() if (at := time_of(end, "ended_at"))]
        ends += [at for task in known.values() if (at := time_of(task._asdict(), "ended_at"))]
        return BatchReport(
            batch.batch_id,
            status,
            total=sum(requests) or None,
            done=sum(batch.done(task) for task in standings),
            reason=reason,
            retryable=whole.retryable,
            created_at=time_of(plan, "created_at"),
            ended_at=max(ends, default=None) if status.is_terminal else None,
        )

    def _standing(
        self, batch: SlurmBatch, task: int, end: Mapping[str, Any] | None, seen: ArrayTask | None
    ) -> Standing:
        """Judge one task by `end`, which it wrote itself, and by `seen`, the state that Slurm reports."""
        if end is not None:
            state = seen.state if seen else None
            return of_exit(end, state, has_output=bool(batch.outputs(task)), log=batch.log_tail(task))
        is_asked_to_stop = batch.is_asked_to_stop()
        if seen is None:
            # a task does not start after a request to stop, and Slurm has a record of every running task: so it has
            # never run
            return Standing(BatchStatus.CANCELED if is_asked_to_stop else None)
        if seen.state in LATE:
            # the task wrote its end on a node; a shared directory may show it here only later
            if seen.ended_at is not None and time.time() - seen.ended_at < self._lag_seconds:
                return Standing(BatchStatus.RUNNING)
            if is_asked_to_stop:
                return Standing(BatchStatus.CANCELED)
        return of_state(seen.state, seen.reason, batch.log_tail(task))

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        """See Provider.fetch. For tasks that died, returns the rows that their command had written."""
        batch = SlurmBatch(self._workdir / Path(batch_id).name)
        status = self.poll([batch_id])[batch_id].status
        if not status.is_terminal and status is not BatchStatus.NOT_FOUND:
            raise TransientError(f"The batch '{batch_id}' still runs; its results are there when it has ended.")
        with reaching(batch.path):
            yield from batch.lines(len(batch.requests()))

    def cancel(self, batch_id: str) -> None:
        """See CancelsBatches."""
        report = self.poll([batch_id])[batch_id]
        if report.status is BatchStatus.NOT_FOUND:
            raise RefusedError(report.reason or f"There is no batch '{batch_id}'.")
        if not report.status.is_terminal:
            batch = SlurmBatch(self._workdir / Path(batch_id).name)
            if batch.plan() is not None:
                batch.ask_to_stop()
            self._slurm.cancel(batch_id)

    def delete(self, batch_id: str) -> str | None:
        """See DeletesBatches. Deletes requests, results and printed output. The records of the tasks' ends stay."""
        status = self.poll([batch_id])[batch_id].status
        if not status.is_terminal and status is not BatchStatus.NOT_FOUND:
            return f"the batch '{batch_id}' still runs"
        batch = SlurmBatch(self._workdir / Path(batch_id).name)
        with reaching(batch.path):
            batch.delete_rows()
        return None

    def respond(self, line: bytes) -> bytes:
        """See AnswersInRealTime. Runs the command on this one line by srun, and waits for nodes as a batch would."""
        model = json.loads(line)["body"]["model"]
        with reaching(self._workdir):
            return self._answer(line, model)

    def _answer(self, line: bytes, model: str) -> bytes:
        self._workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._workdir, prefix=".respond-") as folder:
            source, target = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
            source.write_bytes(line)
            printed = self._slurm.run(self._options.words(), fill_command(self._command, source, target, model))
            return own_answer(line, target.read_bytes() if target.exists() else b"", printed)


def _ended_well(batch: SlurmBatch) -> bool:
    """Return whether all tasks wrote that they are done, with nothing that Slurm could explain."""
    exits, tasks = batch.exits(), len(batch.requests())
    return 0 < tasks == len(exits) and all(end.get("canceled") or end.get("code") == 0 for end in exits.values())


def _by_name(tasks: Iterable[ArrayTask]) -> dict[str, dict[int, ArrayTask]]:
    """Return our tasks by batch and number."""
    batches: dict[str, dict[int, ArrayTask]] = {}
    for task in tasks:
        if _is_ours(task):
            batches.setdefault(task.name, {})[task.task] = task
    return batches


def _is_ours(task: ArrayTask) -> bool:
    """Return whether the comment matches, too. It is empty in an accounting that does not store comments."""
    return task.comment in (_COMMENT + task.name, "")


def _at_least_one(what: str, number: int) -> None:
    if number < 1:
        raise ConfigError(f"{what} is at least 1; got {number}.")
