"""A year of daily partitions: sent together, and sent separately. Against the emulator, in this process."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

_ROWS_A_DAY = 5


@dataclass(frozen=True)
class Year:
    """The effort of a backfill."""

    batches: int
    calls: int
    seconds: float


def backfill(days: int, *, together: bool) -> Year:
    """Plan, send, collect and label `days` days."""
    definition = Labeling(asset="labels", model="openai/gpt-4o-mini", key="id", prompt=Prompt(user="{{ text }}"))
    with Emulator() as emulator, tempfile.TemporaryDirectory() as folder:
        provider = OpenAIProvider(DEFAULT_KEY, base_url=emulator.openai_base_url)
        home = Path(folder)
        engine = Engine(
            Deployment({"openai": provider}, Ledger(home / "ledger.sqlite"), PayloadStore(str(home / "payloads")), "b")
        )
        began = time.perf_counter()
        ids = [engine.plan(definition, _rows(day), partition=f"day-{day:03d}").submission_id for day in range(days)]
        if together:
            engine.submit_together(definition, ids)
        else:
            for one in ids:
                engine.submit(definition, one)
        emulator.settle()
        for one in ids:
            assert engine.advance(definition, one).submission.outcomes == {"succeeded": _ROWS_A_DAY}
            assert len(engine.labels(definition, one).labels) == _ROWS_A_DAY
        seconds = time.perf_counter() - began
        assert not emulator.books.billed_twice()
        return Year(len(emulator.books.batches), len(emulator.books.calls), seconds)


def _rows(day: int) -> pa.Table:
    numbers = range(day * _ROWS_A_DAY, (day + 1) * _ROWS_A_DAY)
    return pa.table({"id": [f"r{n}" for n in numbers], "text": [f"ticket {n}" for n in numbers]})


def table(days: int) -> str:
    """Return the table as Markdown."""
    lines = ["| Days | | Batches | API calls | Seconds |", "| ---: | --- | ---: | ---: | ---: |"]
    for name, together in (("sent together, as one run does", True), ("each by itself", False)):
        year = backfill(days, together=together)
        lines.append(f"| {days} | {name} | {year.batches} | {year.calls} | {year.seconds:.0f} |")
    return "\n".join(lines)
