"""Advances a submission in a run; in `wait` mode until it is settled, or needs a person."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from dagster_llm_batch.engine.condition_facts import read_facts
from dagster_llm_batch.engine.conditions import WAITS_IN_VAIN, find_conditions
from dagster_llm_batch.engine.queue_places import QueueWait, find_queue_waits, send_before
from dagster_llm_batch.errors import LeaseError, LLMBatchError, TransientError, UnreadableError
from dagster_llm_batch.loop.status import Status
from dagster_llm_batch.progress import pace_of, progress_text

if TYPE_CHECKING:
    import dagster as dg

    from dagster_llm_batch.assets.dataset import Dataset
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["advance"]

_TELL_EVERY = timedelta(minutes=10)


def advance(context: dg.AssetExecutionContext, dataset: Dataset, engine: Engine, submission_id: str) -> Status:
    """Advance the submission as far as it goes now; in `wait` mode, wait until it is settled."""
    note, is_first, queues = "", True, _QueueLog(context)
    while True:
        try:
            # The user may have fixed the cause before the run. So the first attempt is immediate; later ones keep to
            # the sensor's pauses.
            status = engine.advance(dataset.labeling, submission_id, keeps_pauses=not is_first)
        except LeaseError as error:
            if dataset.mode == "deferred":
                context.log.info(str(error))
                return engine.status(submission_id)
            status = engine.status(submission_id)
        except UnreadableError as error:
            # The ledger already has the time of the next attempt.
            context.log.warning(str(error))
            status = engine.status(submission_id)
        except TransientError as error:
            # Only time is lost: the note in the ledger makes the sensor try again later.
            engine.activity.note_unavailable(submission_id, error)
            context.log.warning(f"The provider does not answer now, to be tried again: {error}")
            status = engine.status(submission_id)
        is_first = False
        if status.is_settled or dataset.mode == "deferred":
            return status
        _refuse_stuck(engine, {submission_id, *status.submission.reused_from})
        # The submission may wait for batches of others that are not polled elsewhere, or for unsent requests of others.
        # So this run polls and sends them.
        waits = find_queue_waits(engine, status)
        queues.tell(waits, engine.now())
        engine.poll_beside(status)
        for why in send_before(engine, dataset.labeling, waits):
            queues.tell_of_trouble(why)
        if (text := progress_text(status)) != note:
            context.log.info(f"Waiting: {progress_text(status, pace_of(engine, status))}")
            note = text
        time.sleep(dataset.resource(context).poll_seconds)


class _QueueLog:
    """Logs the requests that a run waits for in declared queues, at the start and then regularly."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._log = context.log
        self._troubles: set[str] = set()
        self._told_at: datetime | None = None

    def tell(self, waits: Sequence[QueueWait], now: datetime) -> None:
        """Log the requests that are ahead in the queue."""
        if not waits:
            self._told_at = None
        elif self._told_at is None or abs(now - self._told_at) >= _TELL_EVERY:
            self._told_at = now
            for wait in waits:
                self._log.info(str(wait))

    def tell_of_trouble(self, why: str) -> None:
        """Log once why requests that are ahead could not be sent."""
        if why not in self._troubles:
            self._troubles.add(why)
            self._log.info(f"Requests that wait before it cannot be sent now: {why}")


def _refuse_stuck(engine: Engine, awaited: set[str]) -> None:
    """Raise LLMBatchError if one of the awaited submissions waits in vain until a person acts."""
    undelivered = [
        one for one in engine.ledger.submissions.progress(engine.namespace) if one.submission.submission_id in awaited
    ]
    for condition in find_conditions(read_facts(engine, None, (), undelivered=undelivered)):
        if condition.kind in WAITS_IN_VAIN and condition.is_due(engine.now()):
            then = "This run waits no longer; another goes on where it is."
            raise LLMBatchError(f"{condition.advice}. {then}")
