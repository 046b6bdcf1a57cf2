"""Pruned submissions. Their files are gone, so later plans cannot reuse their answers."""

from __future__ import annotations

from collections.abc import Iterable

from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Submission

__all__ = ["find_pruned", "is_pruned"]


def is_pruned(ledger: Ledger, submission: Submission) -> bool:
    """Return whether the submission was pruned, so that its answers cannot be reused."""
    return bool(find_pruned(ledger, [submission]))


def find_pruned(ledger: Ledger, submissions: Iterable[Submission]) -> set[str]:
    """Return the ids of the pruned ones among these submissions."""
    return ledger.submissions.find_pruned([submission.submission_id for submission in submissions])
