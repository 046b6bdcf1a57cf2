"""The engine: plans, sends, waits for and collects the batches of labelings. Independent of Dagster.

`Engine` and `Deployment` load all of it, so they are imported on first use. A code location that is only read does not
need them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dagster_llm_batch.definition.labeling import Fallback, Labeling, Limits, Realtime, Resend, Spend
from dagster_llm_batch.loop.status import Status

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine
    from dagster_llm_batch.loop.deployment import Deployment

__all__ = ["Deployment", "Engine", "Fallback", "Labeling", "Limits", "Realtime", "Resend", "Spend", "Status"]

_IMPORTED_ON_USE = {"Deployment": "dagster_llm_batch.loop.deployment", "Engine": "dagster_llm_batch.engine.engine"}


def __getattr__(name: str) -> Any:
    module = _IMPORTED_ON_USE.get(name)
    if module is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(module), name)
