"""`evaluation_assets` in YAML."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import dagster as dg

from dagster_llm_batch.components.attributes import (
    BackfillPolicy,
    Description,
    FrameKind,
    GroupName,
    IOManagerKey,
    KeyPrefix,
    Owners,
    Tags,
)
from dagster_llm_batch.components.base import FactoryComponent, Translation
from dagster_llm_batch.components.partitions import PARTITIONS
from dagster_llm_batch.components.resolving import about
from dagster_llm_batch.components.scaffolding import EvaluationScaffolder
from dagster_llm_batch.components.settings import TARGET
from dagster_llm_batch.evaluation_assets import evaluation_assets

__all__ = ["LLMBatchEvaluationComponent"]

Kind = Literal["categorical", "ordinal", "numeric"]


@dg.scaffold_with(EvaluationScaffolder)
@dataclass(kw_only=True)
class LLMBatchEvaluationComponent(FactoryComponent):
    """Labels measured against gold: coverage, accuracy, F1 and kappa with intervals, and cost per correct label.

    Attributes are the arguments of `evaluation_assets`, by the same names.
    """

    factory = staticmethod(evaluation_assets)

    name: Annotated[str, about("Name of the evaluation asset.", "ticket_eval")]
    gold: Annotated[Any, about("Key of the asset with the true values.", "ticket_gold", kind=str)]
    candidates: Annotated[
        Any,
        about(
            "Keys of the labeled assets, or a mapping from names to keys.",
            ["ticket_labels"],
            {"small": "labels/small", "large": "labels/large"},
            kind=list[str] | dict[str, str],
        ),
    ]
    key: Annotated[str, about("Column that gold and candidates share; it names one row.", "ticket_id")]
    target: Annotated[Any, TARGET]
    gold_target: Annotated[
        Mapping[str, str] | str | None,
        about("What gold calls it; a mapping where targets are several.", "topic", kind=str | dict[str, str] | None),
    ] = None
    kind: Annotated[
        Mapping[str, Kind] | Kind,
        about("Of all targets, or by target.", "ordinal", {"urgency": "ordinal"}, kind=Kind | dict[str, Kind]),
    ] = "categorical"
    rejects: Annotated[
        Mapping[str, Any] | None,
        about(
            "Keys of the tables of rejected rows, by candidate, so that their costs count.",
            {"ticket_labels": "ticket_labels_rejects"},
            kind=dict[str, str] | None,
        ),
    ] = None
    confidence: Annotated[
        Mapping[str, str] | str | None,
        about(
            "Column of the candidates with the probability, 0 to 1, that their label is correct; a mapping by target.",
            "confidence",
            kind=str | dict[str, str] | None,
        ),
    ] = None
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
    check_severity: Annotated[
        dg.AssetCheckSeverity,
        about("Of these checks.", "WARN", kind=Literal["ERROR", "WARN"], make=dg.AssetCheckSeverity),
    ] = dg.AssetCheckSeverity.ERROR
    blocking: Annotated[bool, about("Whether a failed one holds back what is downstream.")] = False
    frame: FrameKind = "arrow"
    io_manager_key: IOManagerKey = "io_manager"
    key_prefix: KeyPrefix = ()
    group_name: GroupName = None
    description: Description = None
    owners: Owners = ()
    tags: Tags = None
    automation_condition: Annotated[
        Any,
        about(
            "`follow`: when labels or gold are new. Null: when asked.",
            "follow",
            "{{ dg.AutomationCondition.on_cron('0 6 * * 1') }}",
            kind=str | None,
        ),
    ] = "follow"
    backfill_policy: BackfillPolicy = None
    translation: Translation = None
