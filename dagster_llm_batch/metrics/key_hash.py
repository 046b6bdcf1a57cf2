"""Chance that depends only on a row's key and a seed: every run on every machine draws the same rows, in any order, and
added rows change nothing for the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

__all__ = ["draw_keys", "unit"]

# as many as a float holds
_BITS = 53


def unit(key: object, seed: object) -> float:
    """Return a practically uniform number in [0, 1)."""
    text = f"{seed}\0{key}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) / (1 << _BITS)


def draw_keys(keys: Iterable[Any], size: int, seed: object) -> set[Any]:
    """Draw `size` of the keys, or all, with equal probability."""
    return set(sorted(keys, key=lambda key: (unit(key, seed), str(key)))[:size])
