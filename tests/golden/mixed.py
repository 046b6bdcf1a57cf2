"""Code of an older commit and the current code at work on one ledger and one store, as during an upgrade.

    python -m tests.golden.mixed OLD_COMMIT [--ledger sqlite]

An old and a new process label each partition in turns, and hand it over at every step. The steps include the retry of a
row that was refused for now. Then both work on the same partitions at once. All rows must arrive, each must be billed
once, and both processes must read the same labels; otherwise the exit status is 1.

If the new code has a newer schema of the ledger, it first opens the ledger after the old code has left a partition at
every step. Then the old process must be refused at its next step, and a new process of the old code, too. The new code
continues alone from each step.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, RowFault
from tests.crash.postgres import postgres
from tests.golden.package import Ledger

ROWS = 6
VENDORS = ("openai", "anthropic", "gemini")
STEPS = ("plan", "submit", "poll", "collect", "submit", "poll", "collect", "land")
"""The steps of a partition. Batches end after each `submit`; the second `submit` sends the refused row."""

_HERE = Path(__file__).parents[2]
_WORKER, _DOOR = "tests/golden/worker.py", "tests/golden/package.py"
_AT_ONCE = 6
_REFUSAL = "this package knows versions up to"
# A process that had the ledger open before may first read tables that no longer exist.
_UNCHANGED = "Nothing was changed."


class Landed(NamedTuple):
    """A line of the table."""

    partition: str
    vendor: str
    who: str
    rows: int
    billed: int
    twice: int
    trouble: str


Who = dict[tuple[str, str], tuple[str, str]]
"""For each vendor's partition: the code of its steps, and its trouble."""


class Process:
    """A worker in a tree."""

    def __init__(self, name: str, tree: Path, arguments: dict[str, Any]) -> None:
        self.name = name
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.golden.worker", json.dumps(arguments)],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = self.do("hello", "", "")
        assert Path(found) == tree, f"the {name} worker runs the code in {found}"

    def do(self, verb: str, vendor: str, partition: str) -> Any:
        """Run a verb and return its result. Raises RuntimeError with the verb's error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([verb, vendor, partition]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "it is gone"}')
        if "error" in answer:
            raise RuntimeError(f"the {self.name} code, at {verb}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def patterns() -> Iterator[tuple[str, list[int]]]:
    """Yield the code that does each step: 0 is the old code, 1 the new."""
    count = len(STEPS)
    for at in range(count + 1):
        name = {0: "new alone", count: "old alone"}.get(at) or f"old, new from {STEPS[at]} {at + 1}"
        yield name, [int(n >= at) for n in range(count)]
    for at in range(1, count):
        yield f"new, old from {STEPS[at]} {at + 1}", [int(n < at) for n in range(count)]
    yield "in turns, old first", [n % 2 for n in range(count)]
    yield "in turns, new first", [1 - n % 2 for n in range(count)]


def hand_over(processes: list[Process], emulator: Emulator, vendor: str, partition: str, who: list[int]) -> str:
    """Take a partition through all steps, and return the error or an empty text."""
    return _take([processes[one] for one in who], STEPS, emulator, vendor, partition)


def _take(processes: list[Process], steps: Sequence[str], emulator: Emulator, vendor: str, partition: str) -> str:
    """Take a partition through these steps, each by its process. Return the error or an empty text."""
    try:
        for step, process in zip(steps, processes, strict=True):
            process.do(step, vendor, partition)
            if step == "submit":
                emulator.settle()
    except RuntimeError as error:
        return str(error)
    return ""


def at_once(processes: list[Process], emulator: Emulator, work: list[tuple[str, str]]) -> dict[str, str]:
    """Let both processes take all these partitions from rows to labels at once, and return the errors by partition."""
    done = threading.Event()

    def run(process: Process, order: list[tuple[str, str]]) -> dict[str, str]:
        troubles = {}
        for vendor, partition in order:
            try:
                process.do("run", vendor, partition)
            except RuntimeError as error:
                troubles[partition] = str(error)
        return troubles

    def let_time_pass() -> None:
        while not done.wait(0.05):
            emulator.tick()

    clock = threading.Thread(target=let_time_pass)
    clock.start()
    try:
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(run, processes, (work, work)))
    finally:
        done.set()
        clock.join()
    return {**found[0], **found[1]}


def read_by_both(processes: list[Process], vendor: str, partition: str) -> tuple[int, str]:
    """Return the number of labeled rows, and an error unless both processes read them, and find them planned."""
    try:
        landed = [process.do("land", vendor, partition) for process in processes]
        plans = {process.do("plan", vendor, partition) for process in processes}
    except RuntimeError as error:
        return 0, str(error)
    [one, other] = landed
    if one != other:
        return one["rows"], "old and new read other labels"
    if len(plans) > 1:
        return one["rows"], "old and new plan the same rows as two submissions"
    if one["rejects"] or one["rows"] != ROWS or one["keys"] != ROWS:
        return one["rows"], f"{one['rows']} rows, {one['keys']} keys, {one['rejects']} rejects of {ROWS}"
    return one["rows"], ""


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """Make a work tree of the commit, with the current worker, and with the first `package.py` if it has none."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(_HERE), *words], check=True, capture_output=True, text=True).stdout

    folder = Path(tempfile.mkdtemp(prefix="dlb-mixed-"))
    tree = folder / "tree"
    git("worktree", "add", "--detach", str(tree), commit)
    try:
        (tree / _DOOR).parent.mkdir(exist_ok=True)
        shutil.copy(_HERE / _WORKER, tree / _WORKER)  # both do the same work
        if not (tree / _DOOR).exists():
            [first] = git("log", "--diff-filter=A", "--format=%H", "--", _DOOR).split()[-1:]
            (tree / _DOOR).write_text(git("show", f"{first}:{_DOOR}"), encoding="utf-8")
        yield tree
    finally:
        git("worktree", "remove", "--force", str(tree))
        shutil.rmtree(folder, ignore_errors=True)


