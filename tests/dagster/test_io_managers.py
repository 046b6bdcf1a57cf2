"""IO managers of all kinds store paid labels: by run, step and output, and in memory too."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from code_location import BATCH, DAILY, LABELS, LANDING, REJECTS, failure, labeled, tickets

from dagster_llm_batch import Checks, HiveParquetIOManager, evaluation_assets
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.testing.emulator import RowFault

LENIENT = Checks(min_coverage=0.1, min_parse_rate=0.1)
GOOD, BAD = {"t-0", "t-2"}, {"t-1"}


def ids(table: Any) -> set[str]:
    return {one for batch in record_batches(table) for one in batch["ticket_id"].to_pylist()}


def readers(partitions_def: Any, seen: list[tuple[str, set[str]]]) -> list[dg.AssetsDefinition]:
    """Return two assets that load the labels, and one that loads the rejects, as Dagster does."""

    def reader(name: str, upstream: str) -> dg.AssetsDefinition:
        @dg.asset(name=name, partitions_def=partitions_def, ins={"table": dg.AssetIn(upstream)})
        def read(table) -> None:
            seen.append((name, ids(table)))

        return read

    return [reader("first", LABELS), reader("second", LABELS), reader("of_rejects", REJECTS)]


@pytest.mark.sample(1)
@pytest.mark.parametrize("partition", [None, "2026-01-02"])
@pytest.mark.parametrize("frame", ["arrow", "polars", "pandas", "batches"])
def test_dagsters_own_memory_holds_labels_and_rejects_for_everyone_downstream(make, emulator, frame, partition):
    partitions_def = DAILY if partition else None

    @dg.asset(name="tickets", partitions_def=partitions_def)
    def rows() -> Any:
        return tickets()

    seen: list[tuple[str, set[str]]] = []
    emulator.inject(RowFault(containing="invoice t-1?", status_code=400))
    location = make(
        rows,
        *labeled(rows="tickets", frame=frame, partitions_def=partitions_def, checks=LENIENT),
        *readers(partitions_def, seen),
        resources={"io_manager": dg.InMemoryIOManager()},
    )
    assert location.run("tickets", BATCH, partition=partition).success
    emulator.settle()
    assert location.run(*LANDING, "first", "second", "of_rejects", partition=partition).success
    assert sorted(seen) == [("first", GOOD), ("of_rejects", BAD), ("second", GOOD)]


def test_in_a_run_over_a_range_no_partition_takes_the_place_of_another(make):
    memory = dg.InMemoryIOManager()
    location = make(*labeled(partitions_def=DAILY), resources={"io_manager": memory})
    assert location.land(span=("2026-01-02", "2026-01-04")).success
    kept = {key[1:]: ids(table) for key, table in memory.values.items() if key[2] == LABELS}
    days = ["2026-01-02", "2026-01-03", "2026-01-04"]
    assert kept == {(LABELS, LABELS, day): {f"{day}-{n}" for n in range(3)} for day in days}
    assert location.collect(span=("2026-01-02", "2026-01-02")).success
    assert (LABELS, LABELS) in {key[1:] for key in memory.values}  # Dagster looks for a single partition there


CALLS: list[tuple[str, bool, int]] = []


class OneByOne(HiveParquetIOManager):
    """Records the thread of each call, and the number of partitions that Dagster had before it."""

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        told = context.step_context.instance.get_materialized_partitions(dg.AssetKey(LABELS))
        CALLS.append((context.asset_key.to_user_string(), current_thread() is main_thread(), len(told)))
        super().handle_output(context, obj)


def test_any_io_manager_but_the_packages_own_is_called_by_the_steps_thread_one_partition_after_the_other(
    make, tmp_path
):
    CALLS.clear()
    location = make(*labeled(partitions_def=DAILY), resources={"io_manager": OneByOne(root=str(tmp_path))})
    assert location.land(span=("2026-01-02", "2026-01-04")).success
    calls = [call for call in CALLS if call[0] in (LABELS, REJECTS)]
    assert calls == [(name, True, told) for told in range(3) for name in (REJECTS, LABELS)]


def test_a_partition_that_the_packages_own_cannot_store_is_not_told_of_and_its_neighbours_are(make, tmp_path):
    manager = HiveParquetIOManager(root=str(tmp_path / "tables"))
    blocked = Path(manager.folder(dg.AssetKey(LABELS), "2026-01-03"))
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder is to be")
    location = make(*labeled(partitions_def=DAILY), resources={"io_manager": manager})
    result = location.land(span=("2026-01-02", "2026-01-05"))
    assert not result.success
    assert "1 of 4 partitions failed; the others are done" in failure(result)
    landed = location.landed()
    assert landed == {"2026-01-02", "2026-01-04", "2026-01-05"}
    for day in landed:
        table = manager._read(dg.AssetKey(LABELS), day)
        assert ids(table) == {f"{day}-{n}" for n in range(3)}


class Witness(dg.IOManager):
    """Records all values of output contexts."""

    def __init__(self) -> None:
        self.told: dict[str, dict[str, Any]] = {}

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        context.log.info(f"storing {context.name}")
        context.log_event(dg.AssetObservation(context.asset_key, metadata={"by": "witness"}))
        context.add_output_metadata({"stored": True})
        window = context.asset_partitions_time_window if context.has_asset_partitions else None
        assert isinstance(obj, pa.Table)
        self.told[context.name] = {
            "step_key": context.step_key,
            "run_id": context.run_id,
            "job_name": context.job_name,
            "identifier": tuple(context.get_identifier()),
            "asset_identifier": tuple(context.get_asset_identifier()),
            "op": context.op_def.name,
            "type": context.dagster_type.typing_type,
            "version": context.version,
            "mapping_key": context.mapping_key,
            "partition": context.partition_key if context.has_partition_key else None,
            "partitions": list(context.asset_partition_keys) if context.has_asset_partitions else None,
            "range": context.asset_partition_key_range if context.has_asset_partitions else None,
            "window": window,
            "spec": context.asset_spec.key,
            "metadata": context.definition_metadata["kept_by"],
            "step": context.step_context.step.key,
            "resource_config": context.resource_config,
        }

    def load_input(self, context: dg.InputContext) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("partition", [None, "2026-01-02"])
def test_an_io_manager_is_told_what_dagster_tells_of_its_own_assets(make, instance, partition):
    partitions_def = DAILY if partition else None
    out = dg.AssetOut(is_required=False, metadata={"kept_by": "witness"})

    @dg.multi_asset(name="of_dagster", outs={"one": out, "two": out}, partitions_def=partitions_def)
    def of_dagster() -> Iterator[Any]:
        for name in ("one", "two"):
            yield dg.Output(pa.table({}), output_name=name)

    witness = Witness()
    ours = dg.map_asset_specs(  # like a project that changes these assets
        lambda spec: spec.merge_attributes(metadata={"kept_by": "witness"}),
        labeled(frame="arrow", partitions_def=partitions_def),
    )
    location = make(*ours, of_dagster, resources={"io_manager": witness})
    assert location.submit(partition=partition).success
    location.emulator.settle()
    result = location.run(*LANDING, "one", "two", partition=partition)
    assert result.success

    def renamed(told: Any, names: dict[str, str]) -> str:
        text = repr(told)
        for old, new in names.items():
            text = text.replace(repr(old), repr(new))
        return text

    for name, alike in ((LABELS, "one"), (REJECTS, "two")):
        told = witness.told[name]
        assert told["identifier"] == (result.run_id, LABELS, name)
        assert told["type"] is pa.Table
        theirs = {**witness.told[alike], "type": told["type"], "step_key": LABELS, "op": LABELS, "step": LABELS}
        assert renamed(theirs, {"of_dagster": LABELS, alike: name}) == renamed(told, {})
        assert location.metadata(name, partition)["stored"] is True
    said = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert f"storing {LABELS}" in said
    observed = instance.fetch_observations(dg.AssetKey(LABELS), limit=10).records
    assert any("by" in record.asset_observation.metadata for record in observed)


class Pickles(dg.ConfigurableIOManager):
    """Files by identifier, written by a generator, as Dagster lets IO managers do."""

    root: str

    def _path(self, identifier: Any) -> Path:
        return Path(self.root, *identifier)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> Iterator[dg.AssetMaterialization]:  # type: ignore[override]
        path = self._path(context.get_identifier())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(pa.Table.from_batches(list(record_batches(obj)))))
        yield dg.AssetMaterialization("a_file", metadata={"path": str(path)})

    def load_input(self, context: dg.InputContext) -> Any:
        return pickle.loads(self._path(context.get_identifier()).read_bytes())


class Gold(dg.IOManager):
    """A table that already exists."""

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        raise NotImplementedError

    def load_input(self, context: dg.InputContext) -> Any:
        return pa.table({"ticket_id": ["t-0", "t-1", "t-2"], "topic": ["billing", "bug", "billing"]})


@pytest.mark.slow
@pytest.mark.parametrize("frame", ["arrow", "batches"])
def test_files_by_run_and_step_are_found_again_by_later_runs(make, instance, tmp_path, frame):
    gold = dg.AssetSpec("gold").with_io_manager_key("elsewhere")
    labels = labeled(frame=frame)
    quality = evaluation_assets(
        name="quality", gold=gold, candidates=[labels], key="ticket_id", target="topic", regression=True
    )
    stores = {"io_manager": Pickles(root=str(tmp_path)), "elsewhere": Gold()}
    location = make(gold, *labels, *quality, resources=stores)
    assert location.land().success
    files = instance.fetch_materializations(dg.AssetKey("a_file"), limit=10).records
    assert {Path(record.asset_materialization.metadata["path"].value).name for record in files} >= set(LANDING)
    config = {"ops": {"quality_accepted": {"config": {"candidates": [LABELS]}}}}
    for step, given in (("quality", {}), ("quality_accepted", config), ("quality", {})):
        result = location.run(step, run_config=given)
        assert result.success, failure(result)
    assert "rows; 0 fixed, 0 broken" in result.get_asset_check_evaluations()[-1].description


class Talking(dg.InMemoryIOManager):
    """Logs its reads."""

    def load_input(self, context: dg.InputContext) -> Any:
        context.log.info(f"reading {context.asset_key.to_user_string()}")
        return super().load_input(context)


def test_what_an_io_manager_says_while_it_reads_is_in_the_log_of_the_run(instance):
    @dg.asset
    def gold() -> pa.Table:
        return pa.table({"ticket_id": ["t-0", "t-1"], "topic": ["billing", "bug"]})

    @dg.asset
    def labels() -> pa.Table:
        return pa.table({"ticket_id": ["t-0", "t-1"], "topic": ["billing", "bug"]})

    quality = evaluation_assets(name="quality", gold=gold, candidates=[labels], key="ticket_id", target="topic")
    result = dg.materialize([gold, labels, *quality], resources={"io_manager": Talking()}, instance=instance)
    said = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert {one for one in said if one.startswith("reading ")} == {"reading gold", "reading labels"}


class Shelf(dg.IOManager):
    """Keeps its input unread."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, ...], Any] = {}

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        self.kept[tuple(context.get_identifier())] = obj

    def load_input(self, context: dg.InputContext) -> Any:
        return self.kept[tuple(context.get_identifier())]


