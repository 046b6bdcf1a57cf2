"""Have the labels of a dataset shifted between partitions? It takes no gold: what came out is compared with what came
before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dagster as dg

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.assets.dataset import ROLE_TAG
from dagster_llm_batch.assets.naming import key_beside
from dagster_llm_batch.assets.output import Frame
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.automation import follow
from dagster_llm_batch.evaluation.builder import Tabling, quiet_check_spec
from dagster_llm_batch.evaluation.candidates import Candidates, candidates_of
from dagster_llm_batch.evaluation.drifting import CHECK, DriftDesign, drift_asset

__all__ = ["drift_assets"]


@checked
def drift_assets(
    *,
    name: str,
    candidates: Candidates,
    target: str | Sequence[str],
    reference: int | str | Sequence[str] = 7,
    max_psi: float = 0.25,
    online: bool = False,
    partitions_def: dg.PartitionsDefinition[Any] | None = None,
    check_severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
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
    """Shifts of the classes' shares between the partitions of labeled datasets.

        candidate ─▶ <name>           PSI, Jensen-Shannon distance and chi-squared of each partition and target
                     <name>_shares    rows and share of each class

    A partition has drifted where its PSI against the reference is over `max_psi` and chance does not explain it (chi-
    squared, p < 0.01). Needs the extra `evaluation` when it runs.

    Args:
        name: Name of the asset.
        candidates: One or more partitioned assets with labels, as for `evaluation_assets`.
        target: Column, or columns, with classes.
        reference: What a partition is compared with: that many partitions before it, pooled, or the partitions that are
            named, such as those the prompt was accepted on. A partition without a reference has no figures.
        max_psi: Largest population stability index, in the check `label_drift`. 0.1 is a small shift, 0.25 a large one.
        online: Whether an online detector (ADWIN) looks at all partitions in turn, too, for slow shifts. It is shown,
            not checked. Needs the extra `drift`.
        partitions_def: That of the candidates: each partition by itself, and one check for each. Without, one table of
            all partitions, and a check of the last one that has labels.
        check_severity, blocking: Of this check.
        frame, io_manager_key, key_prefix, group_name, description, owners, tags, automation_condition,
            backfill_policy: As for `evaluation_assets`.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for what cannot work.
    """
    targets = [target] if isinstance(target, str) else list(target)
    if not targets or len(set(targets)) < len(targets):
        raise ConfigError(f"target={targets}: name at least one column, and each once.")
    before = (
        reference if isinstance(reference, int) else tuple([reference] if isinstance(reference, str) else reference)
    )
    if not before or (isinstance(before, int) and before < 1):
        raise ConfigError(f"reference={reference!r}: give a number of partitions, at least 1, or their keys.")
    if not max_psi > 0:
        raise ConfigError(
            f"max_psi={max_psi!r}: PSI is 0 for equal shares, and more for others; 0.25 is a large shift."
        )
    if online and partitions_def is not None:
        raise ConfigError("online=True looks at all partitions in turn: leave partitions_def out.")
    watched = candidates_of(candidates, {})
    design = DriftDesign(
        key=dg.AssetKey([*([key_prefix] if isinstance(key_prefix, str) else key_prefix), name]),
        candidates=watched,
        targets=tuple(targets),
        reference=before,
        max_psi=max_psi,
        online=online,
        severity=check_severity,
        tabling=Tabling(partitions_def, frame, io_manager_key),
    )
    common: dict[str, Any] = {
        "partitions_def": partitions_def,
        "group_name": group_name,
        "owners": owners,
        "tags": {**(tags or {}), ROLE_TAG: "evaluation"},
        "kinds": {"table", "report"},
        "code_version": design.code_version,
        "deps": design.upstreams,
        "automation_condition": (
            follow(design.upstreams, partitioned=partitions_def is not None)
            if automation_condition == "follow"
            else automation_condition
        ),
        "skippable": True,
    }
    what = f"{', '.join(one.name for one in watched)}: {', '.join(targets)}."
    table = dg.AssetSpec(design.key, description=description or f"Label drift of {what}", **common)
    shares = dg.AssetSpec(key_beside(design.key, "shares"), description=f"Shares of the classes of {what}", **common)
    check = quiet_check_spec(
        CHECK,
        asset=design.key,
        description=f"PSI is at most {max_psi:g}, or chance explains the shift.",
        blocking=blocking,
        partitions_def=partitions_def,
    )
    return [drift_asset(design, table, shares, check, backfill_policy)]
