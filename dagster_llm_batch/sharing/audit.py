"""The plan of a labeling with near copies: the groups, the audit, and the requests of the first round.

    all requests, in one file ─▶ groups ─▶ round 1: leaders, and a random sample of the other rows
                                        └▶ held: the other near copies, until `decision.py` decides on them

Leaders of the newest submission with the same settings stay leaders as long as their rows are there. A near copy that
has an answer of its own, or gets one now, keeps it. The near copies are in a file next to the manifest, which is
written before the submission is stored.

Only labelings with `Reuse(near=…)` import this module.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.keys import keys_of
from dagster_llm_batch.core.memory import chunks
from dagster_llm_batch.core.near_copies import EarlierGroups, NearCopy
from dagster_llm_batch.core.pricing import Costs
from dagster_llm_batch.core.shares import AUDITED, HELD, OWN, PAIRS, Shares
from dagster_llm_batch.core.thresholds import (
    choose_sample,
    count_allowed,
    digest_keys,
    look_confidence,
    smallest,
)
from dagster_llm_batch.core.token_counts import InputCounts
from dagster_llm_batch.files.request_files import ShardFiles, WrittenLines, requests_of
from dagster_llm_batch.files.shard_files import SHARES
from dagster_llm_batch.files.share_files import shares_of, store_shares
from dagster_llm_batch.loop.plan import Plan, Planning, RowsState
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.types import Lane

if TYPE_CHECKING:
    from dagster_llm_batch.core.pricing import Estimate
    from dagster_llm_batch.core.reuse import Near
    from dagster_llm_batch.files.near_requests import NearRequests

__all__ = ["draw_audit"]

_ID = "llm_request_id"
_ROWS_AT_ONCE = 65_536
_AT_ONCE = 256


def draw_audit(plan: Plan, planning: Planning) -> Plan:
    """Take the step of near copies: group the requests, draw the audit, and write the requests of the first round."""
    audit = Audit(planning)
    planning.unwanted.callback(audit.discard)
    if plan.rows_state is not RowsState.NEW:
        assert plan.known is not None
        # An earlier submission of the same rows decided all of it.
        if (known := shares_of(planning.deployment.payloads, plan.known)) is not None:
            store_shares(planning.writer.payloads, audit.folder, known)
        return replace(plan, questions=0)
    assert plan.drafted.near is not None
    return audit.draw(plan, plan.drafted.near)


class Audit:
    """Draw the audit of a finished draft, and write its requests."""

    def __init__(self, planning: Planning) -> None:
        assert planning.labeling.near is not None
        self._near: Near = planning.labeling.near
        self._planning = planning
        self._labeling = planning.labeling
        self._payloads = planning.writer.payloads
        self._files: ShardFiles | None = None
        path = planning.writer.path(planning.partition, planning.submission_id, SHARES)
        self.folder = path.rpartition("/")[0]

    def draw(self, plan: Plan, requests: NearRequests) -> Plan:
        """Return the plan with the shards of the first round, their cost, and the reserve for the second."""
        copies = requests.copies.groups(self._earlier())
        requests.copies.close()
        shares = self._decided(copies)
        held = frozenset(shares.held.to_pylist())
        estimate, later, bound = self._write(requests, held)
        if not held:
            self._payloads.delete(requests.spare.path)
        elif later.requests:
            shares = replace(shares, tokens=later.input_tokens // later.requests, input_bound=bound)
        store_shares(self._payloads, self.folder, shares)
        assert self._files is not None
        shards = self._files.close()
        estimate.add_surcharge(self._files.surcharge)
        estimate.row_bound_usd = _dearest(estimate.row_bound_usd, later.row_bound_usd)
        # At most, all near copies are asked. Limits count as if they were.
        estimate.add_surcharge(Costs(Decimal(0), later.bound_usd))
        whole = replace(estimate)
        whole.add_surcharge(Costs(later.cost_usd, Decimal(0)))
        return replace(
            plan,
            drafted=replace(plan.drafted, shards=shards, near=None),
            estimate=estimate,
            whole=whole,
            shares=shares,
            held_usd=later.cost_usd,
            reserved_usd=later.cost_usd or None,
            questions=count_requests(shards),
        )

    def discard(self) -> None:
        """Remove the written files."""
        if self._files is not None:
            self._files.discard()
        self._payloads.delete(f"{self.folder}/{SHARES}")

    # groups -----------------------------------------------------------------------------------------------------------

    def _earlier(self) -> EarlierGroups | None:
        """Return the groups of the newest submission with the same settings."""
        payloads, grouping = self._planning.deployment.payloads, canonical_json(self._near.grouping)
        for submission in self._planning.knowledge.reusable:
            shares = shares_of(payloads, submission)
            if shares is None or shares.grouping != grouping or not payloads.exists(submission.manifest):
                continue
            columns = [shares.pairs[name].to_pylist() for name in (_ID, "leader", "similarity")]
            leader_of = {one: (leader, near) for one, leader, near in zip(*columns, strict=True) if leader is not None}
            manifest = payloads.iter_batches(submission.manifest, _ROWS_AT_ONCE, [_ID])
            requests = {one for batch in manifest for one in batch.column(0).to_pylist() if one is not None}
            return EarlierGroups(frozenset(requests.difference(columns[0])), leader_of)
        return None

    # audit ------------------------------------------------------------------------------------------------------------

    def _decided(self, copies: Sequence[NearCopy]) -> Shares:
        """Draw the audit of these near copies."""
        near, known = self._near, self._planning.knowledge.requests
        ids = pa.array([copy.request_id for copy in copies], pa.string())
        rows = Counter(one for _, found in self._rows(ids) for one in found.to_pylist())
        count, look = rows.total(), self._look()
        confidence = look_confidence(near.confidence, look)
        size = count
        if near.sample != "auto":
            size = min(near.sample, count)
        elif count:
            size = choose_sample(count, near.agreement, confidence)
        allowed = count_allowed(size, count, near.agreement, confidence) if count else -1
        drawn: Counter[str] = Counter()
        if allowed >= 0 and size < count:
            drawn = self._draw(ids, size)
        have_answer = [None] * len(copies) if known is None else known.find(ids.to_pylist())
        states = [
            OWN if answer is not None else AUDITED if drawn[copy.request_id] or not drawn else HELD
            for copy, answer in zip(copies, have_answer, strict=True)
        ]
        saves = HELD in states
        pairs = pa.table(
            [
                ids,
                pa.array([copy.leader for copy in copies], pa.string()),
                pa.array([copy.similarity for copy in copies], pa.float64()),
                pa.array([rows[copy.request_id] for copy in copies], pa.int64()),
                pa.array([drawn[copy.request_id] for copy in copies], pa.int64()),
                pa.array(states if saves else [OWN] * len(copies), pa.string()),
                pa.array([False] * len(copies), pa.bool_()),
            ],
            schema=PAIRS,
        )
        return Shares(
            pairs=pairs,
            target=near.target,
            similarity=near.similarity,
            error=near.error,
            confidence=near.confidence,
            grouping=canonical_json(near.grouping),
            look_id=self._look_id(),
            look=look,
            rows=count,
            sample=size if saves else 0,
            allowed=allowed if saves else -1,
        )

    def _rows(self, ids: pa.Array) -> Iterator[tuple[Sequence[object], pa.Array]]:
        """Yield the keys and the request_ids of the rows with these requests."""
        key = self._labeling.key
        for batch in self._payloads.iter_batches(f"{self.folder}/manifest.parquet", _ROWS_AT_ONCE, [key, _ID]):
            chosen = batch.filter(pc.is_in(batch[_ID], ids))
            yield keys_of(chosen, key), chosen[_ID]

    def _draw(self, ids: pa.Array, size: int) -> Counter[str]:
        """Return the requests of the rows with the smallest digests, with the number of these rows."""
        seed, bound = self._seed(), np.empty(0, np.uint64)
        for keys, _ in self._rows(ids):
            bound = smallest(bound, digest_keys(keys, seed), size)
        last = bound.max()
        return Counter(
            one
            for keys, found in self._rows(ids)
            for one in found.filter(pa.array(digest_keys(keys, seed) <= last)).to_pylist()
        )

    def _seed(self) -> str:
        """Return the seed of the draw. The same definition draws the same rows again, which are paid once."""
        place = (self._planning.deployment.namespace, self._labeling.asset, self._planning.partition)
        version = hashlib.sha256(self._labeling.prompt_version.encode()).hexdigest()[:16]
        return "/".join([*place, self._planning.writer.configuration, version])

    def _look(self) -> int:
        """Return the number of this look at the partition: all that was tried before shares the risk.

        Another prompt or model is another look, too: a user chooses by the results of all.
        """
        own, payloads = self._look_id(), self._planning.deployment.payloads
        found = (shares_of(payloads, submission) for submission in reversed(self._planning.knowledge.history))
        tried = list(dict.fromkeys(shares.look_id for shares in found if shares is not None and not shares.asks_all))
        return 1 + (tried.index(own) if own in tried else len(tried))

    def _look_id(self) -> str:
        """Return the name of all that a user may try: model, prompt and settings."""
        return canonical_json([self._seed(), self._near.promise])

    # requests ---------------------------------------------------------------------------------------------------------

    def _write(self, requests: NearRequests, held: frozenset[str]) -> tuple[Estimate, Estimate, int | None]:
        """Write the shards of the first round; return their estimate, that of the held requests, and their bound."""
        planning, labeling, spare = self._planning, self._labeling, requests.spare
        writer = planning.writer
        wave = writer.wave(planning.submission_id, planning.partition, 1)
        self._files = files = writer.files(wave, labeling, Lane.BATCH)
        estimate, later = writer.estimate(labeling), writer.estimate(labeling)
        most: int | None = 0
        lines = zip(requests_of(self._payloads, spare.path, spare.nonce), requests.tokens(), strict=True)
        for chunk in chunks(lines, _AT_ONCE):
            asked = [(line, tokens) for line, tokens in chunk if line[0] not in held]
            if asked:
                ids, encoded = zip(*(line for line, _ in asked), strict=True)
                counts = _counts([tokens for _, tokens in asked])
                files.add(WrittenLines(ids, encoded, spare.nonce), ids, counts, estimate.add)
            if rest := [tokens for line, tokens in chunk if line[0] in held]:
                later.add(_counts(rest))
                bounds = [bound for _, bound in rest]
                known = [bound for bound in bounds if bound is not None]
                most = None if most is None or len(known) < len(bounds) else max(most, *known)
        return estimate, later, most


def _counts(tokens: Sequence[tuple[int, int | None]]) -> InputCounts:
    expected, bounds = zip(*tokens, strict=True)
    return InputCounts(expected, bounds)


def _dearest(*amounts: Decimal | None) -> Decimal | None:
    """Return the largest amount; None if one is unknown."""
    known = [amount for amount in amounts if amount is not None]
    return max(known) if len(known) == len(amounts) else None
