"""The price of parts, uploads and chained steps, computed by hand for each row from the vendors' published prices.

The emulator reports the tokens that are written out here. A batch costs half of the price in real time.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Literal

import pyarrow as pa
import pytest
from pdfs import pdf
from pydantic import BaseModel
from workspace import Workspace, labeling

from dagster_llm_batch import Spend
from dagster_llm_batch.advice.costs import cost_table
from dagster_llm_batch.core.gather import Gather, Gatherer
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.row_condition import RowCondition
from dagster_llm_batch.core.split import Split, split_rows
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, Reply

MINI, GPT, HAIKU = "openai/gpt-4o-mini", "openai/gpt-4o", "anthropic/claude-haiku-4-5"
PRICES = {
    MINI: (Decimal("0.15"), Decimal("0.60")),
    GPT: (Decimal("2.50"), Decimal("10.00")),
    HAIKU: (Decimal("1.00"), Decimal("5.00")),
}
"""US dollars for a million input and output tokens in real time.

https://openai.com/api/pricing and https://claude.com/pricing, 2026-12-01.
"""
HALF, MILLION = Decimal("0.5"), 1_000_000


class Names(BaseModel):
    names: list[str]


class Kind(BaseModel):
    kind: Literal["invoice", "letter"]


@pytest.fixture
def tokens() -> dict[str, Reply]:
    """Return the replies by a word of the question. Tests add theirs."""
    return {}


@pytest.fixture
def emulator(tokens: dict[str, Reply]) -> Iterator[Emulator]:
    def answer(body: Any, _endpoint: str) -> Reply:
        return next(reply for word, reply in tokens.items() if word in str(body))

    with Emulator(answer=answer) as running:
        yield running


def batch_usd(model: str, given: int, answered: int) -> Decimal:
    """Return the price of so many tokens in a batch."""
    of_input, of_output = PRICES[model]
    return (given * of_input + answered * of_output) / MILLION * HALF


def assert_plan(workspace: Workspace, definition: Any, rows: Any, requests: int) -> None:
    """Check the prices of a plan, whose tokens are an estimate. Each answer is expected to have 10 tokens."""
    plan = workspace.engine().preview(definition, rows)
    assert (plan.requests - plan.reused, plan.output_tokens) == (requests, 10 * requests)
    expected = batch_usd(definition.model, plan.input_tokens, plan.output_tokens)
    assert (plan.estimated_usd, plan.realtime_usd) == (expected, 2 * expected)
    assert plan.input_bound is not None
    # 50 tokens are the most of an answer, and the input of each request is rounded up to a multiple of 16.
    least = batch_usd(definition.model, plan.input_bound, 50 * requests)
    assert plan.bound_usd is not None
    assert least <= plan.bound_usd <= batch_usd(definition.model, plan.input_bound + 15 * requests, 50 * requests)


def reported(workspace: Workspace) -> dict[str, tuple[Decimal, Decimal]]:
    """Return the bill of each asset by the report of costs, and its price in real time."""
    deployment = workspace.engine().deployment
    costs = deployment.ledger.money.shard_costs(deployment.namespace)
    return {
        group["asset"]: (group["cost_usd"], group["realtime_usd"]) for group in cost_table(costs, ["asset"]).as_dicts()
    }


def labels_of(workspace: Workspace, definition: Any, rows: Any) -> pa.Table:
    status = workspace.run(definition, rows)
    return workspace.engine().labels(definition, status.submission.submission_id).labels


def by_key(table: Any, key: str, column: str = "llm_cost_usd") -> dict[str, Any]:
    return dict(zip(table[key].to_pylist(), table[column].to_pylist(), strict=True))


def test_a_text_costs_the_sum_of_its_parts(workspace: Workspace, tokens: dict[str, Reply]) -> None:
    tokens |= {
        "Ann": Reply(text='{"names": ["Ann"]}', input_tokens=1_200, output_tokens=9),
        "Bob": Reply(text='{"names": ["Bob"]}', input_tokens=800, output_tokens=7),
        "Cid": Reply(text='{"names": ["Cid"]}', input_tokens=501, output_tokens=5),
    }
    texts = [{"doc": "a", "text": "# 1\nAnn came.\n# 2\nBob came.\n"}, {"doc": "b", "text": "# 1\nCid came.\n"}]
    parts = pa.Table.from_batches(split_rows(texts, Split("text", tokens=500), key="doc"))
    definition = labeling(
        asset="parts",
        model=MINI,
        key="part_key",
        keep=("doc", "part", "parts", "part_start"),
        prompt=Prompt("Who? {{ text }}"),
        response=Names,
        spend=Spend(expected_output_tokens=10),
    )
    assert_plan(workspace, definition, parts, requests=3)
    labels = labels_of(workspace, definition, parts)
    # 0.075 USD and 0.30 USD for a million: half of 0.15 and 0.60.
    ann, bob, cid = Decimal("0.0000927"), Decimal("0.0000621"), Decimal("0.000039075")
    assert ann == (1_200 * Decimal("0.075") + 9 * Decimal("0.30")) / MILLION == batch_usd(MINI, 1_200, 9)
    assert by_key(labels, "part_key") == {"a#1": ann, "a#2": bob, "b#1": cid}
    rejects = labels.slice(0, 0).append_column("llm_reason", pa.nulls(0, pa.string()))
    gatherer = Gatherer(Gather("union"), "doc", (), definition.reader.schema, None)
    gathered, _ = gatherer.gather(labels, rejects)
    assert by_key(gathered, "doc") == {"a": ann + bob, "b": cid}
    assert by_key(gathered, "doc", "llm_realtime_usd") == {"a": 2 * (ann + bob), "b": 2 * cid}
    assert [[part["llm_cost_usd"] for part in row] for row in gathered["llm_parts"].to_pylist()] == [[ann, bob], [cid]]
    assert reported(workspace) == {"parts": (ann + bob + cid, 2 * (ann + bob + cid))}


def test_uploads_cost_nothing_and_rows_that_share_one_pay_their_own_tokens(
    workspace: Workspace, tokens: dict[str, Reply]
) -> None:
    tokens |= {
        "seller": Reply(text="Acme", input_tokens=4_700, output_tokens=6),
        "total": Reply(text="12", input_tokens=4_710, output_tokens=4),
    }
    url = workspace.emulator.anthropic_base_url
    workspace.providers["anthropic"] = AnthropicProvider(api_key=DEFAULT_KEY, base_url=url, timeout_seconds=30.0)
    rows = pa.table({"id": ["s", "t"], "question": ["The seller?", "The total?"], "paper": [pdf(2)] * 2})
    definition = labeling(
        asset="papers",
        model=HAIKU,
        key="id",
        prompt=Prompt("{{ question }}", documents=["paper"], documents_as="upload"),
        response=None,
        spend=Spend(expected_output_tokens=10),
    )
    assert workspace.engine().preview(definition, rows).uploads == 1
    assert_plan(workspace, definition, rows, requests=2)
    labels = labels_of(workspace, definition, rows)
    # 0.50 USD and 2.50 USD for a million: half of 1 and 5.
    seller, total = Decimal("0.002365"), Decimal("0.002365")
    assert seller == (4_700 * Decimal("0.50") + 6 * Decimal("2.50")) / MILLION == batch_usd(HAIKU, 4_700, 6)
    assert total == (4_710 * Decimal("0.50") + 4 * Decimal("2.50")) / MILLION == batch_usd(HAIKU, 4_710, 4)
    assert by_key(labels, "id") == {"s": seller, "t": total}
    assert by_key(labels, "id", "llm_realtime_usd") == {"s": 2 * seller, "t": 2 * total}
    assert len([file for file in workspace.emulator.books.files if file.filename.endswith(".pdf")]) == 1
    assert reported(workspace) == {"papers": (seller + total, 2 * (seller + total))}


def test_a_row_of_a_chain_costs_the_steps_that_it_took(workspace: Workspace, tokens: dict[str, Reply]) -> None:
    tokens |= {
        "Kind: invoice": Reply(text='{"kind": "invoice"}', input_tokens=300, output_tokens=8),
        "Kind: letter": Reply(text='{"kind": "letter"}', input_tokens=280, output_tokens=8),
        "Who sold? invoice": Reply(text='{"names": ["Acme"]}', input_tokens=1_000, output_tokens=11),
    }
    rows = pa.table({"id": ["i", "l"], "text": ["invoice of Acme", "letter of Ann"]})
    usual = {"key": "id", "spend": Spend(expected_output_tokens=10)}
    first = labeling(
        asset="kinds", model=MINI, keep=("text",), prompt=Prompt("Kind: {{ text }}"), response=Kind, **usual
    )
    second = labeling(asset="sellers", model=GPT, prompt=Prompt("Who sold? {{ text }}"), response=Names, **usual)
    assert_plan(workspace, first, rows, requests=2)
    kinds = labels_of(workspace, first, rows)
    [batch] = kinds.combine_chunks().to_batches()
    chosen = batch.filter(RowCondition("kind == 'invoice'").compute(batch)).select(["id", "text"])
    assert_plan(workspace, second, chosen, requests=1)
    sellers = labels_of(workspace, second, chosen)
    # 0.075 and 0.30 USD for a million in the first step, 1.25 and 5 USD in the second.
    kind_of_i, kind_of_l, seller = Decimal("0.0000249"), Decimal("0.0000234"), Decimal("0.001305")
    assert seller == (1_000 * Decimal("1.25") + 11 * 5) / MILLION == batch_usd(GPT, 1_000, 11)
    assert by_key(kinds, "id") == {"i": kind_of_i, "l": kind_of_l}
    assert by_key(sellers, "id") == {"i": seller}
    steps = {"kinds": kind_of_i + kind_of_l, "sellers": seller}
    assert reported(workspace) == {asset: (usd, 2 * usd) for asset, usd in steps.items()}
