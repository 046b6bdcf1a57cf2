"""Evaluations as Arrow tables for storage, and as markdown for people in the Dagster UI.

Row data never becomes markup: every cell goes through `markdown_text`. Money is exact decimal in Arrow (12 decimals).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import pyarrow as pa

from dagster_llm_batch.addresses import Linked
from dagster_llm_batch.metrics.cells import markdown_text
from dagster_llm_batch.metrics.classification import Evaluation
from dagster_llm_batch.metrics.mcnemar import Agreement
from dagster_llm_batch.metrics.per_class import Confusion, class_name
from dagster_llm_batch.metrics.schemas import schema_of, table_of
from dagster_llm_batch.text import money_text

__all__ = [
    "AGREEMENT_SCHEMA",
    "CONFUSION_SCHEMA",
    "EVALUATION_SCHEMA",
    "agreements_markdown",
    "agreements_to_arrow",
    "confusion_markdown",
    "confusions_to_arrow",
    "evaluations_markdown",
    "evaluations_to_arrow",
    "figure",
    "per_class_markdown",
    "percent",
    "rows_markdown",
    "share",
    "table_markdown",
]

_DASH = "-"
_KAPPA = "Cohen's κ"

EVALUATION_SCHEMA = schema_of(Evaluation)
"""The fields of `Evaluation`, in order; `models` and `prompt_versions` are one text each, joined by commas."""

AGREEMENT_SCHEMA = schema_of(Agreement)
"""The fields of `Agreement`, in order."""

CONFUSION_SCHEMA = pa.schema(
    {"candidate": pa.string(), "target": pa.string(), "gold": pa.string(), "predicted": pa.string(), "n": pa.int64()}
)
"""Long form: one row for each cell that is not 0."""


def evaluations_to_arrow(evaluations: Iterable[Evaluation]) -> pa.Table:
    """Return one row for each evaluation, in EVALUATION_SCHEMA."""
    return table_of(evaluations, Evaluation)


def agreements_to_arrow(agreements: Iterable[Agreement]) -> pa.Table:
    """Return one row for each pair of candidates and target, in AGREEMENT_SCHEMA."""
    return table_of(agreements, Agreement)


def confusions_to_arrow(confusions: Iterable[Confusion]) -> pa.Table:
    """Return all matrices, in CONFUSION_SCHEMA."""
    rows = [
        {
            "candidate": matrix.candidate,
            "target": matrix.target,
            "gold": class_name(gold),
            "predicted": class_name(predicted),
            "n": n,
        }
        for matrix in confusions
        for gold, counts in zip(matrix.classes, matrix.counts, strict=True)
        for predicted, n in zip(matrix.classes, counts, strict=True)
        if n
    ]
    return pa.Table.from_pylist(rows, schema=CONFUSION_SCHEMA)


def evaluations_markdown(evaluations: Sequence[Evaluation]) -> str:
    """Return the figures that decide, one row for each evaluation, with 95 % intervals; numeric targets in a separate
    table.
    """
    categorical = [
        {
            "candidate": e.candidate,
            "target": e.target,
            "labeled": share(e.n_labeled, e.n_gold),
            "accuracy (95 %)": percent(e.accuracy, e.accuracy_low, e.accuracy_high),
            "always majority": percent(e.baseline_accuracy_labeled),
            "unlabeled as wrong": percent(e.accuracy_all),
            "always majority, of all": percent(e.baseline_accuracy),
            "macro F1 (95 %)": figure(e.macro_f1, e.macro_f1_low, e.macro_f1_high, e.macro_f1_interval),
            f"{_KAPPA} (95 %)": figure(e.kappa, e.kappa_low, e.kappa_high, e.kappa_interval),
            **_money(e),
        }
        for e in evaluations
        if e.kind == "categorical"
    ]
    numeric = [
        {
            "candidate": e.candidate,
            "target": e.target,
            "labeled": share(e.n_labeled, e.n_gold),
            "mean absolute error (95 %)": figure(e.mae, e.mae_low, e.mae_high, e.mae_interval),
            "RMSE (95 %)": figure(e.rmse, e.rmse_low, e.rmse_high, e.rmse_interval),
            "Pearson": figure(e.pearson),
            "Spearman": figure(e.spearman),
            **_money(e),
        }
        for e in evaluations
        if e.kind == "numeric"
    ]
    return "\n\n".join(rows_markdown(rows) for rows in (categorical, numeric) if rows)


def agreements_markdown(agreements: Sequence[Agreement]) -> str:
    """Return one row for each pair: who is ahead, by how much, and whether chance would do."""
    return rows_markdown(
        [
            {
                "a": agreement.a,
                "b": agreement.b,
                "target": agreement.target,
                "both labeled": f"{agreement.n_both:,}",
                "same label": share(agreement.n_same, agreement.n_both),
                _KAPPA: figure(agreement.kappa),
                "only a correct": f"{agreement.n_only_a_correct:,}",
                "only b correct": f"{agreement.n_only_b_correct:,}",
                "McNemar p": f"{agreement.p_value:.2g} ({agreement.test})",
            }
            for agreement in agreements
        ]
    )


def confusion_markdown(matrix: Confusion) -> str:
    """Gold classes down, predictions across."""
    names = [class_name(value) for value in matrix.classes]
    head = ["gold ↓ predicted →", *names]
    rows = [[name, *(f"{n:,}" for n in counts)] for name, counts in zip(names, matrix.counts, strict=True)]
    return _grid(head, rows)


def per_class_markdown(table: pa.Table) -> str:
    """Return a table of PER_CLASS_SCHEMA, each figure with its 95 % interval."""
    figures = ("precision", "recall", "f1")
    counts = [name for name in table.column_names if not name.startswith(figures)]
    return rows_markdown(
        [
            {name: str(row[name]) for name in counts}
            | {f"{name} (95 %)": figure(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in figures}
            for row in table.to_pylist()
        ]
    )


def table_markdown(
    table: pa.Table, *, max_rows: int = 20, links: Mapping[str, Callable[[object], str | None]] | None = None
) -> str:
    """Return the first rows of any table. Says how many were left out. `links` gives addresses for the values of some
    columns.
    """
    shown, links = table.slice(0, max_rows), links or {}
    cells = [
        [Linked(_cell(value), links[name](value)) if name in links else _cell(value) for value in column.to_pylist()]
        for name, column in zip(shown.column_names, shown.columns, strict=True)
    ]
    text = _grid(table.column_names, list(zip(*cells, strict=True)))
    left_out = len(table) - len(shown)
    return f"{text}\n\n{left_out:,} more rows" if left_out else text


def rows_markdown(rows: Sequence[Mapping[str, str | Linked]]) -> str:
    """Return rows of equal keys as one table; empty without rows."""
    return _grid(list(rows[0]), [list(row.values()) for row in rows]) if rows else ""


def _grid(head: Sequence[str], rows: Sequence[Sequence[str | Linked]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    escaped = [[str(cell) if at == 1 else markdown_text(cell) for cell in line] for at, line in enumerate(lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _cell(value: object) -> str:
    if value is None:
        return _DASH
    return figure(value) if isinstance(value, float) else str(value)


def figure(value: float | None, low: float | None = None, high: float | None = None, method: str | None = None) -> str:
    """Return it with its interval, or else with the reason for a missing one (`method`); a dash for None."""
    if value is None:
        return _DASH
    if low is None or high is None:
        return f"{value:.3f}" + (f" (no interval: {method.removeprefix('none: ')})" if method else "")
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def percent(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a figure with its interval, in percent."""
    if value is None:
        return _DASH
    return f"{value:.1%}" if low is None or high is None else f"{value:.1%} ({low:.1%} to {high:.1%})"


def share(part: int, whole: int) -> str:
    """Return counts, and the percentage."""
    return f"{part:,} of {whole:,}" + (f" ({part / whole:.1%})" if whole else "")


def _money(e: Evaluation) -> dict[str, str]:
    at_least = "at least " if e.n_cost_unknown else ""
    return {
        "cost (USD)": "unknown" if e.cost_usd is None else at_least + money_text(e.cost_usd),
        "per correct (USD)": _DASH if e.cost_per_correct_usd is None else money_text(e.cost_per_correct_usd),
        "model": ", ".join(e.models) or _DASH,
    }
