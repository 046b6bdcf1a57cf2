"""Thresholds from earlier partitions: which ones count, the effect of an alarm, and no further stored state."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import Annotated, Any, Literal

import polars as pl
import pytest
from pydantic import BaseModel, Field
from workspace import Workspace, labeling, tickets

from dagster_llm_batch.cascade.escalation import Escalation
from dagster_llm_batch.core.audit import Audit
from dagster_llm_batch.core.cascade import Cascade, Rolling
from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.engine.seams import find_audit_history
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.files.request_files import CALIBRATION, levels_of
from dagster_llm_batch.loop.collect import Collector
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.testing.emulator import Emulator

TOPICS = ("billing", "bug", "how_to")
CHEAP, ORACLE = "gpt-4o-mini", "gpt-4o"
ROWS = 100
DRIFTED = 5
"""From this partition on, the model is wrong for every other row, with the same confidence as before."""


class SureLabel(BaseModel):
    """A label, and how sure the model is of it."""

    topic: Literal["billing", "bug", "how_to"]
    confidence: Annotated[float, Field(ge=0, le=1)]


def answer(body: Any, _url: str) -> Any:
    """Answer as the oracle, always right, or as the model, wrong and less sure for a tenth, until it drifts."""
    [number] = {int(found) for found in re.findall(r"invoice number (\d+)", str(body))}
    topic = TOPICS[number % 3]
    if body["model"] == ORACLE:
        return {"topic": topic, "confidence": 0.99}
    has_drifted = number // 1_000 >= DRIFTED and number % 2 == 1
    is_hard = number % 10 == 0
    return {
        "topic": TOPICS[(number + 1) % 3] if is_hard or has_drifted else topic,
        "confidence": 0.4 if is_hard else 0.5 + number % 5 / 10,
    }


def definition(**changes: Any) -> Labeling:
    """Return a definition that audits half of the rows, so tables are small; a sample of 60 serves the next one."""
    promise = {"agreement": 0.85, "sample": 60, "calibrate": Rolling(rows=50, audit=0.5)}
    promise |= {name: changes.pop(name) for name in list(changes) if name in promise}
    cascade = Cascade(f"openai/{ORACLE}", "topic", **promise)
    return labeling(**{"model": f"openai/{CHEAP}", "response": SureLabel, "cascade": cascade, **changes})


@pytest.fixture
def workspace(tmp_path: Any) -> Any:
    with Emulator(answer=answer) as emulator:
        yield Workspace(tmp_path, emulator)


def key(number: int) -> str:
    return f"2026-01-{number:02}"


def rows_of(number: int) -> Any:
    return tickets(ROWS, number * 1_000)


def label(workspace: Workspace, number: int, **changes: Any) -> Submission:
    return workspace.run(definition(**changes), rows_of(number), key(number)).submission


def levels(workspace: Workspace, submission: Submission) -> Levels:
    found = levels_of(workspace.engine().payloads, submission)
    assert found is not None
    return found


def audit(workspace: Workspace, submission: Submission) -> Audit:
    found = levels(workspace, submission).audit
    assert found is not None
    return found


def plan(workspace: Workspace, number: int, **changes: Any) -> Submission:
    return workspace.engine().plan(definition(**changes), rows_of(number), partition=key(number))


def test_the_first_partition_has_a_sample_and_the_next_ones_thresholds_of_those_before(workspace: Workspace) -> None:
    first, second = label(workspace, 1), label(workspace, 2)
    own, rolled = levels(workspace, first), levels(workspace, second)
    assert (own.sample, own.is_rolling, audit(workspace, first).why_not) == (
        *(60, False),
        "they have 0 of 50 rows that the oracle has answered",
    )
    assert (rolled.sample, rolled.sampled, rolled.is_rolling) == (0, [], True)
    assert audit(workspace, second).earlier == (key(1), key(1))
    assert rolled.calibrated_on == len(audit(workspace, first).points or []) == 60
    assert rolled.allowed is not None
    engine = workspace.engine()
    for submission, known in ((first, own), (second, rolled)):
        assert known.threshold is not None
        rows = engine.labels(definition(), submission.submission_id).labels.to_pylist()
        assert len(rows) == ROWS
        drawn = set(audit(workspace, submission).requests)
        assert 25 <= len(drawn) <= 75
        for row in rows:
            why = row["llm_why"]
            assert (row["llm_level"] == "cheap") is (why == "accepted")
            is_sampled = row["llm_request_id"] in (known.sampled or [])
            assert is_sampled is (why == "sampled")
            assert (row["llm_request_id"] in drawn and not is_sampled) is (why == "audit")
            if why == "accepted":
                sampled = 1 - 60 / ROWS if submission is first else 1.0
                assert row["llm_sample_probability"] == pytest.approx(1 - sampled * 0.5)
    # The threshold was set before its own audit had results.
    assert first.audit is not None
    assert first.audit["points"] == 60
    assert second.audit is not None
    assert second.audit["rows"] == second.audit["points"] == len(audit(workspace, second).requests)
    # The audits of both are in the window, the second one last.
    track = find_audit_history(engine.deployment, definition(), second, rolled)
    assert track is not None
    assert track.window == (key(1), key(2))
    assert track.rows == first.audit["rows"] + second.audit["rows"]
    assert workspace.emulator.books.billed_twice() == {}


@pytest.mark.slow
def test_rows_that_share_requests_are_as_many_as_there_are_of_one_that_is_independent(workspace: Workspace) -> None:
    """Give the partition four requests, each shared by a quarter of the rows: chance alone can make one wrong."""
    label(workspace, 1)
    shared = pl.concat(
        [tickets(4, 2_000).with_columns(ticket_id=pl.format("{}-" + str(n), "ticket_id")) for n in range(25)]
    )
    submission = workspace.run(definition(), shared, key(2)).submission
    own = levels(workspace, submission)
    assert (own.is_rolling, own.sample) == (False, 60)
    assert audit(workspace, submission).why_not == (
        "60 earlier rows cannot accept any row of this partition, whose rows count as 4 independent ones: "
        "rows of one request are right or wrong together"
    )
    points = audit(workspace, submission).points
    assert points is not None
    assert len({point.request for point in points}) == 4 < len(points)
    # The same request is the same one in each partition; its place among equal scores is not.
    again = audit(workspace, workspace.run(definition(), shared, key(3)).submission).points
    assert again is not None
    assert {point.request for point in again} == {point.request for point in points}
    assert not {point.digest for point in again} & {point.digest for point in points}


def test_a_plan_says_what_it_assumes_and_asks_for_no_sample(workspace: Workspace) -> None:
    alone = workspace.engine().preview(definition(), rows_of(1), partition=key(1))
    label(workspace, 1)
    preview = workspace.engine().preview(definition(), rows_of(2), partition=key(2))
    assert alone.levels is not None
    assert preview.levels is not None
    assert "earlier partitions set no threshold yet: they have 0 of 50 rows" in alone.levels.plan_text
    assert f"not sure enough by 60 rows of {key(1)}" in preview.levels.plan_text
    assert preview.levels.promise_text.endswith(
        f"if a value of 'confidence' means in this partition what it meant in {key(1)}: as many labels with it are the "
        "oracle's."
    )
    assert preview.estimated_usd is not None
    assert alone.estimated_usd is not None
    assert preview.estimated_usd < alone.estimated_usd
    assert (preview.levels.relative_cost or 0) < (alone.levels.relative_cost or 0)
    # A sample for later partitions is drawn even if it costs more than the oracle alone.
    few = definition(sample="auto", calibrate=Rolling(rows=300, audit=0.05))
    first = workspace.engine().preview(few, tickets(30, 9_000), partition=key(1)).levels
    assert first is not None
    assert not first.asks_oracle_alone
    assert first.sample == 30
    assert (first.relative_cost or 0) > 1


@pytest.mark.slow
def test_only_settled_partitions_before_one_count_whatever_the_order_of_a_backfill(workspace: Workspace) -> None:
    label(workspace, 4)
    # Later partitions do not count, so the third draws a separate sample.
    assert not levels(workspace, plan(workspace, 3)).is_rolling
    # Partitions in flight are not settled: if planned together, each draws its own sample.
    assert not levels(workspace, plan(workspace, 1)).is_rolling
    assert not levels(workspace, plan(workspace, 2)).is_rolling
    for number in (2, 1):
        workspace.run(definition(), rows_of(number), key(number))
    # An earlier plan keeps its threshold, even when more is known.
    third = plan(workspace, 3)
    assert not levels(workspace, third).is_rolling
    workspace.run(definition(), rows_of(3), key(3))
    # Only as many of the last partitions count as needed, in the order of keys and not of settlement.
    assert audit(workspace, plan(workspace, 5)).earlier == (key(4), key(4))
    five = workspace.engine().preview(definition(calibrate=Rolling(150, 0.5)), rows_of(5), partition=key(5))
    assert five.levels is not None
    assert five.levels.audit is not None
    assert (five.levels.audit.earlier, five.levels.calibrated_on) == ((key(2), key(4)), 180)


def test_what_was_asked_otherwise_says_nothing(workspace: Workspace) -> None:
    label(workspace, 1)
    same = definition()
    others = {
        "prompt": {"prompt": Prompt(system="You label.", user="{{ subject }}\n\n{{ body }}")},
        "promise": {"agreement": 0.86},
        "model": {"model": "openai/gpt-4.1-mini"},
        "audited share": {"calibrate": Rolling(50, 0.4)},
    }
    for name, changes in others.items():
        other = workspace.engine().preview(definition(**changes), rows_of(2), partition=key(2))
        assert other.levels is not None, name
        assert not other.levels.is_rolling, name
    assert workspace.engine().preview(same, rows_of(2), partition=key(2)).levels.is_rolling  # type: ignore[union-attr]


@pytest.mark.slow
def test_an_alarm_ends_what_was_before_it_until_there_are_rows_enough_from_after_it(workspace: Workspace) -> None:
    wanted = {"calibrate": Rolling(rows=70, audit=0.5)}
    for number in (1, 2):
        label(workspace, number, **wanted)
    sixth = label(workspace, DRIFTED + 1, **wanted)
    engine = workspace.engine()
    track = find_audit_history(engine.deployment, definition(**wanted), sixth, levels(workspace, sixth))
    assert track is not None
    assert track.alarm == key(DRIFTED + 1)
    assert track.low > 0.15 or track.evidence >= 365
    # Later partitions are by themselves, until their samples are enough.
    seventh, eighth = (label(workspace, number, **wanted) for number in (7, 8))
    assert audit(workspace, seventh).why_not == (
        f"they have 0 of 70 rows that the oracle has answered since the alarm of {key(6)}"
    )
    assert not levels(workspace, eighth).is_rolling
    ninth = label(workspace, 9, **wanted)
    assert audit(workspace, ninth).earlier == (key(7), key(8))
    # With the present answers, no wrong label is accepted, and no further alarm follows.
    track = find_audit_history(workspace.engine().deployment, definition(**wanted), ninth, levels(workspace, ninth))
    assert track is not None
    assert track.alarm == key(6)
    assert track.evidence < 365
    # A new plan of a partition before the alarm ignores it.
    assert levels(workspace, plan(workspace, 5, **wanted)).is_rolling


@pytest.mark.slow
def test_a_ledger_of_yesterday_comes_to_the_same_thresholds(workspace: Workspace, tmp_path: Any) -> None:
    label(workspace, 1)
    engine = workspace.engine()
    second = plan(workspace, 2)
    engine.submit(definition(), second.submission_id)
    yesterday = tmp_path / "yesterday"
    yesterday.mkdir()
    (yesterday / "payloads").symlink_to(tmp_path / "payloads")
    with (
        closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as source,
        closing(sqlite3.connect(yesterday / "ledger.sqlite")) as target,
    ):
        source.backup(target)
    found = workspace.finish(definition(), second.submission_id).submission.audit
    third = levels(workspace, plan(workspace, 3))
    restored = Workspace(yesterday, workspace.emulator)
    assert restored.engine().ledger.submissions.get(second.submission_id).audit is None
    assert restored.finish(definition(), second.submission_id).submission.audit == found
    assert found is not None
    repeated = levels(restored, plan(restored, 3))
    assert third.is_rolling
    assert (repeated.threshold, repeated.promise_text) == (third.threshold, third.promise_text)
    assert workspace.emulator.books.billed_twice() == {}


def test_a_process_that_is_killed_before_it_settles_finds_the_same_audit_again(workspace: Workspace) -> None:
    first = label(workspace, 1)
    engine = workspace.engine()
    # Store the audit as before the first wave was collected: it is derived again from the stored results.
    before = levels(workspace, first)
    assert before.audit is not None
    audit_before = replace(before.audit, points=None, rows=0, wrong=None)
    stored = replace(before, wave=None, threshold=None, audit=audit_before)
    with engine.payloads.writer(f"{first.folder}/{CALIBRATION}") as out:
        out.write(stored.as_json())
    shards = [shard for shard in engine.ledger.shards.of_submission(first.submission_id) if shard.wave == 1]
    at_first = replace(first, waves=1)
    collector = Collector(definition(), engine.deployment)
    Escalation(definition(), engine.deployment, at_first, shards, collector).find()
    assert levels(workspace, first) == before


def test_erased_rows_set_no_threshold_any_more(workspace: Workspace) -> None:
    first = label(workspace, 1)
    known = audit(workspace, first)
    engine = workspace.engine()
    engine.eraser.add_tombstones("ticket_labels", [f"t{number}" for number in range(1_000, 1_050)], None)
    assert engine.eraser.erase("ticket_labels") == []
    left = audit(workspace, first)
    manifest = engine.payloads.read_table(first.manifest, ["llm_request_id"])["llm_request_id"].to_pylist()
    assert set(left.requests) <= set(manifest)
    assert left.points is not None
    assert len(left.points) == len(levels(workspace, first).sampled or []) < 60
    # The counts of the audit stay.
    assert (left.rows, left.wrong) == (known.rows, known.wrong)
    second = plan(workspace, 2)
    assert not levels(workspace, second).is_rolling
    assert audit(workspace, second).why_not == (
        f"they have 60 of 50 rows that the oracle has answered, of which {len(left.points)} are stored still"
    )


def test_a_table_of_a_few_rows_fills_the_window_with_rows_that_are_all_sampled(workspace: Workspace) -> None:
    few = definition()
    for number in (1, 2, 3):
        workspace.run(few, tickets(20, number * 1_000), key(number))
    # Alone, each partition would ask only the oracle, and would never set a threshold.
    fourth = workspace.engine().plan(few, tickets(20, 4_000), partition=key(4))
    assert (levels(workspace, fourth).is_rolling, levels(workspace, fourth).calibrated_on) == (True, 60)


def test_a_partition_of_which_no_row_is_audited_asks_the_oracle_what_is_not_sure_enough_alone(
    workspace: Workspace,
) -> None:
    hardly = {"calibrate": Rolling(rows=50, audit=1e-9)}
    label(workspace, 1, **hardly)
    second = label(workspace, 2, **hardly)
    known = levels(workspace, second)
    assert known.is_rolling
    assert known.drawn == []
    assert second.audit == {"history": audit(workspace, second).history_id, "rows": 0, "wrong": 0, "points": 0}
    shards = workspace.engine().ledger.shards.of_submission(second.submission_id)
    assert {(shard.wave, shard.model) for shard in shards} == {(1, CHEAP), (2, ORACLE)}
    track = find_audit_history(workspace.engine().deployment, definition(**hardly), second, known)
    assert track is not None
    assert (track.rows, track.low, track.high, track.evidence) == (0, 0.0, 1.0, 0.0)


def test_gold_and_rolling_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="do not go together"):
        Cascade("openai/large", "topic", gold="gold", within=0.03, calibrate=Rolling())


def test_a_stored_definition_is_read_back_with_its_calibration() -> None:
    rolling = definition()
    stored = rolling.definition
    assert rolling.changes_since(stored) == []
    other = definition(calibrate=Rolling(60, 0.5))
    assert other.changes_since(stored) == ["cascade"]
    back = other.as_of(stored)
    assert back.cascade is not None
    assert back.cascade.calibrate == Rolling(50, 0.5)
    assert definition(calibrate="partition").changes_since(stored) == ["cascade"]


@pytest.mark.slow
def test_a_partition_whose_file_is_damaged_keeps_none_from_its_plan_and_is_told(workspace: Workspace) -> None:
    first, second = label(workspace, 1), label(workspace, 2)
    assert audit(workspace, second).earlier == (key(1), key(1))
    for lost, earlier in ((second, (key(1), key(2))), (first, None)):
        (workspace.tmp_path / "payloads" / (lost.folder or "") / CALIBRATION).write_bytes(b"half of wh")
        assert audit(workspace, plan(workspace, 3 if lost is second else 4)).earlier == earlier
    said = audit(workspace, plan(workspace, 4)).why_not or ""
    both = f"{second.folder}/{CALIBRATION}, {first.folder}/{CALIBRATION}"
    assert f"of which 0 are stored still ({both} cannot be read: damaged. Restore the files from a backup" in said
    # Pruned files do not count as damaged.
    for lost in (first, second):
        (workspace.tmp_path / "payloads" / (lost.folder or "") / CALIBRATION).unlink()
    said = audit(workspace, plan(workspace, 5)).why_not or ""
    assert said.endswith("of which 0 are stored still")
