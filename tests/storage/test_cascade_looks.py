"""Looks at the same rows of a cascade, counted by each ledger: real runs over the emulator."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pyarrow as pa
import pytest
from pydantic import BaseModel, Field

from dagster_llm_batch.core.cascade import Cascade
from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.thresholds import count_allowed, look_confidence
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.testing.emulator import Emulator
from tests.storage.cascade_site import CascadeSite

CHEAP, ORACLE, ROWS = "gpt-4o-mini", "gpt-4o", 160
TOPICS = ("billing", "bug", "how_to")


class SureLabel(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    confidence: Annotated[float, Field(ge=0, le=1)]


def answer(body: Any, _url: str) -> Any:
    """Answer as the oracle, which is right, or as the model, wrong for every sixth row and less sure there."""
    number = int(re.findall(r"case (\d+)", str(body))[0])
    is_wrong = body["model"] == CHEAP and number % 6 == 0
    return {"topic": TOPICS[(number + is_wrong) % 3], "confidence": 0.4 if is_wrong else 0.9}


class Site(CascadeSite):
    def look(self, sample: int, rows: int = ROWS) -> Levels:
        """Label the rows by a cascade with this sample, and return the calibrated levels."""
        return self.label(definition(sample), cases(rows))[0]


def definition(sample: int) -> Labeling:
    return Labeling(
        asset="case_labels",
        model=f"openai/{CHEAP}",
        key="case",
        prompt=Prompt(user="case {{ case }}"),
        response=SureLabel,
        params={"max_tokens": 50},
        cascade=Cascade(f"openai/{ORACLE}", "topic", agreement=0.9, sample=sample),
    )


def cases(count: int) -> pa.Table:
    return pa.table({"case": [f"{number:04}" for number in range(count)]})


@pytest.fixture
def site(ledger_url: str, tmp_path: Any) -> Any:
    with Emulator(answer=answer) as emulator:
        yield Site(ledger_url, str(tmp_path / "payloads"), emulator)


@pytest.mark.slow
def test_each_ledger_counts_the_looks_at_the_same_rows_and_each_look_has_its_share_of_the_risk(site: Site) -> None:
    for place, sample in enumerate((60, 80, 100), start=1):
        found = site.look(sample)
        assert (found.look, found.sample) == (place, sample)
        assert found.allowed == count_allowed(sample, ROWS, 0.9, look_confidence(0.95, place))
    # An earlier decision is the same look; another table has its first look.
    assert site.look(80).look == 2
    assert site.look(60, ROWS + 1).look == 1


def test_each_ledger_refuses_a_sample_that_could_accept_nothing_after_its_looks(site: Site) -> None:
    for sample in (60, 62, 64):
        site.look(sample)
    with pytest.raises(ConfigError, match="sample=30 is too small for look 4 at the same rows"):
        site.engine().plan(definition(30), cases(ROWS))
