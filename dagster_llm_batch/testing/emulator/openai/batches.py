"""An OpenAI batch: its work in each state, and the object that describes it.

https://platform.openai.com/docs/guides/batch
Work happens in `step`, which only the mover calls; `as_json` reports and changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from dagster_llm_batch.testing.emulator.batches import EmulatedBatch
from dagster_llm_batch.testing.emulator.blobs import Blob
from dagster_llm_batch.testing.emulator.books import BatchRecord
from dagster_llm_batch.testing.emulator.lifecycle import Edge, Lifecycle
from dagster_llm_batch.testing.emulator.openai.requests import (
    InputFile,
    InvalidInputError,
    Request,
    respond,
    validate,
)
from dagster_llm_batch.testing.emulator.openai.results import ResultFile
from dagster_llm_batch.testing.emulator.openai.wire import Body, row, unexecuted_row, usage_of, validation_error
from dagster_llm_batch.testing.emulator.rows import RowQueue
from dagster_llm_batch.testing.emulator.shared_state import SharedState

# https://platform.openai.com/docs/guides/batch#4-check-the-status-of-a-batch
LIFECYCLE = Lifecycle(
    start="validating",
    edges=(
        Edge("validating", "due", "in_progress"),
        Edge("validating", "invalid", "failed"),
        Edge("validating", "cancel", "cancelling"),
        Edge("in_progress", "work", "in_progress"),  # some rows ran, more are left
        Edge("in_progress", "due", "finalizing"),
        Edge("in_progress", "window_over", "finalizing"),
        Edge("in_progress", "cancel", "cancelling"),
        Edge("finalizing", "due", "completed"),
        Edge("finalizing", "expire", "expired"),
        Edge("finalizing", "cancel", "cancelling"),
        Edge("cancelling", "due", "cancelled"),
    ),
)

_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
_SUCCESS = 2


@dataclass(frozen=True)
class Hooks:
    """The calls of a batch to its vendor."""

    input_file: Callable[[], tuple[Blob, str] | None]  # the input file's bytes and purpose, if the account has it
    write_file: Callable[[Blob, str], str]  # keep a results file under this name; its id
    enqueued_tokens: Callable[[str], int]  # prompt tokens of the account's other live batches for the model
    bend_row: Callable[[Body], Body] | None = None  # of Azure, whose rows differ, and which writes empty error files


@dataclass
class Outcome:
    """The results of a batch so far."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"), 0)
    )
    errors: list[Body] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None


