"""Measure whether people and models label alike: several labelers of the same rows, without a ground truth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.keys import Upstream, upstream_key
from dagster_llm_batch.assets.upstream import stack_tables
from dagster_llm_batch.checks import CheckOutcome
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.evaluation.builder import (
    MAX_PICTURES,
    Computed,
    EvaluationBuilder,
    PartitionOptions,
    Tables,
    code_digest,
    picture,
)
from dagster_llm_batch.evaluation.candidates import Candidate, Candidates, Scale, candidates_of, is_external, targets_of
from dagster_llm_batch.evaluation.stored_tables import StoredTables
from dagster_llm_batch.evaluation.thresholds import AtLeast
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.metrics import (
    LabelerAgreement,
    LabelerPair,
    Labels,
    Target,
    agreement_among,
    agreement_of_pairs,
    agreement_png,
    plain_text,
)
from dagster_llm_batch.metrics.agreement import labelers_markdown, pairs_markdown
from dagster_llm_batch.metrics.clusters import REQUEST, cluster_ids
from dagster_llm_batch.metrics.gold_weights import SAMPLE_COLUMNS, refuse_weights
from dagster_llm_batch.metrics.joining import succeeded
from dagster_llm_batch.metrics.schemas import table_of

__all__ = ["AgreementSpec", "agreement_assets"]

ALL, GOLD, CANDIDATES = "all", "gold", "candidates"
"""Groups of labelers. Without an annotator column, gold is a single labeler of this name."""

MAX_PAIRED = 30
"""Labelers that are compared two by two: candidates first, then the annotators with the most labels."""

_HINT = "Set key=, target=, gold_target= or annotator= to columns that are there."
_DOCS = {
    "target": "column that was compared",
    "group": "all labelers, the labelers of gold, or the candidates",
    "n_labelers": "labelers in the group",
    "n_rows": "rows with at least two labels",
    "n_units": "independent units among them: requests, or clusters",
    "n_labels": "labels on these rows",
    "agreement": "share of the pairs of labels on the same row that are equal",
    "alpha": "Krippendorff's alpha: agreement beyond chance; 1 is full, 0 is chance",
    "alpha_low": "95 % interval by the unit",
    "alpha_high": "95 % interval by the unit",
    "alpha_interval": "method of the interval, or the reason why it is missing",
    "n_complete": "rows that all labelers of the group have labeled",
    "fleiss_kappa": "Fleiss' kappa over the complete rows",
    "a": "a labeler",
    "b": "another one",
    "n_both": "rows that both have labeled",
    "n_same": "rows that both have labeled alike",
    "kappa": "Cohen's kappa",
    "kappa_low": "95 % interval by the unit",
    "kappa_high": "95 % interval by the unit",
    "kappa_interval": "method of the interval, or the reason why it is missing",
}


@dataclass(frozen=True)
class AgreementSpec:
    """One agreement, in Dagster's words."""

    builder: EvaluationBuilder
    gold: dg.AssetKey | None
    annotator: str | None
    candidates: tuple[Candidate, ...]
    join_key: str
    targets: tuple[Target, ...]
    cluster: str | None
    min_alpha: AtLeast | None
    severity: dg.AssetCheckSeverity

    @property
    def upstreams(self) -> list[dg.AssetKey]:
        gold = [] if self.gold is None else [self.gold]
        return list(dict.fromkeys([*gold, *(candidate.key for candidate in self.candidates)]))

    def lineage(self, table: pa.Table) -> dict[str, dg.TableColumnLineage]:
        """Return the lineage: every figure comes from the labels of all labelers."""
        labels = [
            dg.TableColumnDep(candidate.key, target.name) for candidate in self.candidates for target in self.targets
        ]
        if self.gold is not None:
            labels += [dg.TableColumnDep(self.gold, target.gold_column or target.name) for target in self.targets]
        figures = [name for name in table.column_names if name not in ("target", "group", "a", "b")]
        return {"dagster/column_lineage": dg.TableColumnLineage(dict.fromkeys(figures, labels))}

    @property
    def code_version(self) -> str:
        return code_digest("2", self.gold, self.annotator, self.candidates, self.join_key, self.targets, self.cluster)


