"""Propose rows that people should label next, so that figures measured on them hold for all rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.keys import Upstream, upstream_key
from dagster_llm_batch.assets.upstream import stack_tables
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.builder import (
    Computed,
    EvaluationBuilder,
    PartitionOptions,
    code_digest,
    whenever_new,
)
from dagster_llm_batch.evaluation.candidates import Candidate, Candidates, candidates_of, is_external
from dagster_llm_batch.evaluation.stop_rule import CHECK, SECONDS, Enough, StopRule, enough_of
from dagster_llm_batch.evaluation.stored_tables import StoredTables
from dagster_llm_batch.metadata import WANTED_KEY, figure_key
from dagster_llm_batch.metrics.clusters import REQUEST
from dagster_llm_batch.metrics.gold_sample import RANDOM_SHARE, check_design, propose
from dagster_llm_batch.metrics.gold_signals import SIGNALS, gold_signals
from dagster_llm_batch.metrics.gold_weights import PARTITION, ROUND, SAMPLE_COLUMNS, next_round
from dagster_llm_batch.metrics.tables import rows_markdown
from dagster_llm_batch.text import column_text, list_text

__all__ = ["gold_sample_assets"]

_HINT = "Set key=, target= or confidence= to columns that are there."

_DOCS = {
    "why": "signals that weighed as much as chance, strongest first; else random",
    "disagreement": "share of the pairs of candidates that differ",
    "low_confidence": "1 minus the lowest confidence of a candidate",
    "rare_class": "distance of the class's share below an even share",
    "drift": "part of the class that its share in the partition before does not explain",
    "probability": "probability that the row was proposed",
    "sample_weight": "1 / probability; gold keeps this column, and the following",
    "sample_round": "number of draws so far, including this one",
    "sample_rows": "rows that there were, those with gold included",
    "sample_partition": "partition that was drawn from",
}


@checked_options(PartitionOptions, EvaluationBuilder)
def gold_sample_assets(
    *,
    name: str,
    candidates: Candidates,
    key: str,
    target: str | Sequence[str],
    sample_size: int | None = 100,
    gold: Upstream | None = None,
    rejects: Mapping[str, Upstream] | None = None,
    confidence: str | Mapping[str, str] | None = None,
    random_share: float = RANDOM_SHARE,
    seed: int = 0,
    stop: StopRule | None = None,
    **options: Unpack[PartitionOptions],
) -> list[dg.AssetsDefinition]:
    """Declare an asset with the rows most worth a human label: where candidates disagree or are unsure, rare classes,
    classes that grow.

        candidate a ─┐
        candidate b ─┼─▶ <name>    one row for each proposal: key, why, probability, sample_…
        gold ────────┘

    The proposals are not only the hardest rows: `random_share` of them is drawn from all rows alike, and each proposal
    contains its probability of being drawn. Keep the columns that begin with `sample_` with the label: evaluations use
    them, so that their figures hold for all rows, not only for the hard ones. Each time that gold has grown, the next
    round is drawn from the other rows; label a round before the next is drawn. Rows that had gold before the first
    round get `sample_weight` 1 and `sample_round` 0. The candidates' labels are not shown, so that people do not follow
    them. The same labels and seed give the same proposals. Needs the extra `evaluation` when it runs.

    Args:
        name: Name of the asset.
        candidates: Assets with labels. One is enough; two can disagree.
        key: Column that candidates and gold share; it names one row.
        target: Column, or columns, that people will label: classes, not measurements.
        sample_size: Number of rows to propose, for each partition if there are any. None (in YAML null): all rows
            without gold.
        gold: Asset with the rows that people have labeled already; these are not proposed. It may be empty yet.
        rejects: Assets with rejected rows by candidate: they are proposed too.
        confidence: Column of the candidates with the probability, 0 to 1, that their label is correct; a mapping names
            one by target. Candidates without it do not count for this signal.
        random_share: Share of the proposals that is drawn from all rows alike; above 0. Default: three quarters, so
            that 40 proposals show any figure at least as well as 30 random rows. With less, more of the rows are those
            that signals find, and intervals can be wider.
        seed: Seed of the drawing; another one draws other rows.
        stop: Width that an interval must reach; needs gold=. A round then stays until each of its rows is in gold, and
            the next has the forecast number of rows; `sample_size` is for the first round. Once the interval is narrow
            enough, the asset proposes no more rows. Until then the check `enough_gold` warns. It shows the rows still
            to label, and the minutes that people need, if gold contains their times (`annotation_assets` records them).
            Each round's interval is wider than a 95 % one, so that looking at all of them misses in 5 %.
        partitions_def: Partitions; rows are proposed from each separately. Classes of a partition are then compared
            with the partition before, if a candidate has it (`drift`).
        frame, io_manager_key, backfill_policy: As for `evaluation_assets`.
        options: Dagster's own, as for `evaluation_assets`. By default it is materialized when labels are new, and with
            `stop` also when gold is new.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for arguments that cannot work.
    """
    check_design(sample_size, random_share)
    targets = (target,) if isinstance(target, str) else tuple(target)
    sure = dict.fromkeys(targets, confidence) if isinstance(confidence, str) else dict(confidence or {})
    if not targets or set(sure) - set(targets):
        raise ConfigError(
            f"confidence= names {', '.join(sure) or 'nothing'}, and target= {', '.join(targets) or 'nothing'}: give at "
            "least one target, and a confidence of none but these."
        )
    if stop is not None and gold is None:
        raise ConfigError(
            "stop= asks how narrow an interval is, which gold shows: give gold=, as of annotation_assets."
        )
    sampling = _Sampling(
        builder=EvaluationBuilder(name=name, **options),
        candidates=candidates_of(candidates, rejects or {}, targets),
        gold=None if gold is None else upstream_key(gold),
        gold_is_external=is_external(gold),
        join_key=key,
        targets=targets,
        confidence=tuple(dict.fromkeys(column for column in sure.values() if column is not None)),
        sample_size=sample_size,
        random_share=random_share,
        seed=seed,
        stop=stop,
    )
    sampling.builder.check_partitions(gold, candidates, rejects or {})
    names = list_text([candidate.name for candidate in sampling.candidates])
    spec = sampling.builder.spec(
        f"Rows of {names} that people should label next, in {column_text(targets)}.",
        deps=[*sampling.reads, *sampling.not_awaited],
        kinds={"table"},
        code_version=sampling.code_version,
        follow=sampling.follow,
    )
    checks = []
    if stop is not None:
        spec = spec.merge_attributes(metadata={WANTED_KEY: stop.half_width})
        meaning = f"Enough rows have gold: the interval of {stop.figure} is ± {stop.half_width:g} or narrower."
        checks.append(sampling.builder.check(CHECK, meaning, blocking=False))
    return [sampling.builder.table_asset(spec, sampling.compute, checks)]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A round in progress: its rows, and the number of them that still lack a judgment."""

    rows: pa.Table
    left: int


