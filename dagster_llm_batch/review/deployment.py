"""Data that the pages read, and the only data that they write: people's judgments of rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class ReviewedDeployment:
    """Sources of the pages. `look` finds the tables, and is called again and again, since runs add partitions.

    `judged` are the datasets with an asset that makes gold of their judgments. `waiting` has a person's open tasks
    before labels come, by dataset.
    """

    name: str
    ledger: Ledger
    payloads: PayloadStore
    namespace: str
    look: Callable[[], Sequence[StoredAsset]]
    console_url: Callable[[str, str], str | None] = lambda _provider, _batch_id: None
    forms: Sequence[LabelForm] = ()
    judged: Sequence[str] = ()
    waiting: Callable[[], Sequence[tuple[str, str]]] = tuple
    browser: TableBrowser = field(default_factory=TableBrowser)
    _seen: list[tuple[float, Sequence[StoredAsset]]] = field(default_factory=list)

    def asset(self, key: str) -> StoredAsset | None:
        """Return the asset of this key."""
        return next((asset for asset in self.assets() if asset.key == key), None)

    def assets(self) -> Sequence[StoredAsset]:
        """Return all tables, listed at most some seconds ago."""
        # To ask Dagster's event log of each asset takes longer than a page should.
        if not self._seen or time.monotonic() - self._seen[-1][0] > _SECONDS_KNOWN:
            self.browser.forget()
            self._seen[:] = [(time.monotonic(), self.look())]
        return self._seen[-1][1]

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
        return [
            judgment
            for form in self.forms_of(column)
            for judgment in standing_judgments(self.ledger.judgments.of_row(self.namespace, form.dataset, key))
            if judgment.kind != "skip" and (partition is None or judgment.partition in ("", partition))
        ]

    def forms_of(self, key: str) -> list[LabelForm]:
        """Return the forms for judging rows of a table with this key."""
        return [form for form in self.forms if form.key == key]

    def is_erased(self, dataset: str, partition: str, key: str) -> bool:
        """Return whether a person had this row erased: nothing of it is stored any more, its key included."""
        return any(
            stone.undone_at is None
            and stone.partition in (None, partition)
            and stone.digest == key_digest(stone.salt, key)
            for stone in self.ledger.tombstones.list_all(self.namespace, dataset)
        )
