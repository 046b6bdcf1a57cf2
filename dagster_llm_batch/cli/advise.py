"""`advise`: which model, cascade, lane and sample reach a quality by a time and for an amount, by earlier data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from math import inf, isfinite
from typing import Any

import click
import yaml  # type: ignore[import-untyped]
from rich.text import Text

from dagster_llm_batch.advice.choice import Chooser
from dagster_llm_batch.advice.labeling_plan import GOLD, LabelingPlan, Quality, Wanted
from dagster_llm_batch.cli.choice import Case
from dagster_llm_batch.cli.commands import Command, ExitCode, json_option, leave
from dagster_llm_batch.cli.completion import complete_assets
from dagster_llm_batch.cli.deployment import DeploymentAccess, code_location_command
from dagster_llm_batch.cli.output import console, counted, money, print_json, table
from dagster_llm_batch.text import cell_text
from dagster_llm_batch.types import Lane

__all__ = ["advise_command"]


class _Moment(click.ParamType):  # type: ignore[type-arg]  # click below 8.2 is not generic
    """A time of day, whose next coming is meant, or a moment as ISO 8601. Without an offset it is local time."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | time:
        """Return a time of day or an aware moment."""
        del param, ctx
        if isinstance(value, datetime | time):
            return value
        # "06" would be an hour, and is more likely a slip.
        with suppress(ValueError):
            return time.fromisoformat(value if ":" in value else "")
        with suppress(ValueError):
            return datetime.fromisoformat(value).astimezone()
        return self.fail(f"{value!r} is neither a time of day, as 06:00, nor a moment, as 2026-01-31T06:00+01:00.")


