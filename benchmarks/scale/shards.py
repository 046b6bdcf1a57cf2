"""Many small shards: a shard's cost for workers, ledger, payload store and sensor, and a check that all rows arrive.

Shards have few rows, so that the figures show the cost of a shard, not of its rows.
"""

from __future__ import annotations

import json
import tempfile
import urllib.request
from collections import defaultdict
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.measure import child, mock
from benchmarks.scale.pools import Done, Processes, Ray
from benchmarks.scale.server import ServerCost, read_server
from benchmarks.scale.setup import Setup

__all__ = ["Size", "run"]

_POOLS: dict[str, type[Processes | Ray]] = {"processes": Processes, "ray": Ray}


@dataclass(frozen=True)
class Size:
    """The amount of work, and its workers."""

    partitions: int = 1_000
    shards: int = 10
    rows: int = 10
    workers: int = 4
    pool: str = "processes"
    chunk: int = 5  # partitions that a worker takes at a time


def run(size: Size) -> dict[str, Any]:
    """Plan, send, poll and collect; kill a worker in the middle of each half. Raises AssertionError for a lost row."""
    from tests.crash.postgres import postgres

    with mock() as addresses, postgres(durable=True) as databases, tempfile.TemporaryDirectory() as folder:
        setup = Setup(addresses["url"], databases(), folder, size.partitions, size.shards, size.rows)
        for place in (setup.busy, setup.tables):
            place.mkdir()
        _call(setup.url, "POST", "/hold/openai")
        setup.engine().ledger.submissions.list_all("nobody")  # creates its tables
        chunks = [
            tuple(range(start, min(start + size.chunk, size.partitions)))
            for start in range(0, size.partitions, size.chunk)
        ]
        kill_after = len(chunks) // 2
        with closing(_POOLS[size.pool](setup, size.workers)) as pool:
            start = read_server(setup.ledger_url)
            sent = pool.run("send", chunks, kill_after)
            after_sent = read_server(setup.ledger_url)
            ticks = _ticks(setup)
            after_ticks = read_server(setup.ledger_url)
            landed = pool.run("land", chunks, kill_after)
            end = read_server(setup.ledger_url)
        bill = _call(setup.url, "GET", "/bill/openai")
        found = {
            "size": asdict(size),
            "rows_lost": _rows_lost(setup),
            "rows_billed_twice": bill["rows_billed_twice"],
            "batches": bill["batches"],
            "send": _step(sent, after_sent - start),
            "land": _step(landed, end - after_ticks),
            "ticks": ticks,
            "ledger": asdict(end - start),
            "objects": _objects(setup.payloads),
        }
        assert found["rows_lost"] == found["rows_billed_twice"] == 0, found
        assert bill["rows"] == size.partitions * size.shards * size.rows, bill
        return found


def _ticks(setup: Setup) -> list[dict[str, Any]]:
    ticks: list[dict[str, Any]] = child("benchmarks.scale.tick", json.dumps(asdict(setup))).said["ticks"]
    return ticks


def _step(done: Done, server: ServerCost) -> dict[str, Any]:
    return {
        "wall_s": done.wall_s,
        "kills": done.kills,
        **asdict(done.taken),
        "server_cpu_s": server.cpu_s,
        "server_transactions": server.transactions,
        "wal_bytes": server.wal_bytes,
        "whole_scans": server.whole_scans,
    }


def _call(url: str, method: str, path: str) -> dict[str, Any]:
    request = urllib.request.Request(url + path, b"{}" if method == "POST" else None, method=method)
    with urllib.request.urlopen(request) as reply:
        return dict(json.load(reply))


def _rows_lost(setup: Setup) -> int:
    """Count the rows that are missing, repeated, or labeled with another row's answer."""
    good, seen = set(), 0
    for path in sorted(setup.tables.glob("*.parquet")):
        for key, row, outcome in zip(*pq.read_table(path).to_pydict().values(), strict=True):
            seen += 1
            if outcome == "succeeded" and key == f"r{row:08d}":
                good.add(key)
    wanted = setup.partitions * setup.shards * setup.rows
    return (wanted - len(good)) + (seen - len(good))


def _objects(payloads: Path) -> dict[str, dict[str, int]]:
    """Count files and their bytes by kind, which is the part of a name after its first dot."""
    kinds: dict[str, dict[str, int]] = defaultdict(lambda: {"objects": 0, "bytes": 0})
    for path in payloads.rglob("*"):
        if path.is_file():
            kind = kinds[path.name if path.name.startswith("manifest") else path.name.partition(".")[2]]
            kind["objects"] += 1
            kind["bytes"] += path.stat().st_size
    return dict(sorted(kinds.items()))
