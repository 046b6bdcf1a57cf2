"""Holds: nothing more of a submission is sent, since its definition has changed or a provider would refuse it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.loop.deployment import Deployment, SentDefinition
from dagster_llm_batch.loop.preview import parameter_warnings
from dagster_llm_batch.loop.status import STRANDED, Advice, advise_on_change, advise_on_refusal
from dagster_llm_batch.loop.submit_queue import drop
from dagster_llm_batch.states import Reason, ShardState
from dagster_llm_batch.storage.ledger.events import Held, Stranded
from dagster_llm_batch.storage.ledger.records import Shard, Submission, SubmissionState
from dagster_llm_batch.storage.ledger.shards import count_requests

__all__ = ["hold", "hold_unsent", "reason_to_hold"]


def reason_to_hold(
    deployment: Deployment, labeling: Labeling, sent: SentDefinition, models: Collection[str]
) -> Advice | None:
    """Return why nothing more of a submission is sent to these models; None where nothing is in the way.

    Its definition has changed, or has a parameter that the provider is known by now to refuse.
    """
    if sent.changes:
        return advise_on_change(sent.submission, sent.changes)
    for asked in labeling.models:
        if asked.model not in models:
            continue
        # What it raises itself is no matter of parameters.
        _ = deployment.codec(asked)
        try:
            parameter_warnings(deployment, asked)
        except ConfigError as error:
            return advise_on_refusal(sent.submission, asked.model, str(error))
    return None


def hold_unsent(deployment: Deployment, submission: Submission, shards: Sequence[Shard], reason: Advice) -> None:
    """Send no planned shard of a submission of which nothing more is sent; `shards` are all of it.

    While some of it is sent and not collected, the rest waits, since the earlier definition may be put back; no run is
    requested that could send nothing. Then the rest is dropped, so that what came lands.
    """
    if any(shard.state not in (ShardState.PLANNED, ShardState.COLLECTED) for shard in shards):
        if deployment.ledger.last_event(submission.submission_id).kind != STRANDED:
            deployment.ledger.add_event(submission.submission_id, Stranded(str(reason)))
        return
    planned = [shard for shard in shards if shard.state is ShardState.PLANNED]
    problem = f"{count_requests(planned):,} requests are not sent: {reason.problem}"
    hold(deployment, submission, Advice(problem, reason.then))
    drop(deployment, planned, Reason.HELD, reason.problem)


def hold(deployment: Deployment, submission: Submission, reason: Advice) -> None:
    """Send nothing more of a submission. Where it is materialized again, a new attempt asks for the rest."""
    # First the reason: of a process that dies in between, a submission would be canceled and nobody told why.
    deployment.ledger.add_event(submission.submission_id, Held(*reason))
    deployment.ledger.set_state(submission.submission_id, SubmissionState.CANCELED)
