"""`advise`: which model, cascade, lane and sample reach a quality by a time and for an amount, by earlier data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from dagster_llm_batch.arguments import nearest_name
from dagster_llm_batch.cli.commands import Command, ExitCode, json_option, leave
from dagster_llm_batch.cli.deployment import DeploymentAccess, code_location_command
from dagster_llm_batch.cli.output import console, counted, money, print_json, table
from dagster_llm_batch.core.logprobs import LOGPROB
from dagster_llm_batch.engine.choice import GOLD, Chooser, End, Plan, Quality, Wanted
from dagster_llm_batch.engine.labeling import Labeling
from dagster_llm_batch.engine.track_record import TrackRecord, labeling_in_ledger, track_records
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.text import cell_text
from dagster_llm_batch.types import Lane

if TYPE_CHECKING:
    import pyarrow as pa

    from dagster_llm_batch.evaluation.spec import EvaluationSpec

__all__ = ["advise_command"]

# So many runs say how many rows the next one has.
_REMEMBERED = 5
_LANES = {Lane.BATCH: "batch", Lane.REALTIME: "real time"}
_NAMES_SHOWN = 10


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


@click.command("advise", cls=Command)
@click.argument("dataset")
@code_location_command
@click.option(
    "--quality",
    type=click.FloatRange(0, 1, min_open=True),
    required=True,
    help="Least share of the labels that are right, above 0 and below 1.",
)
@click.option(
    "--by", type=_Moment(), help="All has to have ended by then: 06:00, the next one, or ISO 8601. Local time."
)
@click.option("--max-usd", type=click.FloatRange(0), help="It may cost so much, in 19 of 20 cases.")
@click.option("--rows", type=click.IntRange(1), help="Rows to label.  [default: as the last runs had]")
@click.option(
    "--against",
    help="What counts as right: gold, or a model (provider/model).  [default: gold, where an evaluation has some; else "
    "the cascade's oracle]",
)
@click.option("--target", help="Column whose values are compared.  [default: that of the cascade, or the evaluation]")
@click.option("--score", help="Column that says how sure a model is.  [default: that of the cascade, or 'confidence']")
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="How sure all intervals together are, and what a cascade promises with.",
)
@click.option("--beside", multiple=True, help="Another labeled dataset of the same rows, whose runs count; repeatable.")
@json_option
def advise_command(
    deployment: DeploymentAccess,
    dataset: str,
    quality: float,
    by: datetime | time | None,
    max_usd: float | None,
    rows: int | None,
    against: str | None,
    target: str | None,
    score: str | None,
    confidence: float,
    beside: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """List the ways to label a dataset's next rows that reach a quality, the cheapest first: model, cascade, lane and
    sample, with expected cost, end and quality. Sends nothing, and changes nothing.

    All is from earlier runs in the ledger, of this dataset and of others over the same rows, and from gold. What is not
    known is said to be so. A cascade is certified by the sample of its own run.
    """
    if quality >= 1:
        raise click.UsageError(
            f"--quality {quality:g}: no number of rows shows that all labels are right. Give less than 1, or ask the "
            "model that counts as right about all rows."
        )
    case = _Case(deployment, dataset, beside, target, score, against)
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
    )
    plans = case.chooser(wanted).plans()
    if as_json:
        print_json(_document(case, wanted, plans))
    else:
        _print(case, wanted, plans)
    if not any(plan.state == "feasible" for plan in plans):
        leave(ExitCode.FAILED)


def _next(by: datetime | time, now: datetime) -> datetime:
    """Return the moment that is meant, in UTC. Of a time of day it is the next one. Raises click.UsageError."""
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


@dataclass(frozen=True)
class _Case:
    """What is asked about: a dataset, those beside it, its records, and its gold."""

    deployment: DeploymentAccess
    name: str
    beside: Sequence[str]
    given_target: str | None
    given_score: str | None
    given_against: str | None

    @cached_property
    def labeling(self) -> Labeling:
        return self._labeling(self.name)

    def _labeling(self, name: str) -> Labeling:
        """Return the definition of a dataset: that of the code, else the newest that the ledger has."""
        datasets = self.deployment.code.datasets
        by_key = {dataset.key.to_user_string(): dataset for dataset in datasets.values()}
        if (found := datasets.get(name) or by_key.get(name)) is not None:
            return found.labeling
        deployment = self.deployment.dry_engine.deployment
        if (stored := labeling_in_ledger(deployment, name)) is not None:
            return stored
        known = {*datasets, *(each.asset for each in deployment.ledger.submissions(deployment.namespace))}
        near = nearest_name(name, known)
        meant = "" if near is None else f" Did you mean '{near}'?"
        names = ", ".join(sorted(known)[:_NAMES_SHOWN]) or "none"
        raise click.UsageError(
            f"'{name}' is no labeled dataset of {self.deployment.code.pointer}, nor of its ledger.{meant} There are: "
            f"{names}."
        )

    @cached_property
    def evaluation(self) -> EvaluationSpec | None:
        """The first evaluation that has this dataset as a candidate, and the target among its own."""
        dataset = self.deployment.code.datasets.get(self.labeling.asset)
        for spec in self.deployment.code.evaluations if dataset is not None else ():
            is_candidate = dataset is not None and dataset.key in [candidate.key for candidate in spec.candidates]
            targets = [target.name for target in spec.targets if target.kind == "categorical"]
            wanted = self.given_target or (self.labeling.cascade and self.labeling.cascade.target)
            if is_candidate and spec.join_key == self.labeling.key and (wanted in targets or (not wanted and targets)):
                return spec
        return None

    @cached_property
    def target(self) -> str:
        schema, cascade = self.labeling.reader.schema, self.labeling.cascade
        if self.given_target is not None:
            if self.given_target not in schema.names:
                raise click.UsageError(
                    f"--target {self.given_target!r} is no column of the response; its columns: "
                    f"{', '.join(schema.names)}."
                )
            return self.given_target
        if cascade is not None:
            return cascade.target
        if self.evaluation is not None:
            return next(target.name for target in self.evaluation.targets if target.kind == "categorical")
        if len(schema.names) == 1:
            return str(schema.names[0])
        raise click.UsageError(
            f"Which column of '{self.name}' has to be right? Say it with --target: {', '.join(schema.names)}."
        )

    @cached_property
    def score(self) -> str | None:
        names, cascade = self.labeling.result_schema.names, self.labeling.cascade
        if self.given_score is not None and self.given_score not in names:
            raise click.UsageError(
                f"--score {self.given_score!r} is no column of the response; its columns: {', '.join(names)}."
            )
        declared = [target.confidence_column for target in self.evaluation.targets] if self.evaluation else []
        wanted = [self.given_score, cascade and cascade.score, *declared, "confidence", LOGPROB.name]
        return next((name for name in wanted if name and name in names), None)

    @cached_property
    def against(self) -> str:
        if self.given_against is not None:
            if self.given_against == GOLD and self.evaluation is None:
                raise click.UsageError(self._no_evaluation())
            models = [record.model for record in self.records]
            if self.given_against not in (GOLD, *models):
                raise click.UsageError(
                    f"--against {self.given_against!r} is neither '{GOLD}' nor a model of '{self.name}' or of what is "
                    f"beside it; these are {', '.join(dict.fromkeys(models))}."
                )
            return self.given_against
        if self.evaluation is not None:
            return GOLD
        if self.labeling.cascade is not None:
            return self.labeling.cascade.oracle
        raise click.UsageError(self._no_evaluation())

    def _no_evaluation(self) -> str:
        return (
            f"Nothing says what is right for '{self.name}': no evaluation_assets of this code location has it as a "
            "candidate with a categorical target, so the quality of no plan can be known. Declare one, with gold for "
            "some rows, or take a model's labels for right: --against provider/model."
        )

    @cached_property
    def names_beside(self) -> list[str]:
        """The datasets whose models come into question: named, measured by the same evaluation, or of the same rows."""
        datasets, own = self.deployment.code.datasets, self.labeling
        dataset = datasets.get(own.asset)
        keys = [candidate.key for candidate in self.evaluation.candidates] if self.evaluation else []
        found = [
            name
            for name, other in datasets.items()
            if other.key in keys
            or (dataset is not None and dataset.rows_key is not None and other.rows_key == dataset.rows_key)
        ]
        return [name for name in dict.fromkeys([*self.beside, *found]) if name != own.asset]

    @cached_property
    def records(self) -> list[TrackRecord]:
        deployment = self.deployment.dry_engine.deployment
        labelings = [self.labeling, *map(self._labeling, self.names_beside)]
        fitting = [each for each in labelings if each.key == self.labeling.key]
        return [
            record
            for labeling in fitting
            if self.target in labeling.reader.schema.names
            for record in track_records(deployment, labeling, self.target, self.score)
        ]

    @property
    def usual_rows(self) -> int:
        """How many rows the last runs of the dataset had."""
        runs = {(run.partition, run.at): run.rows for record in self._own for run in record.runs}
        if not runs:
            raise click.UsageError(
                f"'{self.name}' has no settled run in this ledger, so nobody knows how many rows the next one has. Say "
                "it with --rows."
            )
        newest = sorted(runs, key=lambda run: run[1])[-_REMEMBERED:]
        return max(1, round(fmean(runs[run] for run in newest)))

    @property
    def _own(self) -> list[TrackRecord]:
        return [record for record in self.records if record.labeling.asset == self.labeling.asset]

    @cached_property
    def gold(self) -> tuple[pa.Table | None, str | None]:
        """The gold of the rows that were answered; else why there is none."""
        if self.evaluation is None or self.against != GOLD:
            return None, None
        try:
            return self._read_gold(self.evaluation), None
        except LLMBatchError as error:
            return None, str(error)

    def _read_gold(self, evaluation: EvaluationSpec) -> pa.Table:
        import pyarrow as pa  # noqa: PLC0415 - `--help` needs none

        from dagster_llm_batch.core.rows import record_batches  # noqa: PLC0415
        from dagster_llm_batch.evaluation.stored_tables import columns_of  # noqa: PLC0415
        from dagster_llm_batch.metrics.gold_weights import SAMPLE_COLUMNS  # noqa: PLC0415

        code, key = self.deployment.code, evaluation.gold
        columns = list(dict.fromkeys([evaluation.join_key, self.gold_column]))
        also = (*SAMPLE_COLUMNS, *evaluation.clusters)
        answered = {partition for record in self.records for partition in record.partitions}
        stored = list(code.stored_places(key))
        wanted = [partition for partition in stored if partition in answered] or stored or [""]
        tables = []
        for partition in wanted:
            value = code.load_asset(key, partition or None)
            batches = list(record_batches(value, {*columns, *also}))
            read = columns_of(batches, key.to_user_string(), columns, also=also, hint="Change the evaluation's key=.")
            read = read.append_column("row", read[evaluation.join_key].cast(pa.string()))
            if partition:
                read = read.append_column("partition", pa.repeat(pa.scalar(partition), len(read)))
            tables.append(read)
        return pa.concat_tables(tables, promote_options="default").combine_chunks()

    @property
    def gold_column(self) -> str:
        targets = self.evaluation.targets if self.evaluation else ()
        return next((each.gold_column or each.name for each in targets if each.name == self.target), self.target)

    @property
    def reference(self) -> str:
        """What counts as right, in words."""
        if self.against != GOLD or self.evaluation is None:
            return f"what {self.against} says"
        return f"the gold of {self.evaluation.gold.to_user_string()}"

    def chooser(self, wanted: Wanted) -> Chooser:
        gold, _ = self.gold
        cluster = self.evaluation.cluster if self.evaluation else None
        deployment = self.deployment.dry_engine.deployment
        return Chooser(deployment, self.records, wanted, _ends, gold, self.gold_column, cluster)

    def definition_of(self, record: TrackRecord) -> str | None:
        """Return the dataset whose prompt and parameters a model was asked by; None where it is the dataset's own."""
        own, other = self.labeling, record.labeling
        apart = {"model": None, "cascade": None}
        if any(known.definition["asked"] | apart == other.definition["asked"] | apart for known in own.models):
            return None
        return other.asset if other.asset != own.asset else f"an earlier definition of {own.asset}"


