"""The emulator on a real socket, and the unchanged OpenAI SDK in front of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

CHAT = "/v1/chat/completions"


class EmulatorClient:
    """An emulator and a client of it, with the few steps that most tests take."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.sdk = self.client_for()

    def client_for(self, **options: Any) -> openai.OpenAI:
        options = {"base_url": self.emulator.openai_base_url, "api_key": DEFAULT_KEY, "max_retries": 0} | options
        return openai.OpenAI(**options)

    def line(self, custom_id: str, text: str = "hello", /, *, url: str = CHAT, **body: Any) -> dict[str, Any]:
        prompt = {"messages": [{"role": "user", "content": text}]} if url == CHAT else {"input": text}
        return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", **prompt, **body}}

    def lines(self, count: int) -> list[dict[str, Any]]:
        return [self.line(f"r{index}", f"text {index}") for index in range(count)]

    def upload(self, lines: list[dict[str, Any]] | bytes) -> str:
        data = lines if isinstance(lines, bytes) else "".join(json.dumps(line) + "\n" for line in lines).encode()
        return self.sdk.files.create(file=("in.jsonl", data), purpose="batch").id

    def create(self, lines: list[dict[str, Any]] | bytes | int = 3, *, endpoint: str = CHAT, **options: Any) -> Any:
        given = self.lines(lines) if isinstance(lines, int) else lines
        return self.sdk.batches.create(
            input_file_id=self.upload(given), endpoint=endpoint, completion_window="24h", **options
        )

    def run(self, lines: list[dict[str, Any]] | bytes | int = 3, *, endpoint: str = CHAT) -> Any:
        batch = self.create(lines, endpoint=endpoint)
        self.emulator.settle()
        return self.get(batch)

    def get(self, batch: Any) -> Any:
        return self.sdk.batches.retrieve(batch.id)

    def raw(self, file_id: str | None) -> bytes:
        assert file_id is not None
        return self.sdk.files.content(file_id).content

    def rows(self, file_id: str | None) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.raw(file_id).split(b"\n") if line.strip()]

    def ids(self, file_id: str | None) -> list[str]:
        return [row["custom_id"] for row in self.rows(file_id)]


@pytest.fixture
def connect() -> Iterator[Callable[..., EmulatorClient]]:
    """Connect to a new emulator, made with these arguments of `Emulator`."""
    made: list[EmulatorClient] = []

    def make(**options: Any) -> EmulatorClient:
        made.append(EmulatorClient(Emulator(**options).start()))
        return made[-1]

    yield make
    for client in made:
        client.sdk.close()
        client.emulator.close()
