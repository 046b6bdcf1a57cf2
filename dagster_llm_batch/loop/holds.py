"""The rules of holds, and the hold of a submission whose definition has changed or whose rest may not be sent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from functools import partial
from typing import NamedTuple

from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.files.request_files import SO_FAR, beside
from dagster_llm_batch.loop.deployment import GONE_AFTER, Deployment, SentDefinition
from dagster_llm_batch.loop.poll import LOOKED_AT_AGAIN
from dagster_llm_batch.loop.preview import parameter_warnings
from dagster_llm_batch.loop.status import (
    STRANDED,
    Advice,
    advise_on_account,
    advise_on_change,
    advise_on_destination,
    advise_on_doubt,
    advise_on_holders,
    advise_on_left,
    advise_on_no_dataset,
    advise_on_no_money,
    advise_on_no_partition,
    advise_on_no_room,
    advise_on_not_known,
    advise_on_not_sent,
    advise_on_overdue,
    advise_on_place,
    advise_on_recovered,
    advise_on_refusal,
    advise_on_refused,
    advise_on_reuse,
    advise_on_stranded,
    advise_on_unreadable,
    advise_on_unsent,
)
from dagster_llm_batch.loop.submit import REFUSALS_MOST
from dagster_llm_batch.loop.submit_queue import drop
from dagster_llm_batch.loop.waits import KEPT_FOR, TOLD_AFTER
from dagster_llm_batch.states import HoldReason, Reason, ShardState
from dagster_llm_batch.storage.ledger.events import Held, Stranded
from dagster_llm_batch.storage.ledger.records import Shard, Submission, SubmissionState
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.types import Lane

__all__ = ["RULES", "Rule", "hold", "hold_unsent", "reason_to_hold"]


class Rule(NamedTuple):
    """The rule of a reason to wait. A reason has a limit, or is `endless` for a written reason.

    Attributes:
        waits_for: The awaited event, or the person, in words.
        states: The possible states of its shards; empty: the submission waits, in any state.
        message: Returns the reason and the next step.
        exits: The commands, and other acts, that end the wait.
        told: The report to a person.
        told_after: The time until a tick fails for it; None: see `told`.
        limit: The longest duration, or another automatic end.
        endless: The reason for no limit.
    """

    waits_for: str
    states: tuple[ShardState, ...]
    message: Callable[..., Advice]
    exits: tuple[str, ...]
    told: str
    told_after: timedelta | None = None
    limit: timedelta | str | None = None
    endless: str | None = None


_AT_ONCE = timedelta(0)
_OVER = (ShardState.ENDED, ShardState.EXPIRED, ShardState.CANCELED, ShardState.FAILED)
_CANCEL = "`cancel`"
_LOST = "`resolve --lost`"

RULES: dict[HoldReason, Rule] = {
    HoldReason.CHANGED: Rule(
        "you: the definition has changed, or the rest may not be sent as it is (`definition_changed`)",
        (),
        partial(advise_on_unsent, "held back"),
        exits=("the earlier definition", "materialize", "`cancel` before it is complete"),
        told="failed check",
        endless="only a person can choose between the two definitions",
    ),
    HoldReason.UNFIT: Rule(
        "you: nearly all answers do not fit (`stopped`)",
        (),
        partial(advise_on_unsent, "stopped"),
        exits=("`retry`",),
        told="failed check",
        endless="to ask again is paid again, and the cause may be in the definition",
    ),
    HoldReason.OVER_BUDGET: Rule(
        "you: a limit of money is used up, and requests are abandoned",
        (),
        partial(advise_on_unsent, "abandoned for money"),
        exits=("a higher limit, then `retry`",),
        told="failed check",
        endless="only a person can decide about more money",
    ),
    HoldReason.UNREADABLE: Rule(
        "results that cannot be read",
        _OVER,
        advise_on_unreadable,
        exits=("they are read", "the provider has them no more", _LOST, _CANCEL),
        told="failed tick after an hour; the first run fails if the provider refuses",
        told_after=TOLD_AFTER,
        limit=KEPT_FOR,
    ),
    HoldReason.NO_RESULTS: Rule(
        "results that do not exist at the provider (`not_there`): then `gone`",
        _OVER,
        advise_on_unreadable,
        exits=("they are there after all", _LOST, _CANCEL),
        told="failed check, because `gone` waits for `retry`",
        limit=GONE_AFTER,
    ),
    HoldReason.RECOVERED: Rule(
        "nothing: sent batches were recovered, which the ledger did not know",
        (),
        advise_on_recovered,
        exits=("its labels are materialized", "`recover`"),
        told="failed tick, at once",
        told_after=_AT_ONCE,
        endless="it holds up nothing, and is reported so that it does not happen again",
    ),
    HoldReason.PLACE: Rule(
        "a place in a declared queue, or among the batches that may be in flight together (`waits`)",
        (ShardState.PLANNED,),
        advise_on_place,
        exits=("there is room", _CANCEL),
        told="failed tick if a batch in the queue is overdue or in doubt; else the tick and `watch` show it",
        endless="each batch in the queue has its own limit, and one that is not polled leaves it after two windows",
    ),
    HoldReason.FULL_QUEUE: Rule(
        "room in the provider's queue (`put_back`, `not_sent`)",
        (ShardState.PLANNED,),
        advise_on_no_room,
        exits=("it is accepted", "a fallback", _CANCEL),
        told="failed tick after one and a half windows",
        limit=f"{REFUSALS_MOST} attempts in a row, at most an hour apart: then `not_taken`",
    ),
    HoldReason.NOT_SENT: Rule(
        "a provider that is down, or takes no batch (`not_sent`, `unavailable`)",
        (ShardState.PLANNED,),
        advise_on_not_sent,
        exits=("it is accepted", "a fallback", _CANCEL),
        told="failed tick after an hour",
        told_after=TOLD_AFTER,
        endless="it was not sent and costs nothing; `fallback_after` and the deadline end it, if they are set",
    ),
    HoldReason.TURNED_AWAY: Rule(
        "a provider that turns calls in real time away",
        (ShardState.PLANNED,),
        advise_on_not_sent,
        exits=("they are answered", _CANCEL),
        told="failed tick after an hour",
        told_after=TOLD_AFTER,
        endless="a call that is turned away costs nothing, and is made again after an hour at most",
    ),
    HoldReason.MONEY: Rule(
        "money (`waits`, `lacks_money`)",
        (ShardState.PLANNED,),
        advise_on_no_money,
        exits=("a bill", "a higher limit", _CANCEL),
        told="the tick and `watch`; then a failed check",
        limit="until bills can no longer free enough: then `over_budget`",
    ),
    HoldReason.IN_DOUBT: Rule(
        "the result of a create call (`ambiguous`)",
        (ShardState.SUBMITTING,),
        advise_on_doubt,
        exits=("it is found", "`resolve --batch-id`", "`resolve --no-batch`", _CANCEL),
        told="failed tick, at once if the status is unknown, otherwise after an hour",
        told_after=TOLD_AFTER,
        endless="to send it again may pay twice, unless the provider has not listed it for `settle_seconds`",
    ),
    HoldReason.UNKNOWN: Rule(
        "a provider that does not find its batch (`not_known`): then `gone`",
        (ShardState.SUBMITTED,),
        advise_on_not_known,
        exits=("it is found", _LOST, _CANCEL),
        told="failed check, because `gone` waits for `retry`",
        limit=GONE_AFTER,
    ),
    HoldReason.OVERDUE: Rule(
        "the end of its batch, for more than one and a half windows",
        (ShardState.SUBMITTED,),
        advise_on_overdue,
        exits=("it ends", _LOST, _CANCEL),
        told="failed tick, at once",
        told_after=_AT_ONCE,
        limit=KEPT_FOR + LOOKED_AT_AGAIN,
    ),
    HoldReason.CANNOT_ASK: Rule(
        "credentials, or its account",
        (ShardState.PLANNED, ShardState.SUBMITTED, *_OVER),
        advise_on_account,
        exits=("they are fixed", "`resolve --lost` of what was sent", _CANCEL),
        told="failed tick, at once",
        told_after=_AT_ONCE,
        limit="the limit of `overdue`, or 30 days after its end; unsent requests cost nothing and have no limit",
    ),
    HoldReason.REUSES: Rule(
        "an earlier submission whose answers it uses",
        (ShardState.COLLECTED,),
        advise_on_reuse,
        exits=("that submission is complete", "`cancel` before it is complete"),
        told="the message of that submission",
        limit="the limit of that submission",
    ),
    HoldReason.STRANDED: Rule(
        "a run that materializes it (`landing_lost`, `landing_stranded`), or the earlier definition",
        (),
        advise_on_stranded,
        exits=("a run materializes it", "materialize", "`cancel` before it is complete"),
        told="failed check, which stays",
        told_after=_AT_ONCE,
        endless="three lost runs came before it, or a definition that only a person can put back",
    ),
    HoldReason.HELD_QUEUE: Rule(
        "a declared queue that is full of batches of another namespace, not polled for an hour",
        (ShardState.PLANNED,),
        advise_on_holders,
        exits=("the sensor of that namespace", "`resolve --lost` of each", _CANCEL),
        told="failed tick, at once",
        told_after=_AT_ONCE,
        limit="a batch that is not polled leaves the queue after two windows",
    ),
    HoldReason.NO_PARTITION: Rule(
        "its removed partition",
        (),
        advise_on_no_partition,
        exits=("it is added again", "`cancel` before it is complete"),
        told="failed tick, at once; once if all is answered",
        told_after=_AT_ONCE,
        endless="its answers are paid and stored, and only a person can decide about them",
    ),
    HoldReason.NO_DATASET: Rule(
        "a code location that has its dataset",
        (),
        advise_on_no_dataset,
        exits=("it is restored", "`rename`", "`cancel` before it is complete"),
        told="failed tick if it has not been handled for an hour in flight, otherwise for a day",
        endless="another code location may have it",
    ),
    HoldReason.REFUSED: Rule(
        "nothing: the provider has refused batches for good",
        (ShardState.FAILED,),
        advise_on_refused,
        exits=("`retry`",),
        told="failed check",
        limit="the next run collects them",
    ),
    HoldReason.LATE_ANSWERS: Rule(
        "late answers of batches that are `given_up` or `gone`; polled hourly, or daily if the batch had ended",
        (ShardState.COLLECTED,),
        advise_on_left,
        exits=("they arrive", "`retry`"),
        told="failed check",
        limit=KEPT_FOR,
    ),
}
"""The rule of each reason."""


def reason_to_hold(
    deployment: Deployment, labeling: Labeling, sent: SentDefinition, models: Collection[str], shards: Sequence[Shard]
) -> Advice | None:
    """Return why sending to these models stops for a submission; None if it may go on.

    Either its definition has changed, or it has a parameter that the provider now refuses. Or the deployment no longer
    allows a destination, and some of it was sent. `shards` are all shards of the submission.
    """
    if sent.changes:
        return advise_on_change(sent.submission, sent.changes)
    for asked in labeling.models:
        if asked.model not in models:
            continue
        # Errors of making the codec are not about parameters.
        _ = deployment.codec(asked)
        try:
            parameter_warnings(deployment, asked)
        except ConfigError as error:
            return advise_on_refusal(sent.submission, asked.model, str(error))
        try:
            deployment.destinations.check(f"'{labeling.asset}'", asked.model, asked.params)
        except ConfigError as error:
            # Paid answers must be materialized, so the rest is abandoned. Without paid answers, all of it waits for
            # other rules or settings: the error is raised when it is about to be sent.
            if not _is_unsent(deployment, shards):
                return advise_on_destination(sent.submission, str(error))
    return None


def _is_unsent(deployment: Deployment, shards: Sequence[Shard]) -> bool:
    """Return whether all shards are planned, and real-time shards among them have no answers."""
    return bool(shards) and all(
        shard.state is ShardState.PLANNED
        and not (shard.lane is Lane.REALTIME and deployment.payloads.exists(beside(shard, SO_FAR)))
        for shard in shards
    )


def hold_unsent(deployment: Deployment, submission: Submission, shards: Sequence[Shard], reason: Advice) -> None:
    """Keep the planned shards of a stopped submission from being sent; `shards` are all its shards.

    While sent shards are not collected, the rest waits, because the earlier definition may be restored. Meanwhile a run
    could send nothing, so the sensor does not request one. Then the rest is dropped, so that the stored answers are
    materialized.
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
    """Stop sending a submission. If it is materialized again, a new attempt asks for the rest."""
    # The reason comes first. If the process dies in between, the submission must not be canceled without a report.
    deployment.ledger.events.add(submission.submission_id, Held(*reason))
    deployment.ledger.submissions.set_state(submission.submission_id, SubmissionState.CANCELED)
