"""Previews: the figures of a plan that is neither stored nor sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from dagster_llm_batch.core.pricing import Estimate, Tariff
from dagster_llm_batch.core.token_counts import output_basis
from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.files.request_writer import NO_UNREADABLE, LongRow, UnreadableRows
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.plan import OracleShare, Plan, Planning, RowsState
from dagster_llm_batch.loop.submit_queue import count_queue_rounds
from dagster_llm_batch.providers.capabilities import check_parameters
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.types import Cause, Lane, Outcome, PriceBasis

if TYPE_CHECKING:
    from dagster_llm_batch.core.durations import EndForecast
    from dagster_llm_batch.core.forecast import Learned
    from dagster_llm_batch.core.levels import Levels
    from dagster_llm_batch.core.shares import AuditedAnswers
    from dagster_llm_batch.definition.labeling import Labeling

__all__ = ["LaterUploads", "Preview", "output_basis_of", "parameter_warnings", "show"]


class LaterUploads(NamedTuple):
    """The most documents, with their bytes, to upload to a provider that may be asked later."""

    provider: str
    documents: int
    bytes: int


@dataclass(frozen=True)
class Preview:
    """The figures of a plan. Tokens and money are estimates; None: no price is known.

    Attributes:
        rows: All rows.
        skipped: Empty rows, which would not be sent.
        unreadable: Rows with unreadable images, which would not be sent, and the first reason.
        erased_rows: Erased rows, which would be left out.
        requests: Different requests among the other rows.
        reused: Requests that are answered or in flight already.
        shards: The shards to send.
        input_tokens, output_tokens: Their expected tokens.
        input_bound, output_bound: Their largest number of tokens; None if unknown.
        estimated_usd: Their expected cost.
        p05_usd: A cost that 19 of 20 such submissions exceed; None with too little history.
        p95_usd: A cost that 19 of 20 such submissions stay below.
        bound_usd: The highest cost, if each request is sent once; for a cascade, with all requests to its oracle.
        learned: The estimate from earlier submissions, if there are any.
        has_tokenizer: True if the model's own tokenizer has counted some of the texts.
        realtime_usd: The expected cost in real time.
        flex_usd: The expected cost in the tier "flex", for a labeling with it; None if its price is unknown.
        price_basis: The source of the price.
        known: The submission that has these rows already, if any. Then nothing would be sent.
        lost: Requests of `known` whose answers are lost here and at the provider. `retry` asks and pays them again.
        refused: The reason of a limit that refuses the plan, if one does.
        longest: The longest requests, longest first.
        context_tokens: The model's context window in the price book.
        queue_limit: The declared limit of the provider's queue, if any.
        rounds: The number of rounds in which an empty queue takes the batches, each after the end of the last.
        steps: The number of steps in which limits of money release the batches at their expected cost, each after the
            bills of the last. None if unknown, or if some are not released.
        levels: The decisions of a cascade: its sample, or that its oracle answers all rows.
        oracle: The share of a cascade's oracle. The tokens above are the other model's, unless the oracle is alone.
        shares, held_usd: The near copies or older labels, and the expected cost of the requests that are sent only if
            their audit fails; None without them.
        missing_gold: The keys of sampled rows without gold.
        end: The forecast of the end. None for a plan without requests, or for a model without history.
        output_basis: The source of the expected output, if it is not learned.
        tuning: The stored choices of the tuner, if the deployment tunes.
        documents: Documents that the requests name in the vendor's storage.
        uploads, upload_bytes: The documents among them to upload, and their bytes. Vendors do not bill uploads.
        later_uploads: The most documents to upload to the other vendors of a cascade or of fallbacks.
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
    shares: AuditedAnswers | None = None
    held_usd: Decimal | None = None
    missing_gold: tuple[object, ...] = ()
    end: EndForecast | None = None
    output_basis: str | None = None
    tuning: Mapping[str, Any] | None = None
    unreadable: UnreadableRows = NO_UNREADABLE
    flex_usd: Decimal | None = None
    documents: int = 0
    uploads: int = 0
    upload_bytes: int = 0
    later_uploads: tuple[LaterUploads, ...] = ()

    @property
    def to_send(self) -> int:
        return count_requests(self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


def output_basis_of(deployment: Deployment, labeling: Labeling) -> str | None:
    """Return the source of a labeling's expected output without history, in words."""
    expected = deployment.estimate(labeling).output.expected
    return output_basis(labeling.spec, expected, labeling.spend.expected_output_tokens)


def parameter_warnings(deployment: Deployment, labeling: Labeling) -> list[str]:
    """Return a sentence for each parameter that a labeling's provider may refuse.

    Raises ConfigError for a parameter that it would refuse in every row.
    """
    return [*check_parameters(deployment.codec(labeling))]


def show(plan: Plan, planning: Planning) -> Preview:
    """Return the figures of a plan, instead of committing it."""
    if plan.rows_state is not RowsState.NEW:
        assert plan.known is not None
        return replace(_figures(plan), known=plan.known, lost=_count_lost(planning.deployment, plan.known))
    if plan.missing_gold:
        return replace(_figures(plan), missing_gold=plan.missing_gold)
    deployment, labeling = planning.deployment, planning.labeling
    limit, _ = deployment.queue_limit(labeling.provider, labeling.spec.model)
    figures = _with_uploads(_figures(plan), plan, planning)
    # Only the first of two models has a known cost in real time.
    is_one_model = plan.levels is None or plan.levels.asks_oracle_alone
    return replace(
        figures,
        levels=plan.levels,
        oracle=plan.oracle,
        shares=plan.shares,
        held_usd=plan.held_usd,
        realtime_usd=figures.realtime_usd if is_one_model else None,
        flex_usd=_flex_usd(plan) if is_one_model and labeling.realtime.tier == "flex" else None,
        context_tokens=deployment.context_tokens(labeling),
        has_tokenizer=deployment.tokenizer(labeling) is not None,
        queue_limit=limit,
        steps=plan.money_steps,
        output_basis=output_basis_of(deployment, labeling),
        rounds=1 if limit is None else count_queue_rounds(plan.drafted.shards, limit),
        end=plan.end,
        tuning=plan.tuning,
    )


def _with_uploads(figures: Preview, plan: Plan, planning: Planning) -> Preview:
    """Add the figures of uploaded documents. Each vendor that is asked gets its own uploads."""
    sizes = plan.drafted.uploads
    if not sizes:
        return figures
    # Few datasets upload documents.
    from dagster_llm_batch.loop.document_uploads import find_missing  # noqa: PLC0415

    deployment, models = planning.deployment, planning.labeling.models
    if plan.levels is not None and plan.levels.asks_oracle_alone:
        models = models[1:]
    found = []
    for name in dict.fromkeys(one.provider for one in models):
        missing = find_missing(deployment, deployment.provider(name), sizes)
        found.append(LaterUploads(name, len(missing), sum(sizes[each] for each in missing)))
    own, *later = found
    return replace(
        figures,
        documents=len(sizes),
        uploads=own.documents,
        upload_bytes=own.bytes,
        later_uploads=tuple(each for each in later if each.documents),
    )


def _figures(plan: Plan) -> Preview:
    drafted, estimate = plan.drafted, plan.estimate
    requests, most = estimate.requests, estimate.output.bound
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
        realtime_usd=_cost_by(estimate.tariff.of(Lane.REALTIME), estimate),
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


def _flex_usd(plan: Plan) -> Decimal | None:
    return _cost_by(plan.estimate.tariff.in_flex(), plan.estimate)


def _cost_by(tariff: Tariff, estimate: Estimate) -> Decimal | None:
    """Return the expected cost of the requests of an estimate by another tariff; None if unknown."""
    average = (tokens / max(estimate.requests, 1) for tokens in (estimate.expected_input, estimate.expected_output))
    mean = tariff.mean_usd(*average)
    return None if mean is None else mean * estimate.requests


def _count_lost(deployment: Deployment, known: Submission) -> int:
    """Return the number of requests of a submission whose answers were lost with their files."""
    gone = (shard for shard in deployment.ledger.shards.of_submission(known.submission_id) if shard.cause is Cause.GONE)
    return sum(shard.requests - _count_answers(deployment, shard) for shard in gone if shard.results_path)


def _count_answers(deployment: Deployment, shard: Shard) -> int:
    read = deployment.payloads.read_table(shard.results_path or "", ["llm_outcome"])
    outcomes: list[str] = read["llm_outcome"].to_pylist()
    return outcomes.count(Outcome.SUCCEEDED.value)
