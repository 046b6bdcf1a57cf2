"""A run of one engine, watched from outside: memory and CPU over time, also with one worker killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

_LOOK_SECONDS = 0.25
_PATIENCE_SECONDS = 90.0  # for a job that does not label any more after a worker was killed
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Run:
    """The measurements of a run.

    `memory` has pairs of seconds since the start and MB of all processes together; shared pages count once.
    """

    code: int = 0
    load: float = 0.0  # the machine's load in the minute before
    seconds_up: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # all processes, during labeling
    latencies: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    killed_at: float | None = None
    killed_after: float | None = None  # seconds since the start
    rows_lost: int = 0
    rows_twice: int = 0
    seconds_to_recover: float | None = None
    said: str = ""

    @property
    def steady(self) -> list[float]:
        """Memory during labeling, in MB."""
        return [mb for at, mb in self.memory if self.seconds_up <= at <= self.seconds_up + self.seconds] or [0.0]

    @property
    def memory_mean(self) -> float:
        return fmean(self.steady)

    @property
    def memory_deviation(self) -> float:
        return pstdev(self.steady)


class Runs(NamedTuple):
    """The runs of one engine: undisturbed, with a worker killed, and with almost free rows."""

    whole: Run
    killed: Run
    cheap: Run


def watch(command: list[str], environment: dict[str, str], folder: Path, target: str, rows: int, *, kill: bool) -> Run:
    """Run the command to its end. With `kill`, kill the latest worker to write when 40 % of the rows are labeled."""
    mark, log = uuid.uuid4().hex, folder / "batches.log"
    log.touch()
    environment = {**environment, "DLB_BENCH_MARK": mark, "DLB_BENCH_LOG": str(log)}
    run, began = Run(load=os.getloadavg()[0]), time.time()
    cpu: dict[int, float] = {}
    spent: list[tuple[float, float]] = []
    with (folder / "said.txt").open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            while process.poll() is None:
                pids = _marked(mark)
                cpu |= {pid: used for pid in pids if (used := _cpu_seconds(pid)) is not None}
                spent.append((time.time(), sum(cpu.values())))
                run.memory.append((time.time() - began, sum(map(_memory_mb, pids))))
                if kill and run.killed_at is None:
                    run.killed_at = _kill_one(_batches(log), rows, process.pid)
                    run.killed_after = run.killed_at and run.killed_at - began
                if run.killed_at is not None and time.time() - _last_sign(log, run.killed_at) > _PATIENCE_SECONDS:
                    break
                time.sleep(_LOOK_SECONDS)
        finally:
            for pid in _marked(mark):  # processes that are left
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
    run.code = process.returncode
    run.said = (folder / "said.txt").read_text(errors="replace")
    told = [json.loads(line[6:]) for line in run.said.splitlines() if line.startswith("BENCH ")]
    at = {one["phase"]: one["at"] for one in told}
    run.seconds_up = at.get("up", began) - began
    run.seconds = at.get("done", time.time()) - at.get("up", began)
    run.cpu_seconds = _spent_at(spent, at.get("done", time.time())) - _spent_at(spent, at.get("up", began))
    run.latencies = next((one["seconds"] for one in told if one["phase"] == "latency"), [])
    _count(run, _batches(log), _written(Path(target)), rows)
    return run


def _last_sign(log: Path, killed_at: float) -> float:
    """Return the time when the job last labeled a batch or lost its worker.

    A pool of processes hangs forever if the killed worker held the lock of its queue.
    """
    return max(killed_at, log.stat().st_mtime)


def _spent_at(spent: list[tuple[float, float]], when: float) -> float:
    """Return the CPU seconds until then, by the next measurement."""
    return next((seconds for at, seconds in spent if at >= when), spent[-1][1])


def _count(run: Run, batches: list[dict[str, Any]], written: list[int], rows: int) -> None:
    """Count rows without a label in the output, and rows labeled more than once, which would be paid twice."""
    main = [batch for batch in batches if batch["ids"] and batch["ids"][-1][1] < rows]
    labeled = [one for batch in main for first, last in batch["ids"] for one in range(first, last + 1)]
    run.rows_lost = rows - len(set(written))
    run.rows_twice = len(labeled) - len(set(labeled))
    if run.killed_at is not None:
        before = {batch["pid"] for batch in main if batch["at"] <= run.killed_at}
        after = [batch["at"] for batch in main if batch["at"] > run.killed_at and batch["pid"] not in before]
        run.seconds_to_recover = min(after) - run.killed_at if after else None


def _kill_one(batches: list[dict[str, Any]], rows: int, driver: int) -> float | None:
    done = sum(last - first + 1 for batch in batches for first, last in batch["ids"])
    if done < rows * 0.4:
        return None
    victim = batches[-1]["pid"]
    assert victim != driver, "a worker is in the driver's process; killing it would show nothing"
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    return time.time()


def _batches(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def _written(target: Path) -> list[int]:
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    shown = [path for path in files if not any(part.startswith((".", "_")) for part in path.relative_to(target).parts)]
    return [json.loads(line)["id"] for path in shown for line in path.read_text().splitlines()]


def _marked(mark: str) -> list[int]:
    """Return the ids of all processes of the run, even if they have another parent by now."""
    found, wanted = [], f"DLB_BENCH_MARK={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if wanted in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def _cpu_seconds(pid: int) -> float | None:
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return None


def _memory_mb(pid: int) -> float:
    """Return the proportional set size, which divides a shared page among its processes."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0
