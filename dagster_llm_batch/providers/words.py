"""What a vendor says, for messages and logs: one line without control characters, of bounded length. Pure.

Vendors quote what was sent to them, so a row's text can be in it: escape sequences must not reach a terminal.
"""

from __future__ import annotations

import re

__all__ = ["last_words", "plain_words"]

_ESCAPES = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b.")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_MAX_CHARS = 500


def plain_words(text: str) -> str:
    """The text on one line, cut where it is long."""
    return _CONTROLS.sub(" ", _ESCAPES.sub("", text)).strip()[:_MAX_CHARS]


def last_words(text: str) -> str:
    """The lines of a log as one, of which the end is kept."""
    lines = [words for line in text.splitlines() if (words := plain_words(line))]
    return " | ".join(lines)[-_MAX_CHARS:]
