"""Waiting: runs, the sensor, its observations and `watch` show progress, and its last change, in the same words."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import dagster as dg
import pytest
from click.testing import CliRunner
from code_location import BATCH, DAILY, DAYS, LABELS, CodeLocation, labeled, tickets
from test_batch_sensor import change, sqlite_time, tick
from test_landing_runs import FullDisk

from dagster_llm_batch import Limits, QueueLimit
from dagster_llm_batch.cli.main import main
from dagster_llm_batch.loop.progress import Pace
from dagster_llm_batch.progress import pace_text, progress_bar, together
from dagster_llm_batch.sensors.run_requests import RANGE_TAGS
from dagster_llm_batch.sensors.runs import TickBounds
from dagster_llm_batch.states import Transition
from dagster_llm_batch.storage.ledger.records import Shard, SubmissionState
from dagster_llm_batch.testing.emulator import Emulator, RowFault
from example_project.journey import submitted_text
from tests.emulator_pace import settles_after

END = datetime(2026, 1, 2, 14, 5, tzinfo=UTC)


def seen(location):
    """Return (partition, progress) of all observations, oldest first."""
    records = location.instance.fetch_observations(dg.AssetKey(LABELS), limit=1000).records
    told = [record.asset_observation for record in reversed(records)]
    return [(one.partition, one.metadata["llm_batch/progress"].value) for one in told]


def watch_once(stored, what="submissions"):
    """Return the output of `watch`."""
    home = f"{stored.storage_directory()}/llm_batch"
    places = ["--ledger", f"sqlite:///{home}/ledger.sqlite", "--payloads", f"{home}/payloads"]
    return json.loads(CliRunner().invoke(main, ["watch", "--once", "--json", *places]).output)[what]


def test_what_is_not_known_is_left_out_and_the_rest_keeps_its_order():
    nothing = Pace(0, 0, 0, None, None, None)
    everything = Pace(1410, 3000, 2, timedelta(hours=2, minutes=13), 3.14, END)
    assert pace_text(nothing) == "nothing to send"
    assert pace_text(everything) == (
        "1,410 of 3,000 requests done (47 %), 2 failed; 3.1 per minute; oldest 2 h 13 m; "
        "expected end 2026-01-02 14:05 UTC"
    )


def test_the_bar_is_as_full_as_what_is_done_and_full_only_when_all_is():
    assert progress_bar(410, 1000) == "████████░░░░░░░░░░░░"
    assert progress_bar(999, 1000) == "███████████████████░"
    assert progress_bar(0, 3) == "░" * 20
    assert progress_bar(3, 3) == progress_bar(0, 0) == "█" * 20


def test_several_submissions_together_end_with_the_last_of_them_or_nobody_knows_when():
    quick = Pace(50, 100, 1, timedelta(minutes=10), 5.0, END)
    slow = Pace(10, 300, 0, timedelta(minutes=90), 0.5, END + timedelta(days=1))
    silent = Pace(0, 7, 0, timedelta(minutes=1), None, None)
    assert together([quick, slow]) == Pace(60, 400, 1, timedelta(minutes=90), 5.5, END + timedelta(days=1))
    assert together([quick, slow, silent]).expected_end_at is None
    assert together([silent]).per_minute is None


@pytest.mark.slow
def test_the_sensor_observes_what_moved_and_ticks_without_news_add_nothing(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(partition=DAYS[0])
    location.submit(partition=DAYS[3])
    for _ in range(3):
        tick(location)
    assert seen(location) == []
    emulator.settle()
    for _ in range(3):
        tick(location)
    assert seen(location) == [
        (day, "round 1: 1 batch ended; 3 of 3 requests done (100 %)") for day in (DAYS[0], DAYS[3])
    ]
    assert location.landed() == set()  # an observation is not a materialization
    [told, _] = location.instance.fetch_observations(dg.AssetKey(LABELS), limit=10).records
    assert told.asset_observation.metadata["llm_batch/progress_bar"].value == "█" * 20


@pytest.mark.slow
def test_a_tick_in_which_very_much_moved_observes_a_part_of_it_and_asks_for_all_runs(make, emulator):
    location = make(*labeled(partitions_def=DAILY), bounds=TickBounds(observations=2))
    for day in DAYS[:4]:
        location.submit(partition=day)
    emulator.settle()
    [request] = tick(location).run_requests
    assert (request.tags[RANGE_TAGS[0]], request.tags[RANGE_TAGS[1]]) == (DAYS[0], DAYS[3])
    assert len(seen(location)) == 2


@pytest.mark.slow
def test_a_run_that_is_asked_for_waits_for_few_observations(make, emulator):
    location = make(*labeled(partitions_def=DAILY), bounds=TickBounds(observed_landings=1))
    for day in DAYS[:4]:
        location.submit(partition=day)
    emulator.settle()
    [request] = tick(location).run_requests
    assert len(seen(location)) == 1
    assert location.launch(request).success
    assert location.landed() == set(DAYS[:4])


@pytest.mark.slow
@pytest.mark.parametrize("partition", [None, DAYS[0]])
def test_a_batch_is_observed_at_each_quarter_of_a_wave_once_whoever_looks(instance, partition):
    options = {"partitions_def": DAILY} if partition else {}
    with Emulator(work_steps=20) as emulator:
        emulator.inject(RowFault(containing="Subject t 1", status_code=500, times=1))
        location = CodeLocation(emulator, instance, *labeled(rows=lambda context: tickets(40), **options))
        location.submit(partition=partition)
        for _ in range(25):
            tick(location)
            tick(location)
            emulator.tick()
        for _ in range(2):
            assert location.collect(partition=partition).success  # the run retries failed requests
        emulator.settle()
        tick(location)
        assert location.collect(partition=partition).success
        assert location.collect(partition=partition).success
    told = [text.split("; ")[1] for seen_at, text in seen(location) if seen_at == partition]
    assert [text.split(" requests")[0] for text in told] == [
        *("10 of 40", "20 of 40", "30 of 40", "40 of 40"),
        *("39 of 40", "40 of 40"),
    ]


@pytest.mark.slow
def test_a_request_that_is_asked_again_counts_once_and_is_done_when_it_is_answered(stored, emulator):
    emulator.inject(RowFault(containing="Subject t 1", status_code=500, times=1))
    location = CodeLocation(emulator, stored, *labeled())
    location.submit()
    emulator.settle()
    location.launch(tick(location).run_requests[0])  # it fails, and is sent again
    assert "1 batch in flight; 2 of 3 requests done (66 %); oldest" in location.tick().skip_message
    [watched] = watch_once(stored)
    told = [watched[f"requests_{what}"] for what in ("done", "total", "failed", "per_minute")]
    assert told == [2, 3, 0, None]  # this round has no finished request, so its rate is unknown
    engine = location.engine()
    [progress] = engine.ledger.submissions.progress("default")
    status = engine.status(progress.submission.submission_id)
    assert (status.done, status.total, status.failed) == (2, 3, 0)
    change(location, "done = 9, failed = 9")  # like a provider that counts wrong
    assert engine.ledger.submissions.progress("default")[0].done == 3
    engine.ledger.close()


@pytest.mark.slow
def test_the_skip_reason_and_watch_agree_on_counts_rate_age_and_end(stored, emulator):
    location = CodeLocation(
        emulator, stored, *labeled(rows=lambda context: tickets(800), limits=Limits(max_requests_per_batch=400))
    )
    location.submit()
    emulator.tick(2)
    tick(location)
    now = location.engine().now()
    sent = sqlite_time(now - timedelta(hours=2))
    change(location, f"done = 120, failed = 3, polled_at = '{sqlite_time(now)}', submitted_at = '{sent}'")
    counts, rate, age, end = location.tick().skip_message.removeprefix("2 batches in flight; ").split("; ")
    assert counts == "240 of 800 requests done (30 %), 6 failed"
    assert (rate, age) == ("2.0 per minute", "oldest 2 h 0 m")
    [watched] = watch_once(stored)
    assert [watched[f"requests_{what}"] for what in ("done", "total", "failed")] == [240, 800, 6]
    assert f"{watched['requests_per_minute']:.1f} per minute" == rate
    told = datetime.strptime(end, "expected end %Y-%m-%d %H:%M UTC").replace(tzinfo=UTC)
    assert abs(told - datetime.fromisoformat(watched["expected_end_at"])) < timedelta(minutes=20)


@pytest.mark.slow
def test_watch_says_why_labels_could_not_land(stored, emulator):
    assets = labeled(partitions_def=DAILY)
    location = CodeLocation(emulator, stored, *assets, resources={"io_manager": FullDisk(DAYS[0])})
    location.land(span=(DAYS[0], DAYS[1]))
    told = f"{LABELS} {DAYS[0]}: a run could not materialize the labels: OSError: No space left on device"
    assert watch_once(stored, "notes") == [told]


@pytest.mark.slow
@pytest.mark.parametrize("where", [{"partition": DAYS[0]}, {"span": (DAYS[0], DAYS[1])}])
def test_labels_that_a_person_landed_are_no_longer_watched_though_no_sensor_runs(stored, emulator, where):
    location = CodeLocation(emulator, stored, *labeled(partitions_def=DAILY))
    location.submit(**where)
    assert watch_once(stored)
    emulator.settle()
    assert location.collect(**where).success
    assert watch_once(stored) == []


def repeat_a_day_long(engine, count):
    """Add submissions like the ledger's own, one for each day before now, which took a day each."""
    [known] = engine.ledger.submissions.list_all(engine.namespace)
    [shard] = engine.ledger.shards.of_submission(known.submission_id)
    now = engine.now()
    for number in range(count):
        name = f"earlier-{number}"
        ended_at = now - timedelta(days=number)
        began = {"state": SubmissionState.OPEN, "settled_at": None, "created_at": ended_at - timedelta(days=1)}
        again = replace(known, submission_id=name, partition=name, fingerprint=name, **began)
        fresh = Shard(**{field: getattr(shard, field) for field in SHARD_NEEDS}, shard_id=name, submission_id=name)
        engine.ledger.submissions.open(again, [fresh])
        engine.ledger.shards.move(name, Transition.SEND)
        engine.ledger.shards.move(name, Transition.ACCEPTED, batch_id=name)
        engine.ledger.shards.move(name, Transition.ENDED, ended_at=ended_at)
        engine.ledger.shards.move(name, Transition.COLLECTED)
        engine.ledger.submissions.settle(name, outcomes={}, cost_usd=None, realtime_usd=None, price_basis=None)
        engine.ledger.submissions.mark_delivered(name)


