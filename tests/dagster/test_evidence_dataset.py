"""`Checks(evidence=…)`: labels land with the places of their quotes in each lane and round, without asking again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from code_location import BATCH, LABELS, REJECTS, CodeLocation, labeled
from pydantic import BaseModel
from starlette.testclient import TestClient

from dagster_llm_batch import (
    Cascade,
    Checks,
    Evidence,
    HiveParquetIOManager,
    Mask,
    Prompt,
    Realtime,
    Resend,
    evaluation_assets,
)
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.cli import code_location as cli
from dagster_llm_batch.cli.review import _forms, _stored_assets
from dagster_llm_batch.core.documents import PDF, document_text
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.server import review_app
from dagster_llm_batch.testing.emulator import Emulator
from dagster_llm_batch.testing.emulator.answers import last_user_text
from dagster_llm_batch.types import Document
from tests.pdfs import written_pdf


class Claim(BaseModel):
    text: str


class Answer(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    confidence: float
    quote: str
    claims: list[Claim]


EVIDENCE = Evidence({"quote": "body", "claims.text": "body"})


def answer(body: Any, _endpoint: str) -> Any:
    """Quote the words after "of" with other white space, and a word from elsewhere."""
    text = last_user_text(body)
    if "fails once" in text and body["model"] == "gpt-4o-mini":
        return {"topic": "none of them"}
    number = int(re.findall(r"number (\d+)", text)[0]) if "number" in text else 0
    is_wrong = body["model"] == "gpt-4o-mini" and number % 8 == 0
    words = re.findall(r"of (\S+ \S+)", text)[0]
    return {
        "topic": ("billing", "bug", "how_to")[(number + is_wrong) % 3],
        "confidence": 0.2 if is_wrong else 0.9,
        "quote": "made up" if "invents" in text else words.replace(" ", "\n"),
        "claims": [{"text": words}, {"text": "nowhere"}],
    }


def quoted(
    rows: Any, *, evidence: Evidence | None = EVIDENCE, min_grounded: float = 0.95, **changes: Any
) -> list[dg.AssetsDefinition]:
    usual = {
        "model": "openai/gpt-4o-mini",
        "prompt": Prompt(user="{{ subject }} {{ body }}"),
        "keep": ["body"],
        "response": Answer,
        "rows": lambda _context: rows,
        "checks": Checks(evidence=evidence, min_grounded=min_grounded),
    }
    return labeled(**{**usual, **changes})


def tickets(*bodies: str) -> pl.DataFrame:
    numbers = range(len(bodies))
    return pl.DataFrame({"ticket_id": [f"t{n}" for n in numbers], "subject": "Hello", "body": list(bodies)})


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(answer=answer) as running:
        yield running


@pytest.fixture
def place(emulator: Emulator, instance: dg.DagsterInstance, tmp_path: Path) -> Any:
    def with_assets(*assets: Any) -> CodeLocation:
        store = {"io_manager": HiveParquetIOManager(root=str(tmp_path / "tables"))}
        stored = {"payload_root": str(tmp_path / "payloads"), "ledger_url": str(tmp_path / "ledger.db")}
        return CodeLocation(emulator, instance, *assets, resources=store, **stored)

    return with_assets


def labels_of(location: CodeLocation) -> dict[str, dict[str, Any]]:
    found = location.repository.load_asset_value(LABELS, instance=location.instance)
    shown = found.read_all() if isinstance(found, pa.RecordBatchReader) else found
    rows = shown.to_dicts() if isinstance(shown, pl.DataFrame) else shown.to_pylist()
    return {row["ticket_id"]: row for row in rows}


def land(location: CodeLocation, times: int = 1) -> dg.ExecuteInProcessResult:
    assert location.submit().success
    for _ in range(times):
        location.emulator.settle()
        result = location.collect()
        assert result.success
    return result


@dg.asset(deps=[LABELS])
def gold() -> pl.DataFrame:
    return pl.DataFrame({"ticket_id": ["t0", "t1"], "topic": ["how_to", "how_to"]})


@pytest.mark.slow
def test_the_page_of_review_marks_quotes_in_rows_and_mistakes_and_for_who_judges_on_demand(place, instance):
    """It runs a Dagster, and reads its tables as the command does."""
    dataset = quoted(tickets("number 1 of red cars", "number 2 of blue bikes"))
    settings = {"name": "judged", "gold": gold, "candidates": [dataset], "key": "ticket_id", "target": "topic"}
    evaluation = evaluation_assets(**settings, keep=["body"])
    location = place(*dataset, gold, *evaluation)
    land(location)
    assert location.run("gold", *(spec.key.to_user_string() for each in evaluation for spec in each.specs)).success
    engine = location.engine()
    code = cli.CodeLocation(SimpleNamespace(), location.repository, instance)
    deployment = SimpleNamespace(code=code, engine=engine)
    reviewed = ReviewedDeployment(
        "here",
        engine.ledger,
        engine.payloads,
        "default",
        lambda: list(_stored_assets(deployment)),
        forms=_forms(deployment),
    )
    client = TestClient(review_app(reviewed, Door("X-User"), ["testserver"]), headers={"X-User": "ada"})
    found = {}
    for path in ("/row/ticket_labels", "/row/judged_mistakes", "/label/ticket_labels"):
        page = client.get(path, params={"by": "ticket_id", "key": "t0", "as": "ticket_labels"})
        assert page.status_code == 200, page.text
        found[path] = re.findall('<mark title="([^"]*)">([^<]*)<', page.text)
    engine.ledger.close()
    fields = "quote, claims.text"
    assert found == {
        "/row/ticket_labels": [(fields, "red cars")],
        "/row/judged_mistakes": [(", ".join(f"ticket_labels: {one}" for one in fields.split(", ")), "red cars")],
        "/label/ticket_labels": [(fields, "red cars")],
    }


ROWS = tickets("number 1 of red cars", "number 2 of blue bikes, fails once")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (ROWS, {}),
        (ROWS, {"frame": "batches"}),
        (ROWS.with_columns(urgent=pl.col("ticket_id") == "t0"), {"realtime": Realtime(urgent="urgent")}),
    ],
)
def test_labels_have_places_in_each_lane_and_round(place, rows, changes):
    """It runs a Dagster. The second row is answered by the fallback."""
    location = place(*quoted(rows, resend=Resend(fallback=["openai/gpt-4o"]), **changes))
    result = land(location, times=4)
    labels = labels_of(location)
    assert [(labels[key]["quote_start"], labels[key]["quote_end"]) for key in ("t0", "t1")] == [(12, 20), (12, 23)]
    assert labels["t0"]["llm_lane"] == ("realtime" if "realtime" in changes else "batch")
    assert (labels["t1"]["llm_lane"], labels["t1"]["llm_model"].startswith("gpt-4o-mini")) == ("batch", False)
    for row in labels.values():
        assert row["quote_match"] == "folded"
        assert row["quote_score"] == 1.0
        assert row["body"][row["quote_start"] : row["quote_end"]] == row["quote"].replace("\n", " ")
        assert list(row["claims_text_match"]) == ["exact", "missing"]
        assert list(row["claims_text_start"]) == [row["quote_start"], None]
    checks = {one.check_name: one for one in result.get_asset_check_evaluations()}
    grounded = checks["grounded"]
    assert (grounded.passed, grounded.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert grounded.description == (
        "4 of 6 quotes are found (66.7%); required: at least 95%. By kind: 2 exact, 2 folded, 0 near, 2 missing."
    )
    shown = {key: value.value for key, value in grounded.metadata.items()}
    assert {name: shown[f"llm_batch/quotes_{name}"] for name in ("exact", "folded", "near", "missing")} == {
        "exact": 2,
        "folded": 2,
        "near": 0,
        "missing": 2,
    }
    assert shown["llm_batch/grounded"] == pytest.approx(4 / 6)


@pytest.mark.slow
def test_a_cascade_has_places_of_quotes_of_both_models(place):
    """It runs a Dagster, and lands 120 rows in three rounds."""
    rows = tickets(*(f"number {n} of red cars" for n in range(120)))
    cascade = Cascade(oracle="openai/gpt-4o", target="topic", agreement=0.9, sample=50)
    location = place(*quoted(rows, cascade=cascade))
    land(location, times=3)
    labels = labels_of(location)
    assert len({row["llm_model"] for row in labels.values()}) == 2
    assert {row["body"][row["quote_start"] : row["quote_end"]] for row in labels.values()} == {"red cars"}


REJECTING = Evidence({"quote": "body"}, reject_missing=True)
INVENTED = tickets(
    "number 1 of red cars", "number 2 of blue bikes, invents", " ", "number 3 of old trees"
).with_columns(subject=pl.when(pl.col("ticket_id") == "t2").then(pl.lit("")).otherwise(pl.lit("Hello")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (INVENTED, {}),
        (INVENTED.with_columns(urgent=pl.col("ticket_id") == "t1"), {"realtime": Realtime(urgent="urgent")}),
    ],
)
def test_a_row_with_a_missing_quote_is_a_reject_that_is_paid_and_never_asked_again(place, rows, changes):
    """It runs a Dagster. The empty row is a reject before and after, in the order of the rows."""
    resend, wanted = Resend(max_waves=3, fallback=["openai/gpt-4o"]), Checks(evidence=REJECTING, blocking=False)
    assets = quoted(rows, resend=resend, checks=wanted, **changes)
    location = place(*assets)
    result = land(location)
    assert list(labels_of(location)) == ["t0", "t3"]
    rejects = location.repository.load_asset_value(REJECTS, instance=location.instance).to_pylist()
    assert [(row["ticket_id"], row["llm_outcome"]) for row in rejects] == [("t1", "ungrounded"), ("t2", "skipped")]
    ungrounded = rejects[0]
    assert ungrounded["llm_reason"] == "a quote is not in its text: quote (of body)"
    assert json.loads(ungrounded["llm_reply"])["quote"] == "made up"
    assert ungrounded["llm_cost_usd"] > 0
    assert ungrounded["llm_attempt"] == 1
    checks = {one.check_name: one for one in result.get_asset_check_evaluations()}
    assert checks["grounded"].description == (
        "2 of 3 quotes are found (66.7%); required: at least 95%. By kind: 0 exact, 2 folded, 0 near, 1 missing. "
        "1 row with a missing quote is a reject."
    )
    assert checks["parse_rate"].passed
    assert not checks["coverage"].passed
    assert "a quote is not in its text: quote (of body)" in checks["coverage"].description
    metadata = location.metadata(LABELS)
    assert (metadata["llm_batch/rows_ungrounded"], metadata["llm_batch/rows_rejected"]) == (1, 2)
    sent, asked = len(location.emulator.books.batches), len(location.emulator.books.executions)
    assert land(location).success
    assert (len(location.emulator.books.batches), list(labels_of(location))) == (sent, ["t0", "t3"])
    kept = place(*quoted(rows, evidence=Evidence({"quote": "body"}), **changes))
    assert land(kept).success
    assert (len(kept.emulator.books.batches), list(labels_of(kept))) == (sent, ["t0", "t1", "t3"])
    assert len(kept.emulator.books.executions) == asked


@pytest.mark.slow
def test_a_pdfs_quotes_have_pages_and_a_path_is_refused_before_anything_is_sent(place):
    """It runs a Dagster."""
    pdf = written_pdf("Nothing is here.", "It is about the number 1 of red cars.")
    rows = tickets("number 1 of red cars").with_columns(pdf=pl.lit(pdf))
    prompt = Prompt(user="{{ subject }} {{ body }}", documents=["pdf"])
    changes = {"evidence": Evidence({"quote": "pdf"}), "keep": ["pdf"], "prompt": prompt}
    location = place(*quoted(rows, **changes))
    land(location)
    row = labels_of(location)["t0"]
    assert (row["quote_page"], row["quote_match"], row["pdf"]) == (2, "folded", pdf)
    assert document_text(Document(PDF, pdf))[row["quote_start"] : row["quote_end"]] == "red cars"
    by_path = place(*quoted(rows.with_columns(pdf=pl.lit("a.pdf")), **changes))
    sent = len(by_path.emulator.books.batches)
    result = by_path.submit()
    failure = result.failure_data_for_node(result.get_step_failure_events()[0].node_name)
    assert failure is not None
    assert "load the files into the rows" in str(failure.error)
    assert len(by_path.emulator.books.batches) == sent


@pytest.mark.slow
def test_files_that_workers_write_have_places(place, tmp_path):
    """It runs a Dagster."""
    assets = quoted(tickets("number 1 of red cars", "number 2 of blue bikes, invents"))
    location = place(*assets)
    land(location)
    engine, labeling = location.engine(), dataset_of(assets).labeling
    submission_id = location.metadata(LABELS)["llm_batch/submission_id"]
    engine.write_labels(labeling, submission_id, str(tmp_path / "files"), str(tmp_path / "rejected"))
    rejecting = replace(labeling, evidence=REJECTING)
    written = engine.write_labels(rejecting, submission_id, str(tmp_path / "grounded"), str(tmp_path / "ungrounded"))
    engine.ledger.close()
    assert (written.labels, written.rejects) == (1, 1)
    assert pq.read_table(tmp_path / "ungrounded")["llm_outcome"].to_pylist() == ["ungrounded"]
    row = pq.read_table(tmp_path / "files").to_pylist()[0]
    assert (row["quote_start"], row["quote_end"], row["claims_text_match"]) == (12, 20, ["exact", "missing"])


@pytest.mark.slow
def test_with_a_mask_a_quote_is_located_in_the_text_that_the_model_saw(place):
    """It runs a Dagster. The quote has the value, the text its placeholder."""
    prompt = Prompt(user="{{ subject }} {{ body }}", mask=Mask(columns=["body"], restore=["quote"]))
    location = place(*quoted(tickets("Mine of ann@x.org here"), prompt=prompt))
    land(location)
    row = labels_of(location)["t0"]
    assert row["quote"] == "ann@x.org\nhere"
    assert row["body"][row["quote_start"] : row["quote_end"]] == "[EMAIL_1] here"
    assert row["quote_match"] == "folded"


@pytest.mark.slow
@pytest.mark.parametrize("keep", [["body"], []])
def test_evidence_asks_nothing_again_and_is_part_of_the_code_version_of_labels_alone(place, keep):
    """It runs a Dagster. Labels that landed without evidence, or without its column, have it when they land again."""
    before = place(*quoted(ROWS[:1], evidence=None, keep=keep, min_grounded=0.5))
    result = land(before)
    assert "grounded" not in {one.check_name for one in result.get_asset_check_evaluations()}
    assert "quote_start" not in labels_of(before)["t0"]
    declared = None, EVIDENCE, Evidence({"quote": "body"}), Evidence({"quote": "body"}, min_score=0.9), REJECTING
    versions = []
    for evidence in declared:
        graph = place(*quoted(ROWS[:1], evidence=evidence)).repository.asset_graph
        versions.append([graph.get(dg.AssetKey(name)).code_version for name in (BATCH, REJECTS, LABELS)])
    assert len({version[0] for version in versions}) == 1
    # Evidence that rejects rows changes the rejects, too.
    assert len({version[1] for version in versions[:-1]}) == 1
    assert versions[-1][1] != versions[0][1]
    assert len({version[2] for version in versions}) == 5
    after = place(*quoted(ROWS[:1], min_grounded=0.5))
    sent = len(after.emulator.books.batches)
    earlier = before.materializations()[None].tags["dagster/data_version"]
    assert after.submit().success
    landed = after.collect()
    assert landed.success
    assert len(after.emulator.books.batches) == sent
    assert labels_of(after)["t0"]["quote_match"] == "folded"
    assert after.materializations()[None].tags["dagster/data_version"] != earlier
    [grounded] = [one for one in landed.get_asset_check_evaluations() if one.check_name == "grounded"]
    assert grounded.passed
    schema = after.metadata(LABELS)["dagster/column_schema"]
    described = {column.name: column.description for column in schema.columns}
    assert described["quote_start"] == "beginning of the quote in body, in characters from 0"


@pytest.mark.slow
def test_a_quoted_column_that_is_no_text_is_refused_before_anything_is_sent(place):
    """It runs a Dagster."""
    location = place(*quoted(tickets("1").with_columns(body=pl.lit(1))))
    result = location.submit()
    assert not result.success
    failure = result.failure_data_for_node(result.get_step_failure_events()[0].node_name)
    assert failure is not None
    assert InputError.__name__ in str(failure.error)
    assert not location.emulator.books.batches