@pytest.mark.parametrize("frame", ["polars", "pandas"])
def test_a_kept_moment_with_an_offset_for_its_zone_lands(make, frame):
    """Keep it as pandas reads 2026-01-01T00:00+05:30. polars has no such zones, and has the same moment in UTC."""
    moment = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    shelf = Shelf()
    rows = tickets().to_arrow().append_column("at", pa.array([moment] * 3, pa.timestamp("us", "+05:30")))
    location = make(*labeled(rows=lambda _: rows, keep=["at"], frame=frame), resources={"io_manager": shelf})
    assert location.land().success
    [labels] = [table for name, table in shelf.kept.items() if name[-2:] == (LABELS, LABELS) or name[-1] == LABELS]
    assert [one for batch in record_batches(labels) for one in batch["at"].to_pylist()] == [moment] * 3


def test_a_stream_that_was_kept_unread_outlives_the_files_behind_it(make, emulator):
    seen: list[tuple[str, set[str]]] = []
    emulator.inject(RowFault(containing="invoice t-1?", status_code=400))
    first, _, of_rejects = readers(None, seen)
    location = make(*labeled(frame="batches", checks=LENIENT), first, of_rejects, resources={"io_manager": Shelf()})
    assert location.submit().success
    emulator.settle()
    assert location.run(*LANDING, "first", "of_rejects").success
    assert sorted(seen) == [("first", GOOD), ("of_rejects", BAD)]


def test_downstream_asks_the_io_manager_that_stored(make):
    seen: list[tuple[str, set[str]]] = []
    stores = {"io_manager": Shelf(), "lake": Shelf()}
    location = make(*labeled(io_manager_key="lake"), *readers(None, seen), resources=stores)
    assert location.submit().success
    location.emulator.settle()
    assert location.run(*LANDING, "first", "of_rejects").success
    assert sorted(seen) == [("first", {"t-0", "t-1", "t-2"}), ("of_rejects", set())]
