"""A cascade in Dagster: metadata shows the guarantee, and a blocking check verifies it."""

from __future__ import annotations

import re
from typing import Any, Literal

import dagster as dg
import polars as pl
import pytest
from code_location import BATCH, CodeLocation, failure, labeled
from pydantic import BaseModel

from dagster_llm_batch import Cascade, skew_assets
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.testing.emulator import Emulator, RowFault, WireFault

TOPICS = ("billing", "bug", "how_to")
ROWS = 120


class SureLabel(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    confidence: float


def answer(body: Any, _url: str) -> Any:
    [number] = {int(found) for found in re.findall(r"number (\d+)", str(body))}
    is_wrong = body["model"] == "gpt-4o-mini" and number % 8 == 0
    return {"topic": TOPICS[(number + is_wrong) % 3], "confidence": 0.3 if is_wrong else 0.2 if number % 2 else 0.9}


def rows(_context: Any) -> pl.DataFrame:
    numbers = range(ROWS)
    return pl.DataFrame(
        {"ticket_id": [f"t{n}" for n in numbers], "subject": "", "body": [f"number {n}" for n in numbers]}
    )


def cascading(**promise: Any) -> list[dg.AssetsDefinition]:
    usual = {"oracle": "openai/gpt-4o", "target": "topic", "agreement": 0.9, "sample": 50}
    return labeled(rows=rows, model="openai/gpt-4o-mini", response=SureLabel, cascade=Cascade(**{**usual, **promise}))


@pytest.fixture
def location(instance: dg.DagsterInstance) -> Any:
    with Emulator(answer=answer) as emulator:
        yield CodeLocation(emulator, instance, *cascading())


def checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


@pytest.mark.slow
def test_the_promise_is_told_and_judged(location: CodeLocation) -> None:
    assert location.submit().success
    planned = location.materializations(BATCH)[None].metadata
    assert planned["llm_batch/cascade"].value.startswith("asks openai/gpt-4o for a sample of 50 of 120 rows")
    location.emulator.settle()
    location.collect()
    assert location.collect().success
    location.emulator.settle()
    result = location.collect()
    assert result.success
    told = {name: value.value for name, value in location.materializations()[None].metadata.items()}
    assert told["llm_batch/promise"] == (
        "With a confidence of 95%, at least 90% of the labels agree with openai/gpt-4o on 'topic'."
    )
    assert told["llm_batch/sample_rows"] == 50
    assert 0 < told["llm_batch/disagreement_bound"] <= 0.1
    assert 0 < told["llm_batch/accepted_share"] < 1
    assert told["llm_batch/rows_accepted"] + told["llm_batch/rows_escalated"] + told["llm_batch/rows_sampled"] == ROWS
    assert len(told["llm_batch/calibration_id"]) == 12
    judged = checks(result)
    assert judged["promise"].passed
    assert judged["promise"].blocking
    assert not judged["saves"].blocking
    assert "no valid reply" not in (judged["saves"].description or "")
    assert judged["saves"].passed is (told["llm_batch/oracle_cost_avoided_usd"] >= 0)


def land_after(location: CodeLocation, *faults: Any) -> dict[str, dg.AssetCheckEvaluation]:
    """Materialize the labels with these faults of the oracle in the round after the threshold; return the checks."""
    assert location.submit().success
    location.emulator.settle()
    location.emulator.inject(*faults)
    for _ in range(4):
        judged = checks(location.collect())
        location.emulator.settle()
        if "promise" in judged and location.materializations():
            return judged
    raise AssertionError("nothing has landed")


def test_the_promise_fails_where_the_oracle_does_not_answer(location: CodeLocation) -> None:
    judged = land_after(location, WireFault(kind="status", status=400, route="POST /v1/batches", times=None))
    told = judged["promise"].description or ""
    assert not judged["promise"].passed
    assert re.search(
        r"\d+ rows lack a label, and are outside the guarantee\. At most .* of the \d+ delivered labels .* more than "
        r"the guarantee allows",
        told,
    )


@pytest.mark.slow
def test_the_promise_holds_of_the_labels_that_are_there_where_the_oracle_refuses_a_row(location: CodeLocation) -> None:
    judged = land_after(location, RowFault(containing='"gpt-4o"', status_code=400, times=1))
    told = judged["promise"].description or ""
    assert "1 row lacks a label, and is outside the guarantee. At most" in told
    assert "of the 119 delivered labels are wrong" in told
    assert judged["promise"].passed
    assert told.endswith("so the guarantee holds.")
    assert judged["promise"].metadata["llm_batch/disagreement_bound"].value <= 0.1


@pytest.mark.slow
def test_a_model_that_answers_hardly_anything_is_told_of_though_its_oracle_answers_all(location: CodeLocation) -> None:
    location.emulator.inject(RowFault(containing='"gpt-4o-mini"', status_code=400, times=None))
    judged = land_after(location)
    assert judged["promise"].passed
    assert not judged["saves"].passed
    assert judged["saves"].severity is dg.AssetCheckSeverity.WARN
    told = judged["saves"].description or ""
    assert "For 70 of 70 rows outside the sample (100%), the model has no valid reply, so the oracle was asked." in told


def gold_until(number: int) -> dg.AssetsDefinition:
    @dg.asset(name="ticket_gold", key_prefix="people")
    def ticket_gold() -> pl.DataFrame:
        return pl.DataFrame(
            {"ticket_id": [f"t{n}" for n in range(number)], "topic": [TOPICS[n % 3] for n in range(number)]}
        )

    return ticket_gold


@pytest.mark.parametrize("labeled_rows", [ROWS, ROWS - 20])
def test_a_promise_against_gold_reads_its_asset_and_asks_nothing_where_it_says_nothing_of_a_sampled_row(
    instance: dg.DagsterInstance, labeled_rows: int
) -> None:
    gold, assets = gold_until(labeled_rows), cascading(agreement=0.95, within=0.1, gold="people/ticket_gold")
    with Emulator(answer=answer) as emulator:
        location = CodeLocation(emulator, instance, gold, *assets)
        assert dg.materialize([gold], instance=instance).success
        if labeled_rows < ROWS:
            told = failure(location.submit())
            assert re.search(
                r"Cascade.gold has no 'topic' for \d+ of the 50 rows of 'ticket_labels' .*: 't1\d\d'", told
            )
            assert emulator.books.batches == []
            return
        location.submit()
        for _ in range(3):
            emulator.settle()
            judged = checks(location.collect())
        told = {name: value.value for name, value in location.materializations()[None].metadata.items()}
    assert told["llm_batch/promise"] == (
        "With a confidence of 95%, the labels are right on 'topic' at most 10% of all rows less often than those of "
        "openai/gpt-4o would be, by gold."
    )
    assert judged["promise"].passed
    assert 0 < told["llm_batch/accepted_share"] < 1


@pytest.mark.slow
def test_how_often_the_oracle_agrees_with_itself_is_measured_on_its_sample(instance: dg.DagsterInstance) -> None:
    asked: set[str] = set()

    def fickle(body: Any, url: str) -> Any:
        said = answer(body, url)
        again = str(body["messages"]) in asked
        if body["model"] == "gpt-4o":
            asked.add(str(body["messages"]))
        number = TOPICS.index(said["topic"])
        return {**said, "topic": TOPICS[(number + 1) % 3]} if again and number == 0 else said

    labels = cascading()
    noise = skew_assets(name="oracle_noise", candidates=labels, target="topic", sample_size=None)
    with Emulator(answer=fickle) as emulator:
        location = CodeLocation(emulator, instance, *labels, *noise)
        location.submit()
        for _ in range(2):
            emulator.settle()
            location.collect()
        assert location.run("oracle_noise", "oracle_noise_sample").success
        again = [one for one in emulator.books.executions if one.billed and one.batch_id is None]
    told = location.metadata("oracle_noise")
    assert len(again) == 50
    sampled = location.metadata()["llm_batch/rows_sampled"]
    assert sampled == 50
    assert 0.4 < told[figure_key("agreement", "topic")] < 0.9
