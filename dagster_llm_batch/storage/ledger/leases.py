"""Leases: at most one process works on a name at a time.

A lease is one row for each of its names, taken by compare-and-set and renewed by a heartbeat thread until its block
ends. A renewed lease is never taken away. If its owner is a dead process of this host, it passes on at once, otherwise
when it expires. Times are from the ledger's clock. The clocks of hosts that share a ledger differ by a few seconds
at most.

A process of another host, container or boot counts as alive until its lease expires.

SQLite keeps a file safe between processes of one machine only. A process refuses to work if it sees that another
machine renews a lease on the same file, as pods do that share a volume. It also refuses if another machine has taken a
lease since this process took one: the file has the name of the last machine. Two things are allowed. A lease of another
boot that is not renewed is left over from before a reboot. Another machine's name that a process finds when it begins
is left over from a container that has moved.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

import sqlalchemy as sa

from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.errors import LeaseError, LedgerError
from dagster_llm_batch.storage.ledger.database import Database, insert_or_nothing
from dagster_llm_batch.storage.ledger.schema import LEASE

__all__ = ["Lease", "Leases", "active_leases", "hold_leases"]

_RETRY_SECONDS = 0.2
_RETRY_GROWTH, _LONGEST_RETRY_SECONDS = 1.1, 5.0

# Leases are renewed more often than this, so an unrenewed lease of another machine is left by a dead process.
_LONGEST_SECONDS = 60.0

# Host name, boot, process namespace: see `_host`.
_HOST_PARTS = 3

# The name of a row with the machine that took a lease last. It is not a lease, and has expired when it is written.
_MACHINE = "machine"

# Leases are shorter than this. One that expires later was taken with a fast clock, so its time means nothing.
_BEYOND_ANY = timedelta(hours=2)

# Statements for each step are built once: SQLAlchemy takes longer to build one than to run it.
_MINE = LEASE.c.owner == sa.bindparam("me")
_RENEW = sa.update(LEASE).where(_MINE)
_GIVE_BACK = sa.delete(LEASE).where(_MINE)
# In the order in which names are taken, Python's order of text: two transactions that lock the same rows in different
# orders could wait for each other.
_LOCK_MINE = sa.select(LEASE.c.name).where(_MINE).order_by(sa.collate(LEASE.c.name, "C")).with_for_update()
_HOLDER = sa.select(LEASE).where(LEASE.c.name == sa.bindparam("wanted")).with_for_update()
_IS_HELD = (LEASE.c.expires_at > sa.bindparam("now")) & (LEASE.c.expires_at <= sa.bindparam("beyond_any"))
_OWNERS = sa.select(LEASE.c.name, LEASE.c.owner).where(_IS_HELD)
_MACHINES = sa.select(LEASE).where(_IS_HELD | (LEASE.c.name == _MACHINE))


@dataclass(frozen=True, slots=True)
class _Holder:
    name: str
    owner: str
    expires_at: datetime


class Lease:
    """A lease that this process took. Call `check` before each effect that must not happen twice."""

    def __init__(self, database: Database, clock: Callable[[], datetime], names: Sequence[str], seconds: float) -> None:
        self.names = sorted(set(names))  # in one order, so that two holders never wait for each other
        self.owner = f"{_process(os.getpid())}:{uuid.uuid4().hex}"
        self._database = database
        self._clock = clock
        self._length = timedelta(seconds=seconds)
        self._expires_at = clock()  # not held yet
        self._lost = False
        self._unrenewed_since: dict[tuple[str, datetime], float] = {}
        self._done = threading.Event()
        self._heart = threading.Thread(
            target=self._beat, args=(seconds / 3,), daemon=True, name=f"dagster-llm-batch lease {self}"
        )

    def __str__(self) -> str:
        return ", ".join([*self.names[:1], *([f"{len(self.names) - 1} more"] if len(self.names) > 1 else [])])

    def check(self) -> None:
        """Raise LeaseError unless the lease is certainly ours: stop, since another process may have continued."""
        if self._lost or self._clock() >= self._expires_at:
            raise LeaseError(
                f"The lease '{hide_secrets(str(self))}' was lost: it could not be renewed before "
                f"{self._expires_at.isoformat()}, or another process took it. Nothing more was done here. "
                "Run again to continue from the state in the ledger."
            )

    def renew(self) -> None:
        """Hold the lease for its full length from now. Raise LeaseError if another process has one of its names."""
        expires_at = self._clock() + self._length
        with self._database.write() as connection:
            self._lock_names(connection)
            renewed = connection.execute(_RENEW, {"me": self.owner, "expires_at": expires_at}).rowcount
        if renewed == len(self.names):
            self._expires_at = expires_at
        else:
            self._lost = True
        self.check()

    def take(self) -> _Holder | None:
        """Take the lease, start its heartbeat and return None; or return the holder of one of its names."""
        now = self._clock()
        expires_at = now + self._length
        with self._database.write() as connection:
            _note_machine(self._database, connection, now)
            for name in self.names:
                if (holder := self._compare_and_set(connection, name, now, expires_at)) is not None:
                    connection.execute(_GIVE_BACK, {"me": self.owner})
                    return holder
        _noted_in.add(self._database.shown_url)
        self._expires_at = expires_at
        self._heart.start()
        return None

    def release(self) -> None:
        """Stop the heartbeat and give the lease back, unless it was lost."""
        self._done.set()
        if self._heart.ident is not None:
            self._heart.join()
        self._give_back()

    def _give_back(self) -> None:
        with self._database.write() as connection:
            self._lock_names(connection)
            connection.execute(_GIVE_BACK, {"me": self.owner})

    def _lock_names(self, connection: sa.Connection) -> None:
        # SQLite has one writing transaction at a time.
        if len(self.names) > 1 and connection.dialect.name == "postgresql":
            connection.execute(_LOCK_MINE, {"me": self.owner})

    # One statement decides who holds a name. It is either an insert, which succeeds for one of several processes, or
    # the update of a locked row that was read as free. So two processes never both believe that they took it.
    def _compare_and_set(
        self, connection: sa.Connection, name: str, now: datetime, expires_at: datetime
    ) -> _Holder | None:
        wanted = {"owner": self.owner, "expires_at": expires_at}
        while not insert_or_nothing(connection, LEASE, {"name": name, **wanted}, "name"):
            row = connection.execute(_HOLDER, {"wanted": name}).mappings().one_or_none()
            # A holder can give the lease back between our two statements.
            if row is None:
                continue
            if row["expires_at"] > now and not _is_dead(row["owner"]) and not self._is_left(row):
                return _Holder(name, row["owner"], row["expires_at"])
            seen = (LEASE.c.name == name) & (LEASE.c.owner == row["owner"])
            connection.execute(sa.update(LEASE).where(seen).values(wanted))
            break
        return None

    def _is_left(self, row: sa.RowMapping) -> bool:
        """Return whether a lease with a meaningless time was left: it was seen for its length without a renewal."""
        if row["expires_at"] <= self._clock() + _BEYOND_ANY:
            return False
        since = self._unrenewed_since.setdefault((row["owner"], row["expires_at"]), time.monotonic())
        return time.monotonic() - since >= self._length.total_seconds()

    def least_wait_seconds(self, holder: _Holder) -> float:
        """Return the least time to wait for another holder's lease, until it is clear whether it is renewed.

        0 if its time is plausible; the length of a lease if a fast clock set that time.
        """
        is_beyond = holder.expires_at > self._clock() + _BEYOND_ANY
        return self._length.total_seconds() + 2 * _RETRY_SECONDS if is_beyond else 0.0

    def _beat(self, every_seconds: float) -> None:
        while not self._done.wait(every_seconds):
            try:
                self.renew()
            except LeaseError:
                return
            except LedgerError:
                continue  # the database may be back before the lease expires; `check` raises if not


@contextmanager
def hold_leases(
    database: Database, clock: Callable[[], datetime], names: Sequence[str], seconds: float, wait_seconds: float
) -> Iterator[Lease]:
    """See Leases.hold."""
    began = time.monotonic()
    lease = Lease(database, clock, names, seconds)
    if not names:  # nothing to hold, and nothing to renew
        yield lease
        return
    _refuse_other_machines(database, clock)
    pause_seconds = _RETRY_SECONDS
    while (holder := lease.take()) is not None:
        left_seconds = began + max(wait_seconds, lease.least_wait_seconds(holder)) - time.monotonic()
        if left_seconds <= 0:
            raise LeaseError(
                f"The lease '{hide_secrets(holder.name)}' is held by {holder.owner} until "
                f"{holder.expires_at.isoformat()}. Nothing was done. Wait for that process to end, or stop it: the "
                "lease of a dead process becomes free automatically."
            )
        time.sleep(min(pause_seconds, left_seconds))
        # Each try is a write: processes that wait for minutes must not slow down those that work.
        pause_seconds = min(pause_seconds * _RETRY_GROWTH, _LONGEST_RETRY_SECONDS)
    try:
        yield lease
    finally:
        with contextlib.suppress(LedgerError):  # the lease expires anyway; the block's own outcome matters more
            lease.release()


def active_leases(database: Database, clock: Callable[[], datetime]) -> set[str]:
    """See Leases.active."""
    with database.read() as connection:
        rows = connection.execute(_OWNERS, _times(clock())).all()
    _watch_other_machines(database, clock)
    dead = {owner for owner in {row.owner for row in rows} if _is_dead(owner)}
    return {row.name for row in rows if row.owner not in dead}


# The times at which leases of other machines expire, when this process last read them, by ledger and owner.
_seen: dict[tuple[str, str], datetime] = {}


# The ledgers in which this very process has recorded this machine's name.
_noted_in: set[str] = set()


def _note_machine(database: Database, connection: sa.Connection, now: datetime) -> None:
    """Record that a process of this machine takes a lease on a SQLite file, once in its life."""
    if database.is_file and database.shown_url not in _noted_in:
        connection.execute(sa.delete(LEASE).where(LEASE.c.name == _MACHINE))
        row = {"name": _MACHINE, "owner": _process(os.getpid()) + ":", "expires_at": now}
        connection.execute(sa.insert(LEASE).values(row))


def _refuse_other_machines(database: Database, clock: Callable[[], datetime]) -> None:
    """Wait until leases of other machines on a SQLite file have expired. Raise LedgerError if one is renewed."""
    began = time.monotonic()
    longest: float | None = None
    while others := _watch_other_machines(database, clock):
        if longest is None:
            left_seconds = (max(others.values()) - clock()).total_seconds()
            longest = min(left_seconds, _LONGEST_SECONDS) + _RETRY_SECONDS
        if time.monotonic() - began > longest:
            return
        time.sleep(_RETRY_SECONDS)


def _watch_other_machines(database: Database, clock: Callable[[], datetime]) -> dict[str, datetime]:
    """Return when the leases of other machines on a SQLite file expire, by owner.

    Raises LedgerError if one has been renewed since this process saw it: both machines are working.
    """
    own = _boot(_host())
    if not database.is_file or own is None:
        return {}
    with database.read() as connection:
        rows = connection.execute(_MACHINES, _times(clock())).all()
    others = {row.owner: row.expires_at for row in rows if _boot(_host_of(row.owner)) not in (None, own)}
    last = next((row.owner for row in rows if row.name == _MACHINE), None)
    if last is not None and others.pop(last, None) is not None and database.shown_url in _noted_in:
        raise _two_machines(database, last)
    for place in [place for place in _seen if place[0] == database.shown_url and place[1] not in others]:
        del _seen[place]
    for owner, expires_at in others.items():
        before = _seen.get((database.shown_url, owner))
        _seen[database.shown_url, owner] = expires_at
        if before is not None and before < expires_at:
            raise _two_machines(database, owner)
    return others


def _two_machines(database: Database, owner: str) -> LedgerError:
    return LedgerError(
        f"Two machines work on the ledger {database.shown_url}: {_host()} and {_host_of(owner)}. "
        "SQLite keeps a file safe between the processes of one machine only. On a shared volume it can lose the "
        "records of paid batches. Nothing was done. Give the deployment a ledger in PostgreSQL (ledger_url), or run "
        "all of it on one machine. If the ledger was moved here, restart the processes that began before."
    )


def _times(now: datetime) -> dict[str, datetime]:
    """Return the parameters of `_IS_HELD`."""
    return {"now": now, "beyond_any": now + _BEYOND_ANY}


def _host_of(owner: str) -> str:
    return owner.rsplit(":", 3)[0]


def _boot(host: str) -> str | None:
    """Return the boot in the name of a machine; None if its system has no boot id."""
    parts = host.split("/")
    return parts[1] if len(parts) == _HOST_PARTS else None


def _is_dead(owner: str) -> bool:
    """Return whether the owner is certainly a dead process of this host."""
    host, pid, started, _ = owner.rsplit(":", 3)
    if host != _host() or os.name == "nt":  # Windows has no harmless signal to ask with
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it lives, as another user
    # Process ids are reused, in a container nearly always: another process may have the owner's id now. It is the owner
    # only if both started at the same time.
    now_started = _started(int(pid))
    return started != "-" and now_started is not None and now_started != started


@cache
def _host() -> str:
    """Return a name of the machine that is unique where process ids are: host name, boot and process namespace."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8])
        parts.append(str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]"))
    return "/".join(parts)


def _process(pid: int) -> str:
    """Return the name of a process, with which others on its host can find out whether it is dead."""
    return f"{_host()}:{pid}:{_started(pid) or '-'}"


def _started(pid: int) -> str | None:
    """Return the start of a process, in clock ticks since boot; None if this system does not report it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]  # the name before it may hold spaces and parentheses


class Leases:
    """Leases: names that one process holds at a time."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database, self._clock = database, clock

    def hold(self, *names: str, seconds: float = 60, wait_seconds: float = 0) -> AbstractContextManager[Lease]:
        """Hold these leases for a block, however long it runs; raise LeaseError if another holder has one of them.

        It is renewed every `seconds`/3. Call the lease's `check()` before each effect: it raises LeaseError if the
        lease was lost. A dead process of this host loses its lease at once, any other after `seconds`.
        """
        return hold_leases(self._database, self._clock, names, seconds, wait_seconds)

    def active(self) -> set[str]:
        """Return the names of all leases that living processes hold. They may pass to others a moment later."""
        return active_leases(self._database, self._clock)
