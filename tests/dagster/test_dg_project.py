"""A project made by `create-dagster`, in a new environment with this package and no vendor's SDK, from `dg` alone."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dagster_dev import DagsterDev, free_port, marked, process

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "requirements" / "dev.txt"
TYPE = "dagster_llm_batch.LLMBatchComponent"

LAUNCH = """
mutation($selector: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $selector, mode: "default"}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}"""
RUN = """
query($id: ID!) {
  runOrError(runId: $id) {
    ... on Run { status }
  }
}"""
LABELS = """
{ assetOrError(assetKey: {path: ["ticket_labels"]}) { ... on Asset { assetMaterializations(limit: 1) {
    metadataEntries { label ... on IntMetadataEntry { intValue } } } } } }"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_project_of_create_dagster_lists_scaffolds_checks_and_runs_a_labeled_dataset(tmp_path):
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert uv, "uv is needed: pip install uv"
    environment, home = tmp_path / "venv", tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
    env = {
        **os.environ,
        "PYTHONPATH": "",
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(environment),
        "DAGSTER_HOME": str(home),
        "COLUMNS": "200",
    }

    def shell(*command, cwd=tmp_path, code=0) -> str:
        began = time.monotonic()
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        print(f"$ {' '.join(map(str, command))}  # {time.monotonic() - began:.1f} s\n{said}")
        assert done.returncode == code, said
        return said

    shell(uv, "venv", "--quiet", "--python", sys.executable, str(environment))
    tools = ("create-dagster", "dagster-dg-cli", "dagster-webserver")
    shell(uv, "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS), *tools, str(ROOT))
    shell("create-dagster", "project", "--no-uv-sync", "shop")
    shop = tmp_path / "shop"

    listed = shell("dg", "list", "components", "--json", cwd=shop)
    assert TYPE in listed
    assert "dagster_llm_batch.LLMBatchEvaluationComponent" in listed
    shell("dg", "scaffold", "defs", TYPE, "ticket_labels", cwd=shop)
    shell("dg", "check", "defs", cwd=shop)  # `dg check yaml` is its first step

    path = shop / "src" / "shop" / "defs" / "ticket_labels" / "defs.yaml"
    right = path.read_text()
    path.write_text(right.replace("    user_file:", "    user_fil:"))
    line = 1 + right.splitlines().index("    user_file: prompt.md.j2")
    wrong = shell("dg", "check", "yaml", cwd=shop, code=1)
    assert f"defs.yaml:{line} - {TYPE} attributes.prompt.user_fil" in wrong
    assert "'user_fil' was unexpected" in wrong
    path.write_text(right)

    port, log = free_port(), tmp_path / "dg.log"
    command = [str(environment / "bin" / "python"), str(environment / "bin" / "dg"), "dev"]
    with process(str(tmp_path), [*command, "--host", "127.0.0.1", "--port", str(port)], env, log, cwd=shop):
        dev = DagsterDev(f"http://127.0.0.1:{port}", log)
        dev.until("dg dev", dev.is_up)
        selector = {
            "repositoryLocationName": "shop",
            "repositoryName": "__repository__",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": [f"ticket_labels{suffix}"]} for suffix in ("_batch", "", "_rejects")],
        }
        launched = dev.ask(LAUNCH, selector=selector)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run = {"id": launched["run"]["runId"]}
        ended = dev.until(
            "the run", lambda: (one := dev.ask(RUN, **run)["runOrError"])["status"] in ("SUCCESS", "FAILURE") and one
        )
        assert ended["status"] == "SUCCESS", log.read_text(errors="replace")[-6000:]
        [landed] = dev.ask(LABELS)["assetOrError"]["assetMaterializations"]
        told = {entry["label"]: entry.get("intValue") for entry in landed["metadataEntries"]}
        assert told["llm_batch/rows_succeeded"] == 3
    assert marked(str(tmp_path)) == []
