"""`list` and `show`: submissions in the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import click

from dagster_llm_batch.cli.commands import Command, json_option, say
from dagster_llm_batch.cli.completion import complete_assets, complete_partitions
from dagster_llm_batch.cli.deployment import DeploymentAccess, ledger_command
from dagster_llm_batch.cli.kept import KeptMoney, find_kept_money
from dagster_llm_batch.cli.output import (
    SHORT_ID,
    cell,
    console,
    counted,
    money,
    print_json,
    print_table,
    sparse_table,
    table,
)
from dagster_llm_batch.cli.selection import find_submission, nothing_submitted, partition_option
from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.progress import shared_text, states_cell
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.batches import count_batches
from dagster_llm_batch.storage.ledger.database import utc_now
from dagster_llm_batch.storage.ledger.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Progress, Shard, Submission, SubmissionState
from dagster_llm_batch.text import learned_text
from dagster_llm_batch.types import Lane

if TYPE_CHECKING:
    from dagster_llm_batch.core.levels import Levels
    from dagster_llm_batch.core.shares import AuditedAnswers
    from dagster_llm_batch.loop.present_waits import Wait

__all__ = ["list_command", "show_command"]


@click.command("list", cls=Command, examples=["-f labels.py", "--all --ledger home/storage/llm_batch/ledger.sqlite"])
@ledger_command
@click.option("--asset", shell_complete=complete_assets, help="Only this labeled asset.")
@click.option("-p", "--partition", shell_complete=complete_partitions, help="Only this partition.")
@click.option(
    "--state", type=click.Choice([state.value for state in SubmissionState]), help="Only submissions in this state."
)
@click.option("--all", "everything", is_flag=True, help="List all submissions, also those with materialized labels.")
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="Number of submissions.")
@json_option
def list_command(
    deployment: DeploymentAccess,
    asset: str | None,
    partition: str | None,
    state: str | None,
    limit: int,
    *,
    everything: bool,
    as_json: bool,
) -> None:
    """List submissions, newest first. Without --all, only submissions whose labels are not materialized yet."""
    ledger, namespace = deployment.ledger, deployment.namespace
    wanted_state = None if state is None else SubmissionState(state)
    listed = [
        submission
        for submission in ledger.submissions.list_all(
            namespace, state=wanted_state, assets=None if asset is None else [asset]
        )
        if (everything or submission.delivered_at is None)
        and partition in (None, submission.partition)
        and deployment.is_looked_at(submission.asset)
    ]
    newest = listed[: -limit - 1 : -1]
    progress = {at_work.submission.submission_id: at_work for at_work in ledger.submissions.progress(namespace)}
    kept = find_kept_money(deployment)
    entries = [
        _entry(submission, progress.get(submission.submission_id), kept.get(submission.submission_id))
        for submission in newest
    ]
    if as_json:
        print_json({"namespace": namespace, "found": len(listed), "submissions": entries})
        return
    now = utc_now()
    rows = [
        [
            entry["submission_id"][:SHORT_ID],
            entry["asset"],
            entry["partition"] or None,
            _state(submission),
            None if (under_way := progress.get(submission.submission_id)) is None else states_cell(under_way),
            entry["requests"],
            money(entry["cost_usd"]) or _about(entry),
            *([money(entry["kept_usd"])] if kept else []),
            now - entry["created_at"],
        ]
        for submission, entry in zip(newest, entries, strict=True)
    ]
    title = f"{len(newest)} of {len(listed)} submissions in namespace {namespace}"
    names = [
        "submission",
        "asset",
        "partition",
        "state",
        "batches",
        "requests",
        "cost",
        *(["reserved"] if kept else []),
        "age",
    ]
    print_table(names, rows, title=title)
    shown = [at_work for each in newest if (at_work := progress.get(each.submission_id)) is not None]
    if (shared := shared_text(ledger, namespace, shown)) is not None:
        say(f"{shared}.")
    if not listed:
        click.echo(_why_none(ledger, namespace, asset, everything=everything), err=True)
    # Of all submissions, also those that are not listed, because other submissions lack this money.
    for each in kept.values():
        if each.nobody is not None:
            console().print(cell(f"{each.text}. {each.then}"))


def _why_none(ledger: Ledger, namespace: str, asset: str | None, *, everything: bool) -> str:
    """Return the probable reason for an empty list: a wrong name, or a missing --all."""
    landed = "" if everything else " With --all, it also lists submissions whose labels are materialized."
    return nothing_submitted(ledger, namespace, [] if asset is None else [asset]) or f"No submission found.{landed}"


def _entry(submission: Submission, progress: Progress | None, kept: KeptMoney | None) -> dict[str, Any]:
    """Return the listed facts of a submission; its shards are known while it is under way."""
    of_kept = {
        "kept_usd": None if kept is None else kept.usd,
        "kept_since": None if kept is None else kept.since,
        "kept_in_vain": None if kept is None else kept.nobody,
        "freed_by": None if kept is None or kept.nobody is None else kept.command,
    }
    names = (
        "submission_id asset partition state attempt waves provider model rows requests reused outcomes estimated_usd "
        "p05_usd p95_usd bound_usd learned_from cost_usd realtime_usd created_at settled_at delivered_at run_id"
    )
    shards = None if progress is None else {state.value: count for state, count in progress.states.items()}
    done = submission.requests if progress is None else submission.reused + progress.done
    return {
        **{name: getattr(submission, name) for name in names.split()},
        "shards": shards,
        "requests_done": done,
        **of_kept,
    }


def _state(submission: Submission) -> str:
    return submission.state.value + (", materialized" if submission.delivered_at else "")


def _about(entry: dict[str, Any]) -> str | None:
    estimate = money(entry["estimated_usd"])
    return None if estimate is None else f"~{estimate}"


@click.command("show", cls=Command, examples=["moods -f labels.py"])
@click.argument("target", metavar="SUBMISSION|ASSET", shell_complete=complete_assets)
@partition_option
@ledger_command
@click.option(
    "--events",
    "event_count",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="Number of events, the newest.",
)
@json_option
def show_command(
    deployment: DeploymentAccess, target: str, partition: str | None, event_count: int, *, as_json: bool
) -> None:
    """Show one submission with its batches and events, by its id, a beginning of it, or its asset (the newest)."""
    ledger = deployment.ledger
    submission = find_submission(deployment, target, partition)
    shards = ledger.shards.of_submission(submission.submission_id)
    events = ledger.events.of_submission(submission.submission_id)[-event_count:] if event_count else []
    levels, audited = deployment.levels_of(submission), deployment.audited_of(submission)
    kept = find_kept_money(deployment).get(submission.submission_id)
    beside = ledger.batches.count_submissions_beside(submission.submission_id)
    waits = _find_waits(deployment, submission.submission_id)
    if as_json:
        cascade = None if levels is None else _cascade_document(levels, audited)
        audit = None if audited is None else _audit_document(audited)
        batches = {"batches": count_batches(shards), "batches_shared_with": beside}
        of = {"waits": [_wait_document(wait) for wait in waits], "shards": shards, "events": events}
        print_json({"submission": submission, "cascade": cascade, "audit": audit, **batches, **of})
        return
    out = console()
    out.print(table(["", ""], _facts(ledger, submission, levels, audited, kept, _batches_text(shards, beside))))
    if waits:
        rows: list[list[object]] = [[wait.reason.value, wait.since, *wait.advice] for wait in waits]
        out.print(sparse_table(["reason", "since (UTC)", "what", "next step"], rows, title="\nWaits"))
    if shards:
        out.print(sparse_table(_SHARD_COLUMNS, [_shard_row(shard) for shard in shards], title="\nShards"))
    if events:
        shown = [[event.at, event.shard_id, event.kind, event.to_state, event.detail] for event in events]
        out.print(sparse_table(["at (UTC)", "shard", "what", "then", "detail"], shown, title="\nEvents"))


def _find_waits(deployment: DeploymentAccess, submission_id: str) -> list[Wait]:
    """Return what a submission waits for: nothing for a ledger by its address alone, which has no limits of time."""
    if not deployment.has_payloads:
        return []
    from dagster_llm_batch.loop.present_waits import find_waits  # noqa: PLC0415 - pyarrow

    return find_waits(deployment.engine.deployment, submission_id)


def _cascade_document(levels: Levels, audited: AuditedAnswers | None) -> dict[str, Any]:
    place = None if levels.threshold is None else levels.threshold.score
    return {
        "oracle": levels.oracle,
        # With near copies, the guarantee of both
        "promise": (audited or levels).promise_text,
        "threshold": place if place is not None and isfinite(place) else None,
        "threshold_text": levels.threshold_text,
        "accepted_share": levels.accepted,
        "sample_rows": levels.calibrated_on,
        "sample_wrong": levels.wrong,
        "sample_may_be_wrong": levels.allowed,
    }


def _audit_document(audited: AuditedAnswers) -> dict[str, Any]:
    return {
        "of": audited.kind,
        "promise": audited.promise_text,
        "result": audited.result_text,
        "rows": audited.rows,
        "sample_rows": audited.sample,
        "sample_wrong": audited.wrong,
        "sample_may_be_wrong": None if audited.asks_all else audited.allowed,
        "look": audited.look,
        **audited.numbers,
    }


def _batches_text(shards: Sequence[Shard], beside: int) -> str:
    """Return the number of batches of a submission, of others that share them, and of unsent shards."""
    shared = f", shared with {counted(beside, 'other submission', 'other submissions')}" if beside else ""
    unsent = sum(shard.state is ShardState.PLANNED for shard in shards)
    waiting = f"; {counted(unsent, 'shard is', 'shards are')} not sent yet" if unsent else ""
    return f"{count_batches(shards):,}{shared}{waiting}"


def _wait_document(wait: Wait) -> dict[str, Any]:
    shards = [shard.shard_id for shard in wait.shards]
    told = {"problem": wait.advice.problem, "then": wait.advice.then}
    return {"reason": wait.reason.value, "since": wait.since, **told, "shards": shards}


def _facts(
    ledger: Ledger,
    submission: Submission,
    levels: Levels | None,
    audited: AuditedAnswers | None,
    kept: KeptMoney | None,
    batches: str,
) -> list[list[object]]:
    decided = audited or levels
    saved = (
        None
        if submission.cost_usd is None or submission.realtime_usd is None
        else submission.realtime_usd - submission.cost_usd
    )
    outcomes: Counter[str] = Counter(submission.outcomes)
    facts: list[tuple[str, object]] = [
        ("submission", submission.submission_id),
        ("asset", submission.asset),
        ("partition", submission.partition or None),
        ("state", _state(submission)),
        ("asked of", f"{submission.provider}/{submission.model}, account {hide_secrets(submission.account)}"),
        ("oracle", None if levels is None else levels.oracle),
        ("guarantee", None if decided is None else decided.promise_text),
        ("threshold", None if levels is None else levels.threshold_text),
        ("audit", None if audited is None else audited.result_text),
        ("rows", submission.rows),
        ("requests", submission.requests),
        ("answers reused", submission.reused),
        ("rounds", submission.waves),
        ("batches", batches),
        ("outcomes", ", ".join(f"{n:,} {name}" for name, n in outcomes.most_common()) or None),
        ("estimate", money(submission.estimated_usd)),
        ("19 of 20 above", money(submission.p05_usd)),
        ("19 of 20 below", money(submission.p95_usd)),
        ("at most, sent once", money(submission.bound_usd)),
        ("estimate from", learned_text(submission.learned_from)),
        ("cost", money(submission.cost_usd)),
        ("reserved, unsent", None if kept is None else _kept_text(kept)),
        ("in real time", money(submission.realtime_usd)),
        ("saved", money(saved)),
        ("prices", submission.price_basis.value if submission.price_basis else None),
        ("created (UTC)", submission.created_at),
        ("complete (UTC)", submission.settled_at),
        ("materialized (UTC)", submission.delivered_at),
        ("run", submission.run_id),
        ("reuses", ", ".join(other[:SHORT_ID] for other in submission.reused_from) or None),
        ("namespace", submission.namespace),
        ("ledger", str(ledger)),
    ]
    return [[name, str(value) if isinstance(value, int) else value] for name, value in facts]


def _kept_text(kept: KeptMoney) -> str:
    since = f"{money(kept.usd)} of the limits, since {kept.since:%Y-%m-%d %H:%M} UTC"
    return since if kept.nobody is None else f"{since}: {kept.nobody}. {kept.then}"


_SHARD_COLUMNS = [
    "shard",
    "round",
    "asked of",
    "state",
    "batch",
    "requests",
    "done",
    "failed",
    "bytes",
    "cost",
    "ended (UTC)",
    "cause",
    "reason",
]


def _shard_row(shard: Shard) -> list[object]:
    return [
        shard.shard_id,
        shard.wave,
        shard.asked_of
        + (" in real time" if shard.lane is Lane.REALTIME else "")
        + (", escalated" if shard.is_escalation else ""),
        shard.state.value,
        shard.batch.batch_id,
        *(shard.requests, shard.batch.done, shard.batch.failed, shard.bytes),
        money(shard.bill.cost_usd),
        shard.ended_at,
        None if shard.cause is None else shard.cause.value,
        shard.reason,
    ]
