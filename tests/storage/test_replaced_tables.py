"""Several runs replace and read a stored table at once: on a local disk, in S3 and in Cloud Storage."""

from __future__ import annotations

import os
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import dagster as dg
import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from upath import UPath

from dagster_llm_batch import HiveParquetIOManager
from dagster_llm_batch.storage.payloads import PayloadStore
from tests.processes import PROCESSES, state_of

WRITERS = 4
ROWS = 2_000
DAYS = [f"2026-01-{day:02d}" for day in range(1, 25)]
PARTS = dg.StaticPartitionsDefinition(DAYS)
LABELS = dg.AssetKey("labels")


@pytest.fixture(params=["local", "s3", "gcs"])
def root(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "local":
        return str(tmp_path / "tables")
    url, options = request.getfixturevalue(request.param)
    # The options of a user who configures no IO manager.
    monkeypatch.setitem(fsspec.config.conf, url.partition(":")[0], options)
    return f"{url}/{uuid.uuid4().hex}"


def store(manager: HiveParquetIOManager, day: str, number: int, rows: int = ROWS) -> None:
    """Store a table with this number in all rows."""
    table = pa.table({"key": range(rows), "number": [number] * rows, "text": [uuid.uuid4().hex for _ in range(rows)]})
    with dg.build_output_context(
        asset_key=LABELS, partition_key=day, asset_spec=dg.AssetSpec(LABELS, partitions_def=PARTS)
    ) as context:
        manager.handle_output(context, table)


def load(manager: HiveParquetIOManager, day: str) -> int:
    """Return the number in all rows of a table, and check that all rows exist."""
    with dg.build_input_context(asset_key=LABELS, partition_key=day, asset_partitions_def=PARTS) as context:
        table = manager.load_input(context)
    assert sorted(table["key"].to_pylist()) == list(range(ROWS))
    [number] = set(table["number"].to_pylist())
    return int(number)


def visible(manager: HiveParquetIOManager, day: str) -> list[str]:
    """List the files of a partition that Spark and other readers would read."""
    folder = UPath(manager.folder(LABELS, day), **({} if "://" not in manager.root else {"use_listings_cache": False}))
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith((".", "_")))


@pytest.mark.slow
def test_runs_that_store_a_partition_at_once_leave_one_whole_table_and_readers_find_one_all_the_time(root: str) -> None:
    manager, day, over = HiveParquetIOManager(root=root), DAYS[0], Event()
    begins = Barrier(WRITERS + 1)
    store(manager, day, 0)

    def write(number: int) -> None:
        for _ in range(6):
            begins.wait(60)
            store(manager, day, number)
            begins.wait(60)

    def read() -> int:
        reads = 0
        while not over.is_set():
            assert load(manager, day) in range(WRITERS + 1)
            assert len(visible(manager, day)) == 1
            reads += 1
        return reads

    with ThreadPoolExecutor(WRITERS + 1) as pool:
        reading = pool.submit(read)
        writing = [pool.submit(write, number) for number in range(1, WRITERS + 1)]
        try:
            for _ in range(6):
                begins.wait(60)
                begins.wait(60)
                assert len(visible(manager, day)) == 1
                assert load(manager, day) > 0
        finally:
            begins.abort()
            over.set()
        for each in writing:
            each.result()
        assert reading.result()


@pytest.mark.slow
def test_threads_that_store_and_load_partitions_by_one_io_manager_take_no_others(root: str) -> None:
    manager = HiveParquetIOManager(root=root)

    def both(number: int) -> int:
        store(manager, DAYS[number], number)
        return load(manager, DAYS[number])

    with ThreadPoolExecutor(WRITERS) as pool:
        assert [*pool.map(both, range(len(DAYS)))] == [*range(len(DAYS))]
        assert [*pool.map(lambda day: load(manager, day), DAYS)] == [*range(len(DAYS))]
    assert all(len(visible(manager, day)) == 1 for day in DAYS)


