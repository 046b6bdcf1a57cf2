"""Checks of every labeled partition, each declared once in CHECKS; and one of every submission: whether it was sent.

They are partitioned, so that a bad partition stops only its own downstream partitions.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from dagster_llm_batch.addresses import Filter
from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.cascade import Rolling
from dagster_llm_batch.core.evidence import Match
from dagster_llm_batch.core.levels import ACCEPTED, ESCALATED, INVALID, promise_text
from dagster_llm_batch.core.quoted_columns import Evidence
from dagster_llm_batch.engine import Labeling, Status
from dagster_llm_batch.engine.conditions import Condition, ConditionKind
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.label_stats import LabelStats, RejectReasons
from dagster_llm_batch.loop.status import retry_command
from dagster_llm_batch.metadata import audit_history_metadata, oracle_alone_usd
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.batches import count_refused
from dagster_llm_batch.storage.ledger.records import SubmissionState
from dagster_llm_batch.text import money_text, plain_words
from dagster_llm_batch.types import SKIPPED, UNGROUNDED, Outcome

if TYPE_CHECKING:
    from dagster_llm_batch.core.audit import AuditHistory
    from dagster_llm_batch.core.levels import Levels
    from dagster_llm_batch.core.shares import AuditedAnswers

__all__ = [
    "CHECKS",
    "COVERAGE",
    "GROUNDED",
    "PARSE_RATE",
    "PROMISE",
    "SENT",
    "SPEND",
    "Check",
    "CheckOutcome",
    "Checks",
    "PartitionFacts",
    "RowsBehind",
    "check_specs",
    "checks_of",
    "fail_with",
    "final_check",
    "sent_outcome",
    "sent_spec",
]

COVERAGE, PARSE_RATE, SPEND, SENT = "coverage", "parse_rate", "spend", "sent"
GROUNDED = "grounded"
PROMISE, SAVES = "promise", "saves"
WINDOW_AGREEMENT, DRIFT_ALARM = "window_agreement", "drift_alarm"

# Above this share of rows without a good reply, something is broken: the worst simulated models have a fifth.
_MOST_SILENT = 0.5

_NOT_ANSWERED = (Outcome.CANCELED.value, Outcome.EXPIRED.value, Outcome.MISSING.value)

_TOLERANCE = Decimal("0.01")
"""Allowed deviation of our cost, as a share of the vendor's report. Vendors round each reply to some digit."""

_ERROR, _WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


@checked
@dataclass(frozen=True)
class Checks:
    """Requirements for a labeled partition.

    Args:
        min_coverage: Least share of rows with a label, 0 to 1. Empty rows, which are skipped, do not count, unless all
            rows are empty: that is a share of 0. With 0, every share passes.
        min_parse_rate: Least share of replies that fit the response, 0 to 1.
        evidence: Fields of the response that quote a column of the rows: the labeled table has the place of each quote.
            Default: none.
        min_grounded: Least share of quotes that are found in their texts, 0 to 1. A smaller share warns.
        blocking: True to stop downstream assets if the coverage or parse rate fails.
    """

    min_coverage: float = 0.95
    min_parse_rate: float = 0.95
    evidence: Evidence | None = None
    min_grounded: float = 0.95
    blocking: bool = True

    def __post_init__(self) -> None:
        for name in ("min_coverage", "min_parse_rate", "min_grounded"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"Checks.{name}={value!r} is not allowed; a share is between 0 and 1.")


@dataclass(frozen=True)
class CheckOutcome:
    """The result of one check on one partition."""

    name: str
    passed: bool
    severity: dg.AssetCheckSeverity
    description: str
    metadata: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PartitionFacts:
    """The facts of one labeled partition that its checks judge.

    Attributes:
        stats: The counts of its rows.
        rejects: Its rejects by their reasons.
        status: Its submission with its shards, and with its bill.
        labeling: The definition that it was sent with.
        wanted: The shares that the dataset requires.
        conditions: The conditions that kept requests of it from being sent.
        levels: The threshold and guarantee of a cascade; None without a cascade, or before the threshold is set.
        shares: The near copies or older labels, and the decision on them; None without them.
        tracked: The audits of a cascade's last partitions; None without audits.
    """

    stats: LabelStats
    rejects: RejectReasons
    status: Status
    labeling: Labeling
    wanted: Checks
    conditions: Sequence[Condition] = ()
    levels: Levels | None = None
    shares: AuditedAnswers | None = None
    tracked: AuditHistory | None = None


