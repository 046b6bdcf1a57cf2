"""Find rows of an earlier plan by their content, block by block, without rendering them.

    rows as they come ─▶ digest of each block (some hundred rows, and the prompt) ─▶ in the newest manifest? ─▶ its
                                                                                     request_ids are theirs
    of these, rows that are to be asked all the same ─▶ rendered

The digests are in the manifest's metadata, next to the request_ids that they stand for. The two are written together,
and an erasure, which removes rows from a manifest, removes all blocks. A manifest without blocks, or a lost or damaged
one, counts as if nothing were planned before: then all rows are rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from dagster_llm_batch.core.identity import RowBlocks
from dagster_llm_batch.core.token_counts import InputCounts
from dagster_llm_batch.files.request_files import BLOCKS, Lines, facts_in
from dagster_llm_batch.files.request_source import RenderedRequests
from dagster_llm_batch.files.row_renderer import RowRenderer
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Request

__all__ = ["EarlierRows"]

_ID = "llm_request_id"

_RequestsOf = Callable[[Sequence[Request]], RenderedRequests]


class _Place(NamedTuple):
    """The position of a block in a manifest, and the block's sum in RowsDigest."""

    start: int
    rows: int
    total: int


class EarlierRows:
    """The rows of one manifest. It is read once, forward: a block before one that was found is not found again."""

    def __init__(self, payloads: PayloadStore, path: str, places: Mapping[bytes, _Place]) -> None:
        self._places = places
        self._batches = payloads.iter_batches(path, columns=[_ID])
        self._held: pa.Array = pa.array([], pa.string())
        self._start = 0

    @classmethod
    def of(cls, payloads: PayloadStore, path: str) -> EarlierRows | None:
        """Return the rows of the manifest at `path`; None if they cannot be determined."""
        places, start = {}, 0
        try:
            for digest, rows, total in RowBlocks.read(facts_in(payloads, path, [BLOCKS]).get(BLOCKS, "")):
                places[digest] = _Place(start, rows, total)
                start += rows
        except ValueError:
            return None
        return cls(payloads, path, places) if places else None

    def find(self, digest: bytes, rows: int) -> EarlierBlock | None:
        """Return the block of `rows` rows with this digest; None if it is missing."""
        place = self._places.get(digest)
        if place is None or place.rows != rows or place.start < self._start:
            return None
        try:
            ids = self._ids(place)
        # The manifest was pruned just now, or the store does not answer. Earlier rows are optional.
        except (OSError, pa.ArrowException):
            ids = None
        if ids is None:
            self._places = {}
            return None
        return EarlierBlock(ids, place.total)

    def _ids(self, place: _Place) -> list[str | None] | None:
        """Return the request_ids of a block, None for a row that is not sent; None if the block is missing."""
        skip = place.start - self._start
        while len(self._held) < skip + place.rows:
            batch = next(self._batches, None)
            if batch is None:
                return None
            passed = min(skip, len(self._held))
            self._held = pa.concat_arrays([self._held.slice(passed), batch.column(0)])
            self._start += passed
            skip -= passed
        ids: list[str | None] = self._held.slice(skip, place.rows).to_pylist()
        return ids

    def close(self) -> None:
        """Let go of the manifest. Idempotent."""
        self._places = {}
        self._batches.close()  # type: ignore[attr-defined]  # a generator


@dataclass(frozen=True)
class EarlierBlock:
    """Consecutive rows that came before: their request_ids, None for a row that is not sent, and their sum."""

    row_ids: Sequence[str | None]
    total: int

    def chunks(
        self, renderer: RowRenderer, rows: pa.RecordBatch, keys: Sequence[Any], requests_of: _RequestsOf
    ) -> Iterator[tuple[Sequence[str | None], RenderedRequests]]:
        """Yield the rows' request_ids with their requests, as many at once as may be in memory."""

        def render(places: Sequence[int]) -> RenderedRequests:
            asked = rows.take(pa.array(places, pa.int64()))
            chunks = renderer.requests(asked, [keys[at] for at in places])
            found = (request for _, requests in chunks for request in requests if isinstance(request, Request))
            # The manifest names a row's request by the id that it had: a template that rolls dice would make another.
            named = zip(found, (self.row_ids[at] for at in places), strict=True)
            return requests_of([request._replace(request_id=str(request_id)) for request, request_id in named])

        step = renderer.rows_at_once(rows)
        for start in range(0, len(self.row_ids), step):
            row_ids = self.row_ids[start : start + step]
            sent = {start + at: row_id for at, row_id in enumerate(row_ids) if row_id is not None}
            yield row_ids, _KnownRequests([*sent.values()], [*sent], render)


@dataclass(frozen=True)
class _KnownRequests:
    """Requests of rows, by their places, whose request_ids are known. Those that are looked into are rendered then."""

    request_ids: Sequence[str]
    places: Sequence[int]
    render: Callable[[Sequence[int]], RenderedRequests]

    def take(self, places: Sequence[int]) -> _KnownRequests:
        """See RenderedRequests.take."""
        return _KnownRequests([self.request_ids[at] for at in places], [self.places[at] for at in places], self.render)

    @property
    def tokens(self) -> InputCounts:
        """See RenderedRequests.tokens."""
        return self._rendered.tokens

    def lines(self, model: int, nonce: str) -> Lines:
        """See RenderedRequests.lines."""
        return self._rendered.lines(model, nonce)

    @cached_property
    def _rendered(self) -> RenderedRequests:
        return self.render(self.places)
