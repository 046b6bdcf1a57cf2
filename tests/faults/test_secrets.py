"""Recognizable keys in every credential field: they are in no message, log, ledger, payload or Dagster.

The vendors echo them in every error, as some do.
"""

from __future__ import annotations

import io
import json
import logging
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch import (
    AnthropicBatchResource,
    BedrockBatchResource,
    GeminiBatchResource,
    OpenAIBatchResource,
    OpenRouterBatchResource,
    VertexBatchResource,
    preset,
)
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import ConfigError, LLMBatchError, TransientError
from dagster_llm_batch.protocols import AnswersInFlex, Provider
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.google.vertex import VertexProvider, credentials_of
from dagster_llm_batch.providers.google.vertex import secrets_of as parts_of
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openrouter.provider import OpenRouterProvider
from dagster_llm_batch.providers.registry import SERVER_FOLDERS
from dagster_llm_batch.providers.secrets import Mask
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import Emulator, VendorLimits, WireFault
from dagster_llm_batch.types import Request, RequestSpec
from tests.faults.test_origins import Answer, Asked, Server
from tests.faults.vendor_workspace import BUCKET, Servers, rows
from tests.faults.vendors import VENDORS, Vendor
from tests.folder_servers import provider_of

MARK = "RECOGNISE"
# AWS puts its request's id into an answer; without it, the answer is not from AWS.
JSON = {"content-type": "application/json", "x-amzn-RequestId": "r"}
API_KEYS = {
    name: f"sk-{name}-{MARK}-4242424242" for name in ("openai", "anthropic", "gemini", "openrouter", *SERVER_FOLDERS)
}
TOKEN = f"plain{MARK}token4242"
ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = f"AKIA{MARK}42424242", f"{MARK}/secret/4242", f"{MARK}//session//4242=="


def resources(emulator: Emulator, folder: Path, timeout_seconds: float = 10.0) -> dict[str, Any]:
    common = {"timeout_seconds": timeout_seconds}
    return {
        "openai": OpenAIBatchResource(api_key=API_KEYS["openai"], base_url=emulator.openai_base_url, **common),
        "anthropic": AnthropicBatchResource(
            api_key=API_KEYS["anthropic"], base_url=emulator.anthropic_base_url, **common
        ),
        "gemini": GeminiBatchResource(
            api_key=API_KEYS["gemini"], base_url=emulator.gemini_base_url, inline_bytes=0, **common
        ),
        "openrouter": OpenRouterBatchResource(
            api_key=API_KEYS["openrouter"], base_url=emulator.openrouter_base_url, **common
        ),
        **{
            name: preset(name, api_key=API_KEYS[name], base_url=emulator.base_url(name), **common)
            for name in SERVER_FOLDERS
        },
        "vertex": VertexBatchResource(
            project="p",
            location="us-central1",
            bucket=BUCKET,
            prefix=folder.name,
            access_token=TOKEN,
            base_url=emulator.vertex_base_url,
            storage_url=emulator.gcs_relay_url,
            **common,
        ),
        "bedrock": BedrockBatchResource(
            region_name="us-east-1",
            role_arn="arn:aws:iam::123456789012:role/batch",
            s3_uri=f"s3://{BUCKET}/{folder.name}",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            aws_session_token=SESSION_TOKEN,
            endpoint_url=emulator.bedrock_url,
            s3_endpoint_url=emulator.s3_relay_url,
            read_quotas=False,
            min_requests=1,
            max_attempts=1,
            **common,
        ),
    }


def secrets_of(name: str) -> list[str]:
    own = {"vertex": [TOKEN], "bedrock": [ACCESS_KEY, SECRET_KEY, SESSION_TOKEN]}
    return own.get(name) or [API_KEYS[name]]


class Told:
    """All text that was written anywhere; `assert_clean` looks for the mark in it."""

    def __init__(self, folder: Path, caplog: Any, capfd: Any) -> None:
        self._folder, self._caplog, self._capfd = folder, caplog, capfd
        self.said: list[str] = []

    def error(self, error: BaseException) -> None:
        """Collect an error with all its causes."""
        self.said += ["".join(traceback.format_exception(error)), repr(error), str(error)]

    def assert_clean(self, *also: str) -> None:
        stdout, stderr = self._capfd.readouterr()
        errors = "\n".join([*self.said, *also])
        texts = {"errors": errors, "logs": self._caplog.text, "stdout": stdout, "stderr": stderr}
        for name, text in texts.items():
            assert MARK not in text, f"{name}: {text[max(0, text.index(MARK) - 300) : text.index(MARK) + 100]}"
        for path in self._folder.rglob("*"):
            if path.is_file():
                assert MARK.encode() not in path.read_bytes(), path


