"""Anthropic's emulated protocol through the unchanged SDK: immediate errors, and errors that come hours later."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dagster_llm_batch.testing.emulator import (
    ANTHROPIC,
    DEFAULT_KEY,
    BatchFault,
    Emulator,
    ManualClock,
    Reply,
    VendorLimits,
    lost_create_reply,
)

PARAMS = {"model": "claude-x", "max_tokens": 20, "messages": [{"role": "user", "content": "hé"}]}


class EmulatorClient:
    """An emulator and a client of it."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.sdk = self.client_for()

    def client_for(self, **options: Any) -> Any:
        import anthropic

        usual = {"base_url": self.emulator.anthropic_base_url, "api_key": DEFAULT_KEY, "max_retries": 0}
        return anthropic.Anthropic(**{**usual, **options})

    def create(self, count: int = 3, **params: Any) -> Any:
        requests = [{"custom_id": f"r{i}", "params": {**PARAMS, **params}} for i in range(count)]
        return self.sdk.messages.batches.create(requests=requests)

    def get(self, batch: Any) -> Any:
        return self.sdk.messages.batches.retrieve(batch.id)

    def results(self, batch: Any) -> list[Any]:
        return list(self.sdk.messages.batches.results(batch.id))

    def error(self, **params: Any) -> tuple[str, str]:
        """Type and message of a row with these parameters."""
        batch = self.create(1, **params)
        self.emulator.settle()
        (row,) = self.results(batch)
        assert row.result.type == "errored"
        return row.result.error.error.type, row.result.error.error.message


@pytest.fixture
def connect() -> Iterator[Callable[..., EmulatorClient]]:
    made: list[EmulatorClient] = []

    def make(**options: Any) -> EmulatorClient:
        made.append(EmulatorClient(Emulator(**options).start()))
        return made[-1]

    yield make
    for client in made:
        client.sdk.close()
        client.emulator.close()


def test_a_batch_walks_from_in_progress_to_ended_and_only_by_ticks(connect):
    client = connect()
    batch = client.create()
    assert (batch.processing_status, batch.results_url, batch.request_counts.processing) == ("in_progress", None, 3)
    assert [client.get(batch).processing_status for _ in range(3)] == ["in_progress"] * 3
    client.emulator.settle()
    ended = client.get(batch)
    assert (ended.processing_status, ended.request_counts.succeeded) == ("ended", 3)
    assert ended.results_url == f"{client.emulator.anthropic_base_url}/v1/messages/batches/{batch.id}/results"
    assert (ended.expires_at - ended.created_at).total_seconds() == 86_400
    assert client.emulator.books.walk(batch.id) == ["ended"]
    assert ANTHROPIC.states == ("in_progress", "ended", "canceling")


def test_results_come_in_another_order_and_each_once(connect):
    client = connect()
    batch = client.create(20)
    client.emulator.settle()
    ids = [row.custom_id for row in client.results(batch)]
    assert ids != [f"r{i}" for i in range(20)]
    assert sorted(ids) == sorted(f"r{i}" for i in range(20))
    assert client.results(batch)[0].result.message.usage.service_tier == "batch"


def create_raw(client: EmulatorClient, requests: Any) -> Any:
    return client.sdk.post("/v1/messages/batches", body={"requests": requests}, cast_to=object)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "at least 1 item"),
        ([{"params": PARAMS}], r"requests\.0\.custom_id: Field required"),
        ([{"custom_id": "a" * 65, "params": PARAMS}], "at most 64 characters"),
        ([{"custom_id": "a b", "params": PARAMS}], "should match pattern"),
        ([{"custom_id": "", "params": PARAMS}], "should match pattern"),
        ([{"custom_id": "a"}], r"requests\.0\.params: Field required"),
        ([{"custom_id": "a", "params": PARAMS}] * 2, "Duplicate custom_id found: a"),
        ([{"custom_id": f"r{i}", "params": PARAMS} for i in range(4)], "at most 3 items"),
    ],
)
def test_custom_ids_and_counts_are_checked_at_once(connect, requests, message):
    import anthropic

    client = connect(limits=VendorLimits(message_batch_requests=3))
    with pytest.raises(anthropic.BadRequestError, match=message):
        create_raw(client, requests)
    assert client.emulator.books.batches == []


