"""Streams: windows of Kafka topics as partitions, results produced back, and a small student beside the LLM.

    topic ─▶ windows ─▶ rows ─▶ llm_batch_assets ─▶ labels ─▶ topic

Start with `KafkaTopic`, `build_kafka_sensor` and `KafkaResource`. Needs the extra `kafka`.
"""

from dagster_llm_batch.streams.assets import kafka_assets
from dagster_llm_batch.streams.resource import KafkaResource
from dagster_llm_batch.streams.sensor import build_kafka_sensor
from dagster_llm_batch.streams.sink import kafka_sink_asset
from dagster_llm_batch.streams.topic import KafkaTopic
from dagster_llm_batch.streams.windows import KafkaWindow

__all__ = ["KafkaResource", "KafkaTopic", "KafkaWindow", "build_kafka_sensor", "kafka_assets", "kafka_sink_asset"]
