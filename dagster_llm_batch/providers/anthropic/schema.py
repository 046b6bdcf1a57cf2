"""The subset of JSON Schema that Anthropic's structured outputs take. Pure.

A property is required if the caller's schema requires it. The constraints that the subset lacks (`minimum`,
`maxLength`, `pattern`, …) move into the description for the LLM, like in the vendor's SDK. Recursion is rejected.

The subset: https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations
"""

from __future__ import annotations

from dataclasses import replace

from dagster_llm_batch.providers.json_schema import CLAUDE_RULES

__all__ = ["ANTHROPIC_RULES"]

ANTHROPIC_RULES = replace(CLAUDE_RULES, vendor="Anthropic")
