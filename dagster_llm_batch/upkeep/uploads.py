"""Remove request files that were uploaded to providers for batches, once they are not needed any more.

    collected ── grace ──▶ every shard of the batch stored and whole? ──▶ delete at the provider ──▶ ledger

1. Remove only files that this package has uploaded (`ownership.py`), for batches whose shards are all collected, of any
   submission. An abandoned batch that may still end keeps its file for a month.
2. Remove only if the results of all these shards are in the payload store, unchanged since they were written.
3. The file is removed before the ledger records it: after a crash in between, it is removed again, without effect.
4. Results stay at the provider, unless a person asks to remove them (`remove_results`). Then they cannot be fetched
   again if the payload store loses them.
5. An error of one provider keeps only this provider's files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from dagster_llm_batch.files.ownership import owns_batch
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.pruned import is_pruned
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.capabilities import delete_batch, delete_request_file
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import Shard

__all__ = ["Removal", "UploadRemover", "accounts_of"]

_MOST = 10_000


@dataclass
class Removal:
    """Batches removed at providers, and by provider and by batch the reason for each remaining one."""

    batches: list[str] = field(default_factory=list)
    troubles: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


class UploadRemover:
    """Remove the providers' stored copies of collected batches of one deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._uploads = deployment.ledger.uploads

    def due(self, *, besides: Collection[str] = (), limit: int = _MOST) -> list[Shard]:
        """Return the first shards of batches whose request files are to go, the oldest first. Not of `besides`."""
        grace = self._deployment.keep_request_files
        if grace is None:
            return []
        before = self._deployment.clock() - grace
        return self._uploads.due(
            self._deployment.namespace, accounts_of(self._deployment, besides), before, limit=limit
        )

    def with_results(self, older_than: timedelta) -> list[Shard]:
        """Return the first shards of batches, collected longer ago than this, whose results the providers may store."""
        before = self._deployment.clock() - older_than
        return self._uploads.with_results(
            self._deployment.namespace, accounts_of(self._deployment), before, limit=_MOST
        )

    def remove_files(
        self,
        *,
        besides: Collection[str] = (),
        most: int = _MOST,
        has_time: Callable[[], bool] = lambda: True,
    ) -> Removal:
        """Delete the request files that are due, `most` of them, for as long as there is time.

        Those of the providers and batches in `besides` are left alone.
        """

        def delete(provider: Provider, shards: Sequence[Shard]) -> None:
            for batch_id in self._uploads.batches_of(shards):
                delete_request_file(provider, batch_id)
            self._uploads.record_done([shards[0].shard_id])

        due = [shard for shard in self.due(besides=besides) if _name_of(shard) not in besides]
        return self._remove(due, delete, most, has_time)

    def remove_results(self, older_than: timedelta) -> Removal:
        """Delete all that providers store of batches that were collected longer ago than this: results, too."""
        removal = Removal()

        def delete(provider: Provider, shards: Sequence[Shard]) -> None:
            batch_id = shards[0].batch.batch_id or ""
            if (left := delete_batch(provider, batch_id)) is not None:
                removal.kept[batch_id] = left
                return
            self._deployment.ledger.shards.record_erased_at_provider([shard.shard_id for shard in shards], batch_id)
            self._uploads.record_done([shards[0].shard_id])

        removed = self._remove(self.with_results(older_than), delete, _MOST, lambda: True)
        removed.batches = [batch_id for batch_id in removed.batches if batch_id not in removal.kept]
        removed.kept |= removal.kept
        return removed

    def _remove(
        self,
        firsts: Sequence[Shard],
        delete: Callable[[Provider, Sequence[Shard]], None],
        most: int,
        has_time: Callable[[], bool],
    ) -> Removal:
        removal = Removal()
        for first in firsts:
            if len(removal.batches) >= most or not has_time():
                break
            if first.provider in removal.troubles:
                continue
            name = _name_of(first)
            try:
                shards = self._deployment.ledger.shards.of_batch(first)
                if (reason := self._reason_to_keep(shards)) is not None:
                    removal.kept[name] = reason
                    continue
                delete(self._deployment.provider_of(first), shards)
            except Exception as error:  # noqa: BLE001 - of a provider, which may be the user's own: anything may come
                removal.troubles[first.provider] = str(error) or type(error).__name__
            else:
                removal.batches.append(name)
        return removal

    def _reason_to_keep(self, shards: Sequence[Shard]) -> str | None:
        """Return why a batch's stored copy at the provider has to stay; None if it is not needed."""
        payloads = self._deployment.payloads
        if not owns_batch(shards):
            return "it was adopted: its files there are its sender's"
        # First, since the check of stored files reads them entirely.
        for shard in shards:
            if shard.state is not ShardState.COLLECTED:
                return f"shard {shard.shard_id} in it is not collected"
        for shard in shards:
            # A batch that failed as a whole has results without lines. Old lines may have been pruned.
            path = shard.raw_path or shard.results_path
            if path is None or not payloads.is_whole(path):
                submission = self._deployment.ledger.submissions.get(shard.submission_id)
                # Results that newer submissions replaced are not needed.
                if not is_pruned(self._deployment.ledger, submission):
                    return f"the results of shard {shard.shard_id} are not whole in the payload store"
        return None


def accounts_of(deployment: Deployment, besides: Collection[str] = ()) -> list[tuple[str, str]]:
    """Return the names of the configured providers that can be made, each with its account. Not of `besides`."""
    accounts = []
    for name, provider in deployment.providers.items():
        if name not in besides:
            try:
                accounts.append((name, provider.account))
            except Exception:  # noqa: BLE001, S112 - it cannot be made; whoever polls it says why
                continue
    return accounts


def _name_of(first: Shard) -> str:
    return first.batch.batch_id or first.shard_id
