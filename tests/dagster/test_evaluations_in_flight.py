"""Evaluations of real datasets with labels in flight: they raise alarms only after these labels are materialized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from code_location import DAILY, DAYS, CodeLocation, labeled

from dagster_llm_batch import Mask, Prompt, evaluation_assets
from dagster_llm_batch.check_events import NOT_JUDGED
from dagster_llm_batch.testing.emulator import Emulator

NAMES = ("first", "second")


def platform(
    emulator: Emulator,
    instance: dg.DagsterInstance,
    partitions_def: dg.PartitionsDefinition[Any] = DAILY,
    names: Sequence[str] = NAMES,
) -> CodeLocation:
    keys = [f"{day}-{n}" for day in DAYS[:2] for n in range(3)]

    @dg.asset
    def gold() -> pa.Table:
        return pa.table({"ticket_id": keys, "topic": ["bug"] * len(keys)})

    # If a mask restores values, labels depend on more than their submission.
    restoring = {"deps": [gold], "prompt": Prompt(user="{{ body }}", mask=Mask(columns=["body"], restore=["topic"]))}
    more = dict(zip(NAMES, ({}, restoring), strict=True))
    datasets = {name: labeled(name=name, partitions_def=partitions_def, **more[name]) for name in names}
    evaluation = evaluation_assets(
        name="quality",
        gold=gold,
        candidates=[*datasets.values()],
        key="ticket_id",
        target="topic",
        min_accuracy=0.9,
    )
    every = [asset for dataset in datasets.values() for asset in dataset]
    location = CodeLocation(emulator, instance, gold, *every, *evaluation)
    assert location.run("gold").success
    return location


@pytest.fixture
def bugs() -> Iterator[Emulator]:
    with Emulator(answer=lambda _body, _endpoint: {"topic": "bug", "urgency": 1}) as emulator:
        yield emulator


def submit(location: CodeLocation, name: str, day: str) -> None:
    assert location.run(f"{name}_batch", partition=day).success


def land(location: CodeLocation, name: str, day: str) -> None:
    location.emulator.settle()
    assert location.run(name, f"{name}_rejects", partition=day).success


def evaluate(location: CodeLocation) -> tuple[bool, Any]:
    result = location.run("quality")
    [check] = [one for one in result.get_asset_check_evaluations() if one.check_name == "accuracy"]
    return result.success, check


def test_a_figure_of_one_dataset_that_lacks_labels_in_flight_is_not_judged_yet(bugs, instance):
    location = platform(bugs, instance, names=["first"])
    submit(location, "first", DAYS[0])
    land(location, "first", DAYS[0])
    submit(location, "first", DAYS[1])
    succeeds, check = evaluate(location)
    assert succeeds
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert f"Not judged yet: labels are still in flight, of first ({DAYS[1]}). So far: " in check.description


@pytest.mark.slow
def test_a_figure_that_lacks_labels_in_flight_is_not_judged_yet_and_is_judged_when_they_land(bugs, instance):
    location = platform(bugs, instance)
    for name, day in (("first", DAYS[0]), ("first", DAYS[1]), ("second", DAYS[0])):
        submit(location, name, day)
        land(location, name, day)
    submit(location, "second", DAYS[1])
    succeeds, check = evaluate(location)
    assert succeeds
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert f"Not judged yet: labels are still in flight, of second ({DAYS[1]}). So far: " in check.description
    # Alerts leave out such results.
    assert check.metadata[NOT_JUDGED].value == "labels_in_flight"
    land(location, "second", DAYS[1])
    assert evaluate(location)[1].passed


@pytest.mark.slow
def test_a_figure_that_lacks_labels_that_nobody_has_submitted_is_an_alarm(bugs, instance):
    location = platform(bugs, instance)
    for name, day in (("first", DAYS[0]), ("first", DAYS[1]), ("second", DAYS[0])):
        submit(location, name, day)
        land(location, name, day)
    _, check = evaluate(location)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert NOT_JUDGED not in check.metadata


@pytest.mark.slow
def test_a_partition_that_was_removed_in_flight_holds_no_alarm_back(bugs, instance):
    instance.add_dynamic_partitions("days", DAYS[:2])
    location = platform(bugs, instance, dg.DynamicPartitionsDefinition(name="days"))
    for name in NAMES:
        submit(location, name, DAYS[0])
        land(location, name, DAYS[0])
    submit(location, "second", DAYS[1])
    assert NOT_JUDGED in evaluate(location)[1].metadata
    instance.delete_dynamic_partition("days", DAYS[1])
    _, check = evaluate(location)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert NOT_JUDGED not in check.metadata