@dataclass(frozen=True)
class RowsBehind:
    """The rows that explain the result of a check: rows of a table, filtered and ordered as on the review page."""

    table: Literal["labels", "rejects"]
    filters: tuple[Filter, ...] = ()
    order: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of each labeled partition.

    Attributes:
        name: Its name in Dagster.
        describe: Returns its description for a dataset; None for a dataset without the check.
        judge: Returns its result for one partition, built by `outcome`.
        severity: Severity of a failure; `judge` may return another one.
        may_block: True if a failure stops downstream assets, provided that the dataset has `Checks.blocking`.
        rows: The rows that its result links to.
    """

    name: str
    describe: Callable[[Checks, Labeling], str | None]
    judge: Callable[[Check, PartitionFacts], CheckOutcome]
    severity: dg.AssetCheckSeverity
    may_block: bool = False
    rows: RowsBehind | None = None

    def outcome(self, *, passed: bool, description: str, metadata: dict[str, Any] | None = None) -> CheckOutcome:
        """Return a result of this check."""
        return CheckOutcome(self.name, passed, self.severity, description, metadata or {})


def check_specs(
    asset: dg.AssetKey,
    wanted: Checks,
    partitions_def: dg.PartitionsDefinition[Any] | None,
    labeling: Labeling,
) -> list[dg.AssetCheckSpec]:
    """Return the specs of the checks that a dataset has."""
    with warnings.catch_warnings():
        # Dagster 1.13 warns for each spec that partitioned checks are a preview.
        warnings.simplefilter("ignore", category=dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(
                check.name,
                asset=asset,
                description=description,
                blocking=wanted.blocking and check.may_block,
                partitions_def=partitions_def,
            )
            for check in CHECKS
            if (description := check.describe(wanted, labeling)) is not None
        ]


def checks_of(wanted: Checks, labeling: Labeling) -> list[Check]:
    """Return a dataset's checks in the order in which their results are reported: `final_check` last."""
    own = [check for check in CHECKS if check.describe(wanted, labeling) is not None]
    return sorted(own, key=lambda check: check.name == _FINAL)


def final_check(labels: dg.AssetKey) -> dg.AssetCheckKey:
    """Return the check of labels that is reported last: if it is stored, all are."""
    return dg.AssetCheckKey(labels, _FINAL)


def sent_spec(asset: dg.AssetKey, partitions_def: dg.PartitionsDefinition[Any] | None) -> dg.AssetCheckSpec:
    """Return the spec of the check of a submission."""
    description = "The provider accepted every batch that the run sent."
    with warnings.catch_warnings():
        # As above.
        warnings.simplefilter("ignore", category=dg.PreviewWarning)
        return dg.AssetCheckSpec(SENT, asset=asset, description=description, partitions_def=partitions_def)


def sent_outcome(status: Status, conditions: Iterable[Condition]) -> CheckOutcome:
    """Judge from the conditions of a submission whether its batches were sent.

    A batch that waits for space in your own queue is not a failure.
    """
    if status.submission.state is SubmissionState.CANCELED:
        text = "The submission was canceled; nothing more of it is sent."
        return CheckOutcome(SENT, passed=True, severity=_WARN, description=text, metadata={})
    newest = [shard for shard in status.shards if shard.wave == status.submission.waves]
    metadata = {
        "llm_batch/batches_waiting": sum(
            shard.state is ShardState.PLANNED and bool(shard.reason_kind) for shard in newest
        ),
        "llm_batch/batches_refused": count_refused(newest),
    }
    # Refused batches come first.
    found = sorted(conditions, key=lambda condition: condition.kind is not ConditionKind.REFUSED)
    if not found:
        text = "Each batch was accepted, or waits for its turn."
        return CheckOutcome(SENT, passed=True, severity=_WARN, description=text, metadata=metadata)
    severity = _ERROR if any(condition.kind is ConditionKind.REFUSED for condition in found) else _WARN
    # The reason is the provider's text, which may contain braces: do not use it as a template.
    description = " ".join(condition.sentence for condition in found)
    return CheckOutcome(SENT, passed=False, severity=severity, description=description, metadata=metadata)


