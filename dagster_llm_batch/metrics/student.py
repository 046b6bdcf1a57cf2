"""A small student of the LLM: text features and a calibrated linear classifier, learned with scikit-learn.

It stores the definition that its labels came from (`code_version`): a student of another prompt, model or response is
not used by mistake. Invariants:

- **A classifier never answers a text that it has learned from.** A student is five classifiers. A digest of a text's
  words selects the one that answers it, and that one has learned from the texts of the four others alone. So
  confidences of rows that a student learned from are as valid as confidences of new rows: a threshold may be calibrated
  on either, and on both together.
- **A stored student is numbers and words**, in typed columns, without executable content. Inconsistent content is
  rejected. It does not depend on the version of scikit-learn, since it holds none of its objects.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.metrics.schemas import evaluation_extra
from dagster_llm_batch.text import plain_words

__all__ = ["STUDENT_SCHEMA", "Answer", "Classifier", "Student", "train"]

Numbers = npt.NDArray[np.float32]

# Training on a fifth less is a small loss.
_CLASSIFIERS = 5
# of the calibration; a class with fewer texts cannot be learned
_FOLDS = 3
_MOST_TERMS = 50_000
_WHAT = "A student"

STUDENT_SCHEMA = pa.schema(
    [
        ("student_version", pa.string()),
        ("code_version", pa.string()),
        ("target", pa.string()),
        ("rows", pa.int64()),
        ("trained_at", pa.timestamp("us", "UTC")),
        ("classifier", pa.int64()),
        ("classes", pa.list_(pa.string())),
        ("terms", pa.list_(pa.string())),
        ("idf", pa.list_(pa.float32())),
        ("weights", pa.list_(pa.float32())),
        ("intercepts", pa.list_(pa.float32())),
        ("slopes", pa.list_(pa.float32())),
        ("offsets", pa.list_(pa.float32())),
    ]
)
"""A stored student: one row for each of its classifiers."""

# Columns that are equal in all rows of a student, and never null.
_COMMON = ("student_version", "code_version", "target", "rows", "trained_at")
_NUMBERS = ("idf", "weights", "intercepts", "slopes", "offsets")


class Answer(NamedTuple):
    """A student's answer to a text: the class, its probability, and the share of the text's words among its terms."""

    label: str
    confidence: float
    known: float


@dataclass(frozen=True)
class Classifier:
    """A calibrated linear classifier of TF-IDF features.

    Attributes:
        classes: Two or more. With two, there is one score, of the second of them; with more, one for each.
        terms: The words and pairs of words that it uses.
        idf: For each term, the factor of its frequency.
        weights, intercepts: For each score, the first for each term one after the other.
        slopes, offsets: For each score s: its class has the probability 1 / (1 + exp(slope * s + offset)), before all
            of a text are made to sum to 1.
    """

    classes: tuple[str, ...]
    terms: tuple[str, ...] = field(repr=False)
    idf: Numbers = field(repr=False)
    weights: Numbers = field(repr=False)
    intercepts: Numbers = field(repr=False)
    slopes: Numbers = field(repr=False)
    offsets: Numbers = field(repr=False)

    def __post_init__(self) -> None:
        """Raise InputError for parts that do not fit together, or are no numbers."""
        scores = 1 if len(self.classes) == 2 else len(self.classes)  # noqa: PLR2004 - see `classes`
        wanted = {"idf": len(self.terms), "weights": scores * len(self.terms)}
        for name in _NUMBERS:
            given, size = getattr(self, name), wanted.get(name, scores)
            if len(given) != size:
                raise InputError(f"it has {len(given)} {name} where {size} belong")
            # A confidence that is no number is below no threshold.
            if not np.isfinite(given).all():
                raise InputError(f"some of its {name} are no finite numbers")
        if not (self.idf > 0).all():
            raise InputError("some of its idf are not above 0")
        for name, least, most in (("classes", 2, len(self.classes)), ("terms", 1, _MOST_TERMS)):
            given = getattr(self, name)
            if not least <= len(given) <= most or len(set(given)) < len(given) or None in given:
                raise InputError(f"its {name} are too few, too many, or not different")

    @cached_property
    def _places(self) -> dict[str, int]:
        return {term: at for at, term in enumerate(self.terms)}

    def answers(self, texts: Sequence[Sequence[str]]) -> list[Answer]:
        """Answer each text, which is given as its words and pairs of words."""
        place_of = self._places.get
        places = [[at for at in map(place_of, words) if at is not None] for words in texts]
        known = [len(some) / len(words) if words else 1.0 for some, words in zip(places, texts, strict=True)]
        chances = self._chances(places)
        best = chances.argmax(axis=1)
        surest = chances[np.arange(len(texts)), best].tolist()
        return [
            Answer(self.classes[at], confidence, share)
            for at, confidence, share in zip(best.tolist(), surest, known, strict=True)
        ]

    def _chances(self, places: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """Return the probability of each class, from the places of each text's terms among those that are known."""
        size, texts = len(self.terms), len(places)
        of_text = np.repeat(np.arange(texts), [len(some) for some in places])
        cells, times = np.unique(
            of_text * size + np.fromiter(chain.from_iterable(places), np.int64), return_counts=True
        )
        of_text, terms = np.divmod(cells, size)
        # TF-IDF with sublinear frequencies: each text is a vector of the length 1.
        values = (1 + np.log(times)) * self.idf[terms]
        values /= np.sqrt(np.bincount(of_text, values**2, texts))[of_text]
        scores = np.tile(self.intercepts.astype(np.float64), (texts, 1))
        firsts = np.flatnonzero(np.diff(of_text, prepend=-1))
        if len(firsts):
            weighted = values[:, None] * self.weights.reshape(size, -1)[terms]
            scores[of_text[firsts]] += np.add.reduceat(weighted, firsts)
        # Beyond these, a probability is 0 or 1 in floating point, and the exponential overflows.
        exponents = np.clip(scores * self.slopes + self.offsets, -700, 700)
        chances: npt.NDArray[np.float64] = 1 / (1 + np.exp(exponents))
        if len(self.classes) == 2:  # noqa: PLR2004 - see `classes`
            return np.hstack([1 - chances, chances])
        chances /= chances.sum(axis=1, keepdims=True)
        return chances


