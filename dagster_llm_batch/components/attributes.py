"""Attributes that several components have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import dagster as dg
from pydantic import Field

from dagster_llm_batch.assets.options import Automation
from dagster_llm_batch.assets.output import Frame
from dagster_llm_batch.components.resolution import Block, MadeBlock, about, block, pointing_at, templated
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.candidates import Scale

__all__ = [
    "AssetKinds",
    "BackfillPolicy",
    "Candidates",
    "CheckAttributes",
    "CheckSeverity",
    "CodeVersion",
    "Condition",
    "Confidence",
    "Deps",
    "Description",
    "Freshness",
    "GoldTarget",
    "GroupName",
    "KeyPrefix",
    "Kinds",
    "Metadata",
    "OpRetry",
    "OpTags",
    "Owners",
    "Pool",
    "Rejects",
    "ResourceKey",
    "RetryPolicySettings",
    "RowKey",
    "SampleSize",
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
CodeVersion = Annotated[
    str | None, about("Added to ours, which changes with the attributes: for code that we do not see.", "2")
]
Condition = Annotated[
    Automation,
    about(
        "When it is made. `default`: what costs nothing, when what it reads is new; what asks a model, when a person "
        "says so. Null: always when a person says so.",
        "default",
        "{{ dg.AutomationCondition.eager() }}",
        "{{ dg.AutomationCondition.on_cron('0 2 * * *') }}",
        "{{ on_labels_ready() }}",
        kind=str | None,
    ),
]


class DepSettings(Block):
    """One asset that is read, with how its partitions map."""

    asset: str = Field(description="Key of the asset.")
    partition_mapping: str | None = Field(
        default=None,
        description="A template. Default: Dagster's own.",
        examples=["{{ TimeWindowPartitionMapping(start_offset=-6) }}"],
    )


def _deps(context: dg.ResolutionContext, given: Any) -> Any:
    if isinstance(given, str):
        return templated(context, given)
    return [_dep(context.at_path(index), dep) for index, dep in enumerate(given)]


def _dep(context: dg.ResolutionContext, given: Any) -> Any:
    if not isinstance(given, DepSettings):
        return templated(context, given)
    key = dg.AssetKey.from_user_string(templated(context.at_path("asset"), given.asset))
    mapping = templated(context.at_path("partition_mapping"), given.partition_mapping)
    if isinstance(mapping, str):
        with pointing_at(context.at_path("partition_mapping")):
            raise ConfigError(f"partition_mapping={mapping!r} is text; it takes a template that gives one.")
    return dg.AssetDep(key, partition_mapping=mapping)


Deps = Annotated[
    Sequence[Any],
    dg.Resolver(
        _deps,
        model_field_type=Sequence[str | DepSettings],
        description=(
            "More that is read, for order and lineage. With `partition_mapping`, on what is read anyway too: it takes "
            "the place of ours."
        ),
        examples=[
            ["crm/raw"],
            [{"asset": "tickets", "partition_mapping": "{{ TimeWindowPartitionMapping(start_offset=-6) }}"}],
        ],
    ),
]
Description = Annotated[str | None, about("What the asset is.")]
Freshness = Annotated[
    dg.FreshnessPolicy | None,
    about(
        "When the assets are late.",
        "{{ dg.FreshnessPolicy.time_window(fail_window=datetime.timedelta(hours=30)) }}",
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
AssetKinds = Annotated[
    set[str] | None,
    about(
        "Of the assets, in the place of ours; three at most.",
        ["table", "snowflake"],
        kind=list[str] | None,
        make=lambda kinds: set(kinds) if isinstance(kinds, list) else kinds,
    ),
]
Kinds = Annotated[
    Mapping[str, Scale] | Scale,
    about("Of all targets, or by target.", "ordinal", {"urgency": "ordinal"}, kind=Scale | dict[str, Scale]),
]
Metadata = Annotated[
    Mapping[str, Any] | None, about("Of the assets, as the IO manager may want it.", {"partition_expr": "day"})
]
OpTags = Annotated[
    Mapping[str, Any] | None,
    about(
        "Of the ops, for executors that size a step by them.",
        {"dagster-k8s/config": {"container_config": {"resources": {"limits": {"memory": "8Gi"}}}}},
    ),
]
Owners = Annotated[Sequence[str], about("Owners of the assets.", ["team:ml"])]
Pool = Annotated[str | None, about("Concurrency pool of the op; of a labeled dataset, of the one that submits.", "llm")]
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


def _retry_policy(**given: Any) -> dg.RetryPolicy:
    kinds: dict[str, Any] = {"backoff": dg.Backoff, "jitter": dg.Jitter}
    named = {name: kinds[name][value] for name, value in given.items() if name in kinds and value is not None}
    return dg.RetryPolicy(**{**given, **named})


class RetryPolicySettings(MadeBlock):
    """How often a step is tried again, and when."""

    make = staticmethod(_retry_policy)

    max_retries: int = Field(default=1, description="Tries after the first.")
    delay: float | None = Field(default=None, description="Seconds before the next try. Default: none.")
    backoff: Literal["LINEAR", "EXPONENTIAL"] | None = Field(default=None, description="How the delay grows.")
    jitter: Literal["FULL", "PLUS_MINUS"] | None = Field(default=None, description="How chance changes the delay.")


OpRetry = Annotated[
    dg.RetryPolicy | None,
    block(
        RetryPolicySettings,
        "Of the op; of a labeled dataset, of the one that submits. A run over several partitions is not retried.",
        {"max_retries": 3, "delay": 60, "backoff": "EXPONENTIAL"},
    ),
]
SampleSize = Annotated[
    int | None, about("How many rows are drawn, of each partition. Null: all.", 200, kind=int | None)
]
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
