"""The ledger: all submissions and shards with their states. Nothing is lost, and nothing is paid for twice.

1. A shard changes its state only by a transition in the table of `states.py`: one compare-and-set, with its event in
   the same transaction. An illegal transition raises an error and changes nothing.
2. Unique keys in the database prevent duplicates of a submission's attempt, a round's shards, an account's batch id.
3. Every method is one transaction, and safe to call from several threads and processes at once.

The ledger holds counts, paths, digests and ids, but neither requests nor files nor batches. It deletes only holds
that no longer apply, and uploads whose files are gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

from dagster_llm_batch.storage.ledger.batches import Batches
from dagster_llm_batch.storage.ledger.database import Database, utc_now
from dagster_llm_batch.storage.ledger.event_log import EventLog
from dagster_llm_batch.storage.ledger.history import History
from dagster_llm_batch.storage.ledger.holds import Holds
from dagster_llm_batch.storage.ledger.judgments import Judgments, Notes
from dagster_llm_batch.storage.ledger.leases import Leases
from dagster_llm_batch.storage.ledger.money import Money
from dagster_llm_batch.storage.ledger.queues import Queues
from dagster_llm_batch.storage.ledger.shards import Shards
from dagster_llm_batch.storage.ledger.submissions import Submissions
from dagster_llm_batch.storage.ledger.tombstones import Tombstones
from dagster_llm_batch.storage.ledger.unread import UnreadResults
from dagster_llm_batch.storage.ledger.uploads import Uploads

if TYPE_CHECKING:
    from dagster_llm_batch.storage.ledger.documents import Documents

__all__ = ["Ledger"]


class Ledger:
    """A ledger in SQLite (a path or `sqlite:///path`) or PostgreSQL (`postgresql://…`). Connects on first use."""

    def __init__(self, url: str | os.PathLike[str], clock: Callable[[], datetime] = utc_now) -> None:
        database = Database(url)
        self._database, self._clock = database, clock
        self.submissions, self.shards = Submissions(database, clock), Shards(database, clock)
        self.money, self.queues = Money(database, clock), Queues(database, clock)
        self.events, self.tombstones = EventLog(database, clock), Tombstones(database, clock)
        self.history, self.leases = History(database, clock), Leases(database, clock)
        self.batches = Batches(database, clock)
        self.judgments, self.notes = Judgments(database), Notes(database, clock)
        self.uploads, self.unread = Uploads(database, clock), UnreadResults(database, clock)
        self.holds = Holds(database, clock)

    @cached_property
    def documents(self) -> Documents:
        """The documents in the vendors' storage."""
        # Few datasets upload documents.
        from dagster_llm_batch.storage.ledger.documents import Documents  # noqa: PLC0415

        return Documents(self._database, self._clock)

    def __repr__(self) -> str:
        return f"Ledger({self._database.shown_url!r})"

    def __str__(self) -> str:
        return self._database.shown_url

    def close(self) -> None:
        """Close the connections."""
        self._database.close()
