"""Rows go only where the deployment allows it, also those that were planned before its rules or settings changed."""

from __future__ import annotations

import pytest
from workspace import labeling, tickets

from dagster_llm_batch.definition.destinations import AllowedDestinations
from dagster_llm_batch.engine import Realtime, Resend
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.states import ShardState
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
