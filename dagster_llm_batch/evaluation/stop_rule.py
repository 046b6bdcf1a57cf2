"""Stop rule for labeling: the requested width of an interval, and its state after each round."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.checks import CheckOutcome
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metadata import TO_LABEL_KEY, WANTED_KEY
from dagster_llm_batch.metrics import Target, estimate, evaluate, join, plain_text
from dagster_llm_batch.metrics.gold_weights import ROUND, SAMPLE_COLUMNS, gold_weights, rows_drawn_from
from dagster_llm_batch.metrics.stop_rule import more_rows, next_size, round_level, unseen_part, widening
from dagster_llm_batch.metrics.tables import percent

__all__ = ["CHECK", "SECONDS", "Enough", "StopRule", "enough_of"]

CHECK = "enough_gold"
"""Name of the asset check."""

SECONDS = "judged_seconds"
"""Column of gold from `annotation_assets`: seconds that people took for the row, together."""

Figure = Literal["accuracy", "kappa", "macro_f1", "shares"]

_EVALUATED: Mapping[str, str] = {"accuracy": "accuracy_all", "kappa": "kappa", "macro_f1": "macro_f1"}
_BOUNDS: Mapping[str, tuple[float, float]] = {"kappa": (-1.0, 1.0)}
_LONG = 5
"""Times the median, beyond which an answer had a break in it."""


@checked
@dataclass(frozen=True)
class StopRule:
    """Width that an interval must reach before labeling ends.

    Args:
        half_width: Such as 0.02 for ± 2 percentage points: half of the 95 % interval. It holds for whichever round one
            stops after.
        figure: "accuracy" over all gold rows, a row without a label being wrong; "kappa"; "macro_f1"; or "shares", the
            share of each class in the whole table, from gold and labels together. With several candidates, targets or
            classes the widest interval counts.
    """

    half_width: float
    figure: Figure = "accuracy"

    def __post_init__(self) -> None:
        if not 0 < self.half_width < 0.5:  # noqa: PLR2004  # wider is no statement about a share
            raise ConfigError(f"StopRule.half_width={self.half_width!r} is above 0 and below 0.5, as 0.02.")


@dataclass(frozen=True)
class _Interval:
    """An interval of 95 % of somebody's figure."""

    of: str
    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Of the wider side."""
        return max(self.value - self.low, self.high - self.value)


@dataclass(frozen=True)
class Enough:
    """Present state of the rule.

    - `after`: rounds that are completely labeled; the interval is measured after the last of them. `n_open`: rows of
      the round in progress that lack a judgment.
    - `interval`: the widest 95 % interval; None if it cannot be measured yet. `more`: forecast rows beyond the open
      ones; 0 if the interval is narrow enough, or no rows are left.
    - `seconds`: time that people take for a row; None if unknown.
    """

    rule: StopRule
    after: int
    n_labeled: int
    n_rows: int
    n_new: int
    n_open: int
    interval: _Interval | None
    more: int
    seconds: float | None

    @property
    def half_width(self) -> float | None:
        """Of the interval that holds however often one looks."""
        return None if self.interval is None else self.interval.half_width * widening(self.after)

    @property
    def is_reached(self) -> bool:
        """Whether the interval is narrow enough, or every row has gold."""
        narrow = self.half_width is not None and self.half_width <= self.rule.half_width
        return narrow or self.n_labeled >= self.n_rows > 0

    @property
    def to_label(self) -> int:
        """Rows that people still have to label, by forecast."""
        return self.n_open + self.more

    @property
    def minutes(self) -> float | None:
        """Minutes that people need to label the rows."""
        return None if self.seconds is None else self.to_label * self.seconds / 60

    @property
    def size(self) -> int:
        """Rows of the next round."""
        return next_size(self.n_labeled, self.more)

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata that Dagster shows, and plots over time."""
        shown: dict[str, float | None] = {
            "llm_batch/half_width": self.half_width,
            WANTED_KEY: self.rule.half_width,
            "llm_batch/rows_to_label": self.to_label,
            "llm_batch/minutes_to_label": None if self.minutes is None else round(self.minutes, 1),
        }
        return {TO_LABEL_KEY: str(self), **{name: value for name, value in shown.items() if value is not None}}

    def check_result(self) -> CheckOutcome:
        """Return the answer of the check: it fails, as a warning, until enough is labeled."""
        return CheckOutcome(
            CHECK,
            passed=self.is_reached,
            severity=dg.AssetCheckSeverity.WARN,
            description=str(self),
            metadata={name: value for name, value in self.metadata.items() if name != TO_LABEL_KEY},
        )

    def __str__(self) -> str:
        wanted = f"required: ± {self.rule.half_width:g}"
        if self.interval is None:
            state = f"There is no interval of {self.rule.figure} yet; {wanted}."
        else:
            bounds, wider = _BOUNDS.get(self.rule.figure, (0.0, 1.0)), widening(self.after)
            low = max(bounds[0], self.interval.value - (self.interval.value - self.interval.low) * wider)
            high = min(bounds[1], self.interval.value + (self.interval.high - self.interval.value) * wider)
            state = (
                f"{plain_text(self.interval.of)}: {self.interval.value:.3f}, from {low:.3f} to {high:.3f} "
                f"(± {self.half_width:.3f}; {wanted}) after round {self.after}, which may miss in "
                f"{percent(round_level(self.after))}, and all rounds in 5 %."
            )
        if self.n_new:
            state += f" {self.n_new:,} rows came since the last round and could not be drawn."
        if self.is_reached:
            return f"{state} Enough is labeled."
        left = [f"{self.n_open:,} rows of round {self.after + 1}"] if self.n_open else []
        left += [f"about {self.more:,} rows more"] if self.more else []
        left += [] if self.minutes is None else [f"{math.ceil(self.minutes):,} minutes of people"]
        return f"{state} Still to label: {', '.join(left)}."


