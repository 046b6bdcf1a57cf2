"""The engine over Vertex AI, with a real Cloud Storage server, and the Gemini API: no second batch, no lost row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from google_house import BUCKET, ROWS, definition, provider
from house import House, assert_total, billed, tickets

from dagster_llm_batch.testing.emulator import Emulator, RowFault, WireFault, local_gcs, lost_create_reply

VERTEX_JOBS = "POST /vertex/*/batchPredictionJobs"
CREATES = {"vertex": VERTEX_JOBS, "tables": VERTEX_JOBS, "gemini": "POST /gemini/*:batchGenerateContent"}
BATCHES = 3


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
def house(tmp_path, storage_url, kind) -> Iterator[House]:
    with Emulator(gcs_url=storage_url) as emulator:
        made = House(tmp_path, emulator)
        tables = emulator.bigquery_url if kind == "tables" else None
        one = provider(kind, base_url(emulator, kind), storage_url, timeout_seconds=1.5, bigquery_url=tables)
        made.providers = {one.name: one}
        yield made


def go_on(house: House, kind: str) -> None:
    """What the next runs do, until all is settled: as many batches as planned, each row labeled and paid once."""
    plan = house.engine().plan(definition(kind), tickets(ROWS))
    for _ in range(3):
        house.engine().submit(definition(kind), plan.submission_id)
        house.skipped += timedelta(hours=1)
    status = house.finish(definition(kind), plan.submission_id)
    labels, _ = assert_total(house, definition(kind), plan.submission_id, ROWS)
    assert len(labels) == ROWS
    assert len(house.emulator.books.batches) == BATCHES
    assert len(billed(house)) == len(set(billed(house))) == ROWS
    assert house.emulator.books.billed_twice() == {}
    assert status.submission.cost_usd > 0


def test_rows_become_labels_with_their_batch_price(house: House, kind: str) -> None:
    go_on(house, kind)
    [submission] = house.engine().ledger.submissions("test")
    labels = house.engine().labels(definition(kind), submission.submission_id).labels
    assert set(labels["llm_price_basis"].to_pylist()) == {"batch"}
    assert set(labels["topic"].to_pylist()) <= {"billing", "bug", "how_to"}


def test_rows_that_can_succeed_are_sent_again_and_others_are_not(house: House, kind: str) -> None:
    house.emulator.inject(RowFault(containing="number 1?", status_code=503, times=1), RowFault(containing="number 2?"))
    status = house.run(definition(kind), tickets(ROWS))
    assert status.submission.outcomes == {"succeeded": ROWS - 1, "errored": 1}
    assert len(house.emulator.books.batches) == BATCHES + 1


@pytest.mark.parametrize("how", ["500", "close", "hang"])
def test_a_lost_reply_to_a_create_makes_no_second_batch(house: House, kind: str, how: str) -> None:
    house.emulator.inject(lost_create_reply(how, route=CREATES[kind]))
    go_on(house, kind)


def test_a_create_that_never_arrived_is_made_in_the_end(house: House, kind: str) -> None:
    house.emulator.inject(WireFault(kind="status", route=CREATES[kind], status=503))
    go_on(house, kind)


def test_partitions_share_a_batch_and_come_home_whatever_counts_the_vendor_gives(house: House, kind: str) -> None:
    made = replace(definition(kind), max_requests_per_batch=ROWS)
    engine = house.engine()
    ids = [engine.plan(made, tickets(3, start=3 * n), partition=f"p{n}").submission_id for n in range(3)]
    engine.submit_together(made, ids)
    house.emulator.settle()
    for one in ids:
        assert engine.advance(made, one).is_settled  # at once: the results are all there
        assert_total(house, made, one, 3)
    assert len(house.emulator.books.batches) == 1
    assert len(billed(house)) == ROWS
