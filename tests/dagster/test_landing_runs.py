"""Lost runs are requested again, a few times, but not during a run that submits."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from code_location import BATCH, DAILY, DAYS, LABELS, LANDING, CodeLocation, labeled, sensor_within, tickets
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from test_batch_sensor import RANGE_TAGS, asked, change, tick

from dagster_llm_batch import build_llm_batch_sensor
from dagster_llm_batch.cli.main import main
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.sensors.runs import TickBounds
from dagster_llm_batch.storage.ledger.events import Other
from dagster_llm_batch.testing.emulator import WireFault, lost_create_reply

AGAIN = "llm_batch/asked_again"
AT_ONCE = TickBounds(pauses=(timedelta(),) * 3)
"""No pause between a loss and the next request."""

ORIGIN = RemoteJobOrigin(
    RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__"), "__ASSET_JOB"
)  # a run that waits in a queue must have one


def ended(location, request, status=dg.DagsterRunStatus.FAILURE, **tags):
    """Add a run of this request that left nothing, like a worker that was killed at its start."""
    return a_run(location, LANDING, status, **{**request.tags, "dagster/run_key": request.run_key, **tags})


def a_run(location, names, status, job=None, **tags):
    return location.instance.create_run_for_job(
        job or location.defs.resolve_implicit_global_asset_job_def(),
        asset_selection=None if job else frozenset(dg.AssetKey(name) for name in names),
        tags=tags,
        status=status,
        remote_job_origin=ORIGIN,
    )


def verdicts(location, partition=None):
    """Return all results of the check coverage on a partition, newest first."""
    key = dg.AssetCheckKey(dg.AssetKey(LABELS), "coverage")
    found = location.instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
    events = [record.event.asset_check_evaluation for record in found if record.event is not None]
    return [one for one in events if one is not None and one.partition == partition]


@pytest.mark.slow
@pytest.mark.parametrize("partition", [None, DAYS[0]])
def test_a_run_that_left_nothing_is_asked_for_three_times_more_and_then_a_failed_check_says_what_to_do(
    make, emulator, partition
):
    location = make(*labeled(partitions_def=DAILY if partition else None), bounds=AT_ONCE)
    location.submit(partition=partition)
    emulator.settle()
    keys, again = set(), []
    for _ in range(4):
        [request] = tick(location).run_requests
        assert request.partition_key == partition
        keys.add(request.run_key)
        again.append(request.tags.get(AGAIN))
        lost = ended(location, request)
        told = tick(location)
        assert told.run_requests == []
        assert lost.run_id[:8] in told.skip_message
    assert again == [None, "1 of 3", "2 of 3", "3 of 3"]
    assert len(keys) == 4
    for _ in range(3):
        assert f"wait: run {lost.run_id[:8]}" in tick(location).skip_message
    [verdict] = verdicts(location, partition)
    assert not verdict.passed
    assert lost.run_id[:8] in verdict.description
    assert f"materialize {LABELS}" in verdict.description
    location.engine().ledger.close()
    ledger_url, payload_root = location.resource.places()
    where = ["--ledger", ledger_url, "--payloads", payload_root, "--namespace", "default"]
    said = CliRunner().invoke(main, ["doctor", *where])
    assert f"the labels of {LABELS}" in " ".join(said.output.split())
    assert said.exit_code == 3
    assert location.collect(partition=partition).success  # the next step in the check's message
    assert location.metadata(partition=partition)["dagster/partition_row_count"] == 3
    assert verdicts(location, partition)[0].passed
    assert tick(location).skip_message == "no batches in flight"
    assert f"the labels of {LABELS}" not in " ".join(CliRunner().invoke(main, ["doctor", *where]).output.split())
    assert emulator.books.creates_seen == 1


@pytest.mark.slow
def test_lost_runs_are_counted_and_given_up_in_whatever_words_they_are_stored(make, emulator):
    location = make(*labeled(), bounds=AT_ONCE)
    location.submit()
    emulator.settle()
    again = []
    for _ in range(4):
        [request] = tick(location).run_requests
        again.append(request.tags.get(AGAIN))
        ended(location, request)
        assert tick(location).run_requests == []
        change(location, "detail = 'andere Worte'", "event")
    assert again == [None, "1 of 3", "2 of 3", "3 of 3"]
    assert tick(location).run_requests == []
    assert len(verdicts(location)) == 1


@pytest.mark.slow
def test_a_verdict_that_dagster_does_not_store_fails_the_tick_and_the_neighbours_have_theirs(make, emulator):
    """Materialize many partitions, each with its check results."""
    location = make(*labeled(partitions_def=DAILY), bounds=AT_ONCE)
    location.submit(span=(DAYS[0], DAYS[1]))
    emulator.settle()
    [request] = tick(location).run_requests
    earlier = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(LABELS), check_name="coverage", passed=False, metadata={}, partition=DAYS[0]
    )
    location.instance.report_runless_asset_event(earlier)  # of an earlier loss: Dagster takes one without a run
    ended(location, request, dg.DagsterRunStatus.CANCELED)
    with pytest.raises(LLMBatchError, match="1 part of the tick failed"):
        tick(location)
    assert len(verdicts(location, DAYS[1])) == 1
    assert f"{LABELS} {DAYS[0]} waits for a person" in tick(location).skip_message


def test_what_a_run_did_change_begins_the_count_anew(make, emulator):
    location = make(*labeled(), bounds=AT_ONCE)
    location.submit()
    emulator.settle()
    for _ in range(2):
        [request] = tick(location).run_requests
        ended(location, request)
        tick(location)
    engine = location.engine()
    engine.ledger.events.add(engine.latest(LABELS).submission_id, Other("something", "happened"))
    engine.ledger.close()
    [request] = tick(location).run_requests
    assert AGAIN not in request.tags


def test_a_run_that_succeeded_and_changed_nothing_is_asked_for_again(make, emulator):
    location = make(*labeled(), bounds=AT_ONCE)
    location.submit()
    emulator.settle()
    [request] = tick(location).run_requests
    ended(location, request, dg.DagsterRunStatus.SUCCESS)  # another process, which died since, held the lease
    tick(location)
    [again] = tick(location).run_requests
    assert again.tags[AGAIN] == "1 of 3"


def test_the_first_request_after_a_loss_waits_a_minute(make, emulator):
    location = make(*labeled())
    location.submit()
    emulator.settle()
    [request] = tick(location).run_requests
    lost = ended(location, request)
    assert f"run {lost.run_id[:8]} did not materialize it; asked for again in" in tick(location).skip_message
    long_ago(location, lost, minutes=2)
    assert "asked for again 1 of 3, at the next tick" in tick(location).skip_message
    [again] = tick(location).run_requests
    assert again.run_key != request.run_key


def three_lost(make, emulator):
    """Return a code location with three partitions that one run lost."""
    location = make(*labeled(partitions_def=DAILY), bounds=AT_ONCE)
    location.submit(span=(DAYS[0], DAYS[2]))
    emulator.settle()
    [request] = tick(location).run_requests
    ended(location, request)
    tick(location)
    return location


@pytest.mark.slow
def test_neighbours_that_were_lost_together_are_asked_for_together_and_then_each_alone(make, emulator):
    location = three_lost(make, emulator)
    # A partition that has not killed a run is not included.
    location.submit(partition=DAYS[3])
    emulator.settle()
    together = tick(location)
    assert asked(together) == [(DAYS[0], DAYS[2]), (DAYS[3], DAYS[3])]
    request, fresh = together.run_requests
    assert (request.tags[AGAIN], fresh.tags.get(AGAIN)) == ("1 of 3", None)
    assert location.launch(fresh).success
    for number, left in ((2, DAYS[:3]), (3, DAYS[:1])):
        ended(location, request)
        tick(location)
        alone = tick(location)
        assert asked(alone) == [(day, day) for day in left]
        request, *others = alone.run_requests
        assert request.tags[AGAIN] == f"{number} of 3"
        assert all(location.launch(other).success for other in others)
    ended(location, request)
    assert f"{LABELS} {DAYS[0]}: waits for a person" in tick(location).skip_message
    assert location.landed() == set(DAYS[1:4])


@pytest.mark.slow
def test_what_was_lost_together_lands_together(make, emulator):
    location = three_lost(make, emulator)
    [again] = tick(location).run_requests
    assert location.launch(again).success
    assert location.landed() == set(DAYS[:3])
    assert tick(location).skip_message == "no batches in flight"


class FullDisk(dg.IOManager):
    """Fails to store one partition, or assets without partitions."""

    def __init__(self, partition):
        self.partition = partition

    def handle_output(self, context, obj):
        if self.partition == (context.partition_key if context.has_partition_key else None):
            raise OSError("No space left on device")

    def load_input(self, context):
        return None


@pytest.mark.slow
def test_a_partition_that_makes_its_run_fail_takes_no_neighbour_into_the_next_one(make, emulator):
    store = FullDisk(DAYS[1])
    location = make(*labeled(partitions_def=DAILY), resources={"io_manager": store})
    for day in DAYS[:2]:
        location.submit(partition=day)
    emulator.settle()
    [both] = tick(location).run_requests
    assert not location.launch(both).success  # it has collected the answers, which is progress
    assert location.landed() == {DAYS[0]}
    location.submit(partition=DAYS[2])
    emulator.settle()
    requests = tick(location).run_requests
    assert [request.partition_key for request in requests] == [DAYS[1], DAYS[2]]
    store.partition = "none"
    assert all(location.launch(request).success for request in requests)
    assert tick(location).skip_message == "no batches in flight"


def test_a_run_that_a_person_canceled_is_not_asked_for_again_and_a_failed_check_says_so(make, emulator):
    location = make(*labeled(), bounds=AT_ONCE)
    location.submit()
    emulator.settle()
    [request] = tick(location).run_requests
    canceled = ended(location, request, dg.DagsterRunStatus.CANCELED)
    for _ in range(3):
        assert f"run {canceled.run_id[:8]}, which should materialize them, was canceled" in tick(location).skip_message
    [verdict] = verdicts(location)
    assert not verdict.passed
    assert location.collect().success


def test_a_run_that_dagster_retries_by_itself_is_left_to_it_and_its_retry_counts_as_the_last(make, emulator):
    location = make(*labeled(), bounds=AT_ONCE)
    location.submit()
    emulator.settle()
    [request] = tick(location).run_requests
    first = ended(location, request, **{"dagster/will_retry": "true"})
    assert f"run {first.run_id[:8]} did not materialize it; Dagster retries it" in tick(location).skip_message
    location.instance.add_run_tags(first.run_id, {"dagster/auto_retry_run_id": "x"})
    retry = ended(location, request, dg.DagsterRunStatus.STARTED)  # retries carry the tags of their parents
    assert f"run {retry.run_id[:8]} is materializing its labels" in tick(location).skip_message
    location.instance.delete_run(retry.run_id)
    last = ended(location, request)
    assert (
        f"run {last.run_id[:8]} ended as FAILURE and changed nothing; asked for again 1 of 3"
        in tick(location).skip_message
    )


def test_a_run_whose_worker_died_before_it_could_say_anything_is_lost_after_an_hour(make, emulator):
    location = make(*labeled(), bounds=AT_ONCE)
    location.submit()
    emulator.settle()
    [request] = tick(location).run_requests
    starting = ended(location, request, dg.DagsterRunStatus.STARTING)
    assert f"run {starting.run_id[:8]} is materializing its labels" in tick(location).skip_message
    long_ago(location, starting, minutes=61)
    assert f"run {starting.run_id[:8]} ended as STARTING" in tick(location).skip_message
    [again] = tick(location).run_requests
    assert again.tags[AGAIN] == "1 of 3"


def test_a_run_that_was_queued_with_another_executors_configuration_is_asked_for_with_that_of_the_present_one(
    emulator, instance
):
    location = CodeLocation(emulator, instance, *labeled(), bounds=AT_ONCE)
    location.submit()
    emulator.settle()
    [request] = tick(location).run_requests
    assert request.run_config == {"execution": {"config": {"in_process": {}}}}
    changed = CodeLocation(emulator, instance, *labeled(), bounds=AT_ONCE)
    changed.defs = dg.Definitions(
        assets=labeled(),
        sensors=[sensor_within(AT_ONCE)],
        resources=location.resources,
        executor=dg.in_process_executor,
    )
    changed.repository = changed.defs.get_repository_def()
    with pytest.raises(dg.DagsterInvalidConfigError):
        dg.validate_run_config(changed.defs.resolve_implicit_global_asset_job_def(), request.run_config)
    ended(changed, request)  # the run worker's reaction
    tick(changed)
    [again] = tick(changed).run_requests
    assert again.run_config == {}
    assert changed.launch(again).success
    assert changed.metadata()["dagster/partition_row_count"] == 3


def long_ago(location, run, minutes):
    """Set the run's last change to this many minutes ago."""
    then = datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=minutes)
    with location.instance.run_storage.connect() as connection:
        connection.execute(
            sa.text("UPDATE runs SET update_timestamp = :then, end_time = NULL WHERE run_id = :run"),
            {"then": then.strftime("%Y-%m-%d %H:%M:%S.%f"), "run": run.run_id},
        )


