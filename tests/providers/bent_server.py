"""The emulator with answers like other servers of OpenAI's Batch API: recorded differences of each, and no more.

The facts equal those in `dagster_llm_batch.providers.openai_api.servers`, read a second time from the same records.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

from serving import served

from dagster_llm_batch.testing.emulator import Emulator

_HOP = {"host", "connection", "content-length", "transfer-encoding", "date", "server"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def as_json(self, value: Any) -> Answer:
        return self._replace(body=json.dumps(value).encode())


class Call(NamedTuple):
    method: str
    path: str  # below the base address, with the query


Bend = Callable[[Call, Answer], Answer]


def each_batch(answer: Answer, change: Callable[[dict[str, Any]], None]) -> Answer:
    """Return the answer after a change of each batch in it."""
    value = json.loads(answer.body)
    found = value["data"] if value.get("object") == "list" else [value]
    for one in found:
        if one.get("object") == "batch":
            change(one)
    return answer.as_json(value)


def is_about_batches(call: Call, answer: Answer) -> bool:
    return call.path.startswith("/batches") and answer.status == 200


def groq(call: Call, answer: Answer) -> Answer:
    """groq 1.7.0: the list takes no arguments, and has neither first_id, last_id nor has_more."""
    if call.path.partition("?")[0] == "/batches" and call.method == "GET":
        return answer.as_json({"object": "list", "data": json.loads(answer.body)["data"]})
    return answer


EMPTY = "file-empty"


def deepinfra(call: Call, answer: Answer) -> Answer:
    """Answer like captures of 2026-09-21.

    Counts are null until the file is validated, and in a failed batch. An error file is named even if all rows
    succeeded. Errors are {"detail": …}.
    """
    if call.path == f"/files/{EMPTY}/content":
        return Answer(200, {"content-type": "application/octet-stream"}, b"")
    if call.path == f"/files/{EMPTY}" and call.method == "DELETE":
        return answer._replace(status=200).as_json({"id": EMPTY, "object": "file", "deleted": True})
    if answer.status >= 400:
        return answer.as_json({"detail": json.loads(answer.body)["error"]["message"]})

    def change(batch: dict[str, Any]) -> None:
        if batch["status"] in ("validating", "failed"):
            batch["request_counts"] = batch["usage"] = None
        if batch["status"] == "completed":
            batch["error_file_id"] = batch["error_file_id"] or EMPTY

    return each_batch(answer, change) if is_about_batches(call, answer) else answer


def parasail(call: Call, answer: Answer) -> Answer:
    """Answer like captures of 2026-09.

    expires_at is null, a file's content is a redirect, and a 401 is plain text. Deleting an unknown file reports that
    it is deleted. The redirect leads to another host there; here it stays on this one.
    """
    if call.path.startswith("/files/") and call.path.endswith("/content") and answer.status == 200:
        return Answer(302, {"location": f"/v1/signed{call.path}"}, b"")
    if call.method == "DELETE" and answer.status == 404:
        return answer._replace(status=200).as_json({"id": call.path[7:], "object": "file", "deleted": True})
    if answer.status == 401:
        return Answer(401, {"content-type": "text/plain"}, b"Unauthorized")

    def change(batch: dict[str, Any]) -> None:
        batch["expires_at"] = None

    return each_batch(answer, change) if is_about_batches(call, answer) else answer


def without_metadata(call: Call, answer: Answer) -> Answer:
    """Answer like a server without metadata, the worst case of a server that may keep it."""

    def change(batch: dict[str, Any]) -> None:
        batch["metadata"] = None

    return each_batch(answer, change) if is_about_batches(call, answer) else answer


def as_openai(_call: Call, answer: Answer) -> Answer:
    """Answer like OpenAI: the server is documented so, and other differences are not recorded."""
    return answer


BENDS: dict[str, Bend] = {"groq": groq, "deepinfra": deepinfra, "parasail": parasail}
"""The known differences of servers; the others answer like OpenAI."""


@contextmanager
def bent(emulator: Emulator, bend: Bend) -> Iterator[str]:
    """Give the address of the emulator with these answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            given = self.path.replace("/v1/signed/", "/v1/")
            asked = given.partition("?")[0] if bend is groq else given
            connection = HTTPConnection("127.0.0.1", emulator.port)
            connection.request(self.command, asked, body, headers)
            reply = connection.getresponse()
            kept = {name: value for name, value in reply.getheaders() if name.lower() not in _HOP}
            answer = Answer(reply.status, kept, reply.read())
            connection.close()
            if self.path == given:
                answer = bend(Call(self.command, self.path.removeprefix("/v1")), answer)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_POST = do_DELETE = do_GET  # noqa: N815 -- the library's names

        def log_message(self, *_args: object) -> None:
            """Print nothing."""

    with served(Handler) as url:
        yield f"{url}/v1"