def test_what_others_stored_there_is_read_until_a_table_is_stored_and_removed_then(tmp_path: Path) -> None:
    manager, day = HiveParquetIOManager(root=str(tmp_path)), DAYS[0]
    folder = Path(manager.folder(LABELS, day))
    folder.mkdir(parents=True)
    whole = pl.DataFrame({"key": range(ROWS), "number": [7] * ROWS})
    for name, part in (("part-0.parquet", whole[:99]), ("part-1.parquet", whole[99:])):
        part.write_parquet(folder / name)
    assert load(manager, day) == 7
    store(manager, day, 8)
    assert load(manager, day) == 8
    assert len(visible(manager, day)) == 1
    # A run that is killed before it removes its files leaves these.
    whole.write_parquet(folder / "part-0.parquet")
    # A name that no file of this package has.
    whole.write_parquet(folder / "août 1.parquet")
    assert load(manager, day) == 8
    store(manager, day, 9)
    assert ds.dataset(tmp_path / "labels", partitioning="hive").to_table()["number"].to_pylist() == [9] * ROWS


@pytest.mark.slow
def test_files_that_several_remove_at_once_are_removed(root: str) -> None:
    payloads = PayloadStore(root)
    for number in range(40):
        with payloads.writer(name := f"{number}.zst") as file:
            file.write(b"line\n")
        begins = Barrier(WRITERS)

        def remove(name: str = name, begins: Barrier = begins) -> None:
            begins.wait(60)
            payloads.delete(name)

        with ThreadPoolExecutor(WRITERS) as pool:
            for each in [pool.submit(remove) for _ in range(WRITERS)]:
                each.result()
        assert not payloads.exists(name)


@pytest.mark.parametrize("kind", ["s3", "gcs"])
def test_the_version_of_an_open_file_is_of_what_it_reads_whatever_has_its_name_by_now(request: Any, kind: str) -> None:
    url, options = request.getfixturevalue(kind)
    payloads = PayloadStore(f"{url}/{uuid.uuid4().hex}", **options)
    for number in range(2):
        with payloads.writer("a.zst") as out:
            out.write(b"line\n" * (number + 1))
        if not number:
            file, before = payloads._open("a.zst"), payloads.version("a.zst")
    assert payloads.version("a.zst", file) == before != payloads.version("a.zst")
    file.close()


def write_half(folder: str) -> None:
    """Begin a table without finishing it."""
    with PayloadStore(folder).table_writer("table.parquet", pa.schema([("text", pa.string())])) as out:
        out.write_table(pa.table({"text": [uuid.uuid4().hex for _ in range(20_000)]}))
        os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.slow
def test_what_a_killed_run_has_half_written_goes_after_a_day_with_the_next_table_and_what_a_living_one_has_stays(
    tmp_path: Path,
) -> None:
    manager, day = HiveParquetIOManager(root=str(tmp_path)), DAYS[0]
    store(manager, day, 1)
    folder = Path(manager.folder(LABELS, day))

    def begin() -> tuple[Any, Path]:
        others = set(folder.glob(".*.tmp"))
        process = PROCESSES.Process(target=write_half, args=(str(folder),))
        process.start()
        assert process.pid is not None
        while state_of(process.pid) != "T":
            assert process.is_alive()
            time.sleep(0.01)
        [half] = set(folder.glob(".*.tmp")) - others
        return process, half

    (killed, old), (late, young), (living, held) = begin(), begin(), begin()
    for process in (killed, late):
        process.kill()
        process.join()
    (other := folder / ".of-another.tmp").touch()
    for path in (old, held, other):
        os.utime(path, (time.time() - 90_000,) * 2)
    store(manager, day, 2)
    assert set(folder.glob(".*.tmp")) == {young, held, other}
    living.kill()
    living.join()
    store(manager, day, 3)
    assert set(folder.glob(".*.tmp")) == {young, other}
    assert load(manager, day) == 3
