"""Verbs of a ledger that older versions of the package have under other names."""

from __future__ import annotations

from typing import Any

__all__ = ["mark_delivered"]


def mark_delivered(ledger: Any, *submission_ids: str) -> None:
    """Mark submissions delivered, in a ledger of this version or of an older one."""
    found = getattr(ledger, "mark_delivered", None) or ledger.submissions.mark_delivered
    found(*submission_ids)
