"""Metadata of an evaluation for Dagster's UI: figures to plot, tables to read, pictures to look at.

Figures are floats under `llm_batch/<candidate>/<figure>`, with several targets `llm_batch/<target>/<candidate>/…`, so
that Dagster plots each over time or partitions. Pictures are PNG inside Markdown, since Dagster stores no images; they
are reduced to few colors, since each is kept in the event log forever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.addresses import Filter, Linked, RowLinks
from dagster_llm_batch.evaluation.builder import MAX_PICTURES, picture
from dagster_llm_batch.evaluation.candidates import Candidate
from dagster_llm_batch.evaluation.gold_rows import Read
from dagster_llm_batch.evaluation.invalid_gold import InvalidGold, invalid_gold_sentence
from dagster_llm_batch.evaluation.thresholds import figure_name
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.metrics import (
    Evaluation,
    EvaluationReport,
    Regression,
    Target,
    accuracy_png,
    agreements_markdown,
    confusion_png,
    evaluations_markdown,
    pareto_png,
    per_class_markdown,
    plain_text,
    reliability_png,
    table_markdown,
)
from dagster_llm_batch.metrics.cells import markdown_text
from dagster_llm_batch.metrics.failures import Failure
from dagster_llm_batch.metrics.mistakes import kept_name
from dagster_llm_batch.metrics.pareto import bake_off_markdown
from dagster_llm_batch.metrics.regression import regressions_markdown
from dagster_llm_batch.metrics.survey import MIN_CLASS_ROWS, MIN_ROWS
from dagster_llm_batch.metrics.tables import figure, percent, rows_markdown

__all__ = [
    "DOCS",
    "FAILURE_DOCS",
    "MistakeLinks",
    "calibration_metadata",
    "column_lineage",
    "evaluation_metadata",
    "failures_metadata",
    "invalid_gold_metadata",
    "mistakes_docs",
    "mistakes_lineage",
    "mistakes_metadata",
    "per_class_metadata",
    "versions_metadata",
]

_PLOTTED = (
    *("coverage", "n_eff", "accuracy", "accuracy_all", "macro_f1", "kappa", "kappa_all", "ece", "brier"),
    *("mae", "rmse", "pearson", "spearman"),
    *("cost_usd", "cost_per_correct_usd", "latency_p50_seconds"),
)

MISTAKES_SHOWN = 20
# Dagster shows so much Markdown at once, and hides longer text behind a link.
_HEADLINES_SHOWN = 6

_SENTENCE_CHARS = 1_000

_LOW, _HIGH = "95 % interval by the unit, lower end", "95 % interval by the unit, upper end"
_METHOD = "method of the interval, or the reason why it is missing"

DOCS = {
    "partition": "partition that was evaluated",
    "candidate": "candidate that gave the labels",
    "target": "column that was compared with gold",
    "kind": "categorical or numeric",
    "n_gold": "gold rows with a value",
    "n_labeled": "gold rows that have a label",
    "n_absent": "gold rows that the candidate does not have",
    "n_rejected": "gold rows that were rejected",
    "n_empty": "gold rows whose label is null",
    "n_gold_null": "gold rows without a value, left out",
    "n_ignored": "rows of the candidate without gold, left out",
    "coverage": "n_labeled / n_gold",
    "n_eff": "rows drawn with equal probability that would give as much information; null without weights",
    "n_classes": "distinct values in gold and labels",
    "n_correct": "labels that equal gold",
    "accuracy": "share of labeled rows that are correct",
    "n_units": "independent units among the labeled rows: requests, or clusters",
    "accuracy_low": _LOW,
    "accuracy_high": _HIGH,
    "accuracy_interval": _METHOD,
    "accuracy_all": "share of gold rows that are correct; a row without a label is wrong",
    "accuracy_all_low": _LOW,
    "accuracy_all_high": _HIGH,
    "accuracy_all_interval": _METHOD,
    "baseline_class": "most frequent class of gold",
    "baseline_accuracy": "accuracy_all if every label were baseline_class",
    "baseline_accuracy_labeled": "accuracy if every label were the most frequent class of the labeled rows",
    "macro_precision": "mean precision of the classes",
    "macro_recall": "mean recall of the classes",
    "macro_f1": "mean F1 of the classes",
    "macro_f1_low": _LOW,
    "macro_f1_high": _HIGH,
    "macro_f1_interval": _METHOD,
    "kappa": "Cohen's kappa with gold",
    "kappa_low": _LOW,
    "kappa_high": _HIGH,
    "kappa_interval": _METHOD,
    "kappa_all": "kappa over all gold rows; a missing label is an answer that is always wrong",
    "kappa_weights": "linear or quadratic for ordinal classes",
    "mae": "mean absolute error",
    "mae_low": _LOW,
    "mae_high": _HIGH,
    "mae_interval": _METHOD,
    "rmse": "root mean squared error",
    "rmse_low": _LOW,
    "rmse_high": _HIGH,
    "rmse_interval": _METHOD,
    "pearson": "linear correlation with gold",
    "spearman": "rank correlation with gold",
    "cost_usd": "known cost of the candidate's rows with gold",
    "n_cost_unknown": "rows of unknown cost; if there are any, cost_usd is a lower bound",
    "cost_per_correct_usd": "cost_usd / n_correct",
    "latency_p50_seconds": "median wait of the labeled rows, from submission to the end of their batch",
    "latency_p95_seconds": "95 % of the labeled rows waited no longer",
    "n_confident": "labeled rows with a confidence",
    "mean_confidence": "mean confidence of the labeled rows that have one",
    "ece": "expected calibration error: mean distance of confidence and accuracy",
    "brier": "mean squared distance of the confidence from 1 (correct) or 0 (wrong)",
    "on_pareto_front": "false if another candidate is as good for less money, or better for as much",
    "models": "models that replied, by the provider's names for them",
    "prompt_versions": "versions of the prompt's wording",
    "class": "class of the target",
    **{f"{figure}_low": _LOW for figure in ("precision", "recall", "f1")},
    **{f"{figure}_high": _HIGH for figure in ("precision", "recall", "f1")},
    **{f"{figure}_interval": _METHOD for figure in ("precision", "recall", "f1")},
    "f1": "harmonic mean of precision and recall",
    "support": "labeled rows of the class",
    "predicted": "rows that were labeled as this class",
    "correct": "rows of this class that were labeled as this class",
    "precision": "correct / predicted",
    "recall": "correct / support",
    "confidence_from": "confidence of the bin's labels is over this (0 itself is in the first bin)",
    "confidence_to": "and at most this",
    "n": "labels in the bin",
    "accepted_versions": "prompt versions of the accepted labels",
    "current_versions": "prompt versions of the present labels",
    "n_both": "gold rows that both versions were asked about",
    "n_fixed": "rows that only the present version has right (nearer, of numbers)",
    "n_broken": "rows that only the accepted version has right (nearer, of numbers)",
    "accepted": "accuracy of the accepted version (mean absolute error, of numbers)",
    "current": "the same of the present version",
    "change": "current - accepted",
    "change_low": _LOW,
    "change_high": _HIGH,
    "change_interval": _METHOD,
    "p_worse": "probability that an equally good version looks this bad, in this look alone (exact, one-sided)",
}


FAILURE_DOCS = {
    "partition": "partition that was evaluated",
    "candidate": "candidate that gave the labels",
    "target": "column that was compared with gold",
    "gold": "correct class; null for rows without a label",
    "label": "label of the candidate; null for rows without a label",
    "reason": "reason for the missing label; null for rows with a label",
    "n": "gold rows in the group",
    "n_gold": "gold rows with a value",
    "share": "share of all gold rows; of the whole table where gold has the weights of a sample",
    "share_low": _LOW,
    "share_high": _HIGH,
    "share_interval": _METHOD,
    "words": "words that distinguish its texts, the surest first: log-odds with a Dirichlet prior over 2.58",
    "examples": "keys of the first rows, as text",
}


@dataclass(frozen=True)
class MistakeLinks:
    """Links to the rows that an evaluation found to be wrong, of one partition or of all."""

    links: RowLinks
    asset: str
    key: str
    partition: str | None

    def table(self, *filters: Filter) -> str | None:
        """Return the link to the mistakes that pass the filters."""
        return self.links.table(self.asset, *filters, partition=self.partition)

    def group(self, failure: Failure) -> str | None:
        """Return the link to the rows of a group."""
        label, reason = (Filter.of(f"{failure.candidate}_label", failure.label), f"{failure.candidate}_reason")
        cause = Filter.of("gold", failure.gold) if failure.reason is None else Filter.of(reason, failure.reason)
        return self.table(Filter("target", "is", failure.target), label, cause)

    def row(self, key: object) -> str | None:
        """Return the link to a row by its key."""
        return self.links.row(self.asset, self.key, str(key), self.partition)


def evaluation_metadata(
    report: EvaluationReport, read: Read, failures: Sequence[Failure], mistakes: MistakeLinks
) -> dict[str, Any]:
    """Return the metadata of `<name>`: the main figures, pictures, and the rows left out."""
    shown = {
        "llm_batch/evaluation": dg.MetadataValue.md(_headline(report.evaluations)),
        "llm_batch/report": dg.MetadataValue.md(_report(report, read.invalid_gold, failures, mistakes)),
    }
    counts = {
        "gold_rows": len(read.gold),
        "gold_rows_elsewhere": read.gold_rows_elsewhere,
        "partitions": read.partitions,
        "partitions_missing": read.partitions_missing,
        "partitions_unlabeled": read.gold_partitions_without_labels,
        "partitions_without_gold": read.labeled_partitions_without_gold,
    }
    return {
        **shown,
        **{
            name: value
            for evaluation in report.evaluations
            for name, value in _figures(evaluation, report.evaluations).items()
        },
        **{f"llm_batch/{name}": value for name, value in counts.items() if value is not None},
        **invalid_gold_metadata(read.invalid_gold),
        **_weights(report.evaluations),
    }


def invalid_gold_metadata(invalid_gold: Sequence[InvalidGold]) -> dict[str, str]:
    """Describe the values of gold that labels cannot equal, if there are any."""
    return {"llm_batch/gold_misfits": " ".join(found.text for found in invalid_gold)} if invalid_gold else {}


def per_class_metadata(report: EvaluationReport) -> dict[str, Any]:
    """For `<name>_per_class`."""
    return {"llm_batch/per_class": dg.MetadataValue.md(per_class_markdown(report.per_class))}


def calibration_metadata(report: EvaluationReport) -> dict[str, Any]:
    """Return the metadata of `<name>_calibration`: figures, and a reliability diagram per candidate and target."""
    figures = [
        {
            "candidate": calibration.candidate,
            "target": calibration.target,
            "labels": calibration.n,
            "ECE": calibration.ece,
            "Brier": calibration.brier,
        }
        for calibration in report.calibrations
    ]
    parts = [table_markdown(pa.Table.from_pylist(figures), max_rows=len(figures))] if figures else []
    drawn = [calibration for calibration in report.calibrations if calibration.n]
    parts += [
        picture(f"reliability diagram of {calibration.candidate}, {calibration.target}", reliability_png(calibration))
        for calibration in drawn[:MAX_PICTURES]
    ]
    return {"llm_batch/calibration": dg.MetadataValue.md("\n\n".join(parts) or "No label has a confidence.")}


def mistakes_metadata(mistakes: pa.Table, links: MistakeLinks) -> dict[str, Any]:
    """Return the metadata of `<name>_mistakes`: the number of rows, and the first of them to read."""
    text = "There are no mistakes."
    if len(mistakes):
        text = table_markdown(mistakes, max_rows=MISTAKES_SHOWN, links={links.key: links.row})
    return {"llm_batch/mistakes": dg.MetadataValue.md(text), "llm_batch/rows_mistaken": len(mistakes)}


def failures_metadata(failures: Sequence[Failure], mistakes: MistakeLinks) -> dict[str, Any]:
    """Return the metadata of `<name>_failures`: the largest groups, with their distinguishing words."""
    text = "There are no mistakes."
    if failures:
        largest = sorted(failures, key=lambda failure: -failure.n)[:MISTAKES_SHOWN]
        text = rows_markdown(
            [{**_group(failure, mistakes), "words": ", ".join(failure.words) or "-"} for failure in largest]
        )
        # Keys stand below: in a cell of the table there is one link only.
        text += "\n\n" + "\n".join(
            f"- {markdown_text(_named(failure))}: "
            + ", ".join(markdown_text(Linked(key, mistakes.row(key))) for key in failure.examples)
            for failure in largest
        )
    return {"llm_batch/failures": dg.MetadataValue.md(text), "llm_batch/groups": len(failures)}


def _group(failure: Failure, mistakes: MistakeLinks) -> dict[str, str | Linked]:
    return {
        "candidate": failure.candidate,
        "target": failure.target,
        "what": _named(failure),
        "rows": Linked(f"{failure.n:,}", mistakes.group(failure)),
        "share (95 %)": percent(failure.share, failure.share_low, failure.share_high),
    }


def _named(failure: Failure) -> str:
    return f"{failure.gold} → {failure.label}" if failure.reason is None else f"no label: {failure.reason}"


def mistakes_docs(candidates: Sequence[Candidate], *, key: str, keep: Sequence[str]) -> dict[str, str]:
    """Return the description of each column of `<name>_mistakes`."""
    docs = {
        key: "key of the row",
        **{kept_name(name): "copied from the input rows" for name in keep},
        "target": "column that was compared with gold",
        "gold": "correct value, as text",
    }
    for candidate in candidates:
        docs[f"{candidate.name}_label"] = f"label of {candidate.name}, as text; null for rows without a label"
        docs[f"{candidate.name}_confidence"] = "its own confidence, 0 to 1"
        docs[f"{candidate.name}_reason"] = "reason for the missing label; null for rows with a label"
    return docs


def mistakes_lineage(
    schema: pa.Schema, *, gold: dg.AssetKey, candidates: Sequence[Candidate], key: str, targets: Sequence[Target]
) -> dg.TableColumnLineage:
    """Return the lineage of `<name>_mistakes`: each column from the table that it is copied from."""
    by_column = {
        key: [dg.TableColumnDep(gold, key)],
        "gold": [dg.TableColumnDep(gold, target.gold_column or target.name) for target in targets],
    }
    for candidate in candidates:
        by_column[f"{candidate.name}_label"] = [dg.TableColumnDep(candidate.key, target.name) for target in targets]
        sure = dict.fromkeys(target.confidence_column for target in targets if target.confidence_column)
        by_column[f"{candidate.name}_confidence"] = [dg.TableColumnDep(candidate.key, name) for name in sure]
        reason = [dg.TableColumnDep(candidate.key, "llm_outcome")]
        if candidate.rejects is not None:
            reason.append(dg.TableColumnDep(candidate.rejects, "llm_reason"))
        by_column[f"{candidate.name}_reason"] = reason
        for name in candidate.keep:
            by_column.setdefault(kept_name(name), []).append(dg.TableColumnDep(candidate.key, name))
    return dg.TableColumnLineage({name: by_column[name] for name in schema.names if by_column.get(name)})


def versions_metadata(regressions: Sequence[Regression]) -> dict[str, Any]:
    """For `<name>_versions`."""
    text = regressions_markdown(regressions) or "Nothing is accepted yet."
    changes = {
        figure_key("change", regression.candidate, regression.target): regression.change
        for regression in regressions
        if regression.change is not None
    }
    return {"llm_batch/versions": dg.MetadataValue.md(text), **changes}


def _figures(evaluation: Evaluation, among: Sequence[Evaluation]) -> dict[str, float | int]:
    known = {name: getattr(evaluation, name) for name in _PLOTTED}
    # little room here too
    figures = {name: float(f"{value:.8g}") for name, value in known.items() if value is not None}
    counts = {"rows_unlabeled": evaluation.n_gold - evaluation.n_labeled}
    return {figure_name(evaluation, among, name): value for name, value in {**figures, **counts}.items()}


def _weights(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """Say how gold was drawn, where its rows do not count alike; some may have no interval for it."""
    weighted = [evaluation for evaluation in evaluations if evaluation.n_eff is not None]
    if not weighted:
        return {}
    told = "; ".join(
        f"{plain_text(evaluation.candidate)}, {plain_text(evaluation.target)}: {evaluation.n_labeled:,} labeled rows "
        f"tell as much as {evaluation.n_eff:.1f} that are drawn alike"
        for evaluation in weighted
    )
    return {
        "llm_batch/gold_weights": f"Gold was drawn with unequal probabilities: figures are estimates for all rows that "
        f"it was drawn from. {told}. Below {MIN_ROWS} such rows there is no interval, nor one of kappa and macro F1 "
        f"where gold has fewer than {MIN_CLASS_ROWS} rows of a class."
    }


def _headline(evaluations: Sequence[Evaluation]) -> str:
    """Return an item for each candidate and target: the candidate, how good it is with the interval, and the rows.

    Dagster's *Overview* page cuts off what is wider than its column, so these are short lines, and no table.
    """
    has_targets = len({evaluation.target for evaluation in evaluations}) > 1
    items = [
        # Two blanks end a line within an item.
        "  \n  ".join(
            [
                markdown_text(evaluation.candidate) + (f", {markdown_text(evaluation.target)}" if has_targets else ""),
                _quality(evaluation),
                _rows_compared(evaluation),
            ]
        )
        for evaluation in evaluations[:_HEADLINES_SHOWN]
    ]
    if (left_out := len(evaluations) - len(items)) > 0:
        items.append(f"{left_out:,} more in llm_batch/report")
    return "\n".join(f"- {item}" for item in items)


def _quality(evaluation: Evaluation) -> str:
    """Return accuracy or mean absolute error with its 95 % interval."""
    if not evaluation.n_labeled:
        return "**not measured**"
    if evaluation.kind == "numeric":
        value = "mean error " + figure(evaluation.mae)
        low, high = figure(evaluation.mae_low), figure(evaluation.mae_high)
        is_known = None not in (evaluation.mae_low, evaluation.mae_high)
    else:
        value = f"{percent(evaluation.accuracy)} right"
        low, high = percent(evaluation.accuracy_low), percent(evaluation.accuracy_high)
        is_known = None not in (evaluation.accuracy_low, evaluation.accuracy_high)
    return f"**{value}** ({f'{low} to {high}' if is_known else 'no interval'})"


def _rows_compared(evaluation: Evaluation) -> str:
    """Return how many gold rows the figures are of, and how many have no label."""
    missing = evaluation.n_gold - evaluation.n_labeled
    unlabeled = f", {missing:,} unlabeled" if missing else ""
    return f"{evaluation.n_labeled:,} labeled gold {'row' if evaluation.n_labeled == 1 else 'rows'}{unlabeled}"


def _report(
    report: EvaluationReport, invalid_gold: Sequence[InvalidGold], failures: Sequence[Failure], mistakes: MistakeLinks
) -> str:
    """Return everything to read, in one Markdown: the UI opens it over the whole page."""
    categorical = [
        evaluation for evaluation in report.evaluations if evaluation.kind == "categorical" and evaluation.n_gold
    ]
    said = invalid_gold_sentence(invalid_gold)
    parts = [] if said is None else [f"**{markdown_text(said, _SENTENCE_CHARS)}**"]
    parts.append(evaluations_markdown(report.evaluations))
    if categorical:
        parts.append(picture("accuracy by candidate", accuracy_png(categorical)))
    parts += _bake_off(report.evaluations)
    if report.agreements:
        parts += ["#### Candidates compared on the rows that both labeled", agreements_markdown(report.agreements)]
    drawn = [confusion for confusion in report.confusions if confusion.classes]
    parts += [
        picture(f"confusion matrix of {confusion.candidate}, {confusion.target}", confusion_png(confusion))
        for confusion in drawn[:MAX_PICTURES]
    ]
    if (left_out := len(drawn) - MAX_PICTURES) > 0:
        parts.append(f"{left_out} more confusion matrices are not drawn.")
    if failures:
        largest = sorted(failures, key=lambda failure: -failure.n)[:MISTAKES_SHOWN]
        parts += ["#### What goes wrong most often", rows_markdown([_group(one, mistakes) for one in largest])]
    if len(report.per_class):
        parts += ["#### Classes", per_class_markdown(report.per_class)]
    return "\n\n".join(parts)


def _bake_off(evaluations: Sequence[Evaluation]) -> list[str]:
    """Quality against cost, if there is something to choose."""
    judged = [evaluation.target for evaluation in evaluations if evaluation.on_pareto_front is not None]
    targets = [target for target in dict.fromkeys(judged) if judged.count(target) > 1]
    if not targets:
        return []
    drawn = [picture(f"quality against cost, {target}", pareto_png(evaluations, target)) for target in targets]
    return ["#### Quality, cost and latency", bake_off_markdown(evaluations), *drawn[:MAX_PICTURES]]


def column_lineage(
    schema: pa.Schema, *, gold: dg.AssetKey, candidates: Sequence[Candidate], key: str, targets: Sequence[Target]
) -> dg.TableColumnLineage:
    """Return the lineage: figures come from keys and values on both sides, costs and models from the provenance."""
    names = [candidate.key for candidate in candidates]
    values = [dg.TableColumnDep(gold, column) for column in [key, *(t.gold_column or t.name for t in targets)]]
    values += [dg.TableColumnDep(name, column) for name in names for column in [key, *(t.name for t in targets)]]
    confidences = dict.fromkeys(t.confidence_column for t in targets if t.confidence_column)
    sure = [dg.TableColumnDep(name, column) for name in names for column in confidences]

    def of(*columns: str) -> list[dg.TableColumnDep]:
        return [dg.TableColumnDep(name, column) for name in names for column in columns]

    costs, times = of("llm_cost_usd"), of("llm_submitted_at", "llm_completed_at")
    special = {
        "cost_usd": costs,
        "n_cost_unknown": costs,
        "cost_per_correct_usd": [*costs, *values],
        "on_pareto_front": [*costs, *values],
        "latency_p50_seconds": times,
        "latency_p95_seconds": times,
        **{name: [*sure, *values] for name in ("n_confident", "mean_confidence", "ece", "brier")},
        "models": of("llm_model"),
        "prompt_versions": of("llm_prompt_version"),
        "current_versions": of("llm_prompt_version"),
    }
    described = {"partition", "candidate", "target", "kind", "kappa_weights", "confidence_from", "confidence_to"}
    return dg.TableColumnLineage({name: special.get(name, values) for name in schema.names if name not in described})
