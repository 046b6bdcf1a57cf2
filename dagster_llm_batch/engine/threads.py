"""Threads for calls that wait on a network."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

__all__ = ["Threads"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Threads(ThreadPoolExecutor):
    """A pool whose calls see the caller's context variables: a span of OpenTelemetry finds its parent there."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        call = partial(fn, *args, **kwargs)
        return super().submit(copy_context().run, call)  # a copy each: two threads cannot be in one at a time
