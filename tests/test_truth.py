"""What docs/truth.md promises is kept in the quick part of each section; `python -m benchmarks.truth` does it all."""

from __future__ import annotations

import pytest

from benchmarks.truth.__main__ import QUICK_DRAWS, SECTIONS


@pytest.mark.parametrize("name", SECTIONS)
def test_the_quick_part_of_each_section_keeps_its_promises(name: str) -> None:
    measured = SECTIONS[name].measure(QUICK_DRAWS, True)
    assert not measured.broken
    assert measured.text.count("\n") > 2  # a table with rows
