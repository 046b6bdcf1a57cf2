"""OpenTelemetry's own SDK with exporters in memory. A process takes one provider of each, so its tests share them."""

from __future__ import annotations

from functools import cache

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

__all__ = ["metric_reader", "span_exporter", "span_provider"]


@cache
def span_exporter() -> InMemorySpanExporter:
    """Return the exporter of this process's spans. It gets them at a flush, not by its schedule."""
    exporter = InMemorySpanExporter()
    span_provider().add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    return exporter


@cache
def span_provider() -> TracerProvider:
    """Return this process's provider of spans."""
    provider = TracerProvider()
    trace.set_tracer_provider(provider)
    return provider


@cache
def metric_reader() -> InMemoryMetricReader:
    """Return the reader of this process's metrics."""
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    return reader
