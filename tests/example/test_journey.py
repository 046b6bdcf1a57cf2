"""The example's whole way, as a person runs it: a real Dagster, its daemon, detached labelers; then once more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("EXAMPLE_MODEL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "DAGSTER_HOME")


def environment(home, **settings):
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return {**kept, "EXAMPLE_HOME": str(home), "EXAMPLE_ROWS_PER_DAY": "4", "COLUMNS": "100", **settings}


def example(home, **settings):
    command = [sys.executable, "-m", "example_project.cli"]
    return subprocess.run(
        command, cwd=ROOT, env=environment(home, **settings), capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_environment_variables_alone_put_a_hosted_model_in_place_of_the_local_one(tmp_path):
    with Emulator(pace=0.1) as emulator:
        settings = {"OPENAI_API_KEY": DEFAULT_KEY, "OPENAI_BASE_URL": emulator.openai_base_url}
        done = example(tmp_path, EXAMPLE_MODEL="openai/gpt-5-nano", **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        (batch,) = emulator.books.batches  # the backfill is one run, and partitions of a run share a batch
        answered = [done.custom_id for done in emulator.books.executions if done.billed]
    assert len(answered) == len(set(answered)) == 12
    assert "in real time" in done.stdout
    assert "sentiment_shares: what all 12 tweets hold" in done.stdout
    assert "Starting Dagster" in done.stdout  # its own, which ends with it
    assert not tmp_path.joinpath("dagster.json").exists()
    labels = pl.read_parquet(tmp_path / "tables" / "tweet_sentiment" / "*.parquet")
    assert set(labels["llm_provider"]) == {"openai"}
    assert set(labels["llm_batch_id"]) == {batch.id}
    days = (tmp_path / "tables" / "tweet_sentiment").glob("*.parquet")
    assert len(list(days)) == 3
    assert labels["llm_cost_usd"].min() > 0


@contextlib.contextmanager
def ui(home):
    """`… ui`, when Dagster is up: its process, and the group of Dagster's processes."""
    command = [sys.executable, "-m", "example_project.cli", "ui"]
    shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]  # as a script's background job: SIGINT ignored
    process = subprocess.Popen(
        shell, cwd=ROOT, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        note = home / "dagster.json"
        while not (note.exists() and json.loads(note.read_text())["owner"] == process.pid):
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        yield process, json.loads(note.read_text())["pid"]
    finally:
        process.kill()


def wait_until_nothing_is_left_of(group):
    with contextlib.suppress(ProcessLookupError):
        while True:  # the killed take a moment
            os.killpg(group, 0)
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_labels_land_in_the_dagster_that_runs_a_second_run_pays_nothing_and_an_interrupt_leaves_no_process(tmp_path):
    """One journey, as each start of a Dagster takes half a minute. Of a killed example none is left either."""
    with ui(tmp_path) as (killed, orphans):
        first = example(tmp_path)
        assert first.returncode == 0, first.stdout + first.stderr
        assert "Starting Dagster" not in first.stdout
        assert "24 requests sent" in first.stdout
        labels = pl.read_parquet(tmp_path / "tables" / "tweet_sentiment" / "*.parquet")
        rejects = pl.read_parquet(tmp_path / "tables" / "tweet_sentiment_rejects" / "*.parquet")
        assert len(labels) + len(rejects) == 12
        assert set(labels["llm_model"]) == {"smollm2"}
        evaluation = pl.read_parquet(tmp_path / "tables" / "sentiment_eval.parquet")
        told = evaluation.select("candidate", "n_gold").rows()
        assert told == [("tweet_sentiment", 12), ("tweet_sentiment_lexicon", 12)]
        assert "it ran on this machine" in first.stdout
        killed.kill()
        killed.wait()
    with ui(tmp_path) as (process, group):
        wait_until_nothing_is_left_of(orphans)
        second = example(tmp_path)
        assert second.returncode == 0, second.stdout + second.stderr
        assert "0 requests sent; 24 already answered, not sent and not paid again" in second.stdout
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert "Dagster is stopped" in said
    assert process.returncode == 130
    assert not tmp_path.joinpath("dagster.json").exists()
    wait_until_nothing_is_left_of(group)


def test_a_home_that_cannot_be_written_is_named_with_what_to_do():
    done = example(Path("/proc/nowhere"))
    assert done.returncode == 1
    assert "Stopped: /proc/nowhere cannot be written" in done.stderr
    assert "Set EXAMPLE_HOME" in done.stderr
