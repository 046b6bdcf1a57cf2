"""`watch`: show the progress of submissions until they are complete."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from dagster_llm_batch.cli.commands import Command, json_option
from dagster_llm_batch.cli.completion import complete_assets
from dagster_llm_batch.cli.conditions import conditions_of
from dagster_llm_batch.cli.deployment import DeploymentAccess, ledger_command
from dagster_llm_batch.cli.output import Money, console, counted, print_json, table
from dagster_llm_batch.cli.selection import find_submission, partition_option
from dagster_llm_batch.engine.conditions import TELLS_OF_UNSENT, Condition
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.loop.activity import FAILED
from dagster_llm_batch.loop.holds import RULES
from dagster_llm_batch.loop.progress import Pace, pace
from dagster_llm_batch.loop.provider_facts import account_of
from dagster_llm_batch.progress import end_history, end_of, progress_text, shared_text, states_cell
from dagster_llm_batch.states import IN_FLIGHT, HoldReason, ShardState
from dagster_llm_batch.storage.ledger.batches import count_batches
from dagster_llm_batch.storage.ledger.database import utc_now
from dagster_llm_batch.storage.ledger.events import Waits, read_event
from dagster_llm_batch.storage.ledger.records import Progress
from dagster_llm_batch.text import cell_text, plain_words

if TYPE_CHECKING:
    from dagster_llm_batch.advice.end_forecast import EndHistory

__all__ = ["Snapshot", "show_until", "watch_command"]

_NOTHING = "Nothing is under way."
_TOO_FEW_DAYS = "too few days"
_UNDER_WAY = IN_FLIGHT | {ShardState.PLANNED}
_COLUMNS = [
    "asset",
    "partition",
    "round",
    "batches",
    "done",
    "failed",
    "per minute",
    "age",
    "expected end (UTC)",
    "9 in 10 by",
]


@click.command("watch", cls=Command, examples=["-f labels.py", "moods --poll --until ended -f labels.py"])
@click.argument("target", metavar="[SUBMISSION|ASSET]", required=False, shell_complete=complete_assets)
@partition_option
@ledger_command
@click.option(
    "--interval", type=click.FloatRange(0.05), default=10.0, show_default=True, help="Seconds between updates."
)
@click.option("--poll", is_flag=True, help="Also ask the providers. Without it, show the records of Dagster's sensor.")
@click.option(
    "--until",
    type=click.Choice(["ended", "landed"]),
    default="landed",
    show_default=True,
    help="Watch until no batch is waiting or running, or until all labels are materialized.",
)
@click.option("--once", is_flag=True, help="Show the progress once, then end.")
@json_option
def watch_command(
    deployment: DeploymentAccess,
    target: str | None,
    partition: str | None,
    interval: float,
    until: str,
    *,
    poll: bool,
    once: bool,
    as_json: bool,
) -> None:
    """Show the progress of one submission, or of all that are not complete, until they end.

    It also shows why batches are not sent yet, why labels could not be materialized, and whether Dagster's daemon and
    sensor are running. It changes nothing: Dagster's sensor, or a run that you start, materializes the labels. Ctrl-C
    stops watching only. With --json it prints one line for each update.
    """
    if poll and not deployment.has_code:
        raise click.UsageError("--poll asks providers, which are in the definitions: give -m or -f.")
    watched = _Watched(deployment, target, partition, poll=poll)
    with suppress(KeyboardInterrupt), _printer(as_json=as_json, live=not once) as show:
        show_until(watched.snapshot, show, "looked" if once else until, interval)


def show_until(
    take: Callable[[], Snapshot],
    show: Callable[[Snapshot], None],
    until: str,
    interval_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Take a snapshot and show it, until all has `landed` or `ended`, or once where that is all (`looked`)."""
    while True:
        seen = take()
        show(seen)
        is_moving = {
            "looked": False,
            "ended": any(set(progress.states) & _UNDER_WAY for progress, _ in seen.paces),
            "landed": bool(seen.paces),
        }
        if not is_moving[until]:
            return
        sleep(interval_seconds)


class Snapshot(NamedTuple):
    """Progress at one moment, with notes and conditions."""

    paces: list[tuple[Progress, Pace]]
    notes: list[str]
    conditions: Sequence[Condition] = ()


