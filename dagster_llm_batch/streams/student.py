"""A small student of the LLM: text features and a calibrated linear classifier, from scikit-learn.

It learns from labels, and says how sure it is of an answer. It knows from which definition its labels came
(`code_version`): a student of another prompt, model or response is not used by mistake.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow as pa

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.metrics.schemas import evaluation_extra

__all__ = ["STUDENT_SCHEMA", "Answer", "Student", "out_of_fold", "train"]

# of the calibration; a class with fewer texts cannot be learned
_FOLDS = 3
_WHAT = "A student"

STUDENT_SCHEMA = pa.schema(
    [
        ("student_version", pa.string()),
        ("code_version", pa.string()),
        ("target", pa.string()),
        ("classes", pa.list_(pa.string())),
        ("rows", pa.int64()),
        ("trained_at", pa.timestamp("us", "UTC")),
        ("library", pa.string()),
        ("model", pa.large_binary()),
    ]
)
"""One row: a student as it is stored. `model` is a pickle: load it from your own store only."""


class Answer(NamedTuple):
    """What a student says of a text: the class, its probability, and the share of the text's words that it knows."""

    label: str
    confidence: float
    known: float


@dataclass(frozen=True)
class Student:
    """A trained student. `version` is a digest of what it is."""

    version: str
    code_version: str
    target: str
    classes: tuple[str, ...]
    rows: int
    trained_at: datetime
    pipeline: Any = field(repr=False)

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        """Answer each text."""
        if not texts:
            return []
        words, classifier = self.pipeline.steps[0][1], self.pipeline.steps[1][1]
        features = words.transform(texts)
        chances = classifier.predict_proba(features)
        best = chances.argmax(axis=1)
        analyze, vocabulary = words.build_analyzer(), words.vocabulary_
        return [
            Answer(self.classes[at], float(chances[number, at]), _known(analyze(texts[number]), vocabulary))
            for number, at in enumerate(best)
        ]

    def to_arrow(self) -> pa.Table:
        """Return the student as it is stored, in STUDENT_SCHEMA."""
        with evaluation_extra(_WHAT):
            import joblib  # noqa: PLC0415 - scikit-learn brings it
            import sklearn  # noqa: PLC0415 - an extra
        buffer = io.BytesIO()
        joblib.dump(self.pipeline, buffer, compress=3)
        row = {name: getattr(self, name) for name in ("code_version", "target", "rows", "trained_at")}
        row |= {"student_version": self.version, "classes": list(self.classes), "model": buffer.getvalue()}
        return pa.Table.from_pylist([{**row, "library": f"scikit-learn {sklearn.__version__}"}], schema=STUDENT_SCHEMA)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Student:
        """Load a stored student. Raises InputError where another version of scikit-learn made it."""
        with evaluation_extra(_WHAT):
            import joblib  # noqa: PLC0415 - as above
            import sklearn  # noqa: PLC0415 - as above
        [row] = table.to_pylist()
        here = f"scikit-learn {sklearn.__version__}"
        if row["library"] != here:
            raise InputError(f"The student was trained with {row['library']}; here is {here}. Train it again.")
        pipeline = joblib.load(io.BytesIO(row["model"]))
        given = {name: row[name] for name in ("code_version", "target", "rows", "trained_at")}
        return cls(version=row["student_version"], classes=tuple(row["classes"]), pipeline=pipeline, **given)


