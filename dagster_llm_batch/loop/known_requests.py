"""Requests that are not asked again, because earlier submissions have asked them: 28 bytes each, at any number.

results of each shard ─▶ answered ─┐
requests of batches on their way ──┼─▶ packed ids, sorted ─▶ found by bisection, a chunk of rows at once
requests that wait for a person ───┘
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.identity import REQUEST_ID_BYTES, packed, unpacked
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.files.merged_results import FEWEST_MERGED, MergedResults
from dagster_llm_batch.files.request_files import answers_so_far, packed_ids, request_ids
from dagster_llm_batch.loop.collect import Collector
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Lane, Outcome

if TYPE_CHECKING:
    import numpy as np

    _Array = np.ndarray[Any, Any]

__all__ = ["KnownRequests", "find_known"]

_ID, _OUTCOME = "llm_request_id", "llm_outcome"


class KnownRequests:
    """Request_ids with True for a good answer, and False for an answer that may still come. Immutable.

    Args:
        settled: The packed ids with True. A bytearray of more than `few` is sorted in place, and kept.
        in_flight: The packed ids with False, unless they are in `settled`. Sorted and kept in the same way.
        few: Up to this many ids need no numpy, which takes long to load.
    """

    def __init__(self, settled: bytearray | bytes = b"", in_flight: bytearray | bytes = b"", *, few: int) -> None:
        self._few: dict[str, bool] | None = None
        self._many: list[tuple[bool, _Digests]] = []
        if len(settled) + len(in_flight) <= few * REQUEST_ID_BYTES:
            self._few = {**dict.fromkeys(unpacked(in_flight), False), **dict.fromkeys(unpacked(settled), True)}
        else:
            self._many = [
                (is_settled, _Digests(ids)) for is_settled, ids in ((False, in_flight), (True, settled)) if ids
            ]

    def __bool__(self) -> bool:
        return bool(self._few or self._many)

    def __contains__(self, request_id: str) -> bool:
        return self.find([request_id]) != [None]

    def find(self, ids: Sequence[str]) -> list[bool | None]:
        """Return the value of each request; None for a request to ask."""
        if self._few is not None:
            return list(map(self._few.get, ids))
        found: list[bool | None] = [None] * len(ids)
        for is_settled, digests in self._many if ids else []:
            for place in digests.places(ids):
                found[place] = is_settled
        return found


class _Digests:
    """Packed ids, sorted. A bytearray is sorted in place: a copy of a million ids would take 20 MB more."""

    def __init__(self, ids: bytearray | bytes) -> None:
        import numpy as np  # noqa: PLC0415 - see `few`

        self._sorted = np.frombuffer(ids if isinstance(ids, bytearray) else bytearray(ids), f"S{REQUEST_ID_BYTES}")
        self._sorted.sort()
        self._heads = self._heads_of(self._sorted)

    def places(self, ids: Sequence[str]) -> list[int]:
        """Return the places of the ids that are among these."""
        import numpy as np  # noqa: PLC0415

        sought = np.frombuffer(packed(ids), f"S{REQUEST_ID_BYTES}")
        # Comparing numbers takes a third of the time of comparing texts. Different ids may share one head.
        heads = self._heads_of(sought)
        at = np.minimum(self._heads.searchsorted(heads), len(self._sorted) - 1)
        are_there = self._sorted[at] == sought
        unsure = np.flatnonzero((self._heads[at] == heads) & ~are_there)
        if len(unsure):
            at = np.minimum(self._sorted.searchsorted(sought[unsure]), len(self._sorted) - 1)
            are_there[unsure] = self._sorted[at] == sought[unsure]
        places: list[int] = np.flatnonzero(are_there).tolist()
        return places

    @staticmethod
    def _heads_of(digests: _Array) -> _Array:
        import numpy as np  # noqa: PLC0415

        # A view of each digest's first 8 bytes. `astype` copies them once, not twice.
        return np.ndarray(len(digests), ">u8", digests, strides=(REQUEST_ID_BYTES,)).astype("u8")


def find_known(
    labeling: Labeling,
    deployment: Deployment,
    submissions: Sequence[Submission],
    *,
    again: bool,
    of: str | None = None,
) -> KnownRequests:
    """Return the requests of these submissions, newest first, that are not asked now.

    True: there is a good answer, or a final cause, so that only a person (`again`) may ask. False: it is in flight.
    For a cascade, the requests are those to one model, by default its own, since the oracle's answers do not count for
    it. They are all False, because the other model may still be asked.
    """
    is_cascade, model = labeling.cascade is not None, of or labeling.model
    # If a reply of a cascade's own model does not fit, the oracle answers.
    is_final = is_cascade and of is None and not again
    found = _Found(deployment, [Outcome.SUCCEEDED.value, *([Outcome.INVALID.value] if is_final else [])])
    collector = Collector(labeling, deployment)
    stored = deployment.ledger.shards.of_submissions([submission.submission_id for submission in submissions])
    oldest_first = [shard for submission in reversed(submissions) for shard in stored[submission.submission_id]]
    copies = {} if is_cascade else _find_copies(collector, deployment.payloads, oldest_first)
    for submission in submissions:
        shards = stored[submission.submission_id]
        if collector.restore(shard for shard in shards if shard.shard_id not in copies):
            # Shards that lost answers for good have a cause now.
            shards = deployment.ledger.shards.of_submission(submission.submission_id)
        for shard in sorted(shards, key=_place, reverse=True):
            if shard.shard_id in copies:
                # A copy is added at the place of its newest shard.
                if (copy := copies[shard.shard_id]) is not None:
                    found.add_copy(*copy)
            elif not is_cascade or shard.asked_of == model:
                found.add(shard)
    in_flight, few = found.in_flight, deployment.few_known
    if not again:
        left = sorted(found.left)
        known = KnownRequests(in_flight=in_flight, few=few).find(left)
        found.answered += packed(one for one, is_known in zip(left, known, strict=True) if is_known is None)
    if is_cascade:
        return KnownRequests(in_flight=in_flight + found.answered, few=few)
    return KnownRequests(found.answered, in_flight, few=few)


_Copies = Mapping[str, tuple[Shard, Sequence[Shard]] | None]
"""By id of each shard in a merged copy: for the newest in a copy, the shard that stands for it, and its parts."""


def _find_copies(collector: Collector, payloads: PayloadStore, shards: Sequence[Shard]) -> _Copies:
    """Return the merged copies of these shards, oldest first. Copies with shards that wait for a person are
    left out.
    """
    answered = [shard for shard in shards if shard.has_answers]
    if len(answered) < FEWEST_MERGED or any(shard.results_path and not shard.has_answers for shard in shards):
        return {}
    copies: dict[str, tuple[Shard, Sequence[Shard]] | None] = {}
    for copy, merged in MergedResults(payloads, collector.schema).find(answered):
        if all(shard.state is ShardState.COLLECTED and not shard.waits_for_person for shard in merged):
            copies |= dict.fromkeys(shard.shard_id for shard in merged)
            copies[merged[-1].shard_id] = (copy, merged)
    return copies


@dataclass
class _Found:
    """The requests of shards, newest first. `answered` and `in_flight` are packed.

    `newer` has the unanswered requests of the shards so far, which are newer than the next one. `left` has the
    unanswered requests that wait for a person.
    """

    deployment: Deployment
    answers: Sequence[str]
    answered: bytearray = field(default_factory=bytearray)
    in_flight: bytearray = field(default_factory=bytearray)
    left: set[str] = field(default_factory=set)
    newer: set[str] = field(default_factory=set)

    def add(self, shard: Shard) -> None:
        payloads = self.deployment.payloads
        # An abandoned shard that has ended after all keeps its earlier results until it is collected.
        if shard.results_path and shard.state is ShardState.COLLECTED:
            unanswered = set(self._unanswered(shard.results_path))
            if shard.waits_for_person:
                self.left |= unanswered - self.newer
            self.newer |= unanswered
        elif shard.state is not ShardState.PLANNED and shard.batch.sent_at is not None:
            self.in_flight += packed_ids(payloads, shard)
        elif shard.lane is Lane.REALTIME and (so_far := answers_so_far(payloads, shard)):
            ids = request_ids(payloads, shard)
            self.in_flight += packed(ids[place] for place in so_far)

    def add_copy(self, copy: Shard, shards: Sequence[Shard]) -> None:
        """Add the requests of a merged copy, or of its shards if another process has erased or pruned the copy."""
        try:
            self.add(copy)
        except FileNotFoundError:
            for shard in reversed(shards):
                self.add(shard)

    def _unanswered(self, path: str) -> Iterator[str]:
        """Record the requests of these results that have an answer, and yield the others."""
        good = pa.array(self.answers, pa.string())
        for batch in self.deployment.payloads.iter_batches(path, columns=[_ID, _OUTCOME]):
            ids = batch.column(0)
            are_good = pc.is_in(batch.column(1).cast(pa.string()), good)
            self.answered += packed(_texts(ids.filter(are_good)))
            yield from _texts(ids.filter(pc.invert(are_good)))


def _texts(column: pa.Array) -> Iterable[str]:
    texts: list[str] = column.to_pylist()
    return texts


def _place(shard: Shard) -> tuple[int, int]:
    return (shard.wave, shard.number)
