"""A workspace at three vendors that store documents, rows with such documents, and the vendors' present files.

The PDFs are made by `pdfs`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from pdfs import pdf
from workspace import Workspace, labeling

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.google.gemini import GeminiProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.testing.emulator.answers import AnswerFunction, simulated_answer
from dagster_llm_batch.upkeep.stored_documents import DocumentRemover

GPT, CLAUDE, GEMINI = "openai/gpt-4o", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash"
MODELS = [GPT, CLAUDE, GEMINI]
A, B, C = pdf(1, mark="a"), pdf(2, mark="b"), pdf(3, mark="c")
UPLOAD = {GPT: "POST /v1/files", CLAUDE: "POST *v1/files", GEMINI: "POST /gemini/upload/*"}


class Clock:
    """The vendors' clock, which follows the workspace's."""

    now: Callable[[], float] = staticmethod(time.time)

    def __call__(self) -> float:
        return self.now()


@contextmanager
def opened(tmp_path: Path, answer: AnswerFunction = simulated_answer) -> Iterator[Workspace]:
    """Give a workspace at OpenAI, Anthropic and Gemini, whose clock is the vendors' too."""
    clock = Clock()
    with Emulator(answer=answer, clock=clock) as running:
        made = Workspace(tmp_path, running)
        made.providers["anthropic"] = AnthropicProvider(
            api_key=DEFAULT_KEY, base_url=running.anthropic_base_url, timeout_seconds=30.0
        )
        made.providers["gemini"] = GeminiProvider(DEFAULT_KEY, running.gemini_base_url, timeout_seconds=30.0)
        clock.now = lambda: made.now().timestamp()
        yield made


def reading(model: str = GPT, asset: str = "papers", text: str = "What is it?", **changes: Any) -> Any:
    prompt = Prompt(text, documents=["paper"], documents_as="upload")
    params = {"max_output_tokens": 50} if model == GEMINI else {"max_tokens": 50}
    return labeling(**{"asset": asset, "model": model, "prompt": prompt, "response": None, "params": params, **changes})


def papers(*values: object, start: int = 0) -> pl.DataFrame:
    return pl.DataFrame({"ticket_id": [f"t{start + number}" for number in range(len(values))], "paper": [*values]})


def sent(workspace: Workspace) -> list[str]:
    """Return the names of all documents that the vendors ever took."""
    return [file.filename for file in workspace.emulator.books.files if file.filename.endswith((".pdf", ".txt"))]


def there(workspace: Workspace) -> list[str]:
    """Return the names of the documents that the vendors have now."""
    names = set(sent(workspace))
    stores = [workspace.providers[name].find_documents(names) for name in ("openai", "anthropic", "gemini")]
    return sorted(name for store in stores for name, files in store.items() for _ in files)


def remove(workspace: Workspace) -> Any:
    remover = DocumentRemover(workspace.engine().deployment)
    return remover.remove_files(remover.due())


def submit_one(folder: Path, base_url: str, definition: Any, submission_id: str, start: Any) -> None:
    """Submit to OpenAI, as a process of its own."""
    engine = Engine(
        Deployment(
            {"openai": OpenAIProvider(DEFAULT_KEY, base_url, timeout_seconds=30.0)},
            Ledger(folder / "ledger.sqlite"),
            PayloadStore(str(folder / "payloads")),
            "test",
            lease_wait_seconds=60.0,
        )
    )
    start.wait(120)
    engine.submit(definition, submission_id)


def uploads(workspace: Workspace) -> list[Any]:
    """Return the records of all uploads."""
    with closing(sqlite3.connect(workspace.tmp_path / "ledger.sqlite")) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute("SELECT * FROM upload").fetchall()
