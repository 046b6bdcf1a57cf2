"""The status of a submission in the ledger, and advice for each problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.states import ENDED, HoldReason, ShardState
from dagster_llm_batch.storage.ledger import events
from dagster_llm_batch.storage.ledger.batches import count_batches_by_state, count_unbatched_by_state
from dagster_llm_batch.storage.ledger.events import Held, OverBudget, Stopped, Stranded, Unavailable, Waits
from dagster_llm_batch.storage.ledger.holds import UNSENT, unsent_of
from dagster_llm_batch.storage.ledger.records import Hold, QueueHolder, Shard, Submission
from dagster_llm_batch.storage.ledger.unread import UnreadShard
from dagster_llm_batch.text import age_text, plain_words
from dagster_llm_batch.types import Cause

__all__ = [
    "HELD",
    "NEW_LEDGER_TAG",
    "OVER_BUDGET",
    "STOPPED",
    "STRANDED",
    "UNAVAILABLE",
    "WAITS",
    "Advice",
    "Status",
    "UnsentReasons",
    "advise_on_account",
    "advise_on_change",
    "advise_on_destination",
    "advise_on_doubt",
    "advise_on_holders",
    "advise_on_left",
    "advise_on_lost_levels",
    "advise_on_lost_manifest",
    "advise_on_lost_shares",
    "advise_on_money",
    "advise_on_no_answer",
    "advise_on_no_dataset",
    "advise_on_no_money",
    "advise_on_no_partition",
    "advise_on_no_room",
    "advise_on_not_known",
    "advise_on_not_sent",
    "advise_on_overdue",
    "advise_on_place",
    "advise_on_recovered",
    "advise_on_refusal",
    "advise_on_refused",
    "advise_on_reuse",
    "advise_on_stranded",
    "advise_on_unknown",
    "advise_on_unreadable",
    "advise_on_unsent",
    "cause_text",
    "find_unsent",
    "retry_command",
]

STOPPED = Stopped.kind
"""The event of a submission that is stopped because almost no reply fits."""

OVER_BUDGET = OverBudget.kind
"""The event of requests that are abandoned because a limit of money has no room for them."""

HELD = Held.kind
"""The event of a submission that is held because its definition has changed."""

NEW_LEDGER_TAG = "dagster_llm_batch/new_ledger"
"""The tag of a run that may send even if earlier sendings in Dagster's records are missing from the ledger."""

WAITS = Waits.kind
"""The event of a submission whose shards stay planned because they may not be sent yet."""

STRANDED = Stranded.kind
"""The event of a submission for which runs are no longer requested, until a person acts or anything else happens."""

UNAVAILABLE = Unavailable.kind
"""The event of a submission whose provider is not answering."""

_WORDS = {
    Cause.STOPPED: "was asked to stop by this package",
    Cause.CANCELED: "was canceled at the provider, and not by this package",
    Cause.GONE: "or its results are gone at the provider",
    Cause.GIVEN_UP: "was abandoned (answers that arrive within a month are still used)",
    Cause.ADOPTED: "was sent elsewhere, and adopted",
    Cause.NOT_TAKEN: "was rejected by the provider each time: its queue was full, or it failed temporarily",
}


class Advice(NamedTuple):
    """A problem and the next step for a person, each without a full stop at its end."""

    problem: str
    then: str

    def __str__(self) -> str:
        return f"{self.problem}. {self.then}"


def advise_on_place(shards: int, waits_for: str | None) -> Advice:
    """Return the advice for shards that wait for a place in a queue, or for their time."""
    counted = "1 shard is" if shards == 1 else f"{shards:,} shards are"
    return Advice(
        f"{counted} not sent yet{'' if waits_for is None else f': waiting {waits_for}'}",
        "The next run sends them when there is room; `dagster-llm-batch watch` shows the batches before them",
    )


def advise_on_not_known(shard: Shard) -> Advice:
    """Return the advice for a batch that its provider does not know at the moment."""
    return Advice(
        f"{shard.provider} does not know batch {shard.batch.batch_id} now",
        "If that is so for an hour, the batch counts as gone, and a failed check reports it",
    )


