"""`python -m benchmarks.engines`: see the package. Needs the engines' environments, and root for Ray's network.

- python -m benchmarks.engines: measure all, and print the tables
- python -m benchmarks.engines --write: also write docs/engines/measured.md and its picture
- python -m benchmarks.engines ray spark --rows 50000: measure some, with another number of rows
- python -m benchmarks.engines flink --keep FOLDER: measure one; the tables show all engines in the folder
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import random
import shutil
import sys
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from benchmarks.engines import page
from benchmarks.engines.watch import Run, Runs, watch
from benchmarks.engines.work import SMALL_ROWS

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
ENGINES = ("python", "ray", "spark", "flink")
_FILES = 8
_OWN_NETWORK = ("unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")  # Ray listens on all addresses
_WORDS = (
    "the service was really not very good bad awful great terrible I love hate it this phone battery screen delivery "
    "late fast slow happy sad fine wonderful horrible refund broken works perfectly never again best worst thanks"
).split()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.partition("\n")[0])
    parser.add_argument("engines", nargs="*", help=f"some of: {', '.join(ENGINES)} (default: all)")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="a folder for the figures, also of earlier calls: all that are there")
    parser.add_argument("--write", action="store_true", help="write docs/engines/measured.md and its picture")
    options = parser.parse_args()
    names = options.engines or list(ENGINES)
    if unknown := sorted(set(names) - set(ENGINES)):
        parser.error(f"there is no engine {', '.join(unknown)}; the engines are {', '.join(ENGINES)}")
    pythons = {name: python_of(name) for name in names}
    runs: dict[str, Runs] = {}
    with tempfile.TemporaryDirectory(prefix="dlb-engines-") as folder:
        lib, source, small = _prepared(Path(folder), options.rows)
        for name in names:
            one = _measured(name, pythons[name], Path(folder), (source, small), lib, options.rows)
            runs[name] = one
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{name}.json").write_text(json.dumps([asdict(run) for run in one]), encoding="utf-8")
            print(f"{name}: done, load {one.whole.load:.0f} at its start", flush=True)
            if failed := [run for run in (one.whole, one.cheap) if run.code]:
                sys.exit(f"{name} failed without being disturbed:\n{failed[0].said[-3000:]}")
    if options.keep:
        kept = {name: options.keep / f"{name}.json" for name in ENGINES}
        runs = {name: _read(path) for name, path in kept.items() if path.exists()}
    day = dt.datetime.now(dt.UTC).date().isoformat()
    machine = f"{os.cpu_count()} cores, {platform.system()}, {day}"
    print(page.tables(runs, options.rows))
    if options.write:
        page.write(runs, options.rows, machine, ROOT / "docs")


def _read(path: Path) -> Runs:
    return Runs(*(Run(**one) for one in json.loads(path.read_text(encoding="utf-8"))))


def python_of(name: str) -> Path:
    """Return the interpreter of the engine's environment, which `python3 -m tests <name>` creates."""
    python = Path(sys.executable) if name == "python" else ROOT / f".venv-{name}" / "bin" / "python"
    if not python.exists():
        sys.exit(f"There is no {python}. Make it with: python3 -m tests {name}")
    return python


def _measured(name: str, python: Path, folder: Path, inputs: tuple[Path, Path], lib: Path, rows: int) -> Runs:
    def once(kind: str) -> Run:
        where = folder / f"{name}-{kind}"
        where.mkdir()
        words = [str(python), str(HERE / f"run_{name}.py"), *map(str, inputs), str(where / "out")]
        words.append("latency" if kind == "whole" else "none")
        command = [*_OWN_NETWORK, *words] if name == "ray" else words
        environment = _environment(lib) | ({"DLB_BENCH_CHEAP": "1"} if kind == "cheap" else {})
        return watch(command, environment, where, str(where / "out"), rows, kill=kind == "killed")

    return Runs(once("whole"), once("killed"), once("cheap"))


def _environment(lib: Path) -> dict[str, str]:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "300"}
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # slow starts
    return {**usual, **quiet, "PYTHONPATH": str(lib)}


def _prepared(folder: Path, rows: int) -> tuple[Path, Path, Path]:
    """Create a folder with the workload's modules for all environments, the input, and a small input."""
    lib, source, small = folder / "lib", folder / "source", folder / "small"
    spec = find_spec("vaderSentiment")
    assert spec is not None, "vaderSentiment is among the packages of development"
    assert spec.submodule_search_locations is not None
    shutil.copytree(spec.submodule_search_locations[0], lib / "vaderSentiment")
    shutil.copy(HERE / "work.py", lib)
    chooser = random.Random(7)

    def written(where: Path, first: int, count: int, files: int) -> None:
        where.mkdir()
        each = -(-count // files)
        for number in range(files):
            with (where / f"part-{number}.json").open("w", encoding="utf-8") as out:
                for one in range(first + number * each, min(first + (number + 1) * each, first + count)):
                    out.write(json.dumps({"id": one, "text": " ".join(chooser.choices(_WORDS, k=16))}) + "\n")

    written(source, 0, rows, _FILES)
    written(small, 1_000_000_000, SMALL_ROWS, 1)
    return lib, source, small


if __name__ == "__main__":
    main()
