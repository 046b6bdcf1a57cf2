"""How far submissions are, in the same words in logs, skip reasons, observations and on the command line.

410 of 1,000 requests done (41 %), 2 failed; 3.1 per minute; oldest 2 h 13 m; expected end 2026-01-02 14:05 UTC
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from dagster_llm_batch.engine import Status
from dagster_llm_batch.engine.progress import Pace, pace, usual_duration
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import Progress
from dagster_llm_batch.text import age_text

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine
    from dagster_llm_batch.storage.ledger import Ledger

__all__ = [
    "NOTHING_TO_SEND",
    "pace_of",
    "pace_text",
    "progress_bar",
    "progress_text",
    "stage",
    "states_text",
    "together",
    "usual_of",
]

NOTHING_TO_SEND = "nothing to send"
"""What is said of a submission without requests: each row is answered already, or there is none."""

_CELLS = 20
_QUARTERS = 4
# submissions that tell how long one usually takes
_LOOKED_AT = 20


def pace_of(engine: Engine, status: Status) -> Pace:
    """Measure the pace of one submission now."""
    progress = _glance(status)
    current = pace(progress, engine.now())
    if current.age is None or current.per_minute is not None:
        return current
    return pace(progress, engine.now(), usual_of(engine.ledger, engine.namespace, status.submission.asset))


def usual_of(ledger: Ledger, namespace: str, asset: str) -> timedelta | None:
    """Return how long submissions of an asset take, by the newest ones."""
    return usual_duration(ledger.settled_submissions(namespace, asset, _LOOKED_AT))


def together(paces: Sequence[Pace]) -> Pace:
    """Add several paces up. The end is the last of theirs, where all are known; its age that of the oldest."""
    ages = [part.age for part in paces if part.age is not None]
    rates = [part.per_minute for part in paces if part.per_minute is not None]
    ends = [part.expected_end_at for part in paces if part.expected_end_at is not None]
    return Pace(
        done=sum(part.done for part in paces),
        total=sum(part.total for part in paces),
        failed=sum(part.failed for part in paces),
        age=max(ages, default=None),
        per_minute=sum(rates) if rates else None,
        expected_end_at=max(ends) if ends and len(ends) == len(paces) else None,
    )


def progress_text(progress: Progress | Status, its_pace: Pace | None = None) -> str:
    """Return one line on a submission: wave, batches by state, and its pace where one is given."""
    wave = f"wave {progress.submission.waves}"
    if not progress.states:
        return f"{wave}: {NOTHING_TO_SEND}"
    its_pace = its_pace or Pace(progress.done, progress.total, 0, None, None, None)
    return f"{wave}: batches {states_text(progress)}; {pace_text(its_pace)}"


def states_text(progress: Progress | Status) -> str:
    """Return how many batches are in each state, as in "2 planned, 1 submitted"."""
    return ", ".join(f"{count} {state}" for state, count in sorted(progress.states.items())) or NOTHING_TO_SEND


def pace_text(its_pace: Pace) -> str:
    """Return counts, then rate, age and expected end where they are known."""
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
    return "; ".join(parts)


def progress_bar(done: int, total: int) -> str:
    """Draw the progress as a bar that is full when all is done."""
    filled = _CELLS * done // total if total else _CELLS
    return "█" * filled + "░" * (_CELLS - filled)


def stage(wave: int, done: int, total: int) -> tuple[int, int]:
    """Return the wave and the quarters of the requests that are done: what is worth an observation when it rises."""
    return wave, _QUARTERS * done // total if total else _QUARTERS


def _glance(status: Status) -> Progress:
    """Sum up one submission as `Ledger.progress` does for all at once."""
    shards = status.shards
    flying = [shard.submitted_at for shard in shards if shard.state is ShardState.SUBMITTED and shard.submitted_at]
    return Progress(
        submission=status.submission,
        states={state: sum(shard.state is state for shard in shards) for state in {shard.state for shard in shards}},
        total=status.total,
        done=status.done,
        failed=status.failed,
        asked=sum(shard.requests for shard in shards if shard.wave == status.submission.waves),
        oldest_submitted_at=min(flying, default=None),
    )
