"""The student as assets: trained on all labels, and measured on each row by a classifier that did not learn it."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from operator import eq
from typing import Any, Unpack

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.dataset import Dataset, dataset_of
from dagster_llm_batch.assets.options import AssetOptions
from dagster_llm_batch.core.levels import ORACLE
from dagster_llm_batch.core.pricing import MONEY
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.evaluation.builder import Computed, EvaluationBuilder, Tables, code_digest
from dagster_llm_batch.evaluation.stored_tables import StoredTables
from dagster_llm_batch.metrics.clusters import REQUEST
from dagster_llm_batch.metrics.student import Student, train
from dagster_llm_batch.types import Outcome

__all__ = ["check_store", "student_assets", "student_of"]

_LEVEL = "llm_level"

_DOCS = {
    REQUEST: "digest of the request whose label it is compared with; rows with equal requests share it",
    "confidence": "probability that the label is the LLM's, calibrated",
    "llm_model": "student, and its version",
    "student_version": "digest of the student",
    "code_version": "of the labels that it was trained on",
    "rows": "number of rows that it was trained on",
    "classifier": "number of the classifier: each answers a fifth of all texts, and was trained on the others",
    "classes": "classes that the classifier answers with",
    "terms": "its vocabulary: words, and pairs of words",
    "idf": "factor of each term's frequency",
    "weights": "weights of all terms for each class; for two classes, for the second",
    "slopes": "slopes of the calibration: the probability of a score s is 1 / (1 + exp(slope * s + offset))",
}


@checked_options(AssetOptions, EvaluationBuilder)
def student_assets(
    *,
    name: str,
    labels: Sequence[dg.AssetsDefinition],
    text: str,
    target: str,
    min_rows: int = 100,
    **options: Unpack[AssetOptions],
) -> list[dg.AssetsDefinition]:
    """Declare a small classifier that learns from the LLM's labels.

        labels ─▶ <name>           the student, as numbers and words (`student_of` reads it)
                  <name>_labels    its labels of these rows, with a confidence

    A student has five classifiers, and a text is answered by one that has not learned it. So `<name>_labels` can be a
    candidate of `evaluation_assets` like any other: compared with the labels themselves it shows what the student loses
    and saves. From a cascade it learns the oracle's labels. Needs the extra `evaluation` when it runs, and an IO
    manager that stores tables, not pickles.

    Args:
        name: Name of the asset with the student.
        labels: Return value of `llm_batch_assets`, to learn from and not to measure; `keep` must have the text. All
            partitions are read.
        text: Column with the text.
        target: Column of the labels to learn: classes.
        min_rows: Least number of labels; with fewer, the student does not learn.
        options: Dagster's own, as for `evaluation_assets`. By default it learns again whenever labels are materialized.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for arguments that cannot work.
    """
    dataset = dataset_of(labels)
    if target not in dataset.labeling.reader.schema.names or text not in dataset.labeling.keep:
        raise ConfigError(
            f"text={text!r} must be one of the columns that {dataset.key.to_user_string()} keeps: "
            f"{', '.join(dataset.labeling.keep) or 'none'}; and target={target!r} one of its response's columns: "
            f"{', '.join(dataset.labeling.reader.schema.names)}."
        )
    builder = EvaluationBuilder(
        name=name,
        frame=dataset.frame,
        io_manager_key=dataset.io_manager_key,
        role="student",
        **options,
    )
    _refuse_other_words(dataset, builder.key.to_user_string(), text)
    shared: dict[str, Any] = {
        "deps": [dataset.key],
        "code_version": code_digest(dataset.labeling.code_version, text, target),
        "follow": builder.follow([dataset.key]),
    }
    of = dataset.key.to_user_string()
    specs = {
        "": builder.spec(f"A student of {of}.", kinds=set(), **shared),
        "labels": builder.spec(
            f"Labels by a student of {of}, for rows that it was not trained on.",
            suffix="labels",
            kinds={"table"},
            **shared,
        ),
    }

    def prepare(context: dg.AssetExecutionContext) -> Callable[[str | None], Tables]:
        check_store(getattr(context.resources, builder.io_manager_key), builder.io_manager_key)
        table = _labeled(context, dataset, text, target)
        if len(table) < min_rows:
            raise InputError(f"{of} has {len(table)} labels; min_rows={min_rows} are needed to train a student.")

        @cache
        def student() -> Student:
            return train(
                table[text].to_pylist(),
                table[target].to_pylist(),
                code_version=dataset.labeling.code_version,
                target=target,
                trained_at=datetime.now(UTC),
            )

        def stored() -> Computed:
            metadata = {"student/version": student().version, "student/rows": student().rows}
            metadata["student/classes"] = list(student().classes)
            return Computed(student().to_arrow(), metadata, _DOCS)

        def answers() -> Computed:
            return _answers(student(), table, dataset.labeling.key, text, target)

        return lambda _: {"": stored, "labels": answers}

    return [builder.asset(specs, prepare)]


def student_of(table: Any) -> Student:
    """Return the student in a loaded asset, whatever frame its IO manager gives."""
    return Student.from_arrow(pa.Table.from_batches(list(record_batches(table))))


def _refuse_other_words(dataset: Dataset, student: str, text: str) -> None:
    """Raise ConfigError if the student is the model of a cascade whose prompt shows it more than it learns from.

    With other words around it, a text is another text to the student, and may be answered by a classifier that has
    learned it. When rows are labeled again, sampled rows are learned and the others are not, so no guarantee would
    hold.
    """
    labeling = dataset.labeling
    column = rf"(?:{re.escape(text)}|row\[['\"]{re.escape(text)}['\"]\])"
    is_alone = re.fullmatch(rf"\s*{{{{-?\s*{column}\s*(?:\|\s*trim\s*)?-?}}}}\s*", labeling.prompt.user)
    if labeling.cascade is not None and labeling.model.partition("/")[2] == student and is_alone is None:
        raise ConfigError(
            f"{student} is the model of the cascade {dataset.key.to_user_string()}, and learns from text={text!r}, but "
            f"the prompt's user= is another text: {labeling.prompt.user[:80]!r}. It would answer rows that it has "
            f"learned, and the cascade's guarantee would not hold. Make it user='{{{{ {text} }}}}', with all else in "
            "system=, or make the whole text a column of the rows, and learn from that."
        )


def _labeled(context: dg.AssetExecutionContext, dataset: Dataset, text: str, target: str) -> pa.Table:
    is_cascade = dataset.labeling.cascade is not None
    columns = [dataset.labeling.key, text, target, *([_LEVEL] if is_cascade else [])]
    table = StoredTables(context).read(dataset.key, None, columns, also=(REQUEST,), hint="See text= and target=.")
    if is_cascade:
        # Do not learn from the model's own labels: the model may be the student itself, and they do not count as right.
        table = table.filter(pc.equal(table[_LEVEL], ORACLE))
    rows = table.filter(pc.and_(table[target].is_valid(), table[text].is_valid())).sort_by(dataset.labeling.key)
    return rows.set_column(rows.column_names.index(target), target, rows[target].cast(pa.string()))


def _answers(student: Student, table: pa.Table, key: str, text: str, target: str) -> Computed:
    began = datetime.now(UTC)
    answers = student.answers(table[text].to_pylist())
    ended = datetime.now(UTC)
    labels, n = [answer.label for answer in answers], len(table)
    when = pa.timestamp("us", "UTC")
    predictions = pa.table(
        {
            key: table[key],
            # Rows of one request have one text, and one answer of the student: evaluations count them once.
            **({REQUEST: table[REQUEST]} if REQUEST in table.column_names else {}),
            target: pa.array(labels, pa.string()),
            "confidence": pa.array([answer.confidence for answer in answers], pa.float64()),
            "llm_outcome": pa.repeat(Outcome.SUCCEEDED.value, n),
            "llm_model": pa.repeat(f"student {student.version}", n),
            "llm_cost_usd": pa.array([Decimal(0)] * n, MONEY),
            "llm_submitted_at": pa.array([began] * n, when),
            "llm_completed_at": pa.array([ended] * n, when),
        }
    )
    same = sum(map(eq, labels, table[target].to_pylist()))
    return Computed(predictions, {"student/agreement_with_llm": same / n, "student/rows_compared": n}, _DOCS)


def check_store(manager: object, name: str) -> None:
    """Raise ConfigError for an IO manager of Dagster that pickles its values."""
    if any(kind.__name__.startswith("PickledObject") for kind in type(manager).__mro__):
        raise ConfigError(
            f"The IO manager {name!r} stores pickles, as Dagster's own do by default: whoever can write to its store "
            "could run code wherever the student is loaded. Give the definitions one that stores tables, such as "
            f"resources={{{name!r}: HiveParquetIOManager(root=…)}}."
        )