class _Watched:
    """The submissions that are watched."""

    def __init__(self, deployment: DeploymentAccess, target: str | None, partition: str | None, *, poll: bool) -> None:
        self._deployment = deployment
        self._poll = poll
        self._only = None
        if target is not None:
            self._only = find_submission(deployment, target, partition).submission_id

    def snapshot(self) -> Snapshot:
        """Ask, where asked to, and read the ledger."""
        notes = self._ask() if self._poll else []
        now = utc_now()
        if self._deployment.has_code and (missing := self._deployment.missing_ledger_file) is not None:
            return Snapshot([], [*notes, f"There is no ledger at {missing} yet.", *self._standstill()])
        history = end_history(self._deployment.ledger, self._deployment.namespace, now)
        paces = [
            (progress, pace(progress, now, end_of(history, progress, now)))
            for progress in self._deployment.ledger.submissions.progress(self._deployment.namespace)
            if self._only in (None, progress.submission.submission_id)
            and self._deployment.is_looked_at(progress.submission.asset)
        ]
        under_way = [progress for progress, _ in paces]
        if (shared := shared_text(self._deployment.ledger, self._deployment.namespace, under_way)) is not None:
            notes.append(f"{shared}.")
        notes += _held(history, {progress.submission.asset for progress in under_way})
        conditions = [
            condition
            for condition in conditions_of(self._deployment)
            if self._only in (None, condition.submission.submission_id)
        ]
        notes += [*self._cascades(under_way), *self._waits(under_way, conditions), *self._failed_landings(under_way)]
        notes += [f"{cell_text(each.submission.place)}: {each.advice}" for each in conditions]
        return Snapshot(paces, [*notes, *self._standstill()], conditions)

    def _cascades(self, under_way: list[Progress]) -> Iterator[str]:
        """Yield the guarantees and thresholds of cascades."""
        for submission in (progress.submission for progress in under_way):
            if (levels := self._deployment.levels_of(submission)) is not None:
                # With near copies, the guarantee of both
                promise = (self._deployment.audited_of(submission) or levels).promise_text
                yield f"{cell_text(submission.place)}: {promise} Threshold: {levels.threshold_text}."

    def _waits(self, under_way: list[Progress], conditions: list[Condition]) -> list[str]:
        """Return the number of unsent shards and the reason, unless a condition has it."""
        told = {each.submission.submission_id for each in conditions if each.kind in TELLS_OF_UNSENT}
        notes = []
        for progress in under_way:
            submission = progress.submission
            unsent = progress.states.get(ShardState.PLANNED, 0)
            if not unsent or submission.submission_id in told:
                continue
            last = read_event(self._deployment.ledger.events.last_of(submission.submission_id))
            waits_for = last.detail if isinstance(last, Waits) else None
            advice = RULES[HoldReason.PLACE].message(unsent, waits_for)
            notes.append(f"{cell_text(submission.place)}: {advice}")
        return notes

    def _failed_landings(self, under_way: list[Progress]) -> list[str]:
        """Return why labels could not be materialized, of those that a run has tried to."""
        failed = self._deployment.ledger.events.last_of_all(self._deployment.namespace, kind=FAILED)
        submissions = [progress.submission for progress in under_way if progress.submission.submission_id in failed]
        return [
            f"{cell_text(submission.place)}: a run could not materialize the labels: "
            f"{plain_words(failed[submission.submission_id].detail)}"
            for submission in submissions
        ]

    def _standstill(self) -> list[str]:
        """Return queued runs, and the reason for a standstill."""
        if not self._deployment.has_code:
            return []
        code = self._deployment.code
        notes = [
            f"{cell_text(asset)}: {counted(len(ids), 'run is', 'runs are')} queued: {', '.join(run[:8] for run in ids)}"
            for asset, ids in code.queued_runs().items()
        ]
        return notes if (standstill := code.standstill()) is None else [*notes, f"{standstill}."]

    def _ask(self) -> list[str]:
        engine = self._deployment.engine
        accounts = {name: account_of(provider) for name, provider in engine.providers.items()}
        flying = [
            shard
            for shard in engine.ledger.shards.in_flight(engine.namespace)
            if self._only in (None, shard.submission_id)
        ]
        ours = [shard for shard in flying if accounts.get(shard.provider) == shard.account]
        notes = []
        if others := count_batches(shard for shard in flying if accounts.get(shard.provider) != shard.account):
            foreign = counted(others, "batch is of an account", "batches are of accounts")
            notes.append(f"{foreign} not configured here")
        try:
            engine.poll(ours)
        except LLMBatchError as error:
            notes.append(f"A provider could not be asked: {error}")
        return notes


