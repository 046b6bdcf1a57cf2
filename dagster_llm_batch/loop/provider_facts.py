"""Facts of a provider that may not work now: its account, its window, and whether it takes the credentials."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from dagster_llm_batch.protocols import DEFAULT_WINDOW, Provider
from dagster_llm_batch.types import CannotTell, FindHints

__all__ = ["account_of", "ask_provider", "window_of"]


def account_of(provider: Provider | None) -> str | None:
    """Return the provider's account. None where it cannot be had, as without its settings."""
    if provider is None:
        return None
    try:
        return provider.account
    except Exception:  # noqa: BLE001 - it cannot be made, or is the user's own; that is told where it is used
        return None


def window_of(provider: Provider | None) -> timedelta:
    """Return the provider's window. Where it cannot be had, as without its settings: that of most."""
    if provider is None:
        return DEFAULT_WINDOW
    try:
        return provider.window
    except Exception:  # noqa: BLE001 - it cannot be made, or is the user's own; that is told where it is used
        return DEFAULT_WINDOW


def ask_provider(provider: Provider, now: datetime) -> CannotTell | None:
    """Ask for a batch that cannot exist: the provider has to list what there is, which shows its credentials.

    Returns why it may not find a batch whose create call fails; None where it can. Raises what `Provider.find` raises.
    """
    nonce = f"d{uuid.uuid4().hex[:16]}"
    sighting = provider.find(f"doctor-{nonce}", FindHints(now, 1, nonce))
    return sighting if isinstance(sighting, CannotTell) else None
