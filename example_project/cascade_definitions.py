"""The Dagster code of `python3 -m example_project cascade`, part of the example's definitions.

    cascade_tweets ─┬─▶ cascade_sentiment_batch ─▶ cascade_sentiment ─┐   the lexicon; the model where it is unsure
                    ├─▶ oracle_sentiment_batch ──▶ oracle_sentiment ──┼─▶ cascade_eval   the oracle alone, to compare
                    │     cascade_gold ───────────────────────────────┘
                    └─▶ positive_tweets_batch ───▶ positive_tweets       a filter: the lexicon finds the positive tweets

The lexicon labels all tweets, and the oracle those where the lexicon is unsure. By default, the oracle is people: seven
of those who rated each tweet, with the ratings that they gave (`labelers/raters.py`). The gold is of all others. To
check the guarantees, the oracle also labels all tweets. A real cascade does without this.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel

from dagster_llm_batch import Cascade, Precision, Prompt, Spend, TokenPrice, evaluation_assets, llm_batch_assets
from example_project import data
from example_project.settings import LEXICON, ORACLE, cascade_rows

__all__ = ["AGREEMENT", "CONFIDENCE", "PRECISION", "cascade_assets"]

AGREEMENT, CONFIDENCE = 0.9, 0.95
"""The guarantee: the minimum share of labels that agree with the oracle, and its confidence."""
PRECISION = AGREEMENT
"""The guarantee of the filter, at the same level: the minimum share of the tweets found that the oracle calls positive.
"""


class SureSentiment(BaseModel):
    """The sentiment of a tweet, with a confidence from 0 to 1 if the labeler has one."""

    label: Literal["positive", "negative", "neutral"]
    confidence: float | None = None


class Positive(BaseModel):
    """Whether a tweet is positive, with a confidence from 0 to 1 if the labeler has one."""

    is_positive: bool
    confidence: float | None = None


@dg.asset(kinds={"table", "polars"})
def cascade_tweets() -> Any:
    """Further tweets, from other days: enough for a cascade to pay."""
    return data.between(cascade_rows()).select("text_id", "text")


@dg.asset(kinds={"table", "polars"})
def cascade_gold() -> Any:
    """Human labels of the cascade's tweets, by the people who are not its oracle."""
    return data.judged_by_others(data.between(cascade_rows()))


def cascade_assets(ask: Prompt, params: Mapping[str, Any], oracle: str = ORACLE) -> list[dg.AssetsDefinition]:
    """Return the assets of the cascade, its comparison and the filter; empty if the lexicon itself is the oracle."""
    if oracle == LEXICON:
        return []
    # Commands on this machine are free. The price of a crowd, six cents a tweet, shows the savings in dollars.
    price = TokenPrice(Decimal(1_000), Decimal(1_000)) if oracle.startswith("command/") else None
    asked: dict[str, Any] = {
        "rows": cascade_tweets,
        "key": "text_id",
        "prompt": ask,
        "max_cost_usd": 1_000,
        "frame": "polars",
    }
    cascaded: dict[str, Any] = {
        "oracle": oracle,
        "confidence": CONFIDENCE,
        "score": "confidence",
        "params": params,
        "price": price,
    }
    question = {"response": SureSentiment, **asked}
    guarantee = Cascade(**cascaded, target="label", agreement=AGREEMENT)
    labels = llm_batch_assets(name="cascade_sentiment", model=LEXICON, cascade=guarantee, **question)
    alone = llm_batch_assets(name="oracle_sentiment", model=oracle, params=params, spend=Spend(price=price), **question)
    precise = Cascade(**cascaded, target="is_positive", guarantee=Precision(PRECISION))
    found = llm_batch_assets(name="positive_tweets", model=LEXICON, cascade=precise, response=Positive, **asked)
    evaluation = evaluation_assets(
        name="cascade_eval",
        gold=cascade_gold,
        candidates=[labels, alone],
        key="text_id",
        target="label",
        frame="polars",
    )
    return [cascade_tweets, cascade_gold, *labels, *alone, *found, *evaluation]
