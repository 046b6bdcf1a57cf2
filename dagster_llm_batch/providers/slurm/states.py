"""Judge a batch by Slurm's states of its tasks and by the records of the tasks themselves. Pure.

States: https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from dagster_llm_batch.text import plain_words
from dagster_llm_batch.types import BatchStatus

__all__ = ["LATE", "ArrayTask", "Standing", "is_over", "of_all", "of_exit", "of_state"]

_RUNNING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
# A requeued task waits again, however its last start ended.
_PENDING = frozenset(
    {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING", "POWER_UP_NODE"}
)
_WORDS = {
    "TIMEOUT": (BatchStatus.EXPIRED, False, "over its time limit; raise time_limit or lower requests_per_task"),
    "DEADLINE": (BatchStatus.EXPIRED, False, "not done by its deadline"),
    "CANCELLED": (BatchStatus.CANCELED, False, "canceled"),
    "OUT_OF_MEMORY": (BatchStatus.FAILED, False, "out of memory; raise mem"),
    "FAILED": (BatchStatus.FAILED, False, "the job failed"),
    "COMPLETED": (BatchStatus.FAILED, False, "left no result; is the workdir shared with the nodes?"),
    "NODE_FAIL": (BatchStatus.FAILED, True, "its node failed"),
    "BOOT_FAIL": (BatchStatus.FAILED, True, "its node did not start"),
    "LAUNCH_FAILED": (BatchStatus.FAILED, True, "it could not be started on its node"),
    "PREEMPTED": (BatchStatus.FAILED, True, "another job took its place"),
    "REVOKED": (BatchStatus.FAILED, True, "another cluster took it"),
}
# in the log, where the state is FAILED
_MEMORY = ("Exceeded job memory limit", "oom_kill event", "oom-kill event")
LATE = frozenset({"COMPLETED", "FAILED"})
"""Ends that a task writes down itself: where its file is not seen yet, a shared directory may only be slow."""


class ArrayTask(NamedTuple):
    """One array task of one job, in Slurm's report."""

    name: str
    comment: str
    job_id: str
    task: int
    state: str
    reason: str
    ended_at: float | None


def array_task(noted: Mapping[str, Any]) -> ArrayTask | None:
    """Return a task from its note, or None for another file."""
    if noted.keys() != set(ArrayTask._fields) or type(noted["task"]) is not int:
        return None
    texts = (noted[name] for name in ("name", "comment", "job_id", "state", "reason"))
    is_task = all(isinstance(text, str) for text in texts) and isinstance(noted["ended_at"], int | float | None)
    return ArrayTask(**noted) if is_task else None


class Standing(NamedTuple):
    """The standing of a task, or of a whole batch. Without `status`, both Slurm and the folder lack it."""

    status: BatchStatus | None
    reason: str | None = None
    retryable: bool = False


def is_over(task: ArrayTask) -> bool:
    """Return whether Slurm reports its end."""
    return task.state.rstrip("+") in _WORDS


def of_exit(end: Mapping[str, Any], state: str | None, *, has_output: bool, log: str) -> Standing:
    """Judge a task that wrote its own `end`. `state` is Slurm's word for it, where Slurm was asked."""
    if end.get("canceled"):
        return Standing(BatchStatus.CANCELED)
    code = end.get("code")
    if code == 0:
        missing = f"The command ended well but wrote no output. {log}".strip()
        return Standing(BatchStatus.ENDED) if has_output else Standing(BatchStatus.FAILED, missing)
    if state == "OUT_OF_MEMORY":
        return of_state(state, "", log)
    reason = f"The command ended with code {plain_words(code)}. {log}".strip()
    return Standing(BatchStatus.ENDED if has_output else BatchStatus.FAILED, reason)


def of_state(state: str, reason: str, log: str) -> Standing:
    """Judge a task by Slurm's words alone. A word never seen before is RUNNING: waiting loses nothing."""
    word = state.rstrip("+")
    if word in _RUNNING:
        return Standing(BatchStatus.RUNNING)
    if word in _WORDS:
        status, retryable, meaning = _WORDS[word]
        if reason == "DependencyNeverSatisfied":
            status, meaning = BatchStatus.FAILED, "its dependency can never be satisfied"
        elif word == "FAILED" and any(sign in log for sign in _MEMORY):
            meaning = _WORDS["OUT_OF_MEMORY"][2]
        elif reason not in ("", "None"):
            meaning = f"{meaning} ({plain_words(reason)})"
        return Standing(status, f"Slurm: {word}, {meaning}. {log}".strip(), retryable)
    if word in _PENDING:
        return Standing(BatchStatus.PENDING, f"Slurm: {word}, {plain_words(reason) or 'no reason given'}.")
    return Standing(BatchStatus.RUNNING)


def of_all(tasks: Mapping[int, Standing], started: Collection[int]) -> Standing:
    """Judge a batch by its tasks.

    It is not over before all of them are. A single canceled task makes the batch canceled, since somebody wanted that.
    Else a batch with good and bad tasks has ended: the rows that the bad ones lack are missing, and are asked again.
    """
    standings = list(tasks.values())
    open_ones = [standing for standing in standings if standing.status is not None and not standing.status.is_terminal]
    if any(standing.status is None for standing in standings):
        return open_ones[0] if open_ones else Standing(None)
    by_status = {standing.status: standing for standing in reversed(standings)}
    if open_ones:
        runs = started or BatchStatus.RUNNING in by_status or len(open_ones) < len(standings)
        return Standing(BatchStatus.RUNNING) if runs else open_ones[0]
    reasons = [
        f"task {task}: {standing.reason}" if len(tasks) > 1 else standing.reason
        for task, standing in tasks.items()
        if standing.reason
    ]
    reason = " | ".join(reasons) or None
    for status in (BatchStatus.CANCELED, BatchStatus.ENDED, BatchStatus.EXPIRED):
        if status in by_status:
            return Standing(status, reason)
    return Standing(BatchStatus.FAILED, reason, all(standing.retryable for standing in standings))
