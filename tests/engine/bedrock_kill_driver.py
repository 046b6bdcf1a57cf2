"""A process that submits through Bedrock and is killed on the way: `bedrock_kill_driver.py BEDROCK_URL S3_URL FOLDER`.

The create call's reply never comes; the parent kills it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from house import labeling, tickets

from dagster_llm_batch.engine import Engine
from dagster_llm_batch.providers.bedrock import BedrockProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY

ROWS, BUCKET, LEAST = 9, "bucket", 3
MODEL = "bedrock/anthropic.claude-haiku-4-5-20251001-v1:0"


def provider(bedrock_url: str, s3_url: str, timeout_seconds: float = 60.0, **changes) -> BedrockProvider:
    return BedrockProvider(
        "us-east-1",
        "arn:aws:iam::123456789012:role/batch",
        f"s3://{BUCKET}/llm",
        session_options={"aws_access_key_id": DEFAULT_KEY, "aws_secret_access_key": "x"},
        endpoint_url=bedrock_url,
        s3_endpoint_url=s3_url,
        read_quotas=False,
        timeout_seconds=timeout_seconds,
        **{"min_requests": LEAST, **changes},
    )


def definition(**changes):
    return labeling(**{"model": MODEL, "params": {"max_tokens": 50}, "max_requests_per_batch": 3, **changes})


def main(bedrock_url: str, s3_url: str, folder: Path) -> None:
    engine = Engine(
        {"bedrock": provider(bedrock_url, s3_url)},
        Ledger(folder / "ledger.sqlite"),
        PayloadStore(str(folder / "payloads")),
        "test",
    )
    submission = engine.plan(definition(), tickets(ROWS))
    engine.submit(definition(), submission.submission_id)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
