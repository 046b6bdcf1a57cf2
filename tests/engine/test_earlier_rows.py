"""Rows of an earlier plan are recognized by content: only changed rows are rendered, and all of them are asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from workspace import Workspace, assert_total, billed, labeling, texts, tickets

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.files.earlier_rows import EarlierRows
from dagster_llm_batch.files.request_files import BLOCKS, facts_in
from dagster_llm_batch.testing.emulator import RowFault

ROWS = 2_500  # of three blocks
REPLY = labeling(response=None)
# The prompt is random: a row with the same request was not rendered again.
DICE = labeling(
    response=None, prompt=Prompt(user="{{ body }} {% for _ in range(4) %}{{ range(99) | random }} {% endfor %}")
)


def changed(rows: pl.DataFrame, key: str, **columns: str) -> pl.DataFrame:
    """Return the rows, with other values in one of them."""
    here = pl.col("ticket_id") == key
    return rows.with_columns(
        **{name: pl.when(here).then(pl.lit(value)).otherwise(pl.col(name)) for name, value in columns.items()}
    )


def blocks(workspace: Workspace, path: str) -> str | None:
    return facts_in(workspace.engine().payloads, path, [BLOCKS]).get(BLOCKS)


def test_rows_that_have_not_changed_are_neither_rendered_nor_stored_again(workspace: Workspace) -> None:
    first = workspace.run(DICE, tickets(ROWS)).submission
    manifest = workspace.tmp_path / "payloads" / str(first.manifest_path)
    before = manifest.stat()
    assert workspace.engine().plan(DICE, tickets(ROWS)).submission_id == first.submission_id
    preview = workspace.engine().preview(DICE, tickets(ROWS))
    assert (preview.known is not None, preview.reused) == (True, ROWS)
    assert (manifest.stat().st_ino, manifest.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_of_a_table_that_has_grown_and_changed_only_what_is_new_is_asked(workspace: Workspace) -> None:
    workspace.run(REPLY, tickets(ROWS))
    rows = pl.concat([changed(tickets(ROWS), "t1100", body="Another question"), tickets(5, start=ROWS)])
    status = workspace.run(REPLY, rows)
    assert status.submission.requests - status.submission.reused == 6
    assert len(billed(workspace)) == len(set(billed(workspace))) == ROWS + 6
    assert_total(workspace, REPLY, status.submission.submission_id, ROWS + 5)


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": Prompt(system="You label tickets.", user="{{ subject }}\n\n{{ body }}")},
        {"prompt": Prompt(system="You label support tickets.", user="{{ subject }}\n{{ body }}")},
        {"params": {"max_tokens": 60}},
    ],
    ids=["system", "user", "params"],
)
def test_what_is_asked_otherwise_is_asked_again(workspace: Workspace, other: Any) -> None:
    workspace.run(REPLY, tickets(20))
    status = workspace.run(labeling(response=None, **other), tickets(20))
    assert (status.submission.requests, status.submission.reused) == (20, 0)
    assert len(set(billed(workspace))) == len(billed(workspace)) == 40


def test_a_kept_column_that_has_changed_is_in_the_labels_and_nothing_is_asked(workspace: Workspace) -> None:
    definition = labeling(response=None, prompt=Prompt(user="{{ body }}"), keep=["subject"])
    first = workspace.run(definition, tickets(20)).submission
    again = workspace.engine().plan(definition, changed(tickets(20), "t7", subject="Another"))
    assert again.submission_id == first.submission_id
    labels = workspace.engine().labels(definition, first.submission_id).labels.to_pylist()
    assert [row["subject"] for row in labels if row["ticket_id"] in ("t7", "t8")] == ["Another", "Subject 8"]
    # And no older value is taken for the present one after that.
    workspace.engine().plan(definition, tickets(20))
    labels = workspace.engine().labels(definition, first.submission_id).labels.to_pylist()
    assert {row["subject"] for row in labels if row["ticket_id"] == "t7"} == {"Subject 7"}
    assert len(billed(workspace)) == 20


def test_of_a_table_that_has_grown_and_changed_blocks_without_a_change_are_not_rendered(workspace: Workspace) -> None:
    workspace.run(DICE, tickets(ROWS))
    rows = pl.concat([changed(tickets(ROWS), "t1100", body="Another question"), tickets(5, start=ROWS)])
    preview = workspace.engine().preview(DICE, rows)
    # All but the block of the row that has changed, and the last one, which has become longer.
    assert preview.reused == 1024


def test_lists_of_categories_that_have_other_names_now_are_asked_again(workspace: Workspace) -> None:
    definition = labeling(response=None, prompt=Prompt(user="{{ tags | join(' ') }}"))

    def rows(*names: str) -> pa.Table:
        tags = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int8()), pa.array(names))
        return pa.table({"ticket_id": ["a", "b"], "tags": pa.ListArray.from_arrays(pa.array([0, 2, 3]), tags)})

    workspace.run(definition, rows("late", "broken"))
    assert workspace.engine().preview(definition, rows("late", "broken")).known is not None
    status = workspace.run(definition, rows("early", "broken"))
    assert (status.submission.requests, status.submission.reused) == (2, 0)
    assert len(set(billed(workspace))) == 4


def test_a_row_without_an_answer_is_rendered_and_asked_again_and_no_other_is(workspace: Workspace) -> None:
    definition = replace(DICE, empty="skip")
    rows = changed(tickets(40), "t5", body=" ")
    workspace.emulator.inject(RowFault(containing="number 33?", status_code=400, times=1))
    assert workspace.run(definition, rows).submission.outcomes == {"succeeded": 38, "errored": 1}
    last = workspace.run(definition, rows, again=True).submission
    assert (last.requests - last.reused, last.outcomes) == (1, {"succeeded": 39})
    executions = workspace.emulator.books.executions
    assert len({one.body_digest for one in executions}) == len(executions) == 40
    labels, rejects = assert_total(workspace, definition, last.submission_id, 40)
    assert "t33" in texts(labels)
    assert texts(rejects) == ["t5"]


@pytest.mark.parametrize("how", ["lost", "cut", "bit", "blocks"])
def test_a_manifest_that_is_lost_or_damaged_is_made_again_and_nothing_is_asked(workspace: Workspace, how: str) -> None:
    first = workspace.run(REPLY, tickets(20)).submission
    path = workspace.tmp_path / "payloads" / str(first.manifest_path)
    stored = path.read_bytes()
    if how == "lost":
        path.unlink()
    elif how == "cut":
        path.write_bytes(stored[: len(stored) // 2])
    elif how == "bit":
        path.write_bytes(stored[:40] + bytes([stored[40] ^ 1]) + stored[41:])
    else:
        payloads = workspace.engine().payloads
        table = payloads.read_table(str(first.manifest_path))
        with payloads.table_writer(str(first.manifest_path), table.schema.remove_metadata(), repeating=()) as out:
            out.write_table(table)
            out.add_key_value_metadata({BLOCKS: "AAAA"})
    assert workspace.engine().plan(REPLY, tickets(20)).submission_id == first.submission_id
    assert blocks(workspace, str(first.manifest_path))
    assert len(billed(workspace)) == 20
    assert_total(workspace, REPLY, first.submission_id, 20)


def test_an_erased_row_leaves_no_block(workspace: Workspace) -> None:
    first = workspace.run(REPLY, tickets(20)).submission
    assert blocks(workspace, str(first.manifest_path))
    eraser = workspace.engine().eraser
    eraser.add_tombstones(REPLY.asset, ["t3"], None)
    assert not eraser.erase(REPLY.asset)
    assert blocks(workspace, str(first.manifest_path)) is None
    # The row still comes, and is left out.
    again = workspace.engine().plan(REPLY, tickets(20))
    assert (again.submission_id, again.rows) == (first.submission_id, 19)
    assert len(billed(workspace)) == 20


def test_a_block_before_one_that_was_found_is_as_if_it_had_never_been(workspace: Workspace) -> None:
    first, second = tickets(1024), tickets(1024, start=1024)
    workspace.run(REPLY, iter([first, second]))
    status = workspace.run(REPLY, iter([second, first, tickets(1, start=5000)]))
    assert status.submission.requests - status.submission.reused == 1
    assert_total(workspace, REPLY, status.submission.submission_id, 2049)


def test_a_manifest_that_goes_while_it_is_read_is_as_if_nothing_had_been_planned(workspace: Workspace) -> None:
    submission = workspace.engine().plan(REPLY, tickets(20))
    payloads = workspace.engine().payloads
    earlier = EarlierRows.of(payloads, submission.manifest)
    assert earlier is not None
    payloads.delete(submission.manifest)
    assert all(earlier.find(digest, 20) is None for digest in list(earlier._places))
