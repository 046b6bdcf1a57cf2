"""The configuration in docs/how-to/embed.md, with real packages and without accounts: `python3 -m tests platform`."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import dagster as dg
import polars as pl
import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import UserDefinedDagsterK8sConfig
from markdown_it import MarkdownIt
from opentelemetry import metrics, trace

from dagster_llm_batch import LLMBatchResource, OpenAIBatchResource, Prompt, llm_batch_assets
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "embed.md"


def blocks(language: str) -> list[str]:
    tokens = MarkdownIt().parse(GUIDE.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info.split()[:1] == [language]]


def run(*, having: str) -> dict[str, Any]:
    [program] = [block for block in blocks("py") if having in block]
    names: dict[str, Any] = {}
    exec(compile(program, str(GUIDE), "exec"), names)
    return names


def test_each_block_of_the_guide_is_run_here() -> None:
    runs = ("SnowflakePolarsIOManager", "BigQueryPandasIOManager", "build_llm_batch_sensor", "OTLPSpanExporter")
    assert [next(name for name in runs if name in block) for block in blocks("py")] == list(runs)


@pytest.mark.parametrize("kind", ["SnowflakePolarsIOManager", "BigQueryPandasIOManager"])
def test_io_managers_of_warehouses_take_labels(kind: str) -> None:
    @dg.asset
    def tickets() -> pl.DataFrame:
        return pl.DataFrame({"id": ["a"], "text": ["b"]})

    labels = llm_batch_assets(
        name="labels", rows=tickets, key="id", prompt=Prompt(user="{{ text }}"), model="openai/gpt-5-nano"
    )
    defs = dg.Definitions(
        assets=[tickets, *labels],
        resources={"llm_batch": LLMBatchResource(), "io_manager": run(having=kind)["io_manager"]},
    )
    dg.Definitions.validate_loadable(defs)


def test_pods_of_landing_runs_are_asked_for_as_kubernetes_wants_them() -> None:
    made = run(having="build_llm_batch_sensor")
    assert isinstance(made["sensor"], dg.SensorDefinition)
    assert UserDefinedDagsterK8sConfig.from_dict(made["small"]).container_config == made["small"]["container_config"]


def test_the_run_launcher_is_configured_as_its_schema_wants() -> None:
    [launcher] = [yaml.safe_load(block)["run_launcher"] for block in blocks("yaml")]
    assert (launcher["module"], launcher["class"]) == ("dagster_k8s", "K8sRunLauncher")
    result = process_config(resolve_to_config_type(K8sRunLauncher.config_type()), launcher["config"])
    assert result.success, result.errors
    wrong = process_config(resolve_to_config_type(K8sRunLauncher.config_type()), {"namespaces": "x"})
    assert not wrong.success


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """Give the posts to an OTLP collector, by path."""
    posted: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted[self.path] = posted.get(self.path, b"") + self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        yield posted
        server.shutdown()


def test_spans_and_metrics_of_a_labeling_reach_a_collector(collector: dict[str, bytes], tmp_path: Path) -> None:
    run(having="OTLPSpanExporter")

    @dg.asset
    def tickets() -> pl.DataFrame:
        return pl.DataFrame({"id": ["a", "b"], "text": ["secret row", "other"]})

    labels = llm_batch_assets(
        name="labels",
        rows=tickets,
        key="id",
        prompt=Prompt(user="{{ text }}"),
        model="openai/gpt-5-nano",
        mode="wait",
    )
    with Emulator(pace=0.1) as emulator, dg.DagsterInstance.ephemeral() as instance:
        openai = OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url)
        resource = LLMBatchResource(
            openai=openai,
            telemetry=True,
            poll_seconds=0.2,
            ledger_url=f"sqlite:///{tmp_path}/ledger.sqlite",
            payload_root=str(tmp_path / "payloads"),
        )
        assert dg.materialize([tickets, *labels], instance=instance, resources={"llm_batch": resource}).success
    trace.get_tracer_provider().shutdown()  # type: ignore[attr-defined]  # the SDK's
    metrics.get_meter_provider().shutdown()  # type: ignore[attr-defined]
    assert b"submit_batch" in collector["/v1/traces"]
    assert b"gen_ai.client.token.usage" in collector["/v1/metrics"]
    assert b"secret row" not in collector["/v1/traces"] + collector["/v1/metrics"]
