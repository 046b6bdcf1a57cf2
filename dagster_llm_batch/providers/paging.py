"""Lists of batches: poll many in few calls, and find the batch of a create call without an answer.

A few are polled one by one. Many are read from list pages first, and the missing ones one by one. A batch is found by
its name or, if it cannot carry an attachment, by the custom_ids of its results.

If the server ignores where a page begins, the list has no end: `unrepeated` detects this for every vendor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from dagster_llm_batch.errors import CredentialsError, ProviderError, RefusedError, TransientError
from dagster_llm_batch.types import Absent, BatchReport, BatchStatus, Found, StatusUnknown, Undecided

__all__ = ["RepeatedListError", "find_among", "find_by_results", "poll_batches", "unrepeated", "walk_pages"]

_Batch = TypeVar("_Batch")

# Up to this many batches, single calls are cheaper than a page of a list.
_FEW = 4
# A sensor's tick has 40 seconds for all providers; the rest is read by the next tick.
_MOST_SINGLE = 100
# After this many, the provider is not well, and each further call may take its whole timeout.
_MAX_FAILURES = 3


class RepeatedListError(TransientError):
    """A page of a list repeats batches of the pages before, so the rest of the list is unknown."""

    def __init__(self) -> None:
        super().__init__("The provider's list of batches gives the same page again and again.")


def unrepeated(pages: Iterable[list[_Batch]], id_of: Callable[[_Batch], str]) -> Iterator[list[_Batch]]:
    """Yield the pages of a list. Raises RepeatedListError for one that brings nothing new."""
    seen: set[str] = set()
    for page in pages:
        ids = {id_of(batch) for batch in page}
        if ids and ids <= seen:
            raise RepeatedListError
        seen |= ids
        yield page


def find_among(names: Iterable[str], known: Collection[str]) -> Found | Absent | StatusUnknown:
    """Find the batch with a tag, of all `names` with the tag; `known` are the batches of other create calls."""
    # a list that grows while it is read may show a batch on two pages
    ours: dict[str, None] = {}
    repeats: RepeatedListError | None = None
    try:
        for name in names:
            if name not in known:
                ours[name] = None
    except RepeatedListError as error:
        repeats = error
    if len(ours) > 1:
        return StatusUnknown("More than one batch carries this tag.", tuple(ours))
    if ours:
        return Found(next(iter(ours)))
    return Absent() if repeats is None else StatusUnknown(str(repeats))


def find_by_results(
    candidates: Mapping[str, bool],
    nonce: str,
    fetch: Callable[[str], Iterable[bytes]],
    custom_id_of: Callable[[bytes], str | None],
) -> Found | Absent | Undecided | StatusUnknown:
    """Find the batch that carries the shard of this nonce, if batches are identified by their results alone.

    `candidates` are the batches of the right size and time, and whether each has ended. `fetch` returns a batch's
    result lines, and raises RefusedError if they are gone.
    """
    running, unreadable = [], []
    for batch_id, has_ended in candidates.items():
        if not has_ended:
            running.append(batch_id)
            continue
        is_ours = _bears(batch_id, nonce, fetch, custom_id_of)
        if is_ours:
            return Found(batch_id)
        if is_ours is None:
            unreadable.append(batch_id)
    if unreadable:
        reason = "Batches have no names here, and the results that would tell whose these are cannot be read."
        return StatusUnknown(reason, tuple(unreadable + running))
    return Undecided(tuple(running)) if running else Absent()


def _bears(
    batch_id: str,
    nonce: str,
    fetch: Callable[[str], Iterable[bytes]],
    custom_id_of: Callable[[bytes], str | None],
) -> bool | None:
    """Return whether an ended batch has this nonce; None if all of its results are unreadable.

    Results come in any order, and a batch may carry other shards too: a batch that is not ours is read to its end.
    """
    is_readable = False
    try:
        for line in fetch(batch_id):
            custom_id = custom_id_of(line)
            if custom_id is not None and custom_id.startswith(f"{nonce}-"):
                return True
            is_readable = is_readable or custom_id is not None
    except RefusedError:
        return None
    return False if is_readable else None


def poll_batches(
    batch_ids: Sequence[str],
    list_reports: Callable[[Collection[str]], Iterable[tuple[str, BatchReport]]],
    read_report: Callable[[str], BatchReport],
    most_single: int = _MOST_SINGLE,
) -> Mapping[str, BatchReport]:
    """Read reports, by batch id. Omits a batch that cannot be read now, or for which time is up.

    Args:
        batch_ids: The batches.
        list_reports: Yields the wanted batches that list pages show; it gets them in their order.
        read_report: Reads one batch, by a separate call.
        most_single: Calls for one batch each, at most.

    Raises:
        ProviderError: The first error, if every batch failed.
    """
    wanted = dict.fromkeys(batch_ids)
    reports: dict[str, BatchReport] = {}
    failures: list[ProviderError] = []
    if len(wanted) > _FEW:
        try:
            for batch_id, report in list_reports(wanted):
                reports[batch_id] = report
                if len(reports) == len(wanted):
                    break
        except ProviderError as error:
            # if the list fails now, single calls may work: they are other addresses of the API
            failures.append(error)
    for batch_id in [batch_id for batch_id in wanted if batch_id not in reports][:most_single]:
        if len(failures) >= _MAX_FAILURES or any(isinstance(error, CredentialsError) for error in failures):
            break
        try:
            reports[batch_id] = read_report(batch_id)
        except ProviderError as error:
            failures.append(error)
    if failures and not reports:
        raise failures[0]
    return {batch_id: reports[batch_id] for batch_id in wanted if batch_id in reports}


def walk_pages(
    wanted: Collection[str],
    read_page: Callable[[str | None], tuple[dict[str, _Batch], bool]],
    read_batch: Callable[[_Batch], BatchReport],
    read_report: Callable[[str], BatchReport],
    most: int,
) -> Iterator[tuple[str, BatchReport]]:
    """Read reports of the wanted batches from pages of the list; best give them in its order, newest first.

    After a page without any of them, the next wanted batch is read by a single call, and the list goes on after it. So
    a batch deep in a long list costs no walk from its top. If this finds nothing, the list has another order, and is
    walked from page to page.

    Args:
        wanted: The batches.
        read_page: The batches of the page after this one (None: from the top), and whether more follow.
        read_batch: A listed batch as a report.
        read_report: Reads one batch, by a separate call.
        most: Pages at most.
    """
    left = dict.fromkeys(wanted)
    after: str | None = None
    # the end of the last page before a jump, to go back to
    before: str | None = None
    jumped, in_order = False, True
    for _ in range(most):
        batches, has_more = read_page(after)
        matches = [batch_id for batch_id in batches if batch_id in left]
        for batch_id in matches:
            del left[batch_id]
            yield batch_id, read_batch(batches[batch_id])
        if jumped and not matches:
            # the batch that we jumped to has no wanted neighbor: the list is in another order than we were given
            after, jumped, in_order = before, False, False
            continue
        if not left or (not has_more and not in_order):
            return
        jumped = in_order and not (matches and has_more)
        before = after = next(reversed(batches), None)
        if jumped:
            after = (yield from _next_anchor(left, read_report)) or before
            jumped = after != before
        if not left:
            return


def _next_anchor(
    left: dict[str, None], read_report: Callable[[str], BatchReport]
) -> Generator[tuple[str, BatchReport], None, str | None]:
    """Take batches out of `left` and read them, until the list can go on after one."""
    for batch_id in list(islice(left, _MAX_FAILURES)):
        del left[batch_id]
        try:
            report = read_report(batch_id)
        except TransientError:
            continue
        yield batch_id, report
        if report.status is not BatchStatus.NOT_FOUND:
            return batch_id
    return None
