"""Polls the providers for the state of running batches and records it; asks batches to stop.

A failure of one provider, batch or report must not stop the others. The caller gets each failure with its shards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

from dagster_llm_batch.errors import (
    CannotStopError,
    CredentialsError,
    IllegalTransitionError,
    LedgerError,
    TransientError,
)
from dagster_llm_batch.loop.deployment import GONE_AFTER, Deployment
from dagster_llm_batch.loop.pruned import is_pruned
from dagster_llm_batch.loop.submit import plan_next_try
from dagster_llm_batch.loop.waits import KEPT_FOR, Unread, is_out_of_reach
from dagster_llm_batch.providers.capabilities import cancel_batch
from dagster_llm_batch.states import Reason, ShardState, Transition
from dagster_llm_batch.storage.ledger.events import NotKnown
from dagster_llm_batch.storage.ledger.records import Ending, Shard, Submission, SubmissionState
from dagster_llm_batch.storage.ledger.shard_rows import is_awaited
from dagster_llm_batch.storage.ledger.submission_rows import STATUS
from dagster_llm_batch.types import BatchReport, BatchStatus, Cause

__all__ = ["LOOKED_AT_AGAIN", "Failed", "Poller", "find_spacing", "is_due"]

Failed = Callable[[Sequence[Shard], Exception], None]
"""Called with the shards that could not be polled, and the error."""

_T = TypeVar("_T")

# After so many failed calls, smaller groups are not tried: enough to find three odd items among a thousand.
_FAILURES_MOST = 30

# These errors affect every item of a call, so smaller groups would fail alike.
_OF_ALL_ALIKE = (CredentialsError, TransientError)

_LONGEST_SPACING = timedelta(minutes=10)

LOOKED_AT_AGAIN = timedelta(days=1)

_ASKED_IN_VAIN = (BatchStatus.CANCELING, BatchStatus.NOT_FOUND)
_ENDINGS = {
    BatchStatus.ENDED: Transition.ENDED,
    BatchStatus.EXPIRED: Transition.EXPIRED,
    BatchStatus.CANCELED: Transition.CANCELED,
    BatchStatus.FAILED: Transition.FAILED,
}


@dataclass(frozen=True, slots=True)
class _Answers:
    """The results of one poll, so that a batch is read and decided once for all of its shards.

    Attributes:
        reports: Reports on whole batches, by shard_id.
        requests: Numbers of requests of the batches whose reports have no total, by batch_key.
        put_back: Whether the batches that ran nothing are planned again, by batch_key; False: after too many tries.
    """

    reports: dict[str, BatchReport] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    put_back: dict[str, bool] = field(default_factory=dict)


class Poller:
    """Poll and stop the batches of shards."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._ledger = deployment.ledger

    def poll(self, shards: Sequence[Shard], failed: Failed | None = None) -> dict[str, BatchReport]:
        """See Engine.poll."""
        errors: list[Exception] = []

        def add_failure(failed_shards: Sequence[Shard], error: Exception) -> None:
            errors.append(error)
            if failed is not None:
                failed(failed_shards, error)

        answers = _Answers()
        for name, its_shards in self._by_provider(shards, add_failure).items():
            self._ask(name, its_shards, answers, add_failure)
        reports = answers.reports
        self._record([shard for shard in shards if shard.shard_id in reports], answers, add_failure)
        self.give_up_forgotten(shards)
        own = {shard.shard_id: shard for shard in shards}
        if failed is None:
            odd = [error for error in errors if not isinstance(error, TransientError)]
            if odd or (errors and not reports):
                raise (odd or errors)[0]
        return {key: self._share(report, own[key], answers) for key, report in reports.items()}

    def poll_awaited(self, assets: Collection[str], asked_before: datetime) -> None:
        """See Engine.poll_awaited."""
        now = self._deployment.clock()
        due = [
            shard
            for shard in self._ledger.shards.awaited(self._deployment.namespace, given_up_since=now - KEPT_FOR)
            # A later time than now was set by a wrong clock.
            if shard.polled_at is None or not asked_before <= shard.polled_at <= now
        ]

        def failed(shards: Sequence[Shard], _: Exception) -> None:
            # They count as polled. Otherwise a dead server would be polled at each tick.
            reports = {
                s.shard_id: BatchReport(s.batch.batch_id or "", s.batch.status or BatchStatus.RUNNING) for s in shards
            }
            self._ledger.shards.record_reports(reports)

        self.poll([shard for shard in due if self._is_wanted(shard, assets)], failed)
        unread = Unread(self._deployment)
        if given_up := unread.given_up_due():
            unread.ask_given_up([shard for shard in given_up if self._is_wanted(shard, assets)])

    def give_up_forgotten(self, shards: Sequence[Shard]) -> None:
        """Abandon batches that run for a month longer than they should: vendors no longer have their results.

        Also abandon batches that ended a month ago and cannot be fetched, because their account is no longer
        configured.

        A batch is abandoned one day after it was found to be so late, in case one wrong clock misled. For another
        month, late answers are still used, as after a person abandons a batch.
        """
        now = self._deployment.clock()
        found = []
        for shard in shards:
            has_ended = is_out_of_reach(self._deployment, shard)
            at = shard.ended_at if has_ended else self._deployment.overdue_at(shard)
            if at is None or now - at < KEPT_FOR:
                continue
            until = shard.waits_until
            # An earlier time belongs to another wait, and a time further ahead was set by a wrong clock.
            if until is None or not at + KEPT_FOR <= until <= now + LOOKED_AT_AGAIN:
                found.append(shard.shard_id)
                continue
            if until > now:
                continue
            why = "its account is not configured, and it has" if has_ended else "it has not"
            since = at if has_ended else shard.batch.submitted_at
            reason = f"abandoned automatically: {why} ended since {since:%Y-%m-%d %H:%M} UTC"
            # It may have ended, or another process may have abandoned it, just now.
            with suppress(IllegalTransitionError):
                self._ledger.shards.move_all(
                    [shard.shard_id],
                    Transition.GIVEN_UP,
                    of_batch=shard.batch.batch_id,
                    sources=[shard.state],
                    cause=Cause.GIVEN_UP,
                    reason=reason,
                    reason_kind=Reason.GIVEN_UP,
                    # It is polled daily for another month, in case its account is configured again.
                    ended_at=now,
                )
        if found:
            self._ledger.unread.wait(found, now + LOOKED_AT_AGAIN)

    def poll_beside(self, shards: Sequence[Shard]) -> None:
        """See Engine.poll_beside."""
        now = self._deployment.clock()
        own = {shard.shard_id for shard in shards}
        queues = {(shard.provider, shard.account) for shard in shards if shard.state is ShardState.PLANNED}
        beside = [
            shard
            for shard in self._ledger.shards.in_flight(self._deployment.namespace)
            if (shard.provider, shard.account) in queues and shard.shard_id not in own and is_due(shard, now)
        ]
        self.poll(beside, lambda *_: None)

    def _is_wanted(self, shard: Shard, assets: Collection[str]) -> bool:
        """Return whether an abandoned shard is of one of these assets, and not pruned, so that it can be collected."""
        submission = self._ledger.submissions.get(shard.submission_id)
        return submission.asset in assets and not is_pruned(self._ledger, submission)

    def _by_provider(self, shards: Sequence[Shard], failed: Failed) -> dict[str, list[Shard]]:
        """Group the shards with running batches by provider. Pass shards of accounts that are not configured to
        `failed`.
        """
        # Another account would report the batches as gone.
        running: dict[str, list[Shard]] = {}
        for shard in shards:
            if shard.batch.batch_id is not None and (shard.state is ShardState.SUBMITTED or is_awaited(shard)):
                try:
                    self._deployment.provider_of(shard)
                except Exception as error:  # noqa: BLE001 - of one shard; the others are asked about all the same
                    failed([shard], error)
                else:
                    running.setdefault(shard.provider, []).append(shard)
        return running

    def _ask(self, name: str, shards: Sequence[Shard], answers: _Answers, failed: Failed) -> None:
        """Poll one provider for the batches of these shards; add its reports to `answers`."""
        batches: dict[str, list[Shard]] = {}
        for shard in shards:
            batches.setdefault(shard.batch.batch_id or "", []).append(shard)
        reports: dict[str, BatchReport] = {}
        _apart(
            list(batches),
            lambda ids: reports.update(self._deployment.provider(name).poll(ids)),
            lambda ids, error: failed([shard for batch_id in ids for shard in batches[batch_id]], error),
        )
        for batch_id in batches.keys() & reports.keys():
            for shard in batches[batch_id]:
                try:
                    # A report that cannot be divided is odd.
                    self._share(reports[batch_id], shard, answers)
                    answers.reports[shard.shard_id] = reports[batch_id]
                except LedgerError:
                    raise
                except Exception as error:  # noqa: BLE001 - an odd report of one batch; the others' are as good as ever
                    failed([shard], error)

    def _record(self, shards: Sequence[Shard], answers: _Answers, failed: Failed) -> None:
        """Record the reports on these shards, and the ends of ended batches."""
        reports = answers.reports
        _apart(
            shards,
            lambda group: self._ledger.shards.record_reports({s.shard_id: reports[s.shard_id] for s in group}),
            failed,
        )
        ends: dict[str, Ending] = {}
        for shard in shards:
            try:
                if (ending := self._ending_of(shard, answers)) is not None:
                    ends[shard.shard_id] = ending
            except LedgerError:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                failed([shard], error)

        def ends_of(group: Sequence[Shard]) -> dict[str, Ending]:
            return {shard.shard_id: ends[shard.shard_id] for shard in group}

        ended = [shard for shard in shards if shard.shard_id in ends]
        late = [shard for shard in ended if is_awaited(shard)]
        in_time = [shard for shard in ended if not is_awaited(shard)]
        _apart(in_time, lambda group: self._ledger.shards.record_endings(ends_of(group)), failed)
        _apart(late, lambda group: self._ledger.shards.record_late_endings(ends_of(group)), failed)

    def _ending_of(self, shard: Shard, answers: _Answers) -> Ending | None:
        """Return how the shard's batch ended; None if it runs, or ran nothing and will be sent again."""
        report = answers.reports[shard.shard_id]
        if is_awaited(shard):
            return self._ending(report, shard, answers) if report.status in _ENDINGS else None
        if report.status is BatchStatus.NOT_FOUND and shard.batch.status is BatchStatus.NOT_FOUND:
            return self._gone(shard, report, answers)
        if report.status not in _ENDINGS:
            return None
        ending = self._ending(report, shard, answers)
        if report.done or report.status is not BatchStatus.FAILED or not report.retryable:
            return ending
        # A batch that failed after it was accepted has had its try. Its requests may be asked again in another wave.
        # Only a batch rejected for lack of room waits for room.
        if report.smaller_helps is False:
            return ending
        key = shard.batch.batch_key or shard.shard_id
        if key not in answers.put_back:
            answers.put_back[key] = self._put_back(shard.shard_id, report)
        return None if answers.put_back[key] else replace(ending, cause=Cause.NOT_TAKEN)

    def _gone(self, shard: Shard, report: BatchReport, answers: _Answers) -> Ending | None:
        """Return the end of a batch that its provider has not known for long; None while the provider may lag."""
        since = self._unknown_since(shard)
        if since is None or since > self._deployment.clock():
            since = self._deployment.noted_since(shard, NotKnown("the provider does not find this batch"))
        if since is None or self._deployment.clock() - since < GONE_AFTER:
            return None
        reason = (
            f"{report.reason or 'The provider does not find this batch.'} Reported since {since:%Y-%m-%d %H:%M} UTC."
        )
        ending = self._ending(replace(report, reason=reason), shard, answers)
        return replace(ending, move=Transition.GONE, cause=Cause.GONE, reason_kind=Reason.GONE)

    def _unknown_since(self, shard: Shard) -> datetime | None:
        """Return when the status of the shard's batch changed to unknown; None without such an event."""

        def sharing() -> Iterator[Shard]:
            yield shard
            # Read only if the shard itself has no such event.
            yield from (other for other in self._ledger.shards.of_batch(shard) if other.shard_id != shard.shard_id)

        for one in sharing():
            changed = [
                event.at
                for event in self._ledger.events.of_submission(one.submission_id)
                if event.shard_id == one.shard_id
                and event.kind == STATUS
                and (event.data or {}).get("after") == BatchStatus.NOT_FOUND
                # Another shard may have been in another batch before.
                and (one is shard or (one.batch.sent_at is not None and event.at >= one.batch.sent_at))
            ]
            if changed:
                return changed[-1]
        return None

    def _put_back(self, shard_id: str, report: BatchReport) -> bool:
        """Plan again the shards of a batch that ran nothing; return False after too many tries."""
        known = self._ledger.shards.of_batch(self._ledger.shards.get(shard_id))
        shards = [
            each for each in known if each.state is ShardState.SUBMITTED and each.batch.batch_id == report.batch_id
        ]
        # They were put back with others of their batch, or by another process that polled at the same time.
        if not shards:
            return True
        fields = plan_next_try(self._deployment, shards, report.reason, smaller_helps=report.smaller_helps)
        if fields is None:
            return False
        with suppress(IllegalTransitionError):
            self._ledger.shards.move_all(
                [shard.shard_id for shard in shards],
                Transition.PUT_BACK,
                of_batch=report.batch_id,
                **fields,
            )
        return True

    def _ending(self, report: BatchReport, shard: Shard, answers: _Answers) -> Ending:
        cause = shard.cause if shard.state is ShardState.SUBMITTED else None
        # This package records its requests to stop first. So another cancellation has an unknown origin.
        if report.status is BatchStatus.CANCELED and cause is None:
            cause = Cause.CANCELED
        now = self._deployment.clock()
        return Ending(
            move=_ENDINGS.get(report.status, Transition.ENDED),
            batch_id=report.batch_id,
            status=report.status,
            # A clock ahead of ours must not postpone the end: waits of an hour begin at this time.
            ended_at=min(report.ended_at or now, now),
            total=report.total,
            done=report.done,
            failed=report.failed,
            reason=report.reason,
            retryable=report.retryable,
            cause=cause,
            reported_usd=self._share(report, shard, answers).reported_usd,
        )

    def stop(self, shards: Sequence[Shard], failed: Failed) -> None:
        """Ask the shards' batches to stop, once each. A shared batch is stopped if all its submissions are unwanted.

        The intent is recorded first. So `stop_asked` can repeat a failed call, and the end of such a batch is not
        mistaken for a cancellation by others. `failed` is called for each failed call.
        """
        running = [s for s in shards if s.state is ShardState.SUBMITTED and s.batch.status not in _ASKED_IN_VAIN]
        # An ended batch is not stopped by this package: it may have been canceled at the provider.
        self.poll(running, failed)
        stopping: dict[str, list[Shard]] = {}
        for shard in running:
            if shard.batch.batch_id is None or shard.batch.batch_id in stopping:
                continue
            sharing = self._ledger.shards.of_batch(shard)
            still = [other for other in sharing if other.state is ShardState.SUBMITTED]
            wanted = [s for s in sharing if s.submission_id != shard.submission_id and not self._is_unwanted(s)]
            if still and not wanted:
                stopping[shard.batch.batch_id] = still
        if stopping:
            self._ledger.shards.set_cause(
                [shard.shard_id for group in stopping.values() for shard in group], Cause.STOPPED
            )
            self._stop(stopping, failed)

    def stop_late(self, submission: Submission, shards: Sequence[Shard], failed: Failed) -> None:
        """See Engine.stop_late."""

        # A batch that cannot be stopped is waited for. The cancellation has reported this error.
        def unless_nothing_can(of: Sequence[Shard], error: Exception) -> None:
            if not isinstance(error, CannotStopError):
                failed(of, error)

        if self._deployment.is_late(submission):
            self.stop(shards, unless_nothing_can)
        else:
            self.stop_asked(shards, unless_nothing_can)

    def stop_asked(self, shards: Sequence[Shard], failed: Failed) -> None:
        """Repeat the request to stop batches for which an earlier request is not known to have succeeded."""
        waiting: dict[str, list[Shard]] = {}
        for shard in shards:
            asked = shard.cause is Cause.STOPPED and shard.state is ShardState.SUBMITTED
            if asked and shard.batch.status not in _ASKED_IN_VAIN and shard.batch.batch_id is not None:
                waiting.setdefault(shard.batch.batch_id, []).append(shard)
        self._stop(waiting, failed)

    def _stop(self, batches: Mapping[str, Sequence[Shard]], failed: Failed) -> None:
        for batch_id, shards in batches.items():
            try:
                cancel_batch(self._deployment.provider_of(shards[0]), batch_id)
            except Exception as error:  # noqa: BLE001 - of a provider, which may be the user's own; the others are asked
                failed(shards, error)
            else:
                report = BatchReport(batch_id, BatchStatus.CANCELING)
                self._ledger.shards.record_reports(dict.fromkeys([shard.shard_id for shard in shards], report))

    def _is_unwanted(self, shard: Shard) -> bool:
        submission = self._ledger.submissions.get(shard.submission_id)
        return submission.state is SubmissionState.CANCELED or self._deployment.is_late(submission)

    def _share(self, report: BatchReport, shard: Shard, answers: _Answers) -> BatchReport:
        """Return the shard's part of the report on a shared batch. Counts are divided in proportion to requests."""
        total = report.total
        # Not every provider reports the total number of requests in a batch.
        if total is None and (report.done or 0) > shard.requests:
            key = shard.batch.batch_key or shard.shard_id
            # Once for a batch: to read all of its shards for each of them takes the square of their number.
            if key not in answers.requests:
                of_batch = self._ledger.shards.of_batch(shard)
                answers.requests[key] = sum(other.requests + other.batch.padding for other in of_batch)
            total = answers.requests[key]
        if total is None:
            return replace(report, reported_usd=None)
        if total <= shard.requests:
            return report

        def part(count: int | None) -> int | None:
            return None if count is None else count * shard.requests // total

        # The cost of a part does not follow from the cost of the batch.
        done, failed = part(report.done), part(report.failed)
        return replace(report, total=shard.requests, done=done, failed=failed, reported_usd=None)


