"""Streams taken some values at a time, so that no step holds all of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

__all__ = ["chunks"]

_T = TypeVar("_T")


# itertools.batched does this from Python 3.12 on; the package runs on 3.11, too.
def chunks(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield the values in lists of `size`, the last one shorter."""
    rest = iter(values)
    return iter(lambda: list(islice(rest, size)), [])
