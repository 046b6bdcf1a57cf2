"""`evaluation_assets` in YAML."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import dagster as dg

from dagster_llm_batch.components.attributes import (
    BackfillPolicy,
    Candidates,
    Checked,
    Confidence,
    Following,
    GoldTarget,
    Kinds,
    Rejects,
    RowKey,
    Tabled,
)
from dagster_llm_batch.components.base import FactoryComponent
from dagster_llm_batch.components.partitions import PARTITIONS
from dagster_llm_batch.components.resolution import about
from dagster_llm_batch.components.scaffolders import EvaluationScaffolder
from dagster_llm_batch.components.settings import TARGET
from dagster_llm_batch.evaluation import evaluation_assets

__all__ = ["LLMBatchEvaluationComponent"]


@dg.scaffold_with(EvaluationScaffolder)
@dataclass(kw_only=True)
class LLMBatchEvaluationComponent(Tabled, Checked, Following, FactoryComponent):
    """Labels measured against gold: coverage, accuracy, F1 and kappa with intervals, and cost per correct label.

    Attributes are the arguments of `evaluation_assets`, by the same names.
    """

    factory = staticmethod(evaluation_assets)

    name: Annotated[str, about("Name of the evaluation asset.", "ticket_eval")]
    gold: Annotated[Any, about("Key of the asset with the true values.", "ticket_gold", kind=str)]
    candidates: Candidates
    key: RowKey
    target: Annotated[Any, TARGET]
    gold_target: GoldTarget = None
    kind: Kinds = "categorical"
    rejects: Rejects = None
    confidence: Confidence = None
    regression: Annotated[
        bool, about("Keep the labels that somebody accepted, and check that no candidate is surely worse.")
    ] = False
    partitions_def: Annotated[dg.PartitionsDefinition[Any] | None, PARTITIONS] = None
    min_accuracy: Annotated[
        Mapping[str, float] | float | None,
        about("As a check: least accuracy, of all or by candidate.", 0.9, kind=float | dict[str, float] | None),
    ] = None
    min_kappa: Annotated[
        Mapping[str, float] | float | None,
        about("As a check: least kappa, of all or by candidate.", 0.6, kind=float | dict[str, float] | None),
    ] = None
    max_ece: Annotated[
        Mapping[str, float] | float | None,
        about(
            "As a check: most expected calibration error, of all or by candidate.",
            0.1,
            kind=float | dict[str, float] | None,
        ),
    ] = None
    backfill_policy: BackfillPolicy = None
