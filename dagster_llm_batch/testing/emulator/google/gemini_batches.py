"""A batch of the Gemini API: its work in each state, and the operation that describes it.

https://ai.google.dev/gemini-api/docs/batch-api
Rows come back in the order they were given. A batch that expires has run nothing; a cancelled one shows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from dagster_llm_batch.testing.emulator.batches import EmulatedBatch
from dagster_llm_batch.testing.emulator.blobs import Blob
from dagster_llm_batch.testing.emulator.books import BatchRecord
from dagster_llm_batch.testing.emulator.google.rows import RunningRows, number, ok
from dagster_llm_batch.testing.emulator.google.wire import Body, rfc3339, rpc_code
from dagster_llm_batch.testing.emulator.lifecycle import Edge, Lifecycle
from dagster_llm_batch.testing.emulator.openai.results import ResultFile
from dagster_llm_batch.testing.emulator.shared_state import SharedState

# https://ai.google.dev/gemini-api/docs/batch-api#batch-job-status
LIFECYCLE = Lifecycle(
    start="BATCH_STATE_PENDING",
    edges=(
        Edge("BATCH_STATE_PENDING", "due", "BATCH_STATE_RUNNING"),
        Edge("BATCH_STATE_PENDING", "invalid", "BATCH_STATE_FAILED"),
        Edge("BATCH_STATE_PENDING", "window_over", "BATCH_STATE_EXPIRED"),
        Edge("BATCH_STATE_PENDING", "cancel", "BATCH_STATE_CANCELLED"),
        Edge("BATCH_STATE_RUNNING", "work", "BATCH_STATE_RUNNING"),  # some rows ran, more are left
        Edge("BATCH_STATE_RUNNING", "due", "BATCH_STATE_SUCCEEDED"),
        Edge("BATCH_STATE_RUNNING", "window_over", "BATCH_STATE_EXPIRED"),
        Edge("BATCH_STATE_RUNNING", "cancel", "BATCH_STATE_CANCELLED"),
    ),
)

_INTERNAL = 13
_CANCELLED = {"code": _INTERNAL, "message": "The batch was cancelled."}
_DAYS = 2  # a batch expires 48 hours after its creation


class GeminiBatch(EmulatedBatch):
    """One batch, from its creation to its end; `keep` stores a results file and gives its name."""

    def __init__(
        self,
        shared: SharedState,
        record: BatchRecord,
        rows: list[Body],
        *,
        model: str,
        inline: bool,
        keep: Callable[[Blob], str],
    ) -> None:
        self.model = model
        self._inline = inline
        self._keep = keep
        self._created_at = shared.clock()
        super().__init__(shared, record, LIFECYCLE, self._created_at)
        self._rows = RunningRows(shared, record, rows, model=model, id_field="key")
        self.enqueued_tokens = sum(len(json.dumps(row["request"])) // 4 for row in rows)
        self._error: Body | None = None
        self._output: Body | None = None

    def deadline(self) -> float:
        """48 hours after the creation."""
        return self._created_at + _DAYS * self._shared.limits.window_seconds

    def step(self, at: float) -> str | None:
        """Do the work of the present state."""
        state = self.life.state
        if at >= self.deadline() or (state == "BATCH_STATE_PENDING" and self._fault("expires") is not None):
            return "window_over"
        if self._is_stuck():
            return None
        if state == "BATCH_STATE_PENDING":
            fault = self._fault("fails")
            if fault is not None:
                self._error = {"code": number(fault.code, _INTERNAL), "message": fault.message}
                return "invalid"
            return "due"
        if self._fault("cancels") is not None:
            self._error = _CANCELLED
            return "cancel"
        self._rows.run()
        if not self._rows.all_ran:
            return "work"
        self._place()
        return "due"

    def cancel(self, at: float) -> None:
        """Cancel, or raise IllegalTransitionError."""
        self.life.move("cancel", at)
        self._error = _CANCELLED

    def _place(self) -> None:
        if self._fault("no_output_file") is not None:
            return
        results = [self._result(index) for index in range(len(self._rows.rows))]
        if self._inline:
            rows = [
                {"metadata": {"key": row.pop("key")}, **row}
                for index, row in enumerate(results)
                if not {"missing"} & {fault.kind for fault in self._file_faults(index)}
            ]
            self._output = {"inlinedResponses": {"inlinedResponses": rows}}
            return
        file = ResultFile(self._shared.faults.whole_file(self.record.ordinal), id_field="key")
        for index, row in enumerate(results):
            file.write(row, self._file_faults(index))
        blob = file.finish()
        if blob is not None:
            self._output = {"responsesFile": self._keep(blob)}

    def _file_faults(self, index: int) -> list[Any]:
        return self._shared.faults.file(self.record.ordinal, self._rows.custom_id(index), self._rows.raw(index))

    def _result(self, index: int) -> Body:
        status, answer = self._rows.answers[index]
        key = self._rows.rows[index].get("key")
        if ok(status):
            return {"key": key, "response": json.loads(json.dumps(answer))}
        return {"key": key, "error": {"code": rpc_code(status), "message": answer["error"]["message"]}}

    def as_json(self) -> Body:
        """Return the operation as a GET answers it."""
        state = self.life.state
        odd = self._fault("status")
        total, ran, good = len(self._rows.rows), len(self._rows.answers), self._rows.succeeded
        more = self._fault("miscounts") is not None
        stats = {"requestCount": str(total), "pendingRequestCount": str(total - ran)}
        stats |= {"successfulRequestCount": str(good + more)} if good or more else {}
        stats |= {"failedRequestCount": str(ran - good)} if ran - good else {}
        batch: Body = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "name": self.record.id,
            "model": f"models/{self.model}",
            "displayName": self.record.metadata["displayName"],
            "state": odd.status if odd is not None and odd.during in {"", state} else state,
            "createTime": rfc3339(self._created_at),
            "updateTime": rfc3339(self.life.entered_at),
            "batchStats": stats,
        }
        operation: Body = {"name": self.record.id, "metadata": batch}
        if self._fault("extra_fields") is not None:
            batch["xEmulatorUnknown"] = {"since": "later"}
        if self.life.ended:
            operation["done"] = True
            batch["endTime"] = rfc3339(self.life.entered_at)
            if self._output is not None and state == "BATCH_STATE_SUCCEEDED":
                batch["output"] = self._output
                kind = "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatchOutput"
                operation["response"] = {"@type": kind, **self._output}
            if self._error is not None:
                operation["error"] = self._error
        return operation
