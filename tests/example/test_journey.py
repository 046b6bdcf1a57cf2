"""The example's whole journey, as a person runs it, twice: a real Dagster, its daemon, and detached labelers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
import pytest

from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from tests.browser import chromium

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE_SECONDS, UI_SECONDS, END_SECONDS = 500, 330, 60
SETTINGS = ("EXAMPLE_MODEL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "DAGSTER_HOME")


EVIDENCE = """
import datetime, pathlib, sys
import dagster as dg
from example_project.standstill import describe_dagster
home = pathlib.Path(sys.argv[1])
with dg.DagsterInstance.from_config(str(home / "dagster_home")) as instance:
    print(describe_dagster(instance, datetime.datetime.fromtimestamp(0, datetime.UTC), home / "dagster.log"))
"""


def environment(home, **settings):
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    # PYTHONFAULTHANDLER: an example that hangs is ended by SIGABRT, and prints its stack on stderr
    fixed = {"EXAMPLE_ROWS_PER_DAY": "4", "EXAMPLE_CASCADE_ROWS": "4", "COLUMNS": "100"}
    fixed |= {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
    return {**kept, "EXAMPLE_HOME": str(home), **fixed, **settings}


def evidence(home):
    """Return Dagster's runs, ticks and daemons in this home, and the end of its log."""
    command = [sys.executable, "-c", EVIDENCE, str(home)]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        return f"What Dagster did cannot be read within {END_SECONDS} s."
    return found.stdout + found.stderr


def end(process, home):
    """End a process that hangs, with its stack on its stderr, and the Dagster that it started."""
    process.send_signal(signal.SIGABRT)
    groups = [process.pid]
    with contextlib.suppress(OSError, ValueError, KeyError):
        note = json.loads((home / "dagster.json").read_text())
        groups += [note["pid"]] if note["owner"] == process.pid else []
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    process.wait()


def example(home, *arguments, seconds=EXAMPLE_SECONDS, **settings):
    """Run the example. If it does not end, end it, and fail the test with all that is known about it."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:

        def said():
            for file in (out, err):
                file.seek(0)
            return out.read(), err.read()

        process = subprocess.Popen(
            [sys.executable, "-m", "example_project.cli", *arguments],
            cwd=ROOT,
            env=environment(home, **settings),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except BaseException as error:  # pytest's own time limit too
            known = evidence(home)
            end(process, home)
            print(f"The example has not ended: {error!r}", *said(), known, sep="\n")
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, *said())


def all_of(done, home):
    """Return all that helps to explain an example's unexpected end."""
    return "\n".join([done.stdout, done.stderr, evidence(home)])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_environment_variables_alone_put_a_hosted_model_in_place_of_the_local_one(tmp_path):
    """Start a real Dagster, which takes half a minute."""
    with Emulator(pace=0.1) as emulator:
        settings = {"OPENAI_API_KEY": DEFAULT_KEY, "OPENAI_BASE_URL": emulator.openai_base_url}
        done = example(tmp_path, EXAMPLE_MODEL="openai/gpt-5-nano", **settings)
        assert done.returncode == 0, all_of(done, tmp_path)
        (batch,) = emulator.books.batches  # the backfill is one run, and partitions of a run share a batch
        answered = [done.custom_id for done in emulator.books.executions if done.billed]
    assert len(answered) == len(set(answered)) == 12
    assert "in real time" in done.stdout
    assert "sentiment_shares: what all 12 tweets hold" in done.stdout
    assert "Starting Dagster" in done.stdout  # its own Dagster, which ends with it
    assert not tmp_path.joinpath("dagster.json").exists()
    labels = pl.read_parquet(tmp_path / "tables" / "tweet_sentiment" / "*.parquet")
    assert set(labels["llm_provider"]) == {"openai"}
    assert set(labels["llm_batch_id"]) == {batch.id}
    days = (tmp_path / "tables" / "tweet_sentiment").glob("*.parquet")
    assert len(list(days)) == 3
    assert labels["llm_cost_usd"].min() > 0


def words_on(page, url, *awaited):
    """Return the text of one of Dagster's pages when all that is awaited is on it."""
    page.goto(url, wait_until="domcontentloaded")
    for text in awaited:
        page.get_by_text(text).first.wait_for()
    page.wait_for_function("!/Loading…|fetching statuses/.test(document.body.innerText)")
    return page.inner_text("body")


