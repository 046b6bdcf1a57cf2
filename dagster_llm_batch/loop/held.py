"""Values that name the leases under which they are needed, and are read again once these leases are held.

A value read before its leases are taken may be out of date by then. Meanwhile another process may have settled an open
submission, or repeated a create call in doubt. So the value is read twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from dagster_llm_batch.errors import LeaseError
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.storage.ledger.leases import Lease

__all__ = ["hold_and_read"]

_T = TypeVar("_T")

# Another process adds a submission each time. More than a few in a row mean a fault in that process.
_TIMES = 10


@contextmanager
def hold_and_read(
    deployment: Deployment, read: Callable[[], tuple[set[str], _T]], wait_seconds: float | None = None
) -> Iterator[tuple[Lease, _T]]:
    """Hold the leases of the submissions that `read` names, and yield the value that it returns meanwhile.

    `read` returns ids of submissions, and a value. It is called first for the ids, and again under the leases. If it
    then names other submissions, their leases are taken, too. Raises LeaseError if another process has one.
    """
    names, _ = read()
    for _ in range(_TIMES):
        with deployment.leased(*names, wait_seconds=wait_seconds) as lease:
            present, value = read()
            if present <= names:
                yield lease, value
                return
        names = present
    raise LeaseError(
        f"Other processes planned new submissions {_TIMES} times while this one waited for {len(names)} leases. "
        "Nothing was done. Run again."
    )
