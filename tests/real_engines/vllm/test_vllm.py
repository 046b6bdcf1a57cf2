"""Real vLLM with real weights, by `command`, on Ray and under Slurm: its lines are read, and all processes end."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from cluster import ADDRESS
from ray_batches import until

from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.command.provider import CommandProvider
from dagster_llm_batch.providers.ray.answers import RayAnswers
from dagster_llm_batch.providers.ray.provider import RayProvider
from dagster_llm_batch.providers.slurm.options import SlurmOptions
from dagster_llm_batch.providers.slurm.provider import SlurmProvider
from dagster_llm_batch.types import (
    BatchReport,
    BatchStatus,
    Outcome,
    Request,
    RequestSpec,
    ResponseFormat,
    ResponseKind,
    Result,
)

pytestmark = pytest.mark.timeout(900)  # each start takes most of a minute, or several on a busy machine

SPEC = RequestSpec("smollm2", params={"max_tokens": 16, "temperature": 0})
LABEL = {"type": "object", "properties": {"label": {"enum": ["positive", "negative"]}}, "required": ["label"]}
GUIDED = RequestSpec(
    "smollm2", ResponseFormat(ResponseKind.JSON, "l", LABEL), params={"max_tokens": 32, "temperature": 0}
)


def run_batch(weights: Path) -> list[str]:
    """Return the documented command, with options for two CPUs."""
    vllm = str(Path(sys.executable).with_name("vllm"))
    words = [vllm, "run-batch", "-i", "{input}", "-o", "{output}", "--model", str(weights)]
    return [
        *words,
        "--served-model-name",
        "{model}",
        "--max-model-len",
        "1024",
        "--enforce-eager",
        "--dtype",
        "float32",
        "--max-num-seqs",
        "8",
    ]


def line(provider: Provider, custom_id: str, text: str, spec: RequestSpec = SPEC, **changes) -> bytes:
    """Return a request line, with changes to its body that definitions do not make."""
    value = json.loads(provider.codec(spec).encode(Request("r", None, text), custom_id))
    value["body"].update(changes.pop("body", {}))
    return json.dumps({**value, **changes}).encode() + b"\n"


def shard(provider: Provider) -> io.BytesIO:
    """Return rows that are answered, and rows that cannot be."""
    return io.BytesIO(
        line(provider, "good", "What is the capital of France?")
        + line(provider, "guided", "I love this. Is that positive or negative?", GUIDED)
        + line(provider, "model", "hi", body={"model": "wrong-model"})
        + line(provider, "length", "hi", body={"max_tokens": 99_999})
        + line(provider, "url", "hi", url="/v1/embeddings", body={"input": "hi"})
    )


def finished(provider: Provider, batch_id: str) -> BatchReport:
    until(lambda: provider.poll([batch_id])[batch_id].status.is_terminal, 800)
    return provider.poll([batch_id])[batch_id]


def results(provider: Provider, batch_id: str) -> dict[str | None, Result]:
    codec = provider.codec(SPEC)
    return {result.custom_id: result for result in map(codec.decode, provider.fetch(batch_id))}


def left(mark: str) -> dict[int, str]:
    """Return the processes with the mark in their environment, except idle workers that Ray keeps for the next job."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                if mark.encode() in (process / "environ").read_bytes():
                    words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if not words.startswith("ray::"):
                        found[int(process.name)] = words
            except OSError:
                continue
    return found


def assert_good(read: dict[str | None, Result]) -> None:
    assert read["good"].outcome is Outcome.SUCCEEDED
    assert "Paris" in (read["good"].text or "")
    assert read["good"].usage is not None
    assert read["good"].usage.input_tokens > 5
    assert json.loads(read["guided"].text or "")["label"] in ("positive", "negative")


def test_a_command_that_ends_with_0_has_rows_that_failed_in_each_of_vllms_shapes(weights, settings, tmp_path, mark):
    provider = CommandProvider(run_batch(weights), str(tmp_path), env={**settings, "MARK": mark})
    provider.submit(shard(provider), SPEC, "tag")
    ended = finished(provider, "tag")
    assert (ended.status, ended.reason, ended.done) == (BatchStatus.ENDED, None, 5)
    read = results(provider, "tag")
    assert_good(read)
    failed = {name: read[name] for name in ("model", "length", "url")}
    assert {(one.outcome, one.retryable) for one in failed.values()} == {(Outcome.ERRORED, False)}
    assert "`wrong-model` does not exist" in (failed["model"].reason or "")  # an error in an error
    assert "max_model_len=1024" in (failed["length"].reason or "")
    assert "/v1/embeddings" in (failed["url"].reason or "")  # an error that is a mere text
    until(lambda: not left(mark))


@pytest.mark.parametrize("how", ["canceled", "killed"])
def test_a_run_that_is_ended_early_leaves_no_engine_running_and_no_result(weights, settings, tmp_path, mark, how):
    provider = CommandProvider(run_batch(weights), str(tmp_path), env={**settings, "MARK": mark}, grace_seconds=5)
    many = b"".join(line(provider, f"n-{n}", f"Tell me about {n}", body={"max_tokens": 400}) for n in range(200))
    provider.submit(io.BytesIO(many), SPEC, "tag")
    until(lambda: any("EngineCore" in words or "spawn_main" in words for words in left(mark).values()), 400)
    if how == "canceled":
        provider.cancel("tag")
    else:
        os.kill(json.loads((tmp_path / "tag" / "group.json").read_text())["group"], signal.SIGTERM)
    ended = finished(provider, "tag")
    assert ended.status is (BatchStatus.CANCELED if how == "canceled" else BatchStatus.FAILED)
    assert list(provider.fetch("tag")) == []  # vLLM writes its whole output at the end
    until(lambda: not left(mark))


