"""A table that grows for long opens few files, because earlier answers are merged into copies that can be rebuilt.

Copies are lost, damaged, made by two processes at once or by a killed one. Each row keeps the label of the batch that
answered it, and is not asked again. Copies never hold erased or pruned answers.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from workspace import Workspace, billed, labeling, tickets

from dagster_llm_batch.core.result_schema import REPEATING, RESULT_SCHEMA
from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.engine.label_files import write_labels
from dagster_llm_batch.errors import PayloadError
from dagster_llm_batch.files.merged_results import MergedResults
from dagster_llm_batch.files.ownership import MERGED
from dagster_llm_batch.loop.label import LabelAssembler
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, RowFault
from tests.processes import PROCESSES, state_of

LABELS = labeling(response=None)
A_DAY = 2
FEW = {"part_rows": 7}
"""Bounds that split a table into several parts."""


def grown(workspace: Workspace, days: int, first: int = 1) -> str:
    """Label a table that grows each day, until this one; return the id of the last submission."""
    for day in range(first, days + 1):
        submission_id = workspace.run(LABELS, tickets(day * A_DAY)).submission.submission_id
        landed(workspace, submission_id)
    return submission_id


def landed(workspace: Workspace, submission_id: str) -> pa.Table:
    """Return all labels in the order of their keys, without the id of their run."""
    engine = workspace.engine()
    parts = [part.labels for part in engine.label_batches(LABELS, submission_id)]
    engine.ledger.close()
    return pa.concat_tables(parts).sort_by("ticket_id")


def copies(workspace: Workspace) -> list[Path]:
    return sorted((workspace.tmp_path / "payloads").rglob(f"{MERGED}/*.parquet"))


def without_copies(workspace: Workspace) -> None:
    for folder in (workspace.tmp_path / "payloads").rglob(MERGED):
        shutil.rmtree(folder)


_opened: list[list[str]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened and isinstance(arguments[0], str) and arguments[0].endswith(".parquet"):
        _opened[-1].append(arguments[0])


sys.addaudithook(_note)


@contextmanager
def opened() -> Iterator[list[str]]:
    """Keep the names of the tables that are opened during the block."""
    _opened.append([])
    yield _opened[-1]
    _opened.pop()


@pytest.mark.slow
def test_the_twenty_sixth_day_opens_fewer_files_than_the_eighth(workspace: Workspace) -> None:
    counts = {}
    for day in range(1, 27):
        with opened() as names:
            grown(workspace, day, first=day)
        counts[day] = len(names)
    # Day 26 opens three copies, one earlier day's results and its own; day 8 opens the results of seven days.
    assert counts[26] < counts[8]
    assert counts[2] < counts[3] < counts[8]


def small(payloads: PayloadStore, number: int, rows: int = 3, note: str = "") -> Shard:
    """Store the results of one day; return their collected shard."""
    path = f"n/a/_/s{number}/wave-1-0000.results.parquet"
    found = [
        {"llm_request_id": f"{number}-{row}", "llm_outcome": "succeeded", "llm_reason": note} for row in range(rows)
    ]
    with payloads.table_writer(path, RESULT_SCHEMA, repeating=REPEATING) as out:
        out.write_table(pa.Table.from_pylist(found, RESULT_SCHEMA))
    return Shard(
        shard_id=f"h{number}", submission_id=f"s{number}", wave=1, number=0, nonce="n", requests=rows, bytes=1,
        path=path.replace(".results.parquet", ".requests.jsonl.lz4"), digest="", results_path=path,
    )  # fmt: skip


@pytest.mark.parametrize(("days", "read"), [(7, 7), (8, 1), (63, 14), (64, 1), (137, 4)])
def test_files_grow_with_the_logarithm_of_the_days(tmp_path: Path, days: int, read: int) -> None:
    payloads = PayloadStore(str(tmp_path))
    shards = [small(payloads, number) for number in range(days)]
    merging = MergedResults(payloads, RESULT_SCHEMA)
    merged = merging.merge(shards)
    assert len(merged) == read
    assert sum(shard.requests for shard in merged) == 3 * days
    # Within a copy the newest comes first.
    ids = [one for shard in reversed(merged) for one in payloads.read_table(shard.results_path or "")["llm_request_id"]]
    days_read = [int(one.as_py().partition("-")[0]) for one in ids]
    assert days_read == sorted(days_read, reverse=True)
    assert len(set(ids)) == 3 * days
    assert [copy.results_path for copy, _ in merging.find(shards)] == [
        shard.results_path for shard in merged if shard.wave == 0
    ]


def test_large_shards_are_not_copied_and_what_was_copied_of_small_ones_is_merged_again(tmp_path: Path) -> None:
    payloads = PayloadStore(str(tmp_path))
    shards = [small(payloads, number) for number in range(64)]
    assert len(MergedResults(payloads, RESULT_SCHEMA, most_rows=30).merge(shards)) == 8
    assert MergedResults(payloads, RESULT_SCHEMA, most_rows=20).merge(shards) == shards
    assert MergedResults(payloads, RESULT_SCHEMA, most_bytes=10).merge(shards) == shards
    with opened() as names:
        assert len(MergedResults(payloads, RESULT_SCHEMA).merge(shards)) == 1
    # Of their copies, not of the shards.
    assert {f"/{MERGED}/" in name for name in names} == {True}


def test_results_that_change_while_they_are_copied_leave_no_copy(tmp_path: Path) -> None:
    payloads = PayloadStore(str(tmp_path))
    shards = [small(payloads, number, note="secret") for number in range(8)]
    merging = MergedResults(payloads, RESULT_SCHEMA)
    assert len(merging.merge(shards)) == 1
    [stored] = list(payloads.files(f"n/a/_/{MERGED}"))
    payloads.remove(stored)
    copy = merging.copy_of(shards, [payloads.version(shard.results_path or "") for shard in shards])
    assert copy is not None

    def erased_meanwhile() -> Iterator[pa.Table]:
        for number, shard in enumerate(shards):
            yield payloads.read_table(shard.results_path or "")
            if number == 5:
                small(payloads, 2, note="")

    with pytest.raises(PayloadError, match="have changed since they were read"):
        merging.write(copy, erased_meanwhile())
    assert not list(payloads.files(f"n/a/_/{MERGED}"))


def test_results_of_other_columns_are_not_copied_and_it_is_said_as_of_those_that_changed(tmp_path: Path) -> None:
    payloads = PayloadStore(str(tmp_path))
    shards = [small(payloads, number) for number in range(8)]
    merging = MergedResults(payloads, RESULT_SCHEMA)
    copy = merging.copy_of(shards, [payloads.version(shard.results_path or "") for shard in shards])
    assert copy is not None
    with pytest.raises(PayloadError, match="other columns"):
        merging.write(copy, [pa.table({"llm_request_id": ["r"]})])
    assert not list(payloads.files(f"n/a/_/{MERGED}"))
    merging.write(copy, [payloads.read_table(shard.results_path or "") for shard in shards])
    assert [file.path for file in payloads.files(f"n/a/_/{MERGED}")] == [copy.path]


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [{}, FEW], ids=["one part", "parts"])
def test_each_label_says_which_batch_answered_it_at_what_cost(workspace: Workspace, bounds: dict[str, Any]) -> None:
    workspace.bounds = bounds
    submission_id = grown(workspace, 20)
    assert len(copies(workspace)) == 2
    table = landed(workspace, submission_id)
    engine = workspace.engine()
    days = sorted(engine.ledger.submissions.list_all("test"), key=lambda one: one.created_at)
    batches = [engine.ledger.shards.of_submission(one.submission_id)[0].batch.batch_id for one in days]
    of_rows = dict(zip(table["ticket_id"].to_pylist(), table["llm_batch_id"].to_pylist(), strict=True))
    assert of_rows == {f"t{number}": batches[number // A_DAY] for number in range(20 * A_DAY)}
    for day, one in enumerate(days):
        keys = [f"t{number}" for number in range(day * A_DAY, (day + 1) * A_DAY)]
        costs = table.filter(pa.compute.is_in(table["ticket_id"], pa.array(keys)))["llm_cost_usd"].to_pylist()
        assert sum(costs) == one.cost_usd
    # As it is without copies, to the last column.
    without_copies(workspace)
    parts = [part.labels for part in engine.label_batches(LABELS, submission_id, reread=True)]
    assert not copies(workspace)
    assert pa.concat_tables(parts).sort_by("ticket_id").equals(table)
    written = engine.write_labels(
        LABELS, submission_id, str(workspace.tmp_path / "labels"), str(workspace.tmp_path / "rejects")
    )
    assert (written.labels, written.rejects) == (20 * A_DAY, 0)
    assert (
        pl.read_parquet(workspace.tmp_path / "labels").sort("ticket_id")["llm_batch_id"].to_list()
        == table["llm_batch_id"].to_pylist()
    )


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.slow
@pytest.mark.parametrize("harm", [flip, Path.unlink, lambda path: path.write_bytes(b"")], ids=["bit", "gone", "empty"])
@pytest.mark.parametrize("bounds", [{}, FEW], ids=["one part", "parts"])
def test_a_harmed_copy_is_made_anew_and_nothing_is_asked_again(
    workspace: Workspace, harm: Callable[[Path], None], bounds: dict[str, Any]
) -> None:
    workspace.bounds = bounds
    submission_id = grown(workspace, 10)
    before, asked = landed(workspace, submission_id), len(billed(workspace))
    [copy] = copies(workspace)
    harm(copy)
    preview = workspace.engine().preview(LABELS, tickets(11 * A_DAY))
    assert preview.requests - preview.reused == A_DAY
    assert landed(workspace, submission_id).equals(before)
    assert copies(workspace) == [copy]
    assert workspace.engine().payloads.is_whole(str(copy.relative_to(workspace.tmp_path / "payloads")))
    assert len(billed(workspace)) == asked


@pytest.mark.slow
def test_lost_results_are_restored_though_a_copy_has_them(workspace: Workspace) -> None:
    submission_id = grown(workspace, 10)
    before, asked = landed(workspace, submission_id), len(billed(workspace))
    oldest = min(workspace.engine().ledger.submissions.list_all("test"), key=lambda one: one.created_at)
    results = workspace.tmp_path / "payloads" / f"{oldest.folder}/wave-1-0000.results.parquet"
    results.unlink()
    assert landed(workspace, submission_id).equals(before)
    assert workspace.engine().payloads.is_whole(str(results.relative_to(workspace.tmp_path / "payloads")))
    assert len(billed(workspace)) == asked
    # The copy with the lost results is not read any more; the next copy has another name.
    assert landed(workspace, submission_id).equals(before)
    assert len(copies(workspace)) == 2


@pytest.mark.slow
def test_what_failed_for_good_is_known_from_a_copy_as_without(tmp_path: Path) -> None:
    fault = RowFault(containing="number 3?", status_code=400, times=None)
    with Emulator(faults=[fault]) as emulator:
        compare_previews(Workspace(tmp_path, emulator))


def compare_previews(workspace: Workspace) -> None:
    submission_id = grown(workspace, 12)
    previews = []
    for _ in range(2):
        previews.append(
            [
                (one.requests, one.reused)
                for again in (False, True)
                for one in [workspace.engine().preview(LABELS, tickets(13 * A_DAY), again=again)]
            ]
        )
        outcomes = workspace.engine().ledger.submissions.get(submission_id).outcomes
        assert outcomes == {"succeeded": 12 * A_DAY - 1, "errored": 1}
        without_copies(workspace)
    assert previews[0] == previews[1]


def stored_texts(workspace: Workspace) -> str:
    payloads = workspace.engine().payloads
    found = [file.path for file in payloads.files("test")]
    tables = [payloads.read_table(path) for path in found if path.endswith(".parquet")]
    return str([table.to_pylist() for table in tables])


@pytest.mark.slow
def test_an_erased_row_is_in_no_copy_and_what_is_left_is_merged_again(workspace: Workspace) -> None:
    submission_id = grown(workspace, 10)
    before = landed(workspace, submission_id)
    [copy] = copies(workspace)
    request_id = before.filter(pa.compute.equal(before["ticket_id"], "t3"))["llm_request_id"][0].as_py()
    assert request_id in stored_texts(workspace)
    engine = workspace.engine()
    engine.eraser.add_tombstones(LABELS.asset, ["t3"], None)
    assert engine.eraser.erase(LABELS.asset) == []
    assert copies(workspace) == []
    assert request_id not in stored_texts(workspace)
    after = landed(workspace, submission_id)
    assert after.equals(before.filter(pa.compute.not_equal(before["ticket_id"], "t3")))
    assert len(copies(workspace)) == 1
    assert copies(workspace) != [copy]
    assert request_id not in stored_texts(workspace)


def deliver(workspace: Workspace) -> None:
    engine = workspace.engine()
    for submission in engine.ledger.submissions.list_all("test"):
        engine.ledger.submissions.mark_delivered(submission.submission_id)


@pytest.mark.slow
def test_copies_are_pruned_with_what_they_are_of_and_after_some_time(workspace: Workspace) -> None:
    submission_id = grown(workspace, 10)
    [copy] = copies(workspace)
    # All that the newest reuses stays, and its copy.
    deliver(workspace)
    workspace.skipped += timedelta(days=20)
    assert workspace.engine().prune(timedelta(days=30), delete=True).files == ()
    workspace.skipped += timedelta(days=20)
    shown = workspace.engine().prune(timedelta(days=30))
    assert [file.path for file in shown.files] == [str(copy.relative_to(workspace.tmp_path / "payloads"))]
    assert copies(workspace) == [copy]
    assert workspace.engine().prune(timedelta(days=30), delete=True) == shown
    assert copies(workspace) == []
    landed(workspace, submission_id)
    assert copies(workspace) == [copy]
    # Another model replaces the earlier answers, and their copies are deleted too.
    other = replace(LABELS, model="openai/gpt-4o-mini")
    workspace.run(other, tickets(10 * A_DAY))
    workspace.skipped += timedelta(days=31)
    deliver(workspace)
    workspace.skipped += timedelta(days=31)
    pruned = workspace.engine().prune(timedelta(days=30), delete=True)
    assert len(pruned.replaced) == 10
    assert copies(workspace) == []


def labels_of(folder: Path, base_url: str, submission_id: str) -> pa.Table:
    """Return labels like `landed`, in a process without a workspace."""
    provider = OpenAIProvider(DEFAULT_KEY, base_url)
    payloads = PayloadStore(str(folder / "payloads"))
    engine = Engine(Deployment({"openai": provider}, Ledger(folder / "ledger.sqlite"), payloads, "test"))
    parts = [part.labels for part in engine.label_batches(LABELS, submission_id)]
    return pa.concat_tables(parts).sort_by("ticket_id")


def land_until(folder: Path, base_url: str, submission_id: str, left: int) -> None:
    """Materialize labels, and be killed at the effect of this number."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        is_write = event == "open" and isinstance(arguments[1], str) and arguments[1].startswith(("x", "w", "r+"))
        if is_write or event in ("os.rename", "os.remove"):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    labels_of(folder, base_url, submission_id)