def train(texts: Sequence[str], labels: Sequence[str], *, code_version: str, target: str, seed: int = 0) -> Student:
    """Train a student on these labels. Classes with fewer than 3 different texts are left out.

    Raises InputError where fewer than two classes are left.
    """
    kept = _learnable(texts, labels)
    texts, labels = [texts[at] for at in kept], [labels[at] for at in kept]
    pipeline = _fitted(texts, labels, seed)
    classes = tuple(map(str, pipeline.classes_))
    learned = repr((code_version, target, seed, sorted(zip(texts, labels, strict=True))))
    version = hashlib.blake2b(learned.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return Student(version, code_version, target, classes, len(texts), datetime.now(UTC), pipeline)


def out_of_fold(
    texts: Sequence[str], labels: Sequence[str], *, folds: int = 5, seed: int = 0
) -> tuple[list[int], list[str], list[float]]:
    """Return what students say of rows that they have not seen: positions in `texts`, labels and confidences.

    Each fifth of the texts is answered by a student of the others, which has seen no row with the same text. Rows of
    classes that cannot be learned are answered too.
    """
    with evaluation_extra(_WHAT):
        import numpy as np  # noqa: PLC0415 - an extra
        from sklearn.model_selection import KFold  # noqa: PLC0415 - an extra
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    if len(numbers) < folds:
        raise InputError(
            f"The labeled rows have {len(numbers)} different texts; a student is tried on {folds} or more."
        )
    of_row = np.array([numbers[text] for text in texts])
    predictions: dict[int, tuple[str, float]] = {}
    for _, tried in KFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(numbers))):
        is_asked = np.isin(of_row, tried)
        learned, asked = (np.flatnonzero(rows).tolist() for rows in (~is_asked, is_asked))
        kept = [learned[at] for at in _learnable([texts[at] for at in learned], [labels[at] for at in learned])]
        pipeline = _fitted([texts[at] for at in kept], [labels[at] for at in kept], seed)
        chances = pipeline.predict_proba([texts[at] for at in asked])
        for at, row in zip(asked, chances, strict=True):
            best = int(row.argmax())
            predictions[at] = (str(pipeline.classes_[best]), float(row[best]))
    order = sorted(predictions)
    return order, [predictions[at][0] for at in order], [predictions[at][1] for at in order]


def _fitted(texts: Sequence[str], labels: Sequence[str], seed: int) -> Any:
    with evaluation_extra(_WHAT):
        import threadpoolctl  # noqa: PLC0415 - scikit-learn brings it
        from sklearn.calibration import CalibratedClassifierCV  # noqa: PLC0415 - an extra
        from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415 - an extra
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - an extra
        from sklearn.pipeline import Pipeline  # noqa: PLC0415 - an extra
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=50_000, strip_accents="unicode")
    linear = LogisticRegression(C=4.0, max_iter=1_000, class_weight="balanced", random_state=seed)
    calibrated = CalibratedClassifierCV(linear, cv=_splits(texts, labels), ensemble=False)
    pipeline = Pipeline([("words", words), ("linear", calibrated)])
    # on a busy machine its threads wait for each other, for minutes
    with threadpoolctl.threadpool_limits(1):
        pipeline.fit(texts, labels)
    # The positions of all rows would be stored with the student.
    return pipeline.set_params(linear__cv=_FOLDS)


def _splits(texts: Sequence[str], labels: Sequence[str]) -> list[tuple[Any, Any]]:
    """Return positions to learn from and positions to calibrate on: no text is in both, and each class in all."""
    import numpy as np  # noqa: PLC0415 - its caller has it

    seen: Counter[str] = Counter()
    fold_of: dict[str, int] = {}
    for text, label in zip(texts, labels, strict=True):
        if text not in fold_of:
            fold_of[text] = seen[label] % _FOLDS
            seen[label] += 1
    folds = np.array([fold_of[text] for text in texts])
    return [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(_FOLDS)]


def _learnable(texts: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Return positions of rows whose class has enough different texts; one with several labels counts for the first."""
    first: dict[str, str] = {}
    for text, label in zip(texts, labels, strict=True):
        first.setdefault(text, label)
    counts = Counter(first.values())
    kept = [at for at, label in enumerate(labels) if counts[label] >= _FOLDS]
    if len({labels[at] for at in kept}) < 2:  # noqa: PLR2004 - there is nothing to tell apart
        raise InputError(
            f"A student needs at least two classes with {_FOLDS} different labeled texts each; there are "
            f"{dict(counts)}. Label more rows first."
        )
    return kept


def _known(words: Sequence[str], vocabulary: Any) -> float:
    return sum(word in vocabulary for word in words) / len(words) if words else 1.0