@dataclass(frozen=True)
class Student:
    """A trained student. `version` is a digest of its content; `rows` is the number of rows that it learned from."""

    version: str
    code_version: str
    target: str
    rows: int
    trained_at: datetime
    classifiers: tuple[Classifier, ...] = field(repr=False)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """All classes that it may answer."""
        return tuple(sorted({name for classifier in self.classifiers for name in classifier.classes}))

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        """Answer each text, by the classifier that has not learned from it."""
        words = list(map(_analyzer(), texts))
        places = np.array([_identity(terms) % _CLASSIFIERS for terms in words], np.uint64)
        answers: dict[int, Answer] = {}
        for number, classifier in enumerate(self.classifiers):
            asked = np.flatnonzero(places == number).tolist()
            answers.update(zip(asked, classifier.answers([words[at] for at in asked]), strict=True))
        return [answers[at] for at in range(len(texts))]

    def to_arrow(self) -> pa.Table:
        """Return the student for storage, in STUDENT_SCHEMA."""
        common = {"student_version": self.version} | {name: getattr(self, name) for name in _COMMON[1:]}
        rows = [
            {
                **common,
                "classifier": number,
                **{part.name: getattr(classifier, part.name) for part in fields(classifier)},
            }
            for number, classifier in enumerate(self.classifiers)
        ]
        return pa.Table.from_pylist(rows, schema=STUDENT_SCHEMA)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Student:
        """Return a stored student. Raises InputError for anything else, and for one that is damaged."""
        if "model" in table.column_names:
            raise InputError(
                "The stored student is a pickle, as earlier versions wrote it, and is not loaded: a pickle runs code. "
                "Materialize the student's asset again; it learns from the stored labels, and asks no LLM."
            )
        try:
            table.validate(full=True)
            rows = table.select(STUDENT_SCHEMA.names).cast(STUDENT_SCHEMA).sort_by("classifier")
            return cls._of_rows(rows)
        except (InputError, pa.ArrowException, KeyError, ValueError) as error:
            raise InputError(
                f"The table is no student, or a damaged one: {plain_words(error)}. Materialize the student's asset "
                "again; it learns from the stored labels, and asks no LLM."
            ) from error

    @classmethod
    def _of_rows(cls, rows: pa.Table) -> Student:
        if rows["classifier"].to_pylist() != list(range(_CLASSIFIERS)):
            raise InputError(f"its rows are not those of {_CLASSIFIERS} classifiers")
        if empty := [name for name in rows.column_names if rows[name].null_count]:
            raise InputError(f"it has no {empty[0]}")
        [common, *others] = rows.select(_COMMON).to_pylist()
        if any(other != common for other in others):
            raise InputError("its rows are of several students")
        classifiers = tuple(_classifier_of(rows, at) for at in range(_CLASSIFIERS))
        version = common.pop("student_version")
        student = cls(version=version, classifiers=classifiers, **common)
        if (found := _digest(student)) != version:
            raise InputError(f"its content has the digest {found}, and is stored as {version}")
        return student


