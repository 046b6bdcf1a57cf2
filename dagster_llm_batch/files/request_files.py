"""Request files: lines are written into shards, a new one whenever the last is full. Nothing is sent.

Next to each request file is one with the request_ids, packed: code that needs only these does not unpack the lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from dagster_llm_batch.core.identity import custom_id, packed, shard_nonce
from dagster_llm_batch.core.pricing import Costs
from dagster_llm_batch.core.sharding import ShardFill, tightest
from dagster_llm_batch.core.token_counts import InputCounts
from dagster_llm_batch.files.shard_files import (
    APART,
    CALIBRATION,
    ERASING,
    IDS,
    PART,
    RAW,
    REQUESTS,
    RESULTS,
    SENT,
    SO_FAR,
    answers_so_far,
    beside,
    delete_requests,
    names_any,
    packed_ids,
    request_ids,
    requests_of,
    write_answers_so_far,
    write_ids,
)
from dagster_llm_batch.storage.ledger.records import Bill, Room, Shard, Submission
from dagster_llm_batch.storage.payloads import PayloadStore, PayloadWriter
from dagster_llm_batch.storage.stored_files import DamagedError, LostError
from dagster_llm_batch.types import BatchLimits, Lane

if TYPE_CHECKING:
    from dagster_llm_batch.core.levels import Levels

__all__ = [
    "APART",
    "BLOCKS",
    "CALIBRATION",
    "DEFINITION",
    "ERASING",
    "IDS",
    "PART",
    "RAW",
    "REQUESTS",
    "RESULTS",
    "SENT",
    "SO_FAR",
    "Lines",
    "Owner",
    "ShardFiles",
    "Wave",
    "WrittenLines",
    "answers_so_far",
    "beside",
    "definition_in",
    "delete_requests",
    "facts_in",
    "halve",
    "levels_in",
    "levels_of",
    "names_any",
    "packed_ids",
    "renamed",
    "request_ids",
    "requests_of",
    "split_requests",
    "write_answers_so_far",
    "write_ids",
]

DEFINITION = "llm_batch.definition"
"""Key in a manifest's metadata for the definition of its requests: see Labeling.definition. The code's definition may
have changed by the time of the answers. Manifests of older versions lack it.
"""

BLOCKS = "llm_batch.blocks"
"""Key in a manifest's metadata for its rows in blocks, in their order: see RowBlocks. Without it, all rows are rendered
again.
"""

_NOTHING: Mapping[str, Any] = {}

_AT_ONCE = 32
"""Requests of a shard in real time. A killed process can lose this many answers."""


def definition_in(payloads: PayloadStore, manifest_path: str | None) -> Mapping[str, Any] | None:
    """Return the definition of the requests of a manifest.

    None if older code wrote it, or it cannot be read: code that needs its rows reports this.
    """
    try:
        stored = payloads.table_metadata(manifest_path or "").get(DEFINITION.encode())
    except (OSError, pa.ArrowException):
        return None
    definition: Mapping[str, Any] | None = None if stored is None else json.loads(stored)
    return definition


def levels_of(payloads: PayloadStore, submission: Submission) -> Levels | None:
    """Return the function for the level of each row of a submission, as far as decided; None without a cascade."""
    return levels_in(payloads, submission.folder) if submission.folder else None


def levels_in(payloads: PayloadStore, folder: str) -> Levels | None:
    """Return the levels of the submission whose files are in this folder. See `levels_of`."""
    path = f"{folder}/{CALIBRATION}"
    if not payloads.exists(path):
        return None
    from dagster_llm_batch.core.levels import Levels  # noqa: PLC0415 - few labelings are cascades

    try:
        with payloads.reader(path) as file:
            return Levels.of_json(file.read())
    # Treat it as missing: code that needs it reports the next step.
    except (LostError, DamagedError):
        return None


def facts_in(payloads: PayloadStore, manifest_path: str, names: Collection[str]) -> dict[str, str]:
    """Return the facts about all rows under these names in a manifest; empty if it cannot be read."""
    try:
        stored = payloads.table_metadata(manifest_path)
    except (OSError, pa.ArrowException):
        return {}
    return {name: stored[name.encode()].decode() for name in names if name.encode() in stored}


def renamed(line: bytes, old: str, request_id: str, nonce: str) -> bytes:
    """Return the line with another shard's nonce in its custom_id. `old` is the present custom_id."""
    return line.replace(old.encode(), custom_id(nonce, request_id).encode(), 1)


class Lines(Protocol):
    """The encoded lines of some requests: in this process, or in a part file that a worker wrote."""

    @property
    def request_ids(self) -> Sequence[str]: ...

    @property
    def sizes(self) -> Sequence[int]:
        """The bytes of each line. All nonces have the same length, so this holds for any of them."""
        ...

    def slice(self, start: int, end: int) -> Lines:
        """Return the lines from `start` to before `end`."""
        ...

    def with_nonce(self, nonce: str) -> Any:
        """Return the lines with this nonce in their custom_ids, as the writer of a shard takes them."""
        ...


