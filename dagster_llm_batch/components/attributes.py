"""Attributes that several components have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import dagster as dg
from pydantic import Field

from dagster_llm_batch.assets.output import Frame
from dagster_llm_batch.components.resolution import Block, about, templated
from dagster_llm_batch.evaluation.candidates import Scale

__all__ = [
    "AutomationAttributes",
    "BackfillPolicy",
    "Candidates",
    "CheckAttributes",
    "CheckSeverity",
    "Confidence",
    "Description",
    "GoldTarget",
    "GroupName",
    "KeyPrefix",
    "Kinds",
    "Owners",
    "Rejects",
    "ResourceKey",
    "RowKey",
    "Seed",
    "TableAttributes",
    "Tags",
]


class SingleRun(Block):
    """One run for all partitions."""

    type: Literal["single_run"]


class MultiRun(Block):
    """Several runs."""

    type: Literal["multi_run"]
    max_partitions_per_run: int = Field(default=1, ge=1, description="Neighbouring partitions that share a run.")


def _backfill_policy(context: dg.ResolutionContext, given: Any) -> dg.BackfillPolicy | None:
    if isinstance(given, MultiRun):
        return dg.BackfillPolicy.multi_run(given.max_partitions_per_run)
    if isinstance(given, SingleRun):
        return dg.BackfillPolicy.single_run()
    return templated(context, given)  # type: ignore[no-any-return]  # the factory takes no other


BackfillPolicy = Annotated[
    dg.BackfillPolicy | None,
    dg.Resolver(
        _backfill_policy,
        model_field_type=Annotated[SingleRun | MultiRun, Field(discriminator="type")] | None,
        description="How many runs a backfill is. Default: one for all partitions.",
        examples=[{"type": "multi_run", "max_partitions_per_run": 10}],
    ),
]
Blocking = Annotated[bool, about("Whether a failed check holds back what is downstream.")]
Candidates = Annotated[
    Any,
    about(
        "Keys of the labeled assets, or a mapping from names to keys.",
        ["ticket_labels"],
        {"small": "labels/small", "large": "labels/large"},
        kind=list[str] | dict[str, str],
    ),
]
CheckSeverity = Annotated[
    dg.AssetCheckSeverity,
    about("Of these checks.", "WARN", kind=Literal["ERROR", "WARN"], make=dg.AssetCheckSeverity),
]
Confidence = Annotated[
    Mapping[str, str] | str | None,
    about(
        "Column of the candidates with the probability, 0 to 1, that their label is correct; a mapping by target.",
        "confidence",
        kind=str | dict[str, str] | None,
    ),
]
Description = Annotated[str | None, about("What the asset is.")]
Follow = Annotated[
    Any,
    about(
        "`follow`: when what it reads is new. Null: when asked.",
        "follow",
        "{{ dg.AutomationCondition.on_cron('0 6 * * 1') }}",
        kind=str | None,
    ),
]
FrameKind = Annotated[Frame, about("What the IO manager is given: a table, or with `batches` a stream.", "polars")]
GoldTarget = Annotated[
    Mapping[str, str] | str | None,
    about("What gold calls it; a mapping where targets are several.", "topic", kind=str | dict[str, str] | None),
]
GroupName = Annotated[str | None, about("Group of the assets.", "crm")]
IOManagerKey = Annotated[str, about("The IO manager that stores the tables.", "warehouse_io_manager")]
KeyPrefix = Annotated[
    Sequence[str] | str, about("In front of the asset keys.", "crm", ["prod", "crm"], kind=str | list[str])
]
Kinds = Annotated[
    Mapping[str, Scale] | Scale,
    about("Of all targets, or by target.", "ordinal", {"urgency": "ordinal"}, kind=Scale | dict[str, Scale]),
]
Owners = Annotated[Sequence[str], about("Owners of the assets.", ["team:ml"])]
Rejects = Annotated[
    Mapping[str, Any] | None,
    about(
        "Keys of the tables of rejected rows, by candidate.",
        {"ticket_labels": "ticket_labels_rejects"},
        kind=dict[str, str] | None,
    ),
]
ResourceKey = Annotated[str, about("Where the LLMBatchResource is.", "llm_batch")]
RowKey = Annotated[str, about("Column that all of these tables share; it names one row.", "ticket_id")]
Seed = Annotated[int, about("Another one draws other rows.", 1)]
Tags = Annotated[Mapping[str, str] | None, about("Tags of the assets.", {"tier": "gold"})]


@dataclass(kw_only=True)
class TableAttributes:
    """Where the tables go, and as what."""

    frame: FrameKind = "arrow"
    io_manager_key: IOManagerKey = "io_manager"


@dataclass(kw_only=True)
class CheckAttributes:
    """What a failed check does."""

    check_severity: CheckSeverity = dg.AssetCheckSeverity.ERROR
    blocking: Blocking = False


@dataclass(kw_only=True)
class AutomationAttributes:
    """When the assets are computed."""

    automation_condition: Follow = "follow"
