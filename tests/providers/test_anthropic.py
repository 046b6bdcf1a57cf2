"""The Anthropic provider through the official SDK over a socket: a batch that may exist is never reported as absent."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sample_batches import batch_file, odd_server

from dagster_llm_batch.errors import (
    AmbiguousError,
    ConfigError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.testing.contracts import OneWayStream
from dagster_llm_batch.testing.emulator import (
    DEFAULT_KEY,
    BatchFault,
    Emulator,
    FileFault,
    ManualClock,
    RowFault,
    WireFault,
)
from dagster_llm_batch.types import (
    Absent,
    BatchStatus,
    FindHints,
    Found,
    Outcome,
    Request,
    RequestSpec,
    StatusUnknown,
    Undecided,
)

BATCHES = "/v1/messages/batches"
CREATE = f"POST {BATCHES}"
RESULTS = f"GET {BATCHES}/*/results"
SPEC = RequestSpec("claude-x", params={"max_tokens": 50})


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def provider(emulator) -> AnthropicProvider:
    return over(emulator)


def over(emulator: Emulator, **more) -> AnthropicProvider:
    return AnthropicProvider(**{"api_key": DEFAULT_KEY, "base_url": emulator.anthropic_base_url, **more})


def submit(provider: AnthropicProvider, count: int = 3, spec: RequestSpec = SPEC, nonce: str = "n") -> str:
    lines = batch_file(provider.codec(spec), [f"text {i}" for i in range(count)]).read()
    lines = lines.replace(b'"custom_id":"n-', b'"custom_id":"' + nonce.encode() + b"-")
    return provider.submit(OneWayStream(lines), spec, "tag")


def hints(sent_at: datetime | None = None, requests: int = 3, known=(), nonce: str = "n") -> FindHints:
    return FindHints(sent_at or datetime.now(UTC), requests, nonce, frozenset(known))


def report(provider: AnthropicProvider, batch_id: str):
    return provider.poll([batch_id])[batch_id]


def results(provider: AnthropicProvider, batch_id: str, spec: RequestSpec = SPEC):
    return [provider.codec(spec).decode(line) for line in provider.fetch(batch_id)]


def gets(emulator: Emulator) -> list[str]:
    return [call.path for call in emulator.books.calls if call.method == "GET"]


# Submit


def test_a_submit_is_one_create_call_whose_rows_arrive_as_they_were_written(emulator, provider):
    batch_id = submit(provider, 5)
    assert [batch.id for batch in emulator.books.batches] == [batch_id]
    assert len(emulator.books.calls) == 1
    emulator.settle()
    assert sorted(result.text for result in results(provider, batch_id)) == [
        f"simulated reply to: text {i}" for i in range(5)
    ]


def test_the_create_call_sends_the_body_that_the_sdk_would_send():
    seen: list = []
    with odd_server(lambda *_: {"id": "msgbatch_1"}, seen) as url:
        ours = AnthropicProvider("sk-x", url.removesuffix("/v1"), betas=["output-300k-2026-03-24"], workspace_id="w-1")
        assert submit(ours) == "msgbatch_1"
    headers = {name.lower(): value for name, value in seen[0].items()}
    requests = b",".join(batch_file(ours.codec(SPEC), [f"text {i}" for i in range(3)]).read().splitlines())
    assert int(headers["content-length"]) == len(b'{"requests":[' + requests + b"]}")
    assert "transfer-encoding" not in headers
    assert headers["content-type"] == "application/json"
    assert headers["authorization"] == "Bearer sk-x"
    assert headers["anthropic-version"] == "2026-10-21"
    assert headers["anthropic-beta"] == "output-300k-2026-03-24"
    assert headers["anthropic-workspace-id"] == "w-1"
    assert headers["x-stainless-retry-count"] == "0"


@pytest.mark.parametrize("reply", [b"<html>ok</html>", b"{", b"[]", b"{}", b'{"id":7}'])
def test_a_create_whose_reply_names_no_batch_is_ambiguous(reply):
    with odd_server(lambda *_: reply) as url, pytest.raises(AmbiguousError):
        submit(AnthropicProvider("sk-x", url.removesuffix("/v1")))


def test_a_body_that_was_not_sent_whole_made_no_batch(emulator, provider):
    emulator.inject(WireFault(kind="close", route=CREATE))  # before it is read: more than the sockets hold stays here
    with pytest.raises(TransientError):
        provider.submit(OneWayStream((b"x" * 999_999 + b"\n") * 40), SPEC, "tag")
    assert emulator.books.batches == []


def test_a_wrong_custom_id_is_refused_at_once_with_the_vendors_words(emulator, provider):
    with pytest.raises(RefusedError, match="should match pattern"):
        submit(provider, nonce="bad id")
    with pytest.raises(RefusedError, match="at most 64 characters"):
        submit(provider, nonce="n" * 64)


def test_an_empty_file_is_refused(provider):
    with pytest.raises(RefusedError, match="at least 1 item"):
        submit(provider, 0)


# The version trap


def test_sampling_parameters_pass_under_the_first_version_and_would_fail_every_row_under_the_present(emulator):
    spec = RequestSpec("claude-x", params={"max_tokens": 50, "temperature": 0})
    old = over(emulator, anthropic_version="2023-06-01")
    batch_id = submit(old, spec=spec)
    lines = batch_file(old.codec(spec), ["a"])
    trapped = over(emulator).submit(lines, spec, "tag")  # without the check, as at the vendor
    emulator.settle()
    assert {result.outcome for result in results(old, batch_id, spec)} == {Outcome.SUCCEEDED}
    (row,) = results(old, trapped, spec)
    assert (row.outcome, row.retryable) == (Outcome.ERRORED, False)
    assert "temperature" in (row.reason or "")
    with pytest.raises(ConfigError, match="temperature"):
        over(emulator).codec(spec).check_parameters()


def test_longer_replies_are_asked_for_with_a_beta(emulator):
    spec = RequestSpec("claude-x", params={"max_tokens": 300_000})
    usual, extended = over(emulator), over(emulator, betas=["output-300k-2026-03-24"])
    ids = [submit(one, spec=spec) for one in (usual, extended)]
    emulator.settle()
    outcomes = [{result.outcome for result in results(usual, batch_id)} for batch_id in ids]
    assert outcomes == [{Outcome.ERRORED}, {Outcome.SUCCEEDED}]


# Find


def test_find_excludes_what_has_other_requests_another_count_or_is_known(emulator, provider):
    other, count, known = submit(provider, nonce="other"), submit(provider, 4), submit(provider)
    running = submit(provider)
    assert provider.find("tag", hints(known=[known])) == Undecided((running, other))
    emulator.settle()
    assert provider.find("tag", hints(known=[known])) == Found(running)
    assert provider.find("tag", hints(known=[known, running])) == Absent()
    assert provider.find("tag", hints(requests=4)) == Found(count)


def test_find_says_found_although_another_candidate_still_runs(emulator, provider):
    ours = submit(provider)
    emulator.settle()
    submit(provider, nonce="other")
    assert provider.find("tag", hints()) == Found(ours)


def test_find_looks_at_what_was_created_since_the_call_with_a_margin_for_clocks():
    created_at = datetime(2026, 9, 9, tzinfo=UTC)
    batch = {"id": "b", "processing_status": "in_progress", "created_at": created_at.isoformat()}
    with odd_server(listing([batch], 1)) as url:
        provider = AnthropicProvider("sk-x", url.removesuffix("/v1"))
        assert provider.find("tag", hints(created_at + timedelta(minutes=5))) == Undecided(("b",))
        assert provider.find("tag", hints(created_at + timedelta(minutes=15))) == Absent()


def test_find_cannot_tell_where_the_results_of_a_candidate_are_gone():
    clock = ManualClock()
    with Emulator(clock=clock) as emulator:
        provider, sent_at = over(emulator), datetime.fromtimestamp(clock(), UTC)
        batch_id = submit(provider, nonce="other")
        emulator.settle()
        assert provider.find("tag", hints(sent_at)) == Absent()
        clock.advance(29 * 86_400)
        found = provider.find("tag", hints(sent_at))
    assert isinstance(found, StatusUnknown)
    assert found.candidates == (batch_id,)


def test_find_knows_a_batch_by_the_nonce_of_any_of_its_rows(emulator, provider):
    codec = provider.codec(SPEC)
    shards = [f"{nonce}-{i}" for nonce in ("first", "second", "third") for i in range(2)]
    lines = b"".join(codec.encode(Request(one, None, one), one) for one in shards)
    batch_id = provider.submit(io.BytesIO(lines), SPEC, "tag")
    emulator.settle()
    for nonce in ("first", "second", "third"):
        assert provider.find("tag", hints(requests=6, nonce=nonce)) == Found(batch_id)
    assert provider.find("tag", hints(requests=6, nonce="fourth")) == Absent()


def test_find_tells_by_canceled_rows_too(emulator, provider):
    batch_id = submit(provider)
    provider.cancel(batch_id)
    emulator.settle()
    assert provider.find("tag", hints()) == Found(batch_id)


def listing(batches: list, size: int):
    def answer(_method: str, path: str):
        after = path.partition("after_id=")[2].partition("&")[0]
        start = next((i + 1 for i, one in enumerate(batches) if one["id"] == after), 0)
        page = batches[start : start + size]
        return {"data": page, "has_more": start + size < len(batches), "last_id": page[-1]["id"] if page else None}

    return answer


def test_find_reads_pages_until_one_is_older_than_the_create_call():
    counts = {"processing": 3, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    batches = [
        {
            "id": f"b{i}",
            "processing_status": "in_progress",
            "request_counts": counts,
            "created_at": f"2026-09-{day} 00:00Z",
        }
        for i, day in enumerate(["09", "09", "09", "08", "08", "07", "07", "06", "06"])
    ]
    seen: list = []
    with odd_server(listing(batches, 2), seen) as url:
        provider = AnthropicProvider("sk-x", url.removesuffix("/v1"))
        found = provider.find("tag", hints(datetime(2026, 9, 9, tzinfo=UTC)))
    assert found == Undecided(("b0", "b1", "b2"))
    assert len(seen) == 3  # two new, a new and an old, then two old ones


@pytest.mark.parametrize("status", [429, 500, 503])
def test_find_is_transient_where_a_result_cannot_be_read(emulator, provider, status):
    submit(provider)
    emulator.settle()
    emulator.inject(WireFault(kind="status", route=RESULTS, status=status, times=3, retry_after=0))
    with pytest.raises(TransientError):
        provider.find("tag", hints())


# Poll


@pytest.mark.parametrize("moving", [False, True])
def test_counts_are_shown_in_both_ways_that_the_vendor_has_and_decide_nothing(moving):
    faults = [BatchFault(kind="counts_move")] if moving else []
    with Emulator(faults=faults, work_steps=4) as emulator:
        provider = over(emulator)
        batch_id = submit(provider, 4)
        emulator.tick(2)
        half = report(provider, batch_id)
        assert (half.status, half.total, half.done) == (BatchStatus.RUNNING, 4, 2 if moving else 0)
        emulator.settle()
        ended = report(provider, batch_id)
        assert (ended.status, ended.total, ended.done, ended.failed) == (BatchStatus.ENDED, 4, 4, 0)
        assert ended.created_at is not None
        assert ended.ended_at is not None


# Fetch


def test_a_row_with_a_result_of_an_unknown_type_is_no_success(emulator, provider):
    emulator.inject(FileFault(kind="unknown_type"))
    batch_id = submit(provider)
    emulator.settle()
    decoded = results(provider, batch_id)
    assert len(decoded) == 3
    assert sum(result.outcome is Outcome.SUCCEEDED for result in decoded) == 2


def test_results_of_a_batch_that_runs_are_not_there_yet(provider):
    batch_id = submit(provider)
    with pytest.raises(TransientError, match="no results yet: it is 'in_progress'"):
        list(provider.fetch(batch_id))


def test_results_that_the_vendor_has_deleted_are_refused_and_not_taken_for_none():
    clock = ManualClock()
    with Emulator(clock=clock) as emulator:
        provider = over(emulator)
        batch_id = submit(provider)
        emulator.settle()
        clock.advance(29 * 86_400)
        with pytest.raises(RefusedError, match="are gone"):
            list(provider.fetch(batch_id))


# Cancel and respond


def test_canceling_keeps_finished_rows_and_names_the_others():
    with Emulator(work_steps=3) as emulator:
        provider = over(emulator)
        batch_id = submit(provider)
        emulator.tick()
        provider.cancel(batch_id)
        provider.cancel(batch_id)
        assert report(provider, batch_id).status is BatchStatus.CANCELING
        emulator.settle()
        assert report(provider, batch_id).status is BatchStatus.CANCELED
        outcomes = sorted(result.outcome for result in results(provider, batch_id))
    assert outcomes == [Outcome.CANCELED, Outcome.CANCELED, Outcome.SUCCEEDED]


def test_rows_that_can_pass_later_are_told_from_those_that_cannot(emulator, provider):
    emulator.inject(RowFault(custom_ids=["n-0"], status_code=529), RowFault(custom_ids=["n-1"], status_code=404))
    batch_id = submit(provider)
    emulator.settle()
    retryable = {one.custom_id: one.retryable for one in results(provider, batch_id) if one.outcome is Outcome.ERRORED}
    assert retryable == {"n-0": True, "n-1": False}


# Building


def test_the_account_names_address_and_workspace_and_no_key():
    assert AnthropicProvider("sk-1").account == AnthropicProvider("sk-2").account == "api.anthropic.com"
    named = AnthropicProvider("sk-1", workspace_id="wrkspc_1")
    assert named.account == "api.anthropic.com?workspace=wrkspc_1"
    assert AnthropicProvider("sk-1", account="ours").account == "ours"
    assert "sk-1" not in repr(named)


def test_only_anthropics_own_console_is_known():
    assert AnthropicProvider("sk-1").console_url("b") == "https://platform.claude.com/workspaces/default/batches"
    assert AnthropicProvider("sk-1", "http://127.0.0.1:1").console_url("b") is None


def test_the_environment_changes_nothing_about_whose_answers_these_are(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "sk-env")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "x-api-key: sk-env\nanthropic-workspace-id: w-env")
    seen: list = []
    with odd_server(listing([], 1), seen) as url:
        AnthropicProvider("sk-x", url.removesuffix("/v1")).find("tag", hints())
    headers = {name.lower(): value for name, value in seen[0].items()}
    assert headers["authorization"] == "Bearer sk-x"
    assert "x-api-key" not in headers
    assert "anthropic-workspace-id" not in headers


# Memory

_SUBMIT = """
import sys, tempfile
from tests.processes import peak_bytes
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.types import RequestSpec
url, rows, chars = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
provider = AnthropicProvider("sk-emulator", url)
spec = RequestSpec("claude-x", params={"max_tokens": 50})
line = b'{"custom_id":"n-%06d","params":{"model":"claude-x","max_tokens":50,"messages":[{"role":"user","content":"' + (
    b"x" * chars
) + b'"}]}}\\n'
with tempfile.TemporaryFile() as lines:
    for number in range(rows):
        lines.write(line % number)
    lines.seek(0)
    provider.poll(["warm"])  # the SDK is loaded
    before = peak_bytes()
    provider.submit(lines, spec, "tag")
