"""The sensor looks, requests runs, and never sends. Each test ticks it as the daemon does."""

import io
import sqlite3
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from code_location import BATCH, DAILY, DAYS, LABELS, LANDING, CodeLocation, labeled, observations, tickets

from dagster_llm_batch import LLMBatchResource, Resend, build_llm_batch_sensor
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.core.identity import make_request
from dagster_llm_batch.errors import ConfigError, LLMBatchError
from dagster_llm_batch.sensors.request_files import _left_until
from dagster_llm_batch.sensors.runs import TickBounds
from dagster_llm_batch.storage.ledger.events import Other
from dagster_llm_batch.testing.emulator import BatchFault, Emulator, RowFault, WireFault, lost_create_reply
from dagster_llm_batch.upkeep.adopt import Adopter

RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


def asked(tick):
    """Return the (first, last) partition of each run request."""
    return [
        (r.partition_key, r.partition_key) if r.partition_key else tuple(r.tags.get(name) for name in RANGE_TAGS)
        for r in tick.run_requests
    ]


def at_turn(location):
    """Make every batch due for polling."""
    change(location, "polled_at = null")


_OF_BATCH = {"polled_at", "sent_at", "submitted_at", "done"}


def change(location, assignment, table=None):
    """Change all rows of a table, bypassing the code under test."""
    table = table or ("batch" if assignment.split()[0] in _OF_BATCH else "shard")
    ledger = Path(location.instance.storage_directory()) / "llm_batch" / "ledger.sqlite"
    connection = sqlite3.connect(ledger)
    with connection:
        connection.execute(f"update {table} set {assignment}")
    connection.close()


def tick(location):
    at_turn(location)
    return location.tick()


def test_a_code_location_without_labeled_assets_loads_and_ticks(make):
    @dg.asset
    def something() -> None: ...

    for location in (make(something), make()):
        result = location.tick()
        assert result.run_requests == []
        assert result.skip_message.startswith(
            "no batches in flight; this sensor handles nothing: its target lacks datasets"
        )


def test_nothing_in_flight_is_said(make):
    assert make(*labeled()).tick().skip_message == "no batches in flight"


