"""Progress of submissions, in the same words in logs, skip reasons, observations and on the command line.

410 of 1,000 requests done (41 %), 2 failed; 3.1 per minute; oldest 2 h 13 m; expected end 2026-01-02 14:05 UTC; 9 in
10 by 2026-01-02 17:40 UTC
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagster_llm_batch.loop.progress import Pace, pace
from dagster_llm_batch.states import ENDED, IN_FLIGHT, ShardState
from dagster_llm_batch.storage.ledger.batches import count_batches
from dagster_llm_batch.storage.ledger.records import Progress
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.text import age_text

if TYPE_CHECKING:
    from datetime import datetime

    from dagster_llm_batch.advice.end_forecast import EndHistory
    from dagster_llm_batch.core.durations import EndForecast
    from dagster_llm_batch.engine import Status
    from dagster_llm_batch.engine.engine import Engine
    from dagster_llm_batch.storage.ledger import Ledger

__all__ = [
    "NOTHING_TO_SEND",
    "end_history",
    "end_of",
    "is_further",
    "pace_of",
    "pace_text",
    "progress_bar",
    "progress_text",
    "shared_text",
    "stage",
    "states_cell",
    "states_text",
    "together",
    "unread_text",
]

NOTHING_TO_SEND = "nothing to send"
"""Text for a submission without requests: its rows are answered already, or it has no rows."""

_CELLS = 20
_QUARTERS = 4


def pace_of(engine: Engine, status: Status) -> Pace:
    """Measure the pace of one submission now."""
    progress = _glance(status)
    now = engine.now()
    if progress.oldest_submitted_at is None:
        return pace(progress, now)
    return pace(progress, now, end_of(end_history(engine.ledger, engine.namespace, now), progress, now))


def end_history(ledger: Ledger, namespace: str, now: datetime) -> EndHistory:
    """Return the ends in the ledger, for questions about any number of submissions."""
    from dagster_llm_batch.advice.end_forecast import EndHistory  # noqa: PLC0415 - only where something is in flight

    return EndHistory(ledger, namespace, now)


def end_of(history: EndHistory, progress: Progress, now: datetime) -> EndForecast:
    """Return how long a submission in flight takes from plan to end, given that it is still running."""
    from dagster_llm_batch.advice.end_forecast import EndQuestion, Owner  # noqa: PLC0415 - as above

    submission = progress.submission
    owner = Owner(submission.provider, submission.account, submission.model)
    # A forecast from single batches is for one round that was sent at once.
    is_simple = (submission.end_basis or {}).get("basis") == "batches" and submission.waves == 1
    question = EndQuestion(owner, submission.requests - submission.reused, sum(progress.states.values()), is_simple)
    return history.forecast_end(submission.asset, question, age=now - submission.created_at)


def together(paces: Sequence[Pace]) -> Pace:
    """Add several paces up. The end is the last one, if all are known; the age is the oldest one's."""
    ages = [part.age for part in paces if part.age is not None]
    rates = [part.per_minute for part in paces if part.per_minute is not None]
    ends = [part.expected_end_at for part in paces if part.expected_end_at is not None]
    late_ends = [part.p90_end_at for part in paces if part.p90_end_at is not None]
    return Pace(
        done=sum(part.done for part in paces),
        total=sum(part.total for part in paces),
        failed=sum(part.failed for part in paces),
        age=max(ages, default=None),
        per_minute=sum(rates) if rates else None,
        expected_end_at=max(ends) if ends and len(ends) == len(paces) else None,
        # For a single one only: the sum of several has no such time, even if nine in ten of each have ended.
        p90_end_at=late_ends[0] if len(paces) == len(late_ends) == 1 else None,
    )


def progress_text(progress: Progress | Status, its_pace: Pace | None = None) -> str:
    """Return one line on a submission: round, batches and shards by state, and its pace if given."""
    round_name = f"round {progress.submission.waves}"
    if not progress.states:
        return f"{round_name}: {NOTHING_TO_SEND}"
    its_pace = its_pace or Pace(progress.done, progress.total, 0, None, None, None)
    return f"{round_name}: {states_text(progress)}; {pace_text(its_pace)}"


