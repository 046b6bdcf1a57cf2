"""Programs on the user's own machines that read and write OpenAI's lines, as the servers for open models do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.providers.base import BaseProvider
from dagster_llm_batch.providers.openai_api.requests import OpenAILines
from dagster_llm_batch.types import BatchLimits, RequestSpec

__all__ = ["OwnMachines", "check_command", "fill_command"]

_PLACEHOLDER = re.compile(r"\{(input|output|model)\}")


def check_command(command: Sequence[str]) -> tuple[str, ...]:
    """Check a command. Raises ConfigError for a string, and where {input} or {output} is missing."""
    if isinstance(command, str) or not command:
        raise ConfigError(f"command is a list of words, as in ['vllm', 'run-batch', …]; got {command!r}.")
    for word in ("{input}", "{output}"):
        if not any(word in part for part in command):
            raise ConfigError(f"The command {shlex.join(command)!r} lacks the placeholder {word}.")
    return tuple(command)


def fill_command(command: Sequence[str], source: Path, target: Path, model: str) -> list[str]:
    """Replace {input}, {output} and {model} in a command's words, but not in the inserted values."""
    values = {"input": str(source), "output": str(target), "model": model}
    return [_PLACEHOLDER.sub(lambda match: values[match[1]], part) for part in command]


class OwnMachines(BaseProvider):
    """A provider on the user's own machines. It reads and writes OpenAI's lines, as the servers for open models do."""

    def __init__(self, name: str, account: str, limits: BatchLimits, settle_seconds: float = 0.0) -> None:
        # starting is idempotent where settle_seconds is 0: sending again is always safe
        super().__init__(name, account, price_book=None, settle_seconds=settle_seconds)
        self._limits = limits

    def codec(self, spec: RequestSpec) -> Codec:
        """See Provider.codec. The response schema goes out unchanged: guided decoding takes more than strict mode."""
        return OpenAILines(spec, self._limits, schema_rules=None)
