"""Labels as a whole table and in parts are the same, after any number of waves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from workspace import Workspace, labeling, tickets

from dagster_llm_batch.engine import Labeling, Limits
from dagster_llm_batch.testing.emulator import FileFault, RowFault

FEW = {"fraction": 0.3, "times": None, "batches": [0]}


@pytest.fixture(params=[2, 8, 1_000], ids="parts of {} rows".format)
def part_rows(request: Any, workspace: Workspace) -> int:
    workspace.bounds["part_rows"] = request.param
    return int(request.param)


def twins(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows, and a third of them again under other keys."""
    again = rows.gather_every(3).with_columns(pl.col("ticket_id") + "-twin")
    return pl.concat([rows, again])


def landed(workspace: Workspace, definition: Labeling, submission_id: str) -> tuple[list[Any], list[Any]]:
    """Return labels and rejects of the whole table; check that the parts hold the same rows."""
    engine = workspace.engine()
    whole = engine.labels(definition, submission_id, run_id="r")
    parts = list(engine.label_batches(definition, submission_id, run_id="r"))
    for name in ("labels", "rejects"):
        table: pa.Table = getattr(whole, name)
        found = pa.concat_tables([getattr(part, name) for part in parts])
        assert found.schema == table.schema
        assert found.sort_by("ticket_id").to_pylist() == table.sort_by("ticket_id").to_pylist()
    return whole.labels.to_pylist(), whole.rejects.to_pylist()


def test_parts_say_what_the_whole_says_after_retries_of_shared_requests(workspace: Workspace, part_rows: int) -> None:
    workspace.emulator.inject(
        FileFault(kind="missing", **FEW), RowFault(status_code=429, **FEW), RowFault(containing="number 7?")
    )
    definition = labeling(keep=["subject"], limits=Limits(max_requests_per_batch=11))
    rows = twins(tickets(60))
    status = workspace.run(definition, rows)
    labels, rejects = landed(workspace, definition, status.submission.submission_id)
    assert sorted(row["ticket_id"] for row in labels + rejects) == sorted(rows["ticket_id"])
    assert [row["subject"] for row in labels + rejects if row["ticket_id"] == "t3-twin"] == ["Subject 3"]
    assert status.submission.waves > 1
    by_request = {row["llm_request_id"]: row["llm_outcome"] for row in labels + rejects}
    assert status.submission.outcomes == Counter(by_request.values()) == {"succeeded": 59, "errored": 1}
    # If a wave lost a result, the cost of that request is unknown, even if a later wave answers it.
    costs = [row["llm_cost_usd"] for row in labels + rejects]
    assert status.submission.cost_usd == (None if None in costs else sum(costs))


def test_parts_say_what_the_whole_says_of_answers_of_earlier_submissions(workspace: Workspace, part_rows: int) -> None:
    workspace.emulator.inject(RowFault(containing="number 7?"))
    definition = labeling()
    workspace.run(definition, tickets(40), partition="p")
    status = workspace.run(definition, twins(tickets(30, start=20)).vstack(tickets(2, start=6)), partition="p")
    assert (status.submission.reused, status.submission.requests) == (21, 32)
    labels, rejects = landed(workspace, definition, status.submission.submission_id)
    assert len(labels + rejects) == 42
    assert status.submission.outcomes == {"succeeded": 31, "errored": 1}


@pytest.mark.parametrize("last", ["t29", "t13"], ids="the last is {}".format)
def test_results_in_the_order_of_the_rows_say_what_others_say(workspace: Workspace, part_rows: int, last: str) -> None:
    workspace.emulator.inject(RowFault(containing="number 7?"))
    definition = labeling(keep=["subject"], limits=Limits(max_requests_per_batch=11))
    status = workspace.run(definition, tickets(30))
    assert (status.submission.waves, status.submission.requests) == (1, 30)
    engine, submission_id = workspace.engine(), status.submission.submission_id
    before = engine.labels(definition, submission_id, run_id="r").labels
    manifest = engine.payloads.read_table(status.submission.manifest).to_pylist()
    order = {row["llm_request_id"]: (row["ticket_id"] == last, at) for at, row in enumerate(manifest)}
    for shard in status.shards:
        results = engine.payloads.read_table(shard.results_path or "")
        ids = results["llm_request_id"].to_pylist()
        with engine.payloads.table_writer(shard.results_path or "", results.schema) as out:
            out.write_table(results.take(sorted(range(len(ids)), key=lambda at: order[ids[at]])))
    labels, rejects = landed(workspace, definition, submission_id)
    assert ([row["ticket_id"] for row in rejects], labels) == (["t7"], before.to_pylist())
    parts = [part.labels["ticket_id"].to_pylist() for part in engine.label_batches(definition, submission_id)]
    if part_rows == 2:
        assert parts[:5] == [["t0", "t1"], ["t2", "t3"], ["t4", "t5"], ["t6"], ["t8", "t9"]]


def test_no_rows_are_one_empty_part(workspace: Workspace, part_rows: int) -> None:
    definition = labeling()
    status = workspace.run(definition, tickets(0))
    assert landed(workspace, definition, status.submission.submission_id) == ([], [])
    assert status.submission.outcomes == {}


def test_rows_of_results_that_lack_all_of_a_shard_are_missing_whole_and_in_parts(
    workspace: Workspace, part_rows: int
) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=4))
    status = workspace.run(definition, tickets(10))
    engine, submission_id = workspace.engine(), status.submission.submission_id
    path = status.shards[1].results_path or ""
    lost = set(engine.payloads.read_table(path)["llm_request_id"].to_pylist())
    with engine.payloads.table_writer(path, engine.payloads.table_schema(path)):
        pass
    labels, rejects = landed(workspace, definition, submission_id)
    assert {row["llm_request_id"] for row in rejects} == lost
    assert {row["llm_outcome"] for row in rejects} == {"missing"}
    assert len(labels) == 6


def test_a_whole_table_keeps_the_order_of_its_rows(workspace: Workspace) -> None:
    rows = twins(tickets(30)).sample(fraction=1.0, shuffle=True, seed=1)
    definition = labeling(limits=Limits(max_requests_per_batch=7))
    status = workspace.run(definition, rows)
    labels = workspace.engine().labels(definition, status.submission.submission_id).labels
    assert labels["ticket_id"].to_pylist() == rows["ticket_id"].to_list()


def test_labels_are_read_again_when_the_vendor_has_nothing_of_them_any_more(workspace: Workspace) -> None:
    status = workspace.run(labeling(), tickets(3))
    engine, submission_id = workspace.engine(), status.submission.submission_id
    before = engine.labels(labeling(), submission_id).labels
    workspace.emulator.close()
    assert engine.labels(labeling(), submission_id, reread=True).labels.equals(before)
