"""From result lines to a results table with exactly one row for each request of a shard, whatever the provider sent.

Unreadable, foreign and repeated lines are counted, never fatal. A request that no line names gets the outcome that the
batch's own end explains: expired, canceled, errored, or missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from dagster_llm_batch.core.identity import is_padding, request_id_of
from dagster_llm_batch.core.pricing import Tariff
from dagster_llm_batch.core.response import Reader, storable
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.types import BatchStatus, Lane, Outcome, Price, PriceBasis, ResponseKind, Result

__all__ = ["MONEY", "PICODOLLAR", "RESULT_SCHEMA", "Reconciler", "ShardFacts", "Tally"]

MONEY = pa.decimal128(20, 12)
PICODOLLAR = Decimal("1e-12")

RESULT_SCHEMA = pa.schema(
    [
        ("llm_request_id", pa.string()),
        ("llm_outcome", pa.string()),
        ("llm_reason", pa.string()),
        ("llm_retryable", pa.bool_()),
        ("llm_reply", pa.string()),
        ("llm_finish_reason", pa.string()),
        ("llm_model", pa.string()),
        ("llm_input_tokens", pa.int64()),
        ("llm_output_tokens", pa.int64()),
        ("llm_cache_read_tokens", pa.int64()),
        ("llm_cost_usd", MONEY),
        ("llm_realtime_usd", MONEY),
        ("llm_price_basis", pa.string()),
        ("llm_provider", pa.string()),
        ("llm_batch_id", pa.string()),
        ("llm_attempt", pa.int32()),
        ("llm_lane", pa.string()),
        ("llm_completed_at", pa.timestamp("us", "UTC")),
    ]
)
"""One row per request; the columns of the response follow. `llm_reply` is kept for what is not SUCCEEDED."""

_CHUNK = 4_096

_LEFT_OUT: Mapping[BatchStatus, tuple[Outcome, str]] = {
    BatchStatus.ENDED: (Outcome.MISSING, "the batch ended and no result names this request"),
    BatchStatus.EXPIRED: (Outcome.EXPIRED, "the batch expired before this request ran"),
    BatchStatus.CANCELED: (Outcome.CANCELED, "the batch was canceled before this request ran"),
    BatchStatus.FAILED: (Outcome.ERRORED, "the batch failed as a whole"),
}


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What all results of a shard share. `reason` and `retryable` speak of a batch that failed as a whole."""

    nonce: str
    status: BatchStatus  # how the batch ended
    provider: str
    batch_id: str | None
    attempt: int
    ended_at: datetime | None
    lane: Lane = Lane.BATCH
    reason: str | None = None
    retryable: bool = False


@dataclass
class Tally:
    """What a shard's results cost together (None: not known), and the lines that are no result of it."""

    cost_usd: Decimal | None = Decimal(0)
    unreadable: int = 0
    foreign: int = 0
    duplicates: int = 0

    @property
    def unexpected(self) -> dict[str, int]:
        counts = {"unreadable": self.unreadable, "foreign": self.foreign, "duplicates": self.duplicates}
        return {name: count for name, count in counts.items() if count}


class _Known(NamedTuple):
    request_id: str
    result: Result


