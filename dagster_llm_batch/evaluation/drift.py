"""Detect shifts of a dataset's labels between partitions. It needs no gold: it compares labels with earlier labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Unpack

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.addresses import Filter, RowLinks
from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.upstream import known_specs
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
from dagster_llm_batch.evaluation.candidates import Candidate, Candidates, candidates_of
from dagster_llm_batch.evaluation.sequential_tests import InterimLook, SequentialTest
from dagster_llm_batch.evaluation.stored_tables import StoredTables
from dagster_llm_batch.metadata import figure_key, row_links, rows_metadata
from dagster_llm_batch.metrics import (
    SHARES_SCHEMA,
    Counts,
    Drift,
    adwin_changes,
    class_counts,
    drift_between,
    drift_png,
    drifts_to_arrow,
    plain_text,
    shares_to_arrow,
)
from dagster_llm_batch.metrics.clusters import REQUEST, cluster_ids
from dagster_llm_batch.metrics.drift import drifts_markdown
from dagster_llm_batch.metrics.joining import succeeded
from dagster_llm_batch.metrics.sequential_tests import ALPHA, significance_level

__all__ = ["CHECK", "DriftSpec", "drift_assets"]

CHECK = "label_drift"
"""Name of the asset check."""

_SHOWN = 7
"""Rows of the table in the UI, of each candidate and target: the last ones."""

# Labels of datasets with near copies have this column, also where a partition shares no answer.
_SIMILARITY = "llm_similarity"

_EARLIER = 90
"""Partitions before one that show how much they differ by themselves: three months of days."""

_DOCS = {
    "partition": "partition of the labels",
    "candidate": "candidate that gave the labels",
    "target": "column with classes",
    "reference": "partitions that it is compared with",
    "n": "labels; rows with one request, or of one cluster, count once for each of their classes. With near copies, "
    "each row counts",
    "n_reference": "labels of the reference, counted alike",
    "psi": "population stability index: 0 equal, 0.1 a small shift, 0.25 a large one",
    "js_distance": "Jensen-Shannon distance: 0 equal, 1 nothing in common",
    "n_classes": "classes that either has",
    "chi2": "chi-squared statistic",
    "p_chance": "probability that chance alone shifts the shares so far",
    "recent_psi": "PSI of the last n_recent partitions together, against the reference as it was before them",
    "p_variation": "probability that as many partitions, picked at random from all, are so far off",
    "p_value": "the larger of p_variation and the probability of chance for those partitions; null: undecided",
    "n_earlier": "partitions before it that show how much they vary",
    "n_recent": "partitions compared together, this one and those just before it; null: too few to decide",
    "visible_change": "least change of that class's share that raises an alarm; null: not possible, or undecided",
    "most_changed": "class whose share has changed the most",
    "change": "by how much: 0.1 is ten points more",
    "drifted": "recent_psi is over the limit, and chance and the dataset's own variation do not explain it",
    "adwin_changed": "classes whose share changed here, as the online detector sees it",
    "class": "class of the target",
    "share": "of the partition's labels",
}


_Behind = Callable[[Drift], str | None]
"""Gives the link to the rows behind a shift."""


@dataclass(frozen=True)
class DriftSpec:
    """One watch over label shares, in Dagster's words. `reference`: so many partitions before, or these."""

    builder: EvaluationBuilder
    candidates: tuple[Candidate, ...]
    targets: tuple[str, ...]
    reference: int | tuple[str, ...]
    max_psi: float
    online: bool
    cluster: str | None
    severity: dg.AssetCheckSeverity

    @property
    def upstreams(self) -> list[dg.AssetKey]:
        return list(dict.fromkeys(candidate.key for candidate in self.candidates))

    @property
    def code_version(self) -> str:
        return code_digest("6", self.candidates, self.targets, self.reference, self.max_psi, self.online, self.cluster)


@dataclass(frozen=True)
class _Series:
    """One candidate and target: the counts of all partitions, in order, and the drifts measured between them."""

    candidate: str
    target: str
    counts: dict[str, Counts]
    drifts: list[Drift]


