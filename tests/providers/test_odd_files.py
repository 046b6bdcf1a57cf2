"""For any files and outputs of the user's machines, a verb returns a valid value or raises one of our errors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from odd_answers import NONSENSE, PAGE, Answer, is_clean, mutants
from sample_batches import SPEC, batch_file, labeler, odd_server, until

from dagster_llm_batch.errors import LLMBatchError, ProviderError, RefusedError, TransientError
from dagster_llm_batch.providers.command.provider import CommandProvider
from dagster_llm_batch.providers.ray.answers import RayAnswers
from dagster_llm_batch.providers.ray.batches import read_job
from dagster_llm_batch.providers.ray.errors import UnknownJobError, provider_error
from dagster_llm_batch.providers.ray.provider import RayProvider
from dagster_llm_batch.providers.ray.ray_shard.files import PLAN, ended, started
from dagster_llm_batch.providers.slurm.provider import SlurmProvider
from dagster_llm_batch.types import BatchReport, FindHints

BODIES = [odd.body for odd in NONSENSE if odd.body]
HINTS = FindHints(datetime.now(UTC) - timedelta(hours=1), 3, "n")
_MOST = 1 << 62


def odd_bodies(whole: bytes, seed: int) -> Iterator[bytes]:
    yield from BODIES
    yield from (mutant.body for mutant in mutants(Answer("whole", body=whole), seed, 15))


def is_kept(report: BatchReport) -> bool:
    counts = [count for count in (report.total, report.done, report.failed) if count is not None]
    return all(0 <= count < _MOST for count in counts) and (report.reason is None or is_clean(report.reason))


def told(provider: Any, batch_id: str) -> list[Any]:
    """Return the values of the reading verbs, or the errors that they raise."""
    found: list[Any] = []
    for look in (
        lambda: provider.poll([batch_id]),
        lambda: list(provider.fetch(batch_id)),
        lambda: provider.find(batch_id.partition(".")[0], HINTS),
    ):
        try:
            found.append(look())
        except ProviderError as error:
            assert is_clean(str(error))  # noqa: PT017 -- any of ours may come
            found.append(error)
    assert isinstance(found[0], ProviderError) or is_kept(found[0][batch_id])
    return found


@pytest.mark.parametrize("name", ["job.json", "exit.json", "group.json", "out.part.jsonl.progress", "log.txt"])
def test_a_file_of_a_command_may_hold_anything(tmp_path: Path, name: str) -> None:
    provider = labeler(tmp_path)
    batch_id = provider.submit(batch_file(provider.codec(SPEC)), SPEC, "tag")
    until(lambda: provider.poll([batch_id])[batch_id].status.is_terminal)
    file = tmp_path / batch_id / name
    whole = file.read_bytes() if file.exists() else b'{"done": 1, "total": 3}'
    for body in odd_bodies(whole, len(name)):
        file.write_bytes(body)
        told(provider, batch_id)
        file.with_name("cancel").unlink(missing_ok=True)
    file.unlink()
    file.mkdir()  # a folder in place of the file
    told(provider, batch_id)


def printing(source: Path, folder: Path) -> CommandProvider:
    """Return a provider whose command gives this file as its output."""
    return CommandProvider(["sh", "-c", 'cp "$1" "$2"', "{input}", str(source), "{output}"], str(folder / "jobs"))


def test_a_command_that_answers_something_else_gave_no_answer(tmp_path: Path) -> None:
    line = batch_file(labeler(tmp_path).codec(SPEC)).readline()
    for number, body in enumerate(BODIES):
        source = tmp_path / f"odd-{number}"
        source.write_bytes(body)
        provider = printing(source, tmp_path)
        with pytest.raises(RefusedError, match=r"The command (gave|wrote) no answer"):
            provider.respond(line)


def test_among_other_output_the_answer_to_the_request_is_taken(tmp_path: Path) -> None:
    line = batch_file(labeler(tmp_path).codec(SPEC)).readline()
    answer = json.dumps({"custom_id": json.loads(line)["custom_id"], "response": None}).encode()
    source = tmp_path / "output"
    source.write_bytes(PAGE + answer + b'\n{"custom_id": "other"}\n')
    provider = printing(source, tmp_path)
    assert provider.respond(line) == answer + b"\n"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmProvider:
    """Return a provider whose Slurm consists of programs that print the file `said`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "squeue", "sacct", "scancel", "srun"):
        program = programs / name
        program.write_text(f"#!/bin/sh\nexec cat {tmp_path}/said\n")
        program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "said").write_text("17\n")
    return SlurmProvider(["true", "{input}", "{output}"], str(tmp_path / "jobs"), requests_per_task=2)


