"""The subset of JSON Schema that Bedrock's structured outputs take: Claude's own, for every model. Pure.

https://docs.aws.amazon.com/bedrock/latest/userguide/structured-output.html#structured-output-supported-schema-features
"""

from __future__ import annotations

from dataclasses import replace

from dagster_llm_batch.providers.json_schema import CLAUDE_RULES

__all__ = ["BEDROCK_RULES"]

BEDROCK_RULES = replace(CLAUDE_RULES, vendor="Bedrock")
