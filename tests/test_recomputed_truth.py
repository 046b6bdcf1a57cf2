"""Rows of docs/truth.md, recomputed by scipy alone: how often an audit passes is a known distribution.

Nothing here calls this package. A row's sample is read from the page: of the partitions that pass, the share that is
saved is the share that was not sampled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from math import floor

import numpy as np
import pytest
import scipy

from benchmarks.measure import ROOT

# The first look at rows has 15 of 16 parts of the 5 %.
RISK = 0.05 * 15 / 16

Row = Mapping[str, str]


def rows_of(section: str) -> list[Row]:
    """Return the rows of the first table of a section, by the titles of its columns."""
    page = (ROOT / "docs" / "truth.md").read_text(encoding="utf-8")
    body = page.partition(f"<!-- {section}: begin -->")[2].partition(f"<!-- {section}: end -->")[0]
    table = re.search(r"(?:^\|.*\n)+", body, re.MULTILINE)
    assert table is not None, section
    titles, _, *lines = ([cell.strip() for cell in line.strip("| ").split("|")] for line in table[0].splitlines())
    return [dict(zip(titles, line, strict=True)) for line in lines]


def row_of(section: str, **cells: str) -> Row:
    """Return the only row with these cells. A title is written with an underscore for a space."""
    wanted = {title.replace("_", " "): cell for title, cell in cells.items()}
    [found] = [row for row in rows_of(section) if wanted.items() <= {**row}.items()]
    return found


def draws_of(section: str) -> int:
    page = (ROOT / "docs" / "truth.md").read_text(encoding="utf-8")
    found = re.findall(r"; ([\d,]+) draws of each cell", page.partition(f"<!-- {section}: end -->")[0])
    return int(found[-1].replace(",", ""))


def sample_of(section: str, rows: int, passing: str, saved: str, title: str, **cells: str) -> int:
    """Return the sample of partitions of this size, by the row in which most of them pass."""
    alike = [row for row in rows_of(section) if row[title] == str(rows) and cells.items() <= {**row}.items()]
    most = max(alike, key=lambda row: float(row[passing]))
    return round(rows * (1 - float(most[saved]) / float(most[passing])))


def allowed_of(sample: int, rows: int, share: float) -> int:
    """Return how many sampled rows may be wrong: one wrong row too many in the table would show with 1 - RISK."""
    too_many = floor(round(share * rows, 9)) + 1
    counts = np.arange(sample + 1)
    # A table of twenty times the sample counts as endless, which allows less.
    chances = scipy.stats.hypergeom.cdf(counts, rows, too_many, sample)
    if rows >= 20 * sample:
        chances = scipy.stats.binom.cdf(counts, sample, share)
    return int((chances <= RISK).sum()) - 1


def agrees(percent: str, chance: float, draws: int) -> bool:
    """Return whether a simulated share is within chance of the exact one: 1 in 10,000 on each side."""
    count = round(float(percent) / 100 * draws)
    return bool(scipy.stats.binom.ppf(1e-4, draws, chance) <= count <= scipy.stats.binom.ppf(1 - 1e-4, draws, chance))


@pytest.mark.parametrize(
    ("section", "title", "kind", "passing", "saved", "rows", "changed", "share", "exact"),
    [
        ("copies", "near copies", "1 of a leader", "share answers %", "copies saved %", 10_000, 0.5, 0.02, 97.07),
        ("copies", "near copies", "1 of a leader", "share answers %", "copies saved %", 10_000, 2.1, 0.02, 3.81),
        ("relabels", "rows", "1 of a request", "labels stay %", "rows saved %", 10_000, 1, 0.02, 63.21),
        ("relabels", "rows", "1 of a request", "labels stay %", "rows saved %", 1_000, 1, 0.02, 25.75),
        # The share that the cascade allows, 10 %, and that of the change
        ("relabels", "rows", "1 of a request, cascade 0.9", "labels stay %", "rows saved %", 10_000, 12.05, 0.12, 4.88),
    ],
)
def test_an_audit_passes_as_often_as_the_binomial_distribution_says(
    section: str, title: str, kind: str, passing: str, saved: str, rows: int, changed: float, share: float, exact: float
) -> None:
    sample = sample_of(section, rows, passing, saved, title, kind=kind)
    # Each row of a partition is wrong with the same probability, so the sampled ones are, too.
    chance = float(scipy.stats.binom.cdf(allowed_of(sample, rows, share), sample, changed / 100))
    assert round(100 * chance, 2) == exact
    what = "wrong %" if section == "copies" else "changed %"
    [found] = [
        row for row in rows_of(section) if (row[title], row["kind"], row[what]) == (str(rows), kind, f"{changed:g}")
    ]
    assert agrees(found[passing], chance, draws_of(section))


@pytest.mark.parametrize(("of_leader", "sample"), [(4, 389), (40, 1_264)])
def test_near_copies_of_a_cascade_break_their_guarantee_as_often_as_drawing_without_replacement_says(
    of_leader: int, sample: int
) -> None:
    copies, share, agreement = 1_000 * of_leader, 0.05 + 0.02, "agreement 0.95"
    fixed = row_of(
        "cascade_copies",
        guarantee=agreement,
        kind=f"{of_leader} of a leader",
        **{"copies differ %": "just too many"},
    )
    allowed = allowed_of(sample, copies, share)
    differ = floor(round(share * copies, 9)) + 1 + allowed
    chance = float(scipy.stats.hypergeom.cdf(allowed, copies, differ, sample))
    assert 0.015 < chance < RISK
    # Each partition whose audit passes breaks the guarantee of copies.
    for column in ("of copies %", "share labels %"):
        assert agrees(fixed[column], chance, draws_of("cascade_copies"))
    saved = float(fixed["copies saved %"]) / float(fixed["share labels %"])
    assert saved == pytest.approx(1 - sample / copies, abs=1e-3)


@pytest.mark.parametrize(("rows", "yes", "sample"), [(4_000, 2_000, 400), (4_000, 400, 400), (20_000, 200, 8_000)])
@pytest.mark.parametrize("kind", ["precision", "recall"])
def test_a_filter_with_one_error_too_many_breaks_its_guarantee_as_often_as_drawing_without_replacement_says(
    kind: str, rows: int, yes: int, sample: int
) -> None:
    share, is_precision = 0.9, kind == "precision"
    # With precision, the model calls all yes rows yes, and some no rows. With recall, it calls some yes rows no.
    errors = floor(round(yes * (1 - share) / (share if is_precision else 1), 9)) + 1
    others = yes if is_precision else yes - errors
    chance, right = 0.0, np.arange(others + 1)
    counts = scipy.stats.hypergeom.pmf(np.arange(errors + 1), rows, errors, sample)
    for wrong in np.flatnonzero(counts > 1e-9).tolist():
        # If the sample has so many errors, its other rows are drawn from the other rows of the table.
        chances = scipy.stats.hypergeom.pmf(right, rows - errors, others, sample - wrong)
        passes = [wrong <= allowed_errors(kind, int(one) + wrong * (not is_precision), share) for one in right]
        chance += float(counts[wrong] * chances[passes].sum())
    assert chance <= 0.05
    cells = {"rows": str(rows), "yes %": f"{100 * yes / rows:g}", "sample": str(sample)}
    found = row_of("filter_tables", guarantee=f"{kind} {share}", scores="one error too many", **cells)
    assert agrees(found["broken %"], chance, draws_of("filter_tables"))


@cache
def allowed_errors(kind: str, seen: int, share: float) -> int:
    """Return how many errors a sample may have in which both models call `seen` rows yes, or the oracle does."""
    if not seen:
        return -1
    law = scipy.stats.nbinom.cdf if kind == "precision" else scipy.stats.binom.cdf
    return int((law(np.arange(seen + 1), seen, share if kind == "precision" else 1 - share) <= RISK).sum()) - 1
