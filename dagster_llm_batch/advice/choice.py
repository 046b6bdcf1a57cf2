"""The choice of a model: ways to label a dataset's next rows, each with its cost, end and quality, by earlier data.

    records ─▶ one model alone, by batch or in real time ─┐
    pairs ───▶ cascades, by level and sample ─────────────┴─▶ LabelingPlan ─ judge ─▶ feasible | open | dropped

Nothing is guessed: an unknown figure is None, with the reason. All intervals of qualities hold together, so that the
best of many plans is not just a lucky one. Measured qualities are of earlier rows, and hold for the next rows only if
these are similar; a cascade is certified by the sample of its own run, whatever the estimate here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache, cached_property
from math import ceil, floor, log
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.advice.labeling_plan import GOLD, Cost, End, LabelingPlan, Quality, Wanted
from dagster_llm_batch.advice.model_history import ANSWERS, ModelHistory
from dagster_llm_batch.core.cascade import Rolling
from dagster_llm_batch.core.durations import FEWEST, Durations
from dagster_llm_batch.core.forecast import Rates, learn
from dagster_llm_batch.core.thresholds import choose_sample, count_least, look_confidence
from dagster_llm_batch.errors import ConfigError, InputError, LLMBatchError
from dagster_llm_batch.files.request_files import Owner
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.metrics.classification import accuracy_interval
from dagster_llm_batch.metrics.clusters import Units
from dagster_llm_batch.metrics.gold_weights import WEIGHT
from dagster_llm_batch.metrics.intervals import share_interval
from dagster_llm_batch.metrics.joining import Target, join
from dagster_llm_batch.metrics.replay import Accepted, Pool, replay
from dagster_llm_batch.metrics.tally import tally
from dagster_llm_batch.text import money_text
from dagster_llm_batch.types import Lane, PriceBasis, Span

__all__ = ["BatchEnds", "Chooser"]

_ID, _OUTCOME = "llm_request_id", "llm_outcome"

# Levels of agreement with the oracle that are tried where quality is measured against gold.
_LEVELS = (0.8, 0.9, 0.95, 0.98)

_FEWEST_REPLIES, _FEWEST_RUNS, _MANY = 30, 3, 1_000
# So many batches are read; similar ones have a quarter to four times of the requests.
_SPANS, _SIMILAR = 2_000, 4
# Samples whose cascades cost within 2 % of each other are one plan.
_WORTH_A_LINE = Decimal("1.02")
# With less room below the oracle nearly all rows are its own; with more, another oracle is cheaper.
_LEAST_WITHIN, _MOST_WITHIN = 0.005, 0.2
# Fewer rows than this give an interval that is too wide to use.
_FEWEST_ROWS = 20


Ends = Callable[[ModelHistory, Lane, int], End]
"""Returns the duration of a number of requests of a record's model in a lane."""


