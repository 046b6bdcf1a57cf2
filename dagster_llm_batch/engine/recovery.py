"""Recovery of sendings that the ledger lacks, as after a backup was restored: by the receipts in the payload store."""

from __future__ import annotations

from datetime import timedelta
from itertools import chain

from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.receipts import Receipt, find_unrecorded, recover_all, recover_partition
from dagster_llm_batch.states import HoldReason
from dagster_llm_batch.storage.ledger.records import Hold, Shard, Submission

__all__ = ["Recovery"]

_SHOWN_FOR = timedelta(days=1)


class Recovery:
    """The recovery of one deployment: `Engine.recovery`.

    It sends nothing. `Engine.recover_batches` asks the provider for recovered batches; requests that are answered or
    under way are not sent again.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    def recover(self, asset: str, partition: str = "") -> list[Shard]:
        """Record sendings of a partition that the ledger lacks; return their shards. `Engine.plan` does this first."""
        return recover_partition(self._deployment, asset, partition)

    def recover_all(self) -> list[Shard]:
        """Do `recover` for each partition of the namespace. Lists the whole payload store."""
        return recover_all(self._deployment)

    def find_unrecorded(self) -> list[Receipt]:
        """Return the receipts of the sendings that `recover_all` would record. Changes nothing."""
        return find_unrecorded(self._deployment)

    def newest_hold(self, submission: Submission) -> Hold | None:
        """Return today's newest hold for recovered sendings, of the submission or of submissions whose answers
        it uses.
        """
        ids, since = (submission.submission_id, *submission.reused_from), self._deployment.clock() - _SHOWN_FOR
        holds = chain.from_iterable(self._deployment.ledger.holds.of(ids, HoldReason.RECOVERED).values())
        return max((hold for hold in holds if hold.since >= since), key=lambda hold: hold.since, default=None)