def enough_of(
    rule: StopRule,
    gold: pa.Table | None,
    candidates: Mapping[str, pa.Table],
    *,
    key: str,
    targets: Sequence[str],
    n_rows: int,
    sample_size: int,
    open_round: tuple[int, int, int] | None,
) -> Enough:
    """Return the state of the rule after the rounds that are completely labeled.

    Args:
        rule: The rule of the user.
        gold: All gold, with SAMPLE_COLUMNS; None if there is no gold.
        candidates: Labels of all rows.
        key: Column that they share.
        targets: Columns that people label.
        n_rows: Rows that there are.
        sample_size: Rows of the first round.
        open_round: Number of the round in progress, its number of rows, and how many of them lack a judgment.
    """
    number, drawn, n_open = open_round or (None, 0, 0)
    whole = gold
    if gold is not None and number is not None and ROUND in gold.column_names:
        # A part of a round stands for nothing: who labels in some order has seen the first ones only.
        whole = gold.filter(pc.less(gold[ROUND], number))
    after = 0
    if whole is not None and ROUND in whole.column_names:
        after = int(pc.max(whole[ROUND]).as_py() or 0)
    interval = _widest(rule, whole, candidates, key, targets) if whole is not None and after else None
    n_labeled = 0 if whole is None else len(whole)
    enough = Enough(
        rule=rule,
        after=after,
        n_labeled=n_labeled,
        n_rows=n_rows,
        n_new=max(0, n_rows - (rows_drawn_from(whole) or n_rows)) if whole is not None and after else 0,
        n_open=n_open,
        interval=interval,
        more=0,
        seconds=_seconds(gold),
    )
    if enough.is_reached:
        return enough
    half = None if interval is None else interval.half_width
    unseen = 0.0 if whole is None else _unseen(whole)
    more = more_rows(n_labeled, n_rows, half, rule.half_width, after + 1, sample_size, unseen)
    return Enough(**{**vars(enough), "more": max(0, more - drawn)})


def _widest(
    rule: StopRule, gold: pa.Table, candidates: Mapping[str, pa.Table], key: str, targets: Sequence[str]
) -> _Interval | None:
    """Return the widest interval; None while one of the intervals cannot be measured."""
    found: list[_Interval] = []
    for target in targets:
        for name, table in candidates.items():
            for of, value, low, high in _figures(rule.figure, gold, table, key, target, name):
                if value is None or low is None or high is None:
                    return None
                found.append(_Interval(of, float(value), float(low), float(high)))
    return max(found, key=lambda one: one.half_width, default=None)


def _figures(
    figure: Figure, gold: pa.Table, table: pa.Table, key: str, target: str, name: str
) -> Iterator[tuple[str, float | None, float | None, float | None]]:
    if figure == "shares":
        for one in estimate(gold, table, key=key, target=target, candidate_name=name):
            if one.figure == "share":
                yield f"share of {one.label} by {name}", one.powered, one.powered_low, one.powered_high
        return
    measured = evaluate(join(gold, table, key=key, target=Target(target), candidate_name=name))
    column = _EVALUATED[figure]
    value, low, high = (getattr(measured, f"{column}{end}") for end in ("", "_low", "_high"))
    yield f"{figure.replace('_', ' ')} of {name}, {target}", value, low, high


def _unseen(gold: pa.Table) -> float:
    """Return `unseen_part` of weighted gold; 0 of gold that was drawn alike."""
    weights = gold_weights(gold.select([name for name in gold.column_names if name in SAMPLE_COLUMNS]))
    return (
        0.0 if weights is None else unseen_part(float(pc.sum(weights.weight).as_py() / pc.max(weights.weight).as_py()))
    )


def _seconds(gold: pa.Table | None) -> float | None:
    """Return the time that people take for a row, without breaks."""
    if gold is None or SECONDS not in gold.column_names:
        return None
    known = [value for value in gold[SECONDS].to_pylist() if value is not None]
    if not known:
        return None
    longest = _LONG * median(known)
    return float(sum(min(value, longest) for value in known)) / len(known)
