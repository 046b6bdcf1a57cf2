"""The OpenAI provider through the official SDK over a socket: a batch that may exist is never reported as absent."""

from __future__ import annotations

import gzip
import io
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sample_batches import SPEC, batch_file, odd_server

from dagster_llm_batch.errors import (
    AmbiguousError,
    ProviderError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openai_api.batches import TAG_KEY
from dagster_llm_batch.testing.emulator import (
    DEFAULT_KEY,
    BatchFault,
    Emulator,
    RowFault,
    WireFault,
    lost_create_reply,
)
from dagster_llm_batch.types import Absent, BatchStatus, FindHints, Found, Outcome, RequestSpec, StatusUnknown

CREATE = "POST /v1/batches"
TAG = "tag-1"
TEXTS = ["text 0", "text 1", "text 2"]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def provider(emulator) -> OpenAIProvider:
    return over(emulator)


def over(emulator: Emulator, **more) -> OpenAIProvider:
    return OpenAIProvider(**{"api_key": DEFAULT_KEY, "base_url": emulator.openai_base_url, **more})


def submit(provider: OpenAIProvider, tag: str = TAG, count: int = 3) -> str:
    return provider.submit(batch_file(provider.codec(SPEC), [f"text {i}" for i in range(count)]), SPEC, tag)


def hints(sent_at: datetime | None = None, requests: int = 3) -> FindHints:
    return FindHints(sent_at or datetime.now(UTC), requests, "n")


def report(provider: OpenAIProvider, batch_id: str):
    return provider.poll([batch_id])[batch_id]


def results(provider: OpenAIProvider, batch_id: str):
    return [provider.codec(SPEC).decode(line) for line in provider.fetch(batch_id)]


def gets(emulator: Emulator) -> list[str]:
    return [call.path for call in emulator.books.calls if call.method == "GET"]


# Submit


def test_a_submit_uploads_once_and_creates_once_with_its_tag(emulator, provider):
    batch_id = submit(provider)
    (batch,) = emulator.books.batches
    assert (batch.id, batch.metadata) == (batch_id, {TAG_KEY: TAG})
    assert emulator.books.creates_seen == 1
    assert [file.bytes for file in emulator.books.files] == [len(batch_file(provider.codec(SPEC), TEXTS).read())]


@pytest.mark.parametrize("kind", ["file", "compressed file", "pipe", "view of bytes"])
def test_a_request_file_of_any_kind_is_sent_whole(emulator, provider, tmp_path, kind):
    lines = batch_file(provider.codec(SPEC), TEXTS).read() * 2_000
    path = tmp_path / "lines"
    path.write_bytes(gzip.compress(lines) if kind == "compressed file" else lines)
    if kind == "pipe":
        file = subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE).stdout
    else:
        opened = gzip.open if kind == "compressed file" else open
        file = io.BufferedReader(io.BytesIO(lines)) if kind == "view of bytes" else opened(path, "rb")
    with file:
        provider.submit(file, SPEC, TAG)
    assert [file.bytes for file in emulator.books.files] == [len(lines)]


def test_the_request_file_stays_where_a_batch_of_it_may_exist(emulator, provider):
    emulator.inject(lost_create_reply("500"))
    with pytest.raises(AmbiguousError):
        submit(provider)
    assert "DELETE" not in {call.method for call in emulator.books.calls}  # the batch may still need its input file


@pytest.mark.parametrize("reply", [b"<html>ok</html>", b"{", b"[]", b"{}", b'{"id":7}'])
def test_a_create_whose_reply_names_no_batch_is_ambiguous(reply):
    server = odd_server(lambda _, path: {"id": "file-1"} if path == "/v1/files" else reply)
    with server as url, pytest.raises(AmbiguousError):
        submit(OpenAIProvider("sk-x", url))


