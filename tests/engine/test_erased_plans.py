"""Plans after an erasure: the remaining rows are the known submission, and other settings are another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import test_cascade_waves as cascades
import test_near_copies as copies
import test_near_copies_of_cascades as copies_of_cascades
import test_relabel as older
import test_reworded_ways as ways
from workspace import Workspace, tickets

from dagster_llm_batch.core.cascade import Precision
from dagster_llm_batch.core.reuse import Relabel, Reuse
from dagster_llm_batch.engine import Labeling, Resend
from dagster_llm_batch.testing.emulator import Emulator


class Case(NamedTuple):
    """A labeling whose settings decide which rows are asked, and the same with other settings."""

    answer: Callable[[Any, str], Any]
    rows: pl.DataFrame
    definition: Labeling
    other: Labeling
    before: Labeling | None = None


CASES = {
    "near copies": Case(copies.by_group, copies.rows(40, 5), copies.definition(), copies.definition(resend=Resend())),
    "cascade": Case(
        cascades.answer,
        tickets(160),
        cascades.definition(),
        cascades.definition(cascades.cascade(agreement=0.85)),
    ),
    "filter": Case(
        ways.answer,
        tickets(160),
        ways.filtered("ticket_labels", Precision(0.9)),
        ways.filtered("ticket_labels", Precision(0.8)),
    ),
    "near copies of a cascade": Case(
        copies_of_cascades.by_group,
        copies.rows(120, 4),
        copies_of_cascades.definition(),
        copies_of_cascades.definition({"error": 0.12}),
    ),
    "older labels": Case(
        older.same,
        older.rows(300),
        older.definition(),
        older.definition(resend=Resend(reuse=Reuse(relabel=Relabel("topic", share=0.2, sample=60)))),
        before=older.definition(older.FIRST),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def label_and_erase(workspace: Workspace, case: Case) -> str:
    """Label the rows, erase the first one, and return the id of the submission."""
    if case.before is not None:
        workspace.run(case.before, case.rows)
    submission = workspace.run(case.definition, case.rows).submission
    eraser = workspace.engine().eraser
    eraser.add_tombstones("ticket_labels", [case.rows["ticket_id"][0]], None)
    assert eraser.erase("ticket_labels") == []
    return submission.submission_id


@pytest.mark.parametrize("given", ["the remaining rows", "all rows"])
def test_the_rows_that_an_erasure_left_are_not_asked_again(tmp_path: Path, case: Case, given: str) -> None:
    with Emulator(answer=case.answer) as emulator:
        workspace = older.reproducible(tmp_path, emulator)
        submission_id = label_and_erase(workspace, case)
        before = len(emulator.books.executions)
        rows = case.rows if given == "all rows" else case.rows[1:]
        assert workspace.engine().preview(case.definition, rows).to_send == 0
        again = workspace.run(case.definition, rows).submission
        assert again.submission_id == submission_id
        assert len(emulator.books.executions) == before


def test_other_settings_are_not_taken_for_those_of_the_erased_submission(tmp_path: Path, case: Case) -> None:
    with Emulator(answer=case.answer) as emulator:
        workspace = older.reproducible(tmp_path, emulator)
        submission_id = label_and_erase(workspace, case)
        other = workspace.run(case.other, case.rows).submission
        assert other.submission_id != submission_id
        assert other.outcomes == {"succeeded": len(case.rows) - 1}


def test_a_row_whose_tombstone_is_taken_back_is_asked_and_no_other(tmp_path: Path, case: Case) -> None:
    with Emulator(answer=case.answer) as emulator:
        workspace = older.reproducible(tmp_path, emulator)
        label_and_erase(workspace, case)
        before = len(emulator.books.executions)
        key = case.rows["ticket_id"][0]
        assert workspace.engine().eraser.take_back_tombstones("ticket_labels", [key], None) == 1
        submission = workspace.run(case.definition, case.rows).submission
        assert submission.outcomes == {"succeeded": len(case.rows)}
        labels = workspace.engine().labels(case.definition, submission.submission_id).labels
        [row] = [row for row in labels.to_pylist() if row["ticket_id"] == key]
        # By each of its models, unless it is a near copy with its leader's answer.
        least = 0 if row.get("llm_reuse") == "near" else 1
        assert least <= len(emulator.books.executions) - before <= len(case.definition.models)
