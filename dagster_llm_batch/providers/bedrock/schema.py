"""A JSON Schema in the subset that Bedrock's structured outputs take: Claude's own, for every model. Pure.

https://docs.aws.amazon.com/bedrock/latest/userguide/structured-output.html#structured-output-supported-schema-features
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster_llm_batch.errors import ResponseSchemaError
from dagster_llm_batch.providers.anthropic.schema import claude_schema

__all__ = ["bedrock_schema"]


def bedrock_schema(json_schema: Mapping[str, Any]) -> dict[str, Any]:
    """`json_schema` in the form Bedrock takes. Raises ResponseSchemaError, naming construct and path, if none is."""
    try:
        return claude_schema(json_schema)
    except ResponseSchemaError as error:
        raise ResponseSchemaError(str(error).replace("Anthropic", "Bedrock", 1)) from None
