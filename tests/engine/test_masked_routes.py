"""Values that a Mask finds stay in the process on each way of a request: vendors, lanes, documents, rounds."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import polars as pl
import pytest
from pydantic import BaseModel
from workspace import Workspace, labeling

from dagster_llm_batch import Limits, Mask, Prompt, Realtime, Resend
from dagster_llm_batch.engine import Fallback
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.google.gemini import GeminiProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, FlexScript, RowFault
from tests.pdfs import pdf

PLANTED = ("ann.planted@example.com", "+49 30 1234567", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00")
TEXT = " ".join(PLANTED)
NANO: dict[str, Any] = {"model": "openai/gpt-5-nano", "params": {"max_completion_tokens": 4_000}}
CLAUDE, GEMINI = "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash"


class Answer(BaseModel):
    topic: Literal["billing", "bug"]
    reply: str


def quote(body: dict[str, Any], _endpoint: str) -> dict[str, str]:
    """Quote the whole request. OpenAI's model has no topic for rows that fail."""
    text = json.dumps(body, ensure_ascii=False)
    return {"topic": "?" if "fails" in text and str(body.get("model", "")).startswith("gpt") else "bug", "reply": text}


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(answer=quote) as running:
        yield running


@pytest.fixture
def workspace(workspace: Workspace) -> Workspace:
    url = workspace.emulator.anthropic_base_url
    workspace.providers["anthropic"] = AnthropicProvider(api_key=DEFAULT_KEY, base_url=url)
    workspace.providers["gemini"] = GeminiProvider(DEFAULT_KEY, workspace.emulator.gemini_base_url)
    return workspace


ROUTES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a fallback to Anthropic": (
        {"resend": Resend(max_waves=3, invalid_waves=1, fallback=[CLAUDE])},
        {"openai batch", "anthropic batch"},
    ),
    "a fallback to Gemini": (
        {"resend": Resend(max_waves=3, invalid_waves=1, fallback=[Fallback(GEMINI, {"max_output_tokens": 4_000})])},
        {"openai batch", "gemini batch"},
    ),
    "real time": ({"realtime": Realtime(urgent="now")}, {"openai realtime"}),
    "real time at Anthropic": ({"model": CLAUDE, "realtime": Realtime(urgent="now")}, {"anthropic realtime"}),
    "flex, then standard": (
        {**NANO, "realtime": Realtime(urgent="now", tier="flex", concurrency=1)},
        {"openai realtime", "openai tier: flex"},
    ),
    "flex, then a batch": (
        {**NANO, "realtime": Realtime(urgent="now", tier="flex", concurrency=1, otherwise="batch")},
        {"openai tier: flex", "openai batch"},
    ),
    "documents": ({"prompt": {"documents": ["file"]}}, {"openai batch"}),
    "documents in real time": (
        {"prompt": {"documents": ["file"]}, "realtime": Realtime(urgent="now")},
        {"openai realtime"},
    ),
    "uploaded documents in a fallback": (
        {
            "prompt": {"documents": ["file"], "documents_as": "upload"},
            "resend": Resend(max_waves=3, invalid_waves=1, fallback=[CLAUDE]),
        },
        {"openai batch", "anthropic batch"},
    ),
    "many batches": ({"limits": Limits(max_requests_per_batch=1)}, {"openai batch"}),
}
"""Changes of the definition by their name, and the providers with the prices by which they answer."""


def everything(workspace: Workspace, asked: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the places that are outside of the process, each with its text."""
    payloads = workspace.engine().payloads
    for file in payloads.files(""):
        if file.path.endswith(".parquet"):
            text = str(payloads.read_table(file.path).to_pylist()) + str(payloads.table_metadata(file.path))
        else:
            text = b"".join(payloads.lines(file.path)).decode(errors="replace")
        yield file.path, text
    for path in workspace.tmp_path.glob("ledger.sqlite*"):
        yield path.name, path.read_bytes().decode(errors="replace")
    for file in workspace.emulator.books.files:
        yield f"uploaded {file.filename}", str(vars(file) if hasattr(file, "__dict__") else file)
    yield "asked", "".join(asked)


@pytest.mark.sample
@pytest.mark.parametrize("route", ROUTES)
def test_no_planted_value_leaves_the_process_on_any_way(
    workspace: Workspace, route: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    changes, by = dict(ROUTES[route][0]), ROUTES[route][1]
    mask = Mask(columns=["body"])
    prompt = Prompt(user="{{ body }}", mask=mask, **changes.pop("prompt", {}))
    usual: dict[str, Any] = {"params": {"max_tokens": 4_000}, "keep": ["body"], "response": Answer}
    definition = labeling(**{**usual, "prompt": prompt, **changes})
    texts = [f"number {n} of {TEXT}" for n in range(4)]
    texts[2] += " fails"
    files = [pdf(1, mark="a"), pdf(2, mark="b"), pdf(3, mark="c"), f"%PDF- of {TEXT}".encode()]
    rows = pl.DataFrame({"ticket_id": [*"0123"], "body": texts, "now": [True] * 4, "file": files})
    workspace.emulator.flex.script = FlexScript(turned_away=1)
    workspace.emulator.inject(RowFault(containing="number 1", status_code=500, times=1))
    status = workspace.run(definition, rows)
    labeled = workspace.engine().labels(definition, status.submission.submission_id)
    assert {f"{row['llm_provider']} {row['llm_price_basis']}" for row in labeled.labels.to_pylist()} == by
    assert labeled.labels.num_rows + labeled.rejects.num_rows == 4
    tables = {"labels": labeled.labels.to_pylist(), "rejects": labeled.rejects.to_pylist()}
    asked = [str(execution) for execution in workspace.emulator.books.executions]
    places = {**dict(everything(workspace, asked)), "log": caplog.text, **{k: str(v) for k, v in tables.items()}}
    assert any("[EMAIL_1]" in text for text in places.values())
    assert [(place, value) for place, text in places.items() for value in PLANTED if value in text] == []