def _held(history: EndHistory, assets: Collection[str]) -> list[str]:
    """Return how often earlier forecasts of the end were right, of assets that have some."""
    scores = {asset: history.score(asset) for asset in sorted(assets)}
    return [f"{cell_text(asset)}: of earlier forecasts {score}" for asset, score in scores.items() if score.judged_p90]


@contextmanager
def _printer(*, as_json: bool, live: bool) -> Iterator[Callable[[Snapshot], None]]:
    """Give a function that shows a snapshot: as a JSON line, a table that stays in place, or a line for each change."""
    if as_json:
        yield lambda snapshot: print_json(_document(snapshot), indent=None)
    elif not live:
        yield lambda snapshot: console().print(_screen(snapshot))
    elif sys.stdout.isatty():
        with Live(console=console(), auto_refresh=False) as screen:
            yield lambda snapshot: screen.update(_screen(snapshot), refresh=True)
    else:
        shown: dict[str, str] = {}
        yield lambda snapshot: _tell_changes(snapshot, shown)


def _screen(snapshot: Snapshot) -> Group:
    parts = [table(_COLUMNS, [_row(*line) for line in snapshot.paces]) if snapshot.paces else Text(_NOTHING)]
    return Group(*parts, *map(Text, snapshot.notes))


def _row(progress: Progress, its_pace: Pace) -> list[object]:
    submission = progress.submission
    return [
        submission.asset,
        submission.partition or None,
        submission.waves,
        _states(progress),
        _done(its_pace),
        its_pace.failed,
        None if its_pace.per_minute is None else Money(f"{its_pace.per_minute:,.1f}"),
        its_pace.age,
        _TOO_FEW_DAYS if its_pace.expected_end_at is None and its_pace.has_too_few_days else its_pace.expected_end_at,
        _TOO_FEW_DAYS if its_pace.has_too_few_days else its_pace.p90_end_at,
    ]


def _done(its_pace: Pace) -> str | None:
    return f"{its_pace.done:,} of {its_pace.total:,} ({its_pace.percent} %)" if its_pace.total else None


def _states(progress: Progress) -> str:
    if progress.submission.is_settled:
        return "all answered; the labels are not materialized yet"
    return states_cell(progress)


def _tell_changes(snapshot: Snapshot, shown: dict[str, str]) -> None:
    for progress, its_pace in snapshot.paces:
        submission = progress.submission
        moved = f"{submission.waves} {_states(progress)} {its_pace.done}"
        if shown.get(submission.submission_id) != moved:
            shown[submission.submission_id] = moved
            landing = "; the labels are not materialized yet" if submission.is_settled else ""
            click.echo(f"{cell_text(submission.place)}: {progress_text(progress, its_pace)}{landing}")
    told = "\n".join([*([] if snapshot.paces else [_NOTHING]), *snapshot.notes])
    if told and shown.get("") != told:
        click.echo(told)
    shown[""] = told


def _document(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "at": utc_now(),
        "notes": snapshot.notes,
        "conditions": [
            {
                "kind": each.kind,
                "asset": each.submission.asset,
                "partition": each.submission.partition,
                "submission_id": each.submission.submission_id,
                "shard_ids": each.shard_ids,
                "since": each.since,
                "told_after_seconds": None if each.told_after is None else each.told_after.total_seconds(),
                "reason": each.advice.problem,
                "then": each.advice.then,
            }
            for each in snapshot.conditions
        ],
        "submissions": [
            {
                "submission_id": progress.submission.submission_id,
                "asset": progress.submission.asset,
                "partition": progress.submission.partition,
                "wave": progress.submission.waves,
                "shards": progress.states,
                "settled": progress.submission.is_settled,
                "requests_done": its_pace.done,
                "requests_total": its_pace.total,
                "requests_failed": its_pace.failed,
                "requests_per_minute": its_pace.per_minute,
                "age_seconds": its_pace.age,
                "expected_end_at": its_pace.expected_end_at,
                "p90_end_at": its_pace.p90_end_at,
                "has_too_few_days": its_pace.has_too_few_days,
                "forecast_p50_end_at": progress.submission.p50_end_at,
                "forecast_p90_end_at": progress.submission.p90_end_at,
            }
            for progress, its_pace in snapshot.paces
        ],
    }
