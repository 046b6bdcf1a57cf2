"""The quick part of each section keeps the guarantees of docs/truth.md; `python -m benchmarks.truth` runs all parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.measure import ROOT
from benchmarks.truth import filters, public
from benchmarks.truth.__main__ import QUICK_DRAWS, SECTIONS
from benchmarks.truth.page import HEAD, HELD, PAGE, with_bounds
from benchmarks.truth.widths import Width, check_widths, read_bounds


@pytest.mark.slow
@pytest.mark.parametrize("name", SECTIONS)
def test_the_quick_part_of_each_section_keeps_its_promises(name: str) -> None:
    """Draw populations by the hundred for each section, which takes long."""
    measured = with_bounds(name, SECTIONS[name].measure(QUICK_DRAWS, True))
    assert not measured.broken
    assert measured.text.count("\n") > 2  # a table with rows


def test_a_width_that_doubles_is_over_its_bound_in_every_row_and_a_row_without_a_bound_is_told() -> None:
    bounds = read_bounds()
    assert {section for section, _ in bounds} == {"intervals", "samples", "means"}
    for (section, row), (of, measured, _) in bounds.items():
        same, doubled = (
            Width(None, times * measured) if of == "oracle's" else Width(times * measured, None) for times in (1, 2)
        )
        assert not check_widths(section, {row: same})
        assert check_widths(section, {row: doubled})
    assert "has no bound" in check_widths("means", {"another row": Width(1.0, 1.0)})[0]


def test_the_page_names_a_test_for_each_sentence_that_was_untrue() -> None:
    assert PAGE.read_text(encoding="utf-8").startswith(HEAD)
    assert len(HELD) >= 12
    for _, _, test in HELD:
        path, name = test.split("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test


def test_public_data_sets_are_read_from_a_folder_and_our_cascade_and_estimates_are_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    proxy = rng.beta(0.3, 0.3, 4_000)
    label = (rng.random(4_000) < proxy).astype(int)
    pl.DataFrame({"id": range(4_000), "label": label, "proxy_score": proxy}).write_csv(tmp_path / "made.csv")
    [data] = public.read_folder(tmp_path)
    assert data.wrong.mean() == pytest.approx(np.minimum(proxy, 1 - proxy).mean(), abs=0.03)
    measured = public.section_of(tmp_path).measure(3, False)
    assert "| made | 4000 | 0.98 |" in measured.text
    assert "| made | 100 | ours |" in measured.text
    measured = filters.section_of(tmp_path).measure(3, False)
    assert "| made | precision 0.95 |" in measured.text
    assert not measured.broken


@pytest.mark.parametrize(
    ("text", "said"),
    [("label,score\n1,0.5\n", "has no column proxy_score"), ("label,proxy_score\n2,0.5\n", "label is 0 or 1")],
)
def test_a_public_file_of_another_form_is_refused_with_what_it_lacks(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SystemExit, match="has no CSV file"):
        public.read_folder(tmp_path)
    (tmp_path / "tacred.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match=said):
        public.read_folder(tmp_path)


@pytest.mark.slow
def test_without_a_folder_the_public_comparison_asks_for_one() -> None:
    command = [sys.executable, "-m", "benchmarks.truth", "public"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "give their folder, --data FOLDER" in told.stderr
