"""Writes of the ledger grow with the number of shards, and not with the number of rows."""

from __future__ import annotations

from typing import Any

import pytest
from workspace import Workspace, assert_total, labeling, tickets

from benchmarks.writes import counted
from dagster_llm_batch.engine import Limits
from dagster_llm_batch.testing.emulator import Emulator
from tests.statements import statements


def written(workspace: Workspace, rows: int, a_shard: int) -> tuple[int, int, int]:
    """Count shards, statements that write, and rows of the ledger that they touch, from plan to labels."""
    definition = labeling(limits=Limits(max_requests_per_batch=a_shard))
    with counted() as writes:
        status = workspace.run(definition, tickets(rows), partition=f"{rows} by {a_shard}")
    assert_total(workspace, definition, status.submission.submission_id, rows)
    return len(status.shards), writes.statements, writes.rows


@pytest.fixture
def counts(tmp_path: Any, emulator: Emulator) -> Any:
    numbers = iter(range(10))

    def count(rows: int, a_shard: int) -> tuple[int, int, int]:
        folder = tmp_path / str(next(numbers))  # a separate ledger, since a ledger's answers are used again
        folder.mkdir()
        return written(Workspace(folder, emulator), rows, a_shard)

    return count


def test_more_rows_in_as_many_shards_write_as_much(counts) -> None:
    few, many = counts(6, 2), counts(600, 200)
    assert few == many
    assert few[0] == 3


def test_each_further_shard_writes_as_much_more(counts) -> None:
    (one, *least), (two, *more), (four, *most) = counts(40, 40), counts(40, 20), counts(40, 10)
    assert (one, two, four) == (1, 2, 4)
    assert [c - b for b, c in zip(more, most, strict=True)] == [2 * (b - a) for a, b in zip(least, more, strict=True)]
    assert all(b > a for a, b in zip(least, more, strict=True))


def test_what_has_ended_lands_under_one_lease_since_nothing_is_to_be_sent(workspace: Workspace) -> None:
    definition, engine = labeling(), workspace.engine()
    submission_id = engine.plan(definition, tickets(3)).submission_id
    engine.submit(definition, submission_id)
    workspace.emulator.settle()
    with statements() as asked:
        assert engine.advance(definition, submission_id).is_settled
    assert sum(statement.startswith("INSERT INTO lease") for statement in asked) == 1