class OpenAIBatch(EmulatedBatch):
    """One batch, from its creation to its end."""

    def __init__(self, shared: SharedState, hooks: Hooks, record: BatchRecord, *, completion_window: str) -> None:
        self._hooks = hooks
        self._completion_window = completion_window
        self._created_at = shared.clock()
        self._expires_at = self._created_at + shared.limits.window_seconds
        super().__init__(shared, record, LIFECYCLE, self._created_at)
        self.model: str | None = None
        self.enqueued_tokens = 0
        self._input: InputFile | None = None
        self._queue = RowQueue(shared, record.ordinal, 0)
        self._late = self._placed = False
        self._outcome = Outcome()
        whole_file = shared.faults.whole_file(record.ordinal)
        self._output, self._errors = ResultFile(whole_file), ResultFile(whole_file)

    def deadline(self) -> float:
        """Return the end of the completion window, while rows run."""
        return self._expires_at if self.life.state == "in_progress" else math.inf

    def step(self, at: float) -> str | None:
        """Do the work of the present state."""
        state = self.life.state
        if self._is_stuck():
            return None
        if state == "validating":
            return self._validate()
        if state == "in_progress":
            self._late = at >= self._expires_at
            event = "window_over" if self._late else self._queue.run(self._run_row, self.life)
            self._late = event == "window_over"
            return event
        if state == "finalizing":
            if self._late:
                self._give_up_rest("batch_expired")
            self._place_files()
            return "expire" if self._late else "due"
        self._cancel()
        return "due"

    def _validate(self) -> str:
        fault, found = self._fault("fails"), self._hooks.input_file()
        file_id = self.record.input_file_id
        try:
            if fault is not None:
                raise InvalidInputError(fault.code, fault.message)
            if found is None:
                text = f"Invalid request: the input file '{file_id}' was not found or can't be accessed."
                raise InvalidInputError("invalid_request", text, param="input_file_id")
            blob, purpose = found
            if purpose != "batch":
                text = f"Invalid request: the input file '{file_id}' has the purpose '{purpose}', expected 'batch'."
                raise InvalidInputError("invalid_request", text, param="input_file_id")
            self._input = validate(blob, self.record.endpoint, self._shared.limits)
            self.model = self._input.model
        except InvalidInputError as error:
            self._outcome.errors = [error.entry]
            return "invalid"
        if limit_error := self._over_limit(self._input):
            self._outcome.errors = [limit_error]
            return "invalid"
        self.enqueued_tokens = self._input.prompt_tokens
        self._queue = RowQueue(self._shared, self.record.ordinal, len(self._input.places))
        self._outcome.total = len(self._queue)
        return "due"

    def over_limit(self) -> Body | None:
        """Return the error of a batch for which the queue has no room at its creation."""
        found = self._hooks.input_file()
        try:
            return (
                None
                if found is None
                else self._over_limit(validate(found[0], self.record.endpoint, self._shared.limits))
            )
        except InvalidInputError:
            return None

    def _over_limit(self, checked: InputFile) -> Body | None:
        limit = self._shared.limits.enqueued_tokens
        if limit is None or self._hooks.enqueued_tokens(checked.model) + checked.prompt_tokens <= limit:
            return None
        text = (
            f"Enqueued token limit reached for {checked.model} in organization {self.record.account}. Limit: {limit:,} "
            "enqueued tokens. Please try again once some in_progress batches have been completed."
        )
        return validation_error("token_limit_exceeded", text)

    def _run_row(self, index: int) -> None:
        assert self._input is not None
        raw, outcome, shared = self._input.line(index), self._outcome, self._shared
        line = json.loads(raw)
        place = (self.record.ordinal, line["custom_id"], raw)
        request = Request(
            account=self.record.account,
            endpoint=self.record.endpoint,
            body=line["body"],
            batch_id=self.record.id,
            custom_id=line["custom_id"],
            faults=shared.faults.row(*place),
            knows_fields=True,
        )
        status, body = respond(shared, request)
        result = row(shared.new_id("batch_req_"), line["custom_id"], shared.new_id("req_"), status, body)
        if self._hooks.bend_row is not None:
            result = self._hooks.bend_row(result)
        succeeded = status // 100 == _SUCCESS
        (self._output if succeeded else self._errors).write(result, shared.faults.file(*place))
        if succeeded:
            outcome.completed += 1
            for name, count in usage_of(body).items():
                outcome.usage[name] += count
        else:
            outcome.failed += 1

    def _give_up_rest(self, code: str) -> None:
        for index in self._queue.give_up_rest():
            assert self._input is not None
            raw = self._input.line(index)
            custom_id = json.loads(raw)["custom_id"]
            faults = self._shared.faults.file(self.record.ordinal, custom_id, raw)
            self._errors.write(unexecuted_row(self._shared.new_id("batch_req_"), custom_id, code), faults)
            # only rows that never ran in an expired batch count as failed; a canceled one leaves them out of both
            # counts
            self._outcome.failed += code == "batch_expired"

    def _cancel(self) -> None:
        if self._fault("cancel_drops_row") is not None and self._outcome.completed and not self._placed:
            self._output.drop_last_row()
            self._outcome.completed -= 1
        self._give_up_rest("batch_cancelled")
        self._place_files()

    def _place_files(self) -> None:
        if self._placed:  # a cancel came while the last edge was taken
            return
        self._placed = True
        for kind, writer in (("output", self._output), ("error", self._errors)):
            if (blob := writer.finish(empty=kind == "error" and self._hooks.bend_row is not None)) is not None:
                file_id = self._hooks.write_file(blob, f"{self.record.id}_{kind}.jsonl")
                setattr(self._outcome, f"{kind}_file_id", file_id)

    def close(self) -> None:
        """Release results that were written and not placed."""
        if not self._placed:
            self._output.close()
            self._errors.close()

    def as_json(self) -> Body:
        """Return the batch object as a GET answers it: https://platform.openai.com/docs/api-reference/batch/object"""
        state, reached, outcome = self.life.state, dict(self.life.reached_at), self._outcome
        shown, odd = state, self._fault("status")
        if odd is not None and odd.during in {"", state}:
            shown = odd.status
        counts = {"total": outcome.total, "completed": outcome.completed, "failed": outcome.failed}
        if state in {"validating", "failed"}:
            counts = dict.fromkeys(counts, 0)
        if self._fault("miscounts") is not None:
            counts["completed"] += 1
        ended = self.life.ended
        hidden = state == "completed" and self._fault("no_output_file") is not None
        used = outcome.usage if ended else dict.fromkeys(outcome.usage, 0)
        return {
            "id": self.record.id,
            "object": "batch",
            "endpoint": self.record.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": outcome.errors} if outcome.errors else None,
            "input_file_id": self.record.input_file_id,
            "completion_window": self._completion_window,
            "status": shown,
            "output_file_id": outcome.output_file_id if ended and not hidden else None,
            "error_file_id": outcome.error_file_id if ended else None,
            "created_at": int(self._created_at),
            "expires_at": int(self._expires_at),
            **{f"{name}_at": int(reached[name]) if name in reached else None for name in _TIMES},
            "request_counts": counts,
            "metadata": self.record.metadata,
            "usage": {
                "input_tokens": used["input_tokens"],
                "input_tokens_details": {"cached_tokens": used["cached_tokens"]},
                "output_tokens": used["output_tokens"],
                "output_tokens_details": {"reasoning_tokens": used["reasoning_tokens"]},
                "total_tokens": used["input_tokens"] + used["output_tokens"],
            },
            **({"x_emulator_unknown": {"since": "later"}} if self._fault("extra_fields") is not None else {}),
        }
