"""Do people and models label alike? Several labelers of the same rows, none of which is taken to be right."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dagster as dg

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.assets.dataset import ROLE_TAG
from dagster_llm_batch.assets.naming import Upstream, key_beside, upstream_key
from dagster_llm_batch.assets.output import Frame
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.agreeing import AgreementDesign, agreement_asset
from dagster_llm_batch.evaluation.automation import follow
from dagster_llm_batch.evaluation.builder import Tabling
from dagster_llm_batch.evaluation.candidates import Candidates, candidates_of
from dagster_llm_batch.evaluation.targets import Kind, targets_of
from dagster_llm_batch.metrics import Target

__all__ = ["agreement_assets"]


@checked
def agreement_assets(
    *,
    name: str,
    key: str,
    target: str | Target | Sequence[str | Target],
    candidates: Candidates = (),
    gold: Upstream | None = None,
    annotator: str | None = None,
    gold_target: str | Mapping[str, str] | None = None,
    kind: Kind | Mapping[str, Kind] = "categorical",
    partitions_def: dg.PartitionsDefinition[Any] | None = None,
    min_alpha: float | None = None,
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
    """How far several labelers agree: people, models, or both. None of them is taken to be right.

        gold ───────┐
        candidate a ┼─▶ <name>          Krippendorff's alpha, Fleiss' kappa: all, the people, the candidates
        candidate b ┘   <name>_pairs    Cohen's kappa of each two

    Whether a model agrees with people as they do with each other is the alpha of `gold` against that of `all`. Needs
    the extra `evaluation` when it runs.

    Args:
        name: Name of the asset.
        key: Column that all tables share; it names one row.
        target: Column, or columns, to compare; a `Target` says all about one.
        candidates: Assets with labels, as for `evaluation_assets`. Those that are not there yet are left out.
        gold: Asset with labels by people; without `annotator` it is one labeler, "gold".
        annotator: Column of gold that says who has labeled: several rows for a key, at most one for each annotator.
        gold_target: What gold calls the target, or a mapping from targets to that.
        kind: Of all targets, or by target. `ordinal`: integer classes, where a disagreement counts by its squared
            distance.
        partitions_def: Each partition by itself; without, all of them together. As for `evaluation_assets`.
        min_alpha: Least alpha of all labelers, as an asset check over all targets.
        check_severity, blocking: Of this check.
        frame, io_manager_key, key_prefix, group_name, description, owners, tags, automation_condition,
            backfill_policy: As for `evaluation_assets`.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for what cannot work.
    """
    if gold is None and (annotator or gold_target):
        raise ConfigError("annotator= and gold_target= are about gold=, which is not given.")
    if min_alpha is not None and not -1 <= min_alpha <= 1:
        raise ConfigError(f"min_alpha={min_alpha!r}: alpha is between -1 and 1.")
    targets = targets_of(target, gold_target, kind)
    if numbers := [one.name for one in targets if one.kind == "numeric"]:
        raise ConfigError(f"Agreement is about classes; {numbers} are numeric. Bin them first.")
    has_candidates = bool(candidates) or isinstance(candidates, dg.AssetsDefinition)
    labelers = candidates_of(candidates, {}) if has_candidates else ()
    if len(labelers) + (2 if annotator else gold is not None) < 2:  # noqa: PLR2004
        raise ConfigError("Agreement needs two labelers: two candidates, one and gold=, or gold= with annotator=.")
    design = AgreementDesign(
        key=dg.AssetKey([*([key_prefix] if isinstance(key_prefix, str) else key_prefix), name]),
        gold=None if gold is None else upstream_key(gold),
        annotator=annotator,
        candidates=labelers,
        join_key=key,
        targets=targets,
        min_alpha=min_alpha,
        severity=check_severity,
        tabling=Tabling(partitions_def, frame, io_manager_key),
    )
    is_there = isinstance(gold, dg.AssetSpec) and gold.partitions_def is None
    follows = follow(
        design.upstreams,
        partitioned=partitions_def is not None,
        not_awaited=[design.gold] if is_there and design.gold else [],
    )
    common: dict[str, Any] = {
        "partitions_def": partitions_def,
        "group_name": group_name,
        "owners": owners,
        "tags": {**(tags or {}), ROLE_TAG: "evaluation"},
        "kinds": {"table", "report"},
        "code_version": design.code_version,
        "deps": design.upstreams,
        "automation_condition": follows if automation_condition == "follow" else automation_condition,
        "skippable": True,
    }
    who = ", ".join([*(one.name for one in labelers), *([] if design.gold is None else [design.gold.to_user_string()])])
    what = f"{who} by {key}: {', '.join(one.name for one in targets)}."
    table = dg.AssetSpec(design.key, description=description or f"Agreement of {what}", **common)
    pairs = dg.AssetSpec(key_beside(design.key, "pairs"), description=f"Each two labelers: {what}", **common)
    return [agreement_asset(design, table, pairs, backfill_policy, blocking=blocking)]
