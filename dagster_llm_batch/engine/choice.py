"""The choice of a model: ways to label a dataset's next rows, each with its cost, end and quality, by earlier data.

    records ─▶ one model alone, by batch or in real time ─┐
    pairs ───▶ cascades, by level and sample ─────────────┴─▶ Plan ─ judge ─▶ feasible | open | dropped

Nothing is guessed: what is not known is None, with the reason. All intervals of qualities hold together, so that the
best of many plans is no lucky one. What was measured is of earlier rows, and says of the next ones only that they are
like these; a cascade is certified by the sample of its own run, whatever stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache, cached_property
from math import ceil, log
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.cascade import choose_sample, count_least
from dagster_llm_batch.core.durations import FEWEST, Durations
from dagster_llm_batch.core.forecast import Rates, learn
from dagster_llm_batch.engine.deployment import Deployment
from dagster_llm_batch.engine.request_files import Owner
from dagster_llm_batch.engine.track_record import ANSWERS, TrackRecord
from dagster_llm_batch.errors import ConfigError, InputError, LLMBatchError
from dagster_llm_batch.metrics.classification import accuracy_interval
from dagster_llm_batch.metrics.clusters import Units
from dagster_llm_batch.metrics.intervals import share_interval
from dagster_llm_batch.metrics.joining import Target, join
from dagster_llm_batch.metrics.replay import Accepted, Pool, replay
from dagster_llm_batch.metrics.tally import tally
from dagster_llm_batch.text import money_text
from dagster_llm_batch.types import Lane, PriceBasis, Span

__all__ = ["GOLD", "BatchEnds", "Chooser", "End", "Plan", "Quality", "Wanted"]

GOLD = "gold"
"""What `Wanted.against` is where qualities are shares of gold rows that are labeled right."""

_ID, _OUTCOME = "llm_request_id", "llm_outcome"

# Levels of agreement with the oracle that are tried where quality is measured against gold.
_LEVELS = (0.8, 0.9, 0.95, 0.98)

_FEWEST_REPLIES, _FEWEST_RUNS, _MANY = 30, 3, 1_000
# So many batches are read; similar ones have a quarter to four times of the requests.
_SPANS, _SIMILAR = 300, 4
# Fewer rows than this give an interval that says nothing.
_FEWEST_ROWS = 20


@dataclass(frozen=True)
class Wanted:
    """What a plan has to reach.

    Attributes:
        quality: The least share of right labels; `against`: gold, or the model whose label counts as right.
        confidence: How sure that has to be, of all plans together.
        rows: How many rows are to be labeled.
        target, score: The columns that are compared, and of scores (None: there is none).
        by: When all has to have ended; `max_usd`: what it may cost. None: whenever, whatever.
        now: When it is begun.
    """

    quality: float
    confidence: float
    rows: int
    target: str
    score: str | None
    against: str
    now: datetime
    by: datetime | None = None
    max_usd: Decimal | None = None


class Quality(NamedTuple):
    """A share of right labels. `value` None: it is not known, and `basis` says why; else on what it rests.

    `is_promised`: the run certifies it by its own sample; `low` is what it promises then.
    """

    value: float | None
    low: float | None
    high: float | None
    rows: int
    basis: str
    is_promised: bool = False


class Cost(NamedTuple):
    """What rows cost, in USD: expected, and between which ends 9 in 10 submissions do. None: not known, see `why`."""

    expected: Decimal | None
    low: Decimal | None
    high: Decimal | None
    why: str | None = None

    def times(self, share: float, low: float | None = None, high: float | None = None) -> Cost:
        """Return the cost of a share of the rows, which itself has two ends."""
        shares = (share, share if low is None else low, share if high is None else high)
        expected, least, most = (
            None if amount is None else amount * Decimal(repr(each))
            for amount, each in zip((self.expected, self.low, self.high), shares, strict=True)
        )
        return Cost(expected, least, most, self.why)

    def plus(self, other: Cost) -> Cost:
        """Return the cost of both. The ends are added, as if both went wrong together."""
        pairs = ((self.expected, other.expected), (self.low, other.low), (self.high, other.high))
        expected, low, high = (None if None in pair else sum(filter(None, pair), Decimal(0)) for pair in pairs)
        return Cost(expected, low, high, self.why or other.why)


class End(NamedTuple):
    """How long requests take, from their sending on, in 19 of 20 cases; None: not known, and `basis` says why."""

    p95: timedelta | None
    basis: str


Ends = Callable[[TrackRecord, Lane, int], End]
"""Returns how long so many requests of a record's model take in a lane."""


