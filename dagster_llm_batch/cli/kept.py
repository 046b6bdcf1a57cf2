"""Money that limits keep for unsent shards: the amount, the time, and whether anything sends them."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from dagster_llm_batch.cli.deployment import DeploymentAccess
from dagster_llm_batch.cli.output import age, money
from dagster_llm_batch.storage.ledger.database import utc_now
from dagster_llm_batch.storage.ledger.records import Submission

__all__ = ["KeptMoney", "find_kept_money"]

# Without definitions, only the ledger shows whether a process works on a submission. One that waits for money or for
# its provider is tried again much earlier.
_SILENT = timedelta(days=1)


class KeptMoney(NamedTuple):
    """Money kept for one submission; `nobody` is the reason why nothing sends it, or None."""

    submission: Submission
    usd: Decimal
    since: datetime
    nobody: str | None

    @property
    def text(self) -> str:
        """The amount, the submission, and the reason why nothing sends it."""
        kept = f"{money(self.usd)} of the limits is reserved for {self.submission.place}"
        return f"{kept} since {self.since:%Y-%m-%d %H:%M} UTC, and {self.nobody or 'is not sent yet'}"

    @property
    def command(self) -> str:
        """The command that frees it."""
        return f"dagster-llm-batch cancel {self.submission.submission_id}"

    @property
    def then(self) -> str:
        """The next step."""
        return f"`{self.command}` frees it, and sends nothing more. To label the rows, materialize it again."


def find_kept_money(deployment: DeploymentAccess) -> dict[str, KeptMoney]:
    """Return the money kept for unsent shards of this namespace, by submission_id, oldest first."""
    ledger = deployment.ledger
    kept = ledger.money.kept_for_unsent(deployment.namespace)
    if not kept:
        return {}
    from dagster_llm_batch.loop.deployment import submissions_at_work  # noqa: PLC0415 - pyarrow, for a look

    at_work = submissions_at_work(ledger)
    found = {}
    for submission_id, (usd, since) in kept.items():
        submission = ledger.submissions.get(submission_id)
        nobody = None if submission_id in at_work else _why_nobody(deployment, submission)
        found[submission_id] = KeptMoney(submission, usd, since, nobody)
    return found


def _why_nobody(deployment: DeploymentAccess, submission: Submission) -> str | None:
    if not deployment.has_code:
        silent = utc_now() - deployment.ledger.events.last_of(submission.submission_id).at
        return f"no process has worked on it for {age(silent)}" if silent > _SILENT else None
    dataset = deployment.code.all_datasets.get(submission.asset)
    if dataset is None:
        return "it is not being sent unless another code location has it: these definitions have no such labeled asset"
    if dataset.mode == "deferred" and not deployment.code.is_looked_after(dataset):
        return "it is not being sent: no sensor of these definitions targets it"
    return None
