"""The benchmark runs: small, so that it never rots. Measured values are not asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks import inputs, measure, page
from benchmarks.scale import day

ROOT = Path(__file__).resolve().parents[1]


_TOLD = {
    "shapes": [
        "| openai | 1 KB | 300 |",
        "| openai | embeddings, 1,536 | 30 |",
        "| openai | planned again, unchanged | 300 |",
        "The most memory in this table",
    ],
    "chains": ["| 2 | 20 |"],
    "parts": ["| 20 texts of 5 parts, gathered | 100 |"],
    "copies": ["| 300 | 100 |", "| 300 | near copies share answers |", "fewer requests are sent"],
    "runs": ["| openai | 300 |"],
    "cores": ["read again by threads"],
    "ledger": ["| 300 | 100 | 3 |"],
    "sensor": ["| openai | sqlite | 20 | 20 | all have ended |", "| openai | sqlite | 2 | 5 | none is due |"],
    "partitions": ["| 5 | sent together", "| 2 | a run for each day | 4 |"],
    "scale": ["| statements that write |", "| all have ended |", "| CPU of PostgreSQL | ms |"],
    "money": ["| batch, identical rows once |"],
}
"""Contents of the tables of each part of the benchmark."""


def test_the_page_of_scale_has_the_arithmetic_of_the_figures_that_are_kept() -> None:
    page = day.PAGE.read_text(encoding="utf-8")
    assert day.written(page, json.loads(day.FIGURES.read_text(encoding="utf-8"))) == page


def test_the_readme_says_of_memory_what_the_page_has() -> None:
    text, readme = (path.read_text(encoding="utf-8") for path in (page.PAGE, page.README))
    assert page.readme_with(readme, text) == readme


def test_sections_that_were_not_measured_stay_on_the_page() -> None:
    before = page.page_with(page.PAGE.read_text(encoding="utf-8"), {}, "2 cores")
    title = page.TEXTS["money"].partition("\n")[0]
    after = page.page_with(before, {"money": f"{title}\n\nMuch.\n"}, "2 cores")
    start, end = before.index(title), before.index("\n## ", before.index(title))
    assert after == f"{before[:start]}{title}\n\nMuch.\n{before[end:]}"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["label", "nested", "choice", "embedding"])
def test_floor_and_package_land_the_same_labels(form: str, tmp_path: Path) -> None:
    rows = inputs.rows_file(tmp_path, 50)
    for name in ("floor", "package"):
        (tmp_path / name).mkdir()
    with measure.mock("openai", form) as addresses:
        measure.child("benchmarks.floor", "openai", rows, addresses["url"], tmp_path / "floor", form)
        where = (tmp_path / "package", json.dumps(addresses), "{}", form)
        measure.child("benchmarks.package", "openai", rows, *where)
    floor, package = (pq.read_table(tmp_path / name / "labels.parquet").sort_by("id") for name in ("floor", "package"))
    answers = [name for name in floor.column_names if name in package.column_names]
    assert len(answers) == len(floor.column_names) - len(["tokens_in", "tokens_out"])
    assert floor.select(answers).cast(package.select(answers).schema).equals(package.select(answers))


@pytest.mark.slow
@pytest.mark.parametrize("part", _TOLD)
def test_the_benchmark_runs_and_prints_its_tables(part: str, tmp_path: Path) -> None:
    """Use the fewest rows: a benchmark measures, and takes long."""
    small = ["--rows", "300", "--big-rows", "0", "--runs", "1", "--services", "openai", "--days", "5"]
    small += ["--only", "1 KB", "embeddings", "again", "--runs-of-days", "2"]
    small += ["--growing", "1", "2", "--rows-a-day", "10"]
    small += ["--run-rows", "300", "--caps", "2", "--shard-sizes", "100", "--batches", "20", "--ledgers", "sqlite"]
    small += ["--scale-partitions", "20", "--texts", "20", "--grouped", "300", "--near-rows", "300"]
    command = [sys.executable, "-m", "benchmarks", part, *small, "--inputs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for row in _TOLD[part]:
        assert row in done.stdout


@pytest.mark.slow
def test_the_engines_benchmark_sees_a_killed_worker_and_counts_what_it_cost(tmp_path: Path) -> None:
    """Start engines whose workers each import the package, which takes long."""
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


# The ledger's one class of 73 methods is now ten members, and the steps of a plan are separate: more modules, each a
# small part of an earlier one. So functions are bounded, too, since such a split does not multiply them. A batch and a
# bill are separate records, with one module and a dozen functions that write and read them. A batch ends for all of its
# shards at once, which takes four more. One module checks before each batch that rows go to an allowed region.
def test_a_row_enters_few_modules_and_functions_to_be_submitted_and_to_land() -> None:
    command = [sys.executable, "-m", "benchmarks.journey", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ways = json.loads(done.stdout)
    assert "engine.engine" in ways["submission"]
    assert "core.results" in ways["landing"]
    assert len(ways["submission"]) <= 63, sorted(ways["submission"])
    assert len(ways["landing"]) <= 52, sorted(ways["landing"])
    assert sum(map(len, ways["submission"].values())) <= 525
    # Three of these count the batches without news, so that a poll reads a row a batch and not a row a shard.
    assert sum(map(len, ways["landing"].values())) <= 405