@dataclass(frozen=True)
class WrittenLines:
    """Lines in this process, with `nonce` in their custom_ids."""

    request_ids: Sequence[str]
    lines: Sequence[bytes]
    nonce: str

    @property
    def sizes(self) -> Sequence[int]:
        """See Lines.sizes."""
        return [len(line) for line in self.lines]

    def slice(self, start: int, end: int) -> WrittenLines:
        """See Lines.slice."""
        return WrittenLines(self.request_ids[start:end], self.lines[start:end], self.nonce)

    def with_nonce(self, nonce: str) -> bytes:
        """See Lines.with_nonce."""
        if nonce == self.nonce:
            return b"".join(self.lines)
        pairs = zip(self.lines, self.request_ids, strict=True)
        return b"".join(
            [renamed(line, custom_id(self.nonce, request_id), request_id, nonce) for line, request_id in pairs]
        )


@dataclass(frozen=True)
class Owner:
    """The provider, account and model that requests are sent to, and the lane.

    `has_uploads`: whether the requests name documents that are uploaded before.
    """

    provider: str
    account: str
    model: str
    lane: Lane = Lane.BATCH
    has_uploads: bool = False


@dataclass(frozen=True)
class Wave:
    """One wave (a round of requests) of a submission, in writing. Its owners' shards are numbered together.

    `writer` opens a request file; by default the payload store's.
    """

    payloads: PayloadStore
    submission_id: str
    number: int
    path_of: Callable[[str], str]
    writer: Callable[[str], AbstractContextManager[Any]] | None = None
    shard_numbers: Iterator[int] = field(default_factory=count)

    def files(
        self, limits: BatchLimits, owner: Owner, prices: ShardPrices, chosen: Mapping[str, Any] = _NOTHING
    ) -> ShardFiles:
        """Return the request files of this owner. `chosen`: fields of the room of its shards, see tuner.py."""
        if owner.lane is Lane.REALTIME:
            limits, chosen = replace(limits, max_requests=_AT_ONCE, min_requests=1, max_tokens=None), _NOTHING
        return ShardFiles(self, tightest(limits, chosen.get("most_requests")), owner, prices, chosen)


class ShardPrices(Protocol):
    """Costs of one owner's requests in addition to the expected cost of each."""

    def surcharge(self, shard: Shard, lacking: int) -> Costs:
        """Return the additional cost of a shard that is `lacking` requests short of the provider's minimum."""
        ...

    def most_usd(self, input_bound: int | None) -> Decimal | None:
        """Return the highest cost of one request with at most this many input tokens; None if unknown."""
        ...


