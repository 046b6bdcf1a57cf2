"""Dagster's own options, by Dagster's names. Every factory takes all of them, with the same meaning.

factory: **options ─▶ DagsterOptions ─ spec ─▶ every asset of the factory
─ op   ─▶ its op
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import dagster as dg

from dagster_llm_batch.assets.keys import Upstream, upstream_key
from dagster_llm_batch.assets.translator import LLMBatchTranslator, LLMBatchTranslatorData, translate_spec

__all__ = ["AssetOptions", "Automation", "DagsterOptions"]

Automation = dg.AutomationCondition[Any] | Literal["default"] | None
"""The rule that triggers automatic materialization. "default": an asset that costs nothing follows its upstream assets,
and only a person materializes an asset that asks a model. None: a person materializes all assets.
"""


class AssetOptions(TypedDict, total=False):
    """The options that every factory takes, with the defaults of DagsterOptions."""

    key_prefix: Sequence[str] | str
    group_name: str | None
    description: str | None
    owners: Sequence[str]
    tags: Mapping[str, str] | None
    kinds: set[str] | None
    metadata: Mapping[str, Any] | None
    code_version: str | None
    freshness_policy: dg.FreshnessPolicy | None
    deps: Sequence[Upstream | dg.AssetDep]
    automation_condition: Automation
    pool: str | None
    op_tags: Mapping[str, Any] | None
    retry_policy: dg.RetryPolicy | None
    translator: LLMBatchTranslator | None


@dataclass(frozen=True, kw_only=True)
class DagsterOptions:
    """Dagster's own options of one factory.

    Args:
        key_prefix: The prefix of all its asset keys: one part as text, or a list of parts.
        group_name: Group of all its assets.
        description: Description of its main asset. The other assets have their own descriptions.
        owners: Owners of all its assets.
        tags: Tags of all its assets.
        kinds: Kinds of all its assets, instead of the default ones. Dagster takes three at most.
        metadata: Metadata of all its assets, for the IO manager (`partition_expr`).
        code_version: Added to the default code version, which changes with the arguments. Change it for other changes,
            as in a function that you call.
        freshness_policy: The time after which its assets are late.
        deps: More assets that are read, for order and lineage. They do not delay or trigger a materialization. For an
            asset that is read anyway, an AssetDep replaces the default one: its partition mapping selects the
            partitions.
        automation_condition: The rule that triggers automatic materialization. "default": an asset that costs nothing
            is materialized when its upstream data is new, and an asset that asks a model only by a person. None (in
            YAML null): a person materializes all assets.
        pool: Concurrency pool of the op that computes the assets.
        op_tags: Tags of that op, for executors that size a step by them.
        retry_policy: The retries of that op: their number and delay. A step over several partitions is not retried: it
            has materialized the others, and names the failed ones.
        translator: Changes the specs from Python, one by one: see LLMBatchTranslator.
    """

    key_prefix: Sequence[str] | str = ()
    group_name: str | None = None
    description: str | None = None
    owners: Sequence[str] = ()
    tags: Mapping[str, str] | None = None
    kinds: set[str] | None = None
    metadata: Mapping[str, Any] | None = None
    code_version: str | None = None
    freshness_policy: dg.FreshnessPolicy | None = None
    deps: Sequence[Upstream | dg.AssetDep] = ()
    automation_condition: Automation = "default"
    pool: str | None = None
    op_tags: Mapping[str, Any] | None = None
    retry_policy: dg.RetryPolicy | None = None
    translator: LLMBatchTranslator | None = None

    @property
    def op(self) -> dict[str, Any]:
        """The options of an op, for Dagster's decorators."""
        return {"pool": self.pool, "op_tags": self.op_tags, "retry_policy": self.retry_policy}

    def asset_spec(
        self,
        key: dg.AssetKey,
        *,
        role: str,
        dataset: str,
        kinds: AbstractSet[str],
        deps: Sequence[dg.AssetKey | dg.AssetDep] = (),
        tags: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        code_version: str | None = None,
        **more: Any,
    ) -> dg.AssetSpec:
        """Return the spec of one asset, with the package's values besides the user's options.

        `more` has the attributes that the user cannot set. `role` and `dataset` are for the translator: see
        LLMBatchTranslatorData.
        """
        versions = [version for version in (code_version, self.code_version) if version is not None]
        spec = dg.AssetSpec(
            key,
            deps=deps,
            group_name=self.group_name,
            owners=self.owners,
            tags={**(self.tags or {}), **(tags or {})},
            kinds={*(kinds if self.kinds is None else self.kinds)},
            metadata={**(self.metadata or {}), **(metadata or {})},
            code_version="-".join(versions) or None,
            freshness_policy=self.freshness_policy,
            **more,
        )
        if self.translator is None:
            return spec
        return translate_spec(self.translator, LLMBatchTranslatorData(spec=spec, role=role, dataset=dataset))

    def condition(self, follow: dg.AutomationCondition[Any] | None) -> dg.AutomationCondition[Any] | None:
        """Return the asset's automation condition, which defaults to `follow`; None: only a person materializes it."""
        return follow if self.automation_condition == "default" else self.automation_condition

    def all_deps(self, own: Sequence[dg.AssetKey | dg.AssetDep]) -> list[dg.AssetDep]:
        """Return the assets that are known to be read and those in `deps`. The user's AssetDep replaces the default."""
        named = (dep if isinstance(dep, dg.AssetDep) else dg.AssetDep(upstream_key(dep)) for dep in self.deps)
        read = (dep if isinstance(dep, dg.AssetDep) else dg.AssetDep(dep) for dep in own)
        return list(({dep.asset_key: dep for dep in read} | {dep.asset_key: dep for dep in named}).values())

    def more_deps(self, own: Sequence[dg.AssetKey]) -> list[dg.AssetKey]:
        """Return the assets that only the user's `deps` name."""
        return [dep.asset_key for dep in self.all_deps(own) if dep.asset_key not in own]
