"""What docs/truth.md promises is kept in the quick part of each section; `python -m benchmarks.truth` does it all."""

from __future__ import annotations

import pytest

from benchmarks.measure import ROOT
from benchmarks.truth.__main__ import QUICK_DRAWS, SECTIONS
from benchmarks.truth.page import HEAD, HELD, PAGE


@pytest.mark.parametrize("name", SECTIONS)
def test_the_quick_part_of_each_section_keeps_its_promises(name: str) -> None:
    measured = SECTIONS[name].measure(QUICK_DRAWS, True)
    assert not measured.broken
    assert measured.text.count("\n") > 2  # a table with rows


def test_the_page_names_a_test_for_each_sentence_that_was_untrue() -> None:
    assert PAGE.read_text(encoding="utf-8").startswith(HEAD)
    assert len(HELD) == 9
    for _, _, test in HELD:
        path, name = test.split("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test
