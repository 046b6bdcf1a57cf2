"""The one call that declares an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dagster as dg

from dagster_llm_batch.assets.dataset import ROLE_TAG
from dagster_llm_batch.assets.naming import Upstream, upstream_key
from dagster_llm_batch.assets.output import Frame, check_frame
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation import Target
from dagster_llm_batch.evaluation_assets.computing import Design, evaluation_asset
from dagster_llm_batch.evaluation_assets.thresholds import Thresholds
from dagster_llm_batch.evaluation_assets.upstreams import Candidates, candidates_of

__all__ = ["evaluation_assets"]

Kind = Literal["categorical", "ordinal", "numeric"]


def evaluation_assets(
    *,
    name: str,
    gold: Upstream,
    candidates: Candidates,
    key: str,
    target: str | Target | Sequence[str | Target],
    gold_target: str | Mapping[str, str] | None = None,
    kind: Kind | Mapping[str, Kind] = "categorical",
    rejects: Mapping[str, Upstream] | None = None,
    partitions_def: dg.PartitionsDefinition[Any] | None = None,
    min_accuracy: float | Mapping[str, float] | None = None,
    min_kappa: float | Mapping[str, float] | None = None,
    check_severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    blocking: bool = False,
    frame: Frame = "arrow",
    io_manager_key: str = "io_manager",
    key_prefix: Sequence[str] | str = (),
    group_name: str | None = None,
    description: str | None = None,
    owners: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    automation_condition: dg.AutomationCondition[Any] | Literal["follow"] | None = "follow",
    backfill_policy: dg.BackfillPolicy | None = None,
) -> list[dg.AssetsDefinition]:
    """Candidates measured against gold: one row for each candidate and target, and one for each class beside it.

        gold ───────┐
        candidate a ┼─▶ <name>              coverage, accuracy, F1, kappa with intervals, cost per correct label
        candidate b ┘   <name>_per_class    precision, recall and F1 of each class (categorical targets)

    With `partitions_def`, each partition is evaluated by itself, and gold may be partitioned alike or not at all.
    Without, all materialized partitions are read, one by one, and evaluated together; keys must be unique over all of
    them. `evaluation_assets.reading` says which gold rows count. Needs the extra `evaluation` when it runs.

    Args:
        name: Name of the evaluation asset.
        gold: Asset with the true values.
        candidates: Assets with labels, such as what `llm_batch_assets` returned. A mapping gives them names; else the
            last part of the asset key is the name.
        key: Column that gold and candidates share; it names one row.
        target: Column, or columns, to compare; a `Target` says all about one.
        gold_target: What gold calls the target, or a mapping from targets to that.
        kind: Of all targets, or by target. `ordinal`: integer classes, where kappa counts a disagreement by its squared
            distance.
        rejects: Tables of rejected rows by candidate, so that their costs count and they are told from absent rows.
            Those of `llm_batch_assets` are known where its definitions, not keys, are given as candidates.
        min_accuracy, min_kappa: Least figures, of every candidate or by candidate, as asset checks over all categorical
            targets. Accuracy is that of the labeled rows.
        check_severity, blocking: Of these checks.
        frame: What the IO manager is given: "arrow", "polars" or "pandas".
        io_manager_key: The IO manager that stores the tables.
        partitions_def, key_prefix, group_name, description, owners, tags, backfill_policy: As everywhere in Dagster.
        automation_condition: "follow": when labels or gold are new. A partitioned evaluation waits for all upstreams of
            its partition and their blocking checks (`on_labels_ready`); an unpartitioned one takes what there is
            whenever a partition has landed. Gold that is given as an unpartitioned AssetSpec is taken to be there.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for what cannot work.
    """
    check_frame(frame)
    prefix = [key_prefix] if isinstance(key_prefix, str) else list(key_prefix)
    targets = _targets(target, gold_target, kind)
    measured = candidates_of(candidates, rejects or {})
    design = Design(
        key=dg.AssetKey([*prefix, name]),
        gold=upstream_key(gold),
        candidates=measured,
        join_key=key,
        targets=targets,
        partitions_def=partitions_def,
        thresholds=Thresholds.of(min_accuracy, min_kappa, measured, targets, check_severity, blocking=blocking),
        frame=frame,
        io_manager_key=io_manager_key,
    )
    gold_is_there = isinstance(gold, dg.AssetSpec) and gold.partitions_def is None
    common: dict[str, Any] = {
        "partitions_def": partitions_def,
        "group_name": group_name,
        "owners": owners,
        "tags": {**(tags or {}), ROLE_TAG: "evaluation"},
        "kinds": {"table", "report"},
        "code_version": design.code_version,
        "deps": design.upstreams,
        "automation_condition": (
            design.follow(gold_is_there=gold_is_there) if automation_condition == "follow" else automation_condition
        ),
        "skippable": True,  # a run over several partitions says by itself which have landed
    }
    names = ", ".join(one.name for one in measured)
    what = f"{names} against {design.gold.to_user_string()} by {key}: {', '.join(one.name for one in targets)}."
    table = dg.AssetSpec(design.key, description=description or f"Labels of {what}", **common)
    classes = dg.AssetSpec(design.per_class_key, description=f"Each class: {what}", **common)
    has_classes = any(one.kind == "categorical" for one in targets)
    return [evaluation_asset(design, table, classes if has_classes else None, backfill_policy)]


def _targets(
    target: str | Target | Sequence[str | Target],
    gold_target: str | Mapping[str, str] | None,
    kind: Kind | Mapping[str, Kind],
) -> tuple[Target, ...]:
    given = [target] if isinstance(target, str | Target) else list(target)
    names = [one if isinstance(one, str) else one.name for one in given]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"target={names}: an evaluation needs at least one, and each once.")
    if isinstance(gold_target, str) and len(names) > 1:
        raise ConfigError(f"gold_target={gold_target!r} with {len(names)} targets: use a mapping from {names}.")
    golds = {names[0]: gold_target} if isinstance(gold_target, str) else dict(gold_target or {})
    kinds: dict[str, Any] = dict(kind) if isinstance(kind, Mapping) else dict.fromkeys(names, kind)
    if strangers := sorted({*golds, *kinds} - set(names)):
        raise ConfigError(f"gold_target= or kind= names {strangers}, which are no targets. Targets: {names}.")
    found = []
    for one, named in zip(given, names, strict=True):
        which = kinds.get(named, "categorical")
        if which not in ("categorical", "ordinal", "numeric"):
            raise ConfigError(f"kind={which!r} of target '{named}' is none of 'categorical', 'ordinal', 'numeric'.")
        if isinstance(one, Target):
            found.append(one)
        elif which == "ordinal":
            found.append(Target(named, golds.get(named), kappa_weights="quadratic"))
        else:
            found.append(Target(named, golds.get(named), kind=which))
    return tuple(found)
