"""Digests that identify equal requests, rows and submissions. No clock, no randomness.

They are stored, and compared with digests by other versions of this package: a changed digest is a second bill.

request_id   = digest of one rendered request              (equal content, sent once)
configuration = digest of account, model, params, prompt turns, response schema
fingerprint  = configuration + promises of a cascade and of shared answers + all (key, request_id) pairs, in any order
block        = digest of some hundred rows as they came, and of the prompt (such rows are not rendered again)
custom_id    = <shard nonce>-<request_id>, at most 64 characters of [A-Za-z0-9_-], starting with a letter
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any

from dagster_llm_batch.types import Document, Image, Request, RequestSpec

__all__ = [
    "NONCE",
    "REQUEST_ID_BYTES",
    "RowBlocks",
    "RowsDigest",
    "block_digest",
    "canonical_json",
    "configuration_fingerprint",
    "configuration_with",
    "custom_id",
    "custom_id_pattern",
    "is_padding",
    "make_request",
    "make_requests",
    "packed",
    "padding_id",
    "request_id_of",
    "shard_nonce",
    "unpacked",
]

REQUEST_ID_BYTES = 20
_REQUEST_ID_CHARS = 2 * REQUEST_ID_BYTES
NONCE = r"(r[0-9a-f]{16})"
"""A regular expression for a shard's nonce, with one group."""

# Digests do not contain these letters.
_PADDING = "padding-"


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values have equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)


def _digest(parts: Iterable[bytes], size: int) -> str:
    h = hashlib.blake2b(digest_size=size)
    for part in parts:
        h.update(_sized(part))
    return h.hexdigest()


def _sized(part: bytes) -> bytes:
    return _size(part) + part


def _size(part: bytes) -> bytes:
    # Lengths keep ("ab", "c") apart from ("a", "bc").
    return len(part).to_bytes(8, "big")


def make_requests(system: str | None, users: Iterable[str]) -> list[Request]:
    """Return requests of text alone that share the system part, with their ids. As make_request, but faster."""
    begun, ids, users = _begun(system), [], list(users)
    for user in users:
        text, h = user.encode("utf-8", "surrogatepass"), begun.copy()
        h.update(len(text).to_bytes(8, "big"))  # as in _size
        h.update(text)
        ids.append(h.hexdigest())
    # 0.07 us less for each than Request(…).
    return list(map(Request._make, zip(ids, repeat(system), users, repeat(()), repeat(()))))


def make_request(
    system: str | None, user: str, images: tuple[Image, ...] = (), documents: tuple[Document, ...] = ()
) -> Request:
    """Return a request with its id."""
    h = _begun(system).copy()
    h.update(_sized(user.encode("utf-8", "surrogatepass")))
    for image in images:
        _update_with_file(h, image)
    for document in documents:
        # Else an image and a document of one address would have the same digest.
        h.update(_sized(b"document"))
        _update_with_file(h, document)
    return Request(h.hexdigest(), system, user, images, documents)


def _update_with_file(h: hashlib.blake2b, file: Image | Document) -> None:
    for part in ((file.media_type or "").encode(), file.data or b"", (file.url or "").encode()):
        h.update(_sized(part))


@lru_cache(maxsize=16)
def _begun(system: str | None) -> hashlib.blake2b:
    """Return the digest of a request so far, with its system part, which is mostly the same for all, and long."""
    part = b"" if system is None else b"s" + system.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(_sized(part), digest_size=REQUEST_ID_BYTES)


def configuration_fingerprint(account: str, provider: str, spec: RequestSpec) -> str:
    """Return the digest of all that an answer depends on besides the request itself."""
    content: Mapping[str, Any] = {
        "account": account,
        "provider": provider,
        "model": spec.model,
        "endpoint": spec.endpoint.value,
        "params": dict(spec.params),
        "turns": [[turn.role, turn.text] for turn in spec.turns],
        "response": [
            spec.response.kind.value,
            spec.response.name,
            spec.response.json_schema,
            spec.response.dimensions,
        ],
        "cache_prefix": spec.cache_prefix,
    }
    return _digest([canonical_json(content).encode()], 16)


def configuration_with(configuration: str, promises: Iterable[Sequence[Any]]) -> str:
    """Return the configuration for a fingerprint of rows.

    `promises` are the settings of a cascade and of shared answers. With others, other labels may be accepted, or other
    rows may share answers.
    """
    return " ".join([configuration, *map(canonical_json, promises)])


