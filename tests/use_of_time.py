"""Pytest plugin `-p tests.use_of_time`: the time that tests have used, by folder, and the twenty longest tests.

Processor time counts the worker and the processes that it waited for, in seconds. `DLB_TEST_TIMES` names a CSV file
that gets a line for each test. The run also prints the processor time of a worker until it has collected all tests. It
names the tests that take more than ten seconds of processor time and have no docstring, which would give the reason.
"""

from __future__ import annotations

import csv
import os
import resource
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

__all__ = ["unexplained", "used_by_test"]

_LONGEST = 20
_NEEDS_REASON_SECONDS = 10.0
_BEGAN = pytest.StashKey[float]()
_COLLECTED = pytest.StashKey[list[float]]()


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note the processor time of this process until now: to start, to import the tests, and to collect them."""
    seconds = time.process_time()
    session.config.stash.setdefault(_COLLECTED, []).append(seconds)
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["collected_seconds"] = seconds


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the time of a worker of pytest-xdist."""
    if (seconds := getattr(node, "workeroutput", {}).get("collected_seconds")) is not None:
        node.config.stash.setdefault(_COLLECTED, []).append(seconds)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note when a test begins."""
    item.stash[_BEGAN] = _processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the used time to the report of each phase, and whether the test has a docstring."""
    report = yield
    now = _processor_seconds()
    report.processor_seconds = now - item.stash[_BEGAN]
    report.has_docstring = bool(getattr(getattr(item, "obj", None), "__doc__", None))
    item.stash[_BEGAN] = now
    return report


def used_by_test(reports: Iterable[pytest.TestReport]) -> dict[str, tuple[float, float]]:
    """Return the wall and processor time of each test, by its id, with set-up and end of its fixtures."""
    used: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for report in reports:
        wall, processor = used[report.nodeid]
        used[report.nodeid] = wall + report.duration, processor + getattr(report, "processor_seconds", 0.0)
    return dict(used)


def unexplained(reports: Iterable[pytest.TestReport], limit: float) -> dict[str, float]:
    """Return the test functions without a docstring that took more processor time than `limit`, with their seconds.

    Of several cases, the longest counts.
    """
    reports = list(reports)
    bare = {report.nodeid for report in reports if not getattr(report, "has_docstring", True)}
    longest: dict[str, float] = defaultdict(float)
    for test, (_, processor) in used_by_test(reports).items():
        if test in bare and processor > limit:
            function = test.partition("[")[0]
            longest[function] = max(longest[function], processor)
    return dict(longest)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the sums of each folder, the longest tests, and the long ones without a reason."""
    reports = [one for kind in terminalreporter.stats.values() for one in kind if isinstance(one, pytest.TestReport)]
    used = used_by_test(reports)
    if file := os.environ.get("DLB_TEST_TIMES"):
        with Path(file).open("a", newline="") as stream:
            csv.writer(stream).writerows((test, f"{wall:.3f}", f"{cpu:.3f}") for test, (wall, cpu) in used.items())
    if len(used) > _LONGEST:
        _print_table(terminalreporter, used)
        seconds = max(terminalreporter.config.stash.get(_COLLECTED, []), default=0.0)
        terminalreporter.write_line(f"{seconds:8.1f} s of processor at most until a worker has collected the tests")
    if bare := unexplained(reports, _NEEDS_REASON_SECONDS):
        terminalreporter.section("write a docstring with the reason")
        for test, processor in sorted(bare.items(), key=lambda each: -each[1]):
            terminalreporter.write_line(f"{processor:8.1f} s of processor, more than {_NEEDS_REASON_SECONDS:g}  {test}")


def _print_table(terminalreporter: pytest.TerminalReporter, used: Mapping[str, tuple[float, float]]) -> None:
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
