from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import time

import httpx
import openai
import pytest

from dagster_llm_batch.testing.emulator import Emulator, ManualClock, Reply, VendorLimits, WireFault

SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string", "enum": ["billing", "bug"]}, "urgency": {"type": "integer"}},
    "required": ["topic", "urgency"],
    "additionalProperties": False,
}


def chat_format(schema, *, strict=True):
    return {"type": "json_schema", "json_schema": {"name": "out", "strict": strict, "schema": schema}}


def test_a_batch_walks_all_states_only_by_ticks_and_never_by_reads(connect):
    client = connect()
    batch = client.create(4)
    assert batch.status == "validating"
    seen = []
    for _ in range(4):
        states = {client.get(batch).status for _ in range(5)}
        assert {item.status for item in client.sdk.batches.list()} == states
        seen += states
        client.emulator.tick()
    assert seen == ["validating", "in_progress", "finalizing", "completed"]
    done = client.get(batch)
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (4, 4, 0)
    assert done.error_file_id is None
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at


def test_every_request_is_answered_once_and_rows_are_shuffled_by_the_seed(connect):
    orders = []
    for seed in (1, 1, 2):
        client = connect(seed=seed)
        done = client.run(30)
        ids = client.ids(done.output_file_id)
        assert sorted(ids) == sorted(f"r{index}" for index in range(30))
        orders.append((done.id, ids))
    assert orders[0] == orders[1]
    assert orders[0][1] != orders[2][1]
    assert orders[0][1] != [f"r{index}" for index in range(30)]


def test_batch_usage_is_the_sum_of_the_rows_and_of_the_books(connect):
    client = connect()
    done = client.run(5)
    rows = client.rows(done.output_file_id)
    made = sum(row["response"]["body"]["usage"]["completion_tokens"] for row in rows)
    billed = client.emulator.books.billed_tokens(done.id)
    assert done.usage.output_tokens == made == billed.output_tokens > 0
    assert done.usage.input_tokens == billed.input_tokens > 0


def test_metadata_is_echoed_and_listed_newest_first_in_pages(connect):
    client = connect()
    made = [client.create(1, metadata={"run": str(index)}).id for index in range(5)]
    first = client.sdk.batches.list(limit=2)
    assert [item.id for item in first.data] == made[:2:-1]
    assert first.has_more
    assert [item.metadata["run"] for item in client.sdk.batches.list(limit=2)] == ["4", "3", "2", "1", "0"]
    last = client.sdk.batches.list(limit=2, after=made[1])
    assert ([item.id for item in last.data], last.has_more) == ([made[0]], False)
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.sdk.batches.list(limit=101)


@pytest.mark.parametrize("metadata", [{str(index): "x" for index in range(17)}, {"k" * 65: "x"}, {"k": "x" * 513}])
def test_metadata_over_the_documented_limits_is_refused(connect, metadata):
    client = connect()
    with pytest.raises(openai.BadRequestError, match="metadata"):
        client.create(1, metadata=metadata)
    assert client.emulator.books.batches == []


