"""SIGKILL where it hurts: another process goes on at once, no second batch exists, every row has its label."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from house import House, assert_total, billed, labeling, tickets

from dagster_llm_batch.storage.records import Submission
from dagster_llm_batch.testing.emulator import WireFault, lost_create_reply

ROWS, BATCHES = 9, 3
CREATE, CONTENT = "POST /v1/batches", "GET /v1/files/*/content"


@contextmanager
def driver(house: House, where: str) -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("kill_driver.py")
    process = subprocess.Popen(
        [sys.executable, str(script), house.emulator.openai_base_url, str(house.tmp_path), where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(true: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    give_up_at = time.monotonic() + 120
    while not true():
        assert process.poll() is None, "the process ended before it reached the point"
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def calls(house: House, method: str, path: str) -> int:
    return sum(call.method == method and path in call.path for call in house.emulator.books.calls)


def lease_is_left(house: House) -> bool:
    with contextlib.closing(sqlite3.connect(house.tmp_path / "ledger.sqlite")) as connection:
        return bool(connection.execute("SELECT count(*) FROM lease").fetchone()[0])


def run_until_killed(house: House, where: str) -> None:
    """Run the driver; it kills itself."""
    with driver(house, where) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline():
            house.emulator.settle()
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.wait(120) == -signal.SIGKILL


def go_on(house: House) -> Submission:
    """What the next run does, in this process; the dead one's lease passes at once."""
    definition = labeling(max_requests_per_batch=3)
    submission = house.engine().plan(definition, tickets(ROWS))
    house.engine().submit(definition, submission.submission_id)
    status = house.finish(definition, submission.submission_id)
    labels, _ = assert_total(house, definition, submission.submission_id, ROWS)
    assert len(labels) == ROWS
    assert len(house.emulator.books.batches) == BATCHES
    assert len(billed(house)) == len(set(billed(house))) == ROWS
    assert not lease_is_left(house)
    return status.submission


def the_only_submission(house: House) -> Submission:
    [submission] = house.engine().ledger.submissions("test")
    return submission


def test_killed_while_the_create_calls_reply_is_on_its_way(house: House) -> None:
    house.emulator.inject(lost_create_reply("hang"))
    with driver(house, "blocked") as process:
        wait_until(lambda: house.emulator.books.batches, process)
        process.kill()
        process.wait()
    assert lease_is_left(house)
    submission = the_only_submission(house)
    assert house.engine().status(submission.submission_id).states == {"submitting": 1, "planned": 2}
    assert go_on(house).submission_id == submission.submission_id


def test_killed_before_the_create_call_arrived(house: House) -> None:
    house.emulator.inject(WireFault(kind="hang", route=CREATE))
    with driver(house, "blocked") as process:
        wait_until(lambda: calls(house, "POST", "/v1/batches"), process)
        process.kill()
        process.wait()
    submission = the_only_submission(house)
    definition = labeling(max_requests_per_batch=3)
    assert house.engine().submit(definition, submission.submission_id).states == {"submitting": 1, "submitted": 2}
    house.skipped += timedelta(seconds=301)  # until then the call may still arrive
    assert go_on(house).submission_id == submission.submission_id


@pytest.mark.parametrize("where", ["about to send", "accepted, not recorded", "read, not recorded"])
def test_killed_between_an_effect_and_its_record(house: House, where: str) -> None:
    run_until_killed(house, where)
    assert lease_is_left(house)
    submission = the_only_submission(house)
    states = house.engine().status(submission.submission_id).states
    assert (
        states
        == {
            "about to send": {"planned": 3},
            "accepted, not recorded": {"submitting": 1, "planned": 2},
            "read, not recorded": {"ended": 3},
        }[where]
    )
    assert go_on(house).submission_id == submission.submission_id


def test_killed_while_planning_nothing_is_known_and_nothing_was_sent(house: House) -> None:
    run_until_killed(house, "planning")
    assert house.engine().ledger.submissions("test") == []
    assert house.emulator.books.calls == []
    go_on(house)


def test_killed_while_the_request_file_is_uploaded(house: House) -> None:
    house.emulator.inject(WireFault(kind="hang", route="POST /v1/files", when="after", skip=1))
    with driver(house, "blocked") as process:
        wait_until(lambda: calls(house, "POST", "/v1/files") == 2, process)
        process.kill()
        process.wait()
    submission = the_only_submission(house)
    house.skipped += timedelta(seconds=301)
    assert go_on(house).submission_id == submission.submission_id


@pytest.mark.parametrize("fault", ["hang", "slow"])
def test_killed_while_results_are_fetched(house: House, fault: Any) -> None:
    route = WireFault(kind=fault, route=CONTENT, skip=1, seconds=0.2, chunk_bytes=50)
    house.emulator.inject(route)
    with driver(house, "blocked") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "submitted\n"
        house.emulator.settle()
        process.stdin.write("\n")
        process.stdin.flush()
        wait_until(lambda: house.emulator.struck(route), process)
        process.kill()
        process.wait()
    raw = [name for name in house.files() if name.endswith(".raw.jsonl.zst")]
    assert len(raw) == 1  # whole, or not at all
    submission = the_only_submission(house)
    assert house.engine().status(submission.submission_id).states == {"ended": 3}
    assert go_on(house).submission_id == submission.submission_id