def _prepare(design: DriftSpec, main: dg.AssetKey, context: dg.AssetExecutionContext) -> Callable[[str | None], Tables]:
    test = SequentialTest(context, dg.AssetCheckKey(main, CHECK), design.builder.partitions_def)
    labels = _Labels(design, StoredTables(context))
    behind = partial(
        _rows_behind, {each.name: each.key.to_user_string() for each in design.candidates}, row_links(context)
    )

    def compute(partition: str | None) -> Tables:
        measured = labels.series(partition)
        drifts = [drift for series in measured for drift in series.drifts]

        def table() -> Computed:
            metadata, check_results = (
                _metadata(design, measured, behind),
                [_check_result(design, measured, partition, test, behind)],
            )
            return Computed(drifts_to_arrow(drifts), metadata, _DOCS, check_results)

        return {"shares": lambda: Computed(_shares(measured, partition), {}, _DOCS), "": table}

    return compute


def _no_partitions(key: dg.AssetKey) -> ConfigError:
    return ConfigError(
        f"{key.to_user_string()} has no partitions, and drift is between partitions. Give it a partitions_def, or "
        "leave it out of the candidates."
    )


def _other_partitions(key: dg.AssetKey, own: object, wanted: object) -> ConfigError:
    return ConfigError(
        f"{key.to_user_string()} has other partitions than this asset: {own} against {wanted}. Drift is between "
        "partitions of one kind: give both the same partitions_def, or this one none, to look at all together."
    )


class _Labels:
    """Counts classes for one run."""

    def __init__(self, design: DriftSpec, tables: StoredTables) -> None:
        self._design = design
        self._tables = tables
        self._n_series = len(design.candidates) * len(design.targets)
        # A partition is read once, though several others are compared with it.
        self._counted = cache(self._count)

    def series(self, partition: str | None) -> list[_Series]:
        """Return the series of all partitions, or of `partition` and its reference. Leave out candidates without
        labels.

        Raises InputError if all candidates lack labels there.
        """
        series = [
            self._series(candidate, target, partition)
            for candidate in self._design.candidates
            if self._has_labels(candidate.key, partition)
            for target in self._design.targets
        ]
        if not series:
            names = " or ".join(candidate.key.to_user_string() for candidate in self._design.candidates)
            raise InputError(f"There are no labels to look at. Materialize {names} first.")
        return series

    def _has_labels(self, key: dg.AssetKey, partition: str | None) -> bool:
        own, wanted = self._tables.partitions_def(key), self._design.builder.partitions_def
        if own is None:
            raise _no_partitions(key)
        if partition is not None and own != wanted:
            raise _other_partitions(key, own, wanted)
        stored = self._tables.partitions(key)
        return bool(stored) if partition is None else partition in stored

    def _series(self, candidate: Candidate, target: str, partition: str | None) -> _Series:
        design = self._design
        stored = [key for key in self._tables.partitions(candidate.key) if key is not None]
        measured = stored if partition is None else [partition]
        references = {key: self._reference(stored, key) for key in measured}
        follows = isinstance(design.reference, int)
        earlier = {key: self._earlier(stored, key, () if follows else references[key]) for key in measured}
        compared = {key for by_key in (references, earlier) for keys in by_key.values() for key in keys}
        read = [key for key in stored if key in measured or key in compared]
        counts = {key: self._counted(candidate.key, key)[target] for key in read}
        if len(kinds := {type(label) for each in counts.values() for label in each}) > 1:
            types = " and ".join(sorted(kind.__name__ for kind in kinds))
            raise InputError(
                f"The partitions of {candidate.key.to_user_string()} hold {types} in '{target}'. Materialize the older "
                "ones again with the newer type."
            )
        changed = adwin_changes(counts) if design.online else {}
        places = self._tables.places(candidate.key)
        drifts = [
            drift_between(
                counts[key],
                [counts[other] for other in references[key]],
                partition=key,
                candidate=candidate.name,
                target=target,
                against=_named(references[key]),
                max_psi=design.max_psi,
                level=significance_level(places[key], self._n_series),
                earlier=[counts[other] for other in earlier[key]],
                follows=follows,
                # The check is about the last one.
                with_visible_change=key == measured[-1],
                adwin_changed=changed.get(key),
            )
            for key in measured
        ]
        return _Series(candidate.name, target, counts, drifts)

    def _earlier(self, stored: Sequence[str], partition: str, fixed: Sequence[str]) -> list[str]:
        """Return the partitions before one, without the partitions of a fixed reference."""
        at = stored.index(partition)
        return [key for key in stored[max(0, at - _EARLIER) : at] if key not in fixed]

    def _reference(self, stored: Sequence[str], partition: str) -> list[str]:
        reference = self._design.reference
        if isinstance(reference, int):
            at = stored.index(partition)
            return list(stored[max(0, at - reference) : at])
        return [key for key in stored if key in reference and key != partition]

    def _count(self, key: dg.AssetKey, partition: str) -> dict[str, Counts]:
        targets, cluster = self._design.targets, self._design.cluster
        wanted = [*targets, *([cluster] if cluster else [])]
        hint = f"Set target={' and cluster=' if cluster else ''} to columns that are there."
        table = self._tables.load(key, partition, wanted, also=("llm_outcome", REQUEST, _SIMILARITY), hint=hint)
        labeled = table.filter(succeeded(table))
        owner = f"{key.to_user_string()} ({partition})"
        ids, answers = cluster_ids(labeled, cluster, owner), cluster_ids(labeled, None, owner)
        if cluster is None and _SIMILARITY in table.column_names:
            # A group of near copies has one answer or several, by the audit, which must not change the shares.
            ids = pa.nulls(len(labeled), ids.type)
        return {target: class_counts(labeled[target], target, owner, ids, answers) for target in targets}


