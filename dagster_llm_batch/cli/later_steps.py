"""Later steps of a chain: datasets whose rows are the labels of a planned one, with the rows and cost to expect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_llm_batch.assets.asset_rows import LEFT_OUT_KEY, WHEN_KEY
from dagster_llm_batch.cli.output import counted, money
from dagster_llm_batch.text import cell_text

if TYPE_CHECKING:
    from dagster_llm_batch.assets.dataset import Dataset
    from dagster_llm_batch.cli.deployment import DeploymentAccess

__all__ = ["LaterStep", "LaterSteps", "sum_steps"]

_ROWS_KEY = "llm_batch/rows"
# With fewer rows, a share may be wrong by more than 18 percentage points in one of 20 cases.
_FEWEST_ROWS = 30
_NEWEST_MATERIALIZATIONS = 200
_NEWEST_SUBMISSIONS = 20


@dataclass(frozen=True)
class LaterStep:
    """A dataset that reads the labels.

    Attributes:
        asset: Its name.
        reads: The dataset whose labels it reads.
        when: Its condition; None if all rows go on.
        rows_at_most: The number of labels that it may read.
        seen: The number of rows in stored partitions for which the condition is known.
        went_on: The number of these rows that went on.
        usd_per_request: Mean cost of its billed requests; None if none is billed.
    """

    asset: str
    reads: str
    when: str | None
    rows_at_most: int
    seen: int
    went_on: int
    usd_per_request: Decimal | None

    @property
    def share(self) -> float | None:
        """The share of rows that go on; None if too few rows are known."""
        if self.when is None:
            return 1.0
        return None if self.seen < _FEWEST_ROWS else self.went_on / self.seen

    @property
    def rows(self) -> int | None:
        """The expected number of rows; None if the share is unknown."""
        return None if self.share is None else round(self.rows_at_most * self.share)

    @property
    def estimated_usd(self) -> Decimal | None:
        """The expected cost; None if the rows, or the cost of a request, are unknown."""
        return None if self.rows is None else self._usd(self.rows)

    @property
    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "asset": self.asset,
            "reads": self.reads,
            "when": self.when,
            "rows_at_most": self.rows_at_most,
            "rows": self.rows,
            "share": self.share,
            "share_from_rows": self.seen,
            "estimated_usd": self.estimated_usd,
        }

    def __str__(self) -> str:
        condition = f"when={cell_text(self.when)!r}"
        if self.rows is None:
            few = f"too few rows, {self.seen:,}, show how often {condition} is true"
            count, cost = f"up to {counted(self.rows_at_most, 'row', 'rows')}", self._usd(self.rows_at_most)
            return f"{self.asset} reads the labels of {self.reads}: {count} ({few}){_cost_text('at most about', cost)}."
        basis = ""
        if self.when is not None:
            basis = f" of {self.rows_at_most:,} ({condition} is true for {self.share:.0%} of {self.seen:,} rows so far)"
        rows = f"about {counted(self.rows, 'row', 'rows')}{basis}"
        return (
            f"{self.asset} reads the labels of {self.reads}: {rows}{_cost_text('at most about', self.estimated_usd)}."
        )

    def _usd(self, rows: int) -> Decimal | None:
        return None if self.usd_per_request is None else rows * self.usd_per_request


class LaterSteps:
    """Finds the datasets that read the labels of another, and learns their shares and costs from earlier partitions."""

    def __init__(self, deployment: DeploymentAccess) -> None:
        self._deployment = deployment
        self._known: dict[str, LaterStep] = {}

    def after(self, dataset: Dataset, rows: int) -> list[LaterStep]:
        """Return the steps after this many rows of a dataset, and the steps after those."""
        return list(self._after(dataset, rows))

    def _after(self, dataset: Dataset, rows: int) -> Iterator[LaterStep]:
        for later in self._deployment.code.all_datasets.values():
            if later.rows_key == dataset.key:
                step = replace(self._learned(later, dataset.name), rows_at_most=rows)
                yield step
                yield from self._after(later, rows if step.rows is None else step.rows)

    def _learned(self, dataset: Dataset, reads: str) -> LaterStep:
        if dataset.name not in self._known:
            when = None if dataset.when is None else dataset.when.text
            seen, went_on = (0, 0) if when is None else self._shares(dataset.batch_key, when)
            self._known[dataset.name] = LaterStep(
                dataset.name, reads, when, 0, seen, went_on, self._usd_per_request(dataset)
            )
        return self._known[dataset.name]

    def _shares(self, key: dg.AssetKey, when: str) -> tuple[int, int]:
        """Return the rows of stored partitions with this condition, and how many of them went on."""
        records = self._deployment.code.instance.fetch_materializations(key, limit=_NEWEST_MATERIALIZATIONS).records
        partitions = set()
        seen = went_on = 0
        # The newest come first.
        for record in records:
            if record.partition_key in partitions or record.asset_materialization is None:
                continue
            partitions.add(record.partition_key)
            values = {name: value.value for name, value in record.asset_materialization.metadata.items()}
            rows, left_out = values.get(_ROWS_KEY), values.get(LEFT_OUT_KEY)
            if values.get(WHEN_KEY) == when and isinstance(rows, int) and isinstance(left_out, int):
                seen += rows + left_out
                went_on += rows
        return seen, went_on

    def _usd_per_request(self, dataset: Dataset) -> Decimal | None:
        rules, labeling = self._deployment.dry_engine.deployment, dataset.labeling
        names = (labeling.asset, *labeling.resend.former_names)
        billed = rules.ledger.history.billed_submissions(rules.namespace, names, labeling.model, _NEWEST_SUBMISSIONS)
        known = [(one.cost_usd, one.requests - one.reused) for one in billed if one.cost_usd is not None]
        requests = sum(count for _, count in known)
        return sum((usd for usd, _ in known), Decimal(0)) / requests if requests else None


def sum_steps(planned: Sequence[tuple[str, LaterStep]]) -> list[LaterStep]:
    """Return one step for each later dataset, with the rows of all partitions.

    `planned`: the planned dataset, and a later step. If two of the planned datasets are in one chain, the steps after
    both are counted once: after the first of the chain.
    """
    later = {step.asset for _, step in planned}
    summed: dict[str, LaterStep] = {}
    for asset, step in planned:
        if asset not in later:
            rows = summed[step.asset].rows_at_most if step.asset in summed else 0
            summed[step.asset] = replace(step, rows_at_most=rows + step.rows_at_most)
    return list(summed.values())


def _cost_text(kind: str, cost: Decimal | None) -> str:
    return ", cost unknown until it was billed once" if cost is None else f", {kind} {money(cost)}"
