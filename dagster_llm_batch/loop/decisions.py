"""Decisions of a person on a shard: whether its create call made a batch, or to abandon the batch.

A decision applies to the state that the person has seen. The present state is read under the leases, and the decision
is refused if another process has changed the state meanwhile.
"""

from __future__ import annotations

from dagster_llm_batch.errors import IllegalTransitionError
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.held import hold_and_read
from dagster_llm_batch.loop.waits import refuse_readable
from dagster_llm_batch.states import ENDED, TRANSITIONS, Reason, Transition
from dagster_llm_batch.storage.ledger.records import Shard, ShardFields
from dagster_llm_batch.types import NOT_AWAITED, Cause

__all__ = ["give_up", "resolve"]


def resolve(deployment: Deployment, shard_id: str, batch_id: str | None) -> Shard:
    """See Engine.resolve."""
    ledger = deployment.ledger

    def sent_together() -> tuple[set[str], list[Shard]]:
        shard = ledger.shards.get(shard_id)
        sharing = ledger.shards.sent_with([shard.submission_id])
        together = [other for other in sharing if other.batch.batch_key == shard.batch.batch_key] or [shard]
        return {other.submission_id for other in together}, together

    seen = ledger.shards.get(shard_id)
    with hold_and_read(deployment, sent_together) as (_, together):
        present = next(shard for shard in together if shard.shard_id == shard_id)
        if present.batch.sent_at != seen.batch.sent_at:
            raise IllegalTransitionError(
                f"Shard {shard_id} was sent again while this decision waited for the process that sent it: it is "
                f"'{present.state.value}' now, and the decision was on another create call. Nothing was changed. To "
                "list the shards in doubt now, run `dagster-llm-batch resolve` without a shard."
            )
        ids, key = [other.shard_id for other in together], present.batch.batch_key
        if batch_id is None:
            words = "resolved by a person: no batch exists"
            why: ShardFields = {"reason": words, "reason_kind": Reason.NO_BATCH}
            moved = ledger.shards.move_all(ids, Transition.NOT_SENT, batch_key=key, **why)
        else:
            words, now = f"resolved by a person: {batch_id}", deployment.clock()
            made: ShardFields = {"batch_id": batch_id, "submitted_at": now}
            moved = ledger.shards.move_all(ids, Transition.ACCEPTED, batch_key=key, words=words, **made)
    return next(moved_shard for moved_shard in moved if moved_shard.shard_id == shard_id)


def give_up(deployment: Deployment, shard_id: str) -> Shard:
    """See Engine.give_up."""

    def sharing() -> tuple[set[str], tuple[Shard, list[Shard]]]:
        shard = deployment.ledger.shards.get(shard_id)
        shards = deployment.ledger.shards.of_batch(shard)
        return {each.submission_id for each in shards}, (shard, shards)

    # All leases are taken at once. Two processes that took them one by one could wait for each other.
    with hold_and_read(deployment, sharing) as (_, (shard, shards)):
        refuse_readable(deployment, shard)
        if shard.state in ENDED and shard.cause in NOT_AWAITED:
            raise IllegalTransitionError(
                f"Shard {shard_id} was abandoned before, or its batch is gone. Nothing was changed. Materialize the "
                "labels, or send its rows again with `dagster-llm-batch retry`."
            )
        # Another submission of the batch may have its results, or may have abandoned them.
        going = [
            each
            for each in shards
            if each.state in TRANSITIONS[Transition.GIVEN_UP][0] and each.cause not in NOT_AWAITED
        ]
        now, has_ended = deployment.clock(), shard.state in ENDED
        why = "since its results could not be read" if has_ended else "while its batch had not ended"
        going = going if shard in going else [shard]
        moved = deployment.ledger.shards.move_all(
            [each.shard_id for each in going],
            Transition.GIVEN_UP,
            of_batch=shard.batch.batch_id,
            # Polling needs no lease: a batch that ends at this moment has results.
            sources={each.state for each in going},
            cause=Cause.GIVEN_UP,
            reason=f"abandoned by a person at {now:%Y-%m-%d %H:%M} UTC, {why}",
            reason_kind=Reason.GIVEN_UP,
            ended_at=(shard.ended_at or now) if has_ended else now,
        )
    return next(moved_shard for moved_shard in moved if moved_shard.shard_id == shard_id)
