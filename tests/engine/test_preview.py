"""A preview equals the plan and changes nothing; answers of a pruned submission are requested again."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from decimal import Decimal

import polars as pl
import pytest
from workspace import Workspace, assert_total, billed, labeling, texts, tickets

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Limits
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.testing.emulator import RowFault

DAYS_31 = timedelta(days=31)


def everything(workspace: Workspace) -> tuple[object, ...]:
    """Return everything that a preview must not change."""
    ledger = workspace.engine().ledger
    submissions = ledger.submissions.list_all("test")
    return (
        submissions,
        [ledger.events.of_submission(submission.submission_id) for submission in submissions],
        workspace.files(),
    )


@pytest.mark.parametrize("changes", [{}, {"limits": Limits(max_requests_per_batch=3)}, {"model": "openai/no-such-llm"}])
def test_the_figures_of_a_preview_are_those_of_the_plan(workspace: Workspace, changes: dict[str, object]) -> None:
    definition = labeling(**changes)
    rows = pl.concat([tickets(7), tickets(2).with_columns(ticket_id=pl.col("ticket_id") + "-again")])
    preview = workspace.engine().preview(definition, rows)
    submission = workspace.engine().plan(definition, rows)
    shards = workspace.engine().status(submission.submission_id).shards
    assert (preview.rows, preview.requests, preview.reused) == (9, 7, 0)
    assert (preview.estimated_usd, preview.price_basis) == (submission.estimated_usd, submission.price_basis)
    assert (preview.p95_usd, preview.bound_usd) == (submission.p95_usd, submission.bound_usd)
    assert [(s.requests, s.bytes, s.bill.estimated_usd) for s in preview.shards] == [
        (s.requests, s.bytes, s.bill.estimated_usd) for s in shards
    ]
    assert preview.input_tokens == sum(shard.tokens for shard in shards)
    assert preview.output_tokens == 7 * 50
    assert (preview.known, preview.refused) == (None, None)
    if preview.estimated_usd is not None:
        assert preview.realtime_usd == pytest.approx(preview.estimated_usd * 2, rel=Decimal("0.01"))


def test_a_preview_stores_and_sends_nothing(workspace: Workspace, tmp_path, monkeypatch) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(aside))
    workspace.run(labeling(), tickets(3))
    workspace.engine().plan(labeling(asset="other"), tickets(3))
    before, calls = everything(workspace), len(workspace.emulator.books.calls)
    engine = workspace.engine()
    engine.preview(labeling(), tickets(5))
    engine.preview(labeling(asset="other"), tickets(5))
    with pytest.raises(InputError):
        engine.preview(labeling(), pl.concat([tickets(2), tickets(2)]))
    with pytest.raises(ConfigError):
        engine.preview(labeling(prompt=Prompt(user="{{ nothing }}")), tickets(2))
    assert everything(workspace) == before
    assert len(workspace.emulator.books.calls) == calls
    assert list(aside.iterdir()) == []


def test_rows_that_are_answered_or_on_their_way_are_no_cost_of_a_preview(workspace: Workspace) -> None:
    workspace.run(labeling(), tickets(3))
    known = workspace.engine().preview(labeling(), tickets(3))
    assert known.known is not None
    assert known.known.is_settled
    assert (known.to_send, known.estimated_usd, known.requests) == (0, 0, 3)
    more = workspace.engine().preview(labeling(), tickets(5))
    assert (more.known, more.reused, more.to_send) == (None, 3, 2)


def test_a_preview_of_asking_again_counts_the_rows_without_a_label(workspace: Workspace) -> None:
    workspace.emulator.inject(RowFault(containing="number 1", status_code=400))
    workspace.run(labeling(), tickets(3))
    assert workspace.engine().preview(labeling(), tickets(3)).to_send == 0
    again = workspace.engine().preview(labeling(), tickets(3), again=True)
    assert (again.known, again.reused, again.to_send) == (None, 2, 1)


def test_a_preview_says_which_budget_refuses_the_plan(workspace: Workspace) -> None:
    preview = workspace.engine().preview(labeling(max_cost_usd="0.0001"), tickets(9))
    assert preview.refused is not None
    assert "exceeds max_cost_usd=0.0001" in preview.refused
    assert preview.to_send == 9


def test_after_pruning_the_newest_labels_can_be_read_again_and_the_older_definition_asks_anew(
    workspace: Workspace,
) -> None:
    first, second = labeling(), labeling(params={"max_tokens": 60})
    older = workspace.run(first, tickets(4)).submission
    newer = workspace.run(second, tickets(4)).submission
    for one in (older, newer):
        workspace.engine().ledger.submissions.mark_delivered(one.submission_id)
    workspace.skipped += DAYS_31
    found = workspace.engine().prune(timedelta(days=30), delete=True)
    assert set(found.replaced) == {older.submission_id}
    assert not [name for name in workspace.files() if older.submission_id in name]

    again = workspace.engine().labels(second, newer.submission_id, reread=True)
    assert texts(again.labels) == ["t0", "t1", "t2", "t3"]
    assert workspace.engine().plan(second, tickets(4)).submission_id == newer.submission_id

    assert workspace.engine().preview(first, tickets(4)).to_send == 4
    back = workspace.run(first, tickets(4)).submission
    assert (back.attempt, back.reused) == (older.attempt + 1, 0)
    labels, _ = assert_total(workspace, first, back.submission_id, 4)
    assert len(labels) == 4
    assert len(billed(workspace)) == 12  # requests of the abandoned batch are paid again, by rule
