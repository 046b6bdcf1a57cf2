"""Full disks: a small one in memory, and one that has too few blocks when data is synced."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from dagster_llm_batch import HiveParquetIOManager
from dagster_llm_batch.errors import PayloadError
from dagster_llm_batch.storage.payloads import LateStore, PayloadStore

TABLE = dg.AssetKey("labels")
NO_SPACE = "No space left on device"


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """Mount a file system for the block; skip the test if this process may not."""
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("only root mounts disks, and these are Linux's")
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk of 1 MB."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as folder:
        yield folder


@pytest.fixture
def thin(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk with a nominal size of 32 MB that can hold some 5 MB: a sync fails beyond that."""
    if which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4")
    with mounted(tmp_path / "back", "-t", "tmpfs", "-o", "size=6m", "tmpfs") as back:
        image = back / "image"
        with image.open("wb") as file:
            file.truncate(32 << 20)
        options = ["-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard"]
        subprocess.run(["mkfs.ext4", *options, str(image)], check=True)
        with mounted(tmp_path / "thin", "-o", "loop", str(image)) as folder:
            yield folder


def noise(size: int) -> pa.Table:
    """Return a table of so many bytes that do not compress."""
    rows = size // 1_000
    return pa.table({"text": pa.array([os.urandom(1_000) for _ in range(rows)], pa.binary())})


def batches(size: int) -> Iterator[pa.RecordBatch]:
    for _ in range(size // 100_000):
        yield from noise(100_000).to_batches()


def store(manager: HiveParquetIOManager, value: Any) -> None:
    with dg.build_output_context(asset_key=TABLE) as context:
        manager.handle_output(context, value)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("size", [500_000, 1_000_000, 30_000_000])
def test_a_disk_that_is_full_in_the_middle_of_a_table_is_named_and_keeps_the_table_before_alone(
    small: Path, size: int
) -> None:
    manager, before = HiveParquetIOManager(root=str(small)), noise(600_000)
    store(manager, before)
    streamed = pa.RecordBatchReader.from_batches(before.schema, batches(size))
    with pytest.raises(
        PayloadError, match=rf"^Could not write table\.parquet in {small}/labels: {NO_SPACE}.* Make room"
    ):
        store(manager, streamed)
    assert files(small) == ["table.parquet"]
    with dg.build_input_context(asset_key=TABLE) as context:
        assert manager.load_input(context).equals(before)


@pytest.mark.parametrize("name", ["a/b.zst", "a/b.lz4", "a/b.parquet"])
def test_a_full_disk_is_named_whatever_is_written(small: Path, name: str) -> None:
    payloads, table = PayloadStore(str(small)), noise(2_000_000)

    def write() -> None:
        if name.endswith(".parquet"):
            with payloads.table_writer(name, table.schema) as out:
                out.write_table(table)
        else:
            with payloads.writer(name) as file:
                file.write(os.urandom(2_000_000))

    with pytest.raises(PayloadError, match=rf"^Could not write b\.\w+ in {small}/a: {NO_SPACE}\. Files stored before"):
        write()
    assert files(small) == []


def test_what_a_disk_does_not_take_when_it_is_to_sync_is_gone_and_no_second_sync_says_otherwise(thin: Path) -> None:
    late = LateStore(PayloadStore(str(thin)))

    def write(name: str, size: int) -> None:
        with late.writer(name) as file:
            file.write(os.urandom(size))

    write("a/small.zst", 1_000)
    late.sync()
    write("a/large.zst", 12_000_000)
    for _ in range(3):
        with pytest.raises(PayloadError, match=rf"^Could not write large\.zst in {thin}/a: .* Make room"):
            late.sync()
        assert not late.exists("a/large.zst")
    assert late.is_whole("a/small.zst")
    subprocess.run(["mount", "-o", "remount,size=40m", str(thin.parent / "back")], check=True)
    write("a/large.zst", 12_000_000)
    late.sync()
    assert late.is_whole("a/large.zst")
