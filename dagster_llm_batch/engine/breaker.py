"""Stops a submission that pays for nothing: after a wave in which nearly nothing fits, nothing more is sent.

A server that alters every custom_id, loses every result or answers everything in another form does so again in the
next wave, and is paid again. So each wave is judged before more is sent: the rest of the wave itself where that is not
sent yet, and the next wave. What the judgement says stands in the ledger as an event, and is final for the submission:
a person who has mended the cause asks again (`dagster-llm-batch retry`), and sees the price first.

Judged are requests that were, or may have been, billed: `succeeded` fits, `invalid` and `missing` do not. Outcomes that
cost nothing are no judgement on the server: expired, canceled, and errors, be they of capacity or refusals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.identity import custom_id, is_padding, request_id_of
from dagster_llm_batch.engine.deployment import Deployment
from dagster_llm_batch.engine.labeling import Labeling
from dagster_llm_batch.engine.request_files import request_ids
from dagster_llm_batch.storage.ledger.queries import LedgerQueries
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.text import plain_text
from dagster_llm_batch.types import Lane, Outcome

__all__ = ["Breaker", "stop_reason"]

_STOPPED = "stopped"

_LEAST_REQUESTS = 10
"""Judged requests. Of a model half of whose replies fit, one wave of ten in a thousand has none that fits by chance."""

_MOST_FITTING = 0.05
"""The share of judged requests that may fit in a wave that is broken all the same: what is sent again hardly can."""

_LINES_LOOKED_AT = 100  # of a raw file, for one that names a custom_id that nobody asked under
_ROWS_AT_ONCE = 65_536
_EXAMPLE_CHARS = 120


class Breaker:
    """Judges waves of submissions of one labeling."""

    def __init__(self, labeling: Labeling, deployment: Deployment) -> None:
        self._labeling = labeling
        self._deployment = deployment
        self._payloads = deployment.payloads

    def stops_rest(self, submission: Submission, shards: Sequence[Shard]) -> bool:
        """Whether the shards of the present wave that are still planned must not be sent.

        Looks at nothing where none of the wave is collected yet. `shards` are all of the submission.
        """
        wave = _wave(shards, submission.waves)
        return any(shard.results_path for shard in wave) and self.stops(submission, [(wave, shards)])

    def stops(self, submission: Submission, waves: Iterable[tuple[Sequence[Shard], Sequence[Shard]]]) -> bool:
        """Whether nothing more may be sent, since one of these waves is broken. Says so in the ledger, once.

        `waves` are shards of a wave, each with all shards of its submission.
        """
        if stop_reason(self._deployment.ledger, submission.submission_id) is not None:
            return True
        for wave, siblings in waves:
            if (why := self._judge(wave, siblings, submission)) is not None:
                self._deployment.ledger.add_event(submission.submission_id, _STOPPED, why)
                return True
        return False

    def _judge(self, wave: Sequence[Shard], siblings: Sequence[Shard], submission: Submission) -> str | None:
        """Why the wave is broken, in words; None: it is not."""
        # A later wave has only what failed before, in the end the few rows that no reply will ever fit. Those may go on
        # to the next model: a wave is judged where it is at least half of what was sent at once.
        largest = max(Counter({n: _requests(_wave(siblings, n)) for n in {s.wave for s in siblings}}).values())
        collected = [shard for shard in wave if shard.results_path and not _was_interrupted(shard)]
        most = _requests(collected)
        if most < _LEAST_REQUESTS or 2 * _requests(wave) < largest:
            return None
        counts: Counter[str] = Counter()
        for shard in collected:
            said = self._payloads.read_table(shard.results_path or "", ["llm_outcome"])["llm_outcome"]
            counts.update({one["values"]: one["counts"] for one in pc.value_counts(said).to_pylist()})
            if counts[Outcome.SUCCEEDED.value] > _MOST_FITTING * most:  # as mostly: the other shards need no look
                return None
        misfits = {name: counts[name] for name in (Outcome.MISSING.value, Outcome.INVALID.value) if counts[name]}
        fit, misfit = counts[Outcome.SUCCEEDED.value], sum(misfits.values())
        if fit + misfit < _LEAST_REQUESTS or fit > _MOST_FITTING * (fit + misfit):
            return None
        asset, partition = submission.asset, submission.partition
        command = f"dagster-llm-batch retry {asset}" + (f" --partition {partition}" if partition else "")
        told = ", ".join(f"{count:,} {name}" for name, count in misfits.items())
        return (
            f"{misfit:,} of {fit + misfit:,} requests of wave {wave[0].wave} got no reply that fits ({told}), so "
            f"nothing more is sent. For example {self._example(collected, submission)}. Mend the cause; then "
            f"`{command}` asks again for the rows without a label, and shows the price first."
        )

    def _example(self, shards: Sequence[Shard], submission: Submission) -> str:
        """One row, and what is wrong with what came for it."""
        columns = ["llm_request_id", "llm_outcome", "llm_reason"]
        for shard in shards:
            results = self._payloads.read_table(shard.results_path or "", columns)
            misfits = pa.array([Outcome.INVALID.value, Outcome.MISSING.value])
            some = results.filter(pc.is_in(results["llm_outcome"].cast(pa.string()), misfits)).slice(0, 1).to_pylist()
            for one in some:
                request_id, why = one["llm_request_id"], one["llm_reason"] or one["llm_outcome"]
                if one["llm_outcome"] == Outcome.MISSING.value:
                    why = self._stray(shard, request_id) or why
                return f"{self._row(submission, request_id)}: {plain_text(why, 3 * _EXAMPLE_CHARS)}"
        return "none is left to show"  # the results were pruned meanwhile

    def _row(self, submission: Submission, request_id: str) -> str:
        """The key of the first row that makes this request."""
        key = self._labeling.key
        batches = self._payloads.iter_batches(submission.manifest_path or "", _ROWS_AT_ONCE, [key, "llm_request_id"])
        for batch in batches:
            found = batch.filter(pc.equal(batch["llm_request_id"], request_id))
            if len(found):
                return f"row {plain_text(found[key][0].as_py(), _EXAMPLE_CHARS)!r}"
        return f"request {request_id}"  # of a row that another submission has

    def _stray(self, shard: Shard, request_id: str) -> str | None:
        """What a result line says that is no result of the shard, beside what was expected."""
        expected = custom_id(shard.nonce, request_id)
        asked = set(request_ids(self._payloads, shard))
        codec = self._deployment.codec(self._labeling.by(f"{shard.provider}/{shard.model}"))
        for line in islice(self._raw(shard), _LINES_LOOKED_AT):
            if line.isspace():
                continue
            got = codec.decode(line).custom_id
            if got is None:
                return f"a result line cannot be read: {plain_text(line.decode('utf-8', 'replace'), _EXAMPLE_CHARS)!r}"
            named = request_id_of(got, shard.nonce)
            if named is None or not (named in asked or is_padding(named)):
                shown = plain_text(got, _EXAMPLE_CHARS)
                return f"results name custom_ids that were not asked, such as {shown!r} where {expected!r} was"
        return None

    def _raw(self, shard: Shard) -> Iterator[bytes]:
        return iter(()) if shard.raw_path is None else iter(self._payloads.lines(shard.raw_path))


def stop_reason(ledger: LedgerQueries, submission_id: str) -> str | None:
    """Why a submission was stopped, with an example and what to do next; None: it was not."""
    return next((one.detail for one in ledger.events(submission_id) if one.kind == _STOPPED), None)


def _wave(shards: Iterable[Shard], number: int) -> list[Shard]:
    return [shard for shard in shards if shard.wave == number]


def _requests(shards: Iterable[Shard]) -> int:
    return sum(shard.requests for shard in shards)


def _was_interrupted(shard: Shard) -> bool:
    """Whether our own process died while it asked in real time: that its answers are missing is no fault of others."""
    return shard.lane is Lane.REALTIME and shard.reason is not None
