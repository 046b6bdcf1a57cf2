"""The rows to label. Read yours here; or write `rows: <asset key>` in defs.yaml."""

import pyarrow as pa

from dagster_llm_batch import RowsContext


def tickets(context: RowsContext) -> pa.Table:
    """Return one row for each ticket. With partitions, `context.partition_key` is the requested one."""
    context.asset.log.info("Three tickets, as an example.")
    return pa.Table.from_pylist(
        [
            {"ticket_id": 1, "subject": "Charged twice", "body": "My card was charged twice for one order."},
            {"ticket_id": 2, "subject": "White page", "body": "After the login there is an error and a white page."},
            {"ticket_id": 3, "subject": "Export", "body": "How do I export my contacts?"},
        ]
    )
