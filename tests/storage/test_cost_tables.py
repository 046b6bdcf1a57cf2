"""The table of costs on both ledgers, against a bill computed here by hand from the emulator's answers.

There are five tickets; one is asked twice and one three times, the last time by a fallback. There are also mails with a
cost reported by the vendor, an abandoned batch, and one in flight.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dagster_llm_batch.advice.costs import GROUPS, CostSum, cost_table
from dagster_llm_batch.advice.focus import focus_charges
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling, Resend
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, Reply, RowFault
from dagster_llm_batch.testing.emulator.answers import last_user_text
from tests.statements import statements

FIRST = datetime(2026, 11, 3, 9, tzinfo=UTC)
TOPIC = {"type": "object", "properties": {"topic": {"enum": ["bug"]}}, "required": ["topic"]}
# USD for a million tokens in a batch; in real time twice as much.
NANO = {"fresh": Decimal("0.025"), "read": Decimal("0.0025"), "out": Decimal("0.20")}
MINI = {"fresh": Decimal("0.075"), "read": Decimal("0.0375"), "out": Decimal("0.30")}
RESEND = Resend(max_waves=2, invalid_waves=2, fallback=["openai/gpt-4o-mini"])


def usd(prices: dict[str, Decimal], fresh: int, out: int, read: int = 0) -> Decimal:
    return (fresh * prices["fresh"] + read * prices["read"] + out * prices["out"]) / 1_000_000


def labels(asset: str, model: str, **more: Any) -> Labeling:
    prompt = Prompt(user="{{ text }}")
    return Labeling(asset=asset, model=model, key="id", prompt=prompt, response=TOPIC, params={}, **more)


class SmallDeployment:
    """A deployment with a stopped clock; the emulator answers ticket `n` wrong as often as `wrong` has it."""

    def __init__(self, ledger_url: str, folder: Path) -> None:
        self.now = FIRST
        self.wrong = Counter({"ticket 3": 1, "ticket 4": 2})
        self.emulator = Emulator(answer=self._answer).__enter__()
        self.ledger = Ledger(ledger_url, lambda: self.now)
        provider = OpenAIProvider(DEFAULT_KEY, self.emulator.openai_base_url, timeout_seconds=5)
        payloads = PayloadStore(str(folder / "payloads"))
        self.engine = Engine(Deployment({"openai": provider}, self.ledger, payloads, "test", clock=lambda: self.now))

    def _answer(self, body: dict[str, Any], _endpoint: str) -> Reply:
        text = last_user_text(body)
        number = int(text.split()[1])
        is_wrong, is_mail = self.wrong[text] > 0, text.startswith("mail")
        self.wrong[text] -= 1
        return Reply(
            text="?" if is_wrong else json.dumps({"topic": "bug"}),
            input_tokens=1_000 + number,
            output_tokens=100,
            cached_tokens=400 if text == "ticket 0" else 0,
            cost_usd=0.0002 if is_mail else None,
        )

    def send(self, definition: Labeling, texts: list[str], partition: str = "") -> str:
        rows = pa.table({"id": texts, "text": texts})
        submission_id = self.engine.plan(definition, rows, partition=partition).submission_id
        self.engine.submit(definition, submission_id)
        return submission_id

    def land(self, definition: Labeling, texts: list[str], partition: str = "") -> None:
        submission_id = self.send(definition, texts, partition)
        while not self.engine.status(submission_id).is_settled:
            self.emulator.settle()
            self.now += timedelta(days=1)  # each wave is sent on another day
            self.engine.advance(definition, submission_id)

    def close(self) -> None:
        self.ledger.close()
        self.emulator.__exit__(None, None, None)


@pytest.fixture
def deployment(ledger_url: str, tmp_path: Path) -> Iterator[SmallDeployment]:
    deployment = SmallDeployment(ledger_url, tmp_path)
    tickets = labels("tickets", "openai/gpt-5-nano", resend=RESEND, tags={"team": "support", "cost_center": "7"})
    deployment.land(tickets, [f"ticket {n}" for n in range(5)], "2026-11-03")
    deployment.land(labels("mails", "openai/gpt-4o-mini"), ["mail 7", "mail 8"])
    lost = labels("lost", "openai/gpt-5-nano", tags={"team": "support"})
    given_up = deployment.send(lost, ["thing 1", "thing 2"])
    [shard] = deployment.ledger.shards.of_submission(given_up)
    deployment.engine.give_up(shard.shard_id)
    assert deployment.engine.advance(lost, given_up).is_settled
    deployment.send(labels("open", "openai/gpt-5-nano"), ["thing 3"])
    yield deployment
    deployment.close()


def table(deployment: SmallDeployment, *by: str, **limits: Any) -> dict[tuple[str, ...], CostSum]:
    summed = cost_table(deployment.ledger.money.shard_costs("test", **limits), by)
    assert sum(part.requests for part in summed.groups.values()) == summed.total.requests
    known = [part.cost_usd for part in summed.groups.values() if part.cost_usd is not None]
    assert sum(known, Decimal(0)) == (summed.total.cost_usd or 0)
    return {**summed.groups, ("total",): summed.total}


def test_an_answer_that_comes_late_to_what_was_asked_again_is_waste(deployment: SmallDeployment) -> None:
    """Abandon three rows, and ask two of them again; one of these gets no label."""
    definition = labels("late", "openai/gpt-5-nano")
    first = deployment.send(definition, ["late 1", "late 2", "late 3"])
    [shard] = deployment.ledger.shards.of_submission(first)
    deployment.engine.give_up(shard.shard_id)
    deployment.engine.advance(definition, first)
    deployment.now += timedelta(hours=1)
    again_is = len(deployment.emulator.books.batches)
    deployment.emulator.inject(RowFault(containing="late 2", status_code=400, batches={again_is}))
    rows = pa.table({"id": ["late 1", "late 2"], "text": ["late 1", "late 2"]})
    again = deployment.engine.plan(definition, rows, partition="", again=True).submission_id
    deployment.engine.submit(definition, again)
    deployment.emulator.settle()
    deployment.now += timedelta(hours=1)
    assert deployment.engine.advance(definition, again).is_settled
    deployment.engine.poll_awaited(["late"], deployment.now)
    deployment.engine.advance(definition, first)
    part = table(deployment, "asset")["late",]
    assert part.cost_usd == usd(NANO, 1_001, 100) + usd(NANO, 3_006, 300)
    assert part.wasted_usd == part.invalid_usd == usd(NANO, 1_001, 100)


def test_every_part_of_the_bill_is_what_it_is_by_hand(deployment: SmallDeployment) -> None:
    first = usd(NANO, 600, 100, read=400) + sum(usd(NANO, 1_000 + n, 100) for n in range(1, 5))
    second = usd(NANO, 1_003, 100) + usd(NANO, 1_004, 100)
    third = usd(MINI, 1_004, 100)
    mails = usd(MINI, 1_007, 100) + usd(MINI, 1_008, 100)
    by_day = table(deployment, "asset", "day")
    assert [key for key in by_day if key[0] == "tickets"] == [("tickets", f"2026-11-0{n}") for n in (3, 4, 5)]
    for key, cost, wasted in (
        (("tickets", "2026-11-03"), first, ("invalid_usd", usd(NANO, 1_003, 100) + usd(NANO, 1_004, 100))),
        (("tickets", "2026-11-04"), second, ("retries_usd", usd(NANO, 1_004, 100))),
        (("tickets", "2026-11-05"), third, ("retries_usd", Decimal(0))),
        (("mails", "2026-11-06"), mails, ("invalid_usd", Decimal(0))),
    ):
        part = by_day[key]
        assert (part.cost_usd, part.realtime_usd, part.saved_usd) == (cost, 2 * cost, cost)
        assert getattr(part, wasted[0]) == part.wasted_usd == wasted[1]
    total = by_day["total",]
    assert total.cost_usd == first + second + third + mails
    assert (total.requests, total.requests_again) == (5 + 2 + 1 + 2 + 2 + 1, 3)
    billed = [execution for execution in deployment.emulator.books.executions if execution.billed]
    assert total.input_tokens == sum(execution.input_tokens for execution in billed)
    assert total.output_tokens == sum(execution.output_tokens for execution in billed) == 1_000
    assert total.cached_tokens == 400
    assert (by_day["mails", "2026-11-06"].reported_usd, total.reported_of_usd) == (Decimal("0.0004"), mails)
    assert by_day["tickets", "2026-11-03"].reported_usd is None


def test_what_nobody_knows_is_counted_and_is_no_amount(deployment: SmallDeployment) -> None:
    groups = table(deployment, "asset")
    lost, flying = groups["lost",], groups["open",]
    [submission] = deployment.ledger.submissions.of_partition("test", "lost")
    assert (lost.requests_unknown, lost.lost_usd) == (2, submission.estimated_usd)
    for name in ("cost_usd", "realtime_usd", "saved_usd", "wasted_usd", "input_tokens"):
        assert getattr(lost, name) is None, name
    [submission] = deployment.ledger.submissions.of_partition("test", "open")
    assert (flying.open_usd, flying.open_requests, flying.open_unknown) == (submission.estimated_usd, 1, 0)
    assert (flying.cost_usd, flying.requests_unknown) == (0, 0)
    assert groups["total",].requests_unknown == 2


def test_what_nobody_can_expect_is_no_zero_either(deployment: SmallDeployment) -> None:
    costs = [cost._replace(estimated_usd=None) for cost in deployment.ledger.money.shard_costs("test")]
    groups = cost_table(costs, ["asset"]).groups
    assert (groups["lost",].lost_usd, groups["lost",].requests_unknown) == (None, 2)
    assert (groups["open",].open_usd, groups["open",].open_unknown) == (None, 1)


def test_groups_are_those_that_are_asked_for(deployment: SmallDeployment) -> None:
    keys = {name: [key[0] for key in table(deployment, name) if key != ("total",)] for name in GROUPS}
    assert keys == {
        "asset": ["lost", "mails", "open", "tickets"],
        "partition": ["", "2026-11-03"],
        "provider": ["openai"],
        "model": ["openai/gpt-4o-mini", "openai/gpt-5-nano"],
        "day": ["2026-11-03", "2026-11-04", "2026-11-05", "2026-11-06", "2026-11-07"],
        "month": ["2026-11"],
        "tag": ["", "cost_center=7, team=support", "team=support"],
    }
    teams = table(deployment, "tag:team")
    assert [key[0] for key in teams] == ["", "support", "total"]
    assert teams["support",].cost_usd == table(deployment, "asset")["tickets",].cost_usd
    # The cost of a fallback is counted for the fallback's model.
    assert table(deployment, "asset", "model")["tickets", "openai/gpt-4o-mini"].cost_usd == usd(MINI, 1_004, 100)
    within = table(deployment, "day", since=datetime(2026, 11, 4, tzinfo=UTC), until=datetime(2026, 11, 5, tzinfo=UTC))
    assert [key[0] for key in within] == ["2026-11-04", "total"]
    assert [key[0] for key in table(deployment, "asset", assets=["mails"])] == ["mails", "total"]
    with pytest.raises(ConfigError, match="did you mean 'asset'"):
        cost_table([], ["aset"])


def test_a_table_takes_one_look_at_the_ledger_and_none_at_stored_results(
    deployment: SmallDeployment, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "payloads")
    with statements() as looks:
        assert table(deployment, "asset", "model", "day", "tag:team")["total",].requests == 13
    assert sum("shard" in look for look in looks) == 1


# https://focus.finops.org/focus-specification/v1-0/: columns that may not be null
NOT_NULL = (
    "BilledCost",
    "BillingAccountId",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
    # In charges of usage, these too.
    "ChargeFrequency",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedUnitPrice",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "SkuId",
    "SkuPriceId",
)


def test_charges_sum_up_to_what_cost_shows_and_name_where_each_is_from(deployment: SmallDeployment) -> None:
    costs = deployment.ledger.money.shard_costs("test")
    charges, unknown = focus_charges(costs, "test", {})
    total = cost_table(costs, ["asset"]).total
    assert total.cost_usd is not None
    assert sum(charges["BilledCost"].to_pylist()) == total.cost_usd
    assert charges["BilledCost"] == charges["EffectiveCost"] == charges["ListCost"] == charges["ContractedCost"]
    # The cost of an abandoned batch is unknown, and an open batch has none yet.
    assert unknown == total.requests_unknown == 2
    assert set(charges["x_Asset"].to_pylist()) == {"tickets", "mails"}
    assert [name for name in NOT_NULL if charges[name].null_count] == []
    rows = charges.to_pylist()
    ticket = next(row for row in rows if row["x_Asset"] == "tickets" and row["x_Requests"] == 5)
    assert ticket["BillingPeriodStart"] == datetime(2026, 11, 1, tzinfo=UTC)
    assert ticket["BillingPeriodEnd"] == datetime(2026, 12, 1, tzinfo=UTC)
    assert ticket["ChargePeriodStart"] == datetime(2026, 11, 3, tzinfo=UTC)
    assert ticket["ChargePeriodEnd"] == datetime(2026, 11, 4, tzinfo=UTC)
    assert (ticket["ProviderName"], ticket["PublisherName"], ticket["ServiceName"]) == (
        "OpenAI",
        "OpenAI",
        "OpenAI API",
    )
    assert (ticket["SubAccountId"], ticket["ResourceName"], ticket["SkuId"]) == ("test", "tickets", "openai/gpt-5-nano")
    assert ticket["ResourceId"].startswith("batch_")
    assert json.loads(ticket["Tags"]) == {
        "team": "support",
        "cost_center": "7",
        "llm_batch/namespace": "test",
        "llm_batch/asset": "tickets",
        "llm_batch/partition": "2026-11-03",
    }
    assert ticket["ConsumedQuantity"] == ticket["x_InputTokens"] + ticket["x_OutputTokens"]
    assert abs(ticket["ListUnitPrice"] * ticket["PricingQuantity"] - ticket["ListCost"]) < Decimal("1e-8")
    # The vendor's reported cost is next to our price.
    mail = next(row for row in rows if row["x_Asset"] == "mails")
    assert mail["x_ReportedCost"] == Decimal("0.0004") != mail["BilledCost"]