def _ends(record: TrackRecord, lane: Lane, requests: int) -> End:
    del record, lane, requests
    return End(None, "no forecast")


# --- what is printed ---


def _title(plan: Plan) -> str:
    if plan.oracle is None:
        return plan.record.model + (" in real time" if plan.lane is Lane.REALTIME else "")
    return f"{plan.record.model} then {plan.oracle.model} (level {plan.agreement:g}, sample {plan.sample:,})"


def _quality(quality: Quality) -> str | None:
    if quality.is_promised:
        return f"at least {quality.low:.3f}"
    if quality.value is None:
        return None
    if quality.low is None or quality.high is None or quality.low == quality.high:
        return f"{quality.value:.3f}"
    return f"{quality.value:.3f} ({quality.low:.3f} to {quality.high:.3f}), {quality.basis}"


def _yaml(plan: Plan, case: _Case, wanted: Wanted) -> str:
    """Return the attributes of a component that make it so."""
    lines = [f"model: {plan.record.model}"]
    if plan.oracle is not None:
        lines += [
            "cascade:",
            f"  oracle: {plan.oracle.model}",
            f"  target: {case.target}",
            f"  agreement: {plan.agreement:g}",
            f"  confidence: {wanted.confidence:g}",
            f"  score: {case.score}",
            f"  sample: {plan.sample}",
        ]
    if plan.lane is Lane.REALTIME:
        lines.append("realtime: {deadline: {hours: 0}}")
    return "\n".join(lines)


