"""A user's command as words, with the places for input, output and model. Pure. No shell is involved."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from dagster_llm_batch.errors import ConfigError

__all__ = ["checked_command", "filled"]

_PLACEHOLDER = re.compile(r"\{(input|output|model)\}")


def checked_command(command: Sequence[str]) -> tuple[str, ...]:
    """The command. Raises ConfigError for a string, and where {input} or {output} is missing."""
    if isinstance(command, str) or not command:
        raise ConfigError(f"command is a list of words, as in ['vllm', 'run-batch', …]; got {command!r}.")
    for word in ("{input}", "{output}"):
        if not any(word in part for part in command):
            raise ConfigError(f"The command {shlex.join(command)!r} lacks the placeholder {word}.")
    return tuple(command)


def filled(command: Sequence[str], source: Path, target: Path, model: str) -> list[str]:
    """The command's words with {input}, {output} and {model} replaced, each once: a model's name is not looked into."""
    values = {"input": str(source), "output": str(target), "model": model}
    return [_PLACEHOLDER.sub(lambda match: values[match[1]], part) for part in command]
