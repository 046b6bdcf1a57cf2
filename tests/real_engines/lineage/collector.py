"""A collector of OpenLineage for tests, and the code of docs/how-to/lineage.md."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "lineage.md"


def block(language: str, having: str = "") -> str:
    tokens = MarkdownIt().parse(GUIDE.read_text(encoding="utf-8"))
    fences = [token for token in tokens if token.type == "fence" and token.info.split()[:1] == [language]]
    [content] = [fence.content for fence in fences if having in fence.content]
    return content


class Collector:
    """A collector of OpenLineage, with all its posts."""

    def __init__(self) -> None:
        self.status = 201
        self.posted: list[dict[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/api/v1/lineage"
                collector.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(collector.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def completed(self, job: str) -> list[dict[str, Any]]:
        return [event for event in self.posted if event.get("eventType") == "COMPLETE" and event["job"]["name"] == job]
