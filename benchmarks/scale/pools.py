"""Four workers, in Ray or in plain processes. One is killed in the middle, and another one takes over its work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT
from benchmarks.scale.setup import Setup, Taken, work

__all__ = ["Done", "Processes", "Ray"]

Chunk = tuple[int, ...]


@dataclass(frozen=True)
class Done:
    """The cost of all chunks together. A killed worker only counts with its wall-clock time."""

    taken: Taken
    wall_s: float
    kills: int


class Processes:
    """Workers in Python's own processes."""

    def __init__(self, setup: Setup, count: int) -> None:
        self._setup = setup
        self._context = multiprocessing.get_context("spawn")
        self._workers = dict(self._start() for _ in range(count))

    def _start(self) -> tuple[Connection, Any]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(self._setup, theirs), daemon=True)
        process.start()
        theirs.close()
        return ours, process

    def run(self, step: str, chunks: Sequence[Chunk], kill_after: int | None) -> Done:
        """Do a step for all chunks; kill a worker after `kill_after` of them."""
        began, taken, done, kills = time.monotonic(), Taken(), 0, 0
        waiting = deque(chunks)
        busy: dict[Connection, Chunk] = {}
        while waiting or busy:
            for pipe in self._workers:
                if pipe not in busy and waiting:
                    busy[pipe] = waiting.popleft()
                    pipe.send((step, busy[pipe]))
            if kill_after is not None and not kills and done >= kill_after:
                kills += _kill(self._setup.busy)
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                chunk = busy.pop(ready)
                try:
                    taken += ready.recv()
                    done += 1
                except EOFError:
                    self._workers.pop(ready).join()
                    if not kills:
                        raise RuntimeError(f"a worker failed at {step} of {chunk}; see above") from None
                    waiting.appendleft(chunk)
                    self._workers |= [self._start()]
        return Done(taken, time.monotonic() - began, kills)

    def close(self) -> None:
        for pipe, process in self._workers.items():
            pipe.close()
            process.join()


def _serve(setup: Setup, pipe: Connection) -> None:
    while True:
        try:
            step, chunk = pipe.recv()
        except EOFError:
            return
        pipe.send(work(setup, step, chunk))


class Ray:
    """Workers in a local Ray. A chunk is a task, which Ray gives to another worker after a kill."""

    def __init__(self, setup: Setup, count: int) -> None:
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # a busy machine takes longer than 30
        import ray

        self._setup, self._ray = setup, ray
        ray.init(
            num_cpus=count,
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            object_store_memory=100 * 1024 * 1024,
            _temp_dir=tempfile.mkdtemp(prefix="r", dir="/tmp"),  # short: socket paths end at 107 bytes
            logging_level="ERROR",
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        self._work = ray.remote(num_cpus=1, max_retries=2)(work)

    def run(self, step: str, chunks: Sequence[Chunk], kill_after: int | None) -> Done:
        """See Processes.run."""
        began, taken, kills = time.monotonic(), Taken(), 0
        left = [self._work.remote(self._setup, step, chunk) for chunk in chunks]
        while left:
            if kill_after is not None and not kills and len(chunks) - len(left) >= kill_after:
                kills += _kill(self._setup.busy)
            ended, left = self._ray.wait(left, num_returns=1)
            for one in self._ray.get(ended):
                taken += one
        return Done(taken, time.monotonic() - began, kills)

    def close(self) -> None:
        self._ray.shutdown()


def _kill(busy: Path) -> int:
    """Kill the worker with the oldest task, by SIGKILL; return the number of killed workers."""
    notes = sorted(busy.iterdir(), key=lambda note: note.stat().st_mtime)
    if not notes:
        return 0
    os.kill(int(notes[0].name), signal.SIGKILL)
    notes[0].unlink()
    return 1
