"""Three checks of every labeled partition: coverage (rows with a label), parse rate (replies that fit) and spend; and
one of every submission: whether its batches were sent.

They are partitioned, so that a bad partition holds back what is downstream of it, and no other.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_llm_batch._dagster_private import (
    CheckTarget,
    check_target,
    has_failed,
    last_evaluation,
    newest_evaluations,
    report_evaluation,
)
from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.cascade import Cascade, Rolling
from dagster_llm_batch.core.levels import ACCEPTED, ESCALATED, INVALID, promise_text
from dagster_llm_batch.core.prompt import UNREADABLE
from dagster_llm_batch.core.results import WAITING
from dagster_llm_batch.engine import Labeling, Status
from dagster_llm_batch.engine.condition_facts import of_status
from dagster_llm_batch.engine.conditions import Condition, ConditionKind, find_conditions
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.label_stats import LabelStats
from dagster_llm_batch.loop.status import retry_command
from dagster_llm_batch.metadata import oracle_alone_usd, track_metadata
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import SubmissionState
from dagster_llm_batch.text import money_text, plain_words
from dagster_llm_batch.types import SKIPPED, Lane, Outcome

if TYPE_CHECKING:
    from dagster_llm_batch.core.audit import Track
    from dagster_llm_batch.core.levels import Levels
    from dagster_llm_batch.engine.engine import Engine

__all__ = [
    "COVERAGE",
    "NOT_JUDGED",
    "PARSE_RATE",
    "SPEND",
    "CheckOutcome",
    "Checks",
    "SentChecks",
    "Verdicts",
    "all_partitions_evaluations",
    "cascade_verdicts",
    "check_specs",
    "fail_with",
    "rolling_verdicts",
    "sent_spec",
    "sent_verdict",
    "unjudged_evaluations",
    "verdicts",
]

COVERAGE, PARSE_RATE, SPEND, SENT = "coverage", "parse_rate", "spend", "sent"
PROMISE, SAVES = "promise", "saves"
# Above this share of rows without a good reply, something is broken: the worst models of simulations have a fifth.
_MOST_SILENT = 0.5
WINDOW_AGREEMENT, DRIFT_ALARM = "window_agreement", "drift_alarm"

NOT_JUDGED = "llm_batch/not_judged"
"""Metadata of an evaluation whose run had nothing to judge, and why it is as it is: it is no news."""

_EMPTY = "nothing has landed"

_FAILURES_SHOWN = 10

_REFUSED = (ConditionKind.REFUSED,)

_NOT_ANSWERED = (Outcome.CANCELED.value, Outcome.EXPIRED.value, Outcome.MISSING.value)

_ERROR, _WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


@checked
@dataclass(frozen=True)
class Checks:
    """What a labeled partition must hold.

    Args:
        min_coverage: Least share of rows with a label, 0 to 1. Rows that are empty, and skipped, do not count, unless
            all rows are empty: that is a share of 0. With 0, no share is too small.
        min_parse_rate: Least share of replies that fit the response, 0 to 1.
        blocking: Whether a failed coverage or parse rate holds back what is downstream.
    """

    min_coverage: float = 0.95
    min_parse_rate: float = 0.95
    blocking: bool = True

    def __post_init__(self) -> None:
        for name in ("min_coverage", "min_parse_rate"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"Checks.{name}={value!r} is not allowed; a share is between 0 and 1.")


@dataclass(frozen=True)
class CheckOutcome:
    """One check's answer on one partition."""

    name: str
    passed: bool
    severity: dg.AssetCheckSeverity
    description: str
    metadata: dict[str, Any]


