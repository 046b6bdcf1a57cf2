"""What labeling has cost, from a real ledger that real runs over the emulated provider have written."""

from __future__ import annotations

from decimal import Decimal

import dagster as dg
from code_location import DAILY, DAYS, LABELS, CodeLocation, labeled

from dagster_llm_batch import cost_assets


def stored(location: CodeLocation):
    return location.defs.load_asset_value("llm_costs", instance=location.instance)


def test_every_submission_is_a_row_with_what_it_has_cost(make):
    location = make(*labeled(partitions_def=DAILY), *cost_assets(name="llm_costs"))
    for day in DAYS[:2]:
        assert location.land(partition=day).success
    assert location.run("llm_costs").success
    rows = stored(location).to_pylist()
    assert [(row["dataset"], row["partition"], row["state"], row["requests"]) for row in rows] == [
        (LABELS, DAYS[0], "settled", 3),
        (LABELS, DAYS[1], "settled", 3),
    ]
    for row in rows:
        shown = location.metadata(partition=row["partition"])
        assert row["cost_usd"] == Decimal(str(shown["llm_batch/cost_usd"])).quantize(Decimal("1e-12"))
        assert row["realtime_usd"] == 2 * row["cost_usd"] > 0
        assert row["submitted_at"] <= row["settled_at"]
    said = location.metadata("llm_costs")
    assert said["llm_batch/cost_usd"] == float(sum(row["cost_usd"] for row in rows))
    assert "| ticket\\_labels | openai/gpt-4o | 2 | 6 |" in said["llm_batch/costs"]
    assert "![costs by day](data:image/png;base64," in said["llm_batch/costs"]


def test_what_is_under_way_is_a_row_without_a_cost(make):
    location = make(*labeled(), *cost_assets(name="llm_costs"))
    assert location.submit().success
    assert location.run("llm_costs").success
    [row] = stored(location).to_pylist()
    assert (row["state"], row["cost_usd"], row["partition"]) == ("open", None, "")
    said = location.metadata("llm_costs")
    assert said["llm_batch/submissions_without_cost"] == 1
    assert said["llm_batch/costs"] == "No costs are known yet."


def test_only_the_datasets_that_are_named_count_and_are_its_lineage(make):
    mails = labeled(name="mails")
    location = make(*labeled(), *mails, *cost_assets(name="llm_costs", candidates=[mails]))
    assert location.land().success
    assert location.run("mails_batch").success
    assert location.run("llm_costs").success
    assert [row["dataset"] for row in stored(location).to_pylist()] == ["mails"]
    [asset] = [one for one in location.defs.assets if dg.AssetKey("llm_costs") in one.keys]
    assert [dep.asset_key.to_user_string() for spec in asset.specs for dep in spec.deps] == ["mails"]


def test_an_empty_ledger_is_an_empty_table(make):
    location = make(*labeled(), *cost_assets(name="llm_costs"))
    assert location.run("llm_costs").success
    assert len(stored(location)) == 0
