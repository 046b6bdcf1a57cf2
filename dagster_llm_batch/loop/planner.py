"""Plans of one labeling, in order: check, read under leases, draft, decide, take steps, then commit or show."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

from dagster_llm_batch.core.identity import configuration_with
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import ConfigError, LeaseError, LedgerError
from dagster_llm_batch.files.request_writer import Draft
from dagster_llm_batch.loop.budget import budgets_of
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.held import hold_and_read
from dagster_llm_batch.loop.knowledge import history_of, read_knowledge
from dagster_llm_batch.loop.plan import (
    PLAN_WAIT_SECONDS,
    Plan,
    Planning,
    PlanStep,
    RowsState,
    check_limits,
    commit,
    count_money_steps,
    decide,
    plan_lease,
    take_steps,
    tune,
)
from dagster_llm_batch.loop.preview import Preview, parameter_warnings, show
from dagster_llm_batch.loop.seams import Tuning
from dagster_llm_batch.loop.submission_writer import SubmissionWriter
from dagster_llm_batch.protocols import Codec, StoresDocuments
from dagster_llm_batch.providers.capabilities import check_setup, flex_of, real_time_of, upload_rules
from dagster_llm_batch.storage.ledger.records import Submission, SubmissionState
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import PriceBasis

__all__ = ["Planner", "check_definition"]

# Names of the tier in the parameters of OpenAI, and of Google and Bedrock.
_TIER_PARAMETERS = ("service_tier", "serviceTier")


def check_definition(deployment: Deployment, labeling: Labeling, *, is_sent: bool = False) -> None:
    """Raise ResponseSchemaError or ConfigError if a provider cannot take the definition. Reads no row.

    `is_sent` is True for an existing batch, whose parameters were accepted.
    """
    for one in labeling.models:
        codec = deployment.codec(one)
        if one.prompt.documents_as == "upload":
            _refuse_missing_uploads(deployment, one, codec)
        if not is_sent:
            deployment.destinations.check(f"'{labeling.asset}'", one.model, one.params)
            parameter_warnings(deployment, one)
            _refuse_missing_real_time(deployment, one)
            if one.realtime.tier == "flex":
                _refuse_impossible_flex(deployment, one)
        check_setup(deployment.provider(one.provider))
        budget = one.budget_usd
        if (gap := deployment.price_gap(one)) is not None and budget is not None:
            msg = (
                f"The price of '{one.model}' is unknown, so max_cost_usd={budget} cannot be enforced. {gap} Correct "
                "the model's name, give spend=Spend(price=TokenPrice(input_usd=..., output_usd=...)), or leave "
                "max_cost_usd out."
            )
            raise ConfigError(msg)
        is_unpriced = one.realtime.tier == "flex" and deployment.tariff(one).in_flex().basis is PriceBasis.UNKNOWN
        limits = [] if budget is None else [f"max_cost_usd={budget}"]
        # A budget of the deployment does not stop what is already paid from being adopted.
        limits += [] if is_sent else [f"the {each}" for each in budgets_of(deployment, one)]
        if limits and is_unpriced:
            raise ConfigError(
                f"The price of '{one.model}' in the tier 'flex' is unknown, so {limits[0]} cannot be "
                "enforced. Give spend=Spend(price=TokenPrice(input_usd=..., output_usd=...)), which holds in every "
                "tier, or leave the limit or the tier out."
            )


def _refuse_missing_uploads(deployment: Deployment, labeling: Labeling, codec: Codec) -> None:
    """Raise ConfigError for a labeling that uploads documents, where its model or its provider takes no uploads."""
    provider = deployment.provider(labeling.provider)
    if upload_rules(codec) is None or not isinstance(provider, StoresDocuments):
        raise ConfigError(
            f"Prompt(documents_as='upload') is not possible for '{labeling.model}': its requests name no documents in "
            "the vendor's storage here. Nothing was sent. Leave documents_as out to send the files in the requests, "
            "also from gs:// or s3:// by Prompt(file_root=...). Or name a model of OpenAI, Anthropic or the Gemini API."
        )


def _refuse_missing_real_time(deployment: Deployment, labeling: Labeling) -> None:
    """Raise ConfigError for a labeling that needs real time at a provider without it."""
    how, least = labeling.realtime, deployment.codec(labeling).limits.min_requests
    needs_it = how.urgent or how.deadline is not None or (labeling.limits.below_minimum == "realtime" and least > 1)
    if needs_it:
        real_time_of(deployment.provider(labeling.provider))


def _refuse_impossible_flex(deployment: Deployment, labeling: Labeling) -> None:
    """Raise ConfigError for a labeling in the tier "flex" whose provider, parameters or rules exclude it."""
    how, least = labeling.realtime, deployment.codec(labeling).limits.min_requests
    flex_of(deployment.provider(labeling.provider), labeling.spec.model, labeling.spec.endpoint)
    if named := next((name for name in _TIER_PARAMETERS if name in labeling.spec.params), None):
        raise ConfigError(
            f"Realtime(tier='flex') and params={{'{named}': {labeling.spec.params[named]!r}}} of '{labeling.model}' "
            "both name a tier. Leave one of them out."
        )
    if how.otherwise == "batch" and labeling.resend.max_waves == 1:
        raise ConfigError(
            "Realtime(otherwise='batch') needs a retry round, and Resend(max_waves=1) allows none. Set max_waves to at "
            "least 2, or otherwise='standard'."
        )
    if how.otherwise == "batch" and least > 1 and labeling.limits.below_minimum != "pad":
        raise ConfigError(
            f"Realtime(otherwise='batch') is not possible for '{labeling.model}': a batch has at least {least} "
            "requests there. Set otherwise='standard', or Limits(below_minimum='pad') (copies that are paid for "
            "fill it up)."
        )


@dataclass(frozen=True)
class Planner:
    """Plan submissions of one labeling.

    Args:
        labeling: The question about each row.
        deployment: Its deployment.
        find_tuning: Returns the tuner of a new submission, or None.
        sample: The step that draws the sample of a cascade, or an audit.
        forecast_end: The step that forecasts when the submission ends.
    """

    labeling: Labeling
    deployment: Deployment
    find_tuning: Callable[[Deployment, Labeling], Tuning | None]
    sample: PlanStep
    forecast_end: PlanStep

    def plan(self, rows: Any, *, partition: str, run_id: str | None, again: bool) -> Submission:
        """See Engine.plan."""
        check_definition(self.deployment, self.labeling)
        lease_name = plan_lease(self.deployment.namespace, self.labeling.asset, partition)
        # The rows were given before this process waits for another one.
        before = {one.submission_id for one in self._open_and_all(partition)[1]}
        # One process plans a partition at a time. Meanwhile its submissions are neither sent nor settled: the plan
        # decides by the requests in flight.
        with (
            self.deployment.ledger.leases.hold(lease_name, wait_seconds=PLAN_WAIT_SECONDS) as lease,
            hold_and_read(self.deployment, lambda: self._open_and_all(partition)) as (_, history),
            ExitStack() as unwanted,
        ):
            planning = self._begin(partition, history, [self.labeling.asset], self.deployment, unwanted, again=again)
            plan, draft = self._draft(planning, rows, self.labeling.asset)
            if plan.rows_state is not RowsState.KNOWN:
                self._refuse_older_rows(before, history)
            # From here on, the ledger may have the submission. Its files are removed only if the ledger certainly does
            # not.
            files = unwanted.pop_all()
            try:
                submission = commit(plan, planning, draft, run_id, lease.check)
            except BaseException:
                if not self._may_be_stored(planning.submission_id):
                    files.close()
                raise
            # The result is the known submission, or the submission of another process.
            if submission.submission_id != planning.submission_id:
                files.close()
            else:
                self.deployment.opened_here.add(submission.submission_id)
            return submission

    @staticmethod
    def _refuse_older_rows(before: Collection[str], history: Sequence[Submission]) -> None:
        """Raise LeaseError for rows that differ from the rows another process planned while this one waited."""
        newer = [one for one in history if one.submission_id not in before]
        if newer:
            raise LeaseError(
                f"'{newer[0].asset}' {newer[0].partition}: another process planned other rows meanwhile, as submission "
                f"{newer[0].submission_id}. Your rows were not sent. Run again if yours are the newer ones."
            )

    def preview(self, rows: Any, *, partition: str, again: bool) -> Preview:
        """See Engine.preview."""
        check_definition(self.deployment, self.labeling)
        name, history = history_of(self.deployment, self.labeling, partition)
        names = (self.labeling.asset, *self.labeling.resend.former_names)
        with ExitStack() as unwanted:
            aside = replace(self.deployment, payloads=PayloadStore(unwanted.enter_context(TemporaryDirectory())))
            planning = self._begin(partition, history, names, aside, unwanted, again=again)
            plan, _ = self._draft(planning, rows, name)
            return show(
                plan if plan.rows_state is not RowsState.NEW else take_steps(plan, planning, [check_limits]), planning
            )

    def _begin(
        self,
        partition: str,
        history: Sequence[Submission],
        names: Sequence[str],
        stored_in: Deployment,
        unwanted: ExitStack,
        *,
        again: bool,
    ) -> Planning:
        """Read the knowledge of a partition. The payload store of `stored_in` takes the files."""
        # Workers on other machines would not see a temporary folder of this one.
        labeling = self.labeling if stored_in is self.deployment else replace(self.labeling, workers=None)
        writer = SubmissionWriter(labeling, stored_in)
        knowledge = read_knowledge(
            self.deployment,
            self.labeling,
            partition,
            writer.configuration,
            history,
            erased_from=names,
            again=again,
        )
        tuning, older = self.find_tuning(self.deployment, self.labeling), None
        if self.labeling.relabel is not None:
            from dagster_llm_batch.loop.older_labels import find_older_labels  # noqa: PLC0415 - few labelings need it

            older = find_older_labels(self.deployment, self.labeling, history, writer.configuration)
        return Planning(
            labeling=self.labeling,
            deployment=self.deployment,
            partition=partition,
            submission_id=self.deployment.new_id(),
            knowledge=knowledge,
            writer=writer if tuning is None else replace(writer, tuned=tuning.of_shards),
            tuning=tuning,
            unwanted=unwanted,
            older=older,
        )

    def _draft(self, planning: Planning, rows: Any, name: str) -> tuple[Plan, Draft]:
        """Return the plan of these rows after its steps, and its draft. The ledger has the dataset as `name`."""
        knowledge, cascade = planning.knowledge, self.labeling.cascade
        draft = planning.writer.draft(
            planning.submission_id,
            planning.partition,
            knowledge.requests,
            knowledge.erased,
            knowledge.rows,
            planning.older,
        )
        planning.unwanted.callback(draft.discard)
        draft.add_rows(rows)
        audited = self.labeling.audited if self.labeling.relabel is None or planning.older is not None else None
        promises = [each.promise for each in (cascade, audited) if each is not None]
        configuration = planning.writer.configuration
        asked = configuration_with(configuration, promises) if promises else configuration
        plan = decide(draft.finish(asked), draft.estimate, planning, name)
        if plan.rows_state is RowsState.KNOWN:
            return plan, draft
        steps = (tune, count_money_steps, self.forecast_end)
        is_repeated = self.labeling.relabel is not None and plan.rows_state is RowsState.REPEATED
        has_sample = cascade is not None or audited is not None or is_repeated
        return take_steps(plan, planning, (self.sample, *steps) if has_sample else steps), draft

    def _open_and_all(self, partition: str) -> tuple[set[str], list[Submission]]:
        """Return the ids of the open submissions of a partition, and all that it has."""
        history = self.deployment.ledger.submissions.of_partition(
            self.deployment.namespace, self.labeling.asset, partition
        )
        return {one.submission_id for one in history if one.state is SubmissionState.OPEN}, history

    def _may_be_stored(self, submission_id: str) -> bool:
        """Return whether the ledger has a submission, or does not answer. Unneeded files are pruned later."""
        try:
            return bool(self.deployment.ledger.submissions.find_known([submission_id]))
        except LedgerError:
            return True
