"""The storage servers behind the emulator's own address: the books record calls that pass here, and faults strike them.

    …/gcs/storage/v1/b/bucket/o  ─▶  the Cloud Storage server
    …/s3/bucket/key              ─▶  the S3 server

If the server's reply has its own address (links to objects, upload sessions), the client gets this one's.
"""

from __future__ import annotations

import asyncio
import http.client
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

GCS, S3 = "/gcs", "/s3"
_TIMEOUT_SECONDS = 30
_OF_THE_CONNECTION = frozenset({"connection", "expect", "host", "keep-alive", "transfer-encoding"})


class StorageRelay:
    """An ASGI app that passes every call below `prefix` on to the server at `url`, unchanged."""

    def __init__(self, prefix: str, url: str) -> None:
        self._prefix = prefix
        self._url = url.rstrip("/")
        self._address = urlsplit(url).netloc

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one call."""
        request = Request(scope, receive)
        body = await request.body()
        response = await asyncio.to_thread(self._pass_on, request, body)
        await response(scope, receive, send)

    def _pass_on(self, request: Request, body: bytes) -> Response:
        path = request.scope.get("emulator.raw_path") or request.url.path
        query = f"?{request.url.query}" if request.url.query else ""
        headers = {name: value for name, value in request.headers.items() if name not in _OF_THE_CONNECTION}
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request(request.method, f"{path.removeprefix(self._prefix)}{query}", body, headers)
            answer = connection.getresponse()
            return self._answer(request, answer, answer.read())
        finally:
            connection.close()

    def _answer(self, request: Request, answer: http.client.HTTPResponse, data: bytes) -> Response:
        here = f"{request.url.scheme}://{request.url.netloc}{self._prefix}"
        if "json" in (answer.getheader("content-type") or ""):
            data = data.replace(self._url.encode(), here.encode())
        response = Response(data, answer.status)
        for name, value in answer.getheaders():
            if name.lower() in _OF_THE_CONNECTION or (name.lower() == "content-length" and request.method != "HEAD"):
                continue
            response.headers[name] = value.replace(self._url, here)
        return response
