"""The steps of a plan that learn from earlier submissions: the tuning, and the forecast of the end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dagster_llm_batch.loop.submit_queue import count_queue_rounds
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.types import Lane

if TYPE_CHECKING:
    from dagster_llm_batch.core.durations import EndForecast
    from dagster_llm_batch.definition.labeling import Labeling
    from dagster_llm_batch.loop.deployment import Deployment
    from dagster_llm_batch.loop.plan import Plan, Planning
    from dagster_llm_batch.loop.seams import Tuning

__all__ = ["find_tuning", "forecast_end"]


def find_tuning(deployment: Deployment, labeling: Labeling) -> Tuning | None:
    """Return the tuner of a new submission, if the deployment tunes."""
    if not deployment.tune:
        return None
    from dagster_llm_batch.advice.tuner import Tuner  # noqa: PLC0415 - only where somebody asks for it

    return Tuner(deployment, labeling)


def forecast_end(plan: Plan, planning: Planning) -> Plan:
    """Forecast the time from plan to end."""
    return replace(plan, end=_forecast_end(plan, planning))


def _forecast_end(plan: Plan, planning: Planning) -> EndForecast | None:
    """Return the forecast. None for a plan without requests, or for a model without history."""
    deployment, labeling, shards = planning.deployment, planning.labeling, plan.drafted.shards
    of_batch = [shard for shard in shards if shard.lane is Lane.BATCH] or shards
    if not of_batch:
        return None
    from dagster_llm_batch.core.durations import FEWEST, EndForecast  # noqa: PLC0415 - who plans alone needs it

    owner = deployment.owner(labeling, of_batch[0].lane)
    known = deployment.ledger.history.batch_spans(owner.provider, owner.account, owner.model, owner.lane, FEWEST)
    if not known:
        return None
    if len(known) < FEWEST:
        ended = [span.began.date() for span in known if span.has_ended]
        return EndForecast(ended=len(ended), running=len(known) - len(ended), days=len(set(ended)))
    from dagster_llm_batch.advice.end_forecast import EndHistory, EndQuestion  # noqa: PLC0415 - only where it can tell

    limit, _ = deployment.queue_limit(labeling.provider, labeling.spec.model)
    is_at_once = plan.money_steps == 1 and (limit is None or count_queue_rounds(shards, limit) == 1)
    question = EndQuestion(owner, count_requests(shards), len(of_batch), is_at_once and labeling.cascade is None)
    history = EndHistory(deployment.ledger, deployment.namespace, deployment.clock())
    return history.forecast_end(labeling.asset, question)