def _python(plan: Plan, case: _Case, wanted: Wanted) -> str:
    """Return the arguments of `llm_batch_assets` that make it so."""
    lines = [f"model={json.dumps(plan.record.model)},"]
    if plan.oracle is not None:
        lines += [
            "cascade=Cascade(",
            f"    oracle={json.dumps(plan.oracle.model)},",
            f"    target={json.dumps(case.target)},",
            f"    agreement={plan.agreement:g},",
            f"    confidence={wanted.confidence:g},",
            f"    score={json.dumps(case.score)},",
            f"    sample={plan.sample},",
            "),",
        ]
    if plan.lane is Lane.REALTIME:
        lines.append("realtime=Realtime(deadline=timedelta(0)),")
    return "\n".join(lines)


def _notes(plan: Plan, case: _Case) -> Iterator[str]:
    """Yield what is to know of a plan before it is taken."""
    for record in (plan.record, plan.oracle):
        if record is not None and (owner := case.definition_of(record)) is not None:
            yield f"{record.model} was asked with the prompt and parameters of {owner}: take these too."
    if plan.lane is Lane.REALTIME:
        yield "In real time the same answers as in a batch are taken for granted; skew_assets measures it."


def _evidence(case: _Case) -> list[dict[str, Any]]:
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
            "partitions_without_stored_answers": record.lost,
        }
        for record in case.records
    ]