class ShardFiles:
    """The request files of one owner in a wave. `shards` has the finished ones."""

    def __init__(
        self, wave: Wave, limits: BatchLimits, owner: Owner, prices: ShardPrices, chosen: Mapping[str, Any] = _NOTHING
    ) -> None:
        self._chosen = chosen
        self.shards: list[Shard] = []
        self.surcharge = Costs(Decimal(0), Decimal(0))
        self._prices = prices
        self._wave = wave
        self._limits = limits
        self._owner = owner
        self._open: _OpenShard | None = None

    @property
    def nonce(self) -> str:
        """The nonce of the shard that takes the next request."""
        return self._shard().nonce

    def add(
        self,
        lines: Lines,
        keys: Sequence[object],
        tokens: InputCounts,
        cost: Callable[[InputCounts], Costs],
    ) -> None:
        """Write requests. `cost` returns the cost of requests by their tokens. Raises InputError for one too long."""
        sizes = lines.sizes
        self._shard().fill.check(sizes, keys)
        start = 0
        while start < len(sizes):
            shard = self._shard()
            end = start + shard.fill.take(sizes[start:], tokens.expected[start:])
            if start == end:
                self.end()
                continue
            counts = tokens if end - start == len(sizes) else tokens.slice(start, end)
            shard.add(lines.slice(start, end), counts, cost(counts))
            start = end

    def _shard(self) -> _OpenShard:
        if self._open is None:
            self._open = _OpenShard(self._wave, next(self._wave.shard_numbers), self._limits)
        return self._open

    def end(self) -> list[Shard]:
        """End the last file and return the shards so far."""
        if self._open is not None:
            self.shards.append(replace(self._open.close(self._owner), room=Room(**self._chosen)))
        self._open = None
        return self.shards

    def close(self, digests: Mapping[str, str] | None = None) -> list[Shard]:
        """End the last file, fill it up to the provider's minimum from the one before, and return all shards.

        `digests` has the digests of the files that were written after `end`, by path.
        """
        self.end()
        if digests:
            self.shards = [replace(shard, digest=digests[shard.path]) for shard in self.shards]
        if len(self.shards) > 1:
            self.shards[-2:] = self._fill_up(*self.shards[-2:])
        if self.shards and (lacking := self._limits.min_requests - self.shards[-1].requests) > 0:
            tail = self.shards[-1]
            self.surcharge = self._prices.surcharge(tail, lacking)
            bill = replace(
                tail.bill,
                estimated_usd=_sum(tail.bill.estimated_usd, self.surcharge.expected_usd),
                bound_usd=_sum(tail.bill.bound_usd, self.surcharge.bound_usd),
            )
            self.shards[-1] = replace(tail, bill=bill)
        return self.shards

    def _fill_up(self, full: Shard, tail: Shard) -> list[Shard]:
        """Move requests from the end of `full` to `tail`, where both have the least number after that."""
        # Bedrock refuses a batch below its least number of requests, which the last shard easily is.
        least, lacking = self._limits.min_requests, self._limits.min_requests - tail.requests
        if lacking <= 0 or full.requests - lacking < least:
            return [full, tail]
        payloads = self._wave.payloads
        with payloads.writer(full.path) as rest, payloads.writer(tail.path) as more:
            for line in payloads.lines(tail.path):
                more.write(line)
            ids = request_ids(payloads, tail)
            kept = []
            for number, (request_id, line) in enumerate(requests_of(payloads, full.path, full.nonce)):
                if number < full.requests - lacking:
                    rest.write(line)
                    kept.append(request_id)
                else:
                    more.write(renamed(line, custom_id(full.nonce, request_id), request_id, tail.nonce))
                    ids.append(request_id)
        write_ids(payloads, full, packed(kept))
        write_ids(payloads, tail, packed(ids))
        moved = _bound_of_some(full.bill, lacking, self._prices.most_usd(full.input_bound))
        bounds = (full.input_bound, tail.input_bound)
        tail = replace(
            tail,
            input_bound=None if None in bounds else max(filter(None, bounds), default=0),
            bill=replace(tail.bill, bound_usd=_sum(tail.bill.bound_usd, moved)),
        )
        return [_rewritten(full, rest, full, -lacking), _rewritten(tail, more, full, lacking)]

    def discard(self) -> None:
        """Remove the files that were written."""
        with ExitStack() as last_first:
            for shard in self.shards:
                last_first.callback(delete_requests, self._wave.payloads, shard)
            if self._open is not None:
                last_first.callback(self._open.discard)
        self.shards, self._open = [], None


class _OpenShard:
    """A request file that is being written."""

    def __init__(self, wave: Wave, number: int, limits: BatchLimits) -> None:
        self.nonce = shard_nonce(wave.submission_id, wave.number, number)
        self.fill = ShardFill(limits)
        self._wave = wave
        self._number = number
        self._path = wave.path_of(f"wave-{wave.number}-{number:04d}{REQUESTS}")
        self._stack = ExitStack()
        self._writer: Any = self._stack.enter_context((wave.writer or wave.payloads.writer)(self._path))
        self._ids = bytearray()
        self._tokens = 0
        self._input_bound: int | None = 0
        self._costs = Costs(Decimal(0), Decimal(0))

    def add(self, lines: Lines, tokens: InputCounts, costs: Costs) -> None:
        self._writer.write(lines.with_nonce(self.nonce))
        self._ids += packed(lines.request_ids)
        self._tokens += sum(tokens.expected)
        if None in tokens.bounds:
            self._input_bound = None
        elif self._input_bound is not None:
            self._input_bound = max(self._input_bound, *filter(None, tokens.bounds), 0)
        self._costs = Costs(*map(_sum, self._costs, costs))

    def close(self, owner: Owner) -> Shard:
        self._stack.close()
        shard = Shard(
            shard_id=self.nonce[1:],
            submission_id=self._wave.submission_id,
            provider=owner.provider,
            account=owner.account,
            model=owner.model,
            lane=owner.lane,
            wave=self._wave.number,
            number=self._number,
            nonce=self.nonce,
            requests=self.fill.requests,
            bytes=self.fill.bytes,
            path=self._path,
            digest=self._writer.digest,
            tokens=self._tokens,
            input_bound=self._input_bound,
            has_uploads=owner.has_uploads or None,
            bill=Bill(estimated_usd=self._costs.expected_usd, bound_usd=self._costs.bound_usd),
        )
        write_ids(self._wave.payloads, shard, bytes(self._ids))
        return shard

    def discard(self) -> None:
        self._stack.close()
        self._wave.payloads.delete(self._path)


