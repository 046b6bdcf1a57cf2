"""`cost`: money spent, saved and wasted, by groups, and the month's forecast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from io import BytesIO

import click
from click.core import ParameterSource

from dagster_llm_batch.advice.cost_forecast import HISTORY, forecast_month, month_of, next_month
from dagster_llm_batch.advice.costs import GROUPS, CostSum, cost_table, group_names
from dagster_llm_batch.advice.focus import as_text, focus_charges
from dagster_llm_batch.cli.commands import Command, json_option
from dagster_llm_batch.cli.completion import complete_assets
from dagster_llm_batch.cli.deployment import DeploymentAccess, ledger_command
from dagster_llm_batch.cli.output import Money, console, counted, money, print_json, table
from dagster_llm_batch.cli.selection import nothing_submitted
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.exports.tables import write_csv
from dagster_llm_batch.storage.ledger.database import utc_now
from dagster_llm_batch.storage.ledger.records import ShardCost

__all__ = ["cost_command"]

_DATE = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])

_Column = tuple[str, Callable[[CostSum], object]]

_SPENT: Sequence[_Column] = [
    ("requests", lambda part: part.requests),
    ("cost", lambda part: _at_least(part.cost_usd, part.requests_unknown)),
    ("vendor says", lambda part: money(part.reported_usd)),
    ("of", lambda part: money(part.reported_of_usd)),
    ("in real time", lambda part: money(part.realtime_usd)),
    ("saved", lambda part: money(part.saved_usd)),
    ("under way ~cost", lambda part: _at_least(part.open_usd or None, part.open_unknown)),
    ("unknown", lambda part: part.requests_unknown + part.open_unknown),
]
_TOKENS: Sequence[_Column] = [
    ("tokens in", lambda part: part.input_tokens),
    ("cached", lambda part: part.cached_tokens),
    ("out", lambda part: part.output_tokens),
    ("escalated", lambda part: part.requests_escalated),
    ("sent again", lambda part: part.requests_again),
    ("wasted", lambda part: money(part.wasted_usd)),
    ("invalid", lambda part: money(part.invalid_usd)),
    ("retries", lambda part: money(part.retries_usd)),
    ("padding", lambda part: money(part.padding_usd or None)),
    ("lost ~cost", lambda part: money(part.lost_usd or None)),
]
# Omitted if they are empty in all groups.
_RARE = (
    "vendor says",
    "of",
    "under way ~cost",
    "unknown",
    "cached",
    "escalated",
    "sent again",
    "padding",
    "lost ~cost",
)


@click.command("cost", cls=Command, examples=["-f labels.py", "--by model,day --since 2026-11-01 -f labels.py"])
@ledger_command
@click.option(
    "--by",
    default="asset",
    show_default=True,
    help=f"Groups, separated by commas: {', '.join(GROUPS)}, tag:NAME. A day is the day of sending, in UTC.",
)
@click.option("--asset", multiple=True, shell_complete=complete_assets, help="Only this labeled asset, repeatable.")
@click.option("--since", type=_DATE, help="Only requests sent from this time on, UTC.")
@click.option("--until", type=_DATE, help="Only requests sent before this time, UTC.")
@click.option("--month", type=click.DateTime(["%Y-%m"]), help="Only requests sent in this month, with its forecast.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "focus"]),
    default="table",
    show_default=True,
    help="focus: a CSV of FOCUS 1.0, one charge for each collected batch, to import into a tool for cloud costs.",
)
@json_option
def cost_command(
    deployment: DeploymentAccess,
    by: str,
    asset: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    month: datetime | None,
    form: str,
    *,
    as_json: bool,
) -> None:
    """Show the cost of requests in US dollars, from the usage in their results, and the month's forecast.

    Requests that are not collected yet are in a column of their own, with their estimate. An unknown cost is never
    zero: its requests count as unknown, and the amount beside them is marked "at least". The command reads the
    ledger alone.
    """
    if month is not None and (since is not None or until is not None):
        raise click.UsageError("Give either --month or --since and --until, not both.")
    has_by = click.get_current_context().get_parameter_source("by") is not ParameterSource.DEFAULT
    if form == "focus" and (as_json or has_by):
        raise click.UsageError("--format focus writes a CSV with a row for each batch. Leave out --by and --json.")
    try:
        names = group_names([name.strip() for name in by.split(",") if name.strip()])
    except ConfigError as error:
        raise click.UsageError(f"--by: {error}") from None
    now = utc_now()
    this = month_of(now.date() if month is None else month.date())
    if month is not None:
        since, until = _midnight(this), _midnight(next_month(this))

    def costs_of(since: datetime | None, until: datetime | None = None) -> list[ShardCost]:
        costs = deployment.ledger.money.shard_costs(
            deployment.namespace, assets=asset or None, since=since, until=until
        )
        return [cost for cost in costs if deployment.is_looked_at(cost.asset)]

    if form == "focus":
        _print_focus(costs_of(_utc(since), _utc(until)), deployment)
        return
    summed = cost_table(costs_of(_utc(since), _utc(until)), names)
    recent = costs_of(min(_midnight(this), _midnight(now.date()) - HISTORY))
    forecast = forecast_month(recent, this, now)
    if as_json:
        told = {"by": names, "groups": summed.as_dicts(), "total": summed.total.as_dict(), "forecast": forecast}
        print_json({"namespace": deployment.namespace, **told})
        return
    groups = [*summed.groups.items()]
    if len(groups) != 1:
        groups.append((("total", *[""] * (len(names) - 1))[: len(names)], summed.total))
    out = console()
    for columns, title in ((_SPENT, f"Costs in namespace {deployment.namespace}"), (_TOKENS, "Tokens and waste")):
        shown = [column for column in columns if column[0] not in _RARE or any(column[1](part) for _, part in groups)]
        rows = [[*(name or None for name in key), *(tell(part) for _, tell in shown)] for key, part in groups]
        out.print(table([*names, *(name for name, _ in shown)], rows, title=title))
        out.print()
    out.print(f"{this:%Y-%m}: {forecast}.")
    if why_none := nothing_submitted(deployment.ledger, deployment.namespace, asset):
        click.echo(why_none, err=True)


def _print_focus(costs: Sequence[ShardCost], deployment: DeploymentAccess) -> None:
    tiers = deployment.ledger.money.tier_bills(deployment.namespace)
    charges, unknown = focus_charges(costs, deployment.namespace, tiers)
    write_csv(as_text(charges), written := BytesIO())
    click.echo(written.getvalue(), nl=False)
    if unknown:
        text = (
            f"{counted(unknown, 'request is', 'requests are')} in no row: the cost is unknown. See `cost --by model`."
        )
        click.echo(text, err=True)


def _at_least(amount: Decimal | None, unknown: int) -> Money | None:
    told = money(amount)
    return Money(f"at least {told}") if told is not None and unknown else told


def _utc(at: datetime | None) -> datetime | None:
    return None if at is None else at.replace(tzinfo=UTC)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
