"""The files in docs/deploy fit each other, the package, and the page that leads through them."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
import yaml
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.instance.config import dagster_instance_config_schema
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.monitoring.run_monitoring import check_run_timeout

from dagster_llm_batch.testing.emulator import local_s3

DEPLOY = Path(__file__).resolve().parents[1] / "docs" / "deploy"
PAGE = DEPLOY.parent / "how-to" / "deploy.md"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
MORE = {
    name: yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8")) for name in ("minio.yaml", "second-location.yaml")
}
HELM = yaml.safe_load((DEPLOY / "helm-values.yaml").read_text(encoding="utf-8"))
# https://github.com/compose-spec/compose-spec/blob/main/05-services.md: of its attributes those that are used
_SERVICE = {
    "image": str,
    "restart": str,
    "environment": dict,
    "volumes": list,
    "healthcheck": dict,
    "command": list,
    "depends_on": dict,
    "ports": list,
    "extends": dict,
    "configs": list,
}
# The keys of the values.yaml of Dagster's chart that are used. Dots lead into mappings; an item of a list has the name
# of its list.
_HELM = {
    "serviceAccount.create": bool,
    "serviceAccount.name": str,
    "serviceAccount.annotations": dict,
    "postgresql.enabled": bool,
    "postgresql.postgresqlHost": str,
    "postgresql.postgresqlUsername": str,
    "postgresql.postgresqlDatabase": str,
    "postgresql.postgresqlScheme": str,
    "postgresql.service.port": int,
    "global.postgresqlSecretName": str,
    "global.serviceAccountName": str,
    "generatePostgresqlPasswordSecret": bool,
    "dagster-user-deployments.enabled": bool,
    "dagster-user-deployments.enableSubchart": bool,
    "dagster-user-deployments.deployments.name": str,
    "dagster-user-deployments.deployments.image.repository": str,
    "dagster-user-deployments.deployments.image.tag": str,
    "dagster-user-deployments.deployments.image.pullPolicy": str,
    "dagster-user-deployments.deployments.codeServerArgs": list,
    "dagster-user-deployments.deployments.port": int,
    "dagster-user-deployments.deployments.includeConfigInLaunchedRuns.enabled": bool,
    "dagster-user-deployments.deployments.envSecrets.name": str,
    "dagster-user-deployments.deployments.podSecurityContext": dict,
    "dagster-user-deployments.deployments.securityContext": dict,
    "dagster-user-deployments.deployments.resources": dict,
    "runLauncher.type": str,
    "runLauncher.config.k8sRunLauncher.imagePullPolicy": str,
    "runLauncher.config.k8sRunLauncher.runK8sConfig": dict,
    "dagsterDaemon.enabled": bool,
    "dagsterDaemon.runCoordinator.enabled": bool,
    "dagsterDaemon.runCoordinator.type": str,
    "dagsterDaemon.runCoordinator.config.queuedRunCoordinator.maxConcurrentRuns": int,
    "dagsterDaemon.runMonitoring.enabled": bool,
    "concurrency.enabled": bool,
    "concurrency.pools.defaultLimit": int,
    "concurrency.pools.granularity": str,
    "telemetry.enabled": bool,
}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values below the chart's keys, each with its path."""
    if path in _HELM:
        yield path, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}".strip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path)
    else:
        yield path, value


def test_the_page_names_every_file_and_no_other() -> None:
    page = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"\(\.\./deploy/([^)]+)\)", page))
    assert named == {path.name for path in DEPLOY.iterdir() if path.is_file()}


def test_the_image_is_built_in_two_stages_from_files_that_are_there_and_runs_as_no_root() -> None:
    assert len(re.findall(r"^FROM \S+", DOCKERFILE, re.MULTILINE)) == 2
    *_, user = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)
    assert int(user) > 0
    copied = [
        name for words in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for name in words.split()
    ]
    # The folder of wheels is optional.
    assert [name for name in copied if "*" not in name and not (DEPLOY / name).is_file()] == []
    [start] = re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)
    assert yaml.safe_load(start) == COMPOSE["services"]["code"]["command"]
    [code] = HELM["dagster-user-deployments"]["deployments"]
    assert code["podSecurityContext"] == {"runAsNonRoot": True, "runAsUser": int(user)}


