"""Transport faults, each through the unchanged SDK over a real socket."""

from __future__ import annotations

import threading
import time

import httpx2
import openai
import pytest

from dagster_llm_batch.testing.emulator import WireFault, lost_create_reply, rate_limited

CONTENT = "GET /v1/files/*/content"


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("500", openai.InternalServerError),
        ("close", openai.APIConnectionError),
        ("hang", openai.APITimeoutError),
    ],
)
def test_an_ambiguous_create_leaves_one_batch_that_the_list_shows(connect, how, error):
    fault = lost_create_reply(how)
    client = connect(faults=[fault])
    client.sdk = client.client_for(timeout=0.5)
    with pytest.raises(error):
        client.create(2, metadata={"tag": "mine"})
    assert [item.metadata["tag"] for item in client.sdk.batches.list()] == ["mine"]
    client.emulator.settle()
    assert client.sdk.batches.list().data[0].request_counts.completed == 2
    assert (client.emulator.books.creates_seen, len(client.emulator.books.batches)) == (1, 1)
    assert client.emulator.struck(fault) == 1


def test_the_sdks_own_retries_pay_twice_after_a_lost_reply_and_the_books_show_it(connect):
    client = connect(faults=[lost_create_reply("500")])
    file_id = client.upload(client.lines(2))
    retrying = client.client_for(max_retries=2)
    retrying.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    client.emulator.settle()
    assert (client.emulator.books.creates_seen, len(client.emulator.books.batches)) == (2, 2)
    assert list(client.emulator.books.billed_twice().values()) == [2, 2]


def test_a_create_that_fails_before_its_effect_leaves_no_batch(connect):
    client = connect(faults=[WireFault(kind="status", route="POST /v1/batches", status=503)])
    with pytest.raises(openai.InternalServerError) as caught:
        client.create(1)
    assert caught.value.status_code == 503
    assert client.emulator.books.batches == []
    assert client.emulator.books.creates_seen == 1
    assert client.create(1).status == "validating"


@pytest.mark.parametrize("route", ["POST /v1/files", "GET /v1/batches", "POST /v1/embeddings"])
@pytest.mark.parametrize("retry_after", [None, "7"])
def test_any_route_can_be_rate_limited_with_and_without_retry_after(connect, route, retry_after):
    client = connect(faults=[rate_limited(route, retry_after=retry_after)])
    call = {
        "POST /v1/files": lambda: client.upload(b"x" * 3_000_000),
        "GET /v1/batches": client.sdk.batches.list,
        "POST /v1/embeddings": lambda: client.sdk.embeddings.create(model="m", input="x"),
    }[route]
    with pytest.raises(openai.RateLimitError) as caught:
        call()
    assert caught.value.response.headers.get("retry-after") == retry_after
    assert caught.value.code == "rate_limit_exceeded"
    assert call() is not None


def test_a_fault_strikes_exactly_its_number_of_times_after_those_it_skips(connect):
    fault = WireFault(kind="status", status=500, route="GET /v1/batches", times=2, skip=1)
    client = connect(faults=[fault])
    answers = []
    for _ in range(5):
        try:
            client.sdk.batches.list()
            answers.append(200)
        except openai.InternalServerError as error:
            answers.append(error.status_code)
    assert answers == [200, 500, 500, 200, 200]
    assert client.emulator.struck(fault) == 2


def test_a_permanent_fault_lasts_until_it_is_cleared(connect):
    client = connect()
    client.emulator.inject(WireFault(kind="status", status=500, times=None))
    for _ in range(3):
        with pytest.raises(openai.InternalServerError):
            client.sdk.batches.list()
    client.emulator.clear_faults()
    assert client.sdk.batches.list().data == []


def test_a_closed_connection_is_a_connection_error_and_has_no_effect(connect):
    client = connect(faults=[WireFault(kind="close", route="POST /v1/files")])
    with pytest.raises(openai.APIConnectionError):
        client.upload(b"{}\n")
    assert client.emulator.books.files == []
    assert client.upload(b"{}\n")


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_download_cut_in_its_middle_is_an_error_that_the_sdk_can_see(connect, framing):
    fault = WireFault(kind="cut", route=CONTENT, framing=framing, times=None, after_bytes=700)
    client = connect()
    done = client.run(20)
    whole = client.raw(done.output_file_id)
    client.emulator.inject(fault)
    with pytest.raises(openai.APIConnectionError):
        client.sdk.files.content(done.output_file_id)
    got: list[bytes] = []
    with client.sdk.files.with_streaming_response.content(done.output_file_id) as reply:
        pieces = reply.iter_bytes()
        with pytest.raises(httpx2.RemoteProtocolError):
            got.extend(pieces)
    assert whole.startswith(b"".join(got))
    assert len(b"".join(got)) <= 700
    client.emulator.clear_faults()
    assert client.raw(done.output_file_id) == whole


