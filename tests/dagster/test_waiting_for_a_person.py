"""What waits for a person fails a tick or a check, and says what to do: again and again, but not at each tick."""

import json
import time

import dagster as dg
from code_location import DAILY, DAYS, LABELS, labeled
from test_batch_sensor import change, tick
from test_sensor_troubles import failing_tick

from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.testing.emulator import WireFault, lost_create_reply

LONG_AGO = "submitted_at = '2026-01-01 00:00:00.000000'"


def coverage(result):
    [verdict] = [one for one in result.get_asset_check_evaluations() if one.check_name == "coverage"]
    return verdict


def test_an_overdue_batch_fails_the_tick_until_it_is_given_up_and_then_lands_with_a_failed_check(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(partition=DAYS[0])
    assert "needs a person" not in tick(location).skip_message
    change(location, LONG_AGO)
    engine = location.engine()
    [shard] = engine.ledger.shards(engine.latest(LABELS, DAYS[0]).submission_id)
    told = failing_tick(location)
    assert f"{LABELS} {DAYS[0]} needs a person: batch {shard.batch_id} of openai runs for" in told
    assert f"dagster-llm-batch resolve {shard.shard_id} --lost" in told
    assert "needs a person" in tick(location).skip_message  # it was told just now
    change(location, "at = '2026-01-01 00:00:00.000000'", "event")
    assert f"resolve {shard.shard_id} --lost" in failing_tick(location)  # hours later: again
    engine.give_up(shard.shard_id)
    [request] = tick(location).run_requests
    landed = location.launch(request)
    verdict = coverage(landed)
    assert not verdict.passed
    assert verdict.severity is dg.AssetCheckSeverity.ERROR
    assert "3 since the batch had not ended, and was given up" in verdict.description
    assert f"dagster-llm-batch retry {LABELS} --partition {DAYS[0]}" in verdict.description
    assert "was given up" in location.metadata(partition=DAYS[0])["llm_batch/causes"]
    assert tick(location).skip_message == "no batches in flight"
    again = location.submit(partition=DAYS[0])  # as a schedule does
    assert again.success
    assert len(emulator.books.batches) == 1

    emulator.settle()  # it ends after all
    [request] = tick(location).run_requests
    assert coverage(location.launch(request)).passed
    assert location.metadata(partition=DAYS[0])["dagster/partition_row_count"] == 3
    assert tick(location).skip_message == "no batches in flight"
    assert len(emulator.books.batches) == 1
    engine.ledger.close()


def test_a_run_that_dies_while_it_lands_late_answers_is_asked_for_again(make, emulator):
    assets = labeled()
    location = make(*assets)
    location.submit()
    engine = location.engine()
    submission_id = engine.latest(LABELS).submission_id
    [shard] = engine.ledger.shards(submission_id)
    engine.give_up(shard.shard_id)
    location.launch(tick(location).run_requests[0])
    assert tick(location).skip_message == "no batches in flight"
    emulator.settle()
    assert len(tick(location).run_requests) == 1
    engine.collect(dataset_of(assets).labeling, submission_id)  # the run collects, settles, and dies
    change(location, "settled_at = '2099-01-01 00:00:00.000000'", "submission")  # long after the first landing
    assert len(tick(location).run_requests) == 1
    engine.ledger.close()


def test_a_batch_that_is_canceled_at_the_vendor_lands_with_a_failed_check_that_says_what_to_do(make, emulator):
    location = make(*labeled())
    location.submit()
    engine = location.engine()
    [batch_id] = engine.status(engine.latest(LABELS).submission_id).batch_ids
    engine.provider("openai").cancel(batch_id)  # as at its console
    engine.ledger.close()
    emulator.settle()
    landed = location.launch(tick(location).run_requests[0])
    verdict = coverage(landed)
    assert not verdict.passed
    assert "canceled at the provider, and not by this package" in verdict.description
    assert f"`dagster-llm-batch retry {LABELS}` asks again, and shows the price first" in verdict.description
    assert location.submit().success
    assert tick(location).run_requests == []
    assert len(emulator.books.batches) == 1
    again = location.run(
        "ticket_labels_batch", run_config={"ops": {"ticket_labels_batch": {"config": {"again": True}}}}
    )
    assert again.success
    assert len(emulator.books.batches) == 2


def test_a_batch_that_nobody_can_tell_of_fails_the_tick(make, emulator):
    unread = WireFault(kind="status", route="GET /v1/batches", status=503, times=None)
    emulator.inject(lost_create_reply(), unread)
    location = make(*labeled())
    location.submit()
    emulator.clear_faults()
    untagged = {"id": "batch_1", "object": "batch", "status": "in_progress", "created_at": int(time.time())}
    listed = json.dumps({"object": "list", "data": [untagged], "has_more": False}).encode()
    emulator.inject(WireFault(kind="status", route="GET /v1/batches", status=200, body=listed, times=None))
    told = failing_tick(location)
    assert f"{LABELS} needs a person: Shard" in told
    assert "dagster-llm-batch resolve" in told


def test_refused_credentials_fail_the_tick_and_what_was_sent_lands_when_they_are_mended(make, emulator):
    location = make(*labeled())
    location.submit()
    refused = WireFault(kind="status", route="GET *", status=401, times=None)
    emulator.inject(refused)
    assert "needs a person: Could not" in failing_tick(location)
    assert "polling failed" in tick(location).skip_message  # it was told just now
    emulator.clear_faults()
    emulator.settle()
    assert len(tick(location).run_requests) == 1
