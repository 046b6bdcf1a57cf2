"""A floor by another author: a script in a separate folder. It runs like our floor, for the same measurement.

python -m benchmarks.other_floor script.py arguments…

Such a script reads `data/rows_N.parquet` in its folder (with `--n N`), calls OpenAI's API at `--base`, and writes into
`--out`. Its last line is `BENCH {json}`, with the CPU seconds without its imports as `work_cpu`. `command` puts our
rows into the folder.
"""

from __future__ import annotations

import io
import json
import runpy
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import benchmarks.bare  # noqa: F401  # before the first array
from benchmarks.loading import FLOOR, load
from benchmarks.measure import Work

_FAST, _SHAPED = "floor_fast.py", "floor_shape.py"
_SHAPES = {
    ("long", "label"): ("long", "long_{n}"),
    ("foreign", "label"): ("uni", "uni_{n}"),
    ("wide", "label"): ("wide", "wide_{n}"),
    ("plain", "nested"): ("nested", "rows_{n}"),
    ("plain", "embedding"): ("embed", "rows_{n}"),
}
"""The scripts' names for these kinds of rows and forms of answers, and for the files of the rows."""


def command(floors: Path, to: Path, rows: Path, count: int, kind: str, form: str) -> list[str] | None:
    """Copy the scripts and our rows. Return the command of the script for these rows, or None without one."""
    if (kind, form) in _SHAPES:
        script = _SHAPED
        option, name = _SHAPES[kind, form]
    elif form == "label":
        script, option, name = _FAST, "archive", "rows_{n}"
    else:
        return None
    if not (floors / script).exists():
        return None
    (to / "data").mkdir(parents=True)
    for path in floors.glob("*.py"):
        shutil.copyfile(path, to / path.name)
    (to / "data" / f"{name.format(n=count)}.parquet").symlink_to(rows.resolve())
    return [str(to / script), "--n", str(count), "--opt", option]


def main(script: str, *arguments: str) -> None:
    """Run the script, and report the cost. The work is the script's own figure, from the end of its imports."""
    load(*FLOOR)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    work, printed = Work(), io.StringIO()
    with redirect_stdout(printed):
        runpy.run_path(script, run_name="__main__")
    work.report(work_cpu_s=json.loads(printed.getvalue().partition("BENCH ")[2])["work_cpu"])


if __name__ == "__main__":
    main(*sys.argv[1:])
