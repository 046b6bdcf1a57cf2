"""Plans: the shards of a submission before it is stored, their cost, and the reasons to refuse them.

    read_knowledge ─▶ draft ─▶ decide ─▶ Plan ─▶ steps ─▶ Plan ─┬─▶ commit
                                                                └─▶ show (preview.py)

The same rows and the same definition give the same submission, which is found again and paid once. A new submission
reuses the answers of earlier ones with its configuration. A plan does not send or spend. `planner.py` has the order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any

from dagster_llm_batch.core.pricing import Estimate
from dagster_llm_batch.core.token_counts import NO_OUTPUT
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import BudgetError, LeaseError, LLMBatchError, MissingGoldError
from dagster_llm_batch.files.request_files import levels_of
from dagster_llm_batch.files.request_writer import Draft, Drafted
from dagster_llm_batch.loop.budget import committing_estimate, find_refusal, forecast_steps
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.knowledge import Knowledge
from dagster_llm_batch.loop.pruned import is_pruned
from dagster_llm_batch.loop.seams import Older, Tuning
from dagster_llm_batch.loop.submission_writer import SubmissionWriter
from dagster_llm_batch.loop.submit_queue import drop
from dagster_llm_batch.states import Reason, ShardState
from dagster_llm_batch.storage.ledger.records import Submission, SubmissionState
from dagster_llm_batch.types import Outcome

if TYPE_CHECKING:
    from dagster_llm_batch.core.durations import EndForecast
    from dagster_llm_batch.core.levels import Levels
    from dagster_llm_batch.core.shares import AuditedAnswers

__all__ = [
    "PLAN_WAIT_SECONDS",
    "OracleShare",
    "Plan",
    "PlanStep",
    "Planning",
    "RowsState",
    "check_limits",
    "commit",
    "count_money_steps",
    "decide",
    "new_submission",
    "plan_lease",
    "take_steps",
    "tune",
]


PLAN_WAIT_SECONDS = 600.0
"""Time to wait for another process that plans the same partition, which may read a large table. A dead process's lease
expires within a minute.
"""


def plan_lease(namespace: str, asset: str, partition: str) -> str:
    """Return the name of the lease under which a partition gets a submission: one process at a time."""
    return f"plan:{namespace}:{asset}:{partition}"


class RowsState(Enum):
    """The state of a plan's rows in the ledger."""

    NEW = "new"
    """They are sent, as far as their requests are not answered."""

    KNOWN = "known"
    """The newest submission of the partition has these rows."""

    REPEATED = "repeated"
    """An earlier submission has these rows, and a newer one has others. A new attempt reuses all answers."""


@dataclass(frozen=True)
class OracleShare:
    """The share of a cascade's oracle in a plan. Money is None if the price is unknown.

    Attributes:
        model: The oracle: the provider, a slash, and the provider's own name for it.
        requests: The number of requests in the first wave.
        input_tokens, output_tokens, estimated_usd: Their expected tokens and cost.
        later: The expected number of requests after the threshold is set.
        later_usd: The expected cost of these.
        later_most: The largest number of requests then, if every label of the model is rejected.
        reserved_usd: The expected cost of `later_most` requests, which limits reserve.
        later_bound_usd: The highest cost of `later_most` requests; None if unknown.
    """

    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    estimated_usd: Decimal | None
    later: int
    later_usd: Decimal | None
    later_most: int
    reserved_usd: Decimal | None
    later_bound_usd: Decimal | None


