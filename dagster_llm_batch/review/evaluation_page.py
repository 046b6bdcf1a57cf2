"""One evaluation as a page: each candidate's statistics in words, which classes it confuses, and the change since last
time or since the partition before. The tables that it is read from stay a click away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from dagster_llm_batch.addresses import Filter, table_path
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.metrics.intervals import difference_ends
from dagster_llm_batch.review.comparison import group_path
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.label_pages import ShowPage
from dagster_llm_batch.review.tables import StoredAsset, StoredRow, View, status_of

__all__ = ["EVALUATION_COLUMNS", "EvaluationPage", "evaluation_of"]

EVALUATION_COLUMNS = {"candidate", "target", "n_gold", "coverage"}
"""The columns that each evaluation has."""

_PARTS = ("per_class", "failures", "mistakes", "calibration", "versions")
_MOST_CLASSES = 12
_LEAST_SHOWN = 0.0005
_MOST_GROUPS = 5
_MOST_EARLIER = 10
"""Earlier partitions that are read, the newest first, until one has the candidate."""


@dataclass(frozen=True)
class Cell:
    """The count of gold rows of one class with one label; `url` links to the rows if they are mistakes.

    `count` is None if it is unknown: only the largest groups of mistakes are stored.
    """

    count: int | None
    is_right: bool
    url: str | None


@dataclass(frozen=True)
class Earlier:
    """The accuracy, or a number's mean error, in an earlier partition, and its change since.

    `ends` are the ends of the 95 % interval of the change; None if one of the two figures has no interval.
    """

    partition: str
    measure: float
    change: float
    ends: tuple[float, float] | None
    is_error: bool

    @property
    def is_unchanged(self) -> bool:
        """Return whether the change is 0 with the digits that are shown."""
        return self.change == 0 if self.is_error else abs(self.change) < _LEAST_SHOWN

    @property
    def is_chance(self) -> bool:
        """Return whether chance alone can explain the change."""
        return self.ends is not None and self.ends[0] <= 0 <= self.ends[1]


@dataclass(frozen=True)
class Evaluated:
    """One candidate and target. `figures` is the row of the evaluation, `earlier` its change since an earlier
    partition. Without one, `before` is its accuracy last time. `worst` is the class with the lowest recall, with the
    address of its mistakes; None if there are none. `groups` are the largest groups of mistakes, each with the address
    of its rows.
    """

    figures: Mapping[str, Any]
    earlier: Earlier | None
    before: float | None
    classes: Sequence[Mapping[str, Any]]
    worst: tuple[Mapping[str, Any], str | None] | None
    matrix: Sequence[tuple[str, Sequence[Cell]]]
    calibration: Sequence[Mapping[str, Any]]
    groups: Sequence[tuple[Mapping[str, Any], str | None]]
    change: Mapping[str, Any] | None


class EvaluationPage:
    """Shows one evaluation."""

    def __init__(self, deployment: ReviewedDeployment, show: ShowPage) -> None:
        self._deployment = deployment
        self._show = show

    def evaluation(self, request: Request) -> Response:
        """Show the results of an evaluation, of one partition if it has partitions."""
        asset = self._deployment.asset(request.path_params["key"])
        if asset is None:
            return self._show(request, "nothing.html", 404, words="The address names no evaluation.")
        partition = request.query_params.get("in") or (asset.partitions[0] if asset.partitions else "") or None
        try:
            page = self._deployment.browser.read(asset, View(), partition)
        except LLMBatchError as error:
            return self._show(request, "nothing.html", status_of(error), words=str(error))
        if not set(page.columns) >= EVALUATION_COLUMNS:
            return self._show(request, "nothing.html", 404, words=f"{asset.key} is no evaluation.")
        parts = {name: self._deployment.asset(f"{asset.key}_{name}") for name in _PARTS}
        stored = {*asset.partitions}
        earlier = [] if partition is None else [each for each in asset.earlier(partition) if each in stored]
        return self._show(
            request,
            "evaluation.html",
            asset=asset,
            partition=partition,
            parts=[(name.replace("_", " "), part.key) for name, part in parts.items() if part],
            failures=parts["failures"],
            evaluated=[self._evaluated(asset, row, parts, partition, earlier[:_MOST_EARLIER]) for row in page.rows],
        )

    def _evaluated(
        self,
        asset: StoredAsset,
        row: StoredRow,
        parts: Mapping[str, StoredAsset | None],
        partition: str | None,
        partitions_before: Sequence[str],
    ) -> Evaluated:
        found = {name: self._rows(parts[name], row, partition) for name in _PARTS if name != "mistakes"}
        keys = [figure_key("accuracy", row["candidate"], row["target"]), figure_key("accuracy", row["candidate"])]
        groups = [group for group in found["failures"] if group["reason"] is None]
        mistakes = parts["mistakes"]
        earlier = self._earlier(asset, row, partitions_before)
        before = asset.before(partition or "") if earlier is None else {}
        return Evaluated(
            row,
            earlier,
            next((before[key] for key in keys if key in before), None),
            found["per_class"],
            _worst(found["per_class"], row, mistakes, partition),
            _matrix(found["per_class"], groups, mistakes, partition),
            [each for each in found["calibration"] if each["n"]],
            [
                (group, group_path(mistakes.key, group, partition) if mistakes else None)
                for group in found["failures"][:_MOST_GROUPS]
            ],
            next(iter(found["versions"]), None),
        )

    def _earlier(self, asset: StoredAsset, row: StoredRow, partitions: Sequence[str]) -> Earlier | None:
        """Compare a candidate with the first of these partitions in which it was evaluated."""
        name = next((name for name in ("accuracy", "mae") if row.get(name) is not None), None)
        if name is None:
            return None
        for each in partitions:
            for old in self._rows(asset, row, each):
                if old.get(name) is not None:
                    now, then = (_ends(figures, name) for figures in (row, old))
                    ends = None if now is None or then is None else difference_ends(row[name], now, old[name], then)
                    return Earlier(each, old[name], row[name] - old[name], ends, is_error=name == "mae")
        return None

    def _rows(self, part: StoredAsset | None, row: StoredRow, partition: str | None) -> Sequence[Mapping[str, Any]]:
        """Return all rows of the same candidate and target from another table of the evaluation."""
        if part is None:
            return []
        same = [Filter("candidate", "is", row["candidate"]), Filter("target", "is", row["target"])]
        inside = partition if partition in part.partitions else None
        try:
            page = self._deployment.browser.read(part, View(filters=tuple(same)), inside)
            rows = list(page.rows)
            for number in range(2, page.pages + 1):
                rows += self._deployment.browser.read(part, View(filters=tuple(same), page=number), inside).rows
        except LLMBatchError:
            return []
        return rows


def _ends(figures: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    return None if low is None or high is None else (low, high)


def _worst(
    classes: Sequence[Mapping[str, Any]], row: StoredRow, mistakes: StoredAsset | None, partition: str | None
) -> tuple[Mapping[str, Any], str | None] | None:
    """Return the class with the lowest recall, and the address of its gold rows with another label, or with none."""
    measured = [each for each in classes if each["recall"] is not None]
    worst = min(measured, key=lambda each: (each["recall"], -each["support"]), default=None)
    if worst is None or len(measured) < 2 or worst["recall"] == 1:  # noqa: PLR2004 - one class is not worse than another
        return None
    if mistakes is None:
        return worst, None
    filters = [
        Filter.of("target", row["target"]),
        Filter.of("gold", worst["class"]),
        Filter(f"{row['candidate']}_label", "not", worst["class"]),
    ]
    return worst, table_path(mistakes.key, partition, filters)


def _matrix(
    classes: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    mistakes: StoredAsset | None,
    partition: str | None,
) -> list[tuple[str, list[Cell]]]:
    """Return for each class of gold how many rows have each label: right ones by class, and the others by group."""
    names = [each["class"] for each in classes]
    if not 1 < len(names) <= _MOST_CLASSES:
        return []
    right = {each["class"]: int(each["correct"]) for each in classes}
    named = {(each["gold"], each["label"]): each for each in groups}
    wrong = {place: int(each["n"]) for place, each in named.items()}
    stored = Counter[str]()
    for (gold, _), count in wrong.items():
        stored[gold] += count
    # A class whose mistakes are all stored has 0 elsewhere; of other classes, smaller groups may exist.
    complete = {each["class"] for each in classes if stored[each["class"]] == each["support"] - each["correct"]}

    def cell(gold: str, label: str) -> Cell:
        if gold == label:
            return Cell(right[gold], is_right=True, url=None)
        count = wrong.get((gold, label), 0 if gold in complete else None)
        if mistakes is None or not count:
            return Cell(count, is_right=False, url=None)
        return Cell(count, is_right=False, url=group_path(mistakes.key, named[gold, label], partition))

    return [(gold, [cell(gold, label) for label in names]) for gold in names]


def evaluation_of(deployment: ReviewedDeployment, key: str) -> str | None:
    """Return the key of the evaluation that a table belongs to; None for other tables."""
    keys = {asset.key for asset in deployment.assets() if asset.role == "evaluation"}
    whole = next((key.removesuffix(f"_{part}") for part in _PARTS if key.endswith(f"_{part}")), key)
    return whole if whole in keys and any(f"{whole}_{part}" in keys for part in _PARTS) else None
