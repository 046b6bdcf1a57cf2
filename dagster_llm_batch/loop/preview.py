"""Previews: the figures of a plan that is neither stored nor sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from dagster_llm_batch.core.token_counts import output_basis
from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.files.request_writer import NO_UNREADABLE, LongRow, UnreadableRows
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.plan import OracleShare, Plan, Planning, Verdict
from dagster_llm_batch.loop.submit_queue import count_queue_rounds
from dagster_llm_batch.providers.capabilities import check_parameters
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.types import Cause, Lane, Outcome, PriceBasis

if TYPE_CHECKING:
    from dagster_llm_batch.core.durations import EndForecast
    from dagster_llm_batch.core.forecast import Learned
    from dagster_llm_batch.core.levels import Levels
    from dagster_llm_batch.definition.labeling import Labeling

__all__ = ["Preview", "output_basis_of", "parameter_warnings", "show"]


@dataclass(frozen=True)
class Preview:
    """The figures of a plan. Tokens and money are estimates; None: no price is known.

    Attributes:
        rows: All rows.
        skipped: Rows that are empty, and would not be sent.
        unreadable: Rows whose images cannot be read, and that would not be sent, with the reason of the first.
        erased_rows: Rows that came, and would be left out since they were erased.
        requests: Different requests among the others.
        reused: Requests that are answered or in flight already.
        shards: What would be sent.
        input_tokens, output_tokens: What is expected of the requests that would be sent.
        input_bound, output_bound: How many tokens they can have at most; None where nobody knows.
        estimated_usd: What they are expected to cost.
        p05_usd: What 19 of 20 such submissions cost more than; None: too few came before.
        p95_usd: What 19 of 20 such submissions cost less than.
        bound_usd: What they can cost at most, if each is sent once; of a cascade with all that its oracle can be asked.
        learned: What was learned from earlier submissions, if there are any.
        has_tokenizer: Whether the model's own tokenizer has counted some of the texts.
        realtime_usd: What they would cost in real time.
        price_basis: Where the price is from.
        known: The submission that these rows have already; nothing would be sent then.
        lost: Requests of `known` that have no answer any more, since it is lost here and at the provider. A person's
            `retry` asks, and pays, them again.
        refused: Why a budget would refuse it; None where none would.
        longest: The longest requests that would be sent, longest first.
        context_tokens: What the model takes in all, as the price book knows it.
        queue_limit: The limit of the provider's queue, where one is declared.
        rounds: In how many steps it lets the batches into an empty queue, each when those before have ended.
        steps: In how many steps limits of money let them out, each when those before are billed, if all costs what is
            expected. None: not all of them, or nobody knows.
        levels: Of a cascade: how many rows its oracle answers to set the threshold, or that it is asked alone.
        oracle: Of a cascade: what is asked of its oracle. Unless that is asked alone, tokens are the other model's.
        missing_gold: The keys of sampled rows of which people have said nothing, where a promise is against gold.
        end: How long it takes from plan to end, if it is sent now; None: nothing is sent, or nothing was sent before.
        output_basis: What the output is taken from, where it is not learned; None: there is none.
        tuning: What was chosen by earlier submissions, as it would be stored; None: nobody asks for it.
    """

    rows: int
    skipped: int
    erased_rows: int
    requests: int
    reused: int
    shards: tuple[Shard, ...]
    input_tokens: int
    output_tokens: int
    estimated_usd: Decimal | None
    realtime_usd: Decimal | None
    price_basis: PriceBasis
    input_bound: int | None = None
    output_bound: int | None = None
    p05_usd: Decimal | None = None
    p95_usd: Decimal | None = None
    bound_usd: Decimal | None = None
    learned: Learned | None = None
    has_tokenizer: bool = False
    known: Submission | None = None
    lost: int = 0
    refused: str | None = None
    longest: tuple[LongRow, ...] = ()
    context_tokens: int | None = None
    queue_limit: QueueLimit | None = None
    rounds: int = 1
    steps: int | None = 1
    levels: Levels | None = None
    oracle: OracleShare | None = None
    missing_gold: tuple[object, ...] = ()
    end: EndForecast | None = None
    output_basis: str | None = None
    tuning: Mapping[str, Any] | None = None
    unreadable: UnreadableRows = NO_UNREADABLE

    @property
    def to_send(self) -> int:
        return count_requests(self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


def output_basis_of(deployment: Deployment, labeling: Labeling) -> str | None:
    """Return in words what the output of a labeling's requests is taken from where nothing was learned."""
    expected = deployment.estimate(labeling).output.expected
    return output_basis(labeling.spec, expected, labeling.spend.expected_output_tokens)


