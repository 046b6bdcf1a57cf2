"""The rows of a Google batch while they run: in any order, a part at each step, each answered once."""

from __future__ import annotations

import json
import math
import random
from typing import Any

from dagster_llm_batch.testing.emulator.books import BatchRecord
from dagster_llm_batch.testing.emulator.google.requests import Request, respond
from dagster_llm_batch.testing.emulator.google.wire import Body
from dagster_llm_batch.testing.emulator.shared_state import SharedState

_SUCCESS = 2


class RunningRows:
    """Rows of one batch, `{id_field: …, "request": …}`, and the answers to those that ran, by index."""

    def __init__(
        self, shared: SharedState, record: BatchRecord, rows: list[Body], *, model: str, id_field: str
    ) -> None:
        self._shared = shared
        self._record = record
        self._model = model
        self._id_field = id_field
        self.rows = rows
        self.order = list(range(len(rows)))
        random.Random(f"{shared.seed}:{record.ordinal}").shuffle(self.order)  # noqa: S311
        self.answers: dict[int, tuple[int, Body]] = {}

    @property
    def all_ran(self) -> bool:
        """Whether all rows have run."""
        return len(self.answers) == len(self.rows)

    @property
    def succeeded(self) -> int:
        """Number of rows with a good answer."""
        return sum(status // 100 == _SUCCESS for status, _ in self.answers.values())

    def run(self, until: int | None = None) -> None:
        """Run the next part of the rows, up to that many in all."""
        done, total = len(self.answers), len(self.rows)
        end = min(total, done + math.ceil(total / self._shared.work_steps), total if until is None else until)
        for index in self.order[done:end]:
            row = self.rows[index]
            request = Request(
                account=self._record.account,
                model=self._model,
                body=row["request"],
                batch_id=self._record.id,
                custom_id=self.custom_id(index),
                faults=self._shared.faults.row(self._record.ordinal, self.custom_id(index), self.raw(index)),
            )
            self.answers[index] = respond(self._shared, request)

    def custom_id(self, index: int) -> str:
        """Return the id of this row, as text."""
        return str(self.rows[index].get(self._id_field, ""))

    def raw(self, index: int) -> bytes:
        """Return the row as bytes, for faults that look into it."""
        return json.dumps(self.rows[index], ensure_ascii=False).encode()


def ok(status: int) -> bool:
    """Return whether the status is a success."""
    return status // 100 == _SUCCESS


def number(value: Any, default: int) -> int:
    """Return a fault's code as a number."""
    return int(value) if str(value).isdigit() else default
