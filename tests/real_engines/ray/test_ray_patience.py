"""Ray's own SDK does not wait forever for an answer. A server that drips replaces a sick cluster."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest
from ray_batches import SPEC, batch_file

from dagster_llm_batch.errors import AmbiguousError, TransientError
from dagster_llm_batch.providers.ray.answers import RayAnswers
from dagster_llm_batch.providers.ray.provider import RayProvider

VERSION = b'{"version": "4", "ray_version": "99.0.0", "ray_commit": "x", "session_name": "x"}'
HEAD = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"


class Sick:
    """A job server that sends its version, lacks every job, and drips its other answers, a byte each 10 ms."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

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
                asked = connection.recv(1 << 16)
                if asked.startswith(b"GET /api/version"):
                    connection.sendall(HEAD % (b"200 OK", len(VERSION)) + VERSION)
                elif asked.startswith(b"GET /api/jobs/drips"):
                    connection.sendall(HEAD % (b"404 Not Found", 4) + b"none")
                else:
                    for piece in chain([HEAD % (b"200 OK", 100_000)], repeat(b" ")):
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


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[RayProvider]:
    server = Sick()
    try:
        yield RayProvider(server.url, str(tmp_path / "s"), RayAnswers(call="a:b"), timeout_seconds=0.5)
    finally:
        server.close()


def test_a_list_of_jobs_that_drips_ends(provider: RayProvider) -> None:
    with pytest.raises(TransientError, match="list the jobs"):
        list(provider._list_reports({"x"}))


def test_a_start_whose_answer_drips_may_have_started_the_job(provider: RayProvider) -> None:
    with pytest.raises(AmbiguousError, match="Perhaps it started all the same"):
        provider.submit(batch_file(provider, ["one"]), SPEC, "drips")
