"""docs/deploy, run without containers: the processes of compose.yaml with its commands and its environment.

Only the container network is replaced: the names of hosts, and ports that may be taken here. PostgreSQL requires the
passwords; the bucket is a real S3 server, and OpenAI is the emulator.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import kubernetes.client
import pytest
import s3fs
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import UserDefinedDagsterK8sConfig
from dagster_k8s.models import k8s_model_from_dict, k8s_snake_case_dict

from dagster_llm_batch.testing.emulator import local_s3
from tests.crash.postgres import _binaries
from tests.dagster.dagster_dev import DagsterDev, emulator, free_port, process, until

DEPLOY = Path(__file__).resolve().parents[3] / "docs" / "deploy"
SECOND = yaml.safe_load((DEPLOY / "second-location.yaml").read_text(encoding="utf-8"))


def merged() -> dict[str, Any]:
    """Return the services of compose.yaml and second-location.yaml, merged like Compose does it."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    for name, more in SECOND["services"].items():
        base = services[more.get("extends", {"service": name})["service"]]
        maps = {key: {**base[key], **more.get(key, {})} for key in ("environment", "depends_on")}
        services[name] = {**base, **more, **maps}
    return services


SERVICES = merged()
HELM = yaml.safe_load((DEPLOY / "helm-values.yaml").read_text(encoding="utf-8"))
RUN = """
mutation($selector: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $selector, mode: "default"}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}"""
RUNS = "{ runsOrError { ... on Runs { results { status assetSelection { path } } } } }"
MATERIALIZED = """
query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset { assetMaterializations { runId } } } }"""


def filled_in(text: str, variables: Mapping[str, str]) -> str:
    """Substitute `${NAME}`, `${NAME:?}` and `${NAME-}` like compose."""

    def value(found: re.Match[str]) -> str:
        given = variables.get(found[1], "")
        assert given or found[2] != ":?", f"{found[1]} is not set"
        return given

    return re.sub(r"\$\{(\w+)(:\?|-)?\}", value, text)


@contextmanager
def postgres(environment: Mapping[str, str]) -> Iterator[int]:
    """Run the service `postgres` like its image, with its password and the mounted script, and give the port."""
    binaries = (_binaries() / "initdb").resolve().parent
    home = Path(tempfile.mkdtemp(prefix="dlb-deploy-", dir="/tmp"))
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
    (home / "password").write_text(environment["POSTGRES_PASSWORD"])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    port = free_port()
    control = [str(binaries / "pg_ctl"), "-D", f"{home}/data", "-w"]
    login = ["-U", "postgres", "--auth=scram-sha-256", f"--pwfile={home}/password"]
    try:
        subprocess.run([binaries / "initdb", "-D", f"{home}/data", *login], check=True, cwd=home, **quiet, **who)
        options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
        subprocess.run([*control, "-l", f"{home}/log", "-o", options, "start"], check=True, cwd=home, **quiet, **who)
        address = ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]
        scripts = [volume.split(":")[0] for volume in SERVICES["postgres"]["volumes"] if "initdb.d" in volume]
        for script in scripts:
            administrator = {**os.environ, **environment, "PGPASSWORD": environment["POSTGRES_PASSWORD"]}
            subprocess.run([binaries / "psql", *address, "-q", "-f", DEPLOY / script], check=True, env=administrator)
        yield port
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, cwd=home, **quiet, **who)
        shutil.rmtree(home, ignore_errors=True)


def back_up_and_restore(deployment: Deployment) -> None:
    """Run the page's two commands for the ledger."""
    binaries, dump = (_binaries() / "initdb").resolve().parent, deployment.folder / "ledger.dump"
    address = ["-h", "127.0.0.1", "-p", deployment.places["5432"], "-U", "postgres"]
    environment = {**os.environ, "PGPASSWORD": deployment.variables["POSTGRES_PASSWORD"]}
    subprocess.run([binaries / "pg_dump", *address, "-Fc", "-f", dump, "llm_batch"], check=True, env=environment)
    restore = [binaries / "pg_restore", *address, "--clean", "--if-exists", "-d", "llm_batch", dump]
    subprocess.run(restore, check=True, env=environment)