def halve(whole: Shard, least: int) -> Callable[[str, bytes], bool]:
    """Return which requests are in the first of two halves: half of the bytes, and at least `least` requests in each.

    It is asked of each request once, in their order.
    """
    place, written = -1, 0

    def is_first(request_id: str, line: bytes) -> bool:  # noqa: ARG001 - which one it is does not matter
        nonlocal place, written
        place, before, written = place + 1, written, written + len(line)
        return place < least or (2 * before < whole.bytes and place < whole.requests - least)

    return is_first


def split_requests(
    payloads: PayloadStore,
    whole: Shard,
    number: int,
    is_first: Callable[[str, bytes], bool],
    dearest_usd: Decimal | None = None,
) -> tuple[Shard, Shard]:
    """Write a shard's requests into two new files: those selected by `is_first`, by request_id and line, and others.

    Return the shard with the first part, and a new one of this `number` with the others. The file of the whole stays:
    if a process is killed before the ledger has the parts, the next one writes them again, under the same names.
    `dearest_usd` is the highest cost of any one of its requests. Answers in real time stay in the first part, whose
    custom_ids they name, so that their requests are not sent and paid again.
    """
    nonce = shard_nonce(whole.submission_id, whole.wave, number)
    start = whole.path.rpartition(f"wave-{whole.wave}-")[0]
    # A shard that is split again has fewer requests than before, so no file of it is written over.
    path = f"{start}wave-{whole.wave}-{whole.number:04d}.{whole.requests}{REQUESTS}"
    other_path = f"{start}wave-{whole.wave}-{number:04d}{REQUESTS}"
    ids: list[str] = []
    other_ids: list[str] = []
    answers = answers_so_far(payloads, whole) if whole.lane is Lane.REALTIME else {}
    kept: dict[int, bytes] = {}
    with payloads.writer(path) as first, payloads.writer(other_path) as second:
        for place, (request_id, line) in enumerate(requests_of(payloads, whole.path, whole.nonce)):
            if place in answers or is_first(request_id, line):
                if place in answers:
                    kept[len(ids)] = answers[place]
                first.write(line)
                ids.append(request_id)
            else:
                second.write(renamed(line, custom_id(whole.nonce, request_id), request_id, nonce))
                other_ids.append(request_id)
    tokens = whole.tokens * first.bytes // whole.bytes
    estimated, bill = whole.bill.estimated_usd, whole.bill
    cost = None if estimated is None else estimated * first.bytes / whole.bytes
    rest = replace(
        whole,
        requests=len(ids),
        bytes=first.bytes,
        path=path,
        digest=first.digest,
        tokens=tokens,
        bill=replace(
            bill,
            estimated_usd=cost,
            bound_usd=_bound_of_some(bill, len(ids), dearest_usd),
            # Its answers so far are billed.
            reserved_usd=bill.reserved_usd if kept else None,
        ),
        # The provider's words may quote a row of either, and go with it where it is erased.
        reason=None,
        reason_kind=None,
    )
    half = replace(
        rest,
        shard_id=nonce[1:],
        nonce=nonce,
        number=number,
        requests=len(other_ids),
        bytes=second.bytes,
        path=other_path,
        digest=second.digest,
        tokens=whole.tokens - tokens,
        bill=replace(
            bill,
            estimated_usd=None if estimated is None or cost is None else estimated - cost,
            bound_usd=_bound_of_some(bill, len(other_ids), dearest_usd),
            reserved_usd=None,
        ),
        # Erased requests, and their sendings, are counted for the shard whose batches had them.
        erased=None,
        sends=0,
    )
    write_ids(payloads, rest, packed(ids))
    write_ids(payloads, half, packed(other_ids))
    if kept:
        write_answers_so_far(payloads, rest, kept)
    return rest, half


def _bound_of_some(bill: Bill, requests: int, dearest_usd: Decimal | None) -> Decimal | None:
    """Return the highest cost of this many requests of a shard. They are unknown, so all may be the expensive ones."""
    if bill.bound_usd is None or dearest_usd is None:
        return bill.bound_usd
    return min(bill.bound_usd, requests * dearest_usd)


def _rewritten(shard: Shard, file: PayloadWriter, source: Shard, moved: int) -> Shard:
    """Return the shard after `moved` requests came from `source`, at the average tokens and cost of its requests."""
    cost, estimated = source.bill.estimated_usd, shard.bill.estimated_usd
    more = None if cost is None or estimated is None else estimated + cost * moved / source.requests
    return replace(
        shard,
        requests=shard.requests + moved,
        bytes=file.bytes,
        digest=file.digest,
        tokens=shard.tokens + source.tokens * moved // source.requests,
        bill=replace(shard.bill, estimated_usd=more),
    )


def _sum(cost: Decimal | None, other: Decimal | None) -> Decimal | None:
    """Return the sum, or None where one of them is not known."""
    return None if cost is None or other is None else cost + other
