"""`review`: the rows of a deployment, from its definitions, ledger and payload store."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import dagster as dg
import pytest
from project import DAYS

from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.cli.code_location import CodeLocation
from dagster_llm_batch.cli.pointer import Pointer
from dagster_llm_batch.cli.review import _stored_assets
from dagster_llm_batch.review.access import SECRET_HEADER, SESSION_PATH
from dagster_llm_batch.review.evidence import read_attempts
from dagster_llm_batch.storage.ledger.records import Judgment


def evidence(project, dataset: str, request_id: str, partition: str = ""):
    with project.engine() as engine:
        submissions = engine.ledger.submissions.of_partition("test", dataset, partition)
        return read_attempts(engine.ledger, engine.deployment.payloads, submissions, request_id)


def labels(project, submission_id: str):
    module = project.module()
    with project.engine() as engine:
        asset = engine.ledger.submissions.get(submission_id).asset
        return engine.labels(dataset_of(module[asset]).labeling, submission_id).labels.to_pylist()


def test_what_was_sent_and_what_came_back_is_found_in_the_stored_files(project):
    submission_id = project.land("daily_labels", DAYS[0])
    for row in labels(project, submission_id):
        (attempt,) = evidence(project, "daily_labels", row["llm_request_id"], DAYS[0])
        assert f"Where is my invoice {row['ticket_id'].rpartition('-')[0]}".encode() in attempt.request
        assert len(attempt.replies) == 1
        assert row["llm_request_id"].encode() in attempt.replies[0]
        (result,) = attempt.results
        assert (result["llm_outcome"], result["llm_cost_usd"]) == ("succeeded", row["llm_cost_usd"])
        assert attempt.shard.batch.batch_id == row["llm_batch_id"]
        assert attempt.lost is None


@pytest.mark.parametrize("request_id", ["", "zz", "00" * 20, "ab", "é" * 40])
def test_a_request_that_was_never_sent_has_no_attempt(project, request_id):
    project.land()
    assert evidence(project, "ticket_labels", request_id) == []


def test_files_that_are_gone_are_said_to_be_gone(project):
    submission_id = project.land()
    row = labels(project, submission_id)[0]
    for path in Path(project.batches).rglob("*"):
        if path.name.endswith((".requests.jsonl.lz4", ".ids.lz4", ".raw.jsonl.zst")):
            path.unlink()
    (attempt,) = evidence(project, "ticket_labels", row["llm_request_id"])
    assert (attempt.request, attempt.replies) == (None, ())
    assert "the request was removed" in attempt.lost
    assert "the raw replies were removed" in attempt.lost
    assert attempt.results[0]["llm_outcome"] == "succeeded"


def test_a_damaged_file_is_no_error_of_the_page(project):
    submission_id = project.land()
    row = labels(project, submission_id)[0]
    for path in Path(project.batches).rglob("*.raw.jsonl.zst"):
        path.write_bytes(b"\x00" * 30)
    (attempt,) = evidence(project, "ticket_labels", row["llm_request_id"])
    assert attempt.request is not None
    assert "the raw replies were removed from the payload store, or cannot be read" in attempt.lost


def materialize(project, *names: str) -> None:
    """Materialize these assets, as runs of Dagster do, in its real instance."""
    module = project.module()
    with dg.DagsterInstance.get() as instance:
        for name in names:
            project.settle()
            assets = list(module[name])
            result = dg.materialize(
                assets, instance=instance, selection=f"key:{name}_batch", resources=module["defs"].resources
            )
            assert result.success
            project.settle()
            assert dg.materialize(
                assets,
                instance=instance,
                selection=f"key:{name} or key:{name}_rejects",
                resources=module["defs"].resources,
            ).success


@pytest.fixture
def landed(project, home, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    project.change(
        '"plain": "no LLMBatchResource",',
        f'"io_manager": HiveParquetIOManager(root="{project.folder}/tables of [all]"),',
    )
    project.change("    Limits,\n", "    HiveParquetIOManager,\n    Limits,\n")
    materialize(project, "ticket_labels")
    return project


class Server:
    """The command, as its user starts it."""

    def __init__(self, project, *more: str, first: str = "") -> None:
        words = [sys.executable, "-c", first + "from dagster_llm_batch.cli.main import main; main()", "review", *more]
        self.process = subprocess.Popen(
            [*words, "-f", str(project.file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.line = self.process.stdout.readline()
        found = re.match(r"Open (http://127\.0\.0\.1:\d+)(/.*)#token=(.*)", self.line)
        assert found, self.process.communicate()
        self.address, self.path, token = found.groups()
        self.headers = {"Origin": self.address}
        self.headers[SECRET_HEADER] = json.loads(self.ask(SESSION_PATH, token.encode()))["secret"]

    def ask(self, path: str, body: bytes | None = None) -> str:
        request = urllib.request.Request(self.address + path, body, self.headers)
        return urllib.request.urlopen(request, timeout=60).read().decode()

    def get(self, path: str) -> str:
        return self.ask(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.wait()


_NOTES_QUESTIONS = """
import sqlalchemy as sa
@sa.event.listens_for(sa.Engine, "after_cursor_execute")
def note(*told):
    if "FROM asset_keys" in told[2]:
        with open({path!r}, "a") as file:
            file.write("asked\\n")
