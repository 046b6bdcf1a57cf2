"""OpenRouter's inline batches, and gateways that speak its API: their documents, and the traps in them.

https://openrouter.ai/docs/api-reference/batches; the recorded facts, 2026-11
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from sample_batches import batch_file, odd_server
from serving import served

from dagster_llm_batch import OpenRouterBatchResource, preset
from dagster_llm_batch.core.pricing import tariff
from dagster_llm_batch.errors import (
    AmbiguousError,
    CannotStopError,
    ConfigError,
    InputError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.answers import UnknownIdError
from dagster_llm_batch.providers.openrouter.servers import INLINE_SERVERS
from dagster_llm_batch.testing.emulator import (
    DEFAULT_KEY,
    BatchFault,
    Emulator,
    RowFault,
    lost_create_reply,
)
from dagster_llm_batch.types import (
    Absent,
    BatchStatus,
    FindHints,
    Found,
    Image,
    Outcome,
    PriceBasis,
    Request,
    RequestSpec,
    StatusUnknown,
    Undecided,
)

SPEC = RequestSpec("openai/gpt-4o")
TEXTS = [f"text {number}" for number in range(12)]
CREATE, RESULTS = "POST /api/v1/batches", "GET /api/v1/batches/*/results"
ROW = {"custom_id": "n-0", "response": {"status_code": 200, "body": {"choices": [{"message": {"content": "x"}}]}}}
ENDED = {
    "id": "b",
    "object": "batch",
    "status": "completed",
    "created_at": 1_782_097_200,
    "finalized_at": 1_782_097_300,
}


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


def openrouter(emulator: Emulator, **more: Any) -> Provider:
    return preset("openrouter", api_key=DEFAULT_KEY, base_url=emulator.openrouter_base_url, **more).provider()


def submit(provider: Provider, texts: list[str] = TEXTS, spec: RequestSpec = SPEC) -> str:
    return provider.submit(batch_file(provider.codec(spec), texts), spec, "tag")


def hints(*known: str, requests: int = len(TEXTS)) -> FindHints:
    return FindHints(datetime.now(UTC) - timedelta(seconds=1), requests, "n", frozenset(known))


def at(url: str, server: str = "openrouter", **more: Any) -> Provider:
    return preset(server, api_key="sk-or-x", base_url=url, timeout_seconds=10.0, **more).provider()


def recorded(server: str = "openrouter", **more: Any) -> tuple[list[tuple[str, str, bytes]], Callable[..., Any]]:
    """Return a server's list of received requests, and a function that sends some."""
    asked: list[tuple[str, str, bytes]] = []

    def ask(answer: tuple[int, Any], act: Callable[[Provider], Any]) -> Any:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                asked.append((self.command, self.path, body))
                status, value = answer
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_DELETE = do_POST  # noqa: N815 -- the library's names

            def log_message(self, *_args: object) -> None:
                """Print nothing."""

        with served(Handler) as url:
            return act(at(f"{url}/api/v1", server, **more))

    return asked, ask


# Creating


def test_what_is_told_of_a_batch_stands_before_its_requests_and_nothing_else_is_told() -> None:
    asked, ask = recorded(routing={"only": ["openai"], "allow_fallbacks": False})
    assert ask((202, {"id": "batch_1", "status": "validating"}), submit) == "batch_1"
    [(method, path, body)] = asked
    assert (method, path) == ("POST", "/api/v1/batches")
    told = json.loads(body)
    assert list(told) == ["endpoint", "model", "completion_window", "provider", "requests"]
    assert told["endpoint"] == "/v1/chat/completions"
    assert (told["model"], told["provider"]) == ("openai/gpt-4o", {"only": ["openai"], "allow_fallbacks": False})
    assert [set(one) for one in told["requests"]] == [{"custom_id", "body"}] * 12
    assert [one["custom_id"] for one in told["requests"]] == [f"n-{number}" for number in range(12)]


@pytest.mark.parametrize("server", ["opper", "merge"])
def test_the_tag_is_sent_where_metadata_is_taken(server: str) -> None:
    asked, ask = recorded(server)
    ask((202, {"id": "batch_1", "status": "validating"}), submit)
    told = json.loads(asked[0][2])
    assert told["metadata"] == {"dagster_llm_batch": "tag"}
    assert list(told)[-1] == "requests"


def test_a_create_call_that_is_not_paid_for_is_refused_and_made_once() -> None:
    asked, ask = recorded()
    with pytest.raises(RefusedError, match="Insufficient credits"):
        ask((402, {"error": {"code": 402, "message": "Insufficient credits"}}), submit)
    assert len(asked) == 1


