"""The platform of `docs/how-to/embed.md`, run as the page describes it.

PostgreSQL, S3 and Cloud Storage, two code locations in separate namespaces, DuckDB and Delta tables, OpenTelemetry.
"""

import importlib
import os
import re
import sys
from pathlib import Path

import dagster as dg
import duckdb
import fsspec
import pytest
from deltalake import DeltaTable
from markdown_it import MarkdownIt

from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, local_gcs, local_s3
from tests.crash.postgres import postgres

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "embed.md"
FILES = ("shared_llm", "support_location", "moderation_location")
SUPPORT = ("support/ticket_labels", "support/ticket_labels_rejects")
MODERATION = ("moderation/comment_labels", "moderation/comment_labels_rejects")
DAY = "2026-01-05"


class Location:
    """One code location, as in a separate process."""

    def __init__(self, module, instance):
        self.defs = module.defs
        self.instance = instance
        self.repository = module.defs.get_repository_def()
        [self.sensor] = self.repository.sensor_defs

    def run(self, *names, partition):
        keys = {dg.AssetKey.from_user_string(name) for name in names}
        job = self.defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=keys)
        return job.execute_in_process(instance=self.instance, partition_key=partition)

    def tick(self):
        with dg.build_sensor_context(
            instance=self.instance,
            repository_def=self.repository,
            resources=self.defs.resources,
            sensor_name=self.sensor.name,
        ) as context:
            return self.sensor.evaluate_tick(context)

    def launch(self, request):
        return self.run(*(key.to_user_string() for key in request.asset_selection), partition=request.partition_key)


@pytest.fixture(scope="module")
def servers():
    """Yield a function that makes empty PostgreSQL databases, and the addresses of object stores by scheme."""
    # Slow imports.
    import gcsfs
    import s3fs

    for filesystem in (s3fs.S3FileSystem, gcsfs.GCSFileSystem):
        filesystem.clear_instance_cache()  # it caches clients by their settings, without the address
    with postgres() as empty_database, local_s3("platform") as s3_url, local_gcs("platform") as gcs_url:
        yield empty_database, {"s3": s3_url, "gs": gcs_url}


@pytest.fixture(params=["s3", "gs"])
def platform(request, servers, tmp_path, monkeypatch):
    """Write the guide's files, and set up the rest of a platform. Yield the folder, the emulator and the ledger URL."""
    empty_database, stores = servers
    for token in MarkdownIt().parse(GUIDE.read_text(encoding="utf-8")):
        if token.type == "fence" and (title := re.search(r'^python title="(\w+)\.py"', token.info)):
            (tmp_path / f"{title[1]}.py").write_text(token.content, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in FILES:
        sys.modules.pop(name, None)
    with Emulator() as emulator:
        environment = {
            "LLM_LEDGER_URL": empty_database(),
            "LLM_PAYLOAD_ROOT": f"{request.param}://platform/{tmp_path.name}",
            "OPENAI_API_KEY": DEFAULT_KEY,
            "OPENAI_BASE_URL": emulator.openai_base_url,
            "WAREHOUSE_DUCKDB": str(tmp_path / "warehouse.duckdb"),
            "LAKE_ROOT": str(tmp_path / "lake"),
            "STORAGE_EMULATOR_HOST": stores["gs"],
            "AWS_ENDPOINT_URL": stores["s3"],
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})  # like FSSPEC_GS_TOKEN=anon in the environment
        yield tmp_path, emulator, environment["LLM_LEDGER_URL"]
    for name in FILES:
        sys.modules.pop(name, None)


@pytest.fixture
def locations(platform):
    with dg.DagsterInstance.ephemeral() as instance:
        yield [Location(importlib.import_module(name), instance) for name in FILES[1:]]


def test_two_code_locations_share_ledger_and_bucket_and_each_lands_only_its_own(platform, locations):
    folder, emulator, ledger_url = platform
    support, moderation = locations
    support.run("support/tickets", "support/ticket_labels_batch", partition=DAY)
    moderation.run("moderation/comments", "moderation/comment_labels_batch", partition="de")
    emulator.settle()
    asked = len(emulator.books.calls)
    [ours] = moderation.tick().run_requests
    assert ([key.to_user_string() for key in ours.asset_selection], ours.partition_key) == (list(MODERATION), "de")
    polled = [call.path for call in emulator.books.calls[asked:] if call.path.startswith("/v1/batches/")]
    assert len(polled) == 1  # the other location's batch is not even polled
    assert moderation.launch(ours).success
    assert moderation.tick().skip_message == "no batches in flight"
    [theirs] = support.tick().run_requests
    assert ([key.to_user_string() for key in theirs.asset_selection], theirs.partition_key) == (list(SUPPORT), DAY)
    assert support.launch(theirs).success
    assert support.tick().skip_message == "no batches in flight"
    assert emulator.books.creates_seen == 2
    assert emulator.books.billed_twice() == {}

    ledger = Ledger(ledger_url)
    by_namespace = {
        name: [s.asset for s in ledger.submissions.list_all(name)] for name in ("support", "moderation", "default")
    }
    ledger.close()
    assert by_namespace == {"support": [SUPPORT[0]], "moderation": [MODERATION[0]], "default": []}
    stored = fsspec.url_to_fs(os.environ["LLM_PAYLOAD_ROOT"])[0].find(f"platform/{folder.name}")
    assert sum(name.endswith(".raw.jsonl.zst") for name in stored) == 2
    with duckdb.connect(str(folder / "warehouse.duckdb"), read_only=True) as warehouse:
        rows = warehouse.sql("select ticket_id, llm_outcome, day from support.ticket_labels order by 1").fetchall()
    expected = [(f"{DAY}-{n}", "succeeded", DAY) for n in range(3)]
    assert [(key, outcome, f"{day:%Y-%m-%d}") for key, outcome, day in rows] == expected
    labels = DeltaTable(str(folder / "lake" / "moderation" / "comment_labels")).to_pyarrow_table().to_pylist()
    assert sorted(row["comment_id"] for row in labels) == ["de-0", "de-1", "de-2"]
    assert {row["verdict"] for row in labels} <= {"fine", "spam", "abuse"}


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["s3"], indirect=True)
def test_partitions_of_a_delta_table_replace_themselves_and_leave_the_others(platform, locations):
    folder, emulator, _ = platform
    moderation = locations[1]
    for shop in ("de", "fr", "fr"):
        moderation.run("moderation/comments", "moderation/comment_labels_batch", partition=shop)
        emulator.settle()
        moderation.run(*MODERATION, partition=shop)
    table = DeltaTable(str(folder / "lake" / "moderation" / "comment_labels"))
    assert table.metadata().partition_columns == ["shop"]
    rows = table.to_pyarrow_table().to_pylist()
    assert sorted(row["comment_id"] for row in rows) == [f"{shop}-{n}" for shop in ("de", "fr") for n in range(3)]
    assert emulator.books.creates_seen == 2  # the third run did not send answered requests