class Deployment:
    """The services as processes, in the Dockerfile's folders."""

    def __init__(self, folder: Path, variables: Mapping[str, str], places: Mapping[str, str]) -> None:
        self.folder, self.variables, self.places = folder, variables, places
        self.app, self.home = folder / "app", folder / "home"
        for copied in re.findall(r"^COPY (?!--from)(.+) (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[1:]:
            target = {"/opt/dagster/home/": self.home, "./": self.app}[copied[1]]
            target.mkdir(exist_ok=True)
            for path in (path for name in copied[0].split() for path in DEPLOY.glob(name)):
                shutil.copy(path, target)
        (self.home / "storage").mkdir()
        # The second location, as step 4 of the page makes it.
        first = (self.app / "definitions.py").read_text(encoding="utf-8")
        second = first.replace('namespace="support"', 'namespace="sales"').replace('"ticket_labels"', '"sales_labels"')
        (self.app / "sales.py").write_text(second, encoding="utf-8")
        self.second_port = str(free_port())
        workspace = SECOND["configs"]["sales"]["content"]
        workspace = workspace.replace("host: sales", "host: 127.0.0.1").replace("4000", self.second_port)
        (self.app / "sales.yaml").write_text(workspace, encoding="utf-8")

    def environment(self, service: str) -> dict[str, str]:
        given = {name: filled_in(value, self.variables) for name, value in SERVICES[service]["environment"].items()}
        given = {name: self._placed(value) for name, value in given.items()}
        # A container's name is its host.
        given |= {name: "127.0.0.1" for name in given if name.endswith("_HOST")}
        paths = {"DAGSTER_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        return {**given, **paths}

    def command(self, *words: str) -> list[str]:
        program, *rest = (self._placed(word) for word in words)
        if program == "python":
            return [sys.executable, *rest]
        return [sys.executable, str(Path(sys.executable).with_name(program)), *rest]

    def run(self, service: str, *words: str) -> str:
        """Run a service, or another command in it, to its end: `docker compose run --rm SERVICE WORDS`."""
        command = self.command(*(words or SERVICES[service]["command"]))
        environment = {**os.environ, **self.environment(service)}
        done = subprocess.run(
            command, cwd=self.app, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, (words, done.stdout[-3000:], done.stderr[-3000:])
        return done.stdout

    @contextmanager
    def started(self, service: str) -> Iterator[Path]:
        log = self.folder / f"{service}.log"
        words = SERVICES[service]["command"]
        if service == "sales":
            words = [self.second_port if word == "4000" else word for word in words]
        command = self.command(*words)
        with process(f"{self.folder}/{service}", command, self.environment(service), log, self.app):
            yield log

    def _placed(self, text: str) -> str:
        for name, place in self.places.items():
            text = text.replace(name, place)
        return text


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


@pytest.fixture
def deployment(tmp_path: Path, webhook: tuple[str, list[bytes]]) -> Iterator[Deployment]:
    """Give the surroundings of the processes: a bucket, a provider, a PostgreSQL server, and `.env`, filled in."""
    with ExitStack() as stack:
        s3_url = stack.enter_context(local_s3("bucket"))
        exported = stack.enter_context(emulator(tmp_path))
        example = (DEPLOY / "env.example").read_text(encoding="utf-8")
        variables = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))
        passwords = {name: f"{name.lower()}1" for name in variables if name.endswith("PASSWORD")}
        roots = {name: value.replace("BUCKET", "bucket") for name, value in variables.items() if name.endswith("ROOT")}
        keys = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        keys["AWS_ENDPOINT_URL"] = s3_url
        openai = {name: exported[name] for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL")}
        variables |= {**passwords, **roots, **keys, **openai, "ALERT_WEBHOOK_URL": webhook[0]}
        variables["SALES_OPENAI_API_KEY"] = variables["OPENAI_API_KEY"]
        assert all(variables.values())
        server = {name: filled_in(text, variables) for name, text in SERVICES["postgres"]["environment"].items()}
        port = str(stack.enter_context(postgres(server)))
        places = {
            "@postgres:5432": f"@127.0.0.1:{port}",
            "5432": port,
            "4000": str(free_port()),
            "3000": str(free_port()),
            "/opt/dagster/home": str(tmp_path / "home"),
            "/app/": f"{tmp_path}/app/",
            "0.0.0.0": "127.0.0.1",
        }
        yield Deployment(tmp_path, variables, places)


@contextmanager
def running(deployment: Deployment) -> Iterator[DagsterDev]:
    """Start the services in the order of their dependencies, and end them."""
    with ExitStack() as stack:
        assert SERVICES["code"]["depends_on"].keys() == {"ledger", "instance"}
        deployment.run("ledger")
        deployment.run("instance")
        code_log = stack.enter_context(deployment.started("code"))
        health = SERVICES["code"]["healthcheck"]["test"][1:]

        def is_healthy() -> bool:
            check = subprocess.run(
                deployment.command(*health),
                env={**os.environ, **deployment.environment("code")},
                check=False,
                capture_output=True,
            )
            return check.returncode == 0

        until("the code location", is_healthy, code_log)
        stack.enter_context(deployment.started("sales"))
        stack.enter_context(deployment.started("daemon"))
        web_log = stack.enter_context(deployment.started("webserver"))
        dagster = DagsterDev(f"http://127.0.0.1:{deployment.places['3000']}", web_log)
        dagster.until("the web server", dagster.is_up)
        dagster.until("both locations", lambda: dagster.assets("assetNodes { id }").keys() == {"support", "sales"})
        yield dagster


def test_the_deployment_comes_up_and_labels_arrive_in_the_bucket(
    deployment: Deployment, webhook: tuple[str, list[bytes]]
) -> None:
    """It takes minutes: six processes load a Dagster each, and its daemon looks every half minute."""
    with running(deployment) as dagster:
        selector = {
            "repositoryLocationName": "support",
            "repositoryName": "__repository__",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": ["ticket_labels_batch"]}],
        }
        assert dagster.ask(RUN, selector=selector)["launchRun"]["__typename"] == "LaunchRunSuccess"
        # The sensor polls, and asks for the run that materializes the labels.
        key = {"path": ["ticket_labels"]}
        until(
            "labels",
            lambda: dagster.ask(MATERIALIZED, key=key)["assetOrError"].get("assetMaterializations"),
            deployment.folder / "daemon.log",
        )
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
    assert container.command == SERVICES["ledger"]["command"]
    with pytest.raises(Exception, match="Unexpected keys"):
        k8s_model_from_dict(kind, k8s_snake_case_dict(kind, {**job, "specs": {}}))
