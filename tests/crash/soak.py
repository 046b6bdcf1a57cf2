"""`python -m tests.crash.soak`: many requests through five vendors' emulators, with faults, and kills all the while.

Two rows in a hundred fail, and one call in a hundred. From time to time a worker process is killed with SIGKILL, and
another one follows it. When the time is up, running partitions are finished and the rest stay unstarted. Ends with 1 if
a row was lost, or a request paid twice within a retry round. Calls to the stores of files (S3, Cloud Storage) have no
faults, only the kills.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger import Ledger
from tests.crash.cells import LEDGERS
from tests.crash.postgres import postgres
from tests.crash.soak_processes import NAMESPACE, Billing, Task, label, serve
from tests.fault_matrix_page import PAGE, write
from tests.processes import PROCESSES

VENDORS = ("openai", "anthropic", "bedrock", "vertex", "gemini")
_MOST_FAILURES = 20
_INTRO = """\
A million requests run on PostgreSQL with three kinds of faults at once: two rows in a hundred fail; one call in a
hundred is refused, fails, or loses its answer or half of it; worker processes are killed with SIGKILL at random
moments. Written by `python -m tests.crash.soak --write`.

"""


@dataclass
class Soak:
    """One soak: its open tasks, running workers and results."""

    tasks: deque[Task]
    workers: int
    batch_rows: int
    kill_every_seconds: float
    until: float  # on the monotonic clock
    running: dict[Task, tuple[Any, Connection]] = field(default_factory=dict)
    done: list[Task] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        """Run until all tasks are done, or the time is up and the running ones are done."""
        next_kill = time.monotonic() + self.kill_every_seconds
        told = 0
        while self.tasks or self.running:
            now = time.monotonic()
            if now > self.until:
                self.tasks.clear()
            while self.tasks and len(self.running) < self.workers:
                self._start(self.tasks.popleft())
            if now > next_kill and self.running:
                self._kill()
                next_kill = now + self.kill_every_seconds
            for task in list(self.running):
                self._look(task)
            if len(self.done) > told:
                told = len(self.done)
                print(f"{told} partitions done, {self.kills.total()} kills, {len(self.tasks)} to come", flush=True)
            time.sleep(0.05)

    def _start(self, task: Task) -> None:
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=label, args=(task, self.batch_rows, theirs))
        process.start()
        theirs.close()
        self.running[task] = process, ours

    def _kill(self) -> None:
        task = random.choice(list(self.running))
        process, pipe = self.running.pop(task)
        process.kill()
        process.join()
        pipe.close()
        self.kills[task.cloud] += 1
        self._start(task)

    def _look(self, task: Task) -> None:
        process, pipe = self.running[task]
        if not pipe.poll():
            return
        try:
            pipe.recv()
        except EOFError:  # it ended in an error, as a run can; another one follows
            self.failures[task.cloud] += 1
            if self.failures[task.cloud] > _MOST_FAILURES:
                raise RuntimeError(f"workers of {task.cloud} fail; see {task.place.folder}/workers.log") from None
            process.join()
            del self.running[task]
            self._start(task)
        else:
            process.join()
            del self.running[task]
            self.done.append(task)


def _end(process: Any, pipe: Connection) -> None:
    """Let a vendor close its servers: it ends when its parent closes the pipe."""
    pipe.close()
    process.join(60)
    process.kill()


def judge(soak: Soak, billing: Mapping[str, Billing], ledger: Ledger, seconds: float) -> tuple[list[str], bool]:
    """Return the table, and whether all is well. The tables of rows and the vendors' billing are the evidence."""
    rows: dict[str, dict[str, int]] = {}
    well = True
    for vendor, bill in billing.items():
        tasks = [task for task in soak.done if task.cloud == vendor]
        shards = [
            shard
            for task in tasks
            for one in ledger.submissions.of_partition(NAMESPACE, task.asset, task.partition)
            for shard in ledger.shards.of_submission(one.submission_id)
        ]
        row = {
            "requests": sum(task.rows for task in tasks),
            "partitions": len(tasks),
            "batches": len(bill.batches),
            "calls": bill.calls,
            "row faults": bill.row_faults,
            "call faults": bill.call_faults,
            "kills": soak.kills[vendor],
            "lost": sum(_lost(task) for task in tasks),
            "billed": bill.money.billed,
            "billed twice": bill.money.twice,
        }
        rows[vendor] = row
        orphans = bill.billed_batches - {shard.batch.batch_id for shard in shards}
        wrong = {
            "lost": row["lost"],
            "billed twice": row["billed twice"],
            "billed for nothing": row["billed"] - row["requests"],
            "batches that were billed and no shard has": orphans,
            "shards in two batches": bill.money.in_two_batches,
            "shards not collected": sum(shard.state is not ShardState.COLLECTED for shard in shards),
        }
        for what, found in wrong.items():
            if found:
                well = False
                print(f"{vendor}: {what}: {found}")
    rows["all"] = {name: sum(row[name] for row in rows.values()) for name in rows[VENDORS[0]]}
    lines = [f"| vendor | {' | '.join(rows['all'])} |", f"| --- | {' | '.join('--:' for _ in rows['all'])} |"]
    lines += [f"| {name} | {' | '.join(f'{count:,}' for count in row.values())} |" for name, row in rows.items()]
    how = f"{soak.workers} workers at once, a kill every {soak.kill_every_seconds:.0f} s"
    ended = f"{soak.failures.total()} workers ended in an error, and others went on"
    return [*lines, "", f"In {seconds / 60:.1f} minutes: {how}; {ended}."], well


