"""Have the labels shifted? Compares the classes of one partition with a reference, such as the partitions before it.

    PSI                       population stability index, the size of the shift: below 0.1 small, over 0.25 large
    Jensen-Shannon distance   the size too, from 0 (equal) to 1 (nothing in common)
    chi-squared               whether chance explains it
    permutations of days      whether the dataset's own variation explains it

A large shift in few rows may be chance. A shift beyond doubt may be too small to matter, and one that comes every
Sunday is no news. So labels have drifted if three things hold: PSI is over a limit, chance does not explain it, *and*
the last partitions together, three or more, are further off than random picks of as many partitions. ADWIN, an online
detector, finds slow shifts too, in which each partition is like those just before it.

Partitions are compared by the roots of their shares. A root varies equally for common and rare classes. More rows in a
partition do not make it vary less from day to day, so one measure serves days of all sizes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.addresses import Linked
from dagster_llm_batch.errors import ConfigError, MissingExtraError
from dagster_llm_batch.metrics.columns import category
from dagster_llm_batch.metrics.joining import MAX_CLASSES, Class
from dagster_llm_batch.metrics.per_class import class_name
from dagster_llm_batch.metrics.schemas import evaluation_extra, schema_of, table_of
from dagster_llm_batch.metrics.sequential_tests import DRAWS, draw_p
from dagster_llm_batch.metrics.tables import figure, rows_markdown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "DRIFT_SCHEMA",
    "LEAST_RECENT",
    "SHARES_SCHEMA",
    "Counts",
    "Drift",
    "adwin_changes",
    "class_counts",
    "drift_between",
    "drifts_markdown",
    "drifts_to_arrow",
    "recent_partitions",
    "shares_to_arrow",
]

Counts = Mapping[Class, int]
"""Labels of each class, as `class_counts` counts them; classes without any may be left out."""


class _SharedCounts(dict[Class, int]):
    """Counts in which some labels share an answer. `squares` is the sum, over all answers, of their squared labels.

    `n` labels are worth `n ** 2 / squares` independent ones (Kish).
    """

    def __init__(self, counts: Counts, squares: int) -> None:
        super().__init__(counts)
        self.squares = squares


LEAST_RECENT = 3
"""Partitions that are compared together. A single one may be far off by chance, like one day in ten or in thirty in
some datasets, and the earlier days do not show how far. Several such days in a row are rare.
"""

# Rows of a class from which chi-squared's own distribution is near enough; below, tables are drawn.
_LEAST_EXPECTED = 5
_MOST_CELLS = 20_000_000
# above the level of every look
_NEAR = 0.01
# Picks of days: few first, and at a time as many as take 15 MB.
_PICKS_AT_ONCE = 20_000
_PICKS = (2_000, 20_000, 100_000, 1_000_000)
# With 100,000 picks, the smallest p-value is 1e-5.
_FEW_PICKS_TELL = 3e-5
# Cells drawn at a time: 32 MB.
_CHUNK_CELLS = 4_000_000
# rows of a partition for the detector: more of the same add little information
_ADWIN_ROWS = 2_000

SHARES_SCHEMA = pa.schema(
    {
        "partition": pa.string(),
        "candidate": pa.string(),
        "target": pa.string(),
        "class": pa.string(),
        "n": pa.int64(),
        "share": pa.float64(),
    }
)
"""One row for each partition, candidate, target and class that any partition has."""


@dataclass(frozen=True)
class Drift:
    """The labels of one candidate in one partition, against its reference. Figures are None where either has no labels.

    - `reference`: the partitions that it is compared with, in words; None if there are none yet.
    - `psi`: with half a row added to each class of both, since a new class would make it infinite.
    - `chi2` has `n_classes - 1` degrees of freedom; None where there is one class only. Labels that share answers count
      as the number of independent labels that they are worth.
    - `p_chance`: how often rows from the same distribution would differ as much (a permutation test if a class is
      rare).
    - `n_recent`: partitions that are judged together, this one and the ones just before it, against the reference as it
      was before them; None with too few partitions, and then `drifted` stays undecided. `recent_psi`: their PSI.
      `p_variation`: how often as many partitions, picked at random from all, would be as far off. `p_value`: the larger
      of `p_variation` and of how often chance alone would give such a shift. `n_earlier`: the earlier partitions that
      have labels.
    - `visible_change`: the least change of the share of `most_changed` that would be an alarm, given the variation of
      partitions (0.1: ten points); None if all changes stay below the alarm, `drifted` is undecided, or it was not
      requested.
    - `drifted`: `recent_psi` is over the limit, and `p_value` below the level of this interim look (see
      `sequential_tests`).
    - `most_changed`: class whose share has changed the most, by `change` (0.1: ten points more).
    - `adwin_changed`: classes whose share changed in this partition, by the online detector; None: not requested.
    """

    partition: str
    candidate: str
    target: str
    reference: str | None
    n: int
    n_reference: int
    psi: float | None = None
    js_distance: float | None = None
    n_classes: int | None = None
    chi2: float | None = None
    p_chance: float | None = None
    p_variation: float | None = None
    p_value: float | None = None
    n_earlier: int = 0
    n_recent: int | None = None
    recent_psi: float | None = None
    visible_change: float | None = None
    most_changed: str | None = None
    change: float | None = None
    drifted: bool = False
    adwin_changed: tuple[str, ...] | None = None


DRIFT_SCHEMA = schema_of(Drift)
"""The fields of `Drift`, in order; `adwin_changed` is one text, joined by commas."""


def class_counts(
    values: pa.ChunkedArray,
    target: str,
    owner: str,
    ids: pa.Array | pa.ChunkedArray | None = None,
    answers: pa.Array | pa.ChunkedArray | None = None,
) -> dict[Class, int]:
    """Return labels of each class, nulls left out. Raises ConfigError for values that cannot be classes.

    `ids` are the ids of the rows' units (see `cluster_ids`): the rows of a unit count once for each of its classes.
    `answers` are the ids of the rows' answers: labels with one answer are dependent, which the test of chance and the
    online detector consider.
    """
    classes = category(values.combine_chunks(), target, owner)
    nothing = pa.nulls(len(classes), pa.string())
    columns = {
        "class": classes,
        "id": nothing if ids is None else ids,
        "answer": nothing if answers is None else answers,
    }
    rows = pa.table(columns).filter(pc.is_valid(classes))
    alone, together = rows.filter(pc.is_null(rows["id"])), rows.filter(pc.is_valid(rows["id"]))
    once = together.group_by(["class", "id"], use_threads=False).aggregate([("answer", "first")])
    once = once.select(["class", "answer_first"]).rename_columns(["class", "answer"])
    labels = pa.concat_tables([alone.select(["class", "answer"]), once])
    counted = pc.value_counts(labels["class"]).to_pylist()
    if len(counted) > MAX_CLASSES:
        raise ConfigError(
            f"Target '{target}' of {owner} has {len(counted)} distinct values; at most {MAX_CLASSES} are classes. Bin "
            "it, or name another column."
        )
    counts = {entry["values"]: entry["counts"] for entry in counted}
    of_answer = pc.value_counts(labels["answer"].drop_null()).field("counts")
    squares = labels["answer"].null_count + (pc.sum(pc.multiply(of_answer, of_answer)).as_py() or 0)
    return counts if squares == len(labels) else _SharedCounts(counts, squares)


def drift_between(
    here: Counts,
    reference: Sequence[Counts],
    *,
    partition: str,
    candidate: str,
    target: str,
    against: str | None,
    max_psi: float,
    level: float,
    earlier: Sequence[Counts] = (),
    follows: bool = True,
    with_visible_change: bool = False,
    adwin_changed: tuple[str, ...] | None = None,
) -> Drift:
    """Compare. `against` names the reference.

    Args:
        here: Classes of the partition.
        reference: Classes of each partition of the reference; they are added up.
        partition: Its name, like `candidate` and `target` for the table.
        candidate: The candidate with these labels.
        target: The column of the labels.
        against: The reference, in words.
        max_psi: The limit of PSI.
        level: The p-value below which neither chance nor variation explains a shift.
        earlier: Classes of the partitions before it, one by one, which show the ordinary differences of days.
        follows: Whether the reference consists of `earlier` partitions. Else it is fixed, and none of its partitions is
            among them.
        with_visible_change: Whether to compute the least change that would be an alarm, which takes longer.
        adwin_changed: The findings of the online detector.
    """
    pooled = _pooled(reference)
    days = [counts for counts in earlier if sum(counts.values())]
    n, n_reference = sum(here.values()), pooled.total()
    if not n or not n_reference:
        return Drift(
            partition, candidate, target, against, n, n_reference, n_earlier=len(days), adwin_changed=adwin_changed
        )
    with evaluation_extra("Label drift"):
        import numpy as np  # noqa: PLC0415  # optional dependency
        from scipy.spatial.distance import jensenshannon  # noqa: PLC0415  # optional dependency
    classes = sorted(class_ for class_ in {*here, *pooled} if here.get(class_, 0) + pooled[class_])
    table = _table([here, pooled], classes)
    share = table / table.sum(axis=1, keepdims=True)
    distance = float(jensenshannon(share[0], share[1], base=2))
    fixed = [] if follows else [counts for counts in reference if sum(counts.values())]
    n_days = 1 + len(days) + len(fixed)
    recent = recent_partitions(n_days, level, n_fixed=len(fixed)) if len(classes) > 1 else None
    recent_psi = p_variation = p_value = farthest = None
    # If variation explains the shift, or the result stays undecided, the first draws show enough of chance.
    draws: Sequence[int] = DRAWS[:1]
    if recent is not None:
        split = len(days) - (recent - 1)
        last, before = [*days[split:], here], days[:split]
        variation = _Variation(last, [*fixed, *before], len(fixed))
        p_variation = variation.p_value(level)
        farthest = variation.farthest(level) if with_visible_change else None
        # A reference that follows the partitions would have taken on the shift that they show.
        parts = [last, fixed or before[-len(reference) :]]
        sides = [_pooled(part) for part in parts]
        found = sorted(class_ for class_ in {*sides[0], *sides[1]} if sides[0][class_] + sides[1][class_])
        recent_psi = _psi(_table(sides, found))
        draws = DRAWS if p_variation < _NEAR else DRAWS[:1]
        by_chance = _chi_squared(_independent(parts, found), draws)[1]
        p_value = None if by_chance is None else max(by_chance, p_variation)
    chi2, p_chance = _chi_squared(_independent([[here], reference], classes), draws)
    # Compared as whole numbers, so that rounding does not decide between two classes that changed alike.
    apart = table[0] * n_reference - table[1] * n
    most = int(np.abs(apart).argmax())
    visible = None if farthest is None else _visible_change(float(share[1][most]), farthest, max_psi)
    return Drift(
        partition=partition,
        candidate=candidate,
        target=target,
        reference=against,
        n=n,
        n_reference=n_reference,
        psi=_psi(table),
        # equal shares may give the root of -1e-17
        js_distance=distance if math.isfinite(distance) else 0.0,
        n_classes=len(classes),
        chi2=chi2,
        p_chance=p_chance,
        p_variation=p_variation,
        p_value=p_value,
        n_earlier=len(days),
        n_recent=recent,
        recent_psi=recent_psi,
        visible_change=visible,
        most_changed=class_name(classes[most]),
        change=float(apart[most]) / (n * n_reference),
        drifted=recent_psi is not None and recent_psi > max_psi and p_value is not None and p_value < level,
        adwin_changed=adwin_changed,
    )


def _pooled(partitions: Iterable[Counts]) -> Counter[Class]:
    """Add the classes of partitions up."""
    pooled: Counter[Class] = Counter()
    for counts in partitions:
        pooled.update(counts)
    return pooled


def _psi(table: NDArray[np.float64]) -> float:
    """Return the population stability index of two rows of counts."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    smooth = (table + 0.5) / (table + 0.5).sum(axis=1, keepdims=True)
    return float(((smooth[0] - smooth[1]) * np.log(smooth[0] / smooth[1])).sum())