@click.command(
    "advise",
    cls=Command,
    examples=["moods --quality 0.9 -f labels.py", "moods --quality 0.95 --by 06:00 --max-usd 50 -f labels.py"],
)
@click.argument("dataset", shell_complete=complete_assets)
@code_location_command
@click.option(
    "--quality",
    type=click.FloatRange(0, 1, min_open=True),
    required=True,
    help="Smallest share of right labels, above 0 and below 1.",
)
@click.option("--by", type=_Moment(), help="Deadline for all batches: 06:00 (the next one), or ISO 8601. Local time.")
@click.option("--max-usd", type=click.FloatRange(0), help="Limit in US dollars that 19 of 20 runs stay below.")
@click.option("--rows", type=click.IntRange(1), help="Number of rows to label.  [default: as in the last runs]")
@click.option(
    "--against",
    help="Source of right labels: gold, or a model (provider/model).  [default: the gold of an evaluation, else the "
    "cascade's oracle]",
)
@click.option("--evaluation", help="Evaluation whose gold to use, if several apply.  [default: the first with gold]")
@click.option("--target", help="Column to compare.  [default: the target of the cascade or the evaluation]")
@click.option("--score", help="Column with a model's confidence.  [default: the cascade's, or 'confidence']")
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 0.9999),
    default=0.95,
    show_default=True,
    help="Confidence of all intervals together, and of a cascade's guarantee.",
)
@click.option(
    "--beside",
    multiple=True,
    shell_complete=complete_assets,
    help="Another labeled dataset of the same rows whose runs to use, repeatable.",
)
@json_option
def advise_command(
    deployment: DeploymentAccess,
    dataset: str,
    quality: float,
    by: datetime | time | None,
    max_usd: float | None,
    rows: int | None,
    against: str | None,
    evaluation: str | None,
    target: str | None,
    score: str | None,
    confidence: float,
    beside: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """List ways to label the next rows of a dataset with a given quality, cheapest first. Nothing is sent or changed.

    Each way is a model, a cascade, a lane and a sample, with its expected cost, end and quality. The numbers come from
    gold and from earlier runs in the ledger, of this dataset and of others over the same rows. Unknown numbers are
    marked. A cascade is certified by the sample of its own run.
    """
    # Refuse "nan", which Click takes for a number.
    for name, given in (("--confidence", confidence), ("--max-usd", max_usd or 0.0)):
        if not isfinite(given):
            raise click.UsageError(f"{name} {given} is no number.")
    if not quality < 1:
        raise click.UsageError(
            f"--quality {quality:g}: no number of rows shows that all labels are right. Give less than 1, or ask the "
            "model that counts as right about all rows."
        )
    case = Case(deployment, dataset, beside, target, score, against, evaluation)
    column, right = case.target, case.against
    now = deployment.dry_engine.now()
    wanted = Wanted(
        quality=quality,
        confidence=confidence,
        rows=rows or case.usual_rows,
        target=column,
        score=case.score,
        against=right,
        now=now,
        by=None if by is None else _next(by, now),
        max_usd=None if max_usd is None else Decimal(repr(max_usd)),
        rolls=case.rolls,
    )
    chooser = case.chooser(wanted)
    plans = chooser.plans()
    unknown = list(_unknown(case, wanted, chooser, plans))
    if as_json:
        print_json(_document(case, wanted, plans, unknown))
    else:
        _print(case, wanted, plans, unknown)
    if not any(plan.state == "feasible" for plan in plans):
        leave(ExitCode.FAILED)


def _next(by: datetime | time, now: datetime) -> datetime:
    """Return the moment that is meant, in UTC. A time of day means the next one. Raises click.UsageError."""
    if isinstance(by, datetime):
        if by <= now:
            raise click.UsageError(f"--by {by.isoformat()} is over: it is {now:%Y-%m-%d %H:%M} UTC.")
        return by.astimezone(UTC)
    here = now.astimezone(by.tzinfo)
    moment = datetime.combine(here.date(), by.replace(tzinfo=None), here.tzinfo)
    if moment <= here:
        # By the calendar: the night in which clocks change has 23 hours, or 25.
        moment = datetime.combine(here.date() + timedelta(days=1), by.replace(tzinfo=None), here.tzinfo)
    if by.tzinfo is None:
        moment = moment.replace(tzinfo=None).astimezone()
    return moment.astimezone(UTC)


# --- what is printed ---


def _title(plan: LabelingPlan) -> str:
    if plan.oracle is None:
        return plan.record.model + (" in real time" if plan.lane is Lane.REALTIME else "")
    level = f"level {plan.agreement:.9g}" if plan.within is None else f"within {plan.within:.9g} of it"
    urgent = "" if plan.deadline is None else f", in real time after {_hours(plan.deadline)}"
    people = "" if plan.within is None else ", which people label"
    rows = "by earlier partitions" if plan.rolling is not None else f"sample {plan.sample:,}"
    return f"{plan.record.model} then {plan.oracle.model} ({level}, {rows}{people}{urgent})"


def _hours(span: timedelta) -> str:
    minutes = round(span / timedelta(minutes=1))
    return f"{minutes // 60}:{minutes % 60:02}"


def _quality(quality: Quality) -> str | None:
    if quality.is_promised:
        return f"at least {quality.low:.3f}"
    if quality.value is None:
        return None
    if quality.low is None or quality.high is None or quality.low == quality.high:
        return f"{quality.value:.3f}"
    return f"{quality.value:.3f} ({quality.low:.3f} to {quality.high:.3f}), {quality.basis}"


def _share(value: float | None) -> str:
    """Return a share with all its digits, so that the pasted YAML has the quality that was asked for."""
    return f"{Decimal(repr(value)):f}"


def yaml_text(value: str | None) -> str:
    """Return a text as YAML reads it back: a column may be called `no`, and a ledger's name may hold anything."""
    written: str = yaml.safe_dump(value, width=inf)
    return written.removesuffix("\n").removesuffix("\n...")


def _yaml(plan: LabelingPlan, case: Case, wanted: Wanted) -> str:
    """Return the attributes of a component that make it so."""
    lines = [f"model: {yaml_text(plan.record.model)}"]
    if plan.oracle is not None:
        lines += [
            "cascade:",
            f"  oracle: {yaml_text(plan.oracle.model)}",
            f"  target: {yaml_text(case.target)}",
            *(
                [f"  agreement: {_share(plan.agreement)}"]
                if plan.within is None
                else [f"  gold: {yaml_text(case.gold_asset)}", f"  within: {_share(plan.within)}"]
            ),
            f"  confidence: {_share(wanted.confidence)}",
            f"  score: {yaml_text(case.score)}",
            f"  sample: {plan.sample}"
            if plan.rolling is None
            else f"  calibrate: {{rows: {plan.rolling.rows}, audit: {_share(plan.rolling.audit)}}}",
        ]
    if plan.lane is Lane.REALTIME:
        lines.append(f"realtime: {{deadline: {{minutes: {_minutes(plan)}}}}}")
    return "\n".join(lines)


def _python(plan: LabelingPlan, case: Case, wanted: Wanted) -> str:
    """Return the arguments of `llm_batch_assets` that make it so."""
    lines = [f"model={json.dumps(plan.record.model)},"]
    if plan.oracle is not None:
        lines += [
            "cascade=Cascade(",
            f"    oracle={json.dumps(plan.oracle.model)},",
            f"    target={json.dumps(case.target)},",
            *(
                [f"    agreement={_share(plan.agreement)},"]
                if plan.within is None
                else [f"    gold={json.dumps(case.gold_asset)},", f"    within={_share(plan.within)},"]
            ),
            f"    confidence={_share(wanted.confidence)},",
            f"    score={json.dumps(case.score)},",
            f"    sample={plan.sample},"
            if plan.rolling is None
            else f"    calibrate=Rolling(rows={plan.rolling.rows}, audit={_share(plan.rolling.audit)}),",
            "),",
        ]
    if plan.lane is Lane.REALTIME:
        lines.append(f"realtime=Realtime(deadline=timedelta(minutes={_minutes(plan)})),")
    return "\n".join(lines)


def _minutes(plan: LabelingPlan) -> int:
    return 0 if plan.deadline is None else round(plan.deadline / timedelta(minutes=1))


def _notes(plan: LabelingPlan, case: Case) -> Iterator[str]:
    """Yield notes that matter before a plan is chosen."""
    if plan.quality.is_promised:
        yield f"Its quality is {plan.quality.basis}."
    if plan.rolling is not None:
        yield (
            f"Until earlier partitions have {plan.rolling.rows:,} rows that the oracle has answered, each has a sample "
            "of its own, which is not counted here."
        )
    if plan.within is not None:
        yield (
            f"People have to label the {plan.sample:,} rows of each partition's sample: `dagster-llm-batch plan` names "
            "them, and nothing is asked before."
        )
    if plan.oracle is not None and plan.lane is Lane.REALTIME:
        yield (
            "Its model and the sample go by batch. What is not answered by the deadline is asked of the oracle in real "
            "time, which is counted at that price; where the first round is late, that is all rows."
        )
    for record in (plan.record, plan.oracle):
        if record is not None and (owner := case.definition_of(record)) is not None:
            yield f"{record.model} was asked with the prompt and parameters of {owner}: take these too."
    if plan.lane is Lane.REALTIME:
        yield "In real time the same answers as in a batch are taken for granted; skew_assets measures it."


def _evidence(case: Case) -> list[dict[str, Any]]:
    return [
        {
            "dataset": record.labeling.asset,
            "model": record.model,
            "runs": len(record.runs),
            "rows": 0 if record.answers is None else len(record.answers),
            "partitions": record.partitions,
            "first_run_at": record.runs[0].at if record.runs else None,
            "last_run_at": record.runs[-1].at if record.runs else None,
            "runs_that_asked_otherwise": record.otherwise,
            "runs_without_stored_files": record.lost,
        }
        for record in case.records
    ]


def _unknown(case: Case, wanted: Wanted, chooser: Chooser, plans: Sequence[LabelingPlan]) -> Iterator[str]:
    """Yield facts that are unknown for all plans."""
    others = [spec.builder.key.to_user_string() for spec in case.evaluations if spec is not case.evaluation]
    if case.against == GOLD and others:
        yield f"Other evaluations with gold of these rows: {', '.join(others)} (--evaluation)."
    if case.gold_is_judged and not case.gold_is_drawn:
        yield "People chose the rows that they judged: they may be easier or harder than the rest (gold_sample_assets)."
    if (why := case.gold[1]) is not None:
        yield f"The gold cannot be read, so quality is unknown: {why}"
    if not any(plan.oracle is not None for plan in plans):
        yield f"No cascade: {chooser.cascade_gap()}."
    for record in case.records:
        if record.lost and record.runs:
            yield f"{record.model}: the files of {record.lost} of its runs were pruned, or are damaged."
    if all(run.at >= wanted.now for record in case.records for run in record.runs):
        yield "Nothing here is of an earlier run."


def _document(case: Case, wanted: Wanted, plans: Sequence[LabelingPlan], unknown: Sequence[str]) -> dict[str, Any]:
    return {
        "dataset": case.labeling.asset,
        "rows": wanted.rows,
        "quality": wanted.quality,
        "confidence": wanted.confidence,
        "against": case.against,
        "target": wanted.target,
        "score": wanted.score,
        "now": wanted.now,
        "by": wanted.by,
        "max_usd": wanted.max_usd,
        "plans": [
            {
                "state": plan.state,
                "model": plan.record.model,
                "oracle": None if plan.oracle is None else plan.oracle.model,
                "lane": plan.lane,
                "agreement": plan.agreement,
                "within": plan.within,
                "rolling": None
                if plan.rolling is None
                else {"rows": plan.rolling.rows, "audit": plan.rolling.audit, "assumes": plan.quality.basis},
                "deadline_seconds": None if plan.deadline is None else plan.deadline.total_seconds(),
                "sample": plan.sample,
                "accepted_share": plan.accepted,
                "expected_usd": plan.cost.expected,
                "p05_usd": plan.cost.low,
                "p95_usd": plan.cost.high,
                "p95_seconds": None if plan.end.p95 is None else plan.end.p95.total_seconds(),
                "p95_end_at": plan.ends_at,
                "end_basis": plan.end.basis,
                "quality": plan.quality.value,
                "quality_low": plan.quality.low,
                "quality_high": plan.quality.high,
                "quality_rows": plan.quality.rows,
                "quality_basis": plan.quality.basis,
                "is_certified_by_its_run": plan.oracle is not None,
                "broken": list(plan.broken),
                "unknown": list(plan.unknown),
                "notes": list(_notes(plan, case)),
                "yaml": _yaml(plan, case, wanted),
                "python": _python(plan, case, wanted),
            }
            for plan in plans
        ],
        "evidence": _evidence(case),
        "unknown": list(unknown),
    }


def _print(case: Case, wanted: Wanted, plans: Sequence[LabelingPlan], unknown: Sequence[str]) -> None:
    """Print the feasible plans as a table, then how to take the first, the evidence, and why not the others."""
    _say(
        f"{counted(wanted.rows, 'row', 'rows')} of {cell_text(case.labeling.asset)}, of which at least "
        f"{wanted.quality:.9g} shall have the right '{cell_text(wanted.target)}', by {cell_text(case.reference)}."
    )
    if wanted.by is not None:
        local = wanted.by.astimezone()
        _say(
            f"By {local:%Y-%m-%d %H:%M} local time, {wanted.by:%Y-%m-%d %H:%M} UTC, if it is sent now "
            f"({wanted.now:%Y-%m-%d %H:%M} UTC)."
        )
    if wanted.max_usd is not None:
        click.echo(f"For {money(wanted.max_usd)} at most, in 19 of 20 cases.")
    click.echo()
    feasible = [plan for plan in plans if plan.state == "feasible"]
    if feasible:
        _print_plans(feasible)
        best = feasible[0]
        click.echo(f"\nThe first, in YAML:\n\n{_indented(_yaml(best, case, wanted))}")
        click.echo(f"\nand in Python:\n\n{_indented(_python(best, case, wanted))}\n")
        for note in _notes(best, case):
            _say(note)
    else:
        click.echo("No known plan reaches this quality.\n")
    for state, title in (("open", "Not known to reach it:"), ("dropped", "Known not to:")):
        others = [plan for plan in plans if plan.state == state]
        if others:
            click.echo(title)
        alike: dict[str, list[str]] = {}
        for plan in others:
            alike.setdefault("; ".join(plan.broken if state == "dropped" else plan.unknown), []).append(_title(plan))
        for reasons, titles in alike.items():
            _say(f"- {cell_text(' | '.join(titles), limit=600)}: {cell_text(reasons, limit=600)}")
        if others:
            click.echo()
    for text in unknown:
        _say(cell_text(text, limit=600))
    _print_evidence(case, wanted)


def _print_plans(plans: Sequence[LabelingPlan]) -> None:
    has_end = any(plan.ends_at is not None for plan in plans)
    rows: list[list[object]] = [
        [
            _title(plan),
            money(plan.cost.expected),
            money(plan.cost.high),
            *([None if plan.ends_at is None else f"{plan.ends_at.astimezone():%m-%d %H:%M}"] if has_end else []),
            _quality(plan.quality),
        ]
        for plan in plans
    ]
    ends = ["ends by"] if has_end else []
    console().print(table(["plan", "~cost", "95 % below", *ends, "quality"], rows))


def _print_evidence(case: Case, wanted: Wanted) -> None:
    rows: list[list[object]] = [
        [
            record.model,
            record.labeling.asset,
            len(record.runs),
            0 if record.answers is None else len(record.answers),
            record.partitions[-1] if record.partitions else None,
            f"{record.runs[-1].at:%Y-%m-%d}" if record.runs else None,
        ]
        for record in case.records
    ]
    columns = ["Evidence", "dataset", "runs", "rows", "up to", "ended (UTC)"]
    console().print(table(columns, rows))
    click.echo()
    _say(
        f"Chosen by these runs alone, with {wanted.confidence:.0%} confidence in all intervals together, if the next "
        "rows are like theirs. A cascade is certified by the sample of its own run."
    )


def _say(text: str) -> None:
    """Print a sentence, broken between words where it is printed."""
    console().print(Text(text))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
