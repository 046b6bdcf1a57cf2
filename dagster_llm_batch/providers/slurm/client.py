"""Slurm's own commands: sbatch, squeue, sacct, scancel, srun. Takes argument lists, no shell; reads their output.

The formats use `--format` with a separator, which every version has; their JSON changes with the version. Times are
seconds since the epoch. A job gets only the named variables of this process's environment.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from dagster_llm_batch.core.memory import chunks
from dagster_llm_batch.errors import AmbiguousError, CredentialsError, RefusedError, TransientError
from dagster_llm_batch.providers.answers import count_of
from dagster_llm_batch.providers.slurm.states import ArrayTask
from dagster_llm_batch.text import plain_words

__all__ = ["SlurmClient", "submit_error"]

_ALWAYS = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TMPDIR", "SLURM_CONF")
# So that a command line with them stays below the 128 KiB that Linux takes for one argument.
_NAMES_AT_ONCE = 500
# The id of a job has no more.
_MOST_DIGITS = 15
_NO_ACCOUNTING = "accounting storage is disabled"
_FULL = ("SubmitJob", "MaxJobCount", "Resource temporarily unavailable", "temporarily unable to accept job")
_ARRAY = "Invalid job array specification"
_NOT_REACHED = ("Unable to contact slurm controller", "Communication connection failure", "Connection refused")
# After these the controller may have read the request: such a job runs, though sbatch ended with an error.
_UNKNOWN_END = (
    "Socket timed out",
    "Zero Bytes were transmitted",
    "Message send failure",
    "Message receive failure",
    "Unexpected message received",
    "Connection reset",
    "Broken pipe",
    "Header lengths are longer than data received",
    "Insane message length",
    "shutdown failure",
    "shut down",
)
_WHO = ("authentication", "Invalid user id", "Access/permission denied", "User's group not permitted")


class SlurmClient:
    """Calls Slurm's commands. `export` are the names of environment variables that jobs get, besides the usual ones."""

    def __init__(self, export: Sequence[str], timeout_seconds: float) -> None:
        self._export = tuple(export)
        self._timeout_seconds = timeout_seconds

    def submit(self, options: Sequence[str], script: Path, folder: Path) -> int:
        """Return the id of the job that sbatch made. Called once; see Provider.submit for the errors."""
        words = ["sbatch", "--parsable", *options, str(script), str(folder)]
        try:
            done = self._run(words, self.environment())
        except subprocess.TimeoutExpired as error:
            printed = plain_words(_text(error.stderr))
            raise AmbiguousError(f"sbatch gave no answer in {self._timeout_seconds:g} s. {printed}".strip()) from None
        number = done.stdout.strip().partition(";")[0]
        if done.returncode == 0 and number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS:
            return int(number)
        raise submit_error(done.returncode, done.stderr or done.stdout)

    def queue(self, names: Iterable[str] | None = None) -> list[ArrayTask]:
        """Return own jobs on the controller, also recently ended ones: of these names, or all.

        Raises TransientError if the controller does not answer now.
        """
        tasks: list[ArrayTask] = []
        fields = "%j|%k|%A|%F|%K|%T|%r|%e"
        for wanted in _portions(names):
            done = self._ask(["squeue", "--me", "--noheader", "--array", "--states=all", *wanted, f"--format={fields}"])
            for line in done.splitlines():
                name, comment, _, job_id, task, state, reason, ended_at = _columns(line, 8)
                tasks.append(ArrayTask(name, comment, job_id, _number(task), state, reason, _seconds(ended_at)))
        return tasks

    def accounts(self, since: datetime, names: Iterable[str] | None = None) -> list[ArrayTask]:
        """Return own jobs in the accounting since then; empty without an accounting.

        Raises TransientError if the accounting does not answer now.
        """
        tasks: list[ArrayTask] = []
        fields = "JobName,Comment,JobID,State,Reason,End"
        start = f"--starttime={since.astimezone():%Y-%m-%dT%H:%M:%S}"
        for wanted in _portions(names):
            words = [
                "sacct",
                f"--uid={os.geteuid()}",
                "--allocations",
                "--noheader",
                "--parsable2",
                "--array",
                start,
                *wanted,
            ]
            try:
                done = self._ask([*words, f"--format={fields}"])
            except TransientError as error:
                if _NO_ACCOUNTING in str(error):
                    return []
                raise
            for line in done.splitlines():
                name, comment, job, state, reason, ended_at = _columns(line, 6)
                job_id, _, task = job.partition("_")
                # As in "CANCELLED by 0".
                word = state.partition(" ")[0]
                tasks.append(ArrayTask(name, comment, job_id, _number(task), word, reason, _seconds(ended_at)))
        return tasks

    def cancel(self, name: str) -> None:
        """Cancel own jobs of this name; ended ones stay unchanged."""
        self._ask(["scancel", "--me", f"--name={name}"])

    def run(self, options: Sequence[str], command: Sequence[str]) -> str:
        """Run the command as a job and wait; return its output. Raises RefusedError if it fails."""
        try:
            done = subprocess.run(  # noqa: S603 -- the user's own command, no shell
                ["srun", "--quiet", "--ntasks=1", *options, "--", *command],  # noqa: S607 -- Slurm is on PATH
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
        except OSError as error:
            raise RefusedError(f"Could not run srun: {error}. Slurm's client commands must be on PATH here.") from error
        printed = plain_words(done.stdout.decode("utf-8", "replace"))
        if done.returncode:
            raise RefusedError(f"The command ended with code {done.returncode}. {printed}".strip())
        return printed

    def environment(self) -> dict[str, str]:
        """Return the environment that jobs get. Raises RefusedError where a variable that it needs is not set."""
        missing = [name for name in self._export if name not in os.environ]
        if missing:
            raise RefusedError(f"The environment variables to export are not set here: {', '.join(missing)}.")
        return {name: os.environ[name] for name in (*_ALWAYS, *self._export) if name in os.environ}

    def _ask(self, words: Sequence[str]) -> str:
        environment = {name: os.environ[name] for name in _ALWAYS if name in os.environ}
        try:
            done = self._run(words, {**environment, "SLURM_TIME_FORMAT": "%s"})
        except subprocess.TimeoutExpired:
            raise TransientError(f"{words[0]} gave no answer in {self._timeout_seconds:g} s.") from None
        if done.returncode:
            raise TransientError(f"{words[0]} ended with code {done.returncode}: {plain_words(done.stderr)}")
        return done.stdout

    def _run(self, words: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603 -- no shell; every word is ours or was checked
                words,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout_seconds,
                encoding="utf-8",
                errors="replace",
                check=False,
            )
        except OSError as error:
            msg = f"Could not run {words[0]}: {error}. Slurm's client commands must be on PATH where this runs."
            raise RefusedError(msg) from error


def submit_error(code: int, printed: str) -> AmbiguousError | RefusedError | TransientError:
    """Read the output of sbatch as an error: not accepted for good, not accepted for now, or unknown."""
    message = plain_words(printed) or "no message"
    text = f"sbatch ended with code {code}: {message}"
    if any(sign in printed for sign in _NOT_REACHED):
        return TransientError(text)
    if code < 0 or code == 0 or any(sign in printed for sign in _UNKNOWN_END):
        return AmbiguousError(text)
    if any(sign in printed for sign in _FULL):
        return TransientError(f"{text}. The queue is full; it is tried again later.")
    if any(sign in printed for sign in _WHO):
        return CredentialsError(text)
    if _ARRAY in printed:
        return RefusedError(
            f"{text}. A batch has more parts than an array may: raise requests_per_task until there are no more than "
            "MaxArraySize, which `scontrol show config` shows."
        )
    return RefusedError(text)


def _portions(names: Iterable[str] | None) -> list[list[str]]:
    """Return the options of each call: empty for all jobs, else as many names as a line holds."""
    if names is None:
        return [[]]
    return [[f"--name={','.join(portion)}"] for portion in chunks(names, _NAMES_AT_ONCE)]


def _columns(line: str, count: int) -> list[str]:
    """Return the line's columns; a foreign job's name or comment with a separator in it cannot be one of ours."""
    columns = line.split("|")
    return columns if len(columns) == count else [""] * count


def _number(task: str) -> int:
    return count_of(task) or 0


def _seconds(text: str) -> float | None:
    return count_of(text)


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