def test_files_take_nested_expiry_fields_and_can_be_listed_read_and_deleted(connect):
    clock = ManualClock()
    client = connect(clock=clock)
    made = client.sdk.files.create(
        file=("in.jsonl", b"{}\n"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600
    plain = client.sdk.files.retrieve(client.upload(b"{}"))
    assert plain.expires_at == plain.created_at + 2_592_000
    assert [item.id for item in client.sdk.files.list(purpose="batch")] == [plain.id, made.id]
    assert client.raw(made.id) == b"{}\n"
    clock.advance(3601)
    with pytest.raises(openai.NotFoundError):
        client.sdk.files.retrieve(made.id)
    assert client.sdk.files.delete(plain.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.sdk.files.content(plain.id)


def test_output_expiry_is_anchored_on_the_creation_of_the_file(connect):
    client = connect()
    batch = client.create(1, output_expires_after={"anchor": "created_at", "seconds": 7200})
    client.emulator.settle()
    stored = client.sdk.files.retrieve(client.get(batch).output_file_id)
    assert (stored.purpose, stored.expires_at) == ("batch_output", stored.created_at + 7200)
    with pytest.raises(openai.BadRequestError, match="output_expires_after"):
        client.create(1, output_expires_after={"anchor": "created_at", "seconds": 60})


def test_a_file_uploaded_in_parts_equals_its_source_and_can_be_run(connect, tmp_path):
    client = connect()
    data = "".join(json.dumps(client.line(f"r{index}", "x" * 1000)) + "\n" for index in range(2500)).encode()
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    upload = client.sdk.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="batch", part_size=1_000_000
    )
    assert upload.status == "completed"
    assert hashlib.sha256(client.raw(upload.file.id)).digest() == hashlib.sha256(data).digest()
    client.sdk.batches.create(input_file_id=upload.file.id, endpoint="/v1/chat/completions", completion_window="24h")
    client.emulator.settle()
    assert len(client.emulator.books.executions) == 2500


def test_a_file_deleted_after_create_is_still_run(connect):
    client = connect()
    batch = client.create(2)
    client.sdk.files.delete(batch.input_file_id)
    client.emulator.settle()
    assert client.get(batch).request_counts.completed == 2


def test_keys_open_accounts_and_accounts_do_not_see_each_other(connect):
    client = connect(keys={"sk-a": "ann", "sk-a2": "ann", "sk-b": "bob"})
    client.sdk = client.client_for(api_key="sk-a")
    batch = client.create(1)
    assert client.client_for(api_key="sk-a2").batches.retrieve(batch.id).id == batch.id
    bob = client.client_for(api_key="sk-b")
    assert bob.batches.list().data == []
    assert bob.files.list().data == []
    for call in (bob.batches.retrieve, bob.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="No batch found with id"):
            call(batch.id)
    with pytest.raises(openai.AuthenticationError) as caught:
        client.client_for(api_key="sk-wrong").batches.list()
    assert caught.value.code == "invalid_api_key"


def test_without_a_list_any_key_but_none_is_an_account(connect):
    client = connect(keys=None)
    assert client.client_for(api_key="whatever").batches.list().data == []
    assert httpx.get(f"{client.emulator.openai_base_url}/batches").status_code == 401


def test_the_azure_forms_and_the_api_key_header_reach_the_same_house(connect):
    client = connect()
    batch = client.create(1)
    v1 = client.client_for(base_url=client.emulator.azure_base_url)
    assert v1.batches.retrieve(batch.id).id == batch.id
    classic = openai.AzureOpenAI(
        azure_endpoint=f"http://127.0.0.1:{client.emulator.port}", api_version="2025-04-01", api_key="sk-emulator"
    )
    assert classic.batches.retrieve(batch.id).id == batch.id
    assert client.emulator.books.calls_to("GET", f"/v1/batches/{batch.id}") == 2


def test_responses_and_embeddings_run_in_batches_and_parse_as_the_sdk_types(connect):
    client = connect()
    text = {"format": {"type": "json_schema", "name": "out", "strict": True, "schema": SCHEMA}}
    done = client.run([client.line("a", "a bug", url="/v1/responses", text=text)], endpoint="/v1/responses")
    body = client.rows(done.output_file_id)[0]["response"]["body"]
    answer = openai.types.responses.Response.model_validate(body)
    assert json.loads(answer.output_text)["topic"] == "bug"
    assert answer.status == "completed"
    done = client.run([client.line("a", "x", url="/v1/embeddings", encoding_format="float")], endpoint="/v1/embeddings")
    vector = client.rows(done.output_file_id)[0]["response"]["body"]["data"][0]["embedding"]
    assert client.sdk.embeddings.create(model="m", input="x").data[0].embedding == pytest.approx(vector, abs=1e-6)


def test_real_time_answers_as_the_batch_does_and_is_in_the_books(connect):
    client = connect()
    line = client.line("a", "a bug", response_format=chat_format(SCHEMA))
    done = client.run([line])
    answer = client.sdk.chat.completions.create(**line["body"])
    batch_answer = client.rows(done.output_file_id)[0]["response"]["body"]["choices"][0]["message"]["content"]
    assert answer.choices[0].message.content == batch_answer
    assert len(set(client.emulator.books.billed_counts())) == 1
    assert list(client.emulator.books.billed_counts().values()) == [2]
    assert client.emulator.books.billed_twice() == {}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({**SCHEMA, "additionalProperties": True}, "additionalProperties"),
        ({**SCHEMA, "required": ["topic"]}, "Missing 'urgency'"),
        ({"type": "array", "items": {"type": "string"}}, 'type: "object"'),
    ],
)
def test_a_schema_that_strict_mode_refuses_is_a_400_row_and_a_400_in_real_time(connect, schema, said):
    client = connect()
    line = client.line("a", response_format=chat_format(schema))
    done = client.run([line])
    assert (done.status, done.output_file_id) == ("completed", None)
    row = client.rows(done.error_file_id)[0]
    assert (row["response"]["status_code"], row["error"]) == (400, None)
    assert said in row["response"]["body"]["error"]["message"]
    with pytest.raises(openai.BadRequestError):
        client.sdk.chat.completions.create(**line["body"])
    lax = client.run([client.line("a", response_format=chat_format(schema, strict=False))])
    assert lax.request_counts.completed == 1
    assert client.emulator.books.billed_tokens().input_tokens == lax.usage.input_tokens


def test_billed_twice_finds_the_same_body_under_another_custom_id(connect):
    client = connect()
    client.run([client.line("a", "same"), client.line("b", "other")])
    client.run([client.line("c", "same")])
    twice = client.emulator.books.billed_twice()
    assert list(twice.values()) == [2]
    assert {item.custom_id for item in client.emulator.books.executions if item.body_digest in twice} == {"a", "c"}