def _unknown(case: _Case, wanted: Wanted, plans: Sequence[Plan]) -> Iterator[str]:
    """Yield what is not known beside the figures of single plans."""
    if (why := case.gold[1]) is not None:
        yield f"The gold cannot be read, so that no quality is known: {why}"
    if not any(plan.oracle is not None for plan in plans):
        if case.score is None:
            yield (
                "No cascade: the response has no column that says how sure a model is. Add `confidence: float` to it, "
                "or ask for logprobs."
            )
        else:
            yield (
                "No cascade: no two models of different price have answered the same rows by the same prompt"
                + ("." if wanted.against == GOLD else f", the dearer being {wanted.against}.")
            )
    if all(run.at >= wanted.now for record in case.records for run in record.runs):
        yield "Nothing here is of an earlier run."


def _document(case: _Case, wanted: Wanted, plans: Sequence[Plan]) -> dict[str, Any]:
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
        "unknown": list(_unknown(case, wanted, plans)),
    }


def _print(case: _Case, wanted: Wanted, plans: Sequence[Plan]) -> None:
    """Print the feasible plans as a table, then how to take the first, the evidence, and why not the others."""
    _say(
        f"{counted(wanted.rows, 'row', 'rows')} of {cell_text(case.labeling.asset)}, of which at least "
        f"{wanted.quality:g} shall have the right '{cell_text(wanted.target)}', by {cell_text(case.reference)}."
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
        click.echo("No plan is known to reach that.\n")
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
    for text in _unknown(case, wanted, plans):
        _say(cell_text(text, limit=600))
    _print_evidence(case, wanted)


def _print_plans(plans: Sequence[Plan]) -> None:
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


def _print_evidence(case: _Case, wanted: Wanted) -> None:
    rows: list[list[object]] = [
        [
            record.model,
            record.labeling.asset,
            len(record.runs),
            0 if record.answers is None else len(record.answers),
            _span([partition for partition in record.partitions if partition]),
            _span([f"{run.at:%Y-%m-%d}" for run in record.runs]),
        ]
        for record in case.records
    ]
    columns = ["Evidence", "dataset", "runs", "rows", "partitions", "ended (UTC)"]
    console().print(table(columns, rows))
    click.echo()
    _say(
        f"Chosen by these runs alone, with {wanted.confidence:.0%} confidence in all intervals together, if the next "
        "rows are like theirs. A cascade is certified by the sample of its own run."
    )


def _span(names: Sequence[str]) -> str | None:
    """Return the first and the last of some names in order; None without any."""
    if not names:
        return None
    return names[0] if names[0] == names[-1] else f"{names[0]} to {names[-1]}"


def _say(text: str) -> None:
    """Print a sentence, broken between words where it is printed."""
    console().print(Text(text))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
