"""The answer to one call in real time, with the provider's wish to be left alone for a while."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dagster_llm_batch.errors import ProviderError, TransientError

__all__ = ["answer_line"]


def answer_line(answer: Mapping[str, Any], failure: ProviderError | None = None) -> bytes:
    """Its raw result line. `failure` is what went wrong: one that names a wait is raised, with the line."""
    line = json.dumps(answer, separators=(",", ":")).encode("ascii") + b"\n"
    if isinstance(failure, TransientError) and failure.retry_after_seconds:
        raise TransientError(str(failure), failure.retry_after_seconds, line)
    return line
