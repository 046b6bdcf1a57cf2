"""A process that submits through one of Google's providers and is killed on the way.

`google_kill_driver.py KIND BASE_URL STORAGE_URL FOLDER`: the create call's reply never comes; the parent kills it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from google.oauth2.credentials import Credentials
from house import labeling, tickets

from dagster_llm_batch.engine import Engine
from dagster_llm_batch.providers.gemini import GeminiProvider
from dagster_llm_batch.providers.vertex import VertexProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY

ROWS, BUCKET = 9, "bucket"
MODELS = {"vertex": "vertex/gemini-2.5-flash", "gemini": "gemini/gemini-2.5-flash"}


def provider(
    kind: str, base_url: str, storage_url: str, timeout_seconds: float = 60.0
) -> VertexProvider | GeminiProvider:
    if kind == "gemini":
        return GeminiProvider(DEFAULT_KEY, base_url, timeout_seconds=timeout_seconds)
    return VertexProvider(
        "p",
        "us-central1",
        BUCKET,
        credentials=Credentials(token=DEFAULT_KEY),
        base_url=base_url,
        storage_url=storage_url,
        timeout_seconds=timeout_seconds,
    )


def definition(kind: str):
    return labeling(model=MODELS[kind], params={"max_output_tokens": 50}, max_requests_per_batch=3)


def main(kind: str, base_url: str, storage_url: str, folder: Path) -> None:
    engine = Engine(
        {kind: provider(kind, base_url, storage_url)},
        Ledger(folder / "ledger.sqlite"),
        PayloadStore(str(folder / "payloads")),
        "test",
    )
    submission = engine.plan(definition(kind), tickets(ROWS))
    engine.submit(definition(kind), submission.submission_id)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
