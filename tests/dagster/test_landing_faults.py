"""Faults of a run that materializes labels: a ledger that is cut off, a stop, a failing IO manager, another run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from code_location import LANDING, CodeLocation, labeled, tickets

from dagster_llm_batch import HiveParquetIOManager
from dagster_llm_batch.checks import COVERAGE
from dagster_llm_batch.testing.emulator import Emulator
from tests.crash.postgres import postgres

pytestmark = pytest.mark.slow

# The ledger is updated for this many partitions at once.
_TOLD_AT_ONCE = 25
_CHECKS = 3
STORED, JUDGED = dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_CHECK_EVALUATION
KEYS = [f"p{number:02d}" for number in range(28)]
ALL = (KEYS[0], KEYS[-1])
PARTS = dg.StaticPartitionsDefinition(KEYS)
RUN = "00000000-0000-4000-8000-000000000001"


def rows(context: Any) -> Any:
    return tickets(1, context.partition_key)


def answered(emulator: Emulator, instance: dg.DagsterInstance, tmp_path: Path, **resource: Any) -> CodeLocation:
    """Return a code location with all partitions sent and answered."""
    tables = HiveParquetIOManager(root=str(tmp_path / "tables"))
    assets = labeled(rows=rows, partitions_def=PARTS)
    location = CodeLocation(emulator, instance, *assets, resources={"io_manager": tables}, **resource)
    assert location.submit(span=ALL).success
    emulator.settle()
    return location


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    if os.environ.get("DLB_TEST_POSTGRES") == "0":
        pytest.skip("DLB_TEST_POSTGRES=0")
    with postgres() as empty_database:
        yield empty_database()


def told(event: Any, kind: dg.DagsterEventType) -> Any:
    """Return the Dagster event if it has this kind, otherwise None."""
    if not event.is_dagster_event or event.dagster_event_type is not kind:
        return None
    return event.dagster_event


def cut_off(ledger_url: str) -> None:
    """End all connections to the ledger except ours."""
    with sa.create_engine(ledger_url).connect() as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


def test_a_run_whose_connections_to_the_ledger_are_cut_lands_all(instance, emulator, tmp_path, database):
    location = answered(emulator, instance, tmp_path, ledger_url=database)
    cuts: list[Any] = []

    def cut(event: Any, _cursor: Any) -> None:
        if told(event, STORED) or told(event, JUDGED):
            cuts.append(event)
            cut_off(database)

    instance.watch_event_logs(RUN, None, cut)
    result = location.collect(span=ALL, run_id=RUN)
    assert len(cuts) == (len(LANDING) + _CHECKS) * len(KEYS)
    assert result.success
    assert location.landed() == {*KEYS}
    assert location.tick().skip_message == "no batches in flight"


def test_what_has_landed_has_not_failed_where_the_ledger_cannot_be_told_of_it(instance, emulator, tmp_path):
    location = answered(emulator, instance, tmp_path)
    location.engine().ledger.close()
    database, judged = sa.create_engine(location.resource.places()[0]), []

    def rename(old: str, new: str) -> None:
        with database.begin() as connection:
            connection.execute(sa.text(f"ALTER TABLE {old} RENAME TO {new}"))

    def watch(event: Any, _cursor: Any) -> None:
        if verdict := told(event, JUDGED):
            judged.append(verdict.asset_check_evaluation_data.partition)
            # The ledger is updated after the last check of this partition, and tried again after a check of the next.
            if len(judged) == _CHECKS * _TOLD_AT_ONCE:
                rename("submission", "elsewhere")
            elif len(judged) == _CHECKS * _TOLD_AT_ONCE + 1:
                rename("elsewhere", "submission")

    instance.watch_event_logs(RUN, None, watch)
    result = location.collect(span=ALL, run_id=RUN)
    assert judged == [key for key in KEYS for _ in range(_CHECKS)]
    assert result.success
    checks = location.checks(result)
    assert len(checks) == _CHECKS * len(KEYS)
    assert all(checks.values())
    assert location.tick().skip_message == "no batches in flight"


def test_one_partition_fails_where_dagster_cannot_be_asked_what_verdicts_speak_of(instance, emulator, tmp_path):
    location = answered(emulator, instance, tmp_path)
    storage = instance.event_log_storage
    fetch, asked = storage.fetch_materializations, []

    def fetch_but_once(*args: Any, **options: Any) -> Any:
        asked.append(args)
        if len(asked) == 1:
            raise sa.exc.OperationalError("SELECT", {}, ConnectionError("cut off"))
        return fetch(*args, **options)

    # This storage is Dagster's own.
    storage.fetch_materializations = fetch_but_once
    failed = location.collect(span=ALL)
    assert not failed.success
    assert [judged for judged, passed in location.checks(failed).items() if not passed] == [(KEYS[0], COVERAGE)]
    [request] = location.tick().run_requests
    assert location.launch(request).success
    assert location.landed() == {*KEYS}
    assert location.tick().skip_message == "no batches in flight"