# while a run submits ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("beside", "again"), [(DAYS[0], [(DAYS[0], DAYS[0])]), (DAYS[1], []), (None, [])])
def test_newer_labels_land_again_only_where_a_run_of_their_partition_was_beside_theirs(make, emulator, beside, again):
    rows, is_full = [3], [True]

    class Disk(dg.IOManager):
        def handle_output(self, context: dg.OutputContext, obj):
            if is_full[0]:
                raise OSError("disk full")

        def load_input(self, context):
            raise NotImplementedError

    assets = labeled(partitions_def=DAILY, rows=lambda _: tickets(rows[0]))
    location = make(*assets, bounds=AT_ONCE, resources={"io_manager": Disk()})
    location.submit(partition=DAYS[0])
    emulator.settle()
    older = location.collect(partition=DAYS[0])
    assert not older.success
    long_ago(location, older.dagster_run, minutes=5)
    rows[0], is_full[0] = 4, False
    location.submit(partition=DAYS[0])
    emulator.settle()
    # While this run is at work, the other one cannot report that the older labels are not needed any more.
    assets_of = LANDING if beside else [BATCH]
    other = a_run(location, assets_of, dg.DagsterRunStatus.STARTED, **{"dagster/partition": beside or DAYS[0]})
    assert location.collect(partition=DAYS[0]).success
    location.instance.report_run_failed(other)
    # The first tick marks them as not delivered.
    assert [*asked(tick(location)), *asked(tick(location))] == again
    if not again:
        assert tick(location).skip_message == "no batches in flight"