def train(
    texts: Sequence[str], labels: Sequence[str], *, code_version: str, target: str, trained_at: datetime
) -> Student:
    """Train a student on these labels. Classes with fewer than 3 different texts are left out.

    Raises InputError where fewer than two classes are left to one of its classifiers.
    """
    with evaluation_extra(_WHAT):
        import threadpoolctl  # noqa: PLC0415 - scikit-learn brings it
        from sklearn.feature_extraction.text import CountVectorizer
    identities: list[int] = []
    analyze = _analyzer()

    def analyzed(text: str) -> list[str]:
        # Each text is split once, in order, and its words are not kept.
        words: list[str] = analyze(text)
        identities.append(_identity(words))
        return words

    counter = CountVectorizer(analyzer=analyzed)
    try:
        counts = counter.fit_transform(texts)
    except ValueError as error:
        raise InputError(f"The labeled texts have no words that a student could learn from: {error}.") from error
    terms, of_row = counter.get_feature_names_out(), np.array(identities, np.uint64)
    given = np.array(labels, object)
    learned = np.zeros(len(given), bool)
    classifiers = []
    # on a busy machine its threads wait for each other, for minutes
    with threadpoolctl.threadpool_limits(1):
        for number in range(_CLASSIFIERS):
            others = np.flatnonzero(of_row % np.uint64(_CLASSIFIERS) != number)
            kept = others[_learnable(of_row[others], given[others])]
            learned[kept] = True
            classifiers.append(_fitted(counts[kept], terms, of_row[kept], given[kept]))
    student = Student("", code_version, target, int(learned.sum()), trained_at, tuple(classifiers))
    return replace(student, version=_digest(student))


def _fitted(counts: Any, terms: Any, of_row: Any, labels: Any) -> Classifier:
    with evaluation_extra(_WHAT):
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.feature_extraction.text import TfidfTransformer
        from sklearn.linear_model import LogisticRegression
    frequent = np.asarray(counts.sum(axis=0)).ravel()
    # The terms of these texts, or the most frequent of too many, in alphabetical order.
    known = np.sort(np.argsort(-frequent, kind="stable")[: min(_MOST_TERMS, np.count_nonzero(frequent))])
    features = TfidfTransformer(sublinear_tf=True)
    weighted = features.fit_transform(counts[:, known])
    linear = LogisticRegression(C=4.0, max_iter=1_000, class_weight="balanced")
    calibrated = CalibratedClassifierCV(linear, cv=_splits(of_row, labels), ensemble=False)
    [fitted] = calibrated.fit(weighted, labels).calibrated_classifiers_
    return Classifier(
        tuple(map(str, calibrated.classes_)),
        tuple(map(str, terms[known])),
        _numbers(features.idf_),
        _numbers(fitted.estimator.coef_.T),
        _numbers(fitted.estimator.intercept_),
        _numbers([one.a_ for one in fitted.calibrators]),
        _numbers([one.b_ for one in fitted.calibrators]),
    )


def _numbers(values: Any) -> Numbers:
    return np.asarray(values, np.float32).ravel()


def _classifier_of(rows: pa.Table, at: int) -> Classifier:
    numbers = {name: rows[name][at].values.to_numpy(zero_copy_only=False) for name in _NUMBERS}
    classes, terms = (tuple(rows[name][at].as_py()) for name in ("classes", "terms"))
    return Classifier(classes=classes, terms=terms, **numbers)


def _digest(student: Student) -> str:
    """Return a digest of everything that decides answers, and of its origin."""
    digest = hashlib.blake2b(digest_size=6)

    def add(*parts: object) -> None:
        digest.update(repr(parts).encode("utf-8", "surrogatepass"))

    add(student.code_version, student.target, student.rows)
    for classifier in student.classifiers:
        add(classifier.classes, classifier.terms)
        for name in _NUMBERS:
            digest.update(getattr(classifier, name).astype("<f4").tobytes())
    return digest.hexdigest()


def _analyzer() -> Any:
    """Return a function that returns the words of a text, and the pairs of them."""
    with evaluation_extra(_WHAT):
        from sklearn.feature_extraction.text import TfidfVectorizer
    return TfidfVectorizer(ngram_range=(1, 2), strip_accents="unicode").build_analyzer()


def _identity(words: Sequence[str]) -> int:
    """Return a digest of a student's view of a text: two texts that differ only in capitals are equal."""
    return xxhash.xxh3_64_intdigest("\n".join(words).encode("utf-8", "surrogatepass"))


def _splits(of_row: Any, labels: Any) -> list[tuple[Any, Any]]:
    """Return positions to learn from and to calibrate on: each text is in one of them, and each class in all."""
    seen: Counter[str] = Counter()
    fold_of: dict[int, int] = {}
    for text, label in zip(of_row.tolist(), labels, strict=True):
        if text not in fold_of:
            fold_of[text] = seen[label] % _FOLDS
            seen[label] += 1
    folds = np.array([fold_of[text] for text in of_row.tolist()])
    return [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(_FOLDS)]


def _learnable(of_row: Any, labels: Any) -> list[int]:
    """Return positions of rows whose class has enough different texts; one with several labels counts for the first."""
    first: dict[int, str] = {}
    for text, label in zip(of_row.tolist(), labels, strict=True):
        first.setdefault(text, label)
    counts = Counter(first.values())
    kept = [at for at, label in enumerate(labels) if counts[label] >= _FOLDS]
    if len({labels[at] for at in kept}) < 2:  # noqa: PLR2004 - there is nothing to tell apart
        raise InputError(
            f"A student needs at least two classes with {_FOLDS} different labeled texts each, beside those of any "
            f"fifth of the texts; there are {dict(counts)}. Label more rows first."
        )
    return kept
