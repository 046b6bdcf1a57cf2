"""Near copies, filters and flex decide the same with other words in the ledger, and in constants that are sentences."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import pytest
from pydantic import BaseModel, Field
from test_cascade_waves import CHEAP, ORACLE, number_of
from test_flex import flexible, urgent
from test_near_copies import by_copy, by_group
from test_near_copies import definition as near
from test_near_copies import rows as copies
from test_reworded import reword
from workspace import Workspace, labeling, tickets

from dagster_llm_batch.core.cascade import Cascade, Precision, Recall
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.storage.ledger.events import StatusChanged
from dagster_llm_batch.testing.emulator import Emulator, FlexScript, RowFault

DECISIONS = (
    "ticket_id",
    "topic",
    "is_billing",
    "urgency",
    "llm_outcome",
    "llm_level",
    "llm_reuse",
    "llm_wave",
    "llm_price_basis",
)


class SureAnswer(BaseModel):
    """Yes or no, and how sure the model is of it."""

    is_billing: bool
    confidence: Annotated[float, Field(ge=0, le=1)]


def answer(body: Any, url: str) -> Any:
    """Answer copies alike in the dataset `alike`, in different ways in `apart`; the cheap model errs."""
    text = str(body)
    if "Text number" in text:
        return (by_copy if "apart" in text else by_group)(body, url)
    number = number_of(body)
    if "is_billing" not in text:
        return {"topic": "bug", "urgency": 1 + number % 5}
    is_wrong = body["model"] == CHEAP and number % 6 == 0
    return {"is_billing": (number % 2 == 0) is not is_wrong, "confidence": 0.4 if is_wrong else 0.5 + number % 5 / 10}


def filtered(asset: str, guarantee: Any) -> Labeling:
    cascade = Cascade(oracle=f"openai/{ORACLE}", target="is_billing", guarantee=guarantee, sample=120)
    return labeling(asset=asset, model=f"openai/{CHEAP}", response=SureAnswer, cascade=cascade)


def travel(workspace: Workspace) -> dict[str, Any]:
    """Run all datasets to the end, and return their decisions, without ids, times and wording."""
    # A leader without an answer, and a row without one in a cascade.
    for number in ("Text number 3 ", "invoice number 5?"):
        workspace.emulator.inject(RowFault(containing=number, times=2))
    of_two = near(asset="alike"), near(asset="apart")
    datasets: dict[str, tuple[Labeling, pl.DataFrame]] = {
        "alike": (of_two[0], copies(40, 5)),
        "apart": (of_two[1], copies(40, 5).with_columns(pl.lit("apart").alias("subject"))),
        "alike, then more groups": (of_two[0], copies(44, 5)),
        "precise": (filtered("precise", Precision(0.9)), tickets(400)),
        "complete": (filtered("complete", Recall(0.8)), tickets(400)),
        "flex, then standard": (flexible(asset="standard"), urgent(5)),
        "flex, then a batch": (flexible(asset="batch", otherwise="batch"), urgent(5)),
    }
    found: dict[str, Any] = {}
    for name, (definition, rows) in datasets.items():
        workspace.emulator.flex.calls = 0
        workspace.emulator.flex.script = FlexScript(turned_away=3)
        submission = workspace.run(definition, rows, partition=name.partition(",")[0]).submission
        engine = workspace.engine()
        labeled = engine.labels(definition, submission.submission_id)
        tables = []
        for table in (labeled.labels, labeled.rejects):
            kept = [column for column in DECISIONS if column in table.column_names]
            tables.append(sorted(map(repr, table.select(kept).to_pylist())))
        events = engine.ledger.events.of_submission(submission.submission_id)
        kinds = [kind for kind, _ in groupby(one.kind for one in events if one.kind != StatusChanged.kind)]
        found[name] = (submission.outcomes, submission.waves, kinds, *tables)
    return found


@pytest.mark.slow
def test_no_decision_of_the_ways_to_ask_less_depends_on_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven datasets run twice, with 1,400 requests: over ten seconds."""
    journeys, billed = [], []
    for name in ("usual", "reworded"):
        (folder := tmp_path / name).mkdir()
        with Emulator(answer=answer) as emulator:
            workspace = Workspace(folder, emulator)
            # The account decides which rows are drawn. Its usual name has the emulator's port.
            workspace.providers = {"openai": workspace.openai(account="the account")}
            workspace.engine().ledger.submissions.list_all("test")
            if name == "reworded":
                reword(monkeypatch, folder / "ledger.sqlite")
            journeys.append(travel(workspace))
            billed.append(len(emulator.books.executions))
    usual, reworded = journeys
    for name, decisions in usual.items():
        assert reworded[name] == decisions, name
    assert billed[0] == billed[1]
    # Each way was taken.
    assert "'llm_reuse': 'near'" in str(usual["alike"])
    assert "'llm_reuse': 'near'" in str(usual["alike, then more groups"])
    assert "'llm_reuse': 'near'" not in str(usual["apart"])
    for name in ("precise", "complete"):
        assert "'llm_level': 'oracle'" in str(usual[name])
    assert "tier: flex" in str(usual["flex, then standard"])
