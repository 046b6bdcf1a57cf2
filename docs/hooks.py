"""For the site: `<!-- fields: Name -->` becomes a table of that resource's fields."""  # noqa: INP001 - mkdocs runs it

from __future__ import annotations

import re
from typing import Any

import dagster_llm_batch
from dagster_llm_batch import streams

_MARK = re.compile(r"<!-- fields: (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return _MARK.sub(lambda mark: fields(mark[1]), markdown)


def fields(name: str) -> str:
    """The table, in Markdown."""
    lines = ["| Field | Default | What it is |", "| --- | --- | --- |"]
    for field, info in _resource(name).model_fields.items():
        default = "" if info.is_required() else f"`{info.get_default(call_default_factory=True)!r}`"
        lines.append(f"| `{field}` | {default} | {(info.description or '').replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _resource(name: str) -> Any:
    return getattr(dagster_llm_batch, name, None) or getattr(streams, name)