def test_services_have_attributes_of_compose_and_run_commands_of_the_image() -> None:
    scripts = {script.name for script in entry_points(group="console_scripts")}
    for name, service in COMPOSE["services"].items():
        assert {key: type(value) for key, value in service.items()}.items() <= _SERVICE.items(), name
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
        assert {volume.split(":")[0] for volume in service["volumes"] if not volume.startswith(".")} <= {
            *COMPOSE["volumes"]
        }
        assert all((DEPLOY / volume.split(":")[0]).is_file() for volume in service["volumes"] if volume.startswith("."))
        if name != "postgres":
            assert service["command"][0] in scripts


def test_the_environment_of_compose_is_that_of_the_example_file() -> None:
    used = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    text = (DEPLOY / "env.example").read_text(encoding="utf-8")
    example = re.findall(r"^(\w+)=", text, re.MULTILINE)
    assert used == set(example)
    assert len(example) == len(used)
    # Further files are switched on by a line, and read the same variables, or others that are commented out.
    optional = re.findall(r"^# (\w+)=", text, re.MULTILINE)
    read = {variable for name in MORE for variable in re.findall(r"\$\{(\w+)", (DEPLOY / name).read_text("utf-8"))}
    assert read - used | {"COMPOSE_FILE"} == set(optional)
    [files] = re.findall(r"^# COMPOSE_FILE=(.+)$", text, re.MULTILINE)
    assert files.split(":") == ["compose.yaml", *MORE]


def test_further_files_of_compose_add_to_its_services_and_start_after_those_that_they_need() -> None:
    scripts = {script.name for script in entry_points(group="console_scripts")} | {"python"}
    for name, more in MORE.items():
        assert set(more) <= {"services", "volumes", "configs"}, name
        both = {*COMPOSE["services"], *more["services"]}
        for service, given in more["services"].items():
            assert {key: type(value) for key, value in given.items()}.items() <= _SERVICE.items(), (name, service)
            assert set(given.get("depends_on", {})) <= both
            extended = given.get("extends", {"file": "compose.yaml", "service": service})
            if service not in COMPOSE["services"] and "image" not in given:
                assert extended["file"] == "compose.yaml"
                assert extended["service"] in COMPOSE["services"]
            if "image" not in given and "command" in given:
                assert given["command"][0] in scripts
            assert {one["source"] for one in given.get("configs", ())} <= set(more.get("configs", {}))
            assert {volume.split(":")[0] for volume in given.get("volumes", ())} <= set(more.get("volumes", {}))


def test_the_second_location_is_served_like_the_first_and_is_in_the_workspace_of_all_that_read_one() -> None:
    more = MORE["second-location.yaml"]
    *served, file = more["services"]["sales"]["command"]
    assert served == COMPOSE["services"]["code"]["command"][:-1]
    # The image has each Python file that is beside definitions.py.
    assert Path(file).suffix == ".py"
    assert re.search(r"^COPY .*\*\.py", DOCKERFILE, re.MULTILINE)
    readers = [name for name, service in COMPOSE["services"].items() if "workspace.yaml" in service.get("command", ())]
    assert len(readers) == 2
    for name in readers:
        given = more["services"][name]
        [mounted] = given["configs"]
        assert given["command"] == [*COMPOSE["services"][name]["command"], "-w", mounted["target"]]
    [entry] = yaml.safe_load(more["configs"]["sales"]["content"])["load_from"]
    assert entry["grpc_server"]["host"] in more["services"]
    assert str(entry["grpc_server"]["port"]) == COMPOSE["services"]["code"]["environment"]["CODE_PORT"]


def test_the_bucket_of_the_local_server_is_that_of_the_payloads() -> None:
    import s3fs

    service = MORE["minio.yaml"]["services"]["bucket"]
    assert COMPOSE["services"][service["extends"]["service"]]["environment"]["LLM_PAYLOAD_ROOT"]
    _, *arguments = service["command"]
    with local_s3("another") as url:
        keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "a")
        given = {"AWS_ENDPOINT_URL": url, "LLM_PAYLOAD_ROOT": "s3://of-compose/llm-batch/payloads", **keys}
        # A second start finds the bucket, and ends as well.
        for _ in range(2):
            subprocess.run([sys.executable, *arguments], env={**os.environ, **given}, check=True)
        buckets = s3fs.S3FileSystem(key="a", secret="a", endpoint_url=url).ls("")
    # The server of this process may have buckets of other tests.
    assert "of-compose" in buckets


