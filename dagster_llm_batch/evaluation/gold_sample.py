"""Rows that people should label next, proposed so that what is measured on them holds for all rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.keys import Upstream, upstream_key
from dagster_llm_batch.assets.upstream import stack_tables
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.builder import Computed, EvaluationBuilder, PartitionOptions, code_digest
from dagster_llm_batch.evaluation.candidates import Candidate, Candidates, candidates_of, is_external
from dagster_llm_batch.evaluation.stored_tables import StoredTables
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.metrics.gold_sample import check_design, propose
from dagster_llm_batch.metrics.gold_signals import gold_signals
from dagster_llm_batch.metrics.gold_weights import SAMPLE_COLUMNS, next_round
from dagster_llm_batch.metrics.tables import rows_markdown

__all__ = ["gold_sample_assets"]

_HINT = "Set key=, target= or confidence= to columns that are there."

_DOCS = {
    "why": "signals that weighed as much as chance, strongest first; else random",
    "disagreement": "share of the pairs of candidates that differ",
    "low_confidence": "1 - least confidence that a candidate states",
    "rare_class": "how far below an even share the row's class is",
    "drift": "part of the class that its share in the partition before does not explain",
    "probability": "of being proposed",
    "sample_weight": "1 / probability; gold keeps this column, and the following",
    "sample_round": "how often rows were drawn, this time included",
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
    random_share: float = 0.3,
    seed: int = 0,
    **options: Unpack[PartitionOptions],
) -> list[dg.AssetsDefinition]:
    """Declare an asset with the rows most worth a human label: where candidates disagree or are unsure, rare classes,
    classes that grow.

        candidate a ─┐
        candidate b ─┼─▶ <name>    one row for each proposal: key, why, probability, sample_…
        gold ────────┘

    Not the hardest rows only: `random_share` of them is drawn from all rows alike, and each proposal says with what
    probability it was drawn. Keep the columns that begin with `sample_` with the label: evaluations use them, so that
    their figures are those of all rows, not of the hard ones. Each time that gold has grown, the next round is drawn
    from the other rows; label a round before the next is drawn. Rows that had gold before the first one get
    `sample_weight` 1 and `sample_round` 0. What candidates said is not shown: people should not follow it. The same
    labels and seed give the same proposals. Needs the extra `evaluation` when it runs.

    Args:
        name: Name of the asset.
        candidates: Assets with labels. One is enough; two can disagree.
        key: Column that candidates and gold share; it names one row.
        target: Column, or columns, that people will label: classes, not measurements.
        sample_size: How many rows to propose; of each partition, if there are any. None (in YAML null): all that have
            no gold.
        gold: Asset with the rows that people have labeled already; these are not proposed. It may be empty yet.
        rejects: Assets with rejected rows by candidate: they are proposed too.
        confidence: Column of the candidates with the probability, 0 to 1, that their label is correct; a mapping names
            one by target. Candidates without it have no say.
        random_share: Share of the proposals that is drawn from all rows alike; above 0.
        seed: Seed of the drawing; another one draws other rows.
        partitions_def: Partitions, from each of which rows are proposed by themselves. Its classes are then compared
            with those of the partition before, as far as a candidate has that (`drift`).
        frame, io_manager_key, backfill_policy: As for `evaluation_assets`.
        options: Dagster's own, as for `evaluation_assets`. By default it is made when labels are new, not when gold is.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for what cannot work.
    """
    check_design(sample_size, random_share)
    targets = (target,) if isinstance(target, str) else tuple(target)
    sure = dict.fromkeys(targets, confidence) if isinstance(confidence, str) else dict(confidence or {})
    if not targets or set(sure) - set(targets):
        raise ConfigError(
            f"target={list(targets)}, confidence={confidence!r}: give at least one target, and a confidence of none "
            "but these."
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
    )
    sampling.builder.check_partitions(gold, candidates, rejects or {})
    names = ", ".join(candidate.name for candidate in sampling.candidates)
    spec = sampling.builder.spec(
        f"Rows of {names} that people should label next, by {', '.join(targets)}.",
        deps=[*sampling.reads, *sampling.not_awaited],
        kinds={"table"},
        code_version=sampling.code_version,
        follow=sampling.builder.follow(sampling.reads, not_awaited=sampling.not_awaited),
    )
    return [sampling.builder.table_asset(spec, sampling.compute)]


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
        return code_digest(self.candidates, self.gold, columns, self.sample_size, self.random_share, self.seed)

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
        proposed = propose(
            keys,
            signals,
            key=self.join_key,
            sample_size=max(len(keys), 1) if self.sample_size is None else self.sample_size,
            random_share=self.random_share,
            seed=self.seed,
            has_gold=has_gold,
            sample_round=1 if gold is None else next_round(gold, partition),
            partition=partition,
        )
        reasons = Counter(proposed["why"].to_pylist()).most_common()
        metadata: dict[str, Any] = {
            "llm_batch/rows": len(keys),
            "llm_batch/why": dg.MetadataValue.md(rows_markdown([{"why": why, "rows": f"{n:,}"} for why, n in reasons])),
            **{figure_key("earlier_partition", name): earlier for name, (earlier, _) in before.items()},
            **({} if has_gold is None else {"llm_batch/gold_rows": len(has_gold.unique())}),
        }
        return Computed(proposed, metadata, _DOCS)

    def _labels(self, stored: StoredTables, candidate: Candidate, partition: str | None) -> pa.Table:
        """Return labels, and the rejects as rows without a label."""
        columns = [self.join_key, *self.targets]
        labels = stored.read(candidate.key, partition, columns, also=self.confidence, hint=_HINT)
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
        """Return keys of the rows that have gold, and how they were drawn; None where there is no gold yet."""
        if self.gold is None:
            return None
        # Gold may be declared before anybody has labeled a row: until something is materialized there is none.
        begun = self.gold_is_external or context.instance.get_latest_materialization_event(self.gold) is not None
        here = stored.parts(self.gold, partition)
        if not begun or not here:
            return None
        tables = [stored.load(self.gold, part, [self.join_key], also=SAMPLE_COLUMNS, hint=_HINT) for part in here]
        return stack_tables(tables, self.gold)
