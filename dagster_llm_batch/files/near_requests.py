"""The requests of a draft with near copies, and the texts by which they are grouped."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.near_copies import NearCopies, NearVectors
from dagster_llm_batch.core.reuse import Near
from dagster_llm_batch.core.token_counts import InputCounts
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.files.audited_requests import AuditedRequests
from dagster_llm_batch.files.request_source import Spare

__all__ = ["NearRequests"]


class NearRequests(AuditedRequests):
    """Gathers the texts and tokens of a draft's requests.

    Args:
        near: The settings.
        contexts: The other columns that the prompt reads.
        spare: The file of all requests to ask.
        new_file: Makes a temporary file.
        placeholders: The pattern of the placeholders in masked texts; None without a mask. Near copies have the same
            ones in the same order, so that an answer means the same in each: [EMAIL_2] is the second address.
    """

    def __init__(
        self,
        near: Near,
        contexts: Sequence[str],
        spare: Spare,
        new_file: Callable[[], IO[bytes]],
        placeholders: str | None = None,
    ) -> None:
        super().__init__(spare)
        self._placeholders = None if placeholders is None else re.compile(placeholders)
        self._vectors = near.vectors
        self.copies: NearCopies | NearVectors = (
            NearCopies(near.similarity, near.shingles, new_file)
            if near.vectors is None
            else NearVectors(near.similarity, new_file)
        )
        self._text = near.text
        self._contexts = contexts
        self._awaited: set[str] = set()

    def add_requests(self, new: Sequence[str], tokens: InputCounts) -> None:
        """See AuditedRequests.add_requests."""
        super().add_requests(new, tokens)
        self._awaited.update(new)

    def add_rows(self, rows: pa.RecordBatch, row_ids: Sequence[str | None]) -> None:
        """Add the texts or vectors of new requests. `row_ids` are the requests of the rows.

        Raises InputError if the rows lack the column of vectors, or if it is of another type.
        """
        if self._vectors is not None:
            _check_vectors(rows, self._vectors)
        places = []
        for at, request_id in enumerate(row_ids):
            if request_id in self._awaited:
                self._awaited.discard(request_id)
                places.append(at)
        if not places:
            return
        chosen = rows.take(pa.array(places, pa.int64()))
        texts = [_text(value) for value in chosen.column(self._text).to_pylist()]
        others = [chosen.column(name).to_pylist() for name in self._contexts]
        if self._placeholders is not None:
            others.append([self._placeholders.findall(text) for text in texts])
        contexts = [repr(values).encode("utf-8", "surrogatepass") for values in zip(*others, strict=True)]
        ids, contexts = [row_ids[at] or "" for at in places], contexts or [b""] * len(places)
        if isinstance(self.copies, NearVectors):
            self.copies.add(ids, *_numbers(chosen.column(self._vectors)), contexts)
        else:
            self.copies.add(ids, texts, contexts)

    def close(self) -> None:
        """See AuditedRequests.close."""
        self.copies.close()


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _check_vectors(rows: pa.RecordBatch, column: str) -> None:
    if column not in rows.schema.names:
        raise InputError(
            f"Near.vectors names the column {column!r}, which the rows lack. Columns of the rows: "
            f"{', '.join(rows.schema.names)}."
        )
    kind = rows.schema.field(column).type
    if not (_is_list(kind) and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))):
        raise InputError(
            f"Near.vectors names the column {column!r}, whose type is {kind}. It takes a list of numbers for each row. "
            "Convert it, or leave vectors out: then the texts are compared."
        )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _numbers(vectors: pa.Array) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the numbers of the vectors, one vector after the other, and the length of each: 0 for null."""
    # Whole numbers may be larger than float32 has exactly.
    lists = vectors.cast(pa.large_list(pa.float32()), safe=False)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    # A null in a vector becomes NaN, so the vector is not compared.
    return pc.list_flatten(lists).to_numpy(zero_copy_only=False), lengths
