"""Polling many batches in few calls: a few one by one, many from list pages first and what those lack one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from dagster_llm_batch.errors import CredentialsError, ProviderError, TransientError
from dagster_llm_batch.types import BatchReport, BatchStatus

__all__ = ["poll_batches", "walk_pages"]

_Batch = TypeVar("_Batch")

_FEW = 4  # up to here, one call a batch
_SINGLE_AT_MOST = 100  # calls; what a sensor's tick has time for
_MAX_FAILURES = 3  # then the provider is not well; the rest waits for the next time


def poll_batches(
    batch_ids: Sequence[str],
    listed: Callable[[Collection[str]], Iterable[tuple[str, BatchReport]]],
    one: Callable[[str], BatchReport],
) -> Mapping[str, BatchReport]:
    """Reports by batch id; a batch that cannot be read now, or for which there is no time, is left out.

    Args:
        batch_ids: The batches.
        listed: Those of the wanted ones that list pages show. It gets them in their order.
        one: One batch, by a call of its own.

    Raises the first ProviderError where not one batch could be read.
    """
    wanted = dict.fromkeys(batch_ids)
    reports: dict[str, BatchReport] = {}
    failures: list[ProviderError] = []
    if len(wanted) > _FEW:
        try:
            for batch_id, report in listed(wanted):
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
    return {batch_id: reports[batch_id] for batch_id in wanted if batch_id in reports}


def walk_pages(
    wanted: Collection[str],
    page: Callable[[str | None], tuple[dict[str, _Batch], bool]],
    read: Callable[[_Batch], BatchReport],
    one: Callable[[str], BatchReport],
    most: int,
) -> Iterator[tuple[str, BatchReport]]:
    """What a list tells of the wanted batches, which best come in its order, newest first.

    A page without any of them is left behind: the next one wanted is read by itself, and the list goes on after it. So
    what lies deep in a long list costs no walk from its top. Where that finds nothing, the order is another one, and
    the list is walked as it is.

    Args:
        wanted: The batches.
        page: The batches of the page after this one (None: from the top), and whether more follow.
        read: A listed batch as a report.
        one: One batch, by a call of its own.
        most: Pages at most.
    """
    left = dict.fromkeys(wanted)
    after: str | None = None
    before: str | None = None  # the page from which it was left
    jumped, in_order = False, True
    for _ in range(most):
        batches, has_more = page(after)
        here = [batch_id for batch_id in batches if batch_id in left]
        for batch_id in here:
            del left[batch_id]
            yield batch_id, read(batches[batch_id])
        if jumped and not here:
            after, jumped, in_order = before, False, False
            continue
        if not left or (not has_more and not in_order):
            return
        jumped = in_order and not (here and has_more)
        before = after = next(reversed(batches), None)
        if jumped:
            after = (yield from _first_that_is_there(left, one)) or before
            jumped = after != before
        if not left:
            return


def _first_that_is_there(
    left: dict[str, None], one: Callable[[str], BatchReport]
) -> Generator[tuple[str, BatchReport], None, str | None]:
    """Takes batches out of `left` and reads them until there is one that a list can go on after."""
    for batch_id in list(islice(left, _MAX_FAILURES)):
        del left[batch_id]
        try:
            report = one(batch_id)
        except TransientError:
            continue
        yield batch_id, report
        if report.status is not BatchStatus.NOT_FOUND:
            return batch_id
    return None
