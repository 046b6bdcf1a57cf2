"""`python3 -m example_project stream`, smaller: the whole journey on a real broker."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from example_project import stream


@pytest.mark.filterwarnings("ignore")
def test_the_journey_ends_in_a_dashboard_of_all_messages_and_pays_for_each_request_once(tmp_path):
    """It starts a broker, and a real Dagster that takes half a minute."""
    told = []
    with stream.broker(tmp_path / "broker") as address, stream.lexicon() as llm:
        setup = stream.StreamSetup(address, llm, tmp_path)
        table = stream.travel(setup, told.append, scale=0.2)
        by = {row["by"]: row for row in table.to_dicts()}
        everything, student, asked = by["all"], by["student"], by["llm"]
        results = stream.stream_results(setup.connection, stream.RESULTS)
    assert everything["n"] == len(results) == len({one.message_id for one in results}) == 180 + 60
    assert student["n"] + asked["n"] == everything["n"]
    assert student["n"] > 0
    assert asked["cost_per_1000_usd"] > 0
    assert student["p99_ms"] is not None
    assert everything["n_truth"] == everything["n"]
    assert not llm.books.billed_twice()
    assert any("20 of 20 labels are the same" in line for line in told)
    assert any("learns anew" in line for line in told)


def test_the_broker_ends_with_a_process_that_is_killed(tmp_path):
    """Otherwise each interrupted journey would leave one behind."""
    code = (
        "import pathlib, sys, time; from example_project import stream\n"
        "with stream.broker(pathlib.Path(sys.argv[1])) as address: print(address, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "broker")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        host, _, port = running.stdout.readline().strip().rpartition(":")
        socket.create_connection((host, int(port)), 5).close()
        running.kill()
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("the broker still listens")
