"""A project of `create-dagster` with masks, two teams' sensors, docs/deploy and lineage, in a separate environment.

It is made as docs/how-to/deploy.md and lineage.md describe it. The commands of the Dockerfile and of compose.yaml are
run without containers.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from compose_services import DEPLOY, Deployment, launch, materializations, outside

from dagster_llm_batch.storage.payloads import PayloadStore
from tests.dagster.dagster_dev import DagsterDev, until
from tests.dagster.published_package import ROOT, built, uv
from tests.real_engines.lineage.collector import Collector, block

PAGE = ROOT / "docs" / "how-to" / "deploy.md"
PINS = ROOT / "requirements" / "platform.txt"
TEAMS = Path(__file__).with_name("project")
PLANTED = ("ann.planted@example.com", "+49 30 1234567", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00")
START = "mutation($selector: SensorSelector!) { startSensor(sensorSelector: $selector) { __typename } }"
SENSORS = """
query($selector: RepositorySelector!) {
  sensorsOrError(repositorySelector: $selector) { ... on Sensors { results { name sensorState { status } } } }
}"""
REPOSITORY = {"repositoryLocationName": "support", "repositoryName": "__repository__"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    with running.server:
        Thread(target=running.server.serve_forever, daemon=True).start()
        yield running
        running.server.shutdown()


def run(command: str, folder: Path, **variables: str) -> None:
    done = subprocess.run(
        ["sh", "-ec", command], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])


def create_project(deploy: Path) -> Path:
    """Copy docs/deploy, run the page's commands in the copy, and write the teams' files."""
    shutil.copytree(DEPLOY, deploy)
    text = PAGE.read_text(encoding="utf-8")
    [commands] = re.findall(r"```text\n([^`]*uvx create-dagster[^`]+)```", text)
    # With the versions of PINS, as far as it has them.
    run(commands.replace("uvx", f"{shlex.quote(uv())} tool run --quiet --constraints {PINS}"), deploy)
    project = deploy.with_name("my-project")
    defs = project / "src" / "my_project" / "defs"
    shutil.copytree(TEAMS, defs, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    [line] = re.findall(r"```text\n(from my_project[^`]+)```", text)
    (deploy / "definitions.py").write_text(line, encoding="utf-8")
    return project


def add_lineage(project: Path, deploy: Path) -> None:
    """Make the changes of lineage.md."""
    module = block("py", having="class InputsAdapter")
    (project / "src" / "my_project" / "lineage_storage.py").write_text(module, encoding="utf-8")
    instance = (deploy / "dagster.yaml").read_text(encoding="utf-8")
    storage = re.compile(r"^storage:\n(?: .*\n)+", re.MULTILINE)
    stores = block("yaml", having="event_log_storage").replace("module: lineage", "module: my_project.lineage")
    assert storage.search(instance)
    (deploy / "dagster.yaml").write_text(storage.sub(stores, instance), encoding="utf-8")
    compose = (deploy / "compose.yaml").read_text(encoding="utf-8")
    start = "  environment: &environment\n"
    assert start in compose
    (deploy / "compose.yaml").write_text(
        compose.replace(start, start + block("yaml", having="OPENLINEAGE_URL")), encoding="utf-8"
    )
    with (deploy / "requirements.txt").open("a", encoding="utf-8") as requirements:
        requirements.write("dagster-openlineage\n")


def build_image(project: Path, deploy: Path, venv: Path) -> Path:
    """Build both wheels, run the installation of the Dockerfile, and return the folder of its programs."""
    built(deploy, "--wheel")
    run(f"{shlex.quote(uv())} build --quiet --wheel --out-dir . {shlex.quote(str(project))}", deploy)
    [wheel] = deploy.glob("my_project-*.whl")
    with (deploy / "requirements.txt").open("a", encoding="utf-8") as requirements:
        requirements.write(f"./{wheel.name}\n")
    dockerfile = (deploy / "Dockerfile").read_text(encoding="utf-8")
    [install] = re.findall(r"^RUN (python -m venv .+)$", dockerfile, re.MULTILINE)
    install = install.replace("python -m", f"{shlex.quote(sys.executable)} -m", 1)
    run(install.replace("/opt/venv", str(venv)), deploy, PIP_CONSTRAINT=str(PINS))
    return venv / "bin"


def sensors(dagster: DagsterDev) -> dict[str, str]:
    """Return the status of each sensor."""
    found = dagster.ask(SENSORS, selector=REPOSITORY)["sensorsOrError"]["results"]
    return {one["name"]: one["sensorState"]["status"] for one in found}


def sent_files(variables: Mapping[str, str]) -> str:
    """Return the content of all request files at the provider."""

    def get(path: str) -> bytes:
        headers = {"Authorization": f"Bearer {variables['OPENAI_API_KEY']}"}
        request = urllib.request.Request(variables["OPENAI_BASE_URL"] + path, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    files = json.loads(get("/files"))["data"]
    return "".join(get(f"/files/{one['id']}/content").decode() for one in files)


def stored_texts(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """Yield each stored file with its text: payloads, labels, both databases, and all logs."""
    for name, value in deployment.environment("code").items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    labels = ("ticket_labels", "ticket_labels_rejects", "lead_scores", "lead_scores_rejects")
    for root in (deployment.variables["LLM_PAYLOAD_ROOT"], deployment.variables["LLM_TABLE_ROOT"]):
        store = PayloadStore(root)
        for file in store.files(""):
            if root.endswith("tables") and file.path.split("/")[0] not in labels:
                # The rows of the teams are tables of their own.
                continue
            if file.path.endswith(".parquet"):
                yield file.path, str(store.read_table(file.path).to_pylist())
            else:
                yield file.path, b"".join(store.lines(file.path)).decode(errors="replace")
    for database in ("dagster", "llm_batch"):
        yield database, deployment.administrator("pg_dump", "--data-only", database)
    for path in (*deployment.folder.glob("*.log"), *(deployment.home / "storage").rglob("*")):
        if path.is_file() and path.name != "emulator.log":
            yield str(path), path.read_text(encoding="utf-8", errors="replace")


def test_two_teams_of_a_created_project_label_masked_rows_by_their_own_sensors_and_send_lineage(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes minutes: it builds an environment, and five processes load a Dagster each."""
    deploy = tmp_path / "deploy"
    project = create_project(deploy)
    add_lineage(project, deploy)
    programs = build_image(project, deploy, tmp_path / "venv")
    with outside(tmp_path, deploy) as variables:
        deployment = Deployment(tmp_path, variables, deploy=deploy, programs=programs)
        [address] = re.findall(r"OPENLINEAGE_URL: (\S+)", (deploy / "compose.yaml").read_text())
        deployment.places = {address: collector.url, **deployment.places}
        with deployment.postgres(), deployment.running() as dagster:
            daemon_log = tmp_path / "daemon.log"
            off_at_first = {"support_llm_batches": "RUNNING", "sales_llm_batches": "STOPPED"}
            assert off_at_first.items() <= sensors(dagster).items()
            # The batch of sales ends first, and the team's sensor is off.
            for team in (("leads", "lead_scores_batch"), ("tickets", "ticket_labels_batch")):
                launch(dagster, *team)
                until(f"the submission {team}", lambda: materializations(dagster, team[1]), daemon_log)  # noqa: B023
            until("the labels of support", lambda: materializations(dagster, "ticket_labels"), daemon_log)
            assert materializations(dagster, "lead_scores") == []
            dagster.ask(START, selector={**REPOSITORY, "sensorName": "sales_llm_batches"})
            until("the labels of sales", lambda: materializations(dagster, "lead_scores"), daemon_log)
            assert len(materializations(dagster, "ticket_labels")) == 1
            until("all events", lambda: collector.completed("lead_scores"), daemon_log)
            deployment.run("code", "dagster-llm-batch", "doctor", "-f", "definitions.py")
            places = dict(stored_texts(deployment, monkeypatch))
            places |= {"sent": sent_files(variables), "lineage": json.dumps(collector.posted)}
    for kind in ("EMAIL", "PHONE", "CARD", "IBAN"):
        assert f"[{kind}_1]" in places["sent"]
    assert [(name, value) for name, text in places.items() for value in PLANTED if value in text] == []
    assert len(places) > 10
    check_lineage(collector, "tickets", "ticket_labels", "topic")
    check_lineage(collector, "leads", "lead_scores", "score")


def check_lineage(collector: Collector, rows: str, labels: str, column: str) -> None:
    """Compare the event of the labels with the dataset: inputs, schema, column lineage and the bucket."""
    [event] = collector.completed(labels)
    assert [one["name"] for one in event["inputs"]] == [rows]
    [output] = event["outputs"]
    facets: dict[str, Any] = output["facets"]
    assert column in {field["name"] for field in facets["schema"]["fields"]}
    sources = facets["columnLineage"]["fields"][column]["inputFields"]
    assert {one["name"] for one in sources} == {rows}
    assert facets["dataSource"]["uri"] == f"s3://bucket/llm-batch/tables/{labels}"
