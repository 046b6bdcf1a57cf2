"""The Dagster code of `python3 -m example_project stream`: one prompt and one response for batch and stream."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import dagster as dg
import polars as pl
from pydantic import BaseModel

from dagster_llm_batch import Spend, TokenPrice, evaluation_assets, llm_batch_assets, skew_assets, student_assets
from dagster_llm_batch.streams import (
    KafkaTopic,
    build_drift_sensor,
    build_kafka_sensor,
    kafka_assets,
    stream_dashboard_asset,
)
from example_project import data
from example_project.definitions import Sentiment, ask

__all__ = ["ASSETS", "EVENTS", "RESULTS", "REVIEW", "SENSORS", "TOPIC", "labels", "tweets"]

TOPIC, RESULTS, REVIEW, EVENTS = "tweets", "tweets-results", "tweets-review", "tweets-changes"


class Tweet(BaseModel):
    """A message."""

    text: str


tweets = KafkaTopic(TOPIC, message=Tweet, id_header="text-id")

messages = kafka_assets(name="stream_tweets", topic=tweets, frame="polars")

labels = llm_batch_assets(
    name="stream_labels",
    rows="stream_tweets",
    key="message_id",
    keep=["text"],
    partitions_def=tweets.partitions_def,
    prompt=ask,
    response=Sentiment,
    model="openai/vader",
    spend=Spend(price=TokenPrice(Decimal("0.025"), Decimal("0.20"))),  # typical of a small LLM; the lexicon is free
    params={"max_tokens": 16},
    frame="polars",
)

student = student_assets(name="student", labels=labels, text="text", target="label")


@dg.asset(kinds={"table", "polars"})
def stream_gold() -> pl.DataFrame:
    """Human labels of tweets and of newspapers' sentences."""
    texts = pl.concat([data.load(), data.load("nytEditorialSnippets")])
    return texts.select(pl.col("text_id").alias("message_id"), "label")


evaluation = evaluation_assets(
    name="stream_eval",
    gold=stream_gold,
    candidates={"llm": labels, "student": "student_labels"},
    key="message_id",
    target="label",
    frame="polars",
)

skew = skew_assets(name="stream_skew", candidates=labels, target="label", sample_size=20, min_agreement=0.95)

dashboard = stream_dashboard_asset(
    name="stream_dashboard", results=RESULTS, truth=stream_gold, target="label", frame="polars"
)

ASSETS = [*messages, *labels, *student, stream_gold, *evaluation, *skew, dashboard]
SENSORS = [
    build_kafka_sensor(tweets, name="windows", max_messages=600, max_wait=timedelta(0)),
    build_drift_sensor(EVENTS, topic=tweets, labels=labels, also=messages, name="drift"),
]