def check_specs(
    asset: dg.AssetKey,
    wanted: Checks,
    partitions_def: dg.PartitionsDefinition[Any] | None,
    cascade: Cascade | None = None,
) -> list[dg.AssetCheckSpec]:
    """Return the specs of the three checks, of the two of a cascade, and of the two of its audit."""
    described = {
        COVERAGE: f"At least {wanted.min_coverage:.0%} of the rows that are not empty have a label.",
        PARSE_RATE: f"At least {wanted.min_parse_rate:.0%} of the replies fit the response format.",
        SPEND: "The submission cost no more than max_cost_usd, and what the vendor says that it cost, if it does.",
    }
    if cascade is not None:
        promised = cascade.oracle, cascade.target, cascade.agreement, cascade.confidence, cascade.within
        described[PROMISE] = f"{promise_text(*promised)} What the oracle was to answer has no other label."
        described[SAVES] = (
            f"The cascade cost no more than {cascade.oracle} alone would have, and most replies of its model are good."
        )
        if isinstance(cascade.calibrate, Rolling):
            described[WINDOW_AGREEMENT] = (
                f"Audited rows of the last 20 partitions do not show that fewer than {cascade.agreement:.0%} of the "
                f"labels agree with {cascade.oracle}."
            )
            described[DRIFT_ALARM] = "A score still means what it meant in earlier partitions, as far as audits tell."
    with warnings.catch_warnings():
        # Dagster 1.13 warns of each spec that partitioned checks are a preview.
        warnings.simplefilter("ignore", category=dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(
                name,
                asset=asset,
                description=description,
                blocking=wanted.blocking and name in (COVERAGE, PARSE_RATE, PROMISE),
                partitions_def=partitions_def,
            )
            for name, description in described.items()
        ]


def sent_spec(asset: dg.AssetKey, partitions_def: dg.PartitionsDefinition[Any] | None) -> dg.AssetCheckSpec:
    """Return the spec of the check of a submission."""
    description = "The provider took every batch that the run sent."
    with warnings.catch_warnings():
        # As above.
        warnings.simplefilter("ignore", category=dg.PreviewWarning)
        return dg.AssetCheckSpec(SENT, asset=asset, description=description, partitions_def=partitions_def)


def sent_verdict(status: Status, conditions: Iterable[Condition]) -> CheckOutcome:
    """Judge by the conditions of a submission whether its batches were sent.

    A batch that waits for room in your own queue is no fault.
    """
    if status.submission.state is SubmissionState.CANCELED:
        text = "The submission was canceled; nothing more of it is sent."
        return CheckOutcome(SENT, passed=True, severity=_WARN, description=text, metadata={})
    newest = [shard for shard in status.shards if shard.wave == status.submission.waves]
    metadata = {
        "llm_batch/batches_waiting": sum(shard.state is ShardState.PLANNED and bool(shard.reason) for shard in newest),
        "llm_batch/batches_refused": sum(shard.state is ShardState.FAILED for shard in newest),
    }
    found = sorted(conditions, key=lambda condition: condition.kind not in _REFUSED)
    if not found:
        return CheckOutcome(SENT, passed=True, severity=_WARN, description="Nothing is in the way.", metadata=metadata)
    severity = _ERROR if found[0].kind in _REFUSED else _WARN
    # The reason is the provider's text, which may hold braces: it is no template.
    description = " ".join(condition.sentence for condition in found)
    return CheckOutcome(SENT, passed=False, severity=severity, description=description, metadata=metadata)


class SentChecks:
    """The checks of one dataset's submissions. One that failed is judged again when more of its batches are sent.

    The run that submits judges first; a landing run sends the rest.
    """

    def __init__(self, batch: dg.AssetKey) -> None:
        self._check = dg.AssetCheckKey(batch, SENT)
        self._may_have_failed: bool | None = None

    def judge(self, context: dg.AssetExecutionContext, engine: Engine, partition: str | None, status: Status) -> None:
        """Report that the check passes by now, where its last evaluation on the partition failed."""
        if self._may_have_failed is None:
            self._may_have_failed = has_failed(context.instance, self._check)
        if not self._may_have_failed:
            return
        last = last_evaluation(context.instance, self._check, partition)
        verdict = sent_verdict(status, find_conditions(of_status(engine, status)))
        if last is None or last.passed or not (verdict.passed and _are_all_sent(status)):
            return
        target = check_target(context.instance, self._check.asset_key, partition)
        spec = sent_spec(self._check.asset_key, None)
        for evaluation in Verdicts(self._check.asset_key, partition, [spec], [verdict]).evaluations(target):
            report_evaluation(context, evaluation)


def _are_all_sent(status: Status) -> bool:
    """Return whether the provider took all of the newest wave, or nothing more of the submission is sent."""
    newest = [shard for shard in status.shards if shard.wave == status.submission.waves]
    is_canceled = status.submission.state is SubmissionState.CANCELED
    return is_canceled or all(shard.batch_id is not None or shard.lane is Lane.REALTIME for shard in newest)


