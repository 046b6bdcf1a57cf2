"""Threads for calls that wait on a network."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from dagster_llm_batch.core.memory import release_all_memory

__all__ = ["Threads"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Threads(ThreadPoolExecutor):
    """A pool whose calls see the caller's context variables: a span of OpenTelemetry finds its parent there.

    At the end of `with`, also by an error, what has begun goes on to its end and nothing else begins.
    """

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        call = partial(fn, *args, **kwargs)
        return super().submit(copy_context().run, call)  # a copy each: two threads cannot be in one at a time

    def __exit__(self, *_error: object) -> None:
        self.shutdown(cancel_futures=True)
        release_all_memory()  # of the threads: each has its own
