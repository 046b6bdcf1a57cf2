"""The engine: plans, sends, waits for and collects the batches of labelings. It knows nothing of Dagster.

`Engine` loads all of that, and is loaded when it is asked for: a code location that is only read does without.
"""

from typing import TYPE_CHECKING, Any

from dagster_llm_batch.engine.labeling import Fallback, Labeling, RetryPolicy
from dagster_llm_batch.engine.status import Status

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["Engine", "Fallback", "Labeling", "RetryPolicy", "Status"]


def __getattr__(name: str) -> Any:
    if name != "Engine":
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from dagster_llm_batch.engine.engine import Engine  # noqa: PLC0415 - see above

    return Engine
