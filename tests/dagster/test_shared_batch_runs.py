"""A run over partitions that share a batch: its partitions wait together, and it counts once everywhere."""

from collections.abc import Callable
from contextlib import closing

import pytest
from code_location import BATCH, DAILY, DAYS, LABELS, CodeLocation, labeled
from test_batch_sensor import change
from test_jobs import launch, shown

from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.sensors.runs import TickBounds
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.testing.emulator import Emulator, WireFault, rate_limited
from tests.statements import statements

pytestmark = pytest.mark.slow


def test_a_shared_batch_that_the_provider_does_not_take_is_tried_once_for_all_its_partitions(
    emulator: Emulator, make: Callable[..., CodeLocation]
) -> None:
    location, span = make(*labeled(partitions_def=DAILY)), (DAYS[0], DAYS[3])
    emulator.inject(rate_limited("POST /v1/batches", times=3))
    assert location.submit(span=span).success
    assert emulator.books.calls_to("POST", "/v1/batches") == 3  # one batch, tried three times
    assert emulator.books.batches == []
    assert location.collect(span=span).success
    assert len(emulator.books.batches) == 1
    emulator.settle()
    assert location.collect(span=span).success
    assert location.landed() == set(DAYS[:4])


def test_a_run_over_partitions_tells_the_ledger_once_that_they_are_delivered(
    emulator: Emulator, make: Callable[..., CodeLocation]
) -> None:
    location, span = make(*labeled(partitions_def=DAILY)), (DAYS[0], DAYS[3])
    assert location.submit(span=span).success
    emulator.settle()
    with statements() as asked:
        assert location.collect(span=span).success
    assert location.landed() == set(DAYS[:4])
    assert sum(statement.startswith("UPDATE submission SET delivered_at") for statement in asked) == 1
    with closing(location.engine().ledger) as ledger:
        assert all(one.delivered_at is not None for one in ledger.submissions.list_all(location.engine().namespace))


def test_a_batch_that_partitions_share_counts_once_in_their_metadata_the_log_the_sensor_and_the_job(
    emulator: Emulator, make: Callable[..., CodeLocation], capfd: pytest.CaptureFixture[str]
) -> None:
    location = make(*labeled(partitions_def=DAILY))
    assert location.submit(span=(DAYS[0], DAYS[3])).success
    [batch] = emulator.books.batches
    assert "1 batch is in flight for these 4 partitions." in capfd.readouterr().err
    for day in DAYS[:4]:
        told = location.metadata(BATCH, day)
        assert (told["llm_batch/batches"], told["llm_batch/batch_ids"]) == (1, [batch.id])
        assert told["llm_batch/batches_when_sent"] == "1 batch submitted"
    assert location.tick().skip_message.startswith("1 batch in flight; 0 of 12 requests done (0 %)")
    hurried = make(*labeled(partitions_def=DAILY), bounds=TickBounds(poll_seconds=0))
    change(hurried, "polled_at = null")
    assert "1 batch waits for the next tick" in hurried.tick().skip_message
    change(location, "submitted_at = datetime('now', '-3 days') || '.000000'")
    assert shown(launch(location, "llm_batch_resolve"))["llm_batch/batches_overdue"] == 1


def polls(emulator: Emulator) -> int:
    return sum(call.method == "GET" and call.path.startswith("/v1/batches") for call in emulator.books.calls)


def test_a_tick_polls_a_shared_batch_once_and_ends_it_for_all_its_partitions(
    emulator: Emulator, make: Callable[..., CodeLocation]
) -> None:
    location = make(*labeled(partitions_def=DAILY), bounds=TickBounds(polled_batches=1))
    assert location.submit(span=(DAYS[0], DAYS[3])).success
    assert len(emulator.books.batches) == 1
    change(location, "polled_at = null")
    before = polls(emulator)
    location.tick()
    assert polls(emulator) == before + 1
    emulator.settle()
    change(location, "polled_at = null")
    assert location.tick().run_requests
    assert polls(emulator) == before + 2
    with closing(location.engine().ledger) as ledger:
        submissions = ledger.submissions.list_all(location.engine().namespace)
        shards = [shard for one in submissions for shard in ledger.shards.of_submission(one.submission_id)]
        assert [shard.state for shard in shards] == [ShardState.ENDED] * 4


def test_a_tick_names_each_partition_of_a_shared_batch_that_cannot_be_polled(
    emulator: Emulator, make: Callable[..., CodeLocation]
) -> None:
    location = make(*labeled(partitions_def=DAILY))
    assert location.submit(span=(DAYS[0], DAYS[1])).success
    change(location, "polled_at = null")
    emulator.inject(WireFault(kind="status", route="GET *", status=401, times=None))
    with pytest.raises(LLMBatchError, match=f"{LABELS} {DAYS[0]} needs a person: .*401") as failed:
        location.tick()
    assert f"{LABELS} {DAYS[1]} needs a person: " in str(failed.value)


def test_partitions_in_a_batch_each_and_in_one_with_others_are_counted_by_batch(
    emulator: Emulator, make: Callable[..., CodeLocation]
) -> None:
    location = make(*labeled(partitions_def=DAILY))
    assert location.submit(span=(DAYS[0], DAYS[2])).success
    assert location.submit(partition=DAYS[4]).success
    assert len(emulator.books.batches) == 2
    assert location.tick().skip_message.startswith("2 batches in flight; 0 of 12 requests done (0 %)")


def test_shards_that_wait_are_no_batches(emulator: Emulator, make: Callable[..., CodeLocation]) -> None:
    emulator.inject(rate_limited("POST /v1/batches", times=3, retry_after=0))
    location = make(*labeled(partitions_def=DAILY))
    assert location.submit(span=(DAYS[0], DAYS[1])).success
    assert emulator.books.batches == []
    for day in DAYS[:2]:
        told = location.metadata(BATCH, day)
        assert (told["llm_batch/batches"], told["llm_batch/batches_when_sent"]) == (0, "1 shard planned")


def test_a_shared_batch_that_is_overdue_for_a_month_is_given_up_for_all_its_partitions(
    emulator: Emulator, make: Callable[..., CodeLocation]
) -> None:
    location = make(*labeled(partitions_def=DAILY))
    assert location.submit(span=(DAYS[0], DAYS[3])).success
    change(location, "submitted_at = datetime('now', '-60 days') || '.000000', polled_at = datetime('now')")
    with pytest.raises(LLMBatchError, match="which is overdue"):
        location.tick()
    with closing(location.engine().ledger) as ledger:
        submissions = ledger.submissions.list_all(location.engine().namespace)
        shards = [shard for one in submissions for shard in ledger.shards.of_submission(one.submission_id)]
        assert len(shards) == 4
        assert all(shard.waits_until is not None for shard in shards), "each is given up a day later"
