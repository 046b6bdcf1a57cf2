"""A batch job of Mistral: its work in each state, and the object that describes it.

https://docs.mistral.ai/capabilities/batch/ and, for live observations, OpenRouterTeam/docs, batch-research/mistral,
2026-09. A request file was checked when it was uploaded, so that all rows can be asked. Rows that never ran are in no
file. Work happens in `step`, which only the mover calls; `as_json` reports and changes nothing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from dagster_llm_batch.testing.emulator.batches import EmulatedBatch
from dagster_llm_batch.testing.emulator.blobs import Blob
from dagster_llm_batch.testing.emulator.books import BatchRecord
from dagster_llm_batch.testing.emulator.lifecycle import Edge, Lifecycle
from dagster_llm_batch.testing.emulator.mistral.wire import as_openai, as_vector, row
from dagster_llm_batch.testing.emulator.openai.requests import Request, respond
from dagster_llm_batch.testing.emulator.openai.results import ResultFile
from dagster_llm_batch.testing.emulator.openai.wire import EMBEDDINGS, Body
from dagster_llm_batch.testing.emulator.rows import RowQueue
from dagster_llm_batch.testing.emulator.shared_state import SharedState

_DAY_HOURS = 24
_SUCCESS = 2
_OK = 200


# https://docs.mistral.ai/capabilities/batch/; a job that was canceled before it began ends at once, as seen live
LIFECYCLE = Lifecycle(
    start="QUEUED",
    edges=(
        Edge("QUEUED", "due", "RUNNING"),
        Edge("QUEUED", "invalid", "FAILED"),
        Edge("QUEUED", "cancel", "CANCELLED"),
        Edge("RUNNING", "work", "RUNNING"),  # some rows ran, more are left
        Edge("RUNNING", "due", "SUCCESS"),
        Edge("RUNNING", "window_over", "TIMEOUT_EXCEEDED"),
        Edge("RUNNING", "cancel", "CANCELLATION_REQUESTED"),
        Edge("CANCELLATION_REQUESTED", "due", "CANCELLED"),
    ),
)


@dataclass(frozen=True)
class Asked:
    """The inputs of a job. `write_file` keeps this many lines of results as a file of a type, and returns its id."""

    lines: list[bytes]
    model: str
    timeout_hours: int
    write_file: Callable[[Blob, str, int], str]


class MistralJob(EmulatedBatch):
    """One job, from its creation to its end."""

    def __init__(self, shared: SharedState, record: BatchRecord, asked: Asked) -> None:
        self._asked = asked
        self._created_at = shared.clock()
        self._ends_at = self._created_at + shared.limits.window_seconds * asked.timeout_hours / _DAY_HOURS
        super().__init__(shared, record, LIFECYCLE, self._created_at)
        self._queue = RowQueue(shared, record.ordinal, len(asked.lines))
        self._succeeded = self._failed = 0
        self._errors: Counter[str] = Counter()
        self._files: dict[str, str | None] = {"output_file": None, "error_file": None}
        whole_file = shared.faults.whole_file(record.ordinal)
        self._output, self._error = ResultFile(whole_file), ResultFile(whole_file)
        self._placed = False

    def deadline(self) -> float:
        """Return the end of `timeout_hours`, while rows run."""
        return self._ends_at if self.life.state == "RUNNING" else math.inf

    def step(self, at: float) -> str | None:
        """Do the work of the present state."""
        state = self.life.state
        if self._is_stuck():
            return None
        if state == "QUEUED":
            fault = self._fault("fails")
            if fault is not None:
                self._errors[fault.message] = len(self._queue)
            return "due" if fault is None else "invalid"
        if state == "CANCELLATION_REQUESTED":
            if self._fault("cancel_drops_row") is not None and self._succeeded and not self._placed:
                self._output.drop_last_row()
                self._succeeded -= 1
            self._place_files()
            return "due"
        event = "window_over" if at >= self._ends_at else self._queue.run(self._run_row, self.life)
        if event in ("window_over", "due"):
            self._place_files()
        return event

    def _run_row(self, index: int) -> None:
        shared, raw = self._shared, self._asked.lines[index]
        line = json.loads(raw)
        custom_id = line.get("custom_id")
        place = (self.record.ordinal, custom_id or "", raw)
        request = Request(
            account=self.record.account,
            endpoint=self.record.endpoint,
            # a line may leave the model to the job
            body={"model": self._asked.model, **as_openai(line["body"])},
            batch_id=self.record.id,
            custom_id=custom_id,
            faults=shared.faults.row(*place),
        )
        status, body = respond(shared, request)
        if status == _OK and request.endpoint == EMBEDDINGS:
            body = as_vector(body, index)
        start = self.record.id
        result = row(f"batch-{start[:8]}-{start[24:32]}-{index}", custom_id, status, body)
        if status // 100 == _SUCCESS:
            self._succeeded += 1
            self._output.write(result, shared.faults.file(*place))
        else:
            self._failed += 1
            self._errors[f"HTTP Error, status code: {status}"] += 1
            self._error.write(result, shared.faults.file(*place))

    def _place_files(self) -> None:
        if self._placed:  # a cancel came while the last edge was taken
            return
        self._placed = True
        counts = {"output": self._succeeded, "error": self._failed}
        for kind, sample_type, writer in (
            ("output", "batch_result", self._output),
            ("error", "batch_error", self._error),
        ):
            if (blob := writer.finish()) is not None:
                self._files[f"{kind}_file"] = self._asked.write_file(blob, sample_type, counts[kind])

    def close(self) -> None:
        """Release results that were written and not placed."""
        if not self._placed:
            self._output.close()
            self._error.close()

    def as_json(self, *, is_new: bool = False) -> Body:
        """Return the job as a GET answers it; the reply that creates it counts nothing yet."""
        state, reached = self.life.state, dict(self.life.reached_at)
        shown, odd = state, self._fault("status")
        if odd is not None and odd.during in {"", state}:
            shown = odd.status
        files = dict(self._files) if self.life.ended else dict.fromkeys(self._files)
        if state == "SUCCESS" and self._fault("no_output_file") is not None:
            files["output_file"] = None
        done = self._succeeded + self._failed
        return {
            "id": self.record.id,
            "object": "batch",
            "input_files": [self.record.input_file_id],
            "metadata": self.record.metadata or None,
            "endpoint": self.record.endpoint,
            "model": self._asked.model,
            "agent_id": None,
            **files,
            "errors": [{"message": message, "count": count} for message, count in self._errors.items()],
            "outputs": None,
            "status": shown,
            "created_at": int(self._created_at),
            "started_at": int(reached["RUNNING"]) if "RUNNING" in reached else None,
            "completed_at": int(self.life.entered_at) if self.life.ended else None,
            "total_requests": 0 if is_new else len(self._queue),
            # both kinds: all processed requests
            "completed_requests": done,
            "succeeded_requests": self._succeeded + (self._fault("miscounts") is not None),
            "failed_requests": self._failed,
            **({"x_emulator_unknown": {"since": "later"}} if self._fault("extra_fields") is not None else {}),
        }
