"""What providers share whose models run on the user's own machines: `command`, `slurm`, `ray`.

They read and write OpenAI's batch files, nobody bills them, and whose answers these are is told by what answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from dagster_llm_batch.errors import RefusedError, TransientError
from dagster_llm_batch.providers.openai.requests import OpenAILines
from dagster_llm_batch.text import plain_words
from dagster_llm_batch.types import Limits, RequestSpec

__all__ = ["OwnMachines", "own_answer", "reaching"]


@contextmanager
def reaching(place: object) -> Iterator[None]:
    """What the system says of files is a matter of time: of a disk that is full, a share that is away."""
    try:
        yield
    except OSError as error:
        raise TransientError(f"Could not read or write {place}: {plain_words(error)}") from error


def own_answer(request: bytes, output: bytes, said: str) -> bytes:
    """The result line of this one request in what a command wrote. Raises RefusedError where there is none.

    `said` is what else is known of it: its exit code, the end of its log.
    """
    wanted = _id_of(request)
    lines = [line for line in output.split(b"\n") if line.strip()]
    for line in lines:
        if _id_of(line) == wanted:
            return line.strip() + b"\n"
    if not lines:
        raise RefusedError(f"The command gave no answer. {said}".strip())
    start = plain_words(lines[0][:200].decode("utf-8", "replace"))
    raise RefusedError(f"The command wrote no answer to the request '{wanted}', but: {start} {said}".strip())


def _id_of(line: bytes) -> object:
    try:
        value = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value.get("custom_id") if isinstance(value, dict) else None


class OwnMachines:
    """The part of a Provider that makes no call."""

    price_book: str | None = None
    """See Provider.price_book. Nobody bills the user's own machines."""

    def __init__(self, name: str, account: str, limits: Limits, settle_seconds: float = 0.0) -> None:
        self._name = name
        self._account = account
        self._limits = limits
        self._settle_seconds = settle_seconds

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self._name!r}, account={self._account!r})"

    @property
    def name(self) -> str:
        """See Provider.name."""
        return self._name

    @property
    def account(self) -> str:
        """See Provider.account."""
        return self._account

    @property
    def settle_seconds(self) -> float:
        """See Provider.settle_seconds. 0 where starting is idempotent: sending again is always safe."""
        return self._settle_seconds

    def codec(self, spec: RequestSpec) -> OpenAILines:
        """See Provider.codec. The response schema goes out as it is: guided decoding takes more than strict mode."""
        return OpenAILines(spec, self._limits, dict)

    def console_url(self, batch_id: str) -> str | None:
        """See Provider.console_url. There is none."""
        del batch_id
        return None