def advise_on_account(provider: str, former: str, now: str | None) -> Advice:
    """Return the advice for batches of an account that is not configured. `now` is the present one; None: it fails."""
    configured = "none that works" if now is None else hide_secrets(now)
    return Advice(
        f"batches of {provider} account {hide_secrets(former)} wait; {configured} is configured",
        "Configure the former account until they are collected",
    )


def advise_on_no_answer(error: str) -> Advice:
    """Return the advice for a provider that refuses its credentials, or whose settings are invalid."""
    return Advice(error.rstrip("."), "Fix the cause; then the sensor continues")


def advise_on_reuse(sources: Collection[str]) -> Advice:
    """Return the advice for a submission that uses answers of incomplete ones."""
    named = ", ".join(sorted(sources))
    return Advice(
        f"it uses answers of an earlier submission, which is not complete: {named}",
        "A run for this one also advances the earlier one. `dagster-llm-batch show` shows why that one waits",
    )


def advise_on_left(submission: Submission, shard: Shard) -> Advice:
    """Return the advice for rows that are not sent again automatically."""
    return Advice(
        f"in {submission.place}, {cause_text(shard)}: its rows without a label are not sent again automatically",
        f"To label them, run {retry_command(submission)}. It shows the price first",
    )


def advise_on_unsent(words: str, unsent: events.Unsent) -> Advice:
    """Return the advice for unsent requests, with `words` for the reason."""
    return Advice(f"{words}: {unsent.problem}", unsent.then)


def cause_text(shard: Shard) -> str | None:
    """Return the fate of the shard's batch, in words; None if it runs, or ended without intervention."""
    # A batch refused at its creation has no id.
    batch = "a batch" if shard.batch.batch_id is None else f"batch {shard.batch.batch_id}"
    return None if shard.cause is None else f"{batch} {_WORDS[shard.cause]}"


def advise_on_doubt(shard: Shard) -> Advice:
    """Return the advice for a shard in doubt."""
    since = "" if shard.batch.sent_at is None else f" since {shard.batch.sent_at:%Y-%m-%d %H:%M} UTC"
    return Advice(
        f"shard {shard.shard_id} is in doubt{since}: it is unknown whether {shard.provider} has its batch",
        "Dagster's sensor looks for it again. If it does not find the batch, look at the provider's console, then run "
        "`dagster-llm-batch resolve`",
    )


def advise_on_overdue(shard: Shard, now: datetime) -> Advice:
    """Return the advice for an overdue batch."""
    since = timedelta() if shard.batch.submitted_at is None else now - shard.batch.submitted_at
    return Advice(
        f"batch {shard.batch.batch_id} of {shard.provider} runs for {age_text(since)}, which is overdue",
        f"Look at the provider's console. `dagster-llm-batch resolve {shard.shard_id} --lost` abandons it: the "
        f"other labels are materialized without its {shard.requests:,} requests, which are not sent again "
        "automatically. Answers that still arrive are used",
    )


def advise_on_unreadable(unread: UnreadShard) -> Advice:
    """Return the advice for an ended batch with unreadable results."""
    _, shard, since, why = unread
    return Advice(
        f"the results of batch {shard.batch.batch_id} of {shard.provider}, which has ended, cannot be read since "
        f"{since:%Y-%m-%d %H:%M} UTC: {why.rstrip('.')}",
        "Fix the cause: reading is tried at least every hour until 30 days after its end. "
        f"`dagster-llm-batch resolve {shard.shard_id} --lost` abandons them: the other labels are materialized without "
        f"its {shard.requests:,} requests, which are not sent again automatically. Results that can be read later are "
        "used",
    )


def advise_on_change(submission: Submission, changes: Sequence[str]) -> Advice:
    """Return the advice for a submission that is held because its definition has changed."""
    return Advice(
        f"the definition has changed ({', '.join(changes)}) since submission {submission.submission_id} was planned, "
        "so nothing more of it is sent",
        f"To ask the rows by the present definition, materialize {submission.submitter}",
    )


