"""Credentials go only to the configured address, and rows where the protocol sends them, whatever a server answers.

The configured server is a small one on loopback that sends every provider elsewhere. Elsewhere is another port, over
http, or over https with its own certificate, and records its requests.
"""

from __future__ import annotations

import base64
import datetime as dt
import io
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.oauth2.credentials import Credentials
from google_crc32c import Checksum

from dagster_llm_batch.errors import LLMBatchError, RefusedError
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.bedrock.provider import BedrockProvider
from dagster_llm_batch.providers.google.gemini import GeminiProvider
from dagster_llm_batch.providers.google.vertex import VertexProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openrouter.provider import OpenRouterProvider
from dagster_llm_batch.types import FindHints, Request, RequestSpec

KEY = "the-credential-4242424242"
ORGANIZATION = "org-of-the-key"
ROW = "the words of a row"
MANY = 9_000_000  # bytes: more than a single call uploads
LINE = b'{"custom_id":"n-0","key":"n-0"}\n'
CHECKSUM = base64.b64encode(Checksum(LINE).digest()).decode()


class Asked(NamedTuple):
    """A request that a server got."""

    method: str
    path: str
    headers: str
    body: bytes


Answer = tuple[int, dict[str, str], bytes]


class Server(ThreadingHTTPServer):
    """A server that answers by `answer` and records its requests."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Asked], Answer], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked: list[Asked] = []
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Ignore errors: in some tests, the client hangs up on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        length = self.headers.get("content-length")
        body = self.rfile.read(int(length)) if length else b""
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        asked = Asked(self.command, self.path, str(self.headers), body)
        self.server.asked.append(asked)
        status, headers, content = self.server.answer(asked)
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), "connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = _answer  # noqa: N815 -- http.server's names

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a self-signed certificate for 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture(params=["https", "http"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def elsewhere(scheme: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Another server, whose certificate all SDKs trust. It gives result lines, and takes uploads."""
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"):
        monkeypatch.setenv(variable, str(certificate))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    context = None
    if scheme == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

    def answer(asked: Asked) -> Answer:
        if asked.method in ("GET", "HEAD"):
            return 200, {}, LINE
        return 200, {"x-goog-upload-status": "final"}, json.dumps({"file": {"name": "files/there"}}).encode()

    with Server(answer, context) as server:
        yield server


def provider(name: str, url: str, bigquery: str | None = None) -> Provider:
    """Return a provider with all its addresses at `url`, and KEY in all of its credentials."""
    match name:
        case "openai":
            headers = {"api-key": KEY, "X-Of-The-User": KEY}
            return OpenAIProvider(
                KEY, f"{url}/v1", organization=ORGANIZATION, default_headers=headers, timeout_seconds=10
            )
        case "anthropic":
            return AnthropicProvider(KEY, url, default_headers={"X-Of-The-User": KEY}, timeout_seconds=10)
        case "openrouter":
            headers = {"X-Of-The-User": KEY}
            return OpenRouterProvider(KEY, f"{url}/api/v1", default_headers=headers, timeout_seconds=10)
        case "gemini":
            return GeminiProvider(KEY, url, inline_bytes=0, timeout_seconds=10)
        case "vertex":
            place = {"bucket": "b"} if bigquery is None else {"bigquery_dataset": bigquery}
            return VertexProvider(
                "p",
                "us-central1",
                credentials=Credentials(token=KEY),  # type: ignore[no-untyped-call]
                base_url=url,
                storage_url=url,
                bigquery_url=url,
                timeout_seconds=10,
                **place,  # type: ignore[arg-type]
            )
    keys = {"aws_access_key_id": KEY, "aws_secret_access_key": KEY, "aws_session_token": KEY}
    return BedrockProvider(
        "us-east-1",
        "arn:aws:iam::123456789012:role/batch",
        "s3://bucket/folder",
        session_options=keys,
        endpoint_url=url,
        s3_endpoint_url=url,
        read_quotas=False,
        min_requests=1,
        max_attempts=2,
        timeout_seconds=10,
    )


