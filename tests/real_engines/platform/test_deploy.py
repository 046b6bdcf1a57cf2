"""docs/deploy, run without containers: the processes of compose.yaml with its commands and its environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import kubernetes.client
import pytest
import s3fs
import yaml
from compose_services import (
    DEPLOY,
    RUNS,
    Deployment,
    filled_in,
    launch,
    load_services,
    materializations,
    merge,
    outside,
)
from dagster._config import process_config, resolve_to_config_type
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import UserDefinedDagsterK8sConfig
from dagster_k8s.models import k8s_model_from_dict, k8s_snake_case_dict

from tests.dagster.dagster_dev import free_port, until

SECOND = yaml.safe_load((DEPLOY / "second-location.yaml").read_text(encoding="utf-8"))
HELM = yaml.safe_load((DEPLOY / "helm-values.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[bytes]]]:
    """Give the address of a webhook, and its posts."""
    posted: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", posted
        server.shutdown()


def add_second_location(deployment: Deployment) -> None:
    """Add `sales` as step 4 of the page makes it."""
    first = (deployment.app / "definitions.py").read_text(encoding="utf-8")
    second = first.replace('namespace="support"', 'namespace="sales"').replace('"ticket_labels"', '"sales_labels"')
    (deployment.app / "sales.py").write_text(second, encoding="utf-8")
    port = str(free_port())
    workspace = SECOND["configs"]["sales"]["content"].replace("host: sales", "host: 127.0.0.1").replace("4000", port)
    (deployment.app / "sales.yaml").write_text(workspace, encoding="utf-8")
    deployment.services = merge(deployment.services, SECOND["services"])
    served = deployment.services["sales"]["command"]
    deployment.services["sales"]["command"] = [port if word == "4000" else word for word in served]


@pytest.fixture
def deployment(tmp_path: Path, webhook: tuple[str, list[bytes]]) -> Iterator[Deployment]:
    """Give the surroundings of the processes: a bucket, a provider, a PostgreSQL server, and `.env`, filled in."""
    with outside(tmp_path) as variables:
        variables |= {"ALERT_WEBHOOK_URL": webhook[0]}
        assert all(variables.values())
        made = Deployment(tmp_path, {**variables, "SALES_OPENAI_API_KEY": variables["OPENAI_API_KEY"]})
        add_second_location(made)
        with made.postgres():
            yield made


def back_up_and_restore(deployment: Deployment) -> None:
    """Run the page's two commands for the ledger."""
    dump = str(deployment.folder / "ledger.dump")
    deployment.administrator("pg_dump", "-Fc", "-f", dump, "llm_batch")
    deployment.administrator("pg_restore", "--clean", "--if-exists", "-d", "llm_batch", dump)


