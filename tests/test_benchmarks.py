"""The benchmark runs: small, so that it never rots. No figure is asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_benchmark_runs_and_prints_its_tables(tmp_path: Path) -> None:
    parts = ["pipeline", "partitions", "money"]
    small = ["--rows", "300", "--services", "openai", "anthropic", "--runs", "1", "--days", "5"]
    command = [sys.executable, "-m", "benchmarks", *parts, *small, "--inputs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    for row in ("| openai | 300 |", "| anthropic | 300 |", "| 5 | sent together", "| batch, identical rows once |"):
        assert row in done.stdout
