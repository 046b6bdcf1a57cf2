"""A provider's clock beside ours: "since the create call" is said in our time, and looked up in theirs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

__all__ = ["listed_since"]

_MARGIN = timedelta(minutes=10)


def listed_since(sent_at: datetime, headers: Any) -> datetime:
    """Since when, by the clock of who answers with these headers, a batch may be that was sent at this time of ours.

    Where our clock is ahead of theirs, by the header `Date`, it was earlier there: a batch that is overlooked is paid
    twice. Batches older than this need not be looked at.
    """
    try:
        theirs = parsedate_to_datetime(headers["date"])
        ahead = max(timedelta(), datetime.now(UTC) - theirs.astimezone(UTC))
    except (KeyError, TypeError, ValueError):  # it sends none, or none that can be read
        ahead = timedelta()
    return sent_at - ahead - _MARGIN
