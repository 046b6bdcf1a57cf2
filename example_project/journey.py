"""The example's steps in Dagster, like a user's in the UI: one backfill, then watching.

    backfill: rows, ratings, submissions ─▶ (batches run) ─▶ the sensor materializes labels ─▶ automation evaluates them

This module only requests and watches; Dagster's daemon does the work. It can be stopped and started at any point.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from dagster_llm_batch import LLMBatchResource
from dagster_llm_batch.engine import Engine, Status
from dagster_llm_batch.states import IN_FLIGHT, ShardState
from example_project import report, settings
from example_project.dagster_dev import DagsterError, RunningDagster
from example_project.definitions import llm_batch
from example_project.screen import Bar, Screen
from example_project.standstill import Patience, describe_dagster, describe_submissions

__all__ = ["DATASETS", "JourneyState", "launch", "runs_since", "stop_at_failures", "submitted_text", "travel", "watch"]

DATASETS = ("tweet_sentiment", "tweet_sentiment_lexicon")
BACKFILLED = ("tweets", "tweet_gold", "tweet_gold_few", *(f"{name}_batch" for name in DATASETS))
GOLD_BY_YOU = ("my_gold", "my_gold_raters")
EVALUATIONS = {
    "sentiment_eval": ("tweet_gold", *DATASETS),
    "sentiment_shares": ("tweet_gold_few", *DATASETS),
    # Its gold has no partitions.
    "my_eval": DATASETS,
}
"""The evaluations by name, with the partitioned tables that each reads: its gold, and the datasets."""
_LAUNCH = """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
    ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } } } }"""
_WHERE = {"repositoryName": "__repository__", "repositoryLocationName": "example_project.definitions"}
_LOOK_SECONDS = 1.0
_AT_VENDOR_SECONDS = 26 * 3600.0
"""A hosted batch may take a day without any visible progress."""
_BACKFILL = """mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { __typename
    ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
_BACKFILL_STATUS = """query ($id: String!) { partitionBackfillOrError(backfillId: $id) { __typename
    ... on PartitionBackfill { status error { message } } } }"""


def travel(running: RunningDagster) -> None:
    """Backfill, watch, report. Raises DagsterError if a run fails."""
    began = datetime.now(UTC)
    days = f"{settings.EXAMPLE_DAYS[0]} to {settings.EXAMPLE_DAYS[-1]}"
    with dg.DagsterInstance.get() as instance, Screen() as screen:
        told = "found running" if running.found else "started"
        screen.say(f"[1/4] Dagster {told}: {running.url}  (open it and watch)")
        screen.say(f"[2/4] Backfill of {days}: tweets, human ratings, and the submission of their batches")
        _backfill(running, instance, screen, began)
        with dg.build_resources({"llm_batch": llm_batch}, instance=instance) as resources:
            state = JourneyState(instance, resources.llm_batch, DATASETS, settings.EXAMPLE_DAYS, EVALUATIONS)
            screen.say("      " + state.submitted_since(began))
            screen.say(
                "[3/4] The batches run on their own; the sensor materializes each day's labels when its batch completes"
            )

            def start_gold() -> None:
                # Empty until a person judges: without it, this part of the lineage page would look unfinished. It has
                # the type of the labels' keys, so it cannot be before them.
                if instance.get_latest_materialization_event(dg.AssetKey(GOLD_BY_YOU[0])) is None:
                    launch(running, instance, screen, began, GOLD_BY_YOU)

            watch(screen, running, state, began, at_labels=start_gold)
        screen.say(f"[4/4] Evaluated by automation, after {(datetime.now(UTC) - began).total_seconds():.0f} s in all")
    report.show(running)


def _backfill(running: RunningDagster, instance: dg.DagsterInstance, screen: Screen, began: datetime) -> None:
    params = {
        "assetSelection": [{"path": [name]} for name in BACKFILLED],
        "partitionNames": list(settings.EXAMPLE_DAYS),
        "title": "python3 -m example_project",
    }
    answer = running.query(_BACKFILL, params=params)["launchPartitionBackfill"]
    if answer["__typename"] != "LaunchBackfillSuccess":
        raise DagsterError(f"Dagster did not take the backfill: {answer.get('message', answer['__typename'])}")
    patience = Patience(lambda: describe_dagster(instance, began, running.log), screen.say)
    while True:
        found = running.query(_BACKFILL_STATUS, id=answer["backfillId"])["partitionBackfillOrError"]
        stop_at_failures(instance, began)
        if found["status"] == "COMPLETED_SUCCESS":
            screen.show([])
            return
        if found["status"] in ("FAILED", "CANCELED", "CANCELING", "FAILING", "COMPLETED_FAILED"):
            raise DagsterError(f"The backfill is {found['status'].lower()}: {(found['error'] or {}).get('message')}")
        screen.show([Bar("waiting for Dagster's daemon to pick it up and run it", None, 0, 0)])
        patience.look((found["status"], runs_since(instance, began)), "Dagster's daemon to run the backfill")
        time.sleep(_LOOK_SECONDS)


def launch(
    running: RunningDagster, instance: dg.DagsterInstance, screen: Screen, began: datetime, names: Sequence[str]
) -> None:
    """Materialize these assets in one run, and wait for its end. Raises DagsterError if Dagster does not take it."""
    selector = {**_WHERE, "jobName": "__ASSET_JOB", "assetSelection": [{"path": [name]} for name in names]}
    answer = running.query(_LAUNCH, params={"selector": selector, "runConfigData": {}})["launchRun"]
    if answer["__typename"] != "LaunchRunSuccess":
        raise DagsterError(f"Dagster did not take the run: {answer}")
    patience = Patience(lambda: describe_dagster(instance, began, running.log), screen.say)
    while (run := instance.get_run_by_id(answer["run"]["runId"])) is None or not run.is_finished:
        running.check()
        screen.show([Bar("waiting for Dagster to run it", None, 0, 0)])
        patience.look(runs_since(instance, began), "Dagster to run the submission")
        time.sleep(_LOOK_SECONDS)
    stop_at_failures(instance, began)
    screen.show([])


def watch(
    screen: Screen,
    running: RunningDagster,
    state: JourneyState,
    began: datetime,
    at_labels: Callable[[], None] = lambda: None,
) -> None:
    """Show progress until all labels are materialized and evaluated. Raises DagsterError if progress stops.

    Args:
        at_labels: Called once, when all labels are materialized.
    """

    def obstacles() -> str:
        return f"{describe_submissions(state.engine)}\n{describe_dagster(state.instance, began, running.log)}"

    patience = Patience(obstacles, screen.say)
    has_labels = False
    while True:
        running.check()
        stop_at_failures(state.instance, began)
        progress = [state.progress(name) for name in state.datasets]
        evaluated = state.is_evaluated()
        bars = [Bar(one.name, one.state, one.done, one.total) for one in progress]
        waits_for = " and ".join(one.name for one in progress if one.landed < len(state.partitions))
        if not waits_for:
            if not has_labels:
                has_labels = True
                at_labels()
            if evaluated:
                screen.show(bars, last=True)
                return
            waits_for = " and ".join(state.evaluations)
            bars.append(Bar(waits_for, "automation starts them", 0, 0))
        screen.show(bars)
        longer = _AT_VENDOR_SECONDS if any(one.is_at_vendor for one in progress) else None
        patience.look((progress, evaluated, runs_since(state.instance, began)), waits_for, stop_seconds=longer)
        time.sleep(_LOOK_SECONDS)


def runs_since(instance: dg.DagsterInstance, began: datetime) -> list[tuple[str, str]]:
    """Return the runs since `began` with their states. They change even while nothing else is visible."""
    records = instance.get_run_records(dg.RunsFilter(created_after=began))
    return [(record.dagster_run.run_id, record.dagster_run.status.value) for record in records]


def stop_at_failures(instance: dg.DagsterInstance, began: datetime) -> None:
    """Raise DagsterError if a run since `began` has failed or was canceled."""
    ended = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED], created_after=began)
    for record in instance.get_run_records(ended, limit=1):
        run = record.dagster_run
        how = "failed" if run.status is dg.DagsterRunStatus.FAILURE else "was canceled"
        raise DagsterError(f"Run {run.run_id} {how}. {' '.join(_reasons(instance, run.run_id)) or 'See it in the UI.'}")


