"""Python's garbage collector is paused for some work, and always resumes after it, whatever other threads do."""

from __future__ import annotations

import gc
import sys
from contextlib import ExitStack
from types import FrameType
from typing import Any

from dagster_llm_batch.core.memory import uncollected


def test_the_garbage_collector_runs_again_where_two_threads_held_it_up_and_one_began_as_the_other_ended() -> None:
    assert gc.isenabled()
    first, second = ExitStack(), ExitStack()
    seen: list[int] = []
    first.enter_context(uncollected())

    def end_first(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and frame.f_code.co_name == "uncollected":
            seen.append(frame.f_lineno)
            # The first line checks, and the second acts on that.
            if len(seen) == 2:
                first.close()
        return end_first if frame.f_code.co_name == "uncollected" else None

    tracer = sys.gettrace()
    sys.settrace(end_first)
    try:
        second.enter_context(uncollected())
    finally:
        sys.settrace(tracer)
    second.close()
    is_on = gc.isenabled()
    gc.enable()
    assert is_on
