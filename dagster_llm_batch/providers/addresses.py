"""Addresses of servers, checked. Pure.

Refuses an address that holds a user name or password: SDKs send them in the place of the key, and addresses are shown.
"""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from dagster_llm_batch.errors import ConfigError

__all__ = ["checked_address"]


def checked_address(url: str, what: str, example: str = "https://host/path") -> SplitResult:
    """The parts of the web address that the setting `what` holds, or ConfigError."""
    if "@" in url:
        raise ConfigError(
            f"The {what} holds a user name or a password. They would be sent in the place of the credentials, and "
            f"shown wherever the address is. Leave them out; it looks like {example!r}."
        )
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"The {what} {url!r} is no web address; it looks like {example!r}.")
    return parts
