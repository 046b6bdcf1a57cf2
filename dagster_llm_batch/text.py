"""What a vendor says, for messages, logs and the ledger: one line that any of them can hold, of bounded length. Pure.

Vendors quote what was sent to them, so a row's text can be in it: escape sequences must not reach a terminal, and a
database takes neither a NUL nor half a surrogate pair. All texts of providers go through `plain_words`.
"""

from __future__ import annotations

import re

__all__ = ["is_id", "last_words", "plain_words", "text_of"]

_ESCAPES = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b.")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]+")
_HALVES = re.compile(r"[\ud800-\udfff]")
_MAX_CHARS = 500
_MAX_READ_CHARS = 20_000
_MAX_ID_CHARS = 2_000


def text_of(said: object) -> str:
    """What was said, as it is but for a bounded length. Where a text should be may be anything."""
    try:
        return (said if isinstance(said, str) else str(said))[:_MAX_READ_CHARS]
    except Exception:  # noqa: BLE001 -- what nests too deep, or what its own class cannot show
        return type(said).__name__


def plain_words(said: object) -> str:
    """What was said, on one line, cut where it is long."""
    text = _CONTROLS.sub(" ", _ESCAPES.sub("", text_of(said)))
    return _HALVES.sub("\ufffd", text).strip()[:_MAX_CHARS]


def last_words(text: str) -> str:
    """The lines of a log as one, of which the end is kept."""
    lines = [words for line in text.splitlines() if (words := plain_words(line))]
    return " | ".join(lines)[-_MAX_CHARS:]


def is_id(value: object) -> bool:
    """Whether this can be a name that a vendor gave something: a text without spaces that a URL and a ledger hold."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= _MAX_ID_CHARS
        and value.isprintable()
        and not any(char.isspace() for char in value)
    )
