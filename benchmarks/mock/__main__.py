"""Serves the mock until its standard input closes. The first printed line is a JSON object of addresses.

python -m benchmarks.mock [openai] [anthropic] [bedrock] [vertex] [nested|choice]

The last word is the form of OpenAI's answers; the default is the usual label.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from contextlib import ExitStack

import uvicorn

from benchmarks.mock.answers import FORMS
from benchmarks.mock.anthropic import Anthropic
from benchmarks.mock.openai import OpenAI
from benchmarks.mock.server import Mock


def main(wanted: list[str]) -> None:
    """Serve these services."""
    mock, addresses = Mock(), {}
    with ExitStack() as stack:
        OpenAI(mock, next((form for form in FORMS if form in wanted), "label"))
        Anthropic(mock)
        if {"bedrock", "vertex"} & set(wanted):
            from benchmarks.mock.clouds import Bedrock, Vertex
            from dagster_llm_batch.testing.emulator import local_gcs, local_s3

            if "bedrock" in wanted:
                addresses["s3"] = stack.enter_context(local_s3())
                Bedrock(mock, addresses["s3"])
            if "vertex" in wanted:
                addresses["gcs"] = stack.enter_context(local_gcs())
                Vertex(mock, addresses["gcs"])
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        addresses["url"] = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(mock, log_level="warning", lifespan="off", timeout_keep_alive=600)
        server = uvicorn.Server(config)
        threading.Thread(target=_stop_with_stdin, args=(server,), daemon=True).start()
        print(json.dumps(addresses), flush=True)
        server.run([listener])


def _stop_with_stdin(server: uvicorn.Server) -> None:
    sys.stdin.read()
    server.should_exit = True


if __name__ == "__main__":
    main(sys.argv[1:])