def _reasons(instance: dg.DagsterInstance, run_id: str) -> Iterator[str]:
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.dagster_event
        error = event.step_failure_data.error if event is not None else None
        while error is not None and error.cause is not None:
            error = error.cause
        yield f"{entry.step_key}: {error.message.strip() if error is not None else 'unknown'}"


@dataclass(frozen=True)
class _Progress:
    """The progress of a dataset's submissions, over all days."""

    name: str
    state: str
    done: int
    total: int
    landed: int
    is_at_vendor: bool


@dataclass(frozen=True)
class JourneyState:
    """The state of some datasets and their evaluations in the ledger and Dagster.

    Attributes:
        partitions: The partitions of the datasets and the gold; `("",)` if they are unpartitioned.
        evaluations: The evaluations by name, with the tables that each reads.
    """

    instance: dg.DagsterInstance
    resource: LLMBatchResource
    datasets: Sequence[str]
    partitions: Sequence[str]
    evaluations: Mapping[str, Sequence[str]]

    @property
    def engine(self) -> Engine:
        return self.resource.engine()

    def progress(self, name: str) -> _Progress:
        engine = self.engine
        found = [engine.latest(name, day) for day in self.partitions]
        submissions = [one for one in found if one is not None]
        statuses = [engine.status(one.submission_id) for one in submissions]
        # A cascade sends some requests to two models, and both count.
        requests = sum(status.total + status.submission.reused for status in statuses)
        unsettled = sum(status.total - status.done for status in statuses if not status.is_settled)
        landed = sum(self._landed(name, one.partition, one.submission_id) for one in submissions)
        state = f"{landed} of {len(self.partitions)} days materialized"
        if self.partitions == ("",):
            state = "materialized" if landed else f"round {max((one.waves for one in submissions), default=1)}"
        flying = [shard for status in statuses for shard in status.shards if shard.state in IN_FLIGHT]
        is_at_vendor = any(shard.provider != "command" for shard in flying)
        return _Progress(name, state, requests - unsettled, requests, landed, is_at_vendor)

    def _landed(self, name: str, day: str, submission_id: str) -> bool:
        newest = self._newest(name, day)
        value = None if newest is None else newest.metadata.get("llm_batch/submission_id")
        return value is not None and value.value == submission_id

    def _newest(self, name: str, day: str) -> dg.AssetMaterialization | None:
        record = self._record(name, day)
        return None if record is None else record.asset_materialization

    def _record(self, name: str, day: str = "") -> dg.EventLogRecord | None:
        wanted = dg.AssetRecordsFilter(dg.AssetKey(name), asset_partitions=[day] if day else None)
        return next(iter(self.instance.fetch_materializations(wanted, limit=1).records), None)

    def is_evaluated(self) -> bool:
        """Return whether each evaluation's run began after everything it reads was materialized."""
        return all(self._is_newest(name, read) for name, read in self.evaluations.items())

    def _is_newest(self, evaluation: str, upstreams: Sequence[str]) -> bool:
        newest = self._record(evaluation)
        run = None if newest is None else self.instance.get_run_record_by_id(newest.run_id)
        began = None if run is None else run.start_time
        read = [self._record(name, day) for name in upstreams for day in self.partitions]
        return began is not None and all(one is not None and one.timestamp <= began for one in read)

    def submitted_since(self, began: datetime) -> str:
        """Return a text about the requests that this run sent and the earlier ones."""
        engine = self.engine
        submissions = [engine.latest(name, day) for name in self.datasets for day in self.partitions]
        statuses = [engine.status(submission.submission_id) for submission in submissions if submission is not None]
        return submitted_text(statuses, began)


def submitted_text(statuses: Sequence[Status], began: datetime) -> str:
    """Return a text about the requests of these submissions. A submission that was created since `began` is new.

    A shard is planned until the provider's queue has room for it: its requests are neither sent nor paid yet.
    """
    sent = answered = flying = waiting = 0
    for status in statuses:
        submission = status.submission
        planned = sum(shard.requests for shard in status.shards if shard.state is ShardState.PLANNED)
        waiting += planned
        if submission.created_at >= began:
            sent += submission.requests - submission.reused - planned
            answered += submission.reused
        elif submission.is_settled:
            answered += submission.requests
        else:
            flying += submission.requests - planned
    parts = [f"{sent} requests sent"]
    parts += [f"{waiting} wait for room in the provider's queue"] if waiting else []
    parts += [f"{answered} already answered, not sent and not paid again"] if answered else []
    parts += [f"{flying} in flight since an earlier run, found again"] if flying else []
    return "; ".join(parts)
