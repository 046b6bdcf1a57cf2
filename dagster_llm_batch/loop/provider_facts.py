"""Facts of a provider that may not work now: its account, its window, and whether it takes the credentials."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from dagster_llm_batch.protocols import DEFAULT_WINDOW, Provider
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.types import FindHints, StatusUnknown

__all__ = ["account_of", "ask_provider", "is_of_account", "window_of"]


def account_of(provider: Provider | None) -> str | None:
    """Return the provider's account; None if it is not available, for example without the provider's settings."""
    if provider is None:
        return None
    try:
        return provider.account
    except Exception:  # noqa: BLE001 - it cannot be made, or is the user's own; that is told where it is used
        return None


def is_of_account(shard: Shard, account: str | None) -> bool:
    """Return whether this account of a provider can be asked about a shard. Another would report its batch as lost."""
    return account == shard.account


def window_of(provider: Provider | None) -> timedelta:
    """Return the provider's window. If that is not available, as without settings, return the most common one."""
    if provider is None:
        return DEFAULT_WINDOW
    try:
        return provider.window
    except Exception:  # noqa: BLE001 - it cannot be made, or is the user's own; that is told where it is used
        return DEFAULT_WINDOW


def ask_provider(provider: Provider, now: datetime) -> StatusUnknown | None:
    """Look for a batch that cannot exist. To answer, the provider has to list its batches, which tests its credentials.

    Returns why the provider might miss a batch whose create call failed; None if it would not. Raises the errors of
    `Provider.find`.
    """
    nonce = f"d{uuid.uuid4().hex[:16]}"
    sighting = provider.find(f"doctor-{nonce}", FindHints(now, 1, nonce))
    return sighting if isinstance(sighting, StatusUnknown) else None
