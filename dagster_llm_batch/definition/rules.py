"""The rules of a deployment: budgets over time, and limits of the providers' queues. Values only."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

from dagster_llm_batch.arguments import checked, unknown_name
from dagster_llm_batch.core.pricing import dollars
from dagster_llm_batch.core.spend_limit import LimitKind
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.text import money_text

__all__ = ["Budget", "Period", "QueueLimit", "check_queue_limits"]

Period = Literal["day", "month", "ever"]


@checked
@dataclass(frozen=True)
class Budget:
    """The most that submissions may be billed in a period.

    Bills count, and for requests in flight the highest possible cost (core/spend_limit.py). If a submission, or a retry
    round of one, has a higher expected cost than the rest of the budget, it is refused before it sends anything.

    Args:
        max_usd: US dollars.
        period: "day" or "month" (of the calendar, UTC), or "ever". A batch that does not fit waits for the next period.
            If it can never fit, it is abandoned, and the check `coverage` reports it.
        asset: Of one labeled dataset only, by its key ("ticket_labels"). Default: of all in the namespace together.
        limit: Way to keep it: "measured" or "hard"; see Spend.
    """

    max_usd: Decimal | float | str
    period: Period = "month"
    asset: str | None = None
    limit: LimitKind = "measured"

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_usd", dollars("Budget.max_usd", self.max_usd))

    def since(self, now: datetime) -> datetime | None:
        """Return when the present period began; None for "ever"."""
        if self.period == "ever":
            return None
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight if self.period == "day" else midnight.replace(day=1)

    def __str__(self) -> str:
        scope = "all labeled datasets together" if self.asset is None else f"'{self.asset}'"
        return f"budget of {money_text(Decimal(self.max_usd))} for {scope}" + (
            "" if self.period == "ever" else f" per {self.period}"
        )


@checked
@dataclass(frozen=True)
class QueueLimit:
    """The most that may be in a provider's queue at once. The rest waits in the ledger and is sent oldest first.

    Args:
        max_batches: Batches.
        max_requests: Requests in them.
        max_tokens: Their input tokens, by estimate: OpenAI's enqueued-token limit of your tier.
    """

    max_batches: int | None = None
    max_requests: int | None = None
    max_tokens: int | None = None

    def __str__(self) -> str:
        words = {"batches": self.max_batches, "requests": self.max_requests, "tokens": self.max_tokens}
        return f"the queue limit of {', '.join(f'{most:,} {name}' for name, most in words.items() if most is not None)}"

    def __post_init__(self) -> None:
        for name in ("max_batches", "max_requests", "max_tokens"):
            if (given := getattr(self, name)) is not None and given < 1:
                msg = f"QueueLimit.{name}={given!r} lets nothing through; it is at least 1, or left out."
                raise ConfigError(msg)

    def allows(self, batches: int, requests: int, tokens: int) -> bool:
        """Return whether so much may be in the queue at once."""
        counts = ((self.max_batches, batches), (self.max_requests, requests), (self.max_tokens, tokens))
        return all(most is None or count <= most for most, count in counts)


def check_queue_limits(names: Iterable[str], providers: Collection[str]) -> None:
    """Raise ConfigError for a queue limit whose provider (`provider` or `provider/model`) is not configured."""
    for name in names:
        provider, slash, model = name.partition("/")
        if provider not in providers:
            nobody = "no provider is configured."
            reason = unknown_name("configured provider", provider, providers) if providers else nobody
            raise ConfigError(f"queue_limits has {name!r}, and {reason} Configure it, or take its limit out.")
        if slash and not model:
            raise ConfigError(
                f"queue_limits has {name!r}, which names no model. Write {provider!r}, or a model after /."
            )
