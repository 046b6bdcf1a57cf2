"""Dollars for a thousand labeled rows, as the emulator's answers are priced: identical rows, batch price, real time.

Simulated replies; prices of the bundled price book. Cache reads are not simulated.
"""

from __future__ import annotations

import tempfile
from decimal import Decimal
from pathlib import Path

import pyarrow as pa

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Engine, Labeling
from dagster_llm_batch.providers.openai import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

_PREFIX = "Rules for labels, the same for every row. " * 200  # about 2,000 tokens


def table(rows: int = 1_000) -> str:
    """As Markdown: 20 % of the rows repeat another one's text, below a shared prefix of 2,000 tokens."""
    unique = rows * 4 // 5
    data = pa.table({"id": [f"r{n}" for n in range(rows)], "text": [f"ticket {n % unique}" for n in range(rows)]})
    definition = Labeling(
        asset="labels", model="openai/gpt-4o-mini", key="id", prompt=Prompt(system=_PREFIX, user="{{ text }}")
    )
    with Emulator() as emulator, tempfile.TemporaryDirectory() as folder:
        provider = OpenAIProvider(DEFAULT_KEY, base_url=emulator.openai_base_url)
        house = Path(folder)
        engine = Engine(
            {"openai": provider}, Ledger(house / "ledger.sqlite"), PayloadStore(str(house / "payloads")), "m"
        )
        submission = engine.plan(definition, data)
        engine.submit(definition, submission.submission_id)
        emulator.settle()
        settled = engine.advance(definition, submission.submission_id).submission
    assert settled.cost_usd is not None
    assert settled.realtime_usd is not None
    thousand = Decimal(1_000) / rows
    asked_all = settled.realtime_usd * rows / settled.requests
    lines = [
        "| How | Requests | USD for 1,000 rows | Of real time |",
        "| --- | ---: | ---: | ---: |",
    ]
    for how, requests, usd in (
        ("real time, every row", rows, asked_all),
        ("real time, identical rows once", settled.requests, settled.realtime_usd),
        ("batch, identical rows once", settled.requests, settled.cost_usd),
    ):
        lines.append(f"| {how} | {requests:,} | {usd * thousand:.4f} | {100 * usd / asked_all:.0f} % |")
    return "\n".join(lines)