def _prepare(design: AgreementSpec, context: dg.AssetExecutionContext) -> Callable[[str | None], Tables]:
    stored = StoredTables(context)

    def compute(partition: str | None) -> Tables:
        by_group = _labels(design, stored, partition)
        agreements, pairs = _measured(design, by_group)

        def pairs_table() -> Computed:
            table = table_of(pairs, LabelerPair)
            n_labelers = sum(map(len, by_group.values()))
            return Computed(table, {**_pairs_metadata(pairs, n_labelers), **design.lineage(table)}, _DOCS)

        def agreements_table() -> Computed:
            table = table_of(agreements, LabelerAgreement)
            metadata = {**_metadata(agreements, pairs, design.targets), **design.lineage(table)}
            check_results = (
                [] if design.min_alpha is None else [_check_result(design.min_alpha, agreements, design.severity)]
            )
            return Computed(table, metadata, _DOCS, check_results)

        return {"pairs": pairs_table, "": agreements_table}

    return compute


_ByLabeler = dict[str, pa.Table]


def _labels(design: AgreementSpec, tables: StoredTables, partition: str | None) -> dict[str, _ByLabeler]:
    """Return the labelers of each group, each with a table of keys and targets; a row that failed has no label."""
    columns = [design.join_key, *(target.name for target in design.targets)]
    named = design.cluster or REQUEST
    candidates = {
        candidate.name: _labeled(
            tables.read(candidate.key, partition, columns, also=("llm_outcome", named), hint=_HINT), columns, named
        )
        for candidate in design.candidates
        if tables.parts(candidate.key, partition)
    }
    by_group = {CANDIDATES: candidates}
    if design.gold is not None and tables.parts(design.gold, partition):
        names = {target.name: target.gold_column or target.name for target in design.targets}
        wanted = [design.join_key, *names.values(), *([design.annotator] if design.annotator else [])]
        gold = tables.read(design.gold, partition, wanted, also=(*SAMPLE_COLUMNS, named), hint=_HINT)
        if partition is not None and tables.partitions_def(design.gold) is None and candidates:
            keys = stack_tables([table.select([design.join_key]) for table in candidates.values()], design.builder.key)
            gold = gold.filter(pc.is_in(gold[design.join_key], keys[design.join_key].combine_chunks()))
        refuse_weights(gold, "agreement", "Use evaluation_assets, which has the weighted kappa with gold")
        by_group[GOLD] = _people(design, gold, names, set(candidates))
    if sum(map(len, by_group.values())) < 2:  # noqa: PLR2004
        absent = [key.to_user_string() for key in design.upstreams if not tables.parts(key, partition)]
        raise InputError(
            "There are fewer than two labelers to compare. Materialize the missing assets: "
            f"{', '.join(absent) or 'none is missing'}."
        )
    return by_group


def _labeled(table: pa.Table, columns: Sequence[str], cluster: str) -> pa.Table:
    """Key, targets (null if the row did not succeed), and the column that names the unit, if there is one."""
    key, *targets = columns
    has_label = succeeded(table)
    values = {name: pc.if_else(has_label, table[name].combine_chunks(), None) for name in targets}
    ids = {cluster: table[cluster]} if cluster in table.column_names else {}
    return pa.table({key: table[key], **values, **ids})


def _people(design: AgreementSpec, gold: pa.Table, names: Mapping[str, str], taken: set[str]) -> _ByLabeler:
    key = design.join_key
    if design.annotator is None:
        by_person = {GOLD: gold}
    else:
        annotators = gold[design.annotator].combine_chunks()
        if annotators.null_count:
            raise InputError(
                f"'{design.annotator}' of gold is null in {annotators.null_count} rows: name the annotator of each row."
            )
        people = sorted(pc.unique(annotators).to_pylist(), key=str)
        by_person = {
            str(person): gold.filter(pc.equal(annotators, pa.scalar(person, annotators.type))) for person in people
        }
    if ambiguous := sorted(taken & set(by_person)):
        raise ConfigError(
            f"{ambiguous} are names of candidates and of people. Give candidates= a mapping with other names."
        )
    # People label rows, not requests: theirs are units only where the user names the column.
    ids = [design.cluster] if design.cluster is not None and design.cluster in gold.column_names else []
    columns = {**names, **{name: name for name in ids}}
    return {
        name: pa.table({key: labels[key], **{target: labels[column] for target, column in columns.items()}})
        for name, labels in by_person.items()
    }


