"""A Dagster project on disk over the emulated provider, and the command line as its user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
from click.testing import CliRunner, Result

from dagster_llm_batch._dagster_private import load_repository
from dagster_llm_batch.cli.main import main
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

DAYS = ["2026-01-01", "2026-01-02", "2026-01-03"]

DEFINITIONS = """
import os
from typing import Literal

import dagster as dg
from pydantic import BaseModel

from dagster_llm_batch import (
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    build_llm_batch_jobs,
    build_llm_batch_sensor,
    llm_batch_assets,
)

print("user code prints while it is imported")

daily = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-04")
COUNT = int(os.environ.get("TICKETS", "3"))


def rows(prefix):
    return [{"ticket_id": f"{prefix}-{n}", "body": f"Where is my invoice {prefix} {n}?"} for n in range(COUNT)]


@dg.asset
def tickets() -> list:
    return rows("all")


class TicketLabel(BaseModel):
    topic: Literal["billing", "bug"]


common = {
    "key": "ticket_id",
    "prompt": Prompt(system=os.environ.get("SYSTEM", "You label tickets."), user="{{ body }}"),
    "response": TicketLabel,
    "model": "openai/gpt-4o",
    "params": {"max_tokens": 50},
    "max_cost_usd": float(os.environ.get("MAX_USD", "1")),
}
ticket_labels = llm_batch_assets(name="ticket_labels", rows=tickets, **common)
daily_labels = llm_batch_assets(
    name="daily_labels",
    rows=lambda context: rows(context.partition_key),
    partitions_def=daily,
    max_requests_per_batch=2,
    **common,
)

defs = dg.Definitions(
    assets=[tickets, *ticket_labels, *daily_labels],
    jobs=build_llm_batch_jobs(),
    sensors=[build_llm_batch_sensor()],
    resources={
        "llm_batch": LLMBatchResource(
            namespace="test",
            openai=OpenAIBatchResource(
                api_key=dg.EnvVar("OPENAI_API_KEY"), base_url=os.environ["OPENAI_BASE_URL"], timeout_seconds=10
            ),
        )
    },
)
"""


class Project:
    """The folder, with its Dagster home."""

    def __init__(self, folder: Path, emulator: Emulator) -> None:
        self.folder = folder
        self.emulator = emulator
        self.home = folder / "home"
        self.file = folder / "support.py"
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        self.file.write_text(DEFINITIONS)
        (folder / "pyproject.toml").write_text('[tool.dagster]\nmodule_name = "support"\n')

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DAGSTER_HOME": str(self.home),
            "OPENAI_API_KEY": DEFAULT_KEY,
            "OPENAI_BASE_URL": self.emulator.openai_base_url,
        }

    @property
    def by_address(self) -> list[str]:
        """The same deployment without its definitions."""
        batches = self.home / "storage" / "llm_batch"
        return ["--ledger", f"{batches}/ledger.sqlite", "--payloads", f"{batches}/payloads", "--namespace", "test"]

    def cli(self, *arguments: str, code: int = 0, **options: Any) -> Result:
        """One command in this process; asserts how it ends."""
        result = CliRunner().invoke(main, list(arguments), prog_name="dagster-llm-batch", **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    def on_file(self, *arguments: str, **options: Any) -> Result:
        """The same on the definitions' file, which is executed anew each time."""
        return self.cli(*arguments, "-f", str(self.file), **options)

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self.on_file(*arguments, "--json", **options).stdout)

    def materialize(self, *names: str, partition: str | None = None, success: bool = True) -> None:
        """One run of these assets, as Dagster would make it."""
        repository = load_repository(
            module_name=None,
            python_file=str(self.file),
            autoload_module=None,
            attribute=None,
            working_directory=str(self.folder),
        )
        assert repository is not None
        keys = {dg.AssetKey(name) for name in names}
        job = repository.get_implicit_global_asset_job_def().get_subset(asset_selection=keys)
        with dg.DagsterInstance.get() as instance:
            result = job.execute_in_process(instance=instance, partition_key=partition, raise_on_error=False)
        assert result.success is success

    def submit(self, name: str = "ticket_labels", partition: str | None = None) -> None:
        if name == "ticket_labels":
            self.materialize("tickets")
        self.materialize(f"{name}_batch", partition=partition)

    def land(self, name: str = "ticket_labels", partition: str | None = None) -> None:
        self.submit(name, partition)
        self.emulator.settle()
        self.materialize(name, f"{name}_rejects", partition=partition)

    def files(self) -> dict[str, bytes]:
        """Every file below the project, but for Dagster's own and for compiled modules."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if path.is_file() and "__pycache__" not in name and not name.startswith("home/history"):
                found[name] = path.read_bytes()
        return found
