"""Platforms that cover every pair of values, by a greedy covering array. The same seed gives the same platforms.

Datasets are alike, so slots do not matter and a pair is one of four kinds: two values of one dataset, two values of two
datasets, a value of a dataset and one of the platform, and two values of the platform. If a dataset is stopped before
it sends, only its pairs with the reason count, since the run does not try its other values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from random import Random

from tests.platforms.factors import DATASET, PLATFORM, SLOTS, STOPPING, datasets_of, defaults, names, void
from tests.platforms.platform_value import Platform

__all__ = ["Pair", "all_pairs", "pairs_of", "platforms"]

Pair = tuple[str, str, str]
"""The kind, and two values as in "vendor=openai" in the order of text."""

_TRIES = 8
_STOPPED = 0.1
_FREEST = SLOTS[::-1]
"""Evaluations ask something of the first datasets, and nothing of the last."""


def pairs_of(platform: Platform) -> set[Pair]:
    """Return the pairs that this platform tries."""
    return _pairs(platform.values, platform.slots)


def _pairs(values: Mapping[str, str], slots: tuple[str, ...]) -> set[Pair]:
    there = {"": [f"{name}={values[name]}" for name in PLATFORM if name in values]}
    for slot in slots:
        there[slot] = [f"{name}={values[key]}" for name in DATASET if (key := f"{slot}.{name}") in values]
    found: set[Pair] = set()
    tried = {group: _tried(own) for group, own in there.items()}
    for group, own in there.items():
        kind = "within" if group else "platform"
        found |= {_pair(kind, *two) for two in combinations(own, 2) if tried[group] is None or tried[group] in two}
    for one, two in combinations(there, 2):
        kind = "beside" if one else "around"
        found |= {_pair(kind, left, right) for left in _counted(there[one]) for right in _counted(there[two])}
    return found


def _pair(kind: str, one: str, two: str) -> Pair:
    return (kind, one, two) if one <= two else (kind, two, one)


def _tried(own: list[str]) -> str | None:
    return next((value for value in own if value in STOPPING), None)


def _counted(own: list[str]) -> list[str]:
    """Return the values of a dataset that matter to its neighbors: if it is stopped, only the reason and its kind."""
    stopped = _tried(own)
    if stopped is None:
        return own
    return [value for value in own if _meets(value, stopped)]


def _meets(value: str, stopped: str) -> bool:
    return value == stopped or value.startswith(("partitions=", "vendor=", "mode="))


def all_pairs() -> set[Pair]:
    """Return every pair that a platform can have: those that no rule of `factors` makes void."""
    platform = [f"{name}={value}" for name, values in PLATFORM.items() for value in values]
    dataset = [f"{name}={value}" for name, values in DATASET.items() for value in values]
    candidates = {_pair("platform", *two) for two in combinations(platform, 2)}
    candidates |= {_pair("within", *two) for two in combinations(dataset, 2)}
    candidates |= {_pair("beside", one, two) for one in dataset for two in dataset}
    candidates |= {_pair("around", one, two) for one in platform for two in dataset}
    return {pair for pair in candidates if _completed(pair) is not None}


def _completed(pair: Pair) -> dict[str, str] | None:
    """Return the plain platform with this pair and the values it needs, or None if that is impossible."""
    for start in _placed(pair):
        if (found := _repaired(start)) is not None:
            return found
    return None


def _placed(pair: Pair) -> Iterator[dict[str, str]]:
    """Yield the ways to put a pair into slots."""
    kind, one, two = pair
    (left, of_left), (right, of_right) = one.split("="), two.split("=")
    if kind == "platform":
        places = [(left, right)]
    elif kind == "within":
        places = [(f"{slot}.{left}", f"{slot}.{right}") for slot in _FREEST]
    elif kind == "beside":
        places = [(f"{a}.{left}", f"{b}.{right}") for a in _FREEST for b in _FREEST if a != b]
    else:
        own_left = left in DATASET
        places = [(f"{slot}.{left}", right) if own_left else (left, f"{slot}.{right}") for slot in _FREEST]
    for first, second in places:
        if first == second and of_left != of_right:
            continue
        chosen = {first: of_left, second: of_right}
        needed = max((SLOTS.index(name[0]) + 1 for name in chosen if "." in name), default=1)
        if int(chosen.get("datasets", "3")) < needed:
            continue
        if void(chosen) is None:
            yield chosen


def _repaired(chosen: Mapping[str, str]) -> dict[str, str] | None:
    """Fill in the other factors with plain values, or with the first that fits. Return None if a factor has none."""
    plain, every = defaults(), names()
    result = dict(chosen)
    result.setdefault("datasets", str(max(_least(chosen), 2)))
    if void(whole := {**plain, **result}) is None:
        return whole
    for name, values in every.items():
        if name in result:
            continue
        fitting = next((value for value in values if void({**result, name: value}) is None), None)
        if fitting is None:
            return None
        result[name] = fitting
    return result


def _least(chosen: Mapping[str, str]) -> int:
    """Return the least number of datasets that these factors need."""
    return max((SLOTS.index(name[0]) + 1 for name in chosen if "." in name), default=1)


def platforms(seed: int) -> Iterator[Platform]:
    """Yield platforms that together cover every pair, in greedy order: those with the most new pairs first."""
    random = Random(seed)
    left = all_pairs()
    order = sorted(left)
    random.shuffle(order)
    while left:
        order = [pair for pair in order if pair in left]
        made = [grown for pair in order[:_TRIES] if (grown := _grown(pair, left, random)) is not None]
        # If the greedy search lost the pair on its way, the plain platform around the pair still has it.
        whole = _completed(order[0])
        assert whole is not None
        best = max((*made, whole), key=lambda one: len(_pairs(one, datasets_of(one)) & left))
        left -= _pairs(best, datasets_of(best))
        yield Platform.of(best)


def _grown(pair: Pair, left: set[Pair], random: Random) -> dict[str, str] | None:
    """Return a platform with this pair, each other factor with the value that adds the most pairs of those left."""
    starts = list(_placed(pair))
    random.shuffle(starts)
    for start in starts[:2]:
        result = dict(start)
        counts = [count for count in ("3", "2", "1") if int(count) >= _least(start)]
        result.setdefault("datasets", random.choices(counts, [6, 3, 1][: len(counts)])[0])
        slots = datasets_of(result)
        open_names = [name for name in names() if name not in result and ("." not in name or name[0] in slots)]
        random.shuffle(open_names)
        # The other pairs of a dataset count only if it is not stopped.
        open_names.sort(key=lambda name: not name.endswith((".key", ".rule")))
        if _fill(result, open_names, left, random) and pair in _pairs(result, slots):
            return _repaired(result)
    return None


def _fill(result: dict[str, str], open_names: list[str], left: set[Pair], random: Random) -> bool:
    every = names()
    covered = _pairs(result, datasets_of(result))
    for name in open_names:
        options = [value for value in every[name] if void({**result, name: value}) is None]
        random.shuffle(options)
        if not options:
            return False
        # A dataset that is stopped tries little else.
        going = [value for value in options if not _stops(name, value)]
        if going and random.random() > _STOPPED:
            options = going
        gains = {value: (_new_pairs(result, name, value) & left) - covered for value in options}
        best = max(options, key=lambda value: len(gains[value]))
        covered |= gains[best]
        result[name] = best
    return True


def _stops(name: str, value: str) -> bool:
    return f"{name.rpartition('.')[2]}={value}" in STOPPING


def _new_pairs(result: Mapping[str, str], name: str, value: str) -> set[Pair]:
    """Return the pairs that a further value makes with those that are chosen."""
    slot, _, own = name.rpartition(".")
    new, found = f"{own}={value}", set()
    stopped = {one: _tried([f"{part}={result.get(f'{one}.{part}', '')}" for part in ("key", "rule")]) for one in SLOTS}
    reason = new if new in STOPPING else stopped.get(slot)
    if reason is not None and not _meets(new, reason):
        # A stopped dataset pairs this value only with the reason.
        return {_pair("within", new, reason)} if slot else set()
    for other, chosen in result.items():
        other_slot, _, other_own = other.rpartition(".")
        there = f"{other_own}={chosen}"
        if slot == other_slot:
            if reason is None or reason in (new, there):
                found.add(_pair("within" if slot else "platform", new, there))
        elif other_slot in ("", *datasets_of(result)):
            other_reason = stopped.get(other_slot)
            if other_reason is None or _meets(there, other_reason):
                found.add(_pair("beside" if slot and other_slot else "around", new, there))
    return found
