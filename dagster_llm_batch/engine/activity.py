"""All undelivered submissions at a glance: who works on them, and what happened to each last. Reads the ledger only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile

from dagster_llm_batch.engine.deployment import Deployment
from dagster_llm_batch.engine.submit_queue import UNAVAILABLE, WAITS
from dagster_llm_batch.states import Move
from dagster_llm_batch.storage.ledger.queries import Unreadable
from dagster_llm_batch.storage.ledger.records import Event

__all__ = ["LOST", "STRANDED", "TURN", "Outlook", "count_lost", "look_out"]

TURN = "turn"
"""The event that what waited may go."""

LOST, STRANDED = "landing_lost", "landing_stranded"
"""Events: a run that was to land the labels ended without having done anything, and another is asked for, or none any
more until a person has looked."""


@dataclass(frozen=True)
class Outlook:
    """As of one moment. Submissions are those of the deployment that are not delivered, by id."""

    busy: Collection[str]
    last: Mapping[str, Event]
    last_but_waiting: Mapping[str, Event]

    def is_open(self, submission_id: str) -> bool:
        """Whether nobody has delivered it meanwhile. Only of such is anything known."""
        return submission_id in self.last

    def is_busy(self, submission_id: str) -> bool:
        """Whether another process works on it."""
        return submission_id in self.busy

    def attempt(self, submission_id: str) -> int:
        """A number that changes whenever something happened to the submission: a run for it is worth another try."""
        return self.last[submission_id].event_id

    def waited(self, submission_id: str) -> bool:
        """Whether its last event is that it had to wait for its turn."""
        return self.last[submission_id].kind == WAITS

    def unavailable_since(self, submission_id: str) -> datetime | None:
        """When the provider did not answer, or not take a batch, if that is the last that happened."""
        last = self.last_but_waiting[submission_id]
        return last.at if last.kind in (UNAVAILABLE, Move.NOT_SENT.value) else None

    def stranded(self, submission_id: str) -> str | None:
        """Why no run is asked for any more; None where one is."""
        last = self.last_but_waiting.get(submission_id)
        return last.detail or "" if last is not None and last.kind == STRANDED else None


def count_lost(events: Sequence[Event]) -> int:
    """How many runs in a row, up to now, were lost: nothing else has happened since the first of them was asked for."""
    since = takewhile(lambda event: event.kind in (LOST, WAITS, TURN), reversed(events))
    return sum(event.kind == LOST for event in since)


def look_out(deployment: Deployment, unreadable: Unreadable | None = None) -> Outlook:
    """See Engine.outlook. A few queries, however many there are."""
    ledger, namespace = deployment.ledger, deployment.namespace
    return Outlook(
        busy=deployment.leases(),
        last=ledger.last_events(namespace, unreadable=unreadable),
        last_but_waiting=ledger.last_events(namespace, besides=(WAITS, TURN), unreadable=unreadable),
    )