def _named(partitions: Sequence[str]) -> str | None:
    if not partitions:
        return None
    first, last = partitions[0], partitions[-1]
    return first if len(partitions) == 1 else f"{first} to {last} ({len(partitions)})"


def _shares(measured: Sequence[_Series], partition: str | None) -> pa.Table:
    tables = [shares_to_arrow(series.candidate, series.target, series.counts) for series in measured]
    table = pa.concat_tables([SHARES_SCHEMA.empty_table(), *tables])
    return table if partition is None else table.filter(pc.equal(table["partition"], partition))


def _rows_behind(assets: Mapping[str, str], links: RowLinks, drift: Drift) -> str | None:
    """Return the link to the rows of the partition that have the class whose share has changed the most."""
    filters = [] if drift.most_changed is None else [Filter.of(drift.target, drift.most_changed)]
    return links.table(assets[drift.candidate], *filters, partition=drift.partition)


def _check_result(
    design: DriftSpec, measured: Sequence[_Series], partition: str | None, test: SequentialTest, behind: _Behind
) -> CheckOutcome:
    """Return the check result of the last partition with labels; a run of one partition checks that one."""
    judged = [drift for series in measured for drift in series.drifts[-1:]]
    over = [
        drift
        for drift in judged
        if drift.recent_psi is not None and drift.recent_psi > design.max_psi and drift.p_value is not None
    ]
    look = InterimLook(
        partition,
        # A partition within the limit, or with too few before it, cannot fail: do not count it as a look.
        state=code_digest(*((drift.partition, drift.recent_psi, drift.p_value) for drift in judged)) if over else "",
    )
    level = test.level(look, len(judged))
    drifted = [drift for drift in over if drift.p_value is not None and drift.p_value < level]
    return CheckOutcome(
        CHECK,
        passed=not drifted,
        severity=design.severity,
        description=" ".join(_sentence(drift, level) for drift in judged),
        metadata={
            **{
                figure_key("psi", drift.candidate, drift.target): drift.psi for drift in judged if drift.psi is not None
            },
            **test.keep(look),
            **_worst(drifted or judged, behind),
        },
    )


