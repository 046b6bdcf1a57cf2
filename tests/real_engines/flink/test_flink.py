"""Flink tables in, through Arrow, and a Flink job that produces micro-batches. `python3 -m tests flink` runs them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pyarrow as pa
import pytest

from dagster_llm_batch import LLMBatchResource, OpenAIBatchResource, Prompt, llm_batch_assets
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.distributed import FlinkRows, flink_bridge
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

pytestmark = pytest.mark.timeout(900)  # each one starts a Flink

HERE = Path(__file__).parent
PYTHON = HERE.parents[2] / ".venv-flink" / "bin" / "python"
JOB = HERE / "flink_job.py"


def rows(function: str) -> FlinkRows:
    return FlinkRows(str(PYTHON), str(JOB), function)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


def test_the_environment_of_flink_cannot_be_ours() -> None:
    """Show why Flink has a separate environment. If this test fails one day, the set-up can be simpler."""
    said = subprocess.run([PYTHON, "-c", "import pyarrow; print(pyarrow.__version__)"], capture_output=True, check=True)
    assert int(said.stdout.split(b".")[0]) < 17
    assert "pyflink" not in sys.modules


def test_a_flink_table_comes_in_batches_with_all_of_its_rows() -> None:
    batches = list(record_batches(rows("tickets")("eu")))
    assert len(batches) == 3  # of 1,000 rows: the setting of the table's environment
    table = pl.from_arrow(pa.Table.from_batches(batches))
    assert isinstance(table, pl.DataFrame)
    assert table.schema == {"ticket_id": pl.String, "body": pl.String, "is_even": pl.Boolean}
    assert table["ticket_id"].to_list() == [f"eu-{n}" for n in range(2_500)]


def test_a_table_is_streamed_and_never_held_whole_and_its_job_ends_with_its_reader() -> None:
    """Two thousand million rows cannot be collected within the time-out, so the first must come before the rest."""
    stream = iter(record_batches(rows("immense")("eu")))
    some = [next(stream) for _ in range(30)]
    assert {batch.num_rows for batch in some} == {1_000}
    [job] = [one for one in _jobs() if b"immense" in one.read_bytes()]
    stream.close()
    assert job not in _jobs()


def _jobs() -> list[Path]:
    """Command lines of running bridges."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if flink_bridge.__file__.encode() in line.read_bytes().split(b"\0"):
                found.append(line)
    return found


def test_values_of_all_kinds_are_those_of_flink() -> None:
    [batch] = record_batches(rows("times")())
    assert batch.to_pylist() == [
        {
            "ticket_id": "a",
            "wall": datetime(2026, 1, 1, 10, 0, 0, 500_000),  # noqa: DTZ001 - Flink's TIMESTAMP has no zone
            "day_of": date(2026, 1, 2),
            "amount": Decimal("1.25"),
            "nothing": None,
            "tags": ["x", "y"],
        }
    ]


def test_a_table_without_rows_has_its_columns() -> None:
    [batch] = record_batches(rows("nothing")("eu"))
    assert (batch.num_rows, batch.schema.names) == (0, ["ticket_id", "body", "is_even"])


def test_a_job_that_fails_is_told_and_nothing_comes_of_it() -> None:
    with pytest.raises(InputError, match=r"flink_job.py:broken ended with exit code 1: ValueError: the source is gone"):
        list(rows("broken")("eu"))


def test_each_window_is_a_partition_that_is_labeled_once(tmp_path: Path, emulator: Emulator) -> None:
    folder = tmp_path / "windows"
    minutes = dg.DynamicPartitionsDefinition(name="minutes")

    def rows_of(context: Any) -> pa.Table:
        with pa.memory_map(str(folder / f"{context.partition_key}.arrow")) as file:
            return pa.ipc.open_file(file).read_all()

    labels = llm_batch_assets(
        name="labels",
        rows=rows_of,
        key="ticket_id",
        keep=["minute_of"],
        prompt=Prompt(user="{{ body }}"),
        model="openai/gpt-4o-mini",
        partitions_def=minutes,
    )
    job = dg.define_asset_job("label_minute", selection=[labels[0]], partitions_def=minutes)

    @dg.sensor(job=job)
    def new_minutes(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        known = set(context.instance.get_dynamic_partitions("minutes"))
        new = sorted({path.stem for path in folder.glob("*.arrow")} - known)
        requests = [dg.RunRequest(run_key=one, partition_key=one) for one in new]
        return dg.SensorResult(requests, dynamic_partitions_requests=[minutes.build_add_request(new)] if new else [])

    openai = OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url)
    resource = LLMBatchResource(
        ledger_url=f"sqlite:///{tmp_path / 'ledger.sqlite'}", payload_root=str(tmp_path / "payloads"), openai=openai
    )
    defs = dg.Definitions(assets=labels, jobs=[job], sensors=[new_minutes], resources={"llm_batch": resource})
    asked: list[str] = []
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(2):  # the second time, the Flink job starts again and delivers the same windows
            command = [PYTHON, flink_bridge.__file__, "windows", JOB, "windows", "minute_of", folder]
            subprocess.run(command, check=True, capture_output=True)
            assert not list(folder.glob(".*"))
            context = dg.build_sensor_context(
                instance=instance, repository_def=defs.get_repository_def(), sensor_name="new_minutes"
            )
            found = new_minutes(context)
            assert isinstance(found, dg.SensorResult)
            for request in found.dynamic_partitions_requests or []:
                assert isinstance(request, dg.AddDynamicPartitionsRequest)
                instance.add_dynamic_partitions("minutes", list(request.partition_keys))
            for run in found.run_requests or []:
                asked.append(str(run.partition_key))
                done = defs.resolve_job_def("label_minute").execute_in_process(
                    instance=instance, partition_key=run.partition_key
                )
                assert done.success
    assert asked == ["2026-01-01-1000", "2026-01-01-1001", "2026-01-01-1003"]
    emulator.settle()
    bodies = [one.body_digest for one in emulator.books.executions if one.billed]
    assert len(bodies) == len(set(bodies)) == 4