SPECS = {
    "openai": RequestSpec("gpt-4o"),
    "anthropic": RequestSpec("claude-haiku-4-5", params={"max_tokens": 8}),
    "openrouter": RequestSpec("openai/gpt-4o"),
    "gemini": RequestSpec("gemini-2.5-flash"),
    "vertex": RequestSpec("gemini-2.5-flash"),
    "bedrock": RequestSpec("anthropic.claude-haiku-4-5-v1:0", params={"max_tokens": 8}),
}
BATCHES = {"bedrock": "abcdefghijkl", "vertex": "projects/p/locations/us-central1/batchPredictionJobs/1"}


def encoded(name: str, one: Provider, text: str = ROW) -> bytes:
    return one.codec(SPECS[name]).encode(Request("r", None, text), "n-0")


def submit(name: str, one: Provider, text: str = ROW) -> str:
    return one.submit(io.BytesIO(encoded(name, one, text)), SPECS[name], "tag")


def assert_clean(server: Server) -> None:
    for asked in server.asked:
        assert KEY not in asked.headers + asked.path, asked
        assert ORGANIZATION not in asked.headers
        assert KEY.encode() not in asked.body


@contextmanager
def refusing() -> Iterator[None]:
    with pytest.raises(LLMBatchError) as error:
        yield
    assert KEY not in str(error.value)


@pytest.mark.parametrize("name", [*SPECS, "vertex by BigQuery"])
def test_redirects_of_every_call_take_no_credential_and_no_row(name: str, scheme: str, elsewhere: Server) -> None:
    name, _, bigquery = name.partition(" by ")
    headers = {"x-amz-bucket-region": "elsewhere.example/"}

    def away(asked: Asked) -> Answer:
        return 307, {"location": f"{elsewhere.url}{asked.path}", **headers}, b""

    elsewhere.answer = lambda _asked: (401, {}, b"")
    with Server(away) as server:
        one = provider(name, server.url, bigquery or None)
        batch_id = BATCHES.get(name, "batches/b-1")
        hints = FindHints(nonce="n", requests=1, sent_at=dt.datetime.now(dt.UTC), known=frozenset())
        with refusing():
            submit(name, one)
        calls: list[Callable[[], object]] = [
            lambda: one.respond(encoded(name, one)),
            lambda: one.find("tag", hints),
            lambda: one.poll([batch_id]),
            lambda: list(one.fetch(batch_id)),
            lambda: one.cancel(batch_id),
        ]
        for call in calls:
            with suppress(LLMBatchError):
                call()
        assert any(KEY in asked.headers for asked in server.asked)  # the server had it, and could have passed it on
    assert_clean(elsewhere)
    assert not [asked for asked in elsewhere.asked if asked.body or asked.method not in ("GET", "HEAD")]
    assert scheme == "https" or not elsewhere.asked


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_a_redirect_says_where_it_would_have_led_and_is_no_lost_reply(
    name: str, scheme: str, elsewhere: Server
) -> None:
    del scheme
    with Server(lambda asked: (307, {"location": f"{elsewhere.url}{asked.path}"}, b"")) as server:
        one = provider(name, server.url)
        with pytest.raises(RefusedError, match=f"redirects a POST to {elsewhere.url}, which is another server"):
            submit(name, one)


