"""Rows of a CSV or Parquet file, streamed: a few megabytes of the file are in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.text import cell_text

if TYPE_CHECKING:
    from dagster_llm_batch.assets.rows_context import RowsContext

__all__ = ["FileRows"]

_DAY = r"^\d{4}-\d{2}-\d{2}"
_DAY_CHARS = 10
_ENDS = {"csv": (".csv", ".tsv", ".txt"), "parquet": (".parquet", ".pq")}


@checked
@dataclass(frozen=True, kw_only=True)
class FileRows:
    """Rows of a CSV or Parquet file: `rows=FileRows(path="comments.csv")`.

    The first line of a CSV has the names of the columns, and each value is text exactly as written: 007 stays 007. The
    file is read again by each run and each `plan`.

    Args:
        path: A file that ends with .csv, .tsv, .txt or .parquet: a path, s3://…, gs://…. A relative path starts at the
            folder of the process; in YAML, at the folder of the YAML file.
        delimiter: The character between two values of a CSV.
        partition_column: For a dataset with partitions: the column that holds the partition of a row. With daily
            partitions it holds a date, or a time that begins with one (2026-01-31, 2026-01-31 18:30); with static and
            dynamic partitions it holds the partition's key.
    """

    path: str
    delimiter: str = ","
    partition_column: str | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a file of another kind, or a delimiter of several characters."""
        if not self.path.lower().endswith(tuple(end for ends in _ENDS.values() for end in ends)):
            raise ConfigError(
                f"FileRows.path={self.path!r} has none of these ends: .csv, .tsv, .txt, .parquet. Save the table as "
                "CSV or Parquet, and give that file."
            )
        if len(self.delimiter) != 1:
            raise ConfigError(f"FileRows.delimiter={self.delimiter!r} must be one character, such as ',' or ';'.")

    def check_partitions(self, partitions_def: dg.PartitionsDefinition[Any] | None) -> None:
        """Raise ConfigError where the file and the dataset do not agree on partitions."""
        if partitions_def is None and self.partition_column is not None:
            raise ConfigError(
                "rows: FileRows has a partition_column, and the dataset has no partitions. Give partitions_def=, or "
                "leave partition_column out."
            )
        if partitions_def is None:
            return
        if self.partition_column is None:
            raise ConfigError(
                f"rows: each partition would send, and pay for, all rows of {self.path}. Give "
                "FileRows(partition_column=…), the column that holds the partition of a row."
            )
        kinds = (dg.DailyPartitionsDefinition, dg.StaticPartitionsDefinition, dg.DynamicPartitionsDefinition)
        if not isinstance(partitions_def, kinds):
            raise ConfigError(
                f"rows: FileRows(partition_column=…) takes daily, static or dynamic partitions, not a "
                f"{type(partitions_def).__name__}. Give daily ones, or a function that gives the rows of a partition."
            )

    def __call__(self, context: RowsContext) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one partition. Raises InputError for a file that is missing or cannot be read."""
        is_daily = context.partition_key is not None and _is_daily(context)
        with self._batches() as (schema, batches):
            # A table without rows has columns, too.
            yield pa.RecordBatch.from_pylist([], schema=schema)
            for batch in batches:
                yield batch if context.partition_key is None else self._of(batch, context.partition_key, is_daily)

    def read(self) -> pa.Table:
        """Return the whole file as a table, as an asset may: `return FileRows(path="gold.csv").read()`."""
        with self._batches() as (schema, batches):
            return pa.Table.from_batches(batches, schema)

    def beside(self, folder: str) -> FileRows:
        """Return the same rows, of a path that starts at this folder."""
        return replace(self, path=_joined(folder, self.path))

    def _of(self, batch: pa.RecordBatch, partition: str, is_daily: bool) -> pa.RecordBatch:
        name = str(self.partition_column)
        if name not in batch.schema.names:
            raise InputError(
                f"{self.path} has no column '{name}' (partition_column). Its columns: {', '.join(batch.schema.names)}. "
                "Nothing was sent. Correct partition_column."
            )
        values = batch.column(name).cast(pa.string())
        if is_daily:
            is_day = pc.fill_null(pc.match_substring_regex(values, _DAY), fill_value=False)
            if (wrong := values.filter(pc.invert(is_day))).null_count or len(wrong):
                raise InputError(
                    f"{self.path}: the column '{name}' (partition_column) holds {_shown(wrong[0])}, which does not "
                    "begin with a date such as 2026-01-31. Nothing was sent. Correct the file."
                )
            values = pc.utf8_slice_codeunits(values, 0, _DAY_CHARS)
        return batch.filter(pc.equal(values, partition))

    @contextmanager
    def _batches(self) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
        from upath import UPath  # noqa: PLC0415 - file systems take a while to load

        try:
            with UPath(self.path).open("rb") as file:
                if self.path.lower().endswith(_ENDS["parquet"]):
                    from pyarrow import parquet  # noqa: PLC0415 - a CSV does not need it

                    table = parquet.ParquetFile(file)
                    # Categories and views come as plain text, in a table without rows, too.
                    [nothing] = record_batches(iter([pa.RecordBatch.from_pylist([], schema=table.schema_arrow)]))
                    yield nothing.schema, record_batches(table)
                else:
                    reader = self._csv_reader(file)
                    yield reader.schema, reader
        except FileNotFoundError as error:
            raise InputError(
                f"rows: there is no file {self.path}. Nothing was sent. Correct the path; a relative one starts at the "
                "folder in which Dagster was started."
            ) from error
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"rows: {self.path} cannot be read: {cell_text(str(error), limit=500)} Nothing was sent. Save it again "
                "as CSV in UTF-8, or as Parquet."
            ) from error

    def _csv_reader(self, file: Any) -> Any:
        from pyarrow import csv  # noqa: PLC0415 - Parquet does not need it

        # A quoted text may have several lines.
        parsed = csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True)
        with csv.open_csv(file, parse_options=parsed) as first:
            names = first.schema.names
        file.seek(0)
        # Arrow would guess numbers, dates and nulls, and read 007 as 7.
        text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        return csv.open_csv(file, parse_options=parsed, convert_options=text)


def _is_daily(context: RowsContext) -> bool:
    return re.fullmatch(_DAY + "$", str(context.partition_key)) is not None


def _shown(value: Any) -> str:
    return "nothing" if value.as_py() in (None, "") else repr(cell_text(value.as_py(), limit=60))


def _joined(folder: str, path: str) -> str:
    from upath import UPath  # noqa: PLC0415 - as above

    return path if "://" in path else str(UPath(folder) / path)
