"""Submissions that are settled together: one query, report and sync for all, and a separate outcome for each."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from workspace import Workspace, assert_total, labeling, tickets

from dagster_llm_batch.errors import LeaseError, LLMBatchError, PayloadError
from dagster_llm_batch.loop.collect import Collector
from dagster_llm_batch.loop.status import Status
from dagster_llm_batch.storage.payloads import LateStore, PayloadStore
from tests.statements import statements

PARTITIONS = 4


@contextmanager
def synced(monkeypatch: pytest.MonkeyPatch, then: list[str]) -> Iterator[None]:
    """Add the names of files to `then` as they are synced."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        then.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        yield


def ended(workspace: Workspace, partitions: Sequence[int] = range(PARTITIONS)) -> list[str]:
    """Send several partitions in one batch, which ends; return their submissions."""
    engine, definition, rows = workspace.engine(), labeling(), tickets(3, start=3 * partitions[0])
    ids = [engine.plan(definition, rows, partition=f"p{n}").submission_id for n in partitions]
    engine.submit_together(definition, ids)
    workspace.emulator.settle()
    return ids


def test_four_submissions_are_settled_together_in_as_many_transactions_as_two(workspace: Workspace) -> None:
    engine, transactions = workspace.engine(), []
    for partitions in (range(2), range(2, 6)):
        ids = ended(workspace, partitions)
        with statements() as asked:
            outcomes = engine.collect_together(labeling(), ids)
        transactions.append(asked.count("BEGIN IMMEDIATE"))
        assert all(isinstance(outcome, Status) and outcome.is_settled for outcome in outcomes.values())
        assert list(outcomes) == ids
        for submission_id in ids:
            assert_total(workspace, labeling(), submission_id, 3)
    assert transactions[0] == transactions[1] > 0
    assert not workspace.emulator.books.billed_twice()


def test_one_that_cannot_be_settled_takes_no_other_along(workspace: Workspace) -> None:
    engine, ids = workspace.engine(), ended(workspace)
    lost = engine.ledger.submissions.get(ids[1])
    engine.payloads.delete(lost.manifest)
    outcomes = engine.collect_together(labeling(), ids)
    assert [isinstance(outcomes[key], Status) for key in ids] == [True, False, True, True]
    with pytest.raises(LLMBatchError) as refusal:
        engine.collect(labeling(), ids[1])
    assert str(refusal.value) == str(outcomes[ids[1]])


def test_nothing_is_done_where_another_process_works_on_one_of_them(workspace: Workspace) -> None:
    engine, ids = workspace.engine(), ended(workspace)
    with engine.ledger.leases.hold(f"submission:{ids[2]}"), pytest.raises(LeaseError):
        engine.collect_together(labeling(), ids)
    assert not any(engine.status(key).is_settled for key in ids)


def test_results_are_on_disk_before_the_ledger_knows_of_them(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ids = workspace.engine(), ended(workspace)
    order: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE shard SET state=?, collected_at"):
            order.append("recorded")

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        with synced(monkeypatch, order):
            engine.collect_together(labeling(), ids)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    stored = [
        Path(path).name
        for key in ids
        for s in engine.status(key).shards
        for path in (s.raw_path, s.results_path)
        if path
    ]
    before = order[: order.index("recorded")]
    assert sorted(name for name in before if name in stored) == sorted(stored)


@contextmanager
def refused(table: str, condition: str) -> Iterator[None]:
    """Make the databases refuse rows of a table."""
    name = "refused_by_test"

    def set_trigger(connection: Any, _record: object, _proxy: object = None) -> None:
        connection.execute(
            f"CREATE TEMP TRIGGER IF NOT EXISTS {name} BEFORE UPDATE ON main.{table} WHEN {condition} "
            "BEGIN SELECT RAISE(ABORT, 'this row is refused'); END"
        )

    sa.event.listen(sa.pool.Pool, "checkout", set_trigger)
    try:
        yield
    finally:
        sa.event.remove(sa.pool.Pool, "checkout", set_trigger)


@pytest.mark.parametrize(
    ("table", "condition"),
    [("shard", "NEW.submission_id = '{}' AND NEW.state = 'collected'"), ("submission", "NEW.submission_id = '{}'")],
)
def test_one_that_the_ledger_refuses_takes_no_other_along(workspace: Workspace, table: str, condition: str) -> None:
    engine, ids = workspace.engine(), ended(workspace)
    with refused(table, condition.format(ids[1])):
        outcomes = engine.collect_together(labeling(), ids)
    assert [isinstance(outcomes[key], Status) for key in ids] == [True, False, True, True], outcomes
    assert "this row is refused" in str(outcomes[ids[1]])
    assert [engine.status(key).is_settled for key in ids] == [True, False, True, True]


def test_what_a_disk_refuses_once_is_recorded_of_none_and_written_anew_by_the_next_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ids = workspace.engine(), ended(workspace)
    real, left = os.fsync, [1]

    def fsync(descriptor: int) -> None:
        if left and Path(f"/proc/self/fd/{descriptor}").readlink().name.endswith(".parquet"):
            left.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        # As on a real disk, a second sync would succeed although data was lost.
        with pytest.raises(PayloadError, match=r"Could not write .* the disk did not take it"):
            engine.collect_together(labeling(), ids)
    assert not left
    assert not [shard for key in ids for shard in engine.status(key).shards if shard.results_path]
    outcomes = engine.collect_together(labeling(), ids)
    assert all(isinstance(outcome, Status) and outcome.is_settled for outcome in outcomes.values()), outcomes
    for key in ids:
        assert all(engine.payloads.is_whole(shard.results_path or "") for shard in engine.status(key).shards)


def test_raw_lines_that_a_killed_process_left_are_on_disk_before_the_ledger_knows_of_them(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ids = workspace.engine(), ended(workspace)
    engine.poll(shards := [shard for key in ids for shard in engine.status(key).shards])
    collector = Collector(labeling(), engine.deployment, LateStore(engine.payloads))
    for shard in engine.ledger.shards.of_submission(ids[0]):
        collector.archive(shard)
    order: list[str] = []
    with synced(monkeypatch, order):
        engine.collect_together(labeling(), ids)
    raw = [Path(path).name for key in ids for s in engine.status(key).shards if (path := s.raw_path)]
    assert len(raw) == len(shards)
    assert set(raw) <= set(order)


def test_late_files_are_there_at_once_and_synced_with_their_folders_when_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PayloadStore(str(tmp_path))
    late = LateStore(store)
    order: list[str] = []
    with synced(monkeypatch, order):
        for name in ("a/one.zst", "a/two.zst", "b/three.zst"):
            with late.writer(name) as file:
                file.write(b"line\n")
        late.delete("b/three.zst")
        assert [*store.lines("a/one.zst")] == [b"line\n"]
        assert order == []
        late.sync()
        assert sorted(order[:2]) == ["one.zst", "two.zst"]
        assert sorted(order[2:]) == ["a", "b"]
        late.sync()
        assert len(order) == 4
