"""Deletes request files and documents at their providers that are no longer needed, some in each tick."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster import SensorEvaluationContext

    from dagster_llm_batch.engine.engine import Engine

__all__ = ["remove_request_files"]

# Times until which request files and documents stay: by name of a provider that could not delete them, and by batches
# whose file is still needed. To find the latter, all stored data of the batch is read.
_left_until: dict[str, datetime] = {}
_LEFT_FOR = timedelta(hours=1)
_FILES_AT_MOST = 20


def remove_request_files(
    context: SensorEvaluationContext, engine: Engine, now: datetime, has_time: Callable[[], bool]
) -> None:
    """Delete some request files and documents at their providers that are no longer needed."""
    from dagster_llm_batch.upkeep.uploads import UploadRemover  # noqa: PLC0415 - it loads all that a run needs

    for name in [name for name, until in _left_until.items() if until <= now]:
        del _left_until[name]
    removal = UploadRemover(engine.deployment).remove_files(
        besides=_left_until.keys(), most=_FILES_AT_MOST, has_time=has_time
    )
    _left_until.update(dict.fromkeys(removal.kept, now + _LEFT_FOR))
    _leave(context, removal.troubles, now, "Request files")
    from dagster_llm_batch.upkeep.stored_documents import DocumentRemover  # noqa: PLC0415 - likewise

    documents = DocumentRemover(engine.deployment)
    due = documents.due(besides=_left_until.keys(), limit=_FILES_AT_MOST)
    _leave(context, documents.remove_files(due, has_time=has_time).troubles, now, "Documents")


def _leave(context: SensorEvaluationContext, troubles: dict[str, str], now: datetime, files: str) -> None:
    for name, reason in troubles.items():
        # The files cost nothing, so only `doctor` reports this.
        _left_until[name] = now + _LEFT_FOR
        context.log.warning(f"{files} at {name} could not be deleted, which is tried again: {reason}")