def verdicts(
    figures: LabelStats,
    status: Status,
    labeling: Labeling,
    wanted: Checks,
    conditions: Sequence[Condition] = (),
) -> list[CheckOutcome]:
    """Judge one partition by all three checks. An empty partition passes: there was nothing to miss.

    Where one of the `conditions` kept requests of it from being sent, the coverage fails, whatever is wanted.
    """
    rows = figures.labeled + figures.rejected - figures.skipped
    replies = figures.labeled + figures.outcomes[Outcome.INVALID.value]
    cost, budget = status.submission.cost_usd, labeling.budget_usd
    spend = "not known" if cost is None else money_text(cost)
    coverage = _share(COVERAGE, figures.labeled, rows, wanted.min_coverage, "rows have a label")
    if figures.skipped:
        coverage = replace(coverage, **_beside_skipped(coverage, rows, figures.skipped, wanted.min_coverage))
    coverage = _with_reason(coverage, figures)
    if waiting := figures.waiting:
        reasons = "; ".join(f"{count:,} since {reason}" for reason, count in waiting.items())
        then = f"`{retry_command(status.submission)}` asks again, and shows the price first."
        coverage = fail_with(coverage, f"Rows wait for a person: {reasons}. {then}")
    for condition in conditions:
        coverage = fail_with(coverage, condition.sentence)
        if condition.kind is ConditionKind.STOPPED:
            coverage = replace(coverage, severity=_ERROR)
    return [
        coverage,
        _with_reason(
            _share(PARSE_RATE, figures.labeled, replies, wanted.min_parse_rate, "replies fit"),
            figures,
            Outcome.INVALID.value,
        ),
        _beside_reported(
            CheckOutcome(
                SPEND,
                passed=budget is None or (cost is not None and cost <= budget),
                severity=dg.AssetCheckSeverity.WARN,
                description=f"Cost: {spend}; limit: {'none' if budget is None else money_text(budget)}.",
                metadata={} if cost is None else {"llm_batch/cost_usd": float(cost)},
            ),
            status,
        ),
    ]


def fail_with(outcome: CheckOutcome, reason: str) -> CheckOutcome:
    """Return the outcome as failed, with the reason that some rows are not asked again by themselves.

    One that had passed only warns: what has enough labels goes on downstream all the same.
    """
    severity = _WARN if outcome.passed else outcome.severity
    return replace(outcome, passed=False, severity=severity, description=f"{outcome.description} {reason}")


def cascade_verdicts(levels: Levels | None, figures: LabelStats, status: Status) -> list[CheckOutcome]:
    """Judge a partition of a cascade: whether its promise holds, and whether it saved money."""
    promise = _promise_verdict(levels, figures)
    alone, cost = None if levels is None else oracle_alone_usd(levels, status), status.submission.cost_usd
    if alone is None or cost is None:
        saves = CheckOutcome(SAVES, passed=True, severity=_WARN, description="Not known.", metadata={})
    else:
        told = f"The cascade cost {money_text(cost)}; {levels.oracle if levels else ''} alone: {money_text(alone)}."
        figure = {"llm_batch/oracle_cost_avoided_usd": float(alone - cost)}
        saves = CheckOutcome(SAVES, passed=cost <= alone, severity=_WARN, description=told, metadata=figure)
    if (why := _tell_of_silent_model(levels, figures)) is not None:
        saves = fail_with(saves, why)
    return [promise, saves]


def _tell_of_silent_model(levels: Levels | None, figures: LabelStats) -> str | None:
    """Return that most of what the model itself was asked came back without a good reply; None where it did not.

    The promise holds then, since the oracle answers these rows: at its price, and nobody would see why.
    """
    if levels is None or levels.asks_oracle_alone:
        return None
    # The rows of the sample and of an audit are the oracle's whatever the model said.
    counts = {why: count for (_, why), count in figures.levels.items() if why in (ACCEPTED, ESCALATED, INVALID)}
    asked, silent = sum(counts.values()), counts.get(INVALID, 0)
    if silent <= asked * _MOST_SILENT:
        return None
    return (
        f"Of {asked:,} rows beside the sample, the model has no good reply to {silent:,} ({silent / asked:.0%}), so "
        f"the oracle was asked. See why: a program that is missing or fails, a response that the model does not give, "
        f"a student that has not learned yet. Their `llm_why` is '{INVALID}'."
    )


