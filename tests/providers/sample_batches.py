"""Helpers of the tests of providers: requests, and waits without timing."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from serving import served

from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.providers.command.provider import CommandProvider
from dagster_llm_batch.types import Request, RequestSpec

LABELER = Path(__file__).with_name("labeler.py")
SPEC = RequestSpec("m")


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until it holds; the limit only ends a hopeless test."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


def batch_file(codec: Codec, texts: Iterable[str] = ("one", "two", "three")) -> io.BytesIO:
    """Requests n-0, n-1, … as a request file."""
    return io.BytesIO(b"".join(codec.encode(Request(f"r{i}", None, text), f"n-{i}") for i, text in enumerate(texts)))


def labeler(workdir: Path, *options: str, **more) -> CommandProvider:
    """Return the command provider over the labeler of these tests."""
    words = [sys.executable, "-S", str(LABELER), "-i", "{input}", "-o", "{output}", "--model", "{model}", *options]
    return CommandProvider(words, str(workdir), **more)


@contextmanager
def odd_server(answer: Callable[[str, str], Any], seen: list[Mapping[str, str]] | None = None) -> Iterator[str]:
    """Serve `answer`, a function of method and path with query, whose result is a JSON value, or bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            if seen is not None:
                seen.append(dict(self.headers.items()))
            value = answer(self.command, self.path)
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_DELETE = do_GET  # noqa: N815 -- the library's names

        def log_message(self, *_args: object) -> None:
            """Print nothing."""

    with served(Handler) as url:
        yield f"{url}/v1"
