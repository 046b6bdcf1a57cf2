"""Specification of one evaluation, in Dagster's terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import dagster as dg

from dagster_llm_batch.assets.dataset import compute_function
from dagster_llm_batch.evaluation.builder import EvaluationBuilder, code_digest, whenever_new
from dagster_llm_batch.evaluation.candidates import Candidate
from dagster_llm_batch.evaluation.thresholds import Thresholds
from dagster_llm_batch.metrics import Target

__all__ = ["EvaluationSpec", "evaluations_in"]

_FORMAT = "5"
"""Part of the code version: raise it when the same labels would be measured differently."""

_DECLARED: WeakKeyDictionary[Callable[..., Any], EvaluationSpec] = WeakKeyDictionary()


@dataclass(frozen=True)
class EvaluationSpec:
    """`regression`: candidates are held against their accepted versions. `cluster`: see `clusters.cluster_ids`."""

    builder: EvaluationBuilder
    gold: dg.AssetKey
    candidates: tuple[Candidate, ...]
    join_key: str
    targets: tuple[Target, ...]
    thresholds: Thresholds
    regression: bool
    keep: tuple[str, ...]
    cluster: str | None

    @property
    def beside(self) -> dict[str, str]:
        """The tables next to the main one, with their content."""
        tables = {"mistakes": "Rows that a candidate got wrong", "failures": "Mistakes in groups"}
        if any(target.kind == "categorical" for target in self.targets):
            tables["per_class"] = "Results of each class"
        if any(target.confidence_column for target in self.targets):
            tables["calibration"] = "Confidence and correctness"
        if self.regression:
            tables["versions"] = "Changes since the accepted labels"
        return tables

    @property
    def rejects(self) -> list[dg.AssetKey]:
        return [candidate.rejects for candidate in self.candidates if candidate.rejects is not None]

    @property
    def clusters(self) -> tuple[str, ...]:
        """The column that names the units, if there is one."""
        return () if self.cluster is None else (self.cluster,)

    @property
    def upstreams(self) -> list[dg.AssetKey]:
        return list(dict.fromkeys([self.gold, *(candidate.key for candidate in self.candidates), *self.rejects]))

    @property
    def code_version(self) -> str:
        return code_digest(
            _FORMAT,
            self.gold,
            self.candidates,
            self.join_key,
            self.targets,
            self.regression,
            self.keep,
            self.cluster,
        )

    def follow(self, *, gold_is_external: bool) -> dg.AutomationCondition[Any]:
        """Return the condition to compute again: when labels or gold are new. Rejects come with the labels."""
        if self.builder.partitions_def is not None:
            more = self.builder.more_deps(self.upstreams)
            not_awaited = [*self.rejects, *([self.gold] if gold_is_external else []), *more]
            return self.builder.when_ready(not_awaited=not_awaited, not_followed=more)
        candidates = [candidate.key for candidate in self.candidates]
        # Unmaterialized partitions are not labels yet; an unmaterialized table without partitions is an error.
        whole = [[candidate.key] for candidate in self.candidates if candidate.is_whole]
        awaited = [*(whole or [candidates]), *([] if gold_is_external else [[self.gold]])]
        return whenever_new([self.gold, *candidates], *awaited)

    def declared_as(self, definition: dg.AssetsDefinition) -> dg.AssetsDefinition:
        """Record that these assets are this evaluation, so that `evaluations_in` finds it from them."""
        if (function := compute_function(definition)) is not None:
            _DECLARED[function] = self
        return definition


def evaluations_in(definitions: Iterable[dg.AssetsDefinition]) -> list[EvaluationSpec]:
    """Return the evaluations against gold among the assets, by their names. Dagster may have copied the definitions."""
    functions = (compute_function(definition) for definition in definitions)
    found = {id(spec): spec for function in functions if function and (spec := _DECLARED.get(function))}
    return sorted(found.values(), key=lambda spec: spec.builder.key)
