"""The subset of JSON Schema that Anthropic's structured outputs take. Pure.

A property is required where the caller's schema says so. The constraints that the subset lacks (`minimum`, `maxLength`,
`pattern`, …) are told to the LLM in the description, as the vendor's SDK does. Recursion is refused.

The subset: https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster_llm_batch.providers.json_schema import CLAUDE_RULES, lower_schema

__all__ = ["claude_schema"]


def claude_schema(json_schema: Mapping[str, Any]) -> dict[str, Any]:
    """`json_schema` in the form Anthropic takes. Raises ResponseSchemaError, naming construct and path, if none is."""
    return lower_schema(json_schema, CLAUDE_RULES)
