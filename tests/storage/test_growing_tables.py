"""A table that grows each day, on both ledgers: earlier submissions with reused answers add no queries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from worker_processes import definition, engine

from dagster_llm_batch.engine import Engine
from dagster_llm_batch.testing.emulator import Emulator
from tests.statements import statements


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


def label(mine: Engine, emulator: Emulator, rows: int) -> int:
    names = [f"r{number}" for number in range(rows)]
    table = pa.table({"id": names, "text": [f"Ticket {name}." for name in names]})
    submission_id = mine.plan(definition(), table).submission_id
    mine.submit(definition(), submission_id)
    emulator.settle()
    assert mine.collect(definition(), submission_id).is_settled
    return sum(len(part.labels) for part in mine.label_batches(definition(), submission_id))


def test_the_eighth_day_asks_the_ledger_as_often_as_the_third(
    ledger_url: str, emulator: Emulator, tmp_path: Path
) -> None:
    mine = engine(ledger_url, emulator.openai_base_url, tmp_path / "payloads")
    asked: list[int] = []
    for day in range(1, 9):
        with statements() as each:
            assert label(mine, emulator, day) == day
        asked.append(len(each))
    assert asked[7] == asked[2]
    assert len(emulator.books.executions) == 8
    mine.ledger.close()
