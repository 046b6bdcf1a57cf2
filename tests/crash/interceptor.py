"""The places where a worker process can die: each arrow that leaves it, cut at the boundary of a class.

    file: …     a payload: begun, half written, whole but without its name, named
    ledger: …   a transaction: not begun, run but not committed, committed; named after the ledger's method or move
    call: …     a call to a provider: not sent, sent and not acted on, acted on and its reply unread, answered

The cut is in that process alone. The package has no hooks for this. A new file, transaction or call appears here under
its own name.
"""

from __future__ import annotations

import functools
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.httpsession
import httpx
import httpx2
import requests.adapters

from dagster_llm_batch.providers.command import batches as command_batch
from dagster_llm_batch.providers.command import provider as command
from dagster_llm_batch.storage.ledger import database
from dagster_llm_batch.storage.payloads import PayloadStore

_FILE = re.compile(
    r"(?:wave-(?P<wave>\d+)-\d+\.)?(?P<kind>[a-z]+)(?:-[0-9a-f]+)*\.(?:(?:(?:jsonl|pdf)\.)?(?:zst|lz4)|parquet)$"
)
_VERBS = {
    "submit": "call: upload",
    **{verb: f"call: {verb}" for verb in ("find", "poll", "fetch", "cancel", "respond", "respond_flex")},
    **{verb: f"call: {verb}" for verb in ("upload_document", "find_documents", "has_document", "delete_document")},
}
# The names of these methods' transactions in crash points.
_TRANSACTIONS = {
    ("Submissions", "open"): "open_submission",
    ("Submissions", "settle_all"): "settle_submission",
    ("Shards", "split"): "split_shard",
    ("EventLog", "add"): "add_event",
    ("Money", "release"): "release_money",
    ("Documents", "begin"): "begin_upload",
    ("Documents", "complete"): "complete_upload",
    ("Documents", "lose"): "lose_upload",
    ("Documents", "need"): "need_documents",
    ("Documents", "forget"): "forget_upload",
    ("Lease", "take"): "lease",
    ("Lease", "_give_back"): "release",
}


class When(StrEnum):
    """The moment at an arrow."""

    BEFORE = "before"  # nothing has left
    HALFWAY = "halfway"  # some of its bytes are out
    UNSEEN = "unseen"  # all is written but not visible to others: without its name, or not committed
    ARRIVED = "arrived"  # the provider has the call, and never acts on it
    ACTED = "acted"  # the provider has acted, and its reply is not read
    AFTER = "after"  # it is complete and this process has its result; nothing else has happened


HELD = frozenset({When.ARRIVED, When.ACTED, When.HALFWAY})
"""Moments of a call outside this process: the emulator holds the call there, and the parent kills."""


@dataclass(frozen=True)
class Point:
    """The `nth` time that a process reaches this moment of this arrow, within a retry round."""

    arrow: str
    when: When
    wave: int = 1
    nth: int = 1

    @property
    def holds_a_transaction(self) -> bool:
        """Whether the process is between two statements of a transaction there, the last of them the commit."""
        return self.arrow.startswith("ledger: ") and self.when is When.UNSEEN

    def __str__(self) -> str:
        return f"{self.arrow} · {self.when.value}{' (round 2)' if self.wave > 1 else ''}"


class Interceptor:
    """Counts crossed arrows, and kills or freezes the process at one point.

    `told` notifies the parent, and returns once the emulator will hold the next call.

    A parent of many processes reads exit codes from several threads, which is not thread-safe in the standard library.
    """

    def __init__(self, point: Point | None, told: Callable[[bool], None], ends_by: signal.Signals) -> None:
        self.crossed: Counter[tuple[str, When, int]] = Counter()
        self.wave = 1
        self.verb = ""
        self._point = point
        self._told = told
        self._ends_by = ends_by

    def cross(self, arrow: str, when: When, wave: int | None = None) -> None:
        """Count that the process is at this moment, and end or freeze the process at the chosen one."""
        key = (arrow, when, wave or self.wave)
        self.crossed[key] += 1
        point = self._point
        if point is None or key != (point.arrow, point.when, point.wave) or self.crossed[key] != point.nth:
            return
        is_held = arrow.startswith("call: ") and when in HELD
        self._told(is_held)
        if not is_held:
            # To this thread: another thread could take a signal to the process, while this one runs on for a while.
            signal.pthread_kill(threading.get_ident(), self._ends_by)

    def around(self, arrow: str, act: Callable[[], Any]) -> Any:
        """Cross the moments before and after an act, and return its result."""
        self.cross(arrow, When.BEFORE)
        result = act()
        self.cross(arrow, When.AFTER)
        return result


def install(interceptor: Interceptor, create: str, download: str, emulator_port: int) -> None:
    """Intercept this process. `create` and `download` are patterns of "METHOD path" that identify these calls."""
    _intercept_files(interceptor)
    _intercept_transactions(interceptor)

    def call(method: str, url: str, send: Callable[[], Any]) -> Any:
        parts = urlsplit(url)
        line = f"{method} {parts.path}"
        arrow = _VERBS.get(interceptor.verb, "call: other")
        if interceptor.verb == "submit" and re.search(create, line):
            arrow = "call: create"
        elif interceptor.verb == "fetch" and re.search(download, line):
            arrow = "call: download"
        interceptor.cross(arrow, When.BEFORE)
        if parts.port == emulator_port:
            for when in (When.ARRIVED, When.ACTED, *([When.HALFWAY] if arrow == "call: download" else [])):
                interceptor.cross(arrow, when)
        answer = send()
        interceptor.cross(arrow, When.AFTER)
        return answer

    for transport in (httpx.HTTPTransport, httpx2.HTTPTransport):
        _wrap(transport, "handle_request", lambda real, me, r: call(r.method, str(r.url), lambda: real(me, r)))
    _wrap(
        requests.adapters.HTTPAdapter,
        "send",
        lambda real, me, r, *a, **k: call(r.method, r.url, lambda: real(me, r, *a, **k)),
    )
    _wrap(botocore.httpsession.URLLib3Session, "send", lambda real, me, r: call(r.method, r.url, lambda: real(me, r)))


