"""A batch prediction job of Vertex AI: its work in each state, and the object that describes it.

https://cloud.google.com/vertex-ai/generative-ai/docs/multimodal/batch-prediction-from-cloud-storage
The file is checked only once the job is pending: create accepts nearly everything. However the job ends, the finished
rows are exported; only they are billed.
"""

from __future__ import annotations

import json
import math
from http import HTTPStatus

from dagster_llm_batch.testing.emulator.batches import EmulatedBatch
from dagster_llm_batch.testing.emulator.books import BatchRecord
from dagster_llm_batch.testing.emulator.gcs import Storage, StorageError
from dagster_llm_batch.testing.emulator.google.bigquery import Table, Tables
from dagster_llm_batch.testing.emulator.google.rows import RunningRows, number, ok
from dagster_llm_batch.testing.emulator.google.vertex_importer import ImportFailedError, import_rows
from dagster_llm_batch.testing.emulator.google.wire import ApiError, Body, rfc3339
from dagster_llm_batch.testing.emulator.lifecycle import Edge, Lifecycle
from dagster_llm_batch.testing.emulator.openai.results import ResultFile
from dagster_llm_batch.testing.emulator.shared_state import SharedState

_FAILED_PRECONDITION, _INVALID_ARGUMENT, _PERMISSION_DENIED, _INTERNAL, _CANCELLED = 9, 3, 7, 13, 1


# https://cloud.google.com/vertex-ai/docs/reference/rest/v1/JobState
LIFECYCLE = Lifecycle(
    start="JOB_STATE_QUEUED",
    edges=(
        Edge("JOB_STATE_QUEUED", "due", "JOB_STATE_PENDING"),
        Edge("JOB_STATE_QUEUED", "cancel", "JOB_STATE_CANCELLING"),
        Edge("JOB_STATE_PENDING", "due", "JOB_STATE_RUNNING"),
        Edge("JOB_STATE_PENDING", "invalid", "JOB_STATE_FAILED"),
        Edge("JOB_STATE_PENDING", "cancel", "JOB_STATE_CANCELLING"),
        Edge("JOB_STATE_RUNNING", "work", "JOB_STATE_RUNNING"),  # some rows ran, more are left
        Edge("JOB_STATE_RUNNING", "due", "JOB_STATE_SUCCEEDED"),
        Edge("JOB_STATE_RUNNING", "invalid", "JOB_STATE_FAILED"),
        Edge("JOB_STATE_RUNNING", "window_over", "JOB_STATE_EXPIRED"),
        Edge("JOB_STATE_RUNNING", "cancel", "JOB_STATE_CANCELLING"),
        Edge("JOB_STATE_CANCELLING", "due", "JOB_STATE_CANCELLED"),
    ),
)


