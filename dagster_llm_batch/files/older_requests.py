"""The requests of a draft whose rows may keep older labels, with the requests that the older prompt makes of the rows.

A row has an older label only if the older prompt makes the same request of it as before. So a row whose content has
changed since is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.keys import keys_of
from dagster_llm_batch.core.row_files import NO_FILES
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.files.audited_requests import AuditedRequests
from dagster_llm_batch.files.request_source import Spare
from dagster_llm_batch.files.row_renderer import RowRenderer
from dagster_llm_batch.types import Request

__all__ = ["OlderRequests"]

_SCHEMA = pa.schema([("llm_request_id", pa.string()), ("leader", pa.string())])


class OlderRequests(AuditedRequests):
    """Gathers the older requests of a draft's rows.

    Args:
        older: The older definition; None if the older labels of this definition are known already.
        spare: The file of all requests to ask.
    """

    def __init__(self, older: Labeling | None, spare: Spare) -> None:
        super().__init__(spare)
        self._older = None if older is None else replace(older, keep=())
        self._renderer: RowRenderer | None = None
        self._pairs: list[pa.Table] = []

    def add_rows(self, rows: pa.RecordBatch, row_ids: Sequence[str | None]) -> None:
        """See AuditedRequests.add_rows. Raises ConfigError if the rows lack a column that the older prompt reads."""
        if self._older is None:
            return
        if self._renderer is None:
            self._renderer = self._begin(self._older, rows.schema)
        keys, older = keys_of(rows, self._older.key), list[str | None]()
        for _, requests in self._renderer.requests(rows, keys):
            older += [one.request_id if isinstance(one, Request) else None for one in requests]
        table = pa.table([pa.array(row_ids, pa.string()), pa.array(older, pa.string())], schema=_SCHEMA)
        self._pairs.append(table.filter(table["llm_request_id"].is_valid()))

    def _begin(self, older: Labeling, columns: pa.Schema) -> RowRenderer:
        if lacking := sorted((older.prompt.columns() or frozenset()) - set(columns.names)):
            raise ConfigError(
                f"Reuse(relabel=…) compares rows with the older prompt, which reads {', '.join(lacking)}, and the rows "
                f"do not have that any more. Columns of the rows: {', '.join(columns.names)}. Nothing was sent. Keep "
                "the column in the rows until the older labels are compared, or leave relabel out: then all rows are "
                "asked."
            )
        return RowRenderer(older, columns, NO_FILES)

    def close(self) -> None:
        """See AuditedRequests.close."""
        self._pairs = []

    def pairs(self) -> pa.Table:
        """Return the requests whose rows all have one and the same older request, with that, and their rows."""
        both = pa.concat_tables(self._pairs or [_SCHEMA.empty_table()]).combine_chunks()
        counts = both.group_by(_SCHEMA.names, use_threads=False).aggregate([([], "count_all")])
        kinds = counts.group_by("llm_request_id", use_threads=False).aggregate([([], "count_all")])
        alone = kinds.filter(pc.equal(kinds["count_all"], 1))["llm_request_id"]
        are_one = pc.is_in(counts["llm_request_id"], alone.combine_chunks())
        found = counts.filter(pc.and_(are_one, counts["leader"].is_valid()))
        return found.rename_columns([*_SCHEMA.names, "rows"]).combine_chunks()