def test_images_go_by_their_address_alone(emulator: Emulator) -> None:
    codec = openrouter(emulator).codec(SPEC)
    for image in (Image(data=b"x", media_type="image/png"), Image(url="data:image/png;base64,eA==")):
        with pytest.raises(InputError, match="by public web address alone"):
            codec.encode(Request("r", None, "what is it?", (image,)), "n-0")
    line = codec.encode(Request("r", None, "what is it?", (Image(url="https://host/a.png"),)), "n-0")
    assert b'"https://host/a.png"' in line


def test_the_vendors_that_may_answer_are_told_in_real_time_too() -> None:
    asked, ask = recorded(routing={"only": ["openai"]})
    ask((200, {"choices": []}), lambda one: one.respond(one.codec(SPEC).encode(Request("r", None, "x"), "n-0")))
    [(_, path, body)] = asked
    assert path == "/api/v1/chat/completions"
    assert json.loads(body)["provider"] == {"only": ["openai"]}


# A lost reply


def test_a_lost_batch_is_known_by_its_results_when_it_has_ended(emulator: Emulator) -> None:
    provider = openrouter(emulator)
    emulator.inject(lost_create_reply("close", route=CREATE))
    with pytest.raises(AmbiguousError):
        submit(provider)
    [created] = emulator.books.batches
    assert provider.find("tag", hints()) == Undecided((created.id,))
    emulator.settle()
    assert provider.find("tag", hints()) == Found(created.id)
    assert provider.find("tag", hints(created.id)) == Absent()
    assert provider.find("tag", hints(requests=11)) == Absent()


def test_a_batch_that_failed_before_anything_ran_is_not_the_one_that_may_have_been_paid(emulator: Emulator) -> None:
    provider = openrouter(emulator)
    emulator.inject(BatchFault(kind="fails", message="openai/gpt-4o is not a valid model ID"))
    batch_id = submit(provider)
    emulator.settle()
    report = provider.poll([batch_id])[batch_id]
    assert (report.status, report.reason) == (BatchStatus.FAILED, "openai/gpt-4o is not a valid model ID")
    assert provider.find("tag", hints()) == Absent()
    assert list(provider.fetch(batch_id)) == []


@pytest.mark.parametrize("status", ["expired", "cancelled", "completed"])
def test_where_no_result_can_tell_a_person_decides(status: str) -> None:
    batch = {**ENDED, "status": status, "created_at": datetime.now(UTC).timestamp(), "request_counts": {"total": 12}}

    def answer(_method: str, path: str) -> Any:
        if "/results" in path:
            return {"object": "list", "data": [], "has_more": False, "next_cursor": None}
        return batch if path.endswith("/b") else {"object": "list", "data": [batch], "has_more": False}

    with odd_server(answer) as url:
        found = at(url).find("tag", hints())
    assert isinstance(found, StatusUnknown)
    assert found.candidates == ("b",)


def test_a_server_without_a_list_is_no_proof_that_there_is_no_batch() -> None:
    _, ask = recorded("opper")
    found = ask((404, {"error": {"code": 404, "message": "Not found"}}), lambda one: one.find("tag", hints()))
    assert isinstance(found, StatusUnknown)


@pytest.mark.parametrize(("theirs", "found"), [("tag", Found("b")), ("another", Absent())])
def test_a_tag_in_the_list_tells_at_once(theirs: str, found: Any) -> None:
    now = datetime.now(UTC).timestamp()
    batch = {"id": "b", "status": "in_progress", "created_at": now, "metadata": {"dagster_llm_batch": theirs}}
    with odd_server(lambda _method, _path: {"object": "list", "data": [batch], "has_more": False}) as url:
        assert at(url, "merge").find("tag", hints()) == found


# A charge that is not covered


def test_results_that_are_withheld_are_waited_for_and_never_asked_again(emulator: Emulator) -> None:
    provider = openrouter(emulator)
    unpaid = BatchFault(kind="unpaid")
    emulator.inject(unpaid)
    batch_id = submit(provider)
    emulator.settle()
    report = provider.poll([batch_id])[batch_id]
    assert report.status is BatchStatus.RUNNING
    assert "withheld until the account is topped up" in (report.reason or "")
    assert "Results are withheld until the batch charge is covered." in (report.reason or "")
    with pytest.raises(TransientError, match="withheld until the account is topped up"):
        list(provider.fetch(batch_id))
    # an unpaid batch in doubt is still the same batch
    with pytest.raises(TransientError, match="topped up"):
        provider.find("tag", hints())
    emulator.clear_faults()
    assert provider.poll([batch_id])[batch_id].status is BatchStatus.ENDED
    assert len(list(provider.fetch(batch_id))) == 12
    assert len(emulator.books.batches) == 1