def fail_with(outcome: CheckOutcome, reason: str) -> CheckOutcome:
    """Return the outcome as failed, with the reason why some rows are not retried automatically.

    An outcome that had passed becomes a warning: a partition with enough labels still continues downstream.
    """
    severity = _WARN if outcome.passed else outcome.severity
    return replace(outcome, passed=False, severity=severity, description=f"{outcome.description} {reason}")


def _describe_coverage(wanted: Checks, _labeling: Labeling) -> str:
    return f"At least {wanted.min_coverage:.0%} of the rows that are not empty have a label."


def _judge_coverage(check: Check, facts: PartitionFacts) -> CheckOutcome:
    """Judge the share of rows with a label. An empty partition passes, since it has no rows to miss.

    It fails if one of the conditions kept requests from being sent, whatever the required share is.
    """
    stats, least = facts.stats, facts.wanted.min_coverage
    rows = stats.labeled + stats.rejected - stats.skipped
    coverage = _share(check, stats.labeled, rows, least, "rows have a label")
    if stats.skipped:
        coverage = replace(coverage, **_beside_skipped(coverage, rows, stats.skipped, least))
    coverage = _with_reason(coverage, facts)
    if waiting := facts.rejects.waiting:
        reasons = "; ".join(f"{count:,} since {reason}" for reason, count in waiting.items())
        then = f"`{retry_command(facts.status.submission)}` asks again, and shows the price first."
        coverage = fail_with(coverage, f"Rows wait for a person: {reasons}. {then}")
    for condition in facts.conditions:
        coverage = fail_with(coverage, condition.sentence)
        if condition.kind is ConditionKind.STOPPED:
            coverage = replace(coverage, severity=_ERROR)
    return coverage


def _describe_parse_rate(wanted: Checks, _labeling: Labeling) -> str:
    return f"At least {wanted.min_parse_rate:.0%} of the replies fit the response format."


def _judge_parse_rate(check: Check, facts: PartitionFacts) -> CheckOutcome:
    """Judge the share of replies that fit."""
    stats, invalid = facts.stats, Outcome.INVALID.value
    fitting = stats.labeled + stats.outcomes[UNGROUNDED]
    replies = fitting + stats.outcomes[invalid]
    parse_rate = _share(check, fitting, replies, facts.wanted.min_parse_rate, "replies fit")
    return _with_reason(parse_rate, facts, invalid)


def _describe_spend(_wanted: Checks, _labeling: Labeling) -> str:
    return "The submission cost at most max_cost_usd, and our prices match the cost that the vendor reports, if any."


def _judge_spend(check: Check, facts: PartitionFacts) -> CheckOutcome:
    """Judge the bill by the limit, and by the vendor's report."""
    cost, budget = facts.status.submission.cost_usd, facts.labeling.budget_usd
    spend = "not known" if cost is None else money_text(cost)
    outcome = check.outcome(
        passed=budget is None or (cost is not None and cost <= budget),
        description=f"Cost: {spend}; limit: {'none' if budget is None else money_text(budget)}.",
        metadata={} if cost is None else {"llm_batch/cost_usd": float(cost)},
    )
    return _beside_reported(outcome, facts.status)


def _describe_grounded(wanted: Checks, labeling: Labeling) -> str | None:
    if labeling.evidence is None:
        return None
    fields = ", ".join(f"{path} (of {column})" for path, column in labeling.evidence.quotes.items())
    return f"At least {wanted.min_grounded:.0%} of the quotes are found in their texts: {fields}."


def _judge_grounded(check: Check, facts: PartitionFacts) -> CheckOutcome:
    """Judge the share of quotes that are found. Labels without quotes pass: there was nothing to find."""
    quotes = facts.stats.quotes
    found = quotes.total() - quotes[Match.MISSING.value]
    grounded = _share(check, found, quotes.total(), facts.wanted.min_grounded, "quotes are found")
    kinds = [match.value for match in Match]
    if quotes:
        told = ", ".join(f"{quotes[kind]:,} {kind}" for kind in kinds)
        grounded = replace(grounded, description=f"{grounded.description} By kind: {told}.")
    if rejected := facts.stats.outcomes[UNGROUNDED]:
        rows = (
            "1 row with a missing quote is a reject"
            if rejected == 1
            else f"{rejected:,} rows with a missing quote are rejects"
        )
        grounded = replace(grounded, description=f"{grounded.description} {rows}.")
    return replace(
        grounded, metadata={**grounded.metadata, **{f"llm_batch/quotes_{kind}": quotes[kind] for kind in kinds}}
    )


