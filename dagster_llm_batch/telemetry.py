"""OpenTelemetry: a span per provider call, and metrics of materialized labels. Needs the extra `otel`.

Names follow the GenAI semantic conventions if these have one. Spans hold counts, ids and settings: never a prompt, a
row, a reply, or an error's message, which may quote them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, BinaryIO, TypeVar

from dagster_llm_batch._version import __version__
from dagster_llm_batch.engine import Engine, Labeling
from dagster_llm_batch.errors import MissingExtraError
from dagster_llm_batch.protocols import (
    AnswersInFlex,
    AnswersInRealTime,
    CancelsBatches,
    ChecksSetup,
    Codec,
    CountsFiles,
    DeletesBatches,
    DeletesRequestFiles,
    LinksToConsole,
    Provider,
    StoresDocuments,
)
from dagster_llm_batch.providers.openai_api.servers import HasServer
from dagster_llm_batch.providers.registry import PROVIDERS
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.types import (
    Absent,
    BatchReport,
    Endpoint,
    FindHints,
    Found,
    RequestSpec,
    StatusUnknown,
    Undecided,
    UploadedFile,
)

try:
    from opentelemetry import metrics, trace
except ModuleNotFoundError as error:
    raise MissingExtraError("otel", "LLMBatchResource(telemetry=True)") from error

__all__ = ["TracedProvider", "flush", "measure"]

_SETTINGS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")
_TOKEN_BUCKETS = [4**n for n in range(14)]
_SECOND_BUCKETS = [0.01 * 2**n for n in range(14)]
_FLUSH_MILLISECONDS = 5_000
_Answer = TypeVar("_Answer")

_tracer = trace.get_tracer("dagster_llm_batch", __version__)
_meter = metrics.get_meter("dagster_llm_batch", __version__)
_duration = _meter.create_histogram(
    "gen_ai.client.operation.duration",
    unit="s",
    description="GenAI operation duration.",
    explicit_bucket_boundaries_advisory=_SECOND_BUCKETS,
)
_tokens = _meter.create_histogram(
    "gen_ai.client.token.usage",
    unit="{token}",
    description="Number of input and output tokens used, for each request.",
    explicit_bucket_boundaries_advisory=_TOKEN_BUCKETS,
)
_requests = _meter.create_counter(
    "llm_batch.requests", unit="{request}", description="Requests by outcome, each try for itself."
)
_cost = _meter.create_counter("llm_batch.cost", unit="USD", description="What collected batches cost.")


class TracedProvider:
    """A provider, with a span and a duration for each call. It answers as the one it wraps does.

    It has exactly the capabilities of the wrapped provider.
    `kind` is the registry's; None for a provider that is not in it.
    """

    def __init__(self, provider: Provider, kind: str | None = None) -> None:
        self._provider = provider
        self._provider_name = _provider_name(kind or provider.name)
        # Attributes of the object: a method of the class would be there whatever is wrapped.
        if isinstance(provider, CancelsBatches):
            self.cancel = self._traced("cancel_batch", provider.cancel)
        if isinstance(provider, DeletesBatches):
            self.delete = self._traced("delete_batch", provider.delete)
        if isinstance(provider, DeletesRequestFiles):
            self.delete_request_file = self._traced("delete_request_file", provider.delete_request_file)
        if isinstance(provider, CountsFiles):
            self.count_files = provider.count_files
        if isinstance(provider, AnswersInRealTime):
            self.respond = self._responding(provider.respond)
        if isinstance(provider, AnswersInFlex):
            self.flex_gap = provider.flex_gap
            self.respond_flex = self._responding(provider.respond_flex)
        if isinstance(provider, LinksToConsole):
            self.console_url = provider.console_url
        if isinstance(provider, ChecksSetup):
            self.check_setup = provider.check_setup
        if isinstance(provider, StoresDocuments):
            self.upload_document = self._uploading(provider.upload_document)
            self.find_documents = provider.find_documents
            self.has_document = provider.has_document
            self.delete_document = provider.delete_document
        if isinstance(provider, HasServer):
            self.server = provider.server

    @property
    def name(self) -> str:
        return self._provider.name

    @property
    def account(self) -> str:
        return self._provider.account

    @property
    def price_book(self) -> str | None:
        return self._provider.price_book

    @property
    def settle_seconds(self) -> float:
        return self._provider.settle_seconds

    @property
    def window(self) -> timedelta:
        return self._provider.window

    @property
    def default_output_tokens(self) -> int | None:
        return self._provider.default_output_tokens

    def codec(self, spec: RequestSpec) -> Codec:
        return self._provider.codec(spec)

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        with self._span("submit_batch", spec.model, _asked(spec)) as span:
            batch_id = self._provider.submit(lines, spec, tag)
            span.set_attribute("llm_batch.batch_id", batch_id)
            return batch_id

    def find(self, tag: str, hints: FindHints) -> Found | Absent | Undecided | StatusUnknown:
        with self._span("find_batch", None, {"llm_batch.requests": hints.requests}) as span:
            sighting = self._provider.find(tag, hints)
            span.set_attribute("llm_batch.found", type(sighting).__name__)
            return sighting

    def poll(self, batch_ids: Sequence[str]) -> Mapping[str, BatchReport]:
        with self._span("poll_batches", None, {"llm_batch.batches": len(batch_ids)}) as span:
            reports = self._provider.poll(batch_ids)
            span.set_attribute("llm_batch.batches_reported", len(reports))
            for status in {report.status for report in reports.values()}:
                count = sum(report.status is status for report in reports.values())
                span.set_attribute(f"llm_batch.batches_{status.value}", count)
            return reports

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        lines = size = 0
        with self._span("fetch_results", None, {"llm_batch.batch_id": batch_id}) as span:
            try:
                for line in self._provider.fetch(batch_id):
                    lines += 1
                    size += len(line)
                    yield line
            finally:
                span.set_attributes({"llm_batch.result_lines": lines, "llm_batch.result_bytes": size})

    def _traced(self, operation: str, verb: Callable[[str], _Answer]) -> Callable[[str], _Answer]:
        """Return a verb about one batch, with its span."""

        def call(batch_id: str) -> _Answer:
            with self._span(operation, None, {"llm_batch.batch_id": batch_id}):
                return verb(batch_id)

        return call

    def _uploading(self, upload: Callable[[bytes, str, str], UploadedFile]) -> Callable[..., UploadedFile]:
        def upload_document(data: bytes, name: str, media_type: str) -> UploadedFile:
            with self._span("upload_document", None, {"llm_batch.request_bytes": len(data)}):
                return upload(data, name, media_type)

        return upload_document

    def _responding(self, answer_line: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        def respond(line: bytes) -> bytes:
            with self._span("respond", None, {"llm_batch.request_bytes": len(line)}) as span:
                answer = answer_line(line)
                span.set_attribute("llm_batch.response_bytes", len(answer))
                return answer

        return respond

    @contextmanager
    def _span(self, operation: str, model: str | None, more: Mapping[str, Any]) -> Iterator[trace.Span]:
        """Give a client span. It is not made the current one: `fetch` hands lines out while it is open."""
        attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": self._provider_name}
        if model is not None:
            attributes["gen_ai.request.model"] = model
        span = _tracer.start_span(
            operation if model is None else f"{operation} {model}",
            kind=trace.SpanKind.CLIENT,
            attributes={**attributes, **more},
        )
        start = time.perf_counter()
        try:
            yield span
        except Exception as error:
            attributes["error.type"] = type(error).__qualname__
            span.set_attribute("error.type", attributes["error.type"])
            span.set_status(trace.StatusCode.ERROR)
            raise
        finally:
            _duration.record(time.perf_counter() - start, attributes)
            span.end()


def measure(engine: Engine, labeling: Labeling, submission_id: str) -> None:
    """Record requests, tokens and cost of a complete submission, once. Reused answers do not count as its own."""
    # This comes first: a process that dies after it leaves a gap in the metrics, where the other order could count
    # twice.
    if not engine.ledger.submissions.mark_measured(submission_id):
        return
    for shard in engine.ledger.shards.of_submission(submission_id):
        if shard.results_path is not None:
            _measure_shard(engine, labeling, shard, shard.results_path)


# OpenTelemetry defines a name for embeddings, but not for moderations.
_OPERATIONS = {Endpoint.EMBEDDINGS: "embeddings", Endpoint.MODERATIONS: "moderations"}


def _measure_shard(engine: Engine, labeling: Labeling, shard: Shard, results_path: str) -> None:
    common: dict[str, Any] = {
        "gen_ai.operation.name": _OPERATIONS.get(labeling.spec.endpoint, "chat"),
        "gen_ai.provider.name": _provider_name(engine.deployment.kind(shard.provider)),
        "gen_ai.request.model": shard.model,
        "llm_batch.asset": labeling.asset,
        "llm_batch.lane": shard.lane.value,
    }
    columns = ["llm_outcome", "llm_model", "llm_input_tokens", "llm_output_tokens"]
    results = engine.payloads.read_table(results_path, columns)
    for pair in results["llm_outcome"].value_counts().to_pylist():
        _requests.add(pair["counts"], {**common, "llm_batch.outcome": pair["values"]})
    by_model: dict[str, Any] = {}
    for model, *counts in zip(*(results[name].to_pylist() for name in columns[1:]), strict=True):
        if model not in by_model:
            answered = {**common, "gen_ai.response.model": model} if model else common
            by_model[model] = [{**answered, "gen_ai.token.type": kind} for kind in ("input", "output")]
        for count, attributes in zip(counts, by_model[model], strict=True):
            if count:
                _tokens.record(count, attributes)
    if shard.bill.cost_usd is not None:
        _cost.add(float(shard.bill.cost_usd), common)


def flush() -> None:
    """Hand everything to the exporters, since a step's process ends without doing so. Refused data is lost."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        # a method of the SDK, which the API lacks
        force_flush = getattr(provider, "force_flush", None)
        if force_flush is not None:
            # A collector that is down must not fail a run.
            with suppress(Exception):
                force_flush(timeout_millis=_FLUSH_MILLISECONDS)


def _provider_name(kind: str) -> str:
    # a provider of the user's own is not in there
    entry = PROVIDERS.get(kind)
    return (entry and entry.telemetry) or kind


def _asked(spec: RequestSpec) -> dict[str, Any]:
    """Return the settings that the conventions know. Other parameters may hold anything, so they stay out."""
    settings = {name: spec.params.get(name) for name in _SETTINGS}
    return {f"gen_ai.request.{name}": value for name, value in settings.items() if isinstance(value, int | float)}
