"""Rows of a CSV or Parquet file, streamed: only a few megabytes of the file are in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
_DAY_FORMAT = "%Y-%m-%d"
# Bytes of a CSV that are read at once. For Arrow, a row must fit into two blocks, so longer rows need larger blocks.
_BLOCKS = (1 << 20, 1 << 24, 1 << 28)
_TOO_LONG = "straddling"
_EMPTY = "Empty CSV"
_OTHER_WIDTH = "Expected"
_QUOTED_ROW = re.compile(r"(got \d+): .*", re.DOTALL)
_LINE_BREAK = re.compile(r"[\r\n]")
_LAST_BYTES = 4_096
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
            partitions from midnight to midnight, named as 2026-01-31, it holds a date, or a time that begins with one
            (2026-01-31, 2026-01-31 18:30). With static and dynamic partitions it holds the partition's key.
    """

    path: str
    delimiter: str = ","
    partition_column: str | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a file of another kind, or a delimiter of several characters."""
        if not self.path.lower().endswith(tuple(end for ends in _ENDS.values() for end in ends)):
            raise ConfigError(
                f"FileRows.path={self.path!r} must end in .csv, .tsv, .txt or .parquet. Save the table as CSV or "
                "Parquet, and give that file."
            )
        if len(self.delimiter) != 1:
            raise ConfigError(f"FileRows.delimiter={self.delimiter!r} must be one character, such as ',' or ';'.")

    def check_partitions(self, partitions_def: dg.PartitionsDefinition[Any] | None) -> None:
        """Raise ConfigError if the partition column and the dataset's partitions do not fit each other."""
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
        if isinstance(partitions_def, dg.DailyPartitionsDefinition):
            _check_days(partitions_def)

    def __call__(self, context: RowsContext) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one partition. Raises InputError for a file that is missing or cannot be read."""
        # Static keys may look like days.
        is_daily = context.partition_key is not None and _has_days(context)
        with self._batches() as (schema, batches):
            # A table without rows has columns, too.
            yield pa.RecordBatch.from_pylist([], schema=schema)
            for batch in batches:
                yield batch if context.partition_key is None else self._of(batch, context.partition_key, is_daily)

    def read(self) -> pa.Table:
        """Return the whole file as a table, for example in an asset: `return FileRows(path="gold.csv").read()`."""
        with self._batches() as (schema, batches):
            return pa.Table.from_batches(batches, schema)

    def beside(self, folder: str) -> FileRows:
        """Return the same rows, with a path that starts at this folder."""
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
            if not self.path.lower().endswith(_ENDS["parquet"]):
                with self._csv() as (schema, batches):
                    yield schema, batches
                return
            from pyarrow import parquet  # noqa: PLC0415 - a CSV does not need it

            with UPath(self.path).open("rb") as file:
                table = parquet.ParquetFile(file)
                # Categories and views become plain text, even in a table without rows.
                [nothing] = record_batches(iter([pa.RecordBatch.from_pylist([], schema=table.schema_arrow)]))
                yield nothing.schema, record_batches(table)
        except FileNotFoundError as error:
            raise InputError(
                f"rows: there is no file {self.path}. Nothing was sent. Correct the path; a relative one starts at the "
                "folder in which Dagster was started."
            ) from error
        except (pa.ArrowInvalid, OSError) as error:
            # Arrow's message quotes the row, which may have values that a mask hides.
            words = cell_text(_QUOTED_ROW.sub(r"\1", str(error)), limit=500).rstrip(".")
            raise InputError(
                f"rows: {self.path} cannot be read: {words}. Nothing was sent. {_next_step(words)}"
            ) from None

    @contextmanager
    def _csv(self) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
        """Yield the columns and rows of a CSV. If a row is too long, read the file again in larger blocks."""
        blocks = iter(_BLOCKS)
        with ExitStack() as files:

            def begin() -> tuple[Any, int]:
                block = next(blocks)
                try:
                    return self._csv_reader(files, block), block
                except pa.ArrowInvalid as error:
                    self._refuse(error, block)
                return begin()

            def read(reader: Any, block: int) -> Iterator[pa.RecordBatch]:
                done = 0
                has_lines = False
                while True:
                    skipped = done
                    try:
                        for batch in reader:
                            if len(batch):
                                has_lines = _LINE_BREAK.search(batch.columns[-1][-1].as_py()) is not None
                            rest = batch.slice(min(skipped, len(batch)))
                            skipped -= len(batch) - len(rest)
                            done += len(rest)
                            yield rest
                            # Free their memory before the next ones are read.
                            del batch, rest
                    except pa.ArrowInvalid as error:
                        self._refuse(error, block)
                        reader, block = begin()
                    else:
                        break
                if has_lines:
                    self._check_end()

            first = begin()
            yield first[0].schema, read(*first)

    def _refuse(self, error: pa.ArrowInvalid, block: int) -> None:
        """Raise the error, unless its cause is a row that fits into a larger block."""
        if _TOO_LONG not in str(error):
            raise error
        if block == _BLOCKS[-1]:
            raise InputError(
                f"rows: {self.path} has a row of more than {block >> 20:,} MB. Nothing was sent. Look for a quote that "
                "is not closed, or save the table as Parquet."
            ) from error

    def _check_end(self) -> None:
        """Raise InputError unless the file, whose last value has several lines, ends with the quote of that value.

        If a quote is not closed, Arrow reads the rest of the file into one value.
        """
        from upath import UPath  # noqa: PLC0415 - as above

        with UPath(self.path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LAST_BYTES))
            end = file.read().rstrip()
        # Within the value, a quote is written as two.
        if (len(end) - len(end.rstrip(b'"'))) % 2 == 0:
            raise InputError(
                f"rows: {self.path} ends within a quote that is not closed. Nothing was sent. Close it, or save the "
                "table as Parquet."
            )

    def _csv_reader(self, files: ExitStack, block: int) -> Any:
        from pyarrow import csv  # noqa: PLC0415 - Parquet does not need it
        from upath import UPath  # noqa: PLC0415 - as above

        read = csv.ReadOptions(block_size=block)
        # A quoted text may have several lines.
        parsed = csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True)
        with UPath(self.path).open("rb") as file, csv.open_csv(file, read, parsed) as first:
            names = first.schema.names
        # Arrow would guess numbers, dates and nulls, and read 007 as 7.
        text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        # Each reader gets its own file, since Arrow reads ahead.
        file = files.enter_context(UPath(self.path).open("rb"))
        return files.enter_context(csv.open_csv(file, read, parsed, text))


def _next_step(words: str) -> str:
    """Return what to do about a file that Arrow refuses with these words."""
    if _EMPTY in words:
        return "The file has no header line: write the names of the columns in its first line."
    if _OTHER_WIDTH in words:
        return "Put quotes around each text that contains the delimiter or a line break, or save the table as Parquet."
    return "Save it again as CSV in UTF-8, or as Parquet."


def _has_days(context: RowsContext) -> bool:
    read_by = context.upstream.graph.get(context.upstream.reader)
    return isinstance(read_by.partitions_def, dg.DailyPartitionsDefinition)


def _check_days(partitions_def: dg.DailyPartitionsDefinition) -> None:
    """Raise ConfigError for days whose rows cannot be found by a date."""
    if partitions_def.fmt != _DAY_FORMAT:
        raise ConfigError(
            f"rows: FileRows(partition_column=…) takes days that are named as 2026-01-31; fmt={partitions_def.fmt!r} "
            f"names them otherwise. Leave fmt out, or give a function that gives the rows of a partition."
        )
    if (start := (partitions_def.hour_offset, partitions_def.minute_offset)) != (0, 0):
        raise ConfigError(
            "rows: FileRows(partition_column=…) takes days from midnight to midnight; these start at "
            f"{start[0]:02d}:{start[1]:02d}. Leave hour_offset and minute_offset out, or give a function that gives "
            "the rows of a partition."
        )


def _shown(value: Any) -> str:
    return "nothing" if value.as_py() in (None, "") else repr(cell_text(value.as_py(), limit=60))


def _joined(folder: str, path: str) -> str:
    from upath import UPath  # noqa: PLC0415 - as above

    return path if "://" in path else str(UPath(folder) / path)
