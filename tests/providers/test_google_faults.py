"""Both providers of Google when things go wrong, over their SDKs, sockets and a real Cloud Storage server."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

import pytest
from google_emulator import BUCKET, gemini, vertex
from serving import served

from dagster_llm_batch.errors import (
    AmbiguousError,
    ConfigError,
    CredentialsError,
    ProviderError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.providers.google.vertex import credentials_of
from dagster_llm_batch.testing.contracts import ProviderUnderTest
from dagster_llm_batch.testing.emulator import (
    BatchFault,
    Emulator,
    FileFault,
    Reply,
    RowFault,
    VendorLimits,
    WireFault,
    local_gcs,
    rate_limited,
)
from dagster_llm_batch.testing.emulator.gcs import Storage
from dagster_llm_batch.types import Absent, BatchStatus, FindHints, Outcome, RequestSpec

SPEC = RequestSpec("gemini-2.5-flash")
CREATES = {"vertex": "POST /vertex/*/batchPredictionJobs", "gemini": "POST /gemini/*:batchGenerateContent"}
HINTS = FindHints(datetime.now(UTC), 3, "n")
TEXTS = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def storage_url() -> Iterator[str]:
    with local_gcs(BUCKET) as url:
        yield url


class EmulatedGoogle:
    def __init__(self, kind: str, storage_url: str, prefix: str, **options) -> None:
        self.kind = kind
        self.storage_url = storage_url
        self.emulator = Emulator(gcs_url=storage_url, **options).start()
        self.prefix = prefix
        provider = vertex(self.emulator, storage_url, prefix=prefix) if kind == "vertex" else gemini(self.emulator)
        self.subject = ProviderUnderTest(provider, SPEC, self.emulator.settle)
        self.provider = provider

    def run(self, *faults, texts=TEXTS):
        self.emulator.inject(*faults)
        batch_id = self.subject.submit(texts, "tag-a")
        self.emulator.settle()
        return batch_id, self.provider.poll([batch_id])[batch_id], self.subject.results(batch_id)


@pytest.fixture
def make(storage_url, tmp_path) -> Iterator:
    made: list[EmulatedGoogle] = []

    def start(kind: str, **options) -> EmulatedGoogle:
        made.append(EmulatedGoogle(kind, storage_url, tmp_path.name, **options))
        return made[-1]

    yield start
    for one in made:
        one.emulator.close()


@pytest.mark.parametrize("kind", CREATES)
def test_a_create_that_was_not_made_says_so_and_can_be_made_again(make, kind):
    service = make(kind)
    service.emulator.inject(rate_limited(CREATES[kind], retry_after=7))
    with pytest.raises(TransientError, match="too many requests") as caught:
        service.subject.submit(TEXTS, "tag-a")
    assert caught.value.retry_after_seconds == 7
    assert service.provider.find("tag-a", HINTS) == Absent()
    assert service.subject.submit(TEXTS, "tag-a")
    assert len(service.emulator.books.batches) == 1


def test_after_an_ambiguous_create_the_same_file_is_used_again_and_other_rows_have_a_file_of_their_own(make):
    service = make("vertex")
    service.emulator.inject(WireFault(kind="status", route=CREATES["vertex"], status=500))
    with pytest.raises(AmbiguousError):
        service.subject.submit(TEXTS, "tag-a")
    assert service.provider.find("tag-a", HINTS) == Absent()
    for texts in (["other"], TEXTS, TEXTS):
        service.subject.submit(texts, "tag-a")
    service.emulator.settle()
    other, first, second = [batch.input_file_id for batch in service.emulator.books.batches]
    assert other != first == second
    assert first.startswith(f"gs://{BUCKET}/{service.prefix}/tag-a/requests-")
    assert [len(service.subject.results(batch.id)) for batch in service.emulator.books.batches] == [
        1,
        len(TEXTS),
        len(TEXTS),
    ]


def test_a_file_that_is_there_and_is_another_is_not_overwritten(make):
    service = make("vertex")
    service.subject.submit(TEXTS, "tag-a")
    [batch] = service.emulator.books.batches
    files = Storage(service.storage_url)
    files.write(batch.input_file_id, b"somebody else's")
    with pytest.raises(RefusedError, match="another file is there already"):
        service.subject.submit(TEXTS, "tag-a")
    assert files.read(batch.input_file_id) == b"somebody else's"


@pytest.mark.parametrize("kind", CREATES)
def test_a_wrong_key_is_refused_and_never_shown(make, kind):
    service = make(kind, keys={"right"})
    with pytest.raises(CredentialsError) as caught:
        service.subject.submit(TEXTS, "tag-a")
    assert "sk-emulator" not in str(caught.value)
    with pytest.raises(CredentialsError):
        service.provider.poll(["batch"])
    with pytest.raises(CredentialsError):
        service.provider.respond(service.subject.lines(["a"]))


@pytest.mark.parametrize("kind", CREATES)
def test_an_unknown_model_is_refused_at_once(make, kind):
    service = make(kind, limits=VendorLimits(known_models={"other"}))
    with pytest.raises(RefusedError, match="not found"):
        service.subject.submit(TEXTS, "tag-a")


@pytest.mark.parametrize(
    ("code", "retryable"), [("8", True), ("13", True), ("14", True), ("3", False), ("7", False), ("9", False)]
)
@pytest.mark.parametrize("kind", CREATES)
def test_a_batch_that_failed_says_why_and_whether_again_can_help(make, kind, code, retryable):
    _, report, results = make(kind).run(BatchFault(kind="fails", code=code, message="No luck."))
    assert (report.status, report.retryable, results) == (BatchStatus.FAILED, retryable, [])
    assert report.reason == f"No luck. (code {code})"


def test_an_import_that_fails_is_found_out_by_the_job_with_code_3(make):
    service = make("vertex")
    line = json.dumps({"custom_id": "n-0", "request": {"contents": [], "generationConfig": {"$defs": {"a": 1}}}})
    batch_id = service.provider.submit(io.BytesIO(line.encode() + b"\n"), SPEC, "tag-a")
    service.emulator.settle()
    report = service.provider.poll([batch_id])[batch_id]
    assert report.status is BatchStatus.FAILED
    assert "Failed to import data" in (report.reason or "")
    assert not report.retryable


def test_a_malformed_row_refuses_a_gemini_batch_as_a_whole(make):
    service = make("gemini")
    line = json.dumps({"key": "n-0", "request": {"contents": [{"parts": [{"texts": "a"}]}]}}).encode()
    with pytest.raises(RefusedError, match="Unknown name"):
        service.provider.submit(io.BytesIO(line + b"\n"), SPEC, "tag-a")
    assert service.emulator.books.batches == []


def test_numeric_ids_are_rewritten_by_the_importer_and_ours_are_not(make):
    service = make("vertex")
    rows = [
        {"custom_id": f"{i:06}", "request": {"contents": [{"role": "user", "parts": [{"text": "a"}]}]}} for i in (0, 7)
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    batch_id = service.provider.submit(io.BytesIO(data), SPEC, "tag-n")
    service.emulator.settle()
    assert {result.custom_id for result in service.subject.results(batch_id)} == {"0", "7"}
    assert {result.custom_id for result in service.run()[2]} == {f"n-{i}" for i in range(4)}


@pytest.mark.parametrize("inline_bytes", [0, 1_000_000])
def test_the_gemini_api_is_spoken_in_its_beta_version_too(make, inline_bytes):
    service = make("gemini")
    service.subject = ProviderUnderTest(
        gemini(service.emulator, api_version="v1beta", inline_bytes=inline_bytes), SPEC, service.emulator.settle
    )
    batch_id = service.subject.submit(TEXTS, "tag")
    service.subject.finish()
    assert {result.outcome for result in service.subject.results(batch_id)} == {Outcome.SUCCEEDED}
    assert all("/v1beta/" in call.path for call in service.emulator.books.calls)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("JOB_STATE_PARTIALLY_SUCCEEDED", BatchStatus.ENDED),
        ("JOB_STATE_PAUSED", BatchStatus.RUNNING),
        ("JOB_STATE_UPDATING", BatchStatus.RUNNING),
        ("JOB_STATE_BRAND_NEW", BatchStatus.RUNNING),
    ],
)
def test_every_state_word_is_one_status_and_partial_success_is_an_end(make, state, status):
    _, report, results = make("vertex").run(BatchFault(kind="status", status=state, during="JOB_STATE_SUCCEEDED"))
    assert report.status is status
    assert len(results) == len(TEXTS)


@pytest.mark.parametrize("kind", CREATES)
def test_failed_rows_are_told_apart_and_counted(make, kind):
    service = make(kind)
    faults = (
        RowFault(custom_ids={"n-0"}),
        RowFault(custom_ids={"n-1"}, status_code=503),
        RowFault(kind="refusal", custom_ids={"n-2"}),
    )
    _, report, results = service.run(*faults)
    assert (report.status, report.done, report.failed) == (BatchStatus.ENDED, 4, 2)
    read = {result.custom_id: (result.outcome, result.retryable) for result in results}
    assert read == {
        "n-0": (Outcome.ERRORED, False),
        "n-1": (Outcome.ERRORED, True),
        "n-2": (Outcome.INVALID, False),
        "n-3": (Outcome.SUCCEEDED, False),
    }


@pytest.mark.parametrize(
    "file", ["bom", "crlf", "blank_lines", "u2028", "extra_fields", "duplicate", "missing", "foreign"]
)
def test_a_bent_results_file_in_a_bucket_loses_no_row_but_the_missing_one(make, file):
    service = make("vertex")
    _, _, results = service.run(FileFault(kind=file))
    got = [result.custom_id for result in results if result.outcome is Outcome.SUCCEEDED]
    extra = {"duplicate": 1, "foreign": 1, "missing": -1}.get(file, 0)
    assert len(got) == len(TEXTS) + extra
    assert len(set(got) - {"foreign-custom-id"}) == len(TEXTS) - (file == "missing")


def test_results_in_several_files_are_all_read(make):
    service = make("vertex")
    batch_id, _, results = service.run()
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    client = Client(
        project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": service.storage_url}
    )
    [blob] = client.list_blobs(BUCKET, prefix=f"{service.prefix}/tag-a/results/")
    more = blob.name.replace("predictions.jsonl", "predictions-2.jsonl")
    client.bucket(BUCKET).blob(more).upload_from_string(blob.download_as_bytes())
    assert len(service.subject.results(batch_id)) == 2 * len(results)


@contextmanager
def cut_downloads(storage_url: str, at: int, *, ignores_ranges: bool) -> Iterator[tuple[str, list[str | None]]]:
    """Serve Cloud Storage so that files break off after `at` bytes. Give its address and the requested ranges."""
    asked: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_file = self.path.startswith("/download/")
            if is_file:
                asked.append(self.headers["range"])
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            dropped = {"host", "range"} if ignores_ranges else {"host"}
            headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
            connection = HTTPConnection(urlsplit(storage_url).netloc)
            connection.request(self.command, self.path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
            connection.close()
            self.send_response(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                    self.send_header(name, value.replace(storage_url, f"http://{self.headers['host']}"))
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:at] if is_file else content)

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 -- the library's names

        def log_message(self, *_args: object) -> None:
            """Print nothing."""

    with served(Handler) as url:
        yield url, asked


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_a_download_that_breaks_off_goes_on_where_it_was_or_says_that_it_is_not_whole(make, ignores_ranges):
    service = make("vertex")
    batch_id, _, _ = service.run(texts=["x" * 1_000_000, "y" * 1_000_000, "z" * 500_000])
    whole = b"".join(service.provider.fetch(batch_id))
    piece = 1 << 20
    assert len(whole) > 2 * piece
    with cut_downloads(service.storage_url, piece + 100_000, ignores_ranges=ignores_ranges) as (url, asked):
        provider = vertex(service.emulator, url, prefix=service.prefix)
        if ignores_ranges:
            with pytest.raises(TransientError, match="are not the"):
                list(provider.fetch(batch_id))
        else:
            assert b"".join(provider.fetch(batch_id)) == whole
            assert asked == [None, f"bytes={piece}-", f"bytes={2 * piece}-"]


@pytest.mark.slow
def test_an_upload_larger_than_a_chunk_arrives_whole(make):
    service = make("gemini")
    service.subject = ProviderUnderTest(gemini(service.emulator, inline_bytes=0), SPEC, service.emulator.settle)
    batch_id = service.subject.submit(["x" * 5_000_000, "y" * 5_000_000], "tag-a")
    service.emulator.settle()
    assert len(service.subject.results(batch_id)) == 2
    assert service.emulator.books.files[0].bytes > 10_000_000


def test_usage_comes_back_with_thoughts_and_cached_tokens(make):
    reply = Reply(text="x", input_tokens=100, cached_tokens=40, output_tokens=30, reasoning_tokens=20)
    for kind in CREATES:
        _, _, results = make(kind, answer=lambda _body, _url: reply).run(texts=["a"])
        usage = results[0].usage
        assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens, usage.reasoning_tokens) == (
            100,
            40,
            30,
            20,
        )


def test_wrong_settings_are_refused_before_any_call(make):
    service = make("vertex")
    with pytest.raises(ConfigError, match="without 'gs://'"):
        vertex(service.emulator, service.storage_url, bucket="gs://bucket/x")
    with pytest.raises(ConfigError, match="do not run at the location 'global'"):
        vertex(service.emulator, service.storage_url, location="global").codec(RequestSpec("claude-x"))
    with pytest.raises(ConfigError, match="is no such key"):
        credentials_of("{}", None)
    with pytest.raises(ConfigError, match="holds a space"):
        gemini(service.emulator, api_key="a b")


def test_a_bucket_that_is_not_there_is_refused(make):
    service = make("vertex")
    subject = ProviderUnderTest(
        vertex(service.emulator, service.storage_url, bucket="absent"), SPEC, service.emulator.settle
    )
    with pytest.raises(ProviderError):
        subject.submit(TEXTS, "tag-a")
    assert service.emulator.books.batches == []


def test_the_resources_build_the_providers_of_an_engine(tmp_path):
    from dagster_llm_batch import GeminiBatchResource, LLMBatchResource, VertexBatchResource

    resource = LLMBatchResource(
        gemini=GeminiBatchResource(api_key="secret-key", account="team"),
        vertex=VertexBatchResource(project="p", location="us-central1", bucket="b", access_token="secret-token"),
    )
    providers = resource.make_providers(tmp_path)
    assert {name: one.account for name, one in providers.items()} == {"gemini": "team", "vertex": "p/us-central1"}
    assert "secret" not in repr(providers)
    page = providers["vertex"].console_url("projects/p/locations/us-central1/batchPredictionJobs/7")
    assert page.endswith("/locations/us-central1/batch-predictions/7?project=p")


def test_files_of_other_batches_with_the_same_name_are_never_deleted():
    """Use one name for several batches, as a script may; Gemini does not show the file of a batch."""
    with Emulator() as emulator:
        subject = ProviderUnderTest(gemini(emulator, inline_bytes=0), SPEC, emulator.settle)

        def requests_files():
            listed = subject.provider._api.pages("files", "list the files", ("files",))
            return [file["displayName"] for file in listed if not file["name"].startswith("files/batch-")]

        theirs = [subject.submit(TEXTS, "nightly") for _ in range(2)]
        own = subject.submit(TEXTS, "dlb-0123abcd-r0123456789abcdef")
        emulator.settle()
        subject.provider.delete_request_file(theirs[0])
        assert "stays until it expires" in subject.provider.delete(theirs[0])
        assert len(list(subject.provider.fetch(theirs[1]))) == len(TEXTS)
        assert subject.provider.delete(own) is None
        assert requests_files() == ["nightly", "nightly"]


def test_what_others_have_beside_a_job_that_a_script_has_sent_is_neither_read_nor_deleted(make):
    """Let a job end early: it then names the script's place of results, which all of the script's jobs may share."""
    service = make("vertex")
    provider, files = service.provider, Storage(service.storage_url)
    shared = f"gs://{BUCKET}/{service.prefix}/shared"
    lines = service.subject.lines(TEXTS)
    _, places = provider._upload(io.BytesIO(lines), len(lines), "theirs")
    places["outputConfig"]["gcsDestination"]["outputUriPrefix"] = shared
    job = {"displayName": "nightly", "model": "publishers/google/models/gemini-2.5-flash", **places}
    batch_id = provider._api.call("post", "batchPredictionJobs", "create a job", job)["name"]
    provider.cancel(batch_id)
    service.emulator.settle()
    files.write(f"{shared}/another-job/predictions.jsonl", b'{"custom_id": "n-0", "response": {}}\n')
    assert provider.poll([batch_id])[batch_id].status is BatchStatus.CANCELED
    assert list(provider.fetch(batch_id)) == []
    provider.delete(batch_id)
    assert files.read(f"{shared}/another-job/predictions.jsonl")