@dataclass(frozen=True)
class Plan:
    """One way to label the rows.

    Attributes:
        record: Of the model; `oracle`: likewise, of a cascade.
        agreement, sample: What a cascade promises, and how many rows it samples for that.
        accepted: The share of rows that is expected to keep the model's own label.
        ends_at: When 19 of 20 have ended.
        broken: What it breaks; `unknown`: what cannot be said. Where neither has anything, it is feasible.
        notes: What else is to know.
    """

    record: TrackRecord
    lane: Lane
    cost: Cost
    quality: Quality
    end: End
    oracle: TrackRecord | None = None
    agreement: float | None = None
    sample: int | None = None
    accepted: float | None = None
    ends_at: datetime | None = None
    broken: Sequence[str] = ()
    unknown: Sequence[str] = ()
    notes: Sequence[str] = field(default=())

    @property
    def state(self) -> str:
        return "dropped" if self.broken else "open" if self.unknown else "feasible"

    @property
    def models(self) -> list[str]:
        return [self.record.model, *([] if self.oracle is None else [self.oracle.model])]

    @property
    def order(self) -> tuple[Any, ...]:
        """The cheapest first; of equal ones the one that ends first."""
        cost, p95 = self.cost.expected, self.end.p95
        return (cost is None, cost or 0, p95 is None, p95 or timedelta(), self.models, self.lane, self.agreement or 0)


