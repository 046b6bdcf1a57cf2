"""Bedrock in front of the emulator and an S3 server, and the definition of its labels."""

from __future__ import annotations

from workspace import labeling

from dagster_llm_batch.engine import Limits
from dagster_llm_batch.providers.bedrock.provider import BedrockProvider
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
    return labeling(
        **{"model": MODEL, "params": {"max_tokens": 50}, "limits": Limits(max_requests_per_batch=3), **changes}
    )