def _promise_verdict(levels: Levels | None, figures: LabelStats) -> CheckOutcome:
    """Judge whether a promise holds of the labels that are there: rows without one are in none."""
    delivered, lacking = figures.labeled, figures.rejected - figures.skipped
    # Of an empty partition, or of one that was canceled before a threshold was set, no label of the model is taken.
    if levels is None or levels.threshold is None:
        why = "No threshold was set, so nothing is promised." if delivered else "There is no label."
        return CheckOutcome(
            PROMISE, not delivered, _ERROR, why if levels is None else f"{levels.promise_text} {why}", {}
        )
    most, passed = levels.most_wrong(delivered), levels.keeps_promise(delivered)
    told = [levels.promise_text]
    if not levels.asks_oracle_alone:
        told.append(f"{levels.wrong or 0:,} of {levels.calibrated_on:,} sampled labels of the model are wrong by it.")
    if lacking:
        verb = "row has no label, and is" if lacking == 1 else "rows have no label, and are"
        told.append(f"{lacking:,} {verb} in no promise.")
    if most is not None:
        keeps = "so it holds of them" if passed else "which is more than was promised: too few of the rows are there"
        told.append(f"Of the {delivered:,} labels that are there at most {most:.2%} are wrong, {keeps}.")
    metadata = {} if most is None else {"llm_batch/disagreement_bound": most}
    return CheckOutcome(PROMISE, passed, _ERROR, " ".join(told), metadata)


def rolling_verdicts(tracked: Track | None, levels: Levels | None, partition: str) -> list[CheckOutcome]:
    """Judge by the audits of a partition and those before it whether what was promised holds, and is going to."""
    if tracked is None or levels is None:
        text = "Nothing was audited: no label of the model was taken."
        names = (WINDOW_AGREEMENT, DRIFT_ALARM)
        return [CheckOutcome(name, passed=True, severity=_WARN, description=text, metadata={}) for name in names]
    from dagster_llm_batch.core.audit import ALARM  # noqa: PLC0415 - few datasets have an audit

    promised, metadata = 1 - levels.agreement, track_metadata(tracked)
    is_broken, is_alarm = tracked.low > promised, tracked.alarm == partition
    if tracked.high <= promised:
        so = "That holds what was promised"
    elif is_broken:
        so = f"At least {tracked.low:.1%} do, so what was promised does not hold"
    else:
        so = "So many audited rows do not tell whether that is held"
    window = (
        f"{len(tracked.window)} partitions from {tracked.window[0]} on: {tracked.wrong:,} of {tracked.rows:,} audited "
        f"rows have a label of the model that is not that of {levels.oracle}. With a confidence of "
        f"{levels.confidence:.0%} at most {tracked.high:.1%} of all labels are such; {promised:.1%} may be. {so}."
    )
    drift = f"The evidence that more labels disagree than may is {tracked.evidence:,.1f}; {ALARM} is an alarm."
    if is_alarm:
        drift += (
            " A score no longer means what it meant. The next partitions take samples of their own, until there are "
            "enough rows from after this one. Labels of this partition may disagree more than was promised: with "
            'calibrate="partition" it is labeled anew, and all answers are used again.'
        )
    elif tracked.alarm is not None:
        drift += f" The last one was at {tracked.alarm}: what was before it sets no threshold any more."
    return [
        CheckOutcome(WINDOW_AGREEMENT, not is_broken, _WARN, window, metadata),
        CheckOutcome(DRIFT_ALARM, not is_alarm, _WARN, drift, metadata),
    ]


_TOLERANCE = Decimal("0.01")
"""By which share of what a vendor reports our cost may differ. Vendors round each reply to some digit."""


def _beside_reported(spend: CheckOutcome, status: Status) -> CheckOutcome:
    """Return the outcome with what the vendor says that batches cost: it fails where our prices say something else."""
    if status.reported_usd is None:
        return spend
    theirs, ours = status.reported_usd
    metadata = {**spend.metadata, "llm_batch/reported_cost_usd": float(theirs)}
    if abs(theirs - ours) <= _TOLERANCE * theirs:
        return replace(spend, metadata=metadata)
    description = (
        f"{spend.description} The vendor says {money_text(theirs)} of what costs {money_text(ours)} by our prices: "
        f"more than {_TOLERANCE:.0%} off. Look at the vendor's bill, and give Spend(price=TokenPrice(…)) where ours "
        "is wrong."
    )
    return replace(spend, passed=False, description=description, metadata=metadata)


