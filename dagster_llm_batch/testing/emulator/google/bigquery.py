"""BigQuery, as far as batches of Vertex AI need it: load jobs by upload, tables, and their rows in pages.

https://cloud.google.com/bigquery/docs/reference/rest. There is one dataset, `emulator`; others are not found. Loads run
at once and check their rows as BigQuery does: one JSON object a line, no unknown column, required ones there.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from email.parser import BytesParser
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from dagster_llm_batch.testing.emulator.google.routes import Handler, cloud_caller, google_app
from dagster_llm_batch.testing.emulator.google.wire import ApiError, Body
from dagster_llm_batch.testing.emulator.shared_state import SharedState

BIGQUERY = "/bigquery"
"""The path of BigQuery on the emulator: the API endpoint of a client ends with it."""

DATASET = "emulator"
_ROOT = f"{BIGQUERY}/bigquery/v2/projects/{{project}}"
_UPLOAD = f"{BIGQUERY}/upload/bigquery/v2/projects/{{project}}/jobs"
_MOST_ROWS = 1_000
_PREFIX = "bq://"


@dataclass
class Table:
    """Columns with their types, and rows."""

    schema: list[Body]
    rows: list[Body] = field(default_factory=list)


class Tables:
    """All tables, by `project.dataset.table`."""

    def __init__(self) -> None:
        self._tables: dict[str, Table] = {}
        self._lock = threading.Lock()

    def get(self, uri: str) -> Table:
        """Return the table at this bq:// address, or a 404."""
        name = uri.removeprefix(_PREFIX)
        with self._lock:
            found = self._tables.get(name)
        if found is None:
            raise ApiError(404, f"Not found: Table {name}")
        return found

    def put(self, uri: str, table: Table) -> None:
        """Write the table in the place of any other; a 404 if the dataset does not exist."""
        name = uri.removeprefix(_PREFIX)
        if name.split(".")[1:2] != [DATASET]:
            raise ApiError(404, f"Not found: Dataset {name.rpartition('.')[0]}")
        with self._lock:
            self._tables[name] = table

    def delete(self, uri: str) -> None:
        """Remove the table, or a 404."""
        self.get(uri)
        with self._lock:
            del self._tables[uri.removeprefix(_PREFIX)]


