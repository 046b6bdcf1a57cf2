"""The plan of a labeling whose definition has changed: older labels that may stay, the sample, and the first round.

    all requests, in one file ─▶ with an older label ─▶ round 1: a random sample of them
                              │                      └▶ held: the others, until `decision.py` decides on them
                              └▶ without one ─▶ round 1

A row has an older label only if the older prompt makes the same request of it as before, and that has a good answer. A
request of several rows has one only if they have the same. The held requests' older answers are copied into a file of
this submission. So the older submission may be pruned, and an erasure finds them.

In a cascade, the oracle answers the sample, and the model is not asked rows with an older label: see
core/cascade_copies.py.

Only labelings with `Reuse(relabel=…)` import this module.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import compress
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.relabels import OLDER_PAIRS, Relabels
from dagster_llm_batch.core.result_schema import REPEATING
from dagster_llm_batch.core.shares import HELD, OWN
from dagster_llm_batch.files.older_requests import OlderRequests
from dagster_llm_batch.files.shard_files import OLDER
from dagster_llm_batch.files.share_files import older_path, relabels_of, store_shares
from dagster_llm_batch.loop.collect import Collector
from dagster_llm_batch.loop.older_labels import OlderLabels
from dagster_llm_batch.loop.plan import Plan, Planning, RowsState
from dagster_llm_batch.sharing.audit import Audit

if TYPE_CHECKING:
    from dagster_llm_batch.core.reuse import Relabel
    from dagster_llm_batch.files.audited_requests import AuditedRequests

__all__ = ["draw_older_labels"]

_ID = "llm_request_id"


def draw_older_labels(plan: Plan, planning: Planning) -> Plan:
    """Take the step of older labels: find them, draw the sample, and write the requests of the first round."""
    audit = RelabelAudit(planning)
    planning.unwanted.callback(audit.discard)
    if plan.rows_state is not RowsState.NEW:
        assert plan.known is not None
        return audit.repeat(plan)
    # A cascade may have no older labels.
    return plan if plan.drafted.audited is None else audit.draw(plan, plan.drafted.audited)


class RelabelAudit(Audit):
    """Find the older labels of a draft's rows, and draw the sample of them."""

    def __init__(self, planning: Planning) -> None:
        assert planning.labeling.relabel is not None
        self._relabel: Relabel = planning.labeling.relabel
        super().__init__(planning, self._relabel)

    def repeat(self, plan: Plan) -> Plan:
        """Copy the decision of an earlier submission of the same rows, if it has one, and the older answers."""
        assert plan.known is not None
        stored = self._planning.deployment.payloads
        known = relabels_of(stored, plan.known)
        if known is None:
            return plan
        store_shares(self._payloads, self.folder, known)
        if stored.exists(path := older_path(plan.known)):
            answers = stored.read_table(path).replace_schema_metadata()
            with self._payloads.table_writer(f"{self.folder}/{OLDER}", answers.schema, repeating=REPEATING) as out:
                out.write_table(answers)
        return replace(plan, questions=0)

    def _find(self, requests: AuditedRequests) -> Relabels:
        older = self._planning.older
        assert isinstance(requests, OlderRequests)
        assert isinstance(older, OlderLabels)
        relabel, found = self._relabel, self._older_labels(requests, older)
        ids, have_answer = self._find_answered(found[_ID].combine_chunks())
        found = found.filter(pc.is_in(found[_ID], ids)).combine_chunks()
        if self.terms is not None:
            # The cascade labels rows that have neither an answer of the oracle nor a label that could stay.
            have_label = pc.or_(
                found["is_stored"], pa.array([answer is not None for answer in have_answer], pa.bool_())
            )
            have_answer = [*compress(have_answer, have_label.to_pylist())]
            found = found.filter(have_label).combine_chunks()
            ids = found[_ID].combine_chunks()
        draw = self._sample(ids)
        # A sampled row needs the older target alone, a row that may keep its label the whole answer.
        asked = [
            OWN if answer is None and not is_stored and not draw.drawn[one] else answer
            for one, is_stored, answer in zip(ids.to_pylist(), found["is_stored"].to_pylist(), have_answer, strict=True)
        ]
        states = draw.states(ids.to_pylist(), asked)
        saves = self._saves(draw, states)
        pairs = pa.table(
            [
                *(found[name] for name in (_ID, "leader", "version", "older")),
                pa.array([draw.rows[one] for one in ids.to_pylist()], pa.int64()),
                pa.array([draw.drawn[one] for one in ids.to_pylist()], pa.int64()),
                pa.array(states if saves else [OWN] * len(ids), pa.string()),
                pa.array([False] * len(ids), pa.bool_()),
            ],
            schema=OLDER_PAIRS,
        )
        if saves:
            leaders = pc.unique(pairs.filter(pc.equal(pairs["state"], HELD))["leader"].combine_chunks())
            schema = Collector(self._labeling, self._planning.deployment).schema
            older.write(self._payloads, f"{self.folder}/{OLDER}", leaders, schema)
        return Relabels(
            pairs=pairs,
            target=relabel.target,
            error=relabel.share,
            confidence=relabel.confidence,
            look_id=self._look_id(),
            look=draw.look,
            tried=draw.looks(self._look_id(), is_own=saves),
            rows=draw.count,
            sample=draw.sample if saves else 0,
            allowed=draw.allowed if saves else -1,
            cascade=self.terms,
            older=older.submission_id,
            definition=older.definition,
        )

    def _older_labels(self, requests: OlderRequests, older: OlderLabels) -> pa.Table:
        """Return the older labels of this draft's requests, in the order of their ids."""
        manifest = self._payloads.read_table(f"{self.folder}/manifest.parquet", [_ID])
        present = pc.unique(manifest[_ID].combine_chunks()).drop_null()
        asked = requests.pairs()
        if older.decision is not None:
            asked = pa.table([present, pa.nulls(len(present), pa.string())], names=[_ID, "leader"])
        found = older.find(asked, self._relabel.target)
        # Another row of this draft makes the older request now, so its answer may come to be another.
        is_taken = pc.and_(pc.is_in(found["leader"], present), pc.not_equal(found["leader"], found[_ID]))
        return found.filter(pc.invert(is_taken)).sort_by(_ID).combine_chunks()

    def _look_id(self) -> str:
        """Return the name of all that a user may try: also the labels that are compared with."""
        older = self._planning.older
        assert isinstance(older, OlderLabels)
        tried, cascade = [self._seed(), self._relabel.promise, older.definition], self._labeling.cascade
        return canonical_json(tried if cascade is None else [*tried, cascade.promise])