def advise_on_refusal(submission: Submission, model: str, refusal: str) -> Advice:
    """Return the advice for a submission that is held because a parameter would be refused."""
    return Advice(
        f"{model} would refuse it, so nothing more of submission {submission.submission_id} is sent: "
        f"{refusal.rstrip('.')}",
        f"Then materialize {submission.submitter}: the rows without an answer are asked again",
    )


def advise_on_destination(submission: Submission, refusal: str) -> Advice:
    """Return the advice for a submission whose destination is no longer allowed."""
    # A part of the submission was sent.
    problem = refusal.removesuffix(" Nothing was sent.").rstrip(".")
    return Advice(
        f"nothing more of submission {submission.submission_id} is sent: {problem}",
        f"Then materialize {submission.submitter}: the rows without an answer are asked again",
    )


def advise_on_lost_manifest(submission: Submission, meanwhile: str) -> Advice:
    """Return the advice for a lost manifest, with a sentence on its effect `meanwhile`."""
    return Advice(
        f"The manifest of submission {submission.submission_id} is lost or damaged: {submission.manifest}. {meanwhile}",
        f"Materialize {submission.submitter} again: this writes it from the same rows, without asking or paying again. "
        "Or restore it from a backup",
    )


def advise_on_lost_levels(submission: Submission) -> Advice:
    """Return the advice for the lost decisions of a cascade."""
    first = "" if submission.is_settled else f"`dagster-llm-batch cancel {submission.selector}`, and "
    return Advice(
        f"The sample and the threshold of the cascade of submission {submission.submission_id} are lost: a file next "
        f"to {submission.manifest}. They decide which model's label a row gets. Nothing was changed",
        f"Restore it from a backup. Or {first}materialize {submission.submitter} again: they are computed from the "
        "stored answers, and answered requests are not asked or paid again",
    )


def advise_on_lost_shares(submission: Submission) -> Advice:
    """Return the advice for the lost decision on near copies, or on older labels."""
    first = "" if submission.is_settled else f"`dagster-llm-batch cancel {submission.selector}`, and "
    return Advice(
        f"The near copies of submission {submission.submission_id}, or the older labels that it keeps, are lost: a "
        f"file next to {submission.manifest}. It has the rows that share an answer. Nothing was changed",
        f"Restore it from a backup. Or {first}materialize {submission.submitter} again: they are found and audited "
        "anew, and answered requests are not asked or paid again",
    )


def advise_on_no_room(submission: Submission, shards: Sequence[Shard], now: datetime) -> Advice:
    """Return the advice for batches that wait for room in a provider's queue.

    `shards` begins with the one that has waited longest.
    """
    shard = shards[0]
    since = timedelta() if shard.room.no_room_at is None else now - shard.room.no_room_at
    requests, tokens = sum(one.requests for one in shards), sum(one.tokens or 0 for one in shards)
    return Advice(
        f"{requests:,} requests (about {tokens:,} input tokens) have waited {age_text(since)} for room in "
        f"the queue of {shard.provider}/{shard.model}, which answered: {(shard.reason or 'none').rstrip('.')}",
        "Find out what else fills that account's queue. The sensor sends them when there is room. To abandon them, run "
        f"`dagster-llm-batch cancel {submission.submission_id}`",
    )


def advise_on_not_sent(count: int, since: datetime, reason: str) -> Advice:
    """Return the advice for so many unsent shards."""
    shards = "1 shard is" if count == 1 else f"{count:,} shards are"
    return Advice(
        f"{shards} not sent since {since:%Y-%m-%d %H:%M} UTC: {plain_words(reason).rstrip('.')}",
        "Fix the cause; the sensor keeps trying",
    )


def advise_on_refused(submission: Submission, refused: Sequence[Shard], count: int) -> Advice:
    """Return the advice for shards that the provider refused, of `count` in the wave."""
    reasons = plain_words("; ".join(sorted({shard.reason for shard in refused if shard.reason})))
    return Advice(
        f"{len(refused):,} of {count:,} shards were not sent: {reasons.rstrip('.')}. Nothing is paid twice",
        f"Fix the cause; then send them with `{retry_command(submission)}`, or with a run that has `again: true`",
    )


