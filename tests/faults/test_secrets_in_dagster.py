"""The same keys in a real Dagster instance, in all resources: they are in no database, log, file or message."""

import logging
import sqlite3
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import dagster_llm_batch.resources as all_resources
from dagster_llm_batch import (
    CommandBatchResource,
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    build_llm_batch_sensor,
    llm_batch_assets,
)
from dagster_llm_batch.providers.registry import SERVER_FOLDERS
from dagster_llm_batch.testing.emulator import Emulator, VendorLimits, WireFault
from tests.faults.test_secrets import (
    ACCESS_KEY,
    API_KEYS,
    MARK,
    SECRET_KEY,
    SESSION_TOKEN,
    TOKEN,
    Told,
    resources,
    secrets_of,
)
from tests.faults.vendor_workspace import rows, servers
from tests.faults.vendors import VENDORS

pytestmark = pytest.mark.slow
VARIABLES = {
    "T_OPENAI": API_KEYS["openai"],
    "T_ANTHROPIC": API_KEYS["anthropic"],
    "T_GEMINI": API_KEYS["gemini"],
    "T_OPENROUTER": API_KEYS["openrouter"],
    **{f"T_{name.upper()}": API_KEYS[name] for name in SERVER_FOLDERS},
    "T_TOKEN": TOKEN,
    "T_ACCESS": ACCESS_KEY,
    "T_SECRET": SECRET_KEY,
    "T_SESSION": SESSION_TOKEN,
    "T_COMMAND": f"{MARK}-of-the-command",
}
FIELDS = {
    "openai": {"api_key": "T_OPENAI"},
    "anthropic": {"api_key": "T_ANTHROPIC"},
    "gemini": {"api_key": "T_GEMINI"},
    "openrouter": {"api_key": "T_OPENROUTER"},
    **{name: {"api_key": f"T_{name.upper()}"} for name in SERVER_FOLDERS},
    "vertex": {"access_token": "T_TOKEN"},
    "bedrock": {
        "aws_access_key_id": "T_ACCESS",
        "aws_secret_access_key": "T_SECRET",
        "aws_session_token": "T_SESSION",
    },
}


def tickets(_context: Any) -> Any:
    return rows()


def definitions(emulator: Emulator, folder: Path) -> dg.Definitions:
    """Datasets, one for each provider, whose credentials are environment variables."""
    configured: dict[str, Any] = {}
    for name, resource in resources(emulator, folder).items():
        variables = {field: dg.EnvVar(variable) for field, variable in FIELDS[name].items()}
        given = {field: value for field, value in vars(resource).items() if field in type(resource).model_fields}
        configured[name] = type(resource)(**{**given, **variables})
    named = {name: configured.pop(name) for name in SERVER_FOLDERS}
    script = str(Path(__file__).with_name("faulty_command.py"))
    configured["command"] = CommandBatchResource(command=[sys.executable, script, "{input}", "{output}", str(folder)])
    assets = [
        asset
        for vendor in VENDORS
        for asset in llm_batch_assets(
            name=f"{vendor.name}_labels",
            rows=tickets,
            key="id",
            prompt=Prompt(user="{{ text }}"),
            model=f"{vendor.name}/{vendor.model}",
            params=vendor.params,
        )
    ]
    return dg.Definitions(
        assets=assets,
        sensors=[build_llm_batch_sensor()],
        resources={"llm_batch": LLMBatchResource(providers=named, **configured)},
    )


