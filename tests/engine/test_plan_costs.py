"""The cost of a share of the rows, as `plan` multiplies and adds it."""

from __future__ import annotations

from decimal import Decimal

from dagster_llm_batch.advice.labeling_plan import Cost

WHOLE = Cost(Decimal(10), Decimal(8), Decimal(15))


def test_a_share_of_the_rows_costs_that_share() -> None:
    assert WHOLE.times(0.5) == Cost(Decimal(5), Decimal(4), Decimal("7.5"))
    assert WHOLE.times(0.5, 0.25, 0.8) == Cost(Decimal(5), Decimal(2), Decimal(12))


def test_an_unknown_amount_stays_unknown_with_its_reason() -> None:
    unknown = Cost(Decimal(10), None, None, "two runs tell no interval")
    assert unknown.times(0.5) == Cost(Decimal(5), None, None, unknown.why)
    assert WHOLE.plus(unknown) == Cost(Decimal(20), None, None, unknown.why)
    assert WHOLE.plus(WHOLE) == Cost(Decimal(20), Decimal(16), Decimal(30))
