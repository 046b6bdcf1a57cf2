"""What went wrong partition by partition, told at the end of a run so that the neighbours land first."""

from __future__ import annotations

import dagster as dg

from dagster_llm_batch.errors import LLMBatchError

__all__ = ["Failures"]


class Failures:
    """Collects what went wrong in each partition of a run over `partitions` of them."""

    def __init__(self, context: dg.AssetExecutionContext, partitions: int) -> None:
        self._context = context
        self._partitions = partitions
        self._errors: dict[str | None, Exception] = {}

    def add(self, partition: str | None, error: Exception) -> None:
        """Remember and log one. Where nothing else is in the run, an error that is not ours goes on as it is."""
        ours = isinstance(error, LLMBatchError)
        if self._partitions == 1 and not ours:
            raise error
        self._errors[partition] = error
        where = "" if partition is None else f"{partition}: "
        self._context.log.error(f"{where}{type(error).__name__}: {error}", exc_info=None if ours else error)

    def raise_if_any(self) -> None:
        """Raise one dg.Failure for all of them. Dagster marks the partitions that did not land as failed."""
        if not self._errors:
            return
        first = next(iter(self._errors.values()))
        told = [(partition, f"{type(error).__name__}: {error}") for partition, error in self._errors.items()]
        if self._partitions == 1:
            description = told[0][1]
        else:
            lines = "\n".join(f"- {partition}: {text}" for partition, text in told)
            description = f"{len(told)} of {self._partitions} partitions failed; the others are done.\n{lines}"
        raise dg.Failure(description, allow_retries=self._partitions == 1) from first