def _describe_promise(_wanted: Checks, labeling: Labeling) -> str | None:
    if (cascade := labeling.cascade) is None:
        return None
    promised = cascade.oracle, cascade.target, cascade.least_share, cascade.confidence, cascade.within
    stated = promise_text(*promised, cascade.filters, cascade.yes)
    if labeling.near is not None:
        stated += " The near copies have a guarantee of their own, and the risks of both add up."
    if labeling.relabel is not None:
        stated += " The rows with an older label have a guarantee of their own, and the risks of both add up."
    return f"The cascade keeps its guarantee. {stated} Rows for the oracle have only its labels."


def _judge_promise(check: Check, facts: PartitionFacts) -> CheckOutcome:
    """Judge whether a guarantee holds for the existing labels: rows without a label are outside the guarantee."""
    levels, stats = facts.levels, facts.stats
    delivered, lacking = stats.labeled, stats.rejected - stats.skipped
    # An empty partition, or one that was canceled before a threshold was set, has no labels of the model.
    if levels is None or levels.threshold is None:
        why = "The threshold was not set, so these labels lack a guarantee." if delivered else "There is no label."
        return check.outcome(
            passed=not delivered, description=why if levels is None else f"{levels.promise_text} {why}"
        )
    shares = facts.shares
    # The cascade's guarantee is about the other rows, and each row apart without a label is one of them here.
    copies = 0 if shares is None else shares.rows_left
    passed = levels.keeps_promise(max(delivered - copies, 0))
    most = levels.most_wrong(delivered, 0 if shares is None else shares.most_wrong)
    told = [levels.promise_text if shares is None else shares.promise_text]
    if shares is not None:
        told.append(f"{'Older labels' if shares.leads_elsewhere else 'Near copies'}: {shares.result_text}.")
    if not levels.asks_oracle_alone:
        told.append(f"{levels.wrong or 0:,} of {levels.calibrated_on:,} sampled labels of the model are wrong by it.")
    if lacking:
        verb = "row lacks a label, and is" if lacking == 1 else "rows lack a label, and are"
        told.append(f"{lacking:,} {verb} outside the guarantee.")
    if most is not None:
        keeps = "so the guarantee holds" if passed else "more than the guarantee allows: too few rows have a label"
        told.append(f"At most {most:.2%} of the {delivered:,} delivered labels are wrong, {keeps}.")
    if levels.filters is not None and not passed:
        told.append("These rows may be yes, and are more than the guarantee allows. Label them, so that it holds.")
    metadata = {} if most is None else {"llm_batch/disagreement_bound": most}
    return check.outcome(passed=passed, description=" ".join(told), metadata=metadata)


def _describe_saves(_wanted: Checks, labeling: Labeling) -> str | None:
    if (cascade := labeling.cascade) is None:
        return None
    return f"The cascade cost no more than {cascade.oracle} alone would have, and most replies of its model are good."


def _judge_saves(check: Check, facts: PartitionFacts) -> CheckOutcome:
    """Judge whether a cascade saved money."""
    levels, cost = facts.levels, facts.status.submission.cost_usd
    alone = None if levels is None else oracle_alone_usd(levels, facts.status)
    if alone is None or cost is None:
        saves = check.outcome(passed=True, description="Not known.")
    else:
        told = f"The cascade cost {money_text(cost)}; {levels.oracle if levels else ''} alone: {money_text(alone)}."
        metadata = {"llm_batch/oracle_cost_avoided_usd": float(alone - cost)}
        saves = check.outcome(passed=cost <= alone, description=told, metadata=metadata)
    why = _tell_of_silent_model(levels, facts.stats)
    return saves if why is None else fail_with(saves, why)


def _describe_window(_wanted: Checks, labeling: Labeling) -> str | None:
    cascade = labeling.cascade
    if cascade is None or not isinstance(cascade.calibrate, Rolling):
        return None
    return (
        f"Audited rows of the last 20 partitions do not show that fewer than {cascade.agreement:.0%} of the "
        f"labels agree with {cascade.oracle}."
    )


