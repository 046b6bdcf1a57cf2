"""The student as assets: trained on all labels there are, and measured on rows that it did not learn from."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Unpack

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.dataset import Dataset, dataset_of
from dagster_llm_batch.assets.options import AssetOptions
from dagster_llm_batch.core.pricing import MONEY
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.evaluation.builder import Computed, EvaluationBuilder, Tables, code_digest
from dagster_llm_batch.evaluation.stored_tables import StoredTables
from dagster_llm_batch.metrics.clusters import REQUEST
from dagster_llm_batch.streams.student import Student, out_of_fold, train
from dagster_llm_batch.types import Outcome

__all__ = ["student_assets", "student_of"]

_DOCS = {
    REQUEST: "digest of the request whose label it is compared with; rows with equal requests share it",
    "confidence": "probability that the label is the LLM's, calibrated",
    "llm_model": "student, and its version",
    "model": "pickle; load it from your own store only",
    "code_version": "of the labels it learned from",
}


@checked_options(AssetOptions, EvaluationBuilder)
def student_assets(
    *,
    name: str,
    labels: Sequence[dg.AssetsDefinition],
    text: str,
    target: str,
    min_rows: int = 100,
    seed: int = 0,
    **options: Unpack[AssetOptions],
) -> list[dg.AssetsDefinition]:
    """Declare a small classifier that learns from the LLM's labels.

        labels ─▶ <name>           the student, one row (`student_of` reads it)
                  <name>_labels    what students say of rows that they did not learn from, with a confidence

    `<name>_labels` is a candidate of `evaluation_assets` like any other: beside the labels themselves it shows what the
    student loses, and what it saves. Needs the extra `evaluation` when it runs.

    Args:
        name: Name of the asset with the student.
        labels: What `llm_batch_assets` returned, to learn from and not to measure; `keep` must have the text. All
            partitions are read.
        text: Column with the text.
        target: Column of the labels that is learned: classes.
        min_rows: Fewer labels are not learned from.
        seed: Of folds and classifier.
        options: Dagster's own, as for `evaluation_assets`. By default it learns whenever labels have landed.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for what cannot work.
    """
    dataset = dataset_of(labels)
    if target not in dataset.labeling.reader.schema.names or text not in dataset.labeling.keep:
        raise ConfigError(
            f"text={text!r} must be one of keep={list(dataset.labeling.keep)} of {dataset.key.to_user_string()}, and "
            f"target={target!r} one of its response's columns: {', '.join(dataset.labeling.reader.schema.names)}."
        )
    builder = EvaluationBuilder(
        name=name,
        frame=dataset.frame,
        io_manager_key=dataset.io_manager_key,
        role="student",
        **options,
    )
    shared: dict[str, Any] = {
        "deps": [dataset.key],
        "code_version": code_digest(dataset.labeling.code_version, text, target, seed),
        "follow": builder.follow([dataset.key]),
    }
    of = dataset.key.to_user_string()
    specs = {
        "": builder.spec(f"A student of {of}.", kinds={"scikitlearn"}, **shared),
        "labels": builder.spec(
            f"Students of {of}, on rows they did not see.", suffix="labels", kinds={"table"}, **shared
        ),
    }

    def prepare(context: dg.AssetExecutionContext) -> Callable[[str | None], Tables]:
        table = _labeled(context, dataset, text, target)
        if len(table) < min_rows:
            raise InputError(f"{of} has {len(table)} labels; min_rows={min_rows} are wanted before a student learns.")

        def student() -> Computed:
            texts, labels = table[text].to_pylist(), table[target].to_pylist()
            student = train(texts, labels, code_version=dataset.labeling.code_version, target=target, seed=seed)
            metadata = {"student/version": student.version, "student/rows": student.rows}
            metadata["student/classes"] = list(student.classes)
            return Computed(student.to_arrow(), metadata, _DOCS)

        def out_of_fold_labels() -> Computed:
            return _out_of_fold_labels(table, dataset.labeling.key, text, target, seed)

        return lambda _: {"": student, "labels": out_of_fold_labels}

    return [builder.asset(specs, prepare)]


def student_of(table: Any) -> Student:
    """Return the student in a loaded asset, whatever frame its IO manager gives."""
    return Student.from_arrow(pa.Table.from_batches(list(record_batches(table))))


def _labeled(context: dg.AssetExecutionContext, dataset: Dataset, text: str, target: str) -> pa.Table:
    columns = [dataset.labeling.key, text, target]
    table = StoredTables(context).read(dataset.key, None, columns, also=(REQUEST,), hint="See text= and target=.")
    rows = table.filter(table[target].is_valid()).sort_by(dataset.labeling.key)
    return rows.set_column(rows.column_names.index(target), target, rows[target].cast(pa.string()))


def _out_of_fold_labels(table: pa.Table, key: str, text: str, target: str, seed: int) -> Computed:
    began = datetime.now(UTC)
    at, labels, confidences = out_of_fold(table[text].to_pylist(), table[target].to_pylist(), seed=seed)
    ended = datetime.now(UTC)
    truth = [table[target][row].as_py() for row in at]
    n = len(at)
    when = pa.timestamp("us", "UTC")
    predictions = pa.table(
        {
            key: table[key].take(pa.array(at)),
            # Rows of one request have one text, and one answer of the student: evaluations count them once.
            **({REQUEST: table[REQUEST].take(pa.array(at))} if REQUEST in table.column_names else {}),
            target: pa.array(labels, pa.string()),
            "confidence": pa.array(confidences, pa.float64()),
            "llm_outcome": pa.repeat(Outcome.SUCCEEDED.value, n),
            "llm_model": pa.repeat("student", n),
            "llm_cost_usd": pa.array([Decimal(0)] * n, MONEY),
            "llm_submitted_at": pa.array([began] * n, when),
            "llm_completed_at": pa.array([ended] * n, when),
        }
    )
    same = sum(label == other for label, other in zip(labels, truth, strict=True))
    return Computed(predictions, {"student/agreement_with_llm": same / n, "student/rows_compared": n}, _DOCS)