def _clusters(design: AgreementSpec, labelers: Mapping[str, pa.Table]) -> list[tuple[pa.Array, pa.Array]]:
    """Return keys and ids of units: all labelers' units of the named column, or each labeler's own requests."""
    named = design.cluster or REQUEST
    tables = [table.select([design.join_key, named]) for table in labelers.values() if named in table.column_names]
    if design.cluster is None:
        pairs = tables
    elif tables:
        together = stack_tables(tables, design.builder.key)
        pairs = [together.filter(together[named].is_valid())]
    else:
        raise ConfigError(
            f"cluster='{named}' is no column of gold or of a candidate. Add it to gold, or have a candidate keep it."
        )
    return [(pair[design.join_key].combine_chunks(), cluster_ids(pair, named, design.builder.name)) for pair in pairs]


def _measured(
    design: AgreementSpec, by_group: Mapping[str, _ByLabeler]
) -> tuple[list[LabelerAgreement], list[LabelerPair]]:
    agreements, pairs = [], []
    everyone = {name: table for group in by_group.values() for name, table in group.items()}
    clusters = _clusters(design, everyone)
    bound = None if design.min_alpha is None else design.min_alpha.both_ends
    for target in design.targets:
        labels = Labels.of(
            target,
            {
                name: (table[design.join_key].combine_chunks(), table[target.name].combine_chunks())
                for name, table in everyone.items()
            },
            key=design.join_key,
            clusters=clusters,
        )
        agreements.append(agreement_among(labels, ALL, bound_confidence=bound))
        for group, members in by_group.items():
            if 1 < len(members) < len(everyone):
                agreements.append(agreement_among(labels.only(list(members)), group))
        by_labels = sorted(by_group.get(GOLD, {}), key=lambda name: -len(everyone[name]))
        paired = [*by_group[CANDIDATES], *by_labels][:MAX_PAIRED]
        pairs += agreement_of_pairs(labels.only(paired))
    return agreements, pairs


def _check_result(
    wanted: AtLeast, agreements: Sequence[LabelerAgreement], severity: dg.AssetCheckSeverity
) -> CheckOutcome:
    judged = [agreement for agreement in agreements if agreement.group == ALL and agreement.n_rows]
    lines = [
        f"{plain_text(agreement.target)}: {'not defined' if agreement.alpha is None else f'{agreement.alpha:.3f}'}"
        f"{wanted.shown_bound(agreement.alpha_bound)}; required: at least {wanted}"
        for agreement in judged
    ]
    return CheckOutcome(
        "alpha",
        passed=all(wanted.is_reached(agreement.alpha, agreement.alpha_bound) for agreement in judged),
        severity=severity,
        description=". ".join(lines) + "." if lines else "No row has two labels.",
        metadata={
            figure_key("alpha", agreement.target): agreement.alpha
            for agreement in judged
            if agreement.alpha is not None
        },
    )


def _metadata(
    agreements: Sequence[LabelerAgreement], pairs: Sequence[LabelerPair], targets: Sequence[Target]
) -> dict[str, Any]:
    parts = [labelers_markdown(agreements)]
    for target in targets[:MAX_PICTURES]:
        drawn = [pair for pair in pairs if pair.target == target.name]
        # a single pair is one number
        if len(drawn) > 1:
            parts.append(picture(f"agreement of each two labelers, {target.name}", agreement_png(drawn)))
    return {
        "llm_batch/agreement": dg.MetadataValue.md("\n\n".join(parts)),
        **{
            figure_key("alpha", agreement.target, agreement.group): agreement.alpha
            for agreement in agreements
            if agreement.alpha is not None
        },
    }


def _pairs_metadata(pairs: Sequence[LabelerPair], everybody: int) -> dict[str, Any]:
    return {
        "llm_batch/pairs": dg.MetadataValue.md(pairs_markdown(pairs)),
        "llm_batch/labelers_not_paired": max(0, everybody - MAX_PAIRED),
    }