def _refused_once(partition: str) -> RowFault:
    return RowFault(containing=f"1 of {partition}? [busy]", status_code=503, times=1)


def work(old: Path, ledger_url: str, folder: Path) -> list[Landed]:
    """Run everything, and return a line of the table for each partition."""
    with ExitStack() as stack:
        emulator = stack.enter_context(Emulator())
        urls = {
            "openai": emulator.openai_base_url,
            "anthropic": emulator.anthropic_base_url,
            "gemini": emulator.gemini_base_url,
        }
        arguments = {
            "ledger": ledger_url, "payloads": str(folder / "payloads"), "urls": urls, "key": DEFAULT_KEY, "rows": ROWS,
        }  # fmt: skip

        def start(name: str) -> Process:
            process = Process(name, _HERE if name == "new" else old, arguments)
            stack.callback(process.close)
            return process

        processes = [start("old"), start("new")]
        if len({process.do("schema", "", "") for process in processes}) == 1:
            who = _side_by_side(processes, emulator)
            read = {one: read_by_both(processes, *one) for one in who}
        else:
            who = _upgraded_midway(*processes, start, emulator)
            read = {one: read_by_both([processes[1]] * 2, *one) for one in who}
        ledger = Ledger(ledger_url)
        partition_of = {
            shard.nonce: (submission.provider, submission.partition)
            for submission in ledger.submissions.list_all("mixed")
            for shard in ledger.shards.of_submission(submission.submission_id)
        }
        ledger.close()
        return _found(who, read, partition_of, emulator)


def _side_by_side(processes: list[Process], emulator: Emulator) -> Who:
    who: Who = {}
    for number, (name, steps) in enumerate(patterns()):
        vendor, partition = VENDORS[number % len(VENDORS)], f"p{number:02d}"
        emulator.clear_faults()
        emulator.inject(_refused_once(partition))
        who[vendor, partition] = name, hand_over(processes, emulator, vendor, partition, steps)
    both = [(VENDORS[number % len(VENDORS)], f"both{number}") for number in range(_AT_ONCE)]
    emulator.clear_faults()
    emulator.inject(*(_refused_once(partition) for _, partition in both))
    troubles = at_once(processes, emulator, both)
    return who | {(vendor, partition): ("both at once", troubles.get(partition, "")) for vendor, partition in both}


