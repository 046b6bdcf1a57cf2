"""Pytest plugin `-p tests.mutants.executed_lines`: the lines of the package that each test executes in its process.

DLB_EXECUTED_LINES names the folder that gets a file of coverage.py for each process of pytest, with tests as contexts.
Lines that run in a subprocess of a test are not noted.
"""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import coverage
import pytest
from coverage.numbits import numbits_to_nums

__all__ = ["FOLDER", "Line", "tests_by_line"]

FOLDER = "DLB_EXECUTED_LINES"
_COVERAGE = pytest.StashKey[coverage.Coverage]()

Line = tuple[str, int]
"""A module, relative to the root of the repository, and one of its lines."""


def tests_by_line(folder: Path, root: Path, modules: Sequence[str]) -> Mapping[Line, frozenset[str]]:
    """Return the ids of the tests that execute each line of these modules."""
    found: dict[Line, set[str]] = defaultdict(set)
    names = {str((root / module).resolve()): module for module in modules}
    query = """
        select path, context, numbits from line_bits
        join file on file.id = file_id join context on context.id = context_id
    """
    for file in sorted(folder.glob("lines.*")):
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as read:
            for path, test, bits in read.execute(query):
                if test and (module := names.get(path)):
                    for number in numbits_to_nums(bits):
                        found[module, number].add(test)
    return {line: frozenset(tests) for line, tests in found.items()}


def pytest_configure(config: pytest.Config) -> None:
    """Begin to note lines, except in the process that only distributes tests."""
    if getattr(config.option, "dist", "no") != "no" and not hasattr(config, "workerinput"):
        return
    file = Path(os.environ[FOLDER], f"lines.{os.getpid()}")
    noted = coverage.Coverage(data_file=str(file), source=["dagster_llm_batch"], config_file=False, messages=False)
    noted.start()
    config.stash[_COVERAGE] = noted


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note lines under the id of the test."""
    item.config.stash[_COVERAGE].switch_context(item.nodeid)
    try:
        return (yield)
    finally:
        item.config.stash[_COVERAGE].switch_context("")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Write the noted lines."""
    if noted := config.stash.get(_COVERAGE, None):
        noted.stop()
        noted.save()