"""


def test_the_first_page_does_not_ask_dagster_again_for_the_tables_that_the_command_found(landed, tmp_path):
    noted = tmp_path / "asked.txt"
    with Server(landed, first=_NOTES_QUESTIONS.format(path=str(noted))) as server:
        before = noted.read_text()
        assert "ticket_labels_rejects" in server.get("/")
        assert noted.read_text() == before


def test_the_command_prints_an_address_and_shows_rows_of_the_definitions(landed):
    refused = landed.on_file("review", "ticket_label", code=1)
    assert "There is no stored table 'ticket_label'; there are ticket_labels, ticket_labels_rejects" in refused.stderr
    before = landed.files()
    with Server(landed, "ticket_labels") as server:
        table = server.get(server.path)
        assert "3 rows" in table
        assert "/row/ticket_labels?by=ticket_id&amp;key=all-0" in table
        row = server.get("/row/ticket_labels?by=ticket_id&key=all-1")
        assert "Where is my invoice all 1?" in row
        assert "You label tickets." in row
        assert "As it came back" in row
        assert "<h2>Attempt 1: openai gpt-4o, round 1, batch</h2>" in row
        assert "ticket_labels_rejects" in server.get("/")
        with pytest.raises(urllib.error.HTTPError):
            server.get("/row/ticket_labels?by=ticket_id&key=none")
        # the pages only read
        after = landed.files()
        assert {name: data for name, data in after.items() if "home/" not in name} == {
            name: data for name, data in before.items() if "home/" not in name
        }
        port = re.search(r":(\d+)/", server.line)[1]
        refused = landed.on_file("review", "--port", port, code=1)
        assert f"Port {port} cannot be had" in refused.stderr
        # Another browser is one command away, and needs no definitions.
        link = landed.cli("review", "--link", "--port", port).stdout.partition("#token=")[2].strip()
        assert json.loads(server.ask(SESSION_PATH, link.encode()))["secret"]
        with pytest.raises(urllib.error.HTTPError):
            server.ask(SESSION_PATH, link.encode())
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.process.stderr.read()
        refused = landed.cli("review", "--link", "--port", port, code=1)
        assert f"No page of yours is served on port {port}" in refused.stderr


def test_earlier_partitions_are_those_before_in_time_and_partitions_of_an_older_definition_are_left_out():
    days = dg.DailyPartitionsDefinition("01-01-2026", fmt="%d-%m-%Y")
    regions = dg.StaticPartitionsDefinition(["south", "north"])
    added = dg.DynamicPartitionsDefinition(name="added")
    kinds = {
        "daily": days,
        "regional": regions,
        "added": added,
        "both": dg.MultiPartitionsDefinition({"day": days, "region": regions}),
    }
    stored = {
        "daily": ["31-01-2026", "02-02-2026", "01-02-2026", "2026-01-05"],
        "regional": ["north", "south"],
        "both": ["01-02-2026|north", "31-01-2026|north", "30-01-2026|south", "29-01-2026", "28-01-2026|a|b"],
        "added": ["new", "newer", "and the newest"],
    }
    assets = [dg.AssetSpec(name, partitions_def=kind) for name, kind in kinds.items()]
    repository = dg.Definitions([*assets, dg.AssetSpec("whole")]).get_repository_def()
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("added", stored["added"])
        for number, (name, keys) in enumerate(stored.items()):
            for key in [*keys, keys[0]]:
                told = {"accuracy": number, "words": "many"}
                instance.report_runless_asset_event(dg.AssetMaterialization(name, partition=key, metadata=told))
        code = CodeLocation(Pointer("here"), repository, instance)

        def before(name, partition):
            return code.partitions_before(dg.AssetKey(name), partition)

        assert before("daily", "02-02-2026") == ["01-02-2026", "31-01-2026"]
        assert before("daily", "31-01-2026") == before("daily", "2026-01-05") == []
        assert before("both", "01-02-2026|north") == ["31-01-2026|north"]
        assert before("both", "29-01-2026") == before("both", "30-01-2026|south") == before("regional", "south") == []
        assert before("whole", "") == []

        def places(name):
            return list(code.stored_places(dg.AssetKey(name)))

        # The newest partition is the last. A partition of another definition is older than all others.
        assert places("daily") == ["2026-01-05", "31-01-2026", "01-02-2026", "02-02-2026"]
        assert places("regional") == ["south", "north"]
        assert places("both")[-2:] == ["31-01-2026|north", "01-02-2026|north"]
        assert places("added") == ["new", "newer", "and the newest"]
        assert code.figures_before(dg.AssetKey("both"), "01-02-2026|north") == {"accuracy": 2.0}
        assert code.figures_before(dg.AssetKey("both"), "31-01-2026|north") == {}
        assert code.figures_before(dg.AssetKey("whole"), "") == {}


def test_a_table_in_an_object_store_has_the_time_of_its_last_materialization():
    """Answers about it are kept until then: nothing else shows cheaply that its files have changed."""
    repository = dg.Definitions([dg.AssetSpec("far"), dg.AssetSpec("near")]).get_repository_def()
    places = {"far": "s3://tables/far.parquet", "near": "/tables/near.parquet"}
    with dg.DagsterInstance.ephemeral() as instance:

        def materialized_at():
            for name, place in places.items():
                event = dg.AssetMaterialization(name, metadata={"dagster/uri": place})
                instance.report_runless_asset_event(event)
            deployment = SimpleNamespace(code=CodeLocation(Pointer("here"), repository, instance))
            return {asset.key: asset.at for asset in _stored_assets(deployment)}

        first, second = materialized_at(), materialized_at()
    assert first["far"] < second["far"]
    assert first["near"] is second["near"] is None


EVALUATED = """
import pyarrow as pa