def look_at_the_pages_of_dagster(url):
    """Read what a person sees in a browser after the example's first command."""
    from playwright.sync_api import sync_playwright

    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    with (
        sync_playwright() as playwright,
        contextlib.closing(playwright.chromium.launch(executable_path=chromium(), args=sandbox)) as browser,
    ):
        # Waiting for a page evaluates text in it, which a strict page forbids.
        page = browser.new_page(viewport={"width": 2000, "height": 1300}, bypass_csp=True)
        page.set_default_timeout(120_000)
        words_on(page, f"{url}/asset-groups", "Global asset lineage", "judged_by_you")
        groups = page.locator("[class*=collapsedGroupNodeBox]").all()
        colors = {box.inner_text(): re.findall(r"--tag-fill-color: var\(([\w-]+)", box.inner_html()) for box in groups}
        green = ["--color-background-green"]
        assert colors == {"tweets\n12": green, "shares\n2": green, "judged_by_you\n7": green}
        graph = f"{url}/assets/sentiment_eval?view=lineage&lineageScope=upstream&lineageDepth=5"
        lineage = words_on(page, graph, "Materialized", "filled", "Passed")
        assert re.findall(r"\d+% filled", lineage) == ["100% filled"] * 8
        assert not re.search(r"never materialized|overdue|failed|missing", lineage, re.IGNORECASE)
        overview = words_on(page, f"{url}/assets/sentiment_eval", "llm_batch/evaluation", "% right")
        for candidate in ("tweet_sentiment", "tweet_sentiment_lexicon"):
            assert re.search(rf"\b{candidate}\b.*?\d+% right", overview, re.DOTALL), overview
        day = f"{url}/assets/tweet_sentiment?view=partitions&partition=2026-01-01"
        labels = words_on(page, day, "llm_batch/preview", "llm_batch/cost_usd")
        entries = re.findall(r"^llm_batch/\S+", labels, re.MULTILINE)
        assert entries[0] == "llm_batch/preview"
        # Once as a text with its unit, and once as a number with the unit in its name.
        costs = [entry for entry in entries if "cost" in entry]
        assert sorted(costs) == ["llm_batch/cost", "llm_batch/cost_usd", "llm_batch/realtime_cost_usd"]


@contextlib.contextmanager
def ui(home):
    """Yield a running `… ui` with Dagster: its process, and the process group of Dagster."""
    command = [sys.executable, "-m", "example_project.cli", "ui"]
    shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]  # like a script's background job: SIGINT ignored
    process = subprocess.Popen(
        shell, cwd=ROOT, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        note = home / "dagster.json"
        until = time.monotonic() + UI_SECONDS
        while not (note.exists() and json.loads(note.read_text())["owner"] == process.pid):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until, evidence(home)
            time.sleep(0.2)
        yield process, json.loads(note.read_text())["pid"]
    finally:
        process.kill()


def wait_until_nothing_is_left_of(group):
    until = time.monotonic() + END_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while True:  # killed processes take a moment to end
            os.killpg(group, 0)
            assert time.monotonic() < until, f"processes of group {group} are still there"
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_labels_land_in_the_dagster_that_runs_a_second_run_pays_nothing_and_an_interrupt_leaves_no_process(tmp_path):
    """Test one journey, since each start of a Dagster takes half a minute. A killed example leaves no process."""
    with ui(tmp_path) as (killed, orphans):
        first = example(tmp_path)
        assert first.returncode == 0, all_of(first, tmp_path)
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
        if chromium():
            look_at_the_pages_of_dagster(json.loads((tmp_path / "dagster.json").read_text())["url"])
        killed.kill()
        killed.wait()
    with ui(tmp_path) as (process, group):
        wait_until_nothing_is_left_of(orphans)
        second = example(tmp_path)
        assert second.returncode == 0, all_of(second, tmp_path)
        assert "0 requests sent; 24 already answered, not sent and not paid again" in second.stdout
        cascade = example(tmp_path, "cascade")
        assert cascade.returncode == 0, all_of(cascade, tmp_path)
        assert "asks command/raters alone for all 4 rows" in " ".join(cascade.stdout.split())
        assert "on so few rows a cascade does not pay" in " ".join(cascade.stdout.split())
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert "Dagster is stopped" in said
    assert process.returncode == 130
    assert not tmp_path.joinpath("dagster.json").exists()
    wait_until_nothing_is_left_of(group)


@pytest.mark.slow
def test_an_example_that_hangs_is_ended_and_leaves_all_that_is_known_of_it(tmp_path, capfd):
    """Use a Dagster that runs and never answers, so that the example waits for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent, subprocess.Popen(["sleep", "60"]) as other:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tmp_path.joinpath("dagster.json").write_text(json.dumps({"url": url, "pid": other.pid, "owner": other.pid}))
        tmp_path.joinpath("dagster.log").write_text("the last thing that Dagster said")
        with pytest.raises(subprocess.TimeoutExpired):
            example(tmp_path, seconds=5)
        other.kill()
    told = capfd.readouterr().out
    assert "_answering" in told, "where it stood"
    assert "the last thing that Dagster said" in told


def test_a_home_that_cannot_be_written_is_named_with_what_to_do():
    done = example(Path("/proc/nowhere"))
    assert done.returncode == 1
    assert "Stopped: /proc/nowhere cannot be written" in done.stderr
    assert "Set EXAMPLE_HOME" in done.stderr