@dataclass(frozen=True)
class Plan:
    """A submission before it is stored. Each step returns a plan that has more.

    Attributes:
        rows_state: The state of the rows in the ledger.
        drafted: The counts of rows and requests, and the shards to send.
        estimate: The expected tokens and cost of these shards.
        known: The newest submission with these rows, if any.
        sources: The ids of the submissions whose answers are reused.
        whole: The estimate for limits, with the money that a cascade reserves for its oracle; None: `estimate`.
        levels, oracle: The decisions and the oracle's share of a cascade; None without a cascade.
        shares, held_usd: The near copies or the older labels, and the expected cost of the requests that are held;
            None without them.
        reserved_usd: The money that limits reserve for a later round: of the oracle, or of held requests.
        questions: The number of requests that a cascade, or a plan with an audit, asks at once; None for others.
        deadline: The time from the plan to the turn to real time, if there is a deadline.
        tuning: The stored choices of the tuner, if the deployment tunes.
        money_steps: The number of steps in which limits of money release the requests; None if unknown.
        end: The forecast of the end. None for a plan without requests, or for a model without history.
        refusals: The reasons against committing the plan.
    """

    rows_state: RowsState
    drafted: Drafted
    estimate: Estimate
    known: Submission | None = None
    sources: tuple[str, ...] = ()
    whole: Estimate | None = None
    levels: Levels | None = None
    oracle: OracleShare | None = None
    shares: AuditedAnswers | None = None
    held_usd: Decimal | None = None
    reserved_usd: Decimal | None = None
    questions: int | None = None
    deadline: timedelta | None = None
    tuning: Mapping[str, Any] | None = None
    money_steps: int | None = 1
    end: EndForecast | None = None
    refusals: tuple[LLMBatchError, ...] = ()

    @property
    def in_limits(self) -> Estimate:
        """The estimate for limits."""
        return self.estimate if self.whole is None else self.whole

    @property
    def missing_gold(self) -> tuple[object, ...]:
        """The keys of sampled rows without gold."""
        found = (refusal.keys for refusal in self.refusals if isinstance(refusal, MissingGoldError))
        return next(found, ())


@dataclass(frozen=True)
class Planning:
    """The input of the steps of one plan, and the place of its files.

    Attributes:
        labeling, deployment: The question and its deployment.
        partition, submission_id: Of the submission.
        knowledge: The partition's submissions and their answers.
        writer: Writes the submission's files; a preview writes into a temporary folder.
        older: The labels from before a change of the definition that may stay; None without them.
        tuning: Chooses by earlier submissions; None if the deployment does not tune.
        unwanted: Removes the written files of a plan that is not committed.
    """

    labeling: Labeling
    deployment: Deployment
    partition: str
    submission_id: str
    knowledge: Knowledge
    writer: SubmissionWriter
    tuning: Tuning | None
    unwanted: ExitStack
    older: Older | None = None


PlanStep = Callable[[Plan, Planning], Plan]
"""Completes a plan. Limits and missing gold become refusals of the plan. Other bad input raises."""


def decide(drafted: Drafted, estimate: Estimate, planning: Planning, name: str) -> Plan:
    """Return the plan of a finished draft: new rows, or rows that the ledger has under this name of the dataset."""
    knowledge, deployment = planning.knowledge, planning.deployment
    known = deployment.ledger.submissions.find(deployment.namespace, name, planning.partition, drafted.fingerprint)
    if known is None or _may_follow(planning, known):
        sources = knowledge.reusable_ids if drafted.reused else ()
        return Plan(RowsState.NEW, drafted, estimate, known, sources)
    nothing = replace(drafted, shards=[], reused=drafted.requests)
    newest = max((one.created_at for one in knowledge.history), default=known.created_at)
    rows_state = RowsState.KNOWN if known.created_at >= newest else RowsState.REPEATED
    sources = (known.submission_id, *known.reused_from)
    return Plan(rows_state, nothing, Estimate(estimate.tariff, NO_OUTPUT), known, sources)


def take_steps(plan: Plan, planning: Planning, steps: Sequence[PlanStep]) -> Plan:
    """Return the plan after these steps, or after the first that refuses it."""
    for step in steps:
        if plan.refusals:
            break
        plan = step(plan, planning)
    return plan


# steps ----------------------------------------------------------------------------------------------------------------


def tune(plan: Plan, planning: Planning) -> Plan:
    """Set the deadline and the stored choices of the tuner."""
    deadline, tuning = planning.labeling.realtime.deadline, planning.tuning
    if tuning is None:
        return replace(plan, deadline=deadline)
    if deadline is not None:
        deadline -= tuning.choose_lead(plan.drafted.requests - plan.drafted.reused)
    return replace(plan, deadline=deadline, tuning=tuning.record)


