"""Landing runs that ended and changed nothing: asked for again, a few times; then a failed check says what to do.

A run that dies while it starts, or finds no database, leaves no event in the ledger, so that nothing would tell the
next request from the one before, and Dagster would drop it. Each loss is an event of its submissions: the next request
has another key, and how often that was is on record. What a run did change begins the count anew.

A run that a person canceled is not asked for again: somebody had a reason. Runs that Dagster retries by itself are left
to it; they carry their first run's key, and the last of them counts.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from dagster_llm_batch.checks import COVERAGE
from dagster_llm_batch.engine.activity import LOST
from dagster_llm_batch.sensors.unfinished_runs import is_stale

if TYPE_CHECKING:
    from dagster import RunRecord

    from dagster_llm_batch.engine.activity import Outlook
    from dagster_llm_batch.engine.engine import Engine
    from dagster_llm_batch.sensors.run_requests import Group, Ready

__all__ = ["ALONE_AFTER", "ASKED_AGAIN_TAG", "LostRuns", "asked_again"]

ASKED_AGAIN_TAG = "llm_batch/asked_again"
"""Tag of a run that was asked for again, as in `2 of 3`."""

ALONE_AFTER = 2
"""Losses after which a partition is asked for by itself: another one may be what kills the run that they share."""

_PAUSES = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=30))
_RETRIED_WITHIN = timedelta(hours=1)


def asked_again(lost: int) -> str:
    """For people: the request after so many losses."""
    return f"{lost} of {len(_PAUSES)}"


class LostRuns:
    """What became of the runs that the sensor asked for before."""

    def __init__(self, instance: dg.DagsterInstance, sensor_name: str, engine: Engine, now: datetime) -> None:
        self._instance = instance
        self._sensor_name = sensor_name
        self._engine = engine
        self._now = now

    def count(self, submission_id: str, outlook: Outlook) -> int:
        """How many runs were lost in a row, up to now."""
        if outlook.last_but_waiting[submission_id].kind != LOST:
            return 0
        return self._engine.lost_runs(submission_id)

    def look_at(self, group: Group) -> str | None:
        """None where the group was not asked for yet, as it is now; else what became of that, for people.

        A lost run is put on record, so that the group is asked for anew at the next tick, or waits for a person.
        """
        asked = dg.RunsFilter(tags={"dagster/run_key": group.run_key, "dagster/sensor_name": self._sensor_name})
        found = self._instance.get_run_records(asked, limit=1)  # the newest
        if not found:
            return None
        [record] = found
        run, run_id = record.dagster_run, record.dagster_run.run_id
        if run.status is dg.DagsterRunStatus.CANCELED:
            return self._strand(group, f"run {run_id}, which was to land them, was canceled")
        if not run.is_finished and not is_stale(record, self._now):
            return f"run {run_id} lands it"
        ended_at = _ended_at(record)
        if run.is_complete_and_waiting_to_retry and self._now - ended_at < _RETRIED_WITHIN:
            return f"run {run_id} did not land it; Dagster retries it"
        became = f"run {run_id} ended as {run.status.value} and changed nothing"
        if group.lost >= len(_PAUSES):
            return self._strand(group, f"{became}, asked for again {asked_again(group.lost)} times")
        if (left := ended_at + _PAUSES[group.lost] - self._now) > timedelta():
            return f"run {run_id} did not land it; asked for again in {left.total_seconds():.0f} s"
        told = f"{became}; asked for again {asked_again(group.lost + 1)}"
        for one in group.ready:
            for submission_id in one.submissions:
                self._engine.note_lost(submission_id, told)
        return f"{told}, at the next tick"

    def _strand(self, group: Group, why: str) -> str:
        """Put on record that a person has to look, and show it as a failed check."""
        for one in group.ready:
            for submission_id in one.submissions:
                self._engine.note_stranded(submission_id, why)
        failures = []
        for one in group.ready:
            try:
                self._fail_check(one, why)
            except Exception as error:  # noqa: BLE001 - of Dagster's storage; the others' are shown all the same
                failures.append(error)
        if failures:  # then the tick fails, which a person sees as well
            raise failures[0]
        return f"waits for a person: {why}"

    def _fail_check(self, one: Ready, why: str) -> None:
        """Raises where Dagster holds a verdict without a run on this partition already: it stores one of a kind."""
        description = (
            f"The labels are not landed: {why}. What was paid for is stored. Look at that run's log, then materialize "
            f"{one.asset.to_user_string()}{f', partition {one.partition}' if one.partition else ''}; nothing asks for "
            "it by itself any more."
        )
        self._instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=one.asset,
                check_name=COVERAGE,
                passed=False,
                severity=dg.AssetCheckSeverity.ERROR,
                description=description,
                partition=one.partition,
            )
        )


def _ended_at(record: RunRecord) -> datetime:
    if record.end_time is not None:
        return datetime.fromtimestamp(record.end_time, UTC)
    return record.update_timestamp
