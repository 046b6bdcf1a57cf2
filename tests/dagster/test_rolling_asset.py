"""Rolling thresholds in Dagster: metadata shows their assumptions, and checks show their state and when they broke."""

from __future__ import annotations

import re
from typing import Any, Literal

import dagster as dg
import polars as pl
import pytest
from code_location import BATCH, DAILY, DAYS, CodeLocation, labeled
from pydantic import BaseModel

from dagster_llm_batch import Cascade, Rolling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.testing.emulator import Emulator

TOPICS = ("billing", "bug", "how_to")
ROWS = 60


class SureLabel(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    confidence: float


def answer(body: Any, _url: str) -> Any:
    """Answer one row wrongly and less surely; on the third day, most rows wrongly, with the usual confidence.

    The drawn rows differ from run to run, by the emulator's address. The figures here are far from their limits.
    """
    [(day, number)] = {(int(day), int(number)) for day, number in re.findall(r"day (\d+) number (\d+)", str(body))}
    is_hard = number == 0
    is_wrong = body["model"] == "gpt-4o-mini" and (is_hard or (day == 3 and number % 8 != 1))
    return {"topic": TOPICS[(number + is_wrong) % 3], "confidence": 0.3 if is_hard else 0.9}


def rows(context: Any) -> pl.DataFrame:
    day = int(context.partition_key[-2:])
    numbers = range(4 * ROWS if day == 3 else ROWS)
    return pl.DataFrame(
        {
            "ticket_id": [f"t{day}-{n}" for n in numbers],
            "subject": "",
            "body": [f"day {day} number {n}" for n in numbers],
        }
    )


def rolling(**changes: Any) -> list[dg.AssetsDefinition]:
    cascade = Cascade("openai/gpt-4o", "topic", agreement=0.8, sample=40, calibrate=Rolling(rows=30, audit=0.5))
    usual = {"rows": rows, "model": "openai/gpt-4o-mini", "response": SureLabel, "partitions_def": DAILY}
    return labeled(**{**usual, "cascade": cascade, **changes})


def land(location: CodeLocation, day: str) -> dict[str, dg.AssetCheckEvaluation]:
    """Materialize a partition, and return its check results."""
    location.land(partition=day)
    location.emulator.settle()
    result = location.collect(partition=day)
    assert result.success
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


@pytest.mark.slow
def test_a_threshold_of_earlier_partitions_is_told_and_judged_until_it_means_nothing_any_more(
    instance: dg.DagsterInstance,
) -> None:
    with Emulator(answer=answer) as emulator:
        location = CodeLocation(emulator, instance, *rolling())
        first = land(location, DAYS[0])
        told = location.metadata(partition=DAYS[0])
        assert told["llm_batch/promise_assumes"].startswith("nothing")
        assert (told["llm_batch/rows_sampled"], told["llm_batch/window_partitions"]) == (40, 1)
        second = land(location, DAYS[1])
        told = location.metadata(partition=DAYS[1])
        planned = location.metadata(BATCH, DAYS[1])
        assert f"by 40 rows of {DAYS[0]}" in planned["llm_batch/cascade"]
        for text in (told["llm_batch/promise"], planned["llm_batch/promise"], second["promise"].description):
            assert f"if a value of 'confidence' means in this partition what it meant in {DAYS[0]}:" in (text or "")
        assert told["llm_batch/promise_assumes"].startswith("a value of 'confidence' means")
        assert told["llm_batch/sample_rows"] == 40
        assert told["llm_batch/window_partitions"] == 2
        assert 0 < told["llm_batch/window_disagreement_bound"] < 0.2
        assert told["llm_batch/rows_audit"] + told.get("llm_batch/rows_accepted", 0) <= ROWS
        for name in ("window_agreement", "drift_alarm"):
            assert first[name].passed
            assert second[name].passed
            assert not second[name].blocking
        assert "So the guarantee holds" in (second["window_agreement"].description or "")
        third = land(location, DAYS[2])
        assert not third["drift_alarm"].passed
        assert not third["window_agreement"].passed
        assert third["drift_alarm"].metadata["llm_batch/drift_alarm_at"].value == DAYS[2]
        assert "so the guarantee does not hold" in (third["window_agreement"].description or "")
        fourth = land(location, DAYS[3])
        assert fourth["drift_alarm"].passed
        assert f"The last alarm was at {DAYS[2]}" in (fourth["drift_alarm"].description or "")
        told = location.metadata(BATCH, DAYS[3])
        assert (
            f"they have 0 of 30 rows that the oracle has answered since the alarm of {DAYS[2]}"
            in (told["llm_batch/cascade"])
        )


@pytest.mark.parametrize(
    ("partitions", "words"),
    [
        (None, "has no partitions"),
        (dg.StaticPartitionsDefinition(["a"]), "has a StaticPartitionsDefinition"),
        (dg.DynamicPartitionsDefinition(name="x"), "windows of time"),
        (dg.MultiPartitionsDefinition({"day": DAILY, "kind": dg.StaticPartitionsDefinition(["a"])}), "windows of time"),
        (dg.DailyPartitionsDefinition("01.02.2026", fmt="%d.%m.%Y"), "sort by time as text"),
        (dg.MonthlyPartitionsDefinition("01-2026", fmt="%m-%Y"), "sort by time as text"),
    ],
)
def test_partitions_that_have_no_order_in_time_are_refused_when_they_are_declared(partitions: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rolling(partitions_def=partitions)


@pytest.mark.parametrize(
    "partitions",
    [
        dg.HourlyPartitionsDefinition("2026-01-01-00:00"),
        dg.WeeklyPartitionsDefinition("2026-01-01"),
        dg.MonthlyPartitionsDefinition("2026-01", fmt="%Y-%m"),
        dg.TimeWindowPartitionsDefinition(start="2026-001", fmt="%Y-%j", cron_schedule="0 0 * * *"),
    ],
)
def test_windows_of_time_whose_keys_sort_are_taken(partitions: Any) -> None:
    checks = {spec.name for assets in rolling(partitions_def=partitions) for spec in assets.check_specs}
    assert {"window_agreement", "drift_alarm", "promise"} <= checks