def everything(home: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file of the instance, and the uncompressed values of its databases."""
    for path in home.rglob("*"):
        if not path.is_file():
            continue
        yield str(path), path.read_bytes()
        if path.suffix != ".db":
            continue
        with closing(sqlite3.connect(path)) as connection:
            for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in connection.execute(f'SELECT * FROM "{table}"'):
                    for value in row:
                        with suppress(zlib.error, TypeError):
                            yield f"{path}:{table}", zlib.decompress(value)


def test_no_credential_field_of_a_provider_is_left_out() -> None:
    """A new field appears here, and needs its own test."""
    elsewhere = {"service_account_json": "test_secrets.py", "token": "tests/providers/test_ray.py"}
    told = {
        field
        for one in vars(all_resources).values()
        if isinstance(one, type) and issubclass(one, dg.ConfigurableResource)
        for field, info in one.model_fields.items()
        if "EnvVar" in (info.description or "")
    }
    hidden = {
        field
        for one in vars(all_resources).values()
        if isinstance(one, type) and issubclass(one, dg.ConfigurableResource)
        for field, info in one.model_fields.items()
        if not info.repr
    }
    # The first two hold secrets sometimes. A function that makes tokens is not a text
    # (tests/providers/test_servers.py).
    assert hidden - told == {"ledger_url", "runtime_env", "token_provider"}
    assert told <= hidden
    assert told - elsewhere.keys() == {field for fields in FIELDS.values() for field in fields}


@pytest.mark.parametrize("form", ["postgresql://me:{}@127.0.0.1:1/db", "postgresql://me@127.0.0.1:1/db?password={}"])
def test_dagster_holds_no_password_of_the_ledger(
    tmp_path: Path, caplog: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("T_LEDGER", form.format(MARK))
    home = tmp_path / "home"
    home.mkdir()
    assets = llm_batch_assets(
        name="labels", rows=tickets, key="id", prompt=Prompt(user="{{ text }}"), model="openai/gpt-4o"
    )
    resource = LLMBatchResource(
        ledger_url=dg.EnvVar("T_LEDGER"), payload_root=str(tmp_path / "files"), openai=OpenAIBatchResource(api_key="k")
    )
    with dg.instance_for_test(temp_dir=str(home)) as instance:
        result = dg.materialize(
            assets,
            selection=["labels_batch"],
            resources={"llm_batch": resource},
            instance=instance,
            raise_on_error=False,
        )
        told = Told(tmp_path / "files", caplog, capfd)
        events = [str(event) for event in result.all_events]
        assert not result.success
        assert any("The ledger at postgresql://me" in event for event in events)
        told.assert_clean(*events)
        assert [name for name, data in everything(home) if MARK.encode() in data] == []


def test_dagster_holds_no_credential_of_any_resource(
    tmp_path: Path, caplog: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts a real Dagster, whose databases and answers it searches."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, logger="botocore")
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (work / "faults").write_text("")
    keys = dict.fromkeys(VARIABLES.values(), "account")
    with (
        servers() as running,
        Emulator(
            keys=keys, s3_url=running.s3_url, gcs_url=running.gcs_url, limits=VendorLimits(bedrock_min_records=1)
        ) as emulator,
        dg.instance_for_test(temp_dir=str(home)) as instance,
    ):
        defs = definitions(emulator, work)
        repository = defs.get_repository_def()
        told = Told(work, caplog, capfd)

        def run(*names: str) -> set[str]:
            """Run these assets, and return the failed steps."""
            job = defs.resolve_implicit_global_asset_job_def()
            job = job.get_subset(asset_selection={dg.AssetKey(name) for name in names})
            result = job.execute_in_process(instance=instance, raise_on_error=False)
            told.said += [str(event) for event in result.all_events]
            return {event.step_key for event in result.all_events if event.is_step_failure}

        def tick() -> None:
            with dg.build_sensor_context(
                instance=instance, repository_def=repository, resources=defs.resources, sensor_name="llm_batch_sensor"
            ) as context:
                told.said.append(str(repository.get_sensor_def("llm_batch_sensor").evaluate_tick(context)))

        def echo(status: int) -> None:
            """Answer every call of every vendor so, including the received keys."""
            for vendor in VENDORS[:-1]:
                said = f"You sent {', '.join(secrets_of(vendor.name))}."
                fault = {"kind": "status", "status": status, "message": said, "times": None}
                emulator.inject(*(WireFault(route=route, **fault) for route in vendor.calls.values()))

        submissions = [f"{vendor.name}_labels_batch" for vendor in VENDORS]
        labels = [f"{vendor.name}_labels{end}" for vendor in VENDORS for end in ("", "_rejects")]
        echo(401)
        assert run(*submissions) == {name for name in submissions if name != "command_labels_batch"}
        emulator.clear_faults()
        assert run(*submissions) == set()
        emulator.settle()
        echo(500)
        tick()
        run(*labels)
        emulator.clear_faults()
        tick()
        assert run(*labels) == set()
        told.assert_clean()
        assert {key for call in emulator.books.calls if (key := call.key)} >= {*API_KEYS.values(), TOKEN, ACCESS_KEY}
        found = sorted({name for name, data in everything(home) if MARK.encode() in data})
    assert found == []
    assert list(home.rglob("compute_logs/*.err"))  # they are among the searched files
