"""Partitions that failed in a run, told at its end so that their neighbours land first."""

from __future__ import annotations

import dagster as dg

from dagster_llm_batch.errors import LLMBatchError

__all__ = ["Failures"]


class Failures:
    """Collects what went wrong in each partition."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._errors: dict[str | None, LLMBatchError] = {}

    def add(self, partition: str | None, error: LLMBatchError) -> None:
        """Remember and log one."""
        self._errors[partition] = error
        self._context.log.error(f"{'' if partition is None else f'{partition}: '}{type(error).__name__}: {error}")

    def raise_if_any(self, of: int) -> None:
        """Raise one dg.Failure for all of them. Dagster marks the partitions that did not land as failed."""
        if not self._errors:
            return
        first = next(iter(self._errors.values()))
        told = [(partition, f"{type(error).__name__}: {error}") for partition, error in self._errors.items()]
        if of == 1:
            description = told[0][1]
        else:
            lines = "\n".join(f"- {partition}: {text}" for partition, text in told)
            description = f"{len(told)} of {of} partitions failed; the others are done.\n{lines}"
        raise dg.Failure(description, allow_retries=of == 1) from first
