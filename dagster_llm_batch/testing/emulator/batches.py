"""The parts that batches of all vendors have: a record, a life as data, and the faults that strike it."""

from __future__ import annotations

from typing import Any

from dagster_llm_batch.testing.emulator.books import BatchRecord, MoveRecord
from dagster_llm_batch.testing.emulator.faults import BatchKind
from dagster_llm_batch.testing.emulator.lifecycle import Life, Lifecycle
from dagster_llm_batch.testing.emulator.shared_state import SharedState


class EmulatedBatch:
    """One batch, with the states and transitions of its vendor's `lifecycle`."""

    def __init__(self, shared: SharedState, record: BatchRecord, lifecycle: Lifecycle, created_at: float) -> None:
        self._shared = shared
        self.record = record
        self.life = Life(lifecycle, created_at, self._moved)

    def _moved(self, source: str, event: str, target: str, at: float) -> None:
        self._shared.books.write(MoveRecord(self.record.id, source, event, target, at))

    def _fault(self, kind: BatchKind) -> Any:
        return self._shared.faults.batch(kind, self.record.ordinal)

    def _is_stuck(self) -> bool:
        """Return whether a fault keeps it in its present state."""
        stuck = self._fault("stuck")
        return stuck is not None and stuck.during in {"", self.life.state}
