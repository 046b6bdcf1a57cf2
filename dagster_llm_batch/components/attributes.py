"""Attributes that both components have."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import dagster as dg
from dagster.components.resolved.core_models import (
    MultiRunBackfillPolicyModel,
    SingleRunBackfillPolicyModel,
    resolve_backfill_policy,
)

from dagster_llm_batch.assets.output import Frame
from dagster_llm_batch.components.resolving import about

__all__ = [
    "BackfillPolicy",
    "Description",
    "FrameKind",
    "GroupName",
    "IOManagerKey",
    "KeyPrefix",
    "Owners",
    "Tags",
]

BackfillPolicy = Annotated[
    dg.BackfillPolicy | None,
    dg.Resolver(
        resolve_backfill_policy,
        model_field_type=SingleRunBackfillPolicyModel | MultiRunBackfillPolicyModel | None,
        description="How many runs a backfill is. Default: one for all partitions.",
        examples=[{"type": "multi_run", "max_partitions_per_run": 10}],
    ),
]
Description = Annotated[str | None, about("What the asset is.")]
FrameKind = Annotated[Frame, about("What the IO manager is given.", "polars")]
GroupName = Annotated[str | None, about("Group of the assets.", "crm")]
IOManagerKey = Annotated[str, about("The IO manager that stores the tables.", "warehouse_io_manager")]
KeyPrefix = Annotated[
    Sequence[str] | str, about("In front of the asset keys.", "crm", ["prod", "crm"], kind=str | list[str])
]
Owners = Annotated[Sequence[str], about("Owners of the assets.", ["team:ml"])]
Tags = Annotated[Mapping[str, str] | None, about("Tags of the assets.", {"tier": "gold"})]
