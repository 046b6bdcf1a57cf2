# ruff: noqa: INP001 - mkdocs runs it
"""For the site: `<!-- fields: Name -->` becomes a table of that resource's fields; what is for a clone is left out."""

from __future__ import annotations

import re
from typing import Any

import dagster_llm_batch
from dagster_llm_batch import streams

_MARK = re.compile(r"<!-- fields: (\w+) -->")
_OF_A_CLONE = re.compile(r"<!-- in a clone: begin -->.*?<!-- in a clone: end -->\n*", re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Change a page's Markdown; mkdocs calls this for each."""
    return _MARK.sub(lambda mark: fields(mark[1]), _OF_A_CLONE.sub("", markdown))


def fields(name: str) -> str:
    """Return the table, in Markdown."""
    lines = ["| Field | Default | What it is |", "| --- | --- | --- |"]
    for field, info in _resource(name).model_fields.items():
        default = "" if info.is_required() else f"`{info.get_default(call_default_factory=True)!r}`"
        lines.append(f"| `{field}` | {default} | {(info.description or '').replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _resource(name: str) -> Any:
    return getattr(dagster_llm_batch, name, None) or getattr(streams, name)
