"""The first page: quality and cost of each dataset's labels, and the next step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from dagster_llm_batch.addresses import label_path, table_path
from dagster_llm_batch.core.evidence import Match
from dagster_llm_batch.core.quoted_columns import place_prefix
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.evaluation_page import EVALUATION_COLUMNS
from dagster_llm_batch.review.forms import LabelForm
from dagster_llm_batch.review.label_pages import LabelPages, ShowPage
from dagster_llm_batch.review.samples import SAMPLE_COLUMNS
from dagster_llm_batch.review.tables import StoredAsset
from dagster_llm_batch.types import UNGROUNDED

__all__ = ["OverviewPage", "kind_of"]

_KINDS = (
    ("gold sample", SAMPLE_COLUMNS),
    ("evaluation", EVALUATION_COLUMNS),
    ("mistakes in groups", {"candidate", "target", "n", "share", "examples"}),
    ("results per class", {"candidate", "target", "class", "precision", "recall"}),
    ("estimates", {"candidate", "figure", "powered"}),
)
_MISTAKES, _FAILURES = "_mistakes", "_failures"
_MOST_BARS = 60
_BAR = 8
_TALLEST = 40


@dataclass(frozen=True)
class Quality:
    """The quality of one candidate in one evaluation: the share of right labels, or a number's mean error.

    `partition` is the newest one of the evaluation, "" without partitions.
    """

    evaluation: str
    partition: str
    target: str
    measure: float
    low: float | None
    high: float | None
    n_gold: int
    is_error: bool = False


@dataclass(frozen=True)
class Act:
    """Something that a person can do next."""

    words: str
    url: str


@dataclass(frozen=True)
class Bar:
    """One partition in the picture: its rows, and the places of the parts with and without a label, in pixels."""

    partition: str
    url: str
    labeled: int
    rejected: int
    x: int
    height: int
    top: int


@dataclass(frozen=True)
class Quotes:
    """The quotes in the labels of a dataset: how many there are, and how many were found in their texts.

    `ungrounded` rows are rejects, since a quote of theirs was not found; their quotes do not count.
    """

    given: int
    found: int
    ungrounded: int


@dataclass(frozen=True)
class DatasetSummary:
    """The figures of one dataset on the first page; a count is None if only one partition of a table is loaded.

    `asked` is the dataset with its prompt and its cost: another one if this one gathers the labels of its parts.
    """

    name: str
    asked: str
    labels: StoredAsset | None
    labeled: int | None
    rejected: int | None
    cost_usd: Decimal
    at: datetime | None
    qualities: Sequence[Quality]
    waiting: Sequence[str]
    to_judge: int
    acts: Sequence[Act]
    bars: Sequence[Bar]
    quotes: Quotes | None


class OverviewPage:
    """Sums up each dataset of a deployment."""

    def __init__(self, deployment: ReviewedDeployment, show: ShowPage, labels: LabelPages) -> None:
        self._deployment = deployment
        self._show = show
        self._labels = labels

    def overview(self, request: Request) -> Response:
        """Show the datasets with the quality of their labels, then all tables."""
        assets = self._deployment.assets()
        columns = {asset.key: self._columns(asset) for asset in assets}
        datasets = list(dict.fromkeys(asset.dataset for asset in assets if asset.dataset))
        waiting = self._deployment.waiting()
        return self._show(
            request,
            "overview.html",
            datasets=[self._summary(name, assets, columns, request.state.person, waiting) for name in datasets],
            tables=[(asset, kind_of(asset, columns[asset.key])) for asset in assets],
            tallest=_TALLEST,
            width=_BAR,
        )

    def _summary(
        self,
        name: str,
        assets: Sequence[StoredAsset],
        columns: Mapping[str, set[str]],
        person: str,
        waiting: Sequence[tuple[str, str]],
    ) -> DatasetSummary:
        labels = next((one for one in assets if one.dataset == name and one.role == "labels"), None)
        rejects = next((one for one in assets if one.dataset == name and one.role == "rejects"), None)
        labeled = self._counts(labels)
        rejected = self._counts(rejects)
        qualities = list(self._qualities(labels, assets, columns)) if labels else []
        asked = (labels and labels.asked) or name
        first, later, to_judge = self._judging(name, assets, columns, person)
        return DatasetSummary(
            name,
            asked,
            labels,
            None if labeled is None else sum(labeled.values()),
            None if rejected is None else sum(rejected.values()),
            self._deployment.ledger.money.spent_usd(self._deployment.namespace, asset=asked),
            labels.at if labels else None,
            # A result of few gold rows can be extreme by chance.
            sorted(qualities, key=lambda each: each.n_gold, reverse=True),
            [words for dataset, words in waiting if dataset == name],
            to_judge,
            list(self._acts(first, later, labels, rejects, sum((rejected or {}).values()), assets, columns)),
            _bars(labels, rejects, labeled or {}, rejected or {}) if labels else [],
            self._quotes(labels, rejects),
        )

    def _judging(
        self, name: str, assets: Sequence[StoredAsset], columns: Mapping[str, set[str]], person: str
    ) -> tuple[Sequence[Act], Sequence[Act], int]:
        """Return the steps to judge rows, those for skipped rows and second opinions, and the number to judge."""
        first: list[Act] = []
        later: list[Act] = []
        to_judge = 0
        for form in self._deployment.forms:
            if form.dataset != name or (self._deployment.judged and name not in self._deployment.judged):
                continue
            for asset in assets:
                if kind_of(asset, columns[asset.key]) == "gold sample" and form.key in columns[asset.key]:
                    left, skipped, second = self._left(asset, form, person)
                    to_judge += left
                    if left:
                        first.append(Act(f"Judge {_rows(left)}", label_path(asset.key, name)))
                    elif skipped:
                        later.append(Act(f"Judge {_rows(skipped)} that you skipped", label_path(asset.key, name)))
                    if second and not left:
                        url = f"{label_path(asset.key, name)}&second=1"
                        later.append(Act(f"Give a second opinion on {_rows(second)}", url))
        return first, later, to_judge

    def _acts(
        self,
        first: Sequence[Act],
        later: Sequence[Act],
        labels: StoredAsset | None,
        rejects: StoredAsset | None,
        n_rejected: int,
        assets: Sequence[StoredAsset],
        columns: Mapping[str, set[str]],
    ) -> Iterator[Act]:
        """Yield the next steps, the most useful first: those in `first`, mistakes, those in `later`, then tables."""
        yield from first
        if labels is not None:
            candidate = labels.key.rpartition("/")[2]
            wanted = f"{candidate}_label"
            found = [one for one in assets if one.key.endswith(_MISTAKES) and wanted in columns[one.key]]
            for asset in found:
                for act in self._mistakes(asset, candidate, assets):
                    # The mistakes of several evaluations differ by their gold.
                    by = f" by {asset.key.removesuffix(_MISTAKES)}" if len(found) > 1 else ""
                    yield Act(act.words + by, act.url)
        yield from later
        if rejects is not None and n_rejected:
            yield Act(f"See {_rows(n_rejected)} without a label", table_path(rejects.key))
        if labels is not None:
            yield Act("See the labels", table_path(labels.key))

    def _mistakes(self, asset: StoredAsset, candidate: str, assets: Sequence[StoredAsset]) -> Iterator[Act]:
        partition = asset.partitions[0] or None if asset.partitions else None
        try:
            count = self._deployment.browser.count_differing(asset, f"{candidate}_label", "gold", partition)
        except LLMBatchError:
            return
        if not count:
            return
        groups = asset.key.removesuffix(_MISTAKES) + _FAILURES
        words = f"See {count:,} {'mistake' if count == 1 else 'mistakes'}{f' of {partition}' if partition else ''}"
        if any(each.key == groups for each in assets):
            where = f"?where={quote(f'candidate:is:{candidate}')}" + (f"&in={quote(partition)}" if partition else "")
            yield Act(words, f"/failures/{quote(groups)}{where}")
        else:
            yield Act(words, table_path(asset.key, partition))

    def _left(self, asset: StoredAsset, form: LabelForm, person: str) -> tuple[int, int, int]:
        try:
            return self._labels.count_left(asset, form, person)
        except LLMBatchError:
            return 0, 0, 0

    def _qualities(
        self, labels: StoredAsset, assets: Sequence[StoredAsset], columns: Mapping[str, set[str]]
    ) -> Iterator[Quality]:
        candidate = labels.key.rpartition("/")[2]
        for asset in assets:
            if kind_of(asset, columns[asset.key]) != "evaluation" or not asset.partitions:
                continue
            try:
                newest = asset.partitions[0]
                rows = self._deployment.browser.rows_with(asset, "candidate", candidate, newest or None)
            except LLMBatchError:
                continue
            for row in rows:
                for name in ("accuracy", "mae"):
                    if row.get(name) is not None:
                        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
                        yield Quality(
                            asset.key, newest, row["target"], row[name], low, high, row["n_gold"], name == "mae"
                        )
                        break

    def _quotes(self, labels: StoredAsset | None, rejects: StoredAsset | None) -> Quotes | None:
        if labels is None or not labels.quotes or self._counts(labels) is None:
            return None
        matches: Counter[str] = Counter()
        for field in labels.quotes:
            try:
                matches.update(self._deployment.browser.count_values(labels, f"{place_prefix(field)}_match"))
            except LLMBatchError:
                return None
        given, ungrounded = matches.total(), 0
        if rejects is not None and self._counts(rejects):
            with suppress(LLMBatchError):
                ungrounded = Counter(self._deployment.browser.count_values(rejects, "llm_outcome"))[UNGROUNDED]
        return Quotes(given, given - matches[Match.MISSING], ungrounded) if given or ungrounded else None

    def _columns(self, asset: StoredAsset) -> set[str]:
        try:
            return self._deployment.browser.columns(asset)
        except LLMBatchError:
            return set()

    def _counts(self, asset: StoredAsset | None) -> Mapping[str, int] | None:
        """Return the rows by partition; None where only one of several partitions can be loaded at once."""
        if asset is None:
            return {}
        if len(asset.others) > 1 or (asset.others and asset.files):
            return None
        try:
            return self._deployment.browser.counts(asset)
        except LLMBatchError:
            return None


def kind_of(asset: StoredAsset, columns: set[str]) -> str:
    """Return the kind of a table in words, "" for one that is not known."""
    if asset.dataset:
        return asset.role
    if asset.key.endswith(_MISTAKES) and {"target", "gold"} <= columns:
        return "mistakes"
    if asset.role == "annotation":
        return "people who judged" if "annotator" in columns else "gold by people"
    return next((words for words, needed in _KINDS if needed <= columns), "")


def _bars(
    labels: StoredAsset, rejects: StoredAsset | None, labeled: Mapping[str, int], rejected: Mapping[str, int]
) -> list[Bar]:
    # A partition may have only rejects.
    more = [each for each in (rejects.partitions if rejects else ()) if each not in labels.partitions]
    with_rows = {*labeled, *rejected} - {""}
    partitions = [each for each in [*labels.partitions, *more] if each in with_rows][:_MOST_BARS][::-1]
    if len(partitions) < 2:  # noqa: PLR2004 - one bar is no picture
        return []
    most = max(labeled.get(each, 0) + rejected.get(each, 0) for each in partitions)
    bars = []
    for number, each in enumerate(partitions):
        good, bad = labeled.get(each, 0), rejected.get(each, 0)
        height = round(_TALLEST * good / most)
        top = round(_TALLEST * (good + bad) / most) - height
        bars.append(Bar(each, table_path(labels.key, each), good, bad, number * (_BAR + 2), height, top))
    return bars


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"