from dagster_llm_batch import evaluation_assets

regions = dg.MultiPartitionsDefinition({"day": daily, "region": dg.StaticPartitionsDefinition(["north", "south"])})


@dg.asset(partitions_def=regions)
def gold() -> pa.Table:
    return pa.table({"id": list(range(40)), "topic": ["bug"] * 40})


@dg.asset(partitions_def=regions)
def guess(context: dg.AssetExecutionContext) -> pa.Table:
    right = int(context.run.tags["right"])
    return pa.table({"id": list(range(40)), "topic": ["bug"] * right + ["billing"] * (40 - right)})


defs = dg.Definitions.merge(
    defs,
    dg.Definitions(
        [gold, guess, *evaluation_assets(
            name="quality", gold=gold, candidates=[guess], key="id", target="topic", partitions_def=regions
        )]
    ),
)
"""


@pytest.mark.slow
def test_an_evaluation_is_compared_with_the_newest_earlier_day_of_its_region_else_with_its_last_time(project, home):
    """Four runs of evaluations in a real instance, then the command."""
    project.submit()
    project.change('"plain": "no LLMBatchResource",', f'"io_manager": HiveParquetIOManager(root="{home}/tables"),')
    project.change("    Limits,\n", "    HiveParquetIOManager,\n    Limits,\n")
    project.file.write_text(project.file.read_text() + EVALUATED)
    definitions = project.module()["defs"]
    order = [(DAYS[2], "north", 30), (DAYS[0], "north", 20), (DAYS[1], "south", 40), (DAYS[0], "north", 10)]
    with dg.DagsterInstance.get() as instance:
        job = definitions.resolve_implicit_global_asset_job_def().get_subset(
            asset_selection={dg.AssetKey(name) for name in ("gold", "guess", "quality")}
        )
        for day, region, right in order:
            tags = {"right": str(right)}
            assert job.execute_in_process(instance=instance, partition_key=f"{day}|{region}", tags=tags).success
    with Server(project) as server:
        words = {
            (day, region): " ".join(
                re.sub(
                    "<[^>]+>", "", server.get(f"/evaluation/quality?in={day}%7C{region}").partition("<main")[2]
                ).split()
            )
            for day, region, _ in order
        }
    earlier = f"In {DAYS[0]}|north, the newest earlier partition with such an evaluation, 25% were right: +50.0"
    assert earlier in words[DAYS[2], "north"]
    assert "Last time, 50% were right: -25.0 percentage points since." in words[DAYS[0], "north"]
    alone = words[DAYS[1], "south"]
    assert "100% of the labels are right" in alone
    assert "Last time" not in alone
    assert "earlier" not in alone


@pytest.mark.slow
def test_a_row_is_shown_where_its_provider_has_no_key(landed, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with Server(landed, "ticket_labels") as server:
        server.get(server.path)
        row = server.get("/row/ticket_labels?by=ticket_id&key=all-1")
        assert "As it came back" in row
        assert "<h2>Attempt 1: openai gpt-4o, round 1, batch</h2>" in row


def test_what_was_said_is_exported_goes_with_an_erased_row_and_follows_a_new_name(project):
    project.land()
    assert (
        "There are no judgments of rows"
        in project.on_file("export", "ticket_labels", "--what", "judgments", "-o", "-", code=1).stderr
    )
    with project.engine() as engine:
        for key in ("all-0", "all-1"):
            said = {"answer": {"topic": "bug"}, "kind": "label", "annotator": "ada", "at": datetime.now(UTC)}
            engine.ledger.judgments.add(
                Judgment(form_id=key, namespace="test", dataset="ticket_labels", row_key=key, **said)
            )
    lines = project.on_file("export", "ticket_labels", "--what", "judgments", "-o", "-").stdout.splitlines()
    assert [(row["ticket_id"], row["topic"], row["annotator"]) for row in map(json.loads, lines)] == [
        ("all-0", "bug", "ada"),
        ("all-1", "bug", "ada"),
    ]
    project.on_file("erase", "ticket_labels", "--key", "all-1", "--delete", "--yes")
    with project.engine() as engine:
        assert [one.row_key for one in engine.ledger.judgments.read("test", "ticket_labels")] == ["all-0"]
        engine.ledger.submissions.rename_asset("test", "ticket_labels", "renamed")
        assert [one.row_key for one in engine.ledger.judgments.read("test", "renamed")] == ["all-0"]


@pytest.mark.slow
def test_rows_go_out_as_tasks_and_come_back_once_as_judgments_but_for_erased_ones(landed):
    path = landed.folder / "tasks.csv"
    refused = landed.on_file("export-tasks", "ticket_labels", "-o", str(landed.folder / "tasks.json"), code=2).stderr
    assert "Name the format by --format: label-studio, argilla, csv, parquet" in refused
    landed.on_file("export-tasks", "ticket_labels", "--of", "ticket_labels_batch", "-o", str(path), code=1)
    told = landed.json("export-tasks", "ticket_labels", "-o", str(path))
    assert (told["tasks"], told["format"]) == (3, "csv")
    assert "There is a file" in landed.on_file("export-tasks", "ticket_labels", "-o", str(path), code=2).stderr
    rows = list(csv.DictReader(path.open(newline="")))
    assert [(row["ticket_id"], row["llm_text"]) for row in rows] == [
        (f"all-{number}", f"Where is my invoice all {number}?") for number in range(3)
    ]
    assert "model_topic" not in rows[0]
    landed.on_file("erase", "ticket_labels", "--key", "all-1", "--delete", "--yes")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "topic": "bug"} for row in rows)
    nobody = landed.on_file("import-judgments", "ticket_labels", str(path), code=1).stderr
    assert "the annotator is missing. Fill llm_annotator, or give --annotator" in nobody
    for expected in ({"imported": 2, "there_already": 0}, {"imported": 0, "there_already": 2}):
        told = landed.json("import-judgments", "ticket_labels", str(path), "--annotator", "ada")
        assert told == {**expected, "older": 0, "erased": 1}
    with landed.engine() as engine:
        said = [
            (one.annotator, one.row_key, one.answer) for one in engine.ledger.judgments.read("test", "ticket_labels")
        ]
    assert said == [("ada", key, {"topic": "bug"}) for key in ("all-0", "all-2")]
    studio = landed.folder / "tasks.json"
    landed.on_file("export-tasks", "ticket_labels", "--format", "label-studio", "--predictions", "-o", str(studio))
    assert "<Choice" in (landed.folder / "tasks.json.xml").read_text()
    assert json.loads(studio.read_text())[0]["predictions"][0]["result"][0]["value"]["choices"][0] in ("billing", "bug")


def test_notes_on_a_prompt_are_exported_with_who_when_and_of_what(project):
    submission_id = project.land()
    nobody = project.on_file("export", "ticket_labels", "--what", "notes", "-o", "-", code=1).stderr
    assert "There are no notes on 'ticket_labels' yet" in nobody
    group = {"failures": "quality_failures", "partition": "", "gold": "bug", "label": "billing", "reason": None}
    with project.engine() as engine:
        engine.ledger.notes.add(submission_id, form_id="a", annotator="ada", group=group, text="Why?")
    [line] = project.on_file("export", "ticket_labels", "--what", "notes", "-o", "-").stdout.splitlines()
    told = json.loads(line)
    assert datetime.fromisoformat(told.pop("at")).tzinfo is not None
    assert told == {"annotator": "ada", "text": "Why?", **group, "submission": submission_id}