def _lost(task: Task) -> int:
    """Count the rows that are not labeled exactly once."""
    found = pq.read_table(task.table).to_pydict()
    times = Counter(found["ticket_id"])
    good = {key for key, outcome in zip(*found.values(), strict=True) if outcome == "succeeded" and times[key] == 1}
    return len(set(task.keys()) - good) + len(times.keys() - set(task.keys()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000, help="over all five vendors (default 1,000,000)")
    parser.add_argument("--minutes", type=float, default=30, help="after which nothing new is begun (default 30)")
    parser.add_argument("--kill-every", type=float, default=30, metavar="SECONDS", help="between kills (default 30)")
    parser.add_argument("--workers", type=int, default=4, help="processes at once (default 4)")
    parser.add_argument("--partition-rows", type=int, default=10_000, help="rows of a partition (default 10,000)")
    parser.add_argument("--batch-rows", type=int, default=1_000, help="the most requests of a batch (default 1,000)")
    parser.add_argument("--ledger", choices=LEDGERS, default="postgresql")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        ledger_url = f"sqlite:///{folder}/ledger.sqlite"
        if options.ledger == "postgresql":
            ledger_url = stack.enter_context(postgres())()
        vendors: dict[str, Connection] = {}
        for vendor in VENDORS:
            vendors[vendor], theirs = PROCESSES.Pipe()
            process = PROCESSES.Process(target=serve, args=(vendor, str(folder), theirs))
            process.start()
            theirs.close()
            stack.callback(_end, process, vendors[vendor])
        places = {vendor: pipe.recv() for vendor, pipe in vendors.items()}
        rows = min(options.partition_rows, options.requests // len(VENDORS))
        each = options.requests // len(VENDORS) // rows
        tasks = [Task(vendor, n, rows, places[vendor], ledger_url) for n in range(each) for vendor in VENDORS]
        began = time.monotonic()
        soak = Soak(deque(tasks), options.workers, options.batch_rows, options.kill_every, began + options.minutes * 60)
        soak.run()
        seconds = time.monotonic() - began
        ledger = Ledger(ledger_url)
        waves: dict[str, dict[str, int]] = defaultdict(dict)
        for one in ledger.submissions.list_all(NAMESPACE):
            waves[one.provider].update(
                {shard.nonce: shard.wave for shard in ledger.shards.of_submission(one.submission_id)}
            )
        billing = {}
        for vendor, pipe in vendors.items():
            pipe.send((waves[vendor], max(waves[vendor].values(), default=0)))
            billing[vendor] = pipe.recv()
        lines, well = judge(soak, billing, ledger, seconds)
        ledger.close()
    print("\n" + "\n".join(lines))
    if options.write:
        write("soak", "Soak", [*_INTRO.splitlines(), *lines])
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
