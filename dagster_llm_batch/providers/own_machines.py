"""What providers share whose models run on the user's own machines: `command`, `slurm`, `ray`.

They read and write OpenAI's batch files, nobody bills them, and whose answers these are is told by what answers.
"""

from __future__ import annotations

from dagster_llm_batch.providers.openai_lines import OpenAILines
from dagster_llm_batch.types import Limits, RequestSpec

__all__ = ["OwnMachines"]


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
