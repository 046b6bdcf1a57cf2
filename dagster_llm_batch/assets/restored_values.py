"""Values in labels instead of the placeholders in answers: `Mask(restore=[…])`.

    labels ─▶ the rows with placeholders ─▶ these rows are read again, and masked ─▶ labels with their values

1. Only the stored table has values. Statistics, previews and data of the ledger are made before.
2. A placeholder becomes the value of the label's own row, even if another row's request got the answer.
3. A row does not get values if its request has changed, since its placeholders may mean other values. Rows with one key
   and different values do not get them either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.masks import change_json, change_texts
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import InputError, LLMBatchError, TransientError
from dagster_llm_batch.text import cell_text

if TYPE_CHECKING:
    from dagster_llm_batch.core.shares import AuditedAnswers
    from dagster_llm_batch.definition.labeling import Labeling

__all__ = ["RestoredValues"]

_ID = "llm_request_id"
_LONGEST_REASON = 300


class RestoredValues:
    """Replaces placeholders by values in the labels of one partition. Call `look` with all labels first.

    Only values of rows with placeholders in their answers stay in memory.

    Args:
        labeling: The definition of the submission.
        columns: The label columns that get values.
        rows: Yields the present rows.
        shares: The rows that have the answers of others; None without them.

    Attributes:
        restored: The number of placeholders that became values.
        unresolved: The number of placeholders that stay.
        trouble: The reason if the rows could not be read.
    """

    def __init__(
        self,
        labeling: Labeling,
        columns: list[str],
        rows: Callable[[], AbstractContextManager[Any]],
        shares: AuditedAnswers | None = None,
    ) -> None:
        self._shares = shares
        self.restored, self.unresolved = 0, 0
        self.trouble: str | None = None
        self._labeling, self._rows = labeling, rows
        self._columns = [name for name in columns if name in labeling.reader.schema.names]
        self._pattern = "" if labeling.mask is None else labeling.mask.placeholders
        self._compiled = re.compile(self._pattern)
        self._keys: list[pa.Array] = []
        self._ids: list[pa.Array] = []
        self._values: tuple[pa.Array, list[str | None]] | None = None

    def look(self, labels: pa.Table) -> None:
        """Record the rows of these labels that contain placeholders."""
        if not self._columns:
            return
        named = labels.filter(self._naming(labels))
        if len(named):
            self._keys.append(named[self._labeling.key].combine_chunks())
            self._ids.append(named[_ID].cast(pa.string()).combine_chunks())

    def fill(self, labels: pa.Table | pa.RecordBatchReader) -> pa.Table | pa.RecordBatchReader:
        """Return the labels with values. A stream counts its placeholders while it is read."""
        if not self._keys:
            return labels
        if isinstance(labels, pa.Table):
            return self._filled(labels)
        return pa.RecordBatchReader.from_batches(labels.schema, self._stream(labels))

    @property
    def metadata(self) -> dict[str, int]:
        """The numbers of placeholders."""
        return {"llm_batch/restored_values": self.restored, "llm_batch/unresolved_placeholders": self.unresolved}

    @property
    def warning(self) -> str | None:
        """The warning about placeholders that stay; None without any."""
        if not self.unresolved:
            return None
        why = self.trouble or "their rows have no such value, have changed since they were asked, or have one key twice"
        return f"{self.unresolved:,} placeholders in {', '.join(self._columns)} stay: {why}."

    def version(self, version: str) -> str:
        """Return the data version of the table. `version` is the version of the labels without values.

        It only contains the numbers of values, since a digest of few possible values can be guessed by trying all.
        """
        if not self.restored:
            return version
        counts = f"{self.restored}-of-{self.restored + self.unresolved}"
        return "-".join([version, "restored", counts, *self._columns])

    def _stream(self, labels: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        for batch in labels:
            yield from self._filled(pa.Table.from_batches([batch])).to_batches()
            # Free its memory before the next one is read.
            del batch

    def _filled(self, labels: pa.Table) -> pa.Table:
        places = np.flatnonzero(self._naming(labels).to_numpy(zero_copy_only=False))
        if not len(places):
            return labels
        if self._values is None:
            self._values = self._read()
        keys, values = self._values
        at = pc.index_in(labels[self._labeling.key].take(places), value_set=keys).to_pylist()
        own: list[dict[str, str]] = [json.loads(values[one] or "{}") for one in at]
        # The filled rows are appended to all rows, and take the places of the original ones.
        order = np.arange(len(labels))
        order[places] = len(labels) + np.arange(len(places))
        for name in self._columns:
            column = labels[name]
            filled = [
                self._with_values(value, of_row)
                for value, of_row in zip(column.take(places).to_pylist(), own, strict=True)
            ]
            both = pa.chunked_array([*column.chunks, pa.array(filled, column.type)], column.type)
            labels = labels.set_column(labels.schema.get_field_index(name), labels.schema.field(name), both.take(order))
        return labels

    def _naming(self, labels: pa.Table) -> pa.Array:
        """Return for each row whether one of the columns contains a placeholder."""
        named: Any = pa.array(np.zeros(len(labels), bool))
        for name in self._columns:
            column = labels[name]
            if pa.types.is_nested(column.type):
                texts = pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
            else:
                texts = column.combine_chunks()
            here = pc.fill_null(pc.match_substring_regex(texts, self._pattern), fill_value=False)
            named = pc.or_(named, here)
        return named

    def _with_values(self, value: Any, own: dict[str, str]) -> Any:
        def fill(text: str) -> str:
            if self._compiled.search(text) is None:
                return text
            # A value may have quotes, which JSON escapes.
            if (filled := change_json(text, fill)) is not None:
                return filled
            return self._compiled.sub(lambda found: self._value(found[0], own), text)

        return change_texts(value, fill)

    def _value(self, placeholder: str, own: dict[str, str]) -> str:
        if (value := own.get(placeholder)) is None:
            self.unresolved += 1
            return placeholder
        self.restored += 1
        return value

    def _read(self) -> tuple[pa.Array, list[str | None]]:
        """Return the keys of rows with placeholders in their answers, and their values as JSON: null if unknown."""
        keys, ids = pa.concat_arrays(self._keys), pa.concat_arrays(self._ids).to_pylist()
        values: list[str | None] = [None] * len(keys)
        ambiguous: set[int] = set()
        if self._labeling.mask is None or self._labeling.mask.is_stored:
            self.trouble = "the masker of their earlier definition was removed"
            return keys, values
        try:
            with self._rows() as rows:
                for place, request_id, found in self._found(rows, keys):
                    if request_id == ids[place]:
                        text = json.dumps(found, ensure_ascii=False)
                        if values[place] not in (None, text):
                            ambiguous.add(place)
                        values[place] = text
        except TransientError:
            raise
        # Rows come from the user's drivers and functions. The answers are paid, so an error must not lose them.
        except Exception as error:  # noqa: BLE001 - anything may come
            self.trouble = f"the rows cannot be read again: {_reason(error)}"
            return keys, [None] * len(keys)
        for place in ambiguous:
            values[place] = None
        return keys, values

    def _found(self, rows: Any, keys: pa.Array) -> Iterator[tuple[int, str | None, dict[str, str]]]:
        """Yield each row's place among the keys, the id of its present request, and its values."""
        # These modules load Jinja and more, and most datasets do not restore values.
        from dagster_llm_batch.files.prompt_files import files_of  # noqa: PLC0415
        from dagster_llm_batch.files.row_renderer import RowRenderer  # noqa: PLC0415
        from dagster_llm_batch.types import Request  # noqa: PLC0415

        labeling, mask = self._labeling, self._labeling.mask
        assert mask is not None
        files, renderer = files_of(labeling.prompt), None
        for batch in record_batches(rows, labeling.columns_read):
            if not batch.num_rows:
                continue
            places = pc.index_in(_column(batch, labeling.key).cast(keys.type), value_set=keys)
            wanted = batch.filter(pc.is_valid(places))
            if not wanted.num_rows:
                continue
            masked, _ = mask.apply(wanted)
            if renderer is None:
                renderer = RowRenderer(labeling, masked.schema, files)
            renderer.check(masked)
            asked = renderer.requests(masked, masked.column(labeling.key).to_pylist())
            requests = [request for _, some in asked for request in some]
            ids = [request.request_id if isinstance(request, Request) else None for request in requests]
            if self._shares is not None:
                # A near copy has the request of its leader in the labels.
                ids = self._shares.leaders_of(pa.array(ids, pa.string())).to_pylist()
            originals = wanted.select(sorted({*mask.columns})).to_pylist()
            for place, request_id, row in zip(places.drop_null().to_pylist(), ids, originals, strict=True):
                yield place, request_id, mask.values_of(row)


def _reason(error: Exception) -> str:
    if isinstance(error, LLMBatchError):
        return cell_text(str(error), limit=_LONGEST_REASON).rstrip(".")
    # A driver's message may contain values of rows, which must not be logged.
    return f"an error of the type {type(error).__name__}. Materialize the labels again when the rows can be read"


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    if name not in batch.schema.names:
        raise InputError(f"The rows have no key column '{name}' any more.")
    return batch.column(name)
