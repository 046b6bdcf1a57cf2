"""A dataset with a mask in Dagster: the submission shows how many values were masked, and labels hold placeholders."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import polars as pl
import pyarrow as pa
import pytest
from code_location import LABELS, REJECTS, CodeLocation, labeled
from pydantic import BaseModel

from dagster_llm_batch import Cascade, Checks, Evidence, HiveParquetIOManager, Mask, Prompt, Realtime, Resend
from dagster_llm_batch.testing.emulator import Emulator
from dagster_llm_batch.testing.emulator.answers import last_user_text
from tests.pdfs import pdf

PROMPT = Prompt(user="{{ subject }} {{ body }}", mask=Mask(columns=["body"]))
ROWS = pl.DataFrame(
    {
        "ticket_id": ["t1", "t2", "t3"],
        "subject": ["Invoice"] * 3,
        "body": ["Write to ann@example.com.", "ann@example.com or 10.0.0.1?", "Nothing."],
    }
)


@pytest.mark.slow
def test_metadata_and_the_check_sent_show_the_number_of_masked_values(make):
    """Run a Dagster."""
    location = make(*labeled(rows=lambda _context: ROWS, prompt=PROMPT, keep=["body"]))
    result = location.run(f"{LABELS}_batch")
    assert result.success
    shown = location.metadata(f"{LABELS}_batch")
    assert [shown[f"llm_batch/masked_{name}"] for name in ("values", "email", "ip")] == [3, 2, 1]
    [sent] = result.get_asset_check_evaluations()
    assert sent.passed
    assert sent.description.endswith("Masked values: 2 email, 1 ip.")
    assert sent.metadata["llm_batch/masked_email"].value == 2
    location.emulator.settle()
    assert location.run(LABELS, f"{LABELS}_rejects").success
    labels = location.repository.load_asset_value(LABELS, instance=location.instance)
    assert sorted(labels["body"]) == ["Nothing.", "Write to [EMAIL_1].", "[EMAIL_1] or [IP_1]?"]
    assert "ann@example.com" not in str(
        [event.to_json() if hasattr(event, "to_json") else event for event in result.all_events]
    )


def leaky_answer(body: Any, _endpoint: str) -> Any:
    """Quote all that the model sees, unfit at first where the text says so."""
    text = last_user_text(body)
    number = int(re.findall(r"number (\d+)", text)[0])
    is_wrong = body["model"] == "gpt-4o-mini" and number % 8 == 0
    if "fails" in text and (body["model"] == "gpt-4o-mini" or "for ever" in text):
        return {"topic": text}
    topic = ("billing", "bug")[(number + is_wrong) % 2]
    return {"topic": topic, "confidence": 0.2 if is_wrong else 0.9, "reply": f"Dear {text}", "quote": text}


class Quoted(BaseModel):
    topic: Literal["billing", "bug"]
    confidence: float
    reply: str
    quote: str


def bodies(count: int) -> pl.DataFrame:
    """Return rows with a planted value each; the last ones fail once, for ever, and have a broken document."""
    texts = [f"number {n} of planted{n}@example.com" for n in range(count)]
    texts[-3] += " fails"
    texts[-2] += " fails for ever"
    files = [pdf()] * (count - 1) + [b"planted-file@example.com is no PDF"]
    return pl.DataFrame({"ticket_id": [f"t{n}" for n in range(count)], "body": texts, "file": files})


def table_of(location: CodeLocation, name: str) -> pl.DataFrame:
    loaded = location.repository.load_asset_value(name, instance=location.instance)
    return pl.DataFrame(loaded.read_all() if isinstance(loaded, pa.RecordBatchReader) else loaded)


CASCADE = Cascade(oracle="openai/gpt-4o", target="topic", agreement=0.9, sample=50)
URGENT = {"realtime": Realtime(urgent="urgent")}
LOST = {"resend": Resend(max_waves=1, fallback=["openai/gpt-4o"])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "changes"),
    [(8, LOST), (8, URGENT), (8, {"frame": "batches"}), (100, {"cascade": CASCADE})],
    ids=["fallback", "urgent", "batches", "cascade"],
)
def test_no_planted_value_is_in_any_file_of_dagster_the_store_or_the_ledger(
    stored: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, changes: Any
) -> None:
    """Materialize documents, quotes, restored values and rejects in an instance on disk; it takes some seconds."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    asked: list[str] = []

    def answer(body: Any, endpoint: str) -> Any:
        asked.append(str(body))
        return leaky_answer(body, endpoint)

    rows = bodies(count).with_columns(urgent=pl.col("ticket_id") == "t0")
    mask = Mask(columns=["body"], restore=["reply"])
    definitions = labeled(
        **{
            "rows": lambda _context: rows,
            "model": "openai/gpt-4o-mini",
            "prompt": Prompt(user="{{ body }}", documents=["file"], mask=mask),
            "keep": ["body"],
            "response": Quoted,
            "checks": Checks(evidence=Evidence({"quote": "body"}), min_coverage=0.1, min_parse_rate=0.1),
            **changes,
        }
    )
    with Emulator(answer=answer) as emulator:
        places = {"payload_root": str(tmp_path / "payloads"), "ledger_url": str(tmp_path / "ledger.db")}
        store = {"io_manager": HiveParquetIOManager(root=str(tmp_path / "tables"))}
        location = CodeLocation(emulator, stored, *definitions, resources=store, **places)
        assert location.submit().success
        for _ in range(4):
            emulator.settle()
            assert location.collect().success
        labels, rejects = (table_of(location, name) for name in (LABELS, REJECTS))
    assert sum("@example.com" in text for text in labels["reply"]) == len(labels) >= count - 3
    assert len(labels) + len(rejects) == count
    payloads = location.engine().payloads
    files = [file.path for file in payloads.files("")]
    tables = [path for path in files if path.endswith(".parquet")]
    texts = {path: str(payloads.read_table(path).to_pylist()) for path in tables}
    streams = [path for path in files if path not in tables]
    texts |= {path: b"".join(payloads.lines(path)).decode(errors="replace") for path in streams}
    texts |= {"asked": str(asked), "labels": str(labels.drop("reply").to_dicts()), "rejects": str(rejects.to_dicts())}
    assert stored.root_directory
    others = [*Path(stored.root_directory).rglob("*"), *tmp_path.glob("ledger.db*"), *tmp_path.glob("temporary/**/*")]
    texts |= {str(path): path.read_bytes().decode(errors="replace") for path in others if path.is_file()}
    assert any("[EMAIL_1]" in text for path, text in texts.items() if path in files)
    assert [path for path, text in texts.items() if "@example.com" in text] == []
