"""From result lines to a results table with exactly one row for each request of a shard, whatever the provider sent.

Unreadable, foreign and repeated lines are counted, never fatal. A request without a line gets the outcome that the end
of the batch explains: expired, canceled, errored or missing.

Requests without a line so far are kept as sorted bytes, 37 for each: a quarter of the size of a set of texts. Lines are
looked up some thousand at a time; if one of them is odd, each of these is looked up separately.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core import left_out
from dagster_llm_batch.core.identity import REQUEST_ID_BYTES, custom_id, is_padding, packed, request_id_of, unpacked
from dagster_llm_batch.core.logprobs import LOGPROB, label_logprob
from dagster_llm_batch.core.memory import chunks, uncollected
from dagster_llm_batch.core.pricing import MONEY, Tariff
from dagster_llm_batch.core.response import Reader
from dagster_llm_batch.core.result_schema import FENCED, REPEATING, RESULT_SCHEMA
from dagster_llm_batch.protocols import Codec, ColumnCodec
from dagster_llm_batch.text import replace_halves
from dagster_llm_batch.types import (
    NO_USAGE,
    TOKENS,
    BatchStatus,
    Cause,
    Extra,
    Lane,
    Outcome,
    PriceBasis,
    ResponseKind,
    Result,
    ResultColumns,
    Usage,
)

__all__ = ["REPEATING", "RESULT_SCHEMA", "Expected", "Reconciler", "ShardFacts", "ShardTotals", "TierTotals"]

_ID = np.dtype([("head", "u8"), ("tail", f"V{REQUEST_ID_BYTES - 8}")])


class Expected:
    """The requests of a shard, and which of them no line has named yet (the open ones). `ids` are packed."""

    def __init__(self, nonce: str, ids: bytes) -> None:
        self._start = custom_id(nonce, "").encode()
        self._line = np.dtype([("start", f"V{len(self._start)}"), ("id", f"V{2 * REQUEST_ID_BYTES}"), ("end", "V1")])
        self._ids = np.frombuffer(ids, _ID)
        # A contiguous copy is sorted faster than one field of a structure.
        heads = self._ids["head"].copy()
        self._order = heads.argsort()
        self._heads = heads[self._order]
        self._open = np.ones(len(self._ids), bool)

    def take(self, custom_ids: Sequence[str | None]) -> bytes | None:
        """Close the requests that these custom_ids name; return their packed ids.

        Returns None, and closes nothing, unless each names a different open request.
        """
        count = len(custom_ids)
        if count > len(self._ids) or len(set(custom_ids)) < count or (ids := self._named(custom_ids)) is None:
            return None
        places = self._order.take(self._heads.searchsorted(np.frombuffer(ids, _ID)["head"]), mode="clip")
        if self._ids.take(places).tobytes() != ids or not self._open[places].all():
            return None
        self._open[places] = False
        return ids

    def _named(self, custom_ids: Sequence[str | None]) -> bytes | None:
        """Return the packed ids in custom_ids of this shard; None if one of them is not of this shard."""
        try:
            lines = np.frombuffer("\n".join([*custom_ids, ""]).encode(), self._line)  # type: ignore[list-item]  # None raises
            text = lines["id"].tobytes()
            ids = bytes.fromhex(text.decode())
        except (TypeError, ValueError):
            return None
        # `fromhex` takes capitals and spaces, too. Line ends need no check: each custom_id has one, and they are
        # outside of the starts and ids.
        is_exact = ids.hex().encode() == text and lines["start"].tobytes() == self._start * len(custom_ids)
        return ids if is_exact else None

    def take_one(self, request_id: str) -> bool:
        """Close an open request; return False if it is not open."""
        at = self._places.get(request_id)
        if at is None or not self._open[at]:
            return False
        self._open[at] = False
        return True

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._places

    @cached_property
    def _places(self) -> dict[str, int]:
        return {request_id: at for at, request_id in enumerate(unpacked(self._ids.tobytes()))}

    def left(self) -> bytes:
        """Return the packed ids of the open requests, in their order."""
        return self._ids[self._open].tobytes()


_LINE_FIELDS = [RESULT_SCHEMA.field(name) for name in RESULT_SCHEMA.names[1:7]]
_LINE_NAMES = [*(field.name for field in _LINE_FIELDS), *TOKENS]

# More tokens are impossible for a request: such a count is an error of the server.
_MOST_TOKENS = 1_000_000_000

# Lines that are read at once, fewer where they are long: a vector's takes as much memory as some dozen labels.
_AT_ONCE = 2_048
_BYTES_AT_ONCE = 1 << 21
# A table is in memory several times while it is put together and written.
_TABLE_ROWS = 4_096
_TABLE_BYTES = 1 << 22

# A global is looked up faster than a member of an enum, once a row.
_SUCCEEDED = Outcome.SUCCEEDED
_REPLIED = (Outcome.SUCCEEDED, Outcome.INVALID)

# A request without a result may have run, and been billed: its cost is unknown, like the cost of a reply without token
# counts. Errors, and requests that by the vendor's report never ran, are not billed.
_BILLED_UNSEEN = (*_REPLIED, Outcome.MISSING)


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """The facts that all results of a shard share.

    Attributes:
        nonce: The nonce of the shard's custom_ids.
        status: The status in which the batch ended.
        provider, batch_id: The provider and its batch.
        attempt: The number of the wave.
        ended_at, submitted_at: The times of the batch, aware.
        lane: The lane of the shard.
        reason, retryable: The reason of a batch that failed as a whole, and whether it can succeed later.
        padding: The number of copies of a request that were sent to reach the provider's least number.
        done: The batch's own count of finished requests, copies included; None if it carries other shards, too.
        cause: The cause of an end from outside, or of results that cannot be fetched.
    """

    nonce: str
    status: BatchStatus
    provider: str
    batch_id: str | None
    attempt: int
    ended_at: datetime | None
    lane: Lane = Lane.BATCH
    reason: str | None = None
    retryable: bool = False
    submitted_at: datetime | None = None
    padding: int = 0
    done: int | None = None
    cause: Cause | None = None


@dataclass
class TierTotals:
    """The part of a shard's costs and counts for replies that name a tier of the vendor, such as "flex".

    The fields have the meaning of the same fields of ShardTotals. `requests` is the number of these replies.
    """

    requests: int = 0
    known_usd: Decimal = Decimal(0)
    unpriced: int = 0
    realtime_usd: Decimal = Decimal(0)
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0


@dataclass
class ShardTotals:
    """The costs and counts of a shard's results.

    Attributes:
        known_usd: The cost of requests of known cost, and of copies that were sent as padding.
        unpriced: The number of requests and copies of unknown cost.
        realtime_usd: The cost in real time of requests of known cost. Real time has no copies.
        unlabeled_usd: The part of `known_usd` for requests that were billed and have no label.
        padding_usd: The part of `known_usd` for copies.
        replies: The number of replies with a count of tokens, copies included.
        input_tokens, output_tokens, cache_read_tokens: The tokens of these replies.
        reported_usd: The cost by the vendor's own report; None unless each reply has one.
        answered: The number of requests with a label.
        unreadable, foreign, duplicates: The numbers of lines that are not the first result of a request.
        tiers: The part for each tier that replies name. Most shards have none.
    """

    known_usd: Decimal = Decimal(0)
    unpriced: int = 0
    realtime_usd: Decimal = Decimal(0)
    unlabeled_usd: Decimal = Decimal(0)
    padding_usd: Decimal = Decimal(0)
    replies: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    reported_usd: Decimal | None = None
    answered: int = 0
    unreadable: int = 0
    foreign: int = 0
    duplicates: int = 0
    tiers: dict[str, TierTotals] = field(default_factory=dict)

    @property
    def cost_usd(self) -> Decimal | None:
        """The cost of all together; None if one is unknown."""
        return None if self.unpriced else self.known_usd

    def add_tokens(self, replies: int, input_tokens: int, output_tokens: int, cache_read_tokens: int) -> None:
        """Add the tokens of some replies."""
        self.replies += replies
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self.cache_read_tokens += cache_read_tokens

    @property
    def unexpected(self) -> dict[str, int]:
        """The numbers of lines that are not the first result of a request, by kind."""
        counts = {"unreadable": self.unreadable, "foreign": self.foreign, "duplicates": self.duplicates}
        return {name: count for name, count in counts.items() if count}


class Reconciler:
    """Turn the raw lines of one shard into its results. Use it once: `totals` is complete when `tables` is exhausted.

    Args:
        codec: Decodes the lines.
        reader: Parses the replies.
        tariff: The prices of the shard's lane.
        facts: Properties that the results share.
        expected: The packed ids of the shard's requests.
        has_logprob: Whether the results have the column LOGPROB, as the last one.
    """

    def __init__(
        self,
        codec: Codec,
        reader: Reader,
        tariff: Tariff,
        facts: ShardFacts,
        expected: bytes,
        *,
        has_logprob: bool = False,
    ) -> None:
        self.totals = ShardTotals()
        self._codec = codec
        self._reader = reader
        self._tariff = tariff
        self._facts = facts
        self._expected = Expected(facts.nonce, expected)
        self._schema = pa.schema([*RESULT_SCHEMA, *reader.fields, *([LOGPROB] if has_logprob else [])])
        self._has_logprob = has_logprob
        self._embeds = reader.format.kind is ResponseKind.EMBEDDING
        self._may_be_fenced = not codec.enforces_format
        self._padding = 0  # lines of padding that came
        self._names_unrun = False  # whether a line is for a request that never ran
        self._all_report = True  # whether each reply so far has its reported cost

    def tables(self, lines: Iterable[bytes]) -> Iterator[pa.Table]:
        """Yield the results in tables of some thousand rows: first the results of lines, then the requests left out."""
        yield from self._tables(map(self._read_lines, _short_chunks(lines)))
        unnamed, size = self._expected.left(), _AT_ONCE * REQUEST_ID_BYTES
        without_line = self._left_out(len(unnamed) // REQUEST_ID_BYTES)
        outcome = without_line.outcome
        parts = (unnamed[at : at + size] for at in range(0, len(unnamed), size))
        yield from self._tables(
            self._read(ids, ResultColumns.of([without_line] * (len(ids) // REQUEST_ID_BYTES))) for ids in parts
        )
        # Copies may have run unseen: the user's own machines do not bill that; elsewhere the cost is unknown.
        if outcome is Outcome.MISSING and self._tariff.basis is not PriceBasis.FREE:
            self.totals.unpriced += max(self._facts.padding - self._padding, 0)

    def _left_out(self, unnamed: int) -> Result:
        """Return the common result of the `unnamed` requests without a line."""
        facts = self._facts
        # Older ledgers have 'running' here.
        outcome, explanation = left_out.LEFT_OUT.get(facts.status, left_out.LEFT_OUT[BatchStatus.ENDED])
        reason, retryable = facts.reason or explanation, outcome is not Outcome.ERRORED or facts.retryable
        if facts.cause in (Cause.GONE, Cause.GIVEN_UP):
            outcome, reason = Outcome.MISSING, facts.reason or ""
        elif outcome in left_out.NEVER_RAN and self._lacks_rows(unnamed):
            outcome, reason = Outcome.MISSING, left_out.MAY_HAVE_RUN.format(f"was {outcome.value}")
        if facts.cause is not None and facts.cause.is_final:
            return self._waiting(Result(custom_id=None, outcome=outcome, reason=reason), facts.cause)
        return Result(custom_id=None, outcome=outcome, reason=reason, retryable=retryable)

    def _waiting(self, result: Result, cause: Cause) -> Result:
        """Return the result of a request that is not sent again without a person's decision."""
        why = left_out.waiting_reason(cause, has_ended=self._facts.status.is_terminal)
        reason = "; ".join(filter(None, [why, result.reason, left_out.ASK_AGAIN]))
        return result._replace(reason=reason, retryable=False)

    def _lacks_rows(self, unnamed: int) -> bool:
        """Return whether requests without a line may have run although their batch was stopped."""
        # A vendor with lines for requests that never ran would have one for each of them.
        if self._names_unrun:
            return True
        return self._facts.done is not None and self._facts.done > len(self._expected) - unnamed + self._padding

    def _read_lines(self, lines: Sequence[bytes]) -> _Read | None:
        """Read lines; return the first result of each request, or None if all lines lack one."""
        # The objects made here have no cycles, and are freed with their last use: a search for cycles would double the
        # time.
        with uncollected():
            known = self._known(lines)
            return None if known is None else self._read(*known)

    def _known(self, lines: Sequence[bytes]) -> tuple[bytes, ResultColumns] | None:
        """Decode lines; return the packed ids and the first result of each request, and count the other lines."""
        if isinstance(self._codec, ColumnCodec):
            results = self._codec.decode_all(lines)
        else:
            results = ResultColumns.of(map(self._codec.decode, lines))
        if self._facts.cause is Cause.CANCELED:
            # Vendors also have lines for canceled requests, which do not show who canceled them.
            for at, outcome in enumerate(results.outcomes):
                if outcome is Outcome.CANCELED:
                    waiting = self._waiting(results.result(at), Cause.CANCELED)
                    results.reasons[at], results.retryable[at] = waiting.reason, waiting.retryable
        ids = self._expected.take(results.custom_ids)
        # Mostly every line is as it should be.
        if ids is not None:
            return ids, results
        request_ids, firsts = [], []
        for at, line in enumerate(lines):
            result = results.result(at)
            request_id = request_id_of(result.custom_id, self._facts.nonce)
            if request_id is not None and self._expected.take_one(request_id):
                request_ids.append(request_id)
                firsts.append(result)
            elif not line.isspace():
                self._count(result, request_id)
        return (packed(request_ids), ResultColumns.of(firsts)) if firsts else None

    def _count(self, result: Result, request_id: str | None) -> None:
        """Count a line that is no result of the shard, or not the first of its request."""
        if result.custom_id is None:
            self.totals.unreadable += 1
        elif request_id is not None and is_padding(request_id):
            self._padding += 1
            is_unknown = result.usage is None and result.outcome in _REPLIED
            is_known = not is_unknown and _can_be(result.usage)
            self._add_copy(result.usage, self._tariff.price(result.usage).cost_usd if is_known else None)
        elif request_id is not None and request_id in self._expected:
            self.totals.duplicates += 1
        else:
            self.totals.foreign += 1

    def _add_copy(self, usage: Usage | None, cost: Decimal | None) -> None:
        """Add a copy that was sent as padding. Without a cost it is not known."""
        if cost is None:
            self.totals.unpriced += 1
            return
        self.totals.known_usd += cost
        self.totals.padding_usd += cost
        if usage is not None:
            self.totals.add_tokens(1, usage.input_tokens, usage.output_tokens, usage.cache_read_tokens)

    def _add_bill(self, outcomes: pa.Array, tokens: Sequence[pa.Array], cost: pa.Array, realtime: pa.Array) -> None:
        """Add the cost of requests, and their billed tokens (an array for each of TOKENS)."""
        totals, known = self.totals, _sum(cost)
        totals.unpriced += cost.null_count
        totals.known_usd += known
        totals.realtime_usd += _sum(realtime)
        # Mostly every request has a label.
        if not pc.all(labeled := pc.equal(outcomes, _SUCCEEDED.value)).as_py():
            totals.unlabeled_usd += known - _sum(cost.filter(labeled))
        totals.answered += labeled.true_count
        input_tokens, output_tokens, cache_read_tokens, *_ = tokens
        counts = (_sum(input_tokens), _sum(output_tokens), _sum(cache_read_tokens))
        totals.add_tokens(len(cost) - input_tokens.null_count, *counts)

    def _add_tiers(
        self, extras: Sequence[Extra | None], tokens: Sequence[pa.Array], cost: pa.Array, realtime: pa.Array
    ) -> None:
        """Add the cost and the tokens of replies to the totals of the tier that they name."""
        places: dict[str, list[int]] = {}
        for place, extra in enumerate(extras):
            if extra is not None and extra.tier is not None:
                places.setdefault(extra.tier[1], []).append(place)
        for tier, at in places.items():
            own_cost, own_realtime, *own_tokens = (
                column.take(pa.array(at)) for column in (cost, realtime, *tokens[:3])
            )
            totals = self.totals.tiers.setdefault(tier, TierTotals())
            totals.requests += len(at)
            totals.known_usd += _sum(own_cost)
            totals.unpriced += own_cost.null_count
            totals.realtime_usd += _sum(own_realtime)
            input_tokens, output_tokens, cache_read_tokens = map(_sum, own_tokens)
            totals.input_tokens += input_tokens
            totals.output_tokens += output_tokens
            totals.cache_read_tokens += cache_read_tokens

    def _add_reported(self, extras: Sequence[Extra | None], replies: int) -> None:
        """Add the vendor's reported costs of replies. If some lack one, add nothing: a part is not comparable to the
        sum.
        """
        reported: list[Decimal] = []
        if extras.count(None) < len(extras):
            reported = [extra.reported_usd for extra in extras if extra is not None and extra.reported_usd is not None]
        self._all_report = self._all_report and len(reported) == replies
        if reported and self._all_report:
            self.totals.reported_usd = sum(reported, self.totals.reported_usd or Decimal(0))
        elif not self._all_report:
            self.totals.reported_usd = None

    def _tables(self, read: Iterable[_Read | None]) -> Iterator[pa.Table]:
        for group in _groups(filter(None, read)):
            ids, lines, extras, replies = zip(*group, strict=True)
            columns = pa.concat_tables(lines).combine_chunks()
            arrays = {name: columns[name].combine_chunks() for name in columns.column_names}
            arrays["llm_request_id"] = _texts(b"".join(ids))
            yield self._table(arrays, list(chain.from_iterable(extras)), pa.concat_tables(replies).combine_chunks())

    def _read(self, ids: bytes, results: ResultColumns) -> _Read:
        """Return results as table columns, without the columns that all share and the columns of their cost."""
        outcomes, reasons = results.outcomes, results.reasons
        texts: Sequence[Any] = results.texts
        vectors: Sequence[Any] = results.embeddings
        all_succeeded = outcomes.count(_SUCCEEDED) == len(outcomes)
        if not all_succeeded:
            self._names_unrun = self._names_unrun or not set(left_out.NEVER_RAN).isdisjoint(outcomes)
            texts, vectors = (
                [value if outcome is _SUCCEEDED else None for value, outcome in zip(values, outcomes, strict=True)]
                for values in (texts, vectors)
            )
        parsed = self._reader.read(texts, vectors, may_be_fenced=self._may_be_fenced)
        replies = vectors if self._embeds else texts
        kept: Sequence[str | None] = [None] * len(outcomes)
        if not (all_succeeded and all(replies)) or any(parsed.reasons) or parsed.fenced:
            for at in parsed.fenced:
                reasons[at] = FENCED
            for at, (reply, reason) in enumerate(zip(replies, parsed.reasons, strict=True)):
                if outcomes[at] is _SUCCEEDED and (reason is not None or not reply):
                    outcomes[at], results.retryable[at] = Outcome.INVALID, True
                    reasons[at] = _misfit(reason or "the reply is empty", results.finish_reasons[at])
            pairs = zip(results.texts, outcomes, strict=True)
            kept = [None if outcome is _SUCCEEDED else text for text, outcome in pairs]
        columns = parsed.columns
        if self._has_logprob:
            is_json = self._reader.format.kind is ResponseKind.JSON
            known = [
                label_logprob(text, tokens, is_json=is_json) if outcome is _SUCCEEDED and text and tokens else None
                for outcome, text, tokens in zip(outcomes, results.texts, results.logprobs, strict=True)
            ]
            columns = columns.append_column(LOGPROB, pa.array(known, LOGPROB.type))
        values: Any = (outcomes, reasons, results.retryable, kept, results.finish_reasons, results.models)
        arrays = [_array(column, field.type) for column, field in zip(values, _LINE_FIELDS, strict=True)]
        return ids, pa.table([*arrays, *_tokens(results.tokens)], _LINE_NAMES), results.extras, columns

    def _table(
        self, line_columns: Mapping[str, pa.Array], extras: Sequence[Extra | None], replies: pa.Table
    ) -> pa.Table:
        """Return the results: the read columns, their cost, and the columns that the shard's results share."""
        facts = self._facts
        tokens = [line_columns[name] for name in TOKENS]
        cost, realtime, bases = self._tariff.costs(tokens, extras)
        if tokens[0].null_count and self._tariff.basis is not PriceBasis.UNKNOWN:
            paid = pc.is_in(line_columns["llm_outcome"], pa.array(_BILLED_UNSEEN, pa.string()))
            is_zero = pc.and_(pc.is_null(tokens[0]), pc.invert(paid))
            if self._tariff.basis is PriceBasis.FREE:
                is_zero = pc.is_null(tokens[0])
            cost, realtime = (pc.if_else(is_zero, pa.scalar(Decimal(0), MONEY), amount) for amount in (cost, realtime))
        self._add_bill(line_columns["llm_outcome"], tokens, cost, realtime)
        if extras.count(None) < len(extras):
            self._add_tiers(extras, tokens, cost, realtime)
        self._add_reported(extras, replies=len(tokens[0]) - tokens[0].null_count)
        own = {
            **line_columns,
            "llm_cost_usd": cost,
            "llm_realtime_usd": realtime,
            **{f"llm_{name}": column for name, column in zip(TOKENS, tokens, strict=True)},
            **({} if bases is None else {"llm_price_basis": pa.array(bases, pa.string())}),
        }
        shared = {
            "llm_price_basis": self._tariff.basis.value,
            "llm_provider": facts.provider,
            "llm_batch_id": facts.batch_id,
            "llm_attempt": facts.attempt,
            "llm_lane": facts.lane.value,
            "llm_submitted_at": facts.submitted_at,
            "llm_completed_at": facts.ended_at,
        }
        columns = [
            own[field.name] if field.name in own else pa.repeat(pa.scalar(shared[field.name], field.type), len(replies))
            for field in RESULT_SCHEMA
        ]
        return pa.table([*columns, *replies.columns], schema=self._schema)


