"""OpenTelemetry by its own SDK and in-memory exporters: records of calls and labels, without any private value."""

import subprocess
import sys

import pytest
from code_location import DAILY, DAYS, failure, labeled, tickets
from opentelemetry import trace
from test_batch_sensor import tick

from dagster_llm_batch import AnthropicBatchResource, Limits, Realtime
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.telemetry import TracedProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, RowFault, WireFault
from tests.otel import metric_reader, span_exporter, span_provider

EXPORTER = span_exporter()
SECRETS = ("Where is my invoice", "Subject t", "You label tickets", DEFAULT_KEY, "SECRET-OF-THE-ROW")


@pytest.fixture(scope="module")
def reader():
    return metric_reader()


@pytest.fixture(autouse=True)
def fresh():
    span_provider().force_flush()
    EXPORTER.clear()


def spans(operation=None):
    found = EXPORTER.get_finished_spans()
    return [one for one in found if operation in (None, one.attributes["gen_ai.operation.name"])]


def points(reader, name):
    """Return the data points of a metric, (attributes, point), of all runs so far."""
    data = reader.get_metrics_data()
    return [
        (dict(point.attributes), point)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


def of_asset(found, asset):
    return [(attributes, point) for attributes, point in found if attributes.get("llm_batch.asset") == asset]


def test_a_labeling_leaves_a_span_for_each_provider_call_flushed_when_its_run_ends(make, emulator):
    location = make(*labeled(), telemetry=True)
    assert location.submit().success
    [submitted] = spans("submit_batch")  # without waiting for the exporter's schedule
    assert submitted.name == "submit_batch gpt-4o"
    assert submitted.kind is trace.SpanKind.CLIENT
    assert submitted.attributes["gen_ai.provider.name"] == "openai"
    assert submitted.attributes["gen_ai.request.model"] == "gpt-4o"
    assert submitted.attributes["gen_ai.request.max_tokens"] == 50
    [batch] = emulator.books.batches
    assert submitted.attributes["llm_batch.batch_id"] == batch.id
    emulator.settle()
    assert location.collect().success
    polled = spans("poll_batches")[-1]
    assert polled.attributes["llm_batch.batches_ended"] == 1
    [fetched] = spans("fetch_results")
    assert fetched.attributes["llm_batch.result_lines"] == 3
    assert fetched.attributes["llm_batch.batch_id"] == batch.id


def test_answers_in_real_time_have_spans_too(make):
    rows = tickets(2).with_columns(now=True)
    location = make(*labeled(rows=lambda context: rows, realtime=Realtime(urgent="now")), telemetry=True)
    with trace.get_tracer("user").start_as_current_span("run") as run:
        location.submit()
        location.collect()
    assert [one.parent.span_id for one in spans("respond")] == [run.get_span_context().span_id] * 2
    assert spans("submit_batch") == []


def test_calls_of_threads_are_of_the_span_in_which_the_run_is(make, emulator):
    location = make(*labeled(limits=Limits(max_requests_per_batch=1)), telemetry=True)
    with trace.get_tracer("user").start_as_current_span("run") as run:
        location.land()
    assert len(spans("submit_batch")) == len(spans("fetch_results")) == 3
    calls = [one for one in EXPORTER.get_finished_spans() if one.name != "run"]
    assert {one.parent and one.parent.span_id for one in calls} == {run.get_span_context().span_id}


def test_what_fails_is_told_by_the_kind_of_its_error_alone(make, emulator):
    emulator.inject(WireFault(kind="status", route="POST /v1/files", status=401, times=None))
    location = make(*labeled(), telemetry=True)
    assert "401" in failure(location.submit())
    [failed] = spans("submit_batch")
    assert failed.attributes["error.type"] == "CredentialsError"
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert failed.status.description is None
    assert failed.events == ()


def test_no_prompt_row_reply_or_key_is_in_any_span_or_metric(make, emulator, reader):
    emulator.inject(RowFault(containing="t-1", status_code=400, message="cannot read SECRET-OF-THE-ROW", times=None))
    location = make(*labeled(params={"max_tokens": 50, "user": "SECRET-OF-THE-ROW"}), telemetry=True)
    location.land()  # one of three rows has no label
    assert location.metadata()["llm_batch/rows_rejected"] == 1
    told = "".join(span.to_json() for span in spans()) + reader.get_metrics_data().to_json()
    assert "submit_batch" in told
    assert not [secret for secret in SECRETS if secret in told]


@pytest.mark.slow
def test_requests_tokens_and_cost_are_those_that_the_provider_billed_each_try_for_itself(make, emulator, reader):
    emulator.inject(RowFault(containing="t-1", status_code=500, times=1))
    location = make(*labeled(name="billed"), telemetry=True)
    for _ in range(3):
        location.run("billed_batch")
        emulator.settle()
        location.run("billed", "billed_rejects")
    billed = emulator.books.billed_tokens()
    by_outcome = {a["llm_batch.outcome"]: p.value for a, p in of_asset(points(reader, "llm_batch.requests"), "billed")}
    assert by_outcome == {"succeeded": 3, "errored": 1}
    tokens = of_asset(points(reader, "gen_ai.client.token.usage"), "billed")
    by_type = {attributes["gen_ai.token.type"]: (point.sum, point.count) for attributes, point in tokens}
    assert by_type == {"input": (billed.input_tokens, 3), "output": (billed.output_tokens, 3)}
    assert {attributes["gen_ai.response.model"] for attributes, _ in tokens} <= {"gpt-4o", "gpt-4o-2024-08-06"}
    [(_, cost)] = of_asset(points(reader, "llm_batch.cost"), "billed")
    assert cost.value == pytest.approx(location.metadata("billed")["llm_batch/cost_usd"])


@pytest.mark.slow
def test_a_range_run_and_materializing_again_count_each_submission_once(make, emulator, reader):
    location = make(*labeled(name="ranged", partitions_def=DAILY), telemetry=True)
    span = (DAYS[0], DAYS[2])
    location.run("ranged_batch", span=span)
    emulator.settle()
    for _ in range(2):
        assert location.run("ranged", "ranged_rejects", span=span).success
    [(_, requests)] = of_asset(points(reader, "llm_batch.requests"), "ranged")
    assert requests.value == 9


def test_durations_are_recorded_by_operation_and_kind_of_error(make, emulator, reader):
    location = make(*labeled(), telemetry=True)
    location.submit()
    emulator.inject(WireFault(kind="status", route="GET *", status=503, times=None))
    assert "polling failed" in tick(location).skip_message
    found = points(reader, "gen_ai.client.operation.duration")
    seen = {(a["gen_ai.operation.name"], a.get("error.type")) for a, _ in found}
    assert {("submit_batch", None), ("poll_batches", "TransientError")} <= seen


def test_a_collector_that_is_down_fails_no_run(make, emulator, monkeypatch):
    monkeypatch.setattr(EXPORTER, "export", lambda spans: 1 / 0)
    assert make(*labeled(), telemetry=True).land().success


def test_off_by_default_there_are_no_spans_and_opentelemetry_is_not_imported(make):
    location = make(*labeled())
    assert location.land().success
    assert spans() == []
    assert not isinstance(location.engine().provider("openai"), TracedProvider)
    script = "import dagster_llm_batch, sys; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.slow
def test_without_the_extra_the_error_says_what_to_install(tmp_path):
    script = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from dagster_llm_batch import LLMBatchResource, OpenAIBatchResource\n"
        f"places = dict(ledger_url='sqlite:///{tmp_path}/ledger.sqlite', payload_root='memory://x')\n"
        "LLMBatchResource(telemetry=True, openai=OpenAIBatchResource(api_key='k'), **places).engine()"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "pip install 'dagster-llm-batch[otel]'" in found.stderr


def test_a_span_names_the_vendor_and_not_what_the_user_calls_its_account(make, emulator):
    claude = AnthropicBatchResource(api_key=DEFAULT_KEY, base_url=emulator.anthropic_base_url)
    make(*labeled(), telemetry=True, providers={"eu": claude}).engine().provider("eu").poll(["msgbatch_none"])
    trace.get_tracer_provider().force_flush()
    assert {span.attributes["gen_ai.provider.name"] for span in spans()} == {"anthropic"}


def test_a_traced_provider_has_all_duties_and_the_account_of_the_one_it_wraps(make):
    plain = make(*labeled()).engine().provider("openai")
    traced = TracedProvider(plain)
    assert isinstance(traced, Provider)
    assert (traced.name, traced.account, traced.price_book) == (plain.name, plain.account, plain.price_book)
    assert traced.settle_seconds == plain.settle_seconds
    assert traced.console_url("batch_1") == plain.console_url("batch_1")
    assert traced.server == plain.server
