"""What the providers say of their batches, and what is said to them: how far, ended how, please stop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from dagster_llm_batch.engine.deployment import Deployment
from dagster_llm_batch.errors import IllegalMoveError, TransientError
from dagster_llm_batch.states import Move, ShardState
from dagster_llm_batch.storage.ledger import STATUS
from dagster_llm_batch.storage.records import Ending, Shard, SubmissionState
from dagster_llm_batch.types import BatchReport, BatchStatus

__all__ = ["Poller"]

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

    def poll(self, shards: Sequence[Shard]) -> dict[str, BatchReport]:
        """See Engine.poll."""
        reports: dict[str, BatchReport] = {}
        ran_nothing: set[str] = set()
        errors: list[TransientError] = []
        by_provider: dict[str, dict[str, list[Shard]]] = {}
        for shard in shards:
            if shard.state is ShardState.SUBMITTED and shard.batch_id is not None:
                self._deployment.provider_of(shard)  # another account would call the batch lost
                by_provider.setdefault(shard.provider, {}).setdefault(shard.batch_id, []).append(shard)
        for name, batches in by_provider.items():
            try:
                answers = self._deployment.provider(name).poll(list(batches))
            except TransientError as error:
                errors.append(error)
                continue
            for batch_id, report in answers.items():
                reports.update({shard.shard_id: self._share(report, shard) for shard in batches[batch_id]})
                if not report.done:
                    ran_nothing.update(shard.shard_id for shard in batches[batch_id])
        self._ledger.observe(reports)
        missed = {shard.shard_id for shard in shards if shard.status is BatchStatus.NOT_FOUND}
        ends: dict[str, Ending] = {}
        for shard_id, said in reports.items():
            report = self._given_up(shard_id, said) if shard_id in missed else said
            if report.status in _ENDINGS and not (shard_id in ran_nothing and self._put_back(shard_id, report)):
                ends[shard_id] = self._ending(report)
        if ends:
            self._ledger.ended(ends)
        if errors and not reports:
            raise errors[0]
        return reports

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
            self._ledger.move(
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
            sharing = self._ledger.of_batch(shard)
            if all(one.submission_id == shard.submission_id or self._is_unwanted(one) for one in sharing):
                self._deployment.provider_of(shard).cancel(shard.batch_id)
                report = BatchReport(shard.batch_id, BatchStatus.CANCELING)
                running_too = [one.shard_id for one in sharing if one.state is ShardState.SUBMITTED]
                self._ledger.observe(dict.fromkeys(running_too, report))
                asked.update(running_too)

    def _is_unwanted(self, shard: Shard) -> bool:
        submission = self._ledger.submission(shard.submission_id)
        return submission.state is SubmissionState.CANCELED or self._deployment.is_late(submission)

    def _share(self, report: BatchReport, shard: Shard) -> BatchReport:
        """A shard's part of the report on a batch that carries more than it; not all providers count the whole."""
        total = report.total
        if total is None and (report.done or 0) > shard.requests:
            total = sum(one.requests + one.padding for one in self._ledger.of_batch(shard))
        if total is None or total <= shard.requests:
            return report

        def part(count: int | None) -> int | None:
            return None if count is None else count * shard.requests // total

        return replace(report, total=shard.requests, done=part(report.done), failed=part(report.failed))