def test_an_empty_address_of_an_s3_server_is_that_of_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="a")
    assert client.meta.endpoint_url.endswith("amazonaws.com")


def test_what_the_instance_the_workspace_and_the_definitions_read_is_in_the_environment() -> None:
    read = set()
    for name in ("dagster.yaml", "workspace.yaml"):
        read |= set(re.findall(r"\{env: (\w+)\}", (DEPLOY / name).read_text(encoding="utf-8")))
    source = (DEPLOY / "definitions.py").read_text(encoding="utf-8")
    read |= set(re.findall(r'(?:EnvVar\(|environ\[|environ\.get\()"(\w+)"', source))
    given = set(COMPOSE["services"]["code"]["environment"])
    # The files here do not read the variables of boto, and of Dagster itself.
    assert read == {name for name in given if not name.startswith(("AWS_", "DAGSTER_GRPC_"))}


def test_the_ledgers_owner_is_known_to_no_process_that_stays() -> None:
    holders = {
        name
        for name, service in COMPOSE["services"].items()
        if "llm_batch_owner" in str(service) or "LEDGER_OWNER" in str(service)
    }
    assert holders == {"postgres", "ledger"}


def test_the_instance_file_is_one_that_dagster_reads() -> None:
    config = yaml.safe_load((DEPLOY / "dagster.yaml").read_text(encoding="utf-8"))
    assert set(config) <= set(dagster_instance_config_schema())
    assert config["concurrency"]["pools"]["default_limit"] == HELM["concurrency"]["pools"]["defaultLimit"]


def test_a_run_that_dies_with_its_container_does_not_keep_its_place_for_ever() -> None:
    """The launcher of Compose does not see that a worker is gone, and Kubernetes does: only a time ends such a run."""
    config = yaml.safe_load((DEPLOY / "dagster.yaml").read_text(encoding="utf-8"))
    assert config["run_monitoring"]["enabled"]
    assert config["run_monitoring"]["max_runtime_seconds"] > 0
    assert "run_launcher" not in config
    assert not DefaultRunLauncher().supports_check_run_worker_health
    assert HELM["dagsterDaemon"]["runMonitoring"]["enabled"]
    with dg.instance_for_test(overrides={"run_monitoring": config["run_monitoring"]}) as instance:
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_max_runtime_seconds == config["run_monitoring"]["max_runtime_seconds"]


def test_the_values_are_of_the_charts_keys_and_types() -> None:
    found = dict(leaves(HELM))
    assert {path: type(value) for path, value in found.items()}.items() <= _HELM.items()
    assert set(_HELM) == set(found)


def test_a_run_with_the_tag_of_the_comment_may_take_longer_than_the_limit() -> None:
    [(name, value)] = re.findall(r"`([\w/]+): \"(\d+)\"`", (DEPLOY / "dagster.yaml").read_text(encoding="utf-8"))
    log = logging.getLogger(__name__)
    with dg.instance_for_test() as instance:
        for tags, ended in (({}, True), ({name: value}, False)):
            run = create_run_for_test(instance, tags=tags, status=dg.DagsterRunStatus.STARTING)
            instance.handle_new_event(
                dg.EventLogEntry(
                    error_info=None,
                    level=logging.INFO,
                    user_message="",
                    run_id=run.run_id,
                    timestamp=1.0,
                    dagster_event=DagsterEvent(DagsterEventType.RUN_START.value, job_name=run.job_name),
                )
            )
            [record] = instance.get_run_records(dg.RunsFilter(run_ids=[run.run_id]))
            assert record.start_time == 1.0
            check_run_timeout(instance, record, log, 21_600.0)
            assert (instance.get_run_by_id(run.run_id).status is not dg.DagsterRunStatus.STARTED) == ended


@pytest.mark.filterwarnings("ignore")
def test_the_definitions_load_with_a_sensor_that_alerts_where_a_webhook_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for url, count in (("", 1), ("http://127.0.0.1:9/", 2)):
        monkeypatch.setenv("ALERT_WEBHOOK_URL", url)
        spec = spec_from_file_location("deployed_definitions", DEPLOY / "definitions.py")
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "deployed_definitions", module)
        spec.loader.exec_module(module)
        dg.Definitions.validate_loadable(module.defs)
        assert len(list(module.defs.sensors)) == count
