"""Data that the pages read, and the only data that they write: people's judgments of rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dagster_llm_batch.core.keys import key_digest
from dagster_llm_batch.review.evidence import Attempt, read_attempts
from dagster_llm_batch.review.forms import LabelForm
from dagster_llm_batch.review.tables import StoredAsset, StoredRow, TableBrowser
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.judgments import standing_judgments
from dagster_llm_batch.storage.ledger.records import Judgment, Submission
from dagster_llm_batch.storage.payloads import PayloadStore

__all__ = ["ReviewedDeployment"]

_SECONDS_KNOWN = 10.0
_MOST_SECONDS_KNOWN = 60.0
"""After this time a page waits for a new list of tables. Before, it shows the tables of the last list."""


@dataclass(frozen=True)
class ReviewedDeployment:
    """Sources of the pages. `look` finds the tables, and is called again and again, since runs add partitions. `now` is
    a clock in seconds that never goes back.

    `judged` has the asset that makes gold of a dataset's judgments, by dataset. `waiting` has a person's open tasks
    before labels come, by dataset.
    """

    name: str
    ledger: Ledger
    payloads: PayloadStore
    namespace: str
    look: Callable[[], Sequence[StoredAsset]]
    console_url: Callable[[str, str], str | None] = lambda _provider, _batch_id: None
    forms: Sequence[LabelForm] = ()
    judged: Mapping[str, str] = field(default_factory=dict)
    waiting: Callable[[], Sequence[tuple[str, str]]] = tuple
    browser: TableBrowser = field(default_factory=TableBrowser)
    now: Callable[[], float] = time.monotonic
    _seen: list[tuple[float, Sequence[StoredAsset]]] = field(default_factory=list)
    _looking: threading.Lock = field(default_factory=threading.Lock)

    def asset(self, key: str) -> StoredAsset | None:
        """Return the asset of this key."""
        return next((asset for asset in self.assets() if asset.key == key), None)

    def assets(self) -> Sequence[StoredAsset]:
        """Return all tables, listed at most a minute ago. While somebody uses the page, it is some seconds."""
        # To ask Dagster's event log of each asset takes longer than a person who judges rows should wait.
        seconds = self.now() - self._seen[-1][0] if self._seen else _MOST_SECONDS_KNOWN
        if seconds >= _MOST_SECONDS_KNOWN:
            self._list_tables()
        elif seconds > _SECONDS_KNOWN and self._looking.acquire(blocking=False):
            threading.Thread(target=self._list_tables_again, daemon=True).start()
        return self._seen[-1][1]

    def _list_tables(self) -> None:
        at, tables = self.now(), self.look()
        self.browser.forget()
        self._seen[:] = [(at, tables)]

    def _list_tables_again(self) -> None:
        try:
            # An error that lasts is shown by the page that waits for the list.
            with suppress(Exception):
                self._list_tables()
        finally:
            self._looking.release()

    def submissions(self, dataset: str, partition: str) -> list[Submission]:
        """Return the submissions of a partition, and the submissions that they reuse, the oldest first."""
        found: dict[str, Submission] = {}
        waiting = list(reversed(self.ledger.submissions.of_partition(self.namespace, dataset, partition)))
        while waiting:
            submission = waiting.pop()
            if submission.submission_id not in found:
                found[submission.submission_id] = submission
                waiting += [self.ledger.submissions.get(source) for source in submission.reused_from]
        return sorted(found.values(), key=lambda submission: submission.created_at)

    def attempts(self, dataset: str, partition: str, request_id: str) -> list[Attempt]:
        """Return each time that a request of a partition was sent."""
        return read_attempts(self.ledger, self.payloads, self.submissions(dataset, partition), request_id)

    def attempts_of(self, asset: StoredAsset, row: StoredRow, partition: str | None = None) -> list[Attempt]:
        """Return each time that the request of a stored row was sent; empty for a row without a request."""
        request_id = row.get("llm_request_id")
        if asset.dataset is None or not isinstance(request_id, str):
            return []
        return self.attempts(asset.dataset, partition or row.partition, request_id)

    def hidden(self, dataset: str | None, value: Any) -> Any:
        """Return a request or a reply of a dataset, or a part of it, without values that the page hides."""
        of_dataset = (asset.hide_sent for asset in self.assets() if asset.dataset == dataset)
        hide = next(filter(None, of_dataset), None)
        return value if hide is None else hide(value)

    def labels_of(self, candidate: str) -> StoredAsset | None:
        """Return the labels with this name in an evaluation; None if they belong to no dataset, or to two."""
        found = [
            asset
            for asset in self.assets()
            if asset.dataset is not None and asset.role == "labels" and asset.key.rpartition("/")[2] == candidate
        ]
        return found[0] if len(found) == 1 else None

    def judgments(self, column: str, key: str, partition: str | None) -> list[Judgment]:
        """Return the standing judgments of a row, of whichever dataset has this column as its key."""
        if "\0" in key:
            return []
        return [
            judgment
            for form in self.forms_of(column)
            for judgment in standing_judgments(self.ledger.judgments.of_row(self.namespace, form.dataset, key))
            if judgment.kind != "skip" and (partition is None or judgment.partition in ("", partition))
        ]

    def forms_of(self, key: str) -> list[LabelForm]:
        """Return the forms for judging rows of a table with this key."""
        return [form for form in self.forms if form.key == key]

    def forms_offered(self, asset: StoredAsset, key: str) -> list[LabelForm]:
        """Return the forms that a table with this key offers: of its own dataset, and of datasets whose judgments
        become gold. If there are none, of all datasets with this key.
        """
        found = self.forms_of(key)
        return [form for form in found if form.dataset in (asset.dataset, *self.judged)] or found

    def is_erased(self, dataset: str, partition: str, key: str) -> bool:
        """Return whether a person had this row erased: nothing of it is stored any more, its key included."""
        return any(
            stone.undone_at is None
            and stone.partition in (None, partition)
            and stone.digest == key_digest(stone.salt, key)
            for stone in self.ledger.tombstones.list_all(self.namespace, dataset)
        )
