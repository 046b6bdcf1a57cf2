"""Tables that our own IO manager stores before Dagster's record of them: a kill or a fault in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from code_location import BATCH, LABELS, LANDING, CodeLocation, failure, labeled, tickets

from dagster_llm_batch import HiveParquetIOManager
from tests.processes import PROCESSES

pytestmark = pytest.mark.slow

# This is more than are begun before Dagster has a record of the first.
KEYS = [f"p{number:02d}" for number in range(40)]
ALL = (KEYS[0], KEYS[-1])
RUN = "00000000-0000-4000-8000-000000000001"
PARTS = dg.StaticPartitionsDefinition(KEYS)


def rows(context: Any) -> Any:
    """Return rows whose number differs between neighbours; some partitions are empty."""
    return tickets(KEYS.index(context.partition_key) % 3, context.partition_key)


def expected(key: str) -> list[str]:
    return [f"{key}-{number}" for number in range(KEYS.index(key) % 3)]


@contextmanager
def landing(instance: dg.DagsterInstance, base_url: str, tables: str, **changes: Any) -> Iterator[CodeLocation]:
    emulator: Any = SimpleNamespace(openai_base_url=base_url)
    changes = {"rows": rows, "partitions_def": PARTS, **changes}
    yield CodeLocation(emulator, instance, *labeled(**changes), resources={"io_manager": manager_of(tables)})


def manager_of(tables: str) -> HiveParquetIOManager:
    return HiveParquetIOManager(root=tables)


def told(instance: dg.DagsterInstance, name: str) -> set[str]:
    return instance.get_materialized_partitions(dg.AssetKey(name))


def visible(tables: str, name: str, key: str) -> list[Path]:
    """Return the files of a partition that Spark and others would read."""
    return sorted(Path(manager_of(tables).folder(dg.AssetKey(name), key)).glob("[!.]*"))


def read(tables: str, name: str, key: str) -> list[str]:
    with dg.build_input_context(asset_key=dg.AssetKey(name), partition_key=key, asset_partitions_def=PARTS) as context:
        return sorted(manager_of(tables).load_input(context)["ticket_id"].to_pylist())


def check_tables(instance: dg.DagsterInstance, tables: str) -> None:
    """Check that each table in Dagster's records exists, and that each existing table is whole."""
    for name in LANDING:
        for key in KEYS:
            files = visible(tables, name, key)
            assert len(files) <= 1
            assert files or key not in told(instance, name)
            if files:
                assert read(tables, name, key) == (expected(key) if name == LABELS else [])


def end_at(ref: Any, base_url: str, tables: str, number: int, is_stored: bool) -> None:
    """Materialize everything in this process, which is killed before or after Dagster's storage takes the nth
    materialization.
    """
    with dg.DagsterInstance.from_ref(ref) as instance, landing(instance, base_url, tables) as location:
        storage = instance.event_log_storage
        store: Callable[[Any], None] = storage.store_event
        count = 0

        def store_or_end(event: Any) -> None:
            nonlocal count
            count += event.is_dagster_event and event.dagster_event_type is dg.DagsterEventType.ASSET_MATERIALIZATION
            if count == number and not is_stored:
                count += 1
                os.kill(os.getpid(), signal.SIGKILL)
            store(event)
            if count == number:
                count += 1
                os.kill(os.getpid(), signal.SIGKILL)

        storage.store_event = store_or_end  # type: ignore[method-assign]  # Dagster's, in a process of its own
        location.collect(span=ALL)


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("number", [1, 66])
def test_a_run_that_is_killed_between_stored_and_told_has_told_nothing_that_is_not_there_and_the_next_lands_all(
    stored, emulator, tmp_path, number, is_stored
):
    """Start each run in a process that imports Dagster; one of them materializes 66 partitions."""
    tables, base_url = str(tmp_path / "tables"), emulator.openai_base_url
    with landing(stored, base_url, tables) as location:
        assert location.submit(span=ALL).success
        emulator.settle()
        process = PROCESSES.Process(target=end_at, args=(stored.get_ref(), base_url, tables, number, is_stored))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert len(told(stored, LABELS)) < len(KEYS)
        check_tables(stored, tables)
        assert location.collect(span=ALL).success
        for name in LANDING:
            assert told(stored, name) == set(KEYS)
        check_tables(stored, tables)
        assert location.tick().skip_message == "no batches in flight"
    assert emulator.books.billed_twice() == {}


