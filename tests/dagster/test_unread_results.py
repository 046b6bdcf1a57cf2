"""Unreadable results in Dagster: a run fails once, a tick fails after an hour, and a person abandons them.

Runs in the mode `wait` work without a sensor: they do everything that they wait for.
"""

import time

import pytest
from code_location import DAILY, DAYS, LABELS, LANDING, CodeLocation, labeled
from test_batch_sensor import change, tick
from test_sensor_troubles import failing_tick
from test_waiting_for_a_person import coverage

from dagster_llm_batch import QueueLimit
from dagster_llm_batch.assets import landing_wait
from dagster_llm_batch.testing.emulator import Emulator, WireFault

DOWNLOAD = "GET /v1/files/*/content"
BATCH = f"{LABELS}_batch"


def kinds(engine, submission_id):
    return [event.kind for event in engine.ledger.events.of_submission(submission_id) if event.kind != "person_told"]


@pytest.mark.slow
@pytest.mark.parametrize("status", [403, 503])
def test_results_that_cannot_be_read_are_asked_for_after_pauses_told_after_an_hour_and_given_up(make, emulator, status):
    emulator.inject(WireFault(kind="status", route=DOWNLOAD, status=status, retry_after="0.01", times=None))
    location = make(*labeled())
    location.submit()
    emulator.settle()
    engine = location.engine()
    submission_id = engine.latest(LABELS).submission_id
    [first] = tick(location).run_requests
    assert location.launch(first).success == (status == 503)
    waiting = location.tick()
    assert waiting.run_requests == []
    assert "needs a person" not in waiting.skip_message
    events = kinds(engine, submission_id)

    # Its next try is due.
    change(location, "waits_until = datetime('now', '-1 second') || '.000000'")
    [second] = location.tick().run_requests
    assert second.run_key != first.run_key
    assert location.launch(second).success  # a green run: the first run reported the fault, and a tick reports it again
    assert location.tick().run_requests == []
    assert [kind for kind in kinds(engine, submission_id) if kind != "landing_failed"] == [
        kind for kind in events if kind != "landing_failed"
    ]

    change(location, "since = datetime('now', '-2 hours') || '.000000'", "hold")
    told = failing_tick(location)
    [shard] = engine.ledger.shards.of_submission(submission_id)
    assert (
        f"{LABELS} needs a person: the results of batch {shard.batch.batch_id} of openai, which has ended, cannot"
        in told
    )
    assert f"dagster-llm-batch resolve {shard.shard_id} --lost" in told
    assert "needs a person" in location.tick().skip_message  # it was reported just now
    engine.give_up(shard.shard_id)
    [request] = tick(location).run_requests
    verdict = coverage(location.launch(request))
    assert not verdict.passed
    assert "could not be read, and were abandoned" in verdict.description
    assert len(emulator.books.batches) == 1
    engine.ledger.close()


def test_a_run_over_partitions_fails_where_the_provider_refuses_results_and_then_tells_that_it_waits_for_them(
    make, emulator
):
    emulator.inject(WireFault(kind="status", route=DOWNLOAD, status=403, times=None))
    location = make(*labeled(partitions_def=DAILY))
    span = {"span": (DAYS[0], DAYS[1])}
    location.submit(**span)
    emulator.settle()
    first = location.collect(**span)
    assert not first.success
    assert {key for key, passed in location.checks(first).items() if not passed} == {
        (DAYS[0], "coverage"),
        (DAYS[1], "coverage"),
    }
    second = location.collect(**span)
    assert second.success
    logs = [entry.user_message for entry in location.instance.all_logs(second.run_id)]
    waiting = [text for text in logs if text.startswith("Not ready")]
    assert len(waiting) == 2
    for text in waiting:
        assert "1 batch ended; 3 of 3 requests done (100 %); the results of 1 ended batch cannot be read since" in text
        assert text.endswith("The sensor materializes the labels when their results can be read.")
    emulator.clear_faults()
    assert location.collect(**span).success
    assert location.landed() == {DAYS[0], DAYS[1]}
    assert sum(one.billed for one in emulator.books.executions) == 6


# Without its polls, the run waits without end.
@pytest.mark.timeout(240)
def test_in_wait_mode_a_run_behind_a_full_queue_polls_the_batch_that_fills_it(instance):
    with Emulator(pace=0.05) as emulator:
        limits = {"queue_limits": {"openai": QueueLimit(max_batches=1)}, "poll_seconds": 0.05}
        # Another submission, without a sensor that collects it, fills the queue. Its batch ends after some time.
        location = CodeLocation(emulator, instance, *labeled(mode="wait", partitions_def=DAILY), **limits)
        assert location.run(BATCH, partition=DAYS[0]).success
        assert location.run(BATCH, *LANDING, partition=DAYS[1]).success
        assert location.landed() == {DAYS[1]}
        assert location.engine().latest(LABELS, DAYS[0]).is_settled is False


@pytest.mark.timeout(240)
def test_in_wait_mode_a_run_sends_what_waits_before_it_in_the_queue_where_no_other_run_would(instance):
    with Emulator(pace=0.05) as emulator:
        limits = {"queue_limits": {"openai": QueueLimit(max_batches=1)}, "poll_seconds": 0.05}
        location = CodeLocation(emulator, instance, *labeled(mode="wait", partitions_def=DAILY), **limits)
        # The first fills the queue; the second is planned, and comes before the third in the queue.
        for day in DAYS[:2]:
            assert location.run(BATCH, partition=day).success
        landing = location.run(BATCH, *LANDING, partition=DAYS[2])
        assert landing.success
        assert location.landed() == {DAYS[2]}
        assert len(emulator.books.batches) == 3
        logs = [entry.user_message for entry in instance.all_logs(landing.run_id)]
        [told] = [text for text in logs if "wait for a place in the queue of openai" in text]
        assert (
            f"behind 3 requests of {LABELS} {DAYS[0]} that are in flight, "
            f"and 3 of {LABELS} {DAYS[1]} that are not sent yet." in told
        )


def test_in_wait_mode_a_run_asks_for_unreadable_results_again_after_the_pause_of_the_ledger(instance, monkeypatch):
    asked = []

    class Time:
        """Ends the pause at the fifth sleep, and repairs the vendor."""

        @staticmethod
        def sleep(seconds):
            asked.append(sum(call.path.endswith("/content") for call in emulator.books.calls))
            if asked[-1] and (asked.count(asked[-1]) > 5 or len(asked) > 40):
                emulator.clear_faults()
                change(location, "waits_until = datetime('now', '-1 second') || '.000000' WHERE waits_until > ''")
            time.sleep(seconds)

    with Emulator(pace=0.01) as emulator:
        emulator.inject(WireFault(kind="status", route=DOWNLOAD, status=503, retry_after="0.01", times=None))
        location = CodeLocation(emulator, instance, *labeled(mode="wait"), poll_seconds=0.05)
        monkeypatch.setattr(landing_wait, "time", Time)
        assert location.run(BATCH, *LANDING).success
    asked = [count for count in asked if count]
    assert len(asked) > 3
    assert len(set(asked)) == 1
