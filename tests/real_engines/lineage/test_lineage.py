"""The configuration in docs/how-to/lineage.md sends labels to a collector of OpenLineage: `python3 -m tests lineage`.

The collector is a small server of this file, and Dagster's storage is a PostgreSQL server for these tests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, Literal, NamedTuple

import dagster as dg
import polars as pl
import pytest
import yaml
from collector import GUIDE, Collector, block
from dagster_openlineage import OpenLineageEventLogStorage, openlineage_sensor
from pydantic import BaseModel, Field

from dagster_llm_batch import (
    Checks,
    HiveParquetIOManager,
    LLMBatchResource,
    Mask,
    OpenAIBatchResource,
    Prompt,
    Resend,
    llm_batch_assets,
)
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.testing.emulator.answers import last_user_text
from example_project.parquet import ParquetIOManager
from tests.crash.postgres import postgres

DAY = "2026-01-05"
SECRET = "Charged twice in Lisbon."
PLANTED = ("ann.planted@example.com", "+49 30 1234567", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    running = Collector()
    with running.server:
        Thread(target=running.server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OPENLINEAGE_URL", running.url)
        yield running
        running.server.shutdown()


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[[], str]]:
    with postgres() as empty_database:
        yield empty_database


@pytest.fixture
def database(server: Callable[[], str]) -> str:
    """Return the URL of an empty database for Dagster's storage."""
    return server().replace("postgresql:", "postgresql+psycopg2:")


class Ticket(BaseModel):
    topic: Literal["billing", "bug"] = Field(description="What the customer writes about.")


def rows() -> pl.DataFrame:
    """Return the upstream rows."""
    return pl.DataFrame({"id": ["a", "b"], "body": [SECRET, "The page stays white."], "day": [DAY] * 2})


class Project(NamedTuple):
    """Labels of one day, on an instance."""

    defs: dg.Definitions
    instance: dg.DagsterInstance
    emulator: Emulator

    def run(self, *names: str) -> None:
        job = self.defs.resolve_implicit_global_asset_job_def()
        keys = [dg.AssetKey(name) for name in names]
        assert job.execute_in_process(instance=self.instance, asset_selection=keys, partition_key=DAY).success

    def label(self) -> None:
        self.run("tickets", "labels_batch")
        self.emulator.settle()
        self.run("labels", "labels_rejects")


def project(
    emulator: Emulator, instance: dg.DagsterInstance, io_manager: Any, folder: Path, rows: Any = rows, **changes: Any
) -> Project:
    days = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-02-01")
    tickets = dg.asset(rows, name="tickets", partitions_def=days)
    usual: dict[str, Any] = {
        "name": "labels",
        "rows": tickets,
        "key": "id",
        "prompt": Prompt(user="{{ body }}"),
        "response": Ticket,
        "model": "openai/gpt-5-nano",
        "partitions_def": days,
        "frame": "polars",
        "automation_condition": dg.AutomationCondition.eager(),
    }
    labels = llm_batch_assets(**{**usual, **changes})
    resource = LLMBatchResource(
        openai=OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url),
        ledger_url=f"sqlite:///{folder}/ledger.sqlite",
        payload_root=str(folder / "payloads"),
    )
    defs = dg.Definitions(assets=[tickets, *labels], resources={"llm_batch": resource, "io_manager": io_manager})
    return Project(defs, instance, emulator)


