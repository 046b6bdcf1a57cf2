"""Costs of labeling, from a real ledger that real runs over the emulated provider have written."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from code_location import DAILY, DAYS, LABELS, CodeLocation, labeled

from dagster_llm_batch import Budget, cost_assets
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.costs import CHECK
from dagster_llm_batch.storage.ledger.batch_rows import shard_row, store_batches
from dagster_llm_batch.storage.ledger.schema import BILL, SHARD_ROW, to_row
from dagster_llm_batch.text import money_text

TODAY = datetime.now(UTC).date()


def stored(location: CodeLocation, **where: Any):
    return location.defs.load_asset_value("llm_costs", instance=location.instance, **where)


def check(location: CodeLocation, partition: str | None = None):
    result = location.run("llm_costs", partition=partition)
    assert result.success
    [evaluation] = result.get_asset_check_evaluations()
    assert evaluation.check_name == CHECK
    return evaluation


@pytest.mark.slow
def test_each_group_is_a_row_with_what_it_has_cost(make):
    location = make(
        *labeled(partitions_def=DAILY, tags={"team": "support"}),
        *cost_assets(name="llm_costs", by=["partition", "day", "model", "tag:team"]),
    )
    for day in DAYS[:2]:
        assert location.land(partition=day).success
    assert location.run("llm_costs").success
    table = stored(location)
    assert table.column_names[:4] == ["label_partition", "day", "model", "tag_team"]
    rows = table.to_pylist()
    assert [(row["label_partition"], row["day"], row["tag_team"], row["requests"]) for row in rows] == [
        (DAYS[0], TODAY, "support", 3),
        (DAYS[1], TODAY, "support", 3),
    ]
    for row in rows:
        shown = location.metadata(partition=row["label_partition"])
        assert row["cost_usd"] == Decimal(str(shown["llm_batch/cost_usd"])).quantize(Decimal("1e-12"))
        assert row["realtime_usd"] == 2 * row["cost_usd"] > 0
        assert (row["saved_usd"], row["wasted_usd"], row["requests_unknown"]) == (row["cost_usd"], 0, 0)
        assert row["input_tokens"] == shown["llm_batch/input_tokens"]
    said = location.metadata("llm_costs")
    assert said["llm_batch/cost_usd"] == float(sum(row["cost_usd"] for row in rows))
    assert "| ticket\\_labels | openai/gpt-4o | 2 | 6 |" in said["llm_batch/costs"]
    assert "![costs by day](data:image/png;base64," in said["llm_batch/costs"]
    assert "no forecast: 0 complete days are too few, 14 are needed" in said["llm_batch/costs"]
    assert "llm_batch/month_expected_usd" not in said


def test_what_is_under_way_is_expected_and_has_no_cost_yet(make):
    location = make(*labeled(), *cost_assets(name="llm_costs"))
    assert location.submit().success
    assert location.run("llm_costs").success
    [row] = stored(location).to_pylist()
    assert (row["asset"], row["cost_usd"], row["open_requests"]) == (LABELS, 0, 3)
    said = location.metadata("llm_costs")
    assert said["llm_batch/open_usd"] == float(row["open_usd"]) > 0
    assert "llm_batch/cost_usd" not in said
    assert said["llm_batch/costs"].startswith("No costs are known yet.")


@pytest.mark.slow
def test_only_the_datasets_that_are_named_count_and_are_its_lineage(make):
    mails = labeled(name="mails")
    location = make(*labeled(), *mails, *cost_assets(name="llm_costs", candidates=[mails]))
    assert location.land().success
    assert location.run("mails_batch").success
    assert location.run("llm_costs").success
    assert [row["asset"] for row in stored(location).to_pylist()] == ["mails"]
    [asset] = [one for one in location.defs.assets if dg.AssetKey("llm_costs") in one.keys]
    assert [dep.asset_key.to_user_string() for spec in asset.specs for dep in spec.deps] == ["mails"]


def test_an_empty_ledger_is_an_empty_table(make):
    location = make(*labeled(), *cost_assets(name="llm_costs"))
    assert "no limit is set" in str(check(location).description)
    assert len(stored(location)) == 0


@pytest.mark.slow
def test_a_partition_of_time_has_what_was_sent_within_it(make):
    daily = dg.DailyPartitionsDefinition(str(TODAY - timedelta(days=2)), end_offset=1)
    labels = labeled(partitions_def=DAILY)
    location = make(
        *labels, *cost_assets(name="llm_costs", candidates=[labels], by=["partition"], partitions_def=daily)
    )
    assert location.land(partition=DAYS[0]).success
    for day, requests in ((TODAY, [3]), (TODAY - timedelta(days=1), [])):
        assert check(location, str(day)).passed
        table = stored(location, partition_key=str(day))
        assert table["requests"].to_pylist() == requests
        assert table["partition"].to_pylist() == [str(day)] * len(requests)
        assert table["label_partition"].to_pylist() == [DAYS[0]] * len(requests)
    with pytest.raises(ConfigError, match="Give partitions of time"):
        cost_assets(name="llm_costs", partitions_def=dg.StaticPartitionsDefinition(["a"]))


def add_days(location: CodeLocation, days: int) -> None:
    """Change the ledger as if today's batch had been sent, at the same cost, on each of the last days."""
    ledger = location.engine().ledger
    [submission] = ledger.submissions.list_all("default")
    [shard] = ledger.shards.of_submission(submission.submission_id)
    of, now = shard.batch, datetime.now(UTC)
    days_before = {n: now - timedelta(days=n) for n in range(1, days + 1)}
    shards = {
        n: replace(
            shard, shard_id=f"d{n}", number=n, batch=replace(of, batch_key=f"d{n}-1", batch_id=f"b{n}", sent_at=at)
        )
        for n, at in days_before.items()
    }
    with ledger._database.write() as connection:
        store_batches(connection, shards.values())
        rows = [{**shard_row(one), "planned_at": days_before[n]} for n, one in shards.items()]
        connection.execute(sa.insert(SHARD_ROW), rows)
        bill = to_row(shard.bill)
        connection.execute(sa.insert(BILL), [{**bill, "shard_id": f"d{n}"} for n in range(1, days + 1)])
    ledger.close()


