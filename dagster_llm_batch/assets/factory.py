"""The one call that declares a labeled dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, Unpack

import dagster as dg

from dagster_llm_batch._dagster_private import check_when_bound
from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.asset_rows import AssetRows
from dagster_llm_batch.assets.dataset import Dataset
from dagster_llm_batch.assets.file_rows import FileRows
from dagster_llm_batch.assets.keys import Upstream, prefixed_key, upstream_key
from dagster_llm_batch.assets.labels import labels_asset
from dagster_llm_batch.assets.options import AssetOptions, DagsterOptions
from dagster_llm_batch.assets.output import Frame
from dagster_llm_batch.assets.rows_context import RowsFunction
from dagster_llm_batch.assets.sql_rows import SqlRows
from dagster_llm_batch.assets.submission import submission_asset
from dagster_llm_batch.assets.upstream import check_deps, check_partitions
from dagster_llm_batch.checks import Checks
from dagster_llm_batch.core.cascade import Cascade, Rolling
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.response import Response
from dagster_llm_batch.definition.labeling import EmptyRows
from dagster_llm_batch.engine import Labeling, Limits, Realtime, Resend, Spend
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.protocols import Workers
from dagster_llm_batch.types import Endpoint

__all__ = ["llm_batch_assets"]

_Source = Upstream | RowsFunction | SqlRows | FileRows
Rows = _Source | AssetRows

# Each moment is earlier than the next, but larger in one of its parts, such as the day.
_MOMENTS = (
    *(datetime(2025, 9, 10, 23, 59, tzinfo=UTC), datetime(2025, 10, 9, 22, 58, tzinfo=UTC)),
    *(datetime(2025, 12, 31, 21, 57, tzinfo=UTC), datetime(2026, 1, 2, 3, 4, tzinfo=UTC)),
)


@checked_options(AssetOptions, DagsterOptions)
def llm_batch_assets(
    *,
    name: str,
    rows: Rows,
    key: str,
    prompt: Prompt,
    model: str,
    response: Response = None,
    params: Mapping[str, Any] | None = None,
    endpoint: Endpoint | str | None = None,
    keep: Sequence[str] = (),
    empty: EmptyRows = "skip",
    partitions_def: dg.PartitionsDefinition[Any] | None = None,
    mode: Literal["deferred", "wait"] = "deferred",
    max_cost_usd: Decimal | float | str | None = None,
    limits: Limits | None = None,
    realtime: Realtime | None = None,
    resend: Resend | None = None,
    spend: Spend | None = None,
    cascade: Cascade | None = None,
    checks: Checks | None = None,
    workers: Workers | None = None,
    frame: Frame = "arrow",
    io_manager_key: str = "io_manager",
    resource_key: str = "llm_batch",
    required_resource_keys: set[str] | None = None,
    backfill_policy: dg.BackfillPolicy | None = None,
    **options: Unpack[AssetOptions],
) -> list[dg.AssetsDefinition]:
    """Declare a labeled dataset: one asset submits the rows, another materializes labels and rejects.

        rows ─▶ <name>_batch ─▶ <name>            the labels
                 (submits)      <name>_rejects    rows without a label, and why

    Partitions are independent, even in multi-partition runs. Each has its own submission, outcome, metadata, data
    version and checks, and a failed partition does not stop the others. They only share batches, if these have room.

    Args:
        name: Name of the labeled asset.
        rows: An upstream asset (loaded through its IO manager, one partition at a time), those of its rows that meet a
            condition (`AssetRows`), a CSV or Parquet file (`FileRows`), a query (`SqlRows`), or a function of
            RowsContext. The function's context loads the assets in `deps` by `load`. The function returns a polars,
            pandas or arrow frame, a DuckDB relation, any other frame that narwhals reads, an iterator of Arrow record
            batches, or an open `pyarrow.parquet.ParquetFile`. The file takes some MB of memory, however long its rows
            are.
        key, prompt, model, response, params, endpoint, keep, empty, max_cost_usd, workers: See Labeling.
        limits, realtime, resend, spend, cascade: See Labeling.
        partitions_def: Any Dagster partitions, for all three assets. Dagster's partition mapping selects the partitions
            of an upstream asset. Default: no partitions.
        mode: "deferred": the run does not wait for batches; a sensor (`build_llm_batch_sensor`) materializes the labels
            when the batches end. "wait": the run waits for the batches, and polls them every
            `LLMBatchResource(poll_seconds=…)` seconds. Use it for development and small submissions.
        checks: Minimum coverage and parse rate, quotes to find in the rows, and whether a failed check blocks the
            assets downstream.
        frame: The type that the IO manager gets: a table of "arrow", "polars" or "pandas", or "batches", a stream of
            Arrow record batches (`pyarrow.RecordBatchReader`) that need not fit into memory. HiveParquetIOManager takes
            such streams.
        io_manager_key: Key of the IO manager that stores labels and rejects.
        resource_key: Key of the LLMBatchResource.
        required_resource_keys: Keys of the resources that the function of rows uses.
        backfill_policy: The number of runs of a backfill. Default: one run for all partitions.
        deps: More assets that a query or a function of rows reads, or that must come before the submission. If an
            AssetDep names the rows' own asset, its partition mapping selects the partitions, and its `metadata` allows
            exceptions: `allow_missing_partitions` skips partitions that are not materialized, and
            `repeated_keys: last` takes the last row of a key that several partitions have.
        metadata: Metadata of all three assets, for the IO manager (`partition_expr`, a column of `keep`).
        automation_condition: The rule that triggers the submission automatically. "default": never, since it costs
            money. The sensor materializes labels and rejects.
        tags: Tags of all three assets. They are stored with each submission, to sum costs by tag:
            `dagster-llm-batch cost --by tag:team`.
        op_tags: Tags of both ops, for executors that size a step by its tags.
        pool: Concurrency pool of the op that submits. The other op does not need a pool.
        retry_policy: The retries of the op that submits: their number and delay. The ledger has the requests that were
            sent, so they are not paid again. A run over several partitions records its failures by partition and is not
            retried as a whole. The op of the labels does not need a policy, since the sensor requests it again.
        options: Dagster's other options, for all three assets; see `DagsterOptions`.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for arguments that cannot work.
    """
    own = DagsterOptions(**options)
    resource_keys = set(required_resource_keys or ())
    if isinstance(rows, SqlRows):
        rows.check_partitions(are_there=partitions_def is not None)
        resource_keys.add(rows.resource)
    if isinstance(rows, FileRows):
        rows.check_partitions(partitions_def)
    source = rows.upstream if isinstance(rows, AssetRows) else rows
    if workers is not None and isinstance(rows, AssetRows) and rows.condition is not None:
        raise ConfigError(
            f"rows: AssetRows(when={rows.when!r}) is computed by the run itself, and workers={type(workers).__name__} "
            "reads the rows elsewhere. Leave workers= out, or filter the rows in an asset."
        )
    dataset = Dataset(
        labeling=Labeling(
            asset=prefixed_key(own.key_prefix, name).to_user_string(),
            model=model,
            key=key,
            prompt=prompt,
            response=response,
            params=params or {},
            endpoint=endpoint,
            keep=keep,
            empty=empty,
            max_cost_usd=max_cost_usd,
            limits=limits or Limits(),
            realtime=realtime or Realtime(),
            resend=resend or Resend(),
            spend=spend or Spend(),
            cascade=cascade,
            workers=workers,
            evidence=None if checks is None else checks.evidence,
            tags=_users_own(own.tags or {}),
        ),
        rows=_rows(source),
        partitions_def=partitions_def,
        mode=mode,
        checks=checks or Checks(),
        frame=frame,
        io_manager_key=io_manager_key,
        resource_key=resource_key,
        rows_resource_keys=frozenset(resource_keys),
        backfill_policy=backfill_policy or (dg.BackfillPolicy.single_run() if partitions_def else None),
        options=own,
        when=rows.condition if isinstance(rows, AssetRows) else None,
    )
    # A platform's translator may set the tags by which costs are summed.
    if own.translator is not None and (tags := _users_own(dataset.labels_spec.tags)) != dataset.labeling.tags:
        dataset = replace(dataset, labeling=replace(dataset.labeling, tags=tags))
    if cascade is not None and isinstance(cascade.calibrate, Rolling):
        _check_order(partitions_def)
    dataset.check_restored_rows(_spec_of(source))
    check_deps(dataset.upstreams)
    check_partitions(dataset.batch_key, partitions_def, source, dataset.upstreams)
    submission = submission_asset(dataset)
    check_when_bound(submission, resource_key, dataset.check_destinations)
    return [submission, labels_asset(dataset)]


def _check_order(partitions_def: dg.PartitionsDefinition[Any] | None) -> None:
    """Raise ConfigError if the partitions have no order in time: `Rolling` needs the earlier partitions of each."""
    then = (
        'Rolling takes the threshold of a partition from earlier ones. Give partitions_def such windows, or calibrate="'
        'partition".'
    )
    if not isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
        has = "no partitions" if partitions_def is None else f"a {type(partitions_def).__name__}"
        raise ConfigError(
            f"Cascade.calibrate=Rolling(…) needs partitions that are windows of time; the dataset has {has}. {then}"
        )
    keys = [moment.strftime(partitions_def.fmt) for moment in _MOMENTS]
    if keys != sorted(keys):
        raise ConfigError(
            f"Cascade.calibrate=Rolling(…) needs keys that sort by time as text; {partitions_def.fmt!r} gives "
            f"{keys[0]!r} for what is before {keys[1]!r}. {then.replace('such windows', 'a format like %Y-%m-%d')}"
        )


def _users_own(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags without Dagster's and this package's tags, such as kinds and roles."""
    return {name: value for name, value in tags.items() if not name.startswith(("dagster/", "llm_batch/"))}


def _spec_of(rows: _Source) -> dg.AssetSpec | None:
    """Return the spec of the rows' asset, if it is given. A run finds the asset that a key names."""
    if isinstance(rows, dg.AssetsDefinition):
        return next(iter(rows.specs))
    return rows if isinstance(rows, dg.AssetSpec) else None


def _rows(rows: _Source) -> dg.AssetKey | RowsFunction:
    if isinstance(rows, str | Sequence | dg.AssetKey | dg.AssetsDefinition | dg.AssetSpec):
        return upstream_key(rows)
    return rows
