"""Statistics of a labeled partition, counted part by part: in constant memory, however many its rows are."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.label_join import Labeled
from dagster_llm_batch.core.left_out import waiting_reason
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.types import SKIPPED, BatchStatus, Outcome

if TYPE_CHECKING:
    from dagster_llm_batch.storage.ledger.records import Shard

__all__ = ["PREVIEW_ROWS", "LabelStats", "RejectReasons", "add_to_version", "first_rows"]

PREVIEW_ROWS = 5
# most reasons that are kept apart: a reason may quote its reply, and occur in one row only
_REASONS = 10_000
_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens")

# Requests with these may have no answer, for a reason that is one of their batch.
_UNANSWERED = (Outcome.CANCELED.value, Outcome.EXPIRED.value, Outcome.MISSING.value, Outcome.ERRORED.value)


class _Origin(NamedTuple):
    """The sending that a row's result comes from. All are None if the row was not sent, or has lost its result."""

    provider: str | None
    batch_id: str | None
    wave: int | None
    lane: str | None
    ended_at: datetime | None


_ORIGIN_COLUMNS = ["llm_provider", "llm_batch_id", "llm_attempt", "llm_lane", "llm_completed_at"]


@dataclass(frozen=True)
class RejectReasons:
    """The rejects of a partition by their reasons.

    Attributes:
        waiting: Rows that wait for a person's `retry`, by the cause of their shard, in words.
        others: All other rows by outcome, reason, and whether they were not sent since an image cannot be read.
    """

    waiting: Counter[str]
    others: Counter[tuple[str, str | None, bool]]


class LabelStats:
    """Counts, previews and data version of one submission. Give `add` all parts of it, one after the other."""

    def __init__(self, labeling: Labeling) -> None:
        # rows
        self.labeled = self.rejected = 0
        # labels that were read out of Markdown fences
        self.fenced = 0
        # quotes of each kind of match, also of rows that are rejects for a missing quote
        self.quotes: Counter[str] = Counter()
        # rows of each
        self.outcomes: Counter[str] = Counter()
        # rejects that may have no answer, by outcome and origin
        self.unanswered: Counter[tuple[str, _Origin]] = Counter()
        # rejects by outcome and reason, and by origin where they may have no answer
        self._rejects: Counter[tuple[str, str | None, _Origin | None]] = Counter()
        self.tokens = dict.fromkeys(_TOKENS, 0)
        # of each provider and model that answered
        self.usage: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        # labels of each level of a cascade, and why
        self.levels: Counter[tuple[str, str]] = Counter()
        self.first_labels: list[dict[str, Any]] = []
        self.first_rejects: list[dict[str, Any]] = []
        self.labels_schema = self.rejects_schema = pa.schema([])
        # of labels, but for provenance
        self.columns = labeling.label_columns
        self.reject_columns = [labeling.key, "llm_outcome", "llm_reason", "llm_reply"]
        self._provider, self._model = labeling.provider, labeling.spec.model
        self._version = hashlib.blake2b(digest_size=12)

    @property
    def skipped(self) -> int:
        """Rows that are empty, and were not sent."""
        return self.outcomes[SKIPPED]

    @property
    def reasons(self) -> Counter[tuple[str, str | None]]:
        """Rejects by outcome and reason."""
        reasons: Counter[tuple[str, str | None]] = Counter()
        for (outcome, reason, _), rows in self._rejects.items():
            reasons[outcome, reason] += rows
        return reasons

    def explain_rejects(self, shards: Iterable[Shard]) -> RejectReasons:
        """Return the rejects by their reasons. `shards` are all that may have their results; not needed if `unanswered`
        is empty.
        """
        find_cause = _CauseFinder(shards)
        waiting: Counter[str] = Counter()
        for (outcome, origin), rows in self.unanswered.items():
            if (cause := find_cause(outcome, origin)) is not None:
                waiting[cause] += rows
        others: Counter[tuple[str, str | None, bool]] = Counter()
        for (outcome, reason, of), rows in self._rejects.items():
            if of is None or find_cause(outcome, of) is None:
                # A lost row lacks an origin, too, but has another outcome.
                is_unsent = of is not None and of.provider is None and outcome == Outcome.ERRORED.value
                others[outcome, reason, is_unsent] += rows
        return RejectReasons(waiting, others)

    @property
    def version(self) -> str:
        """Changes when key, kept columns or labels do, or how they are taken apart; provenance does not count."""
        return self._version.hexdigest()

    def add(self, part: Labeled) -> None:
        """Count one part of the rows."""
        labels, rejects = part.labels, part.rejects
        self.labeled += len(labels)
        self.rejected += len(rejects)
        self.fenced += part.fenced
        self.labels_schema, self.rejects_schema = labels.schema, rejects.schema
        for table in (labels, rejects):
            self.outcomes.update(
                {counted["values"]: counted["counts"] for counted in table["llm_outcome"].value_counts().to_pylist()}
            )
            for name in self.tokens:
                self.tokens[name] += pc.sum(table[f"llm_{name}"]).as_py() or 0
            counted = table.select(["llm_provider", "llm_model", *(f"llm_{name}" for name in _TOKENS)])
            for provider, of_provider in _apart(counted, "llm_provider"):
                for model, rows in _apart(of_provider, "llm_model"):
                    who = (provider or self._provider, model or self._model)
                    self.usage[who].update({name: pc.sum(rows[f"llm_{name}"]).as_py() or 0 for name in _TOKENS})
        if "llm_level" in labels.column_names:
            counted = labels.group_by(["llm_level", "llm_why"]).aggregate([([], "count_all")])
            self.levels.update({(row["llm_level"], row["llm_why"]): row["count_all"] for row in counted.to_pylist()})
        self.quotes += part.quotes
        self._add_rejects(rejects)
        self.first_labels += first_rows(labels.select(self.columns), PREVIEW_ROWS - len(self.first_labels))
        self.first_rejects += first_rows(rejects.select(self.reject_columns), PREVIEW_ROWS - len(self.first_rejects))
        add_to_version(self._version, labels.select(self.columns))

    def _add_rejects(self, rejects: pa.Table) -> None:
        # The usual case.
        if not len(rejects):
            return
        outcomes, reasons = (rejects[name].to_pylist() for name in ("llm_outcome", "llm_reason"))
        places, origins = _origins(rejects)
        for (outcome, reason, place), rows in Counter(zip(outcomes, reasons, places, strict=True)).items():
            origin = origins[place] if outcome in _UNANSWERED else None
            self._rejects[outcome, reason, origin] += rows
            if origin is not None:
                self.unanswered[outcome, origin] += rows
        if len(self._rejects) > _REASONS:
            self._rejects = Counter(dict(self._rejects.most_common(_REASONS)))