def unread_text(engine: Engine, status: Status) -> str | None:
    """Return the batches of a submission with unreadable results, and the reasons; None without such batches."""
    if not any(shard.state in ENDED for shard in status.shards):
        return None
    unread = engine.ledger.unread.find(engine.namespace, submission_id=status.submission.submission_id)
    if not unread:
        return None
    count = count_batches(each.shard for each in unread)
    batches = "1 ended batch" if count == 1 else f"{count:,} ended batches"
    return f"the results of {batches} cannot be read since {unread[0].since:%Y-%m-%d %H:%M} UTC: {unread[0].why}"


def states_text(progress: Progress | Status) -> str:
    """Return the number of batches, and of shards without one, by state: "2 shards planned, 1 batch submitted"."""
    return _states_text(progress, ("batch", "batches"))


def states_cell(progress: Progress | Status) -> str:
    """Return `states_text` for a column named batches: "2 shards planned, 1 submitted"."""
    return _states_text(progress, None)


def _states_text(progress: Progress | Status, noun: tuple[str, str] | None) -> str:
    parts = []
    for state in sorted({*progress.batches, *progress.unbatched}):
        if count := progress.batches.get(state):
            named = "" if noun is None else f" {noun[0] if count == 1 else noun[1]}"
            parts.append(f"{count:,}{named} {state.value}")
        if count := progress.unbatched.get(state):
            parts.append(f"{count:,} {'shard' if count == 1 else 'shards'} {state.value}")
    return ", ".join(parts) or NOTHING_TO_SEND


def shared_text(ledger: Ledger, namespace: str, each: Sequence[Progress]) -> str | None:
    """Return how many batches in flight carry these submissions together; None without shared batches."""
    ids = [progress.submission.submission_id for progress in each]
    apart = sum(progress.batches.get(state, 0) for progress in each for state in IN_FLIGHT)
    together = ledger.batches.count_in_flight(namespace, ids) if len(ids) > 1 and apart > 1 else apart
    if together >= apart:
        return None
    batches = "1 batch is" if together == 1 else f"{together:,} batches are"
    return f"{batches} in flight in all: several of these submissions share a batch"


def pace_text(its_pace: Pace) -> str:
    """Return counts, then rate, age and expected end if they are known."""
    if not its_pace.total:
        return NOTHING_TO_SEND
    failed = f", {its_pace.failed:,} failed" if its_pace.failed else ""
    parts = [f"{its_pace.done:,} of {its_pace.total:,} requests done ({its_pace.percent} %){failed}"]
    if its_pace.per_minute is not None:
        parts.append(f"{its_pace.per_minute:,.1f} per minute")
    if its_pace.age is not None:
        parts.append(f"oldest {age_text(its_pace.age)}")
    if its_pace.expected_end_at is not None:
        parts.append(f"expected end {its_pace.expected_end_at:%Y-%m-%d %H:%M} UTC")
    if its_pace.p90_end_at is not None:
        parts.append(f"9 in 10 by {its_pace.p90_end_at:%Y-%m-%d %H:%M} UTC")
    return "; ".join(parts)


def progress_bar(done: int, total: int) -> str:
    """Draw the progress as a bar that is full when all is done."""
    filled = _CELLS * done // total if total else _CELLS
    return "█" * filled + "░" * (_CELLS - filled)


def stage(wave: int, done: int, total: int) -> tuple[int, int]:
    """Return the round, and the quarters of the requests that are done: a rise is worth an observation."""
    return wave, _QUARTERS * done // total if total else _QUARTERS


def _glance(status: Status) -> Progress:
    """Sum up one submission as `Ledger.submissions.progress` does for all at once."""
    shards = status.shards
    flying = [
        shard.batch.submitted_at for shard in shards if shard.state is ShardState.SUBMITTED and shard.batch.submitted_at
    ]
    return Progress(
        submission=status.submission,
        states={state: sum(shard.state is state for shard in shards) for state in {shard.state for shard in shards}},
        batches=status.batches,
        unbatched=status.unbatched,
        total=status.total,
        done=status.done,
        failed=status.failed,
        asked=count_requests(shard for shard in shards if shard.wave == status.submission.waves),
        oldest_submitted_at=min(flying, default=None),
    )


def is_further(before: Progress, after: Progress) -> bool:
    """Return whether another round has begun, or another quarter of the requests is done."""
    stages = [stage(each.submission.waves, each.done, each.total) for each in (before, after)]
    return stages[1] > stages[0]
