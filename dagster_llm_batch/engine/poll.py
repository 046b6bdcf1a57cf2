"""What the providers say of their batches, and what is said to them: how far, ended how, please stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from dagster_llm_batch.engine.deployment import Deployment
from dagster_llm_batch.errors import CredentialsError, IllegalMoveError, LedgerError, TransientError
from dagster_llm_batch.states import Move, ShardState
from dagster_llm_batch.storage.ledger.records import Ending, Shard, SubmissionState
from dagster_llm_batch.storage.ledger.submissions import STATUS
from dagster_llm_batch.types import BatchReport, BatchStatus

__all__ = ["Failed", "Poller"]

Failed = Callable[[Sequence[Shard], Exception], None]
"""Takes shards about which nothing was learned, and why."""

_T = TypeVar("_T")
_FAILURES_MOST = 30  # calls: enough to find three odd ones among a thousand
_OF_ALL_ALIKE = (CredentialsError, TransientError)  # what these say of many, they say of each

_PUT_BACK_MOST = 40  # times; a day and a half
_PUT_BACK_LONGEST = timedelta(hours=1)
_GONE_AFTER = timedelta(hours=1)  # a vendor can forget a batch for a moment, as a replica that lags behind

_ASKED_IN_VAIN = (BatchStatus.CANCELING, BatchStatus.NOT_FOUND)
_ENDINGS = {
    BatchStatus.ENDED: Move.ENDED,
    BatchStatus.EXPIRED: Move.EXPIRED,
    BatchStatus.CANCELED: Move.CANCELED,
    BatchStatus.FAILED: Move.FAILED,
}


class Poller:
    """Looks after shards whose batches run."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._ledger = deployment.ledger

    def poll(self, shards: Sequence[Shard], failed: Failed | None = None) -> dict[str, BatchReport]:
        """See Engine.poll."""
        errors: list[Exception] = []

        def tell(some: Sequence[Shard], error: Exception) -> None:
            errors.append(error)
            if failed is not None:
                failed(some, error)

        reports: dict[str, BatchReport] = {}
        ran_nothing: set[str] = set()
        for name, its_shards in self._by_provider(shards, tell).items():
            self._ask(name, its_shards, reports, ran_nothing, tell)
        self._record([shard for shard in shards if shard.shard_id in reports], reports, ran_nothing, tell)
        if failed is None:
            odd = [error for error in errors if not isinstance(error, TransientError)]
            if odd or (errors and not reports):
                raise (odd or errors)[0]
        return reports

    def _by_provider(self, shards: Sequence[Shard], failed: Failed) -> dict[str, list[Shard]]:
        """Those whose batches run, by provider; another account would call them lost."""
        found: dict[str, list[Shard]] = {}
        for shard in shards:
            if shard.state is ShardState.SUBMITTED and shard.batch_id is not None:
                try:
                    self._deployment.provider_of(shard)
                except Exception as error:  # noqa: BLE001 - of one shard; the others are asked about all the same
                    failed([shard], error)
                else:
                    found.setdefault(shard.provider, []).append(shard)
        return found

    def _ask(
        self,
        name: str,
        shards: Sequence[Shard],
        reports: dict[str, BatchReport],
        ran_nothing: set[str],
        failed: Failed,
    ) -> None:
        """Ask one provider for the batches of these shards, and add what it says to `reports` and `ran_nothing`."""
        batches: dict[str, list[Shard]] = {}
        for shard in shards:
            batches.setdefault(shard.batch_id or "", []).append(shard)
        answers: dict[str, BatchReport] = {}
        _apart(
            list(batches),
            lambda some: answers.update(self._deployment.provider(name).poll(some)),
            lambda some, error: failed([shard for batch_id in some for shard in batches[batch_id]], error),
        )
        for batch_id in batches.keys() & answers.keys():
            for shard in batches[batch_id]:
                try:
                    reports[shard.shard_id] = self._share(answers[batch_id], shard)
                    if not answers[batch_id].done:
                        ran_nothing.add(shard.shard_id)
                except LedgerError:
                    raise
                except Exception as error:  # noqa: BLE001 - an odd report of one batch; the others' are as good as ever
                    failed([shard], error)

    def _record(
        self, shards: Sequence[Shard], reports: dict[str, BatchReport], ran_nothing: set[str], failed: Failed
    ) -> None:
        """Record the reports on these shards, and the ends of those whose batches have ended."""
        _apart(
            shards, lambda some: self._ledger.record_reports({s.shard_id: reports[s.shard_id] for s in some}), failed
        )
        ends: dict[str, Ending] = {}
        for shard in shards:
            try:
                if (ending := self._ending_of(shard, reports[shard.shard_id], ran_nothing)) is not None:
                    ends[shard.shard_id] = ending
            except LedgerError:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                failed([shard], error)
        ended = [shard for shard in shards if shard.shard_id in ends]
        _apart(ended, lambda some: self._ledger.record_endings({s.shard_id: ends[s.shard_id] for s in some}), failed)

    def _ending_of(self, shard: Shard, said: BatchReport, ran_nothing: set[str]) -> Ending | None:
        """How its batch ended; None where it runs, or ran nothing and is sent again."""
        report = self._given_up(shard.shard_id, said) if shard.status is BatchStatus.NOT_FOUND else said
        if report.status not in _ENDINGS or (shard.shard_id in ran_nothing and self._put_back(shard.shard_id, report)):
            return None
        return self._ending(report)

    def _given_up(self, shard_id: str, report: BatchReport) -> BatchReport:
        """What has not been found for long, each time that it was asked for, is gone."""
        if report.status is not BatchStatus.NOT_FOUND:
            return report
        events = self._ledger.events(self._ledger.shard(shard_id).submission_id)
        since = max(event.at for event in events if event.shard_id == shard_id and event.kind == STATUS)
        if self._deployment.clock() - since < _GONE_AFTER:
            return report
        reason = f"{report.reason or 'The provider knows no such batch.'} So it said since {since:%Y-%m-%d %H:%M} UTC."
        return replace(report, status=BatchStatus.FAILED, reason=reason)

    def _put_back(self, shard_id: str, report: BatchReport) -> bool:
        """A batch that ran nothing, since the provider's queue was full: its shard waits, longer each time."""
        if report.status is not BatchStatus.FAILED or not report.retryable:
            return False
        shard = self._ledger.shard(shard_id)
        events = self._ledger.events(shard.submission_id)
        before = sum(event.kind == Move.PUT_BACK.value and event.shard_id == shard_id for event in events)
        if before >= _PUT_BACK_MOST:
            return False
        waits_until = self._deployment.clock() + min(_PUT_BACK_LONGEST, timedelta(minutes=2 ** min(before, 10)))
        with suppress(IllegalMoveError):  # another process asked at the same time and recorded it
            self._ledger.move_shard(
                shard_id,
                Move.PUT_BACK,
                of_batch=report.batch_id,
                detail=report.batch_id,
                reason=report.reason,
                waits_until=waits_until,
            )
        return True

    def _ending(self, report: BatchReport) -> Ending:
        return Ending(
            move=_ENDINGS[report.status],
            batch_id=report.batch_id,
            status=report.status,
            ended_at=report.ended_at or self._deployment.clock(),
            total=report.total,
            done=report.done,
            failed=report.failed,
            reason=report.reason,
            retryable=report.retryable,
        )

    def stop(self, shards: Sequence[Shard]) -> None:
        """Ask their batches to stop, once. One that is shared stops when all whose shards it carries agree."""
        asked: set[str] = set()
        for shard in shards:
            running = shard.state is ShardState.SUBMITTED and shard.status not in _ASKED_IN_VAIN
            if not running or shard.batch_id is None or shard.shard_id in asked:
                continue
            sharing = self._ledger.shards_of_batch(shard)
            if all(one.submission_id == shard.submission_id or self._is_unwanted(one) for one in sharing):
                self._deployment.provider_of(shard).cancel(shard.batch_id)
                report = BatchReport(shard.batch_id, BatchStatus.CANCELING)
                running_too = [one.shard_id for one in sharing if one.state is ShardState.SUBMITTED]
                self._ledger.record_reports(dict.fromkeys(running_too, report))
                asked.update(running_too)

    def _is_unwanted(self, shard: Shard) -> bool:
        submission = self._ledger.submission(shard.submission_id)
        return submission.state is SubmissionState.CANCELED or self._deployment.is_late(submission)

    def _share(self, report: BatchReport, shard: Shard) -> BatchReport:
        """A shard's part of the report on a batch that carries more than it; not all providers count the whole."""
        total = report.total
        if total is None and (report.done or 0) > shard.requests:
            total = sum(one.requests + one.padding for one in self._ledger.shards_of_batch(shard))
        if total is None or total <= shard.requests:
            return report

        def part(count: int | None) -> int | None:
            return None if count is None else count * shard.requests // total

        return replace(report, total=shard.requests, done=part(report.done), failed=part(report.failed))


def _apart(
    items: Sequence[_T], act: Callable[[Sequence[_T]], None], failed: Callable[[Sequence[_T], Exception], None]
) -> None:
    """`act` on all items at once. Where it raises, on their halves, and so on: one odd item does not stop the others.

    `failed` gets what `act` failed for, down to single items; after too many failures what is left as it is. Raises a
    LedgerError: without a ledger nothing goes on.
    """
    waiting = [items] if items else []
    failures = 0
    while waiting:
        some = waiting.pop()
        try:
            act(some)
        except LedgerError:
            raise
        except Exception as error:  # noqa: BLE001 - of a provider, which may be the user's own: anything may come
            failures += 1
            if len(some) == 1 or failures >= _FAILURES_MOST or isinstance(error, _OF_ALL_ALIKE):
                failed(some, error)
            else:
                waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
