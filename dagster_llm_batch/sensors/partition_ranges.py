"""Ranges of partitions for one run of Dagster. For multi-partitions, a range has a span in each dimension."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import product
from math import prod

__all__ = ["Place", "ranges_of"]

Place = tuple[int, ...]
"""The place of a partition among all: one number, or one for each dimension of multi-partitions."""

_Box = tuple[range, ...]


def ranges_of(places: Collection[Place], most: int) -> Iterator[list[Place]]:
    """Yield exactly these places in few ranges, each with at most so many places.

    The first and the last place of each range are its ends.
    """
    if places:
        for box in _boxes(places):
            for part in _parts(box, most):
                yield list(product(*part))


def _boxes(places: Collection[Place]) -> list[_Box]:
    """Return boxes that together hold exactly these places, each once."""
    dimensions = len(next(iter(places)))
    if dimensions == 1:
        return [(span,) for span in _spans(place[0] for place in places)]
    # A set that is cut along one dimension may be whole along another.
    return min((_boxes_along(axis, places) for axis in range(dimensions)), key=len)


def _boxes_along(axis: int, places: Collection[Place]) -> list[_Box]:
    """Return the boxes that join equal slices at neighbouring places of one dimension."""
    slices: dict[int, list[Place]] = defaultdict(list)
    for place in places:
        slices[place[axis]].append(place[:axis] + place[axis + 1 :])
    alike: dict[_Box, list[int]] = defaultdict(list)
    for at, others in slices.items():
        for box in _boxes(others):
            alike[box].append(at)
    return [(*box[:axis], span, *box[axis:]) for box, ats in alike.items() for span in _spans(ats)]


def _spans(numbers: Iterable[int]) -> Iterator[range]:
    """Yield the spans of numbers that follow each other."""
    span = range(0)
    for number in sorted(numbers):
        if span and number != span.stop:
            yield span
            span = range(0)
        span = range(span.start if span else number, number + 1)
    if span:
        yield span


def _parts(box: _Box, most: int) -> Iterator[_Box]:
    """Yield parts of the box with at most so many places each."""
    shape = _shape([len(span) for span in box], most)
    cuts = [
        [span[start : start + size] for start in range(0, len(span), size)]
        for span, size in zip(box, shape, strict=True)
    ]
    yield from product(*cuts)


def _shape(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """Return the size of the parts in each dimension that gives the fewest parts."""
    if len(sizes) == 1:
        return (min(sizes[0], most),)
    shapes = ((size, *_shape(sizes[1:], most // size)) for size in range(1, min(sizes[0], most) + 1))
    return min(shapes, key=lambda shape: prod(-(-size // part) for size, part in zip(sizes, shape, strict=True)))
