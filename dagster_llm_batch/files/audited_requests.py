"""The requests of a draft with an audit: all are written to one file, since only all rows decide which are sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Sequence

import pyarrow as pa

from dagster_llm_batch.core.token_counts import InputCounts
from dagster_llm_batch.files.request_source import Spare

__all__ = ["AuditedRequests"]

# Stands for an unknown bound.
_UNKNOWN = -1


class AuditedRequests(ABC):
    """Gathers the tokens of a draft's requests, and what an audit needs of the rows.

    `spare` is the file of all requests to ask.
    """

    def __init__(self, spare: Spare) -> None:
        self.spare = spare
        self._expected = array("q")
        self._bounds = array("q")

    def add_requests(self, new: Sequence[str], tokens: InputCounts) -> None:  # noqa: ARG002 - some audits need them
        """Add requests whose rows come next. `tokens` are of those that are written to the file, in their order."""
        self._expected.extend(tokens.expected)
        self._bounds.extend(_UNKNOWN if bound is None else bound for bound in tokens.bounds)

    @abstractmethod
    def add_rows(self, rows: pa.RecordBatch, row_ids: Sequence[str | None]) -> None:
        """Add rows, after their requests. `row_ids` are the requests of the rows; None for a row that is not sent."""

    def tokens(self) -> Iterator[tuple[int, int | None]]:
        """Yield the expected number of tokens of each request in the file, and the most; None: unknown."""
        for expected, bound in zip(self._expected, self._bounds, strict=True):
            yield expected, None if bound == _UNKNOWN else bound

    @abstractmethod
    def close(self) -> None:
        """Release all but the tokens. Idempotent."""
