"""Labels written as files, by concurrent, failed and killed runs: readers always find one table."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import pyarrow.parquet as pq
import pytest
from workspace import Workspace, labeling, tickets

from dagster_llm_batch.storage.stored_files import own_name

_T = TypeVar("_T")
ROWS = 60


class Watching:
    """Workers in this process; they record the files that readers find after each piece of work."""

    def __init__(self, folder: Path, fails_at: int = -1) -> None:
        self.folder = folder
        self.fails_at = fails_at
        self.seen: list[list[str]] = []

    def map_rows(self, rows: Any, function: Callable[[Any], _T]) -> list[_T]:
        return [function(iter(rows.to_batches()))]

    def map(self, function: Callable[[Any], _T], items: Sequence[Any]) -> list[_T]:
        return [self._do(function, item) for item in items]

    def _do(self, function: Callable[[Any], _T], item: Any) -> _T:
        done = function(item)
        self.seen.append(visible(self.folder))
        if len(self.seen) == self.fails_at:
            raise KeyError("a worker is lost")
        return done


def visible(folder: Path) -> list[str]:
    """List the files that Spark and other readers would read."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith((".", "_")))


def write(workspace: Workspace, submission_id: str, workers: Any = None, run_id: str = "r", rows: int = 7) -> None:
    workspace.bounds["part_rows"] = rows
    folders = (str(workspace.tmp_path / name) for name in ("labels", "rejects"))
    engine = workspace.engine()
    engine.write_labels(replace(labeling(), workers=workers), submission_id, *folders, run_id=run_id)


@pytest.fixture
def submission_id(workspace: Workspace) -> str:
    return workspace.run(labeling(), tickets(ROWS)).submission.submission_id


def test_until_all_parts_are_written_readers_find_the_older_files_alone(
    workspace: Workspace, submission_id: str
) -> None:
    folder = workspace.tmp_path / "labels"
    write(workspace, submission_id)
    old = visible(folder)
    workers = Watching(folder)
    write(workspace, submission_id, workers)
    assert len(workers.seen) > len(old) > 3
    assert all(seen == old for seen in workers.seen)
    assert set(visible(folder)).isdisjoint(old)
    assert len(visible(folder)) == len(old)


def test_a_run_that_fails_leaves_the_older_files_and_none_of_its_own(workspace: Workspace, submission_id: str) -> None:
    folder = workspace.tmp_path / "labels"
    write(workspace, submission_id)
    old = sorted(path.name for path in folder.iterdir())
    with pytest.raises(KeyError, match="a worker is lost"):
        write(workspace, submission_id, Watching(folder, fails_at=5))
    assert sorted(path.name for path in folder.iterdir()) == old


def test_what_killed_runs_have_begun_goes_a_day_after_its_last_part(workspace: Workspace, submission_id: str) -> None:
    folder = workspace.tmp_path / "labels"
    write(workspace, submission_id)
    long_ago = time.time() - 90_000
    gone, kept, others = own_name(""), own_name(""), "a" * 32
    for name, times in ((gone, [long_ago, long_ago]), (kept, [long_ago, time.time()]), (others, [long_ago])):
        for number, at in enumerate(times):
            part = folder / f"_begun-{name}-{number:05d}.part"
            part.touch()
            os.utime(part, (at, at))
    for name in (own_name(""), others):
        (half := folder / f".{name}.tmp").touch()
        os.utime(half, (long_ago, long_ago))
    write(workspace, submission_id)
    hidden = {path.name for path in folder.iterdir()} - set(visible(folder))
    assert hidden == {
        *(f"_begun-{kept}-{number:05d}.part" for number in range(2)),
        # This package makes no such names.
        f"_begun-{others}-00000.part",
        f".{others}.tmp",
    }


@pytest.mark.slow
def test_of_runs_that_write_to_a_folder_at_once_one_stays_with_all_its_files(
    workspace: Workspace, submission_id: str
) -> None:
    folder = workspace.tmp_path / "labels"
    begins = Barrier(3)
    spaces = [Workspace(workspace.tmp_path, workspace.emulator) for _ in range(3)]

    def run(number: int, rounds: int) -> None:
        begins.wait(60)
        write(spaces[number], submission_id, run_id=f"{number} {rounds}", rows=(7, 20, 200)[number])

    for rounds in range(5):
        with ThreadPoolExecutor(3) as pool:
            for each in [pool.submit(run, number, rounds) for number in range(3)]:
                each.result()
        table = pq.read_table(folder)
        assert sorted(table["ticket_id"].to_pylist()) == sorted(f"t{number}" for number in range(ROWS))
        [of_run] = set(table["llm_run_id"].to_pylist())
        assert of_run.endswith(f" {rounds}")
    assert not [path.name for path in folder.iterdir() if path.name.startswith((".", "_"))]


def test_files_of_older_versions_are_replaced(workspace: Workspace, submission_id: str) -> None:
    folder = workspace.tmp_path / "labels"
    write(workspace, submission_id)
    for number, name in enumerate(visible(folder)):
        (folder / name).rename(folder / f"part-{'9' * 32}-{number:05d}.parquet")
    # A name that no file of this package has.
    (folder / "août 1.parquet").write_bytes((folder / f"part-{'9' * 32}-00000.parquet").read_bytes())
    write(workspace, submission_id, run_id="new")
    table = pq.read_table(folder)
    assert (len(table), set(table["llm_run_id"].to_pylist())) == (ROWS, {"new"})
