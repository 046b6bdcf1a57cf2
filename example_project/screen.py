"""The display while waiting: moving bars on a terminal, or a line for each change without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

__all__ = ["Bar", "Screen"]

_STEPS = 5
"""Without a terminal, a bar is printed again after each fifth of its total."""


@dataclass(frozen=True)
class Bar:
    """One thing in progress. A total of 0 means that the duration is unknown."""

    name: str
    state: str | None
    done: int
    total: int


class Screen:
    """A display with lines above and bars below."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._spinner = Spinner("dots")
        self._told: dict[str, tuple[object, ...]] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(line, markup=False)

    def show(self, bars: Sequence[Bar], *, last: bool = False) -> None:
        """Show the bars in their present state. With `last`, they stay."""
        if not self._console.is_terminal:
            for bar in bars:
                self._tell(bar)
            return
        self._live.update(self._drawn(bars))
        if last:
            self._live.update("")
            self._console.print(self._drawn(bars))

    def _drawn(self, bars: Sequence[Bar]) -> Table:
        table = Table.grid(padding=(0, 1))
        for is_bar in (False, False, True, False, False):
            table.add_column(no_wrap=not is_bar)  # on a narrow terminal, only the bars shrink
        for bar in bars:
            if bar.total:
                count = f"{bar.done:>4} of {bar.total}"
                table.add_row("     ", bar.name, ProgressBar(bar.total, bar.done, width=30), count, bar.state or "")
            else:
                table.add_row("     ", bar.name, self._spinner, "", bar.state or "")
        return table

    def _tell(self, bar: Bar) -> None:
        step = (bar.state, _STEPS * bar.done // bar.total if bar.total else 0)
        if self._told.get(bar.name) != step:
            self._told[bar.name] = step
            count = f" {bar.done} of {bar.total}," if bar.total else ""
            self.say(f"      {bar.name}:{count} {bar.state}" if bar.state else f"      {bar.name}")