def test_custom_ids_keep_their_case(connect):
    client = connect()
    create_raw(client, [{"custom_id": "a", "params": PARAMS}, {"custom_id": "A", "params": PARAMS}])


def test_a_body_that_is_too_large_is_refused_at_once(connect):
    import anthropic

    client = connect(limits=VendorLimits(message_batch_bytes=100))
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.create()
    assert (caught.value.status_code, caught.value.type) == (413, "request_too_large")


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}, "additionalProperties": False}


def form(schema: dict) -> dict:
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


@pytest.mark.parametrize(
    ("params", "kind", "message"),
    [
        ({"model": "claude-unknown"}, "not_found_error", "model: claude-unknown"),
        ({"stream": True}, "invalid_request_error", "stream"),
        ({"speed": "fast"}, "invalid_request_error", "speed: Extra inputs"),
        ({"max_tokens": 0}, "invalid_request_error", "max_tokens"),
        ({"max_tokens": 200_000}, "invalid_request_error", "200000 > 128000"),
        ({"messages": []}, "invalid_request_error", "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "invalid_request_error", r"messages\.0\.role"),
        ({"messages": [{"role": "user", "content": ""}]}, "invalid_request_error", "non-empty content"),
        ({"temperature": 1}, "invalid_request_error", "temperature"),
        ({"top_p": 1}, "invalid_request_error", "top_p"),
        ({"top_k": 0}, "invalid_request_error", "top_k"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "document", "source": {}}]}]},
            "invalid_request_error",
            "source.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "citations": [{}]}]}]},
            "invalid_request_error",
            "citations",
        ),
        (
            {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "2h"}}]},
            "invalid_request_error",
            "cache_control",
        ),
        (form(SCHEMA), "invalid_request_error", "'minimum' is not supported"),
        (form({"type": "object", "properties": {}}), "invalid_request_error", "additionalProperties"),
        (form({**SCHEMA, "properties": {"a": {"$ref": "#"}}}), "invalid_request_error", "Circular reference"),
    ],
)
def test_everything_else_fails_its_row_when_it_runs(connect, params, kind, message):
    client = connect(limits=VendorLimits(known_models={"claude-x"}))
    got = client.error(**params)
    assert got[0] == kind
    assert re.search(message, got[1])
    assert client.emulator.books.billed_tokens().input_tokens == 0


def test_sampling_parameters_pass_under_the_first_version(connect):
    client = connect()
    client.sdk = client.client_for(default_headers={"anthropic-version": "2023-06-01"})
    batch = client.create(1, temperature=0.5)
    client.emulator.settle()
    assert client.results(batch)[0].result.type == "succeeded"


def test_either_header_carries_the_key_and_another_key_is_another_account(connect):
    import anthropic

    client = connect(keys={"sk-emulator", "sk-other"})
    batch = client.create()
    both = client.client_for(api_key="sk-x", default_headers={"x-api-key": DEFAULT_KEY})
    assert both.messages.batches.retrieve(batch.id).id == batch.id
    with pytest.raises(anthropic.NotFoundError, match="not found"):
        client.client_for(api_key="sk-other").messages.batches.retrieve(batch.id)
    with pytest.raises(anthropic.AuthenticationError, match="API key is invalid"):
        client.client_for(api_key="sk-wrong").messages.batches.list()


def test_results_are_not_found_until_the_end_and_a_running_batch_asks_for_patience(connect):
    import anthropic

    client = connect()
    batch = client.create()
    with pytest.raises(anthropic.NotFoundError, match="has no available results"):
        client.sdk.get(f"/v1/messages/batches/{batch.id}/results", cast_to=object)
    raw = client.sdk.messages.batches.with_raw_response.retrieve(batch.id)
    assert raw.headers["retry-after"] == "10"


