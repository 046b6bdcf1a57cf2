"""Pictures over time: label shares and their drift by partition, costs by day. `drawing` has the style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.drawing import (
    AMBER,
    BLUE,
    CANDIDATE_CHARS,
    CLASS_CHARS,
    INK,
    MUTED,
    PALETTE,
    Lettering,
    bare,
    blank,
    headline,
    png,
    round_step,
)
from dagster_llm_batch.metrics.drift import Counts, Drift
from dagster_llm_batch.metrics.per_class import class_name
from dagster_llm_batch.text import money_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DayCost", "costs_png", "drift_png"]

MAX_PARTITIONS = 60
"""Partitions, or days, in a picture: the last ones."""

# of the width
_LEFT, _WIDTH = 0.1, 0.85
# fewer bars do not get wider
_LEAST_PLACES = 8
_SERIES = len(PALETTE)


class DayCost(NamedTuple):
    """Costs of one dataset on one day; `realtime_usd` is the cost of the same rows in real time, None if unknown."""

    day: date
    dataset: str
    cost_usd: Decimal
    realtime_usd: Decimal | None


def drift_png(
    candidate: str, target: str, counts: Mapping[str, Counts], drifts: Sequence[Drift], *, max_psi: float
) -> bytes:
    """Above, the share of each class by partition, in the order given; below, PSI against its reference and the limit.

    Raises ConfigError without labels.
    """
    counts = {partition: here for partition, here in counts.items() if sum(here.values())}
    partitions = list(counts)[-MAX_PARTITIONS:]
    if not partitions:
        raise ConfigError(f"Candidate '{candidate}' has no labels of '{target}' to draw.")
    figures = {drift.partition: drift for drift in drifts if (drift.candidate, drift.target) == (candidate, target)}
    totals: dict[str, int] = {}
    for partition in partitions:
        for class_, n in sorted(counts[partition].items()):
            totals[class_name(class_)] = totals.get(class_name(class_), 0) + n
    kept = sorted(sorted(totals, key=lambda name: -totals[name])[:_SERIES], key=list(totals).index)
    series = {name: [_share(counts[partition], name) for partition in partitions] for name in kept}
    if len(kept) < len(totals):
        series[f"{len(totals) - len(kept)} others"] = [1 - sum(each) for each in zip(*series.values(), strict=True)]

    height, bottom, psi_inches, share_inches, legend = 6.6, 1.15, 1.35, 2.7, 0.34
    figure, type_ = blank(height)
    top_axes = figure.add_axes((_LEFT, (bottom + psi_inches + 0.3) / height, _WIDTH, share_inches / height))
    axes = figure.add_axes((_LEFT, bottom / height, _WIDTH, psi_inches / height))
    base = [0.0] * len(partitions)
    for name, shares in series.items():
        color = PALETTE[kept.index(name)] if name in kept else MUTED
        top_axes.bar(range(len(partitions)), shares, bottom=base, width=0.86, color=color, alpha=0.85)
        base = [low + share for low, share in zip(base, shares, strict=True)]
    _legend(figure, type_, list(series), kept, (bottom + psi_inches + 0.3 + share_inches + legend / 2) / height)
    top_axes.set(xlim=(-0.6, max(len(partitions), _LEAST_PLACES) - 0.4), ylim=(0, 1), xticks=[])
    top_axes.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"], **type_.style(size=9.5, color=MUTED))
    bare(top_axes, grid="y")

    psi = [
        (x, drift.psi, drift) for x, p in enumerate(partitions) if (drift := figures.get(p)) and drift.psi is not None
    ]
    together = [(x, drift.recent_psi, drift) for x, _, drift in psi if drift.recent_psi is not None]
    high = max([max_psi * 1.5, *(value * 1.25 for _, value, _ in [*psi, *together])])
    axes.plot([x for x, _, _ in psi], [value for _, value, _ in psi], color=BLUE, linewidth=1.2, zorder=2)
    axes.plot([x for x, _, _ in psi], [value for _, value, _ in psi], "o", markersize=4.5, color=BLUE, clip_on=False)
    axes.plot([x for x, _, _ in together], [value for _, value, _ in together], color=AMBER, linewidth=1.2, zorder=2)
    for x, value, drift in together:
        if drift.drifted:
            axes.plot([x], [value], marker="o", markersize=7, color=AMBER, zorder=3, clip_on=False)
    changed = [x for x, p in enumerate(partitions) if (drift := figures.get(p)) and drift.adwin_changed]
    axes.plot(changed, [high * 0.94] * len(changed), marker="v", markersize=7, color=INK, linestyle="none", zorder=3)
    axes.axhline(max_psi, color=AMBER, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set(xlim=(-0.6, max(len(partitions), _LEAST_PLACES) - 0.4), ylim=(0, high))
    step = round_step(high / 3)
    ticks = [step * i for i in range(int(high / step) + 1)]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks], **type_.style(size=9.5, color=MUTED))
    bare(axes, grid="y")
    _names_below(axes, type_, partitions)
    type_.text(figure, 0.012, (bottom + psi_inches / 2) / height, "PSI", size=10, color=MUTED, rotation=90, va="center")
    drifted = sum(drift.drifted for _, _, drift in psi)
    caption = f"{drifted} of {len(partitions)} have drifted; PSI of each (blue), of several in a row (amber)"
    online = "; ▼: ADWIN" if changed else ""
    subject = f"{type_.clean(candidate, CANDIDATE_CHARS)}, {type_.clean(target, CANDIDATE_CHARS)}"
    title = f"{subject}: shares of the classes by partition"
    headline(figure, type_, title, f"{caption}; limit {max_psi:g}{online}", height)
    return png(figure)


def costs_png(costs: Sequence[DayCost]) -> bytes:
    """Draw the cost of each day, by dataset; the outline is the cost in real time.

    The outline is left out of days on which it is not fully known. Raises ConfigError without costs.
    """
    if not costs:
        raise ConfigError("There are no costs to draw.")
    last = max(cost.day for cost in costs)
    first = max(min(cost.day for cost in costs), last - timedelta(days=MAX_PARTITIONS - 1))
    days = [first + timedelta(days=i) for i in range((last - first).days + 1)]
    shown = [cost for cost in costs if cost.day >= first]
    totals: dict[str, Decimal] = {}
    for cost in shown:
        totals[cost.dataset] = totals.get(cost.dataset, Decimal(0)) + cost.cost_usd
    kept = sorted(sorted(totals, key=lambda name: -totals[name])[:_SERIES])
    names = [*kept, f"{len(totals) - len(kept)} others"] if len(kept) < len(totals) else kept

    height, bottom, plot, legend = 4.9, 0.95, 2.7, 0.34
    figure, type_ = blank(height)
    axes = figure.add_axes((_LEFT, bottom / height, _WIDTH, plot / height))
    base = [0.0] * len(days)
    for name in names:
        spent = [
            float(sum(cost.cost_usd for cost in shown if cost.day == day and _shown_as(cost, kept, names) == name))
            for day in days
        ]
        color = PALETTE[kept.index(name)] if name in kept else MUTED
        axes.bar(range(len(days)), spent, bottom=base, width=0.8, color=color, alpha=0.85)
        base = [low + more for low, more in zip(base, spent, strict=True)]
    realtime = [_realtime(shown, day) for day in days]
    outlined = [(x, float(value)) for x, value in enumerate(realtime) if value is not None]
    axes.bar(
        [x for x, _ in outlined],
        [value for _, value in outlined],
        width=0.8,
        facecolor="none",
        edgecolor=MUTED,
        linewidth=1,
        linestyle=(0, (3, 2)),
    )
    _legend(figure, type_, names, kept, (bottom + plot + legend / 2) / height)
    high = max([*base, *(value for _, value in outlined)]) * 1.08 or 1.0
    step = round_step(high / 5)
    ticks = [step * i for i in range(int(high / step) + 1)]
    axes.set(xlim=(-0.6, max(len(days), _LEAST_PLACES) - 0.4), ylim=(0, high))
    axes.set_yticks(ticks, [f"{tick:,.10g}" for tick in ticks], **type_.style(size=9.5, color=MUTED))
    bare(axes, grid="y")
    _names_below(axes, type_, [day.isoformat() for day in days])
    total, known = sum(totals.values(), Decimal(0)), [value for value in realtime if value is not None]
    caption = f"{money_text(total)} from {first} to {last}"
    if known and len(known) == sum(any(cost.day == day for cost in shown) for day in days):
        caption += f"; in real time it would have been {money_text(sum(known, Decimal(0)))} (dashed)"
    headline(figure, type_, "Cost by day", caption, height)
    return png(figure)


def _share(here: Counts, name: str) -> float:
    return sum(n for class_, n in here.items() if class_name(class_) == name) / sum(here.values())


def _shown_as(cost: DayCost, kept: Sequence[str], names: Sequence[str]) -> str:
    return cost.dataset if cost.dataset in kept else names[-1]


def _realtime(costs: Sequence[DayCost], day: date) -> Decimal | None:
    of_day = [cost.realtime_usd for cost in costs if cost.day == day]
    known = [value for value in of_day if value is not None]
    return sum(known, Decimal(0)) if known and len(known) == len(of_day) else None


def _legend(figure: Figure, type_: Lettering, names: Sequence[str], kept: Sequence[str], y: float) -> None:
    """Draw one line of names with their colors."""
    step = min(_WIDTH / len(names), 0.22)
    for at, name in enumerate(names):
        x = _LEFT + at * step
        color = PALETTE[kept.index(name)] if name in kept else MUTED
        type_.text(figure, x, y, "■", size=11, color=color, va="center")
        type_.text(figure, x + 0.02, y, type_.clean(name, min(CLASS_CHARS, int(step * 85))), size=8.5, va="center")


def _names_below(axes: Axes, type_: Lettering, names: Sequence[str]) -> None:
    """Draw at most a dozen of them, slanted; the last one always."""
    every = max(1, -(-len(names) // 12))
    at = list(range(len(names) - 1, -1, -every))[::-1]
    shown = [type_.clean(names[x], CLASS_CHARS) for x in at]
    style = type_.style(size=9, color=MUTED)
    axes.set_xticks(at, shown, **style, rotation=35, ha="right", rotation_mode="anchor")
