"""Dollars for a thousand labeled rows: identical rows once, batch price, a cached prefix, and all of it together.

Replies are simulated, `testing.emulator.PromptCache` counts cached tokens, and prices come from the bundled price book.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pyarrow as pa

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, PromptCache, simulated_answer

_PREFIX = "Rules for labels, the same for every row. " * 200  # about 2,000 tokens
_MODELS = {"openai": "openai/gpt-5-mini", "anthropic": "anthropic/claude-sonnet-4-5"}


def table(rows: int = 1_000) -> str:
    """Return the table as Markdown. 20 % of the rows repeat another row's text; all share a prefix of 2,000 tokens."""
    lines = [
        "| Model | How | Requests | USD for 1,000 rows | Of real time |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for service in _MODELS:
        lines += _lines(service, rows)
    return "\n".join(lines)


def _lines(service: str, rows: int) -> Iterator[str]:
    plain, cached = (_labeled(service, rows, with_cache=with_cache) for with_cache in (False, True))
    requests = plain.requests
    each = _known(plain.realtime_usd) / requests
    for how, asked, usd in (
        ("real time, every row", rows, each * rows),
        ("and a cached prefix", rows, _known(cached.realtime_usd) / requests * rows),
        ("batch, identical rows once", requests, _known(plain.cost_usd)),
        ("and a cached prefix", requests, _known(cached.cost_usd)),
    ):
        part = f"{usd * 1_000 / rows:.4f} | {100 * usd / (each * rows):.0f} %"
        yield f"| {_MODELS[service]} | {how} | {asked:,} | {part} |"


def _known(usd: Decimal | None) -> Decimal:
    assert usd is not None
    return usd


def _labeled(service: str, rows: int, *, with_cache: bool) -> Submission:
    unique = rows * 4 // 5
    data = pa.table({"id": [f"r{n}" for n in range(rows)], "text": [f"ticket {n % unique}" for n in range(rows)]})
    definition = Labeling(
        asset="labels",
        model=_MODELS[service],
        key="id",
        prompt=Prompt(system=_PREFIX, user="{{ text }}", cache_prefix=with_cache),
        params={"max_tokens": 100} if service == "anthropic" else {},
    )
    with Emulator(answer=PromptCache() if with_cache else simulated_answer) as emulator:
        provider: Provider = (
            OpenAIProvider(DEFAULT_KEY, base_url=emulator.openai_base_url)
            if service == "openai"
            else AnthropicProvider(DEFAULT_KEY, base_url=emulator.anthropic_base_url)
        )
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            engine = Engine(
                Deployment(
                    {service: provider}, Ledger(home / "ledger.sqlite"), PayloadStore(str(home / "payloads")), "m"
                )
            )
            submission = engine.plan(definition, data)
            engine.submit(definition, submission.submission_id)
            emulator.settle()
            return engine.advance(definition, submission.submission_id).submission