def stored(payloads: PayloadStore, folder: Path) -> Iterator[str]:
    """Yield the payloads, uncompressed."""
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if name.endswith(".zst"):
            yield b"".join(payloads.lines(name)).decode("utf-8", "replace")
        elif name.endswith(".parquet"):
            yield str(payloads.read_table(name).to_pylist())


def journey(vendor: Vendor, provider: Provider, folder: Path, told: Told, emulator: Emulator) -> None:
    """Run as many steps from rows on as possible. Collect their errors, and everything stored by then."""
    payloads = PayloadStore(str(folder / "payloads"))
    engine = Engine(
        Deployment({vendor.name: provider}, Ledger(folder / "ledger.sqlite"), payloads, "x", sleep=lambda _: None)
    )
    model, prompt = f"{vendor.name}/{vendor.model}", Prompt(user="{{ text }}")
    definition = Labeling(asset="labels", model=model, key="id", prompt=prompt, response=None, params=vendor.params)
    submission = engine.plan(definition, rows())
    for _ in range(8):
        try:
            engine.advance(definition, submission.submission_id)
        except LLMBatchError as error:
            told.error(error)
        emulator.settle()
    told.said += [str(event) for event in engine.ledger.events.of_submission(submission.submission_id)]
    told.said += [repr(provider), provider.account, *stored(payloads, folder / "payloads")]
    engine.ledger.close()


@pytest.fixture
def told(tmp_path: Path, caplog: Any, capfd: Any) -> Told:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, logger="botocore")  # at DEBUG, it logs the session token (see SECURITY.md)
    return Told(tmp_path, caplog, capfd)


CLOUDS = pytest.mark.parametrize("vendor", VENDORS[:-1], ids=lambda vendor: vendor.name)


@pytest.mark.parametrize("status", [400, 401, 429, 500])
@CLOUDS
def test_no_credential_is_shown_where_every_call_fails_and_echoes_it(
    running: Servers, tmp_path: Path, told: Told, vendor: Vendor, status: int
) -> None:
    keys = dict.fromkeys(secrets_of(vendor.name), "account")
    limits = VendorLimits(bedrock_min_records=1)
    with Emulator(keys=keys, s3_url=running.s3_url, gcs_url=running.gcs_url, limits=limits) as emulator:
        echo = f"You sent {', '.join(secrets_of(vendor.name))}."
        faults = [WireFault(kind="status", route=r, status=status, message=echo) for r in vendor.calls.values()]
        emulator.inject(*faults)
        journey(vendor, resources(emulator, tmp_path)[vendor.name].provider(), tmp_path, told, emulator)
        assert sum(emulator.struck(fault) for fault in faults)
        assert any(call.key in secrets_of(vendor.name) for call in emulator.books.calls)  # it was sent
    told.assert_clean()


@CLOUDS
def test_no_credential_is_shown_where_nobody_answers(tmp_path: Path, told: Told, vendor: Vendor) -> None:
    spec = RequestSpec(vendor.model, params=vendor.params)

    def ask(provider: Provider) -> None:
        lines = io.BytesIO(provider.codec(spec).encode(Request("r", None, "text"), "n-0"))
        calls = (lambda: provider.submit(lines, spec, "tag"), lambda: provider.poll(["abcdefghijkl"]))
        for call in calls:
            with pytest.raises(LLMBatchError) as error:
                call()
            told.error(error.value)

    with Emulator(s3_url="http://127.0.0.1:1", gcs_url="http://127.0.0.1:1") as emulator:
        emulator.inject(WireFault(kind="hang", times=None))
        provider = resources(emulator, tmp_path, timeout_seconds=0.2)[vendor.name].provider()
        ask(provider)
    ask(provider)  # the same address, which now refuses connections
    told.assert_clean()


ADDRESSES = {
    "openai": ["base_url"],
    "anthropic": ["base_url"],
    "gemini": ["base_url"],
    "openrouter": ["base_url"],
    **{name: ["base_url"] for name in SERVER_FOLDERS},
    "vertex": ["base_url", "storage_url"],
    "bedrock": ["endpoint_url", "s3_endpoint_url", "quotas_endpoint_url"],
}


@pytest.mark.parametrize(("name", "setting"), [(name, one) for name, several in ADDRESSES.items() for one in several])
@pytest.mark.parametrize("form", ["http://gateway:{}@127.0.0.1:1/v1", "htp:/gateway:{}@127.0.0.1", "gateway:{}@[host"])
def test_an_address_that_holds_a_password_is_refused_and_not_shown(
    tmp_path: Path, told: Told, name: str, setting: str, form: str
) -> None:
    with Emulator() as emulator:
        usual = resources(emulator, tmp_path)[name]
    with pytest.raises(ConfigError, match="holds a user name or a password") as refused:
        usual.model_copy(update={setting: form.format(MARK)}).provider()
    told.error(refused.value)
    told.assert_clean()


