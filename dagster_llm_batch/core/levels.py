"""Decide which of the two models of a cascade answers each row, with the reason. Pure.

A row sent to the oracle gets the oracle's label or no label, even before it is sent: never the label of the model,
which was not sure enough. So the order of answers follows the levels, not the time of the answers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.audit import Audit, Calibration, Point
from dagster_llm_batch.core.thresholds import (
    NOTHING,
    Digests,
    Flags,
    Place,
    Scores,
    are_above,
    are_kept,
    count_allowed,
    count_allowed_false,
    count_allowed_lost,
    count_least,
    digest_requests,
    find_bound,
    find_threshold,
    look_confidence,
    reach_probability,
)
from dagster_llm_batch.types import Outcome

__all__ = [
    "ACCEPTED",
    "AUDITED",
    "CHEAP",
    "COPY",
    "ESCALATED",
    "INVALID",
    "OLDER",
    "ORACLE",
    "SAMPLED",
    "Levels",
    "percent",
    "promise_text",
]

_ID, _OUTCOME = "llm_request_id", "llm_outcome"

# The seed of digests that are the same in all partitions.
_EVERYWHERE = "request"

CHEAP, ORACLE = "cheap", "oracle"
"""The levels: the model itself, and the oracle."""

ACCEPTED, ESCALATED, INVALID, SAMPLED, AUDITED, COPY = "accepted", "escalated", "invalid", "sampled", "audit", "copy"
"""Reasons for a row's level: its score is above the threshold; its score is not above it; its reply does not fit; it
was drawn to set the threshold; it was drawn to audit it; it is a near copy, which the model is not asked.
"""

OLDER = "older"
"""Reason of a row with a label from before a change, which the model is not asked; also the level if that label stays.
"""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Rules that give each row of one submission its level, with their basis. Stored as JSON; picklable for workers.

    Attributes:
        calibration_id: A digest of both configurations, the prompt, the guarantee and the seed.
        oracle: The oracle's model: the provider, a slash, and the provider's own name for it.
        score: The column of scores.
        target: The column that is compared.
        agreement, confidence: The guarantee.
        seed: Seed for drawing rows, and for the order of equal scores.
        rows: The number of rows that a model is asked about.
        sample: The number of them that were drawn.
        sampled: The request of each of these; None: all rows are the oracle's.
        within: The guarantee against gold, from which `agreement` then follows; None: no such guarantee.
        gold: With `within`, the human label of each sampled row.
        relative_cost: The expected cost of the cascade, as a multiple of the oracle alone; None: a price is unknown.
        wrong: The number of sampled labels that are wrong: not the oracle's or, against gold, wrong where the oracle is
            right. None until the threshold is set.
        wrong_above: The number of them above the threshold. The oracle's labels have taken their place.
        allowed: The number of labels that may be wrong above the threshold.
        bound: The share of disagreement that is exceeded with the guaranteed small probability at most.
        threshold: Scores above it are accepted. None until it is set; until then the model's labels are not accepted.
        accepted: The share of requests that is.
        wave: The wave in which the oracle is asked the rest.
        is_repeated: Whether an earlier submission of the same rows decided all of it.
        audit: The rows that are audited, where earlier partitions set the threshold; None: each partition does its own.
        look: Number of the look at these rows, from 1 on; None: by older code, or without a sample of these rows.
        keys_id: A digest of the keys of all rows, in any order.
        requests_id: A digest of their requests.
        filters: "precision" or "recall": `agreement` is then the least share of that; None: agreement.
        yes: The value of the target that means yes, for a filter.
        has_older_labels: Whether rows had a label from before a change, on which another audit decides.
    """

    calibration_id: str
    oracle: str
    score: str
    target: str
    agreement: float
    confidence: float
    seed: str
    rows: int
    sample: int
    sampled: list[str] | None
    within: float | None = None
    gold: list[Any] | None = None
    relative_cost: float | None = None
    wrong: int | None = None
    wrong_above: int = 0
    allowed: int | None = None
    bound: float | None = None
    threshold: Place | None = None
    accepted: float | None = None
    wave: int | None = None
    is_repeated: bool = False
    audit: Audit | None = None
    look: int | None = None
    keys_id: str | None = None
    requests_id: str | None = None
    filters: str | None = None
    yes: bool | int | str | None = None
    has_older_labels: bool = False

    def as_json(self) -> bytes:
        """Return the decisions in their stored form."""
        content = asdict(self)
        if self.filters is None:
            # The stored form of other cascades stays the same.
            del content["filters"], content["yes"]
        if not self.has_older_labels:
            del content["has_older_labels"]
        return json.dumps(content, default=str).encode()

    @classmethod
    def of_json(cls, stored: bytes) -> Levels:
        """Return the decisions from the output of `as_json`."""
        content = json.loads(stored)
        if (place := content["threshold"]) is not None:
            content["threshold"] = Place(*place)
        return cls(**{**content, "audit": Audit.of_json(content.get("audit"))})

    @property
    def asks_oracle_alone(self) -> bool:
        return self.sampled is None

    @property
    def look_confidence(self) -> float:
        """The confidence that this look needs, so that all looks at these rows together keep the promise."""
        return self.confidence if self.look is None else look_confidence(self.confidence, self.look)

    def asks_oracle(self, asked_of: str) -> bool:
        """Return whether this request was sent to the oracle."""
        return asked_of == self.oracle

    @property
    def is_rolling(self) -> bool:
        """Whether rows of earlier partitions set the threshold."""
        return self.audit is not None and self.audit.earlier is not None

    @property
    def calibrated_on(self) -> int:
        """Number of rows that set the threshold."""
        return self.sample if self.audit is None or self.audit.earlier is None else self.audit.calibrated_on

    @property
    def drawn(self) -> list[str]:
        """Requests of the rows that go to the oracle from the start, whatever the model answers."""
        return [*(self.sampled or ()), *(self.audit.requests if self.audit is not None else ())]

    @property
    def promise_text(self) -> str:
        """The guarantee in words, with its assumption."""
        stated = self.oracle, self.target, self.agreement, self.confidence, self.within
        words = promise_text(*stated, self.filters, self.yes)
        return f"{words[:-1]}, if {self.assumption}." if self.is_rolling else words

    @property
    def assumption(self) -> str:
        """Assumption of the guarantee, in words."""
        if self.audit is None or self.audit.earlier is None:
            return "nothing: the sample is of this partition, and was drawn before any score"
        return (
            f"a value of '{self.score}' means in this partition what it meant in {_from_to(self.audit.earlier)}: as "
            "many labels with it are the oracle's"
        )

    def most_wrong(self, delivered: int, wrong_copies: int = 0) -> float | None:
        """Return the largest share of wrong labels among the delivered ones, with the guaranteed probability.

        `wrong_copies` are the most wrong labels of near copies or older labels, which are delivered, too.

        None: unknown. The certificate is for all rows that a model was asked about. For sampled rows above the
        threshold that the model has wrong, the oracle's label is delivered; rows that it did not answer have no
        delivered label. Unknown for a filter, which does not limit all wrong labels.
        """
        if self.bound is None or not delivered or self.filters is not None:
            return None
        return (self._most_wrong_rows + wrong_copies) / delivered

    def keeps_promise(self, delivered: int) -> bool:
        """Return whether the guarantee holds for so many delivered labels. A table without rows always keeps it."""
        if self.bound is None:
            return not delivered
        if self.filters is not None:
            return self.threshold == NOTHING or self._covers_lacking(self.rows - delivered)
        return self._most_wrong_rows <= (1 - Fraction(str(self.agreement))) * delivered

    def _covers_lacking(self, rows: int) -> bool:
        # Rows without a label may all be yes, which the errors are compared with. Sampled errors above the threshold
        # are corrected by the oracle, so as many fewer are delivered; with precision they are not delivered yes either.
        share = Fraction(str(self.agreement))
        return rows * (1 - share) <= self.wrong_above * (share if self.filters == "precision" else 1)

    def may_accept_without(self, lost: int) -> bool:
        """Return whether a label can be accepted although so many sampled rows get no answer of the oracle."""
        if self.filters is not None:
            return self.sample - lost >= count_least(self.agreement, self.look_confidence)
        return lost <= count_allowed(self.sample, self.rows, self.agreement, self.look_confidence)

    @property
    def _most_wrong_rows(self) -> int:
        return max(round((self.bound or 0.0) * self.rows) - self.wrong_above, 0)

    @property
    def plan_text(self) -> str:
        """The planned requests to each model, in words."""
        cost = "" if self.relative_cost is None else f", {self.relative_cost:.2f} times the oracle alone"
        if self.asks_oracle_alone:
            why = f": a cascade is expected to cost{cost[1:]}" if self.relative_cost is not None else ""
            return f"asks {self.oracle} alone for all {self.rows:,} rows{why}"
        expected = f", in all an expected{cost[1:]}" if cost else ""
        if self.audit is not None and self.audit.earlier is not None:
            return (
                f"asks {self.oracle} to audit {len(self.audit.requests):,} of {self.rows:,} rows, and then for what is "
                f"not sure enough by {self.audit.calibrated_on:,} rows of {_from_to(self.audit.earlier)}{expected}"
            )
        if self.audit is not None:
            expected += f"; audits {len(self.audit.requests):,} rows; earlier partitions set no threshold yet: "
            expected += f"{self.audit.why_not}"
        if self.look is not None and self.look > 1:
            expected += f"; this is look {self.look:,} at these rows, which needs {self.look_confidence:.3%} confidence"
        return (
            f"asks {self.oracle} for a sample of {self.sample:,} of {self.rows:,} rows, and then for what is not sure "
            f"enough{expected}"
        )

    @property
    def threshold_text(self) -> str:
        """The accepted labels in words, as far as they are decided."""
        if self.asks_oracle_alone:
            return f"{self.oracle} answers all"
        if self.threshold is None:
            return "not set yet: both models answer the sample first"
        place = self.threshold.score
        what = (
            "all that fits" if place == -np.inf else "nothing" if place == np.inf else f"'{self.score}' above {place:g}"
        )
        if self.filters is not None and place != np.inf:
            what += f", and each {'no' if self.filters == 'precision' else 'yes'}"
        share = "" if self.accepted is None else f", {self.accepted:.1%} of the requests"
        if self.wrong is None or self.allowed is None:
            return f"accepts {what}{share}"
        may = "the sample is too small for any" if self.allowed < 0 else f"above the threshold {self.allowed:,} may be"
        return f"accepts {what}{share}; of {self.calibrated_on:,} sampled labels {self.wrong:,} are wrong, {may}"

    def columns(self, response: pa.Schema) -> list[pa.Field]:
        """Return the columns of labels in addition to the response's columns."""
        return _columns(response.field(self.target).type)

    @property
    def read(self) -> list[str]:
        """The columns of results that are needed to tell the levels."""
        return [_ID, _OUTCOME, self.score, self.target]

    def scores(self, results: pa.Table) -> Scores:
        """Return the score of each result; -inf if the reply did not fit, or has no score."""
        given = pc.fill_null(pc.cast(results[self.score], pa.float64()), -np.inf).to_numpy()
        # A reader refuses infinity and NaN; results of older code may have them.
        return np.where(_are_good(results) & np.isfinite(given), given, -np.inf)

    def are_accepted(self, results: pa.Table) -> Flags:
        """Return which results of the model itself are above the threshold."""
        return self._are_kept(results, digest_requests(results[_ID].to_pylist(), self.seed))

    def _are_kept(self, results: pa.Table, digests: Digests) -> Flags:
        scores, threshold = self.scores(results), self.threshold or NOTHING
        if self.filters is None:
            return are_above(scores, digests, threshold)
        are_yes = self._are_yes(results[self.target])
        return are_kept(scores, digests, threshold, ~are_yes if self.filters == "precision" else are_yes)

    def _are_yes(self, labels: pa.ChunkedArray | pa.Array) -> Flags:
        """Return which labels are yes. Null is not."""
        return np.fromiter((label == self.yes for label in labels.to_pylist()), bool, len(labels))

    def calibrate(self, cheap: Iterable[pa.Table], oracle: Iterable[pa.Table]) -> Levels:
        """Return the same with the threshold, by the results of both models, the newest last, for the sampled rows.

        A sampled row without an answer of the oracle counts as wrong.
        """
        own, others = _newest(cheap, self.read), _newest(oracle, self.read)
        levels = self if self.is_rolling else self._calibrate(own, others)
        if self.audit is None:
            return levels
        scores, digests, wrong = self._judge(self.audit.requests, own, others)
        # Rows of the audit set no threshold of their own partition, and rows of the sample need no audit.
        setting = self.audit.requests if self.is_rolling else self.sampled or []
        points = (*self._judge(setting, own, others), digest_requests(setting, _EVERYWHERE))
        sampled = pc.is_in(pa.array(self.audit.requests, pa.string()), pa.array(self.sampled or [], pa.string()))
        taken = are_above(scores, digests, levels.threshold or NOTHING) & ~_flags(sampled)
        audit = replace(
            self.audit,
            points=[Point(*point) for point in zip(*(values.tolist() for values in points), strict=True)],
            rows=len(self.audit.requests),
            wrong=int((taken & wrong).sum()),
        )
        return replace(levels, audit=audit)

    def _calibrate(self, own: pa.Table, others: pa.Table) -> Levels:
        if self.filters is not None:
            return self._calibrate_filter(own, others)
        drawn = self.sampled or []
        scores, digests, wrong = self._judge(drawn, own, others)
        promised = (len(drawn), self.rows)
        allowed = count_allowed(*promised, self.agreement, self.look_confidence) if drawn else -1
        threshold = find_threshold(scores, digests, wrong, allowed)
        return replace(
            self,
            wrong=int(wrong.sum()),
            wrong_above=int((wrong & are_above(scores, digests, threshold)).sum()),
            allowed=allowed,
            bound=find_bound(allowed, *promised, self.look_confidence),
            threshold=threshold,
        )

    def _calibrate_filter(self, own: pa.Table, others: pa.Table) -> Levels:
        drawn = self.sampled or []
        scores, digests, wrong = self._judge(drawn, own, others)
        mine, theirs = (table.take(pc.index_in(pa.array(drawn, pa.string()), table[_ID])) for table in (own, others))
        answered = _are_good(theirs)
        seen = answered & self._are_yes(theirs[self.target])
        if self.filters == "precision":
            right = seen & self._are_yes(mine[self.target]) & np.isfinite(scores)
            allowed = count_allowed_false(int(right.sum()), self.agreement, self.look_confidence)
        else:
            allowed = count_allowed_lost(int(seen.sum()), self.agreement, self.look_confidence)
        threshold = find_threshold(scores, digests, wrong, allowed)
        return replace(
            self,
            wrong=int(wrong.sum()),
            # Only errors that the oracle has corrected: without its answer, a row may be right.
            wrong_above=int((wrong & answered & are_above(scores, digests, threshold)).sum()),
            allowed=allowed,
            bound=float(1 - Fraction(str(self.agreement))),
            threshold=threshold,
        )

    def judge_sample(self, cheap: Iterable[pa.Table], oracle: Iterable[pa.Table]) -> tuple[Scores, Flags]:
        """Return the scores of the sampled rows, and whether the model's label is wrong. See `calibrate`."""
        scores, _, wrong = self._judge(self.sampled or [], _newest(cheap, self.read), _newest(oracle, self.read))
        return scores, wrong

    def _judge(self, requests: list[str], own: pa.Table, others: pa.Table) -> tuple[Scores, Digests, Flags]:
        """Return score, digest, and whether the model's label is wrong, of each of these requests."""
        drawn = pa.array(requests, pa.string())
        mine, theirs = (table.take(pc.index_in(drawn, table[_ID])) for table in (own, others))
        scores = self.scores(mine)
        labels, answers, answered = mine[self.target], theirs[self.target], _are_good(theirs)
        if self.filters == "precision":
            wrong = self._are_yes(labels) & ~(answered & self._are_yes(answers))
        elif self.filters == "recall":
            wrong = ~self._are_yes(labels) & (~answered | self._are_yes(answers))
        elif self.within is None:
            wrong = ~(answered & _are_equal(labels, answers))
        else:
            gold = self._gold_as(labels.type)
            wrong = ~_are_equal(labels, gold) & ~(answered & ~_are_equal(answers, gold))
        return scores, digest_requests(requests, self.seed), wrong & np.isfinite(scores)

    def set_threshold(self, found: Calibration) -> Levels:
        """Return the same with the threshold that rows of earlier partitions give."""
        assert self.audit is not None
        return replace(
            self,
            audit=replace(self.audit, earlier=found.earlier, calibrated_on=found.rows),
            wrong=found.wrong,
            allowed=found.allowed,
            bound=found.bound,
            threshold=found.threshold,
        )

    def _gold_as(self, kind: pa.DataType) -> pa.Array:
        # If the model gave no reply to the sample, the type of its replies is unknown.
        gold = pa.array(self.gold or [])
        return gold if pa.types.is_null(kind) else gold.cast(kind)

    def keep_drawn(self, keep: Collection[str]) -> Levels:
        """Return the same without drawn rows of other requests than these, as of rows that were erased."""
        if self.sampled is None:
            return self
        places = [place for place, request_id in enumerate(self.sampled) if request_id in keep]
        gold = self.gold and [self.gold[place] for place in places]
        audit = self.audit and self.audit.keep(keep, self.seed)
        return replace(self, sampled=[self.sampled[place] for place in places], gold=gold, audit=audit)

    def newest(self, results: pa.Table) -> pa.Table:
        """Return results, the newest first, so that the first of a request is its newest success, else its newest."""
        return _newest([results], self.read)

    def ask_oracle_alone(self) -> Levels:
        """Return the same, with a threshold that accepts no label of the model itself."""
        return replace(self, wrong=0, allowed=-1, bound=0.0, threshold=NOTHING, accepted=0.0)

    def apply(
        self,
        manifest: pa.Table,
        waves: Iterable[tuple[bool, pa.Table]],
        apart: pa.Array | None = None,
        reach: pa.Array | None = None,
        why: str = COPY,
    ) -> list[pa.Table]:
        """Return the results with the columns of levels, oldest first. `label` may then take the newest success.

        `waves` are results, each with whether they are the oracle's, oldest first; `manifest` has all rows of their
        requests. For a request to the oracle, a success of the model itself no longer counts. `apart` are requests that
        the model is not asked, `why` the reason, and `reach` the probability that the oracle is asked each.
        """
        tables: dict[bool, list[pa.Table]] = {False: [], True: []}
        for is_oracle, table in waves:
            tables[is_oracle].append(table)
        kind = next((table.schema.field(self.target).type for of in tables.values() for table in of), pa.null())
        counted = pc.value_counts(manifest[_ID].drop_null())
        requests, shared_by = counted.field("values"), counted.field("counts").to_numpy()
        if "llm_reuse" in manifest.column_names:
            # A row with the answer of another request was in no draw of that request's rows.
            own_rows = pc.value_counts(manifest.filter(pc.is_null(manifest["llm_reuse"]))[_ID].drop_null())
            at = pc.index_in(requests, own_rows.field("values"))
            shared_by = pc.fill_null(own_rows.field("counts").take(at), 1).to_numpy(zero_copy_only=False)
        known = _newest(tables[False], self.read)
        own = known.take(pc.index_in(requests, known[_ID]))
        fits, digests = _are_good(own), digest_requests(requests.to_pylist(), self.seed)
        above = self._are_kept(own, digests)
        drawn = self._are_sampled(requests)
        audited = self._are_audited(requests)
        asked = drawn | audited | ~above
        whys = np.where(~fits, INVALID, np.where(above, ACCEPTED, ESCALATED))
        whys = np.where(drawn, SAMPLED, np.where(audited, AUDITED, whys))
        chances = np.where(above, self._reach(shared_by), 1.0)
        if apart is not None and reach is not None:
            place = pc.index_in(requests, apart)
            is_apart = _flags(pc.is_valid(place))
            whys = np.where(is_apart, why, whys)
            chances = np.where(is_apart, reach.take(place).to_numpy(zero_copy_only=False), chances)
        of_request = {
            "llm_why": pa.array(whys, pa.string()),
            "llm_score": own[self.score].cast(pa.float64()).combine_chunks(),
            "llm_cheap_label": own[self.target].cast(kind).combine_chunks(),
            "llm_sample_probability": pa.array(chances, from_pandas=True),
        }
        asked_array = pa.array(asked)
        return [
            *(self._own(table, requests, asked_array, of_request) for table in tables[False]),
            *(self._oracles(table, requests, asked_array, of_request) for table in tables[True]),
        ]

    def _are_sampled(self, requests: pa.Array) -> Flags:
        if self.sampled is None:
            return np.ones(len(requests), bool)
        return _flags(pc.is_in(requests, pa.array(self.sampled, pa.string())))

    def _are_audited(self, requests: pa.Array) -> Flags:
        if self.audit is None:
            return np.zeros(len(requests), bool)
        return _flags(pc.is_in(requests, pa.array(self.audit.requests, pa.string())))

    def _reach(self, shared_by: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
        counts, places = np.unique(shared_by, return_inverse=True)
        chances = np.array([reach_probability(int(count), self.sample, self.rows) for count in counts], float)
        if self.audit is not None:
            # Each row is audited independently, whether it is sampled or not.
            chances = 1 - (1 - chances) * (1 - self.audit.share) ** counts
        return chances[places]

    def _own(self, table: pa.Table, requests: pa.Array, asked: pa.Array, of_request: dict[str, Any]) -> pa.Table:
        at = pc.index_in(table[_ID].combine_chunks(), requests)
        is_asked = pc.fill_null(asked.take(at), fill_value=False)
        loses = pc.and_(is_asked, pc.equal(table[_OUTCOME], Outcome.SUCCEEDED.value))
        values = {
            _OUTCOME: pc.if_else(loses, Outcome.CANCELED.value, table[_OUTCOME]),
            "llm_reason": f"{self.oracle} was to answer it and has not; the label of the model never takes its place",
        }
        for name, value in values.items():
            if name in table.column_names:
                new = value if name == _OUTCOME else pc.if_else(loses, value, table[name])
                table = table.set_column(table.column_names.index(name), table.schema.field(name), new)
        more = {**of_request, "llm_cheap_label": pa.nulls(len(requests), of_request["llm_cheap_label"].type)}
        return _with_columns(table, CHEAP, at, more)

    def _oracles(self, table: pa.Table, requests: pa.Array, asked: pa.Array, of_request: dict[str, Any]) -> pa.Table:
        at = pc.index_in(table[_ID].combine_chunks(), requests)
        # A row that was sent to the oracle for an earlier threshold, and is accepted now, keeps the model's label.
        is_asked = pc.fill_null(asked.take(at), fill_value=False)
        return _with_columns(table.filter(is_asked), ORACLE, at.filter(is_asked), of_request)


def promise_text(
    oracle: str,
    target: str,
    agreement: float,
    confidence: float,
    within: float | None,
    filters: str | None = None,
    yes: bool | int | str | None = None,
) -> str:
    """Return the guarantee of a cascade, in words."""
    value = json.dumps(yes, ensure_ascii=False)
    if filters == "precision":
        what = f"at least {percent(agreement)} of the labels {value} on '{target}' are {value} by {oracle}, too"
    elif filters == "recall":
        what = f"at least {percent(agreement)} of the rows that are {value} on '{target}' by {oracle} have this label"
    elif within is None:
        what = f"at least {percent(agreement)} of the labels agree with {oracle} on '{target}'"
    else:
        what = (
            f"the labels are right on '{target}' at most {percent(within)} of all rows less often than those of "
            f"{oracle} would be, by gold"
        )
    return f"With a confidence of {percent(confidence)}, {what}."


def percent(share: float) -> str:
    """Return a share with all its digits: 97.5 % is not 98 %."""
    return f"{share * 100:.6g}%"


def _from_to(earlier: tuple[str, str]) -> str:
    first, last = earlier
    return first if first == last else f"{first} to {last}"


def _are_equal(ones: pa.ChunkedArray | pa.Array, others: pa.ChunkedArray | pa.Array) -> Flags:
    """Return where both have the same value. Null is one."""
    pairs = zip(ones.to_pylist(), others.to_pylist(), strict=True)
    return np.fromiter((one == other for one, other in pairs), bool, len(ones))


def _columns(target: pa.DataType) -> list[pa.Field]:
    return [
        pa.field("llm_level", pa.string()),
        pa.field("llm_why", pa.string()),
        pa.field("llm_score", pa.float64()),
        pa.field("llm_cheap_label", target),
        pa.field("llm_sample_probability", pa.float64()),
    ]


def _with_columns(table: pa.Table, level: str, at: pa.Array, of_request: dict[str, Any]) -> pa.Table:
    for column in _columns(of_request["llm_cheap_label"].type):
        known = of_request.get(column.name)
        values = pa.repeat(pa.scalar(level), len(table)) if known is None else known.take(at)
        table = table.append_column(column, values)
    return table


def _newest(tables: Iterable[pa.Table], columns: list[str]) -> pa.Table:
    """Return the results so that the first of a request is its newest success, else its newest."""
    chosen = [table.select(columns) for table in tables]
    if not chosen:
        # Of no type: `take` by nothing but nulls gives nulls.
        types = {_ID: pa.string(), _OUTCOME: pa.string()}
        return pa.table({name: pa.nulls(1, types.get(name, pa.null())) for name in columns})
    rows = pa.concat_tables(reversed(chosen)).combine_chunks()
    is_good = pa.array(_are_good(rows))
    return pa.concat_tables([rows.filter(is_good), rows.filter(pc.invert(is_good))]).combine_chunks()


def _are_good(results: pa.Table) -> Flags:
    return _flags(pc.fill_null(pc.equal(results[_OUTCOME], Outcome.SUCCEEDED.value), fill_value=False))


def _flags(values: pa.Array | pa.ChunkedArray) -> Flags:
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    flags: Flags = array.to_numpy(zero_copy_only=False)
    return flags.astype(bool)