class VertexJob(EmulatedBatch):
    """One job, from its creation to its end."""

    def __init__(
        self, shared: SharedState, storage: Storage | None, tables: Tables, record: BatchRecord, body: Body
    ) -> None:
        self._storage = storage
        self._tables = tables
        self.body = body
        self._created_at = shared.clock()
        super().__init__(shared, record, LIFECYCLE, self._created_at)
        self._rows: RunningRows | None = None
        self._error: Body | None = None
        self._directory: str | None = None
        self._id_field = "custom_id"

    def deadline(self) -> float:
        """Return the end of the 24 hours of running."""
        if self.life.state != "JOB_STATE_RUNNING":
            return math.inf
        return self.life.reached_at["JOB_STATE_RUNNING"] + self._shared.limits.window_seconds

    def step(self, at: float) -> str | None:
        """Do the work of the present state."""
        state = self.life.state
        if self._is_stuck():
            return None
        if state == "JOB_STATE_QUEUED":
            return "due"
        if state == "JOB_STATE_PENDING":
            return self._import()
        if state == "JOB_STATE_RUNNING":
            return "window_over" if at >= self.deadline() and self._export(at) else self._work(at)
        self._error = {"code": _CANCELLED, "message": "The job was cancelled."}
        self._export(at)
        return "due"

    def _import(self) -> str:
        fault = self._fault("fails")
        if fault is not None:
            return self._fail(number(fault.code, _INTERNAL), fault.message)
        try:
            rows = self._read()
        except (StorageError, ApiError) as error:
            return self._fail(_FAILED_PRECONDITION, f"Cannot read the input: {error}")
        except ImportFailedError as error:
            return self._fail(_INVALID_ARGUMENT, str(error))
        model = self.body["model"].rpartition("/")[2]
        self._id_field = "key" if "key" in rows[0] else "custom_id"
        self._rows = RunningRows(self._shared, self.record, rows, model=model, id_field=self._id_field)
        return "due"

    def _read(self) -> list[Body]:
        source = self.body["inputConfig"]
        if "bigquerySource" in source:
            rows = self._tables.get(source["bigquerySource"]["inputUri"]).rows
            if not rows or any({"response", "status"} & row.keys() for row in rows):
                raise ImportFailedError("the table is empty, or has a column 'response' or 'status'.")
            return rows
        if self._storage is None:
            raise StorageError("the emulator was given no storage server")
        return import_rows(self._storage.read(source["gcsSource"]["uris"][0]))

    def _fail(self, code: int, message: str) -> str:
        self._error = {"code": code, "message": message}
        return "invalid"

    def _work(self, at: float) -> str:
        assert self._rows is not None
        short = self._fault("expires") or self._fault("cancels")
        stop = len(self._rows.rows) if short is None else int(len(self._rows.rows) * short.fraction)
        self._rows.run(stop)
        if len(self._rows.answers) >= stop and short is not None:
            if short.kind == "cancels":
                return "cancel"
            return "window_over" if self._export(at) else "invalid"
        if not self._rows.all_ran:
            return "work"
        return "due" if self._export(at) else "invalid"

    def _export(self, at: float) -> bool:
        """Write the rows that ran; False, with the error set, where that is not allowed."""
        rows = self._rows
        if rows is None or not rows.answers or self._fault("no_output_file") is not None:
            return True
        if "bigqueryDestination" in self.body["outputConfig"]:
            return self._export_table(rows, at)
        assert self._storage is not None
        file = ResultFile(self._shared.faults.whole_file(self.record.ordinal), self._id_field)
        for index in rows.order:
            if index in rows.answers:
                faults = self._shared.faults.file(self.record.ordinal, rows.custom_id(index), rows.raw(index))
                file.write(_row(rows.rows[index], *rows.answers[index], at), faults)
        blob = file.finish()
        prefix = self.body["outputConfig"]["gcsDestination"]["outputUriPrefix"].rstrip("/")
        directory = f"{prefix}/prediction-model-{rfc3339(at)}"
        try:
            # A file that lacks every line still exists: only the owner of the bucket removes it.
            content = b"" if blob is None else b"".join(blob.chunks())
            self._storage.write(f"{directory}/predictions.jsonl", content)
        except StorageError as error:
            self._error = {"code": _PERMISSION_DENIED, "message": f"Cannot write the output: {error}"}
            return False
        finally:
            if blob is not None:
                blob.close()
        self._directory = directory
        return True

    def _export_table(self, rows: RunningRows, at: float) -> bool:
        """Write results with the columns of the input, in any order of the rows."""
        done = [_row(rows.rows[index], *rows.answers[index], at) for index in rows.order if index in rows.answers]
        made = [{**row, "response": row["response"] or None} for row in done]
        kinds = {"request": "JSON", "response": "JSON", "processed_time": "TIMESTAMP"}
        schema = [{"name": name, "type": kinds.get(name, "STRING"), "mode": "NULLABLE"} for name in made[0]]
        made = [{**row, "processed_time": str(int(at * 1_000_000))} for row in made]
        try:
            self._tables.put(self.body["outputConfig"]["bigqueryDestination"]["outputUri"], Table(schema, made))
        except ApiError as error:
            self._error = {"code": _PERMISSION_DENIED, "message": f"Cannot write the output: {error}"}
            return False
        return True

    def as_json(self) -> Body:
        """Return the job as a GET answers it."""
        state = self.life.state
        odd = self._fault("status")
        shown = odd.status if odd is not None and odd.during in {"", state} else state
        job: Body = {**self.body, "name": self.record.id, "state": shown, "createTime": rfc3339(self._created_at)}
        job["updateTime"] = rfc3339(self.life.entered_at)
        if "JOB_STATE_RUNNING" in self.life.reached_at:
            job["startTime"] = rfc3339(self.life.reached_at["JOB_STATE_RUNNING"])
        if self._error is not None and self.life.ended:
            job["error"] = self._error
        if self.life.ended:
            job["endTime"] = rfc3339(self.life.entered_at)
            if self._directory is not None:
                job["outputInfo"] = {"gcsOutputDirectory": self._directory}
        if self._rows is not None and self.life.ended and state != "JOB_STATE_CANCELLED":
            good, ran = self._rows.succeeded, len(self._rows.answers)
            more = self._fault("miscounts") is not None
            left = str(len(self._rows.rows) - ran) if state == "JOB_STATE_EXPIRED" else "-1"
            stats = {"successfulCount": str(good + more), "failedCount": str(ran - good), "incompleteCount": left}
            job["completionStats"] = stats
        if self._fault("extra_fields") is not None:
            job["xEmulatorUnknown"] = {"since": "later"}
        return job


def _row(row: Body, status: int, answer: Body, at: float) -> Body:
    words = "" if ok(status) else f"{HTTPStatus(status).phrase}: {json.dumps(answer)}"
    if "embedding" in answer:
        # A count is a text there.
        answer = {**answer, "tokenCount": str(answer["tokenCount"])}
    return {"status": words, "processed_time": rfc3339(at), **row, "response": answer if ok(status) else {}}
