"""The subset of JSON Schema that Bedrock's structured outputs take: Claude's own, for every model. Pure.

https://docs.aws.amazon.com/bedrock/latest/userguide/structured-output.html#structured-output-supported-schema-features
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dagster_llm_batch.providers.json_schema import CLAUDE_RULES, lower_schema

__all__ = ["bedrock_schema"]

_RULES = replace(CLAUDE_RULES, vendor="Bedrock")


def bedrock_schema(json_schema: Mapping[str, Any]) -> dict[str, Any]:
    """`json_schema` in the form Bedrock takes. Raises ResponseSchemaError, naming construct and path, if none is."""
    return lower_schema(json_schema, _RULES)