class Chooser:
    """Make and judge plans.

    Args:
        deployment: Deployment with the prices and providers. It is not changed.
        records: Records of all possible models.
        wanted: Requirements of the plans.
        gold: Columns `row`, the target, and, if gold has them, `partition`, and the columns of its cluster and of a
            sample. None: there is no gold.
        gold_column: The target's column of gold.
        cluster: The column of gold that names units, if there is one.
        gold_asset: The asset that a cascade may name as its gold; None: no gold asset has the target by its name.
        ends: See Ends.
    """

    def __init__(
        self,
        deployment: Deployment,
        records: Sequence[ModelHistory],
        wanted: Wanted,
        ends: Ends,
        gold: pa.Table | None = None,
        gold_column: str | None = None,
        cluster: str | None = None,
        gold_asset: str | None = None,
    ) -> None:
        self._deployment = deployment
        self._wanted = wanted
        self._ends = ends
        self._cost = cache(self._cost_of)
        self._gold_column = gold_column or wanted.target
        self._cluster = cluster
        self._gold_asset = gold_asset
        tables = [record.answers for record in records if record.answers is not None]
        # A key that comes in several partitions is a row of each.
        self._by_partition = any(len(pc.unique(table["row"])) < len(table) for table in tables)
        self._records = [
            record if record.answers is None else replace(record, answers=self._named(record.answers))
            for record in records
        ]
        self._gold = gold
        if gold is not None and self._by_partition:
            self._gold = self._named(gold) if "partition" in gold.column_names else None

    def _named(self, table: pa.Table) -> pa.Table:
        """Return the table whose rows are named so that no two of one model have the same name."""
        if not self._by_partition:
            return table
        names = pc.binary_join_element_wise(table["partition"].cast(pa.string()), table["row"], "\x1f")
        return table.set_column(table.column_names.index("row"), "row", names)

    def plans(self) -> list[LabelingPlan]:
        """Return all plans, the best first: feasible ones, then those with unknown figures, then the others."""
        found = [self._judged(plan) for plan in (*self._alone(), *self._cascades())]
        states = ["feasible", "open", "dropped"]
        return sorted(found, key=lambda plan: (states.index(plan.state), plan.order))

    # --- one model alone ---

    def _alone(self) -> Iterator[LabelingPlan]:
        for record in self._records:
            quality = self._quality(record)
            for lane in Lane:
                end = self._ends(record, lane, self._requests(record, self._wanted.rows))
                yield LabelingPlan(record, lane, self._cost(record, lane), quality, end)

    def _quality(self, record: ModelHistory) -> Quality:
        wanted, answers = self._wanted, _drawn(record)
        if answers is None:
            return Quality(None, None, None, 0, self._no_answers(record))
        if wanted.against == GOLD:
            return self._against_gold(record.model, answers)
        if record.model == wanted.against:
            return Quality(1.0, 1.0, 1.0, len(answers), "it counts as right")
        oracle = self._reference
        others = None if oracle is None else _drawn(oracle)
        if others is None:
            return Quality(None, None, None, 0, f"no answers of {wanted.against}, which counts as right")
        mine, theirs = _together(answers, others)
        return self._share(_equal(mine, theirs), mine, "rows that both answered")

    @cached_property
    def _reference(self) -> ModelHistory | None:
        named = [record for record in self._records if record.model == self._wanted.against]
        return max(named, key=lambda record: 0 if record.answers is None else len(record.answers), default=None)

    def _no_answers(self, record: ModelHistory) -> str:
        if record.otherwise and not record.runs:
            return f"no run of {record.model} as it is asked now; {record.otherwise} that asked otherwise"
        if record.lost:
            return f"the files of {record.lost} runs of {record.model} were pruned, or are damaged"
        return f"no run of {record.model} in this ledger"

    def _against_gold(self, name: str, answers: pa.Table) -> Quality:
        if self._gold is None:
            return Quality(None, None, None, 0, "no gold for these rows")
        gold = self._gold.filter(pc.is_in(self._gold["row"], answers["row"].combine_chunks()))
        if len(gold) < _FEWEST_ROWS:
            return Quality(None, None, None, len(gold), f"too few rows: {len(gold)} have gold and an answer")
        target = Target("label", self._gold_column)
        try:
            counted = tally(join(gold, answers, key="row", target=target, candidate_name=name, cluster=self._cluster))
        except (ConfigError, InputError) as error:
            return Quality(None, None, None, len(gold), str(error))
        interval = accuracy_interval(counted, on_all=True, confidence=self._each)
        right = pc.fill_null(pc.equal(counted.cells["gold"], counted.cells["predicted"]), fill_value=False)
        weights = np.asarray(counted.cells["n"], float)
        whole = np.asarray(counted.gold["n"], float)
        if counted.is_weighted:
            weights, whole = weights * np.asarray(counted.cells["weight"]), whole * np.asarray(counted.gold["weight"])
        share = float(weights[np.asarray(right, bool)].sum() / whole.sum())
        return Quality(share, interval.low, interval.high, counted.n_gold, f"{counted.n_gold:,} gold rows")

    def _share(self, are_right: np.ndarray[Any, Any], rows: pa.Table, noun: str) -> Quality:
        if len(rows) < _FEWEST_ROWS:
            return Quality(None, None, None, len(rows), f"too few rows: {len(rows)} {noun}")
        units = Units.of(pa.repeat(1.0, len(rows)), rows[_ID])
        interval = share_interval(are_right.astype(float), units, confidence=self._each)
        return Quality(float(are_right.mean()), interval.low, interval.high, len(rows), f"{len(rows):,} {noun}")

    @property
    def _each(self) -> float:
        """The confidence of each interval, so that all that are looked at hold together."""
        measured = len(self._records)
        if self._wanted.against == GOLD:
            measured += len(self._pairs) * len(_LEVELS)
        return 1 - (1 - self._wanted.confidence) / max(measured, 1)

    # --- cascades ---

    @cached_property
    def _pairs(self) -> list[tuple[ModelHistory, ModelHistory]]:
        """Pairs of a model and a dearer one that were asked alike."""
        found = []
        for oracle in self._records:
            if self._wanted.against not in (GOLD, oracle.model):
                continue
            for record in self._records:
                own, other = record.labeling, oracle.labeling
                if record.model == oracle.model or own.prompt_version != other.prompt_version:
                    continue
                cheap, dear = (self._each_usd(each) for each in (record, oracle))
                if cheap is not None and dear is not None and cheap < dear:
                    found.append((record, oracle))
        return found

    def cascade_gap(self) -> str:
        """Return why there is no cascade among the plans."""
        if self._wanted.score is None:
            return (
                "the response has no column with a model's certainty. Add `confidence: float` to it, or ask for "
                "logprobs"
            )
        if not self._pairs:
            dearer = "" if self._wanted.against == GOLD else f", the more expensive one being {self._wanted.against}"
            return f"it takes answers to the same prompt by two models with different, known prices{dearer}"
        if all(not len(_both(*pair)[0]) for pair in self._pairs):
            return "it takes two models that have answered the same rows"
        return f"a sample would take nearly all of the {self._wanted.rows:,} rows"

    def _each_usd(self, record: ModelHistory) -> Decimal | None:
        return self._cost(record, Lane.BATCH).expected

    def _cascades(self) -> Iterator[LabelingPlan]:
        wanted = self._wanted
        for record, oracle in self._pairs:
            mine, theirs = _both(record, oracle)
            pair = _Pair(record, oracle, mine, theirs, ~_equal(mine, theirs))
            if not np.isfinite(pair.scores).any():
                continue
            for level in _LEVELS if wanted.against == GOLD else [wanted.quality]:
                yield from self._measured(pair, level)
            yield from self._below(pair)
            if wanted.rolls and wanted.against != GOLD:
                yield from self._rolling(pair)

    def _rolling(self, pair: _Pair) -> Iterator[LabelingPlan]:
        """Yield the cascade with a threshold from earlier partitions, if they can set one."""
        wanted, rolling, oracle = self._wanted, Rolling(), pair.oracle
        if len(pair.mine) < count_least(wanted.quality, wanted.confidence):
            return
        independent = self._requests(pair.record, wanted.rows)
        pool, promised = Pool(pair.scores, pair.are_wrong), (wanted.quality, wanted.confidence)
        accepted = replay(pool, rolling.rows, independent, *promised, is_earlier=True)
        basis = (
            f"guaranteed against {oracle.model}, if values of '{wanted.score}' mean the same as in the partitions "
            f"before; a permanent audit of {rolling.audit:.0%} of all rows detects a change"
        )
        quality = Quality(None, wanted.quality, None, len(pair.mine), basis, is_promised=True)
        audit = rolling.audit
        shares = tuple(1 - a + a * audit for a in (accepted.share, accepted.high, accepted.low))
        plan = LabelingPlan(
            *(pair.record, Lane.BATCH, Cost(None, None, None), quality, End(None, ""), oracle, wanted.quality),
            rolling=rolling,
            accepted=accepted.share,
        )
        yield from self._in_lanes(plan, shares, ceil(audit * wanted.rows))

    def _below(self, pair: _Pair) -> Iterator[LabelingPlan]:
        """Yield cascades with a guarantee against gold.

        They may be right less often than the oracle, by at most the difference of its quality and the wanted one.
        """
        wanted, name = self._wanted, pair.oracle.model
        if self._gold is None or wanted.against != GOLD or self._gold_asset is None:
            return
        low, known = self._quality(pair.oracle).low, self._lost(pair)
        room = 0.0 if low is None else floor(1_000 * (low - wanted.quality)) / 1_000
        within = min(room, _MOST_WITHIN)
        if low is None or known is None or within < _LEAST_WITHIN:
            return
        basis = (
            f"guaranteed to be at most {within:g} below {name}, by gold for the sample of the run ({name} itself is "
            f"right in at least {low:.3f} by earlier gold)"
        )
        quality = Quality(None, low - within, None, len(known.mine), basis, is_promised=True)
        for plan, _ in self._of_sizes(known, float(1 - Fraction(str(within))), within):
            yield replace(plan, quality=quality)

    def _lost(self, pair: _Pair) -> _Pair | None:
        """Return a pair's rows with gold, where the model is wrong and the oracle right.

        None: these rows do not represent all rows.
        """
        assert self._gold is not None
        if WEIGHT in self._gold.column_names and len(pc.unique(self._gold[WEIGHT])) > 1:
            return None
        at = pc.index_in(pair.mine["row"].combine_chunks(), self._gold["row"].combine_chunks())
        has_gold = pc.is_valid(at)
        mine, theirs = (each.filter(has_gold).combine_chunks() for each in (pair.mine, pair.theirs))
        gold = pa.table({"label": self._gold[self._gold_column].take(at.drop_null())})
        return replace(pair, mine=mine, theirs=theirs, are_wrong=~_equal(mine, gold) & _equal(theirs, gold))

    def _measured(self, pair: _Pair, level: float) -> Iterator[LabelingPlan]:
        """Yield cascades of one level; against gold, with the quality of the least careful one's accepted labels."""
        found = list(self._of_sizes(pair, level))
        accepted = [one for _, one in found if one is not None]
        quality = None
        if self._wanted.against == GOLD and accepted:
            # One interval for all of them, since each that is looked at makes all wider.
            most = max(accepted, key=lambda one: one.high)
            quality = self._against_gold(pair.record.model, pair.delivered(most.mask))
        for plan, _ in found:
            yield plan if quality is None else replace(plan, quality=quality)

    def _of_sizes(
        self, pair: _Pair, level: float, within: float | None = None
    ) -> Iterator[tuple[LabelingPlan, Accepted | None]]:
        """Yield cascades of that level whose samples differ in cost, the cheapest first, with their accepted labels."""
        wanted, rows, oracle = self._wanted, self._wanted.rows, pair.oracle
        confidence = look_confidence(wanted.confidence, 1)
        least = max(count_least(level, confidence), self._least(oracle))
        usual = choose_sample(rows, level, confidence, self._least(oracle))
        sizes = sorted({max(least, size) for size in (usual // 2, usual, 2 * usual)} - {rows})
        basis = f"guaranteed against {oracle.model}, certified by the sample of the run"
        quality = Quality(None, level, None, len(pair.mine), basis, is_promised=True)
        if wanted.against == GOLD:
            quality = Quality(None, None, None, 0, "not measured")
        plan = LabelingPlan(
            *(pair.record, Lane.BATCH, Cost(None, None, None), quality, End(None, "too few rows")),
            *(oracle, None if within is not None else level, least, within),
        )
        if len(pair.mine) < least:
            few = f"too few rows: {len(pair.mine)} that both answered by chance, of {least} that it samples"
            yield replace(plan, cost=Cost(None, None, None, few)), None
            return
        found: list[tuple[LabelingPlan, Accepted]] = []
        for size in (size for size in sizes if size < rows):
            accepted = replay(Pool(pair.scores, pair.are_wrong), size, rows, level, confidence)
            shares = tuple(1 - a + a * size / rows for a in (accepted.share, accepted.high, accepted.low))
            sized = replace(plan, sample=size, accepted=accepted.share)
            found += [(one, accepted) for one in self._in_lanes(sized, shares, size)]
        taken: list[LabelingPlan] = []
        for one, accepted in sorted(found, key=lambda pair: pair[0].order):
            near = (other for other in taken if other.lane is one.lane)
            if all(_differ(one.cost.expected, other.cost.expected) for other in near):
                taken.append(one)
                yield one, accepted

    def _in_lanes(self, plan: LabelingPlan, shares: tuple[float, ...], at_once: int) -> Iterator[LabelingPlan]:
        """Yield a cascade by batches and, where these end too late, with its second wave in real time.

        `shares` of the rows are the oracle's: expected, at least and at most; `at_once` are these in the first wave.
        """
        assert plan.oracle is not None
        record, oracle, rows, by = plan.record, plan.oracle, self._wanted.rows, self._wanted.by
        cheap, dear = (self._cost(each, Lane.BATCH) for each in (record, oracle))
        first = [
            self._ends(record, Lane.BATCH, self._requests(record, rows)),
            self._ends(oracle, Lane.BATCH, self._requests(oracle, at_once)),
        ]
        rest = max(ceil(rows * shares[-1]) - at_once, 0)
        end = _one_after_the_other(first, self._last(oracle, Lane.BATCH, rest))
        yield replace(plan, cost=cheap.plus(dear.times(*shares)), end=end)
        if by is None or (end.p95 is not None and self._wanted.now + end.p95 <= by):
            return
        known = [one.p95 for one in first if one.p95 is not None]
        # A deadline that has come before the first wave has ended asks the oracle about all rows.
        deadline = timedelta(minutes=ceil(max(known) / timedelta(minutes=1))) if len(known) == len(first) else None
        urgent = self._cost(oracle, Lane.REALTIME).times(*(max(share - at_once / rows, 0.0) for share in shares))
        yield replace(
            plan,
            lane=Lane.REALTIME,
            cost=cheap.plus(dear.times(at_once / rows)).plus(urgent),
            end=_one_after_the_other(first, self._last(oracle, Lane.REALTIME, rest)),
            deadline=deadline,
        )

    def _last(self, oracle: ModelHistory, lane: Lane, rows: int) -> list[End]:
        return [self._ends(oracle, lane, self._requests(oracle, rows))] if rows else []

    def _least(self, oracle: ModelHistory) -> int:
        try:
            return self._deployment.codec(oracle.labeling).limits.min_requests
        except LLMBatchError:
            return 1

    # --- money ---

    def _requests(self, record: ModelHistory, rows: int) -> int:
        """Return the number of requests of so many rows, of which some share one."""
        requests, of = (sum(getattr(run, name) for run in record.runs) for name in ("requests", "rows"))
        return rows if not of else max(1, ceil(rows * requests / of)) if rows else 0

    def _cost_of(self, record: ModelHistory, lane: Lane) -> Cost:
        """Return the cost of all rows with one model alone."""
        deployment, requests = self._deployment, Decimal(self._requests(record, self._wanted.rows))
        try:
            tariff = deployment.tariff(record.labeling).of(lane)
        except LLMBatchError as error:
            return Cost(None, None, None, str(error))
        if tariff.basis is PriceBasis.FREE:
            return Cost(Decimal(0), Decimal(0), Decimal(0))
        rates = Rates(*(float(tariff.mean_usd(*tokens) or 0) for tokens in ((_MANY, 0), (0, _MANY))))
        if tariff.basis is PriceBasis.UNKNOWN or not any(rates):
            return Cost(None, None, None, f"no price of {record.model} is known")
        billed = [run.billed for run in record.runs if run.billed is not None]
        learned = learn(billed, [], rates) if billed else None
        if learned is None or learned.output_tokens is None:
            replies = sum(each.replies for each in billed)
            why = f"too few replies of {record.model} were billed: {replies}, of {_FEWEST_REPLIES} that are needed"
            return Cost(None, None, None, why if record.runs else self._no_answers(record))
        each = tariff.mean_usd(learned.input_ratio, learned.output_tokens)
        if each is None:
            return Cost(None, None, None, f"no price of {record.model} is known")
        expected = each * Decimal(repr(learned.times)) * requests
        if learned.low is not None and learned.high is not None:
            low, high = (expected * Decimal(repr(end)) for end in (learned.low, learned.high))
            return Cost(expected, low, high)
        # With fewer runs, only the highest cost of a request is known.
        most = self._most_usd(record, lane)
        why = f"{len(billed)} billed runs of {record.model} tell no interval; {_FEWEST_RUNS} do"
        return Cost(expected, None, None if most is None else max(most * requests, expected), why)

    def _most_usd(self, record: ModelHistory, lane: Lane) -> Decimal | None:
        bounds = [run.input_bound for run in record.runs]
        known = [bound for bound in bounds if bound is not None]
        if len(known) < len(bounds) or not known:
            return None
        # The estimate is by the lane's own prices; batches come first.
        return self._deployment.estimate(record.labeling, lane).most_usd(max(known))

    # --- judgment ---

    def _judged(self, plan: LabelingPlan) -> LabelingPlan:
        """Return the plan with its missed and its unknown targets."""
        plan = replace(plan, ends_at=None if plan.end.p95 is None else self._wanted.now + plan.end.p95)
        found = [*self._judge_quality(plan.quality), *self._judge_cost(plan), *self._judge_end(plan)]
        broken, unknown = (tuple(text for is_broken, text in found if is_broken is wanted) for wanted in (True, False))
        return replace(plan, broken=broken, unknown=unknown)

    def _judge_quality(self, quality: Quality) -> Iterator[tuple[bool, str]]:
        """Yield the problems, each with whether a target is missed; otherwise it is unknown."""
        wanted = self._wanted.quality
        if quality.is_promised:
            return
        if quality.value is None:
            yield False, f"quality: {quality.basis}"
        elif quality.low is None or quality.high is None:
            yield False, f"quality: {quality.basis} are too few for an interval"
        elif quality.high < wanted:
            yield True, f"quality {_shares(quality)} is below {wanted:.9g}"
        elif quality.low < wanted:
            yield False, f"quality: {_shares(quality)} does not show {wanted:.9g}; {self._needed(quality)}"

    def _judge_cost(self, plan: LabelingPlan) -> Iterator[tuple[bool, str]]:
        (expected, _, high, why), most = plan.cost, self._wanted.max_usd
        if expected is None:
            yield False, f"cost: {why}"
            return
        if most is not None and max(expected, high or expected) > most:
            yield True, f"it may cost {money_text(max(expected, high or expected))}, over {money_text(most)}"
        elif most is not None and high is None:
            yield False, f"cost: {why}"
        alone = None if plan.oracle is None else self._each_usd(plan.oracle)
        if plan.oracle is not None and alone is not None and expected >= alone:
            yield True, f"{plan.oracle.model} alone costs no more"

    def _judge_end(self, plan: LabelingPlan) -> Iterator[tuple[bool, str]]:
        if self._wanted.by is None:
            return
        if plan.ends_at is None:
            yield False, f"end: {plan.end.basis}"
        elif plan.ends_at > self._wanted.by:
            yield True, f"1 in 20 ends after {plan.ends_at:%Y-%m-%d %H:%M} UTC"

    def _needed(self, quality: Quality) -> str:
        least = ceil(log((1 - self._each) / 2) / log(self._wanted.quality))
        if quality.rows < least:
            return f"too few rows: {least:,} would, if all were right"
        return f"more than {quality.rows:,} rows are needed to tell"


@dataclass(frozen=True, eq=False)
class _Pair:
    """A model and its oracle, with their answers to the same rows, and the rows that the model has wrong."""

    record: ModelHistory
    oracle: ModelHistory
    mine: pa.Table
    theirs: pa.Table
    are_wrong: np.ndarray[Any, Any]

    @cached_property
    def scores(self) -> np.ndarray[Any, Any]:
        """Certainty of the model; an unknown one, or one of a bad reply, is never accepted."""
        found: np.ndarray[Any, Any] = pc.fill_null(self.mine["score"].cast(pa.float64()), -np.inf).to_numpy()
        return found

    def delivered(self, accepted: np.ndarray[Any, Any]) -> pa.Table:
        """Return the model's answers to these rows, and the oracle's to all others."""
        mask, answers = pa.array(accepted), self.mine
        for name in ("label", _OUTCOME):
            kept = pc.if_else(mask, self.mine[name], self.theirs[name])
            answers = answers.set_column(answers.column_names.index(name), name, kept)
        return answers


class BatchEnds:
    """Duration of a wave, from single batches of its model and lane: see Ends.

    Whole submissions of a dataset are not asked: they may have asked other models, or have been cascades.
    """

    def __init__(self, deployment: Deployment, now: datetime) -> None:
        self._deployment = deployment
        self._now = now
        self._spans = cache(self._read)

    def __call__(self, record: ModelHistory, lane: Lane, requests: int) -> End:
        try:
            owner = self._deployment.owner(record.labeling, lane)
            most = self._deployment.batch_limits(record.labeling).max_requests
        except LLMBatchError as error:
            return End(None, str(error))
        batches = 1 if lane is Lane.REALTIME else max(1, ceil(requests / most))
        each, spans = requests / batches, self._spans(owner)
        similar = [span for span in spans if each / _SIMILAR <= span.requests <= each * _SIMILAR]
        durations = Durations(similar, self._now)
        if lane is Lane.BATCH and not durations.are_enough:
            # A batch takes as long as the vendor lets it wait, and real time as long as the calls.
            durations = Durations(spans, self._now)
        noun = f"batches of {record.model}" if lane is Lane.BATCH else f"like it of {record.model} in real time"
        if not durations.are_enough:
            few = f"too few days with {noun} that ended: {durations.days}, of {FEWEST} that are needed"
            return End(None, few)
        p95 = durations.forecast_end(basis="batches", batches=batches).p95
        running = f", and {durations.running} that still run" if durations.running else ""
        if p95 is None:
            needed = durations.days_for_p95(batches)
            few = "" if needed is None or durations.days >= needed else f"; {needed:,} such days are needed"
            known = f"{durations.ended} {noun} that ended on {durations.days} days{running}"
            return End(None, f"19 of 20 take longer than is known of {known}{few}")
        return End(p95, f"by {durations.ended} {noun}{running}")

    def _read(self, owner: Owner) -> Sequence[Span]:
        of_model = (owner.provider, owner.account, owner.model, owner.lane)
        return self._deployment.ledger.history.batch_spans(*of_model, _SPANS)


def _differ(one: Decimal | None, other: Decimal | None) -> bool:
    """Return whether a more expensive plan deserves its own line after a cheaper one."""
    return one is not None and other is not None and one > other * _WORTH_A_LINE


def _one_after_the_other(first: Sequence[End], last: Sequence[End]) -> End:
    """Return how long two rounds take: the longest of the first, and the last, that follows."""
    for end in (*first, *last):
        if end.p95 is None:
            return end
    lengths = [end.p95 for end in (*first, *last) if end.p95 is not None]
    both = max(lengths[: len(first)]) + sum(lengths[len(first) :], timedelta())
    return End(both, f"both rounds; {(*first, *last)[-1].basis}")


def _shares(quality: Quality) -> str:
    return f"{quality.value:.3f} ({quality.low:.3f} to {quality.high:.3f})"


def _drawn(record: ModelHistory) -> pa.Table | None:
    """Return the answers to rows that were asked without regard to a score."""
    if record.answers is None:
        return None
    drawn = record.answers.filter(record.answers["is_drawn"])
    return drawn if len(drawn) else None


def _both(record: ModelHistory, oracle: ModelHistory) -> tuple[pa.Table, pa.Table]:
    """Return the answers of two models to the rows that both were asked, without regard to a score, in one order."""
    mine, theirs = _drawn(record), _drawn(oracle)
    if mine is None or theirs is None:
        nothing = pa.table({name: pa.nulls(0) for name in ANSWERS})
        return nothing, nothing
    return _together(mine, theirs)


def _together(one: pa.Table, other: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the rows that are in both, in the same order."""
    at = pc.index_in(one["row"].combine_chunks(), other["row"].combine_chunks())
    return one.filter(pc.is_valid(at)).combine_chunks(), other.take(at.drop_null()).combine_chunks()


def _equal(one: pa.Table, other: pa.Table) -> np.ndarray[Any, Any]:
    """Return where both have a label, and it is the same."""
    labels: Iterable[pa.ChunkedArray] = (each["label"].cast(pa.string()) for each in (one, other))
    return np.asarray(pc.fill_null(pc.equal(*labels), fill_value=False), bool)
