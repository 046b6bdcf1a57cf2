"""Google's two providers in front of the emulator and a Cloud Storage server, and the definition of their labels."""

from __future__ import annotations

from google.oauth2.credentials import Credentials
from workspace import labeling

from dagster_llm_batch.engine import Limits
from dagster_llm_batch.providers.google.gemini import GeminiProvider
from dagster_llm_batch.providers.google.vertex import VertexProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY

ROWS, BUCKET = 9, "bucket"
MODELS = {
    "vertex": "vertex/gemini-2.5-flash",
    "tables": "vertex/gemini-2.5-flash",  # BigQuery in place of Cloud Storage
    "gemini": "gemini/gemini-2.5-flash",
}


def provider(
    kind: str, base_url: str, storage_url: str, timeout_seconds: float = 60.0, bigquery_url: str | None = None
) -> VertexProvider | GeminiProvider:
    if kind == "gemini":
        return GeminiProvider(DEFAULT_KEY, base_url, timeout_seconds=timeout_seconds)
    return VertexProvider(
        "p",
        "us-central1",
        BUCKET if bigquery_url is None else None,
        bigquery_dataset=None if bigquery_url is None else "emulator",
        bigquery_url=bigquery_url,
        credentials=Credentials(token=DEFAULT_KEY),
        base_url=base_url,
        storage_url=storage_url,
        timeout_seconds=timeout_seconds,
    )


def definition(kind: str):
    return labeling(model=MODELS[kind], params={"max_output_tokens": 50}, limits=Limits(max_requests_per_batch=3))