def land_and_stop(folder: Path, base_url: str, submission_id: str, stops_at: str) -> None:
    """Materialize labels, stop at the first such event of a copy, and be killed after a copy gets its name."""
    seen: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        # To end a process is an event, too.
        if event == "os.kill":
            return
        if "os.rename" in seen:
            os.kill(os.getpid(), signal.SIGKILL)
        if event in ("open", "os.rename") and f"/{MERGED}/." in str(arguments[0]) and event not in seen:
            seen.append(event)
            if event == stops_at:
                os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(audit)
    labels_of(folder, base_url, submission_id)


@pytest.mark.slow
@pytest.mark.parametrize("stops_at", ["open", "os.rename"])
def test_no_copy_stays_of_a_row_that_is_erased_while_a_process_copies_and_is_killed(
    workspace: Workspace, stops_at: str
) -> None:
    submission_id = grown(workspace, 10)
    before = landed(workspace, submission_id)
    request_id = before.filter(pa.compute.equal(before["ticket_id"], "t3"))["llm_request_id"][0].as_py()
    for copy in copies(workspace):
        copy.unlink()
    arguments = (workspace.tmp_path, workspace.emulator.openai_base_url, submission_id, stops_at)
    process = PROCESSES.Process(target=land_and_stop, args=arguments)
    process.start()
    assert process.pid is not None
    while state_of(process.pid) != "T":
        assert process.is_alive()
        time.sleep(0.01)
    engine = workspace.engine()
    engine.eraser.add_tombstones(LABELS.asset, ["t3"], None)
    assert engine.eraser.erase(LABELS.asset) == []
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert request_id not in stored_texts(workspace)


