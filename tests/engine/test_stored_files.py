"""A lost or damaged file never changes a label, and its content is restored if that is free."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from workspace import Workspace, assert_total, billed, forget_definition, labeling, tickets

from dagster_llm_batch.engine import Limits, Realtime, Resend
from dagster_llm_batch.errors import PayloadError, TransientError
from dagster_llm_batch.files.request_files import IDS, RAW, RESULTS
from dagster_llm_batch.testing.emulator import RowFault, WireFault

ROWS = 12
REQUESTS = ".requests.jsonl.lz4"
GONE = WireFault(kind="status", route="GET /v1/files/*", status=404, times=None)


def flip(path: Path) -> None:
    """Flip a bit in the middle of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


HARMS: dict[str, Callable[[Path], None]] = {"a flipped bit": flip, "deleted": Path.unlink}


def landed(workspace: Workspace) -> tuple[Any, str, Any]:
    """Return a definition, the id of its settled submission, and its labels."""
    definition = labeling(limits=Limits(max_requests_per_batch=6))
    status = workspace.run(definition, tickets(ROWS))
    submission_id = status.submission.submission_id
    return definition, submission_id, values(workspace.engine().labels(definition, submission_id).labels)


def values(labels: Any) -> list[tuple[Any, ...]]:
    columns = labels.select(["ticket_id", "topic", "urgency"]).columns
    return sorted(zip(*(column.to_pylist() for column in columns), strict=True))


def harm(workspace: Workspace, harm: Callable[[Path], None], *endings: str) -> int:
    """Harm the files of the first shard with these endings; return how many."""
    found = [
        path
        for ending in endings
        for path in sorted((workspace.tmp_path / "payloads").rglob(f"*{ending}"))[:1]
        if path.is_file()
    ]
    for path in found:
        harm(path)
    return len(found)


def told(workspace: Workspace, submission_id: str) -> list[str]:
    events = workspace.engine().ledger.events.of_submission(submission_id)
    return [event.detail or "" for event in events if event.kind == "results_restored"]


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("endings", [[RESULTS], [RESULTS, RAW], [RAW], [IDS], [REQUESTS], [IDS, RESULTS]])
def test_labels_stay_what_they_were_where_a_file_can_be_made_anew(
    workspace: Workspace, how: str, endings: list[str]
) -> None:
    definition, submission_id, labels = landed(workspace)
    assert harm(workspace, HARMS[how], *endings) == len(endings)
    for reread in (False, True):
        again = workspace.engine().labels(definition, submission_id, reread=reread)
        assert values(again.labels) == labels
    assert bool(told(workspace, submission_id)) == (RESULTS in endings)
    assert len(billed(workspace)) == ROWS
    assert workspace.engine().plan(definition, tickets(ROWS)).submission_id == submission_id


