r"""The folder of one batch that runs as a command: its files, and the state of the batch that they show.

    in.jsonl            the requests             written by `prepare`
    job.json            the plan; it was started  "
    lock                held while it is started or supervised
    command.lock        held while anything of the command's process group is left
    group.json          the processes: the command's group and its supervisor
    cancel              a request to stop it
    out.part.jsonl      the output while it grows; the command may also write `out.part.jsonl.progress`
    out.jsonl           the output of a command that has ended
    exit.json           how it ended; written last
    log.txt             the printed output of the command

Locks are `flock`s: the system releases them when their holder dies, however it dies. So a batch with neither lock nor
`exit.json` is dead for certain. This holds on one machine; a folder shared by two hosts is not safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.providers.answers import count_of
from dagster_llm_batch.providers.files import count_lines, log_tail, read_json

__all__ = ["CommandBatch"]

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class CommandBatch:
    """One batch's folder. `path` need not exist."""

    path: Path

    @staticmethod
    def of(workdir: Path, tag: str) -> CommandBatch:
        """Return the batch of this tag. Raises ConfigError for a tag that is no plain file name."""
        if not _TAG.fullmatch(tag):
            raise ConfigError(f"The tag {tag!r} cannot name a folder; letters, digits, '.', '_' and '-' can.")
        return CommandBatch(workdir / tag)

    @property
    def input(self) -> Path:
        return self.path / "in.jsonl"

    @property
    def output(self) -> Path:
        return self.path / "out.jsonl"

    @property
    def part(self) -> Path:
        return self.path / "out.part.jsonl"

    @property
    def progress(self) -> Path:
        return self.path / "out.part.jsonl.progress"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def plan(self) -> dict[str, Any] | None:
        """Return the plan of the started command, or None if nothing was started."""
        return read_json(self.path / "job.json")

    def exit(self) -> dict[str, Any] | None:
        """Tell how it ended, or None where it has not."""
        return read_json(self.path / "exit.json")

    @contextlib.contextmanager
    def locked(self) -> Iterator[int | None]:
        """Take the lock and give its descriptor; None where somebody else holds it. A child inherits it."""
        # of parents made on the way, the mode is ours
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        with _lock(self.path / "lock") as descriptor:
            yield descriptor

    def prepare(self, lines: BinaryIO, command: Sequence[str], grace_seconds: float) -> None:
        """Write input and plan. Only while holding the lock."""
        # By a rename, after the bytes are on disk: if a starter dies in between, there is no plan, so nothing was
        # started.
        part = self.path / "in.jsonl.part"
        with part.open("wb") as file:
            shutil.copyfileobj(lines, file, _CHUNK_BYTES)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.input)
        plan = {
            "command": list(command),
            "cwd": str(Path.cwd()),
            "part": str(self.part),
            "progress": str(self.progress),
            "grace_seconds": grace_seconds,
            "requests": count_lines(self.input),
            "created_at": datetime.now(UTC).timestamp(),
        }
        temporary = self.path / "job.json.part"
        temporary.write_text(json.dumps(plan), encoding="utf-8")
        temporary.replace(self.path / "job.json")

    def withdraw(self) -> None:
        """Withdraw the plan, if nothing could be started."""
        (self.path / "job.json").unlink(missing_ok=True)

    def is_alive(self) -> bool:
        """Return whether it is being started or supervised."""
        with _lock(self.path / "lock", create=False) as descriptor:
            return descriptor is None

    def was_started(self) -> bool:
        """Return whether something has run, or runs. A starter that died may have left only its plan."""
        return self.is_alive() or (self.path / "group.json").exists() or self.exit() is not None

    def ask_to_stop(self) -> None:
        """Leave the mark that the supervisor looks for."""
        (self.path / "cancel").touch()

    def clear_leftovers(self) -> None:
        """Kill the remaining processes of the command after its supervisor was killed."""
        with _lock(self.path / "lock") as ours, _lock(self.path / "command.lock", create=False) as left:
            group = (read_json(self.path / "group.json") or {}).get("group")
            if ours is not None and left is None and isinstance(group, int) and group > 1:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)

    def counts(self) -> tuple[int | None, int | None]:
        """Finished rows and all rows, as far as known: by the command's own progress file, else by lines written."""
        plan = self.plan() or {}
        progress = read_json(self.progress) or {}
        total = count_of(progress.get("total", plan.get("requests")))
        done = count_of(progress.get("done"))
        if done is None:
            done = count_lines(self.output if self.output.exists() else self.part)
        return done, total

    def log_tail(self) -> str:
        """Return the last printed lines, as plain words; empty if nothing was printed."""
        return log_tail(self.log)


@contextlib.contextmanager
def _lock(path: Path, *, create: bool = True) -> Iterator[int | None]:
    """Take an exclusive lock and give its descriptor; None where it is held, or is missing and shall not be made."""
    try:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    except FileNotFoundError:
        yield -1
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield descriptor
    finally:
        os.close(descriptor)