@pytest.mark.slow
def test_a_submission_whose_rows_are_slow_is_one_batch_though_the_sensor_ticks_all_the_while(make, emulator):
    asked_for = []

    def rows(context):
        result = location.tick()  # as the daemon does between two partitions
        asked_for.extend(result.run_requests)
        for request in result.run_requests:
            location.launch(request)
        return tickets(2, context.partition_key)

    location = make(*labeled(rows=rows, partitions_def=DAILY))
    submission = location.submit(span=(DAYS[0], DAYS[29]))
    assert submission.success
    assert asked_for == []
    assert emulator.books.creates_seen == 1
    assert len(location.landed(BATCH)) == 30
    emulator.settle()
    assert asked(tick(location)) == [(DAYS[0], DAYS[29])]


def test_a_landing_run_that_was_asked_for_before_leaves_alone_what_a_run_has_planned_and_not_sent(make, emulator):
    def rows(context):
        if context.partition_key == DAYS[2] and not early:  # two are planned
            early.append(location.collect(span=(DAYS[0], DAYS[1])))
            early.append(location.collect(partition=DAYS[0]))
        return tickets(2, context.partition_key)

    early = []
    location = make(*labeled(rows=rows, partitions_def=DAILY))
    assert location.submit(span=(DAYS[0], DAYS[2])).success
    assert [run.success for run in early] == [True, True]
    assert emulator.books.creates_seen == 1
    emulator.settle()
    assert location.collect(span=(DAYS[0], DAYS[2])).success
    assert location.landed() == set(DAYS[:3])