def _beside_skipped(coverage: CheckOutcome, asked: int, skipped: int, least: float) -> dict[str, Any]:
    """Return what changes in the coverage where rows are empty: they have no share in it, unless all are.

    Then no row has a label, which is as much as a least share of 0 asks for.
    """
    metadata = {**coverage.metadata, "llm_batch/rows_skipped": skipped}
    if not asked:
        reason = "All rows are empty, so none was sent. Look at what fills the columns that the prompt reads."
        return {"passed": not least, "description": reason, "metadata": {**metadata, f"llm_batch/{COVERAGE}": 0.0}}
    text = f"{coverage.description} {skipped:,} more {'is' if skipped == 1 else 'are'} empty and not sent."
    return {"description": text, "metadata": metadata}


def _share(name: str, part: int, whole: int, least: float, subject: str) -> CheckOutcome:
    """Judge a share, as of `rows have a label`. Of nothing there is none, and it passes."""
    if not whole:
        text = f"There are no {subject.partition(' ')[0]} to judge."
        return CheckOutcome(name, passed=True, severity=dg.AssetCheckSeverity.ERROR, description=text, metadata={})
    share = part / whole
    return CheckOutcome(
        name,
        passed=share >= least,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{part:,} of {whole:,} {subject} ({share:.1%}); at least {least:.0%} wanted.",
        metadata={f"llm_batch/{name}": share},
    )


def _with_reason(outcome: CheckOutcome, figures: LabelStats, only: str | None = None) -> CheckOutcome:
    """Return a failed outcome with the most frequent reason of the rejects, or of those with the outcome `only`.

    Reasons for which rows wait for a person have a sentence of their own.
    """
    if outcome.passed:
        return outcome
    counted: Counter[tuple[str, str | None]] = Counter()
    examples: dict[tuple[str, str | None], str | None] = {}
    for (kind, reason), rows in figures.reasons.items():
        if kind != SKIPPED and only in (None, kind) and not (reason or "").startswith(WAITING):
            # Each names its own image.
            alike = reason.partition(": ")[0] if reason is not None and reason.startswith(UNREADABLE) else reason
            counted[kind, alike] += rows
            examples.setdefault((kind, alike), reason)
    if not counted:
        return outcome
    [(group, most)] = counted.most_common(1)
    kind, reason = group[0], examples[group]
    rejected = figures.outcomes[only] if only else figures.rejected - figures.skipped
    words = plain_words(reason or "").rstrip(".")
    # A reason tells what a batch was stopped for, and its outcome that it was.
    named = words if words and (kind not in _NOT_ANSWERED or kind in words) else f"{kind}: {words}".rstrip(": ")
    return replace(outcome, description=f"{outcome.description} {most:,} of {rejected:,}: {named}.")


@dataclass(frozen=True)
class Verdicts:
    """Verdicts on one partition of a run over several. Its materialization is stored already."""

    asset: dg.AssetKey
    partition: str | None
    checks: Sequence[dg.AssetCheckSpec]
    outcomes: Sequence[CheckOutcome]
    may_block: bool = True

    def evaluations(self, target: CheckTarget | None) -> Iterator[dg.AssetCheckEvaluation]:
        """Yield them for Dagster. `target` is what `check_targets` returns for the partition.

        Dagster stores an AssetCheckResult of such a run without its partition, and what waits for the check downstream
        would wait for ever: the evaluation names its partition and materialization itself.
        """
        blocking = {spec.name: spec.blocking for spec in self.checks}
        for outcome in self.outcomes:
            yield dg.AssetCheckEvaluation(
                asset_key=self.asset,
                check_name=outcome.name,
                passed=outcome.passed,
                metadata=outcome.metadata,
                severity=outcome.severity,
                description=outcome.description,
                target_materialization_data=target,
                blocking=self.may_block and blocking[outcome.name],
                partition=self.partition,
            )


