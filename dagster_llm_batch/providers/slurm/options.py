"""The Slurm options that a user may set for a job, checked before anything is submitted. Pure.

Options become words of an argument list, never text of a shell. Options that this package sets cannot be set again: job
name and comment identify a batch, and the others make its end visible.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dagster_llm_batch.errors import ConfigError

__all__ = ["SlurmOptions"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,@/+-]*")
_TIME = re.compile(r"\d+|\d+:\d{1,2}(:\d{1,2})?|\d+-\d{1,2}(:\d{1,2}(:\d{1,2})?)?")
_GRES = re.compile(r"[A-Za-z0-9_.:,/=()*-]+")
_MEMORY = re.compile(r"\d+[KMGT]?")
_EXTRA = re.compile(r"--[a-z][a-z-]*(=[^\x00-\x1f\x7f]*)?")
# A batch is identified by its name and comment, its files show its end, and its environment must not hold our secrets.
_OURS = (
    *("--array", "--chdir", "--comment", "--error", "--export", "--export-file", "--get-user-env", "--input"),
    *("--job-name", "--kill-on-invalid-dep", "--no-requeue", "--open-mode", "--output", "--parsable", "--quiet"),
    *("--requeue", "--test-only", "--verbose", "--wait", "--wrap"),
)
_ELSEWHERE = {
    "--partition": "partition",
    "--account": "slurm_account",
    "--qos": "qos",
    "--time": "time_limit",
    "--gres": "gres",
    "--mem": "mem",
    "--cpus-per-task": "cpus_per_task",
}
_OTHER_CLUSTER = frozenset({"--clusters", "--cluster", "--cluster-constraint"})


@dataclass(frozen=True)
class SlurmOptions:
    """Resources and accounting of a job; None leaves a thing to the cluster's default.

    `time_limit` is in Slurm's form: minutes, "2:30:00", "1-12". `extra` holds further long options of sbatch, such as
    "--constraint=a100". Raises ConfigError for values that Slurm would not take.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_limit: str | None = None
    gres: str | None = None
    mem: str | None = None
    cpus_per_task: int | None = None
    extra: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check("partition", self.partition, _NAME, "main")
        _check("slurm_account", self.account, _NAME, "nlp")
        _check("qos", self.qos, _NAME, "normal")
        _check("time_limit", self.time_limit, _TIME, "90, 2:30:00 or 1-12")
        _check("gres", self.gres, _GRES, "gpu:1")
        _check("mem", self.mem, _MEMORY, "64G")
        if self.cpus_per_task is not None and self.cpus_per_task < 1:
            raise ConfigError(f"cpus_per_task is at least 1; got {self.cpus_per_task}.")
        if isinstance(self.extra, str):
            raise ConfigError(f"Further options of sbatch are a list, as in ['--constraint=a100']; got {self.extra!r}.")
        for word in self.extra:
            _check_extra(word)

    def words(self) -> list[str]:
        """Return the options as sbatch and srun take them."""
        values = {
            "--partition": self.partition,
            "--account": self.account,
            "--qos": self.qos,
            "--time": self.time_limit,
            "--gres": self.gres,
            "--mem": self.mem,
            "--cpus-per-task": self.cpus_per_task,
        }
        return [f"{name}={value}" for name, value in values.items() if value is not None] + list(self.extra)


def _check(name: str, value: str | None, form: re.Pattern[str], example: str) -> None:
    if value is not None and not form.fullmatch(value):
        raise ConfigError(f"{name}={value!r} is not of the form that Slurm takes, as in {example}.")


def _check_extra(word: str) -> None:
    if not _EXTRA.fullmatch(word):
        raise ConfigError(f"A further option of sbatch has the form --name or --name=value; got {word!r}.")
    name = word.partition("=")[0]
    # sbatch takes any unambiguous beginning of an option's name
    ours = sorted(option for option in _OURS if option.startswith(name))
    if ours:
        raise ConfigError(f"The option {word!r} cannot be given: this package sets {', '.join(ours)} itself.")
    if name in _ELSEWHERE:
        raise ConfigError(f"The option {word!r} is given as {_ELSEWHERE[name]}=….")
    if name in _OTHER_CLUSTER:
        raise ConfigError(f"The option {word!r} cannot be given: batches are looked for on this one cluster only.")
