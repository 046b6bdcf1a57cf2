"""A real S3 server, and the Bedrock provider in front of the emulator."""

from __future__ import annotations

import io
from typing import Any

from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.providers.bedrock.provider import BedrockProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, VendorLimits
from dagster_llm_batch.types import Endpoint, Request, RequestSpec, ResponseFormat, ResponseKind

BUCKET, SECRET, TAG = "bucket", "a-secret-access-key", "dlb-0011-n1"
CREATE = "POST /bedrock/model-invocation-job"
HAIKU = "anthropic.claude-haiku-4-5-20251001-v1:0"
SPECS = {
    "claude": RequestSpec(HAIKU, params={"max_tokens": 100}),
    "nova": RequestSpec("amazon.nova-lite-v1:0"),
    "chat": RequestSpec("openai.gpt-oss-20b-1:0"),
    "converse": RequestSpec("cohere.command-r-v1:0"),
    "titan": RequestSpec("amazon.titan-embed-text-v2:0", ResponseFormat(ResponseKind.EMBEDDING), Endpoint.EMBEDDINGS),
}
SPEC = SPECS["claude"]


def emulator_over(s3_url: str, least: int = 1, **options: Any) -> Emulator:
    """Return an emulator whose models take batches of at least `least` records."""
    return Emulator(s3_url=s3_url, limits=VendorLimits(bedrock_min_records=least), **options)


def over(emulator: Emulator, s3_url: str, **changes: Any) -> BedrockProvider:
    """Return the provider with these changes."""
    usual: dict[str, Any] = {
        "region_name": "us-east-1",
        "role_arn": "arn:aws:iam::123456789012:role/batch",
        "s3_uri": f"s3://{BUCKET}/llm",
        "session_options": {"aws_access_key_id": DEFAULT_KEY, "aws_secret_access_key": SECRET},
        "endpoint_url": emulator.bedrock_url,
        "s3_endpoint_url": s3_url,
        "quotas_endpoint_url": emulator.bedrock_url,
        "timeout_seconds": 5.0,
        "max_attempts": 1,
        "min_requests": 1,
    }
    return BedrockProvider(**{**usual, **changes})


def batch_file(codec: Codec, count: int = 3) -> io.BytesIO:
    """Requests n-0, n-1, … as a request file."""
    return io.BytesIO(b"".join(codec.encode(Request(f"r{i}", None, f"text {i}"), f"n-{i}") for i in range(count)))
