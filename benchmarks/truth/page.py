"""The parts that sections share: their form, their tables, and the page with a place for each section."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import TypeVar

import scipy

from benchmarks.measure import ROOT
from benchmarks.truth.widths import Width, check_widths

Cell = TypeVar("Cell")
Result = TypeVar("Result")

PAGE = ROOT / "docs" / "truth.md"

_SELDOM = 0.02


@dataclass(frozen=True)
class Measured:
    """The results of a section: its tables as Markdown, a sentence for each broken guarantee, and the width of each row
    with a bound.
    """

    text: str
    broken: tuple[str, ...]
    widths: Mapping[str, Width] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """One section of the page.

    - `name`: The name of its module, and its mark on the page.
    - `text`: The heading and introduction above the tables.
    - `measure`: A function of the number of draws of each cell, and of whether to measure only the quick part. That
      part takes some seconds, and is the same in every run.
    """

    name: str
    text: str
    measure: Callable[[int, bool], Measured]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table. Columns whose first cell is a number are right-aligned."""
    shown = [[_cell(value) for value in row] for row in rows]
    right = [bool(rows) and isinstance(value, int | float) for value in (rows[0] if rows else head)]
    rule = ["---:" if at else "---" for at in right]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(head), rule, *shown])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


_METRICS = "tests/metrics/"

HELD = (
    (
        "95 % intervals of kappa and macro F1 hold with few rows",
        "with three classes, .99 right, 50 rows: 40 % cover the truth, and 60 % are a point",
        f"{_METRICS}test_classification.py::test_few_errors_leave_an_interval_of_some_width",
    ),
    (
        "the 95 % interval of the mean of scores holds",
        "it missed in up to 47 % at 30 gold rows, because its ends were the observed values",
        f"{_METRICS}test_estimates.py::test_scores_without_ends_are_refused_and_with_them_hold_what_no_row_shows",
    ),
    (
        "labels show the size of values",
        "labels can hide large values: intervals of the mean missed in 64 % at 30 gold rows",
        f"{_METRICS}test_estimates.py::test_large_values_that_no_label_shows_are_in_the_interval",
    ),
    (
        "intervals of rmse hold if few rows are wrong",
        "with 1 % of 100 rows wrong by lognormal sizes, 27 % of the reported intervals missed",
        f"{_METRICS}test_intervals.py::test_squares_have_an_interval_where_enough_rows_are_wrong_and_it_holds",
    ),
    (
        "intervals of a change of errors hold if few rows change",
        "with 3 of 100 rows changed, 14 to 21 % of the reported intervals missed",
        f"{_METRICS}test_intervals.py::test_changes_have_an_interval_where_enough_rows_change_and_it_holds",
    ),
    (
        "rows of one request are independent",
        "with half of the rows in groups of ten, the interval of accuracy covers in 60 %",
        f"{_METRICS}test_classification.py::test_rows_of_one_request_are_one_row_of_evidence",
    ),
    (
        "the weights of a sample keep the estimate fair",
        "the weights were not used: the estimate was .715 instead of .883",
        f"{_METRICS}test_gold_weights.py::test_a_sample_of_hard_rows_tells_the_accuracy_of_all_rows",
    ),
    (
        "the check of unchanged numbers fails in 5 %",
        "it fails in 48 % with one row, in 23 % with two",
        f"{_METRICS}test_regression.py::test_equal_versions_are_seldom_called_worse_at_any_number_of_rows",
    ),
    (
        "the check of an unchanged version fails in 5 %",
        "with 30 partitions, one of them fails in 51 %",
        f"{_METRICS}test_sequential_tests.py::test_a_year_of_equal_versions_is_seldom_blamed_in_any_order",
    ),
    (
        "there are too few rows to see drift",
        "half of ten classes had vanished, which happens by chance once in 2,000",
        f"{_METRICS}test_drift.py::test_classes_of_few_rows_are_tested_too",
    ),
    (
        "the check of sufficient real-time agreement fails in 2.5 %",
        "it fails in 7.8 to 9.6 %",
        f"{_METRICS}test_limits.py::test_a_share_that_keeps_its_limit_is_blamed_no_more_often_than_is_meant",
    ),
    (
        "a passed `min_accuracy` means an accurate dataset",
        "five labeled rows of a hundred passed it, because the others were left out",
        f"{_METRICS}test_limits.py::test_five_right_labels_of_a_hundred_rows_are_an_accuracy_of_a_twentieth",
    ),
    (
        "`max_ece=0.1` fails only uncalibrated candidates",
        "it also fails 42 % of the calibrated ones with 50 labels",
        f"{_METRICS}test_limits.py::test_a_calibrated_candidate_of_fifty_rows_is_not_blamed_for_what_chance_makes",
    ),
    (
        "a steady dataset has a drift alarm in 5 % of years",
        "in 19.8 % if one day in ten is an outlier, in 7.9 % if days vary like Student's t",
        f"{_METRICS}test_drift.py::test_independent_days_raise_few_alarms_however_wild_they_are",
    ),
    (
        "nine in ten submissions end by their p90",
        "68 % at 20 a day, 57 % at 40 a day: submissions of one day share their vendor's speed",
        "tests/core/test_durations.py::test_nine_in_ten_of_a_backfill_end_by_their_p90_however_many_share_a_day",
    ),
    (
        "a cascade breaks its guarantee in 5 %",
        "in 5 to 14 % if the user raises its sample until the oracle's share looks good",
        (
            "tests/core/test_cascade.py::"
            "test_who_raises_the_sample_until_it_pleases_does_not_break_the_promise_more_often_than_allowed"
        ),
    ),
    (
        "95 % intervals of `estimate_assets` hold for numbers",
        "they are a point if all gold labels are right, and miss in 74 to 86 % if large values are rare",
        f"{_METRICS}test_estimates.py::test_intervals_of_means_hold_and_are_no_wider_than_those_of_gold_alone",
    ),
    (
        "proposed rows are worth more than random rows",
        "40 of them were worth 15: a class with nearly an even share took most of them",
        f"{_METRICS}test_gold_sample.py::test_classes_that_are_about_even_are_not_rare_and_have_not_grown",
    ),
    (
        "intervals of rmse miss in 5 %",
        "the reported intervals miss in 50 to 64 % if errors are skewed",
        f"{_METRICS}test_classification.py::test_intervals_of_skewed_errors_are_given_and_hold",
    ),
)
"""Earlier statement, truth, and the test that verifies the current statement."""