def parameter_warnings(deployment: Deployment, labeling: Labeling) -> list[str]:
    """Return in sentences what is sent to a labeling's model that its provider may refuse.

    Raises ConfigError for what it would refuse in every row.
    """
    return [*check_parameters(deployment.codec(labeling))]


def show(plan: Plan, planning: Planning) -> Preview:
    """Return the figures of a plan, instead of committing it."""
    if plan.verdict is not Verdict.NEW:
        assert plan.known is not None
        return replace(_figures(plan), known=plan.known, lost=_count_lost(planning.deployment, plan.known))
    if plan.missing_gold:
        return replace(_figures(plan), missing_gold=plan.missing_gold)
    deployment, labeling = planning.deployment, planning.labeling
    limit, _ = deployment.queue_limit(labeling.provider, labeling.spec.model)
    figures = _figures(plan)
    # Of two models, only the cost of the first in real time is known.
    is_one_model = plan.levels is None or plan.levels.asks_oracle_alone
    return replace(
        figures,
        levels=plan.levels,
        oracle=plan.oracle,
        realtime_usd=figures.realtime_usd if is_one_model else None,
        context_tokens=deployment.context_tokens(labeling),
        has_tokenizer=deployment.tokenizer(labeling) is not None,
        queue_limit=limit,
        steps=plan.money_steps,
        output_basis=output_basis_of(deployment, labeling),
        rounds=1 if limit is None else count_queue_rounds(plan.drafted.shards, limit),
        end=plan.end,
        tuning=plan.tuning,
    )


def _figures(plan: Plan) -> Preview:
    drafted, estimate = plan.drafted, plan.estimate
    requests, most = estimate.requests, estimate.output.bound
    average = (tokens / max(requests, 1) for tokens in (estimate.expected_input, estimate.expected_output))
    realtime = estimate.tariff.of(Lane.REALTIME).mean_usd(*average)
    return Preview(
        rows=drafted.rows,
        skipped=drafted.skipped,
        unreadable=drafted.unreadable,
        erased_rows=drafted.erased_rows,
        requests=drafted.requests,
        reused=drafted.reused,
        shards=tuple(drafted.shards),
        input_tokens=estimate.expected_input,
        output_tokens=estimate.expected_output,
        estimated_usd=estimate.cost_usd,
        realtime_usd=None if realtime is None else realtime * requests,
        price_basis=estimate.tariff.basis,
        input_bound=estimate.input_bound,
        output_bound=None if most is None else requests * most,
        p05_usd=estimate.p05_usd,
        p95_usd=estimate.p95_usd,
        bound_usd=estimate.bound_usd,
        learned=estimate.learned,
        refused=str(plan.refusals[0]) if plan.refusals else None,
        longest=tuple(drafted.longest) if drafted.shards else (),
    )


def _count_lost(deployment: Deployment, known: Submission) -> int:
    """Return how many requests of a submission have no answer any more, since files were lost."""
    gone = (shard for shard in deployment.ledger.shards.of_submission(known.submission_id) if shard.cause is Cause.GONE)
    return sum(shard.requests - _count_answers(deployment, shard) for shard in gone if shard.results_path)


def _count_answers(deployment: Deployment, shard: Shard) -> int:
    read = deployment.payloads.read_table(shard.results_path or "", ["llm_outcome"])
    outcomes: list[str] = read["llm_outcome"].to_pylist()
    return outcomes.count(Outcome.SUCCEEDED.value)