def test_a_402_that_is_no_batch_is_transient_too() -> None:
    _, ask = recorded()
    with pytest.raises(TransientError, match="topped up"):
        ask((402, {"error": {"code": 402, "message": "Pay first."}}), lambda one: one.poll(["b"]))


# Results


def test_results_come_over_pages_or_in_the_batch_in_any_order(emulator: Emulator) -> None:
    provider = openrouter(emulator)
    many, few = submit(provider), submit(provider, TEXTS[:2])
    emulator.settle()
    ids = [json.loads(line)["custom_id"] for line in provider.fetch(many)]
    assert sorted(ids) == sorted(f"n-{number}" for number in range(12))
    assert ids != [f"n-{number}" for number in range(12)]
    paged = sum(call.path.endswith("/results") for call in emulator.books.calls)
    assert paged == 3  # of five rows, as the emulator gives at most
    assert len(list(provider.fetch(few))) == 2
    assert sum(call.path.endswith("/results") for call in emulator.books.calls) == paged


@pytest.mark.parametrize(
    "page",
    [
        {"data": [ROW], "has_more": True, "next_cursor": None},
        {"data": [ROW], "has_more": True, "next_cursor": "again"},
        {"data": None, "has_more": False},
        {"object": "list"},
        b'{"data":[{"custom_id":"n-0","resp',
        {"data": [{"id": "r"}], "has_more": False},
    ],
    ids=["no cursor", "the same page for ever", "null", "no list", "cut", "rows of something else"],
)
def test_a_page_that_cannot_be_the_last_nor_be_gone_on_from_is_no_end(page: Any) -> None:
    with odd_server(lambda _method, path: page if "/results" in path else ENDED) as url, pytest.raises(TransientError):
        list(at(url).fetch("b"))


@pytest.mark.parametrize("counts", [{"total": 2, "completed": 2, "failed": 0}, {"total": 2}, None])
@pytest.mark.parametrize("rows", [[], [ROW]])
def test_rows_in_the_batch_that_may_not_be_all_of_them_are_not_taken_for_all(rows: Any, counts: Any) -> None:
    batch = {**ENDED, "request_counts": counts, "results": rows}
    page = {"data": [ROW, {**ROW, "custom_id": "n-1"}], "has_more": False, "next_cursor": None}
    with odd_server(lambda _method, path: page if "/results" in path else batch) as url:
        assert len(list(at(url).fetch("b"))) == 2
        # without pages, these rows are all there are: the engine notices missing rows
        assert len(list(at(url, "opper").fetch("b"))) == len(rows)


def test_a_row_that_is_written_over_several_lines_is_one_line() -> None:
    page = json.dumps({"data": [ROW], "has_more": False}, indent=2).replace("\n", "\r\n").encode()
    with odd_server(lambda _method, path: page if "/results" in path else ENDED) as url:
        provider = at(url)
        [line] = provider.fetch("b")
    assert line.count(b"\n") == 1
    assert provider.codec(SPEC).decode(line).text == "x"


@pytest.mark.parametrize("status", ["expired", "cancelled", "failed"])
def test_a_batch_that_was_cut_short_gives_what_it_has_or_nothing(status: str) -> None:
    _, ask = recorded()
    batch = {**ENDED, "status": status, "results": None}
    # the server gives every call the same answer, so it sends no page
    with pytest.raises(TransientError):
        ask((200, batch), lambda one: list(one.fetch("b")))
    page = {"data": [ROW], "has_more": False, "next_cursor": None}
    with odd_server(lambda _method, path: page if "/results" in path else batch) as url:
        assert len(list(at(url).fetch("b"))) == 1
        assert list(at(url, "opper").fetch("b")) == []


def test_results_that_were_deleted_are_gone_and_no_batch_without_rows() -> None:
    _, ask = recorded()
    with pytest.raises(UnknownIdError):
        ask((410, {"error": {"code": 410, "message": "artifacts expired"}}), lambda one: list(one.fetch("b")))


@pytest.mark.parametrize(
    ("kind", "is_retryable"),
    [
        ("rate_limit_exceeded", True),
        ("provider_overloaded", True),
        ("timeout", True),
        ("server", True),
        ("invalid_request", False),
        ("context_length_exceeded", False),
        ("content_policy_violation", False),
    ],
)
def test_rows_that_failed_tell_by_their_error_type_whether_to_ask_again(kind: str, is_retryable: bool) -> None:
    error = {"message": "no", "type": "provider_error", "param": None, "error_type": kind}
    line = json.dumps({"id": "r", "custom_id": "n-0", "response": None, "error": error}).encode()
    result = at("http://127.0.0.1:9/api/v1").codec(SPEC).decode(line)
    assert (result.custom_id, result.outcome, result.retryable) == ("n-0", Outcome.ERRORED, is_retryable)
    assert result.reason == f"{kind}: no"


