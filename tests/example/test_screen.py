"""The screen of a person who waits, on a terminal of the usual width."""

from __future__ import annotations

import pytest

from example_project.journey import DATASETS
from example_project.screen import Bar, Screen


def test_names_and_counts_are_whole_on_80_columns_and_the_bars_take_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    Screen().show([Bar(name, "3 of 3 days materialized", 300, 300) for name in DATASETS], last=True)
    shown = capsys.readouterr().out.splitlines()
    for name in DATASETS:
        [line] = [line for line in shown if f" {name} " in line]
        assert "━━━━" in line
        assert line.rstrip().endswith("300 of 300 3 of 3 days materialized")
        assert len(line) <= 80
