"""The places before a submission in declared queues: their holders, and how a waiting run sends their requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import LeaseError, LLMBatchError
from dagster_llm_batch.loop.deployment import LONGEST_PAUSE
from dagster_llm_batch.loop.status import Status
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import QueuePlace, Shard
from dagster_llm_batch.types import Lane

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["QueueWait", "find_queue_waits", "send_before"]

_NAMED = 3


class QueueWait(NamedTuple):
    """Planned shards of a submission that wait in one declared queue, and the places before them.

    Places in flight come first, then waiting ones, in the order of the line.
    """

    queue: str
    requests: int
    asset: str
    before: Sequence[QueuePlace]

    def __str__(self) -> str:
        places = [_place_text(place) for place in self.before[:_NAMED]]
        if len(self.before) > _NAMED:
            places.append(f"{len(self.before) - _NAMED:,} more submissions")
        text = (
            f"{self.requests:,} requests wait for a place in the queue of {self.queue}, which `queue_limits` bounds, "
            f"behind {', and '.join(places)}."
        )
        if not any(place.is_planned and place.asset != self.asset for place in self.before):
            return text
        then = "A run or a sensor of those datasets sends their requests; an hour without one ends their places."
        return f"{text} {then}"


def find_queue_waits(engine: Engine, status: Status) -> list[QueueWait]:
    """Return the declared queues in which planned shards of a submission wait behind others."""
    deployment, namespace = engine.deployment, engine.namespace
    queues: dict[tuple[str, str, str | None], list[Shard]] = {}
    for shard in status.shards if deployment.queue_limits else ():
        if shard.state is ShardState.PLANNED and shard.lane is Lane.BATCH:
            limit, model = deployment.queue_limit(shard.provider, shard.model)
            if limit is not None:
                queues.setdefault((shard.provider, shard.account, model), []).append(shard)
    waits = []
    for (provider, _, model), shards in queues.items():
        first = engine.ledger.queues.first_of(shards)
        before = engine.ledger.queues.places_before(
            namespace, first, occupancy=deployment.queue_occupancy(first), longest_pause=LONGEST_PAUSE, model=model
        )
        if before:
            name = provider if model is None else f"{provider}/{model}"
            waits.append(QueueWait(name, sum(shard.requests for shard in shards), status.submission.asset, before))
    return waits


def send_before(engine: Engine, labeling: Labeling, waits: Sequence[QueueWait]) -> list[str]:
    """Send the requests of the same dataset that wait before a submission in its queues; return the errors.

    This is for a run that waits. In a range or in a queue, runs are sequential. Then the run that would send
    these requests begins after this one, and each would wait for the other. This run does not keep the places of other
    datasets, which end unless another process keeps them.
    """
    own = dict.fromkeys(
        place.submission_id
        for wait in waits
        for place in wait.before
        if place.is_planned and (place.namespace, place.asset) == (engine.namespace, labeling.asset)
    )
    return [why for submission_id in own for why in _send(engine, labeling, submission_id)]


def _send(engine: Engine, labeling: Labeling, submission_id: str) -> Iterator[str]:
    try:
        engine.submit(labeling, submission_id)
    except LeaseError:
        # The process that works on it sends it.
        return
    except LLMBatchError as error:
        # Its own run also reports the error.
        yield str(error)


def _place_text(place: QueuePlace) -> str:
    where = f"{place.asset} {place.partition}".strip()
    if place.is_planned:
        return f"{place.requests:,} of {where} that are not sent yet"
    return f"{place.requests:,} requests of {where} that are in flight"
