r"""Request and result tables of Vertex AI in BigQuery, through the official SDK, which uploads in pieces of 100 MB.

    <dataset>.<tag>_<checksum>                    custom_id STRING, request JSON
    <dataset>.<tag>_<checksum>_<number>_results   the same columns, with response, status and processed_time

The service copies every column of the input but `request` unchanged to the output, which identifies the rows. A row
comes back in the form of a line of a result file.

https://cloud.google.com/vertex-ai/generative-ai/docs/multimodal/batch-prediction-from-bigquery
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import IO, TYPE_CHECKING, Any, cast

from dagster_llm_batch.errors import ProviderError, TransientError
from dagster_llm_batch.providers.answers import UnknownIdError, refuse_lost
from dagster_llm_batch.providers.google.files import CHUNK_BYTES
from dagster_llm_batch.types import BatchReport

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

__all__ = ["VertexTables", "is_own_table"]

# The SDK's default is ten minutes a call. The caller of a provider tries again, and has less time than that.
_RETRY_SECONDS = 10.0
_UPLOAD_RETRIES = 2
_JSON_COLUMNS = ("request", "response")


class VertexTables:
    """Tables of any dataset. The client is built on the first call.

    `calls` is the context in which a call is made; it turns exceptions of the SDK into our errors. `page_rows` is how
    many rows of results one call reads.
    """

    def __init__(
        self,
        client: Callable[[], Client],
        timeout_seconds: float,
        calls: Callable[[str], AbstractContextManager[None]],
        page_rows: int,
    ) -> None:
        self._make = client
        self._made: Client | None = None
        self._timeout_seconds = timeout_seconds
        self._calls = calls
        self._page_rows = page_rows

    def upload(self, dataset: str, tag: str, file: IO[bytes], size: int) -> str:
        """Load the lines into the tag's table in `project.dataset`, and return its bq:// address.

        This replaces the rows that an earlier try left. The table's name holds their checksum: if a create call made no
        batch after all, the same tag may be sent with other rows.
        """
        from google.cloud.bigquery import LoadJobConfig, SchemaField  # noqa: PLC0415 -- an optional extra
        from google_crc32c import Checksum  # noqa: PLC0415 -- comes with the SDK

        # this also lets two creates of the same rows share one table, and keeps different rows from overwriting each
        # other's
        digest = Checksum()
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
        file.seek(0)
        name = f"{dataset}.{_in_name(tag)}_{digest.hexdigest().decode('ascii')}"
        config = LoadJobConfig(
            source_format="NEWLINE_DELIMITED_JSON",
            write_disposition="WRITE_TRUNCATE",
            schema=[SchemaField("custom_id", "STRING", "REQUIRED"), SchemaField("request", "JSON", "REQUIRED")],
        )
        seconds = self._timeout_seconds
        with self._calls(f"load {name}"):
            source = cast("IO[bytes]", _Source(file))
            job = self._client().load_table_from_file(
                source, name, size=size, num_retries=_UPLOAD_RETRIES, job_config=config, timeout=seconds
            )
            job.result(retry=self._retry(), timeout=seconds)
        return f"bq://{name}"

    def results_of(self, uri: str) -> str:
        """Return the address of the results for a new batch of this request table, a separate table for each batch."""
        return f"{uri}_{uuid.uuid4().hex[:8]}_results"

    def delete(self, uri: str) -> None:
        """Remove the table, if that is possible; errors are ignored."""
        # the error that led here matters more
        with suppress(ProviderError):
            self.delete_table(uri)

    def delete_table(self, uri: str) -> None:
        """Remove the table."""
        with suppress(UnknownIdError), self._calls(f"delete {uri}"):
            self._client().delete_table(_name(uri), retry=self._retry(), timeout=self._timeout_seconds)

    def lines(self, uri: str, report: BatchReport) -> Iterator[bytes]:
        """Yield the rows of the table as result lines. Yields nothing if the table does not exist as no row finished.

        Raises UnknownIdError if rows finished, and the table is gone: tables of a dataset may expire.
        """
        try:
            with self._calls(f"read {uri}"):
                table = self._client().get_table(_name(uri), retry=self._retry(), timeout=self._timeout_seconds)
        except UnknownIdError:
            refuse_lost(report, f"table {uri}")
            return
        with self._calls(f"read {uri}"):
            seconds, retry = self._timeout_seconds, self._retry()
            rows = self._client().list_rows(table, page_size=self._page_rows, retry=retry, timeout=seconds)
            found, expected = iter(rows), table.num_rows
        got = 0
        while True:
            with self._calls(f"read {uri}"):
                row = next(found, None)
                line = None if row is None else _line(row.items())
            if line is None:
                break
            got += 1
            yield line
        if expected is not None and got < expected:
            raise TransientError(f"Could not read {uri}: got {got} of {expected} rows.")

    def _retry(self) -> Any:
        from google.cloud.bigquery import DEFAULT_RETRY  # noqa: PLC0415 -- an optional extra

        return DEFAULT_RETRY.with_timeout(min(self._timeout_seconds, _RETRY_SECONDS))

    def _client(self) -> Client:
        if self._made is None:
            self._made = self._make()
        return self._made


class _Source:
    """A file without a mode: the SDK takes the mode of a temporary file for text."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.tell, self.seek = file.read, file.tell, file.seek


def is_own_table(uri: str, job: Mapping[str, Any]) -> bool:
    """Return whether this package gave a table of such a job its name, which contains the job's tag."""
    form = rf"{re.escape(_in_name(str(job.get('displayName'))))}_[0-9a-f]{{8}}(_[0-9a-f]{{8}}_results)?"
    return re.fullmatch(form, uri.rpartition(".")[2]) is not None


def _in_name(tag: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", tag)


def _name(uri: str) -> str:
    return uri.removeprefix("bq://")


def _line(columns: Any) -> bytes:
    values = {name: value for name, value in columns if value is not None}
    for name in _JSON_COLUMNS:
        # Some tables have the JSON as text.
        if isinstance(values.get(name), str):
            try:
                values[name] = json.loads(values[name])
            except (ValueError, RecursionError):
                continue
    return json.dumps(values, separators=(",", ":"), default=str).encode("ascii") + b"\n"
