"""A chain in a real Dagster: a backfill of the first step, the daemon's sensors for the rest, and an erased row."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from dagster_dev import dagster_dev, marked
from test_live import DAYS, Reader

from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.testing.emulator.answers import last_user_text

DEFINITIONS = Path(__file__).with_name("live_chain_defs.py")
NAMES = ("kinds", "totals")


def keys(tables: Path, name: str) -> dict[str, list[str]]:
    """Return the stored keys of each day, by their last parts."""
    found = {}
    for day in DAYS:
        files = sorted(path for path in (tables / name).rglob("*.parquet") if day in str(path))
        stored = pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files])
        found[day] = sorted(key.removeprefix(f"{day}-") for key in stored["id"].to_list())
    return found


def erase(home: Path, env: dict[str, str], key: str) -> None:
    """Erase a row of both datasets by the command, in a process of its own."""
    program = str(Path(sys.executable).with_name("dagster-llm-batch"))
    command = [sys.executable, program, "erase", *NAMES, "--key", key, "--delete", "--yes"]
    told = subprocess.run(
        [*command, "-f", str(DEFINITIONS)],
        env={**os.environ, **env, "DAGSTER_HOME": str(home)},
        cwd=home.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_each_day_goes_through_both_steps_and_an_erased_row_leaves_both(tmp_path):
    """Start a real Dagster, which takes half a minute, and then works at its daemon's pace."""
    asked: list[str] = []

    def answer(body: Any, _endpoint: str) -> Any:
        text = last_user_text(body)
        asked.append(text)
        words = text.split()
        return {"kind": words[1]} if words[0] == "Kind:" else {"total": int(words[-1])}

    tables = tmp_path / "tables"
    with Emulator(answer=answer, pace=0.5) as emulator:
        env = {"OPENAI_BASE_URL": emulator.openai_base_url, "OPENAI_API_KEY": DEFAULT_KEY, "TABLES": str(tables)}
        with dagster_dev(tmp_path, DEFINITIONS, env) as dev:
            seen = Reader(dev)
            seen.backfill("kinds_batch", DAYS)
            dev.until("three days of totals", lambda: sorted(seen.materializations("totals")) == DAYS)
            dev.until("their rejects", lambda: sorted(seen.materializations("totals_rejects")) == DAYS)
            assert keys(tables, "kinds") == {day: ["0", "1", "2", "3"] for day in DAYS}
            assert keys(tables, "totals") == {day: ["0", "2"] for day in DAYS}
            # Rows left out are no rejects.
            assert keys(tables, "totals_rejects") == {day: [] for day in DAYS}
            sent = seen.materializations("totals_batch")
            counts = {(one["llm_batch/rows"], one["llm_batch/rows_left_out_by_when"]) for one in sent.values()}
            assert counts == {(2, 2)}
            assert [sorted(seen.landings(name)) for name in NAMES] == [DAYS, DAYS]  # each one once
            assert (len(asked), set(Counter(asked).values())) == (6 * len(DAYS), {1})
            assert seen.failed_runs() == []

            # A row is erased in both steps, and its day is materialized again.
            erase(tmp_path / "home", env, f"{DAYS[0]}-0")
            seen.backfill("kinds", DAYS[:1])
            seen.backfill("kinds_rejects", DAYS[:1])
            dev.until("kinds without the row", lambda: keys(tables, "kinds")[DAYS[0]] == ["1", "2", "3"])
            seen.backfill("totals", DAYS[:1])
            seen.backfill("totals_rejects", DAYS[:1])
            dev.until("totals without the row", lambda: keys(tables, "totals")[DAYS[0]] == ["2"])
            assert keys(tables, "kinds")[DAYS[1]] == ["0", "1", "2", "3"]
            # The condition may submit the day again: its rows are known, so nothing more is asked.
            assert len(asked) == 6 * len(DAYS)
            assert seen.failed_runs() == []
            assert [one["error"] for one in seen.ticks() if one["status"] == "FAILURE"] == []
    assert marked(str(tmp_path)) == []
