"""Providers by names of the user's own: accounts of one vendor are kept apart, and one steps in for another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any

import pytest

from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Fallback, Limits, Resend
from dagster_llm_batch.errors import ConfigError, ProviderError, TransientError
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.states import Reason
from dagster_llm_batch.testing.emulator import BatchFault, Emulator, RowFault, WireFault
from tests.engine.workspace import Workspace, assert_total, labeling, tickets

US, EU = "sk-of-the-us-account-0001", "sk-of-the-eu-account-0002"
CREATE = "POST /v1/batches"


@pytest.fixture
def workspace(tmp_path: Any) -> Iterator[Workspace]:
    """Yield a workspace with two accounts of one vendor at one address, and Claude."""
    with Emulator(keys={US: "us", EU: "eu"}) as emulator:
        made = Workspace(tmp_path, emulator)
        made.providers = {
            "openai_us": made.openai(api_key=US, name="openai_us"),
            "openai_eu": made.openai(api_key=EU, name="openai_eu"),
            "claude": AnthropicProvider(EU, emulator.anthropic_base_url, name="claude"),  # type: ignore[dict-item]
        }
        yield made


def asked(workspace: Workspace, submission_id: str) -> list[tuple[str, str]]:
    """Return the provider of each shard in order, and the account that has its batch."""
    accounts = {batch.id: batch.account for batch in workspace.emulator.books.batches}
    shards = workspace.engine().ledger.shards.of_submission(submission_id)
    return [(shard.provider, accounts.get(shard.batch.batch_id or "", "none")) for shard in shards]


def test_two_accounts_of_one_vendor_are_kept_apart(workspace: Workspace) -> None:
    us, eu = labeling(model="openai_us/gpt-4o"), labeling(model="openai_eu/gpt-4o", asset="labels_eu")
    engine = workspace.engine()
    assert engine.deployment.configuration(us) != engine.deployment.configuration(eu)
    statuses = [workspace.run(definition, tickets(3)) for definition in (us, eu)]
    ids = [status.submission.submission_id for status in statuses]
    assert [asked(workspace, one) for one in ids] == [[("openai_us", "us")], [("openai_eu", "eu")]]
    assert [status.submission.provider for status in statuses] == ["openai_us", "openai_eu"]
    labels, _ = assert_total(workspace, eu, ids[1], 3)
    assert set(labels["llm_provider"].to_pylist()) == {"openai_eu"}


def test_an_account_under_another_name_is_asked_anew(workspace: Workspace) -> None:
    """Both have the same address, so the same account text: only the name shows that another key was meant."""
    first = workspace.run(labeling(model="openai_us/gpt-4o"), tickets(3))
    second = workspace.run(labeling(model="openai_eu/gpt-4o"), tickets(3))
    assert first.submission.account == second.submission.account
    assert (second.submission.reused, len(workspace.emulator.books.executions)) == (0, 6)


def test_a_create_call_whose_answer_was_lost_is_looked_for_in_its_own_account(workspace: Workspace) -> None:
    workspace.emulator.inject(WireFault(kind="close", route=CREATE, when="after"))
    status = workspace.run(labeling(model="openai_eu/gpt-4o"), tickets(3))
    assert status.submission.outcomes == {"succeeded": 3}
    assert asked(workspace, status.submission.submission_id) == [("openai_eu", "eu")]
    assert len(workspace.emulator.books.batches) == 1


def test_no_accounts_key_is_in_what_its_provider_says(workspace: Workspace) -> None:
    """Use keys that do not look like keys."""
    for name, key in (("plain_a", "0123456789-of-account-a"), ("plain_b", "0123456789-of-account-b")):
        said = WireFault(kind="status", route="GET *", status=400, message=f"no batch for {key}", times=1)
        with Emulator(keys={key: name}, faults=[said]) as emulator:
            provider = workspace.openai_at(emulator.openai_base_url, api_key=key, name=name)
            workspace.providers[name] = provider
            with pytest.raises(ProviderError) as refused:
                workspace.engine().provider(name).poll(["batch_1"])
            assert "no batch for ***" in str(refused.value)
            assert key not in f"{refused.value} {provider!r}"


def test_a_queue_limit_holds_for_its_name_alone(workspace: Workspace) -> None:
    limits = {"openai_us": QueueLimit(max_batches=1), "openai_eu/gpt-4o": QueueLimit(max_batches=2)}
    engine = workspace.engine(queue_limits=limits)
    for name, flying in (("openai_us", 1), ("openai_eu", 2)):
        definition = labeling(model=f"{name}/gpt-4o", asset=name, limits=Limits(max_requests_per_batch=2))
        submission = engine.plan(definition, tickets(6))
        assert engine.submit(definition, submission.submission_id).states == {
            "submitted": flying,
            "planned": 3 - flying,
        }


def take_down(workspace: Workspace, until: ExitStack) -> None:
    gone = WireFault(kind="status", status=503, retry_after="0.01", times=None)
    down = until.enter_context(Emulator(keys={US: "us"}, faults=[gone]))
    workspace.providers["openai_us"] = workspace.openai_at(down.openai_base_url, api_key=US, name="openai_us")


def fill_queue(workspace: Workspace, _until: ExitStack) -> None:
    workspace.emulator.inject(BatchFault(kind="fails", batches=[0]))
    full = WireFault(kind="status", route=CREATE, skip=1, status=400, code="token_limit_exceeded", message="full")
    workspace.emulator.inject(full)


def refuse_rows(workspace: Workspace, _until: ExitStack) -> None:
    workspace.emulator.inject(RowFault(status_code=400, code="content_filter", batches=[0]))


@pytest.mark.parametrize("fault", [take_down, fill_queue, refuse_rows])
@pytest.mark.parametrize("instead", [Fallback("openai_eu/gpt-4o-mini"), Fallback("claude/claude-haiku-4-5")])
def test_another_provider_steps_in_under_its_own_name(workspace: Workspace, fault: Any, instead: Fallback) -> None:
    resend = Resend(fallback=[instead], fallback_after=timedelta(minutes=30))
    definition = labeling(model="openai_us/gpt-4o", resend=resend)
    with ExitStack() as until:
        fault(workspace, until)
        engine = workspace.engine()
        submission_id = engine.plan(definition, tickets(1)).submission_id
        for _ in range(12):
            with suppress(TransientError):  # the next run tries again
                engine.advance(definition, submission_id)
            workspace.emulator.settle()
            workspace.skipped += timedelta(hours=1)
            engine = workspace.engine()
    status = engine.status(submission_id)
    assert status.is_settled
    given_up = {shard.reason_kind for shard in status.shards if shard.reason_kind in (Reason.LATE, Reason.NEXT_MODEL)}
    assert given_up == (set() if fault is refuse_rows else {Reason.NEXT_MODEL})
    [row] = engine.labels(definition, submission_id).labels.to_pylist()
    assert row["llm_provider"] == instead.model.partition("/")[0]
    assert asked(workspace, submission_id)[-1] == (row["llm_provider"], "eu")
    assert [one.account for one in workspace.emulator.books.executions if one.billed] == ["eu"]


def test_a_rule_of_the_kind_holds_under_any_name_before_anything_is_sent(workspace: Workspace) -> None:
    definition = labeling(params={}, resend=Resend(fallback=["claude/claude-haiku-4-5"]), model="openai_us/gpt-4o")
    with pytest.raises(ConfigError, match="max_tokens"):
        workspace.engine().plan(definition, tickets(3))
    assert workspace.emulator.books.calls == []


def test_a_wrong_name_is_told_with_those_that_there_are_and_the_nearest(workspace: Workspace) -> None:
    with pytest.raises(ConfigError) as wrong:
        workspace.engine().plan(labeling(model="claud/gpt-4o"), tickets(1))
    assert str(wrong.value) == (
        "No provider 'claud' is configured; configured: claude, openai_eu, openai_us. Did you mean 'claude'?"
    )
    with pytest.raises(ConfigError, match=r"Add it to LLMBatchResource\(providers=\{'zebra': \.\.\.\}\)"):
        workspace.engine().plan(labeling(model="zebra/gpt-4o"), tickets(1))
    with pytest.raises(
        ConfigError, match=r"Add it to LLMBatchResource\(providers=\{'groq': preset\('groq', \.\.\.\)\}\)"
    ):
        workspace.engine().plan(labeling(model="groq/gpt-oss"), tickets(1))
