"""The two providers of Google in front of the emulator."""

from __future__ import annotations

from typing import Any

from google.oauth2.credentials import Credentials

from dagster_llm_batch.providers.google.gemini import GeminiProvider
from dagster_llm_batch.providers.google.vertex import VertexProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

BUCKET = "bucket"


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


def vertex_in_tables(emulator: Emulator, **changes: Any) -> VertexProvider:
    """Return the provider with a BigQuery dataset in place of the bucket."""
    places = {"bucket": None, "bigquery_dataset": "emulator", "bigquery_url": emulator.bigquery_url}
    return vertex(emulator, emulator.gemini_base_url, **{**places, **changes})


def gemini(emulator: Emulator, **changes: Any) -> GeminiProvider:
    usual = {"api_key": DEFAULT_KEY, "base_url": emulator.gemini_base_url, "timeout_seconds": 5.0}
    return GeminiProvider(**{**usual, **changes})
