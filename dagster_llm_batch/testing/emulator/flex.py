"""The tier "flex" of the emulated vendors: served, turned away, or served in another tier."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class FlexScript:
    """The behavior of calls that ask for the tier "flex".

    Args:
        turned_away: The first calls that are turned away for lack of capacity, unbilled.
        named: The tier that the answers name, in the vendor's own word; None: they name none. Default: the vendor's
            word for flex.
    """

    turned_away: int = 0
    named: str | None = ""


class FlexTier:
    """The tier's script, and the calls that asked for it so far."""

    def __init__(self) -> None:
        self.script = FlexScript()
        self.calls = 0
        self._lock = threading.Lock()

    def has_room(self) -> bool:
        """Count a call, and return whether it is served."""
        with self._lock:
            self.calls += 1
            return self.calls > self.script.turned_away

    def name(self, flex: str) -> str | None:
        """Return the tier that an answer names. `flex`: the vendor's word for this tier."""
        return flex if self.script.named == "" else self.script.named
