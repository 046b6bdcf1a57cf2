"""The requests of a draft with near copies: all are written to one file, since only all rows decide which are sent."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import pyarrow as pa

from dagster_llm_batch.core.near_copies import NearCopies
from dagster_llm_batch.core.reuse import Near
from dagster_llm_batch.core.token_counts import InputCounts
from dagster_llm_batch.files.request_source import Spare

__all__ = ["NearRequests"]

# Stands for an unknown bound.
_UNKNOWN = -1


class NearRequests:
    """Gathers the texts and tokens of a draft's requests.

    Args:
        near: The settings.
        contexts: The other columns that the prompt reads.
        spare: The file of all requests to ask.
        new_file: Makes a temporary file.
    """

    def __init__(self, near: Near, contexts: Sequence[str], spare: Spare, new_file: Callable[[], IO[bytes]]) -> None:
        self.spare = spare
        self.copies = NearCopies(near.similarity, near.shingles, new_file)
        self._text = near.text
        self._contexts = contexts
        self._awaited: set[str] = set()
        self._expected = array("q")
        self._bounds = array("q")

    def add_requests(self, new: Sequence[str], tokens: InputCounts) -> None:
        """Add requests whose rows come next. `tokens` are of those that are written to the file, in their order."""
        self._awaited.update(new)
        self._expected.extend(tokens.expected)
        self._bounds.extend(_UNKNOWN if bound is None else bound for bound in tokens.bounds)

    def add_rows(self, rows: pa.RecordBatch, row_ids: Sequence[str | None]) -> None:
        """Add the texts of new requests. `row_ids` are the requests of the rows."""
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
        contexts = [repr(values).encode("utf-8", "surrogatepass") for values in zip(*others, strict=True)]
        self.copies.add([row_ids[at] or "" for at in places], texts, contexts or [b""] * len(places))

    def tokens(self) -> Iterator[tuple[int, int | None]]:
        """Yield the expected number of tokens of each request in the file, and the most; None: unknown."""
        for expected, bound in zip(self._expected, self._bounds, strict=True):
            yield expected, None if bound == _UNKNOWN else bound


def _text(value: object) -> str:
    return "" if value is None else str(value)
