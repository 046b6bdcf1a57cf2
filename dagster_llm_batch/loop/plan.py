"""Plans submissions: finds the one that the ledger has for the same rows, or makes a new one. Sends and spends nothing.

The same asset, partition and fingerprint is the same submission, which is found again and not paid again. Requests that
earlier submissions of the partition have answered under the same configuration are not asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dagster_llm_batch.core.identity import canonical_json, shard_nonce
from dagster_llm_batch.core.keys import ErasedKeys
from dagster_llm_batch.core.pricing import Costs, Estimate
from dagster_llm_batch.core.token_counts import NO_OUTPUT
from dagster_llm_batch.definition.labeling import Labeling, Limits
from dagster_llm_batch.errors import BudgetError, ConfigError, LeaseError, LedgerError, MissingGoldError
from dagster_llm_batch.files.request_files import ShardFiles, Wave, levels_of
from dagster_llm_batch.files.request_parts import ImagesBelow, PartMaker, WorkerSource
from dagster_llm_batch.files.request_source import RequestSource
from dagster_llm_batch.files.request_writer import Draft, LocalSource, Plan, Spare
from dagster_llm_batch.loop.budget import forecast_steps, refuse_over_budget
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.held import hold_and_read
from dagster_llm_batch.loop.preview import Preview, output_basis_of, parameter_warnings, preview_of
from dagster_llm_batch.loop.submit_queue import count_queue_rounds, drop
from dagster_llm_batch.providers.capabilities import check_setup, real_time_of
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import Shard, Submission, SubmissionState
from dagster_llm_batch.storage.ledger.shards import count_requests
from dagster_llm_batch.storage.payloads import PayloadStore, payload_path
from dagster_llm_batch.types import Cause, Lane, Outcome
from dagster_llm_batch.upkeep.prune import find_pruned, is_pruned

if TYPE_CHECKING:
    from dagster_llm_batch.advice.tuner import Tuner
    from dagster_llm_batch.cascade.cascade import Sampling
    from dagster_llm_batch.core.durations import EndForecast
    from dagster_llm_batch.core.forecast import Learned
    from dagster_llm_batch.files.earlier_rows import EarlierRows
    from dagster_llm_batch.files.known_requests import KnownRequests

__all__ = ["Planner", "plan_lease"]


def plan_lease(namespace: str, asset: str, partition: str) -> str:
    """Return the name of the lease under which a partition gets a submission: one process at a time."""
    return f"plan:{namespace}:{asset}:{partition}"


# How long to wait for another process that stores a submission of the partition at this moment.
_WAIT_SECONDS = 60.0


class Planner:
    """Plan submissions of one labeling.

    `tuning`: what was chosen for a submission that is planned already, `{}` for nothing. None: it is chosen now.
    """

    def __init__(self, labeling: Labeling, deployment: Deployment, tuning: Mapping[str, Any] | None = None) -> None:
        self._labeling = labeling
        self._deployment = deployment
        self._tuning = tuning
        self._ledger = deployment.ledger
        self._payloads = deployment.payloads

    @cached_property
    def configuration(self) -> str:
        """See Deployment.configuration."""
        return self._deployment.configuration(self._labeling)

    def check(self, *, is_sent: bool = False) -> None:
        """Raise ResponseSchemaError or ConfigError for a definition that a provider cannot take. Reads no row.

        `is_sent`: it was sent already, so that no parameter is refused.
        """
        for labeling in self._labeling.models:
            _ = self._deployment.codec(labeling)
            if not is_sent:
                parameter_warnings(self._deployment, labeling)
            provider = self._deployment.provider(labeling.provider)
            check_setup(provider)
            how = labeling.realtime
            if how.urgent or how.deadline is not None or labeling.limits.below_minimum == "realtime":
                real_time_of(provider)
            budget = labeling.budget_usd
            if (gap := self._deployment.price_gap(labeling)) is not None and budget is not None:
                msg = (
                    f"No price is known for '{labeling.model}', so max_cost_usd={budget} cannot be kept. {gap} Correct "
                    "the model's name, give spend=Spend(price=TokenPrice(input_usd=..., output_usd=...)), or leave "
                    "max_cost_usd out."
                )
                raise ConfigError(msg)

    def plan(self, rows: Any, *, partition: str, run_id: str | None, again: bool) -> Submission:
        """See Engine.plan."""
        self.check()
        # Nobody may send shards of theirs, or settle them, while this plan decides which requests are in flight.
        with hold_and_read(self._deployment, lambda: self._open_and_all(partition)) as (_, history):
            return self._plan(rows, partition, run_id, history, again=again)

    def _open_and_all(self, partition: str) -> tuple[set[str], list[Submission]]:
        """Return the ids of the open submissions of a partition, and all that it has."""
        history = self._ledger.history(self._deployment.namespace, self._labeling.asset, partition)
        return {s.submission_id for s in history if s.state is SubmissionState.OPEN}, history

    def _plan(
        self, rows: Any, partition: str, run_id: str | None, history: Sequence[Submission], *, again: bool
    ) -> Submission:
        # Shards collected after this time were in flight when we planned: the new submission reuses their answers.
        now = self._deployment.clock()
        earlier = self._reusable(history)
        submission_id = self._deployment.new_id()
        erased = self._deployment.erased_keys(partition, self._labeling.asset)
        known_requests = self._known_requests(earlier, again=again)
        draft = self.draft(submission_id, partition, known_requests, erased, self._earlier_rows(history))
        sampling = self._sampling(partition, submission_id)
        try:
            draft.add_rows(rows)
            plan = draft.finish(self._asked)
            known = self._ledger.find_submission(
                self._deployment.namespace, self._labeling.asset, partition, plan.fingerprint
            )
            if known is not None and not self._may_follow(known, again=again):
                if known.created_at >= max((s.created_at for s in history), default=known.created_at):
                    # The fingerprint has no kept columns: these may be others now.
                    draft.replace_manifest(known.manifest)
                    draft.discard()
                    return known
                # Other rows were planned after it. A new attempt with nothing to send makes it the latest again.
                plan = draft.only_rows(plan)
                if sampling is not None:
                    sampling.repeat(known)
                estimate = Estimate(draft.estimate.tariff, NO_OUTPUT)
                sources: tuple[str, ...] = (known.submission_id, *known.reused_from)
            else:
                estimate = draft.estimate
                sources = tuple(s.submission_id for s in earlier) if plan.reused else ()
                if sampling is not None:
                    answered = self._known_requests(earlier, again=again, of=self._labeling.models[1].model)
                    plan, estimate = sampling.draw(plan, estimate, answered)
                    sources = tuple(s.submission_id for s in earlier) if plan.reused or answered else ()
            submission = self.submission(plan, submission_id, partition, run_id, estimate, known, sources, now)
            steps = forecast_steps(self._deployment, self._labeling, estimate)
            if (end := _forecast_end(self._deployment, self._labeling, plan.shards, steps)) is not None:
                p50_at, p90_at = (None if took is None else now + took for took in (end.p50, end.p90))
                # No more than these: an older version, which may read it, takes no other.
                basis = {"basis": end.basis, "ended": end.ended, "running": end.running}
                submission = replace(submission, p50_end_at=p50_at, p90_end_at=p90_at, end_basis=basis)
            if sampling is not None:
                questions = count_requests(plan.shards)
                submission = replace(submission, reserved_usd=sampling.rest_usd, questions=questions)
                estimate = sampling.whole(estimate)
            # What is erased from here on is applied to its files before it is sent, and before it lands.
            submission = replace(submission, tombstones=erased.tombstones or None)
            opened = self._open(submission, plan, estimate, history)
        except BaseException:
            # Somebody may have interrupted this process when the ledger had just stored the submission.
            if not self._may_be_stored(submission_id):
                self._discard(draft, sampling)
            raise
        # Another process may have stored the same submission first.
        if opened.submission_id != submission_id:
            self._discard(draft, sampling)
        else:
            self._deployment.opened_here.add(submission_id)
        return opened

    def _may_be_stored(self, submission_id: str) -> bool:
        """Return whether the ledger has a submission, or does not answer: files that nothing needs are pruned later."""
        try:
            return bool(self._ledger.known_submissions([submission_id]))
        except LedgerError:
            return True

    @property
    def _asked(self) -> str:
        """The configuration, and what a cascade promises by it: with another promise other labels may be accepted."""
        cascade = self._labeling.cascade
        return self.configuration if cascade is None else f"{self.configuration} {canonical_json(cascade.promise)}"

    def _sampling(self, partition: str, submission_id: str, aside: Planner | None = None) -> Sampling | None:
        """Return what samples rows for the oracle of a cascade; None if there is none. `aside` previews."""
        if self._labeling.cascade is None:
            return None
        from dagster_llm_batch.cascade.cascade import Sampling  # noqa: PLC0415 - few labelings have one

        planner = aside or self
        return Sampling(planner, self._deployment, self._labeling, partition, submission_id)

    @staticmethod
    def _discard(draft: Draft, sampling: Sampling | None) -> None:
        with ExitStack() as last_first:
            last_first.callback(draft.discard)
            if sampling is not None:
                last_first.callback(sampling.discard)

    def _open(
        self, submission: Submission, plan: Plan, estimate: Estimate, history: Sequence[Submission]
    ) -> Submission:
        """Store the submission, superseding those before; return another process's where that has stored the same."""
        place = (submission.namespace, submission.asset, submission.partition)
        # Two processes that plan the same partition at once would each supersede the other's submission.
        with self._ledger.hold_leases(plan_lease(*place), wait_seconds=_WAIT_SECONDS):
            seen = {earlier.submission_id for earlier in history}
            present = self._ledger.history(*place)
            for other in present:
                if other.submission_id in seen:
                    continue
                if other.fingerprint == submission.fingerprint:
                    return other
                msg = (
                    f"'{other.asset}' {other.partition}: another process planned other rows meanwhile, as submission "
                    f"{other.submission_id}. Nothing was sent for these. Run again if these are the newer rows."
                )
                raise LeaseError(msg)
            # Shards of older submissions that are not sent any more free their money for this one.
            with refuse_over_budget(self._deployment, self._labeling, estimate, self._unsent(history)):
                for older in history:
                    if older.state is SubmissionState.OPEN:
                        self._supersede(older, submission.submission_id)
                # The newest is the one that counts, also after one that was planned by a clock that was ahead.
                ahead = [other.created_at for other in present if other.created_at > submission.created_at]
                if ahead:
                    submission = replace(submission, created_at=max(ahead) + timedelta(microseconds=1))
                return self._ledger.open_submission(submission, plan.shards)

    def _unsent(self, history: Sequence[Submission]) -> list[str]:
        """Return the ids of shards that will not be sent when another submission supersedes these, and of those that
        keep money for a wave that will not be.
        """
        still_open = [submission for submission in history if submission.state is SubmissionState.OPEN]
        shards = [shard for submission in still_open for shard in self._ledger.shards(submission.submission_id)]
        unsent = [shard.shard_id for shard in shards if shard.state is ShardState.PLANNED]
        return [*unsent, *(submission.submission_id for submission in still_open)]

    def preview(self, rows: Any, *, partition: str, again: bool) -> Preview:
        """See Engine.preview."""
        self.check()
        name, history = self._name_and_history(partition)
        with ExitStack() as stack:
            folder = stack.enter_context(TemporaryDirectory())
            # Workers on other machines would not see a temporary folder of this one.
            alone = replace(self._labeling, workers=None)
            aside = Planner(alone, replace(self._deployment, payloads=PayloadStore(folder)))
            earlier, submission_id = self._reusable(history), self._deployment.new_id()
            known_requests = self._known_requests(earlier, again=again)
            names = (self._labeling.asset, *self._labeling.resend.former_names)
            erased = self._deployment.erased_keys(partition, *names)
            draft = aside.draft(submission_id, partition, known_requests, erased, self._earlier_rows(history))
            stack.callback(draft.discard)
            draft.add_rows(rows)
            plan = draft.finish(self._asked)
            known = self._ledger.find_submission(self._deployment.namespace, name, partition, plan.fingerprint)
            if known is not None and not self._may_follow(known, again=again):
                nothing = preview_of(draft.only_rows(plan), Estimate(draft.estimate.tariff, NO_OUTPUT), None)
                return replace(nothing, known=known, lost=self._count_lost(known))
            estimate, whole, levels = draft.estimate, draft.estimate, None
            if (sampling := self._sampling(partition, submission_id, aside)) is not None:
                answered = self._known_requests(earlier, again=again, of=self._labeling.models[1].model)
                try:
                    plan, estimate = sampling.draw(plan, estimate, answered)
                except MissingGoldError as error:
                    return replace(preview_of(plan, estimate, str(error)), missing_gold=error.keys)
                whole, levels = sampling.whole(estimate), sampling.levels
            try:
                with refuse_over_budget(self._deployment, self._labeling, whole, self._unsent(history)):
                    refused = None
            except BudgetError as error:
                refused = str(error)
            limit, _ = self._deployment.queue_limit(self._labeling.provider, self._labeling.spec.model)
            steps = forecast_steps(self._deployment, self._labeling, estimate)
            figures = preview_of(plan, estimate, refused)
            return replace(
                figures,
                levels=levels,
                oracle=None if sampling is None else sampling.oracle,
                # Of two models, only what the first would cost is known.
                realtime_usd=figures.realtime_usd if levels is None or levels.asks_oracle_alone else None,
                context_tokens=self._deployment.context_tokens(self._labeling),
                has_tokenizer=self._deployment.tokenizer(self._labeling) is not None,
                queue_limit=limit,
                steps=steps,
                output_basis=output_basis_of(self._deployment, self._labeling),
                rounds=1 if limit is None else count_queue_rounds(plan.shards, limit),
                end=_forecast_end(self._deployment, self._labeling, plan.shards, steps),
                tuning=aside.tuning(plan.requests - plan.reused),
            )

    def _count_lost(self, known: Submission) -> int:
        """Return how many requests of a submission have no answer any more, since files were lost."""
        gone = (shard for shard in self._ledger.shards(known.submission_id) if shard.cause is Cause.GONE)
        return sum(shard.requests - self._count_answers(shard) for shard in gone if shard.results_path)

    def _count_answers(self, shard: Shard) -> int:
        read = self._payloads.read_table(shard.results_path or "", ["llm_outcome"])
        outcomes: list[str] = read["llm_outcome"].to_pylist()
        return outcomes.count(Outcome.SUCCEEDED.value)

    def _name_and_history(self, partition: str) -> tuple[str, list[Submission]]:
        """Return the name under which a partition has submissions, and these: a former one that `plan` would rename."""
        own = self._labeling.asset
        for name in (own, *self._labeling.resend.former_names):
            if history := self._ledger.history(self._deployment.namespace, name, partition):
                return name, history
        return own, []

    def _reusable(self, history: Sequence[Submission]) -> list[Submission]:
        """Return the submissions whose answers can be reused."""
        same = [s for s in history if s.config_fingerprint == self.configuration]
        if not same:
            return []
        pruned = find_pruned(self._ledger, same)
        return [s for s in same if s.submission_id not in pruned]

    def _may_follow(self, known: Submission, *, again: bool) -> bool:
        """Return whether a new attempt may follow for the same rows, as it may where the answers were pruned.

        So it may where what a cascade has decided is lost: that is decided anew, from the answers that are there.
        """
        anyway = again or is_pruned(self._ledger, known) or self._has_lost_levels(known)
        if not _may_follow(known, again=anyway):
            return False
        # Requests whose batch was canceled at the provider cost nothing, and wait for a person all the same.
        left = any(shard.waits_for_person for shard in self._ledger.shards(known.submission_id))
        return anyway or known.state is SubmissionState.CANCELED or not left

    def _has_lost_levels(self, known: Submission) -> bool:
        """Return whether a settled cascade has no file any more that gives its rows their levels."""
        if self._labeling.cascade is None or known.state is not SubmissionState.SETTLED:
            return False
        return levels_of(self._payloads, known) is None

    def _earlier_rows(self, history: Sequence[Submission]) -> EarlierRows | None:
        """Return the rows of the newest submission, by which most of those that come now may be known again."""
        # Workers render their rows by themselves.
        if not history or self._labeling.workers is not None:
            return None
        from dagster_llm_batch.files.earlier_rows import EarlierRows  # noqa: PLC0415 - of no use to the first rows

        return EarlierRows.of(self._payloads, history[0].manifest)

    def draft(
        self,
        submission_id: str,
        partition: str,
        known: KnownRequests | None,
        erased: ErasedKeys,
        earlier: EarlierRows | None = None,
    ) -> Draft:
        """Return a draft of a submission, whose request files it writes. Discard it where it is not stored."""
        labeling, deployment = self._labeling, self._deployment
        root = labeling.prompt.image_root
        load_image = None if root is None else ImagesBelow(root)
        spares = [self.spare(submission_id, partition, fallback) for fallback in labeling.models[1:]]
        codec, counter = deployment.codec(labeling), deployment.counter(labeling)
        source: RequestSource = LocalSource(
            labeling, [codec, *(spare.codec for spare in spares)], counter, self._payloads, load_image, erased, earlier
        )
        if labeling.workers is not None:
            folder = self._path(partition, submission_id, "parts").rpartition("/")[0]
            maker = PartMaker(labeling, codec, spares, counter, self._payloads, folder, load_image, erased)
            source = WorkerSource(labeling.workers, maker, source)
        wave = replace(self.wave(submission_id, partition, 1), writer=source.writer)
        return Draft(
            labeling=labeling,
            source=source,
            payloads=self._payloads,
            files={lane: self.files(wave, labeling, lane) for lane in Lane},
            spares=spares,
            estimate=self.estimate(labeling),
            known=known,
            manifest_path=self._path(partition, submission_id, "manifest.parquet"),
            few_rows=deployment.few_rows,
            new_file=deployment.new_file,
        )

    @cached_property
    def _learned(self) -> Learned | None:
        return self._deployment.learned(self._labeling)

    @cached_property
    def _learned_of_oracle(self) -> Learned | None:
        return self._deployment.learned(self._labeling, of_oracle=True)

    def estimate(self, labeling: Labeling, lane: Lane = Lane.BATCH) -> Estimate:
        """Return an estimate without any request yet for one of the labeling's models."""
        # Only what the first of them was asked is learned from: a fallback gets what that one did not answer. The
        # oracle of a cascade is asked a sample, and so much more that it teaches its own.
        learned = self._learned if labeling.model == self._labeling.model else None
        if self._labeling.cascade is not None and labeling.model == self._labeling.models[1].model:
            learned = self._learned_of_oracle
        return self._deployment.estimate(labeling, lane, learned)

    def wave(self, submission_id: str, partition: str, number: int) -> Wave:
        """Return the wave of this number, to write its request files."""
        return Wave(self._payloads, submission_id, number, lambda name: self._path(partition, submission_id, name))

    def files(self, wave: Wave, labeling: Labeling, lane: Lane) -> ShardFiles:
        """Return the request files of a wave for one of the labeling's models, in one lane."""
        limits, estimate = self._deployment.batch_limits(labeling), self.estimate(labeling)
        tuning = self._tuning if self._tuning is not None else {} if self._tuner is None else self._tuner.of_shards
        chosen = {name: tuning.get(name, {}).get(labeling.model) for name in ("most_requests", "most_at_once")}
        owner, prices = self._deployment.owner(labeling, lane), _Prices(labeling.limits, estimate, lane)
        return wave.files(limits, owner, prices, chosen)

    @cached_property
    def _tuner(self) -> Tuner | None:
        if not self._deployment.tune:
            return None
        from dagster_llm_batch.advice.tuner import Tuner  # noqa: PLC0415 - only where somebody asks for it

        return Tuner(self._deployment, self._labeling)

    def tune_sample(
        self,
        stored: Deployment,
        partition: str,
        rows: int,
        size: int,
        at_least: int,
        usd: tuple[Decimal | None, Decimal | None],
    ) -> int:
        """Return how many of so many rows a cascade samples: `size`, or what other partitions say.

        `stored` has their files, also where this planner writes aside. `usd`: what a request costs at the model, and at
        the oracle.
        """
        asked, (cheap, each) = self._labeling.cascade, usd
        if self._tuner is None or asked is None or asked.sample != "auto" or cheap is None or not each:
            return size
        # Where people label the sample, they have to know how large it is.
        if asked.calibrate != "partition" or asked.gold is not None or size >= rows:
            return size
        return self._tuner.choose_sample(stored, partition, rows, size, at_least, float(cheap / each))

    def tuning(self, requests: int) -> Mapping[str, Any] | None:
        """Return what is chosen for a submission of so many requests by earlier ones; None: nobody asks for it."""
        if self._tuner is None:
            return None
        self._deadline(requests)
        return self._tuner.record

    def _deadline(self, requests: int) -> timedelta | None:
        """Return how long after its plan a submission of so many requests turns to real time."""
        deadline = self._labeling.realtime.deadline
        return deadline if self._tuner is None or deadline is None else deadline - self._tuner.choose_lead(requests)

    def spare(self, submission_id: str, partition: str, fallback: Labeling) -> Spare:
        """Return the file that has all requests for a fallback, as it is configured now."""
        configuration = self._deployment.configuration(fallback)
        return Spare(
            codec=self._deployment.codec(fallback),
            path=self._path(partition, submission_id, f"fallback-{configuration}.jsonl.zst"),
            nonce=shard_nonce(submission_id, 0, int(configuration, 16)),
        )

    def _path(self, partition: str, submission_id: str, name: str) -> str:
        return payload_path(self._deployment.namespace, self._labeling.asset, partition, submission_id, name)

    def _known_requests(
        self, submissions: Sequence[Submission], *, again: bool, of: str | None = None
    ) -> KnownRequests | None:
        """Return what these submissions, newest first, have asked already. See find_known."""
        if not submissions:
            return None
        from dagster_llm_batch.files.known_requests import find_known  # noqa: PLC0415 - of no use to the first rows

        return find_known(self._labeling, self._deployment, submissions, again=again, of=of)

    def _supersede(self, older: Submission, by: str) -> None:
        """Send no more of a submission whose rows or definition have changed. What was sent is still collected."""
        self._ledger.add_event(older.submission_id, "superseded", f"by submission {by}")
        self._ledger.set_state(older.submission_id, SubmissionState.CANCELED)
        drop(self._deployment, self._ledger.shards(older.submission_id), f"submission {by} came in its place")

    def submission(
        self,
        plan: Plan,
        submission_id: str,
        partition: str,
        run_id: str | None,
        estimate: Estimate,
        known: Submission | None,
        sources: tuple[str, ...],
        now: datetime,
    ) -> Submission:
        """Return the submission of a finished draft, as it would be stored."""
        labeling = self._labeling
        owner = self._deployment.owner(labeling)
        return Submission(
            submission_id=submission_id,
            namespace=self._deployment.namespace,
            asset=labeling.asset,
            partition=partition,
            fingerprint=plan.fingerprint,
            config_fingerprint=self.configuration,
            attempt=1 if known is None else known.attempt + 1,
            provider=owner.provider,
            account=owner.account,
            model=owner.model,
            rows=plan.rows,
            requests=plan.requests,
            reused=plan.reused,
            manifest_path=self._path(partition, submission_id, "manifest.parquet"),
            estimated_usd=estimate.cost_usd,
            p05_usd=estimate.p05_usd,
            p95_usd=estimate.p95_usd,
            bound_usd=estimate.bound_usd,
            learned_from=None if estimate.learned is None else estimate.learned.complete,
            price_basis=estimate.tariff.basis,
            created_at=now,
            deadline_at=None if (deadline := self._deadline(plan.requests - plan.reused)) is None else now + deadline,
            tuning=None if self._tuner is None else self._tuner.record,
            run_id=run_id,
            reused_from=sources,
            tags=dict(labeling.tags) or None,
        )


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
            # Copies of any of them.
            return Costs(each * lacking, None if dearest is None else dearest * lacking)
        more = (urgent - each) * shard.requests
        most = self.estimate.most_usd(shard.input_bound, Lane.REALTIME)
        known = most is not None and dearest is not None
        return Costs(more, (most - dearest) * shard.requests if known else None)  # type: ignore[operator]  # both known

    def most_usd(self, input_bound: int | None) -> Decimal | None:
        return self.estimate.most_usd(input_bound, self.lane)


