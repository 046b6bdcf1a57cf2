"""A provider that rejects its key, or cannot be created: it gets no runs that must fail, and a person is alerted."""

from datetime import timedelta
from typing import Literal

import dagster as dg
import pytest
from code_location import LABELS, CodeLocation, labeled, tickets
from pydantic import BaseModel
from test_batch_sensor import change
from test_sensor_troubles import failing_tick

from dagster_llm_batch import (
    AnthropicBatchResource,
    Cascade,
    Fallback,
    Realtime,
    Resend,
    build_llm_batch_jobs,
    build_llm_batch_retention,
)
from dagster_llm_batch.assets.dataset import datasets_in
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, WireFault

OTHER = "other_labels"
WRONG = "sk-wrong-key-42424242424242"
UNSET = dg.EnvVar("KEY_OF_NOBODY")
CLAUDE = "anthropic/claude-haiku-4-5"
CREATE = "POST /v1/messages/batches"


@pytest.fixture
def place(emulator, instance, monkeypatch):
    """Make the two-vendor location, with a key for the other one."""
    monkeypatch.delenv("KEY_OF_NOBODY", raising=False)

    def with_key(key, model=CLAUDE, **changes):
        claude = AnthropicBatchResource(api_key=key, base_url=emulator.anthropic_base_url, timeout_seconds=5.0)
        assets = [*labeled(), *labeled(name=OTHER, model=model, **changes)]
        return CodeLocation(emulator, instance, *assets, anthropic=claude)

    return with_key


def pass_time(location, minutes=40):
    """Move all events this many minutes into the past."""
    for table, column in (("event", "at"), ("submission", "created_at"), ("submission", "reported_at")):
        change(location, f"{column} = datetime({column}, '-{minutes} minutes') || '.000000'", table)
    earlier = f"datetime(waits_until, '-{minutes} minutes') || '.000000'"
    change(location, "polled_at = null")
    change(location, f"waits_until = {earlier}")


def ticks(location, count):
    """Evaluate the sensor `count` times, with time in between; return the number of runs requested for the other
    dataset.
    """
    asked = 0
    for _ in range(count):
        pass_time(location)
        try:
            result = location.tick()
        except LLMBatchError:
            # The tick alerts a person.
            continue
        for request in result.run_requests or ():
            asked += OTHER in {key.to_user_string() for key in request.asset_selection}
            location.launch(request)
    return asked


def other(location):
    engine = location.engine()
    try:
        return engine.latest(OTHER)
    finally:
        engine.ledger.close()


def test_a_wrong_key_starts_no_landing_run_and_what_waits_is_sent_when_it_is_mended(place, emulator):
    broken = place(WRONG)
    assert not broken.run(f"{OTHER}_batch").success
    assert broken.submit().success
    pass_time(broken, minutes=5)
    emulator.settle()
    [request] = broken.tick().run_requests
    assert LABELS in {key.to_user_string() for key in request.asset_selection}
    assert broken.launch(request).success
    told = failing_tick(broken)
    assert f"{OTHER} needs a person" in told
    assert "does not accept the API key" in told
    assert "then the sensor continues" in told
    assert WRONG not in told
    assert ticks(broken, 9) == 0
    mended = place(DEFAULT_KEY)
    assert ticks(mended, 1) == 1
    for _ in range(6):
        emulator.settle()
        ticks(mended, 1)
    assert other(mended).delivered_at is not None


@pytest.mark.slow
def test_a_key_that_may_list_and_not_create_starts_four_runs_and_then_fails_a_check(place, emulator, instance):
    location = place(DEFAULT_KEY)
    emulator.inject(WireFault(kind="status", route=CREATE, status=403, times=None))
    assert not location.run(f"{OTHER}_batch").success
    assert ticks(location, 12) == 4
    key = dg.AssetCheckKey(dg.AssetKey(OTHER), "coverage")
    [record] = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    said = record.event.asset_check_evaluation.description
    assert "asked for again 3 of 3 times" in said
    assert f"materialize {OTHER}" in said
    # A person's materialization starts the count again.
    emulator.clear_faults()
    assert location.run(OTHER, f"{OTHER}_rejects").success
    emulator.settle()
    assert ticks(location, 3) >= 1


def test_a_run_after_a_refused_one_is_asked_for_with_the_pause_of_a_lost_run(place, emulator):
    location = place(DEFAULT_KEY)
    emulator.inject(WireFault(kind="status", route=CREATE, status=403, times=None))
    assert not location.run(f"{OTHER}_batch").success
    pass_time(location, minutes=5)
    [request] = location.tick().run_requests
    assert not location.launch(request).success
    # Its submission is so new that nothing else holds it back.
    change(location, "created_at = '2999-01-01 00:00:00.000000'", "submission")
    assert "asked for again in" in location.tick().skip_message
    pass_time(location, minutes=2)
    change(location, "created_at = '2999-01-01 00:00:00.000000'", "submission")
    [request] = location.tick().run_requests
    assert request.tags["llm_batch/asked_again"] == "1 of 3"


