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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from example_project import bootstrap  # noqa: E402 - set-up is shared with the example
from tests.__main__ import REQUIREMENTS, SHORT, make_environment  # noqa: E402
from tests.sampled_cases import LEFT_OUT  # noqa: E402

KEPT = ROOT / ".mutants"
_LINES, _TIMES, _RESULTS = KEPT / "lines", KEPT / "times.csv", KEPT / "results.jsonl"
_UNFIT = KEPT / "unfit.txt"
"""Tests that fail on an unchanged copy, one a line."""
_VENV = ROOT / ".venv-mutants"
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
_SECONDS_A_SIDE = 1_200.0
_ALWAYS_BELOW = 0.05
"""A function that takes less processor time than these seconds is always in the ten-minute run."""
_NO_TEST = "the import"
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
    unfit = frozenset(_UNFIT.read_text().splitlines()) if _UNFIT.exists() else frozenset[str]()
    results = _read_results()

    def judge(mutant: Mutant) -> None:
        if str(mutant) not in results:
            tests = sorted(executed[mutant.module, mutant.line] - unfit, key=lambda test: seconds.get(test, 1.0))
            result, test = _judge(mutant.changed(ROOT), mutant.module, tests, short)
            results[str(mutant)] = (result, test)
            with _RESULTS.open("a") as file:
                file.write(json.dumps([str(mutant), result, test]) + "\n")
        result, test = results[str(mutant)]
        print(f"{result}: {mutant!s}{f' by {test}' if test else ''}", flush=True)

    chosen = choose_mutants(ROOT, executed, count, seed)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(judge, chosen))
    if failing := _fail_unchanged(frozenset(test for _, test in results.values() if test)):
        _UNFIT.write_text("".join(f"{test}\n" for test in sorted(unfit | failing)))
        kept = [[name, *found] for name, found in results.items() if found[1] not in failing]
        _RESULTS.write_text("".join(json.dumps(one) + "\n" for one in kept))
        print(f"Tests that fail without a change, too: {', '.join(sorted(failing))}. Their mutants have no result:")
        print("run this again. It leaves these tests out.")
        return 1
    ended = [results[str(mutant)][0] for mutant in chosen]
    known = ended.count(FOUND) + ended.count(MISSED)
    print(f"{len(ended)} mutants: {known} are found by a test, {ended.count(MISSED)} of these by none of ten minutes;")
    print(f"{ended.count(NEVER)} are found by no test that executes the line, {ended.count(UNDECIDED)} are not decided")
    return 0


def _read_results() -> dict[str, tuple[str, str | None]]:
    """Return the result of each mutant, and the test that found it."""
    if not _RESULTS.exists():
        return {}
    lines = map(json.loads, _RESULTS.read_text().splitlines())
    return {name: (result, test) for name, result, test in lines}


def _judge(text: str, module: str, tests: Sequence[str], short: frozenset[str]) -> tuple[str, str | None]:
    """Return which side finds a module with this text, and by which test. `tests` run in their order."""
    with _copy() as copy:
        (copy / module).write_text(text, encoding="utf-8")
        try:
            if found := _failures(copy, [test for test in tests if test in short], "-x"):
                return FOUND, found[0]
            if found := _failures(copy, [test for test in tests if test not in short], "-x"):
                return MISSED, found[0]
        except subprocess.TimeoutExpired:
            return UNDECIDED, None
        return NEVER, None


def _fail_unchanged(tests: frozenset[str]) -> frozenset[str]:
    """Return the tests that fail on a copy without a change."""
    with _copy() as copy:
        return frozenset(_failures(copy, sorted(tests - {_NO_TEST}))) & tests


@contextmanager
def _copy() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutant") as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*"))
        (copy / ".example").symlink_to(bootstrap.CACHE)
        yield copy


def _failures(copy: Path, tests: Sequence[str], *options: str) -> Sequence[str]:
    """Return those of the tests that fail on this copy, or raise TimeoutExpired."""
    if not tests:
        return ()
    chosen = copy / "chosen.txt"
    chosen.write_text("\n".join(tests))
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*_PYTEST, *options, "--timeout=120", f"@{chosen}"]
    done = subprocess.run(
        command, cwd=copy, env=environment, check=False, capture_output=True, text=True, timeout=_SECONDS_A_SIDE
    )
    if done.returncode == 0:
        return ()
    named = (line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR ")))
    failed = [test for line in named for test in tests if line == test or line.startswith(f"{test} - ")]
    # A mutant that pytest cannot even import.
    return failed or (_NO_TEST,)


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
