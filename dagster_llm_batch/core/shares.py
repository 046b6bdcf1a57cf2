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

In a cascade, the delivered labels are the leaders' final ones, and a copy's own answer is the oracle's: see
cascade_copies.py. `AuditedAnswers` is the part of this that older labels need, too: see relabels.py.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.cascade_copies import CascadeTerms
from dagster_llm_batch.core.label_join import Labeled
from dagster_llm_batch.core.levels import COPY, percent
from dagster_llm_batch.core.thresholds import count_allowed, look_confidence, reach_probability
from dagster_llm_batch.types import Outcome

__all__ = [
    "AUDITED",
    "HELD",
    "NEAR",
    "OWN",
    "PAIRS",
    "REUSE",
    "SHARED_COLUMNS",
    "AuditedAnswers",
    "Shares",
    "are_good",
    "newest_first",
]

_ID, _OUTCOME = "llm_request_id", "llm_outcome"
_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatch)

NEAR = "near"
"""The value of `llm_reuse` of a row with the answer of a leader."""

HELD, AUDITED, OWN = "held", "audited", "own"
"""States of a request that may take the answer of another one: it waits for the audit; it is in the audit; or it is
asked in any case.
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

REUSE = pa.field("llm_reuse", pa.string())
"""The column of labels that shows which rows have the answer of another request, and of which kind."""

SHARED_COLUMNS = (REUSE, pa.field("llm_similarity", pa.float64()))
"""Columns of labels, after all others: NEAR for a row with the answer of a near copy, and their similarity."""


@dataclass(frozen=True, kw_only=True)
class AuditedAnswers(ABC):
    """Requests of one submission that may take the answers of others, their leaders, and the audit that decides.

    Attributes:
        pairs: The requests, with their leaders: see `schema`.
        target: The column that is compared.
        error, confidence: With this confidence, at most this share of the rows get a wrong target.
        look: Number of the look at these rows, from 1 on.
        look_id: The model, the prompt and all settings of this look, as JSON.
        tried: The ids of all looks at these rows, in their order: files of earlier submissions may be pruned. Empty if
            this is the only one.
        rows, sample: The numbers of rows with a leader and of audited rows, when the audit was drawn; without the rows
            that were erased before the decision.
        tokens: The mean number of input tokens of the held requests; None without such requests.
        input_bound: The largest number of input tokens of one of them; None if unknown.
        allowed: The number of audited rows that may differ; -1: there are too few for an audit to save a request, so
            all are asked.
        wrong: The number that differ; None until the audit has ended.
        cascade: The guarantee of the cascade whose oracle answers the audit; None without a cascade.
        decided_after: With a cascade, the number of rounds before the decision.
        errors, errors_allowed: With a filter, the number of audited rows that break it, and the number that may.
    """

    schema: ClassVar[pa.Schema]
    """The columns of the pairs."""

    columns: ClassVar[Sequence[pa.Field]]
    """The columns that `redirect` adds to rows."""

    kind: ClassVar[str]
    """The name of it in metadata."""

    leads_elsewhere: ClassVar[bool]
    """Whether the leaders are requests of another submission, so that a file of this one has their answers."""

    why: ClassVar[str]
    """In a cascade, why its model is not asked these requests."""

    pairs: pa.Table
    target: str
    error: float
    confidence: float
    look: int
    look_id: str
    rows: int
    sample: int
    tokens: int | None = None
    input_bound: int | None = None
    allowed: int = -1
    wrong: int | None = None
    tried: tuple[str, ...] = ()
    cascade: CascadeTerms | None = None
    decided_after: int | None = None
    errors: int | None = None
    errors_allowed: int | None = None

    def settings_json(self) -> str:
        """Return all but the pairs in their stored form."""
        return json.dumps(self._settings())

    def _settings(self) -> dict[str, Any]:
        # The stored form of a first look, and without a cascade, stays the same.
        left_out = {"pairs"} if self.tried else {"pairs", "tried"}
        if self.cascade is None:
            left_out |= {"cascade", "decided_after", "errors", "errors_allowed"}
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in left_out}
        return found if self.cascade is None else {**found, "cascade": self.cascade.as_json()}

    @classmethod
    def of_json(cls, stored: str, pairs: pa.Table) -> Self:
        """Return the answers from the output of `settings_json`, and their pairs."""
        return cls(pairs=pairs, **cls._read_settings(stored))

    @classmethod
    def _read_settings(cls, stored: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(stored)
        if content.get("cascade") is not None:
            content["cascade"] = CascadeTerms(**content["cascade"])
        return {**content, "tried": tuple(content.get("tried", ()))}

    @property
    def looks(self) -> Sequence[str]:
        """The ids of all looks at these rows up to this submission. If all rows are asked, it is none itself."""
        return self.tried or (() if self.asks_all else (self.look_id,))

    @property
    def look_confidence(self) -> float:
        """The confidence that this look needs, so that all looks at these rows together keep the guarantee."""
        return look_confidence(self.confidence, self.look)

    @property
    def asks_all(self) -> bool:
        """Whether all rows are asked from the start."""
        # After an erasure, an audit may be too small while others wait for it.
        return self.allowed < 0 and not len(self.held)

    @property
    def least(self) -> float:
        """The least share of rows with a right target. In a cascade, they inherit the wrong labels that it allows."""
        if self.cascade is not None:
            return self.cascade.least_of_audited(self.error)
        # Exact: 1 - 0.02 is not 0.98 in floating point.
        return float(1 - Fraction(str(self.error)))

    @property
    def passes(self) -> bool:
        """Whether the audit allows to share answers. False until it has ended. A filter has a test of its own."""
        if self.cascade is None or self.cascade.filters is None:
            return self.wrong is not None and self.wrong <= self.allowed
        return self.errors is not None and self.errors <= (self.errors_allowed or 0)

    @cached_property
    def held(self) -> pa.Array:
        """The requests that wait for the audit."""
        return self.pairs.filter(pc.equal(self.pairs["state"], HELD))[_ID].combine_chunks()

    @property
    def audited(self) -> pa.Array:
        """The requests of the audit that have no answer yet."""
        return self.pairs.filter(pc.equal(self.pairs["state"], AUDITED))[_ID].combine_chunks()

    @property
    def read(self) -> list[str]:
        """The columns of results that decide."""
        return [_ID, _OUTCOME, self.target]

    @property
    @abstractmethod
    def compared(self) -> pa.Array:
        """The requests whose results decide."""

    @abstractmethod
    def decide(self, results: pa.Table) -> Self:
        """Return the same with the decision. `results`: of `compared`, the first of a request counts (newest_first)."""

    def _decided(self, can_share: np.ndarray[Any, Any], wrong: int, **found: Any) -> Self:
        """Return the decision: so many audited rows are wrong. `can_share` has the requests with a good leader.

        `found` has other fields that decide.
        """
        decided = replace(self, wrong=wrong, **found)
        held = pc.equal(self.pairs["state"], HELD).combine_chunks().to_numpy(zero_copy_only=False).astype(bool)
        are_shared = pa.array(can_share & held & decided.passes, pa.bool_())
        place = self.pairs.schema.get_field_index("is_shared")
        return replace(decided, pairs=self.pairs.set_column(place, self.schema.field(place), are_shared))

    @property
    def asked_next(self) -> pa.Array:
        """The requests of the second round: those held, and without an answer to share. Only after the decision."""
        waits = pc.and_(pc.equal(self.pairs["state"], HELD), pc.invert(self.pairs["is_shared"]))
        return self.pairs.filter(waits)[_ID].combine_chunks()

    def without(self, going: Collection[str]) -> Self:
        """Return the same without erased requests. The requests of an erased leader are asked, or lose its answer."""
        gone = pa.array(sorted(going), pa.string())
        kept = self.pairs.filter(pc.invert(pc.is_in(self.pairs[_ID], gone)))
        lost = pc.is_in(kept["leader"], gone)
        for name, value in (("leader", pa.scalar(None, pa.string())), ("is_shared", pa.scalar(value=False))):
            place = kept.schema.get_field_index(name)
            kept = kept.set_column(place, self.schema.field(place), pc.if_else(lost, value, kept[name]))
        rows, sample = (int(np.sum(kept[name].to_numpy())) for name in ("rows", "drawn"))
        left = replace(self, pairs=kept.cast(self.schema))
        if len(kept) == len(self.pairs) or not rows or self.wrong is not None or self.asks_all:
            return left
        # Fewer audited rows show less.
        allowed = count_allowed(sample, rows, self.least, self.look_confidence)
        return replace(left, rows=rows, sample=sample, allowed=allowed)

    # cascades ---------------------------------------------------------------------------------------------------------

    @cached_property
    def apart(self) -> pa.Array:
        """The requests of a cascade that its model is not asked. Without an audit, it is asked all."""
        of_cascade = self.cascade is not None and not self.asks_all
        return self.pairs.slice(0, None if of_cascade else 0)[_ID].combine_chunks()

    @cached_property
    def reach(self) -> pa.Array:
        """The probability that a cascade's oracle is asked each request of `apart`; null: not in this audit."""
        if not len(self.apart) or not self.passes:
            return pa.repeat(pa.scalar(1.0), len(self.apart))
        pairs = self.pairs
        # An older answer of a request that was not drawn now would count double.
        is_older = pc.and_(pc.equal(pairs["state"], OWN), pc.equal(pairs["drawn"], 0))
        rows, places = np.unique(pairs["rows"].to_numpy(), return_inverse=True)
        chances = np.array([reach_probability(int(count), self.sample, self.rows) for count in rows], float)
        reach = pc.if_else(is_older, pa.scalar(None, pa.float64()), pa.array(chances[places]))
        return pc.if_else(self._asked_anyway, 1.0, reach).combine_chunks()

    @property
    def _asked_anyway(self) -> pa.ChunkedArray:
        """Whether each request is asked although the audit passes, drawn or not."""
        return pc.is_in(self.pairs[_ID], self.asked_next)

    @property
    def rows_left(self) -> int:
        """The number of rows with a leader that no erasure has removed; 0 if all rows are asked."""
        return 0 if self.asks_all else int(np.sum(self.pairs["rows"].to_numpy()))

    @property
    def most_wrong(self) -> int:
        """The most rows of `apart` with a label that is not the oracle's, with the guaranteed probability."""
        if self.cascade is None or not self.passes:
            return 0
        return int((1 - Fraction(str(self.least))) * self.rows)

    def _count_errors(
        self,
        labels: list[Any],
        answers: list[Any],
        have_label: np.ndarray[Any, Any],
        answered: np.ndarray[Any, Any],
        drawn: np.ndarray[Any, Any],
    ) -> Mapping[str, int]:
        """Return the errors of a filter for `_decided`; empty without one. See CascadeTerms.count_errors."""
        if (terms := self.cascade) is None:
            return {}
        found = terms.count_errors(labels, answers, have_label, answered, drawn, self.least, self.look_confidence)
        return {} if found is None else dict(zip(("errors", "errors_allowed"), found, strict=True))

    # labels -----------------------------------------------------------------------------------------------------------

    @cached_property
    def shared(self) -> pa.Table:
        """The pairs that share an answer."""
        return self.pairs.filter(self.pairs["is_shared"]).combine_chunks()

    @cached_property
    def copies_of(self) -> Mapping[str, int]:
        """The number of requests that have a leader's answer, by the leader."""
        counts = pc.value_counts(self.shared["leader"].combine_chunks())
        return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))

    @property
    def keeps_file(self) -> bool:
        """Whether a file of this submission has the leaders' answers. It is the first of the results."""
        return self.leads_elsewhere and self.passes and len(self.shared) > 0

    def drop_twins(self, results: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield results, in their order, without other copies of the answers in that file.

        A submission with reused answers reads the older submission, too, and its costs would count twice. In a cascade,
        the label of a row could become an answer that the older cascade did not accept.
        """
        leaders = pc.unique(self.shared["leader"].combine_chunks()) if self.keeps_file else None
        for number, table in enumerate(results):
            is_first = number == 0 or leaders is None
            yield table if is_first else table.filter(pc.invert(pc.is_in(table[_ID], leaders)))

    @property
    @abstractmethod
    def outcomes_besides(self) -> Mapping[str, int]:
        """By leader, the number of requests with its outcome besides the first."""

    @abstractmethod
    def _columns_at(self, places: pa.Array) -> Sequence[pa.Array]:
        """Return the values of `columns` for rows of the shared pairs at these places; null for other rows."""

    def leaders_of(self, ids: pa.Array) -> pa.Array:
        """Return the request whose answer each of these requests has: its leader's, or its own."""
        own, leaders = (self.shared[name].combine_chunks() for name in (_ID, "leader"))
        return pc.coalesce(leaders.take(pc.index_in(ids, own)), ids)

    def redirect(self, rows: _Rows) -> _Rows:
        """Return rows of a manifest, in which shared requests are those of their leaders, with `columns`."""
        ids, leaders = (self.shared[name].combine_chunks() for name in (_ID, "leader"))
        found = pc.index_in(rows[_ID], ids)
        at = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
        place = rows.schema.get_field_index(_ID)
        rows = rows.set_column(place, rows.schema.field(_ID), pc.coalesce(leaders.take(at), rows[_ID]))
        for field, column in zip(self.columns, self._columns_at(at), strict=True):
            rows = rows.append_column(field, column)
        return rows

    def extend(self, schema: pa.Schema) -> pa.Schema:
        """Return the schema of redirected rows."""
        return pa.schema([*schema, *self.columns])

    def arrange(self, labeled: Labeled) -> Labeled:
        """Return labels with `columns` at the end, and rejects without them.

        The leaders of a cascade were drawn, and not the rows that take their labels.
        """
        labels = labeled.labels
        if "llm_why" in labels.column_names:
            is_shared = pc.is_valid(labels[REUSE.name])
            for name, value in self._of_shared.items():
                place = labels.schema.get_field_index(name)
                labels = labels.set_column(place, labels.field(place), pc.if_else(is_shared, value, labels[name]))
            labeled = replace(labeled, labels=labels)
        names = [field.name for field in self.columns]
        own = [name for name in labeled.labels.column_names if name not in names]
        return replace(
            labeled, labels=labeled.labels.select([*own, *names]), rejects=labeled.rejects.drop_columns(names)
        )

    @property
    def _of_shared(self) -> Mapping[str, pa.Scalar]:
        """Values of a cascade's columns that rows with the answer of a leader have."""
        return {"llm_why": pa.scalar(self.why), "llm_sample_probability": pa.scalar(None, pa.float64())}

    # words ------------------------------------------------------------------------------------------------------------

    @property
    def numbers(self) -> Mapping[str, int]:
        """Numbers of the decision that are worth a series, by name."""
        return {}

    def _errors_text(self, sample: str) -> str | None:
        """Return what decides on a filter, in words; None without one, or before the decision."""
        if self.errors is None or self.cascade is None:
            return None
        may = "too few yes for any" if (self.errors_allowed or 0) < 0 else f"{self.errors_allowed:,} may be"
        kind = "false" if self.cascade.filters == "precision" else "lost"
        return f"{self.errors:,} yes are {kind} in {sample}, {may}"

    @property
    @abstractmethod
    def promise_text(self) -> str:
        """The guarantee in words."""

    @property
    @abstractmethod
    def plan_text(self) -> str:
        """The planned requests in words."""

    @property
    @abstractmethod
    def result_text(self) -> str:
        """The decision in words, as far as it is there."""


@dataclass(frozen=True, kw_only=True)
class Shares(AuditedAnswers):
    """Near copies of one submission, and the decision on them. See PAIRS for the pairs.

    Attributes:
        similarity: The setting.
        grouping: The settings of the groups, as JSON.
        unlabeled: With a cascade, the leaders without a label of which no near copy is held.
    """

    schema: ClassVar[pa.Schema] = PAIRS
    columns: ClassVar[Sequence[pa.Field]] = SHARED_COLUMNS
    kind: ClassVar[str] = "near_copies"
    leads_elsewhere: ClassVar[bool] = False
    why: ClassVar[str] = COPY

    similarity: float
    grouping: str
    unlabeled: tuple[str, ...] = ()

    def _settings(self) -> dict[str, Any]:
        # The stored form without such leaders stays the same.
        content = super()._settings()
        return content if self.unlabeled else {name: content[name] for name in content if name != "unlabeled"}

    @classmethod
    def _read_settings(cls, stored: str) -> dict[str, Any]:
        content = super()._read_settings(stored)
        return {**content, "unlabeled": tuple(content.get("unlabeled", ()))}

    @property
    def _asked_anyway(self) -> pa.ChunkedArray:
        # All copies of a leader without a label are asked.
        asked = super()._asked_anyway
        unlabeled = [*filter(None, self.pairs.filter(asked)["leader"].to_pylist()), *self.unlabeled]
        return pc.or_(asked, pc.is_in(self.pairs["leader"], pa.array(unlabeled, pa.string())))

    @cached_property
    def compared(self) -> pa.Array:
        """The requests whose results decide: leaders, and the audited near copies."""
        drawn = self.pairs.filter(pc.greater(self.pairs["drawn"], 0))[_ID]
        return pc.unique(pa.chunked_array([*drawn.chunks, *self.pairs["leader"].chunks], pa.string())).drop_null()

    def decide(self, results: pa.Table) -> Shares:
        """See AuditedAnswers.decide."""
        pairs = self.pairs
        own, lead = (
            results.take(pc.index_in(pairs[name].combine_chunks(), results[_ID].combine_chunks()))
            for name in (_ID, "leader")
        )
        led, answered, drawn = are_good(lead), are_good(own), pairs["drawn"].to_numpy()
        answers, labels = own[self.target].to_pylist(), lead[self.target].to_pylist()
        equal = np.fromiter((one == other for one, other in zip(answers, labels, strict=True)), bool, len(pairs))
        wrong = int(drawn[led & ~(answered & equal)].sum())
        errors = self._count_errors(labels, answers, led, answered, drawn)
        return self._decided(led, wrong, **errors, unlabeled=self._unlabeled(led) if self.cascade is not None else ())

    def without(self, going: Collection[str]) -> Self:
        """See AuditedAnswers.without."""
        left = super().without(going)
        return replace(left, unlabeled=tuple(one for one in left.unlabeled if one not in going))

    def _unlabeled(self, led: np.ndarray[Any, Any]) -> tuple[str, ...]:
        """Return the leaders without a label of which no near copy is held. `led`: which pairs' leaders have one."""
        lost = self.pairs.filter(pa.array(~led))
        held = lost.filter(pc.equal(lost["state"], HELD))
        return tuple(sorted({*lost["leader"].drop_null().to_pylist()} - {*held["leader"].to_pylist()}))

    @property
    def outcomes_besides(self) -> Mapping[str, int]:
        """See AuditedAnswers.outcomes_besides. A leader is a request of the submission itself."""
        return self.copies_of

    def _columns_at(self, places: pa.Array) -> Sequence[pa.Array]:
        named = pc.if_else(pc.is_valid(places), pa.scalar(NEAR), pa.scalar(None, pa.string()))
        return named, self.shared["similarity"].combine_chunks().take(places)

    @property
    def promise_text(self) -> str:
        """The guarantee in words."""
        if self.cascade is not None:
            terms = self.cascade
            places = ("the rows that are no near copies", "the copies")
            return terms.own_promise_text if self.asks_all else terms.promise_text(self.error, self.confidence, *places)
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
            saved = "a request" if self.cascade is None else f"requests of {self.cascade.oracle}"
            return f"finds {self.rows:,} near copies, too few for an audit to save {saved}: all rows are asked"
        look = "" if self.look == 1 else f"; this is look {self.look:,} at these rows, at {self.look_confidence:.3%}"
        if self.cascade is not None:
            test = f"at most {self.allowed:,} of these differ from the labels of their leaders"
            if self.cascade.filters is not None:
                test = f"the labels of their leaders keep the {self.cascade.filters} in it"
            return (
                f"finds {self.rows:,} near copies. The cascade labels all other rows, and {self.cascade.oracle} "
                f"answers an audit of {self.sample:,} copies. If {test}, {len(self.held):,} requests are saved at both "
                f"models; otherwise {self.cascade.oracle} answers all copies{look}"
            )
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
        may = "too few are left for any" if self.allowed < 0 else f"{self.allowed:,} may differ"
        what = f"{self.wrong:,} of {self.sample:,} audited copies differ from their leaders, {may}"
        what = self._errors_text(f"{self.sample:,} audited copies") or what
        shared = len(self.shared)
        return f"{what}: {shared:,} requests share an answer" if self.passes else f"{what}: all copies are asked"


def newest_first(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    """Return results, oldest first, so that the first of a request is its newest success, else its newest."""
    rows = pa.concat_tables([*reversed(tables), schema.empty_table()]).combine_chunks()
    good = pa.array(are_good(rows))
    return pa.concat_tables([rows.filter(good), rows.filter(pc.invert(good))]).combine_chunks()


def are_good(results: pa.Table) -> Any:
    """Return a numpy array of booleans: which results are a success."""
    good = pc.fill_null(pc.equal(results[_OUTCOME], Outcome.SUCCEEDED.value), fill_value=False)
    return good.combine_chunks().to_numpy(zero_copy_only=False).astype(bool)