def test_the_deployment_comes_up_and_labels_arrive_in_the_bucket(
    deployment: Deployment, webhook: tuple[str, list[bytes]]
) -> None:
    """It takes minutes: six processes load a Dagster each, and its daemon looks every half minute."""
    with deployment.running("sales") as dagster:
        launch(dagster, "ticket_labels_batch")
        # The sensor polls, and asks for the run that materializes the labels.
        until("labels", lambda: materializations(dagster, "ticket_labels"), deployment.folder / "daemon.log")
        assert {run["status"] for run in dagster.ask(RUNS)["runsOrError"]["results"]} <= {"SUCCESS", "STARTED"}
        bucket = s3fs.S3FileSystem(
            key="x", secret="x", endpoint_url=deployment.variables["AWS_ENDPOINT_URL"], use_listings_cache=False
        )
        assert [name for name in bucket.find("bucket/llm-batch/tables/ticket_labels") if name.endswith(".parquet")]
        assert bucket.find("bucket/llm-batch/payloads")

        # The page's later steps: doctor and smoke in the code location's container, and the upgrade again.
        assert ", 0 problems." in deployment.run("code", "dagster-llm-batch", "doctor", "-f", "definitions.py")
        smoke = ("smoke", "openai", "--max-usd", "0.05", "--poll-seconds", "1", "-f", "definitions.py")
        deployment.run("code", "dagster-llm-batch", *smoke)
        deployment.run("code", "python", "-c", "import definitions; definitions.post_alert('a check failed')")
        assert webhook[1] == [b'{"text": "a check failed"}']
        shown = deployment.run("ledger", "dagster-llm-batch", "list", "--all", "--namespace", "support", "--json")
        back_up_and_restore(deployment)
        deployment.run("ledger")
        deployment.run("instance")
        again = deployment.run("ledger", "dagster-llm-batch", "list", "--all", "--namespace", "support", "--json")
        assert json.loads(again)["submissions"] == json.loads(shown)["submissions"] != []
        # The role of runs has its rights on the restored tables.
        deployment.run("code", "dagster-llm-batch", "doctor", "-f", "definitions.py")


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs Docker Compose, without Docker")
def test_compose_itself_merges_the_files_into_the_services_of_these_tests(tmp_path: Path) -> None:
    files = ("compose.yaml", "minio.yaml", "second-location.yaml")
    text = "".join((DEPLOY / name).read_text(encoding="utf-8") for name in files)
    variables = {name: f"{name.lower()}1" for name in re.findall(r"\$\{(\w+)", text)} | {"WEB_PORT": "3000"}
    # A file `.env` of someone who tries the deployment here must not be read.
    (tmp_path / "empty.env").touch()
    options = ["--env-file", str(tmp_path / "empty.env"), *(word for name in files for word in ("-f", name))]
    done = subprocess.run(
        ["docker-compose", *options, "config", "--format", "json"],
        cwd=DEPLOY,
        env={**os.environ, **variables},
        capture_output=True,
        check=True,
    )
    ours = load_services(DEPLOY / files[0])
    for name in files[1:]:
        ours = merge(ours, load_services(DEPLOY / name))
    theirs = json.loads(done.stdout)["services"]
    assert theirs.keys() == ours.keys()
    for name, service in theirs.items():
        assert service.get("command") == ours[name].get("command")
        filled = {key: filled_in(value, variables) for key, value in ours[name]["environment"].items()}
        assert service["environment"] == filled
        conditions = {other: each["condition"] for other, each in service.get("depends_on", {}).items()}
        expected = {other: each["condition"] for other, each in ours[name].get("depends_on", {}).items()}
        assert conditions == expected


def test_the_pods_of_the_values_are_as_kubernetes_and_the_launcher_want_them() -> None:
    launcher = HELM["runLauncher"]["config"]["k8sRunLauncher"]
    UserDefinedDagsterK8sConfig.from_dict(
        {
            re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", name): value
            for name, value in launcher["runK8sConfig"].items()
        }
    )
    [code] = HELM["dagster-user-deployments"]["deployments"]
    for kind, given in (
        (kubernetes.client.V1PodSecurityContext, code["podSecurityContext"]),
        (kubernetes.client.V1SecurityContext, code["securityContext"]),
        (kubernetes.client.V1ResourceRequirements, code["resources"]),
    ):
        assert k8s_model_from_dict(kind, k8s_snake_case_dict(kind, given))
    config = {
        "job_namespace": "dagster",
        "service_account_name": HELM["serviceAccount"]["name"],
        "instance_config_map": "dagster-instance",
        "dagster_home": "/opt/dagster/dagster_home",
        "image_pull_policy": launcher["imagePullPolicy"],
    }
    result = process_config(resolve_to_config_type(K8sRunLauncher.config_type()), config)
    assert result.success, result.errors


def test_the_job_that_upgrades_the_ledger_is_a_job_of_kubernetes() -> None:
    job = yaml.safe_load((DEPLOY / "upgrade-job.yaml").read_text(encoding="utf-8"))
    kind = kubernetes.client.V1Job
    made = k8s_model_from_dict(kind, k8s_snake_case_dict(kind, job))
    [container] = made.spec.template.spec.containers
    assert container.command == load_services(DEPLOY / "compose.yaml")["ledger"]["command"]
    with pytest.raises(Exception, match="Unexpected keys"):
        k8s_model_from_dict(kind, k8s_snake_case_dict(kind, {**job, "specs": {}}))
