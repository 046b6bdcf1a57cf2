"""Attributes that both components have."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import dagster as dg
from pydantic import Field

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


class SingleRun(dg.Model):
    """One run for all partitions."""

    type: Literal["single_run"]


class MultiRun(dg.Model):
    """Several runs."""

    type: Literal["multi_run"]
    max_partitions_per_run: int = Field(default=1, description="Neighbouring partitions that share a run.")


def _backfill_policy(context: dg.ResolutionContext, given: SingleRun | MultiRun | None) -> dg.BackfillPolicy | None:
    del context
    if isinstance(given, MultiRun):
        return dg.BackfillPolicy.multi_run(given.max_partitions_per_run)
    return None if given is None else dg.BackfillPolicy.single_run()


BackfillPolicy = Annotated[
    dg.BackfillPolicy | None,
    dg.Resolver(
        _backfill_policy,
        model_field_type=Annotated[SingleRun | MultiRun, Field(discriminator="type")] | None,
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