HEAD = f"""# Truth

You can rely on the error rates of intervals, checks and cascades: on simulated data with known truth, they hold in
every section below, except for numbers whose rare large errors are missing from the gold. *Not kept* lists the other
exceptions: intervals that hold but are wider than necessary. If an interval is too wide for you, label more gold.

Written by `python -m benchmarks.truth`. It simulates data sets with a known truth, and measures them with the functions
that measure yours. Each table shows the guarantee next to the result. With 1,000 draws a share of 5 % varies by 1.4
percentage points (twice its standard error), with 200 draws by 3.

Rows of filters, near copies and older labels are computed exactly, by scipy alone, in `tests/test_recomputed_truth.py`.

In this way, {len(HELD)} earlier statements were found to be wrong. Each has a test that failed before the correction:

{table(["earlier statement", "truth", "test"], HELD)}
"""


def measured_cells(
    measure: Callable[[Cell, int], Result], cells: Sequence[Cell], draws: int, *, processes: int = 2
) -> list[Result]:
    """Measure each cell with `draws` draws, in order. `measure` takes its seed from the cell, so the results do not
    depend on the number of processes.
    """
    if processes == 1:
        return [measure(cell, draws) for cell in cells]
    with ProcessPoolExecutor(min(processes, os.cpu_count() or 1)) as pool:
        return list(pool.map(measure, cells, repeat(draws)))


def miss_more(missed: int, given: int, most: float) -> bool:
    """Return whether more of the reported intervals miss than chance explains for `most`, at a level of 1 in 50."""
    return given > 0 and missed / given > most and float(scipy.stats.binom.sf(missed - 1, given, most)) < _SELDOM


def with_bounds(section: str, measured: Measured) -> Measured:
    """Return the results with each width above its bound as a broken guarantee."""
    return replace(measured, broken=(*measured.broken, *check_widths(section, measured.widths)))


def miss_less(missed: int, given: int, least: float) -> bool:
    """Return whether fewer of the reported intervals miss than chance explains for `least`, at a level of 1 in 50."""
    return given > 0 and missed / given < least and float(scipy.stats.binom.cdf(missed, given, least)) < _SELDOM


def write(section: Section, measured: Measured, draws: int) -> None:
    """Put a section in its place on the page, or at the end."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else HEAD
    begin, end = (f"<!-- {section.name}: {mark} -->" for mark in ("begin", "end"))
    told = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}; {draws:,} draws of each cell."
    broken = "\n".join(f"- {one}" for one in measured.broken)
    kept = f"Not kept:\n\n{broken}" if broken else "All guarantees are kept."
    text = f"{begin}\n\n{section.text}\n\n{measured.text}\n\n{kept}\n\n{told}\n\n{end}"
    there = re.compile(rf"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    page = there.sub(lambda _: text, page) if there.search(page) else f"{page.rstrip()}\n\n{text}\n"
    PAGE.write_text(page, encoding="utf-8")


def seed_of(cell: object) -> int:
    """Return a seed that depends only on the cell, so that other cells do not affect its results."""
    return int.from_bytes(hashlib.blake2b(repr(cell).encode(), digest_size=4).digest(), "big")
