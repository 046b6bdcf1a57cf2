"""Which datasets a sensor looks after: those of its resource, of any partitions, within its target."""

from itertools import combinations
from typing import Any

import dagster as dg
import pytest
from code_location import DAILY, CodeLocation, labeled
from dagster._core.remote_representation.external_data import SensorSnap

from dagster_llm_batch.testing.emulator import Emulator

LANDS = dg.StaticPartitionsDefinition(["de", "fr"])
KINDS: dict[str, tuple[dg.PartitionsDefinition[Any] | None, str | None]] = {
    "unpartitioned": (None, None),
    "daily": (DAILY, "2026-01-05"),
    "later": (dg.DailyPartitionsDefinition("2026-01-10", end_date="2026-01-31"), "2026-01-12"),
    "weekly": (dg.WeeklyPartitionsDefinition("2026-01-04", end_date="2026-02-01"), "2026-01-11"),
    "hourly": (dg.HourlyPartitionsDefinition("2026-01-01-00:00", end_date="2026-01-02-00:00"), "2026-01-01-07:00"),
    "static": (LANDS, "fr"),
    "dynamic": (dg.DynamicPartitionsDefinition(name="customers"), "acme"),
    "multi": (dg.MultiPartitionsDefinition({"day": DAILY, "land": LANDS}), "2026-01-01|fr"),
}


def of_kind(kind: str, **changes: Any) -> list[dg.AssetsDefinition]:
    return labeled(name=f"{kind}_labels", partitions_def=KINDS[kind][0], **changes)


def asked_assets(tick: Any) -> list[str]:
    return sorted(request.asset_selection[0].to_user_string() for request in tick.run_requests)


@pytest.mark.parametrize("kinds", list(combinations(KINDS, 2)), ids="-".join)
def test_two_datasets_of_any_partitions_load(make, kinds):
    location = make(*of_kind(kinds[0]), *of_kind(kinds[1]))
    dg.Definitions.validate_loadable(location.defs)
    sensor = location.repository.get_sensor_def("llm_batch_sensor")
    # as the daemon and the web page get it
    chosen = SensorSnap.from_def(sensor, location.repository).asset_selection.selected_keys
    assert {key.to_user_string() for key in chosen} == {
        f"{kind}_labels{table}" for kind in kinds for table in ("", "_rejects")
    }


def test_datasets_of_all_partitions_side_by_side_are_sent_and_land_through_one_sensor(emulator, stored):
    stored.add_dynamic_partitions("customers", ["acme"])
    location = CodeLocation(emulator, stored, *(one for kind in KINDS for one in of_kind(kind)))
    for kind, (_, partition) in KINDS.items():
        assert location.run(f"{kind}_labels_batch", partition=partition).success
    emulator.settle()
    requests = location.tick().run_requests
    assert len(requests) == len(KINDS)
    for request in requests:
        assert location.launch(request).success
    for kind, (_, partition) in KINDS.items():
        assert location.metadata(f"{kind}_labels", partition)["dagster/partition_row_count"] == 3
    after = location.tick()
    assert (after.run_requests, after.skip_message) == ([], "no batches in flight")


def test_datasets_that_wait_in_their_runs_load_and_land_beside_the_others(stored):
    daily, weekly = KINDS["daily"][1], KINDS["weekly"][1]
    with Emulator(pace=0.05) as emulator:
        both = (*of_kind("weekly", mode="wait"), *of_kind("daily"))
        location = CodeLocation(emulator, stored, *both, poll_seconds=0.05)
        assert location.run("daily_labels_batch", partition=daily).success
        assets = ("weekly_labels_batch", "weekly_labels", "weekly_labels_rejects")
        assert location.run(*assets, partition=weekly).success
        emulator.settle()
        [request] = location.tick().run_requests
        assert location.launch(request).success
    assert location.landed("daily_labels") == {daily}
    assert location.landed("weekly_labels") == {weekly}
