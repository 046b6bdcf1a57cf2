"""The cost of PostgreSQL's server for the ledger: CPU, transactions, log and disk."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg2

__all__ = ["ServerCost", "read_server"]

_TABLES = ("submission", "shard", "event", "lease")


@dataclass(frozen=True)
class ServerCost:
    """The cost since the server's start, or between two such moments."""

    cpu_s: float
    transactions: int
    wal_bytes: int
    whole_scans: dict[str, int]  # full scans of each table
    bytes: dict[str, int]  # of each table, with indexes
    rows: dict[str, int]

    def __sub__(self, other: ServerCost) -> ServerCost:
        def less(own: dict[str, int], others: dict[str, int]) -> dict[str, int]:
            return {name: count - others[name] for name, count in own.items()}

        return ServerCost(
            self.cpu_s - other.cpu_s,
            self.transactions - other.transactions,
            self.wal_bytes - other.wal_bytes,
            less(self.whole_scans, other.whole_scans),
            less(self.bytes, other.bytes),
            less(self.rows, other.rows),
        )


def read_server(url: str) -> ServerCost:
    """Read the cost so far of a ledger's database server, which must be on this machine. Linux only."""
    home = Path(parse_qs(urlsplit(url).query)["host"][0])
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:

        def ask(query: str) -> list[tuple[Any, ...]]:
            cursor.execute(query)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

        ask("SELECT pg_stat_force_next_flush()")
        [(transactions,)] = ask("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        [(wal,)] = ask("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
        scans: dict[str, int] = dict(ask("SELECT relname, seq_scan FROM pg_stat_user_tables"))
        sizes = {name: ask(f"SELECT pg_total_relation_size('{name}')")[0][0] for name in _TABLES}
        rows = {name: ask(f"SELECT count(*) FROM {name}")[0][0] for name in _TABLES}
    connection.close()
    postmaster = int((home / "data" / "postmaster.pid").read_text().split()[0])
    return ServerCost(
        _cpu_s(postmaster), int(transactions), int(wal), {name: int(scans[name]) for name in _TABLES}, sizes, rows
    )


def _cpu_s(postmaster: int) -> float:
    """Return the server's CPU seconds, including ended sessions and present processes."""
    ticks = sum(_fields(postmaster)[11:15])  # utime and stime, of the process and of ended children
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                fields = _fields(int(process.name))
                if fields[1] == postmaster:
                    ticks += sum(fields[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def _fields(process: int) -> list[int]:
    """Return the numbers in a process's `stat` file after its name and state. Number [1] is its parent."""
    text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return [0, *map(int, text[1:15])]