def all_partitions_evaluations(
    context: dg.AssetExecutionContext, partitions_def: dg.PartitionsDefinition[Any] | None
) -> Iterator[dg.AssetCheckEvaluation] | None:
    """Return a summary of all partitions for each check of a run that has no partition, as by "Execute all" in the UI.

    None for any other run. Raises ConfigError for a run without a partition that is to materialize: it would ask, and
    pay for, rows that are of no partition, and could land nowhere.
    """
    if partitions_def is None or context.has_partition_key or context.has_partition_key_range:
        return None
    if context.selected_asset_keys:
        names = ", ".join(sorted(key.to_user_string() for key in context.selected_asset_keys))
        raise ConfigError(
            f"{names} has partitions, and this run is of none of them. Nothing was sent or stored. Start the run with "
            "a partition, or a range of them: in the UI by Materialize, in a test by partition_key=."
        )
    keys = partitions_def.get_partition_keys(dynamic_partitions_store=context.instance)
    return _summaries(context, keys)


def _summaries(context: dg.AssetExecutionContext, partitions: Sequence[str]) -> Iterator[dg.AssetCheckEvaluation]:
    for spec in context.assets_def.check_specs:
        if spec.key in context.selected_asset_check_keys:
            newest = newest_evaluations(context.instance, spec.key)
            judged = {key: newest[key] for key in partitions if key in newest and not _is_empty(newest[key])}
            outcome = _summary_of(spec.name, judged, len(partitions))
            yield from Verdicts(spec.asset_key, None, [spec], [outcome], may_block=False).evaluations(None)


def _summary_of(name: str, judged: Mapping[str, dg.AssetCheckEvaluation], partitions: int) -> CheckOutcome:
    """Judge a check over all partitions by the verdict on each. It is no news: people were told of each verdict."""
    failed = {partition: one for partition, one in judged.items() if not one.passed}
    told = [f"{len(failed):,} of {len(judged):,} judged partitions fail; {partitions - len(judged):,} have no verdict."]
    told += [
        f"{partition}: {one.description or 'failed'}" for partition, one in islice(failed.items(), _FAILURES_SHOWN)
    ]
    if len(failed) > _FAILURES_SHOWN:
        told.append(f"And {len(failed) - _FAILURES_SHOWN:,} more.")
    if failed:
        told.append("Select a partition to run its checks alone.")
    severity = _ERROR if any(one.severity is _ERROR for one in failed.values()) else _WARN
    metadata = {
        "llm_batch/partitions_failed": len(failed),
        "llm_batch/partitions_judged": len(judged),
        NOT_JUDGED: "the verdicts on partitions stand",
    }
    return CheckOutcome(name, not failed, severity, " ".join(told), metadata)


def unjudged_evaluations(
    context: dg.AssetExecutionContext, partition: str | None, reason: str, *, failed: bool = False
) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield an end for each check that Dagster has planned on a partition of which this run landed nothing.

    The last verdict stands, since the last labels do; where there is none, the check passes: there is nothing to miss.
    Where the run `failed` on the partition, the first check of each asset fails with the reason.
    """
    first: dict[dg.AssetKey, str] = {}
    for spec in context.assets_def.check_specs:
        if spec.key not in context.selected_asset_check_keys:
            continue
        is_first = spec.asset_key not in first
        main = first.setdefault(spec.asset_key, spec.name)
        last = last_evaluation(context.instance, spec.key, partition)
        if failed and is_first:
            outcome = CheckOutcome(spec.name, passed=False, severity=_ERROR, description=reason, metadata={})
        elif last is not None and not _is_empty(last):
            metadata = {**last.metadata, NOT_JUDGED: "the last verdict stands"}
            outcome = CheckOutcome(spec.name, last.passed, last.severity, last.description or "", metadata)
        else:
            text = f"Nothing has landed; the check {main} says why." if failed else reason
            outcome = CheckOutcome(
                spec.name, passed=True, severity=_ERROR, description=text, metadata={NOT_JUDGED: _EMPTY}
            )
        # Nothing of this run is there to be held back, and Dagster fails a run for a verdict that blocks.
        target = check_target(context.instance, spec.asset_key, partition)
        yield from Verdicts(spec.asset_key, partition, [spec], [outcome], may_block=False).evaluations(target)


def _is_empty(evaluation: dg.AssetCheckEvaluation) -> bool:
    """Return whether it says only that nothing had landed."""
    return NOT_JUDGED in evaluation.metadata and evaluation.metadata[NOT_JUDGED].value == _EMPTY
