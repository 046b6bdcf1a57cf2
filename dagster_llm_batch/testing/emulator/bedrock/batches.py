"""A Bedrock batch job: its work in each state, its files in S3, and the object that describes it.

https://docs.aws.amazon.com/bedrock/latest/userguide/batch-inference.html
The input is checked while the job validates: faults of the whole file fail the job then, and a fault of a record fails
the record when it runs. Results appear while the job runs; the manifest is written last.
"""

from __future__ import annotations

import io
import json
import math
import random
from dataclasses import dataclass, field

from dagster_llm_batch.testing.emulator.batches import EmulatedBatch
from dagster_llm_batch.testing.emulator.bedrock.requests import Request, respond
from dagster_llm_batch.testing.emulator.bedrock.wire import Body, iso
from dagster_llm_batch.testing.emulator.books import BatchRecord
from dagster_llm_batch.testing.emulator.lifecycle import Edge, Lifecycle
from dagster_llm_batch.testing.emulator.openai.results import ResultFile
from dagster_llm_batch.testing.emulator.s3 import S3
from dagster_llm_batch.testing.emulator.shared_state import SharedState

# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_GetModelInvocationJob.html
LIFECYCLE = Lifecycle(
    start="Submitted",
    edges=(
        Edge("Submitted", "due", "Validating"),
        Edge("Submitted", "window_over", "Expired"),
        Edge("Submitted", "cancel", "Stopping"),
        Edge("Validating", "due", "Scheduled"),
        Edge("Validating", "invalid", "Failed"),
        Edge("Validating", "cancel", "Stopping"),
        Edge("Scheduled", "due", "InProgress"),
        Edge("Scheduled", "window_over", "Expired"),
        Edge("Scheduled", "cancel", "Stopping"),
        Edge("InProgress", "work", "InProgress"),  # some records ran, more are left
        Edge("InProgress", "due", "Completed"),
        Edge("InProgress", "window_over", "PartiallyCompleted"),
        Edge("InProgress", "expire", "Expired"),
        Edge("InProgress", "cancel", "Stopping"),
        Edge("Stopping", "due", "Stopped"),
    ),
)

_OK = 200
_HOUR = 3600


class InvalidInputError(Exception):
    """The job cannot run; the text is its message."""


@dataclass
class Counts:
    """Counts of the records by result so far."""

    total: int = 0
    processed: int = 0
    succeeded: int = 0
    failed: int = 0
    tokens: list[int] = field(default_factory=lambda: [0, 0])


