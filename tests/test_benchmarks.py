"""The benchmark runs: small, so that it never rots. No figure is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scale import day

ROOT = Path(__file__).resolve().parents[1]


_TOLD = {
    "pipeline": ["| openai | 300 |", "| openai | 400 |", "| anthropic | 300 |", "| openai | package |"],
    "replan": ["| 300 |"],
    "runs": ["| openai | 300 |"],
    "cores": ["read again by threads"],
    "ledger": ["| 300 | 100 | 3 |"],
    "sensor": ["| openai | sqlite | 20 | all have ended |"],
    "partitions": ["| 5 | sent together", "| 5 | a run for each day | 10 |"],
    "scale": ["| statements that write |", "| all have ended |", "| CPU of PostgreSQL | ms |"],
    "money": ["| batch, identical rows once |"],
}
"""Of each part of the benchmark, what its tables hold."""


def test_the_page_of_scale_has_the_arithmetic_of_the_figures_that_are_kept() -> None:
    page = day.PAGE.read_text(encoding="utf-8")
    assert day.written(page, json.loads(day.FIGURES.read_text(encoding="utf-8"))) == page


@pytest.mark.slow
@pytest.mark.parametrize("part", _TOLD)
def test_the_benchmark_runs_and_prints_its_tables(part: str, tmp_path: Path) -> None:
    services = ["openai", "anthropic"] if part == "pipeline" else ["openai"]
    small = ["--rows", "300", "--big-rows", "400", "--runs", "1", "--services", *services, "--days", "5"]
    small += ["--run-rows", "300", "--caps", "2", "--shard-sizes", "100", "--batches", "20", "--ledgers", "sqlite"]
    small += ["--scale-partitions", "20"]
    command = [sys.executable, "-m", "benchmarks", part, *small, "--inputs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for row in _TOLD[part]:
        assert row in done.stdout


def test_the_engines_benchmark_sees_a_killed_worker_and_counts_what_it_cost(tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    command = [sys.executable, "-m", "benchmarks.engines", "python", "--rows", "30000", "--keep", str(figures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, killed, cheap = json.loads((figures / "python.json").read_text())
    for run in (whole, cheap):
        assert (run["code"], run["rows_lost"], run["rows_twice"]) == (0, 0, 0)
    assert len(whole["latencies"]) == 3
    assert killed["killed_at"] is not None
    assert killed["code"] != 0  # a pool of processes does not survive one of them
    assert 0 < killed["rows_lost"] < 30_000
    assert "| plain Python |" in done.stdout


def test_a_row_enters_at_most_40_modules_to_be_submitted_and_at_most_40_to_land() -> None:
    command = [sys.executable, "-m", "benchmarks.journey", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ways = json.loads(done.stdout)
    assert "engine.engine" in ways["submission"]
    assert "core.results" in ways["landing"]
    assert all(len(modules) <= 40 for modules in ways.values()), {way: list(modules) for way, modules in ways.items()}
