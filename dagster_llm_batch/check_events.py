"""The evaluations of checks, as Dagster stores them: of one partition, of all, and of those without new labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
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
from dagster_llm_batch.checks import COVERAGE, SENT, CheckOutcome, sent_outcome, sent_spec
from dagster_llm_batch.engine import Status
from dagster_llm_batch.engine.condition_facts import of_status
from dagster_llm_batch.engine.conditions import find_conditions
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.storage.ledger.records import SubmissionState
from dagster_llm_batch.types import Lane

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine

__all__ = [
    "NOT_JUDGED",
    "CheckOutcomes",
    "NotJudged",
    "SentChecks",
    "all_partitions_evaluations",
    "unjudged_evaluations",
]

NOT_JUDGED = "llm_batch/not_judged"
"""Metadata of an evaluation whose run had nothing to judge: it is no news. Its value is the reason."""


class NotJudged(StrEnum):
    """Reasons that are stored with evaluations, and compared when they are read: words of a key, not sentences."""

    EMPTY = "nothing_materialized"
    IN_FLIGHT = "labels_in_flight"
    LAST = "last_result"
    SUMMARY = "results_of_partitions"


# Dagster keeps evaluations that earlier code stored, with a sentence.
_EMPTY = (NotJudged.EMPTY, "nothing has landed")

_FAILURES_SHOWN = 10

# The checks that fail with the reason if a run fails on labels, or on a submission.
_MAIN_CHECKS = (COVERAGE, SENT)

_ERROR, _WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


class SentChecks:
    """The checks of one dataset's submissions. One that failed is judged again when more of its batches are sent.

    The run that submits judges first. The run that materializes labels reports the rest.
    """

    def __init__(self, batch: dg.AssetKey) -> None:
        self._check = dg.AssetCheckKey(batch, SENT)
        self._may_have_failed: bool | None = None

    def judge(self, context: dg.AssetExecutionContext, engine: Engine, partition: str | None, status: Status) -> None:
        """Report that the check passes now, if its last evaluation on the partition failed."""
        if self._may_have_failed is None:
            self._may_have_failed = has_failed(context.instance, self._check)
        if not self._may_have_failed:
            return
        last = last_evaluation(context.instance, self._check, partition)
        check_result = sent_outcome(status, find_conditions(of_status(engine, status)))
        if last is None or last.passed or not (check_result.passed and _are_all_sent(status)):
            return
        target = check_target(context.instance, self._check.asset_key, partition)
        spec = sent_spec(self._check.asset_key, None)
        for evaluation in CheckOutcomes(self._check.asset_key, partition, [spec], [check_result]).evaluations(target):
            report_evaluation(context, evaluation)


def _are_all_sent(status: Status) -> bool:
    """Return whether the provider accepted the whole newest round, or the submission is canceled."""
    newest = [shard for shard in status.shards if shard.wave == status.submission.waves]
    is_canceled = status.submission.state is SubmissionState.CANCELED
    return is_canceled or all(shard.batch.batch_id is not None or shard.lane is Lane.REALTIME for shard in newest)


@dataclass(frozen=True)
class CheckOutcomes:
    """Outcomes of the checks of one partition, in a run over several. Its materialization is stored already."""

    asset: dg.AssetKey
    partition: str | None
    checks: Sequence[dg.AssetCheckSpec]
    outcomes: Sequence[CheckOutcome]
    may_block: bool = True

    def evaluations(self, target: CheckTarget | None) -> Iterator[dg.AssetCheckEvaluation]:
        """Yield them for Dagster. `target` is the partition's result of `check_targets`.

        Dagster stores an AssetCheckResult of such a run without its partition, and downstream assets that wait for the
        check would wait forever. So the evaluation itself contains its partition and materialization.
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

    None for any other run. Raises ConfigError for a materializing run without a partition: it would ask, and pay for,
    rows that do not belong to a partition, and could not be stored.
    """
    if partitions_def is None or context.has_partition_key or context.has_partition_key_range:
        return None
    if context.selected_asset_keys:
        names = ", ".join(sorted(key.to_user_string() for key in context.selected_asset_keys))
        raise ConfigError(
            f"{names} has partitions, but this run was started without one. Nothing was sent or stored. Start the run "
            "with a partition, or a range of them: in the UI by Materialize, in a test by partition_key=."
        )
    keys = partitions_def.get_partition_keys(dynamic_partitions_store=context.instance)
    return _summaries(context, keys)


def _summaries(context: dg.AssetExecutionContext, partitions: Sequence[str]) -> Iterator[dg.AssetCheckEvaluation]:
    for spec in context.assets_def.check_specs:
        if spec.key in context.selected_asset_check_keys:
            newest = newest_evaluations(context.instance, spec.key)
            judged = {key: newest[key] for key in partitions if key in newest and not _is_empty(newest[key])}
            outcome = _summary_of(spec.name, judged, len(partitions))
            yield from CheckOutcomes(spec.asset_key, None, [spec], [outcome], may_block=False).evaluations(None)


def _summary_of(name: str, judged: Mapping[str, dg.AssetCheckEvaluation], partitions: int) -> CheckOutcome:
    """Judge a check over all partitions by the result on each. It sends no alert: each result has sent its own."""
    failed = {partition: one for partition, one in judged.items() if not one.passed}
    told = [f"{len(failed):,} of {len(judged):,} judged partitions fail; {partitions - len(judged):,} have no result."]
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
        NOT_JUDGED: NotJudged.SUMMARY.value,
    }
    return CheckOutcome(name, not failed, severity, " ".join(told), metadata)


def unjudged_evaluations(
    context: dg.AssetExecutionContext, partition: str | None, reason: str, *, failed: bool = False
) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield an evaluation for each planned check on a partition for which this run has materialized nothing.

    The last result stands, since the last labels do; without one, the check passes: there is nothing to judge. If the
    run `failed` on the partition, the main check of each asset fails with the reason.
    """
    planned = [spec for spec in context.assets_def.check_specs if spec.key in context.selected_asset_check_keys]
    mains = _find_main_checks(planned)
    for spec in planned:
        main = mains[spec.asset_key]
        last = last_evaluation(context.instance, spec.key, partition)
        if failed and spec.name == main:
            outcome = CheckOutcome(spec.name, passed=False, severity=_ERROR, description=reason, metadata={})
        elif last is not None and not _is_empty(last):
            metadata = {**last.metadata, NOT_JUDGED: NotJudged.LAST.value}
            outcome = CheckOutcome(spec.name, last.passed, last.severity, last.description or "", metadata)
        else:
            text = f"Nothing was materialized; the check {main} shows the reason." if failed else reason
            outcome = CheckOutcome(
                spec.name, passed=True, severity=_ERROR, description=text, metadata={NOT_JUDGED: NotJudged.EMPTY.value}
            )
        # This run has no labels to hold back, and Dagster fails a run for a blocking result.
        target = check_target(context.instance, spec.asset_key, partition)
        yield from CheckOutcomes(spec.asset_key, partition, [spec], [outcome], may_block=False).evaluations(target)


def _find_main_checks(planned: Sequence[dg.AssetCheckSpec]) -> dict[dg.AssetKey, str]:
    """Return the name of each asset's main check: an evaluation's is the first one that it declares."""
    first = {spec.asset_key: spec.name for spec in reversed(planned)}
    return first | {spec.asset_key: spec.name for spec in planned if spec.name in _MAIN_CHECKS}


def _is_empty(evaluation: dg.AssetCheckEvaluation) -> bool:
    """Return whether it only records that the asset is not materialized yet."""
    return NOT_JUDGED in evaluation.metadata and evaluation.metadata[NOT_JUDGED].value in _EMPTY
