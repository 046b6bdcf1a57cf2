"""Decide whether near copies share the answers of their leaders, by a random audit. Pure.

    round 1   all leaders, and the audited rows: a random sample of the near copies
    round 2   the other near copies, if the audit fails; those of leaders without an answer in any case

The guarantee: **with probability `confidence`, at most the share `error` of the near copies have a delivered target
that differs from their own answer.** An audited row gets its own answer, so only other rows can differ.

*Proof.* Call a near copy wrong if its leader has an answer, and its own answer differs or is missing. The answers of
leaders exist without the sample, and so does the answer that each copy would get. So the wrong rows are a fixed,
unknown set of the N rows, and n of these are drawn uniformly, without replacement. Then the number of wrong rows in the
sample is hypergeometric: it depends only on N, n and the number of wrong rows, and not on their groups. Large groups,
whose rows are right or wrong together, change nothing: rows are drawn, not groups. `count_allowed` is the largest
number that a table with more than `error` wrong rows stays below with the probability 1 - `confidence` at most.

The bound holds neither for future rows nor for a sample that draws groups. Each submission draws a sample of its rows.
If a user tries other settings, prompts or models on the same rows, all these looks share 1 - `confidence`, like the
looks of a cascade (thresholds.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.label_join import Labeled
from dagster_llm_batch.core.levels import percent
from dagster_llm_batch.core.thresholds import look_confidence
from dagster_llm_batch.types import Outcome

__all__ = ["AUDITED", "HELD", "NEAR", "OWN", "PAIRS", "SHARED_COLUMNS", "Shares", "newest_first"]

_ID, _OUTCOME = "llm_request_id", "llm_outcome"
_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatch)

NEAR = "near"
"""The value of `llm_reuse` of a row with the answer of a leader."""

HELD, AUDITED, OWN = "held", "audited", "own"
"""States of a near copy: it waits for the audit; it is in the audit; or it was asked before, so it has its own answer.
"""

PAIRS = pa.schema(
    [
        pa.field(_ID, pa.string()),
        pa.field("leader", pa.string()),
        pa.field("similarity", pa.float64()),
        pa.field("rows", pa.int64()),
        pa.field("drawn", pa.int64()),
        pa.field("state", pa.string()),
        pa.field("is_shared", pa.bool_()),
    ]
)
"""The stored near copies of a submission: the request, and its leader's (null if that was erased); the number of its
rows, and of those that the audit has drawn; its state; and whether it has its leader's answer.
"""

SHARED_COLUMNS = (pa.field("llm_reuse", pa.string()), pa.field("llm_similarity", pa.float64()))
"""Columns of labels, after all others: NEAR for a row with the answer of a near copy, and their similarity."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Near copies of one submission, and the decision on them.

    Attributes:
        pairs: The near copies: see PAIRS.
        target: The column that is compared.
        similarity, error, confidence: The settings.
        grouping: The settings of the groups, as JSON.
        look: Number of the look at these rows, from 1 on.
        look_id: The model, the prompt and all settings of this look, as JSON.
        rows, sample: The numbers of near copies and of audited rows, when the audit was drawn.
        tokens: The mean number of input tokens of the held requests; None without such requests.
        input_bound: The largest number of input tokens of one of them; None if unknown.
        allowed: The number of audited rows that may differ; -1: the near copies are too few for an audit to save a
            request, so all are asked.
        wrong: The number that differ; None until the audit has ended.
    """

    pairs: pa.Table
    target: str
    similarity: float
    error: float
    confidence: float
    grouping: str
    look: int
    look_id: str
    rows: int
    sample: int
    tokens: int | None = None
    input_bound: int | None = None
    allowed: int = -1
    wrong: int | None = None

    def settings_json(self) -> str:
        """Return all but the pairs in their stored form."""
        return json.dumps({each.name: getattr(self, each.name) for each in fields(self) if each.name != "pairs"})

    @classmethod
    def of_json(cls, stored: str, pairs: pa.Table) -> Shares:
        """Return the shares from the output of `settings_json`, and their pairs."""
        return cls(pairs=pairs, **json.loads(stored))

    @property
    def look_confidence(self) -> float:
        """The confidence that this look needs, so that all looks at these rows together keep the guarantee."""
        return look_confidence(self.confidence, self.look)

    @property
    def asks_all(self) -> bool:
        """Whether all near copies are asked from the start."""
        return self.allowed < 0

    @property
    def passes(self) -> bool:
        """Whether the audit allows to share answers. False until it has ended."""
        return self.wrong is not None and self.wrong <= self.allowed

    @cached_property
    def held(self) -> pa.Array:
        """The requests that wait for the audit."""
        return self._of(HELD)

    @cached_property
    def audited(self) -> pa.Array:
        """The requests in the audit."""
        return self._of(AUDITED)

    def _of(self, state: str) -> pa.Array:
        return self.pairs.filter(pc.equal(self.pairs["state"], state))[_ID].combine_chunks()

    @property
    def read(self) -> list[str]:
        """The columns of results that decide."""
        return [_ID, _OUTCOME, self.target]

    @cached_property
    def compared(self) -> pa.Array:
        """The requests whose results decide: leaders, and the audited near copies."""
        drawn = self.pairs.filter(pc.greater(self.pairs["drawn"], 0))[_ID]
        return pc.unique(pa.chunked_array([*drawn.chunks, *self.pairs["leader"].chunks], pa.string())).drop_null()

    def decide(self, results: pa.Table) -> Shares:
        """Return the same with the decision. `results`: of `compared`, the first of a request counts (newest_first)."""
        pairs = self.pairs
        own, lead = (
            results.take(pc.index_in(pairs[name].combine_chunks(), results[_ID].combine_chunks()))
            for name in (_ID, "leader")
        )
        led = _are_good(lead)
        values = zip(own[self.target].to_pylist(), lead[self.target].to_pylist(), strict=True)
        equal = np.fromiter((one == other for one, other in values), bool, len(pairs))
        wrong = led & ~(_are_good(own) & equal)
        count = int(pairs["drawn"].to_numpy()[wrong].sum())
        held = pc.equal(pairs["state"], HELD).to_numpy(zero_copy_only=False) if len(pairs) else np.zeros(0, bool)
        are_shared = pa.array(led & held & (count <= self.allowed), pa.bool_())
        place = pairs.schema.get_field_index("is_shared")
        return replace(self, pairs=pairs.set_column(place, PAIRS.field(place), are_shared), wrong=count)

    @property
    def asked_next(self) -> pa.Array:
        """The requests of the second round: those held, and without an answer to share. Only after the decision."""
        waits = pc.and_(pc.equal(self.pairs["state"], HELD), pc.invert(self.pairs["is_shared"]))
        return self.pairs.filter(waits)[_ID].combine_chunks()

    def without(self, going: Collection[str]) -> Shares:
        """Return the same without erased requests. The copies of an erased leader are asked, or lose its answer."""
        gone = pa.array(sorted(going), pa.string())
        kept = self.pairs.filter(pc.invert(pc.is_in(self.pairs[_ID], gone)))
        lost = pc.is_in(kept["leader"], gone)
        for name, value in (("leader", pa.scalar(None, pa.string())), ("is_shared", pa.scalar(value=False))):
            place = kept.schema.get_field_index(name)
            kept = kept.set_column(place, PAIRS.field(place), pc.if_else(lost, value, kept[name]))
        return replace(self, pairs=kept.cast(PAIRS))

    # labels -----------------------------------------------------------------------------------------------------------

    @cached_property
    def _shared(self) -> tuple[pa.Array, pa.Array, pa.Array]:
        shared = self.pairs.filter(self.pairs["is_shared"]).combine_chunks()
        ids, leaders, similarities = (shared[name].combine_chunks() for name in (_ID, "leader", "similarity"))
        return ids, leaders, similarities

    @cached_property
    def copies_of(self) -> Mapping[str, int]:
        """The number of requests that have a leader's answer, by the leader."""
        counts = pc.value_counts(self._shared[1])
        return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))

    def redirect(self, rows: _Rows) -> _Rows:
        """Return rows of a manifest, in which near copies have the requests of their leaders, and SHARED_COLUMNS."""
        ids, leaders, similarities = self._shared
        found = pc.index_in(rows[_ID], ids)
        at = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
        place = rows.schema.get_field_index(_ID)
        named = pc.if_else(pc.is_valid(at), pa.scalar(NEAR), pa.scalar(None, pa.string()))
        rows = rows.set_column(place, rows.schema.field(_ID), pc.coalesce(leaders.take(at), rows[_ID]))
        return rows.append_column(SHARED_COLUMNS[0], named).append_column(SHARED_COLUMNS[1], similarities.take(at))

    @staticmethod
    def extend(schema: pa.Schema) -> pa.Schema:
        """Return the schema of redirected rows."""
        return pa.schema([*schema, *SHARED_COLUMNS])

    @staticmethod
    def arrange(labeled: Labeled) -> Labeled:
        """Return labels with SHARED_COLUMNS at the end, and rejects without them."""
        names = [field.name for field in SHARED_COLUMNS]
        own = [name for name in labeled.labels.column_names if name not in names]
        return replace(
            labeled, labels=labeled.labels.select([*own, *names]), rejects=labeled.rejects.drop_columns(names)
        )

    # words ------------------------------------------------------------------------------------------------------------

    @property
    def promise_text(self) -> str:
        """The guarantee in words."""
        return (
            f"With a confidence of {percent(self.confidence)}, at most {percent(self.error)} of the near copies have "
            f"another '{self.target}' than their own answer would have."
        )

    @property
    def plan_text(self) -> str:
        """The planned requests in words."""
        if not self.rows:
            return f"finds no near copies at a similarity of {self.similarity:g}: all rows are asked"
        if self.asks_all:
            return f"finds {self.rows:,} near copies, too few for an audit to save a request: all rows are asked"
        look = "" if self.look == 1 else f"; this is look {self.look:,} at these rows, at {self.look_confidence:.3%}"
        return (
            f"finds {self.rows:,} near copies. It asks their leaders and an audit of {self.sample:,} copies first. If "
            f"at most {self.allowed:,} of these differ from their leaders, {len(self.held):,} requests are saved; "
            f"otherwise they are asked in a second round{look}"
        )

    @property
    def result_text(self) -> str:
        """The decision in words, as far as it is there."""
        if self.asks_all:
            return "all rows are asked"
        if self.wrong is None:
            return "not decided yet: the leaders and the audited copies answer first"
        what = (
            f"{self.wrong:,} of {self.sample:,} audited copies differ from their leaders, {self.allowed:,} may differ"
        )
        shared = len(self._shared[0])
        return f"{what}: {shared:,} requests share an answer" if self.passes else f"{what}: all copies are asked"


def newest_first(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    """Return results, oldest first, so that the first of a request is its newest success, else its newest."""
    rows = pa.concat_tables([*reversed(tables), schema.empty_table()]).combine_chunks()
    good = pa.array(_are_good(rows))
    return pa.concat_tables([rows.filter(good), rows.filter(pc.invert(good))]).combine_chunks()


def _are_good(results: pa.Table) -> Any:
    good = pc.fill_null(pc.equal(results[_OUTCOME], Outcome.SUCCEEDED.value), fill_value=False)
    return good.combine_chunks().to_numpy(zero_copy_only=False).astype(bool)
