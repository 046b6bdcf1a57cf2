"""The FinOps Foundation's own validator accepts `cost --format focus`: `python3 -m tests focus` installs it.

Its newest release, 1.0.0, calls four columns by names of a draft, and has a rule about a column of FOCUS 0.5. It also
takes the list of currencies from a path below the current folder. The test provides these, and nothing else.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from click.testing import CliRunner

from dagster_llm_batch import LLMBatchResource, cost_assets
from dagster_llm_batch.advice.focus import as_text
from dagster_llm_batch.cli.main import main
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.definition.labeling import Spend
from dagster_llm_batch.engine import Deployment, Engine, Labeling, Realtime, Resend
from dagster_llm_batch.exports.tables import write_csv
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.bedrock.provider import BedrockProvider
from dagster_llm_batch.providers.google.gemini import GeminiProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openrouter.provider import OpenRouterProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import (
    DEFAULT_KEY,
    Emulator,
    FlexScript,
    Reply,
    RowFault,
    VendorLimits,
    local_s3,
)
from dagster_llm_batch.testing.emulator.answers import last_user_text
from tests.folder_servers import provider_of

PROGRAM = Path(__file__).parents[3] / ".venv-focus" / "bin" / "focus-validator"
DRAFT_NAMES = {
    "InvoiceIssuerName": "InvoiceIssuer",
    "ProviderName": "Provider",
    "PublisherName": "Publisher",
    "ResourceId": "ResourceID",
}
TOPIC = {"type": "object", "properties": {"topic": {"enum": ["bug"]}}, "required": ["topic"]}
CHARGED: dict[str, dict[str, Any]] = {
    "openai": {"model": "openai/gpt-4o-mini", "tags": {"team": "support"}},
    "bedrock": {
        "model": "bedrock/anthropic.claude-haiku-4-5-20251001-v1:0",
        "params": {"max_tokens": 50},
    },
    "gemini": {"model": "gemini/gemini-2.5-flash", "params": {"max_output_tokens": 50}},
    "mistral": {"model": "mistral/mistral-small-2603"},
    "anthropic": {"model": "anthropic/claude-haiku-4-5"},
    "openrouter": {"model": "openrouter/openai/gpt-4o-mini"},
    "other_vendor": {
        "model": "openai/gpt-4o-mini",
        "resend": Resend(max_waves=2, invalid_waves=1, fallback=["mistral/mistral-small-2603"]),
    },
    "flexible": {
        "model": "openai/gpt-5-nano",
        "params": {"max_completion_tokens": 50},
        "realtime": Realtime(urgent="now", tier="flex", concurrency=1),
    },
    "errored": {"model": "openai/gpt-4o-mini", "resend": Resend(max_waves=1)},
    "free": {"model": "openai/gpt-4o-mini", "spend": Spend(price=TokenPrice(0, 0))},
    "unknown": {"model": "openai/a-model-of-our-own"},
}
"""Datasets of four rows, by name."""


def answer(body: dict[str, Any], _endpoint: str) -> Reply:
    """Answer so that OpenAI's model has no label for rows of `other_vendor`."""
    is_wrong = "other_vendor" in last_user_text(body) and body["model"] == "gpt-4o-mini"
    return Reply(text="?" if is_wrong else json.dumps({"topic": "bug"}), input_tokens=1_003, output_tokens=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with the ledger of these datasets, all collected."""
    folder = tmp_path_factory.mktemp("focus")
    with ExitStack() as opened:
        s3_url = opened.enter_context(local_s3("bucket"))
        limits = VendorLimits(bedrock_min_records=3)
        emulator = opened.enter_context(Emulator(answer=answer, s3_url=s3_url, limits=limits))
        emulator.flex.script = FlexScript(turned_away=1)
        emulator.inject(RowFault(containing="errored"))
        ledger = Ledger(folder / "ledger.db")
        opened.callback(ledger.close)
        providers = {
            "openai": OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url),
            "mistral": provider_of("mistral", emulator.mistral_base_url),
            "anthropic": AnthropicProvider(DEFAULT_KEY, emulator.anthropic_base_url),
            "openrouter": OpenRouterProvider(DEFAULT_KEY, emulator.openrouter_base_url, settle_seconds=0),
            "gemini": GeminiProvider(DEFAULT_KEY, emulator.gemini_base_url),
            "bedrock": BedrockProvider(
                "us-east-1",
                "arn:aws:iam::123456789012:role/batch",
                "s3://bucket/llm",
                session_options={"aws_access_key_id": DEFAULT_KEY, "aws_secret_access_key": "x"},
                endpoint_url=emulator.bedrock_url,
                s3_endpoint_url=s3_url,
                read_quotas=False,
                min_requests=3,
            ),
        }
        engine = Engine(Deployment(providers, ledger, PayloadStore(folder / "payloads"), "default"))
        for asset, changes in CHARGED.items():
            usual: dict[str, Any] = {"params": {"max_tokens": 50}, "key": "id", "response": TOPIC}
            labels = Labeling(**{**usual, "asset": asset, "prompt": Prompt(user="{{ text }}"), **changes})
            rows = pa.table({"id": [*"1234"], "text": [f"{asset} {n}" for n in range(4)], "now": [True] * 4})
            submission_id = engine.plan(labels, rows).submission_id
            engine.submit(labels, submission_id)
            while not engine.status(submission_id).is_settled:
                emulator.settle()
                engine.advance(labels, submission_id)
        yield folder


@pytest.fixture(scope="module")
def charges(folder: Path) -> list[dict[str, str]]:
    """Return the rows of the command's CSV."""
    written = CliRunner().invoke(main, ["cost", "--format", "focus", "--ledger", str(folder / "ledger.db")])
    assert written.exit_code == 0, written.output
    assert "4 requests are in no row: the cost is unknown" in written.stderr
    return [*csv.DictReader(io.StringIO(written.stdout))]


def validate(charges: list[dict[str, str]], folder: Path) -> subprocess.CompletedProcess[str]:
    renamed = [{DRAFT_NAMES.get(name, name): value for name, value in row.items()} for row in charges]
    # The validator's rule of SkuPriceId needs this column, which FOCUS 1.0 calls ChargeCategory.
    renamed = [{**row, "ChargeType": row["ChargeCategory"]} for row in renamed]
    data = folder / "charges.csv"
    with data.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*renamed[0]])
        writer.writeheader()
        writer.writerows(renamed)
    [site] = PROGRAM.parents[1].glob("lib/python*/site-packages")
    command = [str(PROGRAM), "--data-file", str(data), "--validate-version", "1.0"]
    return subprocess.run(command, cwd=site, capture_output=True, text=True, check=False)


