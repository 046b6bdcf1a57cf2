"""A condition that waits for a person fails a tick or a check with the next step: repeatedly, but not at each tick."""

import json
import time
from datetime import timedelta

import dagster as dg
import pytest
from code_location import DAILY, DAYS, LABELS, CodeLocation, labeled
from test_batch_sensor import asked, change, tick
from test_sensor_troubles import failing_tick

from dagster_llm_batch import Limits, QueueLimit, Resend
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.engine.condition_facts import read_facts
from dagster_llm_batch.engine.conditions import ConditionKind, find_conditions
from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.testing.emulator import BatchFault, WireFault, lost_create_reply

LONG_AGO = "submitted_at = datetime('now', '-3 days') || '.000000'"


def coverage(result):
    [verdict] = [one for one in result.get_asset_check_evaluations() if one.check_name == "coverage"]
    return verdict


@pytest.mark.slow
def test_an_overdue_batch_fails_the_tick_until_it_is_given_up_and_then_lands_with_a_failed_check(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(partition=DAYS[0])
    assert "needs a person" not in tick(location).skip_message
    change(location, LONG_AGO)
    engine = location.engine()
    [shard] = engine.ledger.shards.of_submission(engine.latest(LABELS, DAYS[0]).submission_id)
    told = failing_tick(location)
    assert f"{LABELS} {DAYS[0]} needs a person: batch {shard.batch.batch_id} of openai runs for" in told
    assert f"dagster-llm-batch resolve {shard.shard_id} --lost" in told
    assert "needs a person" in tick(location).skip_message  # it was reported just now
    change(location, "reported_at = '2026-01-01 00:00:00.000000'", "submission")
    assert f"resolve {shard.shard_id} --lost" in failing_tick(location)  # hours later: again
    engine.give_up(shard.shard_id)
    [request] = tick(location).run_requests
    landed = location.launch(request)
    verdict = coverage(landed)
    assert not verdict.passed
    assert verdict.severity is dg.AssetCheckSeverity.ERROR
    assert "3 since the batch had not ended, and was abandoned" in verdict.description
    assert f"dagster-llm-batch retry {LABELS} --partition {DAYS[0]}" in verdict.description
    assert "was abandoned" in location.metadata(partition=DAYS[0])["llm_batch/causes"]
    assert tick(location).skip_message == "no batches in flight"
    again = location.submit(partition=DAYS[0])  # as a schedule does
    assert again.success
    assert len(emulator.books.batches) == 1

    emulator.settle()  # the batch ends after all
    [request] = tick(location).run_requests
    assert coverage(location.launch(request)).passed
    assert location.metadata(partition=DAYS[0])["dagster/partition_row_count"] == 3
    assert tick(location).skip_message == "no batches in flight"
    assert len(emulator.books.batches) == 1
    engine.ledger.close()


def test_a_batch_that_finds_no_room_for_long_fails_the_tick_until_it_goes(make, emulator):
    location = make(*labeled())
    emulator.inject(BatchFault(kind="fails", batches=[0]))
    location.submit()
    engine = location.engine()
    emulator.settle()
    assert "needs a person" not in tick(location).skip_message  # the vendor reports that its queue is full
    soon = f"{engine.now() + timedelta(minutes=50):%Y-%m-%d %H:%M:%S.%f}"
    change(location, f"no_room_at = '2026-01-01 00:00:00.000000', waits_until = '{soon}'")
    submission = engine.latest(LABELS)
    told = failing_tick(location)
    assert f"{LABELS} needs a person: 3 requests (about" in told
    assert "for room in the queue of openai/gpt-4o, which answered: token_limit_exceeded" in told
    assert f"dagster-llm-batch cancel {submission.submission_id}" in told
    assert "needs a person" in tick(location).skip_message  # it was reported just now
    engine.ledger.close()


def test_a_run_that_dies_while_it_lands_late_answers_is_asked_for_again(make, emulator):
    assets = labeled()
    location = make(*assets)
    location.submit()
    engine = location.engine()
    submission_id = engine.latest(LABELS).submission_id
    [shard] = engine.ledger.shards.of_submission(submission_id)
    engine.give_up(shard.shard_id)
    location.launch(tick(location).run_requests[0])
    assert tick(location).skip_message == "no batches in flight"
    emulator.settle()
    assert len(tick(location).run_requests) == 1
    engine.collect(dataset_of(assets).labeling, submission_id)  # the run collects, completes the submission, and dies
    change(location, "settled_at = '2099-01-01 00:00:00.000000'", "submission")  # long after the first materialization
    assert len(tick(location).run_requests) == 1
    engine.ledger.close()


def test_a_batch_that_is_canceled_at_the_vendor_lands_with_a_failed_check_that_says_what_to_do(make, emulator):
    location = make(*labeled())
    location.submit()
    engine = location.engine()
    [batch_id] = engine.status(engine.latest(LABELS).submission_id).batch_ids
    engine.provider("openai").cancel(batch_id)  # as at the vendor's console
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


@pytest.mark.slow
def test_an_upload_that_a_web_page_answers_is_seen_and_an_hour_later_the_tick_fails(make, emulator):
    page = {"status": 200, "body": b"<html><body>Sign in</body></html>", "media_type": "text/html", "times": None}
    emulator.inject(WireFault(kind="status", route="POST /v1/files", **page))
    location = make(*labeled(partitions_def=DAILY))
    location.submit(partition=DAYS[0])
    change(location, "created_at = '2026-01-01 00:00:00.000000'", "submission")  # it is tried again in ten minutes
    told = tick(location).skip_message
    assert f"{LABELS} {DAYS[0]}: 1 shard is not sent since " in told
    assert "it answers with a web page (text/html)" in told
    change(location, "at = '2026-01-01 00:00:00.000000'", "event")
    [request] = tick(location).run_requests
    assert location.launch(request).success  # it tried again, in vain
    told = failing_tick(location)
    assert (
        f"{LABELS} {DAYS[0]} needs a person: 1 shard is not sent since 2026-01-01 00:00 UTC: Could not upload" in told
    )
    assert "the sensor keeps trying" in told
    emulator.clear_faults()
    change(location, "at = '2026-01-01 00:00:00.000000'", "event")
    assert location.launch(tick(location).run_requests[0]).success
    assert "1 batch in flight" in tick(location).skip_message
    assert "not sent" not in tick(location).skip_message


@pytest.mark.slow
def test_a_deleted_dynamic_partition_is_told_and_the_others_land(emulator, stored):
    stored.add_dynamic_partitions("customers", ["gone", "here"])
    location = CodeLocation(emulator, stored, *labeled(partitions_def=dg.DynamicPartitionsDefinition(name="customers")))
    location.submit(partition="gone")
    stored.delete_dynamic_partition("customers", "gone")
    emulator.settle()
    told = failing_tick(location)
    assert "ticket_labels gone needs a person: partition gone no longer exists" in told
    assert "dagster-llm-batch cancel ticket_labels --partition gone" in told
    location.submit(partition="here")
    emulator.settle()
    assert asked(tick(location)) == [("here", "here")]
    engine = location.engine()
    engine.cancel(engine.latest(LABELS, "gone").submission_id)
    assert "gone" not in str(tick(location).skip_message)
    assert [one.submission.partition for one in engine.ledger.submissions.progress("default")] == ["here"]
    engine.ledger.close()


@pytest.mark.slow
def test_answers_of_a_deleted_partition_that_are_stored_are_told_once(emulator, stored):
    stored.add_dynamic_partitions("customers", ["gone"])
    assets = labeled(partitions_def=dg.DynamicPartitionsDefinition(name="customers"))
    location = CodeLocation(emulator, stored, *assets)
    location.submit(partition="gone")
    emulator.settle()
    engine = location.engine()
    engine.advance(dataset_of(assets).labeling, engine.latest(LABELS, "gone").submission_id)
    stored.delete_dynamic_partition("customers", "gone")
    assert "Its answers are stored. If you want its labels, add it again" in failing_tick(location)
    assert tick(location).skip_message == "no batches in flight"
    stored.add_dynamic_partitions("customers", ["gone"])
    assert location.collect(partition="gone").success
    assert location.landed() == {"gone"}
    engine.ledger.close()


def test_a_dataset_that_became_partitioned_does_not_break_the_tick(make, emulator):
    make(*labeled()).submit()
    emulator.settle()
    location = make(*labeled(partitions_def=DAILY))
    assert f"{LABELS} needs a person: its unpartitioned form no longer exists" in failing_tick(location)
    assert "no longer exists" in tick(location).skip_message


def test_refused_credentials_fail_the_tick_and_what_was_sent_lands_when_they_are_mended(make, emulator):
    location = make(*labeled())
    location.submit()
    refused = WireFault(kind="status", route="GET *", status=401, times=None)
    emulator.inject(refused)
    assert "needs a person: Could not" in failing_tick(location)
    assert "polling failed" in tick(location).skip_message  # it was reported just now
    emulator.clear_faults()
    emulator.settle()
    assert len(tick(location).run_requests) == 1


def test_a_dataset_that_was_removed_in_flight_fails_the_tick_when_nobody_has_looked_after_it_for_an_hour(
    make, instance, emulator
):
    make(*labeled()).submit()
    location = CodeLocation(emulator, instance, *labeled(name="others"))
    assert tick(location).skip_message == "no batches in flight"  # another code location may have just asked
    change(location, LONG_AGO)
    told = failing_tick(location)
    assert f"{LABELS} needs a person: 1 submission is under way for {LABELS}" in told
    assert f"dagster-llm-batch rename {LABELS} NEW" in told
    assert "needs a person" in tick(location).skip_message  # it was reported just now


@pytest.mark.parametrize("state", ["planned", "ended"])
def test_a_dataset_that_was_removed_before_it_was_sent_or_landed_fails_the_tick_after_a_day(
    make, instance, emulator, state
):
    before = make(*labeled())
    if state == "planned":
        emulator.inject(WireFault(kind="status", route="POST /v1/files", status=429, times=None))
    before.submit()
    emulator.settle()
    if state == "ended":
        assert tick(before).run_requests
    location = CodeLocation(emulator, instance, *labeled(name="others"))
    assert location.tick().skip_message == "no batches in flight"  # another code location may look after it
    for table, column in (
        ("shard", "looked_at"),
        ("batch", "polled_at"),
        ("event", "at"),
        ("submission", "created_at"),
    ):
        change(location, f"{column} = datetime('now', '-25 hours') || '.000000'", table)
    told = failing_tick(location)
    assert f"{LABELS} needs a person: 1 submission is under way for {LABELS}" in told
    assert "needs a person" in location.tick().skip_message  # it was reported just now
    # The submission does not count as reported, since its dataset's own sensor may have something else to report.
    [progress] = location.engine().ledger.submissions.progress(location.resource.namespace)
    assert location.engine().activity.reported_since(progress.submission.created_at) == set()
    location.engine().cancel(progress.submission.submission_id)
    assert "needs a person" not in (location.tick().skip_message or "")


def test_a_batch_that_waits_while_a_poll_fails_is_not_told_as_one_that_cannot_be_sent(make, instance, emulator):
    in_turn = {"openai": QueueLimit(max_batches=1)}
    location = make(*labeled(limits=Limits(max_requests_per_batch=2)), queue_limits=in_turn)
    location.submit()
    engine = location.engine()
    [progress] = engine.ledger.submissions.progress(location.resource.namespace)
    assert progress.states == {"submitted": 1, "planned": 1}
    engine.activity.note_unavailable(progress.submission.submission_id, TransientError("503"))
    change(location, "at = datetime('now', '-3 hours') || '.000000'", "event")
    kinds = {one.kind for one in find_conditions(read_facts(engine, None, ()))}
    assert ConditionKind.NOT_SENT not in kinds


@pytest.mark.slow
def test_a_partition_that_was_gone_when_its_dataset_got_a_new_name_is_not_told(emulator, stored):
    stored.add_dynamic_partitions("customers", ["gone"])
    customers = dg.DynamicPartitionsDefinition(name="customers")
    before = CodeLocation(emulator, stored, *labeled(partitions_def=customers))
    before.submit(partition="gone")
    emulator.settle()
    before.launch(tick(before).run_requests[0])
    stored.delete_dynamic_partition("customers", "gone")
    renamed = labeled(name="topics", partitions_def=customers, resend=Resend(former_names=[LABELS]))
    after = CodeLocation(emulator, stored, *renamed)
    assert tick(after).skip_message == "no batches in flight"
