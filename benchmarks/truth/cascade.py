"""Tests of a cascade's guarantees: its level in one partition and over many, its alarm, and its forecasts.

Scores are simulated, without a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from benchmarks.truth.page import Measured, Section, seed_of, table
from benchmarks.truth.shared import measure_gold, measure_shared
from dagster_llm_batch.core.audit import (
    ALARM,
    WINDOW,
    Audited,
    Point,
    bound_share,
    calibrate_points,
    evidence_after,
    find_alarm,
)
from dagster_llm_batch.core.forecast import Billed, Rates, learn
from dagster_llm_batch.core.thresholds import (
    NOTHING,
    are_above,
    choose_sample,
    count_allowed,
    find_threshold,
    look_confidence,
)
from dagster_llm_batch.metrics.estimates import power
from dagster_llm_batch.metrics.gold_weights import SampledRows

CONFIDENCE = 0.95

FIRST = look_confidence(CONFIDENCE, 1)
"""The confidence of a partition's first sample, since looks at the same rows share the 5 %."""

LEAST_SPARED = {
    (0.95, 60): 0.37,
    (0.95, 100): 0.4,
    (0.95, 200): 0.5,
    (0.95, 500): 0.6,
    (0.9, 200): 0.65,
    (0.9, 500): 0.67,
}
"""The guarantee, by agreement and sample: the spared rows, as a share of the rows that the best threshold spares."""

WIDEST_MARGIN = 1.6
"""The guarantee: the bound's distance from the truth, at most this multiple of the distance with a known variance."""

WIDEST_FORECAST = 1.6
"""The guarantee: the 95th percentile's distance from the mean cost, at most this multiple of the true distance."""

WIDEST_FIGURES = {50: 2.0, 200: 1.9}
"""The guarantee, by sample: the mean width for a class's share, at most this multiple of the width by true variance."""

LEAST_COVERED = 0.927
"""The guarantee: at least this share of 1,000 intervals or bounds of 95 % hold, three standard errors below 95 %."""

MOST_FALSE_ALARMS = {0.05: 0.5, 0.03: 0.02}
"""The guarantee, by the share of disagreements: the maximum share of years with an alarm, if 5 % may disagree."""

LATEST_ALARM = 25
"""The guarantee: after changes from 3 % to 10 %, nine in ten alarms come within this number of partitions of 20
audited rows.
"""

DAYS, AUDITS = 365, 20

Scores = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Digests = npt.NDArray[np.uint64]


class Part(NamedTuple):
    """One table of the section, with its broken guarantees."""

    text: str
    broken: list[str]


