"""A renamed asset pays for no row again: the old asset's answers are moved to it, or it takes them over."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest
from workspace import assert_total, billed, labeling, tickets

from dagster_llm_batch.engine import Resend
from dagster_llm_batch.errors import ConfigError

OLD, NEW = "ticket_labels", "support/topics"
RENAMED = labeling(asset=NEW)
TAKING_OVER = labeling(asset=NEW, resend=Resend(former_names=["never_was", OLD]))


def test_what_was_answered_under_the_old_name_is_neither_planned_nor_paid_again(workspace):
    workspace.run(labeling(), tickets(6), "monday")
    engine = workspace.engine()
    assert engine.preview(RENAMED, tickets(6), partition="monday").to_send == 6
    assert engine.rename(OLD, NEW) == (["monday"], [])
    assert engine.preview(RENAMED, tickets(6), partition="monday").to_send == 0
    status = workspace.run(RENAMED, tickets(7), "monday")
    assert_total(workspace, RENAMED, status.submission.submission_id, 7)
    assert len(billed(workspace)) == 7
    assert engine.latest(OLD, "monday") is None
    first = engine.ledger.submissions.of_partition("test", NEW, "monday")[-1]
    assert "renamed" in [event.kind for event in engine.ledger.events.of_submission(first.submission_id)]


def test_what_is_under_way_lands_under_the_new_name(workspace):
    engine = workspace.engine()
    submission_id = engine.plan(labeling(), tickets(6)).submission_id
    engine.submit(labeling(), submission_id)
    assert engine.rename(OLD, NEW) == ([""], [])
    assert workspace.finish(RENAMED, submission_id).submission.asset == NEW
    assert_total(workspace, RENAMED, submission_id, 6)
    assert workspace.engine().plan(RENAMED, tickets(6)).submission_id == submission_id
    assert len(billed(workspace)) == 6


def test_a_former_name_is_taken_over_by_the_next_plan_and_a_preview_counts_on_it(workspace):
    workspace.run(labeling(), tickets(6), "monday")
    engine = workspace.engine()
    assert engine.preview(TAKING_OVER, tickets(8), partition="monday").to_send == 2
    assert engine.latest(OLD, "monday") is not None
    workspace.run(TAKING_OVER, tickets(8), "monday")
    assert engine.latest(OLD, "monday") is None
    assert len(billed(workspace)) == 8


def test_a_partition_in_which_the_new_name_has_submissions_stays_as_it_is(workspace):
    for day in ("monday", "tuesday"):
        workspace.run(labeling(), tickets(2), day)
    own = workspace.run(RENAMED, tickets(3), "tuesday").submission
    engine = workspace.engine()
    assert engine.rename(OLD, NEW) == (["monday"], ["tuesday"])
    assert engine.latest(NEW, "tuesday") == own
    assert engine.latest(OLD, "tuesday") is not None
    assert engine.rename(OLD, NEW) == ([], ["tuesday"])
    assert engine.rename("never_was", NEW) == ([], [])
    with pytest.raises(ConfigError, match="the name that it has"):
        engine.rename(NEW, NEW)


def test_files_of_a_renamed_asset_are_pruned_by_the_same_rule(workspace):
    first = workspace.run(labeling(), tickets(6)).submission
    engine = workspace.engine()
    engine.rename(OLD, NEW)
    second = workspace.run(RENAMED, tickets(6)[:3].with_columns(body=pl.lit("Another one."))).submission
    for submission in (first, second):
        engine.ledger.submissions.mark_delivered(submission.submission_id)
    workspace.skipped += timedelta(days=40)
    pruned = workspace.engine().prune(timedelta(days=30), delete=True)
    assert set(pruned.replaced) == {first.submission_id}
    assert pruned.left_behind == pruned.foreign == ()
    assert_total(workspace, RENAMED, second.submission_id, 3)
