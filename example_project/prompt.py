"""The prompt for every labeler of the example: a few words and three examples.

The wording and the order of the examples are the best of seven versions. They were tried on 150 tweets of
`data.held_out`, not on the rows that the example evaluates. Both matter for such a small model: its accuracy there was
0.57 to 0.79, and always answering "positive" has 0.64. With this prompt, it rarely answers "neutral".
"""

from __future__ import annotations

import json

__all__ = ["EXAMPLES", "LABELS", "MAX_TOKENS", "SYSTEM", "USER", "response_format", "text_of"]

LABELS = ("positive", "negative", "neutral")
SYSTEM = "You label the sentiment of short texts: positive, negative or neutral."
PREFIX, SUFFIX = "Text: ", "\nSentiment:"
USER = PREFIX + "{{ text }}" + SUFFIX
"""A Jinja template with the column `text`."""
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
    """Return the reply's schema in OpenAI's format."""
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": list(LABELS)}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "sentiment", "strict": True, "schema": schema}}


def text_of(message: str) -> str:
    """Return the tweet in a user message, or the whole message if it does not have the form of `USER`."""
    if message.startswith(PREFIX) and message.endswith(SUFFIX):
        return message[len(PREFIX) : -len(SUFFIX)]
    return message
