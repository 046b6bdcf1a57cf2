"""The judge's cases: one for each answer (rubric), or two for each pair of answers, in both orders.

    rows + answers of each candidate ─by key→ cases ─judge→ verdicts

A case has its own id, the row's key, and the columns that the judge's prompt reads. The names of the answers'
candidates are in columns that a prompt may not read (JUDGE_COLUMNS): a judge that sees the names is not blind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import pyarrow as pa

from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics.columns import column, comparable_keys
from dagster_llm_batch.metrics.key_hash import draw_keys

__all__ = ["ANSWERS", "CASE_ID", "JUDGE_COLUMNS", "pairwise_cases", "rubric_cases"]

CASE_ID = "case_id"
ANSWERS = ("answer", "answer_a", "answer_b")
"""Columns that hold the answers of candidates, as text."""
JUDGE_COLUMNS = (CASE_ID, "candidate", "first", "second", "identical")
"""Columns of a case that name the candidates of its answers."""

_TEXT = pa.large_string()


def rubric_cases(
    rows: pa.Table, answers: Mapping[str, pa.Table], *, key: str, target: Sequence[str], sample: int | None
) -> pa.Table:
    """Return one case for each row and candidate that has an answer.

    Columns: `case_id`, key, `candidate`, `answer`, the columns of `rows`. `case_id` is `<candidate>/<key>`. With
    `sample`, the cases are of this many rows.
    """
    keys, texts = _answers(rows, answers, key, target, sample, least=1)
    cases = [(at, name, texts[name][key_]) for name in answers for at, key_ in keys if key_ in texts[name]]
    own: dict[str, list[Any]] = {
        CASE_ID: [f"{name}/{rows[key][at].as_py()}" for at, name, _ in cases],
        "candidate": [name for _, name, _ in cases],
        "answer": [answer for _, _, answer in cases],
    }
    return _cases(rows, key, [at for at, _, _ in cases], own)


def pairwise_cases(
    rows: pa.Table, answers: Mapping[str, pa.Table], *, key: str, target: Sequence[str], sample: int | None
) -> pa.Table:
    """Return two cases for each row and pair of candidates that both have an answer, one in each order.

    Columns: `case_id`, key, `first`, `second`, `identical`, `answer_a` (of the first), `answer_b`, the columns of
    `rows`. `case_id` is `<first>/<second>/<key>`. Equal answers need no judge: they are one case, `identical`.
    """
    keys, texts = _answers(rows, answers, key, target, sample, least=2)
    cases = []
    for a, b in combinations(answers, 2):
        for at, key_ in keys:
            if key_ in texts[a] and key_ in texts[b]:
                identical = texts[a][key_] == texts[b][key_]
                cases += [(at, key_, *order, identical) for order in ([(a, b)] if identical else [(a, b), (b, a)])]
    own: dict[str, list[Any]] = {
        CASE_ID: [f"{first}/{second}/{key_}" for _, key_, first, second, _ in cases],
        "first": [first for _, _, first, _, _ in cases],
        "second": [second for _, _, _, second, _ in cases],
        "identical": [identical for *_, identical in cases],
        "answer_a": [texts[first][key_] for _, key_, first, _, _ in cases],
        "answer_b": [texts[second][key_] for _, key_, _, second, _ in cases],
    }
    return _cases(rows, key, [at for at, *_ in cases], own)


def _answers(
    rows: pa.Table, answers: Mapping[str, pa.Table], key: str, target: Sequence[str], sample: int | None, *, least: int
) -> tuple[list[tuple[int, Any]], dict[str, dict[Any, str]]]:
    """Return position and key of the rows to judge, in order of their keys; the answers of each candidate by key."""
    if taken := sorted(set(rows.column_names) & {*ANSWERS, *JUDGE_COLUMNS}):
        raise InputError(
            f"The rows have columns {', '.join(taken)}, which a judge's cases have for their own. Rename them."
        )
    own_keys = column(rows, key, "the rows")
    by_candidate = {}
    for name, table in answers.items():
        theirs = f"candidate '{name}'"
        _, keys = comparable_keys(own_keys, column(table, key, theirs), key, theirs, ours="the rows")
        texts = _texts([column(table, name, theirs) for name in target], target)
        by_candidate[name] = {
            key_: text for key_, text in zip(keys.to_pylist(), texts, strict=True) if text is not None
        }
    values = own_keys.to_pylist()
    # Rows with too few answers cannot be judged: leave them out before the draw, so that they take no other row's
    # place.
    answered = [value for value in values if sum(value in texts for texts in by_candidate.values()) >= least]
    drawn = set(answered if sample is None else draw_keys(answered, sample, 0))
    return sorted(
        ((at, value) for at, value in enumerate(values) if value in drawn), key=lambda pair: pair[1]
    ), by_candidate


def _texts(columns: Sequence[pa.Array], names: Sequence[str]) -> Iterator[str | None]:
    """Yield the candidate's answer for each row, as text; None without one. Several columns are one JSON object."""
    for values in zip(*(values_.to_pylist() for values_ in columns), strict=True):
        if all(value is None for value in values):
            yield None
        elif len(values) > 1:
            yield canonical_json(dict(zip(names, values, strict=True)))
        else:
            yield values[0] if isinstance(values[0], str) else canonical_json(values[0])


def _cases(rows: pa.Table, key: str, at: list[int], own: dict[str, list[Any]]) -> pa.Table:
    types = {"identical": pa.bool_()}
    columns = {name: pa.array(values, types.get(name, _TEXT)) for name, values in own.items()}
    if len(set(own[CASE_ID])) < len(at):
        raise ConfigError("Two cases have one case_id. Give candidates names without '/', as in {'name': asset}.")
    taken = rows.take(pa.array(at, pa.int64()))
    case_id = columns.pop(CASE_ID)
    return pa.table({CASE_ID: case_id, key: taken[key], **columns, **{n: taken[n] for n in rows.column_names}})