def test_deleting_is_for_ended_batches(connect):
    import anthropic

    client = connect()
    batch = client.create()
    with pytest.raises(anthropic.BadRequestError, match="In progress batches cannot be deleted"):
        client.sdk.messages.batches.delete(batch.id)
    client.emulator.settle()
    assert client.sdk.messages.batches.delete(batch.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.get(batch)


def test_the_list_pages_newest_first_in_both_directions(connect):
    import anthropic

    client = connect()
    ids = [client.create(1).id for _ in range(5)][::-1]
    batches = client.sdk.messages.batches
    assert [batch.id for batch in batches.list(limit=2)] == ids
    assert [batch.id for batch in batches.list(limit=2, before_id=ids[3]).data] == ids[1:3]
    with pytest.raises(anthropic.BadRequestError):
        batches.list(limit=1_001)


@pytest.mark.parametrize("seen_live", [False, True])
def test_counts_stand_still_until_the_end_or_move(connect, seen_live):
    client = connect(work_steps=3, faults=[BatchFault(kind="counts_move")] if seen_live else [])
    batch = client.create()
    client.emulator.tick()
    counts = client.get(batch).request_counts
    assert (counts.processing, counts.succeeded) == ((2, 1) if seen_live else (3, 0))


def test_a_canceled_batch_has_a_row_for_each_request(connect):
    import anthropic

    client = connect(work_steps=3)
    batch = client.create()
    client.emulator.tick()
    assert client.sdk.messages.batches.cancel(batch.id).processing_status == "canceling"
    client.emulator.settle()
    assert sorted(row.result.type for row in client.results(batch)) == ["canceled", "canceled", "succeeded"]
    assert client.get(batch).cancel_initiated_at is not None
    with pytest.raises(anthropic.BadRequestError):
        client.sdk.messages.batches.cancel(batch.id)


def test_the_window_ends_after_a_day_and_the_results_after_29(connect):
    clock = ManualClock()
    client = connect(clock=clock)
    batch = client.create()
    clock.advance(86_400)
    client.emulator.settle()
    assert {row.result.type for row in client.results(batch)} == {"expired"}
    clock.advance(28 * 86_400)
    archived = client.get(batch)
    assert archived.archived_at is not None
    assert archived.results_url is None


def test_cache_tokens_are_beside_the_input_tokens_and_the_hour_is_told_apart(connect):
    client = connect(answer=lambda *_: Reply(text="x", input_tokens=100, cached_tokens=20, cache_write_tokens=50))
    cached = [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    batch = client.create(1, system=cached)
    client.emulator.settle()
    usage = client.results(batch)[0].result.message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (30, 20, 50)
    assert usage.cache_creation.ephemeral_1h_input_tokens == 50
    assert client.emulator.books.billed_tokens().input_tokens == 100


def test_real_time_answers_as_the_batch_does_and_the_books_know_both(connect):
    client = connect()
    message = client.sdk.messages.create(**PARAMS)
    batch = client.create(1)
    again = client.create(1)
    client.emulator.settle()
    assert client.results(batch)[0].result.message.content[0].text == message.content[0].text
    assert list(client.emulator.books.billed_counts().values()) == [3]
    assert list(client.emulator.books.billed_twice().values()) == [2]
    assert again.id != batch.id


def test_a_lost_create_reply_leaves_a_batch(connect):
    import anthropic

    client = connect()
    client.emulator.inject(lost_create_reply(route="POST /v1/messages/batches"))
    with pytest.raises(anthropic.InternalServerError) as caught:
        client.create()
    assert caught.value.type == "api_error"
    assert client.emulator.books.creates_seen == len(client.emulator.books.batches) == 1


def test_an_unknown_route_answers_in_anthropics_error_shape(connect):
    import anthropic

    with pytest.raises(anthropic.NotFoundError) as caught:
        connect().sdk.get("/v1/messages/nothing", cast_to=object)
    assert json.loads(caught.value.response.text)["error"]["type"] == "not_found_error"
