"""Human labels of the rows: the truth against which labels are measured."""

import dagster as dg
import pyarrow as pa


@dg.asset(description="Human labels of the tickets.", kinds={"table"})
def ticket_gold() -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"ticket_id": 1, "topic": "billing"},
            {"ticket_id": 2, "topic": "bug"},
            {"ticket_id": 3, "topic": "how_to"},
        ]
    )
