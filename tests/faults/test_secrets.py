"""Keys that can be recognised, in every credential field: they are in no message, log, ledger, payload or Dagster.

The vendors echo them in every error, as some do.
"""

from __future__ import annotations

import io
import json
import logging
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from dagster_llm_batch import (
    AnthropicBatchResource,
    BedrockBatchResource,
    GeminiBatchResource,
    OpenAIBatchResource,
    VertexBatchResource,
)
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Engine, Labeling
from dagster_llm_batch.errors import ConfigError, LLMBatchError
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import Emulator, Limits, WireFault
from dagster_llm_batch.types import Request, RequestSpec
from tests.faults.bench import BUCKET, Servers, rows, servers
from tests.faults.vendors import VENDORS, Vendor

MARK = "RECOGNISE"
API_KEYS = {name: f"sk-{name}-{MARK}-4242424242" for name in ("openai", "anthropic", "gemini")}
TOKEN = f"plain{MARK}token4242"
ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = f"AKIA{MARK}42424242", f"{MARK}/secret/4242", f"{MARK}//session//4242=="


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    with servers() as both:
        yield both


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
    """All that was said anywhere; `assert_clean` looks for the mark in it."""

    def __init__(self, folder: Path, caplog: Any, capfd: Any) -> None:
        self._folder, self._caplog, self._capfd = folder, caplog, capfd
        self.said: list[str] = []

    def error(self, error: BaseException) -> None:
        """With all that stands behind it."""
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
    """The payloads, uncompressed."""
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if name.endswith(".zst"):
            yield b"".join(payloads.lines(name)).decode("utf-8", "replace")
        elif name.endswith(".parquet"):
            yield str(payloads.read_table(name).to_pylist())


def journey(vendor: Vendor, provider: Provider, folder: Path, told: Told, emulator: Emulator) -> None:
    """From rows as far as it goes; what the steps raise is told, and all that is stored by then."""
    payloads = PayloadStore(str(folder / "payloads"))
    engine = Engine({vendor.name: provider}, Ledger(folder / "ledger.sqlite"), payloads, "x", sleep=lambda _: None)
    model, prompt = f"{vendor.name}/{vendor.model}", Prompt(user="{{ text }}")
    definition = Labeling(asset="labels", model=model, key="id", prompt=prompt, response=None, params=vendor.params)
    submission = engine.plan(definition, rows())
    for _ in range(8):
        try:
            engine.advance(definition, submission.submission_id)
        except LLMBatchError as error:
            told.error(error)
        emulator.settle()
    told.said += [str(event) for event in engine.ledger.events(submission.submission_id)]
    told.said += [repr(provider), provider.account, *stored(payloads, folder / "payloads")]
    engine.ledger.close()


@pytest.fixture
def told(tmp_path: Path, caplog: Any, capfd: Any) -> Told:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, logger="botocore")  # it logs the session token at DEBUG, as SECURITY.md says
    return Told(tmp_path, caplog, capfd)


CLOUDS = pytest.mark.parametrize("vendor", VENDORS[:-1], ids=lambda vendor: vendor.name)


@pytest.mark.parametrize("status", [400, 401, 429, 500])
@CLOUDS
def test_no_credential_is_shown_where_every_call_fails_and_echoes_it(
    running: Servers, tmp_path: Path, told: Told, vendor: Vendor, status: int
) -> None:
    keys = dict.fromkeys(secrets_of(vendor.name), "account")
    limits = Limits(bedrock_min_records=1)
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
    ask(provider)  # the same address, where nobody listens now
    told.assert_clean()


ADDRESSES = {
    "openai": ["base_url"],
    "anthropic": ["base_url"],
    "gemini": ["base_url"],
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


class _Token(BaseHTTPRequestHandler):
    """Refuses to give a token, and echoes the signed assertion that was to get it."""

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
