"""The one call that declares an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Unpack

import dagster as dg

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.keys import Upstream, upstream_key
from dagster_llm_batch.evaluation import gold_metadata
from dagster_llm_batch.evaluation.builder import Computed, EvaluationBuilder, PartitionOptions, Tables
from dagster_llm_batch.evaluation.candidates import Candidates, Scale, candidates_of, is_external, targets_of
from dagster_llm_batch.evaluation.gold_metadata import MistakeLinks
from dagster_llm_batch.evaluation.gold_rows import Read, Upstreams
from dagster_llm_batch.evaluation.invalid_gold import GOLD_FITS, judge_invalid_gold, may_find_invalid_gold
from dagster_llm_batch.evaluation.regression import CHECK, Accepted, accepted_asset, judge_regression
from dagster_llm_batch.evaluation.sequential_tests import SequentialTest
from dagster_llm_batch.evaluation.spec import EvaluationSpec
from dagster_llm_batch.evaluation.thresholds import AtLeast, Thresholds
from dagster_llm_batch.metadata import COLUMNS_KEY, row_links, rows_metadata
from dagster_llm_batch.metrics import (
    EvaluationReport,
    Regression,
    Target,
    calibrations_to_arrow,
    compare,
    evaluations_to_arrow,
    regressions_to_arrow,
)
from dagster_llm_batch.metrics.failures import FAILURE_SCHEMA, Failure, failures_to_arrow, find_failures
from dagster_llm_batch.text import column_text, list_text

__all__ = ["evaluation_assets"]


@dataclass(frozen=True)
class _Evaluated:
    """One partition, or all together."""

    read: Read
    report: EvaluationReport
    regressions: Sequence[Regression]
    mistakes: MistakeLinks
    keep: Sequence[str]

    @cached_property
    def failures(self) -> list[Failure]:
        return find_failures(self.report.joined, self.read.candidates, keep=self.keep)


def _prepare(
    design: EvaluationSpec,
    keys: Mapping[str, dg.AssetKey],
    accepted_spec: dg.AssetSpec,
    context: dg.AssetExecutionContext,
) -> Callable[[str | None], Tables]:
    upstreams, links, main = Upstreams(context, design), row_links(context), keys[""]
    shown_mistakes = keys["mistakes"].to_user_string()
    accepted = Accepted(context, design, accepted_spec) if design.regression else None
    tests = {
        name: SequentialTest(context, dg.AssetCheckKey(main, name), design.builder.partitions_def)
        for name in (CHECK, "ece")
    }

    def compute(partition: str | None) -> Tables:
        read = upstreams.read(partition)
        report = compare(
            read.gold,
            read.candidates,
            key=design.join_key,
            targets=design.targets,
            keep=design.keep,
            cluster=design.cluster,
        )
        regressions = accepted.regressions(read) if accepted else []
        mistakes = MistakeLinks(links, shown_mistakes, design.join_key, partition)
        evaluated = _Evaluated(read, report, regressions, mistakes, design.keep)

        def table(suffix: str) -> Computed:
            computed = _computed(design, suffix, evaluated)
            if accepted and suffix == "versions":
                return replace(computed, metadata={**computed.metadata, **accepted.metadata})
            if suffix:
                return computed
            check_results = design.thresholds.check_results(report, partition, tests["ece"])
            if may_find_invalid_gold(design.candidates, design.targets):
                check_results.append(judge_invalid_gold(read.invalid_gold))
            if accepted:
                severity = design.thresholds.severity
                check_results.append(judge_regression(regressions, tests[CHECK], partition, accepted, severity))
            behind = rows_metadata(mistakes.table())
            return replace(
                computed, check_results=[replace(one, metadata={**one.metadata, **behind}) for one in check_results]
            )

        # The main table comes last: a blocking check of it may end the run, and the others are stored by then.
        return {suffix: partial(table, suffix) for suffix in (*reversed(list(design.beside)), "")}

    return compute


def _computed(design: EvaluationSpec, suffix: str, evaluated: _Evaluated) -> Computed:
    """Return one of the tables, with metadata and check results. A partition that cannot be evaluated has none."""
    read, report = evaluated.read, evaluated.report
    sources: dict[str, Any] = {
        "gold": design.gold,
        "candidates": design.candidates,
        "key": design.join_key,
        "targets": design.targets,
    }
    if suffix == "mistakes":
        assert report.mistakes is not None
        lineage = gold_metadata.mistakes_lineage(report.mistakes.schema, **sources)
        metadata = {
            **gold_metadata.mistakes_metadata(report.mistakes, evaluated.mistakes),
            "dagster/column_lineage": lineage,
        }
        return Computed(
            report.mistakes,
            metadata,
            gold_metadata.mistakes_docs(design.candidates, key=design.join_key, keep=design.keep),
        )
    if suffix == "failures":
        failures = evaluated.failures
        metadata = gold_metadata.failures_metadata(failures, evaluated.mistakes)
        lineage = gold_metadata.column_lineage(FAILURE_SCHEMA, **sources)
        return Computed(
            failures_to_arrow(failures), {**metadata, "dagster/column_lineage": lineage}, gold_metadata.FAILURE_DOCS
        )
    if suffix == "per_class":
        table, metadata = report.per_class, gold_metadata.per_class_metadata(report)
    elif suffix == "calibration":
        table, metadata = calibrations_to_arrow(report.calibrations), gold_metadata.calibration_metadata(report)
    elif suffix == "versions":
        table, metadata = (
            regressions_to_arrow(evaluated.regressions),
            gold_metadata.versions_metadata(evaluated.regressions),
        )
    else:
        table = evaluations_to_arrow(report.evaluations)
        metadata = gold_metadata.evaluation_metadata(report, read, evaluated.failures, evaluated.mistakes)
    lineage = gold_metadata.column_lineage(table.schema, **sources)
    computed = Computed(table, {**metadata, "dagster/column_lineage": lineage}, gold_metadata.DOCS)
    return computed if suffix else replace(computed, columns_key=COLUMNS_KEY)


@checked_options(PartitionOptions, EvaluationBuilder)
def evaluation_assets(
    *,
    name: str,
    gold: Upstream,
    candidates: Candidates,
    key: str,
    target: str | Target | Sequence[str | Target],
    gold_target: str | Mapping[str, str] | None = None,
    kind: Scale | Mapping[str, Scale] = "categorical",
    keep: Sequence[str] | None = None,
    cluster: str | None = None,
    rejects: Mapping[str, Upstream] | None = None,
    confidence: str | Mapping[str, str] | None = None,
    regression: bool = False,
    min_accuracy: float | AtLeast | Mapping[str, float | AtLeast] | None = None,
    min_kappa: float | AtLeast | Mapping[str, float | AtLeast] | None = None,
    max_ece: float | Mapping[str, float] | None = None,
    check_severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    blocking: bool = False,
    **options: Unpack[PartitionOptions],
) -> list[dg.AssetsDefinition]:
    """Declare assets that measure candidates against gold: one row per candidate and target, and one per class.

        gold ───────┐
        candidate a ┼─▶ <name>                 coverage, accuracy, F1, kappa with intervals, cost, latency, Pareto front
        candidate b ┘   <name>_mistakes        the rows that a candidate got wrong, with gold and all labels
                        <name>_failures        the same in groups: label and gold class, with share, words and examples
                        <name>_per_class       precision, recall and F1 of each class (categorical targets)
                        <name>_calibration     confidence against correctness, by bins (with `confidence`)
                        <name>_versions        present labels against the accepted ones (with `regression`)
                           └─▶ <name>_accepted    labels that a person has accepted (with `regression`)

    With `partitions_def`, each partition is evaluated separately, on the partitions of gold and candidates that Dagster
    maps to it; unmaterialized ones are left out and counted. Without, all materialized partitions are read, one by one,
    and evaluated together. Keys must be unique over all tables that are read together. `evaluation.gold_rows` lists the
    gold rows that count. Needs the extra `evaluation` when it runs.

    Args:
        name: Name of the evaluation asset.
        gold: Asset with the true values.
        candidates: Assets with labels: their keys, or what `llm_batch_assets` returned. A mapping gives them names;
            else the last part of the asset key is the name.
        key: Column that gold and candidates share; it names one row.
        target: Column, or columns, to compare; a `Target` has details of one.
        gold_target: Column of gold with the target, or a mapping from targets to columns. Default: by the same name.
        kind: Scale of all targets, or by target. "ordinal" is for integer classes, where kappa counts a disagreement by
            its squared distance.
        keep: Columns of the candidates to show with each row in `<name>_mistakes`. Default: the columns that the
            candidates' definitions keep.
        cluster: Column of gold, or else of the candidates, whose rows belong together, such as the customer or the
            document: intervals and tests take all rows with one value for one unit. Default: the request
            (`llm_request_id`), since identical ones have one reply.
        rejects: Assets with rejected rows by candidate, so that their costs count and they are distinguished from
            absent rows. Rejects of `llm_batch_assets` are known if its definitions, not keys, are given as candidates.
        confidence: Column of the candidates with the probability, 0 to 1, that their label is correct; a mapping names
            one by target. Candidates without it are not calibrated.
        regression: Whether to keep the last accepted version, compare with it, and check it (`regression`): it fails if
            a candidate is surely worse than before. To accept, materialize `<name>_accepted` with
            `candidates: [<name>, …]` in its run config; without candidates it accepts nothing.
        min_accuracy: Least accuracy of every candidate, or by candidate, as an asset check over all categorical
            targets, on all gold rows: one without a label counts as wrong. `AtLeast` asks for a lower bound instead, or
            for the labeled rows only.
        min_kappa: Least kappa, likewise; a missing label is an answer of its own, which is always wrong.
        max_ece: Largest expected calibration error of every candidate, or by candidate, as an asset check. It fails
            where chance does not explain that the error is larger: few labels make it large by themselves.
        check_severity: Severity of a check that fails.
        blocking: Whether a failed check holds back downstream assets.
        frame, io_manager_key, partitions_def, backfill_policy: As for every evaluation; see `EvaluationBuilder`.
        options: Dagster's own, for all tables except `<name>_accepted`, which waits for a person and is never late: see
            `DagsterOptions`. By default they are materialized when labels or gold are new. A partitioned evaluation
            waits for all upstreams of its partition and their blocking checks (`on_labels_ready`); an unpartitioned one
            takes the materialized partitions whenever another arrives. Gold given as an unpartitioned AssetSpec is
            assumed to exist.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for arguments that cannot work.
    """
    targets = targets_of(target, gold_target, kind, confidence)
    measured = candidates_of(candidates, rejects or {}, [target.name for target in targets])
    limits = Thresholds.of(min_accuracy, min_kappa, max_ece, measured, targets, check_severity, blocking=blocking)
    design = EvaluationSpec(
        builder=EvaluationBuilder(name=name, **options),
        gold=upstream_key(gold),
        candidates=measured,
        join_key=key,
        targets=targets,
        thresholds=limits,
        regression=regression,
        keep=tuple(dict.fromkeys(name for candidate in measured for name in candidate.keep) if keep is None else keep),
        cluster=cluster,
    )
    builder = design.builder
    builder.check_partitions(gold, candidates, rejects or {})
    evaluated: dict[str, Any] = {
        "deps": design.upstreams,
        "code_version": design.code_version,
        "follow": design.follow(gold_is_external=is_external(gold)),
    }
    names = list_text([candidate.name for candidate in measured])
    columns = column_text([target.name for target in targets])
    compared = f"labels of {names}, compared with {design.gold.to_user_string()} by the key {key}, in {columns}."
    specs = {"": builder.spec(f"Quality of the {compared}", **evaluated)}
    for suffix, holds in design.beside.items():
        specs[suffix] = builder.spec(f"{holds}: {compared}", suffix=suffix, **evaluated)
    # One accepted version serves all partitions. Only a person accepts, so that it follows nothing.
    by_hand = replace(
        builder,
        partitions_def=None,
        automation_condition=None,
        backfill_policy=None,
        freshness_policy=None,
    )
    accepted = by_hand.spec(
        "Accepted labels of the gold rows, which later labels are compared with. To accept labels, name their "
        f"candidates ({names}) in the run config. A run without names accepts nothing.",
        suffix="accepted",
        deps=[specs[""].key, *design.upstreams],
        kinds={"table"},
    )
    checks = limits.specs(builder)
    if may_find_invalid_gold(measured, targets):
        fits = "The candidates' response schemas allow every gold value, so a label can equal it. A failure only warns."
        checks.append(builder.check(GOLD_FITS, fits, blocking=False))
    if regression:
        not_worse = f"No candidate is certainly worse than the accepted labels in {accepted.key.to_user_string()}."
        checks.append(builder.check(CHECK, not_worse, blocking=blocking))
    prepare = partial(_prepare, design, {suffix: spec.key for suffix, spec in specs.items()}, accepted)
    assets = [design.declared_as(builder.asset(specs, prepare, checks))]
    if regression:
        assets.append(accepted_asset(design, accepted, by_hand))
    return assets
