"""Values that name the leases under which they hold, and are read again when these are held.

What is read before a lease may be another process's past by the time that it is taken: a submission that was open is
settled, a create call in doubt was made anew. So whoever needs leases that a value names reads it twice.
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

# Each time another process has added a submission since. More than a few in a row is a process gone wild.
_TIMES = 10


@contextmanager
def hold_and_read(
    deployment: Deployment, read: Callable[[], tuple[set[str], _T]], wait_seconds: float | None = None
) -> Iterator[tuple[Lease, _T]]:
    """Hold the leases of the submissions that `read` names, and yield what it returns while they are held.

    `read` returns ids of submissions, and a value. It is called before, to learn the names, and again under the leases;
    where it names others then, these are taken too. Raises LeaseError where another process has one.
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
