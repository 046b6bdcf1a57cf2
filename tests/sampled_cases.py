"""Pytest plugin of the ten-minute run, `-p tests.sampled_cases`: it runs some cases of each test, the same each time.

It leaves out tests with the marks `slow` (except for a `journey`) and `simulation`. It leaves out the functions in
`tests/left_out.txt`, too: for each, quicker tests execute the same lines, as `python3 -m tests.mutants choose` found. A
test that needs no server, ledger or Dagster runs with all cases: its fixtures are pytest's own. Other tests run two
cases, or the number in their mark `sample`; `sample()` runs all. The first case is drawn by its id. The next case is
the one with the most parameter values that are not chosen yet: a test of each vendor on both ledgers runs with two
vendors, on both ledgers, and the next test with two others.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

__all__ = ["LEFT_OUT", "choose_cases", "of_ten_minutes"]

LEFT_OUT = Path(__file__).with_name("left_out.txt")
"""The test functions that only `python3 -m tests rest` and `all` run, one a line."""
CASES = 2
_PYTESTS_OWN = {
    "request",
    "tmp_path_factory",
    "tmp_path",
    "monkeypatch",
    "capsys",
    "capfd",
    "caplog",
    "recwarn",
    "record_property",
}
_Value = tuple[str, int]
_Case = TypeVar("_Case")


def choose_cases(cases: Mapping[_Case, set[_Value]], count: int) -> set[_Case]:
    """Return `count` of the cases, each chosen for the most new values.

    `cases` are in the order in which equal ones are taken.
    """
    left, chosen, seen = list(cases), set[_Case](), set[_Value]()
    while left and len(chosen) < count:
        best = max(left, key=lambda case: len(cases[case] - seen))
        left.remove(best)
        chosen.add(best)
        seen |= cases[best]
    return chosen


def _count_of(item: pytest.Item, among: int) -> int:
    if mark := item.get_closest_marker("sample"):
        return mark.args[0] if mark.args else among
    return among if _is_plain(item) else CASES


def _is_plain(item: pytest.Item) -> bool:
    given = [mark.args[0] for mark in item.iter_markers("parametrize")]
    names = {name.strip() for one in given for name in (one.split(",") if isinstance(one, str) else one)}
    return set(getattr(item, "fixturenames", ())) - names <= _PYTESTS_OWN


def _values_of(item: pytest.Item) -> set[_Value]:
    callspec = getattr(item, "callspec", None)
    return set(callspec.indices.items()) if callspec is not None else set()


def _drawn(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    ordered = sorted(items, key=lambda item: zlib.crc32(item.nodeid.encode()))
    return choose_cases({item: _values_of(item) for item in ordered}, _count_of(items[0], len(items)))


def of_ten_minutes(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Return the tests of the ten-minute run among these."""
    by_function: dict[str, list[pytest.Item]] = defaultdict(list)
    left_out = frozenset(LEFT_OUT.read_text(encoding="utf-8").splitlines())
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        function = item.nodeid.partition("[")[0]
        if function not in left_out and "simulation" not in marks and ("slow" not in marks or "journey" in marks):
            by_function[function].append(item)
    return set[pytest.Item]().union(*map(_drawn, by_function.values()))


# Called after -m has left out tests.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the ten minutes, the journey first, and count the others as deselected."""
    kept = of_ten_minutes(items)
    if left_out := [item for item in items if item not in kept]:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item in kept]
    # It takes minutes and waits for much of them, so the other tests run beside it.
    items.sort(key=lambda item: item.get_closest_marker("journey") is None)
