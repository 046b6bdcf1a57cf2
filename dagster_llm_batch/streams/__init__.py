"""Streams: windows of Kafka topics as partitions, results produced back, and a student that answers in real time.

    topic ─▶ windows ─▶ rows ─▶ llm_batch_assets ─▶ labels ─▶ topic            the batch layer
                                                      └─▶ student              trained on them
    topic ─▶ student ─▶ results; unsure or drifting ─▶ LLM, now or in a batch  the stream layer

Start with `KafkaTopic`, `build_kafka_sensor` and `KafkaResource`; then `dagster_llm_batch.student_assets`
and `StreamLabeler`. Needs the
extra `kafka`; students need `evaluation`, and the stream layer `drift`.
"""

from dagster_llm_batch.streams.assets import kafka_assets
from dagster_llm_batch.streams.dashboard import stream_dashboard_asset
from dagster_llm_batch.streams.drift_sensor import build_drift_sensor
from dagster_llm_batch.streams.labeler import StreamLabeler
from dagster_llm_batch.streams.lane import RealTimeLane, labeling_of
from dagster_llm_batch.streams.resource import KafkaResource
from dagster_llm_batch.streams.sink import kafka_sink_asset
from dagster_llm_batch.streams.topic import KafkaTopic
from dagster_llm_batch.streams.window_sensor import build_kafka_sensor
from dagster_llm_batch.streams.windows import KafkaWindow

__all__ = [
    "KafkaResource",
    "KafkaTopic",
    "KafkaWindow",
    "RealTimeLane",
    "StreamLabeler",
    "build_drift_sensor",
    "build_kafka_sensor",
    "kafka_assets",
    "kafka_sink_asset",
    "labeling_of",
    "stream_dashboard_asset",
]
