"""Statistics of a labeled partition, counted part by part: in constant memory, however many its rows are."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.label_join import Labeled
from dagster_llm_batch.core.results import WAITING
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.types import SKIPPED

__all__ = ["PREVIEW_ROWS", "LabelStats", "add_to_version", "first_rows"]

PREVIEW_ROWS = 5
# as many are remembered: a reason may quote its reply, and be that of one row
_REASONS = 10_000
_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens")


class LabelStats:
    """Counts, previews and data version of one submission. Give `add` all parts of it, one after the other."""

    def __init__(self, labeling: Labeling) -> None:
        # rows
        self.labeled = self.rejected = 0
        # labels that were read out of Markdown fences
        self.fenced = 0
        # rows of each
        self.outcomes: Counter[str] = Counter()
        # rejects by outcome and reason
        self.reasons: Counter[tuple[str, str | None]] = Counter()
        self.tokens = dict.fromkeys(_TOKENS, 0)
        # of each provider and model that answered
        self.usage: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        # labels of each level of a cascade, and why
        self.levels: Counter[tuple[str, str]] = Counter()
        self.first_labels: list[dict[str, Any]] = []
        self.first_rejects: list[dict[str, Any]] = []
        self.labels_schema = self.rejects_schema = pa.schema([])
        # of labels, but for provenance
        self.columns = [labeling.key, *labeling.keep, *labeling.reader.schema.names]
        self.reject_columns = [labeling.key, "llm_outcome", "llm_reason", "llm_reply"]
        self._provider, self._model = labeling.provider, labeling.spec.model
        self._version = hashlib.blake2b(digest_size=12)

    @property
    def skipped(self) -> int:
        """Rows that are empty, and were not sent."""
        return self.outcomes[SKIPPED]

    @property
    def waiting(self) -> Counter[str]:
        """Rows that are not sent again before a person says `retry`, by the reason."""
        waiting: Counter[str] = Counter()
        for (_, reason), rows in self.reasons.items():
            waiting.update({cause: rows for cause in WAITING if (reason or "").startswith(cause)})
        return waiting

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
        outcomes = rejects.select(["llm_outcome", "llm_reason"]).to_pylist()
        self.reasons.update((row["llm_outcome"], row["llm_reason"]) for row in outcomes)
        if len(self.reasons) > _REASONS:
            self.reasons = Counter(dict(self.reasons.most_common(_REASONS)))
        self.first_labels += first_rows(labels.select(self.columns), PREVIEW_ROWS - len(self.first_labels))
        self.first_rejects += first_rows(rejects.select(self.reject_columns), PREVIEW_ROWS - len(self.first_rejects))
        add_to_version(self._version, labels.select(self.columns))


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
