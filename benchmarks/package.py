"""The package without Dagster: from a Parquet file to labeled rows in another, with all its guarantees.

python -m benchmarks.package service rows.parquet folder '{"url": …}' ['{fields of Limits}' [form]]

Services are openai, anthropic, bedrock and vertex; `benchmarks.labels` has the forms.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import benchmarks.bare  # noqa: F401  # before the first array
from benchmarks.inputs import ASK, read_rows
from benchmarks.labels import EMBEDDING, FORMS
from benchmarks.loading import load_package
from benchmarks.measure import Work
from benchmarks.writes import counted
from dagster_llm_batch.core.fixed_responses import Embedding
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling, Limits, Status
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore

MODELS = {
    "openai": "openai/gpt-4o-mini",
    "anthropic": "anthropic/claude-haiku-4-5",
    "bedrock": "bedrock/anthropic.claude-haiku-4-5-20251001-v1:0",
    "vertex": "vertex/gemini-2.5-flash",
}
_EMBEDDING_MODEL = "openai/text-embedding-3-small"
PROMPT = Prompt(user="#ROW:{{ row.row }}#\n" + ASK + "{{ text }}")


def provider(service: str, addresses: dict[str, str]) -> Provider:
    """Return the service's provider, which calls the mock."""
    url = addresses["url"]
    if service == "openai":
        from dagster_llm_batch.providers.openai.provider import OpenAIProvider

        return OpenAIProvider("sk-mock", base_url=f"{url}/v1")
    if service == "anthropic":
        from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider

        return AnthropicProvider("sk-mock", base_url=url)
    if service == "bedrock":
        from dagster_llm_batch.providers.bedrock.provider import BedrockProvider

        return BedrockProvider(
            region_name="us-east-1",
            role_arn="arn:aws:iam::123456789012:role/batch",
            s3_uri="s3://emulator/llm",
            session_options={"aws_access_key_id": "mock", "aws_secret_access_key": "mock"},
            endpoint_url=url,
            s3_endpoint_url=addresses["s3"],
            read_quotas=False,
        )
    from google.oauth2.credentials import Credentials

    from dagster_llm_batch.providers.google.vertex import VertexProvider

    return VertexProvider(
        "p",
        "us-central1",
        "emulator",
        credentials=Credentials(token="mock"),
        base_url=url,
        storage_url=addresses["gcs"],
    )


def labeling(service: str, asset: str = "labels", form: str = "label", **more: Any) -> Labeling:
    """Return the definition, which requests an answer of this form for each row."""
    if form == EMBEDDING:
        return Labeling(asset=asset, model=_EMBEDDING_MODEL, key="id", prompt=PROMPT, response=Embedding(), **more)
    return Labeling(
        asset=asset,
        model=MODELS[service],
        key="id",
        prompt=PROMPT,
        response=FORMS[form],
        params={"max_output_tokens" if service == "vertex" else "max_tokens": 200},
        **more,
    )


def engine(service: str, folder: Path, addresses: dict[str, str]) -> Engine:
    """Return an engine with its ledger and payloads in the folder."""
    load_package(service)
    return bare_engine(service, folder, addresses)


def bare_engine(service: str, folder: Path, addresses: dict[str, str]) -> Engine:
    """Return the same engine, which imports further modules at its first calls."""
    asked = provider(service, addresses)
    return Engine(
        Deployment({service: asked}, Ledger(folder / "ledger.sqlite"), PayloadStore(folder / "payloads"), "benchmark")
    )


def label(engine: Engine, definition: Labeling, rows: str, folder: Path) -> tuple[int, Status]:
    """Label the rows, from one file into others. Return the number of labels, and the status."""
    submission_id = engine.plan(definition, read_rows(rows)).submission_id
    while not (status := engine.advance(definition, submission_id)).is_settled:
        pass
    count = 0
    with ExitStack() as files:
        writers: dict[str, pq.ParquetWriter] = {}
        for part in engine.label_batches(definition, submission_id, run_id="benchmark"):
            for name, table in (("labels", part.labels), ("rejects", part.rejects)):
                if name not in writers:
                    writers[name] = files.enter_context(pq.ParquetWriter(folder / f"{name}.parquet", table.schema))
                writers[name].write_table(table)
            count += len(part.labels)
    return count, status


def main(service: str, rows: str, folder: str, addresses: str, limits: str = "{}", form: str = "label") -> None:
    """Label the rows, and report the cost."""
    home = Path(folder)
    one = engine(service, home, json.loads(addresses))
    definition = labeling(service, form=form, limits=Limits(**json.loads(limits)))
    work = Work()
    with counted() as writes:
        count, status = label(one, definition, rows, home)
    work.report(
        rows=count,
        shards=len(status.shards),
        cost_usd=str(status.submission.cost_usd),
        statements=writes.statements,
        written=writes.rows,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
