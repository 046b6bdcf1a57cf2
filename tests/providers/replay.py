"""A server that repeats a vendor's answers from a recorded dialogue, in the same order, for the same calls.

A call is identified by its method and path. The last answer to a call is repeated, like an ended batch's. Each
submission has a new nonce in names and custom_ids; the answers contain the nonce of the current calls.
"""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dagster_llm_batch.providers.dialogue import HOST

_NONCE = re.compile(r"\br[0-9a-f]{16}(?=[-\"./_]|$)")


@dataclass
class Replay:
    """A dialogue and the place in it. `unknown` are calls that it does not have, `url` is the server's address."""

    about: dict[str, Any]
    url: str = ""
    unknown: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)


@contextmanager
def replayed(dialogue: Path) -> Iterator[Replay]:
    """Serve a dialogue on loopback."""
    first, *lines = dialogue.read_text(encoding="utf-8").splitlines()
    answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    nonces: list[str] = []
    for line in lines:
        exchange = json.loads(line)
        answers[f"{exchange['method']} {urlsplit(exchange['path']).path}"].append(exchange)
        if exchange["method"] == "POST":
            nonces += _NONCE.findall(exchange["request"])
    replay, lock, now = Replay(json.loads(first)), threading.Lock(), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self._body().decode("utf-8", "replace")
            call = f"{self.command} {urlsplit(self.path).path}"
            with lock:
                replay.calls.append(call)
                if self.command == "POST":
                    now.extend(_NONCE.findall(body))
                known = answers.get(call)
                if not known:
                    replay.unknown.append(call)
                    exchange: dict[str, Any] = {"status": 404, "headers": {}, "response": "{}"}
                else:
                    exchange = known.pop(0) if len(known) > 1 else known[0]
            text = exchange["response"].replace(HOST, replay.url)
            if nonces and now:
                text = text.replace(nonces[0], now[0])
            answer = text.encode()
            self.send_response(exchange["status"])
            for name, value in exchange["headers"].items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = do_PUT = do_DELETE = do  # noqa: N815 - the server's names

        def log_message(self, *args: Any) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        replay.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield replay
        finally:
            server.shutdown()
            thread.join()
