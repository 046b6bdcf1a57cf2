"""Polling many batches in few calls: a few one by one, many from list pages first and what those lack one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from dagster_llm_batch.errors import CredentialsError, ProviderError
from dagster_llm_batch.types import BatchReport

__all__ = ["poll_batches"]

_FEW = 4  # up to here, one call a batch
_SINGLE_AT_MOST = 100  # calls; what a sensor's tick has time for
_MAX_FAILURES = 3  # then the provider is not well; the rest waits for the next time


def poll_batches(
    batch_ids: Sequence[str],
    listed: Callable[[set[str]], Iterable[tuple[str, BatchReport]]],
    one: Callable[[str], BatchReport],
) -> Mapping[str, BatchReport]:
    """Reports by batch id; a batch that cannot be read now, or for which there is no time, is left out.

    Args:
        batch_ids: The batches.
        listed: Those of the wanted ones that list pages show.
        one: One batch, by a call of its own.

    Raises the first ProviderError where not one batch could be read.
    """
    wanted = dict.fromkeys(batch_ids)
    reports: dict[str, BatchReport] = {}
    failures: list[ProviderError] = []
    if len(wanted) > _FEW:
        try:
            for batch_id, report in listed(set(wanted)):
                reports[batch_id] = report
                if len(reports) == len(wanted):
                    break
        except ProviderError as error:
            failures.append(error)
    for batch_id in [one for one in wanted if one not in reports][:_SINGLE_AT_MOST]:
        if len(failures) >= _MAX_FAILURES or any(isinstance(error, CredentialsError) for error in failures):
            break
        try:
            reports[batch_id] = one(batch_id)
        except ProviderError as error:
            failures.append(error)
    if failures and not reports:
        raise failures[0]
    return reports
