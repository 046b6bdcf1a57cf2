"""Requests in the tier "flex" are billed by the tier that the answer names, and fall back as declared."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from bedrock_workspace import provider as bedrock
from workspace import Workspace, assert_total, billed, labeling, tickets

from dagster_llm_batch.advice.costs import cost_table
from dagster_llm_batch.advice.focus import focus_charges
from dagster_llm_batch.core.cascade import Cascade
from dagster_llm_batch.definition.rules import Budget
from dagster_llm_batch.engine import Limits, Realtime, Resend
from dagster_llm_batch.engine.realtime_sample import answer_now, in_real_time, marked
from dagster_llm_batch.errors import ConfigError, CredentialsError
from dagster_llm_batch.testing.emulator import FlexScript, WireFault

CHAT = "POST /v1/chat/completions"
USUAL: dict[str, Any] = {"model": "openai/gpt-5-nano", "params": {"max_completion_tokens": 50}}


def flexible(*, asset: str = "flexible", resend: Resend | None = None, **realtime: Any) -> Any:
    how = Realtime(**{"urgent": "now", "concurrency": 1, "tier": "flex", **realtime})
    return labeling(**USUAL, asset=asset, realtime=how, resend=resend or Resend())


def urgent(count: int) -> pl.DataFrame:
    return tickets(count).with_columns(pl.lit(True).alias("now"))


def bases(labels: Any) -> Counter[str]:
    return Counter(labels["llm_price_basis"].to_pylist())


def test_flex_costs_half_and_leaves_the_requests_as_they_are(workspace: Workspace) -> None:
    definition = flexible()
    status = workspace.run(definition, urgent(5))
    assert status.submission.outcomes == {"succeeded": 5}
    assert (workspace.emulator.flex.calls, len(billed(workspace))) == (5, 5)
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 5)
    assert bases(labels) == {"tier: flex": 5}
    for row in labels.to_pylist():
        # gpt-5-nano: 0.05 and 0.40 USD per million tokens, and half in flex
        full = (row["llm_input_tokens"] * Decimal("0.05") + row["llm_output_tokens"] * Decimal("0.4")) / 1_000_000
        assert (row["llm_cost_usd"], row["llm_realtime_usd"]) == (full / 2, full)
    plain = labeling(**USUAL, asset="plain", realtime=Realtime(urgent="now"))
    again = workspace.run(plain, urgent(5)).submission
    labels_of_plain, _ = assert_total(workspace, plain, again.submission_id, 5)
    assert labels_of_plain["llm_request_id"].to_pylist() == labels["llm_request_id"].to_pylist()


@pytest.mark.parametrize(
    ("named", "basis"),
    [("default", "realtime"), (None, "realtime"), ("turbo", "unknown: service_tier = turbo"), ("priority", None)],
)
def test_the_bill_follows_the_tier_that_the_answer_names(
    workspace: Workspace, named: str | None, basis: str | None
) -> None:
    workspace.emulator.flex.script = FlexScript(named=named)
    definition = flexible()
    status = workspace.run(definition, urgent(2))
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 2)
    [found] = bases(labels)
    costs = labels["llm_cost_usd"].to_pylist()
    if basis == "realtime":
        assert (found, costs) == (basis, labels["llm_realtime_usd"].to_pylist())
    else:
        # the price book has no such list of this model
        assert found.startswith("unknown")
        assert costs == [None, None]


def test_a_tier_in_odd_words_has_no_price_and_is_shown_in_few_plain_words(workspace: Workspace) -> None:
    definition = flexible()
    for number, named in enumerate(("x" * 5_000, "fl\x1b[31mex\n")):
        workspace.emulator.flex.script = FlexScript(named=named)
        status = workspace.run(definition, tickets(1, start=number).with_columns(now=True), partition=str(number))
        labels, _ = assert_total(workspace, definition, status.submission.submission_id, 1)
        [basis] = bases(labels)
        assert labels["llm_cost_usd"].to_pylist() == [None]
        assert basis.startswith("unknown: service_tier")
        assert len(basis) < 520
        assert basis.isprintable()


def test_what_flex_turns_away_is_asked_at_once_in_the_standard_tier(workspace: Workspace) -> None:
    workspace.emulator.flex.script = FlexScript(turned_away=3)
    definition = flexible()
    status = workspace.run(definition, urgent(5))
    assert (status.submission.outcomes, status.submission.waves) == ({"succeeded": 5}, 1)
    assert (workspace.emulator.flex.calls, len(billed(workspace))) == (5, 5)
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 5)
    assert bases(labels) == {"realtime": 3, "tier: flex": 2}


def test_each_team_is_charged_for_its_own_replies_by_their_tier(workspace: Workspace) -> None:
    """Two namespaces share a ledger. The rows of the second one are only answered in the standard tier."""
    workspace.emulator.flex.script = FlexScript(turned_away=1)
    engines = {name: workspace.engine(name) for name in ("test", "sales")}
    for engine, count in zip(engines.values(), (5, 3), strict=True):
        submission = engine.plan(flexible(), urgent(count))
        engine.submit(flexible(), submission.submission_id)
        assert engine.advance(flexible(), submission.submission_id).is_settled
        workspace.emulator.flex.script = FlexScript(turned_away=1_000)
    found = {}
    for name, engine in engines.items():
        money = engine.ledger.money
        charges, unknown = focus_charges(money.shard_costs(name), name, money.tier_bills(name))
        assert (unknown, {*charges["SubAccountId"].to_pylist()}) == (0, {name})
        total = cost_table(money.shard_costs(name), ["asset"]).total
        assert sum(charges["BilledCost"].to_pylist()) == total.cost_usd
        rows = charges.to_pylist()
        found[name] = {row["SkuPriceId"].rpartition(" real time")[2]: row["x_Requests"] for row in rows}
    assert found == {"test": {"": 1, ", flex": 4}, "sales": {"": 3}}


def test_what_flex_turns_away_goes_into_a_batch_where_that_is_declared(workspace: Workspace) -> None:
    workspace.emulator.flex.script = FlexScript(turned_away=3)
    definition = flexible(otherwise="batch")
    status = workspace.run(definition, urgent(5))
    assert (status.submission.outcomes, status.submission.waves) == ({"succeeded": 5}, 2)
    assert (workspace.emulator.flex.calls, len(billed(workspace))) == (5, 5)
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 5)
    assert Counter(labels["llm_lane"].to_pylist()) == {"batch": 3, "realtime": 2}
    assert bases(labels) == {"batch": 3, "tier: flex": 2}


def test_a_tail_after_the_deadline_is_answered_in_flex(workspace: Workspace) -> None:
    definition = flexible(urgent=None, deadline=timedelta(hours=1))
    submission = workspace.engine().plan(definition, tickets(5))
    workspace.skipped += timedelta(hours=2)
    status = workspace.finish(definition, submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 5}
    labels, _ = assert_total(workspace, definition, submission.submission_id, 5)
    assert bases(labels) == {"tier: flex": 5}


def test_a_rescue_of_a_running_batch_is_answered_in_flex(workspace: Workspace) -> None:
    definition = flexible(urgent=None, deadline=timedelta(hours=6))
    submission = workspace.engine().plan(definition, tickets(5))
    workspace.engine().submit(definition, submission.submission_id)
    workspace.skipped += timedelta(hours=6)
    workspace.engine().advance(definition, submission.submission_id)
    status = workspace.finish(definition, submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 5}
    assert workspace.emulator.flex.calls == len(billed(workspace)) == 5


def test_a_later_step_of_a_chain_is_answered_in_flex(workspace: Workspace) -> None:
    first = labeling(**USUAL, asset="first", keep=["subject", "body"])
    status = workspace.run(first, tickets(4))
    labels, _ = assert_total(workspace, first, status.submission.submission_id, 4)
    rows = pl.DataFrame(labels.select(["ticket_id", "subject", "body"])).with_columns(pl.lit(True).alias("now"))
    second = flexible(asset="second")
    later = workspace.run(second, rows)
    assert later.submission.outcomes == {"succeeded": 4}
    assert workspace.emulator.flex.calls == 4
    assert bases(assert_total(workspace, second, later.submission.submission_id, 4)[0]) == {"tier: flex": 4}


def test_a_pass_that_ends_in_the_middle_keeps_its_answers_and_pays_none_twice(workspace: Workspace) -> None:
    definition = flexible()
    workspace.emulator.inject(WireFault(kind="status", route=CHAT, status=401, skip=3, times=None))
    submission = workspace.engine().plan(definition, urgent(6))
    with pytest.raises(CredentialsError):
        workspace.engine().submit(definition, submission.submission_id)
    assert len(billed(workspace)) == 3
    workspace.emulator.clear_faults()
    status = workspace.finish(definition, submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 6}
    assert len(billed(workspace)) == len(set(billed(workspace))) == 6


def test_a_call_of_unknown_end_is_not_repeated_in_the_standard_tier(workspace: Workspace) -> None:
    workspace.emulator.inject(WireFault(kind="close", route=CHAT, when="after"))
    definition = flexible(otherwise="batch")
    status = workspace.run(definition, urgent(3))
    assert (status.submission.outcomes, status.submission.waves) == ({"succeeded": 3}, 2)
    # the lost answer may be billed, so its request is asked again in a wave of its own, in flex
    assert (workspace.emulator.flex.calls, len(billed(workspace))) == (4, 4)


def test_limits_hold_the_standard_price_for_flex(workspace: Workspace) -> None:
    reserved = []
    for definition in (flexible(), labeling(**USUAL, asset="plain", realtime=Realtime(urgent="now"))):
        workspace.engine().plan(definition, urgent(5))
        preview = workspace.engine().preview(definition, urgent(7))
        reserved.append(preview.bound_usd)
        assert (preview.flex_usd is not None) is (definition.realtime.tier == "flex")
        assert preview.flex_usd is None or preview.flex_usd * 2 == preview.realtime_usd
    assert reserved[0] == reserved[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "openai/gpt-4o"}, r"'openai/gpt-4o'. The price book has no price of 'gpt-4o'.*gpt-5-nano"),
        ({"params": {"service_tier": "auto"}}, "both name a tier"),
        ({"resend": Resend(max_waves=1), "realtime": Realtime(tier="flex", otherwise="batch")}, "needs a retry round"),
        ({"resend": Resend(fallback=["openai/gpt-4.1-mini"])}, r"'openai/gpt-4.1-mini'"),
    ],
)
def test_flex_is_refused_where_the_definition_cannot_have_it(
    workspace: Workspace, changes: dict[str, Any], words: str
) -> None:
    definition = labeling(**{**USUAL, "realtime": Realtime(tier="flex"), **changes})
    with pytest.raises(ConfigError, match=words):
        workspace.engine().plan(definition, tickets(2))


def test_a_limit_refuses_flex_at_an_unknown_price(workspace: Workspace) -> None:
    workspace.providers["bedrock"] = bedrock("http://127.0.0.1:9", "http://127.0.0.1:9", min_requests=1)
    changes: dict[str, Any] = {"model": "bedrock/us.amazon.nova-lite-v1:0", "params": {}, "response": None}
    definition = labeling(**changes, realtime=Realtime(tier="flex"), max_cost_usd=1)
    with pytest.raises(ConfigError, match="in the tier 'flex' is unknown, so max_cost_usd=1 cannot be enforced"):
        workspace.engine().plan(definition, tickets(2))


@pytest.mark.parametrize("asset", [None, "tickets"])
def test_a_budget_of_the_deployment_refuses_flex_at_an_unknown_price(workspace: Workspace, asset: str | None) -> None:
    workspace.providers["bedrock"] = bedrock("http://127.0.0.1:9", "http://127.0.0.1:9", min_requests=1)
    definition = labeling(
        asset="tickets",
        model="bedrock/us.amazon.nova-lite-v1:0",
        params={},
        response=None,
        realtime=Realtime(tier="flex"),
    )
    words = r"in the tier 'flex' is unknown, so the budget of .* for .* per month cannot be enforced.*leave the limit"
    with pytest.raises(ConfigError, match=words):
        workspace.engine(budgets=[Budget(1, "month", asset)]).plan(definition, tickets(2))
    others = workspace.engine(budgets=[Budget(1, "month", "others")])
    others.plan(definition, tickets(2))


def test_flex_falls_back_to_a_batch_only_where_a_small_batch_is_taken(workspace: Workspace) -> None:
    workspace.providers["bedrock"] = bedrock("http://127.0.0.1:9", "http://127.0.0.1:9", min_requests=100)
    changes: dict[str, Any] = {
        "model": "bedrock/us.amazon.nova-lite-v1:0",
        "params": {},
        "response": None,
        "limits": Limits(),
    }
    definition = labeling(**changes, realtime=Realtime(tier="flex", otherwise="batch"))
    with pytest.raises(ConfigError, match="a batch has at least 100 requests"):
        workspace.engine().plan(definition, tickets(2))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"otherwise": "batch"}, "is for tier='flex'"),
        ({"tier": "flex", "otherwise": "batch", "deadline": timedelta(hours=1)}, "contradict each other"),
        ({"tier": "priority"}, "tier='priority'"),
    ],
)
def test_settings_of_flex_that_do_not_go_together_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Realtime(**settings)


def test_a_tier_without_any_room_sends_all_rows_in_a_batch(workspace: Workspace) -> None:
    workspace.emulator.flex.script = FlexScript(turned_away=60)
    definition = flexible(otherwise="batch")
    status = workspace.run(definition, urgent(60))
    assert (status.submission.outcomes, status.submission.waves) == ({"succeeded": 60}, 2)
    assert (workspace.emulator.flex.calls, len(billed(workspace))) == (60, 60)


def test_no_connection_in_flex_is_waited_for_and_not_asked_at_the_full_price(workspace: Workspace) -> None:
    definition, there = flexible(), workspace.providers["openai"]
    planned = workspace.engine().plan(definition, urgent(3)).submission_id
    # Nothing listens there, and a second later the provider is back.
    gone, back = workspace.openai_at("http://127.0.0.1:1/v1", account=there.account), there.respond_flex
    calls = iter([gone.respond_flex])

    def answer_later(line: bytes) -> bytes:
        return next(calls, back)(line)

    there.respond_flex = answer_later
    status = workspace.finish(definition, planned)
    assert (status.submission.outcomes, status.submission.waves) == ({"succeeded": 3}, 1)
    assert bases(assert_total(workspace, definition, planned, 3)[0]) == {"tier: flex": 3}


def test_a_sample_in_real_time_goes_into_no_batch(workspace: Workspace) -> None:
    workspace.emulator.flex.script = FlexScript(turned_away=2)
    definition = in_real_time(flexible(otherwise="batch"), "sample")
    planned = workspace.engine().plan(definition, map(marked, tickets(3).to_arrow().to_batches())).submission_id
    status = answer_now(workspace.engine(), definition, planned)
    assert (status.submission.outcomes, status.submission.waves) == ({"succeeded": 3}, 1)
    assert bases(assert_total(workspace, definition, planned, 3)[0]) == {"realtime": 2, "tier: flex": 1}


def test_a_deadline_that_is_gone_from_the_definition_still_stops_batches(workspace: Workspace) -> None:
    workspace.emulator.flex.script = FlexScript(turned_away=100)
    planned = workspace.engine().plan(flexible(deadline=timedelta(hours=1), urgent=None), tickets(3)).submission_id
    workspace.skipped += timedelta(hours=2)
    status = workspace.finish(flexible(otherwise="batch", urgent=None), planned)
    assert status.submission.outcomes == {"succeeded": 3}
    assert (workspace.emulator.flex.calls, len(billed(workspace))) == (3, 3)


def test_a_cascade_does_not_pay_its_oracle_for_what_flex_turns_away() -> None:
    cascade = Cascade(oracle="openai/gpt-5", target="topic", agreement=0.9, score="urgency", sample=60)
    how = Realtime(urgent="now", tier="flex", otherwise="batch")
    with pytest.raises(ConfigError, match=r"does not go with cascade.*would be paid at openai/gpt-5"):
        labeling(**USUAL, cascade=cascade, realtime=how)
