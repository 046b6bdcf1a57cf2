"""SIGKILL at every arrow that leaves a worker process: all rows arrive, each is paid once, and every batch has a shard.

Here, each moment of each arrow runs at one provider, on SQLite. An arrow that only further scenarios cross runs at its
most telling moment. A hanging call runs at another provider too, and the gap between create and record at every
provider. Each uncommitted transaction runs once on PostgreSQL too; in further scenarios, the two ledgers take turns.
The whole matrix: `python -m tests.crash.matrix`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.cells import LEDGERS, Cell, Servers, run_cell, servers
from tests.crash.clouds import CLOUDS, FORGETFUL, OWN_SERVER
from tests.crash.interceptor import HELD, Point, When
from tests.crash.points import CRASHES, Crash
from tests.crash.scenarios import AT_ONCE, PLAIN, URGENT, Scenario

_TELLING = {"call": When.ACTED, "file": When.UNSEEN, "ledger": When.UNSEEN, "table": When.UNSEEN}
"""The moment of the largest difference between world and ledger: a call's effect is unknown, or a write invisible."""


def _crashes() -> list[Crash]:
    """Return all crashes in which several processes die, and each moment of an arrow once from the others.

    If all moments of an arrow in a scenario are covered by then, the scenario has the most telling one.
    """
    moments: set[tuple[str, When]] = set()
    ways: set[tuple[Scenario, str]] = set()
    kept: list[Crash] = []
    further: dict[tuple[Scenario, str], Crash] = {}
    for crash in CRASHES:
        point = crash.points[-1]
        way, moment = (crash.scenario, point.arrow), (point.arrow, point.when)
        if len(crash.points) > 1 or moment not in moments:
            kept.append(crash)
            moments.add(moment)
            ways.add(way)
        elif way not in further or point.when is _TELLING[point.arrow.partition(":")[0]]:
            further[way] = crash
    return kept + [crash for way, crash in further.items() if way not in ways]


