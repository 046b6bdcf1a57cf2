"""The engine over a real SQLite ledger, a real payload store and the official SDK against the emulator on a socket."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import BaseModel, Field

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling, Status
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator


class TicketLabel(BaseModel):
    """The response of most tests."""

    topic: Literal["billing", "bug", "how_to"]
    urgency: Annotated[int, Field(ge=1, le=5)]


def tickets(count: int, start: int = 0) -> pl.DataFrame:
    """Return rows with unique texts."""
    numbers = range(start, start + count)
    return pl.DataFrame(
        {
            "ticket_id": [f"t{n}" for n in numbers],
            "subject": [f"Subject {n}" for n in numbers],
            "body": [f"Where is my invoice number {n}?" for n in numbers],
        }
    )


def labeling(**changes: Any) -> Labeling:
    """Return the usual definition, with changes."""
    usual: dict[str, Any] = {
        "asset": "ticket_labels",
        "model": "openai/gpt-4o",
        "key": "ticket_id",
        "prompt": Prompt(system="You label support tickets.", user="{{ subject }}\n\n{{ body }}"),
        "response": TicketLabel,
        "params": {"max_tokens": 50},
    }
    return Labeling(**{**usual, **changes})


class Workspace:
    """One deployment, and the means to let time pass in it."""

    def __init__(self, tmp_path: Any, emulator: Emulator) -> None:
        self.tmp_path = tmp_path
        self.emulator = emulator
        self.skipped = timedelta()
        self.providers = {"openai": self.openai()}
        self.bounds: dict[str, Any] = {}  # of a Deployment, as part_rows

    def openai(self, **changes: Any) -> OpenAIProvider:
        return self.openai_at(self.emulator.openai_base_url, **changes)

    def openai_at(self, base_url: str, **changes: Any) -> OpenAIProvider:
        return OpenAIProvider(**{"api_key": DEFAULT_KEY, "base_url": base_url, "timeout_seconds": 5.0, **changes})

    def now(self) -> datetime:
        return datetime.now(UTC) + self.skipped

    def engine(self, namespace: str = "test", **more: Any) -> Engine:
        """Return a new engine, as another process would make it."""
        return Engine(
            Deployment(
                self.providers,
                Ledger(self.tmp_path / "ledger.sqlite", clock=self.now),
                PayloadStore(str(self.tmp_path / "payloads")),
                namespace,
                clock=self.now,
                sleep=lambda _: None,
                **{**self.bounds, **more},
            )
        )

    def files(self) -> set[str]:
        root = self.tmp_path / "payloads"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    def run(self, definition: Labeling, rows: Any, partition: str = "", **plan: Any) -> Status:
        """Take rows to a settled submission; the emulator ends the batches of each wave."""
        engine = self.engine()
        submission = engine.plan(definition, rows, partition=partition, **plan)
        engine.submit(definition, submission.submission_id)
        return self.finish(definition, submission.submission_id)

    def finish(self, definition: Labeling, submission_id: str) -> Status:
        for _ in range(10):
            self.emulator.settle()
            self.skipped += timedelta(hours=1)  # retries that wait for a time may go
            status = self.engine().advance(definition, submission_id)
            if status.is_settled:
                return status
        raise AssertionError(f"not settled: {status}")


def texts(table: Any) -> list[str]:
    """Return the keys of a table, in order."""
    return sorted(table["ticket_id"].to_pylist())


def assert_total(workspace: Workspace, definition: Labeling, submission_id: str, rows: int) -> tuple[Any, Any]:
    """Check that each row is in exactly one of labels and rejects, and that the ledger counts each request once."""
    labeled = workspace.engine().labels(definition, submission_id)
    keys = [*labeled.labels["ticket_id"].to_pylist(), *labeled.rejects["ticket_id"].to_pylist()]
    assert len(keys) == len(set(keys)) == rows
    submission = workspace.engine().ledger.submissions.get(submission_id)
    assert sum(submission.outcomes.values()) == submission.requests
    return labeled.labels, labeled.rejects


def forget_definition(workspace: Workspace, submission: Submission) -> None:
    """Rewrite the manifest in its older form: without the definition of its requests."""
    payloads, path = workspace.engine().payloads, submission.manifest_path or ""
    assert b"llm_batch.definition" in payloads.table_metadata(path)
    table = payloads.read_table(path)
    with payloads.table_writer(path, table.schema.remove_metadata(), repeating=()) as out:
        out.write_table(table)


def billed(workspace: Workspace) -> list[str]:
    """Return the digests of answered and billed request bodies, once for each answer."""
    return [execution.body_digest for execution in workspace.emulator.books.executions if execution.billed]


def in_one_batch(workspace: Workspace) -> bool:
    """Return whether each batch answered a body at most once."""
    pairs = [(execution.batch_id, execution.body_digest) for execution in workspace.emulator.books.executions]
    return len(pairs) == len(set(pairs))