def test_after_a_fault_of_the_ledger_no_older_labels_take_the_place_of_those_that_another_run_has_landed(
    instance, emulator, tmp_path
):
    """After a failed question for a group of partitions, ask the ledger again for the rest of the group."""
    tables, prefixes = str(tmp_path / "tables"), dict.fromkeys(KEYS, "old")
    with landing(
        instance, emulator.openai_base_url, tables, rows=lambda context: tickets(2, prefixes[context.partition_key])
    ) as location:
        assert location.submit(span=ALL).success
        emulator.settle()
        location.engine().ledger.close()
        database = sa.create_engine(location.resource.places()[0])
        happened = []

        def rename(old: str, new: str) -> None:
            with database.begin() as connection:
                connection.execute(sa.text(f"ALTER TABLE {old} RENAME TO {new}"))

        def watch(event: Any, _cursor: Any) -> None:
            is_told = event.is_dagster_event and event.dagster_event_type is dg.DagsterEventType.ASSET_MATERIALIZATION
            if is_told and not happened and len(location.landed()) == 32:
                happened.append("the ledger cannot be asked")
                rename("submission", "elsewhere")
            elif len(happened) == 1 and event.user_message.startswith(f"{KEYS[32]}: "):
                happened.append("it can, and the last partition is labeled anew")
                rename("elsewhere", "submission")
                prefixes[KEYS[-1]] = "new"
                assert location.run(BATCH, partition=KEYS[-1]).success
                emulator.settle()
                assert location.collect(partition=KEYS[-1]).success
                happened.append("landed")

        instance.watch_event_logs(RUN, None, watch)
        result = location.collect(span=ALL, run_id=RUN)
        assert happened[-1] == "landed"
        assert "1 of 40 partitions failed" in failure(result)
        assert location.landed() == {*KEYS} - {KEYS[32]}
        assert read(tables, LABELS, KEYS[-2]) == ["old-0", "old-1"]
        assert read(tables, LABELS, KEYS[-1]) == ["new-0", "new-1"]


class LateManager(dg.IOManager):
    """Stores a table of partition p01 only after another run has materialized newer labels of it."""

    def __init__(self, tables: str) -> None:
        self.manager = manager_of(tables)
        self.waits_for: list[Callable[[], None]] = []

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        if context.partition_key == KEYS[1] and self.waits_for:
            self.waits_for.pop()()
        self.manager.handle_output(context, obj)

    def load_input(self, context: dg.InputContext) -> Any:
        return self.manager.load_input(context)


def test_labels_that_older_ones_have_taken_the_place_of_land_again(instance, emulator, tmp_path):
    tables, prefixes = str(tmp_path / "tables"), dict.fromkeys(KEYS, "old")
    late = LateManager(tables)
    assets = labeled(rows=lambda context: tickets(2, prefixes[context.partition_key]), partitions_def=PARTS)
    location = CodeLocation(emulator, instance, *assets, resources={"io_manager": late})
    span = (KEYS[0], KEYS[2])
    assert location.submit(span=span).success
    emulator.settle()

    def relabel() -> None:
        prefixes[KEYS[1]] = "new"
        assert location.run(BATCH, partition=KEYS[1]).success
        emulator.settle()
        assert location.collect(partition=KEYS[1]).success
        assert read(tables, LABELS, KEYS[1]) == ["new-0", "new-1"]

    late.waits_for.append(relabel)
    assert location.collect(span=span).success
    assert not late.waits_for
    assert read(tables, LABELS, KEYS[1]) == ["old-0", "old-1"]
    [request] = location.tick().run_requests
    assert request.partition_key == KEYS[1]
    assert location.launch(request).success
    assert [read(tables, LABELS, key)[0] for key in KEYS[:3]] == ["old-0", "new-0", "old-0"]
    assert location.tick().skip_message == "no batches in flight"
    assert emulator.books.billed_twice() == {}
