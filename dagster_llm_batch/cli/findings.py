"""The findings of `doctor`: the result of each check, and its severity."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Severity"]


class Severity(StrEnum):
    """Severity of a finding. The values are words of `doctor --json`."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """Result of one check; `then` is the next step.

    The names of the fields are keys of `doctor --json`, which programs read: they stay.
    """

    check: str
    verdict: Severity
    said: str
    then: str | None = None
