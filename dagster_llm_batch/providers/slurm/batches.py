r"""The folder of one batch on Slurm, in a directory that all nodes share: its files, and the batch's state in them.

    plan.json           the intent, written with the requests before sbatch is called
    in-N.jsonl          the requests of array task N
    job.py              the script of the job: job_body.py
    job.json            the job id, once sbatch has printed it
    slurm-N.json        Slurm's end state of a task that wrote no end itself
    cancel, withdrawn   tasks that have not started shall not run
    started-N.json, out-N.START.part, kept-N.START.jsonl, out-N.jsonl, exit-N.json, log-N.txt     see job_body.py

A folder appears whole, by a rename, under the batch's id: `<tag>.<number of the try>`. sbatch is called once per
folder, so a job's name identifies the one folder that it works in.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from dagster_llm_batch.errors import ConfigError, RefusedError
from dagster_llm_batch.providers.answers import count_of
from dagster_llm_batch.providers.files import count_lines, lines_of, log_tail, read_json, write_json
from dagster_llm_batch.providers.jsonlines import split_lines
from dagster_llm_batch.providers.slurm.states import ArrayTask, array_task, is_over

__all__ = ["SlurmBatch"]

_CHUNK_BYTES = 1 << 20
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,180}")


@dataclass(frozen=True)
class SlurmBatch:
    """One batch's folder. `path` need not exist; its name is the batch's id."""

    path: Path

    @staticmethod
    def tries(workdir: Path, tag: str) -> list[SlurmBatch]:
        """Return the batches of this tag, the last one first. Raises ConfigError for a tag that cannot name them."""
        if not _TAG.fullmatch(tag):
            raise ConfigError(f"The tag {tag!r} cannot name a job and a folder; letters, digits, '_' and '-' can.")
        paths = {int(path.suffix[1:]): path for path in workdir.glob(f"{tag}.*") if path.suffix[1:].isdecimal()}
        return [SlurmBatch(paths[number]) for number in sorted(paths, reverse=True)]

    @property
    def batch_id(self) -> str:
        return self.path.name

    @staticmethod
    def create(
        workdir: Path,
        tag: str,
        lines: BinaryIO,
        requests_per_task: int,
        max_tasks: int,
        plan: dict[str, Any],
        script: str,
    ) -> SlurmBatch:
        """Write requests and intent to disk, and withdraw the tries before. The batch has not started then.

        Raises RefusedError if the requests need more tasks than an array may have.
        """
        workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=workdir, prefix=".new-"))
        try:
            counts = _split(lines, new, requests_per_task)
            if len(counts) > max_tasks:
                raise RefusedError(
                    f"{sum(counts)} requests, {requests_per_task} a task, are {len(counts)} array tasks; at most "
                    f"{max_tasks} are allowed. Raise requests_per_task."
                )
            whole = {**plan, "tag": tag, "requests": counts, "created_at": datetime.now(UTC).timestamp()}
            (new / "job.py").write_text(script, encoding="utf-8")
            write_json(new / "plan.json", whole)
            _sync(new)
            before = SlurmBatch.tries(workdir, tag)
            for batch in before:
                (batch.path / "withdrawn").touch()
            number = 1 + (int(before[0].path.suffix[1:]) if before else 0)
            path = workdir / f"{tag}.{number}"
            # fails where another process made it meanwhile, since such a folder is not empty: so one try has one folder
            new.rename(path)
            _sync(workdir)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return SlurmBatch(path)

    @property
    def script(self) -> Path:
        return self.path / "job.py"

    def plan(self) -> dict[str, Any] | None:
        """Return the intent, or None if the batch is not here."""
        return read_json(self.path / "plan.json")

    def requests(self) -> list[int]:
        """Return the number of requests of each task; empty without a plan that lists them."""
        counts = (self.plan() or {}).get("requests")
        if not isinstance(counts, list) or not all(count_of(count) is not None for count in counts):
            return []
        return counts

    def discard(self) -> None:
        """Remove the folder of a batch that Slurm has certainly not accepted."""
        shutil.rmtree(self.path, ignore_errors=True)

    def delete_rows(self) -> None:
        """Remove requests, results and the printed output of tasks. The records of the tasks' ends stay."""
        for pattern in ("in-*", "out-*.part", "kept-*", "log-*"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)
        for path in self.path.glob("out-*"):
            # Without it the task would have failed, which is sent again.
            path.write_bytes(b"")

    def accepted(self, job_id: int) -> None:
        """Write down the answer of sbatch. Only a help for people: the batch is found without it."""
        with contextlib.suppress(OSError):
            write_json(self.path / "job.json", {"job_id": job_id})

    def has_left_traces(self) -> bool:
        """Return whether traces here show that Slurm accepted it: a noted id, or a started task."""
        return (self.path / "job.json").exists() or any(self.path.glob("started-*.json")) or bool(self.exits())

    def exits(self) -> dict[int, dict[str, Any]]:
        """Return the ends of tasks, by number, from the tasks' own records."""
        ends: dict[int, dict[str, Any]] = {}
        for path in self.path.glob("exit-*.json"):
            number = path.stem[len("exit-") :]
            if number.isdecimal() and (end := read_json(path)) is not None:
                ends[int(number)] = end
        return ends

    def note_ends(self, tasks: Mapping[int, ArrayTask]) -> None:
        """Keep Slurm's record of ended tasks; Slurm soon drops it."""
        for number, task in tasks.items():
            if is_over(task) and not (self.path / f"exit-{number}.json").exists() and self.path.exists():
                with contextlib.suppress(OSError):
                    write_json(self.path / f"slurm-{number}.json", task._asdict())

    def noted_ends(self) -> dict[int, ArrayTask]:
        """Return the ends that `note_ends` has kept, by task."""
        notes = (read_json(path) for path in self.path.glob("slurm-*.json"))
        tasks = (array_task(noted) for noted in notes if noted is not None)
        return {task.task: task for task in tasks if task is not None}

    def ask_to_stop(self) -> None:
        """Leave the mark that tasks look for before they start."""
        (self.path / "cancel").touch()

    def is_asked_to_stop(self) -> bool:
        return (self.path / "cancel").exists()

    def outputs(self, task: int) -> list[Path]:
        """Return the files with the task's results: the whole one, or the kept and written ones of its latest start."""
        whole = self.path / f"out-{task}.jsonl"
        if whole.exists():
            return [whole]
        paths = (path for path in self.path.glob(f"out-{task}.*.part") if path.name.split(".")[1].isdecimal())
        parts = sorted(paths, key=lambda path: int(path.name.split(".")[1]))
        if not parts:
            return []
        kept = self.path / f"kept-{task}.{parts[-1].name.split('.')[1]}.jsonl"
        if kept.exists() or len(parts) == 1:
            return [kept, parts[-1]]
        # without row_by_row, each start requested all rows again: the longest file holds the most of them
        return [max(parts, key=lambda path: path.stat().st_size)]

    def lines(self, tasks: int) -> Iterator[bytes]:
        """Yield all result lines in the order of the requests: whole files, and the partial ones of tasks that died."""
        for task in range(tasks):
            for path in self.outputs(task):
                yield from lines_of(path)

    def done(self, task: int) -> int:
        """Tell how many result lines the task has written."""
        return sum(count_lines(path) or 0 for path in self.outputs(task))

    def log_path(self, *, array: bool) -> str:
        """Return the path of the log for sbatch, which replaces %a by the task's number."""
        return f"{self.path}".replace("%", "%%") + f"/log-{'%a' if array else 0}.txt"

    def log_tail(self, task: int) -> str:
        return log_tail(self.path / f"log-{task}.txt")


def _split(lines: BinaryIO, folder: Path, requests_per_task: int) -> list[int]:
    """Write the requests as one file for each task; how many each has."""
    counts: list[int] = []
    source = split_lines(iter(partial(lines.read, _CHUNK_BYTES), b""))
    while first := next(source, None):
        count = 0
        with (folder / f"in-{len(counts)}.jsonl").open("wb") as file:
            for line in chain([first], islice(source, requests_per_task - 1)):
                file.write(line)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        counts.append(count)
    return counts


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
