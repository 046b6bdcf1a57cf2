"""`plan`: what would be sent, in which batches, and what it may cost. Sends nothing, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import click

from dagster_llm_batch.assets.dataset import Dataset
from dagster_llm_batch.cli.commands import Command, ExitCode, json_option, leave
from dagster_llm_batch.cli.deployment import Where, code_location_command
from dagster_llm_batch.cli.output import SHORT_ID, console, counted, dollars, money, print_json, print_table, table
from dagster_llm_batch.cli.selection import find_dataset, partitions_of, partitions_options
from dagster_llm_batch.engine.plan import Preview

__all__ = ["Planned", "plan_command", "plan_rows", "print_plan"]


@dataclass(frozen=True)
class Planned:
    """What a submission of one partition would be."""

    asset: str
    partition: str | None
    model: str
    preview: Preview

    @property
    def document(self) -> dict[str, Any]:
        """For JSON."""
        preview = self.preview
        return {
            "asset": self.asset,
            "partition": self.partition,
            "model": self.model,
            "rows": preview.rows,
            "requests": preview.requests,
            "requests_reused": preview.reused,
            "requests_to_send": preview.to_send,
            "batches": len(preview.shards),
            "request_bytes": preview.bytes,
            "input_tokens": preview.input_tokens,
            "output_tokens": preview.output_tokens,
            "estimated_usd": preview.estimated_usd,
            "realtime_usd": preview.realtime_usd,
            "price_basis": preview.price_basis,
            "submission_id": None if preview.known is None else preview.known.submission_id,
            "refused": preview.refused,
            "shards": [
                {"requests": one.requests, "bytes": one.bytes, "lane": one.lane, "estimated_usd": one.estimated_usd}
                for one in preview.shards
            ],
        }


@click.command("plan", cls=Command, short_help="What would be sent, and cost. Sends nothing.")
@click.argument("assets", metavar="[ASSET]...", nargs=-1)
@partitions_options
@code_location_command
@click.option(
    "--again", is_flag=True, help="What `retry` would send: also rows that were asked already, but have no label."
)
@json_option
def plan_command(
    where: Where,
    assets: tuple[str, ...],
    partitions: tuple[str, ...],
    partition_range: str | None,
    *,
    again: bool,
    as_json: bool,
) -> None:
    """Plan labeled assets (default: all of the code location) without sending: rows are loaded and rendered, batches
    split and priced. Nothing is sent, and nothing is left in the ledger or the payload store.

    Tokens and costs are estimates, from the length of the requests and the longest reply that is allowed.
    """
    names = assets or tuple(where.code.datasets)
    if not names:
        raise click.UsageError(f"There are no labeled assets in {where.code.pointer}.")
    wanted = []
    for name in names:
        dataset = find_dataset(where, name)
        wanted += [(dataset, one) for one in partitions_of(where, dataset, partitions, partition_range)]
    plans = plan_rows(where, wanted, again=again)
    if as_json:
        print_json({"plans": [one.document for one in plans], "estimated_usd": _total(plans)})
    else:
        print_plan(plans)
    if any(one.preview.refused for one in plans):
        leave(ExitCode.FAILED)


def plan_rows(where: Where, wanted: Sequence[tuple[Dataset, str | None]], *, again: bool) -> list[Planned]:
    """What a submission of each of these would be now."""
    planned = []
    for dataset, partition in wanted:
        with where.code.rows(dataset, partition) as rows:
            preview = where.dry_engine.preview(dataset.labeling, rows, partition=partition or "", again=again)
        planned.append(Planned(dataset.key.to_user_string(), partition, dataset.labeling.model, preview))
    return planned


def _total(plans: Sequence[Planned]) -> Decimal | None:
    costs = [one.preview.estimated_usd for one in plans]
    return (
        None if any(cost is None for cost in costs) else sum((cost for cost in costs if cost is not None), Decimal(0))
    )


def print_plan(plans: Sequence[Planned]) -> None:
    """One plan as a list of its figures, several as a table; what is refused below it."""
    if len(plans) == 1:
        console().print(table(["", ""], _facts(plans[0])))
    else:
        rows: list[list[object]] = [
            [one.asset, one.partition, *_counts(one.preview), money(one.preview.estimated_usd)] for one in plans
        ]
        whole = [sum(part) for part in zip(*(_counts(one.preview) for one in plans), strict=True)]
        columns = [
            "asset",
            "partition",
            "rows",
            "requests",
            "reused",
            "to send",
            "batches",
            "bytes",
            "~tokens in",
            "~out",
        ]
        print_table([*columns, "~USD"], [*rows, ["total", "", *whole, money(_total(plans))]])
    for one in plans:
        if one.preview.refused:
            click.echo(f"Refused: {one.preview.refused}")


def _counts(one: Preview) -> list[int]:
    return [
        *(one.rows, one.requests, one.reused, one.to_send),
        *(len(one.shards), one.bytes, one.input_tokens, one.output_tokens),
    ]


def _facts(plan: Planned) -> list[list[object]]:
    one = plan.preview
    known = None if one.known is None else f"submission {one.known.submission_id[:SHORT_ID]} ({one.known.state.value})"
    facts: list[tuple[str, object]] = [
        ("asset", plan.asset),
        ("partition", plan.partition),
        ("model", plan.model),
        ("rows", f"{one.rows:,}"),
        ("requests", f"{one.requests:,}"),
        ("of these reused", f"{one.reused:,}"),
        ("to send", f"{one.to_send:,} in {counted(len(one.shards), 'batch', 'batches')}, {one.bytes:,} bytes"),
        ("tokens", f"about {one.input_tokens:,} in, at most about {one.output_tokens:,} out"),
        ("estimate", dollars(one.estimated_usd)),
        ("in real time", dollars(one.realtime_usd)),
        ("prices", one.price_basis.value),
        ("known as", known),
    ]
    return [list(fact) for fact in facts]
