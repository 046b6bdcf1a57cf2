"""The states of a batch, written as edges, and the pace at which they are walked.

A vendor's folder has its table. A batch moves only by `Mover.tick()` (manual pace), by `Mover.advance()` (seconds on a
clock, called by a timer thread), or by a caller's explicit request such as cancel: a read never moves it. A transition
is one compare-and-set under the batch's lock; an illegal one raises `IllegalTransitionError` and changes nothing.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

Clock = Callable[[], float]
"""Seconds since the Unix epoch."""

_log = logging.getLogger(__name__)


class IllegalTransitionError(Exception):
    """The state has no edge for the event; nothing changed."""


@dataclass(frozen=True)
class Edge:
    """In `source`, when `event` happens, the batch is in `target`."""

    source: str
    event: str
    target: str


@dataclass(frozen=True)
class Lifecycle:
    """The table of one vendor: where a batch starts and every edge it may take."""

    start: str
    edges: tuple[Edge, ...]

    @property
    def states(self) -> tuple[str, ...]:
        """Every state, in the order the table names them."""
        named = [self.start, *(state for edge in self.edges for state in (edge.source, edge.target))]
        return tuple(dict.fromkeys(named))

    def ended(self, state: str) -> bool:
        """Return whether no edge leaves the state."""
        return all(edge.source != state for edge in self.edges)

    def target(self, state: str, event: str) -> str:
        """Return where the event leads, or `IllegalTransitionError`."""
        for edge in self.edges:
            if edge.source == state and edge.event == event:
                return edge.target
        allowed = sorted(edge.event for edge in self.edges if edge.source == state)
        raise IllegalTransitionError(f"event {event!r} is not possible in state {state!r}; possible events: {allowed}")

    def diagram(self) -> str:
        """Return the table as a Mermaid state diagram."""
        lines = ["stateDiagram-v2", f"    [*] --> {self.start}"]
        lines += [f"    {edge.source} --> {edge.target}: {edge.event}" for edge in self.edges]
        lines += [f"    {state} --> [*]" for state in self.states if self.ended(state)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Pace:
    """The time of a batch in each state: `None` seconds means that only a tick moves it."""

    seconds: float | None = None
    states: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, value: str | float | Mapping[str, float]) -> Pace:
        """Build it from `"manual"`, seconds an edge, or seconds by state (a missing state takes none)."""
        if value == "manual":
            return cls()
        if isinstance(value, Mapping):
            return cls(0.0, dict(value))
        if isinstance(value, str):
            raise ValueError(  # noqa: TRY004  (a string, but not the one that is allowed)
                f'pace is "manual", seconds, or a mapping of state to seconds; got {value!r}'
            )
        return cls(float(value))

    def dwell_seconds(self, state: str) -> float:
        """Return the seconds spent in the state; infinite under the manual pace."""
        return math.inf if self.seconds is None else self.states.get(state, self.seconds)


class ManualClock:
    """A clock that moves only by its methods; call it for the time, in seconds since the epoch."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start

    def __call__(self) -> float:
        """Return the present time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let the seconds pass."""
        self._now += seconds


class Life:
    """The walk of one batch through its table: where it is, and when it reached each state."""

    def __init__(
        self, lifecycle: Lifecycle, at: float, moved: Callable[[str, str, str, float], None] | None = None
    ) -> None:
        self._lifecycle = lifecycle
        self._lock = threading.Lock()
        self._moved = moved
        self.state = lifecycle.start
        self.entered_at = at
        self.reached_at: dict[str, float] = {lifecycle.start: at}

    @property
    def ended(self) -> bool:
        """Whether the state is terminal."""
        return self._lifecycle.ended(self.state)

    def move(self, event: str, at: float, *, expected: str | None = None) -> bool:
        """Take the event's edge; False, and nothing changed, where the state is no longer the expected one."""
        with self._lock:
            source = self.state
            if expected is not None and source != expected:
                return False
            target = self._lifecycle.target(source, event)
            self.reached_at.setdefault(target, at)
            self.entered_at = at
            self.state = target
            if self._moved is not None:
                self._moved(source, event, target, at)
            return True


class Moving(Protocol):
    """An object that a `Mover` moves: one batch of one vendor."""

    life: Life

    def step(self, at: float) -> str | None:
        """Do the work of the present state as of `at`; return the event, or None to stay."""

    def deadline(self) -> float:
        """Return when the present state is cut short, in seconds since the epoch; infinite if never."""


class Mover:
    """Walks every live batch, one edge a tick or as many edges as are due by the clock."""

    def __init__(self, pace: Pace, clock: Clock) -> None:
        self._pace = pace
        self._clock = clock
        self._live: list[Moving] = []
        self._listing = threading.Lock()
        self._walking = threading.Lock()  # one walker at a time; never held by a reader
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, batch: Moving) -> None:
        """Walk this batch too from now on."""
        with self._listing:
            self._live.append(batch)

    def tick(self, times: int = 1) -> int:
        """Move every live batch one edge, `times` times; how many moves that were."""
        moves = 0
        for _ in range(times):
            with self._walking:
                moves += sum(self._step(batch, self._clock()) for batch in self._alive())
        return moves

    def settle(self, most_ticks: int = 1000) -> None:
        """Tick until no batch moves any more."""
        for _ in range(most_ticks):
            if not self.tick():
                return
        raise RuntimeError(f"batches still move after {most_ticks} ticks; is a fault or a huge work_steps in play?")

    def advance(self) -> int:
        """Take every edge that is due by the clock, each at the moment it was due; how many moves that were."""
        moves = 0
        with self._walking:
            now = self._clock()
            for batch in self._alive():
                while not batch.life.ended and (due := self._due(batch)) <= now and self._step(batch, due):
                    moves += 1
        return moves

    def _alive(self) -> list[Moving]:
        with self._listing:
            self._live = [batch for batch in self._live if not batch.life.ended]
            return list(self._live)

    def _due(self, batch: Moving) -> float:
        return min(batch.life.entered_at + self._pace.dwell_seconds(batch.life.state), batch.deadline())

    @staticmethod
    def _step(batch: Moving, at: float) -> bool:
        state = batch.life.state
        event = batch.step(at)
        return event is not None and batch.life.move(event, at, expected=state)

    def start(self) -> None:
        """Start the timer thread, if the pace is in seconds."""
        if self._pace.seconds is not None and self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="emulator-clock", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the timer thread; batches keep their states."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        dwells = [seconds for seconds in (self._pace.seconds, *self._pace.states.values()) if seconds]
        wait = min(0.05, max(0.005, min(dwells, default=0.0) / 4))
        while not self._stop.wait(wait):
            try:
                self.advance()
            except Exception:  # noqa: BLE001  (the clock must outlive one broken step, and say so)
                _log.exception("a batch of the emulator could not be moved")
