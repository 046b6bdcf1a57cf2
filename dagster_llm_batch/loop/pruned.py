"""Which submissions were pruned: their files are gone, so that no later plan reuses their answers."""

from __future__ import annotations

from collections.abc import Iterable

from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Submission

__all__ = ["find_pruned", "is_pruned"]


def is_pruned(ledger: Ledger, submission: Submission) -> bool:
    """Return whether the submission was pruned, so that its answers cannot be reused."""
    return bool(find_pruned(ledger, [submission]))


def find_pruned(ledger: Ledger, submissions: Iterable[Submission]) -> set[str]:
    """Return the ids of those of these submissions that were pruned."""
    return ledger.submissions.find_pruned([submission.submission_id for submission in submissions])