print(before, peak_bytes())
"""


def memory_of_a_submit(url: str, rows: int, chars: int) -> int:
    """Return the growth of a process's memory in bytes while it creates a batch."""
    words = [sys.executable, "-c", _SUBMIT, url, str(rows), str(chars)]
    env = {"PYTHONPATH": ":".join(sys.path)}
    out = subprocess.run(words, capture_output=True, text=True, check=True, env=env).stdout
    before, peak = map(int, out.split())
    return peak - before


@pytest.mark.slow
def test_a_large_create_body_is_streamed_in_constant_memory(emulator):
    assert memory_of_a_submit(emulator.anthropic_base_url, rows=20_000, chars=900) < 4 << 20  # of 20 MB
    assert len(emulator.books.batches) == 1


class _Sink(BaseHTTPRequestHandler):
    """Counts the bytes of a body without keeping them."""

    received = 0

    def do_GET(self) -> None:
        self._answer({"id": "warm", "request_counts": {}, "processing_status": "in_progress"})

    def do_POST(self) -> None:
        left = int(self.headers["content-length"])
        while left and (piece := self.rfile.read(min(left, 1 << 20))):
            left -= len(piece)
            _Sink.received += len(piece)
        self._answer({"id": "msgbatch_1"})

    def _answer(self, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.slow
def test_the_largest_batch_that_the_vendor_takes_costs_no_memory_either():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Sink) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        grown = memory_of_a_submit(f"http://127.0.0.1:{server.server_port}", rows=100_000, chars=2_430)
        server.shutdown()
    assert 250_000_000 < _Sink.received <= 256_000_000
    assert grown < 4 << 20