_Read = tuple[bytes, pa.Table, list[Extra | None], pa.Table]
"""Packed ids of requests, the columns _LINE_NAMES, extras to bill, and the columns of the response."""


def _groups(read: Iterable[_Read]) -> Iterator[list[_Read]]:
    """Yield read results in groups that make one table each."""
    group: list[_Read] = []
    rows = size = 0
    for each in read:
        group.append(each)
        rows += len(each[-1])
        size += each[-1].nbytes
        if rows >= _TABLE_ROWS or size >= _TABLE_BYTES:
            yield group
            group, rows, size = [], 0, 0
    if group:
        yield group


def _short_chunks(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield lines in lists of _AT_ONCE, or of fewer with _BYTES_AT_ONCE."""
    chunk: list[bytes] = []
    size = 0
    # Sizes are added up for some lines at once: for each alone it would take longer.
    for some in chunks(lines, _AT_ONCE // 16):
        chunk += some
        size += sum(map(len, some))
        if len(chunk) >= _AT_ONCE or size >= _BYTES_AT_ONCE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _sum(values: pa.Array) -> Any:
    """Return the sum of the values that are not null; 0 without values."""
    return pc.sum(values, min_count=0).as_py()


def _misfit(reason: str, finish_reason: str | None) -> str:
    """Return the reason of a reply that does not fit the response."""
    if finish_reason in ("length", "max_output_tokens", "max_tokens", "model_context_window_exceeded"):
        return f"the reply was cut at its token limit ({reason})"
    return reason


def _tokens(columns: Sequence[Sequence[int | None]]) -> list[pa.Array]:
    """Return an array for each of TOKENS. Impossible counts are null in all: then the cost is not known."""
    try:
        tokens = [_array(values, pa.int64()) for values in columns]
        inputs, _, read, written, *_ = tokens
        bounds = [bound for counts in tokens for bound in pc.min_max(counts).as_py().values() if bound is not None]
        fits = pc.less_equal(pc.add_checked(read, written), inputs)
        if all(0 <= bound <= _MOST_TOKENS for bound in bounds) and pc.all(fits, min_count=0).as_py():
            return tokens
    except (OverflowError, pa.ArrowInvalid):
        pass
    usages = [None if None in row else Usage(*row) for row in zip(*columns, strict=True)]
    possible = [NO_USAGE if usage is None or not _can_be(usage) else usage for usage in usages]
    return [pa.array(values, pa.int64()) for values in list(zip(*possible, strict=True))[: len(TOKENS)]]


def _can_be(usage: Usage | None) -> bool:
    """Return whether a request can have taken these tokens."""
    if usage is None:
        return True
    is_part = usage.cache_read_tokens + usage.cache_write_tokens <= usage.input_tokens
    counts: tuple[int, ...] = usage[: len(TOKENS)]  # type: ignore[assignment]  # all but `extra`
    return is_part and min(counts) >= 0 and max(counts) <= _MOST_TOKENS


def _texts(ids: bytes) -> pa.Array:
    """Return packed ids as a column."""
    chars = pa.binary(2 * REQUEST_ID_BYTES)
    data = pa.py_buffer(ids.hex().encode())
    return pa.Array.from_buffers(chars, len(ids) // REQUEST_ID_BYTES, [None, data]).cast(pa.string())


def _array(values: Sequence[Any], arrow_type: pa.DataType) -> pa.Array:
    # Most columns have one value, which is repeated much faster than it is converted.
    if len(values) > 1 and values.count(values[0]) == len(values):
        return pa.repeat(_array(values[:1], arrow_type)[0], len(values))
    try:
        return pa.array(values, arrow_type)
    except UnicodeEncodeError:
        return pa.array([None if text is None else replace_halves(text) for text in values], arrow_type)
