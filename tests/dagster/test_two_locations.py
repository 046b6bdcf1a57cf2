"""Two code locations with one dataset: the same name, namespace and ledger, each with its own sensor.

Dagster launches a run key of a sensor once, but two locations have two sensors. Both may request a run for one
partition while neither sees the other's run yet. The ledger makes the second run harmless.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from code_location import DAILY, DAYS, LABELS, REJECTS, CodeLocation, labeled

from dagster_llm_batch.testing.emulator import Emulator
from tests.crash.postgres import postgres
from tests.processes import PROCESSES

pytestmark = pytest.mark.slow

SPAN = DAYS[:3]


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.sqlite"
        return
    if os.environ.get("DLB_TEST_POSTGRES") == "0":
        pytest.skip("DLB_TEST_POSTGRES=0")
    with ExitStack() as stack:
        yield stack.enter_context(postgres())()


def location_in(instance: dg.DagsterInstance, emulator: Any, places: dict[str, str]) -> CodeLocation:
    return CodeLocation(emulator, instance, *labeled(partitions_def=DAILY), poll_seconds=0.05, **places)


def look_and_land(home: str, base_url: str, places: dict[str, str], barrier: Any, answers: Any) -> None:
    """Tick a location's sensor at the same time as the other location, and launch its runs at the same time."""
    # The server of processes has the environment of the test that started it, whose folder may be gone.
    os.environ.pop("DAGSTER_HOME", None)
    try:
        with dg.DagsterInstance.from_config(home) as instance:
            location = location_in(instance, SimpleNamespace(openai_base_url=base_url), places)
            barrier.wait()
            requests = location.tick().run_requests
            barrier.wait()
            answers.put([len(requests), all(location.launch(request).success for request in requests)])
    except BaseException as error:  # noqa: BLE001 - the parent tells
        barrier.abort()
        answers.put(repr(error))


def test_two_locations_that_tick_at_once_land_each_row_once_and_pay_for_nothing_twice(
    ledger_url: str, tmp_path: Path, emulator: Emulator
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    places = {"ledger_url": ledger_url, "payload_root": f"{tmp_path}/payloads"}
    with dg.DagsterInstance.from_config(str(home)) as instance:
        location = location_in(instance, emulator, places)
        assert location.submit(span=(SPAN[0], SPAN[-1])).success
        emulator.settle()
        barrier, answers = PROCESSES.Barrier(2), PROCESSES.Queue()
        given = (str(home), emulator.openai_base_url, places, barrier, answers)
        processes = [PROCESSES.Process(target=look_and_land, args=given) for _ in range(2)]
        for process in processes:
            process.start()
        found = [answers.get(timeout=300) for _ in processes]
        for process in processes:
            process.join()
        # Both request the range, since neither sees the other's run.
        assert found == [[1, True], [1, True]]
        for _ in range(3):
            # The next tick, at the latest, materializes partitions that one run has left to the other.
            for request in location.tick().run_requests:
                assert location.launch(request).success
        assert location.tick().run_requests == []
        assert location.landed() == location.landed(REJECTS) == set(SPAN)
        for day in SPAN:
            assert location.metadata(partition=day)["dagster/partition_row_count"] == 3
            loaded = location.repository.load_asset_value(dg.AssetKey(LABELS), instance=instance, partition_key=day)
            assert sorted(loaded["ticket_id"]) == [f"{day}-{number}" for number in range(3)]
        billed = Counter(one.body_digest for one in emulator.books.executions if one.billed)
        assert set(billed.values()) == {1}
        assert len(billed) == 3 * len(SPAN)
        engine = location.engine()
        submissions = [engine.ledger.submissions.of_partition(engine.namespace, LABELS, day) for day in SPAN]
        assert [len(own) for own in submissions] == [1, 1, 1]
        # They are collected and completed once: the second run found them complete.
        kinds = Counter(
            event.kind for [one] in submissions for event in engine.ledger.events.of_submission(one.submission_id)
        )
        assert (kinds["collected"], kinds["settled"]) == (len(SPAN), len(SPAN))
        engine.ledger.close()
