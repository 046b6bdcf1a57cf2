"""The commands of `docs/how-to/components.md`, in a new environment with the built wheel and without SDKs of vendors.

They are run as written, except for installations, which use pinned versions.
"""

import os
import shlex
import subprocess
import sys
import time

import pytest
from dagster_dev import DagsterDev, free_port, marked, process
from markdown_it import MarkdownIt
from published_package import CONSTRAINTS, ROOT, SHARE, built, environment, uv

PAGE = ROOT / "docs" / "how-to" / "components.md"
TYPE = "dagster_llm_batch.LLMBatchComponent"
PINNED = {
    "uvx create-dagster project --no-uv-sync shop": "create-dagster project --no-uv-sync shop",
    "cd shop": None,
    "uv add dagster-llm-batch": None,
    'mkdir home && touch home/dagster.yaml && export DAGSTER_HOME="$PWD/home"': None,
}

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


def commands() -> list[str]:
    """Return the commands of the page's first block, for an active environment."""
    [first, *_] = [t for t in MarkdownIt().parse(PAGE.read_text("utf-8")) if t.type == "fence" and t.info == "sh"]
    written = [PINNED.get(line, line.removeprefix("uv run ")) for line in first.content.splitlines()]
    return [line for line in written if line is not None]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_of_the_page_make_a_project_that_lists_scaffolds_checks_and_runs_a_labeled_dataset(tmp_path):
    """Run each command of `dg` as a process, which imports all of Dagster."""
    venv, shop = tmp_path / "venv", tmp_path / "shop"
    env = {
        **environment(tmp_path / "home"),
        "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(venv),
    }

    def shell(*command, code=0) -> str:
        began, where = time.monotonic(), shop if shop.exists() else tmp_path
        done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        print(f"$ {shlex.join(command)}  # {time.monotonic() - began:.1f} s\n{said}")
        assert done.returncode == code, said
        return said

    [wheel] = built(tmp_path / "dist", "--wheel")
    shell(uv(), "venv", "--quiet", "--python", sys.executable, str(venv))
    tools = ("create-dagster", "dagster-dg-cli", "dagster-webserver")
    shell(uv(), "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS), *tools, str(wheel))
    shell(*SHARE.split(), str(venv))
    *steps, last = commands()
    said = {step: shell(*shlex.split(step)) for step in steps}
    # `uv add` requires this of the project. It is not run here, since it would resolve pinned versions again.
    floor = '>=3.11,<3.15"'
    assert f'requires-python = "{floor}' in (shop / "pyproject.toml").read_text()
    assert f'requires-python = "{floor}' in (ROOT / "pyproject.toml").read_text()
    assert TYPE in said["dg list components"]
    assert "dagster_llm_batch.LLMBatchEvaluationComponent" in said["dg list components"]
    assert f"dg scaffold defs {TYPE} ticket_labels" in said
    assert "All component YAML validated" in said["dg check defs"]

    path = shop / "src" / "shop" / "defs" / "ticket_labels" / "defs.yaml"
    right = path.read_text()
    path.write_text(right.replace("    user_file:", "    user_fil:"))
    line = 1 + right.splitlines().index("    user_file: prompt.md.j2")
    wrong = shell("dg", "check", "yaml", code=1)
    assert f"defs.yaml:{line} - {TYPE} attributes.prompt.user_fil" in wrong
    path.write_text(right)

    assert last == "dg dev"
    port, log = free_port(), tmp_path / "dg.log"
    command = [str(venv / "bin" / "python"), str(venv / "bin" / "dg"), "dev"]
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