class RowsDigest:
    """A digest of (key, request_id) pairs that does not depend on their order: a sum of their digests modulo 2^256."""

    def __init__(self) -> None:
        self._sum = 0
        self.rows = 0

    def add(self, keys: Sequence[object], request_ids: Sequence[str | None]) -> int:
        """Add pairs, and return the sum of their digests. A row that is not sent has None for a request_id."""
        begun, digests = hashlib.blake2b(digest_size=32), []
        for key, request_id in zip(keys, request_ids, strict=True):
            h = begun.copy()
            h.update(f"{type(key).__name__}:{key}\0{request_id or ''}".encode("utf-8", "surrogatepass"))
            digests.append(h.digest())
        total = sum(map(int.from_bytes, digests))  # the big end first
        self.add_sum(total, len(keys))
        return total

    def add_sum(self, total: int, rows: int) -> None:
        """Add a number of pairs by the sum of their digests."""
        self._sum += total
        self.rows += rows

    def merge(self, other: RowsDigest) -> None:
        """Add the pairs of another digest."""
        self._sum += other._sum
        self.rows += other.rows

    def fingerprint(self, configuration: str) -> str:
        """Return the fingerprint of a submission with this configuration and these rows."""
        total = (self._sum % (1 << 256)).to_bytes(32, "big")
        return _digest([configuration.encode(), str(self.rows).encode(), total], 16)


def block_digest(asked: bytes, rows: Any) -> bytes:
    """Return the digest of an Arrow record batch, and of all else that its requests are made of."""
    import pyarrow as pa  # noqa: PLC0415 - definitions do without it

    # A strong digest, since people write the rows: it must be infeasible to find others with it. A batch's bytes lack
    # the schema.
    h = hashlib.sha256(asked)
    h.update(_sized(str(rows.schema.remove_metadata()).encode("utf-8", "surrogatepass")))
    # As h.update(rows.serialize()), which would be a copy of all their texts.
    stream = pa.ipc.new_stream(_Digested(h, len(rows.schema.serialize())), rows.schema)
    stream.write_batch(rows)
    return h.digest()[:_BLOCK_DIGEST_BYTES]


class _Digested(io.RawIOBase):
    """Digests the bytes written to it, from a place on. Arrow writes each column in its memory layout."""

    def __init__(self, digest: Any, start: int) -> None:
        self._digest = digest
        self._before = start

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._before > 0:
            self._before -= len(data)
        else:
            self._digest.update(data)
        return len(data)


_BLOCK_DIGEST_BYTES, _COUNT_BYTES, _SUM_BYTES = 20, 4, 32


class RowBlocks:
    """Blocks of consecutive rows: the digest of each block's rows as they came, their number, and their sum in
    RowsDigest.

    A later plan uses them to recognize rows without rendering them.
    """

    def __init__(self) -> None:
        self._packed = bytearray()

    def add(self, digest: bytes, rows: int, total: int) -> None:
        """Add the next block."""
        left = total % (1 << 8 * _SUM_BYTES)
        self._packed += digest + rows.to_bytes(_COUNT_BYTES, "big") + left.to_bytes(_SUM_BYTES, "big")

    @property
    def text(self) -> str:
        """All blocks as text; empty without blocks."""
        return base64.b64encode(self._packed).decode()

    @staticmethod
    def read(text: str) -> Iterator[tuple[bytes, int, int]]:
        """Yield the added blocks from their text. Raises ValueError for other text."""
        packed, size = base64.b64decode(text, validate=True), _BLOCK_DIGEST_BYTES + _COUNT_BYTES + _SUM_BYTES
        if len(packed) % size:
            raise ValueError(f"the blocks have {len(packed)} bytes, which is no multiple of {size}")
        for at in range(0, len(packed), size):
            digest, end = packed[at : at + _BLOCK_DIGEST_BYTES], at + size - _SUM_BYTES
            yield digest, int.from_bytes(packed[end - _COUNT_BYTES : end]), int.from_bytes(packed[end : at + size])


def shard_nonce(submission_id: str, wave: int, number: int) -> str:
    """Return the unique start of a shard's custom_ids. It begins with a letter: importers rewrite bare digits."""
    return "r" + _digest([submission_id.encode(), str(wave).encode(), str(number).encode()], 8)


def custom_id(nonce: str, request_id: str) -> str:
    return f"{nonce}-{request_id}"


def custom_id_pattern(nonce: str) -> re.Pattern[bytes]:
    """Return a pattern that finds the custom_ids of one shard in its lines; group 1 is the request_id."""
    return re.compile(nonce.encode() + rb"-([0-9a-f]{%d})" % _REQUEST_ID_CHARS)


def padding_id(number: int) -> str:
    """Return the request_id of a copy that only fills up a batch."""
    return _PADDING + f"{number:0{_REQUEST_ID_CHARS - len(_PADDING)}d}"


def is_padding(request_id: str) -> bool:
    return request_id.startswith(_PADDING)


def packed(request_ids: Iterable[str]) -> bytes:
    """Return the 20 bytes that each id spells, one after another."""
    return bytes.fromhex("".join(request_ids))


def unpacked(data: bytes | bytearray) -> list[str]:
    """Return the ids that were packed."""
    text = data.hex()
    return [text[at : at + _REQUEST_ID_CHARS] for at in range(0, len(text), _REQUEST_ID_CHARS)]


def request_id_of(custom_id: str | None, nonce: str) -> str | None:
    """Return the request_id in a result's custom_id, or None if that is not of this shard."""
    start, _, request_id = (custom_id or "").partition("-")
    return request_id if start == nonce and request_id else None
