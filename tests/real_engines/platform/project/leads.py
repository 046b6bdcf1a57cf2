"""The rows of the team `sales`."""

from typing import Any

import dagster as dg


@dg.asset(group_name="sales")
def leads() -> list[dict[str, Any]]:
    """Return the rows."""
    return [
        {"lead_id": "l1", "note": "Pays by 4111 1111 1111 1111 from DE89 3704 0044 0532 0130 00."},
        {"lead_id": "l2", "note": "Wants a discount."},
    ]