class BedrockJob(EmulatedBatch):
    """One job, from its creation to its end."""

    def __init__(self, shared: SharedState, s3: S3 | None, record: BatchRecord, body: Body) -> None:
        self._s3 = s3
        self.body = body
        self.created_at = shared.clock()
        self._expires_at = self.created_at + body.get("timeoutDurationInHours", 24) * _HOUR
        super().__init__(shared, record, LIFECYCLE, self.created_at)
        self._records: list[Body] = []
        self._order: list[int] = []
        self._counts = Counts()
        self._message: str | None = None
        self._output = ResultFile(shared.faults.whole_file(record.ordinal), "recordId")
        self._name = ""

    def deadline(self) -> float:
        """Return when the job's own timeout is over."""
        return (
            self._expires_at if self.life.state in {"Submitted", "Validating", "Scheduled", "InProgress"} else math.inf
        )

    def step(self, at: float) -> str | None:
        """Do the work of the present state."""
        state = self.life.state
        if self._is_stuck():
            return None
        if state == "Validating":
            return self._validate()
        if state == "InProgress":
            return self._window_over() if at >= self._expires_at else self._work()
        if state == "Stopping":
            self._write(last=True)
            return "due"
        return "window_over" if at >= self._expires_at else "due"

    def _validate(self) -> str:
        fault = self._fault("fails")
        try:
            if fault is not None:
                raise InvalidInputError(fault.message)
            self._records = self._read()
        except InvalidInputError as error:
            self._message = str(error)
            return "invalid"
        self._counts.total = len(self._records)
        self._order = list(range(len(self._records)))
        random.Random(f"{self._shared.seed}:{self.record.ordinal}").shuffle(self._order)  # noqa: S311
        return "due"

    def _read(self) -> list[Body]:
        limits = self._shared.limits
        if self._s3 is None:
            raise InvalidInputError("The emulator was given no S3 server.")
        bucket, _, key = self.body["inputDataConfig"]["s3InputDataConfig"]["s3Uri"].removeprefix("s3://").partition("/")
        keys = [one for one in self._s3.keys(bucket, key) if one.endswith(".jsonl")]
        if not keys:
            raise InvalidInputError(f"No .jsonl file was found at s3://{bucket}/{key}, or it cannot be read.")
        self._name = keys[0].rsplit("/", 1)[-1]
        records: list[Body] = []
        for one in keys:
            data = self._s3.read(bucket, one)
            if len(data) > limits.bedrock_file_bytes:
                raise InvalidInputError(f"The input file {one} is larger than {limits.bedrock_file_bytes} bytes.")
            records += [_parsed(line, number) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
        if len(records) < limits.bedrock_min_records:
            raise InvalidInputError(
                f"The number of records, {len(records)}, is below the model's minimum of {limits.bedrock_min_records}."
            )
        if len(records) > limits.batch_requests:
            raise InvalidInputError(f"The job has {len(records)} records, more than {limits.batch_requests}.")
        for record in records:
            record.setdefault("recordId", self._shared.new_id("").upper()[:11])
        return records

    def _work(self) -> str:
        total, counts = len(self._order), self._counts
        end = min(total, counts.processed + math.ceil(total / self._shared.work_steps))
        short = self._fault("expires") or self._fault("cancels")
        stop = total if short is None else min(total, int(total * short.fraction))
        while counts.processed < min(end, stop) and self.life.state == "InProgress":
            self._run(self._records[self._order[counts.processed]])
            counts.processed += 1
        over = short is not None and counts.processed >= stop
        self._write(last=over or counts.processed == total)
        if over:
            return "expire" if short.kind == "expires" else "cancel"
        return "due" if counts.processed == total else "work"

    def _window_over(self) -> str:
        self._write(last=True)
        self._message = "The job timed out before all records were processed."
        return "window_over"

    def _run(self, record: Body) -> None:
        raw, record_id, faults = json.dumps(record).encode(), str(record["recordId"]), self._shared.faults
        bent = faults.file(self.record.ordinal, record_id, raw)
        request = Request(
            account=self.record.account,
            model=self.body["modelId"],
            converse=self.body.get("modelInvocationType") == "Converse",
            body=record["modelInput"],
            batch_id=self.record.id,
            record_id=record_id,
            faults=faults.row(self.record.ordinal, record_id, raw),
            with_line_separator=any(fault.kind == "u2028" for fault in bent),
        )
        status, output, tokens = respond(self._shared, request)
        row = {"recordId": record_id, "modelInput": record["modelInput"]}
        if status == _OK:
            row["modelOutput"] = output
            self._counts.succeeded += 1
        else:
            row["error"] = {"errorCode": status, "errorMessage": output}
            self._counts.failed += 1
        self._counts.tokens = [old + new for old, new in zip(self._counts.tokens, tokens, strict=True)]
        if any(fault.kind == "extra_fields" for fault in bent):
            row["x_emulator_unknown"] = {"nested": [1, None, "future"]}
        self._output.write(row, [fault for fault in bent if fault.kind not in {"u2028", "extra_fields"}])

    def _write(self, *, last: bool) -> None:
        if self._s3 is None or (self._fault("no_output_file") is not None):
            return
        place = self.body["outputDataConfig"]["s3OutputDataConfig"]["s3Uri"].removeprefix("s3://")
        bucket, _, folder = place.partition("/")
        folder = "/".join(part for part in (folder.rstrip("/"), self.record.id.rsplit("/", 1)[-1]) if part)
        if self._counts.processed:
            self._s3.write(bucket, f"{folder}/{self._name}.out", self._output.so_far())
        if last:
            counts = self._counts
            manifest = {
                "totalRecordCount": counts.total,
                "processedRecordCount": counts.processed,
                "successRecordCount": counts.succeeded,
                "errorRecordCount": counts.failed,
                "inputTokenCount": counts.tokens[0],
                "outputTokenCount": counts.tokens[1],
            }
            self._s3.write(bucket, f"{folder}/manifest.json.out", io.BytesIO(json.dumps(manifest).encode()))

    def close(self) -> None:
        """Release written results."""
        self._output.close()

    def as_json(self) -> Body:
        """https://docs.aws.amazon.com/bedrock/latest/APIReference/API_GetModelInvocationJob.html"""
        state, counts = self.life.state, self._counts
        odd = self._fault("status")
        shown = odd.status if odd is not None and odd.during in {"", state} else state
        counted = (
            {}
            if self._fault("no_counts")
            else {
                "totalRecordCount": counts.total,
                "processedRecordCount": counts.processed + (self._fault("miscounts") is not None),
                "successRecordCount": counts.succeeded,
                "errorRecordCount": counts.failed,
            }
        )
        given = {name: self.body[name] for name in _SHOWN if name in self.body}
        return {
            "jobArn": self.record.id,
            **given,
            "status": shown,
            "submitTime": iso(self.created_at),
            "lastModifiedTime": iso(self.life.entered_at),
            "jobExpirationTime": iso(self._expires_at),
            **({"endTime": iso(self.life.entered_at)} if self.life.ended else {}),
            **({"message": self._message} if self._message is not None else {}),
            **(counted if state not in {"Submitted", "Validating"} else {}),
            **({"xEmulatorUnknown": {"since": "later"}} if self._fault("extra_fields") is not None else {}),
        }


_SHOWN = (
    "jobName",
    "modelId",
    "clientRequestToken",
    "roleArn",
    "inputDataConfig",
    "outputDataConfig",
    "vpcConfig",
    "timeoutDurationInHours",
    "modelInvocationType",
)


def _parsed(line: bytes, number: int) -> Body:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("modelInput"), dict):
        raise InvalidInputError(f"Record {number} is not a JSON object with a modelInput.")
    if not isinstance(record.get("recordId", ""), str):
        raise InvalidInputError(f"Record {number}: recordId must be a string.")
    return record