def downloads(name: str, away: str) -> Callable[[Asked], Answer]:
    """Return the answers of a server whose batch has ended, with its results elsewhere."""

    def answer(asked: Asked) -> Answer:
        path = asked.path.partition("?")[0]
        said: Any = {"error": {"message": "unknown", "code": 404}}
        match name:
            case "openai" if path.endswith("/content"):
                return 302, {"location": f"{away}/signed?of=them"}, b""
            case "openai" if "/batches/" in path:
                said = {"id": "b", "object": "batch", "status": "completed", "output_file_id": "f"}
            case "anthropic" if path.endswith("/b"):
                ended = {"processing_status": "ended", "results_url": f"{away}/signed?of=them", "archived_at": None}
                counts = {"succeeded": 1, "errored": 0, "canceled": 0, "expired": 0, "processing": 0}
                said = {"id": "b", "type": "message_batch", "request_counts": counts, **ended}
            case "gemini" if ":download" in path or "alt=media" in asked.path:
                return 302, {"location": f"{away}/signed?of=them"}, b""
            case "gemini" if "batches/" in path:
                said = {"name": "batches/b", "done": True, "response": {"responsesFile": "files/f"}}
        return (404 if "error" in said else 200), {"content-type": "application/json"}, json.dumps(said).encode()

    return answer


@pytest.mark.parametrize("name", ["openai", "anthropic", "gemini"])
def test_a_download_elsewhere_is_read_over_https_without_credentials(name: str, scheme: str, elsewhere: Server) -> None:
    with Server(downloads(name, elsewhere.url)) as server:
        one = provider(name, server.url)
        if scheme == "http":
            with pytest.raises(LLMBatchError, match="another server, over plain http"):
                list(one.fetch("b"))
            assert not elsewhere.asked
            return
        assert list(one.fetch("b")) == [LINE]
    assert [asked.path for asked in elsewhere.asked] == ["/signed?of=them"]
    assert_clean(elsewhere)


def test_results_that_a_gateway_says_are_at_the_vendor_are_read_at_the_gateway(scheme: str, elsewhere: Server) -> None:
    del scheme
    other = downloads("anthropic", elsewhere.url)

    def answer(asked: Asked) -> Answer:
        if asked.path == "/v1/messages/batches/b/results":
            assert KEY in asked.headers
            return 200, {}, LINE
        return other(asked)

    with Server(answer) as server:
        assert list(provider("anthropic", server.url).fetch("b")) == [LINE]
    assert not elsewhere.asked


UPLOADS = ["gemini", "vertex", "vertex by BigQuery"]


@pytest.mark.parametrize("name", UPLOADS)
def test_a_file_goes_where_the_start_of_the_upload_names_without_credentials(
    name: str, scheme: str, elsewhere: Server
) -> None:
    name, _, bigquery = name.partition(" by ")

    def answer(asked: Asked) -> Answer:
        if "upload" in asked.path:
            session = f"{elsewhere.url}/session?id=1"
            return 200, {"location": session, "x-goog-upload-url": session}, b"{}"
        return 403, {"content-type": "application/json"}, b'{"error":{"code":403,"message":"no"}}'

    with Server(answer) as server, refusing():
        submit(name, provider(name, server.url, bigquery or None), ROW * (MANY // len(ROW)))
    assert any(ROW.encode() in asked.body for asked in elsewhere.asked) == (scheme == "https")
    assert_clean(elsewhere)


def test_a_listed_address_of_an_object_is_not_where_it_is_read(scheme: str, elsewhere: Server) -> None:
    """Cloud Storage names one in every listing. Behind another endpoint, it is still the public one."""
    del scheme

    def answer(asked: Asked) -> Answer:
        if "alt=media" in asked.path:
            return 200, {}, LINE
        if asked.path.startswith("/storage/v1/b/b/o"):
            item = {"name": "out/results.jsonl", "bucket": "b", "size": str(len(LINE)), "crc32c": CHECKSUM}
            item["mediaLink"] = f"{elsewhere.url}/download"
            return 200, {"content-type": "application/json"}, json.dumps({"items": [item]}).encode()
        job = {"name": "j", "state": "JOB_STATE_SUCCEEDED", "outputInfo": {"gcsOutputDirectory": "gs://b/out"}}
        return 200, {"content-type": "application/json"}, json.dumps(job).encode()

    with Server(answer) as server:
        try:
            assert list(provider("vertex", server.url).fetch(BATCHES["vertex"])) == [LINE]
        finally:
            assert not elsewhere.asked
