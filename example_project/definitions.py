"""The example's Dagster code: tweets, labeled by two LLM batch datasets, evaluated against human labels.

    tweets ──▶ tweet_sentiment_batch ─────────▶ tweet_sentiment ──────────┐
       └─────▶ tweet_sentiment_lexicon_batch ─▶ tweet_sentiment_lexicon ──┼─▶ sentiment_eval
    tweet_gold ───────────────────────────────────────────────────────────┘
    tweet_gold_few ─ with both datasets ─▶ sentiment_shares
    both datasets ─▶ tweets_to_label ─ you judge (`python3 -m example_project review`) ─▶ my_gold ─▶ my_eval

The cascade of cascade_definitions.py and the documents of document_definitions.py are added by the first run of their
commands: until then, Dagster's UI would show them as unfinished.

By default, everything runs on this machine. These environment variables choose another model and other sizes:

    EXAMPLE_MODEL: openai/gpt-5-nano, …   default: command/smollm2, and people as the oracle of the cascade
    OPENAI_API_KEY: for openai/… models
    OPENAI_BASE_URL: any server with OpenAI's Batch API, such as this package's emulator
    EXAMPLE_ROWS_PER_DAY: tweets of each day   default: 100
    EXAMPLE_CASCADE_ROWS: tweets of `python3 -m example_project cascade`   default: 2000
"""

import sys
from collections.abc import Sequence
from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel

from dagster_llm_batch import (
    CommandBatchResource,
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    annotation_assets,
    build_llm_batch_sensor,
    estimate_assets,
    evaluation_assets,
    gold_sample_assets,
    llm_batch_assets,
)
from example_project import data, prompt
from example_project.cascade_definitions import cascade_assets
from example_project.document_definitions import document_assets
from example_project.parquet import ParquetIOManager
from example_project.settings import EXAMPLE_DAYS, HOME, LEXICON, MODEL, OPENAI_BASE_URL, has_begun, rows_per_day

# Only the days that the example labels: other days would always look unfinished in Dagster's UI.
daily = dg.DailyPartitionsDefinition(start_date=EXAMPLE_DAYS[0], end_date=data.DAYS[len(EXAMPLE_DAYS)].isoformat())
one_run = dg.BackfillPolicy.single_run()


@dg.asset(partitions_def=daily, backfill_policy=one_run, metadata={"partition_expr": "day"}, kinds={"table", "polars"})
def tweets(context: dg.AssetExecutionContext) -> Any:
    """Daily tweets. The tweets do not have dates, so the example assigns days."""
    return data.rated(context.partition_keys, rows_per_day()).select("text_id", "text", "day")


@dg.asset(partitions_def=daily, backfill_policy=one_run, metadata={"partition_expr": "day"}, kinds={"table", "polars"})
def tweet_gold(context: dg.AssetExecutionContext) -> Any:
    """Human labels: for each tweet, the mean rating of 20 to 99 people from -4 to 4, and its label."""
    return data.rated(context.partition_keys, rows_per_day()).select("text_id", "day", "label", "mean", "n_ratings")


@dg.asset(partitions_def=daily, backfill_policy=one_run, metadata={"partition_expr": "day"}, kinds={"table", "polars"})
def tweet_gold_few(context: dg.AssetExecutionContext) -> Any:
    """Few human labels: a random fifth, for the case that people can only judge a few rows."""
    return data.rated(context.partition_keys, max(1, rows_per_day() // 5)).select("text_id", "day", "label")


class Sentiment(BaseModel):
    """The sentiment of a tweet."""

    label: Literal["positive", "negative", "neutral"]


ask = Prompt(system=prompt.SYSTEM, user=prompt.USER, examples=prompt.EXAMPLES)

params = {"temperature": 0, "max_tokens": prompt.MAX_TOKENS} if MODEL.startswith("command/") else {}

tweet_sentiment = llm_batch_assets(
    name="tweet_sentiment",
    rows=tweets,
    key="text_id",
    keep=["text"],
    partitions_def=daily,
    prompt=ask,
    response=Sentiment,
    model=MODEL,
    params=params,
    max_cost_usd=1,
    frame="polars",
)

tweet_sentiment_lexicon = llm_batch_assets(
    name="tweet_sentiment_lexicon",
    rows=tweets,
    key="text_id",
    partitions_def=daily,
    prompt=ask,
    response=Sentiment,
    model=LEXICON,
    frame="polars",
)

sentiment_eval = evaluation_assets(
    name="sentiment_eval",
    gold=tweet_gold,
    candidates=[tweet_sentiment, tweet_sentiment_lexicon],
    key="text_id",
    target="label",
    frame="polars",
)

sentiment_shares = estimate_assets(
    name="sentiment_shares",
    gold=tweet_gold_few,
    candidates=[tweet_sentiment, tweet_sentiment_lexicon],
    key="text_id",
    target="label",
    frame="polars",
)

tweets_to_label = gold_sample_assets(
    name="tweets_to_label",
    candidates=[tweet_sentiment, tweet_sentiment_lexicon],
    key="text_id",
    target="label",
    sample_size=30,
    gold="my_gold",
    frame="polars",
)

my_gold = annotation_assets(name="my_gold", candidates=tweet_sentiment, target="label", frame="polars")

my_eval = evaluation_assets(
    name="my_eval",
    gold="my_gold",
    candidates=[tweet_sentiment, tweet_sentiment_lexicon],
    key="text_id",
    target="label",
    frame="polars",
)

llm_batch = LLMBatchResource(
    command=CommandBatchResource(
        command=[
            *(sys.executable, "-m", "example_project.labelers"),
            *("--model", "{model}", "-i", "{input}", "-o", "{output}"),
        ],
        account="example",  # reuse answers wherever the interpreter is
    ),
    openai=OpenAIBatchResource(api_key=dg.EnvVar("OPENAI_API_KEY"), base_url=OPENAI_BASE_URL)
    if MODEL.startswith("openai/")
    else None,
)


def in_group(name: str, assets: Sequence[dg.AssetsDefinition]) -> Sequence[dg.AssetsDefinition]:
    """Put assets into a group, which Dagster's UI shows as a separate box."""
    return dg.map_asset_specs(lambda spec: spec.replace_attributes(group_name=name), assets)


defs = dg.Definitions(
    assets=[
        *in_group("tweets", [tweets, tweet_gold, *tweet_sentiment, *tweet_sentiment_lexicon, *sentiment_eval]),
        *in_group("shares", [tweet_gold_few, *sentiment_shares]),
        *in_group("judged_by_you", [*tweets_to_label, *my_gold, *my_eval]),
        *(in_group("cascade", cascade_assets(ask, params)) if has_begun("cascade") else []),
        *(in_group("documents", document_assets()) if has_begun("documents") else []),
    ],
    sensors=[
        build_llm_batch_sensor(minimum_interval_seconds=5),  # 30 is enough for batches that take hours
        dg.AutomationConditionSensorDefinition(
            "automation",
            target=dg.AssetSelection.all(),
            minimum_interval_seconds=5,
            default_status=dg.DefaultSensorStatus.RUNNING,
        ),
    ],
    resources={"llm_batch": llm_batch, "io_manager": ParquetIOManager(folder=str(HOME / "tables"))},
    executor=dg.in_process_executor,  # for small tables, a process for each step would take longer
)
