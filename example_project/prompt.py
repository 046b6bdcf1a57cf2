"""What every labeler of the example is asked: the same few words, the same three examples.

The wording and the order of the examples are the best of seven tried on 150 tweets of `data.held_out`, never on the
rows that the example evaluates. Both matter to so small a model: there it was right in 0.57 to 0.79 of the tweets,
where always saying "positive" is right in 0.64. As it stands it hardly ever says neutral.
"""

from __future__ import annotations

import json

__all__ = ["EXAMPLES", "LABELS", "MAX_TOKENS", "SYSTEM", "USER", "response_format", "text_of"]

LABELS = ("positive", "negative", "neutral")
SYSTEM = "You label the sentiment of short texts: positive, negative or neutral."
PREFIX, SUFFIX = "Text: ", "\nSentiment:"
USER = PREFIX + "{{ text }}" + SUFFIX
"""Jinja, with the column `text`."""
EXAMPLES = tuple(
    (f"{PREFIX}{text}{SUFFIX}", json.dumps({"label": label}))
    for text, label in (
        ("This is terrible, I hate it.", "negative"),
        ("The meeting is on Monday.", "neutral"),
        ("I love this so much, great day!", "positive"),
    )
)
"""Few-shot pairs of (user text, reply)."""
MAX_TOKENS = 16
"""`{"label": "positive"}` is 7 tokens of SmolLM2."""


def response_format() -> dict[str, object]:
    """The reply's schema, as the OpenAI wire has it."""
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": list(LABELS)}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "sentiment", "strict": True, "schema": schema}}


def text_of(message: str) -> str:
    """The tweet inside a user message; the whole message where it is not of the form of `USER`."""
    if message.startswith(PREFIX) and message.endswith(SUFFIX):
        return message[len(PREFIX) : -len(SUFFIX)]
    return message
