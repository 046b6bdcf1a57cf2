"""The pages on a real socket, and a client that talks to them like a browser."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvicorn

from dagster_llm_batch.review.access import SECRET_HEADER, SESSION_PATH


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str


class Client:
    """Keeps the secret of its session, as the page's script does, and does not follow redirects."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.secret = ""

    def ask(self, method: str, path: str, body: str = "", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body or None, sent | ({SECRET_HEADER: self.secret} if self.secret else {}))
        response = connection.getresponse()
        text = response.read().decode()
        found = {name.lower(): value for name, value in response.getheaders()}
        connection.close()
        return Answer(response.status, found, text)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def come_in(self, token: str) -> None:
        opened = self.ask("POST", SESSION_PATH, token, Origin=f"http://127.0.0.1:{self.port}")
        assert opened.status == 200
        self.secret = json.loads(opened.text)["secret"]


@contextmanager
def on_socket(app: Any) -> Iterator[Client]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    yield Client(server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    thread.join()
