"""Render rows, batch by batch, as requests and as rows of the manifest, which has the reason of an unsent row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch._version import __version__
from dagster_llm_batch.core.identity import block_digest, canonical_json
from dagster_llm_batch.core.keys import is_key_type
from dagster_llm_batch.core.label_join import UNSENT_FIELD, manifest_schema
from dagster_llm_batch.core.row_files import RowFiles, UnreadableFile
from dagster_llm_batch.core.rows import are_empty, check_stored_text, check_text, values_of
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.types import Lane, Request

__all__ = ["RowRenderer", "reasons_of"]

# If one row of a block has changed, all its rows are rendered again; smaller blocks take more room in the manifest.
_BLOCK_ROWS, _BLOCK_ROWS_WITH_FILES = 1_024, 32
# Rows whose requests, and the lines of these, are in memory at once: up to a block where they are short. Of long ones
# so few that a processor's cache holds them from the template to the file.
_BYTES_AT_ONCE, _LEAST_AT_ONCE = 1 << 19, 8
# A row may hold no more of a file than where it is. A document may be as large as a request.
_FILES_AT_ONCE, _DOCUMENTS_AT_ONCE = 8, 1


class RowRenderer:
    """Render batches of rows into requests.

    Args:
        labeling: The questions about each row.
        rows: The columns of the first batch.
        files: How the images and documents of rows are read.

    `manifest_schema` is the schema of each row in the manifest. Raises InputError or ConfigError if the labeling names
    a column that the rows lack.
    """

    def __init__(self, labeling: Labeling, rows: pa.Schema, files: RowFiles) -> None:
        urgent = [labeling.realtime.urgent] if labeling.realtime.urgent else []
        for argument, wanted in (("keep", labeling.keep), ("Realtime.urgent", urgent)):
            if lacking := sorted(set(wanted) - set(rows.names)):
                absent, columns = ", ".join(lacking), ", ".join(rows.names)
                msg = f"{argument} names {absent}, which the rows do not have. Columns of the rows: {columns}."
                raise InputError(msg)
        if labeling.quoted_columns is not None:
            labeling.quoted_columns.check_rows(rows)
        self._urgent = labeling.realtime.urgent
        self._renderer = labeling.prompt.renderer(rows.names, files)
        self.manifest_schema = manifest_schema(rows, labeling.key, labeling.keep)
        self._kept = [labeling.key, *labeling.keep]
        # Without rows the columns may have no types yet.
        if not is_key_type(rows.field(labeling.key).type):
            self.manifest_schema = self.manifest_schema.set(0, pa.field(labeling.key, pa.string()))
        content = labeling.prompt.content(rows.names, labeling.key) if labeling.empty == "skip" else ()
        self._content, self._files = sorted(content), labeling.prompt.files
        self._needed = {*self._kept, *self._renderer.columns, *urgent}
        self.block_rows = _BLOCK_ROWS_WITH_FILES if labeling.prompt.files else _BLOCK_ROWS
        by_path = labeling.prompt.documents and labeling.prompt.file_root
        of_files = _DOCUMENTS_AT_ONCE if by_path else _FILES_AT_ONCE
        self._most_at_once = of_files if labeling.prompt.files else self.block_rows
        # The file at a path may have changed although the row has not. What a vendor allows of documents may have, too.
        self.has_blocks = not (labeling.prompt.documents or (labeling.prompt.images and labeling.prompt.image_root))
        asked = [__version__, labeling.definition["asked"]["prompt"], labeling.key, labeling.empty]
        self._asked = canonical_json(asked).encode()
        self._of_block = sorted({*self._kept, *self._renderer.columns})

    def check(self, batch: pa.RecordBatch) -> None:
        """Raise InputError for a batch that lacks a column of the first one, or whose values have no stable text."""
        if lost := sorted(self._needed - set(batch.schema.names)):
            msg = f"A later batch of rows lacks the columns {', '.join(lost)}, which the first one has."
            raise InputError(msg)
        for name in self._needed:
            check_text(name, batch.schema.field(name).type)

    def requests(
        self, batch: pa.RecordBatch, keys: Sequence[Any]
    ) -> Iterator[tuple[Sequence[Any], Sequence[Request | UnreadableFile | None]]]:
        """Yield the requests of the rows with their keys, some rows at a time; None for an empty row.

        UnreadableFile represents a row whose image or document cannot be read, or is not allowed.
        """
        read = batch.select(list(self._renderer.columns))
        empty = are_empty(batch.select(self._content), self._files)
        rows = self.rows_at_once(read)
        for start in range(0, batch.num_rows, rows):
            chunk_keys, chunk = keys[start : start + rows], read.slice(start, rows)
            if empty is None or not pc.any(here := empty.slice(start, rows)).as_py():
                yield chunk_keys, self._renderer.requests(values_of(chunk), chunk_keys)
                continue
            skipped = here.to_pylist()
            asked_keys = [key for key, skip in zip(chunk_keys, skipped, strict=True) if not skip]
            rendered = iter(self._renderer.requests(values_of(chunk.filter(pc.invert(here))), asked_keys))
            yield chunk_keys, [None if skip else next(rendered) for skip in skipped]

    def rows_at_once(self, batch: pa.RecordBatch) -> int:
        """Return of how many of these rows the requests are in memory at once."""
        fit: int = _BYTES_AT_ONCE * batch.num_rows // max(batch.nbytes, 1)
        return min(max(fit, _LEAST_AT_ONCE), self._most_at_once)

    def digest(self, block: pa.RecordBatch) -> bytes:
        """Return the digest of all that is stored of these rows, and that their requests are made of."""
        return block_digest(self._asked, block.select(self._of_block))

    def lanes(self, batch: pa.RecordBatch) -> list[Lane]:
        """Return the lane of each row. Raises InputError where the column `urgent` has other than true and false.

        SQLite and its kin have no booleans, and give 0 and 1.
        """
        if self._urgent is None:
            return [Lane.BATCH] * batch.num_rows
        column = batch.column(self._urgent)
        named = f"Realtime.urgent names the column {self._urgent!r} of type {column.type}"
        is_flag = pa.types.is_boolean(column.type) or pa.types.is_null(column.type)
        if batch.num_rows and not is_flag and not pa.types.is_integer(column.type):
            msg = f"{named}; it takes one of true and false, or of 1 and 0."
            raise InputError(msg)
        flags = column.to_pylist()
        if (odd := next((flag for flag in flags if flag not in (None, 0, 1)), None)) is not None:
            raise InputError(f"{named}, which holds {odd}; it takes one of true and false, or of 1 and 0.")
        return [Lane.REALTIME if flag else Lane.BATCH for flag in flags]

    def manifest(
        self, batch: pa.RecordBatch, request_ids: Sequence[str | None], unsent: Mapping[int, str] | None = None
    ) -> pa.Table:
        """Return the manifest's columns of the rows, with their request_ids, None for a row that is not sent.

        `unsent` has the reasons of rows whose files cannot be read, by position; without it there is no column for
        them. Raises InputError for types that differ from the first batch.
        """
        own = [batch.column(name) for name in self._kept]
        try:
            columns = [column.cast(field.type) for column, field in zip(own, self.manifest_schema, strict=False)]
        except pa.ArrowException as error:
            msg = f"A later batch of rows has other column types than the first, and cannot be converted: {error}"
            raise InputError(msg) from error
        for field, column in zip(self.manifest_schema, columns, strict=False):
            check_stored_text(field.name, column)
        table = pa.table([*columns, pa.array(request_ids, pa.string())], schema=self.manifest_schema)
        if unsent is None:
            return table
        return table.append_column(
            UNSENT_FIELD, pa.array([unsent.get(at) for at in range(batch.num_rows)], UNSENT_FIELD.type)
        )


def reasons_of(requests: Sequence[Request | UnreadableFile | None]) -> dict[int, str]:
    """Return why the rows whose files cannot be read are not sent, by their places."""
    return {at: request.reason for at, request in enumerate(requests) if isinstance(request, UnreadableFile)}