SHARD_NEEDS = ("wave", "number", "nonce", "requests", "bytes", "path", "digest")


@pytest.mark.slow
def test_before_the_first_answer_the_expected_end_is_that_of_earlier_submissions(make, emulator):
    location = make(*labeled(partitions_def=DAILY), tune=True)
    assert location.land(partition=DAYS[0]).success
    engine = location.engine()
    now = engine.now()
    repeat_a_day_long(engine, 12)
    location.submit(partition=DAYS[1])
    expected = now + timedelta(days=1)
    said = tick(location).skip_message
    assert f"expected end {expected:%Y-%m-%d %H:}" in said
    assert f"9 in 10 by {expected:%Y-%m-%d %H:}" in said
    sent = location.metadata(BATCH, DAYS[1])["llm_batch/end_forecast"]
    assert "1 of 2 within 24 h 0 m, 9 of 10 within 24 h 0 m (by 13 earlier submissions" in sent
    assert "too few days" in location.metadata(BATCH, DAYS[1])["llm_batch/tuning"]
    [watched] = watch_once(location.instance)
    assert watched["p90_end_at"] == watched["forecast_p90_end_at"]
    location.collect(partition=DAYS[1])
    [observation] = location.instance.fetch_observations(dg.AssetKey(LABELS), limit=1).records
    metadata = observation.asset_observation.metadata
    told = datetime.fromtimestamp(metadata["llm_batch/expected_end_at"].value, UTC)
    assert abs(told - expected) < timedelta(hours=1)
    assert metadata["llm_batch/p90_end_at"].value >= told.timestamp()
    assert metadata["llm_batch/requests_failed"].value == 0