class BigQueryRoutes:
    """The routes of BigQuery, on the state that the emulated vendors share."""

    def __init__(self, shared: SharedState, tables: Tables) -> None:
        self._shared = shared
        self._tables = tables
        self._jobs: dict[str, Body] = {}
        self._uploads: dict[str, tuple[Body, bytearray]] = {}

    def app(self) -> Starlette:
        """Return the routes as an ASGI app."""
        table = f"{_ROOT}/datasets/{{dataset}}/tables/{{table}}"
        routes: tuple[tuple[str, str, Handler], ...] = (
            ("POST", _UPLOAD, self._start),
            ("PUT", _UPLOAD, self._chunk),
            ("GET", f"{_ROOT}/jobs/{{id}}", self._job),
            ("GET", f"{table}/data", self._data),
            ("GET", table, self._table),
            ("DELETE", table, self._delete),
        )
        return google_app(routes, cloud_caller(self._shared))

    async def _start(self, request: HttpRequest, account: str) -> Response:
        """Take an upload in one go, or start a resumable one."""
        del account
        body = await request.body()
        if request.query_params.get("uploadType") == "multipart":
            metadata, data = _parts(request.headers["content-type"], body)
            return JSONResponse(self._load(metadata, data))
        number = self._shared.new_id("upload-")
        self._uploads[number] = (json.loads(body), bytearray())
        where = f"{request.url.scheme}://{request.url.netloc}{request.url.path}?uploadType=resumable&upload_id={number}"
        return Response(headers={"location": where})

    async def _chunk(self, request: HttpRequest, account: str) -> Response:
        del account
        metadata, data = self._uploads[request.query_params["upload_id"]]
        data += await request.body()
        total = request.headers["content-range"].rpartition("/")[2]
        if not total.isdigit() or len(data) < int(total):
            return Response(status_code=308, headers={"range": f"bytes=0-{len(data) - 1}"})
        return JSONResponse(self._load(metadata, bytes(data)))

    def _load(self, metadata: Body, data: bytes) -> Body:
        load = metadata["configuration"]["load"]
        target = load["destinationTable"]
        uri = ".".join(target[name] for name in ("projectId", "datasetId", "tableId"))
        reference = metadata["jobReference"]
        job: Body = {**metadata, "jobReference": {"location": "US", **reference}, "status": {"state": "DONE"}}
        if load.get("sourceFormat") != "NEWLINE_DELIMITED_JSON" or load.get("writeDisposition") != "WRITE_TRUNCATE":
            raise ApiError(400, "The emulator loads NEWLINE_DELIMITED_JSON with WRITE_TRUNCATE.")
        schema = load["schema"]["fields"]
        try:
            rows = [_row(raw, number, schema) for number, raw in enumerate(data.split(b"\n"), 1) if raw.strip()]
        except ValueError as error:
            wrong = {"reason": "invalid", "message": f"Error while reading data, error message: {error}"}
            job["status"] |= {"errorResult": wrong, "errors": [wrong]}
        else:
            self._tables.put(uri, Table(schema, rows))
            job["statistics"] = {"load": {"outputRows": str(len(rows))}}
        self._jobs[reference["jobId"]] = job
        return job

    async def _job(self, request: HttpRequest, account: str) -> Response:
        del account
        job = self._jobs.get(request.path_params["id"])
        if job is None:
            raise ApiError(404, f"Not found: Job {request.path_params['id']}")
        return JSONResponse(job)

    async def _table(self, request: HttpRequest, account: str) -> Response:
        del account
        table, given = self._tables.get(_uri(request)), request.path_params
        reference = {"projectId": given["project"], "datasetId": given["dataset"], "tableId": given["table"]}
        schema = {"fields": table.schema}
        return JSONResponse(
            {"tableReference": reference, "type": "TABLE", "schema": schema, "numRows": str(len(table.rows))}
        )

    async def _data(self, request: HttpRequest, account: str) -> Response:
        del account
        table = self._tables.get(_uri(request))
        start = int(request.query_params.get("pageToken") or 0)
        end = start + min(int(request.query_params.get("maxResults") or _MOST_ROWS), _MOST_ROWS)
        names = [column["name"] for column in table.schema]
        rows = [{"f": [{"v": _cell(row.get(name))} for name in names]} for row in table.rows[start:end]]
        more = {"pageToken": str(end)} if end < len(table.rows) else {}
        return JSONResponse({"totalRows": str(len(table.rows)), "rows": rows, **more})

    async def _delete(self, request: HttpRequest, account: str) -> Response:
        del account
        self._tables.delete(_uri(request))
        return Response(status_code=204)


def _uri(request: HttpRequest) -> str:
    return ".".join(request.path_params[name] for name in ("project", "dataset", "table"))


def _row(raw: bytes, number: int, schema: list[Body]) -> Body:
    row = json.loads(raw)
    if not isinstance(row, dict):
        raise ValueError(f"Row {number} is no JSON object")  # noqa: TRY004 -- what a load job reports
    names = {column["name"] for column in schema}
    if unknown := row.keys() - names:
        raise ValueError(f"Row {number}: No such field: {min(unknown)}")
    for column in schema:
        value = row.get(column["name"])
        if value is None and column.get("mode") == "REQUIRED":
            raise ValueError(f"Row {number}: Missing required field: {column['name']}")
        if column["type"] == "STRING" and value is not None and not isinstance(value, str):
            raise ValueError(f"Row {number}: Field {column['name']} is no string")
    return row


def _cell(value: Any) -> str | None:
    """Return a value as the API gives it: JSON as text."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parts(content_type: str, body: bytes) -> tuple[Body, bytes]:
    """Metadata and data of a multipart/related upload."""
    boundary = BytesParser().parsebytes(f"content-type: {content_type}\r\n\r\n".encode()).get_boundary()
    pieces = body.split(f"--{boundary}".encode())
    metadata, data = (piece.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for piece in pieces[1:3])
    return json.loads(metadata), data