def measure(draws: int, quick: bool) -> Measured:  # a section's form
    """Measure all tables, or only those without another simulated test (tests/core/test_cascade.py has the first)."""
    alone = () if quick else (measure_level(2 * draws), measure_populations(max(40, draws * 2 // 5)))
    parts = (
        *alone,
        measure_looks(draws // 4 if quick else draws, LOOKED_AT[:1] if quick else LOOKED_AT),
        Part(*measure_gold(draws)),
        measure_partitions(1 if quick else max(2, draws // 50)),
        *(() if quick else (Part(*measure_shared(max(40, draws // 2))),)),
        measure_window(draws),
        measure_detector(4 * draws),
        measure_figures(draws),
        measure_forecasts(3 if quick else max(3, draws // 25)),
    )
    return Measured("\n\n".join(part.text for part in parts), tuple(one for part in parts for one in part.broken))


def _random(cell: object) -> np.random.Generator:
    return np.random.default_rng(seed_of(cell))


def _uncovered(what: str, covered: float, of: int) -> list[str]:
    # The share that chance allows for 95 %: three standard errors below, such as 927 of 1,000.
    least = CONFIDENCE - (CONFIDENCE - LEAST_COVERED) * (1_000 / of) ** 0.5
    return [f"{what}: holds in {covered:.1%}; the guarantee is {CONFIDENCE:.0%}."] if covered < least else []


def _too_wide(what: str, width: float, most: float) -> list[str]:
    return [] if width <= most else [f"{what}: {width:.2f} times as wide as the oracle's; the limit is {most}."]


# one partition ----------------------------------------------------------------------------------------------------


def measure_level(runs: int) -> Part:
    """Measure the share of broken guarantees in the hardest case: one score, and exactly one error too many."""
    rows, wrong = 20_000, np.arange(20_000) < 1_001
    lines, broken = [], []
    for sample in (60, 95, 210):
        rng, failures = _random(("level", sample)), 0
        allowed = count_allowed(sample, rows, 0.95, FIRST)
        for _ in range(runs):
            digests = rng.integers(0, 1 << 63, rows).astype(np.uint64)
            failures += _fails(rng, np.ones(rows), digests, wrong, sample, allowed, 0.95)
        lines.append((sample, allowed, 100 * failures / runs))
        meant = 1 - FIRST
        low, high = ((meant + times * (meant * FIRST / runs) ** 0.5) * runs for times in (-3.8, 3.2))
        if not low <= failures <= high:
            broken.append(f"level, {sample} rows: {failures / runs:.1%} fail, of which {meant:.1%} are meant.")
    head = ("sampled rows", "may be wrong", "guarantee broken %")
    return Part(f"### The level\n\n{table(head, lines)}", broken)


def _fails(
    rng: np.random.Generator,
    scores: Scores,
    digests: Digests,
    wrong: Flags,
    sample: int,
    allowed: int,
    agreement: float,
) -> bool:
    drawn = rng.choice(len(scores), sample, replace=False)
    threshold = find_threshold(scores[drawn], digests[drawn], wrong[drawn], allowed)
    return bool((are_above(scores, digests, threshold) & wrong).sum() > (1 - agreement) * len(scores))


def populations(rows: int, rng: np.random.Generator) -> Iterator[tuple[str, Scores, Flags]]:
    """Yield kinds of models that a cascade may meet: a name, scores, and whether each label is wrong."""
    hard = rng.beta(1, 4, rows)
    wrong = rng.random(rows) < hard
    yield "calibrated", 1 - hard, wrong
    yield "overconfident", 1 - hard**2 / 4, wrong
    yield "useless", rng.random(rows), rng.random(rows) < 0.15
    yield "tied", np.ceil((1 - hard) * 10), wrong
    surest = 1 - hard
    yield "surest but wrong", surest, wrong | (surest > np.quantile(surest, 0.97))
    good = rng.beta(1, 30, rows)
    yield "good", 1 - good, rng.random(rows) < good
    invalid = np.where(rng.random(rows) < 0.2, -np.inf, 1 - hard)
    yield "invalid replies", invalid, wrong & np.isfinite(invalid)
    yield "one score", np.full(rows, 0.9), rng.random(rows) < 0.08


def measure_populations(runs: int) -> Part:
    """Measure the share of broken guarantees, and the oracle's share of rows, by kind of model and size of sample."""
    rows, lines, broken = 5_000, [], []
    for agreement, sample in ((0.95, 60), (0.95, 100), (0.95, 200), (0.95, 500), (0.9, 200), (0.9, 500)):
        rng = _random(("populations", agreement, sample))
        allowed = count_allowed(sample, rows, agreement, FIRST)
        fails, naive, asked, ideal = defaultdict[str, int](int), defaultdict[str, int](int), [], []
        for name, scores, wrong in populations(rows, rng):
            digests = rng.integers(0, 1 << 63, rows).astype(np.uint64)
            ideal.append(1 - most_accepted(scores, digests, wrong, agreement) / rows)
            for _ in range(runs):
                drawn = rng.choice(rows, sample, replace=False)
                of = scores[drawn], digests[drawn], wrong[drawn]
                accepted = are_above(scores, digests, find_threshold(*of, allowed))
                fails[name] += int((accepted & wrong).sum() > (1 - agreement) * rows)
                accepted[drawn] = False
                asked.append(1 - accepted.mean())
                # The naive method: the sample's own share of wrong labels sets the limit.
                own = are_above(scores, digests, find_threshold(*of, int((1 - agreement) * sample)))
                naive[name] += int((own & wrong).sum() > (1 - agreement) * rows)
        worst, worst_naive = (max(of.values()) / runs for of in (fails, naive))
        shares = float(np.mean(asked)), float(np.mean(ideal))
        spared, least = (1 - shares[0]) / (1 - shares[1]), LEAST_SPARED[agreement, sample]
        lines.append((agreement, sample, 100 * worst, *shares, spared, least, 100 * worst_naive))
        if spared < least:
            broken.append(f"agreement {agreement}, {sample} rows: spared {spared:.2f}; the minimum is {least}.")
        if worst > 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5:
            broken.append(f"agreement {agreement}, {sample} rows: {worst:.1%} fail; the limit is 5 %.")
    head = (
        "agreement",
        "sampled rows",
        "worst: broken %",
        "oracle's share",
        "ideal share",
        "spared, of the ideal",
        "at least",
        "naive threshold: broken %",
    )
    text = (
        "### Kinds of models\n\nTables have 5,000 rows. Shown are the worst of eight kinds, and means over all kinds."
    )
    return Part(f"{text}\n\n{table(head, lines)}", broken)


LOOKED_AT = (("useless", 0.06), ("useless", 0.08), ("calibrated", 0.0))
"""Kinds of scores, with the share of wrong labels if the scores are useless."""

_LOOK_SIZES = (100, 200, 300, 400, 600, 800)


def measure_looks(draws: int, kinds: Sequence[tuple[str, float]]) -> Part:
    """Measure the share of broken guarantees if the user raises the sample until the oracle's share looks good."""
    rows, lines, broken = 5_000, [], []
    for kind, share in kinds:
        failures, looks = np.zeros(2), np.zeros(2)
        for way in range(2):
            rng = _random(("looks", kind, share))
            allowed = [
                count_allowed(size, rows, 0.95, CONFIDENCE if way else look_confidence(CONFIDENCE, look))
                for look, size in enumerate(_LOOK_SIZES, start=1)
            ]
            for _ in range(draws):
                hard = rng.beta(1, 4, rows)
                wrong = rng.random(rows) < (share or hard)
                scores = rng.random(rows) if kind == "useless" else 1 - hard
                digests, order = rng.integers(0, 1 << 63, rows).astype(np.uint64), rng.permutation(rows)
                pleases = most_accepted(scores, digests, wrong, 0.95)
                for look, size in enumerate(_LOOK_SIZES):
                    drawn = order[:size]
                    place = find_threshold(scores[drawn], digests[drawn], wrong[drawn], allowed[look])
                    accepted = are_above(scores, digests, place)
                    # The sample accepts more labels than the best threshold may.
                    if accepted.sum() > pleases:
                        break
                looks[way] += look + 1
                failures[way] += (accepted & wrong).sum() > 0.05 * rows
        shared, naive = failures / draws
        name = f"tell nothing, {share:.0%} wrong" if share else kind
        lines.append((name, 100 * shared, looks[0] / draws, 100 * naive))
        if shared > 0.05 + 3 * (0.0475 / draws) ** 0.5:
            broken.append(f"looks, {name}: {shared:.1%} fail; the limit is 5 %.")
    head = ("scores", "guarantee broken %", "mean looks", "each look with all of the 5 %: broken %")
    text = (
        f"### A sample that is raised until the result looks good\n\nTables have {rows:,} rows, agreement is 0.95. "
        f"`sample=` is raised from {_LOOK_SIZES[0]} to {_LOOK_SIZES[-1]} rows. The user keeps the first sample that "
        "accepts more labels than the best threshold may. The looks share the 5 %: the first has 15/16 of it."
    )
    return Part(f"{text}\n\n{table(head, lines)}", broken)


def most_accepted(scores: Scores, digests: Digests, wrong: Flags, agreement: float) -> int:
    """Return the number of rows that the best threshold accepts, if wrong labels are known."""
    order = np.lexsort((digests, scores))[::-1]
    may = np.flatnonzero(np.cumsum(wrong[order]) <= (1 - agreement) * len(scores))
    return min(len(may), int(np.isfinite(scores).sum()))


# many partitions --------------------------------------------------------------------------------------------------

_CHANGES = ("none", "step", "slow drift", "bad weekday")
_LIFE, _ROWS = 180, 2_000
_ROLLING = "Rolling(rows=400, audit=0.01)"


def _wrong_sure(change: str, day: int) -> float:
    """Return a day's share of labels that are wrong at any score."""
    return {
        "none": 0.0,
        "step": 0.05 * (day >= _LIFE // 2),
        "slow drift": 0.05 * day / _LIFE,
        "bad weekday": 0.05 * (day % 7 == 6),
    }[change]


def measure_partitions(lives: int) -> Part:
    """Measure lives of a dataset whose model gets worse: the share of broken partitions, by source of the threshold."""
    lines, broken = [], []
    for calibrate in ("partition, 60 rows", "partition, 200 rows", _ROLLING, "once, 400 rows"):
        for change in _CHANGES:
            rng, fails, asked, covered, own = _random((calibrate, change)), [], [], [], []
            for _ in range(lives):
                life = _live(rng, change, calibrate)
                fails += life.fails
                asked += life.asked
                covered += life.covered
                own.append(life.own_samples)
            windows = float(np.mean(covered)) if covered else None
            lines.append(
                (calibrate, change, float(np.mean(fails)), float(np.mean(asked)), windows, float(np.mean(own)))
            )
            if calibrate.startswith("partition") and np.mean(fails) > 0.05 + 3 * (0.0475 / len(fails)) ** 0.5:
                broken.append(f"{calibrate}, {change}: {np.mean(fails):.1%} of the days fail; the limit is 5 %.")
            # Windows overlap, so only the disjoint windows of a life count as independent.
            if windows is not None:
                broken += _uncovered(f"window, {change}", windows, lives * _LIFE // WINDOW)
    head = ("calibrate", "change", "days below 95 %", "oracle's share", "windows that hold", "days with a sample")
    text = f"### Partitions\n\n{_LIFE} days of {_ROWS:,} rows, agreement 0.95; {lives} lives of each."
    return Part(f"{text}\n\n{table(head, lines)}", broken)


class _Life(NamedTuple):
    """The results of one life.

    - `fails`, `asked`: for each day, whether it broke the guarantee, and the oracle's share.
    - `covered`: for each window, whether the bound held.
    - `own_samples`: the number of days with their own sample.
    """

    fails: list[bool]
    asked: list[float]
    covered: list[bool]
    own_samples: int


def _live(rng: np.random.Generator, change: str, calibrate: str) -> _Life:
    sample = None if calibrate == _ROLLING else int(calibrate.split()[1])
    threshold = NOTHING
    life = _Life([], [], [], 0)
    audits: list[Audited] = []
    points: list[list[Point]] = []
    shares: list[float] = []
    own_samples = 0
    for day in range(_LIFE):
        hard = rng.beta(1, 4, _ROWS)
        wrong = (rng.random(_ROWS) < hard) | (rng.random(_ROWS) < _wrong_sure(change, day))
        scores, digests = 1 - hard, rng.integers(0, 1 << 63, _ROWS).astype(np.uint64)
        audited = rng.random(_ROWS) < 0.01 if sample is None else np.zeros(_ROWS, bool)
        known = None if sample is not None else _last_points(audits, points)
        drawn = np.flatnonzero(audited)
        is_own = known is None and not (calibrate.startswith("once") and day)
        if is_own:
            size = choose_sample(_ROWS, 0.95, FIRST) if sample is None else sample
            drawn = rng.choice(_ROWS, size, replace=False)
            allowed = count_allowed(size, _ROWS, 0.95, FIRST)
            threshold = find_threshold(scores[drawn], digests[drawn], wrong[drawn], allowed)
            own_samples += 1
        elif known is not None:
            threshold = calibrate_points(known, ("", ""), _ROWS, 0.95, CONFIDENCE).threshold
        accepted = are_above(scores, digests, threshold)
        if is_own:
            # Rows in the sample have the oracle's labels. Audited rows do not have them yet when labels are judged.
            accepted[drawn] = False
        shares.append(float((accepted & wrong).mean()))
        life.fails.append(shares[-1] > 0.05)
        audits.append(Audited(f"{day:03}", int(audited.sum()), int((accepted & wrong & audited).sum())))
        points.append([Point(*one) for one in zip(scores[drawn], digests[drawn].tolist(), wrong[drawn], strict=True)])
        life.asked.append(1 - float((accepted & ~audited).mean()))
        if sample is None and day >= WINDOW - 1:
            recent = audits[-WINDOW:]
            _, high = bound_share(sum(one.wrong for one in recent), sum(one.rows for one in recent), CONFIDENCE)
            life.covered.append(bool(high >= np.mean(shares[-WINDOW:])))
    return life._replace(own_samples=own_samples)


def _last_points(audits: list[Audited], points: list[list[Point]]) -> list[Point] | None:
    """Return the rows of the last days that set the threshold; None if they are too few since the last alarm."""
    alarm = find_alarm(audits, 0.95)
    known: list[Point] = []
    for one, of in zip(reversed(audits), reversed(points), strict=True):
        if one.partition == alarm:
            return None
        known += of
        if len(known) >= 400:
            return known
    return None


_WINDOWS = (
    "at 5 %",
    "at 3 %",
    "one day all wrong",
    "every seventh day 20 %",
    "from 2 % to 8 %",
    "sizes from 200 to 50,000",
)


def measure_window(draws: int) -> Part:
    """Measure the share of windows whose bound holds, for several changes within the window."""
    lines, broken = [], []
    for kind in _WINDOWS:
        rng, covered, bounds, truths, sizes = _random(("window", kind)), 0, 0.0, 0.0, 0
        for _ in range(draws):
            rows = np.full(WINDOW, _ROWS)
            if kind.startswith("sizes"):
                rows = np.exp(rng.uniform(np.log(200), np.log(50_000), WINDOW)).astype(int)
            day = np.arange(WINDOW)
            shares = {
                "at 3 %": np.full(WINDOW, 0.03),
                "one day all wrong": np.where(day == rng.integers(WINDOW), 1.0, 0.02),
                "every seventh day 20 %": np.where(day % 7 == 0, 0.2, 0.02),
                "from 2 % to 8 %": np.linspace(0.02, 0.08, WINDOW),
                "sizes from 200 to 50,000": rng.uniform(0, 0.1, WINDOW),
            }.get(kind, np.full(WINDOW, 0.05))
            wrong = np.round(rows * shares).astype(int)
            found, others = rng.binomial(wrong, 0.01), rng.binomial(rows - wrong, 0.01)
            high = bound_share(int(found.sum()), int((found + others).sum()), CONFIDENCE)[1]
            truth = wrong.sum() / rows.sum()
            sizes += int(rows.sum())
            covered, bounds, truths = covered + (high >= truth), bounds + high, truths + truth
        mean, audited = truths / draws, 0.01 * sizes / draws
        margin = (bounds / draws - mean) / (
            float(scipy.stats.norm.ppf(CONFIDENCE)) * (mean * (1 - mean) / audited) ** 0.5
        )
        lines.append((kind, 100 * mean, 100 * bounds / draws, margin, WIDEST_MARGIN, 100 * covered / draws))
        broken += _uncovered(f"window, {kind}", covered / draws, draws)
        broken += _too_wide(f"window, {kind}", margin, WIDEST_MARGIN)
    head = ("labels that disagree", "truth %", "mean bound %", "margin, of the oracle's", "at most", "holds in %")
    text = "### The window\n\nThe table shows the upper bound of 95 % for 20 partitions with 1 % of the rows audited."
    return Part(f"{text}\n\n{table(head, lines)}", broken)


def measure_detector(lives: int) -> Part:
    """Measure the share of false alarms, and the delay of true ones."""
    rows, broken = np.full((lives, DAYS), AUDITS), []
    lines: list[tuple[object, ...]] = []
    # A separate test of each day, at 5 %.
    daily = next(k for k in range(AUDITS) if scipy.stats.binom.sf(k - 1, AUDITS, 0.05) <= 0.05)
    for share, most in MOST_FALSE_ALARMS.items():
        wrong = _random(("detector", share)).binomial(AUDITS, share, rows.shape)
        alarms = float((evidence_after(rows, wrong, 0.95) >= ALARM).any(axis=1).mean())
        lines.append(
            (f"stays at {share:.0%}", 100 * alarms, None, None, 100 * float((wrong >= daily).any(axis=1).mean()))
        )
        if alarms > most:
            broken.append(f"alarm at {share:.0%}: in {alarms:.1%} of the years; the limit is {most:.0%}.")
    rng, before = _random("detector, change"), DAYS // 2
    wrong = np.concatenate(
        [rng.binomial(AUDITS, share, (lives, days)) for share, days in ((0.03, before), (0.1, DAYS - before))], axis=1
    )
    told = evidence_after(rows, wrong, 0.95)[:, before:] >= ALARM
    days = np.where(told.any(axis=1), told.argmax(axis=1) + 1, DAYS)
    median, late = np.quantile(days, [0.5, 0.9])
    lines.append(
        (f"3 % to 10 % after {before} days", 100 * float(told.any(axis=1).mean()), float(median), float(late), None)
    )
    if late > LATEST_ALARM:
        broken.append(f"alarm after a change: nine in ten within {late:.0f} days; the limit is {LATEST_ALARM}.")
    head = (
        "labels that disagree",
        "alarm within the year %",
        "median days",
        "nine in ten within",
        "a daily test of 5 % %",
    )
    text = f"### The alarm\n\n{DAYS} days of {AUDITS} audited rows; 5 % of them may disagree; {lives:,} lives."
    return Part(f"{text}\n\n{table(head, lines)}", broken)


# figures and forecasts --------------------------------------------------------------------------------------------


def measure_figures(draws: int) -> Part:
    """Measure the share of intervals that hold, for a class's share by the oracle, in tables of a cascade."""
    rows, lines, broken = 2_000, [], []
    for kind, share, sample in [(k, p, n) for k in ("calibrated", "useless") for p in (0.02, 0.3) for n in (50, 200)]:
        rng, covered, once = _random((kind, share, sample)), 0, 0
        widths, errors = np.zeros(draws), np.zeros(draws)
        for draw in range(draws):
            hard = rng.beta(1, 4, rows)
            y = (rng.random(rows) < share).astype(float)
            # Half of the wrong labels are the class.
            f = np.where(rng.random(rows) < hard, rng.random(rows) < 0.5, y).astype(float)
            score = 1 - hard if kind == "calibrated" else rng.random(rows)
            is_oracles = score <= np.quantile(score, 0.5)
            certain, others = np.flatnonzero(is_oracles), np.flatnonzero(~is_oracles)
            at = np.concatenate([certain, rng.choice(others, sample, replace=False)])
            weight = np.repeat([1.0, len(others) / sample], [len(certain), sample])
            spread = weight * (weight - 1) * sample / (sample - 1)
            known = SampledRows(weight, spread, np.arange(len(at)))
            found = power(y[at], f[at], f, known, ends=(0.0, 1.0))
            figure = found.powered.figure(found.n_eff, (0.0, 1.0))
            assert figure.low is not None
            assert figure.high is not None
            assert figure.value is not None
            covered += bool(figure.low <= y.mean() <= figure.high)
            widths[draw], errors[draw] = figure.high - figure.low, figure.value - y.mean()
            delivered = np.where(is_oracles, y, f).mean()
            once += bool(abs(delivered - y.mean()) <= 1.96 * (delivered * (1 - delivered) / rows) ** 0.5)
        # The denominator is the width of an interval by the true variance of these estimates.
        width = float(widths.mean() / (2 * scipy.stats.norm.ppf(0.975) * np.sqrt(np.mean(errors**2))))
        most = WIDEST_FIGURES[sample]
        lines.append((kind, 100 * share, sample, 100 * covered / draws, width, most, 100 * once / draws))
        broken += _uncovered(f"figures, {kind}, {share}, {sample}", covered / draws, draws)
        broken += _too_wide(f"figures, {kind}, {share}, {sample}", width, most)
    head = (
        *("scores", "share of the class %", "sampled rows", "holds in %", "width, of the oracle's", "at most"),
        "delivered labels alone: holds in %",
    )
    text = (
        "### Statistics of the whole table\n\nThe table shows the share of a class by the oracle's labels. The oracle "
        f"labels half of {rows:,} rows, and a sample of the rest."
    )
    return Part(f"{text}\n\n{table(head, lines)}", broken)


_RATES, _TOKENS = Rates(1.0, 4.0), 120


def measure_forecasts(lives: int) -> Part:
    """Measure the share of submissions that cost at most their forecast 95th percentile."""
    days, step, lines, broken = 120, 80, [], []
    for kind, after in (("stays the same", 1.0), ("35 % longer replies after 80 days", 1.35)):
        held: dict[str, list[bool]] = defaultdict(list)
        rng = _random(("forecasts", kind))
        margins: list[tuple[float, float]] = []
        of_law = {words: _law(words) for words in (60.0, 60 * after)}
        for _ in range(lives):
            earlier: list[Billed] = []
            for day in range(days):
                words = 60 * (after if day >= step else 1.0)
                came = _submission(rng, words)
                if (learned := learn(earlier[-80:], [], _RATES)) is not None and learned.high is not None:
                    assert learned.output_tokens is not None
                    tokens = learned.input_ratio * _TOKENS * _RATES.input + learned.output_tokens * _RATES.output
                    mean, p95 = of_law[words]
                    told = learned.high * learned.times * tokens
                    margins.append((told - mean, p95 - mean))
                    is_held = _cost(came) <= told
                    held["all"].append(is_held)
                    if step <= day < step + 14:
                        held["two weeks"].append(is_held)
                earlier.append(came)
        shares = [float(np.mean(held[which])) for which in ("all", "two weeks")]
        ours, best = np.mean(margins, axis=0)
        lines.append((kind, *(100 * share for share in shares), float(ours / best), WIDEST_FORECAST))
        broken += _uncovered(f"forecasts, {kind}", shares[0], len(held["all"]))
        broken += _too_wide(f"forecasts, {kind}", float(ours / best), WIDEST_FORECAST)
    head = (
        *("replies", "holds in %", "of those in the two weeks after day 80 %", "above the mean, of the oracle's"),
        "at most",
    )
    text = (
        "### Forecasts of tokens\n\nThe table shows the 95th percentile of a submission's cost, forecast from earlier "
        f"ones; {days} days, {lives} lives."
    )
    return Part(f"{text}\n\n{table(head, lines)}", broken)


def _submission(rng: np.random.Generator, words: float) -> Billed:
    """Return a submission of some hundred requests. `words` is the mean length of replies, which varies by the day."""
    size = int(np.clip(np.exp(rng.normal(np.log(300), 1)), 20, 20_000))
    level = words * np.exp(rng.normal(0, 0.1))
    written = rng.gamma(1.2, level / 1.2, min(size, 4_000)).mean() * size
    taken = size * _TOKENS * 1.3 * np.exp(rng.normal(0, 0.02))
    return Billed(size, size * _TOKENS, size, round(taken), round(written), 1 + 0.05 * rng.random())


def _law(words: float) -> tuple[float, float]:
    """Return the mean of a submission's cost for each request, and the 95th percentile."""
    rng = _random(("law of costs", words))
    costs = [_cost(_submission(rng, words)) for _ in range(2_000)]
    return float(np.mean(costs)), float(np.quantile(costs, 0.95))


def _cost(came: Billed) -> float:
    return came.times * (came.input_tokens * _RATES.input + came.output_tokens * _RATES.output) / came.requests


SECTION = Section(
    "cascade",
    f"""## Cascades

The guarantees of cascades:

- In each partition, the chance of more disagreements than allowed is at most 5 %, for scores of any quality.
- At least {LEAST_COVERED:.1%} of the 95 % bounds and intervals hold; 1,000 draws cannot measure more precisely.
- With exactly 5 % disagreements and 5 % allowed, at most {MOST_FALSE_ALARMS[0.05]:.0%} of the years have an alarm. With
  3 % disagreements, at most {MOST_FALSE_ALARMS[0.03]:.0%} do.
- After a change from 3 % to 10 %, nine in ten alarms come within {LATEST_ALARM} partitions of {AUDITS} audited rows.

Each sample has the level of a first look, 15/16 of the 5 %.

The savings are guaranteed, too. The tables show the minimum share of the rows that the best threshold would spare
the oracle. Bounds, intervals and forecasts have a maximum width, as a multiple of an oracle's, which has the true
variance or distribution. A change that doubles a width breaks a guarantee.

If the assumption of `Rolling` breaks, it guarantees nothing about a single partition: its table shows the number of
days below. The bound of its window always holds. Days at the beginning and days after alarms have their own sample.""",
    measure,
)
