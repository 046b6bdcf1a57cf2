"""Hours of the night in which the clock goes back.

Dagster caches the keys of a time window by its local times. Two windows of that night have the same local times, so one
process with several runs may get the keys of the other window. These tests check the hours that are asked and stored.
They do not check Dagster's own events, which still use the wrong keys.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import dagster as dg
import pytest
from code_location import BATCH, LABELS, LANDING, labeled, tickets

from dagster_llm_batch.io import HiveParquetIOManager

HOURS = dg.HourlyPartitionsDefinition("2025-10-26-01:00", end_date="2025-10-26-04:00", timezone="Europe/Berlin")
KEYS = HOURS.get_partition_keys()


def by_hour(context: Any) -> Any:
    """Return two rows of each hour."""
    return tickets(2, context.partition_key.replace(":", ""))


def asked(location: Any) -> set[str]:
    """Return the partitions that have a submission."""
    ledger = location.engine().ledger
    try:
        return {one.partition for one in ledger.submissions.list_all("default")}
    finally:
        ledger.close()


@pytest.fixture
def location(make, tmp_path):
    """Make a code location with labels of each hour, stored as files."""
    HOURS.get_partition_keys_in_time_window.cache_clear()
    store = HiveParquetIOManager(root=str(tmp_path / "tables"))
    return make(*labeled(rows=by_hour, partitions_def=HOURS, frame="arrow"), resources={"io_manager": store})


@pytest.mark.parametrize("key", [KEYS[0], KEYS[2]])
def test_a_run_of_one_hour_asks_and_stores_that_hour_whatever_ran_before(location, emulator, tmp_path, key):
    for span in pairwise(KEYS):
        HOURS.get_partition_keys_in_range(dg.PartitionKeyRange(*span))
    assert location.run(BATCH, partition=key).success
    assert asked(location) == {key}
    emulator.settle()
    assert location.run(*LANDING, partition=key).success
    assert len(list((tmp_path / "tables" / LABELS).iterdir())) == 1
    # A reader is another process.
    HOURS.get_partition_keys_in_time_window.cache_clear()
    kept = location.repository.load_asset_value(dg.AssetKey(LABELS), instance=location.instance, partition_key=key)
    assert kept["ticket_id"].to_pylist() == [f"{key.replace(':', '')}-{n}" for n in range(2)]


@pytest.mark.parametrize(("earlier", "span"), [(KEYS[0], KEYS[:2]), (KEYS[2], KEYS[1:3])], ids=["first", "last"])
def test_a_run_over_two_hours_asks_both_whatever_ran_before(location, earlier, span):
    HOURS.get_partition_keys_in_range(dg.PartitionKeyRange(earlier, earlier))
    assert location.run(BATCH, span=tuple(span)).success
    assert asked(location) == set(span)