@pytest.mark.slow
@pytest.mark.parametrize(("key", "most"), [(UNSET, 0), ("", 0), (WRONG, 1)], ids=["unset", "empty", "wrong"])
def test_a_batch_that_has_ended_waits_for_the_key_by_which_its_results_are_fetched(place, emulator, key, most):
    good = place(DEFAULT_KEY)
    assert good.run(f"{OTHER}_batch").success
    emulator.settle()
    engine = good.engine()
    engine.poll(engine.ledger.shards.in_flight(engine.namespace))
    engine.ledger.close()
    broken = place(key)
    assert ticks(broken, 6) == most
    assert ticks(good, 1) == 1
    for _ in range(6):
        emulator.settle()
        ticks(good, 1)
    assert other(good).delivered_at is not None


@pytest.mark.parametrize(("key", "lands"), [(UNSET, 0), (WRONG, 1)], ids=["unset", "wrong"])
def test_answers_that_are_stored_land_with_a_wrong_key_and_wait_for_one_that_is_not_set(place, emulator, key, lands):
    good = place(DEFAULT_KEY)
    assert good.run(f"{OTHER}_batch").success
    engine = good.engine()
    submission_id = engine.latest(OTHER).submission_id
    labeling = datasets_in(good.repository.assets_defs_by_key.values())[OTHER].labeling
    while not engine.status(submission_id).is_settled:
        emulator.settle()
        engine.advance(labeling, submission_id)
    engine.ledger.close()
    broken = place(key)
    assert ticks(broken, 3) == lands
    assert (other(broken).delivered_at is not None) is bool(lands)
    assert ticks(good, 1) == 1 - lands


@pytest.mark.slow
@pytest.mark.parametrize(("key", "most"), [(UNSET, 0), ("", 0), (WRONG, 1)], ids=["unset", "empty", "wrong"])
def test_a_next_wave_that_waits_starts_at_most_one_run(place, emulator, key, most):
    good = place(DEFAULT_KEY)
    assert good.run(f"{OTHER}_batch").success
    emulator.settle()
    engine = good.engine()
    engine.poll(engine.ledger.shards.in_flight(engine.namespace))
    labeling = datasets_in(good.repository.assets_defs_by_key.values())[OTHER].labeling
    engine.collect(labeling, engine.latest(OTHER).submission_id)
    assert engine.status(engine.latest(OTHER).submission_id).states["planned"]
    engine.ledger.close()
    assert ticks(place(key), 6) == most
    assert ticks(good, 1) == 1


class SureLabel(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    confidence: float


USES = {
    "oracle": {
        "model": "openai/gpt-4o-mini",
        "response": SureLabel,
        "rows": lambda _: tickets(60),
        "cascade": Cascade(oracle=CLAUDE, target="topic", agreement=0.8, sample=40),
    },
    "fallback": {"model": "openai/gpt-4o", "resend": Resend(fallback=[Fallback(CLAUDE)])},
    "realtime": {"model": CLAUDE, "realtime": Realtime(deadline=timedelta(hours=1))},
}


def failures(result):
    return " ".join(str(event.step_failure_data.error) for event in result.all_events if event.is_step_failure)


@pytest.mark.parametrize("use", USES)
def test_whatever_needs_a_provider_without_key_sends_nothing_and_the_others_land(place, emulator, use):
    broken = place(UNSET, **USES[use])
    told = failures(broken.run(f"{OTHER}_batch"))
    assert "anthropic: api_key comes from the environment variable KEY_OF_NOBODY, which is not set" in told
    assert emulator.books.creates_seen == 0
    assert broken.land().success
    assert broken.metadata()["dagster/partition_row_count"] == 3
    assert ticks(broken, 2) == 0


@pytest.mark.slow
def test_an_oracle_whose_key_is_wrong_costs_time_only(place, emulator):
    broken = place(WRONG, **USES["oracle"])
    broken.run(f"{OTHER}_batch")
    for _ in range(4):
        emulator.settle()
        ticks(broken, 1)
    before = emulator.books.creates_seen
    assert ticks(broken, 4) == 0
    assert emulator.books.creates_seen == before
    mended = place(DEFAULT_KEY, **USES["oracle"])
    for _ in range(8):
        emulator.settle()
        ticks(mended, 1)
    assert other(mended).delivered_at is not None


def test_jobs_work_on_a_dataset_beside_one_whose_provider_has_no_key(place, emulator, instance):
    assert place(DEFAULT_KEY).run(f"{OTHER}_batch").success
    broken = place(UNSET)
    assert broken.submit().success
    jobs, retention = build_llm_batch_jobs(), build_llm_batch_retention()
    defs = dg.Definitions(jobs=jobs, schedules=[retention], resources=broken.resources)

    def run(name, asset=None):
        config = {"ops": {"cancel_submission": {"config": {"asset": asset}}}} if asset else None
        job = defs.resolve_job_def(name)
        return job.execute_in_process(instance=instance, raise_on_error=False, run_config=config)

    assert run("llm_batch_retention").success
    assert run("llm_batch_resolve").success
    assert run("llm_batch_cancel", LABELS).success
    assert "KEY_OF_NOBODY, which is not set" in failures(run("llm_batch_cancel", OTHER))
