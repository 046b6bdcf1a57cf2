"""Gold values that the response of a candidate cannot give, such as a misspelt class: no label ever equals them.

They still count as wrong, and a message names them: the figures alone would blame the model, and gold is at fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.checks import CheckOutcome
from dagster_llm_batch.core.json_schema import Fit
from dagster_llm_batch.core.response import Reader, is_json
from dagster_llm_batch.evaluation.candidates import Candidate
from dagster_llm_batch.metrics import Target
from dagster_llm_batch.metrics.columns import EXAMPLES
from dagster_llm_batch.metrics.joining import MAX_CLASSES
from dagster_llm_batch.text import plain_text

__all__ = [
    "GOLD_FITS",
    "InvalidGold",
    "find_invalid_gold",
    "invalid_gold_sentence",
    "judge_invalid_gold",
    "may_find_invalid_gold",
]

GOLD_FITS = "gold_fits"
"""The check of an evaluation that each gold value is one that a label can equal."""

_WARN = dg.AssetCheckSeverity.WARN


_REASON_CHARS = 200


@dataclass(frozen=True)
class InvalidGold:
    """Values of one target that one candidate cannot give, with the gold rows that have each, and why the first cannot
    be given. `n_gold`: gold rows with a value.
    """

    candidate: str
    target: str
    rows: tuple[tuple[object, int], ...]
    reason: str
    n_gold: int

    @property
    def are_all(self) -> bool:
        """Whether all gold rows have values that labels cannot equal."""
        return sum(count for _, count in self.rows) == self.n_gold

    @property
    def text(self) -> str:
        """Message with the values and rows to find, and the next step."""
        shown = [f"{_shown(value)} ({count:,})" for value, count in self.rows[:EXAMPLES]]
        more = len(self.rows) - len(shown)
        return (
            f"{sum(count for _, count in self.rows):,} of {self.n_gold:,} gold rows have a '{self.target}' that the "
            f"response of '{self.candidate}' cannot give: {', '.join(shown)}{f' and {more:,} more' if more else ''}. "
            f"{plain_text(self.reason, _REASON_CHARS)}. No label equals them. Write gold as the response has it, "
            "capitals and spaces too, or let the response give these values."
        )


def may_find_invalid_gold(candidates: Sequence[Candidate], targets: Sequence[Target]) -> bool:
    """Return whether a candidate with a known response has a categorical target: only there gold can be invalid."""
    return any(one.reader is not None for one in candidates) and any(one.kind == "categorical" for one in targets)


def invalid_gold_sentence(invalid_gold: Sequence[InvalidGold]) -> str | None:
    """Return a sentence on gold rows that count as wrong for every answer; None without such rows."""
    if not invalid_gold:
        return None
    told = [
        f"{sum(count for _, count in one.rows):,} of {one.n_gold:,} have a '{one.target}' that '{one.candidate}' "
        f"cannot give, such as {_shown(one.rows[0][0])}"
        for one in invalid_gold[:EXAMPLES]
    ]
    more = f"; and {len(invalid_gold) - EXAMPLES:,} more" if len(invalid_gold) > EXAMPLES else ""
    return f"Gold rows that no label can equal count as wrong: {'; '.join(told)}{more}."


def judge_invalid_gold(invalid_gold: Sequence[InvalidGold]) -> CheckOutcome:
    """Return the check result of GOLD_FITS, which only warns: the figures count such rows as they did."""
    said = invalid_gold_sentence(invalid_gold)
    if said is None:
        said = "The candidates' response schemas allow every gold value. Candidates without one are not checked."
    else:
        said += " llm_batch/gold_misfits lists the values. Correct them in gold, or add them to the response schema."
    return CheckOutcome(GOLD_FITS, passed=not invalid_gold, severity=_WARN, description=said, metadata={})


def _shown(value: object) -> str:
    return plain_text(f"'{value}'" if isinstance(value, str) else str(value))


def find_invalid_gold(gold: pa.Table, labels: pa.Table, candidate: Candidate, target: Target) -> InvalidGold | None:
    """Return the invalid gold, the most frequent value first; None without any, or if the response is unknown.

    A value that the candidate gave, for example by an earlier definition, is not a misfit. Numeric targets are near or
    far, and a mean of human labels may be a number that the response cannot give.
    """
    schema = None if candidate.reader is None else _column_schema(candidate.reader, target.name)
    column = target.gold_column or target.name
    if schema is None or target.kind != "categorical" or gold.column_names.count(column) != 1:
        return None
    values = gold[column].drop_null()
    # the comparison itself refuses nested values, and too many values for classes
    if pa.types.is_nested(values.type) or len(distinct := pc.value_counts(values)) > MAX_CLASSES:
        return None
    fit = Fit(schema)
    found = [
        (value, count, reason)
        for value, count in _counted(distinct)
        if (reason := fit.misfit({target.name: value})) is not None
    ]
    answers = labels[target.name]
    if found and not pa.types.is_nested(answers.type):
        given = set(pc.unique(answers).to_pylist())
        found = [one for one in found if one[0] not in given]
    if not found:
        return None
    found.sort(key=lambda one: -one[1])
    rows = tuple((value, count) for value, count, _ in found)
    return InvalidGold(candidate.name, target.name, rows, found[0][2].removeprefix(f"$.{target.name}: "), len(values))


def _column_schema(reader: Reader, name: str) -> dict[str, Any] | None:
    """Return the schema of an object with this column; None if the response does not describe the column."""
    schema = reader.columns_schema or reader.format.json_schema or {}
    of_column = next((field for field in reader.fields if field.name == name), None)
    if of_column is None or is_json(of_column) or name not in schema.get("properties", {}):
        return None
    # The other columns are not needed, and a rule for several columns does not describe one.
    return {word: schema[word] for word in ("$defs", "definitions", "properties") if word in schema}


def _counted(distinct: pa.StructArray) -> Iterator[tuple[object, int]]:
    """Yield values as JSON has them: a whole number may be stored as a decimal."""
    for value, count in zip(distinct.field("values").to_pylist(), distinct.field("counts").to_pylist(), strict=True):
        yield (float(value) if isinstance(value, Decimal) else value), count