def advise_on_no_money(submission: Submission, detail: str) -> Advice:
    """Return the advice for batches that wait for money."""
    return Advice(
        f"its batches wait {detail.rstrip('.')}",
        "The sensor sends them when other batches are billed, or when you raise the limit. To abandon them, run "
        f"`dagster-llm-batch cancel {submission.selector}`",
    )


def advise_on_no_dataset(asset: str, submissions: int, unsent: int) -> Advice:
    """Return the advice for a dataset with undelivered submissions that is missing from the definitions."""
    counted = "1 submission is" if submissions == 1 else f"{submissions:,} submissions are"
    shards = "1 shard that is" if unsent == 1 else f"{unsent:,} shards that are"
    waiting = f", with {shards} not sent yet" if unsent else ""
    return Advice(
        f"{counted} under way for {asset}{waiting}, and these definitions have no such labeled asset",
        "Unless another code location of this namespace has it, its labels are never materialized. Restore it. If it "
        f"has a new name, run `dagster-llm-batch rename {asset} NEW`. To end its submissions, run `dagster-llm-batch "
        "cancel SUBMISSION` for each that `dagster-llm-batch list` shows",
    )


def advise_on_no_partition(submission: Submission) -> Advice:
    """Return the advice for a submission whose partition was removed."""
    place = f"partition {submission.partition}" if submission.partition else "its unpartitioned form"
    return Advice(
        f"{place} no longer exists, so its labels cannot be materialized",
        "Its answers are stored. If you want its labels, add it again and materialize it"
        if submission.is_settled
        else f"Add it again, or abandon its requests: `dagster-llm-batch cancel {submission.selector}`",
    )


def advise_on_stranded(submission: Submission, reason: str) -> Advice:
    """Return the advice for labels for which runs are no longer requested."""
    return Advice(
        f"the labels of {submission.place} wait: {reason.rstrip('.')}",
        "All answers are stored. If the reason has no next step, read the run's log, then materialize "
        f"{submission.place}",
    )


def advise_on_holders(queue: str, limit: object, holders: Sequence[QueueHolder]) -> Advice:
    """Return the advice for a queue full of other namespaces' batches that are no longer polled."""
    held = "; ".join(
        f"{holder.batches:,} of namespace '{holder.namespace}', the oldest sent {holder.sent_at:%Y-%m-%d %H:%M} UTC "
        f"(shards {', '.join(holder.shard_ids)}{', …' if holder.batches > len(holder.shard_ids) else ''})"
        for holder in holders
    )
    last = max(holder.leaves_at for holder in holders)
    return Advice(
        f"batches wait because {limit} of {queue} is used up, in part by batches that have not been polled for an "
        f"hour: {held}",
        "Turn on the sensor of that namespace, which collects them, or abandon each with `dagster-llm-batch resolve "
        f"{holders[0].shard_ids[0]} --lost`, which does not stop it. Otherwise they count until "
        f"{last:%Y-%m-%d %H:%M} UTC",
    )


def advise_on_recovered(recovered: events.Recovered) -> Advice:
    """Return the advice for recovered sendings that were missing from the ledger."""
    return Advice(
        f"the ledger had no record of its sent requests: {recovered.detail}. The ledger was restored from a backup, or "
        "a process of this deployment has another ledger",
        "They were recovered, and are not paid again. `dagster-llm-batch recover` does that for all partitions "
        "at once. Give processes with separate ledgers a shared one (ledger_url)",
    )


def advise_on_unknown(batch: str, submission_id: str, ledger: object) -> Advice:
    """Return the advice for a submission in Dagster's records that the ledger and the payload store do not have."""
    return Advice(
        f"Dagster recorded that {batch} was sent in submission {submission_id}, but the ledger {ledger} and the "
        "payload store do not have it. Either other ones were used, for example an SQLite file in each pod, or both "
        "were restored from a backup",
        "Give all processes of the deployment one ledger and one payload store (LLMBatchResource(ledger_url=…, "
        f"payload_root=…)). If you abandon its requests for good, run {batch} once with the tag "
        f"{NEW_LEDGER_TAG}: true; its rows are sent and paid again",
    )


