"""Several shards at once: wall seconds and share of a core, by phase and number of simultaneous transfers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.inputs import rows_file
from benchmarks.measure import child, mock

PHASES = ("plan", "submit", "collect", "labels")
THREADS = (1, 2, 4)
_SHARDS = 8


def table(rows: int, caps: Sequence[int], inputs: Path) -> str:
    """Return the table as Markdown."""
    lines = [
        f"| Batches at once | {' | '.join(f'{name}, s (cores)' for name in PHASES)} | All, s |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cap in caps:
        with mock() as addresses, tempfile.TemporaryDirectory() as folder:
            where = (rows_file(inputs, rows), folder, json.dumps(addresses))
            cost = child("benchmarks.phases", "openai", *where, cap, -(-rows // _SHARDS))
        if cost.said["rows"] != rows:
            raise RuntimeError(f"{cost.said['rows']} of {rows} rows have a label")
        shown = _shown(cost.said["took"])
        seconds = sum(cost.said["took"][name][0] for name in PHASES)
        lines.append(f"| {cap} | {' | '.join(map(shown, PHASES))} | {seconds:.1f} |")
    read = ", ".join(f"{shown(f'read by {threads}')} by {threads}" for threads in THREADS)
    lines += ["", f"Raw results of all shards, read again by threads, seconds (cores): {read}."]
    return "\n".join(lines)


def _shown(took: dict[str, Any]) -> Callable[[str], str]:
    def of(name: str) -> str:
        wall, cpu = took[name]
        return f"{wall:.1f} ({cpu / wall:.2f})"

    return of
