"""Rows go only to allowed destinations, even if they were planned before the rules or settings changed."""

from __future__ import annotations

import pytest
from workspace import assert_total, billed, labeling, tickets

from dagster_llm_batch.definition.destinations import AllowedDestinations
from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Limits, Realtime, Resend
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.testing.emulator import RowFault, WireFault
from dagster_llm_batch.types import Destination


def allowed(region="us", **rules):
    return AllowedDestinations(**{"regions": ["eu"], "reporters": {"openai": lambda *_: Destination(region)}, **rules})


def test_an_allowed_region_changes_nothing(workspace):
    plain = workspace.engine(namespace="a").plan(labeling(), tickets(3))
    ruled = workspace.engine(namespace="b", destinations=allowed("eu")).plan(labeling(), tickets(3))
    assert ruled.fingerprint == plain.fingerprint
    assert ruled.config_fingerprint == plain.config_fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "openai/gpt-4o"},
        {"model": "other/gpt-4o", "resend": Resend(fallback=["openai/gpt-4o"])},
    ],
    ids=["model", "fallback"],
)
def test_a_dataset_that_would_send_elsewhere_is_refused_before_a_row_is_read(workspace, changes):
    workspace.providers["other"] = workspace.openai(name="other")
    reporters = {"openai": lambda *_: Destination("us"), "other": lambda *_: Destination("eu")}

    def rows():
        raise AssertionError("A row is read.")
        yield

    for step in ("plan", "preview"):
        engine = workspace.engine(destinations=allowed(reporters=reporters))
        with pytest.raises(ConfigError, match="openai/gpt-4o, which runs in 'us'"):
            getattr(engine, step)(labeling(**changes), rows())
    assert not workspace.emulator.books.calls


@pytest.mark.parametrize("urgent", [False, True], ids=["batch", "realtime"])
@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (allowed(), "runs in 'us'"),
        (allowed(None), "region is unknown"),
        (allowed(reporters={}), "its provider does not report it"),
        (allowed(providers=["bedrock"]), "provider 'openai' is not allowed"),
    ],
)
def test_shards_that_were_planned_before_are_not_sent_and_stay_planned(workspace, urgent, rules, said):
    rows, definition = tickets(3), labeling()
    if urgent:
        rows, definition = rows.with_columns(now=True), labeling(realtime=Realtime(urgent="now"))
    planned = workspace.engine().plan(definition, rows)
    with pytest.raises(ConfigError, match=said) as refused:
        workspace.engine(destinations=rules).submit(definition, planned.submission_id)
    assert planned.submission_id in str(refused.value)
    assert "Nothing was sent." in str(refused.value)
    assert not workspace.emulator.books.calls
    shards = workspace.engine().ledger.shards.of_submission(planned.submission_id)
    assert {shard.state for shard in shards} == {ShardState.PLANNED}
    # The rules, or the settings, are right again.
    workspace.engine(destinations=allowed("eu")).submit(definition, planned.submission_id)
    assert workspace.finish(definition, planned.submission_id).is_settled


def assert_held(workspace, submission_id):
    """Check the reason that is shown once the rest is abandoned."""
    held = workspace.engine().unsent(submission_id).held or ""
    assert "'ticket_labels' would send rows to openai/gpt-4o, which runs in 'us'. Allowed by allowed_regions" in held
    assert held.endswith(
        "Then materialize the asset that submits 'ticket_labels': the rows without an answer are asked again"
    )
    assert "Nothing was sent" not in held


def test_answers_of_a_batch_that_ended_land_though_the_rest_is_not_allowed_any_more(workspace):
    definition = labeling(limits=Limits(max_requests_per_batch=2))
    limit = {"queue_limits": {"openai": QueueLimit(max_batches=1)}}
    first = workspace.engine(**limit)
    one = first.plan(definition, tickets(4)).submission_id
    first.submit(definition, one)
    ruled = workspace.engine(destinations=allowed(), **limit)
    # While it runs, the rest waits: the rules may be right again.
    assert ruled.advance(definition, one).states == {"submitted": 1, "planned": 1}
    assert "which runs in 'us'" in (ruled.activity.outlook().stranded(one) or "")
    workspace.emulator.settle()
    ruled.advance(definition, one)
    status = ruled.advance(definition, one)
    assert status.is_settled
    assert status.submission.outcomes == {"succeeded": 2, "canceled": 2}
    assert_total(workspace, definition, one, 4)
    assert_held(workspace, one)
    assert len(workspace.emulator.books.batches) == 1
    # Rules that allow it: only the rest is asked.
    assert workspace.run(definition, tickets(4)).submission.outcomes == {"succeeded": 4}
    assert len(billed(workspace)) == 4


@pytest.mark.parametrize("is_planned", [False, True], ids=["before the wave is planned", "after the wave is planned"])
def test_answers_land_though_another_wave_is_not_allowed_any_more(workspace, is_planned):
    workspace.emulator.inject(RowFault(containing="number 1?", status_code=503))
    definition, first = labeling(), workspace.engine()
    one = first.plan(definition, tickets(3)).submission_id
    first.submit(definition, one)
    workspace.emulator.settle()
    if is_planned:
        assert first.collect(definition, one).states == {"collected": 1, "planned": 1}
    ruled = workspace.engine(destinations=allowed())
    ruled.advance(definition, one)
    status = ruled.advance(definition, one)
    assert status.is_settled
    assert status.submission.outcomes["succeeded"] == 2
    assert_total(workspace, definition, one, 3)
    assert_held(workspace, one)
    assert len(workspace.emulator.books.batches) == 1


def test_answers_of_a_shard_in_real_time_that_was_not_finished_land_though_the_rest_is_not_allowed_any_more(workspace):
    rows, definition = tickets(3).with_columns(now=True), labeling(realtime=Realtime(urgent="now", concurrency=1))
    turned_away = {"kind": "status", "route": "POST /v1/chat/completions", "status": 429, "retry_after": "3600"}
    workspace.emulator.inject(WireFault(skip=1, times=None, **turned_away))
    first = workspace.engine()
    one = first.plan(definition, rows).submission_id
    first.submit(definition, one)
    workspace.emulator.clear_faults()
    assert first.status(one).states == {"planned": 1}
    assert len(billed(workspace)) == 1
    ruled = workspace.engine(destinations=allowed())
    status = ruled.advance(definition, one)
    assert status.is_settled
    assert status.submission.outcomes == {"succeeded": 1, "canceled": 2}
    assert_total(workspace, definition, one, 3)
    assert_held(workspace, one)
    assert len(billed(workspace)) == 1