def echoing(secret: str, *, fails: bool) -> Callable[[Asked], Answer]:
    """Return the answers of an OpenAI-like server that puts the received key into all fields of batches and rows."""
    custom_ids: list[str] = []

    def answer(asked: Asked) -> Answer:
        if asked.method == "POST" and asked.path == "/v1/files":
            custom_ids[:] = re.findall(r'"custom_id":"([^"]+)"', asked.body.decode())
            return 200, JSON, json.dumps({"id": "file-1", "object": "file"}).encode()
        if asked.path.endswith("/content"):
            refused = {"error": {"message": f"Your key {secret} may not.", "code": "model_not_found"}}
            rows = [
                {"id": "r", "custom_id": one, "response": {"status_code": 400, "body": refused}, "error": None}
                for one in custom_ids
            ]
            return 200, {}, b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        batch: dict[str, Any] = {"id": "batch_1", "object": "batch", "status": "in_progress"}
        if asked.method == "GET" and fails:
            said = {"data": [{"code": "invalid", "message": f"{'x' * 470} The key {secret} may not."}]}
            batch |= {"status": "failed", "errors": said}
        elif asked.method == "GET":
            batch |= {"status": "completed", "output_file_id": "file-2"}
        return 200, JSON, json.dumps(batch).encode()

    return answer


@pytest.mark.parametrize("fails", [True, False], ids=["a batch", "its rows"])
def test_what_a_batch_or_a_row_failed_of_is_stored_without_the_key(tmp_path: Path, told: Told, fails: bool) -> None:
    key, vendor = API_KEYS["openai"], next(vendor for vendor in VENDORS if vendor.name == "openai")
    with Server(echoing(key, fails=fails)) as server:
        payloads = PayloadStore(str(tmp_path / "payloads"))
        provider = OpenAIProvider(key, f"{server.url}/v1", timeout_seconds=10)
        engine = Engine(
            Deployment({"openai": provider}, Ledger(tmp_path / "ledger.sqlite"), payloads, "x", sleep=lambda _: None)
        )
        definition = Labeling(
            asset="labels", model=f"openai/{vendor.model}", key="id", prompt=Prompt(user="{{ text }}"), response=None
        )
        submission = engine.plan(definition, rows())
        for _ in range(6):
            with suppress(LLMBatchError):
                engine.advance(definition, submission.submission_id)
        told.said += [str(event) for event in engine.ledger.events.of_submission(submission.submission_id)]
        told.said += [str(one) for one in engine.ledger.shards.of_submission(submission.submission_id)]
        told.said += stored(payloads, tmp_path / "payloads")
        engine.ledger.close()
    said = "\n".join(told.said)
    assert ("xxx The key ***" if fails else "Your key *** may not.") in said
    assert "sk-openai" not in said
    told.assert_clean()


HELD = {
    "openai": ["key-of-openai-4242", "the-header-of-the-user"],
    "anthropic": ["key-of-anthropic-42", "the-header-of-the-user"],
    "gemini": ["key-of-gemini-4242"],
    "openrouter": ["key-of-openrouter-42", "the-header-of-the-user"],
    **{name: [f"key-of-{name}-4242", "the-header-of-the-user"] for name in SERVER_FOLDERS},
    "vertex": ["token-of-vertex-4242", "-----BEGIN PRIVATE KEY-----\nMIIEvgIBADANBg\n-----END PRIVATE KEY-----\n"],
    "bedrock": ["AKIA4242424242424242", "secret/of/aws+42424242", "session//of//aws=="],
}


def holding(name: str, url: str) -> Provider:
    """Return a provider with each secret of HELD in a place where a user gives it."""
    first, *more = HELD[name]
    headers = {"X-Gateway": f"Bearer {HELD['openai'][1]}"}
    match name:
        case "openai":
            return OpenAIProvider(first, f"{url}/v1", default_headers=headers, timeout_seconds=10)
        case "anthropic":
            return AnthropicProvider(first, url, default_headers=headers, timeout_seconds=10)
        case "openrouter":
            return OpenRouterProvider(first, f"{url}/api/v1", default_headers=headers, timeout_seconds=10)
        case _ if name in SERVER_FOLDERS:
            return provider_of(name, f"{url}/v1", first, default_headers=headers, timeout_seconds=10)
        case "gemini":
            return GeminiBatchResource(api_key=first, base_url=url).provider()
        case "vertex":
            secrets = [first, *parts_of(json.dumps({"private_key": more[0]}), None)]
            token = credentials_of(None, first)
            return VertexProvider("p", "l", "b", credentials=token, base_url=url, storage_url=url, secrets=secrets)
    return BedrockBatchResource(
        region_name="us-east-1",
        role_arn="arn:aws:iam::123456789012:role/batch",
        s3_uri="s3://bucket/folder",
        aws_access_key_id=first,
        aws_secret_access_key=more[0],
        aws_session_token=more[1],
        endpoint_url=url,
        read_quotas=False,
        max_attempts=1,
    ).provider()


