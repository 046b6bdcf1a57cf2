"""The code location of `test_live_daemon.py`: messages of a topic, and their labels. Kafka and provider: see `env`."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import dagster as dg
from pydantic import BaseModel

from dagster_llm_batch import LLMBatchResource, OpenAIBatchResource, Prompt, build_llm_batch_sensor, llm_batch_assets
from dagster_llm_batch.streams import KafkaResource, KafkaTopic, build_kafka_sensor, kafka_assets


class Ticket(BaseModel):
    text: str


class Topic(BaseModel):
    topic: Literal["billing", "bug", "how_to"]


tickets = KafkaTopic("tickets", Ticket)
messages = kafka_assets(name="messages", topic=tickets)
labels = llm_batch_assets(
    name="labels",
    rows="messages",
    key="message_id",
    prompt=Prompt(system="You label tickets.", user="{{ text }}"),
    response=Topic,
    model="openai/gpt-4o",
    params={"max_tokens": 50},
    partitions_def=tickets.partitions_def,
)

defs = dg.Definitions(
    assets=[*messages, *labels],
    sensors=[
        build_kafka_sensor(
            tickets,
            target=[*messages, *labels],
            max_messages=10,
            max_wait=timedelta(seconds=1),
            minimum_interval_seconds=1,
        ),
        build_llm_batch_sensor(minimum_interval_seconds=1),
    ],
    resources={
        "kafka": KafkaResource(bootstrap_servers=dg.EnvVar("KAFKA")),
        "llm_batch": LLMBatchResource(
            openai=OpenAIBatchResource(api_key=dg.EnvVar("OPENAI_API_KEY"), base_url=dg.EnvVar("OPENAI_BASE_URL"))
        ),
    },
    executor=dg.in_process_executor,
)