def test_running_batches_are_counted_with_their_age_and_progress(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(partition=DAYS[0])
    assert tick(location).skip_message == "1 batch in flight; 0 of 3 requests done (0 %); oldest 0 m"
    location.submit(span=(DAYS[1], DAYS[2]))
    assert tick(location).skip_message == "2 batches in flight; 0 of 9 requests done (0 %); oldest 0 m"


def test_a_batch_that_was_sent_after_the_tick_began_has_no_negative_age(make):
    location = make(*labeled())
    location.submit()
    change(
        location, f"submitted_at = '{sqlite_time(location.engine().now() + timedelta(minutes=1))}', polled_at = null"
    )
    assert location.tick().skip_message == "1 batch in flight; 0 of 3 requests done (0 %); oldest 0 m"


def test_what_was_sent_under_a_former_name_lands_under_the_present_one(make, emulator):
    make(*labeled(name="topics")).run("topics_batch")
    emulator.settle()
    location = make(*labeled(resend=Resend(former_names=["topics"])))
    [request] = tick(location).run_requests
    assert location.launch(request).success
    location.submit()
    assert len(emulator.books.batches) == 1
    both = make(*labeled(resend=Resend(former_names=["topics"])), *labeled(name="topics"))
    with pytest.raises(ConfigError, match="former_names of 'ticket_labels' has 'topics', which is in the definitions"):
        tick(both)
    formerly = {"resend": Resend(former_names=["topics"])}
    with pytest.raises(ConfigError, match=r"'topics' is among resend.former_names of 'themes' and of 'ticket_labels'"):
        tick(make(*labeled(**formerly), *labeled(name="themes", **formerly)))


def test_an_unpartitioned_dataset_lands_in_the_run_that_the_sensor_asks_for(make, emulator):
    location = make(*labeled())
    location.submit()
    emulator.settle()
    [request] = tick(location).run_requests
    assert [key.to_user_string() for key in request.asset_selection] == list(LANDING)
    assert request.partition_key is None
    assert request.run_config == {"execution": {"config": {"in_process": {}}}}
    assert location.launch(request).success
    assert location.metadata()["dagster/partition_row_count"] == 3
    after = tick(location)
    assert after.run_requests == []
    assert after.skip_message == "no batches in flight"


def test_a_batch_that_was_sent_elsewhere_and_adopted_lands_in_the_run_that_the_sensor_asks_for(
    make, emulator, tmp_path
):
    location = make(*labeled())
    engine, labeling = location.engine(), dataset_of(location.defs.assets).labeling
    codec = engine.provider("openai").codec(labeling.spec)
    texts = [f"{row['subject']}\n{row['body']}" for row in tickets().to_dicts()]
    lines = [codec.encode(make_request("You label tickets.", text), f"row-{at}") for at, text in enumerate(texts)]
    kept = tmp_path / "requests.jsonl"
    kept.write_bytes(b"".join(lines))
    batch_id = engine.provider("openai").submit(io.BytesIO(kept.read_bytes()), labeling.spec, "theirs")
    emulator.settle()
    adopter = Adopter(labeling, engine.deployment)
    with adopter.look(tickets(), partition="", batch_id=batch_id, request_file=kept) as adoption:
        submission = adopter.store(adoption)
    # The adopted batch is not collected yet: the run does that.
    assert len(location.tick().run_requests) == 1
    assert location.collect().success
    landed = location.instance.get_latest_materialization_event(dg.AssetKey(LABELS)).asset_materialization
    assert landed.metadata["llm_batch/submission_id"].value == submission.submission_id
    assert location.engine().labels(labeling, submission.submission_id).labels.num_rows == 3
    assert location.tick().run_requests == []
    assert len(emulator.books.batches) == 1


@pytest.mark.slow
def test_neighbours_that_end_together_land_in_one_range_run_and_others_alone(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(span=(DAYS[2], DAYS[4]))
    location.submit(partition=DAYS[9])
    emulator.settle()
    result = tick(location)
    assert asked(result) == [(DAYS[2], DAYS[4]), (DAYS[9], DAYS[9])]
    for request in result.run_requests:
        assert location.launch(request).success
    assert location.landed() == {*DAYS[2:5], DAYS[9]}
    assert tick(location).run_requests == []


def test_partitions_that_lie_apart_are_never_spanned_by_a_range(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    for day in (DAYS[0], DAYS[2]):
        location.submit(partition=day)
    emulator.settle()
    assert asked(tick(location)) == [(DAYS[0], DAYS[0]), (DAYS[2], DAYS[2])]


def test_a_range_run_holds_at_most_so_many_partitions(emulator, instance):
    location = CodeLocation(emulator, instance, *labeled(partitions_def=DAILY))
    location.defs = dg.Definitions(
        assets=labeled(partitions_def=DAILY),
        sensors=[build_llm_batch_sensor(max_partitions_per_run=2, run_tags={"team": "ml"}, run_config={})],
        resources=location.resources,
    )
    location.repository = location.defs.get_repository_def()
    location.submit(span=(DAYS[0], DAYS[4]))
    emulator.settle()
    result = tick(location)
    assert asked(result) == [(DAYS[0], DAYS[1]), (DAYS[2], DAYS[3]), (DAYS[4], DAYS[4])]
    assert {request.tags["team"] for request in result.run_requests} == {"ml"}
    assert [request.run_config for request in result.run_requests] == [{}] * 3


def test_more_runs_than_a_tick_has_time_to_launch_are_asked_for_at_the_next_ticks(make, emulator):
    location = make(*labeled(partitions_def=DAILY), bounds=TickBounds(requested_runs=1))
    for day in (DAYS[0], DAYS[2]):
        location.submit(partition=day)
    emulator.settle()
    [first] = tick(location).run_requests
    assert location.launch(first).success
    [second] = tick(location).run_requests
    assert location.launch(second).success
    assert location.landed() == {DAYS[0], DAYS[2]}
    assert tick(location).run_requests == []


def test_of_many_landed_partitions_the_newest_materialization_of_each_counts(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(span=(DAYS[0], DAYS[3]))
    emulator.settle()
    [request] = tick(location).run_requests
    assert location.launch(request).success
    by_hand = dg.AssetMaterialization(LABELS, partition=DAYS[1])
    location.instance.report_runless_asset_event(by_hand)
    change(location, "delivered_at = NULL", "submission")  # the run died before it updated the ledger
    assert asked(tick(location)) == [(DAYS[1], DAYS[1])]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["static", "dynamic", "multi"])
def test_other_partitions_are_asked_for_by_their_key(emulator, stored, kind):
    lands = dg.StaticPartitionsDefinition(["de", "fr"])
    partitions_def, partition = {
        "static": (lands, "fr"),
        "dynamic": (dg.DynamicPartitionsDefinition(name="customers"), "acme"),
        "multi": (dg.MultiPartitionsDefinition({"day": DAILY, "land": lands}), "2026-01-01|fr"),
    }[kind]
    stored.add_dynamic_partitions("customers", ["acme"])
    location = CodeLocation(emulator, stored, *labeled(partitions_def=partitions_def))
    location.submit(partition=partition)
    emulator.settle()
    [request] = tick(location).run_requests
    assert request.partition_key == partition
    assert location.launch(request).success
    assert location.landed() == {partition}


def test_other_code_locations_on_the_same_ledger_are_left_alone(make, emulator):
    ours = make(*labeled(partitions_def=DAILY))
    theirs = make(*labeled(name="their_labels"), dg.AssetSpec(LABELS, partitions_def=DAILY))
    ours.submit(partition=DAYS[0])
    before = len(emulator.books.calls)
    assert theirs.tick().skip_message == "no batches in flight"
    assert len(emulator.books.calls) == before  # not even polled, since their credentials may differ
    emulator.settle()
    assert tick(theirs).run_requests == []
    assert asked(tick(ours)) == [(DAYS[0], DAYS[0])]


def test_another_account_is_never_asked_about_a_batch_since_it_would_call_it_lost(emulator, instance):
    with Emulator() as other:
        CodeLocation(emulator, instance, *labeled()).submit()
        moved = CodeLocation(other, instance, *labeled())
        with pytest.raises(LLMBatchError, match=r"needs a person: .* wait; 127.0.0.1"):
            tick(moved)
        assert "wait; 127.0.0.1" in tick(moved).skip_message  # it was reported just now
        assert other.books.calls == []
    emulator.settle()
    [request] = tick(CodeLocation(emulator, instance, *labeled())).run_requests
    assert request.partition_key is None


def test_a_provider_that_is_not_configured_any_more_is_named(make):
    location = make(*labeled())
    location.submit()
    location.resources["llm_batch"] = LLMBatchResource()
    with pytest.raises(LLMBatchError, match="needs a person: No provider 'openai' is configured"):
        tick(location)
    assert "No provider 'openai' is configured" in tick(location).skip_message  # it was reported just now


def test_two_namespaces_do_not_collect_each_others_batches(make, emulator):
    make(*labeled(), namespace="branch").submit()
    emulator.settle()
    assert make(*labeled(), namespace="prod").tick().skip_message == "no batches in flight"


def test_labels_that_another_run_has_landed_are_delivered_without_a_request(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.land(partition=DAYS[0])
    change(location, "delivered_at = NULL", "submission")  # the run died between Dagster's update and the ledger's
    assert tick(location).run_requests == []
    engine = location.engine()
    [submission] = engine.ledger.submissions.list_all("default")
    assert submission.delivered_at is not None
    engine.ledger.close()


@pytest.mark.parametrize("column", ["polled_at", "submitted_at"])
def test_a_batch_that_a_clock_ahead_polled_is_polled_by_the_right_one(make, emulator, column):
    location = make(*labeled())
    location.submit()
    tick(location)
    change(location, f"{column} = datetime({column}, '+1 year')")
    calls = len(emulator.books.calls)
    assert "1 batch in flight" in location.tick().skip_message
    assert [call.method for call in emulator.books.calls[calls:]] == ["GET"]


def test_a_body_that_is_evaluated_twice_asks_for_the_same_runs_and_sends_nothing(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(span=(DAYS[0], DAYS[2]))
    location.submit(partition=DAYS[6])
    emulator.settle()
    first, second = tick(location), tick(location)
    assert [r.run_key for r in first.run_requests] == [r.run_key for r in second.run_requests]
    assert len({r.run_key for r in first.run_requests}) == 2
    assert emulator.books.creates_seen == 2
    assert emulator.books.calls_to("POST", "/v1/files") == 2


def test_what_an_unfinished_run_will_land_is_not_asked_for_though_its_neighbours_progress_changes_keys(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(span=(DAYS[0], DAYS[3]))
    location.submit(partition=DAYS[8])
    emulator.settle()
    running = location.instance.create_run_for_job(
        location.defs.resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset(dg.AssetKey(name) for name in LANDING),
        tags=dict(zip(RANGE_TAGS, (DAYS[0], DAYS[2]), strict=True)),
        status=dg.DagsterRunStatus.STARTED,
    )
    assert asked(tick(location)) == [(DAYS[3], DAYS[3]), (DAYS[8], DAYS[8])]
    location.instance.delete_run(running.run_id)
    assert asked(tick(location)) == [(DAYS[0], DAYS[3]), (DAYS[8], DAYS[8])]


def test_a_next_wave_is_sent_by_the_run_and_its_landing_asked_for_under_a_new_key(make, emulator):
    emulator.inject(RowFault(containing="t-1", status_code=500, times=1))
    location = make(*labeled())
    location.submit()
    emulator.settle()
    [first] = tick(location).run_requests
    assert location.launch(first).success
    assert location.materializations(LABELS) == {}
    assert emulator.books.creates_seen == 2
    assert tick(location).run_requests == []
    emulator.settle()
    [second] = tick(location).run_requests
    assert second.run_key != first.run_key
    assert location.launch(second).success
    told = location.metadata()
    assert told["llm_batch/attempts"] == 2
    assert told["llm_batch/rows_succeeded"] == 3
    waves = [line.strip("| ").split(" | ") for line in told["llm_batch/waves"].splitlines()[2:]]
    assert [[*row[:1], *row[2:5]] for row in waves] == [["1", "batch", "1", "3"], ["2", "batch", "1", "1"]]
    assert sum(float(row[-1].lstrip("\\$")) for row in waves) == pytest.approx(told["llm_batch/cost_usd"], abs=1e-5)


def test_progress_of_one_partition_in_the_middle_changes_the_key_of_its_range(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(span=(DAYS[0], DAYS[2]))
    emulator.settle()
    [before] = tick(location).run_requests
    engine = location.engine()
    middle = engine.latest(LABELS, DAYS[1])
    engine.ledger.events.add(middle.submission_id, Other("something", "happened"))
    engine.ledger.close()
    [after] = tick(location).run_requests
    assert asked(tick(location)) == [(DAYS[0], DAYS[2])]
    assert after.run_key != before.run_key


def test_a_run_that_failed_is_asked_for_again_at_once_where_it_changed_something_and_later_where_not(make, emulator):
    class Full(dg.IOManager):
        def handle_output(self, context: dg.OutputContext, obj):
            raise OSError("disk full")

        def load_input(self, context):
            raise NotImplementedError

    location = make(*labeled(), resources={"io_manager": Full()})
    location.submit()
    emulator.settle()
    [request] = tick(location).run_requests
    assert not location.launch(request).success
    [again] = tick(location).run_requests  # the failed run made progress: the raw results are stored now
    failed = location.launch(again)
    assert not failed.success
    third = tick(location)
    assert third.run_requests == []
    assert f"run {failed.run_id[:8]} did not materialize it; asked for again in" in third.skip_message


@pytest.mark.parametrize(
    "fault",
    [
        WireFault(kind="status", route="GET *", status=503, times=None),
        WireFault(kind="close", route="GET *", times=None),
    ],
    ids=["503", "connection closed"],
)
def test_a_provider_that_is_down_is_told_and_asked_again(make, emulator, fault):
    location = make(*labeled())
    location.submit()
    emulator.inject(fault)
    result = tick(location)
    assert result.run_requests == []
    assert "1 batch in flight" in result.skip_message
    assert "polling failed" in result.skip_message
    emulator.clear_faults()
    emulator.settle()
    assert len(tick(location).run_requests) == 1


@pytest.mark.slow
def test_a_provider_that_goes_down_before_the_results_are_fetched_costs_time_only(make, emulator):
    location = make(*labeled())
    location.submit()
    emulator.settle()
    [request] = tick(location).run_requests
    down = WireFault(kind="status", route="GET /v1/files/*", status=503, times=None)
    emulator.inject(down)
    result = location.launch(request)
    assert result.success
    assert observations(result) == []  # the tick has shown the progress
    change(location, f"created_at = '{sqlite_time(location.engine().now() - timedelta(hours=2))}'", "submission")
    assert location.tick().run_requests == []  # the sensor waits for the end of the pause
    emulator.clear_faults()
    change(location, f"at = '{sqlite_time(location.engine().now() - timedelta(minutes=11))}'", "event")
    # The pause is over.
    change(location, f"waits_until = '{sqlite_time(location.engine().now())}'")
    [later] = location.tick().run_requests
    assert later.run_key != request.run_key
    assert location.launch(later).success
    assert location.metadata()["dagster/partition_row_count"] == 3
    assert emulator.books.creates_seen == 1


def test_a_batch_whose_create_reply_was_lost_is_found_by_the_sensor_and_lands(make, emulator):
    emulator.inject(lost_create_reply("close"), WireFault(kind="status", route="GET *", status=503, times=8))
    location = make(*labeled())
    assert location.submit().success
    assert location.metadata(BATCH)["llm_batch/batches_when_sent"] == "1 batch submitting"
    emulator.clear_faults()
    emulator.settle()
    tick(location)  # the tick finds the batch
    [request] = tick(location).run_requests
    assert location.launch(request).success
    assert emulator.books.creates_seen == 1
    assert location.metadata()["dagster/partition_row_count"] == 3


def test_a_search_whose_credentials_the_provider_refuses_waits_for_a_person(make, emulator):
    emulator.inject(lost_create_reply("close"), WireFault(kind="status", route="GET *", status=503, times=8))
    location = make(*labeled())
    location.submit()
    emulator.clear_faults()
    emulator.inject(WireFault(kind="status", route="GET *", status=401, times=None))
    with pytest.raises(LLMBatchError, match=r"ticket_labels needs a person: .*API key.*401"):
        tick(location)


def test_batches_are_polled_less_often_the_older_they_are(make, emulator):
    location = make(*labeled())
    location.submit()
    tick(location)

    def polls():
        return sum(call.method == "GET" and call.path.startswith("/v1/batches") for call in emulator.books.calls)

    now = location.engine().now()
    for age, since_poll, is_polled in [
        (timedelta(hours=1), timedelta(minutes=5), False),
        (timedelta(hours=1), timedelta(minutes=7), True),
        (timedelta(hours=20), timedelta(minutes=9), False),
        (timedelta(hours=20), timedelta(minutes=11), True),
    ]:
        change(location, f"submitted_at = '{sqlite_time(now - age)}', polled_at = '{sqlite_time(now - since_poll)}'")
        before = polls()
        location.tick()
        assert (polls() > before) is is_polled, (age, since_poll)


def test_request_files_of_landed_batches_are_deleted_by_ticks_after_a_day(make, emulator):
    location = make(*labeled())
    assert location.land().success
    tick(location)

    def deleted():
        return sum(call.method == "DELETE" for call in emulator.books.calls)

    assert deleted() == 0
    change(location, f"collected_at = '{sqlite_time(location.engine().now() - timedelta(hours=25))}'")
    emulator.inject(WireFault(kind="status", status=403, route="DELETE /v1/files/*"))
    tick(location)
    assert deleted() == 1
    # The deletion is refused, and tried again after an hour.
    tick(location)
    assert deleted() == 1
    _left_until.clear()
    tick(location)
    tick(location)
    assert deleted() == 2


def test_a_request_file_that_cannot_be_spared_is_looked_at_once_an_hour(make, emulator):
    location = make(*labeled())
    assert location.land().success
    engine = location.engine()
    [shard] = engine.ledger.shards.of_submission(engine.latest("ticket_labels").submission_id)
    with engine.payloads.reader(shard.raw_path) as file:
        lines = file.read()
    engine.payloads.delete(shard.raw_path)
    change(location, f"collected_at = '{sqlite_time(engine.now() - timedelta(hours=25))}'")

    def deleted():
        tick(location)
        return sum(call.method == "DELETE" for call in emulator.books.calls)

    assert deleted() == 0
    with engine.payloads.writer(shard.raw_path) as out:
        out.write(lines)
    # Another look would read all lines from the store, up to 200 MB each time.
    assert deleted() == 0
    _left_until.clear()
    assert deleted() == 1


def sqlite_time(moment):
    """Return a time as SQLite stores it in the ledger."""
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")


def test_batches_that_the_provider_does_not_take_are_not_pressed_on_it_at_every_tick(make, emulator):
    emulator.inject(WireFault(kind="status", route="POST /v1/batches", status=429, retry_after=0, times=None))
    location = make(*labeled())
    location.submit()
    change(location, f"created_at = '{sqlite_time(location.engine().now() - timedelta(hours=2))}'", "submission")
    assert location.tick().run_requests == []
    change(location, f"at = '{sqlite_time(location.engine().now() - timedelta(minutes=11))}'", "event")
    assert len(location.tick().run_requests) == 1


def test_all_of_a_batch_refused_in_validation_lands_as_rejects(make, emulator):
    emulator.inject(BatchFault(kind="fails", code="invalid_request", message="bad line"))
    location = make(*labeled())
    location.submit()
    emulator.settle()
    [request] = tick(location).run_requests
    result = location.launch(request)
    assert location.metadata()["llm_batch/rows_rejected"] == 3
    assert location.checks(result)[None, "coverage"] is False


def test_an_earlier_submission_and_the_present_one_of_a_partition_are_one_request(make, emulator):
    rows = [tickets(2)]
    location = make(*labeled(rows=lambda context: rows[-1], partitions_def=DAILY))
    location.submit(partition=DAYS[0])
    rows.append(tickets(3))
    location.submit(partition=DAYS[0])
    emulator.settle()
    result = tick(location)
    assert asked(result) == [(DAYS[0], DAYS[0])]
    assert location.launch(result.run_requests[0]).success
    assert tick(location).run_requests == []
    assert tick(location).skip_message == "no batches in flight"


def test_a_resource_of_another_kind_is_refused_with_its_name(make):
    location = make(*labeled())
    location.resources["llm_batch"] = dg.ResourceDefinition.hardcoded_resource("x")
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="'llm_batch' is a str; it must be an LLMBatchResource"):
        location.tick()


@pytest.mark.slow
def test_labels_that_had_landed_land_once_more_as_the_new_name_of_their_dataset_and_are_not_paid_again(
    make, instance, emulator
):
    before = make(*labeled(partitions_def=DAILY))
    for day in DAYS[:2]:
        before.submit(partition=day)
        emulator.settle()
        before.launch(tick(before).run_requests[0])
    after = CodeLocation(
        emulator,
        instance,
        *labeled(name="topics", partitions_def=DAILY, resend=Resend(former_names=[LABELS])),
    )
    [request] = tick(after).run_requests
    assert asked(tick(after)) == [(DAYS[0], DAYS[1])]
    after.launch(request)
    assert after.landed("topics") == set(DAYS[:2])
    assert tick(after).run_requests == []
    assert len(emulator.books.batches) == 2
