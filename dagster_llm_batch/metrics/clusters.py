"""Units: rows that are not independent of each other count as one in every interval and test.

Identical requests are sent once, and the reply goes to all of their rows: a hundred rows with one text are one answer,
right or wrong together. So the unit is the request (`llm_request_id`), unless the user names a column with another
unit, such as the customer or the document that rows belong to. A row without an id, or without a row in the candidate's
table, is its own unit.

Units are given as arrays with one id a row, null for a row of its own, and are numbered where they are counted. Figures
that are computed from rows need only their sums by unit (`Units`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.columns import column
from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["REQUEST", "Units", "cluster_ids", "number_units"]

REQUEST = "llm_request_id"
"""Column of a labeled table that names the unit, if the user names none."""

_ID = pa.large_string()


@dataclass(frozen=True, eq=False)
class Units:
    """Rows that were counted, by the unit that they belong to.

    - `counts`: rows of each entry, which are alike in all that is measured; or the sum of their weights.
    - `number`: the unit of each entry, from 0; -1 where each of its rows is a unit.
    """

    counts: NDArray[np.float64]
    number: NDArray[np.int64]

    @classmethod
    def of(cls, counts: pa.ChunkedArray | pa.Array, *ids: pa.ChunkedArray | pa.Array) -> Units:
        """Build them from the rows of each entry and, in one or more arrays, the ids of its unit. A row whose ids are
        all null is its own unit.
        """
        with evaluation_extra("Counting independent rows"):
            import numpy as np  # noqa: PLC0415  # optional dependency
        number = number_units(*ids)
        alone = np.logical_and.reduce([np.asarray(pc.is_null(values), dtype=bool) for values in ids])
        number[alone] = -1
        return cls(np.asarray(counts, dtype=np.float64), number)

    @cached_property
    def _alone(self) -> NDArray[np.bool_]:
        return self.number < 0

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of `values`, which are given for one row of each entry, by unit."""
        import numpy as np  # noqa: PLC0415  # as above

        shared = ~self._alone
        by_number = np.bincount(self.number[shared], values[shared] * self.counts[shared], self._n_shared)
        return np.concatenate([values[self._alone].astype(np.float64), by_number[self._there]])

    @cached_property
    def _n_shared(self) -> int:
        return int(self.number.max(initial=-1)) + 1

    @cached_property
    def _there(self) -> NDArray[np.bool_]:
        """Numbers that an entry has: the numbers of rows that were left out have no entry."""
        import numpy as np  # noqa: PLC0415  # as above

        return np.bincount(self.number[~self._alone], minlength=self._n_shared) > 0

    @cached_property
    def sizes(self) -> NDArray[np.float64]:
        """Rows of each unit, in the order of `sums`."""
        import numpy as np  # noqa: PLC0415  # as above

        return self.sums(np.ones(len(self.counts)))

    @cached_property
    def times(self) -> NDArray[np.float64]:
        """The number of units like each of `sums`: an entry of single rows stands for all of them."""
        import numpy as np  # noqa: PLC0415  # as above

        return np.concatenate([self.counts[self._alone], np.ones(int(self._there.sum()))])

    @property
    def n_units(self) -> int:
        return int(self.times.sum())

    def only(self, entries: NDArray[np.bool_]) -> Units:
        """Return some of the entries."""
        return Units(self.counts[entries], self.number[entries])


def cluster_ids(table: pa.Table, cluster: str | None, owner: str) -> pa.Array:
    """Return one id a row, as text; null for a row that is its own unit.

    Args:
        table: A labeled table, or any other with the column that `cluster` names.
        cluster: Column with the ids. None: REQUEST if the table has it, else every row is a unit.
        owner: The owner of the table, for errors.

    Raises:
        ConfigError: The column that `cluster` names is missing, or holds lists or structs.
    """
    if cluster is None and REQUEST not in table.column_names:
        return pa.nulls(len(table), _ID)
    name = cluster or REQUEST
    ids = column(table, name, owner)
    if pa.types.is_nested(ids.type) or pa.types.is_binary(ids.type) or pa.types.is_large_binary(ids.type):
        raise ConfigError(f"cluster='{name}' of {owner} is {ids.type}; it must be text, a number, a date or the like.")
    return ids.cast(_ID)


def number_units(*ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """Give the units numbers from 0, in any order: one number a row.

    Rows that share an id in any of the arrays are one unit, and so are rows that are linked through others. Two
    candidates whose prompts read other columns have other requests for the same rows, and a reply that either gave only
    once must not count twice.
    """
    with evaluation_extra("Counting independent rows"):
        import numpy as np  # noqa: PLC0415  # optional dependency
        from scipy.sparse import csr_array  # noqa: PLC0415  # optional dependency
        from scipy.sparse.csgraph import connected_components  # noqa: PLC0415  # optional dependency
    first, *others = map(_codes, ids)
    for codes in others:
        # A bipartite graph: ids of the one side and of the other, joined by the rows that have both.
        offset = int(first.max(initial=-1)) + 1
        size = offset + int(codes.max(initial=-1)) + 1
        graph = csr_array((np.ones(len(first)), (first, offset + codes)), shape=(size, size))
        _, component = connected_components(graph, directed=False)
        first = component[first].astype(np.int64)
    numbered: NDArray[np.int64] = np.unique(first, return_inverse=True)[1]
    return numbered


def _codes(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """Give the ids numbers from 0, and after them each row without one."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    whole = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    encoded = whole.dictionary_encode()
    codes: NDArray[np.int64] = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    alone = codes < 0
    codes[alone] = len(encoded.dictionary) + np.arange(int(alone.sum()))
    return codes
