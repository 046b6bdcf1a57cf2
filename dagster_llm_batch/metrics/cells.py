"""Row data on its way to a screen. Labels and names are untrusted: they may hold markup, control characters or
novels.
"""

from __future__ import annotations

import re

from dagster_llm_batch.addresses import Linked
from dagster_llm_batch.text import plain_text

__all__ = ["duration_text", "markdown_text"]

_MARKUP = re.compile(r"([\\`*_\[\]|~$#!])")
_AUTOLINK = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)", re.IGNORECASE)
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def markdown_text(value: object, limit: int = 60) -> str:
    """Return `plain_text` that GitHub-flavored markdown shows unchanged, inside a table cell too: no markup, HTML, or
    link.

    Web and mail addresses would become links even when escaped; a zero-width space breaks them. Only text that is
    `Linked` becomes a link.
    """
    if isinstance(value, Linked):
        text = markdown_text(value.text, limit)
        return text if value.url is None else f"[{text or '(no text)'}]({value.url})"
    text = plain_text(value, limit).translate(_HTML)
    return _AUTOLINK.sub("\u200b", _MARKUP.sub(r"\\\1", text))


def duration_text(seconds: float | None) -> str:
    """Return a duration in the largest unit that fits, such as 42 s, 5.5 min, 3.2 h or 2.0 d; - for None."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