def _selected() -> Iterator[Cell]:
    uncommitted: set[str] = set()
    for number, crash in enumerate(_crashes()):
        able = {cloud.name: cloud for cloud in CLOUDS.values() if crash.can_happen_at(cloud)}
        last = crash.points[-1]
        is_uncommitted = last.arrow.startswith("ledger:") and last.when is When.UNSEEN
        is_first = last.arrow not in uncommitted
        if "openai" in able:
            ledger = LEDGERS[number % 2] if is_uncommitted and not is_first else "sqlite"
            yield Cell(crash, able["openai"], ledger)
        others = [cloud for name, cloud in able.items() if name != "openai"]
        is_created = (last.arrow, last.when) == ("call: create", When.ACTED)
        if is_created and crash.scenario == PLAIN and len(crash.points) == 1:
            # The batch exists, and its id is not recorded.
            yield from (Cell(crash, cloud, "sqlite") for cloud in (*others, OWN_SERVER))
        elif is_created and crash.scenario == AT_ONCE and len(crash.points) == 1:
            # Threads belong to the engine. There are two ways to find a batch: by a mark on it, and by its results.
            yield from (Cell(crash, able[name], "sqlite") for name in ("azure", "anthropic"))
        elif others and any(point.arrow.startswith("call:") and point.when in HELD for point in crash.points):
            yield Cell(crash, others[number % len(others)], LEDGERS[number // 3 % 2])
        elif last.arrow.startswith("call:") and last.when is When.AFTER and "command" in able:
            yield Cell(crash, able["command"], LEDGERS[number // 3 % 2])
        elif is_uncommitted and is_first and "openai" in able:
            uncommitted.add(last.arrow)
            yield Cell(crash, able["openai"], "postgresql")


@pytest.fixture(scope="module")
def files() -> Iterator[Servers]:
    with servers(set(CLOUDS), set()) as around:
        yield around


@pytest.fixture(scope="module")
def database(files: Servers) -> Iterator[Servers]:
    if os.environ.get("DLB_TEST_POSTGRES") == "0":
        pytest.skip("DLB_TEST_POSTGRES=0")
    with servers(set(), {"postgresql"}) as around:
        yield Servers(files.s3_url, files.gcs_url, around.databases)


@pytest.mark.sample(60)
@pytest.mark.parametrize("cell", list(_selected()), ids=str)
def test_nothing_is_lost_or_paid_twice_where_a_process_is_killed(cell: Cell, tmp_path, request) -> None:
    around = request.getfixturevalue("database" if cell.ledger == "postgresql" else "files")
    result = run_cell(cell, around, tmp_path)
    assert result.problems == []
    assert (result.lost, result.billed_twice, result.kills) == (0, 0, len(cell.crash.points))


# Not within the SDK's own call: a batch that is sent then can only be canceled (the next test).
_FROZEN = [
    (PLAIN, Point("file: requests", When.AFTER)),
    (PLAIN, Point("ledger: open_submission", When.AFTER)),
    (PLAIN, Point("ledger: lease", When.UNSEEN)),
    (PLAIN, Point("ledger: send", When.BEFORE)),
    (PLAIN, Point("ledger: send", When.UNSEEN)),
    (PLAIN, Point("ledger: send", When.AFTER)),
    (PLAIN, Point("call: create", When.AFTER)),
    (PLAIN, Point("ledger: accepted", When.BEFORE)),
    (PLAIN, Point("ledger: accepted", When.UNSEEN)),
    (PLAIN, Point("call: download", When.AFTER)),
    (PLAIN, Point("table: labels", When.AFTER)),
    (URGENT, Point("ledger: send", When.AFTER)),
    (URGENT, Point("call: respond", When.AFTER)),
    (URGENT, Point("ledger: answered", When.UNSEEN)),
]


@pytest.mark.sample(8)
@pytest.mark.parametrize("ledger", LEDGERS)
@pytest.mark.parametrize(("scenario", "point"), _FROZEN, ids=lambda part: getattr(part, "name", str(part)))
def test_nothing_is_lost_or_paid_twice_where_a_process_is_frozen_for_longer_than_its_lease(
    scenario: Scenario, point: Point, ledger: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    around = request.getfixturevalue("database" if ledger == "postgresql" else "files")
    cell = Cell(Crash(scenario, (point,)), CLOUDS["openai"], ledger, freezes=True)
    result = run_cell(cell, around, tmp_path)
    assert result.problems == []
    assert (result.lost, result.billed_twice, result.kills) == (0, 0, 1)


def test_a_batch_that_a_frozen_process_created_beside_another_ones_is_canceled_and_told(tmp_path, files) -> None:
    crash = Crash(PLAIN, (Point("call: create", When.BEFORE),))
    result = run_cell(Cell(crash, CLOUDS["openai"], "sqlite", freezes=True), files, tmp_path)
    # requests answered before the cancellation are billed
    assert result.lost == 0
    assert 9 <= result.billed <= 12
    [unknown] = [problem for problem in result.problems if "batches that no shard has" in problem]
    assert unknown.startswith("batches that no shard has: {'batch_")
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as ledger:
        [(told,)] = ledger.execute("select detail from event where kind = 'stray_batch'").fetchall()
    assert "was canceled, and costs at most $" in told
    assert f"Batch {unknown.partition(chr(39))[2].partition(chr(39))[0]}, in addition to batch_" in told


def test_the_matrix_sees_what_is_paid_twice_and_the_batch_that_is_left_over(tmp_path, files) -> None:
    crash = Crash(PLAIN, (Point("call: create", When.ACTED, nth=2),))
    result = run_cell(Cell(crash, FORGETFUL, "sqlite"), files, tmp_path)
    assert result.billed_twice == 3
    assert any("batches that no shard has" in problem for problem in result.problems)


def test_the_matrix_sees_a_process_that_never_comes_to_its_point(tmp_path, files) -> None:
    crash = Crash(PLAIN, (Point("ledger: add_wave", When.AFTER),))
    result = run_cell(Cell(crash, CLOUDS["openai"], "sqlite"), files, tmp_path)
    assert result.kills == 0
    assert result.problems