def _upgraded_midway(old: Process, new: Process, start: Callable[[str], Process], emulator: Emulator) -> Who:
    """Let the old code take partitions up to each step and the new code the rest; the old code must then be refused."""
    ways = product(VENDORS, range(len(STEPS) + 1))
    at = {(vendor, f"p{number:02d}"): step for number, (vendor, step) in enumerate(ways)}
    emulator.inject(*(_refused_once(partition) for _, partition in at))
    troubles = {one: _take([old] * step, STEPS[:step], emulator, *one) for one, step in at.items()}
    new.do("plan", VENDORS[0], "of the new code")
    started = start("started old")
    for one, step in at.items():
        verb = (*STEPS, STEPS[-1])[step]
        refused = _refused(old, verb, *one, words=_UNCHANGED) or _refused(started, verb, *one, words=_REFUSAL)
        rest = _take([new] * (len(STEPS) - step), STEPS[step:], emulator, *one)
        troubles[one] = troubles[one] or refused or rest
    names = [f"old, new from {verb} {step}" for step, verb in enumerate(STEPS, 1)] + ["old alone"]
    return {one: (names[step], troubles[one]) for one, step in at.items()}


def _refused(process: Process, verb: str, vendor: str, partition: str, *, words: str) -> str:
    """Return an error if a step does not end with an error of these words, and otherwise an empty text."""
    try:
        process.do(verb, vendor, partition)
    except RuntimeError as error:
        return "" if words in str(error) else str(error)
    return f"the {process.name} code was not refused at {verb}"


def _found(
    who: Who, read: dict[tuple[str, str], tuple[int, str]], partition_of: dict[str, tuple[str, str]], emulator: Emulator
) -> list[Landed]:
    """Return a line for each partition, with its billed requests."""
    billed: dict[tuple[str, str], Counter[str]] = {one: Counter() for one in who}
    for one in emulator.books.executions:
        if one.billed:
            place = partition_of.get((one.custom_id or "").partition("-")[0], ("nobody", "'s"))
            billed.setdefault(place, Counter())[one.body_digest] += 1
    found = []
    for place, bodies in billed.items():
        name, trouble = who.get(place, ("nobody", "billed, and in no ledger"))
        rows, misread = read.get(place, (0, ""))
        twice = sum(count - 1 for count in bodies.values())
        wrong = trouble or misread or ("billed twice" if twice else "" if len(bodies) == ROWS else "not all was billed")
        found.append(Landed(place[1], place[0], name, rows, bodies.total(), twice, wrong))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old_commit", help="a commit, tag or branch: the code that is older")
    parser.add_argument("--ledger", choices=["postgresql", "sqlite"], default="postgresql", help="default: %(default)s")
    given = parser.parse_args()
    with ExitStack() as stack:
        tree = stack.enter_context(tree_of(given.old_commit))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        on_postgres = given.ledger == "postgresql"
        ledger_url = stack.enter_context(postgres())() if on_postgres else str(folder / "ledger.sqlite")
        landed = work(tree, ledger_url, folder)
    print(f"{'partition':<10} {'vendor':<10} {'steps taken by':<26} {'rows':>4} {'billed':>6} {'twice':>5}  trouble")
    for one in landed:
        columns = f"{one.partition:<10} {one.vendor:<10} {one.who:<26} {one.rows:>4} {one.billed:>6} {one.twice:>5}"
        print(f"{columns}  {one.trouble or '-'}")
    bad = sum(bool(one.trouble) for one in landed)
    lost = sum(ROWS - one.rows for one in landed)
    twice = sum(one.twice for one in landed)
    print(f"{len(landed)} partitions, {bad} with trouble; {lost} rows lost, {twice} billed twice")
    if bad:
        print(
            "Old and new code do not work beside each other: refuse the older with a message (see the first trouble)."
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
