"""The plan of a labeling with near copies: their groups, the audit, and the first round.

    all requests, in one file ─▶ groups ─▶ round 1: leaders, and a random sample of the other rows
                                        └▶ held: the other near copies, until `decision.py` decides on them

Leaders of the newest submission with the same settings stay leaders as long as their rows are there. A near copy that
has an answer of its own, or gets one now, keeps it.

In a cascade, the oracle answers the audit, and the model is not asked near copies: see core/cascade_copies.py. A row
that the model has answered before is no near copy, since the threshold decides on it.

Only labelings with `Reuse(near=…)` import this module.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.near_copies import EarlierGroups
from dagster_llm_batch.core.shares import OWN, PAIRS, Shares
from dagster_llm_batch.files.near_requests import NearRequests
from dagster_llm_batch.files.share_files import shares_of, store_shares
from dagster_llm_batch.loop.plan import Plan, Planning, RowsState
from dagster_llm_batch.sharing.audit import ROWS_AT_ONCE, Audit

if TYPE_CHECKING:
    from dagster_llm_batch.core.reuse import Near
    from dagster_llm_batch.files.audited_requests import AuditedRequests

__all__ = ["draw_near_copies"]

_ID = "llm_request_id"


def draw_near_copies(plan: Plan, planning: Planning) -> Plan:
    """Take the step of near copies: group the requests, draw the audit, and write the requests of the first round."""
    audit = NearAudit(planning)
    planning.unwanted.callback(audit.discard)
    if plan.rows_state is not RowsState.NEW:
        assert plan.known is not None
        # An earlier submission of the same rows decided all of it.
        if (known := shares_of(planning.deployment.payloads, plan.known)) is not None:
            store_shares(planning.writer.payloads, audit.folder, known)
        return replace(plan, questions=0)
    assert plan.drafted.audited is not None
    return audit.draw(plan, plan.drafted.audited)


class NearAudit(Audit):
    """Group the requests of a draft, and draw the audit of the near copies."""

    def __init__(self, planning: Planning) -> None:
        assert planning.labeling.near is not None
        self._near: Near = planning.labeling.near
        super().__init__(planning, self._near)

    def _find(self, requests: AuditedRequests) -> Shares:
        assert isinstance(requests, NearRequests)
        near, copies = self._near, requests.copies.groups(self._earlier())
        ids, have_answer = self._find_answered(pa.array([copy.request_id for copy in copies], pa.string()))
        left = frozenset(ids.to_pylist())
        copies = [copy for copy in copies if copy.request_id in left]
        draw = self._sample(ids)
        states = draw.states(ids.to_pylist(), have_answer)
        saves = self._saves(draw, states)
        pairs = pa.table(
            [
                ids,
                pa.array([copy.leader for copy in copies], pa.string()),
                pa.array([copy.similarity for copy in copies], pa.float64()),
                pa.array([draw.rows[copy.request_id] for copy in copies], pa.int64()),
                pa.array([draw.drawn[copy.request_id] for copy in copies], pa.int64()),
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
            look=draw.look,
            tried=draw.looks(self._look_id(), is_own=saves),
            rows=draw.count,
            sample=draw.sample if saves else 0,
            allowed=draw.allowed if saves else -1,
            cascade=self.terms,
        )

    def _earlier(self) -> EarlierGroups | None:
        """Return the groups of the newest submission with the same settings."""
        payloads, grouping = self._planning.deployment.payloads, canonical_json(self._near.grouping)
        for submission in self._planning.knowledge.reusable:
            shares = shares_of(payloads, submission)
            if shares is None or shares.grouping != grouping or not payloads.exists(submission.manifest):
                continue
            columns = [shares.pairs[name].to_pylist() for name in (_ID, "leader", "similarity")]
            leader_of = {one: (leader, near) for one, leader, near in zip(*columns, strict=True) if leader is not None}
            manifest = payloads.iter_batches(submission.manifest, ROWS_AT_ONCE, [_ID])
            requests = {one for batch in manifest for one in batch.column(0).to_pylist() if one is not None}
            return EarlierGroups(frozenset(requests.difference(columns[0])), leader_of)
        return None