@CLOUDS
def test_every_secret_of_a_provider_is_masked_in_all_that_its_verbs_give(vendor: Vendor) -> None:
    """The server writes it in any form: plain, escaped as JSON, or as a part of an address."""
    said = " ".join(form for secret in HELD[vendor.name] for form in (secret, json.dumps(secret), quote(secret, "")))
    body = json.dumps({"error": {"message": said, "code": 400, "status": "INVALID_ARGUMENT"}, "message": said})
    spec = RequestSpec(vendor.model, params=vendor.params)
    with Server(lambda _asked: (400, JSON, body.encode())) as server:
        provider = holding(vendor.name, server.url)
        line = provider.codec(spec).encode(Request("r", None, "text"), "n-0")
        told = [provider.respond(line).decode()]
        if isinstance(provider, AnswersInFlex):
            told.append(provider.respond_flex(line).decode())
        for call in (lambda: provider.poll(["abcdefghijkl"]), lambda: list(provider.fetch("abcdefghijkl"))):
            with pytest.raises(LLMBatchError) as error:
                call()
            told.append(str(error.value))
    for text in told:
        assert "***" in text
        for secret in HELD[vendor.name]:
            assert secret not in text
            assert json.dumps(secret)[1:-1] not in text
            assert quote(secret, "") not in text


def test_a_key_that_is_in_ordinary_words_too_masks_none_of_them() -> None:
    """Keep ordinary words unmasked: users of their own servers often set `x` or `none` as the key."""
    body = json.dumps({"error": {"message": "Rate limit exceeded: none left."}}).encode()
    for key in ("x", "none", "Rate limit"[:15].replace(" ", "-")):
        with Server(lambda _asked: (429, JSON, body)) as server:
            with pytest.raises(TransientError, match="Rate limit exceeded: none left") as error:
                OpenAIProvider(key, f"{server.url}/v1").poll(["b"])
            assert "***" not in str(error.value)


@given(cut=st.integers(6, 43), text=st.text("ab-", max_size=30))
def test_a_secret_is_masked_also_where_a_text_was_cut_in_it(cut: int, text: str) -> None:
    secret = "k3y-" + "0123456789" * 4
    mask = Mask([secret, "short", None])
    assert mask.text(f"{text}{secret[:cut]}") == f"{text}***"
    assert mask.text(f"{text}{secret}{text}{secret}") == f"{text}***{text}***"
    assert mask.text(f"{text}short") == f"{text}short"
    assert mask.line(f"{text}{secret}\n".encode()) == f"{text}***\n".encode()
    line = f"{text}short\n".encode()
    assert mask.line(line) is line


class _Token(BaseHTTPRequestHandler):
    """A server that refuses to give a token, and echoes the signed assertion of the request."""

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append(sent)  # type: ignore[attr-defined]
        assertion = parse_qs(sent.decode())["assertion"][0]
        body = json.dumps({"error": "invalid_grant", "error_description": f"Bad assertion {assertion}"}).encode()
        self.send_response(400)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


def test_neither_a_service_accounts_key_nor_what_it_signs_is_shown(tmp_path: Path, told: Told) -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = private.decode()
    vertex = next(vendor for vendor in VENDORS if vendor.name == "vertex")
    with Emulator() as emulator, ThreadingHTTPServer(("127.0.0.1", 0), _Token) as server:
        server.seen = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        account = {
            "type": "service_account",
            "client_email": "labeler@p.iam.gserviceaccount.com",
            "private_key_id": MARK,
            "private_key": key,
            "token_uri": f"http://127.0.0.1:{server.server_port}/token",
        }
        usual = resources(emulator, tmp_path)["vertex"]
        changes = {"service_account_json": json.dumps(account), "access_token": None}
        journey(vertex, usual.model_copy(update=changes).provider(), tmp_path, told, emulator)
        server.shutdown()
    [assertion, *_] = [parse_qs(sent.decode())["assertion"][0] for sent in server.seen]  # type: ignore[attr-defined]
    said = "\n".join(told.said)
    assert "Could not" in said
    assert assertion.rpartition(".")[2] not in said  # the signature
    assert not [line for line in key.splitlines() if len(line) > 20 and line in said]
    told.assert_clean()
