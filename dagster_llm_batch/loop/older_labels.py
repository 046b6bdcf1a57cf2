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
from dagster_llm_batch.core.logprobs import LOGPROB
from dagster_llm_batch.core.relabels import OLDER_PAIRS, Relabels, target_text
from dagster_llm_batch.core.result_schema import REPEATING
from dagster_llm_batch.core.shares import HELD, newest_first
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
_COSTS = ("llm_cost_usd", "llm_realtime_usd")
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
                # The older definition may not have asked for the probability of a label.
                lacking = [field for field in schema if field.name not in batch.schema.names]
                for field in lacking:
                    batch = batch.append_column(field, pa.nulls(len(batch), field.type))  # noqa: PLW2901
                out.write_batch(batch.select(schema.names).cast(schema))

    def _good(self, columns: Sequence[str], wanted: pa.Array) -> Iterator[pa.RecordBatch]:
        """Yield the good answer to each of these requests that has one: the label that was delivered."""
        if self.decision is not None:
            stored = self._payloads.iter_batches(older_path(self.submission), columns=list(columns))
            yield from (batch.filter(pc.is_in(batch.column(_ID), wanted)) for batch in stored)
            return
        assembler, levels = self._restored, self._assembler.levels
        whole = assembler.collector.schema
        names = [name for name in columns if name in whole.names]
        read = pa.schema(
            [whole.field(one) for one in dict.fromkeys([*names, *([] if levels is None else levels.read)])]
        )
        for manifest, results in assembler.parts(pa.schema([whole.field(_ID)]), read):
            own = results if assembler.shares is None else assembler.shares.drop_twins(results)
            tables = [*own] if levels is None else levels.apply(manifest, zip(assembler.are_oracles, own, strict=True))
            found = newest_first(
                [table.select(names) for table in tables], pa.schema([whole.field(one) for one in names])
            )
            here = pc.unique(found[_ID].filter(pc.is_in(found[_ID], wanted)).combine_chunks())
            first = _with_whole_costs(found.take(pc.index_in(here, found[_ID].combine_chunks())), found)
            yield from first.filter(pc.equal(first[_OUTCOME], Outcome.SUCCEEDED.value)).to_batches()

    @cached_property
    def _restored(self) -> LabelAssembler:
        """The assembler of the labels, after it has made lost results again."""
        assembler = self._assembler
        assembler.collector.restore(chain.from_iterable(assembler.waves))
        assembler.read_again(reread=False)
        return assembler

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


def _with_whole_costs(answers: pa.Table, results: pa.Table) -> pa.Table:
    """Return answers, each with the costs of all results of its request: of retries, and of both models."""
    for name in _COSTS:
        if name not in answers.column_names:
            continue
        sums = results.group_by(_ID, use_threads=False).aggregate(
            [(name, "sum", pc.ScalarAggregateOptions(skip_nulls=False))]
        )
        whole = sums[f"{name}_sum"].take(pc.index_in(answers[_ID].combine_chunks(), sums[_ID].combine_chunks()))
        place = answers.schema.get_field_index(name)
        answers = answers.set_column(place, answers.field(place), whole.cast(answers.field(place).type))
    return answers


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
            _refuse_incomparable(deployment, labeling, sent)
            return OlderLabels(deployment, submission, replace(sent.labeling, keep=()))
        if (decision := relabels_of(deployment.payloads, submission)) is not None:
            return OlderLabels(deployment, submission, labeling, decision)
        if not deployment.has_audit(sent.labeling, submission):
            return None
    return None


def _refuse_incomparable(deployment: Deployment, labeling: Labeling, sent: SentDefinition) -> None:
    older = sent.labeling
    has_lost_levels = older.cascade is not None and deployment.levels(older, sent.submission) is None
    present = replace(older, keep=labeling.keep)
    problems = {
        "its definition is not stored": not sent.is_known,
        f"the key of its rows is '{older.key}'": older.key != labeling.key,
        "the file with the decisions of its cascade is lost": has_lost_levels,
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
    own, others = (
        pa.schema([field for field in one.result_schema if field.name != LOGPROB.name]) for one in (labeling, older)
    )
    return own.equals(others) and fits_all_of(schema, before)
