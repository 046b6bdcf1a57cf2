"""A plan of many rows equals a plan of few: rows beyond the memory limit wait in unnamed temporary files."""

from __future__ import annotations

import gc
import tempfile
import weakref
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from workspace import Workspace, assert_total, billed, labeling, tickets

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.row_files import NO_FILES
from dagster_llm_batch.errors import InputError, PayloadError
from dagster_llm_batch.files import request_writer
from dagster_llm_batch.files.row_renderer import RowRenderer
from dagster_llm_batch.storage.payloads import unnamed_file

FULL = "/dev/full"  # as a file on a disk without room for another byte


@pytest.fixture
def temporary(workspace: Workspace) -> list[IO[bytes]]:
    """Return the temporary files of a deployment that spills to files beyond two rows."""
    made: list[IO[bytes]] = []

    def make() -> IO[bytes]:
        made.append(unnamed_file())
        return made[-1]

    workspace.bounds |= {"few_rows": 2, "new_file": make}
    return made


def some_at_once(rows: pl.DataFrame) -> object:
    return iter([rows[start : start + 3] for start in range(0, len(rows), 3)])


def test_of_many_rows_each_request_is_asked_once(workspace: Workspace, temporary: list[IO[bytes]]) -> None:
    again = tickets(20).with_columns(ticket_id=pl.col("ticket_id") + "-again")
    status = workspace.run(labeling(), some_at_once(pl.concat([tickets(20), again])))
    assert (status.submission.rows, status.submission.requests) == (40, 20)
    assert len(billed(workspace)) == len(set(billed(workspace))) == 20
    assert_total(workspace, labeling(), status.submission.submission_id, 40)
    assert temporary
    assert all(file.closed for file in temporary)


def test_rows_that_come_one_by_one_are_stored_together(workspace: Workspace) -> None:
    rows = tickets(40)
    submission = workspace.engine().plan(labeling(), iter([rows[at : at + 1] for at in range(40)]))
    [manifest] = [path for path in workspace.files() if path.endswith("manifest.parquet")]
    read = pq.ParquetFile(workspace.tmp_path / "payloads" / manifest)
    assert (read.num_row_groups, read.metadata.num_rows, submission.rows) == (1, 40, 40)
    assert read.read()["ticket_id"].to_pylist() == rows["ticket_id"].to_list()


def test_of_many_rows_two_of_one_key_are_refused_however_far_apart(
    workspace: Workspace, temporary: list[IO[bytes]]
) -> None:
    rows = pl.concat([tickets(20), tickets(1)])
    with pytest.raises(InputError, match="'ticket_id' has duplicate values: 't0'"):
        workspace.engine().plan(labeling(), some_at_once(rows))
    assert workspace.files() == set()
    assert temporary
    assert all(file.closed for file in temporary)


def test_a_plan_whose_temporary_file_cannot_be_made_leaves_nothing(
    workspace: Workspace, temporary: list[IO[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError):
        workspace.engine().plan(labeling(), some_at_once(tickets(20)))
    assert workspace.files() == set()
    assert not temporary


@pytest.mark.skipif(not Path(FULL).exists(), reason="as on Linux")
def test_a_plan_that_a_full_disk_ends_says_so_and_leaves_nothing(
    workspace: Workspace, temporary: list[IO[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, FULL, "r+b"))
    said = rf"temporary folder {tempfile.gettempdir()} has no room: No space left on device\..* TMPDIR"
    with pytest.raises(PayloadError, match=said):
        workspace.engine().plan(labeling(), some_at_once(tickets(20)))
    assert workspace.files() == set()
    assert temporary
    assert all(file.closed for file in temporary)


class Numbers(array):  # type: ignore[type-arg]
    """A buffer of batches of rows, alive as long as one of them."""


@pytest.mark.parametrize("is_stream", [False, True])
def test_some_rows_are_let_go_before_the_next_are_read(workspace: Workspace, is_stream: bool) -> None:
    names = ["ticket_id", "subject", "body"]

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, 40, 10):
            numbers = Numbers("q", range(start, start + 10))
            column = pa.Array.from_buffers(pa.int64(), 10, [None, pa.py_buffer(numbers)])
            held = weakref.ref(numbers)
            del numbers
            yield pa.RecordBatch.from_arrays([column] * 3, names)
            del column
            assert held() is None

    schema = pa.schema([(name, pa.int64()) for name in names])
    rows = pa.RecordBatchReader.from_batches(schema, batches()) if is_stream else batches()
    assert workspace.engine().plan(labeling(), rows).rows == 40


@pytest.mark.parametrize(
    ("characters", "images", "chunks"),
    [(10, [], [1_024, 1_024]), (50_000, [], [10] * 4 + [8]), (10, ["image"], [8] * 256), (200_000, [], [8, 8])],
)
def test_of_long_rows_fewer_are_in_memory_at_once(characters: int, images: list[str], chunks: list[int]) -> None:
    count = sum(chunks)
    batch = pa.RecordBatch.from_pydict(
        {
            "ticket_id": [f"t{number}" for number in range(count)],
            "subject": ["x" * characters] * count,
            "image": [f"https://example.org/{number}.png" for number in range(count)],
        }
    )
    asked = labeling(prompt=Prompt("{{ subject }}", images=images))
    rendered = RowRenderer(asked, batch.schema, NO_FILES).requests(batch, batch.column("ticket_id").to_pylist())
    assert [len(requests) for _, requests in rendered] == chunks


def test_a_plan_that_is_made_is_let_go_without_the_garbage_collector(workspace: Workspace) -> None:
    gc.collect()
    gc.disable()
    try:
        workspace.engine().plan(labeling(), tickets(20))
        assert not [value for value in gc.get_objects() if isinstance(value, request_writer.Draft)]
    finally:
        gc.enable()