@pytest.mark.parametrize("status", [400, 429])
def test_the_request_file_is_deleted_where_there_is_certainly_no_batch_of_it(emulator, provider, status):
    emulator.inject(WireFault(kind="status", route=CREATE, status=status))
    with pytest.raises(ProviderError):
        submit(provider)
    deleted = [call.path for call in emulator.books.calls if call.method == "DELETE"]
    assert deleted == [f"/v1/files/{emulator.books.files[0].id}"]


def test_an_account_without_quota_is_refused(emulator, provider):
    emulator.inject(WireFault(kind="status", route=CREATE, status=429, code="insufficient_quota"))
    with pytest.raises(RefusedError, match="no quota"):
        submit(provider)


def test_no_connection_after_the_upload_means_not_created():
    with Emulator() as gone:
        provider = over(gone)
        submit(provider)
    with pytest.raises(TransientError, match="no connection"):
        provider._create("file-1", SPEC, TAG)


def test_an_upload_is_tried_again(emulator, provider):
    emulator.inject(WireFault(kind="status", route="POST /v1/files", status=500))
    submit(provider)
    assert len(emulator.books.batches) == 1


@pytest.mark.parametrize("provider", [OpenAIProvider, AnthropicProvider])
def test_only_of_its_own_address_is_a_vendor_known_to_enforce_the_format(provider):
    spec = RequestSpec("m", params={"max_tokens": 9})
    assert provider("sk-x").codec(spec).enforces_format
    assert not provider("sk-x", "http://llm.internal/v1").codec(spec).enforces_format


# Find


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def batch(number: int, created_at: object, **more):
    return {"id": f"batch_{number}", "object": "batch", "status": "completed", "created_at": created_at, **more}


def listing(batches: list, size: int):
    """Return the answers of the list route over `batches`, in this order."""

    def answer(_method: str, path: str):
        after = path.partition("after=")[2].partition("&")[0]
        start = next((i + 1 for i, one in enumerate(batches) if one["id"] == after), 0)
        return {"object": "list", "data": batches[start : start + size], "has_more": start + size < len(batches)}

    return answer


def test_find_reads_pages_until_one_is_older_than_the_create_call():
    new = [batch(i, 1_750_000_000 - i, metadata={"a": "b"}) for i in range(3)]
    old = [batch(i, 1_700_000_000 - i, metadata={"a": "b"}) for i in range(3, 9)]
    ours = batch(9, 1_600_000_000, metadata={TAG_KEY: TAG})
    seen: list = []
    with odd_server(listing([*new, *old, ours], 2), seen) as url:
        provider = OpenAIProvider("sk-x", url)
        assert provider.find(TAG, hints(at(1_750_000_000))) == Absent()
        assert len(seen) == 3  # two new, a new and an old, then two old ones
        assert provider.find(TAG, hints(at(1_600_000_000))) == Found("batch_9")
        assert len(seen) == 3 + 5


def test_find_reads_on_past_old_batches_whose_times_show_no_order():
    same = [batch(i, 1_700_000_000, metadata={"a": "b"}) for i in range(4)]
    ours = batch(9, 1_750_000_000, metadata={TAG_KEY: TAG})
    with odd_server(listing([*same, ours], 2)) as url:
        assert OpenAIProvider("sk-x", url).find(TAG, hints(at(1_750_000_000))) == Found("batch_9")


def test_find_sees_a_batch_whose_clock_runs_behind(emulator, provider):
    batch_id = submit(provider)
    assert provider.find(TAG, hints(datetime.now(UTC) + timedelta(minutes=5))) == Found(batch_id)


def test_find_does_not_trust_an_order_that_rises():
    ours = batch(9, 1_750_000_000, metadata={TAG_KEY: TAG})
    older = [batch(i, 1_700_000_000 + i, metadata={"a": "b"}) for i in range(4)]
    with odd_server(listing([*older, ours], 2)) as url:
        found = OpenAIProvider("sk-x", url).find(TAG, hints(at(1_750_000_000)))
    assert found == Found("batch_9")


