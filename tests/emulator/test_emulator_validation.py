from __future__ import annotations

import json

import openai
import pytest

from dagster_llm_batch.testing.emulator import BatchFault, VendorLimits


def bad_batch(connect, change=None, *, raw=None, limits=None, endpoint="/v1/chat/completions"):
    """Return the failed batch of three good lines after a change of the second."""
    client = connect(limits=limits)
    lines = client.lines(3)
    if change is not None:
        change(lines[1])
    data = "".join(json.dumps(line) + "\n" for line in lines).encode() if raw is None else raw
    batch = client.create(data, endpoint=endpoint)
    assert batch.status == "validating"
    client.emulator.settle()
    failed = client.get(batch)
    assert failed.status == "failed"
    assert failed.failed_at is not None
    assert (failed.output_file_id, failed.error_file_id) == (None, None)
    assert (failed.request_counts.total, failed.request_counts.completed, failed.request_counts.failed) == (0, 0, 0)
    assert client.emulator.books.executions == []
    assert len(failed.errors.data) == 1
    return failed.errors.data[0]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        (lambda line: line.update(custom_id="r0"), "duplicate_custom_id", "custom_id"),
        (lambda line: line.pop("custom_id"), "missing_required_parameter", "custom_id"),
        (lambda line: line.pop("body"), "missing_required_parameter", "body"),
        (lambda line: line["body"].update(model="other"), "mismatched_model", "body.model"),
        (lambda line: line.update(url="/v1/responses"), "invalid_url", "url"),
        (lambda line: line["body"].pop("model"), "invalid_request", "body.model"),
        (lambda line: line.update(method="GET"), "invalid_request", None),
        (lambda line: line["body"].update(stream=True), "streaming_unsupported", "body.stream"),
    ],
)
def test_the_first_bad_line_fails_the_batch_with_one_entry_that_names_it(connect, change, code, param):
    error = bad_batch(connect, change)
    assert (error.code, error.param, error.line) == (code, param, 2)


def test_a_line_that_is_not_json_fails_the_batch(connect):
    error = bad_batch(connect, raw=b'{"custom_id": "a", \n')
    assert (error.code, error.line) == ("invalid_json_line", 1)


def test_an_empty_file_fails_the_batch(connect):
    assert bad_batch(connect, raw=b"\n\n").code == "empty_file"


def test_an_unknown_model_fails_the_batch(connect):
    error = bad_batch(connect, limits=VendorLimits(known_models={"gpt"}))
    assert (error.code, error.line) == ("model_not_found", 1)


def test_too_many_requests_fail_the_batch(connect):
    assert bad_batch(connect, limits=VendorLimits(batch_requests=2)).code == "too_many_tasks"


def test_too_many_embedding_inputs_fail_the_batch(connect):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": ["x"] * 4}}
    error = bad_batch(
        connect, raw=json.dumps(line).encode(), limits=VendorLimits(embedding_inputs=3), endpoint="/v1/embeddings"
    )
    assert error.code == "invalid_request"


def test_the_enqueued_token_limit_counts_live_batches_of_the_model_and_frees_with_their_end(connect):
    client = connect(limits=VendorLimits(enqueued_tokens=150))
    long = [client.line("a", "x" * 400)]
    first = client.create(long)
    client.emulator.tick()
    second = client.create(long)
    client.emulator.settle()
    assert client.get(first).status == "completed"
    error = client.get(second).errors.data[0]
    assert (error.code, error.line) == ("token_limit_exceeded", None)
    assert "Enqueued token limit reached for m" in error.message
    assert client.run(long).status == "completed"


@pytest.mark.parametrize("purpose", ["batch", "user_data"])
def test_a_missing_file_or_one_of_another_purpose_fails_later_and_not_at_create(connect, purpose):
    client = connect()
    file_id = "file-unknown"
    if purpose != "batch":
        file_id = client.sdk.files.create(file=("in.jsonl", b"{}"), purpose=purpose).id
    batch = client.sdk.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    assert batch.status == "validating"
    client.emulator.settle()
    error = client.get(batch).errors.data[0]
    assert (error.code, error.param) == ("invalid_request", "input_file_id")


def test_a_scripted_validation_failure_is_reported_as_given(connect):
    client = connect(faults=[BatchFault(kind="fails", code="server_says_no", message="Not today.", batches={0})])
    done = client.run(1)
    assert (done.status, done.errors.data[0].code, done.errors.data[0].message) == (
        "failed",
        "server_says_no",
        "Not today.",
    )
    assert client.run(1).status == "completed"


@pytest.mark.parametrize("change", [{"endpoint": "/v1/files"}, {"completion_window": "1h"}, {"input_file_id": None}])
def test_a_create_with_wrong_arguments_is_a_400(connect, change):
    client = connect()
    arguments = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h", **change}
    with pytest.raises(openai.BadRequestError):
        client.sdk.batches.create(**arguments)


def test_an_unknown_route_answers_in_openais_error_shape(connect):
    client = connect()
    with pytest.raises(openai.NotFoundError, match="Invalid URL"):
        client.sdk.get("/nothing", cast_to=object)
