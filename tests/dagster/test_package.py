"""The package's imports and settings: lazy, with the documented names, and with its secrets kept."""

import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from code_location import BATCH, LABELS, CodeLocation, failure, labeled

import dagster_llm_batch
from dagster_llm_batch import CommandBatchResource, LLMBatchResource, OpenAIBatchResource
from dagster_llm_batch.testing.emulator import DEFAULT_KEY

HEAVY = ["openai", "anthropic", "boto3", "google.genai", "sklearn", "scipy", "matplotlib", "polars", "pandas", "duckdb"]


def test_importing_the_package_imports_no_sdk_and_no_optional_library():
    script = f"import dagster_llm_batch, json, sys; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def test_the_exported_names_are_those_of_all_sorted_and_documented():
    exported = dagster_llm_batch.__all__
    assert exported == sorted(exported)
    assert all(getattr(dagster_llm_batch, name).__doc__ for name in exported)
    assert set(exported) <= set(dir(dagster_llm_batch))  # Dagster looks for components there
    modules = {name for name, value in vars(dagster_llm_batch).items() if type(value).__name__ == "module"}
    others = {*modules, "Any", "DagsterLibraryRegistry", "TYPE_CHECKING", "import_module"}
    kept = {name for name in vars(dagster_llm_batch) if not name.startswith("_")} - others
    assert kept | {"__version__"} == set(exported)
    with pytest.raises(AttributeError, match=r"module 'dagster_llm_batch' has no attribute 'nothing'"):
        _ = dagster_llm_batch.nothing


@pytest.mark.slow
def test_importing_the_package_or_its_engine_imports_no_dagster():
    script = "import dagster_llm_batch, dagster_llm_batch.engine.engine, sys; print('dagster' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


@pytest.mark.slow
def test_the_engine_keeps_payloads_in_a_local_folder_without_universal_pathlib(tmp_path):
    script = (
        "import dagster_llm_batch.engine.engine, sys; from dagster_llm_batch.storage.payloads import PayloadStore; "
        "store = PayloadStore(sys.argv[1]); print('upath' in sys.modules, store.exists('nothing.parquet'))"
    )
    found = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert found.stdout == "False False\n"


@pytest.mark.slow
def test_a_code_location_that_is_only_read_loads_no_engine():
    script = """
import importlib, sys
for room in ("assets", "components", "evaluation", "jobs", "resources", "sensors", "streams"):
    importlib.import_module(f"dagster_llm_batch.{room}")
    assert "dagster_llm_batch.engine.engine" not in sys.modules, room
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ledger_and_payloads_are_below_the_dagster_home_by_default(make, instance):
    make(*labeled()).submit()
    home = Path(instance.storage_directory()) / "llm_batch"
    assert (home / "ledger.sqlite").is_file()
    assert list((home / "payloads").rglob("*.requests.jsonl.lz4"))


def test_ledger_and_payloads_go_where_they_are_told(make, instance, tmp_path):
    location = make(
        *labeled(),
        ledger_url=f"sqlite:///{tmp_path / 'my.sqlite'}",
        payload_root=str(tmp_path / "files"),
    )
    assert location.land().success
    assert (tmp_path / "my.sqlite").is_file()
    assert list((tmp_path / "files").rglob("*.raw.jsonl.zst"))
    assert not (Path(instance.storage_directory()) / "llm_batch").exists()


def test_outside_of_dagster_they_are_where_runs_have_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as instance:
        home = Path(instance.storage_directory()) / "llm_batch"
    assert LLMBatchResource().places() == (f"sqlite:///{home / 'ledger.sqlite'}", str(home / "payloads"))
    monkeypatch.delenv("DAGSTER_HOME")
    assert LLMBatchResource().places()[1] == str(tmp_path / ".llm_batch" / "payloads")


def test_payloads_can_be_kept_in_memory_by_their_url(make, tmp_path):
    assert make(*labeled(), payload_root="memory://labels").land().success


def test_a_key_from_the_environment_is_shown_nowhere(make, monkeypatch, instance, emulator):
    monkeypatch.setenv("MY_LLM_KEY", DEFAULT_KEY)
    location = make(*labeled(), openai={"api_key": dg.EnvVar("MY_LLM_KEY")})
    result = location.land()
    assert result.success
    shown = [repr(location.resource), repr(location.defs.get_repository_def().get_top_level_resources())]
    shown += [record.event_log_entry.to_json() for record in instance.get_records_for_run(result.run_id).records]
    assert not [text for text in shown if DEFAULT_KEY in text]


def test_a_provider_that_is_not_configured_is_named_with_what_to_add(make, instance, emulator):
    location = make(*labeled(model="command/small"))
    assert "No provider 'command' is configured; configured: openai" in failure(location.submit())


def test_a_command_works_below_the_dagster_home(tmp_path):
    resource = LLMBatchResource(command=CommandBatchResource(command=["true", "{input}", "{output}"]))
    assert set(resource.make_providers(tmp_path)) == {"command"}
    assert list(tmp_path.iterdir()) == []  # files are created only when they are needed


def test_a_resource_of_another_kind_is_refused_in_a_run(emulator, instance):
    location = CodeLocation(emulator, instance, *labeled())
    defs = dg.Definitions(assets=labeled(), resources={"llm_batch": dg.ResourceDefinition.hardcoded_resource(3)})
    location.defs = defs
    assert "The resource 'llm_batch' is a int; it must be an LLMBatchResource" in failure(location.submit())


def test_a_number_of_downloads_that_is_none_is_refused_when_a_run_needs_it(emulator, instance):
    said = failure(CodeLocation(emulator, instance, *labeled(), transfers_at_once=0).submit())
    assert "transfers_at_once=0 is not allowed; it is at least 1" in said


def test_another_resource_key_serves_another_provider_account(emulator, instance):
    own = LLMBatchResource(
        openai=OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url), namespace="second"
    )
    location = CodeLocation(emulator, instance, *labeled(resource_key="second_llm"), resources={"second_llm": own})
    assert location.land().success
    skipped = location.tick().skip_message
    assert "this sensor handles nothing: its target lacks datasets of the resource 'llm_batch'" in skipped
    assert location.metadata(LABELS)["dagster/partition_row_count"] == 3
    assert location.metadata(BATCH)["llm_batch/requests"] == 3


@pytest.mark.parametrize("suffix", ["", "_batch", "_rejects"])
def test_the_three_assets_tell_their_role_kinds_and_group(make, suffix):
    location = make(*labeled(group_name="crm", owners=["team:ml"], tags={"tier": "1"}))
    spec = location.repository.asset_graph.get(dg.AssetKey(f"ticket_labels{suffix}"))
    assert spec.group_name == "crm"
    assert list(spec.owners) == ["team:ml"]
    assert spec.tags["llm_batch/role"] == {"": "labels", "_batch": "batch", "_rejects": "rejects"}[suffix]
    # a submission is not a table
    assert set(spec.kinds) == (set() if suffix == "_batch" else {"openai", "table"})
    assert spec.description
