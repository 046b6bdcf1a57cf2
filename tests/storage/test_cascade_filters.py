"""Filters with precision or recall on each ledger: real runs over the emulator, recomputed from its answers."""

from __future__ import annotations

import re
from typing import Annotated, Any

import pyarrow as pa
import pytest
import scipy
from pydantic import BaseModel, Field

from dagster_llm_batch.core.cascade import Cascade, Precision, Recall
from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.testing.emulator import Emulator
from tests.storage.cascade_site import CascadeSite

CHEAP, ORACLE, ROWS, SAMPLE = "gpt-4o-mini", "gpt-4o", 400, 200
CONFIDENCE = 1 - 0.05 * 15 / 16


class Relevant(BaseModel):
    is_relevant: bool
    confidence: Annotated[float, Field(ge=0, le=1)]


def is_yes(number: int, few: int = 2) -> bool:
    return number % few == 0


def is_error(number: int) -> bool:
    """Return whether the model is wrong: it calls a sixth of all rows otherwise."""
    return number % 6 in (1, 2) and number % 4 in (1, 2)


def answer(body: Any, _url: str) -> Any:
    """Answer as the oracle, or as the model, which is less sure of its errors."""
    few, number = (int(found) for found in re.findall(r"case (\d+)-(\d+)", str(body))[0])
    is_wrong = body["model"] == CHEAP and is_error(number)
    return {"is_relevant": is_yes(number, few) != is_wrong, "confidence": 0.4 if is_wrong else 0.5 + number % 5 / 10}


def definition(guarantee: Precision | Recall) -> Labeling:
    cascade = Cascade(f"openai/{ORACLE}", "is_relevant", guarantee=guarantee, sample=SAMPLE)
    return Labeling(
        asset="case_labels",
        model=f"openai/{CHEAP}",
        key="case",
        prompt=Prompt(user="case {{ case }}"),
        response=Relevant,
        params={"max_tokens": 50},
        cascade=cascade,
    )


def label(site: CascadeSite, asked_for: Labeling, few: int = 2) -> tuple[Levels, list[dict[str, Any]], str]:
    """Label the rows, and return the calibrated levels, the labeled rows and the submission's id."""
    cases = pa.table({"case": [f"{few}-{number:04}" for number in range(ROWS)]})
    levels, submission_id = site.label(asked_for, cases)
    return levels, site.engine().labels(asked_for, submission_id).labels.to_pylist(), submission_id


@pytest.fixture
def site(ledger_url: str, tmp_path: Any) -> Any:
    with Emulator(answer=answer) as emulator:
        yield CascadeSite(ledger_url, str(tmp_path / "payloads"), emulator)


@pytest.mark.slow
@pytest.mark.parametrize("guarantee", [Precision(0.9), Recall(0.9)], ids=["precision", "recall"])
def test_a_filter_accepts_by_its_sample_and_delivers_what_it_guarantees(site: CascadeSite, guarantee: Any) -> None:
    levels, rows, submission_id = label(site, definition(guarantee))
    number = {row["case"]: int(row["case"][2:]) for row in rows}
    assert len(rows) == ROWS
    is_precision = isinstance(guarantee, Precision)
    sampled = [number[row["case"]] for row in rows if row["llm_why"] == "sampled"]
    assert len(sampled) == SAMPLE
    # Recomputed from the emulator's answers alone.
    seen = [n for n in sampled if is_yes(n) and not (is_precision and is_error(n))]
    errors = [n for n in sampled if is_error(n) and is_yes(n) is not is_precision]
    chances = (
        scipy.stats.nbinom.cdf(range(50), len(seen), 0.9)
        if is_precision
        else scipy.stats.binom.cdf(range(50), len(seen), 0.1)
    )
    assert levels.allowed == sum(chances <= 1 - CONFIDENCE) - 1 > 0
    assert levels.wrong == len(errors) > levels.allowed
    for row in rows:
        cheap = is_yes(number[row["case"]]) != is_error(number[row["case"]])
        if row["llm_why"] == "accepted":
            # A free label needs no score; errors are the least sure rows, and tied.
            assert cheap is not is_precision or row["llm_score"] >= levels.threshold.score == 0.4
            assert row["is_relevant"] is cheap
        else:
            assert row["llm_level"] == "oracle"
            assert row["is_relevant"] is is_yes(number[row["case"]])
            assert row["llm_why"] != "escalated" or (cheap is is_precision and row["llm_score"] == 0.4)
    delivered = {number[row["case"]] for row in rows if row["is_relevant"]}
    yes = {n for n in range(ROWS) if is_yes(n)}
    assert len(delivered & yes) >= 0.9 * len(delivered if is_precision else yes)
    kind = "labels true on 'is_relevant' are true by" if is_precision else "that are true on 'is_relevant' by"
    assert f"at least 90% of the {kind if is_precision else 'rows ' + kind} openai/{ORACLE}" in levels.promise_text
    assert levels.keeps_promise(ROWS)
    # Rows without a label may be yes.
    assert not levels.keeps_promise(ROWS - SAMPLE)
    # The same rows again are the same submission, and each answer is paid once.
    again = site.engine().plan(definition(guarantee), pa.table({"case": sorted(number)}))
    assert again.submission_id == submission_id
    assert site.emulator.books.billed_twice() == {}


@pytest.mark.slow
@pytest.mark.parametrize("guarantee", [Precision(0.9), Recall(0.9)], ids=["precision", "recall"])
def test_with_too_few_yes_in_the_sample_the_oracle_answers_all_rows(site: CascadeSite, guarantee: Any) -> None:
    levels, rows, _ = label(site, definition(guarantee), few=40)
    assert levels.allowed == -1
    assert {row["llm_level"] for row in rows} == {"oracle"}
    assert all(row["is_relevant"] is is_yes(int(row["case"][3:]), 40) for row in rows)
    assert levels.keeps_promise(ROWS - 5)