def _worst(judged: Sequence[Drift], behind: _Behind) -> dict[str, Any]:
    """Return the link to the rows behind the largest shift."""
    largest = max(judged, key=lambda drift: drift.psi or 0.0, default=None)
    return {} if largest is None else rows_metadata(behind(largest))


def _sentence(drift: Drift, level: float) -> str:
    subject = f"{plain_text(drift.partition)}, {plain_text(drift.candidate)}, {plain_text(drift.target)}"
    if drift.psi is None or drift.change is None:
        return f"{subject}: nothing to compare with yet."
    if drift.p_chance is None:
        chance = "one class only"
    elif drift.p_value is None or drift.recent_psi is None:
        chance = (
            f"p = {drift.p_chance:.2g} by chance; not decided: the {drift.n_earlier} partitions before it are too few "
            "to show how much partitions vary"
        )
    else:
        chance = (
            f"p = {drift.p_chance:.2g} by chance; the last {drift.n_recent} partitions together: PSI "
            f"{drift.recent_psi:.3f}, p = {drift.p_value:.2g} by chance and own variation, "
            f"{min(1.0, drift.p_value * ALPHA / level):.2g} over all looks"
        )
    most = f"most changed: {plain_text(drift.most_changed)} ({drift.change:+.1%})"
    if drift.n_recent is not None:
        most += (
            "; partitions vary too much for any change of its share to be seen"
            if drift.visible_change is None
            else f"; a change of {100 * drift.visible_change:.1f} points or more would be seen"
        )
    return f"{subject}: PSI {drift.psi:.3f} against {plain_text(drift.reference)}, {chance}; {most}."


def _metadata(design: DriftSpec, measured: Sequence[_Series], behind: _Behind) -> dict[str, Any]:
    drifts = [drift for series in measured for drift in series.drifts]
    # First the short part: a long table above the picture pushes it off the screen.
    parts = [
        picture(
            f"shares of {series.candidate}, {series.target}",
            drift_png(series.candidate, series.target, series.counts, series.drifts, max_psi=design.max_psi),
        )
        for series in [series for series in measured if any(series.counts.values())][:MAX_PICTURES]
    ]
    newest = [drift for series in measured for drift in series.drifts[-_SHOWN:]]
    parts.append(drifts_markdown(newest, behind))
    if len(drifts) > len(newest):
        parts.append(f"{len(drifts) - len(newest):,} older ones are in the table.")
    last = [drift for series in measured for drift in series.drifts[-1:]]
    figures = {
        figure_key(name, drift.candidate, drift.target): value
        for drift in last
        for name, value in (("psi", drift.psi), ("js_distance", drift.js_distance))
        if value is not None
    }
    lineage = {
        name: [dg.TableColumnDep(candidate.key, target) for candidate in design.candidates for target in design.targets]
        for name in (
            "n",
            "psi",
            "js_distance",
            "chi2",
            "p_chance",
            "recent_psi",
            "p_variation",
            "p_value",
            "most_changed",
            "change",
            "drifted",
        )
    }
    return {
        "llm_batch/drift": dg.MetadataValue.md("\n\n".join(parts)),
        "llm_batch/partitions_drifted": sum(drift.drifted for drift in drifts),
        **figures,
        "dagster/column_lineage": dg.TableColumnLineage(lineage),
    }