@pytest.mark.slow
def test_the_check_says_when_the_month_will_be_over_a_limit(make):
    labels = labeled()
    location = make(*labels, *cost_assets(name="llm_costs"))
    assert location.land().success
    paid = Decimal(str(location.metadata()["llm_batch/cost_usd"]))

    def judged(budgets=(), **options: Any) -> tuple[bool, str]:
        found = check(make(*labels, *cost_assets(name="llm_costs", **options), budgets=list(budgets)))
        assert found.severity is dg.AssetCheckSeverity.WARN
        return found.passed, str(found.description)

    def budget(times: float, **which: Any) -> Budget:
        return Budget(max_usd=float(paid) * times, **which)

    # With too few days, the check compares the cost so far.
    assert judged(max_month_usd=paid * 2)[0]
    passed, told = judged(max_month_usd=paid / 2)
    assert (passed, f"over the limit of {money_text(paid / 2)}" in told) == (False, True)
    assert judged([budget(2), budget(0.5, period="ever"), budget(0.5, asset="others")], candidates=[labels])[0]
    passed, told = judged([budget(2), budget(0.5, asset=LABELS)])
    assert (passed, f"over the budget of {money_text(paid / 2)} for '{LABELS}'" in told) == (False, True)
    assert judged([budget(0.5)], max_month_usd=paid * 2)[0]
    # With enough days, it compares the expected cost of the whole month: the same cost each day.
    add_days(location, 20)
    month = TODAY.replace(day=1)
    length = ((month + timedelta(days=31)).replace(day=1) - month).days
    expected = paid * (length - max((TODAY - month).days - 20, 0))
    assert judged(max_month_usd=expected * Decimal("1.01"))[0]
    passed, told = judged(max_month_usd=expected * Decimal("0.99"))
    assert (passed, f"{money_text(expected)} expected, with 90 % between" in told) == (False, True)
    assert location.metadata("llm_costs")["llm_batch/month_expected_usd"] == pytest.approx(float(expected), rel=1e-2)


@pytest.mark.slow
def test_with_the_columns_of_focus_each_batch_is_a_row(make):
    location = make(
        *labeled(partitions_def=DAILY, tags={"team": "support"}), *cost_assets(name="llm_costs", layout="focus")
    )
    for day in DAYS[:2]:
        assert location.land(partition=day).success
    assert check(location).passed
    rows = stored(location).to_pylist()
    assert [(row["x_Partition"], row["ServiceName"], row["x_Requests"]) for row in rows] == [
        (DAYS[0], "OpenAI API", 3),
        (DAYS[1], "OpenAI API", 3),
    ]
    assert location.metadata("llm_costs")["llm_batch/cost_usd"] == float(sum(row["BilledCost"] for row in rows))


def test_other_layouts_are_refused():
    with pytest.raises(ConfigError, match="layout"):
        cost_assets(name="llm_costs", layout="focused")
