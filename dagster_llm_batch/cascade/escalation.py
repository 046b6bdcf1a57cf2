"""The second wave of a cascade: the threshold, after the first wave is collected, and the oracle's requests.

The module `sampling.py` has the first wave and the file of the decisions. Only labelings with a cascade import it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.cascade.sampling import store_levels
from dagster_llm_batch.core.identity import REQUEST_ID_BYTES
from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.files.request_files import levels_of
from dagster_llm_batch.loop.label import SHARD, Answers
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.types import Lane, Outcome

if TYPE_CHECKING:
    from dagster_llm_batch.definition.labeling import Labeling
    from dagster_llm_batch.loop.collect import Collector
    from dagster_llm_batch.loop.deployment import Deployment

__all__ = ["Escalation", "RequestSet"]

_ID, _OUTCOME = "llm_request_id", "llm_outcome"
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Escalation:
    """The oracle's requests of a submission whose earlier waves are all collected.

    `shards` are all shards of the submission; `collector` reads their results.
    """

    labeling: Labeling
    deployment: Deployment
    submission: Submission
    shards: Sequence[Shard]
    collector: Collector

    def find(self) -> list[tuple[Shard, RequestSet]]:
        """Return the requests to send, with a shard of mean size for each lane; set the threshold if it is missing.

        Leaves out requests that wait for a person, and requests that the oracle has. Reads tables of any size in parts.
        """
        levels = levels_of(self.deployment.payloads, self.submission)
        if levels is None or levels.is_repeated or levels.asks_oracle_alone:
            return []
        # The wave is planned in one transaction, so it exists as a whole.
        if levels.wave is not None and levels.wave <= self.submission.waves:
            return []
        answers = Answers(
            submission=self.submission,
            shards=self.shards,
            ledger=self.deployment.ledger,
            payloads=self.deployment.payloads,
            part_rows=self.deployment.part_rows,
            levels=levels,
        )
        if levels.wave is None:
            levels = self._calibrated(levels, answers)
        shards = [shard for wave in answers.waves for shard in wave]
        read = answers.schema_of(levels.read)
        asked: dict[Lane, list[pa.Array]] = {lane: [] for lane in Lane}
        accepted = judged = 0
        shares = self.deployment.shares(self.labeling, self.submission)
        for manifest, results in answers.parts(pa.schema([read.field(_ID)]), read):
            requests = pc.unique(manifest[_ID]).drop_null()
            if shares is not None:
                # The model is not asked near copies, nor rows with an older label.
                requests = requests.filter(pc.invert(pc.is_in(requests, shares.apart)))
            cheap, oracles = _by_level(answers.are_oracles, results, read)
            newest = levels.newest(cheap)
            known = newest.take(pc.index_in(requests, newest[_ID]))
            above = levels.are_accepted(known)
            accepted, judged = accepted + int(above.sum()), judged + len(known) - known[_ID].null_count
            left = requests.filter(pa.array(~above))
            left = left.filter(pc.invert(pc.is_in(left, self._answered(oracles, shards))))
            for lane, ids in self._lanes(cheap, shards):
                are_lane = pc.is_in(left, ids)
                asked[lane].append(left.filter(are_lane))
                left = left.filter(pc.invert(are_lane))
        store_levels(
            self.deployment.payloads, self.submission.folder, replace(levels, accepted=accepted / max(judged, 1))
        )
        found = ((lane, RequestSet(ids)) for lane, ids in asked.items())
        return [(self._standing_for(lane, shards, levels), requests) for lane, requests in found if len(requests)]

    def _calibrated(self, levels: Levels, answers: Answers) -> Levels:
        # Tables do not have rows that were erased in the meantime.
        drawn = pa.array(levels.drawn, pa.string())
        manifest = self.deployment.payloads.iter_batches(self.submission.manifest, _ROWS_AT_ONCE, [_ID])
        present = {one for ids in manifest for one in ids[_ID].filter(pc.is_in(ids[_ID], drawn)).to_pylist()}
        levels = levels.keep_drawn(present)
        levels = replace(levels, sample=len(levels.sampled or []))
        tables: tuple[list[pa.Table], list[pa.Table]] = ([], [])
        for wave, are_oracles in zip(answers.waves, answers.are_oracles, strict=True):
            for table in (self.collector.results([shard], levels.read)[0] for shard in wave):
                tables[are_oracles].append(table.filter(pc.is_in(table[_ID], drawn)))
        return replace(levels.calibrate(*tables), wave=self.submission.waves + 1)

    def _answered(self, oracles: pa.Table, shards: Sequence[Shard]) -> pa.Array:
        """Return the requests that have the oracle's answer, or that this submission sent to the oracle."""
        own = [at for at, shard in enumerate(shards) if shard.submission_id == self.submission.submission_id]
        is_own = pc.is_in(oracles[SHARD.name], pa.array(own, SHARD.type))
        had = oracles.filter(pc.or_(is_own, pc.equal(oracles[_OUTCOME], Outcome.SUCCEEDED.value)))
        return had[_ID].combine_chunks()

    def _lanes(self, cheap: pa.Table, shards: Sequence[Shard]) -> Iterator[tuple[Lane, pa.Array]]:
        """Yield each lane with the model's requests in it, without requests that wait for a person."""
        for lane in Lane:
            places = [at for at, s in enumerate(shards) if s.lane is lane and not s.waits_for_person]
            yield lane, cheap.filter(pc.is_in(cheap[SHARD.name], pa.array(places, SHARD.type)))[_ID].combine_chunks()

    def _standing_for(self, lane: Lane, shards: Sequence[Shard], levels: Levels) -> Shard:
        """Return one shard of the model with the sizes of all, so that a request has their mean length."""
        of_lane = [shard for shard in shards if shard.lane is lane and not levels.asks_oracle(shard.asked_of)]
        own = [shard for shard in of_lane if shard.submission_id == self.submission.submission_id] or of_lane
        tokens, requests = (sum(getattr(shard, name) for shard in own) for name in ("tokens", "requests"))
        return replace(own[0], tokens=tokens, requests=requests)


