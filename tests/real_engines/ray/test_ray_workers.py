"""Ray datasets as input, and Ray Data as workers: the same requests and labels as one process makes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster import Cluster

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS / "engine")]  # its workspace and its comparison

from comparison import (  # noqa: E402
    TARGETS,
    assert_same_plan,
    assert_same_report,
    by_key,
    labeling,
    stored,
    tickets,
    with_gold,
)
from workspace import Workspace  # noqa: E402

from dagster_llm_batch import Realtime, Resend  # noqa: E402
from dagster_llm_batch.distributed import RayWorkers, compare_spread  # noqa: E402
from dagster_llm_batch.errors import InputError  # noqa: E402
from dagster_llm_batch.metrics import compare  # noqa: E402
from dagster_llm_batch.testing.emulator import Emulator  # noqa: E402


@pytest.fixture(scope="module")
def data(cluster: Cluster) -> Iterator[Any]:
    """Ray Data, connected."""
    import ray
    import ray.data

    path = os.pathsep.join([str(TESTS / "engine"), str(TESTS.parent)])  # for the workers' imports
    ray.init(
        "127.0.0.1:6379", runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False, logging_level="ERROR"
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray.data
    ray.shutdown()


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def workspace(tmp_path: Any, emulator: Emulator) -> Workspace:
    return Workspace(tmp_path, emulator)


def dataset(data: Any) -> Any:
    """Return blocks of multiples of 256 rows, planned at once: files of two lanes are numbered when they are begun."""
    return data.from_arrow([tickets(768, 0), tickets(1_024, 768), tickets(512, 1_792), tickets(696, 2_304)])


def test_request_files_are_the_same_byte_for_byte_as_those_of_one_process(
    tmp_path: Any, workspace: Workspace, data: Any
) -> None:
    found = []
    for name, workers in (("here", None), ("there", RayWorkers())):
        own = Workspace(tmp_path / name, workspace.emulator)
        definition = labeling(
            realtime=Realtime(urgent="urgent"), resend=Resend(fallback=["openai/gpt-4o-mini"]), workers=workers
        )
        rows = dataset(data) if workers else pa.concat_tables([tickets(3_000)])
        found.append(stored(own, own.engine().plan(definition, rows)))
    assert_same_plan(*found)


def test_labels_are_the_same_row_for_row(tmp_path: Any, workspace: Workspace, data: Any) -> None:
    found = []
    for name, workers in (("here", None), ("there", RayWorkers({"num_cpus": 1}))):
        own = Workspace(tmp_path / name, workspace.emulator)
        definition = labeling(workers=workers)
        status = own.run(definition, dataset(data))
        found.append(own.engine().labels(definition, status.submission.submission_id))
    assert len(found[0].labels) == 3_000
    assert by_key(found[0].labels) == by_key(found[1].labels)


def test_figures_against_gold_are_the_same_to_the_last_digit(workspace: Workspace, data: Any) -> None:
    definition = labeling(workers=RayWorkers())
    engine, submission_id = workspace.engine(), workspace.run(definition, dataset(data)).submission.submission_id
    gold, said = with_gold(engine.labels(definition, submission_id).labels)
    parts = [said.slice(number * 750, 750) for number in range(4)]
    there = compare_spread(RayWorkers(), gold, {"c": data.from_arrow(parts)}, key="ticket_id", targets=TARGETS)
    assert_same_report(compare(gold, {"c": said}, key="ticket_id", targets=TARGETS), there)
    assert there.evaluations[0].n_labeled > 1_000
    with pytest.raises(InputError, match="stand in more than one part"):
        compare_spread(RayWorkers(), gold, {"c": data.from_arrow(parts * 2)}, key="ticket_id", targets=TARGETS)


def test_a_worker_that_dies_is_replaced_and_its_rows_are_asked_once(
    tmp_path: Any, workspace: Workspace, data: Any
) -> None:
    marker = str(tmp_path / "died")

    def die_once(block: pa.Table) -> pa.Table:
        if not Path(marker).exists():
            Path(marker).touch()
            os._exit(137)
        return block

    definition = labeling()
    alone = Workspace(tmp_path / "alone", workspace.emulator)
    here = stored(alone, alone.engine().plan(definition, tickets(3_000)))
    dying = dataset(data).map_batches(die_once, batch_size=None, batch_format="pyarrow")
    there = stored(workspace, workspace.engine().plan(replace(definition, workers=RayWorkers()), dying))
    assert Path(marker).exists()
    assert_same_plan(here, there)


def test_written_labels_are_a_partitioned_table_with_the_rows_of_one_process(
    tmp_path: Path, workspace: Workspace, data: Any
) -> None:
    definition = labeling(workers=RayWorkers())
    submission_id = workspace.run(definition, dataset(data)).submission.submission_id
    for region, part_rows in (("eu", 1_000), ("us", 5_000), ("us", 5_000)):  # taken apart, whole, and once more
        folders = [f"{tmp_path}/{name}/region={region}" for name in ("labels", "rejects")]
        written = workspace.engine(part_rows=part_rows).write_labels(definition, submission_id, *folders)
        assert (written.labels, written.rejects) == (3_000, 0)
    found = data.read_parquet(f"{tmp_path}/labels").groupby("region").count().take_all()
    assert {row["region"]: row["count()"] for row in found} == {"eu": 3_000, "us": 3_000}
    alone = workspace.engine().labels(labeling(), submission_id).labels
    for region in ("eu", "us"):
        assert by_key(pq.read_table(f"{tmp_path}/labels/region={region}", partitioning=None)) == by_key(alone)


def test_wrong_rows_are_told_as_one_process_tells_them(workspace: Workspace, data: Any) -> None:
    definition = labeling(workers=RayWorkers())
    with pytest.raises(InputError, match="duplicate values: 't"):
        workspace.engine().plan(definition, dataset(data).union(dataset(data)))
    with pytest.raises(InputError, match="a Ray dataset, got a pyarrow"):
        workspace.engine().plan(definition, tickets(10))
    assert workspace.files() == set()
