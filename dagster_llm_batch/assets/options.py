"""Dagster's own options, by its own names: every factory takes them all, and they mean the same in each.

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
"""When assets are made without a person. "default": what costs nothing follows what it reads; what asks a model waits
for a person. None: always when a person says so.
"""


class AssetOptions(TypedDict, total=False):
    """What every factory takes, with the defaults of DagsterOptions."""

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
        key_prefix: What the keys of all its assets begin with: one part as a text, or a list of parts.
        group_name: Group of all its assets.
        description: Description of its main asset; those beside it say what they are.
        owners: Owners of all its assets.
        tags: Tags of all its assets.
        kinds: Kinds of all its assets, in the place of ours. Dagster takes three at most.
        metadata: Metadata of all its assets, as the IO manager may want it (`partition_expr`).
        code_version: Added to our own code version, which changes with the arguments: for what we cannot see, such as a
            function that you call.
        freshness_policy: When its assets are late.
        deps: More assets that are read, for order and lineage. They are neither waited for nor followed. One that is
            read anyway takes the place of our own: its partition mapping says which partitions are read.
        automation_condition: When the assets are made without a person. "default": what costs nothing is made when
            what it reads is new, and what asks a model waits for a person. None (in YAML null): only when a person says
            so.
        pool: Concurrency pool of the op that computes the assets.
        op_tags: Tags of that op, for executors that size a step by them.
        retry_policy: How often that op is tried again, and when. A step that covers several partitions is not retried:
            the others have landed, and those that failed are named.
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
        """The options of an op, as Dagster's decorators take them."""
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
        """Return the spec of one asset: what is given here is ours, and `more` is what the user cannot say.

        `role` and `dataset` are for the translator: see LLMBatchTranslatorData.
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
        """Return the condition of an asset that would by default be made as `follow` says; None: by a person."""
        return follow if self.automation_condition == "default" else self.automation_condition

    def all_deps(self, own: Sequence[dg.AssetKey | dg.AssetDep]) -> list[dg.AssetDep]:
        """Return what we know to be read and what the user names; of both, the user's."""
        named = (dep if isinstance(dep, dg.AssetDep) else dg.AssetDep(upstream_key(dep)) for dep in self.deps)
        read = (dep if isinstance(dep, dg.AssetDep) else dg.AssetDep(dep) for dep in own)
        return list(({dep.asset_key: dep for dep in read} | {dep.asset_key: dep for dep in named}).values())

    def more_deps(self, own: Sequence[dg.AssetKey]) -> list[dg.AssetKey]:
        """Return what the user alone names."""
        return [dep.asset_key for dep in self.all_deps(own) if dep.asset_key not in own]
