"""Recorded dialogues: each is replayed to the provider that held it, and its account stays unknown."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from replay import replayed

from dagster_llm_batch import (
    AnthropicBatchResource,
    GeminiBatchResource,
    OpenAIBatchResource,
    OpenRouterBatchResource,
    preset,
)
from dagster_llm_batch.cli.smoke import smoke_labeling, smoke_rows
from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.dialogue import Recorder, cleaned, record_client, recording_to
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

DIALOGUES = sorted(Path(__file__).with_name("dialogues").glob("*.jsonl"))
RESOURCES: dict[str, Any] = {
    "openai": OpenAIBatchResource,
    "anthropic": AnthropicBatchResource,
    "gemini": GeminiBatchResource,
    "openrouter": OpenRouterBatchResource,
    "azure": partial(preset, "azure"),
    "mistral": partial(preset, "mistral"),
}
# The first part of the path of a call, below the address that a provider is given.
FIRST_PATHS = {
    "openai": ("/files", "/batches"),
    "azure": ("/files", "/batches"),
    "mistral": ("/files", "/batch/jobs"),
    "openrouter": ("/batches",),
    "anthropic": ("/v1/",),
    "gemini": ("/v1/", "/v1beta/", "/upload/"),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("gpt-4o", {"max_tokens": 50}),
    "anthropic": ("claude-haiku-4-5", {"max_tokens": 64}),
    "gemini": ("gemini-2.5-flash", {"max_output_tokens": 64}),
    "openrouter": ("openai/gpt-4o", {"max_tokens": 50}),
    "azure": ("gpt-4o", {"max_tokens": 50}),
    "mistral": ("mistral-small-2603", {"max_tokens": 50}),
}


def provider_at(kind: str, url: str, key: str = "another-key") -> Provider:
    provider: Provider = RESOURCES[kind](api_key=key, base_url=url, timeout_seconds=10).provider()
    return provider


def land(provider: Provider, folder: Path, about: dict[str, Any], settle: Any = lambda: None) -> Any:
    """Go from the rows of a smoke to its labels."""
    labeling = smoke_labeling("smoked", about["model"], about["params"], endpoint=about["endpoint"], max_usd="0.05")
    ledger = Ledger(folder / "ledger.sqlite")
    try:
        engine = Engine(Deployment({"smoked": provider}, ledger, PayloadStore(str(folder / "payloads")), "smoke"))
        submission_id = engine.plan(labeling, smoke_rows(about["round"])).submission_id
        engine.submit(labeling, submission_id)
        for _ in range(50):
            settle()
            if engine.advance(labeling, submission_id).is_settled:
                return engine.labels(labeling, submission_id)
        raise AssertionError("the dialogue does not come to an end")
    finally:
        ledger.close()


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=[path.stem for path in DIALOGUES])
def test_a_recorded_dialogue_lands_its_three_labels_again(dialogue: Path, tmp_path: Path) -> None:
    with replayed(dialogue) as replay:
        about = replay.about
        labeled = land(provider_at(about["kind"], replay.url + base_path(dialogue, about["kind"])), tmp_path, about)
    assert replay.unknown == []
    assert len(labeled.labels) == 3, labeled.rejects.to_pylist()
    assert set(labeled.labels["label"].to_pylist()) <= {"positive", "negative", "neutral"}
    assert all(cost > 0 for cost in labeled.labels["llm_cost_usd"].to_pylist())


def base_path(dialogue: Path, kind: str) -> str:
    paths = [urlsplit(json.loads(line)["path"]).path for line in dialogue.read_text().splitlines()[1:]]
    return next(path.partition(start)[0] for path in paths for start in FIRST_PATHS[kind] if start in path)


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=[path.stem for path in DIALOGUES])
def test_no_recorded_file_has_anything_in_the_form_of_a_secret_or_an_account(dialogue: Path) -> None:
    text = dialogue.read_text(encoding="utf-8")
    assert DEFAULT_KEY not in text
    assert "127.0.0.1" not in text
    for line in text.splitlines():
        assert cleaned(line) == line
        assert not {"authorization", "x-api-key", "x-goog-api-key"} & set(json.loads(line).get("headers", {}))


@pytest.mark.parametrize("kind", RESOURCES)
def test_what_is_recorded_of_a_provider_now_is_replayed_and_has_no_key(kind: str, tmp_path: Path) -> None:
    """Record like `--record`, even in an account with other batches."""
    model, params = MODELS[kind]
    about = {"kind": kind, "model": model, "params": params, "endpoint": None, "round": 1}
    file = tmp_path / "dialogue.jsonl"
    with Emulator() as emulator:
        url = getattr(emulator, f"{kind}_base_url")
        land(provider_at(kind, url, DEFAULT_KEY), tmp_path / "other", {**about, "round": 2}, emulator.settle)
        with recording_to(Recorder(file, about)):
            recorded = land(provider_at(kind, url, DEFAULT_KEY), tmp_path / "first", about, emulator.settle)
    text = file.read_text()
    assert DEFAULT_KEY not in text
    assert "127.0.0.1" not in text
    with replayed(file) as replay:
        again = land(provider_at(kind, replay.url + base_path(file, kind)), tmp_path / "second", about)
    assert replay.unknown == []
    own = ["id", "label", "llm_outcome", "llm_input_tokens", "llm_output_tokens", "llm_cost_usd"]
    assert again.labels.select(own).sort_by("id").equals(recorded.labels.select(own).sort_by("id"))
    assert len(again.labels) == 3


PLANTED = {
    "id": "batch_1",
    "request_id": "req_0123456789",
    "organization": "Acme Inc",
    "message": "Limit reached in organization org-AbCdEf123456 of proj_9876abcd, write to jane.doe@acme.example",
    "roleArn": "arn:aws:iam::123456789012:role/batch",
    "place": "gs://acme-secret-bucket/llm and s3://acme-other-bucket/llm",
    "name": "projects/acme-prod/locations/eu/batchPredictionJobs/1",
    "url": "https://files.example/x?sig=abcdef0123&X-Amz-Signature=feed0123",
    "echo": "Incorrect API key provided: sk-live-0123456789abcdef; AIzaSyA0123456789abcdefghijk; Bearer abc.def.ghi",
}
SECRETS = (
    *("req_0123456789", "Acme Inc", "org-AbCdEf123456", "proj_9876abcd", "jane.doe", "123456789012", "acme-secret"),
    *("acme-other", "acme-prod", "abcdef0123", "feed0123", "sk-live", "AIzaSyA", "abc.def.ghi", "a-key-of-any-form"),
    *("workspace-blue", "another-batch"),
)


@contextmanager
def server(body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("openai-organization", "org-AbCdEf123456")
            self.send_header("x-request-id", "req_0123456789")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_whatever_says_who_it_was_is_gone_before_anything_is_written(tmp_path: Path) -> None:
    others = {"object": "list", "data": [{"id": "another-batch", "metadata": {"team": "secret"}}], "last_id": "x"}
    file = tmp_path / "dialogue.jsonl"
    for body in (PLANTED, {**PLANTED, "inner": [PLANTED, "a-key-of-any-form and workspace-blue"]}, others):
        with server(json.dumps(body).encode()) as url, recording_to(Recorder(file, {"kind": "openai"})):
            client = httpx2.Client()
            record_client(client)
            headers = {"Authorization": "Bearer a-key-of-any-form", "anthropic-workspace-id": "workspace-blue"}
            answer = client.get(f"{url}/v1/batches?key=a-key-of-any-form&limit=1", headers=headers)
            assert answer.json() == body
    text = file.read_text()
    assert [secret for secret in SECRETS if secret in text] == []
    assert "127.0.0.1" not in text
    assert len(text.splitlines()) == 4
    assert '"path": "/v1/batches?limit=1"' in text


@pytest.mark.parametrize(
    "written",
    [
        json.dumps({"whose": PLANTED}, indent=2).replace("\n", "\r\n"),
        " " + json.dumps([PLANTED], indent=1),
        json.dumps({"account_id": 123456789, "owner": {"name": "Acme Inc"}, "project": ["Acme Inc"], "user": None}),
        json.dumps(PLANTED) + "\n" + json.dumps(PLANTED) + "\n",
    ],
    ids=["over lines that end as on Windows", "a list over lines", "no texts", "a file of lines"],
)
def test_fields_that_tell_who_it_was_go_however_they_are_written(written: str, tmp_path: Path) -> None:
    file = tmp_path / "dialogue.jsonl"
    with server(written.encode()) as url, recording_to(Recorder(file, {"kind": "openai"})):
        client = httpx2.Client()
        record_client(client)
        client.get(f"{url}/v1/files/1")
    text = file.read_text()
    assert [secret for secret in (*SECRETS, "123456789") if secret in text] == []
    assert len(text.splitlines()) == 2


def test_a_file_that_is_no_dialogue_is_never_written_to(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("my notes\n")
    with pytest.raises(ConfigError, match="something else than a dialogue"):
        Recorder(file, {})
    assert file.read_text() == "my notes\n"
