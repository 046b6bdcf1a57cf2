"""Tombstones: keys of rows that a person had erased."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import sqlalchemy as sa

from dagster_llm_batch.storage.ledger.holds import erase_examples
from dagster_llm_batch.storage.ledger.member import Member
from dagster_llm_batch.storage.ledger.records import Tombstone
from dagster_llm_batch.storage.ledger.schema import TOMBSTONE, from_row, to_row

__all__ = ["Tombstones"]

_TOMBSTONES = (
    sa.select(TOMBSTONE).where(TOMBSTONE.c.namespace == sa.bindparam("namespace")).order_by(TOMBSTONE.c.tombstone_id)
)

_TOMBSTONES_OF = _TOMBSTONES.where(TOMBSTONE.c.asset.in_(sa.bindparam("assets", expanding=True)))


class Tombstones(Member):
    """Tombstones: keys of rows that a person had erased."""

    def add(self, tombstones: Sequence[Tombstone]) -> None:
        """Record that rows are erased, before their files are changed. Deletes examples that may name them."""
        if tombstones:
            assets: defaultdict[str, set[str]] = defaultdict(set)
            for tombstone in tombstones:
                assets[tombstone.namespace].add(tombstone.asset)
            with self._database.write() as connection:
                connection.execute(sa.insert(TOMBSTONE), [to_row(tombstone) for tombstone in tombstones])
                for namespace, names in assets.items():
                    erase_examples(connection, namespace, names)

    def take_back(self, namespace: str, asset: str, partition: str | None, digests: Sequence[str]) -> int:
        """Record that rows may be asked again; return how many tombstones this ended."""
        same_partition = TOMBSTONE.c.partition.is_(None) if partition is None else TOMBSTONE.c.partition == partition
        chosen = (TOMBSTONE.c.namespace == namespace, TOMBSTONE.c.asset == asset, same_partition)
        update = sa.update(TOMBSTONE).where(*chosen, TOMBSTONE.c.digest.in_(digests), TOMBSTONE.c.undone_at.is_(None))
        with self._database.write() as connection:
            return int(connection.execute(update.values(undone_at=self._clock())).rowcount)

    def list_all(self, namespace: str, *assets: str) -> list[Tombstone]:
        """Return the tombstones of these assets, or of all, oldest first, including those that were taken back."""
        query, values = (_TOMBSTONES_OF, {"assets": assets}) if assets else (_TOMBSTONES, {})
        with self._database.read() as connection:
            rows = connection.execute(query, {"namespace": namespace, **values}).mappings()
            return [from_row(Tombstone, row) for row in rows]