def _judge_window(check: Check, facts: PartitionFacts) -> CheckOutcome:
    """Judge from the audits of this partition and earlier ones whether the guarantee holds."""
    tracked, levels = facts.tracked, facts.levels
    if tracked is None or levels is None:
        return _unaudited(check)
    promised = 1 - levels.agreement
    is_broken = tracked.low > promised
    if tracked.high <= promised:
        so = "So the guarantee holds"
    elif is_broken:
        so = f"At least {tracked.low:.1%} differ, so the guarantee does not hold"
    else:
        so = "The audited rows are too few to decide whether the guarantee holds"
    of = "all labels"
    if facts.shares is not None:
        kind = "have no older label" if facts.shares.leads_elsewhere else "are no near copies"
        of = f"the labels of rows that {kind}"
    window = (
        f"{len(tracked.window)} partitions from {tracked.window[0]} on: in {tracked.wrong:,} of {tracked.rows:,} "
        f"audited rows, the model's label differs from {levels.oracle}'s. With a confidence of "
        f"{levels.confidence:.0%}, at most {tracked.high:.1%} of {of} differ; {promised:.1%} may. {so}."
    )
    return check.outcome(passed=not is_broken, description=window, metadata=audit_history_metadata(tracked))


def _describe_drift(_wanted: Checks, labeling: Labeling) -> str | None:
    cascade = labeling.cascade
    if cascade is None or not isinstance(cascade.calibrate, Rolling):
        return None
    return "According to the audits, scores mean the same as in earlier partitions."


def _judge_drift(check: Check, facts: PartitionFacts) -> CheckOutcome:
    """Judge from the same audits whether the guarantee will hold."""
    tracked = facts.tracked
    if tracked is None or facts.levels is None:
        return _unaudited(check)
    from dagster_llm_batch.core.audit import ALARM  # noqa: PLC0415 - few datasets have an audit

    is_alarm = tracked.alarm == facts.status.submission.partition
    drift = f"The evidence that too many labels disagree is {tracked.evidence:,.1f}; {ALARM} is an alarm."
    if is_alarm:
        drift += (
            " Scores do not mean the same any more. Each of the next partitions takes its own sample, until there are "
            "enough rows from after this one. Labels of this partition may disagree more often than the guarantee "
            'allows. To label it again, set calibrate="partition": all answers are reused.'
        )
    elif tracked.alarm is not None:
        drift += f" The last alarm was at {tracked.alarm}: only partitions after it set a threshold."
    return check.outcome(passed=not is_alarm, description=drift, metadata=audit_history_metadata(tracked))


def _unaudited(check: Check) -> CheckOutcome:
    return check.outcome(passed=True, description="Nothing was audited: the model's labels were not used.")


def _tell_of_silent_model(levels: Levels | None, stats: LabelStats) -> str | None:
    """Return a warning if the model itself answered few of its requests well; None otherwise.

    The guarantee still holds, since the oracle answers these rows. But it does so at its price, unnoticed.
    """
    if levels is None or levels.asks_oracle_alone:
        return None
    # The oracle answers the rows of the sample and of an audit, whatever the model's reply is.
    counts = {why: count for (_, why), count in stats.levels.items() if why in (ACCEPTED, ESCALATED, INVALID)}
    asked, silent = sum(counts.values()), counts.get(INVALID, 0)
    if silent <= asked * _MOST_SILENT:
        return None
    return (
        f"For {silent:,} of {asked:,} rows outside the sample ({silent / asked:.0%}), the model has no valid reply, so "
        f"the oracle was asked. Their `llm_why` is '{INVALID}'. Find the cause: a program that is missing or fails, a "
        "response that the model does not give, or a student that has not learned yet."
    )


def _beside_reported(spend: CheckOutcome, status: Status) -> CheckOutcome:
    """Return the outcome with the vendor's reported cost: it fails if our prices give another cost."""
    if status.reported_usd is None:
        return spend
    theirs, ours = status.reported_usd
    metadata = {**spend.metadata, "llm_batch/reported_cost_usd": float(theirs)}
    if abs(theirs - ours) <= _TOLERANCE * theirs:
        return replace(spend, metadata=metadata)
    description = (
        f"{spend.description} The vendor reports {money_text(theirs)} for replies that cost {money_text(ours)} by our "
        f"prices: they differ by more than {_TOLERANCE:.0%}. Look at the vendor's bill, and give "
        "Spend(price=TokenPrice(…)) if our price is wrong."
    )
    return replace(spend, passed=False, description=description, metadata=metadata)


