"""Cascades: the sample of a plan, the threshold when the first wave is collected, and what the oracle is asked then.

    wave 1   the model on all requests, the oracle on those of the sampled rows
    wave 2   the oracle on what is not above the threshold, and on what the model gave no good answer to
    later    what the oracle did not answer, as far as Resend allows; the model is never asked again

What was decided is a file beside the manifest. It is written before a wave rests on it, and says the same if a process
that was killed in between writes it again: it is computed from stored results alone. Where a cascade would cost more
than the oracle, all rows are the sample: the model is asked nothing.

Loaded only where a labeling has a cascade.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.cascade import (
    Cascade,
    choose_sample,
    digest_keys,
    expect_accepted,
    relative_cost,
    smallest,
)
from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.keys import keys_of
from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.core.memory import chunks
from dagster_llm_batch.core.pricing import Costs, Estimate
from dagster_llm_batch.core.token_counts import InputCounts
from dagster_llm_batch.engine.request_files import ShardFiles, WrittenLines, delete_requests, requests_of
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Lane, Outcome

if TYPE_CHECKING:
    from dagster_llm_batch.engine.collect import Collector
    from dagster_llm_batch.engine.deployment import Deployment
    from dagster_llm_batch.engine.labeling import Labeling
    from dagster_llm_batch.engine.plan import Planner
    from dagster_llm_batch.engine.request_writer import Plan

__all__ = ["CALIBRATION", "Escalation", "Sampling", "asks_oracle", "forget_sampled", "levels_of"]

CALIBRATION = "cascade.json"
"""The name of the file that has the sample and the threshold of a submission."""

_ID, _OUTCOME = "llm_request_id", "llm_outcome"
_ROWS_AT_ONCE = 65_536
# So many earlier submissions say what to expect of the next one.
_REMEMBERED, _LOOKED_AT = 5, 100
_AT_ONCE = 16
# Of a line whose tokens nobody has counted, since the model's own answer to it is there already.
_BYTES_A_TOKEN = 4


def asks_oracle(labeling: Labeling, shard: Shard) -> bool:
    """Return whether a shard asks the oracle."""
    return f"{shard.provider}/{shard.model}" != labeling.model


def levels_of(payloads: PayloadStore, submission: Submission) -> Levels | None:
    """Return what gives each row of a submission its level, as far as it is decided; None where it is no cascade."""
    path = f"{submission.folder}/{CALIBRATION}"
    if not submission.folder or not payloads.exists(path):
        return None
    with payloads.reader(path) as file:
        return Levels.of_json(file.read())


def forget_sampled(payloads: PayloadStore, submission: Submission, going: set[str]) -> None:
    """Take requests of erased rows out of what is stored of a sample."""
    levels = levels_of(payloads, submission)
    if levels is not None and levels.sampled is not None and not going.isdisjoint(levels.sampled):
        left = [request_id for request_id in levels.sampled if request_id not in going]
        _store(payloads, submission.folder, replace(levels, sampled=left))


def _store(payloads: PayloadStore, folder: str, levels: Levels) -> None:
    with payloads.writer(f"{folder}/{CALIBRATION}") as out:
        out.write(levels.as_json())


def _cascade(labeling: Labeling) -> Cascade:
    assert labeling.cascade is not None
    return labeling.cascade


class Sampling:
    """Draw the sample of a finished draft, and write what the oracle is asked of it in the first wave.

    Args:
        planner: What wrote the draft; its payloads may be aside, for a preview.
        deployment: What is planned for.
        labeling: One with a cascade.
        partition, submission_id: What the draft is of.
    """

    def __init__(
        self,
        planner: Planner,
        deployment: Deployment,
        labeling: Labeling,
        partition: str,
        submission_id: str,
    ) -> None:
        self._planner = planner
        self._deployment = deployment
        self._labeling = labeling
        self._payloads = planner.wave(submission_id, partition, 1).payloads
        self._partition = partition
        self._submission_id = submission_id
        self._written: list[ShardFiles] = []
        self._unexpected_usd = Decimal(0)
        self.levels: Levels | None = None
        self.rest_usd: Decimal | None = None

    @cached_property
    def _folder(self) -> str:
        wave = self._planner.wave(self._submission_id, self._partition, 1)
        return wave.path_of(CALIBRATION).rpartition("/")[0]

    def repeat(self, known: Submission) -> None:
        """Decide what was decided of an earlier submission of the same rows."""
        if (levels := levels_of(self._payloads, known)) is not None:
            _store(self._payloads, self._folder, replace(levels, is_repeated=True))

    def whole(self, estimate: Estimate) -> Estimate:
        """Return the estimate as limits count it: as if nothing of the model were accepted."""
        whole = replace(estimate)
        whole.add_surcharge(Costs(self._unexpected_usd, Decimal(0)))
        return whole

    def draw(self, plan: Plan, estimate: Estimate, known: Mapping[str, bool]) -> tuple[Plan, Estimate]:
        """Return the plan with the oracle's shards, and what it is expected to cost; `rest_usd` is what to keep for the
        wave after that.

        `known` has the requests that the oracle has answered, or is asked now.
        """
        cascade, oracle = _cascade(self._labeling), self._labeling.models[1]
        seed = f"{self._deployment.namespace}/{self._labeling.asset}/{self._partition}"
        rows = plan.rows - plan.skipped
        tokens = estimate.input_tokens // estimate.requests if estimate.requests else None
        least = self._deployment.codec(oracle).limits.min_requests
        if cascade.sample == "auto":
            size = choose_sample(rows, cascade.agreement, cascade.confidence, least)
        else:
            size = min(cascade.sample, rows)
        each = self._planner.estimate(oracle).expected_usd(tokens or 0)
        cheap = Decimal(0) if tokens is None else self._planner.estimate(self._labeling).expected_usd(tokens)
        accepted = self._expect_accepted(cascade)
        cost = None
        if each and cheap is not None and rows:
            cost = relative_cost(float(cheap), float(each), size, rows, accepted)
            # Whoever names a sample has decided that there is to be one.
            if cost >= 1 and cascade.sample == "auto":
                size = rows
        sampled = None if size >= rows else self._drawn(size, seed)
        if sampled is None:
            # The model is asked nothing, and costs nothing.
            for shard in plan.shards:
                delete_requests(self._payloads, shard)
            plan = replace(plan, shards=[])
        shards, of_oracle = self._write(plan, oracle, sampled, known, tokens)
        if sampled is None or not estimate.requests:
            estimate = of_oracle
        else:
            estimate.add_surcharge(Costs(of_oracle.cost_usd, of_oracle.bound_usd))
            rows_most = (estimate.row_bound_usd, of_oracle.row_bound_usd)
            estimate.row_bound_usd = None if None in rows_most else max(most for most in rows_most if most is not None)
        left = 0 if sampled is None else plan.requests - len(set(sampled))
        rest = Decimal(0) if each is None else each * left
        # What is kept is for all of them; what is expected, for those that will not be accepted.
        self.rest_usd, self._unexpected_usd = rest or None, rest * Decimal(str(round(accepted, 6)))
        estimate.add_surcharge(Costs(rest - self._unexpected_usd, Decimal(0)))
        self.levels = Levels(
            calibration_id=self._digest(cascade, seed),
            oracle=cascade.oracle,
            score=cascade.score,
            target=cascade.target,
            agreement=cascade.agreement,
            confidence=cascade.confidence,
            seed=seed,
            rows=rows,
            sample=rows if sampled is None else len(sampled),
            sampled=sampled,
            relative_cost=cost,
        )
        if sampled is None:
            self.levels = self.levels.ask_oracle_alone()
        _store(self._payloads, self._folder, self.levels)
        return replace(plan, shards=[*plan.shards, *shards]), estimate

    def _expect_accepted(self, cascade: Cascade) -> float:
        """Return which share of rows will be accepted: that of the last submissions of the dataset, if there are some.

        Never that of this one: what is chosen by the sample that certifies it breaks its promise in 30 of 100 cases.
        """
        deployment, configuration = self._deployment, self._planner.configuration
        # Of a backfill, most of the newest are not settled yet.
        known = deployment.ledger.submissions(
            deployment.namespace, assets=[self._labeling.asset], limit=_LOOKED_AT, newest=True
        )
        same = [one for one in known if one.is_settled and one.config_fingerprint == configuration]
        earlier = (levels_of(deployment.payloads, one) for one in same[:_REMEMBERED])
        known_shares = (levels.accepted for levels in earlier if levels is not None and not levels.asks_oracle_alone)
        shares = [share for share in known_shares if share is not None]
        return sum(shares) / len(shares) if shares else expect_accepted(cascade.agreement)

    def _digest(self, cascade: Cascade, seed: str) -> str:
        content = [self._planner.configuration, self._labeling.prompt_version, cascade.promise, seed]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]

    def _drawn(self, size: int, seed: str) -> list[str]:
        """Return the request of each of the rows with the smallest digests."""
        bound = np.empty(0, np.uint64)
        for keys, _ in self._rows():
            bound = smallest(bound, digest_keys(keys, seed), size)
        last = bound.max()
        return [
            request_id
            for keys, ids in self._rows()
            for request_id in ids.filter(pa.array(digest_keys(keys, seed) <= last)).to_pylist()
        ]

    def _rows(self) -> Iterator[tuple[Sequence[object], pa.Array]]:
        """Yield the keys and the request_ids of all rows that are asked."""
        key = self._labeling.key
        for batch in self._payloads.iter_batches(f"{self._folder}/manifest.parquet", _ROWS_AT_ONCE, [key, _ID]):
            asked = batch.filter(pc.is_valid(batch[_ID]))
            yield keys_of(asked, key), asked[_ID]

    def _write(
        self,
        plan: Plan,
        oracle: Labeling,
        sampled: list[str] | None,
        known: Mapping[str, bool],
        tokens: int | None,
    ) -> tuple[list[Shard], Estimate]:
        """Write the oracle's shards of the first wave; return them and what they cost."""
        planner, spare = self._planner, self._planner.spare(self._submission_id, self._partition, oracle)
        numbers = count(max((shard.number for shard in plan.shards), default=-1) + 1)
        wave = replace(planner.wave(self._submission_id, self._partition, 1), shard_numbers=numbers)
        files = planner.files(wave, oracle, Lane.BATCH)
        self._written.append(files)
        estimate, counter = planner.estimate(oracle), self._deployment.counter(oracle)
        has_images, wanted = bool(self._labeling.prompt.images), None if sampled is None else set(sampled)
        lines = (
            (request_id, line)
            for request_id, line in requests_of(self._payloads, spare.path, spare.nonce)
            if (wanted is None or request_id in wanted) and request_id not in known
        )
        for chunk in chunks(lines, _AT_ONCE):
            ids, encoded = zip(*chunk, strict=True)
            bounds = [counter.bound_of_line(line, has_images=has_images) for line in encoded]
            expected = [tokens or len(line) // _BYTES_A_TOKEN for line in encoded]
            files.add(WrittenLines(ids, encoded, spare.nonce), ids, InputCounts(expected, bounds), estimate.add)
        shards = files.close()
        estimate.add_surcharge(files.surcharge)
        return shards, estimate

    def discard(self) -> None:
        """Remove what was written."""
        for files in self._written:
            files.discard()
        self._payloads.delete(f"{self._folder}/{CALIBRATION}")


@dataclass(frozen=True)
class Escalation:
    """What the oracle is asked of a submission when all of its earlier waves are collected.

    `shards` are all of it; `collector` reads their results.
    """

    labeling: Labeling
    deployment: Deployment
    submission: Submission
    shards: Sequence[Shard]
    collector: Collector

    def find(self) -> list[tuple[Shard, frozenset[str]]]:
        """Return the requests to ask, with a shard that stands for those of a lane; set the threshold if none is set.

        Nothing is asked of what waits for a person, nor twice.
        """
        levels = levels_of(self.deployment.payloads, self.submission)
        if levels is None or levels.is_repeated or levels.asks_oracle_alone:
            return []
        if levels.threshold is None:
            levels = self._calibrated(levels)
        answered = self._had()
        by_lane: dict[Lane, list[Shard]] = {}
        asked: dict[Lane, set[str]] = {}
        accepted: set[str] = set()
        requests = 0
        for shard in reversed(self._cheap):
            [table] = self.collector.results([shard], levels.read)
            above = levels.are_accepted(table)
            ids = table[_ID]
            accepted.update(ids.filter(pa.array(above)).to_pylist())
            requests += len(ids)
            if not shard.waits_for_person:
                by_lane.setdefault(shard.lane, []).append(shard)
                asked.setdefault(shard.lane, set()).update(ids.filter(pa.array(~above)).to_pylist())
        levels = replace(levels, accepted=len(accepted) / max(requests, 1))
        _store(self.deployment.payloads, self.submission.folder, levels)
        left = self._present() - answered - accepted
        found = []
        for lane, shards in by_lane.items():
            if ids := asked[lane] & left:
                found.append((self._standing_for(shards), frozenset(ids)))
            left -= asked[lane]
        return found

    def _calibrated(self, levels: Levels) -> Levels:
        present, sampled = self._present(), levels.sampled or []
        # Rows that were erased meanwhile are in no table.
        drawn = [request_id for request_id in sampled if request_id in present]
        levels = replace(levels, sampled=drawn, sample=len(drawn))
        cheap, oracles = (
            [self.collector.results([shard], levels.read)[0] for shard in of] for of in (self._cheap, self._oracles)
        )
        return replace(levels.calibrate(cheap, oracles), wave=self.submission.waves + 1)

    @cached_property
    def _all(self) -> list[Shard]:
        """The collected shards of this submission and of those whose answers it reuses, oldest first."""
        sources = [self.deployment.ledger.shards(source) for source in reversed(self.submission.reused_from)]
        collected = [shard for of in (*sources, self.shards) for shard in of if shard.results_path]
        return [shard for shard in collected if shard.wave == 1 or shard.sent_at is not None]

    @cached_property
    def _cheap(self) -> list[Shard]:
        return [shard for shard in self._all if not asks_oracle(self.labeling, shard)]

    @cached_property
    def _oracles(self) -> list[Shard]:
        return [shard for shard in self._all if asks_oracle(self.labeling, shard)]

    def _had(self) -> set[str]:
        """Return the requests that the oracle has answered, or that this submission has asked it."""
        had: set[str] = set()
        own = self.submission.submission_id
        asked = [shard for shard in self.shards if shard.results_path and asks_oracle(self.labeling, shard)]
        for shard in (*asked, *(shard for shard in self._oracles if shard.submission_id != own)):
            [table] = self.collector.results([shard], [_ID, _OUTCOME])
            if shard.submission_id != own:
                table = table.filter(pc.equal(table[_OUTCOME], Outcome.SUCCEEDED.value))
            had.update(table[_ID].to_pylist())
        return had

    def _present(self) -> set[str]:
        manifest = self.deployment.payloads.read_table(self.submission.manifest, [_ID])
        return set(manifest[_ID].to_pylist())

    def _standing_for(self, shards: Sequence[Shard]) -> Shard:
        """Return one shard with the sizes of all: its lines are read once, and a request is as long as their mean."""
        own = [shard for shard in shards if shard.submission_id == self.submission.submission_id] or list(shards)
        tokens, requests = (sum(getattr(shard, name) for shard in own) for name in ("tokens", "requests"))
        return replace(own[0], tokens=tokens, requests=requests)
