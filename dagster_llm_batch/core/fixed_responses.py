"""Responses whose form the vendor's endpoint sets: a vector, and a moderation.

A moderation shows whether a text, or text and images, is harmful, and how. Each category becomes two columns: whether
the vendor flags it, and its score from 0 to 1. The column has the category's name, with `_` in place of all characters
except letters and digits: "self-harm/intent" is `self_harm_intent` and `self_harm_intent_score`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.types import ResponseFormat, ResponseKind

__all__ = ["FLAGGED", "OPENAI_CATEGORIES", "Embedding", "Moderation", "moderation_columns", "moderation_decoder"]

OPENAI_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""Categories of omni-moderation: openai 3.57.0, types/moderation.py."""

FLAGGED = "flagged"
"""The column with whether any category is flagged."""

_SCORE = "_score"
_NO_NAME = re.compile(r"[^0-9a-z]+")


@checked
@dataclass(frozen=True)
class Embedding:
    """Ask for a vector instead of a reply.

    Args:
        dimensions: Length of the vector, where the model lets one choose. Default: the model's own.
    """

    dimensions: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a length below 1."""
        if self.dimensions is not None and self.dimensions < 1:
            raise ConfigError(f"dimensions={self.dimensions!r} is not allowed; it is at least 1, or left out.")


@checked
@dataclass(frozen=True)
class Moderation:
    """Ask whether texts and images are harmful, and how, instead of a reply: columns `flagged`, and two a category.

    Args:
        categories: The vendor's categories that become columns, by the vendor's names, as in
            ["hate", "self-harm/intent"]. Default: all 13 of OpenAI's. `flagged` is the vendor's result over all of its
            categories, including those without columns. A category missing from a reply is null.
    """

    categories: Sequence[str] = OPENAI_CATEGORIES

    def __post_init__(self) -> None:
        """Raise ConfigError for categories that would give the same column, or an empty name."""
        names = [name for category in self.categories for name in moderation_columns(category)]
        twice = sorted({name for name in names if names.count(name) > 1})
        problem = "each needs a name of its own in letters or digits"
        if twice:
            problem = f"these would be columns twice: {', '.join(twice)}"
        if twice or "" in names or "_score" in names or FLAGGED in names:
            raise ConfigError(
                f"categories={', '.join(self.categories)} is not allowed: {problem}. "
                "Write each of the vendor's categories once."
            )

    @property
    def format(self) -> ResponseFormat:
        """The response as providers take it, with the schema of the columns."""
        properties: dict[str, Any] = {FLAGGED: {"type": "boolean"}}
        for category in self.categories:
            flag, score = moderation_columns(category)
            properties |= {flag: {"type": ["boolean", "null"]}, score: {"type": ["number", "null"]}}
        schema = {"type": "object", "properties": properties, "required": [FLAGGED]}
        return ResponseFormat(ResponseKind.MODERATION, "moderation", schema)


@lru_cache(maxsize=1024)
def moderation_columns(category: str) -> tuple[str, str]:
    """Return the columns of a category: whether it is flagged, and its score."""
    name = _NO_NAME.sub("_", category.lower()).strip("_")
    return name, name + _SCORE


def moderation_decoder(names: Sequence[str]) -> Callable[[str], msgspec.Struct]:
    """Return a decoder of moderations with these columns. It raises for other JSON."""
    kinds: Mapping[bool, Any] = {True: float | None, False: bool | None}
    fields: list[Any] = [
        (name, bool) if name == FLAGGED else (name, kinds[name.endswith(_SCORE)], None) for name in names
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Reply", fields, kw_only=True, gc=False)).decode
