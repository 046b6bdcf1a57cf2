"""Decides what a submission is: one that the ledger knows already, or a new one. Sends nothing, spends nothing.

The same asset, partition and fingerprint is the same submission: it is found again, not paid again. Requests that
earlier submissions of the partition have answered under the same configuration are not asked again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import Any

from upath import UPath

from dagster_llm_batch.core.identity import configuration_fingerprint
from dagster_llm_batch.core.pricing import Estimate, Tariff, expected_output_tokens
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.core.sharding import tightest
from dagster_llm_batch.engine.definition import Labeling
from dagster_llm_batch.engine.planning import Draft, Plan, ShardFiles
from dagster_llm_batch.errors import BudgetError, ConfigError, IllegalMoveError
from dagster_llm_batch.protocols import Codec, Provider
from dagster_llm_batch.states import Move, ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.paths import payload_path
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.storage.records import Submission, SubmissionState
from dagster_llm_batch.types import BatchStatus, Outcome, PriceBasis, ResponseKind

__all__ = ["Planner"]


class Planner:
    """Plans submissions of one labeling."""

    def __init__(
        self,
        labeling: Labeling,
        provider: Provider,
        tariff: Tariff,
        ledger: Ledger,
        payloads: PayloadStore,
        namespace: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._labeling = labeling
        self._provider = provider
        self._tariff = tariff
        self._ledger = ledger
        self._payloads = payloads
        self._namespace = namespace
        self._clock = clock

    @cached_property
    def _codec(self) -> Codec:
        return self._provider.codec(self._labeling.spec)

    @cached_property
    def configuration(self) -> str:
        """The fingerprint of all that decides an answer besides the request."""
        return configuration_fingerprint(self._provider.account, self._labeling.provider, self._labeling.spec)

    def check(self) -> None:
        """Raise ResponseSchemaError or ConfigError for what this provider cannot take. Needs no row."""
        labeling = self._labeling
        _ = self._codec
        if labeling.budget_usd is not None and self._tariff.basis is PriceBasis.UNKNOWN:
            msg = (
                f"No price is known for '{labeling.model}', so max_cost_usd={labeling.budget_usd} cannot be kept. Give "
                "price=TokenPrice(input_usd=..., output_usd=...), correct the model's name, or leave max_cost_usd out."
            )
            raise ConfigError(msg)

    def plan(self, rows: Any, *, partition: str, run_id: str | None, again: bool) -> Submission:
        """See Engine.plan."""
        self.check()
        history = self._ledger.history(self._namespace, self._labeling.asset, partition)
        earlier = [
            s for s in history if s.config_fingerprint == self.configuration and s.state is not SubmissionState.OPEN
        ]
        submission_id = uuid.uuid4().hex
        draft = self._draft(submission_id, partition, self._answered(earlier))
        try:
            for batch in record_batches(rows):
                draft.add(batch)
            plan = draft.finish(self.configuration)
            known = self._ledger.find(self._namespace, self._labeling.asset, partition, plan.fingerprint)
            if known is not None and not _may_follow(known, again=again):
                if known.created_at >= max((s.created_at for s in history), default=known.created_at):
                    draft.replace_manifest(known.manifest_path or "")  # the kept columns may be others
                    draft.discard()
                    return known
                # Others came after it: it becomes the latest again by a new attempt that has nothing to ask.
                plan = draft.only_rows(plan)
                estimate = Estimate(self._tariff, 0)
                sources: tuple[str, ...] = (known.submission_id, *known.reused_from)
            else:
                estimate = draft.estimate
                self._refuse_over_budget(estimate)
                sources = tuple(s.submission_id for s in earlier) if plan.reused else ()
        except BaseException:
            draft.discard()
            raise
        for older in history:
            if older.state is SubmissionState.OPEN:
                self._supersede(older, submission_id)
        opened = self._open(plan, submission_id, partition, run_id, estimate, known, sources)
        if opened.submission_id != submission_id:  # another process was quicker
            draft.discard()
        return opened

    def _draft(self, submission_id: str, partition: str, answered: set[str]) -> Draft:
        labeling = self._labeling
        embeds = labeling.reader.format.kind is ResponseKind.EMBEDDING
        output_tokens = 0 if embeds else expected_output_tokens(labeling.params, labeling.expected_output_tokens)
        root = labeling.prompt.image_root
        return Draft(
            labeling=labeling,
            codec=self._codec,
            payloads=self._payloads,
            files=self.files(submission_id, partition, 1),
            estimate=Estimate(self._tariff, output_tokens),
            answered=answered,
            manifest_path=self._manifest_path(partition, submission_id),
            load_image=None if root is None else _ImagesBelow(UPath(root)),
        )

    def files(self, submission_id: str, partition: str, wave: int) -> ShardFiles:
        """Where the request files of a wave are written."""
        limits = tightest(self._codec.limits, self._labeling.max_requests_per_batch, self._labeling.max_bytes_per_batch)
        return ShardFiles(
            self._payloads, limits, submission_id, wave, lambda name: self._path(partition, submission_id, name)
        )

    def _manifest_path(self, partition: str, submission_id: str) -> str:
        return self._path(partition, submission_id, "manifest.parquet")

    def _path(self, partition: str, submission_id: str, name: str) -> str:
        return payload_path(self._namespace, self._labeling.asset, partition, submission_id, name)

    def _answered(self, submissions: Sequence[Submission]) -> set[str]:
        """Requests that these submissions have a good answer to."""
        answered: set[str] = set()
        for submission in submissions:
            for shard in self._ledger.shards(submission.submission_id):
                if shard.results_path:
                    table = self._payloads.read_table(shard.results_path, ["llm_request_id", "llm_outcome"])
                    pairs = zip(*(column.to_pylist() for column in table.columns), strict=True)
                    answered.update(one for one, outcome in pairs if outcome == Outcome.SUCCEEDED.value)
        return answered

    def _refuse_over_budget(self, estimate: Estimate) -> None:
        budget = self._labeling.budget_usd
        if budget is not None and estimate.cost_usd is not None and estimate.cost_usd > budget:
            msg = (
                f"'{self._labeling.asset}': the estimate of {estimate.cost_usd:.4f} USD for {estimate.requests:,} "
                f"requests ({estimate.input_tokens:,} input tokens, {estimate.output_tokens_each} output tokens each) "
                f"exceeds max_cost_usd={budget}. Nothing was sent. Raise the limit, lower max_tokens, give "
                "expected_output_tokens, or send fewer rows."
            )
            raise BudgetError(msg)

    def _supersede(self, older: Submission, by: str) -> None:
        """Send no more of a submission whose rows or definition have changed; what was sent is still collected."""
        self._ledger.note(older.submission_id, "superseded", f"by submission {by}")
        self._ledger.set_state(older.submission_id, SubmissionState.CANCELED)
        for shard in self._ledger.shards(older.submission_id):
            if shard.state is ShardState.PLANNED:
                with suppress(IllegalMoveError):  # another process has just sent it; it is collected in time
                    self._ledger.move(
                        shard.shard_id, Move.CANCELED, status=BatchStatus.CANCELED, ended_at=self._clock()
                    )

    def _open(
        self,
        plan: Plan,
        submission_id: str,
        partition: str,
        run_id: str | None,
        estimate: Estimate,
        known: Submission | None,
        sources: tuple[str, ...],
    ) -> Submission:
        submission = Submission(
            submission_id=submission_id,
            namespace=self._namespace,
            asset=self._labeling.asset,
            partition=partition,
            fingerprint=plan.fingerprint,
            config_fingerprint=self.configuration,
            attempt=1 if known is None else known.attempt + 1,
            provider=self._labeling.provider,
            account=self._provider.account,
            model=self._labeling.spec.model,
            rows=plan.rows,
            requests=plan.requests,
            reused=plan.reused,
            manifest_path=self._manifest_path(partition, submission_id),
            estimated_usd=estimate.cost_usd,
            price_basis=estimate.tariff.basis,
            created_at=self._clock(),
            run_id=run_id,
            reused_from=sources,
        )
        return self._ledger.open(submission, plan.shards)


def _may_follow(known: Submission, *, again: bool) -> bool:
    """Whether the same rows may be sent once more, as a new attempt."""
    if known.state is SubmissionState.OPEN:
        return False
    if again or known.state is SubmissionState.CANCELED:
        return True
    paid = {Outcome.SUCCEEDED.value, Outcome.INVALID.value} & set(known.outcomes)
    return bool(known.requests) and not paid  # every request was refused: asking again costs nothing extra


class _ImagesBelow:
    """Reads images below one folder and nowhere else."""

    def __init__(self, root: UPath) -> None:
        self._root = root

    def __call__(self, path: str) -> bytes:
        if path.startswith("/") or "\\" in path or "://" in path or ".." in path.split("/"):
            msg = f"{path!r} is not a relative path below image_root"
            raise ValueError(msg)
        found = self._root / path
        if found.protocol in ("", "file") and not found.resolve().is_relative_to(self._root.resolve()):
            msg = f"{path!r} leads out of image_root"
            raise ValueError(msg)
        return bytes(found.read_bytes())
