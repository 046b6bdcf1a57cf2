"""Find mutants that the ten-minute run misses: change a line of the package, and run the tests that execute it.

python3 -m tests.mutants lines             # run all tests but simulations, and note the lines of each; takes two hours
python3 -m tests.mutants run               # try 150 mutants of one seed; takes hours, and resumes after an interruption
python3 -m tests.mutants run --count 20 --seed 7
python3 -m tests.mutants choose 700        # choose tests of 700 s of processor time for the ten-minute run

Only the tests that execute the changed line run, and the first failure stops them. Tests of the ten-minute run come
first. If all of these pass, the other tests follow. Reads and writes `.mutants`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from example_project import bootstrap  # noqa: E402 - set-up is shared with the example
from tests.__main__ import REQUIREMENTS, SHORT, make_environment  # noqa: E402
from tests.sampled_cases import LEFT_OUT  # noqa: E402

KEPT = ROOT / ".mutants"
_LINES, _TIMES, _RESULTS = KEPT / "lines", KEPT / "times.csv", KEPT / "results.jsonl"
_VENV = ROOT / ".venv-mutants"
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
_SECONDS_A_SIDE = 1_200.0
_ALWAYS_BELOW = 0.05
"""A function that takes less processor time than these seconds is always in the ten-minute run."""
MISSED, FOUND, NEVER, UNDECIDED = "missed", "found", "found by no test", "not decided"


def note_lines(chosen: Sequence[str]) -> int:
    """Run the tests, by default all but simulations, and note which lines each executes and how long it takes."""
    # Imported here and below since their packages are in a separate environment.
    from tests.mutants.executed_lines import FOLDER

    shutil.rmtree(KEPT, ignore_errors=True)
    _LINES.mkdir(parents=True)
    environment = {**os.environ, FOLDER: str(_LINES), "DLB_TEST_TIMES": str(_TIMES)}
    plugins = ("-p", "tests.mutants.executed_lines", "-p", "tests.use_of_time")
    every = ("-n", "2", "--dist", "worksteal", "-m", "not simulation", "tests")
    return subprocess.run([*_PYTEST, *plugins, *(chosen or every)], cwd=ROOT, env=environment, check=False).returncode


def run_mutants(count: int, seed: int, at_once: int) -> int:
    """Judge the mutants of a seed that have no result yet, and print all."""
    from tests.mutants.executed_lines import tests_by_line
    from tests.mutants.mutant import Mutant, choose_mutants, modules_in

    executed = tests_by_line(_LINES, ROOT, modules_in(ROOT))
    if not executed:
        print(f"{_LINES} has no lines. First: python3 -m tests.mutants lines", flush=True)
        return 1
    short, seconds = _ids_of_ten_minutes(), _seconds()
    results: dict[str, str] = dict(map(json.loads, _RESULTS.read_text().splitlines())) if _RESULTS.exists() else {}

    def judge(mutant: Mutant) -> None:
        name = f"{mutant} ({mutant.nth})"
        if name not in results:
            tests = sorted(executed[mutant.module, mutant.line], key=lambda test: seconds.get(test, 1.0))
            results[name] = _judge(mutant.changed(ROOT), mutant.module, tests, short)
            with _RESULTS.open("a") as file:
                file.write(json.dumps([name, results[name]]) + "\n")
        print(f"{results[name]}: {name}", flush=True)

    chosen = choose_mutants(ROOT, executed, count, seed)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(judge, chosen))
    ended = [results[f"{mutant} ({mutant.nth})"] for mutant in chosen]
    known = ended.count(FOUND) + ended.count(MISSED)
    print(f"{len(ended)} mutants: {known} are found by a test, {ended.count(MISSED)} of these by none of ten minutes;")
    print(f"{ended.count(NEVER)} are found by no test that executes the line, {ended.count(UNDECIDED)} are not decided")
    return 0


def _judge(text: str, module: str, tests: Sequence[str], short: frozenset[str]) -> str:
    """Return which side finds a module with this text. `tests` execute the changed line, the quickest first."""
    with tempfile.TemporaryDirectory(prefix="mutant") as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*"))
        (copy / ".example").symlink_to(bootstrap.CACHE)
        (copy / module).write_text(text, encoding="utf-8")
        fails = partial(_fails, copy)
        quick = fails([test for test in tests if test in short])
        if quick is not False:
            return FOUND if quick else UNDECIDED
        rest = fails([test for test in tests if test not in short])
        return UNDECIDED if rest is None else MISSED if rest else NEVER


def _fails(copy: Path, tests: Sequence[str]) -> bool | None:
    """Return whether one of the tests fails on this copy, or None if they exceed the time limit."""
    if not tests:
        return False
    chosen = copy / "chosen.txt"
    chosen.write_text("\n".join(tests))
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*_PYTEST, "-x", "--timeout=120", f"@{chosen}"]
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, check=False, capture_output=True, timeout=_SECONDS_A_SIDE
        )
    except subprocess.TimeoutExpired:
        return None
    return done.returncode != 0


def _ids_of_ten_minutes(*options: str) -> frozenset[str]:
    listed = subprocess.run(
        [*_PYTEST, *SHORT, "--collect-only", *options, "tests"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    return frozenset(line for line in listed.stdout.splitlines() if "::" in line)


def _seconds() -> Mapping[str, float]:
    if not _TIMES.exists():
        return {}
    with _TIMES.open(newline="") as file:
        return {test: float(wall) for test, wall, _ in csv.reader(file)}


def choose(limit: float) -> int:
    """Write the functions that the ten-minute run leaves out, so that the others take at most `limit` seconds.

    Tests with the mark `journey` or `sample` stay. So does a test that executes no line of the package in its own
    process, since its lines are not known.
    """
    from tests.mutants.selection import choose_functions, lines_of_functions, seconds_of_functions

    LEFT_OUT.write_text("")
    cases = _ids_of_ten_minutes()
    lines, seconds = lines_of_functions(_LINES, cases), seconds_of_functions(_TIMES, cases)
    staying = _ids_of_ten_minutes("-m", "journey or sample")
    always = {name.partition("[")[0] for name in staying} & set(seconds)
    always |= {name for name, cost in seconds.items() if cost < _ALWAYS_BELOW or not lines.get(name)}
    chosen = choose_functions(lines, seconds, always, limit)
    LEFT_OUT.write_text("".join(f"{name}\n" for name in sorted(set(seconds) - chosen)), encoding="utf-8")
    used, among = (sum(seconds[name] for name in names) for names in (chosen, seconds))
    print(f"{len(chosen):,} of {len(seconds):,} functions, {used:.0f} of {among:.0f} s, are in the ten-minute run")
    return 0


def main(arguments: Iterable[str]) -> int:
    """Run one of the two steps in an environment with the packages for mutants and for development."""
    if Path(sys.prefix).resolve() != _VENV.resolve():
        pins = (REQUIREMENTS / "dev.txt", f"-r{REQUIREMENTS / 'mutants.txt'}")
        python = make_environment(_VENV.name, Path(sys.executable), *pins)
        command = [str(python), "-m", "tests.mutants", *arguments]
        return subprocess.run(command, cwd=ROOT, check=False).returncode if python is not None else 1
    parser = argparse.ArgumentParser(prog="python3 -m tests.mutants", description=(__doc__ or "").split("\n")[0])
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("lines", help="note which lines each test executes").add_argument("pytest", nargs="*")
    run = steps.add_parser("run", help="change lines, and see which tests fail")
    run.add_argument("--count", type=int, default=150)
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--at-once", type=int, default=2, help="mutants at once (default: 2)")
    selection = steps.add_parser("choose", help="choose the tests of the ten-minute run by their lines and times")
    selection.add_argument("seconds", type=float, help="processor time of the run, as noted with the lines")
    chosen = parser.parse_args(list(arguments))
    if chosen.step == "lines":
        return note_lines(chosen.pytest)
    if chosen.step == "choose":
        return choose(chosen.seconds)
    return run_mutants(chosen.count, chosen.seed, chosen.at_once)


if __name__ == "__main__":
    if Path(sys.prefix).resolve() != _VENV.resolve():
        bootstrap.enter("tests.mutants", "dev")
    sys.exit(main(sys.argv[1:]))
