"""The end of an emulator's batches, for tests that wait in their own process for something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dagster_llm_batch.testing.emulator import Emulator

_LOOK_SECONDS = 0.01


@contextmanager
def settles_after(emulator: Emulator, holds: Callable[[], object]) -> Iterator[None]:
    """Let all batches end once it holds, from another thread. The block must last until then."""
    is_over = threading.Event()

    def settle() -> None:
        while not holds() and not is_over.wait(_LOOK_SECONDS):
            pass
        emulator.settle()

    thread = threading.Thread(target=settle)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
