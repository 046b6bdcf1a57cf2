"""The services of the floor: the formats of a request, a batch and a result line."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import msgspec
import pyarrow as pa
from msgspec import Struct

from benchmarks.floor_forms import Form
from benchmarks.inputs import ASK

_PIECE_BYTES = 1 << 16


class _Text(Struct, gc=False):
    content: str


class _Choice(Struct, gc=False):
    message: _Text


class _Used(Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int = 0


class _Chat(Struct, gc=False):
    choices: list[_Choice]
    usage: _Used


class _Vector(Struct, gc=False):
    embedding: list[float]


class _Vectors(Struct, gc=False):
    data: list[_Vector]
    usage: _Used


class _ChatResponse(Struct, gc=False):
    status_code: int
    body: _Chat


class _VectorResponse(Struct, gc=False):
    status_code: int
    body: _Vectors


class _ChatLine(Struct, gc=False):
    custom_id: str
    response: _ChatResponse


class _VectorLine(Struct, gc=False):
    custom_id: str
    response: _VectorResponse


class _Part(Struct, gc=False):
    text: str


class _Tokens(Struct, gc=False):
    input_tokens: int
    output_tokens: int


class _Message(Struct, gc=False):
    content: list[_Part]
    usage: _Tokens


class _Result(Struct, gc=False):
    message: _Message


class _MessageLine(Struct, gc=False):
    custom_id: str
    result: _Result


class Wire(ABC):
    """One service, and the form of its answers.

    `head` and `tail` enclose all lines of a file, and `separator` precedes each line.
    """

    most_requests: int
    most_bytes: int
    head = b""
    tail = b""
    separator = b""

    def __init__(self, form: Form) -> None:
        self.form = form

    @abstractmethod
    def pieces(self) -> tuple[bytes, bytes, bytes, bytes]:
        """Return the constant pieces before the request's number, the row's number and the row's text, and after it."""

    @abstractmethod
    def send(self, client: httpx.Client, lines: io.BufferedReader) -> str:
        """Create a batch; return its id."""

    @abstractmethod
    def results_url(self, client: httpx.Client, batch: str) -> str | None:
        """Return the address of the results; None while the batch runs."""

    @abstractmethod
    def line_type(self) -> type[Any]:
        """Return the type of a result line."""

    @abstractmethod
    def columns(self, lines: Sequence[Any]) -> list[pa.Array]:
        """Return the columns of the answers and of their tokens."""


class OpenAI(Wire):
    """A batch is created from an uploaded file."""

    most_requests = 50_000
    most_bytes = 199 << 20

    def pieces(self) -> tuple[bytes, bytes, bytes, bytes]:
        body: dict[str, Any] = {"model": "text-embedding-3-small"}
        if self.form.schema is None:
            content, after = b',"input":"', b"}}\n"
        else:
            strict = {
                "type": "json_schema",
                "json_schema": {"name": "Label", "strict": True, "schema": self.form.schema},
            }
            body = {"model": "gpt-4o-mini", "max_tokens": 200, "response_format": strict}
            content, after = b',"messages":[{"role":"user","content":"', b"}]}}\n"
        url = self._url().encode()
        before_row = b'","method":"POST","url":"%s","body":%s%s#ROW:' % (url, _opened(body), content)
        return b'{"custom_id":"', before_row, _QUESTION, after

    def send(self, client: httpx.Client, lines: io.BufferedReader) -> str:
        upload = client.post("/v1/files", files={"file": ("b.jsonl", lines)}, data={"purpose": "batch"}).json()
        asked = {"input_file_id": upload["id"], "endpoint": self._url(), "completion_window": "24h"}
        return str(client.post("/v1/batches", json=asked).json()["id"])

    def results_url(self, client: httpx.Client, batch: str) -> str | None:
        state = client.get(f"/v1/batches/{batch}").json()
        return f"/v1/files/{state['output_file_id']}/content" if state["status"] == "completed" else None

    def line_type(self) -> type[Any]:
        return _VectorLine if self.form.schema is None else _ChatLine

    def columns(self, lines: Sequence[Any]) -> list[pa.Array]:
        bodies = [line.response.body for line in lines]
        if self.form.schema is None:
            replies = [body.data[0].embedding for body in bodies]
        else:
            replies = [body.choices[0].message.content for body in bodies]
        used = [pa.array([body.usage.prompt_tokens for body in bodies])]
        used.append(pa.array([body.usage.completion_tokens for body in bodies]))
        return [*self.form.read(replies), *used]

    def _url(self) -> str:
        return "/v1/embeddings" if self.form.schema is None else "/v1/chat/completions"


class Anthropic(Wire):
    """The call that creates a batch contains its requests."""

    most_requests = 100_000
    most_bytes = 255 << 20
    head = b'{"requests":['
    tail = b"]}"
    separator = b","

    def pieces(self) -> tuple[bytes, bytes, bytes, bytes]:
        wanted = {"format": {"type": "json_schema", "schema": self.form.schema}}
        body = _opened({"model": "claude-haiku-4-5", "max_tokens": 200, "output_config": wanted})
        before_row = b'","params":%s,"messages":[{"role":"user","content":"#ROW:' % body
        return b',{"custom_id":"', before_row, _QUESTION, b"}]}}"

    def send(self, client: httpx.Client, lines: io.BufferedReader) -> str:
        def body() -> Iterator[bytes]:
            while piece := lines.read(_PIECE_BYTES):
                yield piece

        headers = {"content-type": "application/json"}
        return str(client.post("/v1/messages/batches", content=body(), headers=headers).json()["id"])

    def results_url(self, client: httpx.Client, batch: str) -> str | None:
        state = client.get(f"/v1/messages/batches/{batch}").json()
        return f"/v1/messages/batches/{batch}/results" if state["processing_status"] == "ended" else None

    def line_type(self) -> type[Any]:
        return _MessageLine

    def columns(self, lines: Sequence[Any]) -> list[pa.Array]:
        messages = [line.result.message for line in lines]
        used = [pa.array([message.usage.input_tokens for message in messages])]
        used.append(pa.array([message.usage.output_tokens for message in messages]))
        return [*self.form.read([message.content[0].text for message in messages]), *used]


def _opened(body: dict[str, Any]) -> bytes:
    """Return the JSON of an object without its last bracket."""
    return msgspec.json.encode(body)[:-1]


_QUESTION = msgspec.json.encode("#\n" + ASK)[1:-1]
WIRES: dict[str, type[Wire]] = {"openai": OpenAI, "anthropic": Anthropic}
