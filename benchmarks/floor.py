"""The floor: the same rows through the same service with nothing but a loop. No ledger, no archive, no retry, no price.

python -m benchmarks.floor openai|anthropic rows.parquet url folder

Rows are read, encoded, uploaded, downloaded, decoded, checked by pydantic and written in slices; nothing is held whole
but the keys.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

import benchmarks.bare  # noqa: F401  # before the first array
from benchmarks.inputs import ASK, read_batches
from benchmarks.labels import Label
from benchmarks.loading import FLOOR, load
from benchmarks.measure import Work

_SLICE = 4_096
_AT_MOST = {"openai": 50_000, "anthropic": 100_000}
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("row", pa.int64()),
        ("label", pa.string()),
        ("score", pa.float64()),
        ("topics", pa.list_(pa.string())),
        ("rationale", pa.string()),
    ]
)


class _Text(Struct):
    content: str = ""
    text: str = ""


class _Choice(Struct):
    message: _Text


class _Body(Struct):
    choices: list[_Choice]


class _Response(Struct):
    body: _Body


class _Message(Struct):
    content: list[_Text]


class _Result(Struct):
    message: _Message


class _OpenAILine(Struct):
    custom_id: str
    response: _Response


class _AnthropicLine(Struct):
    custom_id: str
    result: _Result


def _requests(service: str, rows: Iterator[pa.RecordBatch], keys: list[str]) -> Iterator[bytes]:
    """Slices of lines."""
    schema = Label.model_json_schema()
    encode = msgspec.json.Encoder().encode
    form = {"type": "json_schema", "json_schema": {"name": "Label", "strict": True, "schema": schema}}
    config = {"format": {"type": "json_schema", "schema": schema}}
    for batch in rows:
        lines = bytearray()
        for key, row, text in zip(*(batch.column(name).to_pylist() for name in ("id", "row", "text")), strict=True):
            messages = [{"role": "user", "content": f"#ROW:{row}#\n{ASK}{text}"}]
            body: dict[str, Any] = {"model": "m", "max_tokens": 200, "messages": messages}
            name = str(len(keys))
            if service == "openai":
                url = "/v1/chat/completions"
                body = {"custom_id": name, "method": "POST", "url": url, "body": body | {"response_format": form}}
            else:
                body = {"custom_id": name, "params": body | {"output_config": config}}
            lines += encode(body) + b"\n"
            keys.append(key)
            if len(keys) % _AT_MOST[service] == 0:
                yield bytes(lines)
                yield b""  # a batch is full
                lines.clear()
        yield bytes(lines)
    yield b""


def _send(service: str, client: httpx.Client, path: Path) -> str:
    if service == "openai":
        with path.open("rb") as file:
            upload = client.post("/v1/files", files={"file": ("b.jsonl", file)}, data={"purpose": "batch"}).json()
        asked = {"input_file_id": upload["id"], "endpoint": "/v1/chat/completions", "metadata": {}}
        return str(client.post("/v1/batches", json=asked).json()["id"])

    def body() -> Iterator[bytes]:
        yield b'{"requests":['
        left = path.stat().st_size - 1
        with path.open("rb") as file:
            while piece := file.read(min(1 << 16, left)):
                left -= len(piece)
                yield piece.replace(b"\n", b",")
        yield b"]}"

    return str(client.post("/v1/messages/batches", content=body()).json()["id"])


def _results(service: str, client: httpx.Client, batch: str) -> Iterator[bytes]:
    url = f"/v1/messages/batches/{batch}/results"
    if service == "openai":
        while (state := client.get(f"/v1/batches/{batch}").json())["status"] != "completed":
            time.sleep(0.01)
        url = f"/v1/files/{state['output_file_id']}/content"
    rest = b""
    with client.stream("GET", url) as response:
        for piece in response.iter_raw(1 << 20):
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines


def main(service: str, rows: str, url: str, folder: str) -> None:
    """Label the rows, and say what it took."""
    load(*FLOOR)
    work = Work()
    work.report(rows=label(service, rows, url, folder))


def label(service: str, rows: str, url: str, folder: str) -> int:
    """Label the rows, from one file into another. How many there are."""
    client = httpx.Client(base_url=url, timeout=600)
    keys: list[str] = []
    batches = []
    path = Path(folder) / "requests.jsonl"
    file = path.open("wb")
    for lines in _requests(service, read_batches(rows), keys):
        file.write(lines)
        if not lines and file.tell():
            file.close()
            batches.append(_send(service, client, path))
            file = path.open("wb")
    file.close()
    decoder = msgspec.json.Decoder(_OpenAILine if service == "openai" else _AnthropicLine)
    count = 0
    with pq.ParquetWriter(Path(folder) / "labels.parquet", _SCHEMA) as out:
        columns: list[list[Any]] = [[] for _ in _SCHEMA]
        for batch in batches:
            for line in _results(service, client, batch):
                one = decoder.decode(line)
                if service == "openai":
                    text = one.response.body.choices[0].message.content
                else:
                    text = one.result.message.content[0].text
                found = Label.model_validate_json(text)
                count += 1
                values = (keys[int(one.custom_id)], found.row, found.label, found.score, found.topics, found.rationale)
                for column, value in zip(columns, values, strict=True):
                    column.append(value)
                if len(columns[0]) == _SLICE:
                    out.write_table(pa.table(columns, schema=_SCHEMA))
                    columns = [[] for _ in _SCHEMA]
        out.write_table(pa.table(columns, schema=_SCHEMA))
    return count


if __name__ == "__main__":
    main(*sys.argv[1:])