def _by_level(are_oracles: Sequence[bool], results: Iterable[pa.Table], schema: pa.Schema) -> tuple[pa.Table, pa.Table]:
    """Return the results of the model and the results of the oracle, the newest first."""
    tables: tuple[list[pa.Table], list[pa.Table]] = ([], [])
    for is_oracle, table in zip(are_oracles, results, strict=True):
        tables[is_oracle].insert(0, table)
    nothing = schema.append(SHARD).empty_table()
    cheap, oracles = (pa.concat_tables([*of, nothing]).combine_chunks() for of in tables)
    return cheap, oracles


class RequestSet:
    """A set of request_ids in 28 bytes each: a wave can have millions of them.

    Args:
        parts: The ids, each once.
    """

    def __init__(self, parts: Iterable[pa.Array]) -> None:
        packed = b"".join([bytes.fromhex("".join(part.to_pylist())) for part in parts])
        ids = np.frombuffer(packed, np.uint8).reshape(-1, REQUEST_ID_BYTES)
        heads = ids[:, :8].copy().view(">u8").ravel().astype(np.uint64)
        order = heads.argsort(kind="stable")
        # For one value, bisection in an array takes a third of numpy's time.
        self._heads, self._ids = array("Q", heads[order].tobytes()), ids[order].tobytes()

    def __len__(self) -> int:
        return len(self._heads)

    def __contains__(self, request_id: object) -> bool:
        if not isinstance(request_id, str):
            return False
        sought, at = bytes.fromhex(request_id), bisect_left(self._heads, head := int(request_id[:16], 16))
        while at < len(self._heads) and self._heads[at] == head:
            if self._ids[at * REQUEST_ID_BYTES : (at + 1) * REQUEST_ID_BYTES] == sought:
                return True
            at += 1
        return False

    def __iter__(self) -> Iterator[str]:
        return (self._ids[at : at + REQUEST_ID_BYTES].hex() for at in range(0, len(self._ids), REQUEST_ID_BYTES))
