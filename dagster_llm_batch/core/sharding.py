"""Where one shard ends and the next begins. Counts the bytes that are written, not those of the body alone."""

from __future__ import annotations

from dataclasses import dataclass

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.types import Limits

__all__ = ["ShardFill", "tightest"]


def tightest(limits: Limits, max_requests: int | None = None, max_bytes: int | None = None) -> Limits:
    """The provider's limits, made smaller by the user's, never larger."""
    return Limits(
        max_requests=min(limits.max_requests, max_requests or limits.max_requests),
        max_bytes=min(limits.max_bytes, max_bytes or limits.max_bytes),
        max_line_bytes=limits.max_line_bytes,
        max_inputs=limits.max_inputs,
        min_requests=limits.min_requests,
    )


@dataclass
class ShardFill:
    """How full the current shard is."""

    limits: Limits
    requests: int = 0
    bytes: int = 0

    def __post_init__(self) -> None:
        limits = self.limits
        self._longest = min(limits.max_bytes, limits.max_line_bytes or limits.max_bytes)
        self._most = min(limits.max_requests, limits.max_inputs or limits.max_requests)

    def starts_new(self, line_bytes: int, key: object) -> bool:
        """Take one more line of this length. True where it starts a new shard; the first line does.

        Raises InputError where no shard could hold it.
        """
        if line_bytes > self._longest:
            most = f"{self._longest:,}"
            msg = (
                f"Row {key!r} makes a request of {line_bytes:,} bytes; the provider takes at most {most} in one. "
                "Shorten the row (a filter such as {{ body[:20000] }}) or leave it out; nothing was sent."
            )
            raise InputError(msg)
        if 0 < self.requests < self._most and self.bytes + line_bytes <= self.limits.max_bytes:
            self.requests += 1
            self.bytes += line_bytes
            return False
        self.requests, self.bytes = 1, line_bytes
        return True
