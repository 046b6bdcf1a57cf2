"""What the tests of providers share: requests, and patience without timing."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.providers.command import CommandProvider
from dagster_llm_batch.types import Request, RequestSpec

LABELER = Path(__file__).with_name("labeler.py")
SPEC = RequestSpec("m")


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until it holds; the limit only ends a hopeless test."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


def batch_file(codec: Codec, texts: Iterable[str] = ("one", "two", "three")) -> io.BytesIO:
    """Requests n-0, n-1, … as a request file."""
    return io.BytesIO(b"".join(codec.encode(Request(f"r{i}", None, text), f"n-{i}") for i, text in enumerate(texts)))


def labeler(workdir: Path, *options: str, **more) -> CommandProvider:
    """The command provider over the labeler of these tests."""
    words = [sys.executable, "-S", str(LABELER), "-i", "{input}", "-o", "{output}", "--model", "{model}", *options]
    return CommandProvider(words, str(workdir), **more)
