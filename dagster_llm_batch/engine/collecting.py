"""Shards come home: raw lines into the store, then read into results, then the ledger's word. All can be repeated.

ended ──fetch──▶ raw file ──Reconciler──▶ results file ──▶ collected
                                             └─ what can succeed when sent again ─▶ the next wave's request files
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.identity import custom_id, custom_id_pattern
from dagster_llm_batch.core.pricing import Tariff
from dagster_llm_batch.core.results import RESULT_SCHEMA, Reconciler, ShardFacts, Tally
from dagster_llm_batch.engine.definition import Labeling
from dagster_llm_batch.engine.planning import RAW, RESULTS, ShardFiles, beside
from dagster_llm_batch.errors import CredentialsError, LLMBatchError, RefusedError, TransientError
from dagster_llm_batch.protocols import Codec, Provider
from dagster_llm_batch.states import Move
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.storage.records import Shard
from dagster_llm_batch.types import BatchStatus, Outcome

__all__ = ["Again", "Collector", "sum_costs"]

_FETCHES = 3
_LONGEST_PAUSE_SECONDS = 30.0
_RETRIED = [o.value for o in (Outcome.ERRORED, Outcome.EXPIRED, Outcome.CANCELED, Outcome.MISSING, Outcome.INVALID)]


class Again(NamedTuple):
    """Requests of one shard that a next wave can answer."""

    shard: Shard
    request_ids: frozenset[str]


class Collector:
    """Collects shards of one labeling."""

    def __init__(
        self,
        labeling: Labeling,
        provider: Provider,
        codec: Codec,
        tariff: Tariff,
        ledger: Ledger,
        payloads: PayloadStore,
        clock: Callable[[], datetime],
        sleep: Callable[[float], None],
    ) -> None:
        self._labeling = labeling
        self._provider = provider
        self._codec = codec
        self._tariff = tariff
        self._ledger = ledger
        self._payloads = payloads
        self._clock = clock
        self._sleep = sleep
        self.schema = pa.schema([*RESULT_SCHEMA, *labeling.reader.fields])

    def archive(self, shard: Shard) -> str:
        """Store the raw result lines of an ended shard as they came; returns their path. Nothing to do if it exists.

        A download that broke off starts over. One that ends early without an error shows in the provider's own count.
        """
        path = beside(shard, RAW)
        if self._payloads.exists(path):
            return path
        for last in [False] * (_FETCHES - 1) + [True]:
            try:
                with self._payloads.writer(path) as raw:
                    for line in self._lines(shard):
                        raw.write(line)
                    if not last and raw.lines < (shard.done or 0):
                        msg = f"{raw.lines} result lines came of {shard.done} that batch {shard.batch_id} reports"
                        raise TransientError(msg)
            except TransientError as error:
                if last:
                    raise
                self._ledger.note(shard.submission_id, "fetch_again", f"{shard.shard_id}: {error}")
                self._sleep(min(error.retry_after_seconds or 1.0, _LONGEST_PAUSE_SECONDS))
            else:
                break
        return path

    def _lines(self, shard: Shard) -> Iterator[bytes]:
        """The lines as the provider gives them. A batch that failed may be gone, with nothing of it to fetch."""
        if shard.batch_id is None:
            return
        try:
            yield from self._provider.fetch(shard.batch_id)
        except CredentialsError:
            raise
        except RefusedError:
            if shard.status is not BatchStatus.FAILED:
                raise

    def collect(self, shard: Shard) -> Shard:
        """Bring an ended shard to `collected`."""
        raw_path = self.archive(shard)
        results_path, tally = self.read(shard, raw_path)
        if tally.unexpected:
            counts = ", ".join(f"{count} {name}" for name, count in tally.unexpected.items())
            self._ledger.note(shard.submission_id, "unexpected_lines", f"{shard.shard_id}: {counts}")
        return self._ledger.move(
            shard.shard_id,
            Move.COLLECTED,
            raw_path=raw_path,
            results_path=results_path,
            cost_usd=tally.cost_usd,
            collected_at=self._clock(),
        )

    def read(self, shard: Shard, raw_path: str) -> tuple[str, Tally]:
        """Read raw lines into the shard's results file, again if need be; returns its path and what it adds up to."""
        facts = ShardFacts(
            nonce=shard.nonce,
            status=shard.status or BatchStatus.ENDED,
            provider=self._labeling.provider,
            batch_id=shard.batch_id,
            attempt=shard.wave,
            ended_at=shard.ended_at,
            reason=shard.reason,
            retryable=shard.retryable,
        )
        expected = [request_id for request_id, _ in self._requests(shard)]
        reconciler = Reconciler(self._codec, self._labeling.reader, self._tariff, facts, expected)
        path = beside(shard, RESULTS)
        with self._payloads.table_writer(path, self.schema) as out:
            for table in reconciler.tables(self._payloads.lines(raw_path)):
                out.write_table(table)
        return path, reconciler.tally

    def _requests(self, shard: Shard) -> Iterator[tuple[str, bytes]]:
        pattern = custom_id_pattern(shard.nonce)
        for line in self._payloads.lines(shard.path):
            found = pattern.search(line)
            if found is None:
                msg = (
                    f"A line of {shard.path} has no custom_id of its shard: the file was changed after it was planned."
                )
                raise LLMBatchError(msg)
            yield found[1].decode(), line

    def results(self, shards: list[Shard], columns: list[str] | None = None) -> list[pa.Table]:
        """The results of collected shards, oldest wave first."""
        ordered = sorted(shards, key=lambda shard: (shard.wave, shard.number))
        return [self._payloads.read_table(s.results_path, columns) for s in ordered if s.results_path]

    def again(self, wave: list[Shard]) -> list[Again]:
        """What a next wave can answer of this, the latest, wave.

        A batch that never ran since the provider's queue was full does not count as sent, as long as others ran.
        """
        retry = self._labeling.retry
        number = wave[0].wave if wave else 1
        kinds = [kind for kind in _RETRIED if kind != Outcome.INVALID.value or number < retry.invalid_waves]
        some_ran = any(shard.status is not BatchStatus.FAILED for shard in wave)
        found = []
        for shard in wave:
            never_ran = some_ran and shard.status is BatchStatus.FAILED and shard.retryable
            if number >= retry.max_waves and not never_ran:
                continue
            [table] = self.results([shard], ["llm_request_id", "llm_outcome", "llm_retryable"])
            wanted = pc.and_(table["llm_retryable"], pc.is_in(table["llm_outcome"], pa.array(kinds)))
            if ids := table.filter(wanted)["llm_request_id"].to_pylist():
                found.append(Again(shard, frozenset(ids)))
        return found

    def next_wave(self, again: list[Again], files: ShardFiles) -> list[Shard]:
        """Write the request files of the next wave: the same lines under new custom_ids."""
        for shard, wanted in again:
            share = None if shard.estimated_usd is None else shard.estimated_usd / max(shard.requests, 1)
            for request_id, line in self._requests(shard):
                if request_id in wanted:
                    renamed = partial(_renamed, line, custom_id(shard.nonce, request_id), request_id)
                    files.add(renamed, request_id, partial(_same, share))
        return files.close()


def _renamed(line: bytes, old: str, request_id: str, nonce: str) -> bytes:
    return line.replace(old.encode(), custom_id(nonce, request_id).encode(), 1)


def _same(cost: Decimal | None, _line_bytes: int) -> Decimal | None:
    return cost


def sum_costs(shards: list[Shard]) -> Decimal | None:
    """What collected shards cost together; None where one is not known."""
    costs = [shard.cost_usd for shard in shards]
    return None if any(cost is None for cost in costs) else sum((c for c in costs if c is not None), Decimal(0))
