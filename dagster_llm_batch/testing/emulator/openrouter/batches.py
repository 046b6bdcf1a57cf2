"""An inline batch: its work in each state, the object that describes it, and its rows.

https://openrouter.ai/docs/api-reference/batches
Work happens in `step`, which only the mover calls; the others report and change nothing. Accepting a batch only stores
it: its faults show later, in a message without a code.
"""

from __future__ import annotations

import json
import math
from typing import Any

from dagster_llm_batch.testing.emulator.batches import EmulatedBatch
from dagster_llm_batch.testing.emulator.blobs import Blob
from dagster_llm_batch.testing.emulator.books import BatchRecord
from dagster_llm_batch.testing.emulator.openai.batches import LIFECYCLE
from dagster_llm_batch.testing.emulator.openai.requests import Request, respond
from dagster_llm_batch.testing.emulator.openai.results import ResultFile
from dagster_llm_batch.testing.emulator.openai.wire import Body, row, usage_of
from dagster_llm_batch.testing.emulator.openrouter.wire import failed_row
from dagster_llm_batch.testing.emulator.rows import RowQueue
from dagster_llm_batch.testing.emulator.shared_state import SharedState

_WINDOW_HOURS = 96.0
_SUCCESS = 2


class InlineBatch(EmulatedBatch):
    """One batch, from its creation to its end. Its states have the names of OpenAI's."""

    def __init__(self, shared: SharedState, record: BatchRecord, told: Body) -> None:
        self._told = told
        self._requests: list[Any] = told["requests"]
        self._created_at = shared.clock()
        self._expires_at = self._created_at + min(shared.limits.window_seconds, _WINDOW_HOURS * 3_600)
        super().__init__(shared, record, LIFECYCLE, self._created_at)
        self._queue = RowQueue(shared, record.ordinal, len(self._requests))
        self._completed = self._failed = 0
        self._late = False
        self._error: str | None = None
        self._usage = dict.fromkeys(("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"), 0)
        self._costs: list[float | None] = []
        self._file = ResultFile(shared.faults.whole_file(record.ordinal))
        self._results: Blob | None = None
        self._is_placed = False

    def deadline(self) -> float:
        """Return the end of the vendor's window, while rows run."""
        return self._expires_at if self.life.state == "in_progress" else math.inf

    def step(self, at: float) -> str | None:
        """Do the work of the present state."""
        state = self.life.state
        if self._is_stuck():
            return None
        if state == "validating":
            fault = self._fault("fails")
            self._error = fault.message if fault is not None else self._problem()
            return "due" if self._error is None else "invalid"
        if state == "in_progress":
            self._late = at >= self._expires_at
            event = "window_over" if self._late else self._queue.run(self._run_row, self.life)
            self._late = event == "window_over"
            return event
        self._place()
        return "expire" if state == "finalizing" and self._late else "due"

    def _problem(self) -> str | None:
        limits, seen = self._shared.limits, set()
        if len(self._requests) > limits.inline_requests:
            return f"A batch holds at most {limits.inline_requests} requests; this one has {len(self._requests)}."
        if limits.known_models is not None and self._told["model"] not in limits.known_models:
            return f"{self._told['model']} is not a valid model ID"
        for one in self._requests:
            if not isinstance(one, dict) or not isinstance(one.get("custom_id"), str):
                return "custom_id is required"
            if one.keys() - {"custom_id", "body"} or not isinstance(one.get("body"), dict):
                return f"request '{one['custom_id']}' is not custom_id and body"
            if one["custom_id"] in seen:
                return f"custom_id '{one['custom_id']}' is used more than once"
            seen.add(one["custom_id"])
            if one["body"].get("model", self._told["model"]) != self._told["model"]:
                return f"request '{one['custom_id']}' names another model than the batch"
            if '"data:' in json.dumps(one["body"]):
                return f"request '{one['custom_id']}': data: URIs are not supported in batches"
        return None

    def _run_row(self, index: int) -> None:
        one: Body = self._requests[index]
        shared, custom_id = self._shared, one["custom_id"]
        place = (self.record.ordinal, custom_id, json.dumps(one, ensure_ascii=False).encode())
        request = Request(
            account=self.record.account,
            endpoint=self.record.endpoint,
            body={"model": self._told["model"], **one["body"]},
            batch_id=self.record.id,
            custom_id=custom_id,
            faults=shared.faults.row(*place),
        )
        status, body = respond(shared, request)
        row_id = shared.new_id("batch_req_")
        if status // 100 == _SUCCESS:
            self._completed += 1
            for name, count in usage_of(body).items():
                self._usage[name] += count
            # only the batch reports the cost of a chat's row
            self._costs.append(body.get("usage", {}).pop("cost", None))
            result = row(row_id, custom_id, "", status, body)
            result["response"]["request_id"] = None
        else:
            self._failed += 1
            result = failed_row(row_id, custom_id, status, body)
        self._file.write(result, shared.faults.file(*place))

    def _place(self) -> None:
        if not self._is_placed:
            self._is_placed = True
            blob = self._file.finish()
            self._results = None if blob is None else self._shared.keep(blob)

    def close(self) -> None:
        """Release results that were written and not placed."""
        if not self._is_placed:
            self._file.close()

    @property
    def is_unpaid(self) -> bool:
        """Whether its charge is not covered, so that its results are withheld."""
        return self.life.ended and self._fault("unpaid") is not None

    def rows(self) -> list[Body]:
        """Return the rows that there are, once it has ended; in a list, a row that cannot be parsed has no place."""
        hidden = self._fault("no_output_file") is not None and self.life.state == "completed"
        if self._results is None or hidden or not self.life.ended:
            return []
        found = []
        for _, line in self._results.lines():
            try:
                found.append(json.loads(line.decode("utf-8-sig")))
            except ValueError:
                continue
        return found

    def as_json(self, *, with_results: bool) -> Body:
        """Return the batch object as a GET answers it; in a list it has no results."""
        state, odd = self.life.state, self._fault("status")
        shown = odd.status if odd is not None and odd.during in {"", state} else state
        # stored jobs collapse those phases
        shown = "in_progress" if shown in ("finalizing", "cancelling") else shown
        ended = self.life.ended
        completed = self._completed + (self._fault("miscounts") is not None)
        rows = self.rows() if with_results and state == "completed" and not self.is_unpaid else None
        cost = None if None in self._costs else sum(cost or 0.0 for cost in self._costs)
        given, made = self._usage["input_tokens"], self._usage["output_tokens"]
        usage = {
            "prompt_tokens": given,
            "completion_tokens": made,
            "total_tokens": given + made,
            "prompt_tokens_details": {"cached_tokens": self._usage["cached_tokens"], "cache_write_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": self._usage["reasoning_tokens"]},
            "cost": cost,
            "cost_details": None,
            "is_byok": False,
        }
        told = {
            "id": self.record.id,
            "object": "batch",
            "endpoint": self.record.endpoint,
            "model": self._told["model"],
            "provider": None if state in ("validating", "failed") else "OpenAI",
            "completion_window": "24h",
            "status": shown,
            "created_at": int(self._created_at),
            "expires_at": None if state == "validating" else int(self._expires_at),
            "finalized_at": int(self.life.entered_at) if ended else None,
            "request_counts": {"total": len(self._requests), "completed": completed, "failed": self._failed},
            "usage": usage if state == "completed" else None,
            "results": rows if rows is not None and len(rows) <= self._shared.limits.inline_results else None,
            "error": None if self._error is None else {"message": self._error},
            **({"x_emulator_unknown": {"since": "later"}} if self._fault("extra_fields") is not None else {}),
        }
        if not with_results:
            del told["results"]
        elif self.is_unpaid:
            message = "Results are withheld until the batch charge is covered."
            told["error"] = {"code": "insufficient_credits", "message": message}
        return told
