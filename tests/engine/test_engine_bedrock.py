"""The engine over Bedrock, with a real S3 server: no second job, no lost row, and small batches as the user chose."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from bedrock_house import BUCKET, LEAST, ROWS, definition, provider
from house import House, assert_total, billed, tickets

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.testing.emulator import (
    BatchFault,
    Emulator,
    Limits,
    RowFault,
    WireFault,
    local_s3,
    lost_create_reply,
)

CREATE = "POST /bedrock/model-invocation-job"
BATCHES = 3


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with local_s3(BUCKET) as url:
        yield url


@pytest.fixture
def house(tmp_path, s3_url) -> Iterator[House]:
    # the schema that Claude takes has no bounds, which a simulated reply would keep to
    answer = {"topic": "billing", "urgency": 3}
    with Emulator(answer=lambda *_: answer, s3_url=s3_url, limits=Limits(bedrock_min_records=LEAST)) as emulator:
        made = House(tmp_path, emulator)
        made.providers = {"bedrock": provider(emulator.bedrock_url, s3_url, timeout_seconds=1.5)}
        yield made


def go_on(house: House) -> None:
    """What the next runs do, until all is settled: as many jobs as planned, each row labeled and paid once."""
    plan = house.engine().plan(definition(), tickets(ROWS))
    for _ in range(3):
        house.engine().submit(definition(), plan.submission_id)
        house.skipped += timedelta(hours=1)
    status = house.finish(definition(), plan.submission_id)
    labels, _ = assert_total(house, definition(), plan.submission_id, ROWS)
    assert len(labels) == ROWS
    assert len(house.emulator.books.batches) == BATCHES
    assert len(billed(house)) == len(set(billed(house))) == ROWS
    assert house.emulator.books.billed_twice() == {}
    assert status.submission.cost_usd is not None
    assert status.submission.cost_usd > 0


def test_rows_become_labels_at_half_the_price(house: House) -> None:
    go_on(house)
    [submission] = house.engine().ledger.submissions("test")
    labels = house.engine().labels(definition(), submission.submission_id).labels
    assert set(labels["llm_price_basis"].to_pylist()) == {"rule:half"}
    assert set(labels["topic"].to_pylist()) <= {"billing", "bug", "how_to"}
    assert submission.realtime_usd == 2 * submission.cost_usd


@pytest.mark.parametrize("how", ["500", "close", "hang"])
def test_a_lost_reply_to_a_create_makes_no_second_job(house: House, how: str) -> None:
    house.emulator.inject(lost_create_reply(how, route=CREATE))
    go_on(house)


def test_a_create_that_never_arrived_is_made_in_the_end(house: House) -> None:
    house.emulator.inject(WireFault(kind="status", route=CREATE, status=503))
    go_on(house)


def test_a_full_queue_is_waited_for(house: House) -> None:
    busy = {"kind": "status", "route": CREATE, "status": 400, "code": "ServiceQuotaExceededException"}
    house.emulator.inject(WireFault(**busy, times=5))
    go_on(house)


@pytest.mark.parametrize("kind", ["expires", "cancels"])
def test_a_job_cut_short_pays_for_what_ran_once_and_sends_the_rest_again(house: House, s3_url: str, kind: str) -> None:
    house.providers = {"bedrock": provider(house.emulator.bedrock_url, s3_url, min_requests=1)}
    house.emulator.inject(BatchFault(kind=kind, batches=[0], fraction=0.4))
    one_batch = definition(max_requests_per_batch=100)
    status = house.run(one_batch, tickets(10))
    labels, _ = assert_total(house, one_batch, status.submission.submission_id, 10)
    assert len(labels) == 10
    assert status.submission.waves == 2
    assert len(billed(house)) == len(set(billed(house))) == 10


def test_a_retried_tail_is_padded_where_the_user_chose_so(house: House, s3_url: str) -> None:
    house.emulator.inject(RowFault(containing="number 1?", status_code=503, times=1))
    padding = definition(below_minimum="pad")
    status = house.run(padding, tickets(ROWS))
    labels, _ = assert_total(house, padding, status.submission.submission_id, ROWS)
    assert len(labels) == ROWS
    assert status.submission.outcomes == {"succeeded": ROWS}
    padded = [one for one in house.emulator.books.executions if "-padding-" in (one.custom_id or "")]
    assert len(padded) == LEAST - 1
    rows = sum(cost for cost in labels["llm_cost_usd"].to_pylist())
    assert status.submission.cost_usd > rows  # the padding is in the bill


def test_a_retried_tail_is_answered_in_real_time_where_the_user_chose_so(house: House, s3_url: str) -> None:
    house.emulator.inject(RowFault(containing="number 1?", status_code=503, times=1))
    at_once = definition(below_minimum="realtime")
    status = house.run(at_once, tickets(ROWS))
    labels, _ = assert_total(house, at_once, status.submission.submission_id, ROWS)
    assert sorted(labels["llm_lane"].to_pylist()).count("realtime") == 1
    assert len(house.emulator.books.batches) == BATCHES


def test_a_retried_tail_is_left_alone_and_says_so_where_nothing_was_chosen(house: House, s3_url: str) -> None:
    house.emulator.inject(RowFault(containing="number 1?", status_code=503, times=1))
    status = house.run(definition(), tickets(ROWS))
    assert status.submission.outcomes == {"succeeded": ROWS - 1, "errored": 1}
    events = house.engine().ledger.events(status.submission.submission_id)
    [told] = [event.detail for event in events if event.kind == "below_minimum"]
    assert "below_minimum='pad'" in (told or "")


def test_a_tail_is_filled_up_from_the_batch_before_it(house: House, s3_url: str) -> None:
    one_over = definition(max_requests_per_batch=ROWS - 1)
    status = house.run(one_over, tickets(ROWS))
    assert_total(house, one_over, status.submission.submission_id, ROWS)
    assert [shard.requests for shard in status.shards] == [ROWS - LEAST, LEAST]
    assert len(billed(house)) == ROWS


@pytest.mark.parametrize(("choice", "batches", "calls"), [("pad", 1, 0), ("realtime", 0, LEAST - 1)])
def test_too_few_rows_for_a_batch_are_handled_as_chosen(house: House, choice: str, batches: int, calls: int) -> None:
    few = definition(below_minimum=choice)
    status = house.run(few, tickets(LEAST - 1))
    labels, _ = assert_total(house, few, status.submission.submission_id, LEAST - 1)
    assert len(labels) == LEAST - 1
    assert len(house.emulator.books.batches) == batches
    assert labels["llm_lane"].to_pylist().count("realtime") == calls
    assert set(labels["llm_price_basis"].to_pylist()) == {"realtime" if calls else "rule:half"}


def test_too_few_rows_for_a_batch_are_refused_before_anything_is_sent(house: House) -> None:
    plan = house.engine().plan(definition(), tickets(LEAST - 1))
    with pytest.raises(ConfigError, match=f"takes at least {LEAST} requests; these are {LEAST - 1}.*below_minimum="):
        house.engine().submit(definition(), plan.submission_id)
    assert house.emulator.books.calls_to("POST", CREATE.removeprefix("POST ")) == 0
    few = definition(below_minimum="pad")
    assert house.finish(few, plan.submission_id).submission.outcomes == {"succeeded": LEAST - 1}
