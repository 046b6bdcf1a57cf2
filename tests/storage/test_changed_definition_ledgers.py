"""Rows held back by a changed definition, and rows that still become labels, on both ledgers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Deployment, Engine, Labeling, Limits
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

OLD = Labeling(
    asset="labels",
    model="openai/gpt-4o",
    key="id",
    prompt=Prompt(user="{{ text }}"),
    limits=Limits(max_requests_per_batch=2),
)


def test_the_rest_is_dropped_when_all_that_was_sent_is_collected_and_asked_when_it_is_planned_again(
    ledger_url: str, tmp_path: Path
) -> None:
    rows = pa.table({"id": list("abcd"), "text": [f"Ticket {name}." for name in "abcd"]})
    new = replace(OLD, prompt=Prompt(user="Of what is this: {{ text }}"))
    with Emulator() as emulator:
        provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)
        payloads, limits = PayloadStore(str(tmp_path / "payloads")), {"openai": QueueLimit(max_batches=1)}
        ledger = Ledger(ledger_url)
        engine = Engine(Deployment({"openai": provider}, ledger, payloads, "test", queue_limits=limits))
        first = engine.plan(OLD, rows).submission_id
        engine.submit(OLD, first)
        emulator.settle()
        settled = engine.advance(new, first).submission
        assert settled.outcomes == {"succeeded": 2, "canceled": 2}
        assert len(engine.labels(new, first).labels) == 2
        assert "2 requests are not sent" in (engine.unsent(first).held or "")
        again = engine.plan(OLD, rows).submission_id
        engine.submit(OLD, again)
        emulator.settle()
        assert engine.advance(OLD, again).submission.outcomes == {"succeeded": 4}
        assert sum(execution.billed for execution in emulator.books.executions) == 4
        ledger.close()
