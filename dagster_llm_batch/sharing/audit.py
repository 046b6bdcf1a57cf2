"""The audit of a finished draft: a random sample of the rows that may take other answers, and the first round.

    all requests, in one file ─▶ round 1: a random sample of those that may take another answer, and all others
                              └▶ held: the rest, until `decision.py` decides on them

`near.py` finds such requests among near copies, and `relabel.py` among rows with older labels. The sample and the held
requests are in a file next to the manifest, which is written before the submission is stored.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.cascade_copies import CascadeTerms
from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.keys import keys_of
from dagster_llm_batch.core.memory import chunks
from dagster_llm_batch.core.pricing import Costs
from dagster_llm_batch.core.shares import AUDITED, HELD, OWN, AuditedAnswers
from dagster_llm_batch.core.thresholds import (
    choose_sample,
    count_allowed,
    digest_keys,
    expect_accepted,
    look_confidence,
    smallest,
)
from dagster_llm_batch.core.token_counts import InputCounts
from dagster_llm_batch.files.request_files import ShardFiles, WrittenLines, requests_of
from dagster_llm_batch.files.shard_files import OLDER, RELABELS, SHARES
from dagster_llm_batch.files.share_files import audited_of, store_shares
from dagster_llm_batch.loop.knowledge import find_requests
from dagster_llm_batch.loop.plan import Plan, Planning
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.types import Lane

if TYPE_CHECKING:
    from dagster_llm_batch.core.pricing import Estimate
    from dagster_llm_batch.core.reuse import Near, Relabel
    from dagster_llm_batch.files.audited_requests import AuditedRequests

__all__ = ["ROWS_AT_ONCE", "Audit", "Draw"]

_ID = "llm_request_id"
ROWS_AT_ONCE = 65_536
"""Rows of a manifest that are in memory at once."""
_AT_ONCE = 256


@dataclass(frozen=True)
class Draw:
    """The random sample of rows that may take another answer.

    Attributes:
        rows: The number of rows of each request.
        count: The number of all these rows.
        sample: The size of the sample.
        allowed: The number of sampled rows that may be wrong; -1: no sample is large enough.
        drawn: The number of sampled rows of each request; empty if all rows are asked.
        look: Number of the look at these rows.
        tried: The ids of the earlier looks at them.
    """

    rows: Counter[str]
    count: int
    sample: int
    allowed: int
    drawn: Counter[str]
    look: int
    tried: tuple[str, ...]

    def states(self, ids: Sequence[str], have_answer: Sequence[object]) -> list[str]:
        """Return the state of each request: without a drawn sample, all are asked at once."""
        return [
            OWN if answer is not None else AUDITED if self.drawn[one] or not self.drawn else HELD
            for one, answer in zip(ids, have_answer, strict=True)
        ]

    def looks(self, own: str, *, is_own: bool) -> tuple[str, ...]:
        """Return the ids of all looks for the stored audit, with this one unless all rows are asked; empty if alone."""
        looks = tuple(dict.fromkeys([*self.tried, own])) if is_own else self.tried
        return () if looks == (own,) else looks


class Audit(ABC):
    """Draw the audit of a finished draft, and write its requests."""

    def __init__(self, planning: Planning, settings: Near | Relabel) -> None:
        self._settings = settings
        self._planning = planning
        self._labeling = planning.labeling
        self._payloads = planning.writer.payloads
        self._files: ShardFiles | None = None
        path = planning.writer.path(planning.partition, planning.submission_id, SHARES)
        self.folder = path.rpartition("/")[0]

    @abstractmethod
    def _find(self, requests: AuditedRequests) -> AuditedAnswers:
        """Return the requests that may take other answers, with the audit of them."""

    def draw(self, plan: Plan, requests: AuditedRequests) -> Plan:
        """Return the plan with the shards of the first round, their cost, and the reserve for the second."""
        shares = self._find(requests)
        requests.close()
        is_cascade = self._labeling.cascade is not None
        # Of a cascade, the oracle is asked the audited requests, and those that are held.
        held = frozenset((shares.apart if is_cascade else shares.held).to_pylist())
        estimate, later, bound = self._write(requests, held)
        if is_cascade or not held:
            self._payloads.delete(requests.spare.path)
        if held and later.requests:
            shares = replace(shares, tokens=later.input_tokens // later.requests, input_bound=bound)
        store_shares(self._payloads, self.folder, shares)
        assert self._files is not None
        shards = self._files.close()
        estimate.add_surcharge(self._files.surcharge)
        if is_cascade:
            # The step of the cascade adds the costs of the oracle.
            drafted = replace(plan.drafted, shards=shards, audited=None)
            return replace(plan, drafted=drafted, estimate=estimate, shares=shares)
        estimate.row_bound_usd = _dearest(estimate.row_bound_usd, later.row_bound_usd)
        # At most, all held requests are asked. Limits count as if they were.
        estimate.add_surcharge(Costs(Decimal(0), later.bound_usd))
        whole = replace(estimate)
        whole.add_surcharge(Costs(later.cost_usd, Decimal(0)))
        return replace(
            plan,
            drafted=replace(plan.drafted, shards=shards, audited=None),
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
        for name in (SHARES, RELABELS, OLDER):
            self._payloads.delete(f"{self.folder}/{name}")

    # audit ------------------------------------------------------------------------------------------------------------

    def _sample(self, ids: pa.Array) -> Draw:
        """Draw the sample of the rows with these requests."""
        settings = self._settings
        rows = Counter(one for _, found in self._rows(ids) for one in found.to_pylist())
        count, tried, own = rows.total(), self._tried(), self._look_id()
        look = 1 + (tried.index(own) if own in tried else len(tried))
        confidence, agreement = look_confidence(settings.confidence, look), self._agreement
        size = count
        if settings.sample != "auto":
            size = min(settings.sample, count)
        elif count:
            size = choose_sample(count, agreement, confidence)
        allowed = count_allowed(size, count, agreement, confidence) if count else -1
        drawn: Counter[str] = Counter()
        if allowed >= 0 and size < count:
            drawn = self._draw(ids, size)
        return Draw(rows, count, size, allowed, drawn, look, tuple(tried))

    @property
    def _agreement(self) -> float:
        """The least share of rows whose target must be right. They inherit the wrong labels that a cascade allows."""
        terms, wrong = self.terms, 1 - Fraction(str(self._settings.agreement))
        return self._settings.agreement if terms is None else terms.least_of_audited(float(wrong))

    @property
    def terms(self) -> CascadeTerms | None:
        """The guarantee of the cascade whose oracle answers the audit; None without a cascade."""
        cascade = self._labeling.cascade
        return None if cascade is None else CascadeTerms.of(cascade)

    def _find_answered(self, ids: pa.Array) -> tuple[pa.Array, Sequence[bool | None]]:
        """Return the requests that an audit is about, and which of them are answered, or in flight; None: to ask.

        A cascade's threshold decides on the requests that its model has answered before. The oracle answers the audit.
        """
        answered = self._have_answer(ids)
        if self.terms is None:
            return ids, answered
        left = ids.filter(pa.array([found is None for found in answered], pa.bool_()))
        return left, self._have_oracles_answer(left)

    def _have_oracles_answer(self, ids: pa.Array) -> Sequence[bool | None]:
        """Return which requests the oracle has answered, or gets now; None for one to ask."""
        planning, oracle = self._planning, self._labeling.models[1].model
        place = (planning.deployment, self._labeling, planning.knowledge.reusable)
        known = find_requests(*place, again=planning.knowledge.again, of=oracle)
        return [None] * len(ids) if known is None else known.find(ids.to_pylist())

    def _saves(self, draw: Draw, states: Sequence[str]) -> bool:
        """Return whether the audit saves requests. In a cascade: if it asks the oracle for fewer rows than that would.

        A person who names a sample wants one.
        """
        cascade = self._labeling.cascade
        if HELD not in states or cascade is None or self._settings.sample != "auto":
            return HELD in states
        return draw.sample < draw.count * (1 - expect_accepted(cascade.least_share))

    def _have_answer(self, ids: pa.Array) -> Sequence[bool | None]:
        """Return which requests are answered, or in flight; None for one to ask."""
        known = self._planning.knowledge.requests
        return [None] * len(ids) if known is None else known.find(ids.to_pylist())

    def _rows(self, ids: pa.Array) -> Iterator[tuple[Sequence[object], pa.Array]]:
        """Yield the keys and the request_ids of the rows with these requests."""
        key = self._labeling.key
        for batch in self._payloads.iter_batches(f"{self.folder}/manifest.parquet", ROWS_AT_ONCE, [key, _ID]):
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

    def _tried(self) -> list[str]:
        """Return the ids of the looks at the partition before this one: all that was tried before shares the risk.

        Another prompt or model is another look, too: a user chooses by the results of all. Each stored audit has the
        looks before it, because the files of earlier submissions may be pruned.
        """
        payloads = self._planning.deployment.payloads
        found = (audited_of(payloads, submission) for submission in reversed(self._planning.knowledge.history))
        return list(dict.fromkeys(one for shares in found if shares is not None for one in shares.looks))

    def _look_id(self) -> str:
        """Return the name of all that a user may try: model, prompt and settings."""
        cascade = self._labeling.cascade
        tried = [self._seed(), self._settings.promise]
        return canonical_json(tried if cascade is None else [*tried, cascade.promise])

    # requests ---------------------------------------------------------------------------------------------------------

    def _write(self, requests: AuditedRequests, held: frozenset[str]) -> tuple[Estimate, Estimate, int | None]:
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
