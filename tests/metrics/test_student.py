"""The student: its answers, texts answered by classifiers that did not learn them, and loading without running code."""

from __future__ import annotations

import io
import pickle
import random
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagster_llm_batch.core.thresholds import are_above, count_allowed, digest_requests, find_threshold
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.evaluation import student_of
from dagster_llm_batch.metrics import student as student_module
from dagster_llm_batch.metrics.student import Answer, Student, train
from tests.tables import table

WORDS = {
    "billing": ["invoice", "charge", "refund", "card", "payment", "receipt", "price", "bill"],
    "bug": ["crash", "error", "white", "broken", "freeze", "exception", "fails", "slow"],
    "how_to": ["how", "where", "find", "change", "setting", "export", "guide", "explain"],
}
FILLER = ["please", "the", "my", "account", "today", "again", "with", "after", "for", "some", "page", "thanks"]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def texts(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Draw texts whose words identify their topic; return texts and topics."""
    draw = random.Random(seed)
    topics = [list(WORDS)[n % 3] for n in range(count)]
    lines = [draw.choices(WORDS[topic], k=4) + draw.choices(FILLER, k=4) for topic in topics]
    for line in lines:
        draw.shuffle(line)
    return [" ".join(line) for line in lines], topics


def learned(lines: list[str], labels: list[str]) -> Student:
    return train(lines, labels, code_version="c", target="topic", trained_at=NOW)


@cache
def usual() -> Student:
    return learned(*texts(240, seed=1))


def test_a_student_is_right_and_sure_on_what_it_knows_and_unsure_on_what_it_does_not():
    lines, topics = texts(60, seed=9)
    answers = usual().answers(lines)
    assert sum(answer.label == topic for answer, topic in zip(answers, topics, strict=True)) >= 58
    strange = usual().answers(["quantum glacier sonata trebuchet lagoon", "saffron nebula obelisk"])
    assert max(answer.confidence for answer in strange) < min(0.9, sorted(a.confidence for a in answers)[10])
    assert all(answer.known == 0 for answer in strange)
    assert usual().answers([]) == []
    assert [answer.known for answer in usual().answers(["", "? !"])] == [1.0, 1.0]


@pytest.mark.parametrize("count", [2, 3])
def test_a_classifier_says_what_scikit_learns_own_would_that_learned_the_texts_of_the_others(count):
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    lines, topics = texts(300, seed=4)
    some = [(line, topic) for line, topic in zip(lines, topics, strict=True) if topic in list(WORDS)[:count]]
    lines, topics = [line for line, _ in some], [topic for _, topic in some]
    one = learned(lines, topics)
    analyze = TfidfVectorizer(ngram_range=(1, 2), strip_accents="unicode").build_analyzer()
    identity = np.array([student_module._identity(analyze(line)) for line in lines], np.uint64)
    for number in (0, 3):
        at = np.flatnonzero(identity % np.uint64(5) != number)
        features = TfidfVectorizer(ngram_range=(1, 2), strip_accents="unicode", sublinear_tf=True)
        weighted = features.fit_transform([lines[n] for n in at])
        labels = np.array(topics, object)[at]
        linear = LogisticRegression(C=4.0, max_iter=1_000, class_weight="balanced")
        splits = student_module._splits(identity[at], labels)
        reference = CalibratedClassifierCV(linear, cv=splits, ensemble=False).fit(weighted, labels)
        asked = [*texts(40, seed=5)[0], "Invoice INVOICE invoice, crash!", "nothing of it", ""]
        chances = reference.predict_proba(features.transform(asked))
        answers = one.classifiers[number].answers([analyze(text) for text in asked])
        assert [answer.confidence for answer in answers] == pytest.approx(chances.max(axis=1), abs=1e-5)
        assert [answer.label for answer in answers] == [reference.classes_[best] for best in chances.argmax(axis=1)]


def population(seed: int) -> tuple[list[str], list[str]]:
    """Draw texts of eight of 300 words; most words decide the label, except for one text in twenty."""
    drawn = np.random.default_rng(seed)
    says, words = drawn.normal(size=300), drawn.integers(0, 300, (1_500, 8))
    is_a = (says[words].sum(axis=1) > 0) ^ (drawn.random(1_500) < 0.05)
    return [" ".join(f"word{word}" for word in line) for line in words], np.where(is_a, "a", "b").tolist()


def answers_of_the_wrong_classifiers(one: Student, lines: list[str]) -> list[Answer]:
    """Answer each learned text by a classifier that has learned it, against the rule."""
    analyzed = list(map(student_module._analyzer(), lines))
    place = np.array([student_module._identity(words) % 5 for words in analyzed])
    answers: dict[int, Answer] = {}
    for number, classifier in enumerate(one.classifiers):
        at = np.flatnonzero((place + 1) % 5 == number).tolist()
        answers.update(zip(at, classifier.answers([analyzed[n] for n in at]), strict=True))
    return [answers[at] for at in range(len(lines))]


def test_a_text_is_answered_by_what_has_not_learned_it():
    """Compare accuracy: equal on learned and other texts; a classifier is far better on its learned ones."""
    lines, labels = population(0)
    one = learned(lines[:600], labels[:600])
    right = np.array([answer.label == label for answer, label in zip(one.answers(lines), labels, strict=True)])
    assert abs(right[:600].mean() - right[600:].mean()) < 0.08
    control = answers_of_the_wrong_classifiers(one, lines)
    right = np.array([answer.label == label for answer, label in zip(control, labels, strict=True)])
    assert right[:600].mean() - right[600:].mean() > 0.2


@pytest.mark.slow
def test_a_threshold_calibrated_on_the_very_rows_that_the_student_learned_keeps_its_promise():
    """Let the oracle label the sample of a partition; the student learns it, and then answers the partition.

    At most one in ten labels may be wrong. If texts were answered by classifiers that learned them, the sample would
    look perfect: all other rows would be accepted, a quarter of them wrong.
    """
    allowed = count_allowed(300, 1_500, 0.9, 0.95)

    def share_wrong(answers: list[Answer], labels: list[str]) -> float:
        scores, is_sampled = np.array([answer.confidence for answer in answers]), np.arange(1_500) < 300
        wrong = np.array([answer.label != label for answer, label in zip(answers, labels, strict=True)])
        digests = digest_requests(map(str, range(1_500)), "s")
        threshold = find_threshold(scores[is_sampled], digests[is_sampled], wrong[is_sampled], allowed)
        accepted = are_above(scores, digests, threshold) & ~is_sampled
        assert accepted.any()
        return float((accepted & wrong).mean())

    for seed in range(6):
        lines, labels = population(seed)
        one = learned(lines[:300], labels[:300])
        assert share_wrong(one.answers(lines), labels) <= 0.1
        assert share_wrong(answers_of_the_wrong_classifiers(one, lines), labels) > 0.2


def test_a_text_that_came_often_or_in_capitals_is_one_text():
    lines, labels = population(1)
    lines, labels = lines[:300], labels[:300]
    copies = learned([*lines, *map(str.upper, lines), *(f"{line}!" for line in lines)], labels * 3)
    right = np.mean([answer.label == label for answer, label in zip(copies.answers(lines), labels, strict=True)])
    assert right < 0.8  # one that had seen its copy would be right


def test_a_student_is_calibrated_on_texts_that_it_has_not_seen():
    """Count ten rows with one text as one calibration point. Labels are random, so half of the answers are right."""
    drawn, words = random.Random(1), [f"word{n}" for n in range(30)]
    seen, new = ([" ".join(drawn.choices(words, k=6)) for _ in range(n)] for n in (80, 200))
    one = learned(seen * 10, [drawn.choice("ab") for _ in seen] * 10)
    sure = [answer.confidence for answer in one.answers(new)]
    assert sum(sure) / len(sure) < 0.75  # by rows it was 0.90


def test_too_few_labels_are_not_learned_from_and_rare_classes_are_left_out():
    lines, topics = texts(30)
    for rare in (["once"], ["always this"] * 9):
        one = learned([*lines, *rare], [*topics, *["rare"] * len(rare)])
        assert "rare" not in one.classes
        assert one.rows == 30
    with pytest.raises(InputError, match="at least two classes with 3 different labeled texts"):
        learned(lines[:3], ["a", "a", "b"])
    with pytest.raises(InputError, match="no words"):
        learned(["", "?"] * 20, ["a", "b"] * 20)


def test_a_stored_student_answers_the_same_from_whatever_frame_it_comes():
    buffer = io.BytesIO()
    pq.write_table(usual().to_arrow(), buffer)
    table, asked = pq.read_table(io.BytesIO(buffer.getvalue())), texts(10, seed=5)[0]
    for frame in (table, pl.read_parquet(buffer.getvalue()), table.to_pandas()):
        again = student_of(frame)
        assert (again.version, again.rows, again.trained_at) == (usual().version, 240, NOW)
        assert again.answers(asked) == usual().answers(asked)
    assert learned(*texts(240, seed=1)).version == usual().version
    assert learned(*texts(240, seed=2)).version != usual().version


class _Hostile:
    """When unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def test_a_pickle_that_poses_as_a_student_is_refused_and_not_run(tmp_path):
    ran = tmp_path / "ran"
    hostile = pickle.dumps(_Hostile(ran))
    pickle.loads(hostile)
    assert ran.exists()
    ran.unlink()
    table = usual().to_arrow()
    earlier = table.append_column("model", pa.array([hostile] * 5, pa.large_binary()))
    with pytest.raises(InputError, match=r"pickle, as earlier versions wrote it, and is not loaded.*asset again"):
        Student.from_arrow(earlier)
    for at, name in enumerate(table.column_names):
        bytes_there = table.set_column(at, name, pa.array([hostile] * 5, pa.large_binary()))
        with pytest.raises(InputError, match=r"no student, or a damaged one: .*asset again"):
            Student.from_arrow(bytes_there)
    assert not ran.exists()


def _with(name: str, change: Any) -> pa.Table:
    """Change a value of the first classifier in this column."""
    table = usual().to_arrow()
    at = table.column_names.index(name)
    values = table[name].to_pylist()
    values[0] = change(values[0])
    return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))


