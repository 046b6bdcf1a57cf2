"""Sources of the requests of a draft: rows that are rendered here or by workers, and rows that were rendered before.

Types alone. `request_writer.py` has the source of this process, `request_parts.py` the source of workers, and
`earlier_rows.py` finds rows of an earlier plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from dagster_llm_batch.core.identity import RowBlocks, RowsDigest
from dagster_llm_batch.core.token_counts import InputCounts
from dagster_llm_batch.files.request_files import Lines
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.types import Lane

if TYPE_CHECKING:
    from dagster_llm_batch.files.row_renderer import RowRenderer

__all__ = ["RenderedBatch", "RenderedChunk", "RenderedRequests", "RequestSource", "Spare"]


@dataclass(frozen=True)
class Spare:
    """A file with all requests encoded for a fallback model, in case it is asked later."""

    codec: Codec
    path: str
    nonce: str


class RenderedRequests(Protocol):
    """Requests of consecutive rows, rendered here or by a worker. Each sequence is in the order of the rows."""

    @property
    def request_ids(self) -> Sequence[str]: ...

    @property
    def tokens(self) -> InputCounts:
        """Their input tokens for the labeling's own model."""
        ...

    def take(self, places: Sequence[int]) -> RenderedRequests:
        """Return the requests at these places."""
        ...

    def lines(self, model: int, nonce: str) -> Lines:
        """Return their lines for one of the labeling's models, by its place in `labeling.models`.

        `nonce` is the one that most of the lines will be written with.
        """
        ...


@dataclass(frozen=True)
class RenderedChunk:
    """Requests of some rows, with the keys and lanes of these.

    `row_ids` are the request_ids of all rows, None for one that is not sent. `unsent` has the reason of each row whose
    file cannot be read, by its place in `row_ids`.
    """

    row_ids: Sequence[str | None]
    requests: RenderedRequests
    keys: Sequence[Any]
    lanes: Sequence[Lane]
    unsent: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RenderedBatch:
    """Consecutive rows with their keys. `chunks` is consumed once."""

    renderer: RowRenderer
    rows: pa.RecordBatch
    keys: Sequence[Any]
    chunks: Iterator[RenderedChunk]


class RequestSource(Protocol):
    """Renders the rows of one draft and writes its request files.

    1. `batches` yields every row once, in the order in which the rows are read, and at least one batch.
    2. `writer` opens a file for the output of `Lines.with_nonce` for this source's lines. It need not write anything
      yet.
    3. After `write_files` each file that `writer` opened holds its lines.
    """

    @property
    def digest(self) -> RowsDigest:
        """The digest of the rows that `batches` has yielded."""
        ...

    @property
    def blocks(self) -> RowBlocks:
        """The same rows in blocks, by which a later plan finds them; empty if it must render them."""
        ...

    @property
    def erased_rows(self) -> int:
        """Number of rows left out so far since they were erased."""
        ...

    @property
    def masked(self) -> Mapping[str, int]:
        """The number of values that placeholders have replaced so far, by kind."""
        ...

    def batches(self, rows: Any) -> Iterator[RenderedBatch]:
        """Render all rows but those that were erased. Raises InputError or ConfigError."""
        ...

    def writer(self, path: str) -> AbstractContextManager[Any]:
        """Open a request file."""
        ...

    def write_files(self, shards: Sequence[Shard], spares: Sequence[Spare]) -> Mapping[str, str]:
        """Write the pending files of `writer`; return the digest of each shard's file that this wrote, by path."""
        ...

    def close(self) -> None:
        """Remove the files that are needed only while the draft is made. Idempotent."""
        ...
