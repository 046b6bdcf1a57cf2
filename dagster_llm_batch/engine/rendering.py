"""Rows as requests: what planning does with a batch of rows by itself, knowing no other, wherever it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from dagster_llm_batch.core.keys import is_key_type
from dagster_llm_batch.core.label_join import manifest_schema
from dagster_llm_batch.core.prompt import ImageLoader
from dagster_llm_batch.core.rows import check_text
from dagster_llm_batch.engine.labeling import Labeling
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.types import Lane, Request

__all__ = ["Rendering", "columns_of_nothing", "columns_read", "images_of"]

_ROWS, _ROWS_WITH_IMAGES = 256, 8  # at once: their requests, and the lines of these, are in memory
_TOKENS_PER_IMAGE = 1_000  # providers count an image as some hundred to some thousand tokens, whatever its bytes


class Rendering:
    """Renders batches of rows with these columns. Raises InputError or ConfigError where the labeling names others.

    `manifest_schema` is what is kept of each row.
    """

    def __init__(self, labeling: Labeling, rows: pa.Schema, load_image: ImageLoader | None) -> None:
        urgent = [labeling.urgent] if labeling.urgent else []
        for argument, wanted in (("keep", labeling.keep), ("urgent", urgent)):
            if lacking := sorted(set(wanted) - set(rows.names)):
                columns = ", ".join(rows.names)
                msg = f"{argument} names {lacking}, which the rows do not have. Columns of the rows: {columns}."
                raise InputError(msg)
        self._urgent = labeling.urgent
        self._renderer = labeling.prompt.renderer(rows.names, load_image)
        self._at_once = _ROWS_WITH_IMAGES if labeling.prompt.images else _ROWS
        self.manifest_schema = manifest_schema(rows, labeling.key, labeling.keep)
        if not is_key_type(rows.field(labeling.key).type):  # there are no rows yet, and so no types
            self.manifest_schema = self.manifest_schema.set(0, pa.field(labeling.key, pa.string()))
        self._needed = {*self.manifest_schema.names[:-1], *self._renderer.columns, *urgent}

    def check(self, batch: pa.RecordBatch) -> None:
        """Refuse a batch without the columns that the first one has, or with values that have no stable text."""
        if lost := sorted(self._needed - set(batch.schema.names)):
            msg = f"A later batch of rows lacks the columns {lost}, which the first one has."
            raise InputError(msg)
        for name in self._needed:
            check_text(name, batch.schema.field(name).type)

    def requests(self, batch: pa.RecordBatch, keys: Sequence[Any]) -> Iterator[tuple[Sequence[Any], list[Request]]]:
        """The requests of the rows, some rows at once, with their keys: many live objects keep Python's GC busy."""
        read = batch.select(list(self._renderer.columns))
        for start in range(0, batch.num_rows, self._at_once):
            these = keys[start : start + self._at_once]
            yield these, self._renderer.requests(read.slice(start, self._at_once).to_pydict(), these)

    def lanes(self, batch: pa.RecordBatch) -> list[Lane]:
        """The lane of each row."""
        if self._urgent is None:
            return [Lane.BATCH] * batch.num_rows
        column = batch.column(self._urgent)
        if batch.num_rows and not pa.types.is_boolean(column.type) and not pa.types.is_null(column.type):
            msg = f"urgent names the column {self._urgent!r} of type {column.type}; it takes one of true and false."
            raise InputError(msg)
        return [Lane.REALTIME if flag else Lane.BATCH for flag in column.to_pylist()]

    def manifest(self, batch: pa.RecordBatch, request_ids: list[str]) -> pa.Table:
        """What is kept of the rows, and their requests."""
        own = [batch.column(name) for name in self.manifest_schema.names[:-1]]
        try:
            columns = [column.cast(field.type) for column, field in zip(own, self.manifest_schema, strict=False)]
        except pa.ArrowException as error:
            msg = f"A later batch of rows has other column types than the first, and cannot be converted: {error}"
            raise InputError(msg) from error
        return pa.table([*columns, pa.array(request_ids, pa.string())], schema=self.manifest_schema)


def images_of(request: Request) -> tuple[int, int]:
    """Bytes of a request's line that are images, and the tokens that they are estimated to take."""
    if not request.images:
        return 0, 0
    in_base64 = sum((len(image.data) + 2) // 3 * 4 for image in request.images if image.data is not None)
    return in_base64, len(request.images) * _TOKENS_PER_IMAGE


def columns_read(labeling: Labeling) -> set[str] | None:
    """The columns of the rows that planning may read; None where the prompt takes whole rows."""
    names = labeling.prompt.names()
    urgent = [labeling.urgent] if labeling.urgent else []
    return None if names is None else {labeling.key, *labeling.keep, *urgent, *names}


def columns_of_nothing(labeling: Labeling) -> pa.Schema:
    """What rows would have if there were any: not even a schema came."""
    names = dict.fromkeys([labeling.key, *labeling.keep, *sorted(labeling.prompt.columns() or ())])
    return pa.schema([(name, pa.string()) for name in names])