def _beside_skipped(coverage: CheckOutcome, asked: int, skipped: int, least: float) -> dict[str, Any]:
    """Return the changes of the coverage because of empty rows: they do not count, unless all are empty.

    If all are empty, the share of labels is 0, which is enough for a least share of 0.
    """
    metadata = {**coverage.metadata, "llm_batch/rows_skipped": skipped}
    if not asked:
        reason = "All rows are empty; nothing was sent. Check the columns that the prompt reads."
        return {"passed": not least, "description": reason, "metadata": {**metadata, f"llm_batch/{COVERAGE}": 0.0}}
    text = f"{coverage.description} {skipped:,} more {'is' if skipped == 1 else 'are'} empty and not sent."
    return {"description": text, "metadata": metadata}


def _share(check: Check, part: int, whole: int, least: float, subject: str) -> CheckOutcome:
    """Judge a share, for example of `rows have a label`. Passes if there is nothing to judge."""
    if not whole:
        text = f"There are no {subject.partition(' ')[0]} to judge."
        return check.outcome(passed=True, description=text)
    share = part / whole
    return check.outcome(
        passed=share >= least,
        description=f"{part:,} of {whole:,} {subject} ({share:.1%}); required: at least {least:.0%}.",
        metadata={f"llm_batch/{check.name}": share},
    )


def _with_reason(outcome: CheckOutcome, facts: PartitionFacts, only: str | None = None) -> CheckOutcome:
    """Return a failed outcome with the most frequent reason of the rejects, or of those with the outcome `only`.

    Reasons for which rows wait for a person have their own sentence.
    """
    if outcome.passed:
        return outcome
    counted: Counter[tuple[str, str | None, bool]] = Counter()
    reasons: dict[tuple[str, str | None, bool], list[str | None]] = defaultdict(list)
    for (kind, reason, is_unsent), rows in facts.rejects.others.items():
        if kind != SKIPPED and only in (None, kind):
            # Unreadable images have one reason each.
            group = kind, None if is_unsent else reason, is_unsent
            counted[group] += rows
            reasons[group].append(reason)
    if not counted:
        return outcome
    [(group, most)] = counted.most_common(1)
    kind, [reason, *others] = group[0], reasons[group]
    stats = facts.stats
    rejected = stats.outcomes[only] if only else stats.rejected - stats.skipped
    words = plain_words(reason or "").rstrip(".")
    # A stopped batch gives its cause as the reason; that it was stopped is in the outcome.
    named = words if words and (kind not in _NOT_ANSWERED or kind in words) else f"{kind}: {words}".rstrip(": ")
    such = f" (one of {len(others) + 1:,} such reasons)" if others else ""
    return replace(outcome, description=f"{outcome.description} {most:,} of {rejected:,}: {named}{such}.")


CHECKS: tuple[Check, ...] = (
    Check(
        name=COVERAGE,
        describe=_describe_coverage,
        judge=_judge_coverage,
        severity=_ERROR,
        may_block=True,
        rows=RowsBehind("rejects"),
    ),
    Check(
        name=PARSE_RATE,
        describe=_describe_parse_rate,
        judge=_judge_parse_rate,
        severity=_ERROR,
        may_block=True,
        rows=RowsBehind("rejects", (Filter("llm_outcome", "is", Outcome.INVALID.value),)),
    ),
    Check(
        name=SPEND,
        describe=_describe_spend,
        judge=_judge_spend,
        severity=_WARN,
        rows=RowsBehind("labels", order="-llm_cost_usd"),
    ),
    Check(
        name=GROUNDED,
        describe=_describe_grounded,
        judge=_judge_grounded,
        severity=_WARN,
        rows=RowsBehind("labels"),
    ),
    Check(name=PROMISE, describe=_describe_promise, judge=_judge_promise, severity=_ERROR, may_block=True),
    Check(name=SAVES, describe=_describe_saves, judge=_judge_saves, severity=_WARN),
    Check(name=WINDOW_AGREEMENT, describe=_describe_window, judge=_judge_window, severity=_WARN),
    Check(name=DRIFT_ALARM, describe=_describe_drift, judge=_judge_drift, severity=_WARN),
)
"""All checks of labels. A dataset has the checks whose `describe` returns a description."""

# Every dataset has this check.
_FINAL = SPEND
