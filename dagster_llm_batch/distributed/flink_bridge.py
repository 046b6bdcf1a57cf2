"""The other end of FlinkRows: runs in Flink's own Python, and sends a table as Arrow, batch by batch.

It is run by its path, and imports nothing of this package, which that Python does not have.

    python flink_bridge.py stream  SCRIPT FUNCTION ARGUMENT FILE_DESCRIPTOR   an Arrow stream into a pipe
    python flink_bridge.py windows SCRIPT FUNCTION COLUMN FOLDER              an Arrow file for each value of COLUMN

SCRIPT defines FUNCTION, which returns a `pyflink.table.Table`. A table of windows comes in their order.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def batches(table: Any) -> tuple[Any, Iterator[Any]]:
    """Return the schema of a table and an iterator of its record batches, like `Table.to_pandas` reads them.

    The schema is for a table without rows: the batches' schema has other names for the items of lists.
    """
    import pytz
    from pyflink.java_gateway import get_gateway
    from pyflink.table.serializers import ArrowSerializer
    from pyflink.table.types import create_arrow_schema

    table._t_env._before_execute()
    java = get_gateway().jvm.org.apache.flink
    config = table._j_table.getTableEnvironment().getConfig()
    size = config.get(java.python.PythonOptions.MAX_ARROW_BATCH_SIZE)
    resolved = table.get_schema()
    schema = create_arrow_schema(resolved.get_field_names(), resolved.get_field_data_types())
    zone = pytz.timezone(config.getLocalTimeZone().getId())
    serializer = ArrowSerializer(schema, resolved.to_row_data_type(), zone)
    collected = java.table.runtime.arrow.ArrowUtils.collectAsPandasDataFrame(table._j_table, size)
    return schema, serializer.load_from_iterator(collected) if collected.hasNext() else iter(())


def stream(table: Any, descriptor: str) -> None:
    """Write all rows into a pipe."""
    import pyarrow as pa

    schema, record_batches = batches(table)
    first = next(record_batches, None)
    schema = schema if first is None else first.schema
    with os.fdopen(int(descriptor), "wb") as pipe, pa.ipc.new_stream(pipe, schema) as out:
        while first is not None:
            out.write_batch(first)
            first = next(record_batches, None)


def windows(table: Any, column: str, folder: str) -> None:
    """Write a file for each window. It takes its name when the next window has begun, or the table has ended.

    A file that is there already stays: its window was read before the job was started again.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    Path(folder).mkdir(parents=True, exist_ok=True)
    _, record_batches = batches(table)
    name: str | None = None
    out: Any = None
    staged = Path(folder, f".{os.getpid()}.tmp")

    def publish() -> None:
        out.close()
        target = Path(folder, f"{name}.arrow")
        if target.exists():
            staged.unlink()
        else:
            staged.rename(target)

    for batch in record_batches:
        keys = batch.column(column)
        # In the order of the rows.
        for key in pc.unique(keys).to_pylist():
            if str(key) != name:
                if out is not None:
                    publish()
                name, out = str(key), pa.ipc.new_file(str(staged), batch.schema)
            out.write_table(pa.Table.from_batches([batch]).filter(pc.equal(keys, key)))
    if out is not None:
        publish()


def main(verb: str, script: str, function: str, *rest: str) -> None:
    """Run one of the commands above."""
    sys.path.insert(0, str(Path(script).parent))
    table_of = runpy.run_path(script)[function]
    if verb == "stream":
        stream(table_of(rest[0]), rest[1])
    else:
        windows(table_of(), *rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
