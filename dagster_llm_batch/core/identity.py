"""What makes two requests, rows and submissions the same. Digests only; nothing here reads a clock or draws a number.

request_id   = digest of one rendered request              (equal content, sent once)
configuration = digest of account, model, params, prompt turns, response schema
fingerprint  = configuration + all (key, request_id) pairs, whatever their order
custom_id    = <shard nonce>-<request_id>, at most 64 characters of [A-Za-z0-9_-], starting with a letter
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any

from dagster_llm_batch.types import Image, Request, RequestSpec

__all__ = [
    "NONCE",
    "REQUEST_ID_BYTES",
    "RowsDigest",
    "canonical_json",
    "configuration_fingerprint",
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
"""What a shard's nonce looks like, as a regular expression with one group."""

_PADDING = "padding-"  # no digest has these letters


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)


def _digest(parts: Iterable[bytes], size: int) -> str:
    h = hashlib.blake2b(digest_size=size)
    for part in parts:
        h.update(_sized(part))
    return h.hexdigest()


def _sized(part: bytes) -> bytes:
    return _size(part) + part


def _size(part: bytes) -> bytes:
    return len(part).to_bytes(8, "big")  # lengths keep ("ab", "c") apart from ("a", "bc")


def make_requests(system: str | None, users: Iterable[str]) -> list[Request]:
    """Requests of text alone that share the system part, with their ids."""
    begun, ids, users = _begun(system), [], list(users)
    for user in users:
        text, h = user.encode("utf-8", "surrogatepass"), begun.copy()
        h.update(len(text).to_bytes(8, "big"))  # as in _size
        h.update(text)
        ids.append(h.hexdigest())
    return list(map(Request._make, zip(ids, repeat(system), users, repeat(()))))  # in 0.07 us less each than Request(…)


def make_request(system: str | None, user: str, images: tuple[Image, ...] = ()) -> Request:
    """A Request with its id."""
    h = _begun(system).copy()
    h.update(_sized(user.encode("utf-8", "surrogatepass")))
    for image in images:
        for part in ((image.media_type or "").encode(), image.data or b"", (image.url or "").encode()):
            h.update(_sized(part))
    return Request(h.hexdigest(), system, user, images)


@lru_cache(maxsize=16)
def _begun(system: str | None) -> hashlib.blake2b:
    """The digest of a request whose system part is in: mostly the same for all requests, and long."""
    part = b"" if system is None else b"s" + system.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(_sized(part), digest_size=REQUEST_ID_BYTES)


def configuration_fingerprint(account: str, provider: str, spec: RequestSpec) -> str:
    """Digest of all that decides an answer besides the request itself."""
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


class RowsDigest:
    """A digest of (key, request_id) pairs that does not depend on their order: a sum of their digests modulo 2^256."""

    def __init__(self) -> None:
        self._sum = 0
        self.rows = 0

    def add(self, keys: Sequence[object], request_ids: Sequence[str]) -> None:
        """Add some pairs."""
        begun, digests = hashlib.blake2b(digest_size=32), []
        for key, one in zip(keys, request_ids, strict=True):
            h = begun.copy()
            h.update(f"{type(key).__name__}:{key}\0{one}".encode("utf-8", "surrogatepass"))
            digests.append(h.digest())
        self._sum += sum(map(int.from_bytes, digests))  # the big end first
        self.rows += len(keys)

    def merge(self, other: RowsDigest) -> None:
        """Add the pairs of another one."""
        self._sum += other._sum
        self.rows += other.rows

    def fingerprint(self, configuration: str) -> str:
        """The fingerprint of a submission with this configuration and these rows."""
        total = (self._sum % (1 << 256)).to_bytes(32, "big")
        return _digest([configuration.encode(), str(self.rows).encode(), total], 16)


def shard_nonce(submission_id: str, wave: int, number: int) -> str:
    """What starts every custom_id of a shard, and no other's. A letter first: importers rewrite bare digits."""
    return "r" + _digest([submission_id.encode(), str(wave).encode(), str(number).encode()], 8)


def custom_id(nonce: str, request_id: str) -> str:
    return f"{nonce}-{request_id}"


def custom_id_pattern(nonce: str) -> re.Pattern[bytes]:
    """Finds the custom_ids of one shard in its lines; group 1 is the request_id."""
    return re.compile(nonce.encode() + rb"-([0-9a-f]{%d})" % _REQUEST_ID_CHARS)


def padding_id(number: int) -> str:
    """In place of a request's id: a copy that only fills a batch up."""
    return _PADDING + f"{number:0{_REQUEST_ID_CHARS - len(_PADDING)}d}"


def is_padding(request_id: str) -> bool:
    return request_id.startswith(_PADDING)


def packed(request_ids: Iterable[str]) -> bytes:
    """The 20 bytes that each id spells."""
    return bytes.fromhex("".join(request_ids))


def unpacked(data: bytes) -> list[str]:
    """The ids that were packed."""
    text = data.hex()
    return [text[at : at + _REQUEST_ID_CHARS] for at in range(0, len(text), _REQUEST_ID_CHARS)]


def request_id_of(custom_id: str | None, nonce: str) -> str | None:
    """The request a result line speaks of, or None where it is not one of this shard's."""
    start, _, request_id = (custom_id or "").partition("-")
    return request_id if start == nonce and request_id else None
