"""A Dagster run of empty assets with the shape of a labeled dataset, in a process without this package.

python -m benchmarks.empty_run folder
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg

import benchmarks.bare  # noqa: F401  # before the first array
from benchmarks.measure import Work

_CHECKS = ("coverage", "parse_rate", "spend")


def assets() -> Sequence[dg.AssetsDefinition]:
    """Return empty assets: a submission, labels with three checks, and rejects. Their run is Dagster's own share."""

    @dg.asset(name="labels_batch")
    def batch() -> dg.MaterializeResult[Any]:
        return dg.MaterializeResult()

    @dg.multi_asset(
        specs=[dg.AssetSpec(name, deps=["labels_batch"]) for name in ("labels", "labels_rejects")],
        check_specs=[dg.AssetCheckSpec(name, asset="labels") for name in _CHECKS],
    )
    def collect() -> Iterator[Any]:
        yield dg.MaterializeResult(asset_key="labels_rejects")
        checks = [dg.AssetCheckResult(asset_key="labels", check_name=name, passed=True) for name in _CHECKS]
        yield dg.MaterializeResult(asset_key="labels", check_results=checks)

    return [batch, collect]


def main(folder: str) -> None:
    """Run them, and report the cost of the run alone."""
    with dg.DagsterInstance.local_temp(folder) as instance:
        instance.get_runs(limit=1)  # creates its tables
        work = Work()
        assert dg.materialize(assets(), instance=instance).success
        work.report()


if __name__ == "__main__":
    main(*sys.argv[1:])