@dataclass(frozen=True)
class _Sampling:
    """One sample, in Dagster's words."""

    builder: EvaluationBuilder
    candidates: tuple[Candidate, ...]
    gold: dg.AssetKey | None
    gold_is_external: bool
    join_key: str
    targets: tuple[str, ...]
    confidence: tuple[str, ...]
    sample_size: int | None
    random_share: float
    seed: int
    stop: StopRule | None

    @property
    def follow(self) -> dg.AutomationCondition[Any]:
        """Return the condition to propose again: when labels are new, and, with a stop rule, when gold is."""
        builder = self.builder
        if self.stop is None or self.gold is None:
            return builder.follow(self.reads, not_awaited=self.not_awaited)
        if builder.partitions_def is None:
            return whenever_new([*self.reads, self.gold], *([key] for key in self.reads))
        more = builder.more_deps([*self.reads, *self.not_awaited])
        return builder.when_ready(
            not_awaited=[*self.not_awaited, *more],
            not_followed=[*(key for key in self.not_awaited if key != self.gold), *more],
        )

    @property
    def reads(self) -> list[dg.AssetKey]:
        return list(dict.fromkeys(candidate.key for candidate in self.candidates))

    @property
    def not_awaited(self) -> list[dg.AssetKey]:
        rejects = [candidate.rejects for candidate in self.candidates if candidate.rejects is not None]
        return list(dict.fromkeys([*rejects, *([] if self.gold is None else [self.gold])]))

    @property
    def code_version(self) -> str:
        columns = (self.join_key, self.targets, self.confidence)
        design = (self.candidates, self.gold, columns, self.sample_size, self.random_share, self.seed)
        return code_digest(*design) if self.stop is None else code_digest(*design, self.stop)

    def compute(self, context: dg.AssetExecutionContext, partition: str | None) -> Computed:
        stored = StoredTables(context)
        tables = {candidate.name: self._labels(stored, candidate, partition) for candidate in self.candidates}
        before = {} if partition is None else self._before(stored, partition)
        keys, signals = gold_signals(
            tables,
            key=self.join_key,
            targets=self.targets,
            confidence=self.confidence,
            reference={name: table for name, (_, table) in before.items()},
        )
        if self.confidence and "low_confidence" not in signals:
            raise ConfigError(f"No candidate has a column {' or '.join(map(repr, self.confidence))}. {_HINT}")
        gold = self._read_gold(context, stored, partition)
        has_gold = None if gold is None else gold[self.join_key].combine_chunks()
        size = max(len(keys), 1) if self.sample_size is None else self.sample_size
        enough, waiting = None, None
        if self.stop is not None:
            waiting = self._open_round(context, stored, keys, has_gold, partition)
            enough = self._enough(self.stop, _of_partition(gold, partition), tables, len(keys), size, waiting)
            size = max(1, enough.size)
        proposed = propose(
            keys,
            signals,
            key=self.join_key,
            sample_size=size,
            random_share=self.random_share,
            seed=self.seed,
            has_gold=has_gold,
            sample_round=1 if gold is None else next_round(gold, partition),
            partition=partition,
        )
        if waiting is not None:
            proposed = waiting.rows
        elif enough is not None and enough.is_reached:
            proposed = proposed.slice(0, 0)
        reasons = Counter(proposed["why"].to_pylist()).most_common()
        metadata: dict[str, Any] = {
            "llm_batch/rows": len(keys),
            "llm_batch/why": dg.MetadataValue.md(rows_markdown([{"why": why, "rows": f"{n:,}"} for why, n in reasons])),
            **{figure_key("earlier_partition", name): earlier for name, (earlier, _) in before.items()},
            **({} if has_gold is None else {"llm_batch/gold_rows": len(has_gold.unique())}),
            **({} if enough is None else enough.metadata),
        }
        return Computed(proposed, metadata, _DOCS, [] if enough is None else [enough.check_result()])

    def _open_round(
        self,
        context: dg.AssetExecutionContext,
        stored: StoredTables,
        keys: pa.Array,
        has_gold: pa.Array | None,
        partition: str | None,
    ) -> _Waiting | None:
        """Return the rows of the last proposal while some of them lack a judgment; None if all have one.

        A new draw would leave out the rows of slow labelers. Rows that are gone need no judgment.
        """
        own = next(iter(context.selected_asset_keys))
        if partition not in stored.partitions(own):
            return None
        columns = [self.join_key, "why", *SIGNALS, "probability", *SAMPLE_COLUMNS]
        rows = stored.load(own, partition, columns, hint="Wipe the materializations of this asset to begin anew.")
        theirs = rows[self.join_key].cast(keys.type)
        rows, theirs = (part.filter(pc.is_in(theirs, value_set=keys)) for part in (rows, theirs))
        left = len(rows)
        if has_gold is not None:
            left -= int(pc.sum(pc.is_in(theirs, value_set=pc.unique(has_gold).cast(keys.type))).as_py() or 0)
        return _Waiting(rows, left) if left else None

    def _enough(
        self,
        rule: StopRule,
        gold: pa.Table | None,
        tables: Mapping[str, pa.Table],
        n_rows: int,
        size: int,
        waiting: _Waiting | None,
    ) -> Enough:
        """Return the state of the stop rule."""
        return enough_of(
            rule,
            gold,
            tables,
            key=self.join_key,
            targets=self.targets,
            n_rows=n_rows,
            sample_size=size,
            open_round=None
            if waiting is None
            else (int(pc.max(waiting.rows[ROUND]).as_py()), len(waiting.rows), waiting.left),
        )

    def _labels(self, stored: StoredTables, candidate: Candidate, partition: str | None) -> pa.Table:
        """Return labels, and the rejects as rows without a label."""
        columns = [self.join_key, *self.targets]
        # A stop rule counts requests, and a request that did not succeed is wrong.
        also = self.confidence if self.stop is None else (*self.confidence, REQUEST, "llm_outcome")
        labels = stored.read(candidate.key, partition, columns, also=also, hint=_HINT)
        if candidate.rejects is None:
            return labels
        here = stored.parts(candidate.rejects, partition)
        rejects = [stored.load(candidate.rejects, part, [self.join_key], hint=_HINT) for part in here]
        return stack_tables([labels, *rejects], candidate.key)

    def _before(self, stored: StoredTables, partition: str) -> dict[str, tuple[str, pa.Table]]:
        """Return the stored partition before this one, and its labels, of the candidates that have one."""
        earlier_labels = {}
        for candidate in self.candidates:
            # An unpartitioned one has no labels from before.
            if stored.partitions_def(candidate.key) is None:
                continue
            earlier = next((one for one in stored.before(partition) if stored.parts(candidate.key, one)), None)
            if earlier is not None:
                columns = [self.join_key, *self.targets]
                earlier_labels[candidate.name] = (earlier, stored.read(candidate.key, earlier, columns, hint=_HINT))
        return earlier_labels

    def _read_gold(
        self, context: dg.AssetExecutionContext, stored: StoredTables, partition: str | None
    ) -> pa.Table | None:
        """Return keys of the rows with gold, and how they were drawn; None if there is no gold yet."""
        if self.gold is None:
            return None
        # Gold may be declared before the first row is labeled: it is empty until it is materialized.
        begun = self.gold_is_external or context.instance.get_latest_materialization_event(self.gold) is not None
        here = stored.parts(self.gold, partition)
        if not begun or not here:
            return None
        columns = [self.join_key] if self.stop is None else [self.join_key, *self.targets]
        tables = [stored.load(self.gold, part, columns, also=(*SAMPLE_COLUMNS, SECONDS), hint=_HINT) for part in here]
        return stack_tables(tables, self.gold)


def _of_partition(gold: pa.Table | None, partition: str | None) -> pa.Table | None:
    """Return the gold that was drawn from a partition; all gold if it has no partition column."""
    if gold is None or partition is None or PARTITION not in gold.column_names:
        return gold
    return gold.filter(pc.equal(gold[PARTITION].cast(pa.string()), partition))
