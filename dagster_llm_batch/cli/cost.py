"""`cost`: what was spent, and saved against real time, summed as one likes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

import click

from dagster_llm_batch.cli.commands import Command, json_option
from dagster_llm_batch.cli.deployment import DeploymentAccess, ledger_command
from dagster_llm_batch.cli.output import Money, money, print_json, print_table
from dagster_llm_batch.storage.ledger.records import Submission

__all__ = ["cost_command"]

_GROUPS: dict[str, Callable[[Submission], str]] = {
    "asset": lambda submission: submission.asset,
    "partition": lambda submission: submission.partition,
    "provider": lambda submission: submission.provider,
    "model": lambda submission: f"{submission.provider}/{submission.model}",
    "day": lambda submission: submission.created_at.strftime("%Y-%m-%d"),
    "month": lambda submission: submission.created_at.strftime("%Y-%m"),
}
_DATE = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@dataclass
class _Sum:
    """Money of some submissions. Those of unknown cost are counted, and in no amount: it is at least so much then.

    None is what is not known of any settled one. `known` counts the settled ones whose cost is.
    """

    submissions: int = 0
    requests: int = 0
    cost_usd: Decimal | None = field(default_factory=Decimal)
    realtime_usd: Decimal | None = field(default_factory=Decimal)
    saved_usd: Decimal | None = field(default_factory=Decimal)
    open_estimate_usd: Decimal = field(default_factory=Decimal)
    known: int = 0
    unknown: int = 0

    def add(self, submission: Submission) -> None:
        self.submissions += 1
        self.requests += submission.requests - submission.reused
        if not submission.is_settled:
            if submission.estimated_usd is None:
                self.unknown += 1
            else:
                self.open_estimate_usd += submission.estimated_usd
        elif submission.cost_usd is None:
            if not self.known:
                self.cost_usd = self.realtime_usd = self.saved_usd = None
            self.unknown += 1
        else:
            self.known += 1
            self.cost_usd = (self.cost_usd or 0) + submission.cost_usd
            if submission.realtime_usd is not None:
                self.realtime_usd = (self.realtime_usd or 0) + submission.realtime_usd
                self.saved_usd = (self.saved_usd or 0) + submission.realtime_usd - submission.cost_usd


@click.command("cost", cls=Command, short_help="Money spent, and saved against real time.")
@ledger_command
@click.option(
    "--by",
    default="asset",
    show_default=True,
    help=f"What to sum by, several with commas: {', '.join(_GROUPS)}. Days are those of the submission, in UTC.",
)
@click.option("--asset", help="Of this labeled asset only.")
@click.option("--since", type=_DATE, help="Submitted from then on, UTC.")
@click.option("--until", type=_DATE, help="Submitted before then, UTC.")
@json_option
def cost_command(
    deployment: DeploymentAccess,
    by: str,
    asset: str | None,
    since: datetime | None,
    until: datetime | None,
    *,
    as_json: bool,
) -> None:
    """Sum what submissions cost, in US dollars, from the usage in their results.

    Those that are not settled count with their estimate, in a column of its own. An unknown cost is never zero: such
    submissions are counted as unknown, and what stands beside them is at least so much.
    """
    names = [name.strip() for name in by.split(",") if name.strip()]
    if unknown := [name for name in names if name not in _GROUPS]:
        raise click.UsageError(f"--by {unknown[0]!r} is none of {', '.join(_GROUPS)}.")
    groups, total = _summed(_between(deployment.ledger.submissions(deployment.namespace), asset, since, until), names)
    if as_json:
        parts = [{**dict(zip(names, key, strict=True)), **vars(group)} for key, group in groups.items()]
        print_json({"namespace": deployment.namespace, "by": names, "groups": parts, "total": total})
        return
    columns = [*names, "submissions", "requests", "cost", "in real time", "saved", "under way ~cost", "unknown"]
    rows: list[list[object]] = [[*(part or None for part in key), *_row(group)] for key, group in groups.items()]
    if len(rows) != 1:
        rows.append([*(["total"] + [""] * (len(names) - 1))[: len(names)], *_row(total)])
    print_table(columns, rows, title=f"Costs in namespace {deployment.namespace}")


def _between(
    submissions: Sequence[Submission], asset: str | None, since: datetime | None, until: datetime | None
) -> list[Submission]:
    first = None if since is None else since.replace(tzinfo=UTC)
    last = None if until is None else until.replace(tzinfo=UTC)
    return [
        submission
        for submission in submissions
        if asset in (None, submission.asset)
        and (first is None or submission.created_at >= first)
        and (last is None or submission.created_at < last)
    ]


def _summed(submissions: Sequence[Submission], names: Sequence[str]) -> tuple[dict[tuple[str, ...], _Sum], _Sum]:
    groups: dict[tuple[str, ...], _Sum] = {}
    total = _Sum()
    for submission in submissions:
        key = tuple(_GROUPS[name](submission) for name in names)
        groups.setdefault(key, _Sum()).add(submission)
        total.add(submission)
    return dict(sorted(groups.items())), total


def _row(sum_: _Sum) -> list[object]:
    cost = money(sum_.cost_usd)
    if cost is not None and sum_.unknown:
        cost = Money(f"at least {cost}")
    amounts = (sum_.realtime_usd, sum_.saved_usd, sum_.open_estimate_usd)
    return [sum_.submissions, sum_.requests, cost, *(money(amount) for amount in amounts), sum_.unknown]