@pytest.fixture
def instance(
    database: str, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """Give an instance with the page's configuration, which sends to the collector."""
    folder = tmp_path / "code"
    folder.mkdir()
    folder.joinpath("lineage_storage.py").write_text(block("py", having="class InputsAdapter"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", database)
    with dg.instance_for_test(
        overrides=yaml.safe_load(block("yaml", having="event_log_storage")), temp_dir=str(tmp_path)
    ) as one:
        yield one


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


def test_labels_reach_a_collector_with_inputs_columns_place_checks_and_day(
    collector: Collector, instance: dg.DagsterInstance, emulator: Emulator, tmp_path: Path
) -> None:
    lake = tmp_path / "lake"
    project(emulator, instance, HiveParquetIOManager(root=str(lake)), tmp_path).label()
    [labels] = collector.completed("labels")
    assert labels["job"]["namespace"] == "my-company"
    assert [(one["namespace"], one["name"]) for one in labels["inputs"]] == [("my-company", "tickets")]
    [output] = labels["outputs"]
    assert (output["namespace"], output["name"]) == ("my-company", "labels")
    assert labels["run"]["facets"]["nominalTime"]["nominalStartTime"].startswith(DAY)
    facets = output["facets"]
    fields = {one["name"]: one for one in facets["schema"]["fields"]}
    assert (fields["topic"]["type"], fields["topic"]["description"]) == ("string", "What the customer writes about.")
    assert "llm_request_id" in fields
    lineage = {name: one["inputFields"] for name, one in facets["columnLineage"]["fields"].items()}
    sources = {name: [(one["name"], one["field"]) for one in inputs] for name, inputs in lineage.items()}
    assert sources == {"id": [("tickets", "id")], "topic": [("tickets", "body")]}
    assert facets["dataSource"]["uri"] == str(lake / "labels" / f"partition={DAY}")
    [rejects] = collector.completed("labels_rejects")
    assert {"schema", "dataSource"} <= rejects["outputs"][0]["facets"].keys()
    assert [one["outputs"][0]["name"] for one in collector.completed("labels_batch")] == ["labels_batch"]
    inputs = [one for event in collector.completed("labels__checks") for one in event["inputs"]]
    asserted = [entry for one in inputs for entry in one["inputFacets"]["dataQualityAssertions"]["assertions"]]
    assert {"coverage": True, "parse_rate": True}.items() <= {
        entry["assertion"]: entry["success"] for entry in asserted
    }.items()
    assert SECRET not in json.dumps(collector.posted)


class Reply(BaseModel):
    topic: Literal["billing", "bug"]
    reply: str


def test_no_value_that_a_mask_finds_is_in_an_event_of_lineage(
    collector: Collector, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """The model quotes all that it sees. One label has its values back, and the other row is a reject."""

    def quote(body: dict[str, Any], _endpoint: str) -> dict[str, str]:
        text = last_user_text(body)
        return {"topic": text if "white" in text else "billing", "reply": f"Dear {text}"}

    def planted() -> pl.DataFrame:
        texts = [" ".join(("Twice.", *PLANTED)), " ".join(("It stays white.", *PLANTED))]
        return pl.DataFrame({"id": ["a", "b"], "body": texts, "day": [DAY] * 2})

    with Emulator(answer=quote) as emulator:
        store = HiveParquetIOManager(root=str(tmp_path / "lake"))
        mask = Mask(columns=["body"], restore=["reply"])
        definition: dict[str, Any] = {
            "prompt": Prompt(user="{{ body }}", mask=mask),
            "keep": ["body"],
            "response": Reply,
            "resend": Resend(max_waves=1),
            "checks": Checks(min_coverage=0.1, min_parse_rate=0.1),
        }
        made = project(emulator, instance, store, tmp_path, planted, **definition)
        made.label()
        with made.defs.get_asset_value_loader(instance) as loader:
            labels = loader.load_asset_value("labels", partition_key=DAY)
    assert len(labels) == 1
    assert all(value in str(labels["reply"][0]) for value in PLANTED)
    assert len(collector.completed("labels")) == len(collector.completed("labels_rejects")) == 1
    posted = json.dumps(collector.posted, ensure_ascii=False)
    assert [value for value in PLANTED if value in posted] == []


def test_a_place_that_an_io_manager_reports_as_dagster_uri_alone_is_the_data_source(
    collector: Collector, instance: dg.DagsterInstance, emulator: Emulator, tmp_path: Path
) -> None:
    project(emulator, instance, ParquetIOManager(folder=str(tmp_path / "frames")), tmp_path).label()
    [labels] = collector.completed("labels")
    place = (tmp_path / "frames" / "labels").as_uri()
    assert labels["outputs"][0]["facets"]["dataSource"]["uri"] == place


def test_a_collector_that_fails_is_asked_once_for_each_event_and_stops_no_run(
    collector: Collector, instance: dg.DagsterInstance, emulator: Emulator, tmp_path: Path
) -> None:
    collector.status = 503
    project(emulator, instance, HiveParquetIOManager(root=str(tmp_path / "lake")), tmp_path).run("tickets")
    assert [event["eventType"] for event in collector.posted] == ["START", "COMPLETE"]


def test_a_shell_without_a_collector_prints_the_quoted_notice_unless_it_has_the_variable_of_the_page() -> None:
    text = " ".join(GUIDE.read_text(encoding="utf-8").split())
    [notice] = re.findall(r"prints `(Couldn't [^`]+)`", text)
    [(name, value)] = re.findall(r"`(OPENLINEAGE_DISABLED)=(\w+)`", text)
    bare = {key: value for key, value in os.environ.items() if not key.startswith("OPENLINEAGE")}
    for given, printed in (({}, True), ({name: value}, False), ({"OPENLINEAGE_URL": "http://127.0.0.1:9"}, False)):
        command = [sys.executable, "-c", "import dagster_openlineage"]
        done = subprocess.run(command, env={**bare, **given}, capture_output=True, text=True, check=True)
        assert (notice in done.stdout + done.stderr) == printed


def test_automation_and_pools_work_with_the_storage_of_the_page_and_not_with_the_plain_one(
    collector: Collector, instance: dg.DagsterInstance, emulator: Emulator, tmp_path: Path
) -> None:
    """Show that the page's module is necessary. It can go once the plain storage passes."""
    storage = instance.event_log_storage
    assert storage.supports_global_concurrency_limits
    made = project(emulator, instance, HiveParquetIOManager(root=str(tmp_path)), tmp_path)
    made.run("tickets")
    assert storage.get_maximum_record_id() > 0
    assert dg.evaluate_automation_conditions(made.defs, instance=instance).total_requested == 0
    plain = OpenLineageEventLogStorage(storage._wrapped)
    assert not plain.supports_global_concurrency_limits
    with pytest.raises(NotImplementedError):
        plain.get_maximum_record_id()


def test_the_sensor_of_the_page_sends_the_same_facets_without_inputs(
    database: str, collector: Collector, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster_openlineage.sensor as module

    names: dict[str, Any] = {}
    exec(compile(block("py", having="include_asset_events=True"), str(GUIDE), "exec"), names)
    # It makes its client on import, and other tests have other collectors.
    monkeypatch.setattr(module, "_ADAPTER", module.OpenLineageAdapter())
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", database)
    configured = yaml.safe_load(block("yaml", having="event_log_storage"))
    plain = {**configured, "event_log_storage": configured["event_log_storage"]["config"]["wrapped"]}
    with dg.instance_for_test(overrides=plain, temp_dir=str(tmp_path)) as instance:
        made = project(emulator, instance, HiveParquetIOManager(root=str(tmp_path / "lake")), tmp_path)
        made.label()
        assert collector.posted == []
        cursor = None
        for _ in range(20):
            context = dg.build_sensor_context(instance, cursor=cursor, definitions=made.defs)
            list(names["sensor"](context))
            if cursor == context.cursor:
                break
            cursor = context.cursor
    [labels] = collector.completed("labels")
    assert labels["inputs"] == []
    assert {"schema", "columnLineage", "dataSource"} <= labels["outputs"][0]["facets"].keys()


def test_the_sensor_fails_on_the_event_log_that_dagster_has_by_default(tmp_path: Path) -> None:
    sensor: Any = openlineage_sensor(include_asset_events=True)
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance, pytest.raises(Exception, match="run-sharded"):
        list(sensor(dg.build_sensor_context(instance)))
