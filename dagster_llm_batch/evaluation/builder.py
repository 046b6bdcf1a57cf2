"""Assets that compute a table from other tables: one partition after the other, each with its own metadata, version and
checks.
"""

import base64
import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.assets.output import Frame, stored_by, write_output
from dagster_llm_batch.assets.partitions import each_partition, materialize_result
from dagster_llm_batch.checks import CheckOutcome
from dagster_llm_batch.metadata import data_version, table_schema

__all__ = [
    "MAX_PICTURES",
    "Computed",
    "TableWriter",
    "code_digest",
    "in_partition",
    "picture",
    "quiet_check_spec",
    "reduced",
]

MAX_PICTURES = 6
"""Of one kind, for one materialization."""

_COLORS = 64


def reduced(png: bytes) -> bytes:
    """The same picture in 64 colors, about a third of the bytes."""
    from PIL import Image  # noqa: PLC0415 - matplotlib, which drew it, brings it

    small = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    # an octree keeps the color of a thin line, which a median cut takes for a shade of something larger
    image = image.quantize(_COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.save(small, "PNG", optimize=True)
    return small.getvalue()


def picture(text: str, png: bytes) -> str:
    """A PNG as a data URI, with `text` in its place where it cannot be shown."""
    alt = text.translate(dict.fromkeys(map(ord, "[]()\\\n"), " "))
    return f"![{alt}](data:image/png;base64,{base64.b64encode(reduced(png)).decode()})"


@dataclass(frozen=True)
class Computed:
    """What an asset stores of one partition, and says of it. `docs` describes columns."""

    table: pa.Table
    metadata: Mapping[str, Any]
    docs: Mapping[str, str | None] = field(default_factory=dict)
    verdicts: Sequence[CheckOutcome] = ()


@dataclass(frozen=True)
class TableWriter:
    """How the tables of one evaluation are stored."""

    partitions_def: dg.PartitionsDefinition[Any] | None
    frame: Frame
    io_manager_key: str

    def asset(
        self,
        spec: dg.AssetSpec,
        compute: Callable[[dg.AssetExecutionContext, str | None], Computed],
        checks: Sequence[dg.AssetCheckSpec] = (),
        backfill_policy: dg.BackfillPolicy | None = None,
        resource_keys: AbstractSet[str] = frozenset(),
    ) -> dg.AssetsDefinition:
        """An asset of one table. `compute` gets a partition, or None. By default, one run backfills all partitions."""

        @dg.multi_asset(
            name=spec.key.to_python_identifier(),
            specs=stored_by(self.io_manager_key, spec),
            check_specs=checks,
            can_subset=True,
            required_resource_keys={self.io_manager_key, *resource_keys},
            backfill_policy=backfill_policy or dg.BackfillPolicy.single_run() if self.partitions_def else None,
        )
        def tabulate(context: dg.AssetExecutionContext) -> Iterator[Any]:
            yield from each_partition(
                context, lambda partition: self.land(context, spec, partition, compute(context, partition), checks)
            )

        return tabulate

    def land(
        self,
        context: dg.AssetExecutionContext,
        spec: dg.AssetSpec,
        partition: str | None,
        computed: Computed,
        checks: Sequence[dg.AssetCheckSpec] = (),
    ) -> Iterator[Any]:
        """Store one partition, and say so."""
        table = in_partition(computed.table, partition)
        logged = write_output(context, spec, self.io_manager_key, partition, table, self.frame)
        described = {
            "dagster/row_count" if partition is None else "dagster/partition_row_count": len(table),
            "dagster/column_schema": table_schema(table.schema, {"partition": "of the rows", **computed.docs}),
        }
        yield from materialize_result(
            context,
            spec.key,
            partition,
            metadata={**computed.metadata, **described, **logged},
            version=data_version(table),
            checks=checks,
            verdicts=computed.verdicts,
        )


def in_partition(table: pa.Table, partition: str | None) -> pa.Table:
    """With the partition as first column, since many stores keep the partitions in one table."""
    if partition is None or "partition" in table.column_names:
        return table
    return table.add_column(0, "partition", pa.repeat(partition, len(table)).cast(pa.string()))


def quiet_check_spec(name: str, **given: Any) -> dg.AssetCheckSpec:
    """A check, partitioned or not, without the warning that partitioned checks are new in 1.13."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=dg.PreviewWarning)
        return dg.AssetCheckSpec(name, **given)


def code_digest(*parts: object) -> str:
    """A code version that changes with any of the parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
