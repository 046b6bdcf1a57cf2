"""The stored files of a shard, next to its request file: their names, and the request_ids in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from itertools import chain

from dagster_llm_batch.core.identity import custom_id_pattern, packed, unpacked
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.storage.stored_files import LostError, UnreadableFileError

__all__ = [
    "APART",
    "CALIBRATION",
    "ERASING",
    "IDS",
    "OLDER",
    "PART",
    "RAW",
    "RELABELS",
    "REQUESTS",
    "RESULTS",
    "SENT",
    "SHARES",
    "SO_FAR",
    "answers_so_far",
    "beside",
    "delete_requests",
    "ids_in",
    "names_any",
    "packed_ids",
    "request_ids",
    "requests_of",
    "write_answers_so_far",
    "write_ids",
]

CALIBRATION = "cascade.json"
"""The name of the file that has the sample and the threshold of a submission."""

SHARES = "near.parquet"
"""The name of the file that has the near copies of a submission, and the decision on them."""

RELABELS = "relabel.parquet"
"""The name of the file that has the rows of a submission with an older label, and the decision on them."""

OLDER = "older.parquet"
"""The name of the file that has the older answers of these rows, as far as they may stay."""

REQUESTS, IDS, RAW, RESULTS = ".requests.jsonl.lz4", ".ids.lz4", ".raw.jsonl.zst", ".results.parquet"
"""The endings of a shard's files; their names are otherwise equal. zstd is for raw results, which are kept for long;
the others are read soon, and lz4 is faster."""

SO_FAR = ".sofar.jsonl.zst"
"""The ending of the answers so far of a shard in real time that was not asked to its end. They are not paid again."""

SENT = ".sent.zst"
"""The ending of a shard's receipt; see loop/receipts.py."""

ERASING = "erasing.ids.lz4"
"""The name of the list of a submission's requests that are being erased, while they are."""

PART, APART = "part-", "apart-"
"""The starts of the names of files that workers need within one step. A lost worker leaves them behind."""

_ID = "llm_request_id"
_DIGEST_BYTES = 16


def beside(shard: Shard, ending: str) -> str:
    """Return the path of another file of the shard."""
    return shard.path.rpartition(".requests.")[0] + ending


def requests_of(payloads: PayloadStore, path: str, nonce: str) -> Iterator[tuple[str, bytes]]:
    """Yield the lines of a request file, each with its request_id. Raises LLMBatchError for a line without one."""
    pattern, prefix = custom_id_pattern(nonce), f"{nonce}-".encode()
    # The request_id is mostly at the same place as in the line before, which is faster to look at than to search.
    start = end = 0
    for line in payloads.lines(path):
        if not line.startswith(prefix, start - len(prefix)):
            match = pattern.search(line)
            if match is None:
                msg = f"A line of {path} has no custom_id of its shard: the file was changed after it was planned."
                raise LLMBatchError(msg)
            start, end = match.span(1)
        yield line[start:end].decode(), line


def names_any(line: bytes, nonce: str, wanted: Collection[str]) -> bool:
    """Return whether a raw line has only custom_ids of these requests among its shard's."""
    found = [request_id.decode() for request_id in custom_id_pattern(nonce).findall(line)]
    return bool(found) and all(request_id in wanted for request_id in found)


def packed_ids(payloads: PayloadStore, shard: Shard) -> bytes:
    """Return the request_ids of a shard, packed, in the order of its request file."""
    # Shards of older versions lack this file. If it cannot be read, the request file has the ids, too.
    if (ids := ids_in(payloads, beside(shard, IDS), shard.nonce)) is not None:
        return ids
    try:
        return packed(request_id for request_id, _ in requests_of(payloads, shard.path, shard.nonce))
    except UnreadableFileError:
        raise
    except LLMBatchError as error:
        # The results of a collected shard have one for each request.
        if shard.state is ShardState.COLLECTED and shard.results_path and payloads.is_whole(shard.results_path):
            batches = payloads.iter_batches(shard.results_path, columns=[_ID])
            return packed(chain.from_iterable(batch.column(0).to_pylist() for batch in batches))
        raise LostError(
            f"The list of the {shard.requests:,} requests of shard {shard.shard_id} is lost or damaged: {shard.path} "
            f"and {beside(shard, IDS)}. So it is unknown which requests batch {shard.batch.batch_id} has. They are "
            "sent again only after the sensor has collected that batch. Run again then, or restore one of the two "
            f"files from a backup. `dagster-llm-batch resolve {shard.shard_id} --lost` abandons the batch."
        ) from error


def ids_in(payloads: PayloadStore, path: str, nonce: str) -> bytes | None:
    """Return the packed request_ids in a file of the shard with this nonce; None where it cannot be read."""
    try:
        with payloads.reader(path) as file:
            digest, ids = file.read(_DIGEST_BYTES), file.read()
    except OSError:
        return None
    return ids if digest == _digest(nonce, ids) else None


def request_ids(payloads: PayloadStore, shard: Shard) -> list[str]:
    """Return the request_ids of a shard, in the order of its request file."""
    return unpacked(packed_ids(payloads, shard))


def write_ids(payloads: PayloadStore, shard: Shard, ids: bytes) -> None:
    """Store the request_ids of a shard, packed, in the order of its request file."""
    with payloads.writer(beside(shard, IDS)) as out:
        out.write(_digest(shard.nonce, ids))
        out.write(ids)


def _digest(nonce: str, ids: bytes) -> bytes:
    return hashlib.blake2b(ids, key=nonce.encode(), digest_size=_DIGEST_BYTES).digest()


def delete_requests(payloads: PayloadStore, shard: Shard) -> None:
    """Remove the request file of a shard, and the file of its request_ids."""
    payloads.delete(shard.path)
    payloads.delete(beside(shard, IDS))


def answers_so_far(payloads: PayloadStore, shard: Shard) -> dict[int, bytes]:
    """Return the answers so far of a shard in real time, by the place in its request file.

    An empty line represents a call of unknown end, which is not made again in this wave.
    """
    path = beside(shard, SO_FAR)
    if not payloads.exists(path):
        return {}
    places, *answers = payloads.lines(path)
    return dict(zip(json.loads(places), answers, strict=True))


def write_answers_so_far(payloads: PayloadStore, shard: Shard, answers: Mapping[int, bytes]) -> None:
    """Store answers for `answers_so_far`."""
    with payloads.writer(beside(shard, SO_FAR)) as out:
        out.write(json.dumps(list(answers)).encode() + b"\n")
        for answer in answers.values():
            out.write(answer)
