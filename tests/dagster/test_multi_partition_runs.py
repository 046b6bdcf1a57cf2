"""Multi-partitions share runs: each run takes a range in each dimension, and leaves out those that are not ready."""

from itertools import product
from random import Random

import dagster as dg
import pytest
from code_location import DAILY, DAYS, CodeLocation, labeled
from test_batch_sensor import asked, tick

from dagster_llm_batch.sensors.partition_ranges import ranges_of

LANDS = ["at", "de", "fr"]
MULTI = dg.MultiPartitionsDefinition({"day": DAILY, "land": dg.StaticPartitionsDefinition(LANDS)})


@pytest.mark.parametrize("dimensions", [(40,), (12, 5), (6, 5, 4)], ids=str)
@pytest.mark.parametrize("most", [1, 7, 100])
def test_ranges_hold_each_place_once_and_no_other_and_are_products(dimensions, most):
    random = Random(1)
    for share in (0.1, 0.5, 0.9, 1.0):
        places = {place for place in product(*map(range, dimensions)) if random.random() < share}
        found = list(ranges_of(places, most))
        held = [place for span in found for place in span]
        assert sorted(held) == sorted(places)
        for span in found:
            assert len(span) <= most
            ends = zip(span[0], span[-1], strict=True)
            assert span == list(product(*(range(first, last + 1) for first, last in ends)))


@pytest.mark.parametrize(
    ("dimensions", "most", "runs"),
    [
        ((365, 10), 100, 37),
        ((10, 365), 100, 37),
        ((365,), 100, 4),
        ((3, 150), 100, 5),
        ((5, 5), 25, 1),
        ((5, 5), 1, 25),
    ],
    ids=str,
)
def test_of_a_whole_grid_the_runs_are_as_few_as_its_size_allows(dimensions, most, runs):
    assert len(list(ranges_of(set(product(*map(range, dimensions))), most))) == runs


def test_one_land_over_many_days_and_all_lands_of_one_day_are_a_run_each():
    one_land = {(day, 1) for day in range(30)}
    assert len(list(ranges_of(one_land, 100))) == 1
    assert len(list(ranges_of({(3, land) for land in range(10)}, 100))) == 1
    assert len(list(ranges_of(one_land | {(day, land) for day in (40, 41) for land in range(10)}, 100))) == 2


def test_multi_partitions_that_end_together_land_in_one_run(make, emulator):
    location = make(*labeled(partitions_def=MULTI))
    location.submit(span=(f"{DAYS[0]}|at", f"{DAYS[3]}|fr"))
    emulator.settle()
    [request] = tick(location).run_requests
    assert asked(tick(location)) == [(f"{DAYS[0]}|at", f"{DAYS[3]}|fr")]
    assert location.launch(request).success
    assert location.landed() == {f"{day}|{land}" for day in DAYS[:4] for land in LANDS}
    assert tick(location).run_requests == []


@pytest.mark.slow
def test_multi_partitions_that_were_not_sent_are_in_no_run(make, emulator):
    location = make(*labeled(partitions_def=MULTI))
    location.submit(span=(f"{DAYS[0]}|at", f"{DAYS[1]}|de"))
    location.submit(partition=f"{DAYS[1]}|fr")
    location.submit(partition=f"{DAYS[3]}|fr")
    emulator.settle()
    requests = tick(location).run_requests
    assert len(requests) == 3
    for request in requests:
        assert location.launch(request).success
    there = {f"{day}|{land}" for day in DAYS[:2] for land in ("at", "de")}
    assert location.landed() == there | {f"{DAYS[1]}|fr", f"{DAYS[3]}|fr"}


@pytest.mark.slow
def test_a_dimension_of_dynamic_partitions_lands_in_ranges_too(emulator, stored):
    stored.add_dynamic_partitions("customers", ["acme", "bolt", "crop"])
    customers = dg.DynamicPartitionsDefinition(name="customers")
    multi = dg.MultiPartitionsDefinition({"customer": customers, "day": DAILY})
    location = CodeLocation(emulator, stored, *labeled(partitions_def=multi))
    for customer in ("acme", "bolt"):
        location.submit(span=(f"{customer}|{DAYS[0]}", f"{customer}|{DAYS[1]}"))
    emulator.settle()
    [request] = tick(location).run_requests
    assert location.launch(request).success
    assert location.landed() == {f"{customer}|{day}" for customer in ("acme", "bolt") for day in DAYS[:2]}