def test_a_run_that_waits_logs_each_move_once_with_its_pace(instance):
    with Emulator() as emulator:
        location = CodeLocation(emulator, instance, *labeled(mode="wait"), poll_seconds=0.01)
        location.submit()
        polls = partial(emulator.books.calls_to, "GET", f"/v1/batches/{emulator.books.batches[0].id}")
        with settles_after(emulator, lambda: polls() > 5):
            result = location.collect()
    assert result.success
    logs = [entry.user_message for entry in instance.all_logs(result.run_id)]
    waiting = [text for text in logs if text.startswith("Waiting: ")]
    assert waiting[0] == "Waiting: round 1: 1 batch submitted; 0 of 3 requests done (0 %); oldest 0 m"
    assert len(waiting) < polls()


def test_the_example_counts_requests_that_wait_for_room_in_the_queue_apart_from_those_sent(make, emulator):
    location = make(*labeled(partitions_def=DAILY), queue_limits={"openai": QueueLimit(max_batches=1)})
    began = datetime.now(UTC)
    location.submit(partition=DAYS[0])
    location.submit(partition=DAYS[1])
    engine = location.engine()
    statuses = [engine.status(engine.latest(LABELS, day).submission_id) for day in DAYS[:2]]
    engine.ledger.close()
    assert submitted_text(statuses, began) == "3 requests sent; 3 wait for room in the provider's queue"
    assert submitted_text(statuses, datetime.now(UTC)) == (
        "0 requests sent; 3 wait for room in the provider's queue; 3 in flight since an earlier run, found again"
    )
