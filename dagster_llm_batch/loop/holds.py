"""The rules of holds; and the hold of a submission whose definition has changed, or that a provider would refuse."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.loop.deployment import GONE_AFTER, Deployment, SentDefinition
from dagster_llm_batch.loop.preview import parameter_warnings
from dagster_llm_batch.loop.status import (
    STRANDED,
    Advice,
    advise_on_change,
    advise_on_recovered,
    advise_on_refusal,
    advise_on_unreadable,
    advise_on_unsent,
)
from dagster_llm_batch.loop.submit_queue import drop
from dagster_llm_batch.loop.waits import KEPT_FOR, TOLD_AFTER
from dagster_llm_batch.states import HoldReason, Reason, ShardState
from dagster_llm_batch.storage.ledger.events import Held, Stranded
from dagster_llm_batch.storage.ledger.records import Shard, Submission, SubmissionState
from dagster_llm_batch.storage.ledger.shard_rows import count_requests

__all__ = ["RULES", "Rule", "hold", "hold_unsent", "reason_to_hold"]


class Rule(NamedTuple):
    """The rule of a reason to hold something up. A reason has a limit, or is `endless` for a written reason.

    Attributes:
        message: Returns the reason and the next step: of a submission from the event with which it began, Unsent or
            Recovered; of a shard from UnreadShard.
        exits: The commands, and other acts, that end the hold.
        told_after: The time after which a person is told; None: a failed check tells when the labels land.
        limit: The longest time that it lasts.
        endless: The reason for no limit.
    """

    message: Callable[[Any], Advice]
    exits: tuple[str, ...]
    told_after: timedelta | None = None
    limit: timedelta | None = None
    endless: str | None = None


RULES: dict[HoldReason, Rule] = {
    HoldReason.CHANGED: Rule(
        partial(advise_on_unsent, "held back"),
        exits=("put the definition back", "materialize", "`cancel`"),
        endless="only a person can decide by which definition the rows are asked",
    ),
    HoldReason.UNFIT: Rule(
        partial(advise_on_unsent, "stopped"),
        exits=("`retry`",),
        endless="to ask again is paid again, and the cause may be in the definition",
    ),
    HoldReason.OVER_BUDGET: Rule(
        partial(advise_on_unsent, "given up for money"),
        exits=("a higher limit, then `retry`",),
        endless="only a person can decide about more money",
    ),
    HoldReason.UNREADABLE: Rule(
        advise_on_unreadable,
        exits=("the results can be read", "the provider has them no more", "`resolve --lost`"),
        told_after=TOLD_AFTER,
        limit=KEPT_FOR,
    ),
    HoldReason.NO_RESULTS: Rule(
        advise_on_unreadable,
        exits=("the provider has them after all", "`resolve --lost`"),
        told_after=TOLD_AFTER,
        limit=GONE_AFTER,
    ),
    HoldReason.RECOVERED: Rule(
        advise_on_recovered,
        exits=("its labels are materialized", "`recover`"),
        told_after=timedelta(0),
        endless="it holds up nothing: a person learns of it, so that it does not happen again",
    ),
}
"""The rule of each reason."""


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
        if deployment.ledger.events.last_of(submission.submission_id).kind != STRANDED:
            deployment.ledger.events.add(submission.submission_id, Stranded(str(reason)))
        return
    planned = [shard for shard in shards if shard.state is ShardState.PLANNED]
    problem = f"{count_requests(planned):,} requests are not sent: {reason.problem}"
    hold(deployment, submission, Advice(problem, reason.then))
    drop(deployment, planned, Reason.HELD, reason.problem)


def hold(deployment: Deployment, submission: Submission, reason: Advice) -> None:
    """Send nothing more of a submission. Where it is materialized again, a new attempt asks for the rest."""
    # First the reason: of a process that dies in between, a submission would be canceled and nobody told why.
    deployment.ledger.events.add(submission.submission_id, Held(*reason))
    deployment.ledger.submissions.set_state(submission.submission_id, SubmissionState.CANCELED)
