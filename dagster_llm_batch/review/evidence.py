"""Read one request's stored body and replies from the ledger and the payload store, without asking a provider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.identity import REQUEST_ID_BYTES
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.files.request_files import RAW, beside, packed_ids, requests_of
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.payloads import PayloadStore

__all__ = ["Attempt", "read_attempts"]

# Limit of lines for one request: a vendor that repeats them must not fill the page.
_MOST_LINES = 5
_LOST = (OSError, pa.ArrowException, LLMBatchError)


@dataclass(frozen=True)
class Attempt:
    """One time that a request was sent, or is to be.

    `request` and `replies` are stored lines; `lost` has the reason if one of them is missing.
    """

    submission: Submission
    shard: Shard
    request: bytes | None
    replies: tuple[bytes, ...]
    results: tuple[Mapping[str, Any], ...]
    lost: str | None = None


def read_attempts(
    ledger: Ledger, payloads: PayloadStore, submissions: list[Submission], request_id: str
) -> list[Attempt]:
    """Return each time that one of the submissions sent the request, in the order of waves.

    The cost is reading the request and raw files of the shards with this request once, as streams.
    """
    try:
        wanted = bytes.fromhex(request_id)
    except ValueError:
        return []
    if len(wanted) != REQUEST_ID_BYTES:
        return []
    return [
        _attempt(payloads, submission, shard, request_id)
        for submission in submissions
        for shard in sorted(
            ledger.shards.of_submission(submission.submission_id), key=lambda shard: (shard.wave, shard.number)
        )
        if _holds(payloads, shard, wanted)
    ]


def _holds(payloads: PayloadStore, shard: Shard, wanted: bytes) -> bool:
    try:
        ids = packed_ids(payloads, shard)
    except _LOST:
        # The files of a pruned shard are gone; its results may contain the request.
        return bool(shard.results_path) and bool(list(_results(payloads, shard, wanted.hex())))
    place = ids.find(wanted)
    while place > 0 and place % REQUEST_ID_BYTES:
        place = ids.find(wanted, place + 1)
    return place >= 0


def _attempt(payloads: PayloadStore, submission: Submission, shard: Shard, request_id: str) -> Attempt:
    lost: list[str] = []
    request: bytes | None = None
    replies: tuple[bytes, ...] = ()
    try:
        found = requests_of(payloads, shard.path, shard.nonce)
        request = next((line for each, line in found if each == request_id), None)
    except _LOST:
        lost.append("the request was removed from the payload store, or cannot be read")
    if shard.raw_path:
        try:
            replies = tuple(_replies(payloads, shard, request_id))
        except _LOST:
            lost.append("the raw replies were removed from the payload store, or cannot be read")
    results = tuple(_results(payloads, shard, request_id))
    return Attempt(submission, shard, request, replies, results, "; ".join(lost) or None)


def _replies(payloads: PayloadStore, shard: Shard, request_id: str) -> Iterator[bytes]:
    needle, count = f"{shard.nonce}-{request_id}".encode(), 0
    for line in payloads.lines(shard.raw_path or beside(shard, RAW)):
        if needle in line:
            yield line
            count += 1
            if count == _MOST_LINES:
                return


def _results(payloads: PayloadStore, shard: Shard, request_id: str) -> Iterator[Mapping[str, Any]]:
    if not shard.results_path:
        return
    try:
        for batch in payloads.iter_batches(shard.results_path):
            yield from batch.filter(pc.equal(batch["llm_request_id"], request_id)).to_pylist()
    except _LOST:
        return