def count_money_steps(plan: Plan, planning: Planning) -> Plan:
    """Count the steps in which limits of money release the requests."""
    return replace(plan, money_steps=forecast_steps(planning.deployment, planning.labeling, plan.estimate))


def check_limits(plan: Plan, planning: Planning) -> Plan:
    """Refuse a plan that exceeds a limit of money."""
    deployment, unsent = planning.deployment, _unsent(planning)
    refusal: BudgetError | None = find_refusal(deployment, planning.labeling, plan.in_limits, unsent)
    return plan if refusal is None else replace(plan, refusals=(*plan.refusals, refusal))


def _unsent(planning: Planning) -> list[str]:
    """Return the ids of the open submissions and of their unsent shards. Both release their money if superseded."""
    still_open = [one for one in planning.knowledge.history if one.state is SubmissionState.OPEN]
    ledger = planning.deployment.ledger
    shards = [shard for submission in still_open for shard in ledger.shards.of_submission(submission.submission_id)]
    unsent = [shard.shard_id for shard in shards if shard.state is ShardState.PLANNED]
    return [*unsent, *(submission.submission_id for submission in still_open)]


# new attempts -------------------------------------------------------------------------------------------------------


def _may_follow(planning: Planning, known: Submission) -> bool:
    """Return whether a new attempt may follow for the same rows.

    It may after the answers were pruned, and after a cascade's decision was lost: the stored answers give a new one.
    """
    ledger = planning.deployment.ledger
    anyway = planning.knowledge.again or is_pruned(ledger, known) or _has_lost_levels(planning, known)
    if not _may_be_followed(known, again=anyway):
        return False
    # Requests whose batch was canceled at the provider cost nothing, and wait for a person all the same.
    left = any(shard.waits_for_person for shard in ledger.shards.of_submission(known.submission_id))
    return anyway or known.state is SubmissionState.CANCELED or not left


def _has_lost_levels(planning: Planning, known: Submission) -> bool:
    """Return whether a settled submission has lost the file with the decisions of a cascade or of an audit."""
    labeling, deployment = planning.labeling, planning.deployment
    if known.state is not SubmissionState.SETTLED or (labeling.cascade is None and labeling.audited is None):
        return False
    if deployment.has_audit(labeling, known) and deployment.shares(labeling, known) is None:
        return True
    return labeling.cascade is not None and levels_of(deployment.payloads, known) is None


def _may_be_followed(known: Submission, *, again: bool) -> bool:
    if known.state is SubmissionState.OPEN:
        return False
    if again or known.state is SubmissionState.CANCELED:
        return True
    # A request without a result may have been billed, so only a person sends it again. Refused requests cost nothing:
    # if all were refused, another attempt is not paid twice.
    paid = {Outcome.SUCCEEDED.value, Outcome.INVALID.value, Outcome.MISSING.value} & set(known.outcomes)
    return bool(known.requests) and not paid


# commit ---------------------------------------------------------------------------------------------------------------


def commit(
    plan: Plan, planning: Planning, draft: Draft, run_id: str | None, check_lease: Callable[[], None]
) -> Submission:
    """Store a plan, and return its new or known submission.

    The caller holds the leases of the partition (see `check_lease`) and of its open submissions. Raises the plan's
    first refusal. Raises LeaseError if the partition has changed since it was read, as after the process was frozen for
    longer than its leases.
    """
    if plan.refusals:
        raise plan.refusals[0]
    if plan.rows_state is RowsState.KNOWN:
        assert plan.known is not None
        # The fingerprint has no kept columns: these may be others now.
        draft.replace_manifest(plan.known.manifest)
        return plan.known
    if plan.rows_state is RowsState.REPEATED:
        draft.discard_requests()
    submission = new_submission(plan, planning, run_id)
    # Superseded submissions release the money of their unsent shards for this one.
    with committing_estimate(planning.deployment, plan.in_limits):
        # After each wait, and before the first effect: a process may have been frozen.
        if (same := _same_of_others(planning, submission)) is not None:
            return same
        if refusals := check_limits(plan, planning).refusals:
            raise refusals[0]
        check_lease()
        return _open(plan, planning, submission)


