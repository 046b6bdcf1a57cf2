"""The Dagster code of `python3 -m example_project cascade`, part of the example's definitions.

    cascade_tweets ─┬─▶ cascade_sentiment_batch ─▶ cascade_sentiment ─┐   the lexicon; the model where it is unsure
                    └─▶ oracle_sentiment_batch ──▶ oracle_sentiment ──┼─▶ cascade_eval   the model alone, to compare
    cascade_gold ─────────────────────────────────────────────────────┘

For the comparison, the model labels all tweets, to check the guarantee. A real cascade does without this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel

from dagster_llm_batch import Cascade, Prompt, Spend, TokenPrice, evaluation_assets, llm_batch_assets
from example_project import data
from example_project.settings import LEXICON, MODEL, cascade_rows

__all__ = ["AGREEMENT", "CONFIDENCE", "cascade_assets"]

AGREEMENT, CONFIDENCE = 0.9, 0.95
"""The guarantee: the minimum share of labels that agree with the model, and its confidence."""


class SureSentiment(BaseModel):
    """The sentiment of a tweet, with a confidence from 0 to 1 if the labeler has one."""

    label: Literal["positive", "negative", "neutral"]
    confidence: float | None = None


@dg.asset(kinds={"polars"})
def cascade_tweets() -> Any:
    """Further tweets, from other days: enough for a cascade to pay."""
    return data.between(cascade_rows()).select("text_id", "text")


@dg.asset(kinds={"polars"})
def cascade_gold() -> Any:
    """Human labels of the cascade's tweets."""
    return data.between(cascade_rows()).select("text_id", "label")


def cascade_assets(ask: Prompt, params: Mapping[str, Any], oracle: str = MODEL) -> list[dg.AssetsDefinition]:
    """Return the assets of the cascade and its comparison; empty if the lexicon itself is the example's model."""
    if oracle == LEXICON:
        return []
    # SmolLM2 runs on this machine for free. The price of a small hosted model shows the savings in dollars.
    price = TokenPrice("0.05", "0.40") if oracle.startswith("command/") else None
    asked: dict[str, Any] = {
        "rows": cascade_tweets,
        "key": "text_id",
        "prompt": ask,
        "response": SureSentiment,
        "max_cost_usd": 1,
        "frame": "polars",
    }
    promise = Cascade(
        oracle=oracle,
        target="label",
        agreement=AGREEMENT,
        confidence=CONFIDENCE,
        score="confidence",
        params=params,
        price=price,
    )
    labels = llm_batch_assets(name="cascade_sentiment", model=LEXICON, cascade=promise, **asked)
    alone = llm_batch_assets(name="oracle_sentiment", model=oracle, params=params, spend=Spend(price=price), **asked)
    evaluation = evaluation_assets(
        name="cascade_eval",
        gold=cascade_gold,
        candidates=[labels, alone],
        key="text_id",
        target="label",
        frame="polars",
    )
    return [cascade_tweets, cascade_gold, *labels, *alone, *evaluation]
