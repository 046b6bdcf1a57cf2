"""Figures of a whole table, from few gold rows and the labels of all rows, as an asset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import dagster as dg

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.keys import Upstream, upstream_key
from dagster_llm_batch.evaluation.builder import MAX_PICTURES, Computed, EvaluationBuilder, PartitionOptions, picture
from dagster_llm_batch.evaluation.candidates import Candidates, Scale, candidates_of, is_external, targets_of
from dagster_llm_batch.evaluation.gold_metadata import invalid_gold_metadata
from dagster_llm_batch.evaluation.gold_rows import Read, Upstreams
from dagster_llm_batch.evaluation.spec import EvaluationSpec
from dagster_llm_batch.evaluation.thresholds import Thresholds
from dagster_llm_batch.evaluation.value_ends import with_ends
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.metrics import Estimate, Target, estimate, estimates_png, estimates_to_arrow
from dagster_llm_batch.metrics.estimates import estimates_markdown
from dagster_llm_batch.metrics.gold_weights import SAMPLE_COLUMNS, rows_drawn_from
from dagster_llm_batch.text import column_text, list_text

__all__ = ["estimate_assets"]

_DOCS = {
    "candidate": "candidate that gave the labels",
    "target": "column that was estimated",
    "figure": "share of a class, mean, or accuracy (a row without a label is wrong)",
    "label": "class whose share it is",
    "group": "value of the column that group_by= names; null for all rows",
    "against": "group that is subtracted, for a difference between groups",
    "n_rows": "rows of the table, or of the group",
    "n_gold": "rows with gold; for a difference, in the smaller group",
    "n_eff": "equally drawn rows with as much information as the rows that were not certain to be drawn",
    "naive": "estimate from the labels alone (for accuracy, the mean confidence)",
    "gold_only": "estimate from the gold rows alone, weighted as they were drawn",
    "gold_only_low": "95 % interval (design-based, empirical likelihood)",
    "gold_only_high": "95 % interval (design-based, empirical likelihood)",
    "powered": "estimate from labels and gold together",
    "powered_low": "95 % interval (prediction-powered, empirical likelihood)",
    "powered_high": "95 % interval (prediction-powered, empirical likelihood)",
    "slope": "weight of the labels in powered, 0 to 1; 0: powered is gold alone",
    "worth_gold_rows": "gold rows with as much information without the labels",
}


@checked_options(PartitionOptions, EvaluationBuilder)
def estimate_assets(
    *,
    name: str,
    gold: Upstream,
    candidates: Candidates,
    key: str,
    target: str | Target | Sequence[str | Target],
    gold_target: str | Mapping[str, str] | None = None,
    kind: Scale | Mapping[str, Scale] = "categorical",
    group_by: str | None = None,
    cluster: str | None = None,
    rejects: Mapping[str, Upstream] | None = None,
    confidence: str | Mapping[str, str] | None = None,
    **options: Unpack[PartitionOptions],
) -> list[dg.AssetsDefinition]:
    """Declare an asset that estimates figures of a whole labeled table from few gold rows: the share of each class, the
    mean, the accuracy of the labels, and the differences of groups.

        gold ────────┐
        candidate a ─┼─▶ <name>    one row for each figure: labels alone, gold alone, and both together
        candidate b ─┘

    Counting labels counts their mistakes too. `powered` corrects them with the gold rows (prediction-powered
    inference). It holds however bad the labels are; the better they are, the narrower its interval is compared with
    gold alone. `worth_gold_rows` is the number of gold rows that the labels have saved. Gold with the columns of
    `gold_sample_assets` is weighted by them; other gold is taken as drawn from all rows alike. Scores that a judge gave
    to free text (`rubric_judge_assets`) are corrected by people's scores in the same way. Below 10 effective rows there
    is no interval. A number or score needs its possible least and largest value, `minimum` and `maximum` of a `Target`
    or of the response: they bound mistakes that the gold rows do not show. Needs the extra `evaluation` when it runs.

    Args:
        name: Name of the asset.
        gold: Asset with the right values of some rows.
        candidates: Assets with labels of all rows. For a judge, give its factory's return value: its verdicts.
        key: Column that gold and candidates share; it names one row. For a judge's verdicts it is `case_id`.
        target: Column, or columns, to estimate; a `Target` has details of one, such as the ends of a number.
        gold_target: Column of gold with the target, or a mapping from targets to columns. Default: by the same name.
        kind: Scale of all targets, or by target. "categorical" targets get shares and accuracy; "numeric" targets and
            "ordinal" scores get the mean.
        group_by: Column of the candidates whose values are groups, such as `region`, or `candidate` of a judge's
            verdicts; "partition" is Dagster's partition. Each group is estimated, and compared with the others (if
            there are more than 10, with the one before).
        cluster: Column of gold, or else of the candidates, whose rows belong together, such as the customer or the
            document: they count as one. Default: rows that shared a request.
        rejects: Assets with rejected rows by candidate: they are rows of the table too. Those of `llm_batch_assets` are
            known where its definitions, not keys, are given as candidates.
        confidence: Column of the candidates with the probability, 0 to 1, that their label is correct; a mapping names
            one by target. It is used to estimate the accuracy.
        frame, io_manager_key, partitions_def, backfill_policy: As for every evaluation; see `EvaluationBuilder`.
        options: Dagster's own, as for `evaluation_assets`. By default it is made when labels or gold are new.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for arguments that cannot work.
    """
    targets = targets_of(target, gold_target, kind, confidence)
    labeled = candidates_of(candidates, rejects or {}, [one.name for one in targets])
    targets = with_ends(targets, labeled)
    design = EvaluationSpec(
        builder=EvaluationBuilder(name=name, **options),
        gold=upstream_key(gold),
        candidates=labeled,
        join_key=key,
        targets=targets,
        thresholds=Thresholds({}, dg.AssetCheckSeverity.WARN, blocking=False),
        regression=False,
        keep=() if group_by is None else (group_by,),
        cluster=cluster,
    )
    builder = design.builder
    builder.check_partitions(gold, candidates, rejects or {})
    names, columns = list_text([one.name for one in labeled]), column_text([one.name for one in targets])
    spec = builder.spec(
        f"Estimates for all rows of {names}, corrected by the labels in {design.gold.to_user_string()}, in {columns}.",
        deps=design.upstreams,
        code_version=design.code_version,
        follow=design.follow(gold_is_external=is_external(gold)),
    )
    return [builder.table_asset(spec, partial(_compute, design, group_by))]


def _compute(
    design: EvaluationSpec, group_by: str | None, context: dg.AssetExecutionContext, partition: str | None
) -> Computed:
    read = Upstreams(context, design, kept_by="group_by").read(partition)
    estimates = [
        one
        for target in design.targets
        for name, table in read.candidates.items()
        if len(table)
        for one in estimate(
            read.gold,
            table,
            key=design.join_key,
            target=target,
            candidate_name=name,
            group_by=group_by if group_by in table.column_names else None,
            cluster=design.cluster,
        )
    ]
    table = estimates_to_arrow(estimates)
    metadata: dict[str, Any] = {
        "llm_batch/estimates": dg.MetadataValue.md(_report(estimates)),
        "llm_batch/gold_rows": len(read.gold),
        "llm_batch/gold_drawn": _how_drawn(read),
        **invalid_gold_metadata(read.invalid_gold),
        "dagster/column_lineage": _lineage(design, table.column_names),
        **_plotted(estimates),
    }
    return Computed(table, metadata, _DOCS)


def _how_drawn(read: Read) -> str:
    """Describe the assumption about the rows that gold represents."""
    if SAMPLE_COLUMNS[0] not in read.gold.column_names:
        return "taken as drawn from all rows alike, since it has no sample_weight"
    drawn_from = rows_drawn_from(read.gold)
    later = {name: len(table) - drawn_from for name, table in read.candidates.items()} if drawn_from else {}
    grown = [f"{n:,} rows of {name}" for name, n in later.items() if n > 0]
    if not grown:
        return "with unequal probabilities: weighted"
    return (
        f"with unequal probabilities: weighted. {', '.join(grown)} could not be drawn, since they were not there or "
        "their partition was not sampled; they are taken to be like the others. Draw another round to know."
    )


def _report(estimates: Sequence[Estimate]) -> str:
    """Return everything to read: a table of all figures, and pictures of those that are not differences."""
    drawn: dict[tuple[str, str], list[Estimate]] = {}
    for one in estimates:
        if one.against is None and one.gold_only is not None:
            drawn.setdefault((one.candidate, one.target), []).append(one)
    pictures = [
        picture(f"estimates of {target} by {candidate}", estimates_png(some))
        for (candidate, target), some in list(drawn.items())[:MAX_PICTURES]
    ]
    return "\n\n".join([estimates_markdown(estimates), *pictures])


def _plotted(estimates: Sequence[Estimate]) -> dict[str, float]:
    """Return the figures of all rows, which Dagster plots over time."""
    several = len({one.target for one in estimates}) > 1
    whole = [one for one in estimates if one.group is None]
    return {
        figure_key(
            one.figure if one.label is None else f"share {one.label}",
            one.candidate,
            *([one.target] if several else []),
        ): float(f"{value:.8g}")
        for one in whole
        if (value := one.gold_only if one.powered is None else one.powered) is not None
    }


def _lineage(design: EvaluationSpec, columns: Sequence[str]) -> dg.TableColumnLineage:
    """Return the lineage: every figure comes from gold, from labels, or from both."""
    gold = [dg.TableColumnDep(design.gold, one.gold_column or one.name) for one in design.targets]
    labels = [dg.TableColumnDep(one.key, target.name) for one in design.candidates for target in design.targets]
    by_column = {"naive": labels, "gold_only": gold, "gold_only_low": gold, "gold_only_high": gold}
    both = ("powered", "powered_low", "powered_high", "slope", "worth_gold_rows")
    by_column |= {name: [*gold, *labels] for name in both}
    return dg.TableColumnLineage({name: by_column[name] for name in columns if name in by_column})
