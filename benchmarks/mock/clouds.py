"""Bedrock's and Vertex AI's batch jobs, over files in a local S3 and Cloud Storage server."""

from __future__ import annotations

import json
import re
from io import BytesIO
from itertools import count
from typing import Any
from urllib.parse import unquote

from benchmarks.mock.answers import answer
from benchmarks.mock.server import Mock, Reply
from dagster_llm_batch.testing.emulator.gcs import Storage
from dagster_llm_batch.testing.emulator.s3 import S3

_RECORD = re.compile(rb'\{"recordId":"([^"]*)","modelInput":(.*)\}$')
_ROW = re.compile(rb'\{"custom_id":"([^"]*)","request":(.*)\}$')
_BEDROCK = (
    b'{"modelInput":%s,"modelOutput":{"model":"claude-haiku-4-5-20251001","id":"msg_bdrk","type":"message","role":"assist'
    b'ant","content":[{"type":"text","text":%s}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":%d'
    b',"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":%d}},"recordId":"%s"}\n'
)
_VERTEX = (
    b'{"custom_id":"%s","status":"","processed_time":"2026-11-01T00:00:00.000+00:00","request":%s,"response":{"candidates'
    b'":[{"content":{"parts":[{"text":%s}],"role":"model"},"finishReason":"STOP"}],"modelVersion":"gemini-2.5-flash","usa'
    b'geMetadata":{"promptTokenCount":%d,"candidatesTokenCount":%d,"totalTokenCount":%d}}}\n'
)


class Bedrock:
    """Model invocation jobs by ARN."""

    def __init__(self, mock: Mock, s3_url: str) -> None:
        self._s3 = S3(s3_url)
        self._jobs: dict[str, dict[str, Any]] = {}
        self._numbers = count()  # safe for simultaneous calls
        mock.route("POST", r"/model-invocation-job", self.create)
        mock.route("GET", r"/model-invocation-jobs", self.listed)
        mock.route("GET", r"/model-invocation-job/(.+)", lambda _request, name: self._jobs[unquote(name)])

    def listed(self, request: Any) -> Reply:
        """Return the jobs whose names contain the requested text."""
        name = request.query.get("nameContains", "")
        return {"invocationJobSummaries": [job for job in self._jobs.values() if name in job["jobName"]]}

    def create(self, request: Any) -> Reply:
        """Create a job, which ends immediately."""
        asked = request.json()
        bucket, _, key = asked["inputDataConfig"]["s3InputDataConfig"]["s3Uri"].removeprefix("s3://").partition("/")
        out = []
        for line in self._s3.read(bucket, key).splitlines():
            found = _RECORD.match(line)
            assert found is not None
            reply = answer(found[2])
            out.append(_BEDROCK % (found[2], reply.quoted, reply.input_tokens, reply.output_tokens, found[1]))
        name = f"{next(self._numbers):012d}"
        place = asked["outputDataConfig"]["s3OutputDataConfig"]["s3Uri"].removeprefix("s3://").partition("/")[2]
        self._s3.write(bucket, f"{place}{name}/requests.jsonl.out", BytesIO(b"".join(out)))
        counts = {"totalRecordCount": len(out), "processedRecordCount": len(out), "successRecordCount": len(out)}
        manifest = {**counts, "errorRecordCount": 0, "inputTokenCount": 0, "outputTokenCount": 0}
        self._s3.write(bucket, f"{place}{name}/manifest.json.out", BytesIO(json.dumps(manifest).encode()))
        arn = f"arn:aws:bedrock:us-east-1:123456789012:model-invocation-job/{name}"
        copied = ("jobName", "modelId", "roleArn", "inputDataConfig", "outputDataConfig", "clientRequestToken")
        times = dict.fromkeys(("submitTime", "lastModifiedTime", "endTime"), "2026-11-01T00:00:00Z")
        self._jobs[arn] = {name: asked[name] for name in copied} | {"jobArn": arn, "status": "Completed", **times}
        return {"jobArn": arn}


class Vertex:
    """Batch prediction jobs by name."""

    def __init__(self, mock: Mock, storage_url: str) -> None:
        self._storage = Storage(storage_url)
        self._jobs: dict[str, dict[str, Any]] = {}
        self._numbers = count()  # safe for simultaneous calls
        mock.route("POST", r"/v1/(projects/[^/]+/locations/[^/]+)/batchPredictionJobs", self.create)
        mock.route("GET", r"/v1/projects/[^/]+/locations/[^/]+/batchPredictionJobs", self.listed)
        mock.route("GET", r"/v1/(projects/.+)", lambda _request, name: self._jobs[name])

    def listed(self, _request: Any) -> Reply:
        """Return all jobs, newest first."""
        return {"batchPredictionJobs": list(reversed(self._jobs.values()))}

    def create(self, request: Any, parent: str) -> Reply:
        """Create a job, which ends immediately."""
        asked = request.json()
        out = []
        for line in self._storage.read(asked["inputConfig"]["gcsSource"]["uris"][0]).splitlines():
            found = _ROW.match(line)
            assert found is not None
            reply = answer(found[2])
            tokens = (reply.input_tokens, reply.output_tokens, reply.input_tokens + reply.output_tokens)
            out.append(_VERTEX % (found[1], found[2], reply.quoted, *tokens))
        number = next(self._numbers)
        name = f"{parent}/batchPredictionJobs/{number:019d}"
        folder = f"{asked['outputConfig']['gcsDestination']['outputUriPrefix']}/prediction-{number}"
        self._storage.write(f"{folder}/predictions.jsonl", b"".join(out))
        self._jobs[name] = asked | {
            "name": name,
            "state": "JOB_STATE_SUCCEEDED",
            "createTime": "2026-11-01T00:00:00Z",
            "endTime": "2026-11-01T00:00:00Z",
            "outputInfo": {"gcsOutputDirectory": folder},
            "completionStats": {"successfulCount": str(len(out)), "failedCount": "0", "incompleteCount": "0"},
        }
        return self._jobs[name]
