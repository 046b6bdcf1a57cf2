"""Pytest plugin `-p tests.use_of_time`: the time that tests have used, by folder, and the longest tests.

Processor time counts the worker and the processes that it waited for, in seconds. `DLB_TEST_TIMES` names a CSV file
that gets a line for each test.
"""

from __future__ import annotations

import csv
import os
import resource
from collections import defaultdict
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

__all__ = ["used_by_test"]

_LONGEST = 20
_BEGAN = pytest.StashKey[float]()


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note when a test begins."""
    item.stash[_BEGAN] = _processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the used time to the report of each phase."""
    report = yield
    now = _processor_seconds()
    report.processor_seconds = now - item.stash[_BEGAN]
    item.stash[_BEGAN] = now
    return report


def used_by_test(reports: Iterable[pytest.TestReport]) -> dict[str, tuple[float, float]]:
    """Return the wall and processor time of each test, by its id, with set-up and end of its fixtures."""
    used: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for report in reports:
        wall, processor = used[report.nodeid]
        used[report.nodeid] = wall + report.duration, processor + getattr(report, "processor_seconds", 0.0)
    return dict(used)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the sums of each folder and the longest tests."""
    reports = [one for kind in terminalreporter.stats.values() for one in kind if isinstance(one, pytest.TestReport)]
    used = used_by_test(reports)
    if file := os.environ.get("DLB_TEST_TIMES"):
        with Path(file).open("a", newline="") as stream:
            csv.writer(stream).writerows((test, f"{wall:.3f}", f"{cpu:.3f}") for test, (wall, cpu) in used.items())
    if len(used) <= _LONGEST:
        return
    folders: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for test, times in used.items():
        folders[test.partition("::")[0].rpartition("/")[0]].append(times)
    terminalreporter.section("use of time")
    for folder, times in sorted(folders.items(), key=lambda each: -sum(cpu for _, cpu in each[1])):
        processor, wall = sum(cpu for _, cpu in times), sum(seconds for seconds, _ in times)
        terminalreporter.write_line(f"{processor:8.0f} s of processor {wall:8.0f} s {len(times):6,} tests  {folder}")
    terminalreporter.write_line(f"the {_LONGEST} longest:")
    for test, (wall, processor) in sorted(used.items(), key=lambda each: -each[1][0])[:_LONGEST]:
        terminalreporter.write_line(f"{processor:8.1f} s of processor {wall:8.1f} s  {test}")