def advise_on_money(submission: Submission, requests: int, reason: Advice) -> Advice:
    """Return the advice for requests that are abandoned because a limit of money has no room for them."""
    return Advice(
        f"{requests:,} requests are not sent: {reason.problem}",
        f"{reason.then}; then `{retry_command(submission)}` asks for the rows without a label, and shows the price "
        "first",
    )


def retry_command(submission: Submission) -> str:
    """Return the command that asks again for rows without a label."""
    return f"dagster-llm-batch retry {submission.selector}"


class UnsentReasons(NamedTuple):
    """The reasons why requests of a submission are not sent, each with the next step; None without such a reason.

    Attributes:
        stopped: Almost no reply fits.
        held: Its definition has changed.
        over_budget: A limit of money has no room for the requests.
    """

    stopped: str | None = None
    held: str | None = None
    over_budget: str | None = None


def find_unsent(holds: Sequence[Hold]) -> UnsentReasons:
    """Return why requests of the submission with these holds are not sent."""
    told = {hold.reason: unsent_of(hold) for hold in holds if hold.reason in UNSENT.values()}

    def text(reason: HoldReason) -> str | None:
        # Each lane and model may have been abandoned for money separately.
        return " ".join(f"{one.problem}. {one.then}." for one in told.get(reason, ())) or None

    held = text(HoldReason.CHANGED)
    stopped, over_budget = text(HoldReason.UNFIT), text(HoldReason.OVER_BUDGET)
    return UnsentReasons(stopped, None if held is None else held.rstrip("."), over_budget)


@dataclass(frozen=True)
class Status:
    """A submission and its shards at one moment."""

    submission: Submission
    shards: list[Shard]

    @property
    def is_settled(self) -> bool:
        return self.submission.is_settled

    @property
    def is_done(self) -> bool:
        """True if it is settled and has nothing left to collect, such as late answers of an abandoned batch."""
        return self.is_settled and all(shard.state is ShardState.COLLECTED for shard in self.shards)

    @property
    def may_send(self) -> bool:
        """True if a shard waits to be sent, or its create call left no record."""
        return any(shard.state in (ShardState.PLANNED, ShardState.SUBMITTING) for shard in self.shards)

    @property
    def states(self) -> Counter[str]:
        return Counter(shard.state.value for shard in self.shards)

    @property
    def batches(self) -> dict[ShardState, int]:
        """The number of batches with shards in each state, as providers count batches."""
        return count_batches_by_state(self.shards)

    @property
    def unbatched(self) -> dict[ShardState, int]:
        """The number of shards in each state without a batch."""
        return count_unbatched_by_state(self.shards)

    @property
    def batch_ids(self) -> list[str]:
        return list(dict.fromkeys(shard.batch.batch_id for shard in self.shards if shard.batch.batch_id))

    @property
    def reported_usd(self) -> tuple[Decimal, Decimal] | None:
        """The cost of batches by their vendors' reports, and by our prices; None without such reports."""
        both = [
            (shard.reported_usd, shard.bill.cost_usd)
            for shard in self.shards
            if shard.reported_usd is not None and shard.bill.cost_usd is not None
        ]
        if not both:
            return None
        return sum((theirs for theirs, _ in both), Decimal(0)), sum((ours for _, ours in both), Decimal(0))

    @property
    def total(self) -> int:
        """The number of requests without reused answers. A request that is asked several times counts once."""
        return self.submission.to_answer

    @property
    def done(self) -> int:
        """The number of requests that providers report as finished. Requests in a retry round count as unfinished."""
        over = (ShardState.COLLECTED, *ENDED)
        running = (shard for shard in self.shards if shard.state not in over)
        return self.total - sum(max(shard.requests - (shard.batch.done or 0), 0) for shard in running)

    @property
    def failed(self) -> int:
        """The number of requests that providers report as failed, and that are not asked again."""
        own = self.submission
        # Failures of a cascade's own model go to the oracle.
        counted = (
            s for s in self.shards if not (own.is_cascade and (s.provider, s.model) == (own.provider, own.model))
        )
        return max(
            sum((s.batch.failed or 0) - (s.requests if s.wave > 1 and not s.is_escalation else 0) for s in counted), 0
        )
