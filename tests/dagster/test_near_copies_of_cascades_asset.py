"""Near copies of a cascade in Dagster: metadata and the check state the guarantee of both."""

from __future__ import annotations

import re
from typing import Any, Literal

import dagster as dg
import polars as pl
import pytest
from code_location import BATCH, CodeLocation, labeled
from pydantic import BaseModel

from dagster_llm_batch import Cascade, Near, Prompt, Resend, Reuse
from dagster_llm_batch.testing.emulator import Emulator

TOPICS = ("billing", "bug", "how_to")
BOTH = (
    "With a confidence of 90%, at least 80% of the labels agree with openai/gpt-4o on 'topic'. The cascade guarantees "
    "90% for the rows that are no near copies, and an audit 80% for the copies; the two risks add up."
)


class SureLabel(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    confidence: float


def answer(body: Any, _url: str) -> Any:
    [group] = {int(found) for found in re.findall(r"group (\d+)", str(body))}
    return {"topic": TOPICS[group % 3], "confidence": 0.9 if group % 2 else 0.2}


def rows(_context: Any) -> pl.DataFrame:
    texts = {
        f"g{group}c{copy}": f"group {group} "
        + " ".join(str(group * 7919 + at * 31) for at in range(12))
        + f" end {copy}"
        for group in range(100)
        for copy in range(3)
    }
    return pl.DataFrame({"ticket_id": [*texts], "body": [*texts.values()]})


@pytest.mark.slow
def test_the_plan_the_labels_and_the_check_state_the_guarantee_of_both(instance: dg.DagsterInstance) -> None:
    assets = labeled(
        rows=rows,
        prompt=Prompt(user="{{ body }}"),
        model="openai/gpt-4o-mini",
        response=SureLabel,
        cascade=Cascade("openai/gpt-4o", "topic", agreement=0.9, sample=50),
        resend=Resend(reuse=Reuse(near=Near("body", "topic", error=0.1, sample=60))),
    )
    with Emulator(answer=answer) as emulator:
        location = CodeLocation(emulator, instance, *assets)
        assert location.submit().success
        planned = {name: value.value for name, value in location.materializations(BATCH)[None].metadata.items()}
        assert planned["llm_batch/promise"] == BOTH
        assert planned["llm_batch/cascade"].startswith("asks openai/gpt-4o for a sample of 50 of 100 rows")
        assert planned["llm_batch/near_copies"].startswith("finds 200 near copies. The cascade labels all other rows")
        for _ in range(4):
            emulator.settle()
            result = location.collect()
            if location.materializations():
                break
        stated = {name: value.value for name, value in location.materializations()[None].metadata.items()}
    assert stated["llm_batch/promise"] == BOTH
    assert stated["llm_batch/requests_shared"] == 140
    assert stated["llm_batch/rows_copy"] == 200
    # At most a tenth of the other rows, and a fifth of the copies
    assert 0 < stated["llm_batch/disagreement_bound"] <= (0.1 * 100 + 0.2 * 200) / 300
    [check] = [one for one in result.get_asset_check_evaluations() if one.check_name == "promise"]
    assert check.passed
    assert (check.description or "").startswith(BOTH)
    assert "140 requests share an answer" in (check.description or "")
