"""A Dagster project on disk over the emulated provider, and the command line as its user types it."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from click.testing import CliRunner, Result

from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.cli.main import main
from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

DAYS = ["2026-01-01", "2026-01-02", "2026-01-03"]

DEFINITIONS = """
import os
from pathlib import Path
from typing import Literal

import dagster as dg
from pydantic import BaseModel

from dagster_llm_batch import (
    Limits,
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    build_llm_batch_sensor,
    llm_batch_assets,
)

print("user code prints while it is imported")

daily = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-04")


def rows(context):
    prefix = context.partition_key or "all"
    return [{"ticket_id": f"{prefix}-{n}", "body": f"Where is my invoice {prefix} {n}?"} for n in range(3)]


@dg.asset
def tickets() -> list:
    return [{"ticket_id": "a", "body": "Where is my invoice?"}]


class TicketLabel(BaseModel):
    topic: Literal["billing", "bug"]


common = {
    "key": "ticket_id",
    "prompt": Prompt(system="You label tickets.", user="{{ body }}"),
    "response": TicketLabel,
    "model": "openai/gpt-4o",
    "params": {"max_tokens": 50},
    "max_cost_usd": 1,
}
ticket_labels = llm_batch_assets(name="ticket_labels", rows=rows, **common)
daily_labels = llm_batch_assets(
    name="daily_labels", rows=rows, partitions_def=daily, limits=Limits(max_requests_per_batch=2), **common
)
asset_labels = llm_batch_assets(name="asset_labels", rows=tickets, **common)
here = f"{Path.cwd()}/batches"
places = {"ledger_url": f"sqlite:///{here}/ledger.sqlite", "payload_root": f"{here}/payloads"}

defs = dg.Definitions(
    assets=[tickets, *ticket_labels, *daily_labels, *asset_labels],
    sensors=[build_llm_batch_sensor()],
    resources={
        "llm_batch": LLMBatchResource(
            namespace="test",
            openai=OpenAIBatchResource(
                api_key=dg.EnvVar("OPENAI_API_KEY"), base_url=os.environ["OPENAI_BASE_URL"], timeout_seconds=10
            ),
            **places,
        ),
        "plain": "no LLMBatchResource",
    },
)
"""


class Project:
    """The project's folder. Its definitions name ledger and payload store, so that it needs no Dagster home."""

    def __init__(self, folder: Path, emulator: Emulator) -> None:
        self.folder = folder
        self.emulator = emulator
        self.batches = folder / "batches"
        self.file = folder / "support.py"
        self.file.write_text(DEFINITIONS)
        (folder / "pyproject.toml").write_text('[tool.dagster]\nmodule_name = "support"\n')

    @property
    def environment(self) -> dict[str, str]:
        return {"OPENAI_API_KEY": DEFAULT_KEY, "OPENAI_BASE_URL": self.emulator.openai_base_url}

    @property
    def ledger(self) -> str:
        return f"{self.batches}/ledger.sqlite"

    @property
    def by_address(self) -> list[str]:
        """Options for the same deployment without its definitions."""
        return ["--ledger", self.ledger, "--payloads", f"{self.batches}/payloads", "--namespace", "test"]

    def change(self, old: str, new: str) -> None:
        """Change the definitions."""
        source = self.file.read_text()
        assert old in source
        self.file.write_text(source.replace(old, new))
        # Python takes its byte code as current if the source has the same length and was written in the same second.
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)

    def forget(self) -> None:
        """Remove the project's modules, as in a new process."""
        for name in [name for name in sys.modules if name.startswith("support")]:
            del sys.modules[name]

    def cli(self, *arguments: str, code: int = 0, **options: Any) -> Result:
        """Run one command in this process, and assert its exit code."""
        self.forget()
        result = CliRunner().invoke(main, list(arguments), prog_name="dagster-llm-batch", **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    def on_file(self, *arguments: str, **options: Any) -> Result:
        return self.cli(*arguments, "-f", str(self.file), **options)

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self.on_file(*arguments, "--json", **options).stdout)

    def module(self) -> Any:
        """Return the current definitions."""
        self.forget()
        return runpy.run_path(str(self.file))

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """Yield the engine that runs of this project use."""
        providers = {
            "openai": OpenAIProvider(DEFAULT_KEY, self.emulator.openai_base_url, timeout_seconds=10),
            "anthropic": AnthropicProvider(DEFAULT_KEY, self.emulator.anthropic_base_url, timeout_seconds=10),
        }
        ledger = Ledger(self.ledger)
        yield Engine(Deployment(providers, ledger, PayloadStore(f"{self.batches}/payloads"), "test"))
        ledger.close()

    def submit(self, name: str = "ticket_labels", partition: str | None = None) -> str:
        """Submit as a run of `<name>_batch` does."""
        module = self.module()
        labeling = dataset_of(module[name]).labeling
        with self.engine() as engine:
            rows = module["rows"](SimpleNamespace(partition_key=partition))
            submission = engine.plan(labeling, rows, partition=partition or "")
            engine.submit(labeling, submission.submission_id)
            return submission.submission_id

    def settle(self) -> None:
        """Collect as runs of the labels do, until every submission is complete."""
        module = self.module()
        for _ in range(9):
            self.emulator.settle()
            with self.engine() as engine:
                waiting = [
                    one.submission
                    for one in engine.ledger.submissions.progress("test")
                    if not one.submission.is_settled
                ]
                for one in waiting:
                    engine.advance(dataset_of(module[one.asset]).labeling, one.submission_id)
            if not waiting:
                return
        raise AssertionError("not settled")

    def land(self, name: str = "ticket_labels", partition: str | None = None) -> str:
        """Submit rows, collect their labels, and mark them as delivered, as the sensor does."""
        submission_id = self.submit(name, partition)
        self.settle()
        with self.engine() as engine:
            engine.ledger.submissions.mark_delivered(submission_id)
        return submission_id

    def files(self) -> dict[str, bytes]:
        """Return every file of the project except compiled modules and SQLite's side files."""
        found = {str(path.relative_to(self.folder)): path for path in self.folder.rglob("*") if path.is_file()}
        aside = ("__pycache__", "-wal", "-shm")
        return {name: path.read_bytes() for name, path in found.items() if not any(one in name for one in aside)}
