"""Some rows in a user's script, which imports modules only when they are needed.

python -m benchmarks.few_rows openai|anthropic|vertex rows.parquet folder '{"url": …}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.measure import Work
from benchmarks.package import bare_engine, label, labeling


def main(service: str, rows: str, folder: str, addresses: str) -> None:
    """Label the rows, and report the cost."""
    work = Work(imports_later=True)
    home = Path(folder)
    count, _ = label(bare_engine(service, home, json.loads(addresses)), labeling(service), rows, home)
    work.report(rows=count)


if __name__ == "__main__":
    main(*sys.argv[1:])
