"""An Anthropic message batch: its work in each state, and the object that describes it.

https://platform.claude.com/docs/en/build-with-claude/batch-processing
Work happens in `step`, which only the mover calls; `as_json` reports and changes nothing.
"""

from __future__ import annotations

import json
import math

from dagster_llm_batch.testing.emulator.anthropic.requests import Caller, Request, respond
from dagster_llm_batch.testing.emulator.anthropic.wire import Body, rfc3339, row
from dagster_llm_batch.testing.emulator.batches import EmulatedBatch
from dagster_llm_batch.testing.emulator.blobs import Blob
from dagster_llm_batch.testing.emulator.books import BatchRecord
from dagster_llm_batch.testing.emulator.lifecycle import Edge, Lifecycle
from dagster_llm_batch.testing.emulator.openai.results import ResultFile
from dagster_llm_batch.testing.emulator.rows import RowQueue
from dagster_llm_batch.testing.emulator.shared_state import SharedState

# https://platform.claude.com/docs/en/build-with-claude/batch-processing#tracking-your-batch
LIFECYCLE = Lifecycle(
    start="in_progress",
    edges=(
        Edge("in_progress", "work", "in_progress"),  # some rows ran, more are left
        Edge("in_progress", "due", "ended"),
        Edge("in_progress", "window_over", "ended"),
        Edge("in_progress", "cancel", "canceling"),
        Edge("canceling", "due", "ended"),
    ),
)

_KINDS = ("processing", "succeeded", "errored", "canceled", "expired")
_KEPT_SECONDS = 29 * 86_400.0
_OK = 200


class AnthropicBatch(EmulatedBatch):
    """One batch, from its creation to its end."""

    def __init__(self, shared: SharedState, record: BatchRecord, caller: Caller, requests: list[Body]) -> None:
        self._caller = caller
        self._requests = requests
        self._created_at = shared.clock()
        self._expires_at = self._created_at + shared.limits.window_seconds
        super().__init__(shared, record, LIFECYCLE, self._created_at)
        self.size = len(requests)
        self._queue = RowQueue(shared, record.ordinal, len(requests))
        self._counts = dict.fromkeys(_KINDS, 0)
        self._file = ResultFile(shared.faults.whole_file(record.ordinal))
        self._results: Blob | None = None

    def deadline(self) -> float:
        """Return the end of the 24 hours, while rows run."""
        return self._expires_at if self.life.state == "in_progress" else math.inf

    def step(self, at: float) -> str | None:
        """Do the work of the present state."""
        state = self.life.state
        if self._is_stuck():
            return None
        if state == "canceling":
            return self._finish("canceled", "due")
        if at >= self._expires_at:
            return self._finish("expired", "window_over")
        event = self._queue.run(self._run_row, self.life)
        if event in ("work", "cancel") or self.life.state != "in_progress":
            return event
        return self._finish("expired", event)

    def _run_row(self, index: int) -> None:
        one = self._requests[index]
        raw = json.dumps(one).encode()
        place = (self.record.ordinal, one["custom_id"], raw)
        request = Request(
            self._caller, one["params"], self.record.id, one["custom_id"], self._shared.faults.row(*place)
        )
        status, answer = respond(self._shared, request)
        if status == _OK:
            kind, result = "succeeded", row(one["custom_id"], "succeeded", message=answer)
        else:
            kind, result = "errored", row(one["custom_id"], "errored", error=answer)
        self._counts[kind] += 1
        self._file.write(result, self._shared.faults.file(*place))

    def _finish(self, kind: str, event: str) -> str:
        """Give up the rows that have not run, and close the results."""
        for index in self._queue.give_up_rest():
            one = self._requests[index]
            faults = self._shared.faults.file(self.record.ordinal, one["custom_id"], json.dumps(one).encode())
            self._file.write(row(one["custom_id"], kind), faults)
            self._counts[kind] += 1
        blob = self._file.finish()
        self._results = None if blob is None else self._shared.keep(blob)
        return event

    def results(self) -> Blob | None:
        """Return the results file, if there is one now."""
        return self._results if self.life.ended and not self._archived() else None

    def _archived(self) -> bool:
        return self._shared.clock() >= self._created_at + _KEPT_SECONDS

    def close(self) -> None:
        """Release unfinished results."""
        if self._results is None:
            self._file.close()

    def as_json(self, origin: str) -> Body:
        """Return the batch object as a GET answers it: https://platform.claude.com/docs/en/api/retrieving-message-batches"""
        state, reached = self.life.state, dict(self.life.reached_at)
        shown, odd = state, self._fault("status")
        if odd is not None and odd.during in {"", state}:
            shown = odd.status
        # documented: all but `processing` are zero until the batch ends; seen live: they move with the rows
        visible = self.life.ended or self._fault("counts_move") is not None
        counts = dict(self._counts) if visible else dict.fromkeys(_KINDS, 0)
        counts["processing"] = len(self._queue) - sum(counts[kind] for kind in _KINDS[1:])
        archived_at = self._created_at + _KEPT_SECONDS if self._archived() else None
        # without a file, the batch must not show an address
        has_none = self._results is None or self._fault("no_output_file") is not None
        hidden = not self.life.ended or archived_at is not None or has_none
        if self._fault("miscounts") is not None:
            counts["succeeded"] += 1
        return {
            "id": self.record.id,
            "type": "message_batch",
            "processing_status": shown,
            "request_counts": counts,
            "created_at": rfc3339(self._created_at),
            "expires_at": rfc3339(self._expires_at),
            "ended_at": rfc3339(reached.get("ended")),
            "cancel_initiated_at": rfc3339(reached.get("canceling")),
            "archived_at": rfc3339(archived_at),
            "results_url": None if hidden else f"{origin}/v1/messages/batches/{self.record.id}/results",
            **({"x_emulator_unknown": {"since": "later"}} if self._fault("extra_fields") is not None else {}),
        }