def _same_of_others(planning: Planning, submission: Submission) -> Submission | None:
    """Return the same submission if another process has stored it since the partition was read."""
    known = {one.submission_id: (one.state, one.waves) for one in planning.knowledge.history}
    for other in planning.deployment.ledger.submissions.of_partition(
        submission.namespace, submission.asset, submission.partition
    ):
        if known.get(other.submission_id) == (other.state, other.waves):
            continue
        if other.submission_id not in known and other.fingerprint == submission.fingerprint:
            return other
        raise LeaseError(
            f"'{other.asset}' {other.partition}: another process planned other rows meanwhile, or changed submission "
            f"{other.submission_id}. Your rows were not sent. Run again if yours are the newer ones."
        )
    return None


def _open(plan: Plan, planning: Planning, submission: Submission) -> Submission:
    """Store the submission in the place of the open ones before it, whose batches are still collected."""
    ledger, history = planning.deployment.ledger, planning.knowledge.history
    # The newest is the one that counts, also after one that was planned by a clock that was ahead.
    ahead = [other.created_at for other in history if other.created_at > submission.created_at]
    if ahead:
        submission = replace(submission, created_at=max(ahead) + timedelta(microseconds=1))
    waves = {one.submission_id: one.waves for one in history}
    superseded = [one.submission_id for one in history if one.state is SubmissionState.OPEN]
    opened = ledger.submissions.open(submission, plan.drafted.shards, waves, superseded)
    if opened.submission_id == submission.submission_id:
        words = f"submission {submission.submission_id} came in its place"
        for shards in ledger.shards.of_submissions(superseded).values():
            drop(planning.deployment, shards, Reason.SUPERSEDED, words)
    return opened


def new_submission(plan: Plan, planning: Planning, run_id: str | None) -> Submission:
    """Return a plan's submission in its stored form."""
    labeling, estimate, drafted = planning.labeling, plan.estimate, plan.drafted
    owner, now = planning.deployment.owner(labeling), planning.knowledge.read_at
    end = plan.end
    # Only these fields: an older version that reads them accepts no others.
    basis = None if end is None else {"basis": end.basis, "ended": end.ended, "running": end.running}
    return Submission(
        submission_id=planning.submission_id,
        namespace=planning.deployment.namespace,
        asset=labeling.asset,
        partition=planning.partition,
        fingerprint=drafted.fingerprint,
        config_fingerprint=planning.writer.configuration,
        attempt=1 if plan.known is None else plan.known.attempt + 1,
        provider=owner.provider,
        account=owner.account,
        model=owner.model,
        rows=drafted.rows,
        requests=drafted.requests,
        reused=drafted.reused,
        manifest_path=planning.writer.path(planning.partition, planning.submission_id, "manifest.parquet"),
        estimated_usd=estimate.cost_usd,
        p05_usd=estimate.p05_usd,
        p95_usd=estimate.p95_usd,
        bound_usd=estimate.bound_usd,
        learned_from=None if estimate.learned is None else estimate.learned.complete,
        price_basis=estimate.tariff.basis,
        created_at=now,
        deadline_at=None if plan.deadline is None else now + plan.deadline,
        p50_end_at=None if end is None or end.p50 is None else now + end.p50,
        p90_end_at=None if end is None or end.p90 is None else now + end.p90,
        end_basis=basis,
        tuning=plan.tuning,
        run_id=run_id,
        reserved_usd=plan.reserved_usd,
        questions=plan.questions,
        is_cascade=True if labeling.cascade is not None else None,
        reused_from=plan.sources,
        # Rows erased from here on are removed from its files before it is sent, and before it is materialized.
        tombstones=planning.knowledge.erased.tombstones or None,
        tags=dict(labeling.tags) or None,
    )
