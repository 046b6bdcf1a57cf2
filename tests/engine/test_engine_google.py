"""The engine over Vertex AI, with a real Cloud Storage server, and the Gemini API: no second batch, no lost row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from google_workspace import BUCKET, ROWS, definition, provider
from workspace import Workspace, assert_total, billed, tickets

from dagster_llm_batch.engine import Limits
from dagster_llm_batch.testing.emulator import Emulator, RowFault, WireFault, local_gcs, lost_create_reply
from tests.statements import statements

VERTEX_JOBS = "POST /vertex/*/batchPredictionJobs"
CREATES = {"vertex": VERTEX_JOBS, "tables": VERTEX_JOBS, "gemini": "POST /gemini/*:batchGenerateContent"}
BATCHES = 3
# tests/faults/table.py has the effects of faults at Vertex AI with files and at the Gemini API, as for all vendors.
in_tables = pytest.mark.parametrize("kind", ["tables"])


@pytest.fixture(scope="module")
def storage_url() -> Iterator[str]:
    with local_gcs(BUCKET) as url:
        yield url


@pytest.fixture(params=CREATES)
def kind(request) -> str:
    return request.param


def base_url(emulator: Emulator, kind: str) -> str:
    return emulator.gemini_base_url if kind == "gemini" else emulator.vertex_base_url


@pytest.fixture
def workspace(tmp_path, storage_url, kind) -> Iterator[Workspace]:
    with Emulator(gcs_url=storage_url) as emulator:
        made = Workspace(tmp_path, emulator)
        tables = emulator.bigquery_url if kind == "tables" else None
        one = provider(kind, base_url(emulator, kind), storage_url, timeout_seconds=1.5, bigquery_url=tables)
        made.providers = {one.name: one}
        yield made


def go_on(workspace: Workspace, kind: str) -> None:
    """Run until all shards are settled; check for the planned number of batches, and each row labeled and paid once."""
    plan = workspace.engine().plan(definition(kind), tickets(ROWS))
    for _ in range(3):
        workspace.engine().submit(definition(kind), plan.submission_id)
        workspace.skipped += timedelta(hours=1)
    status = workspace.finish(definition(kind), plan.submission_id)
    labels, _ = assert_total(workspace, definition(kind), plan.submission_id, ROWS)
    assert len(labels) == ROWS
    assert len(workspace.emulator.books.batches) == BATCHES
    assert len(billed(workspace)) == len(set(billed(workspace))) == ROWS
    assert workspace.emulator.books.billed_twice() == {}
    assert status.submission.cost_usd > 0


def test_rows_become_labels_with_their_batch_price(workspace: Workspace, kind: str) -> None:
    go_on(workspace, kind)
    [submission] = workspace.engine().ledger.submissions.list_all("test")
    labels = workspace.engine().labels(definition(kind), submission.submission_id).labels
    assert set(labels["llm_price_basis"].to_pylist()) == {"batch"}
    assert set(labels["topic"].to_pylist()) <= {"billing", "bug", "how_to"}


@in_tables
def test_rows_that_can_succeed_are_sent_again_and_others_are_not(workspace: Workspace, kind: str) -> None:
    workspace.emulator.inject(
        RowFault(containing="number 1?", status_code=503, times=1), RowFault(containing="number 2?")
    )
    status = workspace.run(definition(kind), tickets(ROWS))
    assert status.submission.outcomes == {"succeeded": ROWS - 1, "errored": 1}
    assert len(workspace.emulator.books.batches) == BATCHES + 1


@in_tables
@pytest.mark.parametrize("how", ["500", "close", "hang"])
def test_a_lost_reply_to_a_create_makes_no_second_batch(workspace: Workspace, kind: str, how: str) -> None:
    workspace.emulator.inject(lost_create_reply(how, route=CREATES[kind]))
    go_on(workspace, kind)


@in_tables
def test_a_create_that_never_arrived_is_made_in_the_end(workspace: Workspace, kind: str) -> None:
    workspace.emulator.inject(WireFault(kind="status", route=CREATES[kind], status=503))
    go_on(workspace, kind)


def test_partitions_share_a_batch_and_come_home_whatever_counts_the_vendor_gives(
    workspace: Workspace, kind: str
) -> None:
    made = replace(definition(kind), limits=Limits(max_requests_per_batch=ROWS))
    engine = workspace.engine()
    ids = [engine.plan(made, tickets(3, start=3 * n), partition=f"p{n}").submission_id for n in range(3)]
    engine.submit_together(made, ids)
    workspace.emulator.settle()
    for submission_id in ids:
        assert engine.advance(made, submission_id).is_settled  # at once: the results are all there
        assert_total(workspace, made, submission_id, 3)
    assert len(workspace.emulator.books.batches) == 1
    assert len(billed(workspace)) == ROWS


@in_tables
def test_a_report_without_a_total_is_divided_by_one_read_of_the_batch(workspace: Workspace, kind: str) -> None:
    made = replace(definition(kind), limits=Limits(max_requests_per_batch=100))
    engine = workspace.engine()
    reads = []
    for sharing in (3, 12):
        ids = [
            engine.plan(made, tickets(2, start=2 * n), partition=f"{sharing}-{n}").submission_id for n in range(sharing)
        ]
        engine.submit_together(made, ids)
        workspace.emulator.settle()
        shards = [shard for one in ids for shard in engine.ledger.shards.of_submission(one)]
        assert len({shard.batch.batch_id for shard in shards}) == 1
        with statements() as asked:
            reports = engine.poll(shards)
        assert [(report.total, report.done, report.failed) for report in reports.values()] == [(2, 2, 0)] * sharing
        reads.append(sum(statement.startswith("SELECT") for statement in asked))
    assert reads[0] == reads[1]