@checked_options(PartitionOptions, EvaluationBuilder)
def agreement_assets(
    *,
    name: str,
    key: str,
    target: str | Target | Sequence[str | Target],
    candidates: Candidates = (),
    gold: Upstream | None = None,
    annotator: str | None = None,
    gold_target: str | Mapping[str, str] | None = None,
    kind: Scale | Mapping[str, Scale] = "categorical",
    cluster: str | None = None,
    min_alpha: float | AtLeast | None = None,
    check_severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    blocking: bool = False,
    **options: Unpack[PartitionOptions],
) -> list[dg.AssetsDefinition]:
    """Declare an asset that measures how well several labelers agree: people, models, or both.

    It does not take any of them as the truth.

        gold ───────┐
        candidate a ┼─▶ <name>          Krippendorff's alpha, Fleiss' kappa: all, the people, the candidates
        candidate b ┘   <name>_pairs    Cohen's kappa of each two

    To see whether a model agrees with people as well as people agree with each other, compare the alpha of `gold` with
    the alpha of `all`. Needs the extra `evaluation` when it runs.

    Args:
        name: Name of the asset.
        key: Column that all tables share; it names one row.
        target: Column, or columns, to compare; a `Target` has details of one.
        candidates: Assets with labels. Assets without a table yet are left out.
        gold: Asset with labels by people; without `annotator` it is one labeler, "gold". Gold that was drawn with
            unequal probabilities is refused, as agreement would hold for its rows and not for all.
        annotator: Column of gold with the name of the labeler: several rows for a key, at most one for each annotator.
        gold_target: Column of gold with the target, or a mapping from targets to columns. Default: by the same name.
        kind: Scale of all targets, or by target. "ordinal" is for integer classes, where a disagreement counts by its
            squared distance.
        cluster: Column of gold or of candidates whose rows belong together, as for `evaluation_assets`.
        min_alpha: Least alpha of all labelers, as an asset check over all targets. `AtLeast(0.8, confidence=0.95)`
            asks for a lower bound.
        check_severity: Severity of the check when it fails.
        blocking: Whether the failed check holds back downstream assets.
        frame, io_manager_key, partitions_def, backfill_policy: As for `evaluation_assets`.
        options: Dagster's own, as for `evaluation_assets`.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for arguments that cannot work.
    """
    if gold is None and (annotator or gold_target):
        raise ConfigError("annotator= and gold_target= are about gold=, which is not given.")
    least = None if min_alpha is None else AtLeast.of_labels("min_alpha", min_alpha)
    if least is not None and not -1 <= least.least <= 1:
        raise ConfigError(f"min_alpha={least.least!r}: alpha is between -1 and 1.")
    targets = targets_of(target, gold_target, kind)
    if numbers := [numeric.name for numeric in targets if numeric.kind == "numeric"]:
        raise ConfigError(f"Agreement is about classes; {numbers} are numeric. Bin them first.")
    has_candidates = bool(candidates) or isinstance(candidates, dg.AssetsDefinition)
    labelers = candidates_of(candidates, {}, [target.name for target in targets]) if has_candidates else ()
    if len(labelers) + (2 if annotator else gold is not None) < 2:  # noqa: PLR2004
        raise ConfigError("Agreement needs two labelers: two candidates, one and gold=, or gold= with annotator=.")
    design = AgreementSpec(
        builder=EvaluationBuilder(name=name, **options),
        gold=None if gold is None else upstream_key(gold),
        annotator=annotator,
        candidates=labelers,
        join_key=key,
        targets=targets,
        cluster=cluster,
        min_alpha=least,
        severity=check_severity,
    )
    builder = design.builder
    builder.check_partitions(gold, candidates)
    shared: dict[str, Any] = {
        "deps": design.upstreams,
        "code_version": design.code_version,
        "follow": builder.follow(
            design.upstreams, not_awaited=[design.gold] if design.gold is not None and is_external(gold) else []
        ),
    }
    names = [*(labeler.name for labeler in labelers), *([] if design.gold is None else [design.gold.to_user_string()])]
    compared = f"{', '.join(names)} by {key}: {', '.join(target.name for target in targets)}."
    specs = {
        "": builder.spec(f"Agreement of {compared}", **shared),
        "pairs": builder.spec(f"Agreement of each pair of labelers: {compared}", suffix="pairs", **shared),
    }
    checks = []
    if least is not None:
        meaning = f"Krippendorff's alpha of all labelers is at least {least}."
        checks.append(builder.check("alpha", meaning, blocking=blocking))
    return [builder.asset(specs, partial(_prepare, design), checks)]
