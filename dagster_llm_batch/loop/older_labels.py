"""The labels of a partition before a change of its definition, which may stay: `Reuse(relabel=…)`.

They are the labels of the newest complete submission. If it has the present definition, and kept older labels itself,
these may stay again, and its stored decision has them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.json_schema import fits_all_of
from dagster_llm_batch.core.relabels import OLDER_PAIRS, Relabels, target_text
from dagster_llm_batch.core.result_schema import REPEATING
from dagster_llm_batch.core.shares import HELD
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.files.share_files import older_path, relabels_of
from dagster_llm_batch.loop.collect import Collector
from dagster_llm_batch.loop.deployment import Deployment, SentDefinition
from dagster_llm_batch.loop.label import LabelAssembler
from dagster_llm_batch.loop.pruned import find_pruned
from dagster_llm_batch.loop.settlement import make_assembler
from dagster_llm_batch.loop.status import Status
from dagster_llm_batch.storage.ledger.records import Submission, SubmissionState
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Outcome

__all__ = ["OlderLabels", "find_older_labels"]

_ID, _OUTCOME = "llm_request_id", "llm_outcome"
_FOUND = pa.schema([OLDER_PAIRS.field(name) for name in (_ID, "leader", "version", "older")])


@dataclass(frozen=True)
class OlderLabels:
    """The labels of one submission that may stay.

    Attributes:
        deployment: Its deployment.
        submission: The submission with the labels.
        labeling: Its definition.
        decision: Its own decision on older labels, if its definition is the present one; None for an older definition.
    """

    deployment: Deployment
    submission: Submission
    labeling: Labeling
    decision: Relabels | None = None

    @property
    def rendered(self) -> Labeling | None:
        """The definition whose prompt finds the older requests of rows; None if the decision has them."""
        return None if self.decision is not None else self.labeling

    @property
    def submission_id(self) -> str:
        """The submission whose answers these are."""
        return self.submission.submission_id if self.decision is None else self.decision.older

    @property
    def definition(self) -> str:
        """A digest of the definition that gave the older answers."""
        if self.decision is not None:
            return self.decision.definition
        content = [self.submission.config_fingerprint, self.labeling.definition["asked"]["prompt"]]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]

    def find(self, asked: pa.Table, target: str) -> pa.Table:
        """Return the older labels of these requests, and a column `is_stored`: whether the whole answer is there.

        `asked` has each request of the rows, and its older request in `leader`; that is unused for a stored decision.
        """
        if self.decision is not None:
            pairs = self.decision.pairs
            known = pairs.filter(pc.and_(pc.is_in(pairs[_ID], asked[_ID].combine_chunks()), pairs["leader"].is_valid()))
            has_file = self._payloads.exists(older_path(self.submission))
            is_stored = pc.and_(pc.equal(known["state"], HELD), pa.scalar(has_file))
            return known.select(_FOUND.names).append_column("is_stored", is_stored)
        found = self._redirected(asked)
        targets = self._targets(found["leader"], target)
        at = pc.index_in(found["leader"], targets[_ID])
        found = found.append_column("older", targets["older"].take(at)).filter(at.is_valid())
        return found.append_column("is_stored", pa.repeat(pa.scalar(value=True), len(found)))

    def _redirected(self, asked: pa.Table) -> pa.Table:
        """Return the requests with the ids and the prompt of their answers: the submission may share some itself."""
        shares, version = self._assembler.shares, pa.scalar(self.labeling.prompt_version)
        leaders = asked["leader"].combine_chunks()
        versions = pa.repeat(version, len(leaders))
        if shares is not None:
            at = pc.index_in(leaders, shares.shared[_ID].combine_chunks())
            leaders = pc.coalesce(shares.shared["leader"].combine_chunks().take(at), leaders)
            if isinstance(shares, Relabels):
                versions = pc.coalesce(shares.shared["version"].combine_chunks().take(at), versions)
        return pa.table([asked[_ID], leaders, versions], schema=pa.schema([*_FOUND][:3]))

    def _targets(self, leaders: pa.ChunkedArray, target: str) -> pa.RecordBatch:
        """Return the targets of good answers to these requests."""
        ids, texts = list[pa.Array](), list[str]()
        for batch in self._good([_ID, _OUTCOME, target], pc.unique(leaders.combine_chunks())):
            ids.append(batch.column(_ID))
            texts += map(target_text, batch.column(target).to_pylist())
        whole = pa.chunked_array(ids, pa.string()).combine_chunks()
        return pa.record_batch([whole, pa.array(texts, pa.string())], names=[_ID, "older"])

    def write(self, payloads: PayloadStore, path: str, leaders: pa.Array, schema: pa.Schema) -> None:
        """Write the whole answers to these requests, in columns of the present definition."""
        with payloads.table_writer(path, schema, repeating=REPEATING) as out:
            for batch in self._good(schema.names, leaders):
                out.write_batch(batch.select(schema.names).cast(schema))

    def _good(self, columns: Sequence[str], wanted: pa.Array) -> Iterator[pa.RecordBatch]:
        """Yield one good answer to each of these requests that has any: the newest."""
        for path in self._paths:
            if not len(wanted):
                return
            for batch in self._payloads.iter_batches(path, columns=list(columns)):
                are_good = pc.equal(batch.column(_OUTCOME), Outcome.SUCCEEDED.value)
                found = batch.filter(pc.and_(are_good, pc.is_in(batch.column(_ID), wanted)))
                if found.num_rows:
                    yield found
                    wanted = wanted.filter(pc.invert(pc.is_in(wanted, found.column(_ID))))

    @cached_property
    def _paths(self) -> Sequence[str]:
        """The files with the answers, newest first."""
        if self.decision is not None:
            return [older_path(self.submission)]
        assembler = self._assembler
        assembler.collector.restore(chain.from_iterable(assembler.waves))
        assembler.read_again(reread=False)
        shards = chain.from_iterable(reversed(wave) for wave in reversed(assembler.waves))
        paths = (shard.results_path for shard in shards)
        # Older answers that this submission kept itself cannot be made again. Without them, their rows are asked.
        return [path for path in paths if path is not None and self._payloads.is_whole(path)]

    @cached_property
    def _assembler(self) -> LabelAssembler:
        shards = self.deployment.ledger.shards.of_submission(self.submission.submission_id)
        collector = Collector(self.labeling, self.deployment)
        assembler = make_assembler(self.deployment, self.labeling, Status(self.submission, shards), collector)
        # A copy would be written also for a preview.
        return replace(assembler, merges=False)

    @property
    def _payloads(self) -> PayloadStore:
        return self.deployment.payloads


def find_older_labels(
    deployment: Deployment, labeling: Labeling, history: Sequence[Submission], configuration: str
) -> OlderLabels | None:
    """Return the labels that may stay; None if the present definition has asked all rows, or nothing is complete.

    `history` has the submissions of the partition, the newest first, and `configuration` is the present one. Raises
    ConfigError for an older definition whose labels cannot be compared with the present one's.
    """
    pruned = find_pruned(deployment.ledger, history)
    for submission in history:
        if submission.state is not SubmissionState.SETTLED or submission.submission_id in pruned:
            continue
        sent = deployment.sent_definition(labeling, submission)
        # Prompts are no part of the configuration, but of each request.
        is_same = submission.config_fingerprint == configuration and not {*sent.changes} - {"relabel"}
        if not is_same:
            _refuse_incomparable(labeling, sent)
            return OlderLabels(deployment, submission, replace(sent.labeling, keep=()))
        if (decision := relabels_of(deployment.payloads, submission)) is not None:
            return OlderLabels(deployment, submission, labeling, decision)
        if submission.questions is None:
            return None
    return None


def _refuse_incomparable(labeling: Labeling, sent: SentDefinition) -> None:
    older = sent.labeling
    present = replace(older, keep=labeling.keep)
    problems = {
        "its definition is not stored": not sent.is_known,
        f"the key of its rows is '{older.key}'": older.key != labeling.key,
        "it is a cascade": older.cascade is not None,
        "its prompt has a mask, images or documents": older.mask is not None or bool(older.prompt.files),
        f"its response is {labeling.column_gap(present) or 'of other values'}": not _has_place_for(labeling, older),
    }
    if found := [problem for problem, is_there in problems.items() if is_there]:
        raise ConfigError(
            f"Reuse(relabel=…) compares the labels with those of submission {sent.submission.submission_id}, and "
            f"{', and '.join(found)}. So older labels cannot stay. Nothing was sent. Leave relabel out: then all rows "
            "are asked. Or restore the older response, and change the prompt, the model or the parameters alone."
        )


def _has_place_for(labeling: Labeling, older: Labeling) -> bool:
    """Return whether each answer to an older definition is one that the present response allows, too."""
    schema, before = (
        [{**one.definition["asked"]["response"], "name": ""}, one.definition["columns"]] for one in (labeling, older)
    )
    return older.result_schema.equals(labeling.result_schema) and fits_all_of(schema, before)
