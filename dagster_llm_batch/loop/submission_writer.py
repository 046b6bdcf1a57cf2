"""Writes the files of one labeling's submissions: the draft of a plan, and the request files of later retry rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dagster_llm_batch.core.identity import shard_nonce
from dagster_llm_batch.core.keys import ErasedKeys
from dagster_llm_batch.core.pricing import Costs, Estimate
from dagster_llm_batch.core.row_files import NO_FILES
from dagster_llm_batch.definition.labeling import Labeling, Limits
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.files.prompt_files import files_of
from dagster_llm_batch.files.request_files import ShardFiles, Wave
from dagster_llm_batch.files.request_parts import PartMaker, WorkerSource
from dagster_llm_batch.files.request_source import RequestSource, Spare
from dagster_llm_batch.files.request_writer import Draft, KnownIds, LocalSource
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.providers.capabilities import document_rules, upload_rules
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.payloads import PayloadStore, payload_path
from dagster_llm_batch.types import DocumentRules, Lane

if TYPE_CHECKING:
    from dagster_llm_batch.core.forecast import Learned
    from dagster_llm_batch.files.audited_requests import AuditedRequests
    from dagster_llm_batch.files.earlier_rows import EarlierRows
    from dagster_llm_batch.loop.seams import Older

__all__ = ["SubmissionWriter"]


@dataclass(frozen=True)
class SubmissionWriter:
    """Write the files of submissions of one labeling.

    Args:
        labeling: The question about each row.
        deployment: Its payload store takes the files; a preview gives a temporary one.
        tuned: Fields of shards chosen from earlier submissions, each by the model of the shards.
    """

    labeling: Labeling
    deployment: Deployment
    tuned: Mapping[str, Any] = field(default_factory=dict)

    @property
    def payloads(self) -> PayloadStore:
        """The store that takes the files."""
        return self.deployment.payloads

    @cached_property
    def configuration(self) -> str:
        """See Deployment.configuration."""
        return self.deployment.configuration(self.labeling)

    def path(self, partition: str, submission_id: str, name: str) -> str:
        """Return the path of a submission's file."""
        return payload_path(self.deployment.namespace, self.labeling.asset, partition, submission_id, name)

    def draft(
        self,
        submission_id: str,
        partition: str,
        known: KnownIds | None,
        erased: ErasedKeys,
        earlier: EarlierRows | None = None,
        older: Older | None = None,
    ) -> Draft:
        """Return a draft of a submission, which writes its request files. Discard it unless it is stored.

        `known` has the requests that are not asked again, `earlier` the rows of an earlier submission, and `older` the
        labels that may stay.
        """
        labeling, deployment = self.labeling, self.deployment
        # With an audit, the requests of the model itself are in such a file: all rows decide which are sent.
        has_audit = labeling.near is not None or older is not None
        others = labeling.models if has_audit else labeling.models[1:]
        spares = [self.spare(submission_id, partition, other) for other in others]
        codec, counter = deployment.codec(labeling), deployment.counter(labeling)
        codecs = [codec, *(spare.codec for spare in (spares[1:] if has_audit else spares))]
        prompt, files = labeling.prompt, NO_FILES
        if prompt.images or prompt.documents:
            files = files_of(prompt, _document_rules(labeling, codecs) if prompt.sends_documents else [])
        folder, documents = self.path(partition, submission_id, "parts").rpartition("/")[0], None
        if prompt.documents_as == "upload":
            # Few datasets upload documents.
            from dagster_llm_batch.files.document_files import DocumentFiles  # noqa: PLC0415

            documents = DocumentFiles(self.payloads, folder)
        before = None if older is None else older.rendered
        source: RequestSource = LocalSource(
            labeling, codecs, counter, self.payloads, files, erased, earlier, before, documents
        )
        if labeling.workers is not None:
            maker = PartMaker(labeling, codec, spares, counter, self.payloads, folder, files, erased, documents)
            source = WorkerSource(labeling.workers, maker, source)
        wave = replace(self.wave(submission_id, partition, 1), writer=source.writer)
        audited: AuditedRequests | None = None
        if labeling.near is not None:
            from dagster_llm_batch.files.near_requests import NearRequests  # noqa: PLC0415 - few labelings have them

            contexts = labeling.near.contexts_in(prompt, labeling.key)
            placeholders = None if labeling.mask is None else labeling.mask.placeholders
            audited = NearRequests(labeling.near, contexts, spares[0], deployment.new_file, placeholders)
        elif older is not None:
            from dagster_llm_batch.files.older_requests import OlderRequests  # noqa: PLC0415 - few labelings have them

            audited = OlderRequests(before, spares[0])
        return Draft(
            labeling=labeling,
            source=source,
            payloads=self.payloads,
            files={lane: self.files(wave, labeling, lane) for lane in Lane},
            spares=spares,
            estimate=self.estimate(labeling),
            known=known,
            manifest_path=self.path(partition, submission_id, "manifest.parquet"),
            few_rows=deployment.few_rows,
            new_file=deployment.new_file,
            audited=audited,
            documents=documents,
        )

    def wave(self, submission_id: str, partition: str, number: int) -> Wave:
        """Return the wave of this number, to write its request files."""
        return Wave(self.payloads, submission_id, number, lambda name: self.path(partition, submission_id, name))

    def files(self, wave: Wave, labeling: Labeling, lane: Lane) -> ShardFiles:
        """Return the writer of a wave's request files for one of the labeling's models, in one lane."""
        limits, estimate = self.deployment.batch_limits(labeling), self.estimate(labeling)
        chosen = {name: self.tuned.get(name, {}).get(labeling.model) for name in ("most_requests", "most_at_once")}
        owner, prices = self.deployment.owner(labeling, lane), _Prices(labeling.limits, estimate, lane)
        return wave.files(limits, owner, prices, chosen)

    def spare(self, submission_id: str, partition: str, fallback: Labeling) -> Spare:
        """Return the file with all requests for a fallback in its present configuration."""
        configuration = self.deployment.configuration(fallback)
        return Spare(
            codec=self.deployment.codec(fallback),
            path=self.path(partition, submission_id, f"fallback-{configuration}.jsonl.zst"),
            nonce=shard_nonce(submission_id, 0, int(configuration, 16)),
        )

    def estimate(self, labeling: Labeling, lane: Lane = Lane.BATCH) -> Estimate:
        """Return an estimate for one of the labeling's models, without any request yet."""
        # A fallback gets the requests that the first model did not answer, so the first model's history does not apply.
        # The oracle of a cascade has its own history.
        learned = self._learned if labeling.model == self.labeling.model else None
        if self.labeling.cascade is not None and labeling.model == self.labeling.models[1].model:
            learned = self._learned_of_oracle
        return self.deployment.estimate(labeling, lane, learned)

    @cached_property
    def _learned(self) -> Learned | None:
        return self.deployment.learned(self.labeling)

    @cached_property
    def _learned_of_oracle(self) -> Learned | None:
        return self.deployment.learned(self.labeling, of_oracle=True)