def test_find_cannot_tell_where_the_server_shows_no_metadata():
    with odd_server(listing([batch(1, 1_750_000_000), batch(2, 1_700_000_000)], 9)) as url:
        found = OpenAIProvider("sk-x", url).find(TAG, hints(at(1_750_000_000)))
    assert isinstance(found, StatusUnknown)
    assert found.candidates == ("batch_1",)


def test_find_cannot_tell_between_two_batches_of_one_tag():
    twins = [batch(i, 1_750_000_000, metadata={TAG_KEY: TAG}) for i in (1, 2)]
    with odd_server(listing(twins, 9)) as url:
        found = OpenAIProvider("sk-x", url).find(TAG, hints())
    assert isinstance(found, StatusUnknown)
    assert found.candidates == ("batch_1", "batch_2")


def test_find_ends_where_the_server_gives_the_same_page_again_and_again():
    page = {"data": [batch(1, 1_750_000_000, metadata={"a": "b"})], "has_more": True}
    with odd_server(lambda *_: page) as url:
        assert isinstance(OpenAIProvider("sk-x", url).find(TAG, hints()), StatusUnknown)


def test_find_counts_a_batch_that_failed_validation(emulator, provider):
    emulator.inject(BatchFault(kind="fails"))
    batch_id = submit(provider)
    emulator.settle()
    assert provider.find(TAG, hints()) == Found(batch_id)


# Poll


def test_a_full_queue_is_a_failure_that_may_pass_later(emulator, provider):
    emulator.inject(BatchFault(kind="fails"))
    batch_id = submit(provider)
    emulator.settle()
    failed = report(provider, batch_id)
    assert (failed.status, failed.retryable) == (BatchStatus.FAILED, True)
    assert failed.reason is not None
    assert failed.reason.startswith("token_limit_exceeded: Enqueued token limit reached")
    assert list(provider.fetch(batch_id)) == []


def test_a_file_that_does_not_pass_validation_is_a_failure_with_its_line(emulator, provider):
    line = batch_file(provider.codec(SPEC), ["a"]).read()
    batch_id = provider.submit(batch_file(provider.codec(SPEC), ["a"]), SPEC, "first")
    emulator.settle()
    assert report(provider, batch_id).status is BatchStatus.ENDED
    batch_id = provider.submit(io.BytesIO(line + line), SPEC, TAG)
    emulator.settle()
    failed = report(provider, batch_id)
    assert (failed.status, failed.retryable) == (BatchStatus.FAILED, False)
    assert "duplicate_custom_id" in (failed.reason or "")


def test_statuses_of_compatible_servers_are_read():
    times = {"created_at": "2026-09-01T10:00:00Z", "completed_at": "2026-09-01T11:00:00"}
    shapes = {
        "a": ({"status": "IN_PROGRESS"}, BatchStatus.RUNNING),
        "b": ({"status": "CANCELING"}, BatchStatus.CANCELING),
        "c": ({"status": "COMPLETED", "output_file_id": "f", **times}, BatchStatus.ENDED),
        "d": ({"status": "FAILED", "errors": "it broke"}, BatchStatus.FAILED),
        "e": ({"status": "failed"}, BatchStatus.FAILED),
        "f": ({}, BatchStatus.RUNNING),
    }
    with odd_server(lambda _, path: {"id": path[-1], **shapes[path[-1]][0]}) as url:
        provider = OpenAIProvider("sk-x", url)
        reports = {name: report(provider, name) for name in shapes}
    assert {name: one.status for name, one in reports.items()} == {name: s for name, (_, s) in shapes.items()}
    assert reports["c"].created_at == datetime(2026, 9, 1, 10, tzinfo=UTC)
    assert reports["c"].ended_at == datetime(2026, 9, 1, 11, tzinfo=UTC)
    assert reports["d"].reason == "it broke"
    assert reports["e"].reason == "The provider gives no reason."
    assert {one.total for one in reports.values()} == {None}


