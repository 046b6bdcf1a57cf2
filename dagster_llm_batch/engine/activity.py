"""Activity on undelivered submissions: the next step for each, runs at work, and records of runs and the sensor."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime

from dagster_llm_batch.errors import (
    TransientError,
)
from dagster_llm_batch.loop import activity
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.submit_queue import keep_places
from dagster_llm_batch.states import IN_FLIGHT, ShardState
from dagster_llm_batch.storage.ledger.apart import OnUnreadable
from dagster_llm_batch.storage.ledger.events import LandingFailed, LandingLost, Stranded, Turn, Unavailable
from dagster_llm_batch.storage.ledger.queues import QueueLines
from dagster_llm_batch.storage.ledger.records import Progress

__all__ = ["Activity"]


class Activity:
    """The activity on the submissions of one deployment: `Engine.activity`."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment, self._ledger = deployment, deployment.ledger

    def needs_recovery(self, progress: Progress) -> bool:
        """Return whether a create call of the submission left no record."""
        return ShardState.SUBMITTING in progress.states

    def queue_lines(self) -> QueueLines:
        """Return the lines before declared queues, for `can_advance` of many submissions. Each line is read once."""
        return QueueLines(self._ledger.queues)

    def can_advance(self, progress: Progress, lines: QueueLines | None = None) -> bool:
        """Return whether `advance` would send, collect or settle something."""
        submission, states = progress.submission, set(progress.states)
        if ShardState.PLANNED in states and activity.can_send(self._deployment, submission, lines):
            return True
        return not states & {ShardState.PLANNED, *IN_FLIGHT} and not self._ledger.submissions.find_unsettled(
            submission.reused_from
        )

    def at_work(self, run_id: str) -> AbstractContextManager[object]:
        """Show during a block that this run plans and sends, so that its plans are not sent by other runs."""
        return self._deployment.at_work(run_id)

    def runs_at_work(self) -> set[str]:
        """Return the ids of the runs that plan and send now, without dead processes."""
        return self._deployment.runs_at_work()

    def keep_places(self, assets: Sequence[str]) -> None:
        """Record that a process handles these assets. Other assets' shards lose their place in queues after a while."""
        keep_places(self._deployment, assets)

    def outlook(self, unreadable: OnUnreadable | None = None) -> activity.Outlook:
        """Return the undelivered submissions with their processes and last events. See Submissions.progress."""
        return activity.look_out(self._deployment, unreadable)

    def note_turns(self, submission_ids: Sequence[str]) -> None:
        """Record that waiting shards may be sent, so that a run for them has a new run key."""
        self._ledger.events.add_all(submission_ids, Turn())

    def note_unavailable(self, submission_id: str, error: TransientError) -> None:
        """Record that the provider did not answer, and that another try is worthwhile later."""
        self._ledger.events.add(submission_id, Unavailable(str(error)))

    def note_failed(self, asset: str, partition: str, detail: str) -> None:
        """Record that a run failed to materialize a partition's labels. Other partitions then get separate runs."""
        if history := self._ledger.submissions.of_partition(self._deployment.namespace, asset, partition):
            self._ledger.events.add(history[0].submission_id, LandingFailed(detail))

    def lost_runs(self, submission_id: str) -> int:
        """Return how many of the last runs for the labels ended without a result."""
        return activity.count_lost(self._ledger.events.of_submission(submission_id))

    def note_lost(self, submission_id: str, detail: str) -> None:
        """Record that a run for the labels ended without a result, and that another one is worthwhile."""
        self._ledger.events.add(submission_id, LandingLost(detail))

    def note_stranded(self, submission_id: str, detail: str) -> None:
        """Record that further runs are useless until a person acts. Any later event starts a new count."""
        self._ledger.events.add(submission_id, Stranded(detail))

    def note_reported(self, submission_ids: Sequence[str]) -> None:
        """Record that the waits of these submissions were reported to a person."""
        self._ledger.submissions.mark_reported(submission_ids)

    def reported_since(self, since: datetime) -> set[str]:
        """Return the undelivered submissions with a wait that was reported to a person since then."""
        # A later time than now was set by a wrong clock.
        return self._ledger.submissions.find_reported(self._deployment.namespace, since, self._deployment.clock())
