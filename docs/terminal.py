# ruff: noqa: INP001, S603 - a script that runs our own command
"""Draws docs/images/terminal.svg, a session with the command line: `.venv/bin/python docs/terminal.py`.

The commands are run, in a project with an emulated provider; its answers are simulated, the prices are OpenAI's.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

SCRIPTS = Path(sys.executable).parent
COLUMNS = 142  # more than any line
SHOP = """
import io
import os
from typing import Literal

import dagster as dg
from pydantic import BaseModel

from dagster_llm_batch import LLMBatchResource, OpenAIBatchResource, Prompt, llm_batch_assets

days = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-02-01")


def tickets(context):
    body = "I was charged twice for the order of last week, and nobody answers the phone. Case "
    return [{"ticket_id": n, "body": f"{body}{n} of {context.partition_key}."} for n in range(2000)]


class TicketLabel(BaseModel):
    topic: Literal["billing", "bug", "how_to"]


ticket_labels = llm_batch_assets(
    name="ticket_labels", rows=tickets, key="ticket_id", partitions_def=days, response=TicketLabel,
    prompt=Prompt(system="You label support tickets.", user="{{ body }}"),
    model="openai/gpt-5-mini", params={"max_completion_tokens": 60}, max_cost_usd=5, mode="wait",
)
provider = OpenAIBatchResource(api_key=dg.EnvVar("OPENAI_API_KEY"), base_url=os.environ["OPENAI_BASE_URL"])
defs = dg.Definitions(
    assets=ticket_labels, resources={"llm_batch": LLMBatchResource(openai=provider)}, executor=dg.in_process_executor
)
"""


def main() -> None:
    """Run the session."""
    session: list[Text] = []
    with tempfile.TemporaryDirectory() as folder, Emulator() as emulator:
        home = Path(folder, "home")
        home.mkdir()
        Path(folder, "shop.py").write_text(SHOP, encoding="utf-8")
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
        env = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "DAGSTER_PYTHON_FILE": "shop.py",
            "COLUMNS": str(COLUMNS),
            "FORCE_COLOR": "1",
            "OPENAI_API_KEY": DEFAULT_KEY,
            "OPENAI_BASE_URL": emulator.openai_base_url,
        }

        def run(script: str, *arguments: str) -> str:
            done = subprocess.run(
                [sys.executable, str(SCRIPTS / script), *arguments],
                cwd=folder,
                env=env,
                capture_output=True,
                check=False,
            )
            if done.returncode:
                sys.exit(done.stderr.decode())
            return done.stdout.decode()

        def shown(*arguments: str) -> None:
            session.append(Text.from_markup(f"[bold green]$[/] [bold]dagster-llm-batch {' '.join(arguments)}[/]"))
            session.append(Text.from_ansi(run("dagster-llm-batch", *arguments).rstrip()))
            session.append(Text())

        def materialize(select: str, first: str, last: str) -> None:
            run(
                "dagster",
                "asset",
                "materialize",
                "-f",
                "shop.py",
                "--select",
                select,
                "--partition-range",
                f"{first}...{last}",
            )

        shown("plan", "ticket_labels", "--partition-range", "2026-01-01...2026-01-03")
        materialize("ticket_labels_batch", "2026-01-01", "2026-01-02")
        emulator.settle()
        materialize("ticket_labels,ticket_labels_rejects", "2026-01-01", "2026-01-02")
        materialize("ticket_labels_batch", "2026-01-03", "2026-01-03")
        emulator.tick()
        shown("watch", "ticket_labels", "--partition", "2026-01-03", "--poll", "--once")
        shown("cost", "--by", "day,model")
    widest = max(line.cell_len for text in session for line in text.split())
    console = Console(record=True, width=widest, file=io.StringIO(), force_terminal=True)
    console.print(*session, sep="\n")
    svg = console.export_svg(title="dagster-llm-batch", unique_id="session")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # no fonts from elsewhere
    (Path(__file__).parent / "images" / "terminal.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