def land_often(folder: Path, base_url: str, submission_id: str, expected: pa.Table) -> None:
    for _ in range(5):
        assert labels_of(folder, base_url, submission_id).equals(expected)


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_copies_leaves_nothing_that_counts(workspace: Workspace) -> None:
    submission_id = grown(workspace, 10)
    before, asked = landed(workspace, submission_id), len(billed(workspace))
    ended, at = False, 0
    while not ended:
        at += 1
        without_copies(workspace)
        arguments = (workspace.tmp_path, workspace.emulator.openai_base_url, submission_id, at)
        process = PROCESSES.Process(target=land_until, args=arguments)
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        ended = process.exitcode == 0
        halves = list((workspace.tmp_path / "payloads").rglob("*.tmp"))
        assert landed(workspace, submission_id).equals(before)
        assert len(copies(workspace)) == 1
        # A prune a day later deletes its half-written files.
        workspace.skipped += timedelta(days=2)
        pruned = workspace.engine().prune(timedelta(days=9), delete=True).files
        assert {path.name for path in halves} <= {Path(file.path).name for file in pruned}
    assert at > 2
    assert len(billed(workspace)) == asked


@pytest.mark.slow
def test_processes_that_land_at_once_have_the_same_labels(workspace: Workspace) -> None:
    submission_id = grown(workspace, 20)
    before = landed(workspace, submission_id)
    without_copies(workspace)
    arguments = (workspace.tmp_path, workspace.emulator.openai_base_url, submission_id, before)
    processes = [PROCESSES.Process(target=land_often, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(copies(workspace)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [{}, FEW], ids=["one part", "parts"])
def test_copies_that_go_while_they_are_read_are_not_needed(workspace: Workspace, bounds: dict[str, Any]) -> None:
    workspace.bounds = bounds
    submission_id = grown(workspace, 10)
    before = landed(workspace, submission_id)
    parts = workspace.engine().label_batches(LABELS, submission_id)
    assert copies(workspace)
    # As an erasure in another process does, when this one has looked which copies are there.
    without_copies(workspace)
    found = [part.labels for part in parts]
    assert pa.concat_tables(found).sort_by("ticket_id").equals(before)


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [{}, FEW], ids=["one part", "parts"])
def test_nothing_that_is_read_of_labels_needs_copies(workspace: Workspace, bounds: dict[str, Any]) -> None:
    workspace.bounds = bounds
    submission_id = grown(workspace, 10)
    folders = [PayloadStore(str(workspace.tmp_path / name)) for name in ("labels", "rejects")]
    reads: list[Callable[[LabelAssembler], int]] = [
        lambda assembler: len(assembler.labels(run_id="", reread=False).labels),
        lambda assembler: assembler.count_outcomes()["succeeded"],
        lambda assembler: write_labels(assembler, *folders, "").labels,
    ]
    for read in reads:
        landed(workspace, submission_id)
        assembler = workspace.engine()._assembler(LABELS, submission_id, reread=False)
        assert len(assembler.waves) < 10
        # As an erasure in another process does.
        without_copies(workspace)
        assert read(assembler) == 10 * A_DAY


@pytest.mark.slow
def test_results_that_are_read_again_are_read_from_no_copy(workspace: Workspace) -> None:
    submission_id = grown(workspace, 9)
    before = landed(workspace, submission_id)
    engine = workspace.engine()
    again = engine.labels(LABELS, submission_id, reread=True).labels.sort_by("ticket_id")
    assert again.equals(before)
    # The reread wrote new files for all results.
    old = copies(workspace)
    assert landed(workspace, submission_id).equals(before)
    assert set(old) < set(copies(workspace))
