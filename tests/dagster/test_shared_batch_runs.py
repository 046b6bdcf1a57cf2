"""A run over partitions whose shared batch cannot go now: it waits as one, and is not tried by each of them."""

from collections.abc import Callable
from contextlib import closing

import pytest
from code_location import DAILY, DAYS, CodeLocation, labeled

from dagster_llm_batch.testing.emulator import Emulator, rate_limited
from tests.statements import statements

pytestmark = pytest.mark.slow


def test_a_shared_batch_that_the_provider_does_not_take_is_tried_once_for_all_its_partitions(
    emulator: Emulator, make: Callable[..., CodeLocation]
) -> None:
    location, span = make(*labeled(partitions_def=DAILY)), (DAYS[0], DAYS[3])
    emulator.inject(rate_limited("POST /v1/batches", times=3))
    assert location.submit(span=span).success
    assert emulator.books.calls_to("POST", "/v1/batches") == 3  # one batch, tried three times
    assert emulator.books.batches == []
    assert location.collect(span=span).success
    assert len(emulator.books.batches) == 1
    emulator.settle()
    assert location.collect(span=span).success
    assert location.landed() == set(DAYS[:4])


def test_a_run_over_partitions_tells_the_ledger_once_that_they_are_delivered(
    emulator: Emulator, make: Callable[..., CodeLocation]
) -> None:
    location, span = make(*labeled(partitions_def=DAILY)), (DAYS[0], DAYS[3])
    assert location.submit(span=span).success
    emulator.settle()
    with statements() as asked:
        assert location.collect(span=span).success
    assert location.landed() == set(DAYS[:4])
    assert sum(statement.startswith("UPDATE submission SET delivered_at") for statement in asked) == 1
    with closing(location.engine().ledger) as ledger:
        assert all(one.delivered_at is not None for one in ledger.submissions(location.engine().namespace))
