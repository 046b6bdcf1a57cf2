"""A sensor serves the datasets of its resource, of any partitions, within its target."""

import warnings
from itertools import combinations
from typing import Any

import dagster as dg
import pytest
from code_location import DAILY, CodeLocation, labeled
from dagster._core.remote_representation.external_data import SensorSnap
from test_landing_runs import ORIGIN

from dagster_llm_batch import LLMBatchResource, build_llm_batch_sensor
from dagster_llm_batch.errors import ConfigError
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


def tick_of(location: CodeLocation, name: str) -> Any:
    """Evaluate one of several sensors."""
    sensor = location.repository.get_sensor_def(name)
    with dg.build_sensor_context(
        instance=location.instance,
        repository_def=location.repository,
        resources=location.resources,
        sensor_name=name,
    ) as context:
        return sensor.evaluate_tick(context)


def asked_of(location: CodeLocation, name: str) -> list[str]:
    """Return the labels for which a sensor requests runs."""
    return sorted(request.asset_selection[0].to_user_string() for request in tick_of(location, name).run_requests)


def with_sensors(location: CodeLocation, *sensors: dg.SensorDefinition) -> CodeLocation:
    location.defs = dg.Definitions(assets=location.defs.assets, sensors=sensors, resources=location.resources)
    location.repository = location.defs.get_repository_def()
    return location


@pytest.mark.sample
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


@pytest.mark.parametrize(
    "target",
    [
        "daily_labels",
        "group:sales",
        "daily_labels_batch+",
        ["daily_labels"],
        dg.AssetKey("daily_labels"),
        [dg.AssetKey("daily_labels"), "daily_labels_rejects"],
        dg.AssetSelection.groups("sales"),
    ],
    ids=str,
)
def test_a_sensor_looks_after_the_datasets_that_its_target_holds(make, emulator, target):
    location = make(*of_kind("daily", group_name="sales"), *of_kind("weekly", group_name="support"))
    ours = build_llm_batch_sensor("ours", target=target)
    with_sensors(location, ours, build_llm_batch_sensor("theirs", target="group:support"))
    for kind in ("daily", "weekly"):
        assert location.run(f"{kind}_labels_batch", partition=KINDS[kind][1]).success
    emulator.settle()
    assert asked_of(location, "ours") == ["daily_labels"]
    assert asked_of(location, "theirs") == ["weekly_labels"]


def test_a_target_by_its_name_brings_no_warning_of_dagsters():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_llm_batch_sensor()
        build_llm_batch_sensor("ours", target="group:sales or tag:team=support")


def test_a_target_may_be_what_the_factory_returned(make, emulator):
    daily = of_kind("daily")
    location = with_sensors(make(*daily, *of_kind("weekly")), build_llm_batch_sensor("ours", target=daily))
    for kind in ("daily", "weekly"):
        assert location.run(f"{kind}_labels_batch", partition=KINDS[kind][1]).success
    emulator.settle()
    assert asked_of(location, "ours") == ["daily_labels"]


def test_each_resource_has_a_sensor_that_looks_after_its_datasets_alone(make, emulator):
    second = LLMBatchResource(openai=make().resource.openai, namespace="second")
    assets = (*of_kind("daily"), *of_kind("weekly", resource_key="second"))
    location = make(*assets, resources={"second": second})
    with_sensors(location, build_llm_batch_sensor(), build_llm_batch_sensor("second_sensor", resource_key="second"))
    for kind in ("daily", "weekly"):
        assert location.run(f"{kind}_labels_batch", partition=KINDS[kind][1]).success
    emulator.settle()
    assert asked_of(location, "llm_batch_sensor") == ["daily_labels"]
    assert asked_of(location, "second_sensor") == ["weekly_labels"]


def test_a_sensor_whose_target_holds_no_dataset_says_so(make):
    location = with_sensors(make(*of_kind("daily")), build_llm_batch_sensor("ours", target="group:nothing"))
    assert "handles nothing: its target lacks datasets of the resource 'llm_batch'" in (
        tick_of(location, "ours").skip_message
    )


def test_a_target_that_is_no_selection_is_refused_when_it_is_declared():
    with pytest.raises(
        ConfigError, match=r"target='group:' is no selection of assets. It takes keys and .* 'group:support'"
    ):
        build_llm_batch_sensor(target="group:")
    with pytest.raises(ConfigError, match="target=3 is not allowed"):
        build_llm_batch_sensor(target=3)  # type: ignore[arg-type]


def both_sensors(location: CodeLocation, **second: Any) -> CodeLocation:
    """Submit, and let the batch end, with two sensors for the same dataset."""
    with_sensors(location, build_llm_batch_sensor("first"), build_llm_batch_sensor("second", **second))
    assert location.run("daily_labels_batch", partition=KINDS["daily"][1]).success
    location.emulator.settle()
    return location


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")], ids="-".join)
def test_of_two_sensors_that_see_a_partition_at_once_one_asks_for_its_run(make, order):
    location = both_sensors(make(*of_kind("daily")), target="daily_labels")
    ticks = {name: tick_of(location, name) for name in order}
    assert [len(ticks[name].run_requests) for name in ("first", "second")] == [1, 0]
    assert "the sensor 'first' handles daily_labels" in ticks["second"].skip_message


def test_of_two_sensors_the_one_that_ticks_more_often_asks(make):
    location = both_sensors(make(*of_kind("daily")), minimum_interval_seconds=5)
    assert asked_of(location, "first") == []
    assert asked_of(location, "second") == ["daily_labels"]


def test_a_sensor_that_is_switched_off_leaves_its_datasets_to_the_other(emulator, stored):
    location = both_sensors(CodeLocation(emulator, stored, *of_kind("daily")))
    off = dg.DefaultSensorStatus.STOPPED
    with_sensors(location, build_llm_batch_sensor("first", default_status=off), build_llm_batch_sensor("second"))
    assert asked_of(location, "second") == ["daily_labels"]


def asked_by_the_first(location: CodeLocation, status: dg.DagsterRunStatus) -> None:
    """Add the run that the first sensor requests. After this, only the second sensor exists."""
    [request] = tick_of(location, "first").run_requests
    location.instance.create_run_for_job(
        location.defs.resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset(request.asset_selection),
        tags={**request.tags, "dagster/run_key": request.run_key},
        status=status,
        remote_job_origin=ORIGIN,
    )
    with_sensors(location, build_llm_batch_sensor("second"))


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED], ids=str)
def test_a_run_that_another_sensor_asked_for_is_waited_for(make, status):
    location = both_sensors(make(*of_kind("daily")))
    asked_by_the_first(location, status)
    assert asked_of(location, "second") == []


def test_a_run_that_failed_for_another_sensor_is_not_asked_for_at_once(make):
    location = both_sensors(make(*of_kind("daily")))
    asked_by_the_first(location, dg.DagsterRunStatus.FAILURE)
    tick = tick_of(location, "second")
    assert tick.run_requests == []
    assert "did not materialize it; asked for again in" in tick.skip_message