def test_a_row_that_failed_is_read_beside_those_that_did_not(emulator: Emulator) -> None:
    emulator.inject(RowFault(containing="text 3", status_code=429, message="slow down"))
    provider = openrouter(emulator)
    batch_id = submit(provider)
    emulator.settle()
    results = [provider.codec(SPEC).decode(line) for line in provider.fetch(batch_id)]
    failed = [one for one in results if one.outcome is Outcome.ERRORED]
    assert [(one.custom_id, one.retryable) for one in failed] == [("n-3", True)]
    assert sum(one.outcome is Outcome.SUCCEEDED for one in results) == 11


# Stopping and deleting


def test_nothing_stops_a_batch_and_that_is_said(emulator: Emulator) -> None:
    provider = openrouter(emulator)
    batch_id = submit(provider)
    with pytest.raises(CannotStopError, match="runs on to its end, and is billed"):
        provider.cancel(batch_id)
    emulator.settle()
    provider.cancel(batch_id)
    assert len(list(provider.fetch(batch_id))) == 12


@pytest.mark.parametrize(
    ("upstream", "said"),
    [
        ({"provider": "OpenAI", "status": "deleted"}, None),
        ({"provider": "OpenAI", "status": "not_applicable"}, None),
        (None, None),
        ({"provider": "Google", "status": "unsupported"}, "what Google behind it stores stays there"),
    ],
)
def test_what_the_vendor_behind_keeps_is_said(upstream: Any, said: str | None) -> None:
    deletion = {"openrouter": "deleted", **({} if upstream is None else {"upstream": upstream})}
    _, ask = recorded()
    told = ask((200, {"id": "b", "object": "batch", "deletion": deletion}), lambda one: one.delete("b"))
    assert (told is None) if said is None else said in told


def test_a_running_batch_is_not_deleted_and_no_other_server_is_asked_to(emulator: Emulator) -> None:
    provider = openrouter(emulator)
    with pytest.raises((RefusedError, TransientError)):
        provider.delete(submit(provider))
    assert "cannot delete its stored data here" in (at("http://127.0.0.1:9/v3", "opper").delete("b") or "")


# Known facts, and prices


@pytest.mark.parametrize("server", ["opper", "merge"])
def test_a_batch_is_created_polled_and_fetched_at_each_server(server: str) -> None:
    """Answer without metadata: the documents name only the create call and the batch. OpenRouter takes no metadata."""
    batch = {**ENDED, "request_counts": {"total": 1, "completed": 1, "failed": 0}, "results": [ROW]}
    with odd_server(lambda _method, _path: batch) as url:
        provider = at(url, server)
        assert submit(provider) == "b"
        report = provider.poll(["b"])["b"]
        assert (report.status, report.total, report.done) == (BatchStatus.ENDED, 1, 1)
        assert report.ended_at == datetime.fromtimestamp(1_782_097_300, UTC)
        assert [provider.codec(SPEC).decode(line).custom_id for line in provider.fetch("b")] == ["n-0"]


def test_a_batch_may_take_96_hours() -> None:
    assert preset("openrouter", api_key="k").provider().window == timedelta(hours=96)


def test_the_address_may_have_another_path() -> None:
    provider = preset("openrouter", api_key="k", base_url="https://openrouter.ai/api/beta").provider()
    assert provider.account == "openrouter.ai/api/beta"


@pytest.mark.parametrize(("server", "most"), [("openrouter", 5_000), ("opper", 50_000), ("merge", 10_000)])
def test_limits_are_the_servers(server: str, most: int) -> None:
    limits = preset(server, api_key="k").provider().codec(SPEC).limits
    assert limits.max_requests == most
    assert limits.max_bytes < 200_000_000


def test_a_name_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'opper'"):
        OpenRouterBatchResource(api_key="k", server="oper")
    with pytest.raises(ConfigError, match="did you mean 'openrouter'"):
        preset("openruter", api_key="k")


def test_prices_are_those_of_the_models_that_the_book_has_for_batches() -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    assert tariff("openrouter", "openai/gpt-4o", now).basis is PriceBasis.BATCH
    assert tariff("openrouter", "somebody/no-such-model", now).basis is PriceBasis.UNKNOWN
    assert tariff("opper", "gpt-4o", now).basis is PriceBasis.UNKNOWN


def test_every_value_has_a_source_with_a_date() -> None:
    for name, server in INLINE_SERVERS.items():
        facts = [fact for fact in [*vars(server).values(), *server.quirks] if hasattr(fact, "source")]
        assert len(facts) >= 5, name
        assert all("2026" in fact.source for fact in facts), name