def test_counts_are_unknown_until_the_file_is_validated(emulator, provider):
    batch_id = submit(provider)
    assert (report(provider, batch_id).status, report(provider, batch_id).total) == (BatchStatus.PENDING, None)
    emulator.settle()
    ended = report(provider, batch_id)
    assert (ended.total, ended.done, ended.failed) == (3, 3, 0)
    assert ended.created_at is not None
    assert ended.ended_at is not None


# Fetch


def test_rows_come_from_both_files(emulator, provider):
    emulator.inject(RowFault(custom_ids=["n-1"], status_code=400))
    batch_id = submit(provider)
    emulator.settle()
    outcomes = {result.custom_id: result.outcome for result in results(provider, batch_id)}
    assert outcomes == {"n-0": Outcome.SUCCEEDED, "n-1": Outcome.ERRORED, "n-2": Outcome.SUCCEEDED}


def test_a_batch_whose_rows_all_failed_gives_them(emulator, provider):
    emulator.inject(RowFault(status_code=500))
    batch_id = submit(provider)
    emulator.settle()
    assert {(r.outcome, r.retryable) for r in results(provider, batch_id)} == {(Outcome.ERRORED, True)}


def test_a_batch_without_files_gives_nothing(emulator, provider):
    emulator.inject(BatchFault(kind="no_output_file"))
    batch_id = submit(provider)
    emulator.settle()
    assert report(provider, batch_id).status is BatchStatus.ENDED
    assert list(provider.fetch(batch_id)) == []


# Cancel and respond


def test_canceling_keeps_finished_rows_and_names_the_others(emulator, provider):
    batch_id = submit(provider)
    emulator.tick()
    provider.cancel(batch_id)
    provider.cancel(batch_id)
    assert report(provider, batch_id).status is BatchStatus.CANCELING
    emulator.settle()
    assert report(provider, batch_id).status is BatchStatus.CANCELED
    assert {r.outcome for r in results(provider, batch_id)} <= {Outcome.CANCELED, Outcome.SUCCEEDED}


# Building


def test_the_account_names_address_organization_and_project_and_no_key():
    assert OpenAIProvider("sk-1").account == OpenAIProvider("sk-2").account == "api.openai.com/v1"
    named = OpenAIProvider("sk-1", organization="org-1", project="proj_1")
    assert named.account == "api.openai.com/v1?organization=org-1&project=proj_1"
    azure = OpenAIProvider("sk-1", "https://Res.openai.azure.com/openai/v1/")
    assert azure.account == "res.openai.azure.com/openai/v1"
    assert OpenAIProvider("sk-1", account="ours").account == "ours"
    assert "sk-1" not in repr(named)


def test_only_openais_own_console_is_known():
    assert OpenAIProvider("sk-1").console_url("batch_1") == "https://platform.openai.com/batches/batch_1"
    assert OpenAIProvider("sk-1", "https://api.groq.com/openai/v1").console_url("batch_1") is None


def test_the_environment_changes_nothing_about_whose_answers_these_are(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-env")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-env")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    custom = "Authorization: Bearer sk-env\nOpenAI-Organization: org-env\nX-Env: 1"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", custom)
    seen: list = []
    with odd_server(listing([], 1), seen) as url:
        OpenAIProvider("sk-x", url).find(TAG, hints())
        OpenAIProvider("sk-x", url, "org-mine").find(TAG, hints())
    received = [{name.lower(): value for name, value in headers.items()} for headers in seen]
    assert [one.get("openai-organization") for one in received] == [None, "org-mine"]
    assert [one["authorization"] for one in received] == ["Bearer sk-x"] * 2
    assert not [one for one in received if "x-env" in one]
    assert not [headers for headers in seen if "proj-env" in headers.values()]
