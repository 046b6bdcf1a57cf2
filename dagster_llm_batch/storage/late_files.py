"""Files of a payload store that are synced together, some time after each has its name.

A sync waits for the disk, and many at once wait hardly longer than one. Until `sync` has returned, a crash of the
machine, not of the process, can leave a file damaged, which its digest tells: nothing may be recorded that needs it.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from dagster_llm_batch.storage.payloads import PayloadStore, sync_path

__all__ = ["LateStore"]

# A disk takes no more at once.
_AT_ONCE = 16


class LateStore(PayloadStore):
    """The files of another store. On a local disk, what is written through this one is synced by `sync` alone."""

    def __init__(self, store: PayloadStore) -> None:
        vars(self).update(vars(store))
        self._written: deque[Path] = deque()

    def _place(self, staged: Path, full: Path) -> None:
        staged.replace(full)
        self._written.append(full)

    def sync(self) -> None:
        """Return when all that was written before is on disk."""
        written: dict[Path, None] = {}
        # Others may write meanwhile.
        while self._written:
            written[self._written.popleft()] = None
        for paths in (list(written), list({path.parent: None for path in written})):
            with ThreadPoolExecutor(_AT_ONCE, "dagster-llm-batch sync") as pool:
                spread = pool.map if len(paths) > 1 else map
                list(spread(_sync, paths))


def _sync(path: Path) -> None:
    # What was removed since is needed no more.
    with suppress(FileNotFoundError):
        sync_path(path)