@dataclass(frozen=True)
class _Prices:
    """See ShardPrices."""

    limits: Limits
    estimate: Estimate
    lane: Lane

    def surcharge(self, shard: Shard, lacking: int) -> Costs:
        each, urgent = (self.estimate.expected_usd(shard.tokens // shard.requests, lane) for lane in Lane)
        if self.limits.below_minimum == "refuse" or each is None or urgent is None:
            return Costs(Decimal(0), Decimal(0))
        dearest = self.most_usd(shard.input_bound)
        if self.limits.below_minimum == "pad":
            # The padding is copies of any of them.
            return Costs(each * lacking, None if dearest is None else dearest * lacking)
        more = (urgent - each) * shard.requests
        most = self.estimate.most_usd(shard.input_bound, Lane.REALTIME)
        known = most is not None and dearest is not None
        return Costs(more, (most - dearest) * shard.requests if known else None)  # type: ignore[operator]  # both known

    def most_usd(self, input_bound: int | None) -> Decimal | None:
        return self.estimate.most_usd(input_bound, self.lane)


def _document_rules(labeling: Labeling, codecs: Sequence[Codec]) -> list[DocumentRules]:
    """Return what each model's vendor allows of documents. Raises ConfigError for a model that takes none."""
    found, rules_of = [], upload_rules if labeling.prompt.documents_as == "upload" else document_rules
    for one, codec in zip(labeling.models, codecs, strict=True):
        if (rules := rules_of(codec)) is None:
            raise ConfigError(
                f"Prompt(documents=...) names {', '.join(labeling.prompt.documents)}, and the model {one.model} takes "
                "no documents in its batches here. Nothing was sent. Send their text, by documents_as='text', or take "
                "a model that reads PDF: of OpenAI, Anthropic, Google, Mistral and OpenRouter, or Claude on Bedrock."
            )
        found.append(rules)
    return found
