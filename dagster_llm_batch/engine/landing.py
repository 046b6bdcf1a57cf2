"""What a settled submission says: the outcome of each of its requests, its costs, its labels. Sends nothing.

A submission speaks through its own shards and those of the submissions whose answers it reuses.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from decimal import Decimal

import pyarrow as pa

from dagster_llm_batch.core.labeling import Labeled, label
from dagster_llm_batch.engine.collecting import Collector, sum_costs
from dagster_llm_batch.engine.definition import Labeling
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.storage.records import Shard, Submission
from dagster_llm_batch.types import Outcome, PriceBasis

__all__ = ["Landing"]

_ID = "llm_request_id"
_SPOKEN = [_ID, "llm_outcome"]


@dataclass(frozen=True)
class Landing:
    """Lands one submission of one labeling."""

    labeling: Labeling
    submission: Submission
    ledger: Ledger
    payloads: PayloadStore
    collector: Collector

    def settle(self) -> Submission:
        """Tell the ledger what it adds up to. Costs are those of its own batches, not of reused answers."""
        own = self.ledger.shards(self.submission.submission_id)
        realtime: Decimal | None = Decimal(0)
        for table in self.collector.results(own, ["llm_realtime_usd"]):
            amounts = table["llm_realtime_usd"].to_pylist()
            known = [amount for amount in amounts if amount is not None]
            realtime = None if realtime is None or len(known) < len(amounts) else realtime + sum(known, Decimal(0))
        return self.ledger.settle(
            self.submission.submission_id,
            outcomes=self._outcomes(),
            cost_usd=sum_costs(own),
            realtime_usd=realtime,
            price_basis=self.submission.price_basis or PriceBasis.UNKNOWN,
        )

    def _outcomes(self) -> dict[str, int]:
        """How many requests ended how: by their newest success, else their newest word."""
        last: dict[str, str] = {}
        for table in self.collector.results(self._sources(), _SPOKEN):
            for request_id, outcome in zip(*(column.to_pylist() for column in table.columns), strict=True):
                if last.get(request_id) != Outcome.SUCCEEDED.value:
                    last[request_id] = outcome
        asked = set(self._manifest([_ID])[_ID].to_pylist())
        return dict(Counter(last[request_id] for request_id in asked))

    def labels(self, *, run_id: str, reread: bool) -> Labeled:
        """The labeled rows and the rejects. Results read for other columns are read again, and all with `reread`."""
        return label(
            self._manifest(),
            [self._table(shard, reread=reread) for shard in self._sources()],
            self.labeling.reader.schema,
            prompt_version=self.labeling.prompt_version,
            run_id=run_id,
        )

    def _table(self, shard: Shard, *, reread: bool) -> pa.Table:
        if not reread:
            [table] = self.collector.results([shard])
            if table.schema.equals(self.collector.schema):
                return table
        assert shard.raw_path is not None  # stored before the results were
        self.collector.read(shard, shard.raw_path)
        return self.collector.results([shard])[0]

    def _sources(self) -> list[Shard]:
        """The collected shards that hold this submission's answers, oldest first."""
        ids = (*reversed(self.submission.reused_from), self.submission.submission_id)
        return [shard for one in ids for shard in self.ledger.shards(one) if shard.results_path]

    def _manifest(self, columns: list[str] | None = None) -> pa.Table:
        assert self.submission.manifest_path is not None  # every plan writes one
        return self.payloads.read_table(self.submission.manifest_path, columns)