def test_what_slurm_prints_may_be_anything(slurm: SlurmProvider, tmp_path: Path) -> None:
    batch_id = slurm.submit(batch_file(slurm.codec(SPEC)), SPEC, "tag")
    said = tmp_path / "said"
    rows = f"{batch_id}||17|17|0|FAILED|None|1700000000\n{batch_id}||17|17|²|WEIRD\x1b[31m|\x00|{'9' * 400}\n".encode()
    for body in odd_bodies(rows, 7):
        said.write_bytes(body)
        told(slurm, batch_id)


def test_an_odd_answer_of_sbatch_is_never_the_word_that_there_is_no_job(slurm: SlurmProvider, tmp_path: Path) -> None:
    for number, body in enumerate([*BODIES, "²".encode(), b"17 and more", b"-1"]):
        (tmp_path / "said").write_bytes(body)
        if body.strip().isdigit() and len(body) < 10:
            continue
        with pytest.raises(ProviderError) as raised:
            slurm.submit(batch_file(slurm.codec(SPEC)), SPEC, f"tag-{number}")
        assert type(raised.value).__name__ == "AmbiguousError"


@pytest.mark.parametrize("name", ["plan.json", "slurm-0.json", "exit-0.json", "job.json", "log-0.txt"])
def test_a_file_of_a_batch_on_slurm_may_hold_anything(slurm: SlurmProvider, tmp_path: Path, name: str) -> None:
    batch_id = slurm.submit(batch_file(slurm.codec(SPEC)), SPEC, "tag")
    file = tmp_path / "jobs" / batch_id / name
    note = {"name": batch_id, "comment": "", "job_id": "1", "task": 0, "state": "FAILED", "reason": "", "ended_at": 1.0}
    whole = file.read_bytes() if file.exists() else json.dumps(note | {"code": 1, "canceled": False}).encode()
    (file.parent / "out-0.odd.part").write_bytes(PAGE)
    for body in odd_bodies(whole, len(name)):
        file.write_bytes(body)
        told(slurm, batch_id)


@contextmanager
def ray_at(folder: Path) -> Iterator[RayProvider]:
    """Give a provider of a cluster that refuses connections."""
    with odd_server(lambda *_: {}) as url:
        yield RayProvider(url.removesuffix("/v1"), str(folder), RayAnswers(call="a:b"), timeout_seconds=1.0)


@pytest.mark.parametrize("which", ["ended", "started", "plan"])
def test_a_file_of_a_shard_on_ray_may_hold_anything(tmp_path: Path, which: str) -> None:
    with ray_at(tmp_path) as provider:
        batch_id = provider._id("tag")
        folder = tmp_path / "tag"
        (folder / "results").mkdir(parents=True)
        (folder / "results" / "odd-name.jsonl").write_bytes(PAGE)
        whole = {
            ended(batch_id): b'{"at": 1.0, "rows": 3}',
            started(batch_id): b'{"at": 1.0}',
            PLAN: b'{"requests": 3}',
        }
        for name, body in whole.items():
            (folder / name).write_bytes(body)
        name = {"ended": ended(batch_id), "started": started(batch_id), "plan": PLAN}[which]
        for body in odd_bodies(whole[name], len(name)):
            (folder / name).write_bytes(body)
            try:
                found = provider._report_by_files(batch_id)
            except LLMBatchError as error:
                assert isinstance(error, TransientError)  # noqa: PT017 -- any of ours may come
            else:
                assert found is None or is_kept(found)
            assert provider._files(batch_id).rows_done() == 0


@pytest.mark.parametrize("said", ["<!DOCTYPE html><title>404</title>", "404: Not Found", "404 page not found"])
def test_another_servers_404_is_not_rays_word_that_it_knows_no_job(said: str) -> None:
    error = RuntimeError(f"Request failed with status code 404: {said}.")
    found = provider_error(error, "read the job")
    assert isinstance(found, TransientError)
    assert not isinstance(found, UnknownJobError)
    assert isinstance(provider_error(RuntimeError("status code 404: Job x does not exist"), "read"), UnknownJobError)


@pytest.mark.parametrize("odd", [None, -1, 10**400, "x", float("nan"), float("inf"), [], True])
def test_times_and_codes_of_a_job_on_ray_may_be_anything(odd: Any) -> None:
    job = SimpleNamespace(
        status="FAILED", error_type="odd", driver_exit_code=1, message="\ud800\x00", start_time=odd, end_time=odd
    )
    report = read_job("id", job, None, None)
    assert report.created_at is None
    assert report.reason is not None
    assert is_clean(report.reason)
