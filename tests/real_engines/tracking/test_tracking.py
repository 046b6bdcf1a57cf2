"""Log an evaluation to MLflow's server and to W&B's files, by docs/how-to/track-evaluations.md.

`python3 -m tests tracking` installs both.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pyarrow as pa
import pytest
from markdown_it import MarkdownIt
from pydantic import BaseModel

from dagster_llm_batch import LLMBatchResource, Mask, OpenAIBatchResource, Prompt, evaluation_assets, llm_batch_assets
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "track-evaluations.md"
TOPICS = ["billing", "bug", "how_to"]
# Each row has one, and its prompt masks it.
PLANTED = "planted@example.com"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write the modules of the page as files, and forget them after a test."""
    tokens = MarkdownIt().parse(GUIDE.read_text(encoding="utf-8"))
    fences = [token for token in tokens if token.type == "fence" and token.info.startswith("py ")]
    for fence in fences:
        tmp_path.joinpath(fence.info.split('"')[1]).write_text(fence.content, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("scores", "in_mlflow", "in_wandb"):
        sys.modules.pop(name, None)


class TicketLabel(BaseModel):
    topic: Literal["billing", "bug", "how_to"]


def answer(body: dict[str, Any], _endpoint: object) -> dict[str, str]:
    """Play a model that is careless when its prompt is short."""
    system, user = (message["content"] for message in body["messages"])
    return {"topic": next(topic for topic in TOPICS if topic in user) if "twice" in system else "bug"}


def evaluate(asset: dg.AssetsDefinition, resources: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Materialize an evaluation of two masked prompts, then the asset that logs it; return the evaluation's rows."""

    @dg.asset
    def tickets() -> list:
        return [{"id": n, "body": f"Ticket {n} of {PLANTED} is about {TOPICS[n % 3]}."} for n in range(30)]

    @dg.asset
    def gold() -> list:
        return [{"id": n, "topic": TOPICS[n % 3]} for n in range(30)]

    def labeled(name: str, system: str) -> list[dg.AssetsDefinition]:
        prompt = Prompt(system=system, user="{{ body }}", version=name, mask=Mask(columns=["body"]))
        common: dict[str, Any] = {"rows": tickets, "key": "id", "keep": ["body"], "response": TicketLabel}
        return llm_batch_assets(name=name, prompt=prompt, model="openai/gpt-5-nano", **common)

    terse, careful = labeled("terse", "Label."), labeled("careful", "Read twice, then label.")
    candidates = {"terse": terse, "careful": careful}
    bake_off = evaluation_assets(name="bake_off", gold=gold, candidates=candidates, key="id", target="topic")
    everything = [tickets, gold, *terse, *careful, *bake_off, asset]
    with Emulator(answer=answer) as emulator, dg.instance_for_test(temp_dir=str(folder)) as instance:
        openai = OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url)
        given = {"llm_batch": LLMBatchResource(openai=openai), **resources}

        def run(*names: str) -> None:
            assert dg.materialize(everything, selection=list(names), resources=given, instance=instance).success

        run("tickets", "gold", "terse_batch", "careful_batch")
        emulator.settle()
        run("terse", "terse_rejects", "careful", "careful_rejects")
        run("bake_off", asset.key.to_user_string())
        scores: pa.Table = dg.Definitions(everything, resources=given).load_asset_value("bake_off", instance=instance)
    return scores.to_pylist()


def files_with(value: str, *places: Path) -> list[Path]:
    """Return the files below these places that contain the value."""
    files = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file()]
    return [path for path in files if value.encode() in path.read_bytes()]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start MLflow's own server, and give its address."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}", tmp_path / "mlflow.log"
    place = ["--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.sqlite"]
    command = [sys.executable, "-m", "mlflow", "server", *place, "--artifacts-destination", str(tmp_path / "artifacts")]
    # Jobs are for evaluations within MLflow, and each kind has a separate process.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--workers", "1"], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=10).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text(encoding="utf-8")
                time.sleep(0.5)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield address
    finally:
        process.terminate()
        process.wait()


def test_each_candidate_is_a_run_of_mlflow_below_the_run_of_dagster(server: str, tmp_path: Path) -> None:
    """Starting MLflow's server and importing MLflow take most of half a minute."""
    module = importlib.import_module("in_mlflow")
    rows = evaluate(module.bake_off_in_mlflow, {"mlflow": module.mlflow}, tmp_path)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("tickets")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parents = [run for run in runs.values() if "dagster_run_id" in run.data.tags]
    assert len(parents) == 1
    assert [row["candidate"] for row in rows] == ["terse", "careful"]
    for row in rows:
        logged = runs[row["candidate"]].data
        assert logged.metrics["accuracy"] == pytest.approx(row["accuracy"])
        assert logged.metrics["cost_usd"] == pytest.approx(float(row["cost_usd"]))
        texts = {name: row[name] for name in ("target", "models", "prompt_versions")}
        assert texts.items() <= logged.params.items()
        assert logged.tags["mlflow.parentRunId"] == parents[0].info.run_id
    assert runs["careful"].data.metrics["accuracy"] == 1 > runs["terse"].data.metrics["accuracy"]
    places = (*tmp_path.glob("mlflow.*"), tmp_path / "artifacts")
    assert files_with("accuracy", *places) != []
    assert files_with(PLANTED, *places) == []


def stored_run(path: Path) -> dict[str, Any]:
    """Read name, project, configuration and the last value of each metric from the file of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store, found = DataStore(), {"config": {}, "metrics": {}}
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"name": record.run.display_name, "project": record.run.project}
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            found["metrics"] |= {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
    return found


def test_each_candidate_is_an_offline_run_of_weights_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(kept), "WANDB_API_KEY": "a" * 40}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    module = importlib.import_module("in_wandb")
    rows = evaluate(module.bake_off_in_wandb, {"wandb": module.wandb}, tmp_path)
    runs = {run["name"]: run for run in map(stored_run, kept.rglob("*.wandb"))}
    assert runs.keys() == {"terse", "careful"}
    for row in rows:
        run = runs[row["candidate"]]
        assert (run["project"], run["config"]["target"]) == ("tickets", "topic")
        assert run["config"]["dagster_run_id"]
        assert run["metrics"]["accuracy"] == pytest.approx(row["accuracy"])
    assert files_with("accuracy", kept) != []
    assert files_with(PLANTED, kept) == []
