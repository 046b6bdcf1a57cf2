"""`partitions_def` in YAML: all kinds that Dagster has, dynamic and multi-partitions too."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import dagster as dg
from pydantic import Field

from dagster_llm_batch.components.resolution import Block, pointing_at, templated

__all__ = ["AnyPartitions"]


class _Partitions(Block):
    """Partitions of Dagster's."""

    def value(self, context: dg.ResolutionContext) -> dg.PartitionsDefinition[Any]:
        """Return Dagster's definition."""
        with pointing_at(context):
            return _made(templated(context, self.model_dump(exclude_unset=True)))


class _Dated(_Partitions):
    start_date: str = Field(description="First partition.", examples=["2026-01-01"])
    end_date: str | None = Field(default=None, description="End, itself left out. Default: now.")
    timezone: str | None = Field(default=None, description="As in Europe/Berlin. Default: UTC.")


class Hourly(_Dated):
    """One partition an hour."""

    type: Literal["hourly"]
    minute_offset: int = Field(default=0, description="Minutes past the hour at which a partition starts.")


class Daily(_Dated):
    """One partition a day."""

    type: Literal["daily"]
    minute_offset: int = Field(default=0, description="Minutes past the hour at which a partition starts.")
    hour_offset: int = Field(default=0, description="Hours past midnight at which a partition starts.")


class Weekly(Daily):
    """One partition a week."""

    type: Literal["weekly"]  # type: ignore[assignment]
    day_offset: int = Field(default=0, description="Day of the week, 0 for Sunday, at which a partition starts.")


class Monthly(Daily):
    """One partition a month."""

    type: Literal["monthly"]  # type: ignore[assignment]
    day_offset: int = Field(default=1, description="Day of the month at which a partition starts.")


class TimeWindow(_Dated):
    """One partition for each tick of a cron schedule."""

    type: Literal["time_window"]
    cron_schedule: str = Field(description="When partitions start.", examples=["0 6 * * 1-5"])
    fmt: str = Field(description="How partition keys are written.", examples=["%Y-%m-%d"])


class Static(_Partitions):
    """A fixed list of partitions."""

    type: Literal["static"]
    partition_keys: list[str] = Field(description="The partitions.", examples=[["de", "fr", "it"]])


class Dynamic(_Partitions):
    """Partitions that are added while the deployment runs."""

    type: Literal["dynamic"]
    name: str = Field(description="Name under which Dagster keeps them.", examples=["customers"])


Dimension = Annotated[Hourly | Daily | Weekly | Monthly | TimeWindow | Static | Dynamic, Field(discriminator="type")]


class Multi(_Partitions):
    """The product of two dimensions."""

    type: Literal["multi"]
    dimensions: dict[str, Dimension] = Field(
        description="Two partitions, by name.",
        examples=[
            {
                "day": {"type": "daily", "start_date": "2026-01-01"},
                "region": {"type": "static", "partition_keys": ["eu", "us"]},
            }
        ],
    )


AnyPartitions = Annotated[
    Hourly | Daily | Weekly | Monthly | TimeWindow | Static | Dynamic | Multi, Field(discriminator="type")
]

_KINDS: Mapping[str, Any] = {
    "hourly": dg.HourlyPartitionsDefinition,
    "daily": dg.DailyPartitionsDefinition,
    "weekly": dg.WeeklyPartitionsDefinition,
    "monthly": dg.MonthlyPartitionsDefinition,
    "static": dg.StaticPartitionsDefinition,
    "dynamic": dg.DynamicPartitionsDefinition,
}


def _made(settings: dict[str, Any]) -> dg.PartitionsDefinition[Any]:
    kind = settings.pop("type")
    if kind == "multi":
        return dg.MultiPartitionsDefinition({name: _made(setting) for name, setting in settings["dimensions"].items()})
    if kind == "time_window":
        return dg.TimeWindowPartitionsDefinition(
            start=settings.pop("start_date"), end=settings.pop("end_date", None), **settings
        )
    made: dg.PartitionsDefinition[Any] = _KINDS[kind](**settings)
    return made