def on_ray(tmp_path: Path, settings: dict[str, str], mark: str, **answers) -> RayProvider:
    environment = {"env_vars": {**settings, "MARK": mark}}
    return RayProvider(ADDRESS, str(tmp_path / "storage"), RayAnswers(**answers), runtime_env=environment)


@pytest.mark.usefixtures("cluster")
def test_the_same_command_on_ray(weights, settings, tmp_path, mark):
    provider = on_ray(tmp_path, settings, mark, command=run_batch(weights), rows_per_file=1000)
    batch_id = provider.submit(shard(provider), SPEC, "command")
    ended = finished(provider, batch_id)
    assert (ended.status, ended.done) == (BatchStatus.ENDED, 5)
    read = results(provider, batch_id)
    assert_good(read)
    assert {read[name].outcome for name in ("model", "length", "url")} == {Outcome.ERRORED}
    until(lambda: not left(mark))


@pytest.mark.usefixtures("cluster")
def test_rays_own_vllm_processor_answers_rows_keeps_bad_ones_as_rows_and_leaves_no_engine(
    weights, settings, tmp_path, mark
):
    vllm = {
        "model_source": str(weights),
        "engine_kwargs": {"max_model_len": 1024, "enforce_eager": True, "max_num_seqs": 8, "dtype": "float32"},
        "placement_group_config": {"bundles": [{"CPU": 1}]},
        "log_engine_metrics": False,
    }
    provider = on_ray(tmp_path, settings, mark, vllm=vllm, rows_per_file=8)
    too_long = line(provider, "long", "word " * 3_000)
    batch_id = provider.submit(io.BytesIO(shard(provider).read() + too_long), SPEC, "processor")
    ended = finished(provider, batch_id)
    assert (ended.reason, ended.status, ended.done) == (None, BatchStatus.ENDED, 6)
    read = results(provider, batch_id)
    assert_good(read)
    assert {name for name, one in read.items() if one.outcome is Outcome.ERRORED} == {"url", "long"}
    assert "1024" in (read["long"].reason or "")
    assert read["length"].outcome is Outcome.SUCCEEDED  # a request for more tokens than fit gets as many as fit
    assert len(read) == 6
    until(lambda: not left(mark))


@pytest.fixture
def on_slurm(slurm, weights, settings, tmp_path, mark, monkeypatch) -> SlurmProvider:
    """Return a provider whose jobs get only variables that are exported by name."""
    exported = {**settings, "MARK": mark}
    for name, value in {**exported, **slurm.environment}.items():
        monkeypatch.setenv(name, value)
    options = SlurmOptions(mem="12G", cpus_per_task=2, time_limit="30")
    return SlurmProvider(
        run_batch(weights), str(tmp_path), options, export=list(exported), requests_per_task=3, python=sys.executable
    )


def test_the_same_command_under_slurm_a_part_of_the_shard_on_each_node(on_slurm, mark):
    batch_id = on_slurm.submit(shard(on_slurm), SPEC, "tag")
    ended = finished(on_slurm, batch_id)
    assert (ended.status, ended.reason, ended.done) == (BatchStatus.ENDED, None, 5)
    read = results(on_slurm, batch_id)
    assert_good(read)
    assert {read[name].outcome for name in ("model", "length", "url")} == {Outcome.ERRORED}
    until(lambda: not left(mark))


def test_a_run_under_slurm_that_is_canceled_leaves_no_engine_running_and_no_result(on_slurm, mark):
    many = b"".join(
        line(on_slurm, f"n-{n}", f"Tell me about {n}", body={"max_tokens": 900, "ignore_eos": True}) for n in range(3)
    )
    batch_id = on_slurm.submit(io.BytesIO(many), SPEC, "tag")
    until(lambda: any("EngineCore" in words or "spawn_main" in words for words in left(mark).values()), 400)
    on_slurm.cancel(batch_id)
    assert finished(on_slurm, batch_id).status is BatchStatus.CANCELED
    assert list(on_slurm.fetch(batch_id)) == []
    until(lambda: not left(mark))


def test_what_it_takes(weights, settings, tmp_path, mark):
    """Print measurements for a person who runs this."""
    provider = CommandProvider(run_batch(weights), str(tmp_path), env={**settings, "MARK": mark})
    rows = 100
    lines = b"".join(line(provider, f"n-{n}", f"Is {n} a large number? Answer yes or no.") for n in range(rows))
    began = time.monotonic()
    provider.submit(io.BytesIO(lines), SPEC, "tag")
    assert finished(provider, "tag").status is BatchStatus.ENDED
    took = time.monotonic() - began
    read = results(provider, "tag")
    assert [result.outcome for result in read.values()] == [Outcome.SUCCEEDED] * rows
    print(f"\nvllm run-batch on this machine: {rows} rows in {took:.0f} s, start included")
