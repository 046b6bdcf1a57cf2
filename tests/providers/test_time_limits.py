"""Every SDK abandons an answer that comes in drips, and reads a slow but steady one to its end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import httpx
import httpx2
import pytest
import requests
from bedrock_emulator import over
from google_emulator import gemini, vertex
from sample_batches import batch_file

from dagster_llm_batch.errors import AmbiguousError, TransientError
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.http import Origin, guard_client, guard_session
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openrouter.provider import OpenRouterProvider
from dagster_llm_batch.providers.time_limits import limit_pools
from dagster_llm_batch.types import RequestSpec

JOB = "arn:aws:bedrock:us-east-1:123456789012:model-invocation-job/abc123def456"
PIECE = b"x" * 400
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


class Slow:
    """A server that answers each connection with these pieces, and a pause of 10 ms after each."""

    def __init__(self, pieces: Callable[[], Iterator[bytes]]) -> None:
        self._pieces = pieces
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __getattr__(self, name: str) -> str:
        """Any address of an emulator is this server's."""
        return self.url

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._answer, args=(connection,)))
            self._threads[-1].start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(1 << 16)
                for piece in self._pieces():
                    connection.sendall(piece)
                    if self._over.wait(0.01):
                        return
            except OSError:
                return

    def close(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@contextmanager
def slow(pieces: Callable[[], Iterator[bytes]]) -> Iterator[Slow]:
    server = Slow(pieces)
    try:
        yield server
    finally:
        server.close()


def dripping_body() -> Iterator[bytes]:
    yield HEAD + b"content-length: 100000\r\n\r\n{"
    while True:
        yield b" "


def dripping_headers() -> Iterator[bytes]:
    yield HEAD
    while True:
        yield b"x"


def steady() -> Iterator[bytes]:
    yield HEAD + b"content-length: " + str(60 * len(PIECE)).encode() + b"\r\n\r\n"
    for _ in range(60):
        yield PIECE


VENDORS: dict[str, Callable[[Slow], Any]] = {
    "openai": lambda at: OpenAIProvider("sk-x", f"{at.url}/v1", timeout_seconds=0.1),
    "anthropic": lambda at: AnthropicProvider("sk-x", at.url, timeout_seconds=0.1),
    "openrouter": lambda at: OpenRouterProvider("sk-x", f"{at.url}/api/v1", timeout_seconds=0.1),
    "gemini": lambda at: gemini(at, timeout_seconds=0.1),  # type: ignore[arg-type]  # an address is all it is asked for
    "vertex": lambda at: vertex(at, at.url, timeout_seconds=0.1),  # type: ignore[arg-type]
    "bedrock": lambda at: over(at, at.url, timeout_seconds=0.1),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("pieces", [dripping_body, dripping_headers])
@pytest.mark.parametrize("name", VENDORS)
def test_a_poll_whose_answer_drips_ends(name: str, pieces: Callable[[], Iterator[bytes]]) -> None:
    with slow(pieces) as server, pytest.raises(TransientError):
        VENDORS[name](server).poll([JOB])


def test_a_create_call_whose_answer_drips_may_have_made_a_batch() -> None:
    spec = RequestSpec("claude-x", params={"max_tokens": 9})
    with slow(dripping_body) as server:
        provider = VENDORS["anthropic"](server)
        with pytest.raises(AmbiguousError):
            provider.submit(batch_file(provider.codec(spec)), spec, "tag")


# Longer than a busy machine needs for the first byte.
_PATIENCE = 0.5


def _by_httpx(library: Any) -> Callable[[str], bytes]:
    def read(url: str) -> bytes:
        with guard_client(library.Client(timeout=_PATIENCE), Origin(url), _PATIENCE) as client:
            return bytes(client.get(url).content)

    return read


def _by_requests(url: str) -> bytes:
    with requests.Session() as session:
        guard_session(session, Origin(url), _PATIENCE)
        return session.get(url, timeout=_PATIENCE).content


def _by_botocore(url: str) -> bytes:
    from botocore.config import Config

    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    config = Config(read_timeout=_PATIENCE, retries={"total_max_attempts": 1})
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=config, **keys)
    limit_pools(client._endpoint.http_session._pool_classes_by_scheme, _PATIENCE)
    return bytes(client.get_object(Bucket="b", Key="k")["Body"].read())


READERS = {
    "httpx": _by_httpx(httpx),
    "httpx2": _by_httpx(httpx2),
    "requests": _by_requests,
    "botocore": _by_botocore,
}


@pytest.mark.parametrize("name", READERS)
def test_a_slow_answer_that_comes_on_is_read_to_its_end_and_a_drip_is_not(name: str) -> None:
    with slow(steady) as server:
        began = time.monotonic()
        assert READERS[name](server.url) == PIECE * 60
        # It took longer than the time limit, and passed because of its speed.
        assert time.monotonic() - began > _PATIENCE
    for pieces in (dripping_body, dripping_headers):
        with slow(pieces) as server, pytest.raises(Exception, match=r"(?i)timed? ?out|bytes came in"):
            READERS[name](server.url)
