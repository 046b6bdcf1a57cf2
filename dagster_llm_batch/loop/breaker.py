"""Stops a submission that pays for useless replies: after a wave in which almost nothing fits, sending stops.

A server may alter every custom_id, lose every result or answer in another form. It would do so again in the next wave,
which is paid again. So each wave is judged before more is sent: before the rest of the same wave, and before the next
wave. The decision is an event in the ledger, and final for the submission. A person fixes the cause and then runs
`dagster-llm-batch retry`, which shows the price first.

Only requests that were, or may have been, billed are judged: `succeeded` fits, `invalid` and `missing` do not. Outcomes
without a cost are no evidence about the server: `expired`, `canceled`, and errors of capacity or refusal.

A wave of too few requests is judged by the batches that it shares with other submissions. Otherwise a hundred
partitions of four rows each, sent in one batch, would all be paid again after a batch without fitting replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby, islice

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.identity import custom_id, is_padding, request_id_of
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.files.request_files import request_ids
from dagster_llm_batch.loop.collect import Collector
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.status import retry_command
from dagster_llm_batch.states import HoldReason
from dagster_llm_batch.storage.ledger.events import Stopped
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.text import plain_text
from dagster_llm_batch.types import Lane, Outcome

__all__ = ["Breaker"]

_MISFITS = (Outcome.MISSING.value, Outcome.INVALID.value)

# Fewer judged requests are no evidence: if half of a model's replies fit, one wave of ten in a thousand has no fitting
# reply by chance.
_LEAST_REQUESTS = 10

# Up to this share of the judged requests may fit in a broken wave: some faults let a few replies through.
_MOST_FITTING = 0.05

# Lines of a raw file that are searched for a custom_id that was not asked.
_LINES_LOOKED_AT = 100
_ROWS_AT_ONCE = 65_536
_EXAMPLE_CHARS = 120


class Breaker:
    """Judge waves of submissions of one labeling."""

    def __init__(self, labeling: Labeling, deployment: Deployment) -> None:
        self._labeling = labeling
        self._deployment = deployment
        self._ledger = deployment.ledger
        self._payloads = deployment.payloads

    @cached_property
    def _collector(self) -> Collector:
        # A first wave needs no collector, because there is nothing to judge.
        return Collector(self._labeling, self._deployment)

    def stops_rest(self, submission: Submission, shards: Sequence[Shard]) -> bool:
        """Return whether the planned shards of the present wave must not be sent.

        Reads nothing before a shard of the wave is collected. `shards` are all shards of the submission.
        """
        wave = _wave(shards, submission.waves)
        return any(shard.results_path for shard in wave) and self.stops(submission, [(wave, shards)])

    def stops(self, submission: Submission, waves: Iterable[tuple[Sequence[Shard], Sequence[Shard]]]) -> bool:
        """Return whether sending must stop because one of these waves is broken; record the reason once.

        `waves` are the shards of a wave, each with all shards of its submission.
        """
        if self._ledger.holds.of([submission.submission_id], HoldReason.UNFIT):
            return True
        for wave, siblings in waves:
            if (reason := self._judge(wave, siblings, submission)) is not None:
                self._ledger.events.add(submission.submission_id, reason)
                return True
        return False

    def _judge(self, wave: Sequence[Shard], siblings: Sequence[Shard], submission: Submission) -> Stopped | None:
        """Return why the wave is broken; None if it is not."""
        collected = [shard for shard in wave if shard.results_path and not _says_nothing(shard)]
        if not collected or not _is_telling(wave, siblings):
            return None
        sample = f"round {wave[0].wave}"
        counts = self._count(collected)
        if _judged(counts) < _LEAST_REQUESTS:
            sample = f"a batch that {sample} shares with other partitions"
            counts = self._count_batches(collected)
        judged, fitting = _judged(counts), counts[Outcome.SUCCEEDED.value]
        if judged < _LEAST_REQUESTS or fitting > _MOST_FITTING * judged:
            return None
        misfits = ", ".join(f"{counts[name]:,} {name}" for name in _MISFITS if counts[name])
        return Stopped(
            f"{judged - fitting:,} of {judged:,} requests of {sample} got no reply that fits ({misfits}), so "
            "nothing more is sent",
            f"Mend the cause; then `{retry_command(submission)}` asks again for the rows without a label, and shows "
            "the price first",
            self._example(collected, submission),
        )

    def _count(self, shards: Sequence[Shard]) -> Counter[str]:
        """Count the outcomes of these shards' requests, until they certainly show a sound wave."""
        counts: Counter[str] = Counter()
        enough = max(_LEAST_REQUESTS, _MOST_FITTING * count_requests(shards))
        for shard in shards:
            counts += self._collector.count_outcomes(shard)
            # One shard of a sound wave is mostly enough; then the results of the others are not read.
            if counts[Outcome.SUCCEEDED.value] > enough:
                break
        return counts

    def _count_batches(self, wave: Sequence[Shard]) -> Counter[str]:
        """Count the outcomes of all requests in the batches of these shards. Empty if they share no batch."""
        ids = {(shard.provider, shard.account, shard.batch.batch_id or shard.shard_id): shard for shard in wave}
        batches = {batch: self._ledger.shards.of_batch(shard) for batch, shard in ids.items()}
        counts: Counter[str] = Counter()
        if all(shard.submission_id == wave[0].submission_id for shards in batches.values() for shard in shards):
            return counts
        # The count is cached. Otherwise a thousand partitions of one broken batch would each read all its results.
        counted = self._deployment.batch_outcomes
        for batch, shards in batches.items():
            outcomes = counted.get(batch) or self._count(self._telling(shards))
            counts += outcomes
            # A smaller count may be incomplete: a process that died while it stored a batch's lines leaves some to
            # fetch.
            if _judged(outcomes) >= _LEAST_REQUESTS:
                counted[batch] = outcomes
        return counts

    def _telling(self, shards: Sequence[Shard]) -> list[Shard]:
        """Return the shards of a batch whose outcomes are evidence about the server."""
        telling = []
        for submission_id, own in groupby(sorted(shards, key=_submission_id), key=_submission_id):
            siblings = self._ledger.shards.of_submission(submission_id)
            telling += [shard for shard in own if _is_telling(_wave(siblings, shard.wave), siblings)]
        return telling

    def _example(self, shards: Sequence[Shard], submission: Submission) -> str:
        """Describe one row, and the defect of its reply."""
        columns = ["llm_request_id", "llm_outcome", "llm_reason"]
        for shard in shards:
            results = self._payloads.read_table(shard.results_path or "", columns)
            is_misfit = pc.is_in(results["llm_outcome"].cast(pa.string()), pa.array(_MISFITS))
            for misfit in results.filter(is_misfit).slice(0, 1).to_pylist():
                request_id, reason = misfit["llm_request_id"], misfit["llm_reason"] or misfit["llm_outcome"]
                if misfit["llm_outcome"] == Outcome.MISSING.value:
                    reason = self._stray(shard, request_id) or reason
                return f"{self._row(submission, request_id)}: {plain_text(reason, 3 * _EXAMPLE_CHARS)}"
        # The results may have been pruned meanwhile.
        return "none is left to show"

    def _row(self, submission: Submission, request_id: str) -> str:
        """Name the first row that makes this request by its key."""
        key = self._labeling.key
        batches = self._payloads.iter_batches(submission.manifest, _ROWS_AT_ONCE, [key, "llm_request_id"])
        for batch in batches:
            rows = batch.filter(pc.equal(batch["llm_request_id"], request_id))
            if len(rows):
                return f"row {plain_text(rows[key][0].as_py(), _EXAMPLE_CHARS)!r}"
        # The request is of a row that only another submission has.
        return f"request {request_id}"

    def _stray(self, shard: Shard, request_id: str) -> str | None:
        """Describe a result line that does not belong to the shard's batch, and name the expected custom_id."""
        expected = custom_id(shard.nonce, request_id)
        codec = self._deployment.codec(self._labeling.by(f"{shard.provider}/{shard.model}"))
        # Lines of a shared batch that name no shard are stored with the lines of its first shard.
        first, *_ = self._ledger.shards.of_batch(shard)
        for stored in (shard,) if first.shard_id == shard.shard_id else (shard, first):
            asked = set(request_ids(self._payloads, stored))
            for line in islice(self._collector.raw_lines(stored), _LINES_LOOKED_AT):
                if line.isspace():
                    continue
                got = codec.decode(line).custom_id
                if got is None:
                    shown = plain_text(line.decode("utf-8", "replace"), _EXAMPLE_CHARS)
                    return f"a result line cannot be read: {shown!r}"
                named = request_id_of(got, stored.nonce)
                if named is None or not (named in asked or is_padding(named)):
                    shown = plain_text(got, _EXAMPLE_CHARS)
                    return f"results name custom_ids that were not asked, such as {shown!r} where {expected!r} was"
        return None


def _is_telling(wave: Sequence[Shard], siblings: Sequence[Shard]) -> bool:
    """Return whether the wave has at least half as many requests as the largest of its submission.

    A later wave has only the requests that failed before, in the end a few rows that never get a fitting reply. Their
    failures are no evidence about the server, and such rows may still go to the next model.
    """
    sizes = {number: count_requests(_wave(siblings, number)) for number in {shard.wave for shard in siblings}}
    return 2 * count_requests(wave) >= max(sizes.values())


def _submission_id(shard: Shard) -> str:
    return shard.submission_id


def _judged(counts: Counter[str]) -> int:
    return sum(counts[name] for name in (Outcome.SUCCEEDED.value, *_MISFITS))


def _wave(shards: Iterable[Shard], number: int) -> list[Shard]:
    return [shard for shard in shards if shard.wave == number]


def _says_nothing(shard: Shard) -> bool:
    """Return whether answers are missing for a reason that is no evidence about the server's replies.

    Either our own process died while it asked in real time, or the batch was canceled, abandoned or lost its results.
    """
    was_interrupted = shard.lane is Lane.REALTIME and shard.reason_kind is not None
    return was_interrupted or shard.waits_for_person