def test_a_submission_run_that_shows_no_life_for_five_minutes_holds_nothing_back(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(partition=DAYS[0])
    emulator.settle()
    run = a_run(location, [BATCH], STARTED, **days(DAYS[0]))
    assert tick(location).run_requests == []
    long_ago(location, run, minutes=6)  # its machine is gone, and Dagster has no report of this
    engine = location.engine()
    with engine.activity.at_work(run.run_id):
        assert tick(location).run_requests == []
    engine.ledger.close()
    assert asked(tick(location)) == [(DAYS[0], DAYS[0])]


LANDS = dg.StaticPartitionsDefinition(["de", "fr"])
MULTI = dg.MultiPartitionsDefinition({"day": DAILY, "land": LANDS})
STARTED, QUEUED = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.QUEUED


def days(first, last=None):
    return {"dagster/partition": first} if last is None else dict(zip(RANGE_TAGS, (first, last), strict=True))


@pytest.mark.parametrize(
    ("names", "status", "tags", "free"),
    [
        ([BATCH], STARTED, days(DAYS[0]), [DAYS[1], DAYS[2]]),
        ([BATCH], dg.DagsterRunStatus.STARTING, days(DAYS[0]), [DAYS[1], DAYS[2]]),
        ([BATCH], dg.DagsterRunStatus.CANCELING, days(DAYS[0]), [DAYS[1], DAYS[2]]),
        ([BATCH], STARTED, days(DAYS[0], DAYS[1]), [DAYS[2]]),
        ([BATCH], STARTED, {**days(DAYS[1]), "dagster/backfill": "b"}, [DAYS[0], DAYS[2]]),
        ([BATCH, *LANDING], STARTED, days(DAYS[1], DAYS[2]), [DAYS[0]]),
        ("the whole job", STARTED, days(DAYS[1], DAYS[2]), [DAYS[0]]),
        ([BATCH], QUEUED, days(DAYS[0], DAYS[2]), [DAYS[0], DAYS[1], DAYS[2]]),
        ([BATCH], dg.DagsterRunStatus.FAILURE, days(DAYS[0], DAYS[2]), [DAYS[0], DAYS[1], DAYS[2]]),
    ],
)
def test_no_landing_is_asked_for_where_a_run_is_at_work_on_the_submission(make, emulator, names, status, tags, free):
    location = make(*labeled(partitions_def=DAILY))
    for day in DAYS[:3]:
        location.submit(partition=day)
    emulator.settle()
    job = None
    if names == "the whole job":
        location.defs = dg.Definitions(
            assets=labeled(partitions_def=DAILY), sensors=[build_llm_batch_sensor()], resources=location.resources,
            jobs=[dg.define_asset_job("everything", selection=dg.AssetSelection.all())],
        )  # fmt: skip
        location.repository = location.defs.get_repository_def()
        job = location.defs.resolve_job_def("everything")
    run = a_run(location, names, status, job, **tags)
    result = tick(location)
    found = [day for first, last in asked(result) for day in DAYS[DAYS.index(first) : DAYS.index(last) + 1]]
    assert found == free
    location.instance.delete_run(run.run_id)
    assert asked(tick(location)) == [(DAYS[0], DAYS[2])]


@pytest.mark.slow
def test_a_range_of_multi_partitions_holds_back_its_own(make, emulator):
    location = make(*labeled(partitions_def=MULTI))
    places = [f"{day}|{land}" for day in DAYS[:3] for land in ("de", "fr")]
    for place in places:
        location.submit(partition=place)
    emulator.settle()
    a_run(location, [BATCH], STARTED, **days(f"{DAYS[0]}|fr", f"{DAYS[1]}|fr"))
    assert asked(tick(location)) == [(f"{DAYS[0]}|de", f"{DAYS[1]}|de"), (f"{DAYS[2]}|de", f"{DAYS[2]}|fr")]


def test_a_run_that_submits_is_seen_beside_pages_of_runs_that_wait(make, emulator):
    location = make(*labeled(partitions_def=DAILY), bounds=TickBounds(run_records=10))
    for day in DAYS[:3]:
        location.submit(partition=day)
    emulator.settle()
    a_run(location, [BATCH], STARTED, **days(DAYS[0]))
    a_run(location, LANDING, QUEUED, **days(DAYS[1]))
    [template] = location.instance.get_runs(dg.RunsFilter(statuses=[QUEUED]))
    for number in range(25):
        location.instance.run_storage.add_run(
            template._replace(run_id=f"queued-{number}", asset_selection=frozenset({dg.AssetKey("another")}))
        )
    assert asked(tick(location)) == [(DAYS[2], DAYS[2])]


def test_a_batch_in_doubt_is_not_looked_for_while_the_run_that_sends_it_is_at_work(make, emulator):
    emulator.inject(lost_create_reply("close"), WireFault(kind="status", route="GET *", status=503, times=8))
    location = make(*labeled())
    location.submit()
    emulator.clear_faults()
    run = a_run(location, [BATCH], STARTED)
    before = len(emulator.books.calls)
    assert f"run {run.run_id[:8]} is at work on its submission" in tick(location).skip_message
    assert len(emulator.books.calls) == before
    location.instance.delete_run(run.run_id)
    tick(location)  # the tick finds the batch
    emulator.settle()
    assert len(tick(location).run_requests) == 1