def _may_follow(known: Submission, *, again: bool) -> bool:
    """Return whether a new attempt may follow for the same rows."""
    if known.state is SubmissionState.OPEN:
        return False
    if again or known.state is SubmissionState.CANCELED:
        return True
    # A request without a result may have been billed, so only a person sends it again. Where every request was refused,
    # nothing was billed, and another attempt costs nothing extra.
    paid = {Outcome.SUCCEEDED.value, Outcome.INVALID.value, Outcome.MISSING.value} & set(known.outcomes)
    return bool(known.requests) and not paid


def _forecast_end(
    deployment: Deployment, labeling: Labeling, shards: Sequence[Shard], steps: int | None
) -> EndForecast | None:
    """Return how long a submission with these shards takes, from plan to end; None: no batch of its model was sent yet.

    `steps`: in how many limits of money let them out.
    """
    of_batch = [shard for shard in shards if shard.lane is Lane.BATCH] or shards
    if not of_batch:
        return None
    from dagster_llm_batch.core.durations import FEWEST, EndForecast  # noqa: PLC0415 - who plans alone needs it

    owner = deployment.owner(labeling, of_batch[0].lane)
    known = deployment.ledger.batch_spans(owner.provider, owner.account, owner.model, owner.lane, FEWEST)
    if not known:
        return None
    if len(known) < FEWEST:
        ended = [span.began.date() for span in known if span.has_ended]
        return EndForecast(ended=len(ended), running=len(known) - len(ended), days=len(set(ended)))
    from dagster_llm_batch.advice.end_forecast import EndHistory, EndQuestion  # noqa: PLC0415 - only where it can tell

    limit, _ = deployment.queue_limit(labeling.provider, labeling.spec.model)
    is_at_once = steps == 1 and (limit is None or count_queue_rounds(shards, limit) == 1)
    requests = count_requests(shards)
    question = EndQuestion(owner, requests, len(of_batch), is_at_once and labeling.cascade is None)
    history = EndHistory(deployment.ledger, deployment.namespace, deployment.clock())
    return history.forecast_end(labeling.asset, question)
