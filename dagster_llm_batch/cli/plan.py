"""`plan`: preview requests, batches and cost. Sends nothing, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import click

from dagster_llm_batch.advice.end_forecast import EndHistory, EndScore, end_text
from dagster_llm_batch.assets.dataset import Dataset
from dagster_llm_batch.cli.commands import Command, ExitCode, json_option, leave, say
from dagster_llm_batch.cli.completion import complete_assets
from dagster_llm_batch.cli.deployment import DeploymentAccess, code_location_command
from dagster_llm_batch.cli.later_steps import LaterStep, LaterSteps, sum_steps
from dagster_llm_batch.cli.output import SHORT_ID, console, counted, money, print_json, print_table, table
from dagster_llm_batch.cli.selection import find_dataset, partitions_of, partitions_options
from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.core.durations import EndForecast
from dagster_llm_batch.errors import ConfigError, InputError, NoRowsError
from dagster_llm_batch.files.request_writer import LongRow
from dagster_llm_batch.loop.preview import Preview, parameter_warnings
from dagster_llm_batch.loop.provider_facts import window_of
from dagster_llm_batch.loop.status import retry_command
from dagster_llm_batch.text import age_text, cell_text, learned_text
from dagster_llm_batch.types import Lane

__all__ = ["Planned", "plan_command", "plan_rows", "print_plan"]


_LONGEST_SHOWN = 3
# The place of the batches among `_counts`.
_BATCHES_AT = 4
# More plans are one line for each asset, and of more lines below them, so many are printed.
_LISTED = 20
_NOTES = 5
_NOT_YET = NoRowsError.__name__
# Other facts that are not known have no line: no partitions, nothing tuned, nothing submitted before.
_TOLD_WHEN_UNKNOWN = ("estimate", "19 of 20 below", "in real time")


@dataclass(frozen=True)
class Planned:
    """Preview of the submission of one partition.

    `account`: the provider's, or its address; `oracle_account`: that of a cascade's oracle. `price_gap`: why no price
    is known. `window`: how long a batch may take, by its vendor. `held`: how often forecasts of the end were right.
    `notes`: what was read upstream, where that is not plain, and models on whose price two tables differ. `warnings`:
    parameters that may be refused. `later`: the datasets that read the labels.
    """

    asset: str
    partition: str | None
    model: str
    account: str
    price_gap: str | None
    preview: Preview
    window: timedelta
    held: EndScore
    notes: Sequence[str] = ()
    oracle_account: str | None = None
    warnings: Sequence[str] = ()
    later: Sequence[LaterStep] = ()

    @property
    def sent_to(self) -> list[tuple[str, str]]:
        """Each model that is asked, with the account that it is asked in."""
        preview, own = self.preview, (self.model, self.account)
        if preview.oracle is None:
            return [own]
        oracles = (preview.oracle.model, self.oracle_account or self.account)
        return [oracles] if preview.levels is not None and preview.levels.asks_oracle_alone else [own, oracles]

    @property
    def document(self) -> dict[str, Any]:
        """For JSON."""
        preview, learned = self.preview, self.preview.learned
        return {
            "asset": self.asset,
            "partition": self.partition,
            "model": self.model,
            "account": self.account,
            "rows": preview.rows,
            "rows_empty": preview.skipped,
            "rows_unreadable": preview.unreadable.rows,
            "rows_erased": preview.erased_rows,
            "requests": preview.requests,
            "requests_reused": preview.reused,
            "requests_to_send": preview.to_send,
            "batches": _count_batches(preview),
            "request_bytes": preview.bytes,
            "documents": preview.documents,
            "documents_to_upload": preview.uploads,
            "document_bytes_to_upload": preview.upload_bytes,
            "documents_to_upload_later": [each._asdict() for each in preview.later_uploads],
            "input_tokens": preview.input_tokens,
            "output_tokens": preview.output_tokens,
            "input_tokens_at_most": preview.input_bound,
            "output_tokens_at_most": preview.output_bound,
            "estimated_usd": preview.estimated_usd,
            "p05_usd": preview.p05_usd,
            "p95_usd": preview.p95_usd,
            "bound_usd": preview.bound_usd,
            "realtime_usd": preview.realtime_usd,
            "flex_usd": preview.flex_usd,
            "price_basis": preview.price_basis,
            "estimate_basis": _basis(preview),
            "learned_from": None if learned is None else learned.complete,
            "estimates_judged": 0 if learned is None else learned.judged,
            "estimates_held": 0 if learned is None else learned.held,
            **self._end,
            "submission_id": None if preview.known is None else preview.known.submission_id,
            "requests_lost": preview.lost,
            "refused": preview.refused,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "longest": [{"key": row.key, "input_tokens": row.tokens} for row in preview.longest],
            "context_tokens": preview.context_tokens,
            "queue_rounds": preview.rounds,
            "limit_steps": preview.steps,
            "limit_steps_seconds_at_most": _seconds(self.steps_within),
            "tuning": preview.tuning,
            "cascade": None if preview.levels is None else preview.levels.plan_text,
            "oracle": None if preview.oracle is None else {**asdict(preview.oracle), "account": self.oracle_account},
            **_promise(preview),
            "missing_gold": list(preview.missing_gold),
            "later": [step.document for step in self.later],
            "shards": [
                {
                    "requests": shard.requests,
                    "bytes": shard.bytes,
                    "lane": shard.lane,
                    "estimated_usd": shard.bill.estimated_usd,
                }
                for shard in preview.shards
            ],
        }

    @property
    def steps_within(self) -> timedelta | None:
        """Longest time of all steps that limits of money require; None if they do not allow all of it."""
        return None if self.preview.steps is None else self.preview.steps * self.window

    @property
    def _end(self) -> dict[str, Any]:
        end, held = self.preview.end or EndForecast(), self.held
        return {
            "end_p50_seconds": _seconds(end.p50),
            "end_p90_seconds": _seconds(end.p90),
            "end_basis": end.basis,
            "end_learned_from": end.ended,
            "end_running": end.running,
            "window_seconds": _seconds(self.window),
            "end_forecasts_judged": held.judged_p90,
            "end_forecasts_held": held.held_p90,
            "end_forecasts_judged_p50": held.judged_p50,
            "end_forecasts_held_p50": held.held_p50,
        }

    @property
    def end_text(self) -> str | None:
        """The expected end, in words; None if nothing would be sent."""
        if not self.preview.shards:
            return None
        judged = f"; of earlier forecasts {self.held}" if self.held.judged_p90 else ""
        return end_text(self.preview.end or EndForecast(), self.window) + judged


def _seconds(took: timedelta | None) -> float | None:
    return None if took is None else took.total_seconds()


@click.command("plan", cls=Command, examples=["-f labels.py", "moods --partition 2026-11-27 -f labels.py"])
@click.argument("assets", metavar="[ASSET]...", nargs=-1, shell_complete=complete_assets)
@partitions_options
@code_location_command
@click.option("--again", is_flag=True, help="Plan what `retry` would send: the rows without a label, asked again.")
@click.option(
    "--all", "everything", is_flag=True, help=f"List each partition, also where there are more than {_LISTED}."
)
@json_option
def plan_command(
    deployment: DeploymentAccess,
    assets: tuple[str, ...],
    partitions: tuple[str, ...],
    partition_range: str | None,
    *,
    again: bool,
    everything: bool,
    as_json: bool,
) -> None:
    """Preview the requests and cost of labeled assets without sending anything. Default: all labeled assets.

    The command loads and renders the rows, splits them into batches, and prices them. It leaves nothing in the ledger
    or the payload store. It shows the expected tokens and cost, the cost that 19 of 20 submissions stay below, and the
    maximum. With many partitions it shows one line for each asset; --all lists them.

    If rows are not materialized yet, the command plans the other assets and ends with exit code 4. Materialize the
    rows, and run it again.
    """
    names = assets or tuple(deployment.code.datasets)
    if not names:
        of = "" if (key := deployment.code.resource_key) is None else f" of the resource '{key}'"
        raise click.UsageError(f"There are no labeled assets{of} in {deployment.code.pointer}.")
    wanted = []
    for name in names:
        dataset = find_dataset(deployment, name)
        wanted += [
            (dataset, partition) for partition in partitions_of(deployment, dataset, partitions, partition_range)
        ]
    plans, failures = _plan_each(deployment, wanted, again=again)
    if as_json:
        print_json(
            {"plans": [plan.document for plan in plans], "estimated_usd": _total(plans), "not_planned": failures}
        )
    else:
        if plans:
            print_plan(plans, everything=everything)
        lines = []
        for failure in failures:
            place = cell_text(" ".join(filter(None, [failure["asset"], failure["partition"]])))
            told = "its rows are not there yet: " if failure["error"] == _NOT_YET else ""
            lines.append(f"Not planned: {place}: {told}{failure['message']}")
        _echo_some(lines, everything=everything)
    if any(failure["error"] != _NOT_YET for failure in failures) or any(plan.preview.refused for plan in plans):
        leave(ExitCode.FAILED)
    if failures:
        leave(ExitCode.LATER)


def _plan_each(
    deployment: DeploymentAccess, wanted: Sequence[tuple[Dataset, str | None]], *, again: bool
) -> tuple[list[Planned], list[dict[str, str | None]]]:
    """Return the plans, and the reasons for datasets that cannot be planned.

    Raises the error where nothing else is wanted.
    """
    # The deployment itself has to work, for all of them.
    _ = deployment.dry_engine
    plans: list[Planned] = []
    failures: list[dict[str, str | None]] = []
    for dataset, partition in wanted:
        try:
            plans += plan_rows(deployment, [(dataset, partition)], again=again)
        except Exception as error:
            is_not_yet = isinstance(error, NoRowsError)
            if (len(wanted) == 1 and not is_not_yet) or isinstance(error, click.ClickException):
                raise
            told = {"error": type(error).__name__, "message": str(error)}
            failures.append({"asset": dataset.name, "partition": partition, **told})
    return plans, failures


def plan_rows(
    deployment: DeploymentAccess,
    wanted: Sequence[tuple[Dataset, str | None]],
    *,
    again: bool,
) -> list[Planned]:
    """Return a preview of the submission of each of these. Raises NoRowsError without materialized rows."""
    planned = []
    rules, later = deployment.dry_engine.deployment, LaterSteps(deployment)
    for dataset, partition in wanted:
        labeling = dataset.labeling
        # Reads no row.
        deployment.dry_engine.check(labeling)
        unfit = _unfit(deployment, dataset, partition)
        with deployment.code.rows(dataset, partition) as (rows, upstream):
            with_gold = dataset.with_gold(upstream)
            preview = deployment.dry_engine.preview(with_gold, rows, partition=partition or "", again=again)
        provider, *oracles = (rules.provider(one.provider) for one in labeling.models)
        planned.append(
            Planned(
                asset=dataset.name,
                partition=partition,
                model=labeling.model,
                account=hide_secrets(provider.account),
                price_gap=rules.price_gap(labeling),
                preview=preview if unfit is None else replace(preview, refused=unfit),
                window=window_of(provider),
                held=EndHistory(rules.ledger, rules.namespace, rules.clock()).score(labeling.asset),
                notes=[*upstream.notes, *filter(None, map(rules.price_dispute, labeling.models))],
                oracle_account=hide_secrets(oracles[0].account) if oracles and labeling.cascade is not None else None,
                warnings=[
                    f"{one.model}: {warning}" for one in labeling.models for warning in parameter_warnings(rules, one)
                ],
                later=later.after(dataset, preview.rows - preview.skipped - preview.unreadable.rows),
            )
        )
    return planned


def _unfit(deployment: DeploymentAccess, dataset: Dataset, partition: str | None) -> str | None:
    """Return why the IO manager of the labels cannot store a partition; None where it can."""
    try:
        deployment.code.check_sink(dataset, partition)
    except (ConfigError, InputError) as error:
        return str(error)
    return None


def _total(plans: Sequence[Planned]) -> Decimal | None:
    costs = [plan.preview.estimated_usd for plan in plans]
    return (
        None if any(cost is None for cost in costs) else sum((cost for cost in costs if cost is not None), Decimal(0))
    )


def print_plan(plans: Sequence[Planned], *, everything: bool = False) -> None:
    """Print one plan as a list of facts, several as a table, and many as one line for each asset unless `everything`.

    Notes, warnings and refusals follow below.
    """
    if len(plans) == 1:
        console().print(table(["", ""], _facts(plans[0])))
    else:
        rows = [_line([plan], plan.partition) for plan in plans]
        if len(plans) > _LISTED and not everything:
            rows = []
            for asset in dict.fromkeys(plan.asset for plan in plans):
                own = [plan for plan in plans if plan.asset == asset]
                rows.append(_line(own, counted(len(own), "partition", "partitions")))
        whole: list[object] = [sum(part) for part in zip(*(_counts(plan.preview) for plan in plans), strict=True)]
        if _may_share(plans):
            whole[_BATCHES_AT] = f"up to {whole[_BATCHES_AT]:,}"
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
        total = ["total", "", *whole, money(_total(plans))]
        # The only row is the total already, but for batches that partitions may share.
        shown = [*rows, total] if len(rows) > 1 else [[*rows[0][:2], *total[2:]]]
        print_table([*columns, "~cost"], shown)
        asked = [one for plan in plans for one in plan.sent_to]
        accounts = sorted({f"{model.partition('/')[0]} {account}" for model, account in asked})
        say(f"Sent to: {', '.join(map(cell_text, accounts))}.")
        if _may_share(plans):
            say("Partitions of one asset that are sent in one run can share batches, so there may be fewer.")
    lines, refused = [], []
    for plan in plans:
        where = "" if len(plans) == 1 else f"{cell_text(' '.join(filter(None, [plan.asset, plan.partition])))}: "
        lines += [where + text for text in (*plan.notes, *_warnings(plan))]
        refused += [f"Refused: {plan.preview.refused}"] if plan.preview.refused else []
    _echo_some(lines, everything=everything)
    later = sum_steps([(plan.asset, step) for plan in plans for step in plan.later])
    _echo_some([str(step) for step in later], everything=everything)
    _echo_some(refused, everything=everything)
    if len(plans) > _LISTED and not everything:
        say("List each partition with --all.")


def _line(plans: Sequence[Planned], partition: str | None) -> list[object]:
    """Return the row of a table for one plan, or for several together."""
    counts = [sum(part) for part in zip(*(_counts(plan.preview) for plan in plans), strict=True)]
    return [plans[0].asset, partition, *counts, money(_total(plans))]


def _echo_some(lines: Sequence[str], *, everything: bool) -> None:
    """Print lines; of many the first, and how many there are more."""
    shown = lines if everything or len(lines) <= _LISTED else lines[:_NOTES]
    for line in shown:
        say(line)
    if len(shown) < len(lines):
        say(f"There are {len(lines) - len(shown):,} more lines like these: --all.")


def _warnings(plan: Planned) -> Iterator[str]:
    """Yield warnings that matter before the rows are sent."""
    preview = plan.preview
    yield from plan.warnings
    if plan.price_gap is not None:
        yield f"The cost is unknown. {plan.price_gap} Correct the model's name, or give Spend(price=TokenPrice(...))."
    if preview.skipped:
        verb = "is" if preview.skipped == 1 else "are"
        yield f"{preview.skipped:,} of {counted(preview.rows, 'row', 'rows')} {verb} empty and {verb} not sent."
    if preview.unreadable.rows:
        count, verb = preview.unreadable.rows, "has" if preview.unreadable.rows == 1 else "have"
        yield (
            f"{count:,} of {counted(preview.rows, 'row', 'rows')} {verb} a file that cannot be read or sent, and "
            f"will be {'a reject' if count == 1 else 'rejects'}. The first: {cell_text(preview.unreadable.reason)}."
        )
    if preview.erased_rows:
        yield (
            f"{counted(preview.erased_rows, 'more row was', 'more rows were')} erased, and left out: "
            "`dagster-llm-batch erase --undo` lets them be asked again."
        )
    if preview.levels is not None:
        # With near copies, the guarantee of both is below.
        stated = "" if preview.shares is not None else f" {preview.levels.promise_text}"
        yield f"The cascade {preview.levels.plan_text}.{stated}"
    if (shares := preview.shares) is not None:
        held = "" if preview.held_usd is None or not len(shares.held) else f", {money(preview.held_usd)}"
        kind = "relabel" if shares.leads_elsewhere else "near"
        yield f"Reuse({kind}=…) {shares.plan_text}{held}. {shares.promise_text}"
    limit = preview.queue_limit
    if limit is not None and preview.rounds > 1:
        yield (
            f"{str(limit).capitalize()} lets these {_count_batches(preview):,} batches into the queue in "
            f"{preview.rounds:,} rounds, each when batches of the one before have ended. "
            f"{_within(plan, preview.rounds)}"
        )
    if preview.steps is None and preview.refused is None and plan.price_gap is None:
        yield (
            "Not all of it is sent within the limits of money, if it costs what is expected: before the end, less is "
            "left of them than a batch can cost at most. Raise them, or give params a maximum of output tokens, or a "
            "lower one."
        )
    elif preview.steps is not None and preview.steps > 1:
        yield (
            f"It can cost more than the limits of money allow at most, so it goes in about {preview.steps:,} steps, "
            f"each when those before are billed. {_within(plan, preview.steps)}"
        )
    most = None if limit is None else limit.max_tokens
    if most is not None and (alone := [row for row in preview.longest if row.tokens > most]):
        yield (
            f"Alone over {limit}: the rows {_keys(alone)}. Each goes by itself, and the provider may never take it. "
            "Shorten them, leave them out, or correct the limit."
        )
    context = preview.context_tokens
    if context is not None and (over := [row for row in preview.longest if row.tokens > context]):
        yield (
            f"Too long for the model, which takes {context:,} tokens with its reply: the rows {_keys(over)}. They will "
            "be refused, or cut. Shorten them, as by {{ text[:20000] }} in the prompt, or leave them out."
        )


def _within(plan: Planned, times: int) -> str:
    """Return how long so many batches, one after the other, take at most."""
    return (
        f"A batch may take {age_text(plan.window)}, the vendor's window, so all of it may take up to "
        f"{_days(times * plan.window)}."
    )


def _days(span: timedelta) -> str:
    return age_text(span) if span < timedelta(days=2) else f"{span / timedelta(days=1):.3g} days"


def _keys(rows: Sequence[LongRow]) -> str:
    return ", ".join(f"{cell_text(row.key, limit=60)!r} (about {row.tokens:,} tokens)" for row in rows)


def _counts(preview: Preview) -> list[int]:
    return [
        *(preview.rows, preview.requests, preview.reused, preview.to_send),
        *(_count_batches(preview), preview.bytes, preview.input_tokens, preview.output_tokens),
    ]


def _count_batches(preview: Preview) -> int:
    """Return how many batches carry the shards of one submission. Those of other partitions may be in them, too."""
    return sum(shard.lane is Lane.BATCH for shard in preview.shards)


def _lanes_text(preview: Preview) -> str:
    """Return in how many batches, and whether in real time, the requests go."""
    batches = _count_batches(preview)
    lanes = [counted(batches, "batch", "batches")] if batches or not preview.shards else []
    return " and in ".join([*lanes, *(["real time"] if batches < len(preview.shards) else [])])


def _may_share(plans: Sequence[Planned]) -> bool:
    """Return whether some of these submissions may share a batch: partitions of one asset that one run sends."""
    with_batches = [plan.asset for plan in plans if _count_batches(plan.preview)]
    return len(set(with_batches)) < len(with_batches)


def _most(tokens: int | None) -> str:
    return "unknown" if tokens is None else f"{tokens:,}"


def _promise(preview: Preview) -> dict[str, Any]:
    """Return the guarantee of a cascade or of an audit, and what these save."""
    decided, shares = preview.shares or preview.levels, preview.shares
    is_relabel = shares is not None and shares.leads_elsewhere
    near, older = (None, shares) if is_relabel else (shares, None)
    return {
        "promise": None if decided is None else decided.promise_text,
        "near": None if near is None else near.plan_text,
        "near_copies": None if near is None else near.rows,
        "relabel": None if older is None else older.plan_text,
        "older_labels": None if older is None else older.rows,
        "sampled_labels": None if older is None else older.sample,
        "requests_held": None if shares is None else len(shares.held),
        "held_usd": preview.held_usd,
    }


def _basis(preview: Preview) -> str:
    """Return the basis of the estimate, and how often earlier ones were right."""
    learned = preview.learned
    if learned is None:
        tokenizer = ", input by the model's tokenizer" if preview.has_tokenizer else ""
        return learned_text(None, preview.output_basis) + tokenizer
    if learned.complete is None:
        others = f"input {learned_text(learned.submissions)} that asked otherwise"
        return f"{learned_text(None, preview.output_basis)}, {others}"
    judged = f"; {learned.held} of {learned.judged} such intervals held" if learned.judged else ""
    return learned_text(learned.complete) + judged


def _oracle_facts(plan: Planned) -> list[tuple[str, object]]:
    """Return facts about the oracle of a cascade; nothing if it is the only model."""
    oracle = plan.preview.oracle
    if oracle is None or len(plan.sent_to) == 1:
        return []
    at_once, later, kept, most = (
        money(usd) or _most(None)
        for usd in (oracle.estimated_usd, oracle.later_usd, oracle.reserved_usd, oracle.later_bound_usd)
    )
    tokens = f"about {oracle.input_tokens:,} tokens in, {oracle.output_tokens:,} out"
    rest = f"about {oracle.later:,} of {counted(oracle.later_most, 'request', 'requests')}"
    return [
        ("oracle, at once", f"{counted(oracle.requests, 'request', 'requests')}, {tokens}, {at_once}"),
        ("oracle, later", f"{rest}, {later}; reserved for all of them: {kept}; at most {most}"),
    ]


def _lost(plan: Planned) -> str | None:
    """Return the number of requests to send and pay again, and the command for it."""
    preview = plan.preview
    if preview.known is None or not preview.lost:
        return None
    return (
        f"{counted(preview.lost, 'request', 'requests')}, here and at the provider; they are not paid again by "
        f"themselves: `{retry_command(preview.known)}` asks them again, and shows the price first"
    )


def _uploads_text(preview: Preview) -> str | None:
    """Return the count and the price of uploads, in words; None if requests name no uploaded documents."""
    if not preview.documents:
        return None
    later = [f"at most {one.documents:,}, {one.bytes:,} bytes, at {one.provider}" for one in preview.later_uploads]
    own = f"{preview.uploads:,} of {preview.documents:,}, {preview.upload_bytes:,} bytes"
    return "; ".join([own, *later, "uploads are not billed"])


def _facts(plan: Planned) -> list[list[object]]:
    preview = plan.preview
    known = (
        None
        if preview.known is None
        else f"submission {preview.known.submission_id[:SHORT_ID]} ({preview.known.state.value})"
    )
    tokens = "tokens" if len(plan.sent_to) == 1 else "model's tokens"
    facts: list[tuple[str, object]] = [
        ("asset", plan.asset),
        ("partition", plan.partition),
        ("model", " and ".join(model for model, _ in plan.sent_to)),
        ("sent to", ", ".join(dict.fromkeys(account for _, account in plan.sent_to))),
        ("rows", f"{preview.rows:,}"),
        ("of these empty", f"{preview.skipped:,}"),
        (
            "of these without a file",
            f"{preview.unreadable.rows:,}" if preview.unreadable.rows else None,
        ),
        ("requests", f"{preview.requests:,}"),
        ("of these reused", f"{preview.reused:,}"),
        (
            "to send",
            f"{preview.to_send:,} in {_lanes_text(preview)}, {preview.bytes:,} bytes",
        ),
        ("documents to upload", _uploads_text(preview)),
        (tokens, f"about {preview.input_tokens:,} in, {preview.output_tokens:,} out"),
        (f"{tokens}, at most", f"{_most(preview.input_bound)} in, {_most(preview.output_bound)} out"),
        *_oracle_facts(plan),
        ("longest rows", _keys(preview.longest[:_LONGEST_SHOWN]) or None),
        ("estimate", money(preview.estimated_usd)),
        ("19 of 20 above", money(preview.p05_usd)),
        ("19 of 20 below", money(preview.p95_usd)),
        ("at most, sent once", money(preview.bound_usd) or _most(None)),
        ("estimate from", _basis(preview)),
        ("ends", plan.end_text),
        ("tuned", None if preview.tuning is None else "; ".join(preview.tuning["evidence"])),
        ("in real time", money(preview.realtime_usd)),
        ("in the tier flex", money(preview.flex_usd)),
        ("prices", preview.price_basis.value),
        ("known as", known),
        ("answers lost", _lost(plan)),
    ]
    return [
        [name, "unknown" if value is None else value]
        for name, value in facts
        if value is not None or name in _TOLD_WHEN_UNKNOWN
    ]