def test_the_validator_accepts_the_charges_of_every_vendor_tier_and_amount(
    charges: list[dict[str, str]], tmp_path: Path
) -> None:
    done = validate(charges, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Validation succeeded" in done.stdout, done.stdout[-3000:]


def test_each_price_of_a_vendor_has_a_charge_of_its_own(charges: list[dict[str, str]]) -> None:
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for row in charges:
        found[row["x_Asset"]].append((row["ProviderName"], row["SkuPriceId"], row["x_Requests"]))
    assert {asset: sorted(rows) for asset, rows in found.items()} == {
        "openai": [("OpenAI", "openai/gpt-4o-mini batch", "4")],
        "bedrock": [("AWS", "bedrock/anthropic.claude-haiku-4-5-20251001-v1:0 batch", "4")],
        "gemini": [("Google", "gemini/gemini-2.5-flash batch", "4")],
        "mistral": [("Mistral AI", "mistral/mistral-small-2603 batch", "4")],
        "anthropic": [("Anthropic", "anthropic/claude-haiku-4-5 batch", "4")],
        "openrouter": [("OpenRouter", "openrouter/openai/gpt-4o-mini batch", "4")],
        "other_vendor": [
            ("Mistral AI", "mistral/mistral-small-2603 batch", "4"),
            ("OpenAI", "openai/gpt-4o-mini batch", "4"),
        ],
        "flexible": [
            ("OpenAI", "openai/gpt-5-nano real time", "1"),
            ("OpenAI", "openai/gpt-5-nano real time, flex", "3"),
        ],
        # No reply has tokens.
        "errored": [("OpenAI", "openai/gpt-4o-mini batch, per request", "4")],
        "free": [("OpenAI", "openai/gpt-4o-mini batch", "4")],
    }
    costs = {row["SkuPriceId"]: Decimal(row["BilledCost"]) for row in charges if row["x_Asset"] == "flexible"}
    # gpt-5-nano: 0.05 and 0.40 USD per million tokens in real time, and half in flex
    full = (1_003 * Decimal("0.05") + 7 * Decimal("0.4")) / 1_000_000
    assert [*costs.values()] == [full / 2 * 3, full]
    assert [row["BilledCost"] for row in charges if row["x_Asset"] in ("errored", "free")] == ["0", "0"]


def test_the_columns_of_a_charge_agree_as_the_specification_requires(charges: list[dict[str, str]]) -> None:
    """The validator does not compare columns. https://focus.finops.org/focus-specification/v1-0/ does."""
    for row in charges:
        quantity, cost = Decimal(row["PricingQuantity"]), Decimal(row["ListCost"])
        assert (Decimal(row["ListUnitPrice"]) * quantity).quantize(Decimal("1e-12")) == cost, row["SkuPriceId"]
        assert bool(row["ResourceType"]) is bool(row["ResourceName"]) is bool(row["ResourceId"]), row["SkuPriceId"]
        assert row["ResourceId"] or "real time" in row["SkuPriceId"]
    of_sku, units = defaultdict(set), defaultdict(set)
    for row in charges:
        of_sku[row["SkuPriceId"]].add(row["SkuId"])
        units[row["SkuPriceId"]].add(row["PricingUnit"])
    assert {*map(len, of_sku.values()), *map(len, units.values())} == {1}


def test_the_table_of_costs_has_the_same_charges(folder: Path, charges: list[dict[str, str]], tmp_path: Path) -> None:
    resource = LLMBatchResource(ledger_url=str(folder / "ledger.db"), payload_root=str(folder / "payloads"))
    resources = {"llm_batch": resource, "io_manager": dg.FilesystemIOManager(base_dir=str(tmp_path))}
    assets = cost_assets(name="costs", layout="focus")
    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize(assets, instance=instance, resources=resources).success
        table = dg.Definitions(assets=assets, resources=resources).load_asset_value("costs", instance=instance)
    write_csv(as_text(table), written := io.BytesIO())
    assert [*csv.DictReader(io.StringIO(written.getvalue().decode()))] == charges


@pytest.mark.parametrize("column", ["BilledCost", "ChargePeriodStart", "Tags"])
def test_the_validator_refuses_a_wrong_value_of_a_column(
    charges: list[dict[str, str]], tmp_path: Path, column: str
) -> None:
    done = validate([{**row, column: "wrong"} for row in charges], tmp_path)
    assert "Validation failed" in done.stdout + done.stderr, done.stdout[-3000:] + done.stderr[-3000:]