def test_a_download_cut_once_is_repeated_by_the_sdks_retries(connect):
    client = connect(faults=[WireFault(kind="cut", route=CONTENT)])
    done = client.run(20)
    client.sdk = client.client_for(max_retries=1)
    assert len(client.rows(done.output_file_id)) == 20


def test_a_download_cut_at_a_line_without_framing_loses_rows_in_silence(connect):
    client = connect(faults=[WireFault(kind="cut", route=CONTENT, framing="close", after_lines=7)])
    done = client.run(20)
    assert len(client.rows(done.output_file_id)) == 7
    assert len(client.rows(done.output_file_id)) == 20


def test_a_download_cut_within_a_line_without_framing_ends_in_half_a_row(connect):
    client = connect(faults=[WireFault(kind="cut", route=CONTENT, framing="close", after_bytes=1000)])
    done = client.run(20)
    data = client.raw(done.output_file_id)
    assert len(data) == 1000
    assert not data.endswith(b"\n")


def test_a_hanging_route_ends_with_the_clients_timeout_and_does_nothing(connect):
    client = connect(faults=[WireFault(kind="hang", route="POST /v1/batches")])
    client.sdk = client.client_for(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        client.create(1)
    assert client.emulator.books.batches == []


def test_closing_the_emulator_frees_a_client_that_hangs(connect):
    client = connect(faults=[WireFault(kind="hang", route="GET /v1/batches")])
    ends = []

    def call():
        try:
            client.client_for(timeout=60).batches.list()
        except openai.APIConnectionError as error:
            ends.append(type(error))

    thread = threading.Thread(target=call)
    thread.start()
    while not client.emulator.books.calls:
        time.sleep(0.005)
    client.emulator.close()
    thread.join(30)
    assert ends == [openai.APIConnectionError]


def test_a_slow_answer_is_too_late_for_a_short_timeout_and_good_for_a_long_one(connect):
    client = connect(faults=[WireFault(kind="slow", route="GET /v1/batches", seconds=0.3, times=None)])
    with pytest.raises(openai.APITimeoutError):
        client.client_for(timeout=0.05).batches.list()
    assert client.client_for(timeout=30).batches.list().data == []


def test_a_slow_download_arrives_whole_and_combines_with_a_cut(connect):
    slow = WireFault(kind="slow", route=CONTENT, seconds=0.005, chunk_bytes=2000, times=None)
    client = connect()
    done = client.run(20)
    whole = client.raw(done.output_file_id)
    client.emulator.inject(slow)
    assert client.raw(done.output_file_id) == whole
    client.emulator.inject(WireFault(kind="cut", route=CONTENT, framing="close", after_lines=3))
    assert len(client.rows(done.output_file_id)) == 3
    assert client.emulator.struck(slow) == 2


def test_a_stalled_download_gives_its_beginning_and_then_hangs_where_it_can_be_seen(connect):
    client = connect()
    done = client.run(20)
    client.emulator.inject(WireFault(kind="stall", route=CONTENT, after_bytes=700))
    got = []
    with client.client_for(timeout=0.5).files.with_streaming_response.content(done.output_file_id) as reply:
        pieces = reply.iter_bytes()
        got.append(next(pieces))
        while not client.emulator.hanging:
            time.sleep(0.005)
        with pytest.raises(httpx2.ReadTimeout):
            got.extend(pieces)
    assert 0 < len(b"".join(got)) <= 700
    while client.emulator.hanging:  # until the server sees that its client has left
        time.sleep(0.005)


def test_a_fault_of_a_fraction_strikes_about_so_many_calls_and_the_same_ones_again(connect):
    def struck():
        client = connect(
            faults=[WireFault(kind="status", status=503, route="GET /v1/batches", fraction=0.3, times=None)]
        )
        answers = []
        for _ in range(100):
            try:
                client.sdk.batches.list()
                answers.append(True)
            except openai.InternalServerError:
                answers.append(False)
        return answers

    answers = struck()
    assert 15 <= answers.count(False) <= 45
    assert struck() == answers
