"""The subset of JSON Schema that OpenAI's strict structured outputs take. Pure.

Strict mode requires every object to be closed and every property to be required, in the given order. Recursion is
allowed. For strings, only the formats below are allowed. Constraints outside of the subset (`minLength`, `uniqueItems`,
patterns with lookaround, …) are left out.

The subset: https://platform.openai.com/docs/guides/structured-outputs#supported-schemas
"""

from __future__ import annotations

import re

from dagster_llm_batch.providers.json_schema import (
    ARRAY,
    JSON_TYPES,
    OBJECT,
    STRING,
    SchemaRules,
    SizeLimits,
)

__all__ = ["STRICT_RULES"]

_LOOKAROUND = re.compile(r"\(\?(?:[=!]|<[=!])")
_BOUNDS = ("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems")


def _is_without_lookaround(pattern: str) -> bool:
    return not _LOOKAROUND.search(pattern)


STRICT_RULES = SchemaRules(
    vendor="OpenAI",
    dialect="strict mode knows",
    keywords={
        **dict.fromkeys(_BOUNDS, JSON_TYPES),
        "format": STRING,
        "pattern": STRING,
        "items": ARRAY,
        "properties": OBJECT,
        "required": OBJECT,
        "additionalProperties": OBJECT,
    },
    formats=frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}),
    refuses_formats=True,
    accepts={"pattern": _is_without_lookaround},
    description_first=("type", "anyOf"),
    recursive=True,
    type_lists=True,
    all_required=True,
    limits=SizeLimits(depth=10, properties=5_000, enum_values=1_000, name_chars=120_000, large_enum=(250, 15_000)),
)
