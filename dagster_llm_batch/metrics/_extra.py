"""One way to load the optional dependencies: inside the function that needs them, with an error that says what to
install.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dagster_llm_batch.errors import MissingExtraError

__all__ = ["evaluation_extra"]


@contextmanager
def evaluation_extra(needed_for: str) -> Iterator[None]:
    """Wraps lazy imports: a module that is not installed becomes MissingExtraError, naming the extra `evaluation`."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError("evaluation", needed_for) from error
