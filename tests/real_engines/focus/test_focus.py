"""The FinOps Foundation's own validator accepts `cost --format focus`: `python3 -m tests focus` installs it.

Its newest release, 1.0.0, calls four columns by names of a draft, and has a rule about a column of FOCUS 0.5. It also
takes the list of currencies from a path below the current folder. The test provides these, and nothing else.
"""

from __future__ import annotations

import csv
import io
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from dagster_llm_batch.cli.main import main
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

PROGRAM = Path(__file__).parents[3] / ".venv-focus" / "bin" / "focus-validator"
DRAFT_NAMES = {
    "InvoiceIssuerName": "InvoiceIssuer",
    "ProviderName": "Provider",
    "PublisherName": "Publisher",
    "ResourceId": "ResourceID",
}


@pytest.fixture
def charges(tmp_path: Path) -> list[dict[str, str]]:
    """Return the command's CSV of a ledger with two collected batches."""
    with Emulator() as emulator:
        ledger = Ledger(tmp_path / "ledger.db")
        provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)
        engine = Engine(Deployment({"openai": provider}, ledger, PayloadStore(tmp_path / "payloads"), "default"))
        prompt = Prompt(user="{{ text }}")
        for asset, tags in (("tickets", {"team": "support"}), ("mails", {})):
            labels = Labeling(
                asset=asset, model="openai/gpt-4o-mini", key="id", prompt=prompt, response=None, tags=tags
            )
            submission = engine.plan(labels, pa.table({"id": ["1"], "text": [asset]}))
            engine.submit(labels, submission.submission_id)
            emulator.settle()
            assert engine.advance(labels, submission.submission_id).is_settled
        ledger.close()
    written = CliRunner().invoke(main, ["cost", "--format", "focus", "--ledger", str(tmp_path / "ledger.db")])
    assert written.exit_code == 0, written.output
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


def test_the_validator_accepts_the_charges(charges: list[dict[str, str]], tmp_path: Path) -> None:
    assert len(charges) == 2
    done = validate(charges, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Validation succeeded" in done.stdout, done.stdout[-3000:]


@pytest.mark.parametrize("column", ["BilledCost", "ChargePeriodStart", "Tags"])
def test_the_validator_refuses_a_wrong_value_of_a_column(
    charges: list[dict[str, str]], tmp_path: Path, column: str
) -> None:
    done = validate([{**row, column: "wrong"} for row in charges], tmp_path)
    assert "Validation failed" in done.stdout + done.stderr, done.stdout[-3000:] + done.stderr[-3000:]
