"""Has the stream changed? One online detector (river's ADWIN) for each signal, over the messages in their order.

Signals: the share of each class, the student's confidence, the share of known words, and the length of texts. Each
detected change goes to the events' topic as a `DriftEvent`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from dagster_llm_batch.errors import MissingExtraError

__all__ = ["DriftEvent", "DriftWatch"]

_MESSAGES_A_CHECK = 8


class DriftWatch:
    """Watches one stream of one student.

    Args:
        classes: Of the student.
        delta: Chance of a false alarm, shared by all signals.
    """

    def __init__(self, classes: Sequence[str], *, delta: float = 0.002) -> None:
        try:
            from river.drift import ADWIN  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            raise MissingExtraError("drift", "Watching a stream for drift") from error
        signals = [*(f"share of {class_}" for class_ in classes), "confidence", "known words", "length"]
        self._classes = list(classes)
        each = delta / len(signals)
        self._detectors: dict[str, Any] = {signal: ADWIN(delta=each, clock=_MESSAGES_A_CHECK) for signal in signals}

    def see(self, label: str, confidence: float, known: float, length: int) -> dict[str, int]:
        """Return signals that are seen to have changed by now, each with how many messages ago that was, at most."""
        values = {
            **{f"share of {class_}": float(class_ == label) for class_ in self._classes},
            "confidence": confidence,
            "known words": known,
            # ADWIN takes values of about 0 to 1
            "length": min(math.log1p(length) / 10, 1.0),
        }
        changed = {}
        for signal, value in values.items():
            detector = self._detectors[signal]
            detector.update(value)
            if detector.drift_detected:
                changed[signal] = int(detector.width)
        return changed


class DriftEvent(BaseModel):
    """Since `first_offset` at the earliest, and by `offset`, the messages of this partition differ from earlier ones.

    Detectors see all partitions of a process in turn, so `first_offset` may be too early, but not too late. `signals`:
    the signals that changed, as in `DriftWatch`. `seen_ms`: milliseconds since 1970.
    """

    topic: str
    signals: list[str]
    partition: int
    first_offset: int
    offset: int
    student: str
    seen_ms: int