@checked_options(PartitionOptions, EvaluationBuilder)
def drift_assets(
    *,
    name: str,
    candidates: Candidates,
    target: str | Sequence[str],
    reference: int | str | Sequence[str] = 7,
    max_psi: float = 0.25,
    online: bool = False,
    cluster: str | None = None,
    check_severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    blocking: bool = False,
    **options: Unpack[PartitionOptions],
) -> list[dg.AssetsDefinition]:
    """Declare assets with the shifts of the classes' shares between the partitions of labeled datasets.

        candidate ─▶ <name>           PSI, Jensen-Shannon distance and chi-squared of each partition and target
                     <name>_shares    labels and share of each class

    Rows with one request have one reply, which counts once; rows of a `cluster` count once for each of their classes.
    Three consecutive partitions are judged together, so that one unusual day does not raise an alarm: an alarm comes on
    the third partition of a shift. They have drifted if three conditions hold. Their PSI against the reference is over
    `max_psi`. Chance does not explain it (chi-squared, by permutations if a class is rare), however few the rows are.
    And they are further off than three partitions picked at random from the last 90. With few partitions more than
    three are compared; with fewer than about sixteen the check decides nothing, and reports that. All looks share 5 %
    of false alarms in 365 partitions; see `evaluation.sequential_tests`. Needs the extra `evaluation` when it runs.

    Args:
        name: Name of the asset.
        candidates: One or more partitioned assets with labels.
        target: Column, or columns, with classes.
        reference: Partitions to compare with: a number of preceding partitions, pooled, or named partitions, such as
            those the prompt was accepted on. A partition without a reference has no figures.
        max_psi: Largest population stability index, in the check `label_drift`. 0.1 is a small shift, 0.25 a large one.
        online: Whether an online detector (ADWIN) also looks at all partitions in turn, for slow shifts. Its result is
            shown, not checked. Needs the extra `drift`.
        cluster: Column of the candidates whose rows belong together, such as the customer or the document. Default: the
            request; in a dataset with near copies, each row counts.
        partitions_def: The partitions of the candidates, each with its own table and check. Default: one table of all
            partitions, and a check of the last one that has labels.
        check_severity: Severity of that check when it fails.
        blocking: Whether the failed check holds back downstream assets.
        frame, io_manager_key, backfill_policy: As for `evaluation_assets`.
        options: Dagster's own, as for `evaluation_assets`.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for arguments that cannot work.
    """
    targets = [target] if isinstance(target, str) else list(target)
    if not targets or len(set(targets)) < len(targets):
        raise ConfigError(f"target={', '.join(targets) or 'nothing'}: name at least one column, and each once.")
    before = (
        reference if isinstance(reference, int) else tuple([reference] if isinstance(reference, str) else reference)
    )
    if not before or (isinstance(before, int) and before < 1):
        raise ConfigError(f"reference={reference!r}: give a number of partitions, at least 1, or their keys.")
    if not max_psi > 0:
        raise ConfigError(
            f"max_psi={max_psi!r}: PSI is 0 for equal shares, and more for others; 0.25 is a large shift."
        )
    if online and options.get("partitions_def") is not None:
        raise ConfigError("online=True looks at all partitions in turn: leave partitions_def out.")
    watched = candidates_of(candidates, {}, targets)
    design = DriftSpec(
        builder=EvaluationBuilder(name=name, **options),
        candidates=watched,
        targets=tuple(targets),
        reference=before,
        max_psi=max_psi,
        online=online,
        cluster=cluster,
        severity=check_severity,
    )
    builder = design.builder
    for spec in known_specs(candidates):
        if spec.partitions_def is None:
            raise _no_partitions(spec.key)
        if builder.partitions_def is not None and spec.partitions_def != builder.partitions_def:
            raise _other_partitions(spec.key, spec.partitions_def, builder.partitions_def)
    shared: dict[str, Any] = {
        "deps": design.upstreams,
        "code_version": design.code_version,
        "follow": builder.follow(design.upstreams),
    }
    compared = f"{', '.join(candidate.name for candidate in watched)}: {', '.join(targets)}."
    specs = {
        "": builder.spec(f"Label drift of {compared}", **shared),
        "shares": builder.spec(f"Shares of the classes of {compared}", suffix="shares", **shared),
    }
    check = builder.check(
        CHECK,
        f"PSI of the last partitions is at most {max_psi:g}, or chance or the labels' own variation explains it.",
        blocking=blocking,
    )
    return [builder.asset(specs, partial(_prepare, design, specs[""].key), [check])]