DAMAGED = {
    "no rows": lambda: usual().to_arrow().slice(0, 0),
    "a row lost": lambda: usual().to_arrow().slice(1),
    "a row twice": lambda: pa.concat_tables([usual().to_arrow().slice(0, 4), usual().to_arrow().slice(0, 1)]),
    "of two students": lambda: _with("code_version", lambda _: "other"),
    "a column lost": lambda: usual().to_arrow().drop_columns(["slopes"]),
    "another table": lambda: pa.table({"a": [1]}),
    "nothing in a cell": lambda: _with("target", lambda _: None),
    "a null among numbers": lambda: _with("weights", lambda given: [None, *given[1:]]),
    "a null among words": lambda: _with("terms", lambda given: [None, *given[1:]]),
    "no number": lambda: _with("intercepts", lambda given: [float("nan"), *given[1:]]),
    "without end": lambda: _with("weights", lambda given: [float("inf"), *given[1:]]),
    "too few weights": lambda: _with("weights", lambda given: given[:-1]),
    "too many weights": lambda: _with("weights", lambda given: given * 2),
    "an idf of zero": lambda: _with("idf", lambda given: [0.0, *given[1:]]),
    "a word twice": lambda: _with("terms", lambda given: [given[1], *given[1:]]),
    "one class": lambda: _with("classes", lambda given: given[:1]),
    "too many words": lambda: _with("terms", lambda _: list(map(str, range(50_001)))),
    "a weight changed": lambda: _with("weights", lambda given: [given[0] + 1, *given[1:]]),
    "classes swapped": lambda: _with("classes", lambda given: given[::-1]),
    "a class renamed": lambda: _with("classes", lambda given: ["other", *given[1:]]),
}


@table("damage", DAMAGED)
def test_a_damaged_student_is_refused_in_words(damage):
    with pytest.raises(InputError, match=r"no student, or a damaged one: .+\. Materialize the student's asset again"):
        Student.from_arrow(DAMAGED[damage]())
