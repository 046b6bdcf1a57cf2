"""A worker process that can die, freeze or be interrupted at any arrow that leaves it, within the test's own process.

Arrows are transactions of the ledger, files of the payload store, and calls of a provider. A dead process has no
further effect: its clean-up code runs, unlike after SIGKILL, but each arrow of it raises Dead. A process interrupted by
Ctrl-C, or by a terminated run, cleans up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from dagster_llm_batch.protocols import CAPABILITIES
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore, StoredFile

__all__ = ["Dead", "End", "How", "Mortal", "mortal_ledger", "mortal_provider", "mortal_store"]

_VERBS = ("submit", "find", "poll", "fetch", "cancel", "respond", "respond_flex")


class Dead(BaseException):
    """The process was killed."""


class How(StrEnum):
    """The ways in which a process ends."""

    DIES = "dies"
    FREEZES = "freezes"
    INTERRUPTED = "is interrupted"


@dataclass(frozen=True)
class End:
    """The number of the arrow at which a process ends, and the way it ends."""

    arrow: int
    how: How

    def __repr__(self) -> str:
        return f"{self.how} at arrow {self.arrow}"


class Mortal:
    """The arrows across the border of one process. Without `end`, it lives."""

    def __init__(self, end: End | None) -> None:
        self.end = end
        self.crossed: list[str] = []
        self.is_dead = False
        self.frozen, self.thawed = threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def cross(self, arrow: str, *, may_freeze: bool = True) -> None:
        """Count an arrow, and end at the chosen one. `may_freeze`: this process holds no lock that others wait for."""
        if self.is_dead:
            raise Dead(arrow)
        with self._lock:
            self.crossed.append(arrow)
            is_last = self.end is not None and len(self.crossed) == self.end.arrow
        if is_last and self.end is not None:
            if self.end.how is How.INTERRUPTED:
                raise KeyboardInterrupt
            if self.end.how is How.DIES:
                self.is_dead = True
                raise Dead(arrow)
            if may_freeze:
                self.frozen.set()
        if self.frozen.is_set() and not self.thawed.is_set() and may_freeze:
            # A process freezes with all its threads.
            self.thawed.wait(120)


def mortal_ledger(ledger: Ledger, mortal: Mortal) -> Ledger:
    """Let the transactions of a ledger cross the border."""
    database = ledger._database
    real: Callable[[], AbstractContextManager[Any]] = database.write

    @contextmanager
    def write() -> Iterator[Any]:
        mortal.cross("ledger: before")
        with real() as connection:
            yield connection
            mortal.cross("ledger: not committed", may_freeze=False)
        mortal.cross("ledger: after")

    database.write = write  # type: ignore[method-assign]
    return ledger


def mortal_store(root: str, mortal: Mortal) -> PayloadStore:
    """Return a payload store whose files cross the border."""

    class Store(PayloadStore):
        @contextmanager
        def _staged(self, path: str) -> Iterator[BinaryIO]:
            mortal.cross("file: before")
            with super()._staged(path) as file:
                yield file

        def _publish(self, staged: Path, full: str) -> None:
            mortal.cross("file: without its name")
            super()._publish(staged, full)
            mortal.cross("file: after")

        def delete(self, path: str) -> None:
            mortal.cross("file: delete")
            super().delete(path)

        def move(self, path: str, to: str) -> None:
            mortal.cross("file: move")
            super().move(path, to)

        def remove(self, file: StoredFile) -> None:
            mortal.cross("file: remove")
            super().remove(file)

    return Store(root)


def mortal_provider(provider: Any, mortal: Mortal) -> Any:
    """Return the provider; each call of it crosses twice."""
    return _MortalProvider(provider, mortal)


class _MortalProvider:
    def __init__(self, provider: Any, mortal: Mortal) -> None:
        self._provider, self._mortal = provider, mortal
        for verb, capability in CAPABILITIES.items():
            if isinstance(provider, capability):
                setattr(self, verb, self.__getattr__(verb))

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._provider, name)
        if name not in _VERBS:
            return real

        def act(*given: Any, **options: Any) -> Any:
            self._mortal.cross(f"{name}: before")
            answer = real(*given, **options)
            self._mortal.cross(f"{name}: after")
            return answer

        return act