@pytest.mark.parametrize("how", HARMS)
def test_answers_that_nobody_has_any_more_are_missing_and_not_paid_again_by_themselves(
    workspace: Workspace, how: str
) -> None:
    definition, submission_id, labels = landed(workspace)
    harm(workspace, HARMS[how], RESULTS, RAW)
    workspace.emulator.inject(GONE)
    again, rejects = assert_total(workspace, definition, submission_id, ROWS)
    assert set(values(again)) < set(labels)
    assert len(again) == ROWS // 2
    assert set(rejects["llm_outcome"].to_pylist()) == {"missing"}
    assert "retry" in rejects["llm_reason"].to_pylist()[0]
    assert workspace.engine().ledger.submissions.get(submission_id).outcomes == {"succeeded": 6, "missing": 6}
    assert "6 requests count as not answered" in told(workspace, submission_id)[0]
    # Neither a further run nor another read sends a request again.
    workspace.finish(definition, submission_id)
    assert len(billed(workspace)) == ROWS
    # On a person's request, only the lost rows are asked.
    second = workspace.engine().plan(definition, tickets(ROWS), again=True)
    workspace.engine().submit(definition, second.submission_id)
    workspace.emulator.settle()
    assert (second.requests, second.reused) == (ROWS, ROWS // 2)


@pytest.mark.parametrize("how", HARMS)
def test_answers_in_real_time_that_are_harmed_before_they_are_read_are_not_paid_again(
    workspace: Workspace, how: str
) -> None:
    definition = labeling(realtime=Realtime(urgent="now"))
    engine = workspace.engine()
    rows = tickets(130).with_columns(pl.lit(value=True).alias("now"))
    submission_id = engine.plan(definition, rows).submission_id
    engine.submit(definition, submission_id)
    assert harm(workspace, HARMS[how], RAW)
    workspace.finish(definition, submission_id)
    # One shard of five: so few that the breaker does not stop the next wave.
    _, rejects = assert_total(workspace, definition, submission_id, 130)
    assert set(rejects["llm_outcome"].to_pylist()) == {"missing"}
    assert len(billed(workspace)) == 130


def test_where_the_provider_cannot_be_asked_now_nothing_is_given_up(workspace: Workspace) -> None:
    definition, submission_id, labels = landed(workspace)
    harm(workspace, Path.unlink, RESULTS, RAW)
    workspace.emulator.inject(WireFault(kind="status", route="GET /v1/*", status=503, times=None))
    with pytest.raises(TransientError):
        workspace.engine().labels(definition, submission_id)
    workspace.emulator.clear_faults()
    assert values(workspace.engine().labels(definition, submission_id).labels) == labels


@pytest.mark.parametrize("how", HARMS)
def test_a_manifest_is_written_anew_from_the_same_rows(workspace: Workspace, how: str) -> None:
    definition, submission_id, labels = landed(workspace)
    manifest = workspace.engine().ledger.submissions.get(submission_id).manifest_path or ""
    HARMS[how](workspace.tmp_path / "payloads" / manifest)
    with pytest.raises(PayloadError, match=r"submits 'ticket_labels' again: .* without asking or paying again"):
        workspace.engine().labels(definition, submission_id)
    assert workspace.engine().plan(definition, tickets(ROWS)).submission_id == submission_id
    assert values(workspace.engine().labels(definition, submission_id).labels) == labels
    assert len(billed(workspace)) == ROWS


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("ending", [RAW, RESULTS, IDS])
def test_files_harmed_between_the_waves_change_neither_labels_nor_the_price(
    workspace: Workspace, how: str, ending: str
) -> None:
    workspace.emulator.inject(RowFault(status_code=500, containing="number 3?", times=1))
    definition = labeling(resend=Resend(max_waves=2))
    engine = workspace.engine()
    submission_id = engine.plan(definition, tickets(ROWS)).submission_id
    engine.submit(definition, submission_id)
    workspace.emulator.settle()
    engine.advance(definition, submission_id)
    assert harm(workspace, HARMS[how], ending)
    workspace.finish(definition, submission_id)
    labels, _ = assert_total(workspace, definition, submission_id, ROWS)
    assert len(labels) == ROWS
    assert len(billed(workspace)) == ROWS


def test_a_flipped_bit_anywhere_gives_the_same_labels_or_says_that_a_file_is_damaged(workspace: Workspace) -> None:
    definition, submission_id, labels = landed(workspace)
    files = sorted(path for path in (workspace.tmp_path / "payloads").rglob("*") if path.is_file())
    assert {path.name.partition(".")[2] for path in files} >= {"requests.jsonl.lz4", "raw.jsonl.zst", "results.parquet"}
    chance = random.Random(18)
    for path in files:
        whole = path.read_bytes()
        for _ in range(4):
            data = bytearray(whole)
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(bytes(data))
            try:
                assert values(workspace.engine().labels(definition, submission_id).labels) == labels, path.name
            except PayloadError:
                assert "manifest" in path.name, path.name
            path.write_bytes(whole)
    assert len(billed(workspace)) == ROWS


def test_results_that_cannot_be_read_again_with_other_columns_are_not_given_up(workspace: Workspace) -> None:
    definition, submission_id, before = landed(workspace)
    workspace.engine().ledger.submissions.mark_delivered(submission_id)
    workspace.skipped += timedelta(days=40)
    assert workspace.engine().prune(timedelta(days=30), timedelta(days=30), delete=True).aged
    workspace.emulator.inject(GONE)
    # Read by the definition that is stored with it, it has the columns that it was asked for.
    other = labeling(response=None)
    assert values(workspace.engine().labels(other, submission_id).labels) == before
    forget_definition(workspace, workspace.engine().ledger.submissions.get(submission_id))
    with pytest.raises(PayloadError, match="kept no longer"):
        workspace.engine().labels(other, submission_id)
    assert values(workspace.engine().labels(definition, submission_id).labels) == before