def is_due(shard: Shard, now: datetime) -> bool:
    """Return whether it is time to poll the shard's batch again. A batch that was asked to stop is always due."""
    if shard.polled_at is None or shard.batch.submitted_at is None or shard.batch.status is BatchStatus.CANCELING:
        return True
    # A later time than now was set by a wrong clock.
    return not timedelta() <= now - shard.polled_at < find_spacing(shard.batch.submitted_at, now)


def find_spacing(since: datetime, now: datetime) -> timedelta:
    """Return the pause between two calls about work that began then. The pause grows with the duration."""
    return min((now - since) / 10, _LONGEST_SPACING)


def _apart(
    items: Sequence[_T], act: Callable[[Sequence[_T]], None], failed: Callable[[Sequence[_T], Exception], None]
) -> None:
    """Call `act` on all items; if it raises, on their halves, and so on. So one odd item does not stop the others.

    `failed` is called with the items for which `act` failed: single items, or larger groups after too many failures.
    Raises LedgerError, since nothing can be recorded without a ledger.
    """
    waiting = [items] if items else []
    failures = 0
    while waiting:
        group = waiting.pop()
        try:
            act(group)
        except LedgerError:
            raise
        except Exception as error:  # noqa: BLE001 - of a provider, which may be the user's own: anything may come
            failures += 1
            if len(group) == 1 or failures >= _FAILURES_MOST or isinstance(error, _OF_ALL_ALIKE):
                failed(group, error)
            else:
                waiting += [group[len(group) // 2 :], group[: len(group) // 2]]