class Chooser:
    """Make and judge plans.

    Args:
        deployment: Whose prices and providers hold. Nothing of it is changed.
        records: Of all models that come into question.
        wanted: What plans have to reach.
        gold: Columns `row`, the target, and, where gold has them, `partition`, its cluster's and those of a sample.
            None: there is none.
        gold_key: The target's column of gold.
        ends: See Ends.
    """

    def __init__(
        self,
        deployment: Deployment,
        records: Sequence[TrackRecord],
        wanted: Wanted,
        ends: Ends,
        gold: pa.Table | None = None,
        gold_column: str | None = None,
        cluster: str | None = None,
    ) -> None:
        self._deployment = deployment
        self._wanted = wanted
        self._ends = ends
        self._cost = cache(self._cost_of)
        self._gold_column = gold_column or wanted.target
        self._cluster = cluster
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

    def plans(self) -> list[Plan]:
        """Return all plans, the best first: feasible ones, then those of which something is not known, then others."""
        found = [self._judged(plan) for plan in (*self._alone(), *self._cascades())]
        states = ["feasible", "open", "dropped"]
        return sorted(found, key=lambda plan: (states.index(plan.state), plan.order))

    # --- one model alone ---

    def _alone(self) -> Iterator[Plan]:
        for record in self._records:
            quality = self._quality(record)
            for lane in Lane:
                end = self._ends(record, lane, self._requests(record, self._wanted.rows))
                yield Plan(record, lane, self._cost(record, lane), quality, end)

    def _quality(self, record: TrackRecord) -> Quality:
        wanted, answers = self._wanted, _drawn(record)
        if answers is None:
            return Quality(None, None, None, 0, self._no_answers(record))
        if wanted.against == GOLD:
            return self._against_gold(record.model, answers)
        if record.model == wanted.against:
            return Quality(1.0, 1.0, 1.0, len(answers), "it is what counts as right")
        oracle = self._reference
        others = None if oracle is None else _drawn(oracle)
        if others is None:
            return Quality(None, None, None, 0, f"no answers of {wanted.against}, which counts as right")
        mine, theirs = _together(answers, others)
        return self._share(_equal(mine, theirs), mine, "rows that both answered")

    @cached_property
    def _reference(self) -> TrackRecord | None:
        named = [record for record in self._records if record.model == self._wanted.against]
        return max(named, key=lambda record: 0 if record.answers is None else len(record.answers), default=None)

    def _no_answers(self, record: TrackRecord) -> str:
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
    def _pairs(self) -> list[tuple[TrackRecord, TrackRecord]]:
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
                "the response has no column that says how sure a model is. Add `confidence: float` to it, or ask for "
                "logprobs"
            )
        if not self._pairs:
            dearer = "" if self._wanted.against == GOLD else f", the dearer being {self._wanted.against}"
            return f"no two models of different, known prices have answered by the same prompt{dearer}"
        if all(not len(_both(*pair)[0]) for pair in self._pairs):
            return "no two models have answered the same rows"
        return f"of {self._wanted.rows:,} rows a sample would be nearly all"

    def _each_usd(self, record: TrackRecord) -> Decimal | None:
        return self._cost(record, Lane.BATCH).expected

    def _cascades(self) -> Iterator[Plan]:
        wanted = self._wanted
        for record, oracle in self._pairs:
            mine, theirs = _both(record, oracle)
            scores = pc.fill_null(mine["score"].cast(pa.float64()), -np.inf).to_numpy()
            if not np.isfinite(scores).any():
                continue
            pool = Pool(scores, ~_equal(mine, theirs) & np.isfinite(scores))
            for level in _LEVELS if wanted.against == GOLD else [wanted.quality]:
                plan = self._cascade(record, oracle, level, pool)
                if plan is not None and wanted.against == GOLD and plan[1] is not None:
                    mask = pa.array(plan[1].mask)
                    label = pc.if_else(mask, mine["label"], theirs["label"])
                    answers = mine.set_column(mine.column_names.index("label"), "label", label)
                    kept = pc.if_else(mask, mine[_OUTCOME], theirs[_OUTCOME])
                    answers = answers.set_column(answers.column_names.index(_OUTCOME), _OUTCOME, kept)
                    yield replace(plan[0], quality=self._against_gold(record.model, answers))
                elif plan is not None:
                    yield plan[0]

    def _cascade(
        self, record: TrackRecord, oracle: TrackRecord, level: float, pool: Pool
    ) -> tuple[Plan, Accepted | None] | None:
        """Return the cascade of that level whose sample makes it cheapest, and what it accepts."""
        wanted, confidence, rows = self._wanted, self._wanted.confidence, self._wanted.rows
        least = max(count_least(level, confidence), self._least(oracle))
        usual = choose_sample(rows, level, confidence, self._least(oracle))
        sizes = sorted({max(least, size) for size in (usual // 2, usual, 2 * usual)} - {rows})
        cheap, dear = (self._cost(each, Lane.BATCH) for each in (record, oracle))
        basis = f"promised against {oracle.model}, certified by the sample of the run"
        quality = Quality(None, level, None, len(pool.scores), basis, is_promised=True)
        if wanted.against == GOLD:
            quality = Quality(None, None, None, 0, "not measured")
        if len(pool.scores) < least:
            few = f"too few rows: {len(pool.scores)} that both answered by chance, of {least} that it samples"
            end = End(None, "too few rows")
            nothing = Cost(None, None, None, few)
            return Plan(record, Lane.BATCH, nothing, quality, end, oracle, level, least), None
        best: tuple[Plan, Accepted] | None = None
        for size in (size for size in sizes if size < rows):
            accepted = replay(pool, size, rows, level, confidence)
            asked, fewest, most = (1 - a + a * size / rows for a in (accepted.share, accepted.high, accepted.low))
            cost = cheap.plus(dear.times(asked, fewest, most))
            end = self._both_waves(record, oracle, size, most)
            plan = Plan(record, Lane.BATCH, cost, quality, end, oracle, level, size, accepted.share)
            if best is None or plan.order < best[0].order:
                best = plan, accepted
        return best

    def _least(self, oracle: TrackRecord) -> int:
        try:
            return self._deployment.codec(oracle.labeling).limits.min_requests
        except LLMBatchError:
            return 1

    def _both_waves(self, record: TrackRecord, oracle: TrackRecord, sample: int, asked: float) -> End:
        """Return how long a cascade takes: its first wave is the longer of two, and the second follows."""
        rows = self._wanted.rows
        first = [
            self._ends(record, Lane.BATCH, self._requests(record, rows)),
            self._ends(oracle, Lane.BATCH, self._requests(oracle, sample)),
        ]
        rest = ceil(rows * asked) - sample
        waves = [*first, *([self._ends(oracle, Lane.BATCH, self._requests(oracle, rest))] if rest > 0 else [])]
        for end in waves:
            if end.p95 is None:
                return end
        lengths = [end.p95 for end in waves if end.p95 is not None]
        return End(max(lengths[:2]) + sum(lengths[2:], timedelta()), f"both waves; {waves[-1].basis}")

    # --- money ---

    def _requests(self, record: TrackRecord, rows: int) -> int:
        """Return how many requests so many rows are, of which some ask the same."""
        requests, of = (sum(getattr(run, name) for run in record.runs) for name in ("requests", "rows"))
        return rows if not of else max(1, ceil(rows * requests / of)) if rows else 0

    def _cost_of(self, record: TrackRecord, lane: Lane) -> Cost:
        """Return what all rows cost at one model alone."""
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
        # Of fewer runs only what a request can cost at most is known.
        most = self._most_usd(record, lane)
        why = f"{len(billed)} billed runs of {record.model} tell no interval; {_FEWEST_RUNS} do"
        return Cost(expected, None, None if most is None else max(most * requests, expected), why)

    def _most_usd(self, record: TrackRecord, lane: Lane) -> Decimal | None:
        bounds = [run.input_bound for run in record.runs]
        known = [bound for bound in bounds if bound is not None]
        if len(known) < len(bounds) or not known:
            return None
        # It is an estimate of the lane's own prices, of which batches are the first.
        return self._deployment.estimate(record.labeling, lane).most_usd(max(known))

    # --- judgment ---

    def _judged(self, plan: Plan) -> Plan:
        """Return the plan with what it breaks, and what of it cannot be said."""
        plan = replace(plan, ends_at=None if plan.end.p95 is None else self._wanted.now + plan.end.p95)
        found = [*self._judge_quality(plan.quality), *self._judge_cost(plan), *self._judge_end(plan)]
        broken, unknown = (tuple(text for is_broken, text in found if is_broken is wanted) for wanted in (True, False))
        return replace(plan, broken=broken, unknown=unknown)

    def _judge_quality(self, quality: Quality) -> Iterator[tuple[bool, str]]:
        """Yield what is wrong, each with whether it is broken; else it is not known."""
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

    def _judge_cost(self, plan: Plan) -> Iterator[tuple[bool, str]]:
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

    def _judge_end(self, plan: Plan) -> Iterator[tuple[bool, str]]:
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


class BatchEnds:
    """How long a wave takes, by single batches of its model and lane: see Ends.

    Whole submissions of a dataset are not asked: they may have asked other models, or have been cascades.
    """

    def __init__(self, deployment: Deployment, now: datetime) -> None:
        self._deployment = deployment
        self._now = now
        self._spans = cache(self._read)

    def __call__(self, record: TrackRecord, lane: Lane, requests: int) -> End:
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
            return End(None, f"too few {noun} have ended: {durations.ended}, of {FEWEST} that are needed")
        p95 = durations.forecast_end(basis="batches", batches=batches).p95
        running = f", and {durations.running} that still run" if durations.running else ""
        if p95 is None:
            return End(None, f"19 of 20 take longer than is known of {durations.ended} {noun}{running}")
        return End(p95, f"by {durations.ended} {noun}{running}")

    def _read(self, owner: Owner) -> Sequence[Span]:
        of_model = (owner.provider, owner.account, owner.model, owner.lane)
        return self._deployment.ledger.batch_spans(*of_model, _SPANS)


def _shares(quality: Quality) -> str:
    return f"{quality.value:.3f} ({quality.low:.3f} to {quality.high:.3f})"


def _drawn(record: TrackRecord) -> pa.Table | None:
    """Return the answers to rows that were asked without regard to a score."""
    if record.answers is None:
        return None
    drawn = record.answers.filter(record.answers["is_drawn"])
    return drawn if len(drawn) else None


def _both(record: TrackRecord, oracle: TrackRecord) -> tuple[pa.Table, pa.Table]:
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
