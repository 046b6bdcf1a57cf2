"""What importing costs, beside Dagster alone."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

_RUNS = 5


def table() -> str:
    """As Markdown."""
    lines = ["| `import` | Seconds, median of 5 | SDKs loaded |", "| --- | ---: | --- |"]
    for module in ("dagster", "dagster_llm_batch"):
        code = (
            f"import sys, {module}; "
            "print(','.join(n for n in ('openai', 'anthropic', 'boto3', 'google.genai') if n in sys.modules) or 'none')"
        )
        took, said = [], ""
        for _ in range(_RUNS):
            began = time.perf_counter()
            said = subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True
            ).stdout.strip()
            took.append(time.perf_counter() - began)
        lines.append(f"| `{module}` | {median(took):.2f} | {said} |")
    return "\n".join(lines)