def intercept_verbs(interceptor: Interceptor, provider: Any) -> Any:
    """Return the provider, which now reports its running verb. If it has no network, its verbs count as calls."""
    has_network = not isinstance(provider, command.CommandProvider)
    if not has_network:
        _intercept_command(interceptor)

    def tapped(verb: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any) -> Any:
            interceptor.verb = verb
            if has_network or verb == "submit":
                return real(*arguments)
            return interceptor.around(_VERBS[verb], lambda: real(*arguments))

        return act

    for verb in _VERBS:
        # Few providers have the tier "flex", or a storage for documents.
        if hasattr(provider, verb):
            setattr(provider, verb, tapped(verb, getattr(provider, verb)))
    return provider


def _wrap(owner: Any, name: str, tapped: Callable[..., Any]) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        return tapped(real, *arguments, **options)

    setattr(owner, name, wrapper)


def _intercept_files(interceptor: Interceptor) -> None:
    def named(path: str) -> tuple[str, int | None]:
        found = _FILE.search(path)
        # A part file becomes the table of an IO manager or a worker.
        kind = "table" if found and found["kind"] == "part" else found and found["kind"]
        return (f"file: {kind}", int(found["wave"] or 1)) if found else (f"file: {Path(path).name}", None)

    def once_half(path: str, write: Callable[..., None]) -> Callable[..., None]:
        told = False

        def half(*given: Any) -> None:
            nonlocal told
            write(*given)
            arrow, wave = named(path)
            if not told:
                interceptor.cross(arrow, When.HALFWAY, wave)
            told = True

        return half

    @contextmanager
    def writer(real: Any, store: PayloadStore, path: str) -> Iterator[Any]:
        with real(store, path) as out:
            out.write = once_half(path, out.write)
            yield out

    @contextmanager
    def table_writer(real: Any, store: PayloadStore, path: str, schema: Any, **more: Any) -> Iterator[Any]:
        with real(store, path, schema, **more) as out:
            out.write_table = once_half(path, out.write_table)
            yield out

    @contextmanager
    def staged(real: Any, store: PayloadStore, path: str) -> Iterator[Any]:
        arrow, wave = named(path)
        interceptor.cross(arrow, When.BEFORE, wave)
        with real(store, path) as file:
            yield file

    def publish(real: Any, store: PayloadStore, from_: Path, full: str) -> None:
        arrow, wave = named(full)
        interceptor.cross(arrow, When.UNSEEN, wave)
        real(store, from_, full)
        interceptor.cross(arrow, When.AFTER, wave)

    _wrap(PayloadStore, "writer", writer)
    _wrap(PayloadStore, "table_writer", table_writer)
    _wrap(PayloadStore, "_staged", staged)
    _wrap(PayloadStore, "_publish", publish)


def _intercept_transactions(interceptor: Interceptor) -> None:
    real_write, real_migrate = database.Database.write, database.migrate

    @contextmanager
    def crossing(arrow: str, transaction: Any) -> Iterator[Any]:
        interceptor.cross(arrow, When.BEFORE)
        with transaction as connection:
            yield connection
            interceptor.cross(arrow, When.UNSEEN)
        interceptor.cross(arrow, When.AFTER)
        if arrow == "ledger: add_wave":
            interceptor.wave += 1

    def write(self: database.Database) -> Any:
        caller = sys._getframe(1)  # the method of the ledger or lease that opened this transaction
        verb = caller.f_code.co_name
        move, member = caller.f_locals.get("move"), type(caller.f_locals.get("self")).__name__
        verb = _TRANSACTIONS.get((member, verb), verb) if move is None else move.value
        return crossing(f"ledger: {verb}", real_write(self))

    def migrate(*given: Any) -> None:
        interceptor.cross("ledger: migrate", When.BEFORE)
        real_migrate(*given)
        interceptor.cross("ledger: migrate", When.UNSEEN)

    database.Database.write = write  # type: ignore[method-assign]
    database.migrate = migrate


def _intercept_command(interceptor: Interceptor) -> None:
    """Intercept the request file of a batch, and the process that the provider starts."""

    def counted(real: Any, path: Path) -> int | None:
        if path.name == "in.jsonl" and interceptor.verb == "submit":
            interceptor.cross("call: upload", When.UNSEEN)  # the file exists, but not the plan that names it
        return real(path)

    def run(real: Any, *arguments: Any, **options: Any) -> Any:
        return interceptor.around("call: create", lambda: real(*arguments, **options))

    def prepare(real: Any, *given: Any) -> Any:
        return interceptor.around("call: upload", lambda: real(*given))

    _wrap(command_batch.CommandBatch, "prepare", prepare)
    _wrap(command_batch, "count_lines", counted)
    _wrap(command.subprocess, "run", run)  # its one call starts a batch's supervisor
