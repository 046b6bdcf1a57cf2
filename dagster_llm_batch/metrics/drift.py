"""Have the labels shifted? The classes of one partition against those of a reference, such as the partitions before it.

    PSI                       population stability index, the size of the shift: below 0.1 small, over 0.25 large
    Jensen-Shannon distance   the size too, from 0 (equal) to 1 (nothing in common)
    chi-squared               whether chance explains it
    Hellinger distance        whether the dataset's own variation explains it

A large shift in few rows may be chance, a shift that is surely there may be too small to matter, and one that comes
every Sunday is no news: labels have drifted where PSI is over a limit, chance does not explain it *and* it is larger
than what earlier partitions differ by among themselves. ADWIN, an online detector, finds slow shifts too, in which
each partition is like those just before it.

Earlier partitions are compared by the roots of their shares. A root varies by as much whether its class is common or
rare, and does not vary less because a partition has more rows, so that days of other sizes are held to one measure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.addresses import Linked
from dagster_llm_batch.errors import ConfigError, MissingExtraError
from dagster_llm_batch.metrics.columns import category
from dagster_llm_batch.metrics.joining import MAX_CLASSES, Class
from dagster_llm_batch.metrics.looks import DRAWS, draw_p
from dagster_llm_batch.metrics.per_class import class_name
from dagster_llm_batch.metrics.schemas import evaluation_extra, schema_of, table_of
from dagster_llm_batch.metrics.tables import figure, rows_markdown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "DRIFT_SCHEMA",
    "LEAST_EARLIER",
    "SHARES_SCHEMA",
    "Counts",
    "Drift",
    "adwin_changes",
    "class_counts",
    "drift_between",
    "drifts_markdown",
    "drifts_to_arrow",
    "shares_to_arrow",
]

Counts = Mapping[Class, int]
"""Labels of each class, as `class_counts` counts them; classes without any may be left out."""

LEAST_EARLIER = 7
"""Partitions before one, without which nobody knows how much they vary: a week of days, with its Sunday."""

# Rows of a class from which chi-squared's own distribution is near enough; below, tables are drawn.
_LEAST_EXPECTED = 5
_MOST_CELLS = 20_000_000
# above what any look decides by
_NEAR = 0.01
# Cells drawn at a time: 32 MB.
_CHUNK_CELLS = 4_000_000
# of a partition that the detector is shown: more of the same tell it little
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

    - `reference`: the partitions that it is compared with, in words; None where there are none yet.
    - `psi`: with half a row added to each class of both, as a class that is new would make it endless.
    - `chi2` has `n_classes - 1` degrees of freedom; None where there is one class only.
    - `p_chance`: how often rows that were drawn alike would differ as much (a permutation test where a class is rare).
      `p_variation`: how often a partition would, that varies as the earlier ones do; None below LEAST_EARLIER of them.
      `p_value`: the larger of both, and None without either: then nothing is decided. `n_earlier`: the earlier
      partitions that have labels.
    - `drifted`: PSI is over the limit, and `p_value` below the level of this look (see `looks`).
    - `most_changed`: class whose share has changed the most, by `change` (0.1: ten points more).
    - `adwin_changed`: classes whose share changed in this partition, as the online detector sees it; None: not asked.
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
    most_changed: str | None = None
    change: float | None = None
    drifted: bool = False
    adwin_changed: tuple[str, ...] | None = None


DRIFT_SCHEMA = schema_of(Drift)
"""The fields of `Drift`, in order; `adwin_changed` is one text, joined by commas."""


def class_counts(
    values: pa.ChunkedArray, target: str, owner: str, ids: pa.Array | pa.ChunkedArray | None = None
) -> dict[Class, int]:
    """Return labels of each class, nulls left out. Raises ConfigError for values that are no classes.

    `ids` are those of the rows' units (see `cluster_ids`): the rows of a unit count once for each of its classes.
    """
    classes = category(values.combine_chunks(), target, owner)
    if ids is not None:
        rows = pa.table({"class": classes, "id": ids})
        alone, shared = rows.filter(pc.is_null(rows["id"])), rows.filter(pc.is_valid(rows["id"]))
        once = shared.group_by(["class", "id"]).aggregate([])["class"]
        classes = pa.chunked_array([*alone["class"].chunks, *once.chunks], classes.type)
    counted = pc.value_counts(classes.drop_null()).to_pylist()
    if len(counted) > MAX_CLASSES:
        raise ConfigError(
            f"Target '{target}' of {owner} has {len(counted)} distinct values; at most {MAX_CLASSES} are classes. Bin "
            "it, or name another column."
        )
    return {entry["values"]: entry["counts"] for entry in counted}


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
    adwin_changed: tuple[str, ...] | None = None,
) -> Drift:
    """Compare. `against` names the reference.

    Args:
        here: Classes of the partition.
        reference: Classes of each partition of the reference; they are added up.
        partition: Its name, like `candidate` and `target` for the table.
        candidate: Whose labels.
        target: Which column.
        against: What the reference is, in words.
        max_psi: The limit of PSI.
        level: The p-value below which neither chance nor variation explains a shift.
        earlier: Classes of the partitions before it, one by one, which show how much days differ by themselves.
        adwin_changed: What the online detector has seen.
    """
    pooled: Counter[Class] = Counter()
    for counts in reference:
        pooled.update(counts)
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
    smooth = (table + 0.5) / (table + 0.5).sum(axis=1, keepdims=True)
    psi = float(((smooth[0] - smooth[1]) * np.log(smooth[0] / smooth[1])).sum())
    distance = float(jensenshannon(share[0], share[1], base=2))
    p_variation = None
    if len(classes) > 1 and len(days) >= LEAST_EARLIER:
        n_pooled = sum(1 for counts in reference if sum(counts.values()))
        p_variation = _p_variation([here, pooled], n_pooled, days)
    # Where variation explains the shift, or nothing is decided, the first draws say enough of chance.
    decides = p_variation is not None and p_variation < _NEAR
    chi2, p_chance = _chi_squared(table, DRAWS if decides else DRAWS[:1])
    p_value = None if p_chance is None or p_variation is None else max(p_chance, p_variation)
    # Compared as whole numbers, so that rounding does not decide between two classes that changed alike.
    apart = table[0] * n_reference - table[1] * n
    most = int(np.abs(apart).argmax())
    return Drift(
        partition=partition,
        candidate=candidate,
        target=target,
        reference=against,
        n=n,
        n_reference=n_reference,
        psi=psi,
        # equal shares may give the root of -1e-17
        js_distance=distance if math.isfinite(distance) else 0.0,
        n_classes=len(classes),
        chi2=chi2,
        p_chance=p_chance,
        p_variation=p_variation,
        p_value=p_value,
        n_earlier=len(days),
        most_changed=class_name(classes[most]),
        change=float(apart[most]) / (n * n_reference),
        drifted=psi > max_psi and p_value is not None and p_value < level,
        adwin_changed=adwin_changed,
    )


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
            # What differs by rounding alone is as large.
            as_large += int((((drawn - expected) ** 2 * weight).sum(axis=1) >= statistic * (1 - 1e-9)).sum())
        return as_large

    return statistic, draw_p(
        count_as_large, dict.fromkeys(min(draws, _MOST_CELLS // len(of_class)) for draws in most_draws)
    )


def _p_variation(compared: Sequence[Counts], n_pooled: int, earlier: Sequence[Counts]) -> float:
    """Return how often a partition that varies as the earlier ones do would be so far from its reference.

    Args:
        compared: Classes of the partition, and of its reference.
        n_pooled: Partitions of the reference, which differ from each other, too.
        earlier: Classes of the earlier partitions, each with labels.
    """
    import numpy as np  # noqa: PLC0415  # its caller has it
    from scipy.special import fdtrc  # noqa: PLC0415  # as above

    sides = [*compared, *earlier]
    table = _table(sides, sorted({class_ for counts in sides for class_, n in counts.items() if n}))
    rows = table.sum(axis=1)
    roots = np.sqrt(table / rows[:, None])
    days = roots[2:] - roots[2:].mean(axis=0)
    m = len(days)
    apart = (days**2).sum(axis=1)
    variance = float(apart.sum()) / (m - 1)
    # A share of fewer rows than the earlier ones had is off by more, by chance alone: a root by 1/4n at most.
    usual = float((1 / rows[2:]).mean())
    noise = max(0.0, 1 / rows[0] - usual) + max(0.0, 1 / rows[1] - usual / n_pooled)
    expected = variance * (1 + 1 / n_pooled) + noise * (table.shape[1] - 1) / 4
    distance = float(((roots[0] - roots[1]) ** 2).sum())
    if expected <= 0:
        return 0.0 if distance else 1.0
    # As many directions as the shares vary in alike (Satterthwaite), by the products of all pairs of days.
    directions = max(1.0, (variance * (m - 1)) ** 2 / float(((days @ days.T) ** 2).sum() or 1))
    # Some days are wilder than others: the distances then have longer tails than those of so many directions.
    # Days that are all alike are not wild.
    spread = float(apart.var(ddof=1))
    tails = min(1.0, 2 * float(apart.mean()) ** 2 / spread / directions) if spread else 1.0
    # So few days show too short a tail. Halved and squared, no kind of days that was simulated has an alarm in more
    # than 5 % of its years: even where days vary wildly, or are of very different sizes (docs/truth.md). Fewer
    # directions have the longer tail, but less before it.
    by_chance = [float(fdtrc(some, m - 1, distance / expected)) for some in (directions, directions * tails**2 / 2)]
    # What an earlier day was off by, compared with all others, is nothing new.
    as_far = int((apart * m / (m - 1) * expected >= distance * variance).sum())
    return max(*by_chance, as_far / (m + 1))


def _table(sides: Sequence[Counts], classes: Sequence[Class]) -> NDArray[np.float64]:
    """Return one row of counts for each side."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    return np.array([[counts.get(class_, 0) for class_ in classes] for counts in sides], dtype=np.float64)


def adwin_changes(counts: Mapping[str, Counts], *, delta: float = 0.002, seed: int = 0) -> dict[str, tuple[str, ...]]:
    """Return the classes whose share changed, by partition, in the order given.

    Each class has a detector of its own (river's ADWIN), with an equal part of `delta`, the chance of a false alarm. It
    sees the rows of a partition shuffled, at most 2,000 of them: what order they have within one does not count.
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
        codes = np.repeat(np.arange(len(classes)), [here.get(class_, 0) for class_ in classes])
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