class Reconciler:
    """Turns one shard's raw lines into its results. Use once; `tally` is complete when `tables` is exhausted."""

    def __init__(
        self, codec: Codec, reader: Reader, tariff: Tariff, facts: ShardFacts, expected: Iterable[str]
    ) -> None:
        self.tally = Tally()
        self._codec = codec
        self._reader = reader
        self._tariff = tariff
        self._facts = facts
        self._open = dict.fromkeys(expected)  # in the order of the request file
        self._answered: set[str] = set()

    def tables(self, lines: Iterable[bytes]) -> Iterator[pa.Table]:
        """The results in tables of a few thousand rows: first the lines in their order, then the requests left out."""
        yield from self._tables(self._known(lines))
        outcome, why = _LEFT_OUT[self._facts.status]
        left_out = Result(
            custom_id=None,
            outcome=outcome,
            reason=self._facts.reason or why,
            retryable=outcome is not Outcome.ERRORED or self._facts.retryable,
        )
        yield from self._tables(_Known(request_id, left_out) for request_id in list(self._open))

    def _known(self, lines: Iterable[bytes]) -> Iterator[_Known]:
        for line in lines:
            if not line.strip():
                continue
            result = self._codec.decode(line)
            request_id = request_id_of(result.custom_id, self._facts.nonce)
            if result.custom_id is None:
                self.tally.unreadable += 1
            elif request_id is not None and is_padding(request_id):
                self._add([self._price(result)])
            elif request_id in self._answered:
                self.tally.duplicates += 1
            elif request_id is None or request_id not in self._open:
                self.tally.foreign += 1
            else:
                del self._open[request_id]
                self._answered.add(request_id)
                yield _Known(request_id, result)

    def _tables(self, known: Iterator[_Known]) -> Iterator[pa.Table]:
        while chunk := list(islice(known, _CHUNK)):
            yield self._table(chunk)

    def _table(self, chunk: list[_Known]) -> pa.Table:
        results = [one.result for one in chunk]
        came = [result.outcome is Outcome.SUCCEEDED for result in results]
        reading = self._reader.read(
            [result.text if ok else None for result, ok in zip(results, came, strict=True)],
            [result.embedding if ok else None for result, ok in zip(results, came, strict=True)],
        )
        results = [
            self._judged(result, reason) if ok else result
            for result, reason, ok in zip(results, reading.reasons, came, strict=True)
        ]
        prices = [self._price(result) for result in results]
        self._add(prices)
        fixed = self._fixed_columns([one.request_id for one in chunk], results, prices)
        return pa.table([*fixed, *reading.columns.columns], schema=pa.schema([*RESULT_SCHEMA, *self._reader.fields]))

    def _judged(self, result: Result, reason: str | None) -> Result:
        """Whether a reply that came is a success, now that it was read."""
        if reason is None and self._is_empty(result):
            reason = "the reply is empty"
        if reason is None:
            return result
        if result.finish_reason in ("length", "max_output_tokens", "max_tokens", "model_context_window_exceeded"):
            reason = f"the reply was cut at its token limit ({reason})"
        return result._replace(outcome=Outcome.INVALID, reason=reason, retryable=True)

    def _is_empty(self, result: Result) -> bool:
        if self._reader.format.kind is ResponseKind.EMBEDDING:
            return not result.embedding
        return not result.text

    def _price(self, result: Result) -> Price:
        """A reply was paid for: where it does not say how many tokens it took, nobody knows its cost."""
        price = self._tariff.price(result.usage)
        replied = result.outcome in (Outcome.SUCCEEDED, Outcome.INVALID)
        if replied and result.usage is None and price.basis is not PriceBasis.FREE:
            return Price(None, None, price.basis)
        return price

    def _add(self, prices: list[Price]) -> None:
        tally = self.tally
        for price in prices:
            if price.cost_usd is None or tally.cost_usd is None:
                tally.cost_usd = None
            else:
                tally.cost_usd += price.cost_usd

    def _fixed_columns(self, request_ids: list[str], results: list[Result], prices: list[Price]) -> list[pa.Array]:
        facts, size = self._facts, len(results)

        def tokens(name: str) -> list[int | None]:
            return [None if r.usage is None else getattr(r.usage, name) for r in results]

        def texts(name: str) -> list[str | None]:
            return [None if (text := getattr(r, name)) is None else storable(text) for r in results]

        def same(value: Any) -> list[Any]:
            return [value] * size

        columns: list[list[Any]] = [
            request_ids,
            [r.outcome.value for r in results],
            texts("reason"),
            [r.retryable for r in results],
            [
                None if r.outcome is Outcome.SUCCEEDED else reply
                for r, reply in zip(results, texts("text"), strict=True)
            ],
            texts("finish_reason"),
            texts("model"),
            tokens("input_tokens"),
            tokens("output_tokens"),
            tokens("cache_read_tokens"),
            [_money(price.cost_usd) for price in prices],
            [_money(price.realtime_usd) for price in prices],
            same(self._tariff.basis.value),
            same(facts.provider),
            same(facts.batch_id),
            same(facts.attempt),
            same(facts.lane.value),
            same(facts.ended_at),
        ]
        return [pa.array(values, column.type) for values, column in zip(columns, RESULT_SCHEMA, strict=True)]


def _money(amount: Decimal | None) -> Decimal | None:
    return None if amount is None else amount.quantize(PICODOLLAR)
