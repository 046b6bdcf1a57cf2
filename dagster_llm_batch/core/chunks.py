"""Many things, some at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

__all__ = ["chunks"]

_T = TypeVar("_T")


def chunks(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """The values in lists of `size`, the last one shorter. As `itertools.batched`, which came with Python 3.12."""
    rest = iter(values)
    return iter(lambda: list(islice(rest, size)), [])