def test_the_answer_function_may_return_text_json_or_a_reply_and_its_error_is_a_500(connect):
    def answer(body, endpoint):
        text = body["messages"][0]["content"]
        if text == "raise":
            raise KeyError(text)
        return {"text": "plain", "json": {"a": 1}, "reply": Reply(text="r", input_tokens=7, output_tokens=9)}[text]

    client = connect(answer=answer)
    done = client.run([client.line(text, text) for text in ("text", "json", "reply", "raise")])
    rows = {row["custom_id"]: row["response"]["body"] for row in client.rows(done.output_file_id)}
    assert rows["text"]["choices"][0]["message"]["content"] == "plain"
    assert json.loads(rows["json"]["choices"][0]["message"]["content"]) == {"a": 1}
    assert rows["reply"]["usage"]["total_tokens"] == 16
    failed = client.rows(done.error_file_id)
    assert [(row["custom_id"], row["response"]["status_code"]) for row in failed] == [("raise", 500)]
    assert isinstance(client.emulator.books.answer_errors[0], KeyError)


def test_the_output_limit_of_the_request_cuts_the_reply(connect):
    client = connect(answer=lambda body, endpoint: "word " * 100)
    chat = client.sdk.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "x"}], max_completion_tokens=5
    )
    assert (chat.choices[0].finish_reason, chat.usage.completion_tokens) == ("length", 5)
    answer = client.sdk.responses.create(model="m", input="x", max_output_tokens=5)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_cancel_keeps_what_ran_and_writes_the_rest_as_cancelled(connect):
    client = connect(work_steps=2)
    batch = client.create(10)
    client.emulator.tick(2)
    assert client.get(batch).request_counts.completed == 5
    assert client.sdk.batches.cancel(batch.id).status == "cancelling"
    assert client.sdk.batches.cancel(batch.id).status == "cancelling"
    client.emulator.tick()
    done = client.get(batch)
    assert done.status == "cancelled"
    finished, rest = client.ids(done.output_file_id), client.rows(done.error_file_id)
    assert sorted(finished + [row["custom_id"] for row in rest]) == sorted(f"r{index}" for index in range(10))
    assert {(row["response"], row["error"]["code"]) for row in rest} == {(None, "batch_cancelled")}
    with pytest.raises(openai.ConflictError, match="cancelled"):
        client.sdk.batches.cancel(batch.id)


def test_a_batch_canceled_while_validating_has_no_files(connect):
    client = connect()
    batch = client.create(2)
    client.sdk.batches.cancel(batch.id)
    client.emulator.settle()
    done = client.get(batch)
    assert (done.status, done.output_file_id, done.error_file_id) == ("cancelled", None, None)
    assert client.emulator.books.executions == []


def test_a_batch_whose_window_ends_expires_by_the_clock(connect):
    clock = ManualClock()
    client = connect(pace={"validating": 1, "in_progress": 100_000}, clock=clock)
    batch = client.create(2)
    clock.advance(80_000)
    client.emulator.advance()
    assert client.get(batch).status == "in_progress"
    clock.advance(6_401)
    client.emulator.advance()
    done = client.get(batch)
    assert (done.status, done.expired_at) == ("expired", batch.expires_at)
    assert [row["error"]["code"] for row in client.rows(done.error_file_id)] == ["batch_expired"] * 2
    assert client.emulator.books.executions == []


def test_with_a_pace_in_seconds_the_batch_ends_by_itself(connect):
    client = connect(pace=0.01)
    batch = client.create(2)
    for _ in range(3000):
        if client.get(batch).status == "completed":
            break
        time.sleep(0.01)
    assert client.emulator.books.walk(batch.id) == ["in_progress", "finalizing", "completed"]


def test_the_asgi_app_serves_in_process_without_a_socket():
    emulator = Emulator(faults=[WireFault(kind="close", route="POST /v1/embeddings")])

    async def talk():
        transport = httpx.ASGITransport(emulator.asgi_app)
        headers = {"authorization": "Bearer sk-emulator"}
        async with httpx.AsyncClient(transport=transport, base_url="http://emulator/v1", headers=headers) as client:
            with pytest.raises(ConnectionResetError):
                await client.post("/embeddings", json={"model": "m", "input": "x"})
            return (await client.post("/embeddings", json={"model": "m", "input": "x"})).json()

    assert len(asyncio.run(talk())["data"]) == 1
    emulator.close()


@pytest.mark.slow
def test_a_large_batch_is_held_on_disk_and_comes_back_whole(connect):
    client = connect()
    done = client.run([client.line(f"r{index}", "x" * 200) for index in range(6000)])
    rows = client.rows(done.output_file_id)
    assert len({row["custom_id"] for row in rows}) == 6000


def test_limits_of_file_size_are_refused_at_upload(connect):
    client = connect(limits=VendorLimits(file_bytes=100))
    with pytest.raises(openai.BadRequestError, match="too large"):
        client.upload(b"x" * 101)
    with pytest.raises(openai.BadRequestError, match="jsonl"):
        client.sdk.files.create(file=("in.txt", b"{}"), purpose="batch")


def test_the_command_prints_where_to_connect_and_serves():
    command = [sys.executable, "-m", "dagster_llm_batch.testing.emulator", "--pace-seconds", "0.01"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stdout.readline() for _ in range(3)]
            exported = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines[1:])
            client = openai.OpenAI(base_url=exported["OPENAI_BASE_URL"], api_key=exported["OPENAI_API_KEY"])
            assert client.batches.list().data == []
        finally:
            process.terminate()