def _origins(rows: pa.Table) -> tuple[Sequence[int], Sequence[_Origin]]:
    """Return the place of each row's origin in the second list."""
    numbers = np.zeros(len(rows), np.int64)
    for name in _ORIGIN_COLUMNS:
        encoded = rows[name].combine_chunks().dictionary_encode(null_encoding="encode")
        numbers = numbers * max(len(encoded.dictionary), 1) + encoded.indices.to_numpy()
    _, first, places = np.unique(numbers, return_index=True, return_inverse=True)
    origins = rows.select(_ORIGIN_COLUMNS).take(pa.array(first))
    return places.tolist(), [_Origin(*row.values()) for row in origins.to_pylist()]


class _CauseFinder:
    """Decides from the cause of its shard whether an unanswered request waits for a person."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._shards: dict[tuple[object, ...], list[Shard]] = defaultdict(list)
        for shard in shards:
            if shard.has_answers:
                self._shards[shard.provider, shard.batch.batch_id, shard.wave, shard.lane.value].append(shard)

    def __call__(self, outcome: str, origin: _Origin) -> str | None:
        """Return why a request with this outcome waits for a person; None if it may be sent again."""
        alike = self._shards.get(origin[:-1])
        if alike is None:
            return None
        # Shards that were never in a batch differ by the time at which they ended.
        shard = min(alike, key=lambda one: one.ended_at != origin.ended_at)
        # Unless the batch has failed as a whole, an error is the provider's answer to this request.
        is_answered = outcome == Outcome.ERRORED.value and shard.batch.status is not BatchStatus.FAILED
        if is_answered or shard.cause is None or not shard.cause.is_final:
            return None
        return waiting_reason(shard.cause, has_ended=shard.batch.status is not None and shard.batch.status.is_terminal)


def _apart(table: pa.Table, name: str) -> Iterator[tuple[Any, pa.Table]]:
    """Yield the rows of each value of a column that has few. Arrow's `group_by` takes 8 MB to load and to run."""
    column = table[name]
    values = column.unique().to_pylist()
    for value in values:
        is_it = column.is_null() if value is None else pc.fill_null(pc.equal(column, value), fill_value=False)
        yield value, table if len(values) == 1 else table.filter(is_it)


def first_rows(table: pa.Table, most: int = PREVIEW_ROWS) -> list[dict[str, Any]]:
    """Return the first rows, for a preview."""
    rows: list[dict[str, Any]] = table.slice(0, most).to_pylist()
    return rows


def add_to_version(digest: hashlib.blake2b, table: pa.Table) -> None:
    """Add rows to the digest of a data version."""
    # Chunks are joined first: how a table was cut into batches must not change its version.
    for batch in table.combine_chunks().to_batches():
        digest.update(batch.serialize())
