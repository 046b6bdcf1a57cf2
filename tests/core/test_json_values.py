"""Values as plain JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from dagster_llm_batch.core.json_values import BESIDE, as_json


@dataclass
class Inner:
    usd: Decimal


@dataclass
class Outer:
    name: str
    beside: Inner = field(metadata=BESIDE)
    nested: Inner


def test_a_record_within_a_record_has_its_fields_beside_the_others_where_its_field_says_so() -> None:
    found = as_json(Outer("a", Inner(Decimal("0.10")), Inner(Decimal(2))))
    assert found == {"name": "a", "usd": "0.10", "nested": {"usd": "2"}}
