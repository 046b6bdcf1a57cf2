"""Gold that a candidate's response cannot contain is reported, since the figures alone would blame the model."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal
from enum import IntEnum
from typing import Any, Literal

import dagster as dg
import pyarrow as pa
import pytest
from evaluation_project import EvaluationProject
from pydantic import BaseModel, Field

from dagster_llm_batch import (
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    estimate_assets,
    evaluation_assets,
    llm_batch_assets,
)
from dagster_llm_batch.core.response import Reader
from dagster_llm_batch.evaluation.candidates import Candidate
from dagster_llm_batch.evaluation.invalid_gold import find_invalid_gold, invalid_gold_sentence, may_find_invalid_gold
from dagster_llm_batch.metrics import Target
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator


class Grade(IntEnum):
    LOW = 1
    HIGH = 2


class Judged(BaseModel):
    mood: Literal["happy", "sad"]
    grade: Grade
    stars: int = Field(ge=1, le=5)
    maybe: Literal["yes"] | None = None
    whatever: Literal["a"] | int = "a"


def misfits_of(name: str, gold: Any, labels: Any = (), *, response: Any = Judged, **target: Any) -> Any:
    tables = [pa.table({name: pa.array(values)}) for values in (gold, list(labels))]
    return find_invalid_gold(
        *tables, Candidate("moods", dg.AssetKey("moods"), reader=Reader(response)), Target(name, **target)
    )


@pytest.mark.parametrize(
    ("name", "gold", "invalid_gold"),
    [
        ("mood", ["happy", "hapy", "sad", "hapy", "Happy", " sad", None], {"hapy": 2, "Happy": 1, " sad": 1}),
        ("mood", ["happy", "sad", None], {}),
        ("mood", pa.array(["hapy", "sad"]).dictionary_encode(), {"hapy": 1}),
        ("mood", [None, None], {}),
        ("grade", [1, 2, 3], {3: 1}),
        ("grade", [1.0, 2.0, None], {}),
        ("stars", [0, 1, 5, 6], {0: 1, 6: 1}),
        ("maybe", ["yes", "no"], {"no": 1}),
        # text that holds JSON, and a column outside the response, are not checked
        ("whatever", ["b"], {}),
        ("text", ["b"], {}),
    ],
)
def test_values_that_the_response_cannot_give_are_found_with_their_rows(name, gold, invalid_gold):
    found = misfits_of(name, gold)
    assert dict(found.rows if found else ()) == invalid_gold


def test_what_a_candidate_gave_by_an_earlier_definition_it_can_give():
    assert misfits_of("mood", ["fine", "sad"], ["fine"]) is None


def test_a_mean_of_what_people_said_is_no_misfit_nor_is_any_value_of_free_text_or_an_unknown_response():
    assert misfits_of("stars", [3.5, 9.0], kind="numeric") is None
    assert misfits_of("text", ["b"], response=None) is None
    table = pa.table({"mood": ["hapy"]})
    assert find_invalid_gold(table, table, Candidate("moods", dg.AssetKey("moods")), Target("mood")) is None


def test_where_no_response_is_known_or_no_target_is_categorical_nothing_is_checked():
    unknown, known = Candidate("a", dg.AssetKey("a")), Candidate("b", dg.AssetKey("b"), reader=Reader(Judged))
    assert not may_find_invalid_gold([unknown], [Target("mood")])
    assert not may_find_invalid_gold([known], [Target("stars", kind="numeric")])
    assert may_find_invalid_gold([unknown, known], [Target("stars", kind="numeric"), Target("mood")])


def test_many_misfits_are_one_sentence_of_bounded_length_in_words():
    found = replace(misfits_of("mood", ["x" * 1_000, "sad"]), rows=((Decimal("1.50"), 1), (date(2026, 1, 2), 1)))
    said = invalid_gold_sentence([found] * 9)
    assert said.count("cannot give, such as 1.50") == 3
    assert said.endswith("; and 6 more.")
    assert "1.50 (1), 2026-01-02 (1)" in found.text
    assert invalid_gold_sentence([]) is None


def test_few_values_are_shown_and_none_of_them_is_long():
    text = misfits_of("mood", ["happy", *("x" * 1_000 + str(n) for n in range(9))]).text
    assert "and 6 more" in text
    assert len(text) < 900


@pytest.fixture
def project(tmp_path):
    with Emulator(pace=0.05) as emulator:
        project = EvaluationProject(tmp_path)
        openai = OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url)
        project.resources["llm_batch"] = LLMBatchResource(openai=openai, poll_seconds=0.2)
        yield project
        project.instance.dispose()


def evaluated(values: list[str | None], response: Any = Judged) -> list[Any]:
    @dg.asset
    def texts() -> pa.Table:
        return pa.table({"id": ["1", "2", "3"], "text": ["a", "b", "c"]})

    @dg.asset
    def gold() -> pa.Table:
        return pa.table({"id": ["1", "2", "3"], "mood": pa.array(values, pa.string())})

    asked = {"key": "id", "prompt": Prompt(user="{{ text }}"), "model": "openai/gpt-5-nano", "mode": "wait"}
    moods = llm_batch_assets(name="moods", rows=texts, response=response, **asked)
    compared: dict[str, Any] = {"gold": gold, "candidates": [moods], "key": "id", "target": "mood"}
    quality = evaluation_assets(name="quality", **compared)
    return [texts, gold, *moods, *quality, *estimate_assets(name="shares", **compared)]


@pytest.mark.slow
def test_an_evaluation_tells_gold_that_no_label_can_equal_and_counts_it_as_before(project):
    ran = project.run(evaluated(["hapy", "sad", None]))
    [row] = project.stored("quality").to_pylist()
    assert (row["n_gold"], row["n_labeled"]) == (2, 2)
    for name in ("quality", "shares"):
        told = project.metadata(name)["llm_batch/gold_misfits"].value
        assert told.startswith("1 of 2 gold rows have a 'mood' that the response of 'moods' cannot give: 'hapy' (1). ")
        assert "'hapy' is not one of ['happy', 'sad']" in told
    head = project.metadata("quality")["llm_batch/report"].value.partition("\n")[0].replace("\\", "")
    assert head == (
        "**Gold rows that no label can equal count as wrong: 1 of 2 have a 'mood' that 'moods' cannot give, such as "
        "'hapy'.**"
    )
    [check] = [one for one in ran.get_asset_check_evaluations() if one.check_name == "gold_fits"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "such as 'hapy'. llm_batch/gold_misfits lists the values." in check.description
    ran = project.run(evaluated(["happy", "sad", None]))
    assert "llm_batch/gold_misfits" not in project.metadata("quality")
    assert "no label can equal" not in project.metadata("quality")["llm_batch/report"].value
    assert [one.passed for one in ran.get_asset_check_evaluations() if one.check_name == "gold_fits"] == [True]


def test_an_evaluation_fails_where_no_gold_row_is_one_that_a_label_can_equal(project):
    assets = evaluated(["Happy", "SAD", None])
    project.run(assets[:-1], select=assets[:4])
    said = project.failure(assets[:-1], assets[4:-1])
    assert "2 of 2 gold rows have a 'mood' that the response of 'moods' cannot give: 'Happy' (1), 'SAD' (1)" in said
    assert "Write gold as the response has it" in said