def _chi_squared(
    table: NDArray[np.float64], most_draws: Sequence[int], *, seed: int = 0
) -> tuple[float | None, float | None]:
    """Return chi-squared of two rows of counts, and how often chance alone makes it as large; None for one class.

    `most_draws`: tables to draw where a class is rare, until they are enough.
    """
    import numpy as np  # noqa: PLC0415  # its caller has it
    from scipy.special import chdtrc  # noqa: PLC0415  # as above

    of_class, of_row = table.sum(axis=0), table.sum(axis=1)
    if len(of_class) < 2:  # noqa: PLR2004  # one class has nothing to shift to
        return None, None
    expected = of_row[0] * of_class / of_row.sum()
    # Both rows are off by the same number of labels.
    weight = of_row.sum() / of_row[1] / expected
    statistic = float(((table[0] - expected) ** 2 * weight).sum())
    if np.outer(of_row, of_class).min() / of_row.sum() >= _LEAST_EXPECTED:
        return statistic, float(chdtrc(len(of_class) - 1, statistic))
    rng = np.random.default_rng(seed)

    def count_as_large(draws: int) -> int:
        as_large, chunk = 0, max(1, _CHUNK_CELLS // len(of_class))
        for start in range(0, draws, chunk):
            size = min(chunk, draws - start)
            drawn = rng.multivariate_hypergeometric(of_class.astype(int), int(of_row[0]), size, method="marginals")
            # A draw that differs by rounding alone counts as large.
            as_large += int((((drawn - expected) ** 2 * weight).sum(axis=1) >= statistic * (1 - 1e-9)).sum())
        return as_large

    return statistic, draw_p(
        count_as_large, dict.fromkeys(min(draws, _MOST_CELLS // len(of_class)) for draws in most_draws)
    )


def recent_partitions(n_days: int, level: float, *, n_fixed: int = 0) -> int | None:
    """Return how many of the last partitions are compared together with others; None: there are too few partitions.

    Args:
        n_days: Partitions with labels, including the last one and the partitions of a fixed reference.
        level: The p-value below which a shift is an alarm.
        n_fixed: Partitions of a fixed reference.
    """
    for recent in range(LEAST_RECENT, min(n_days // 2, n_days - n_fixed) + 1):
        # The most extreme pick alone has this p-value; with half the level, the next one is an alarm, too. A fixed
        # reference is compared in two ways, and picks that only have partitions of it are as far off.
        fewest = 2 * (1 + math.comb(n_fixed, recent)) if n_fixed else 1
        if fewest / math.comb(n_days, recent) <= level / 2:
            return recent
    return None


@lru_cache(maxsize=128)
def _picks(n_days: int, recent: int, against: int, part: int, draws: int) -> NDArray[np.int16]:
    """Pick days at random: a row of `recent` days and `against` others for each pick."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    order = np.random.default_rng([part, n_days, recent, against]).random((draws, n_days)).argsort(axis=1)
    return order[:, : recent + against].astype(np.int16)


class _Variation:
    """Distance of the last partitions from the others, compared with random picks of all partitions.

    If all days have the same distribution, each pick is as likely as the tested one, however much the days differ: a
    p-value below a level is as rare as the level. The test assumes nothing about the spread of days.
    """

    def __init__(self, last: Sequence[Counts], others: Sequence[Counts], n_fixed: int) -> None:
        """Take the classes of the last partitions, and of the others: first the partitions of a fixed reference."""
        import numpy as np  # noqa: PLC0415  # its caller has it

        days = [*last, *others]
        table = _table(days, sorted({class_ for counts in days for class_, n in counts.items() if n}))
        self._roots = np.sqrt(table / table.sum(axis=1, keepdims=True))
        self._recent, self._fixed = len(last), n_fixed

    def p_value(self, level: float) -> float:
        """Return the share of the picks that differ as much, with the precision that the level needs.

        With a fixed reference, partitions can be far off in two ways: from the reference, as long after a shift, and
        from all others, as when the reference is a single partition, which may itself be an outlier. The smaller share
        counts twice.
        """
        from_others = self._share_as_far(0, level)
        return min(1.0, 2 * min(from_others, self._share_as_far(self._fixed, level))) if self._fixed else from_others

    def farthest(self, level: float) -> float:
        """Return the squared distance from all others that only a share of `level` of the picks exceeds."""
        import numpy as np  # noqa: PLC0415  # its caller has it

        rarer = max(1, math.floor(level * _PICKS_AT_ONCE))
        return float(np.partition(self._picked(0, 0, _PICKS_AT_ONCE), -rarer)[-rarer])

    def _share_as_far(self, against: int, level: float) -> float:
        import numpy as np  # noqa: PLC0415  # its caller has it

        own = np.arange(self._recent + against)
        # A pick that differs by rounding alone is as far off.
        least = float(self._distances(own[None, :], against)[0]) * (1 - 1e-9)

        def count_as_large(draws: int) -> int:
            size = min(draws, _PICKS_AT_ONCE)
            return sum(int((self._picked(against, part, size) >= least).sum()) for part in range(draws // size))

        return draw_p(count_as_large, _PICKS if level < _FEW_PICKS_TELL else _PICKS[:-1])

    def _picked(self, against: int, part: int, draws: int) -> NDArray[np.float64]:
        return self._distances(_picks(len(self._roots), self._recent, against, part, draws), against)

    def _distances(self, picks: NDArray[np.integer[Any]], against: int) -> NDArray[np.float64]:
        """Return the squared distance of the picked days from as many picked ones, or from all others (0)."""
        chosen = self._roots[picks[:, : self._recent]].sum(axis=1)
        others = self._roots[picks[:, self._recent :]].sum(axis=1) if against else self._roots.sum(axis=0) - chosen
        n_others = against or len(self._roots) - self._recent
        squared: NDArray[np.float64] = ((chosen / self._recent - others / n_others) ** 2).sum(axis=1)
        return squared


def _visible_change(share: float, seen: float, max_psi: float) -> float | None:
    """Return the change of a class of this share, up or down, at which the shift is seen; None if it never is.

    The other classes make room in proportion. The shift has to be over the limit of PSI and as far as `seen`.
    """
    import numpy as np  # noqa: PLC0415  # its caller has it

    change = np.concatenate([-np.arange(0.005, share, 0.005), np.arange(0.005, 1 - share, 0.005)])
    after = np.clip(share + change, 1e-6, 1 - 1e-6)
    share = min(1 - 1e-6, max(1e-6, share))
    squared = 2 - 2 * (np.sqrt(share * after) + np.sqrt((1 - share) * (1 - after)))
    psi = (after - share) * np.log(after / share) + (share - after) * np.log((1 - after) / (1 - share))
    found = np.abs(change[(squared > seen) & (psi > max_psi)])
    return float(found.min()) if len(found) else None


def _table(sides: Sequence[Counts], classes: Sequence[Class]) -> NDArray[np.float64]:
    """Return one row of counts for each side."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    return np.array([[counts.get(class_, 0) for class_ in classes] for counts in sides], dtype=np.float64)


def _independent(sides: Sequence[Sequence[Counts]], classes: Sequence[Class]) -> NDArray[np.float64]:
    """Return one row of counts for each side, added up: as many independent labels as its labels are worth."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    table = _table([_pooled(side) for side in sides], classes)
    squares = np.array([sum(map(_squares, side)) for side in sides], dtype=np.float64)
    worth = table * (table.sum(axis=1) / np.maximum(squares, 1))[:, None]
    # A class that is there stays there.
    return np.where(table > 0, np.maximum(np.rint(worth), 1), 0)


def _squares(counts: Counts) -> int:
    return counts.squares if isinstance(counts, _SharedCounts) else sum(counts.values())


def adwin_changes(counts: Mapping[str, Counts], *, delta: float = 0.002, seed: int = 0) -> dict[str, tuple[str, ...]]:
    """Return the classes whose share changed, by partition, in the order given.

    Each class has its own detector (river's ADWIN), with an equal part of `delta`, the chance of a false alarm. It gets
    the rows of a partition shuffled, at most 2,000 of them: their order within a partition does not count.
    """
    with evaluation_extra("Label drift"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    try:
        from river.drift import ADWIN  # noqa: PLC0415  # optional dependency
    except ModuleNotFoundError as error:
        raise MissingExtraError("drift", "The online detector") from error
    classes = sorted({class_ for each in counts.values() for class_ in each})
    detectors = {class_: ADWIN(delta=delta / max(1, len(classes))) for class_ in classes}
    rng = np.random.default_rng(seed)
    changed = {}
    for partition, here in counts.items():
        codes = np.repeat(np.arange(len(classes)), _independent([[here]], classes)[0].astype(int))
        codes = rng.permutation(codes)[:_ADWIN_ROWS]
        changes = []
        for code, (class_, detector) in enumerate(detectors.items()):
            alarms = 0
            for is_it in (codes == code).tolist():
                detector.update(float(is_it))
                alarms += detector.drift_detected
            if alarms:
                changes.append(class_name(class_))
        changed[partition] = tuple(changes)
    return changed


def drifts_to_arrow(drifts: Iterable[Drift]) -> pa.Table:
    """Return one row for each partition, candidate and target, in DRIFT_SCHEMA."""
    return table_of(drifts, Drift)


def shares_to_arrow(candidate: str, target: str, counts: Mapping[str, Counts]) -> pa.Table:
    """Return one row for each partition and class, in SHARES_SCHEMA."""
    classes = sorted({class_ for each in counts.values() for class_ in each})
    rows = [
        {
            "partition": partition,
            "candidate": candidate,
            "target": target,
            "class": class_name(class_),
            "n": here.get(class_, 0),
            "share": here.get(class_, 0) / sum(here.values()) if sum(here.values()) else None,
        }
        for partition, here in counts.items()
        for class_ in classes
    ]
    return pa.Table.from_pylist(rows, schema=SHARES_SCHEMA)


def drifts_markdown(drifts: Sequence[Drift], behind: Callable[[Drift], str | None] = lambda _drift: None) -> str:
    """Return each partition, candidate and target; the last one first. `behind` gives the link to the rows of the class
    that changed the most.
    """
    return rows_markdown(
        [
            {
                "partition": drift.partition,
                "candidate": drift.candidate,
                "target": drift.target,
                "labels": f"{drift.n:,}",
                "against": drift.reference or "-",
                "PSI": figure(drift.psi),
                "Jensen-Shannon": figure(drift.js_distance),
                "p (chance)": "-" if drift.p_chance is None else f"{drift.p_chance:.2g}",
                "p (own variation)": "-" if drift.p_variation is None else f"{drift.p_variation:.2g}",
                "most changed": "-"
                if drift.most_changed is None
                else Linked(f"{drift.most_changed} {drift.change:+.1%}", behind(drift)),
                "drifted": "yes" if drift.drifted else "no",
                **({} if drift.adwin_changed is None else {"ADWIN": ", ".join(drift.adwin_changed) or "-"}),
            }
            for drift in reversed(drifts)
        ]
    )
