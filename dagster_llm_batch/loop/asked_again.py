"""Rows that a changed definition asks again, after an earlier definition asked them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dagster_llm_batch.storage.ledger.records import SubmissionState

if TYPE_CHECKING:
    from dagster_llm_batch.definition.labeling import Labeling
    from dagster_llm_batch.loop.deployment import Deployment
    from dagster_llm_batch.storage.ledger.records import Submission

__all__ = ["AskedAgain", "find_asked_again"]


class AskedAgain(NamedTuple):
    """The rows of a partition that are asked again.

    Attributes:
        rows: The number of rows, or of requests if several rows share one.
        earlier: The id of the submission that asked them before.
        changes: The arguments that have changed since.
    """

    rows: int
    earlier: str
    changes: Sequence[str]

    def __str__(self) -> str:
        verb = "row is" if self.rows == 1 else "rows are"
        return (
            f"{self.rows:,} {verb} sent and paid again: the definition has changed ({', '.join(self.changes)}) "
            f"since submission {self.earlier} asked them."
        )


def find_asked_again(deployment: Deployment, labeling: Labeling, submission: Submission) -> AskedAgain | None:
    """Return the rows that a submission asks again after an earlier definition asked them; None without such rows."""
    history = deployment.ledger.submissions.of_partition(deployment.namespace, submission.asset, submission.partition)
    ids = [one.submission_id for one in history]
    older = history[ids.index(submission.submission_id) + 1 :] if submission.submission_id in ids else []
    before = next((one for one in older if _was_asked(deployment, one)), None)
    rows = 0 if before is None else min(before.requests, submission.to_answer)
    if before is None or not rows:
        return None
    changes = deployment.sent_definition(labeling, before).changes
    return AskedAgain(rows, before.submission_id, changes) if changes else None


def _was_asked(deployment: Deployment, submission: Submission) -> bool:
    """Return whether any request was sent. None were if the submission was canceled first."""
    if submission.state is not SubmissionState.CANCELED or submission.outcomes:
        return True
    return any(
        shard.batch.sent_at is not None for shard in deployment.ledger.shards.of_submission(submission.submission_id)
    )
