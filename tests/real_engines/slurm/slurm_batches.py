"""Helpers of the tests of Slurm: the provider over the labeler of all providers' tests, and waits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from sample_batches import LABELER, SPEC, batch_file, until

from dagster_llm_batch.providers.slurm.options import SlurmOptions
from dagster_llm_batch.providers.slurm.provider import SlurmProvider
from dagster_llm_batch.types import BatchReport


def tag_of(provider: SlurmProvider) -> str:
    """Return a separate tag for each test, like each shard's tag, since a controller keeps the jobs of all tests."""
    return f"dlb-00000000-{hashlib.blake2b(bytes(provider._workdir), digest_size=6).hexdigest()}"


def provider_on(
    workdir: Path, *flags: str, options: SlurmOptions | None = None, command: list[str] | None = None, **more
) -> SlurmProvider:
    words = command or [
        sys.executable,
        "-S",
        str(LABELER),
        "-i",
        "{input}",
        "-o",
        "{output}",
        "--model",
        "{model}",
        *flags,
    ]
    return SlurmProvider(words, str(workdir), options, python=sys.executable, **more)


def submit(provider: SlurmProvider, texts=("one", "two", "three"), tag: str | None = None) -> str:
    return provider.submit(batch_file(provider.codec(SPEC), texts), SPEC, tag or tag_of(provider))


def report(provider: SlurmProvider, batch_id: str) -> BatchReport:
    return provider.poll([batch_id])[batch_id]


def wait_for_end(provider: SlurmProvider, batch_id: str) -> BatchReport:
    until(lambda: report(provider, batch_id).status.is_terminal, seconds=120)
    return report(provider, batch_id)


def texts(provider: SlurmProvider, batch_id: str) -> dict[str | None, str | None]:
    results = [provider.codec(SPEC).decode(line) for line in provider.fetch(batch_id)]
    return {result.custom_id: result.text for result in results}


def before_real(folder: Path, monkeypatch, name: str, script: str) -> None:
    """Put a program of this name before the real one, which the script can call as "$REAL"."""
    folder.mkdir(exist_ok=True)
    real = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
    path = folder / name
    path.write_text(f"#!/bin/sh\nREAL={real}\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
