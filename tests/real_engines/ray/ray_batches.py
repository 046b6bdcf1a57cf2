"""Helpers of the tests of Ray: providers, requests, and waits without timing."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster import ADDRESS

from dagster_llm_batch.providers.ray.answers import RayAnswers
from dagster_llm_batch.providers.ray.provider import RayProvider
from dagster_llm_batch.types import BatchReport, Request, RequestSpec, Result

JOBS = Path(__file__).with_name("jobs")
SPEC = RequestSpec("m")


def shouting(
    storage: Path, call: str = "shouting:shout", headers: Mapping[str, str] | None = None, **more: Any
) -> RayProvider:
    """Return the provider over the callables of these tests."""
    answers = RayAnswers(call=call, requests_at_once=more.pop("at_once", 4), rows_per_file=more.pop("rows", 5), **more)
    environment = {"working_dir": str(JOBS), "env_vars": {"SHOUTING": str(storage.parent)}}
    return RayProvider(ADDRESS, str(storage), answers, runtime_env=environment, headers=headers)


def asked(folder: Path) -> list[tuple[int, str]]:
    """Return process and text of each row that a worker was asked for."""
    path = folder / "asked"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), text) for pid, text in (line.split(" ", 1) for line in lines)]


def batch_file(provider: RayProvider, texts: Iterable[str], spec: RequestSpec = SPEC) -> io.BytesIO:
    """Requests n-0, n-1, … as a request file."""
    codec = provider.codec(spec)
    return io.BytesIO(b"".join(codec.encode(Request(f"r{i}", None, text), f"n-{i}") for i, text in enumerate(texts)))


def submit(provider: RayProvider, texts: Iterable[str], tag: str, spec: RequestSpec = SPEC) -> str:
    return provider.submit(batch_file(provider, texts, spec), spec, tag)


def until(holds: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until it holds. The limit only ends a hopeless test."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.2)


def report(provider: RayProvider, batch_id: str) -> BatchReport:
    return provider.poll([batch_id])[batch_id]


def wait_for_end(provider: RayProvider, batch_id: str) -> BatchReport:
    until(lambda: report(provider, batch_id).status.is_terminal)
    return report(provider, batch_id)


def results(provider: RayProvider, batch_id: str, spec: RequestSpec = SPEC) -> dict[str | None, Result]:
    codec = provider.codec(spec)
    read = [codec.decode(line) for line in provider.fetch(batch_id)]
    assert len({result.custom_id for result in read}) == len(read), "a row has two lines"
    return {result.custom_id: result for result in read}
