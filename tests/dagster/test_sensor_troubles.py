"""A fault of one provider, batch or dataset is reported, and does not stop the others."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from code_location import DAILY, DAYS, LABELS, labeled
from test_batch_sensor import asked, tick

from dagster_llm_batch import AnthropicBatchResource, LLMBatchResource
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, BatchFault, WireFault
from dagster_llm_batch.types import BatchStatus

OTHER = "other_labels"


class Buggy(OpenAIProvider):
    """Has a bug in reading some batches, and reports any reason and count of a failure."""

    odd: frozenset[str] = frozenset()
    said: str | None = None

    def poll(self, batch_ids):
        if found := self.odd & set(batch_ids):
            raise KeyError(f"no such word in {min(found)}")
        reports = super().poll(batch_ids)
        failed = BatchStatus.FAILED
        return {
            name: replace(one, reason=self.said or one.reason, failed=2**80) if one.status is failed else one
            for name, one in reports.items()
        }


class Theirs(LLMBatchResource):
    """A deployment that makes its own providers."""

    def make_providers(self, home):
        assert self.openai is not None
        return {
            **super().make_providers(home),
            "openai": Buggy(DEFAULT_KEY, self.openai.base_url, timeout_seconds=10.0),
        }


def ledger_sql(location, statement):
    """Change the ledger, bypassing the code under test."""
    connection = sqlite3.connect(Path(location.instance.storage_directory()) / "llm_batch" / "ledger.sqlite")
    with connection:
        connection.execute(statement)
    connection.close()


def failing_tick(location):
    """Return the message of a failing tick, with its causes."""
    try:
        result = tick(location)
    except Exception as raised:  # noqa: BLE001 - Dagster's own around what was raised
        error = raised
    else:
        raise AssertionError(f"the tick did not fail: {result}")
    told = []
    while error is not None:
        told.append(f"{type(error).__name__}: {error}")
        error = error.__cause__
    return "\n".join(told)


def in_two_datasets(make, **other):
    """Submit two datasets, with one batch of each under way."""
    location = make(*labeled(partitions_def=DAILY), *labeled(name=OTHER, partitions_def=DAILY, **other))
    assert location.submit(partition=DAYS[0]).success
    assert location.run(f"{OTHER}_batch", partition=DAYS[0]).success
    return location


def landed_assets(result):
    return sorted(request.asset_selection[0].to_user_string() for request in result.run_requests)


@pytest.mark.slow
def test_of_many_batches_of_a_provider_those_that_it_trips_over_are_told_and_the_others_land(
    make, emulator, monkeypatch
):
    location = make(*labeled(partitions_def=DAILY))
    location.resources["llm_batch"] = Theirs(openai=location.resource.openai)
    sent = DAYS[:12:2]
    for day in sent:
        location.submit(partition=day)
    engine = location.engine()
    odd = [engine.latest(LABELS, day) for day in (DAYS[2], DAYS[10])]
    ids = {engine.ledger.shards.of_submission(one.submission_id)[0].batch.batch_id for one in odd}
    engine.ledger.close()
    monkeypatch.setattr(Buggy, "odd", frozenset(ids))
    emulator.settle()
    result = tick(location)
    assert asked(result) == [(day, day) for day in sent if day not in (DAYS[2], DAYS[10])]
    for request in result.run_requests:
        assert location.launch(request).success
    told = failing_tick(location)  # only this is left, and it does not pass with time
    assert "KeyError" in told
    assert f"polling failed for {LABELS} {DAYS[2]}" in told
    assert f"polling failed for {LABELS} {DAYS[10]}" in told
    monkeypatch.setattr(Buggy, "odd", frozenset())  # a release without the bug
    assert asked(tick(location)) == [(DAYS[2], DAYS[2]), (DAYS[10], DAYS[10])]


@pytest.mark.parametrize("words", ["bad \ud83d\x00\x1b[2J line", "x" * 300_000], ids=["surrogate, NUL", "long"])
def test_a_failure_message_of_any_text_is_taken_and_the_others_land(make, emulator, monkeypatch, words):
    emulator.inject(BatchFault(kind="fails", code="invalid_request", batches=[0]))
    location = in_two_datasets(make)
    location.resources["llm_batch"] = Theirs(openai=location.resource.openai)
    monkeypatch.setattr(Buggy, "said", words)
    emulator.settle()
    assert landed_assets(tick(location)) == [OTHER, LABELS]


def test_a_row_of_the_ledger_that_cannot_be_read_is_named_and_the_others_land(make, emulator):
    location = in_two_datasets(make)
    emulator.settle()
    tick(location)
    ledger_sql(location, f"UPDATE submission SET state = 'from the future' WHERE asset = '{LABELS}'")
    result = tick(location)
    assert landed_assets(result) == [OTHER]
    assert location.launch(result.run_requests[0]).success
    told = failing_tick(location)
    assert "the ledger's row" in told
    assert "'from the future' is not a valid SubmissionState" in told


def test_a_provider_that_cannot_be_made_stops_neither_the_tick_nor_runs_of_the_others(make, emulator):
    class Broken(AnthropicBatchResource):
        def provider(self):
            raise RuntimeError("its SDK does not load")

    claude = AnthropicBatchResource(api_key=DEFAULT_KEY, base_url=emulator.anthropic_base_url)
    usual = make()
    location = make(
        *labeled(),
        *labeled(name=OTHER, model="anthropic/claude-haiku-4-5"),
        anthropic=claude,
    )
    assert location.run(f"{OTHER}_batch").success
    broken = make(
        *labeled(), *labeled(name=OTHER, model="anthropic/claude-haiku-4-5"),
        anthropic=Broken(api_key=DEFAULT_KEY, base_url=emulator.anthropic_base_url),
    )  # fmt: skip
    assert broken.submit().success
    emulator.settle()
    result = tick(broken)
    assert landed_assets(result) == [LABELS]
    assert broken.launch(result.run_requests[0]).success
    assert "provider anthropic: RuntimeError: its SDK does not load" in failing_tick(broken)
    assert landed_assets(tick(location)) == [OTHER]
    assert usual.tick().run_requests == []


def test_a_dataset_whose_partitions_cannot_be_told_is_named_and_the_others_land(make, emulator):
    there = [DAYS[0]]

    def keys(_):
        if not there:
            raise ConnectionError("the customers' database is away")
        return there

    with pytest.warns(DeprecationWarning, match="partition_fn"):
        theirs = dg.DynamicPartitionsDefinition(partition_fn=keys)
    location = make(*labeled(), *labeled(name=OTHER, partitions_def=theirs))
    assert location.submit().success
    engine = location.engine()
    ours = engine.latest(LABELS)
    ledger_sql(
        location, f"UPDATE submission SET asset = '{OTHER}', partition = '{DAYS[0]}'"
    )  # as if it had been submitted
    assert location.submit().success
    assert engine.latest(LABELS).submission_id != ours.submission_id
    engine.ledger.close()
    emulator.settle()
    there.clear()
    result = tick(location)
    assert landed_assets(result) == [LABELS]
    assert location.launch(result.run_requests[0]).success
    assert f"partitions of {OTHER}: ConnectionError: the customers' database is away" in failing_tick(location)


def test_a_call_of_dagster_that_fails_for_one_asset_is_told_and_the_others_land(make, emulator, monkeypatch):
    location = in_two_datasets(make)
    emulator.settle()
    engine = location.engine()
    for name in (LABELS, OTHER):  # both are complete, so Dagster is asked whether they are delivered
        submission = engine.latest(name, DAYS[0])
        engine.ledger.submissions.settle(
            submission.submission_id, outcomes={}, cost_usd=None, realtime_usd=None, price_basis=None
        )
    engine.ledger.close()
    usual = location.instance.fetch_materializations

    def fetch(records_filter, *args, **kwargs):
        if records_filter.asset_key == dg.AssetKey(LABELS):
            raise TimeoutError("statement timeout")
        return usual(records_filter, *args, **kwargs)

    tick(location)  # the tick polls
    monkeypatch.setattr(location.instance, "fetch_materializations", fetch)
    assert landed_assets(tick(location)) == [OTHER]


def test_polls_that_are_answered_with_a_page_of_html_are_told_and_the_others_land(make, emulator):
    location = in_two_datasets(make)
    engine = location.engine()
    batch = engine.ledger.shards.of_submission(engine.latest(LABELS, DAYS[0]).submission_id)[0].batch.batch_id
    engine.ledger.close()
    emulator.settle()
    emulator.inject(WireFault(kind="status", status=200, route=f"GET /v1/batches/{batch}", times=None))
    assert landed_assets(tick(location)) == [OTHER]
    emulator.clear_faults()
    assert LABELS in landed_assets(tick(location))


def test_a_ledger_that_is_away_fails_the_tick(make, emulator):
    location = make(*labeled())
    location.submit()
    ledger_sql(location, "ALTER TABLE submission RENAME TO gone")
    assert "LedgerError" in failing_tick(location)
