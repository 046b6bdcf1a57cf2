"""Rows of Flink tables. PyFlink requires versions of Arrow and pandas that are too old here, so it has its own Python.

That process sends record batches through a pipe, one at a time: neither side holds the table.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.errors import InputError

__all__ = ["FlinkRows"]

# A line of an error, not one of its trace.
_ERROR = re.compile(r"(Caused by: )?[\w.$]+: ")
_BRIDGE = Path(__file__).with_name("flink_bridge.py")


@checked
@dataclass(frozen=True)
class FlinkRows:
    """A Flink table as rows: `rows=FlinkRows(...)`, or called with a partition key.

    Args:
        python: The interpreter of an environment with `apache-flink`.
        script: A Python file that runs there.
        function: Its function of the partition key ("" without partitions), which returns a bounded
            `pyflink.table.Table`.
        env: Environment variables of the process, in addition to the ones of this process.
    """

    python: str
    script: str
    function: str = "table"
    env: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, context: Any = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a partition, given as a RowsContext or a key. Raises InputError where the job fails."""
        partition = getattr(context, "partition_key", context) or ""
        return self._batches(str(partition))

    def _batches(self, partition: str) -> Iterator[pa.RecordBatch]:
        reading, writing = os.pipe()
        with tempfile.TemporaryFile() as output, os.fdopen(reading, "rb") as pipe:
            try:
                process = subprocess.Popen(  # noqa: S603 - the user's own definition
                    [self.python, str(_BRIDGE), "stream", self.script, self.function, partition, str(writing)],
                    env={**os.environ, **self.env},
                    pass_fds=[writing],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            finally:
                os.close(writing)
            try:
                yield from self._read(pipe, process, output)
            finally:
                process.kill()
                process.wait()

    def _read(self, pipe: Any, process: subprocess.Popen[bytes], output: Any) -> Iterator[pa.RecordBatch]:
        failed: pa.ArrowException | None = None
        try:
            with pa.ipc.open_stream(pipe) as stream:
                first = next(stream, None)
                yield first if first is not None else pa.RecordBatch.from_pylist([], schema=stream.schema)
                yield from stream
        # The pipe ended early.
        except pa.ArrowException as error:
            failed = error
        if process.wait() != 0 or failed is not None:
            output.seek(0)
            lines = [line for line in output.read().decode("utf-8", "replace").splitlines() if _ERROR.match(line)]
            reason = lines[-1][:500] if lines else "it told no error"
            msg = (
                f"The Flink job {self.script}:{self.function} ended with exit code {process.returncode}: {reason}. "
                f"Nothing was sent. Run it alone to see its whole output: {self.python} {self.script}"
            )
            raise InputError(msg) from failed
