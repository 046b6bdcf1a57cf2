"""A long text is asked about in parts, and its row has one outcome and one price."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import dagster as dg
import pyarrow as pa
import pytest
from code_location import DAILY, DAYS, CodeLocation, labeled
from pydantic import BaseModel
from starlette.testclient import TestClient

from dagster_llm_batch import (
    Cascade,
    Checks,
    Gather,
    HiveParquetIOManager,
    Mask,
    Prompt,
    Resend,
    Spend,
    Split,
    TokenPrice,
    evaluation_assets,
    gathered_labels,
    split_rows,
)
from dagster_llm_batch.cli import code_location as cli
from dagster_llm_batch.cli.review import _forms, _stored_assets
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.server import review_app
from dagster_llm_batch.testing.emulator import Emulator
from dagster_llm_batch.testing.emulator.answers import last_user_text

PARTS, DOCS = "report_parts", "reports"
CARD = "4111 1111 1111 1111"
KEEP = ["doc", "title", "part", "parts", "part_start"]
GATHER = Gather("union", {"tone": "vote"})


class Found(BaseModel):
    names: list[str]
    tone: Literal["good", "bad"]


class Sure(Found):
    confidence: float


class Desk:
    """The texts of today, and all texts that reached the model."""

    def __init__(self) -> None:
        self.texts = {
            "a": "# One\nAnn is good\n# Two\nBob is bad\n# Three\nAnn and Cid are good\n",
            "b": "# One\nDot is bad\n# Two\nthis part is broken\n",
        }
        self.asked: list[str] = []

    def rows(self, _context: Any) -> Any:
        rows = [{"doc": doc, "title": doc.upper(), "text": text} for doc, text in self.texts.items()]
        return split_rows(rows, Split("text", tokens=500), key="doc")

    def answer(self, body: Any, _endpoint: str) -> Any:
        text = last_user_text(body)
        self.asked.append(text)
        if "broken" in text:
            return {"names": "none"}
        names = [name for name in ("Ann", "Bob", "Cid", "Dot") if name in text]
        return {"names": names, "tone": "good" if "good" in text else "bad"}

    def take_asked(self) -> list[str]:
        """Return the first words of the sections that were asked since the last call."""
        asked, self.asked = sorted(text.split()[1] for text in self.asked), []
        return asked


def parts_of(desk: Desk, **changes: Any) -> list[dg.AssetsDefinition]:
    usual: dict[str, Any] = {
        "name": PARTS,
        "rows": desk.rows,
        "key": "part_key",
        "keep": KEEP,
        "response": Found,
        "prompt": Prompt(user="{{ text }}"),
        "resend": Resend(max_waves=2),
        "spend": Spend(price=TokenPrice(input_usd=2, output_usd=10)),
        "checks": Checks(min_coverage=0.5, min_parse_rate=0.5),
        "partitions_def": DAILY,
    }
    return labeled(**{**usual, **changes})


def gathering(parts: list[dg.AssetsDefinition], **changes: Any) -> list[dg.AssetsDefinition]:
    usual: dict[str, Any] = {"name": DOCS, "labels": parts, "key": "doc", "keep": ["title"], "gather": GATHER}
    return gathered_labels(**{**usual, **changes})


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def emulator(desk: Desk) -> Iterator[Emulator]:
    with Emulator(answer=desk.answer) as running:
        yield running


@pytest.fixture
def location(make, desk: Desk, tmp_path: Path) -> CodeLocation:
    parts = parts_of(desk)
    store = {"io_manager": HiveParquetIOManager(root=str(tmp_path / "tables"))}
    return make(*parts, *gathering(parts), resources=store)


def land(location: CodeLocation) -> None:
    """Submit the parts, their retry round included, and materialize all tables."""
    where = {"partition": DAYS[0]}
    assert location.run(f"{PARTS}_batch", **where).success
    for _ in range(2):
        location.emulator.settle()
        location.run(PARTS, f"{PARTS}_rejects", **where)
    assert location.run(PARTS, f"{PARTS}_rejects", **where).success
    assert location.run(DOCS, f"{DOCS}_rejects", **where).success


def stored(location: CodeLocation, name: str) -> list[dict[str, Any]]:
    loaded = location.repository.load_asset_value(dg.AssetKey(name), instance=location.instance, partition_key=DAYS[0])
    return loaded.to_pylist()


@pytest.mark.slow
def test_each_row_has_one_outcome_and_one_price_and_only_failed_or_changed_parts_are_asked_again(location, desk):
    """It runs a Dagster: a first day with a part that fails twice, and then two changed sections."""
    land(location)
    # The broken part has a retry round, and no other part is in it.
    assert desk.take_asked() == ["One", "One", "Three", "Two", "Two", "Two"]
    [a] = stored(location, DOCS)
    assert (a["doc"], a["title"], a["names"], a["tone"]) == ("a", "A", ["Ann", "Bob", "Cid"], "good")
    [b] = stored(location, f"{DOCS}_rejects")
    assert (b["doc"], b["title"], b["llm_outcome"]) == ("b", "B", "invalid")
    assert b["llm_reason"].startswith("1 of 2 parts have no label. b#2: ")
    for row, parts in ((a, 3), (b, 2)):
        own = row["llm_parts"]
        assert [part["part_key"] for part in own] == [f"{row['doc']}#{at}" for at in range(1, parts + 1)]
        assert row["llm_cost_usd"] == sum(part["llm_cost_usd"] for part in own) > 0
    # By hand: input tokens at 2 USD a million, output tokens at 10.
    assert a["llm_cost_usd"] == Decimal(2 * a["llm_input_tokens"] + 10 * a["llm_output_tokens"]) / 1_000_000
    [sent] = location.instance.fetch_materializations(dg.AssetKey(f"{PARTS}_batch"), limit=1).records
    assert sent.asset_materialization.metadata["llm_batch/rows"].value == 5

    desk.texts["a"] = desk.texts["a"].replace("Bob is bad", "Bob and Dot are bad")
    desk.texts["b"] = desk.texts["b"].replace("broken", "good")
    land(location)
    assert desk.take_asked() == ["Two", "Two"]
    rows = {row["doc"]: row for row in stored(location, DOCS)}
    assert rows["a"]["names"] == ["Ann", "Bob", "Dot", "Cid"]
    assert rows["b"]["names"] == ["Dot"]
    assert stored(location, f"{DOCS}_rejects") == []


@pytest.mark.slow
def test_an_evaluation_of_the_gathered_table_counts_rows_and_not_parts(make, desk, tmp_path):
    """It runs a Dagster. Of three rows one is a reject, and one of the two labels is right."""
    desk.texts["c"] = "# One\nDot is good\n"
    gold = pa.table({"doc": ["a", "b", "c"], "tone": ["good", "bad", "bad"]})

    @dg.asset
    def truth() -> pa.Table:
        return gold

    parts = parts_of(desk, partitions_def=None)
    measured = evaluation_assets(
        name="quality",
        candidates={"parts": DOCS},
        rejects={"parts": f"{DOCS}_rejects"},
        gold="truth",
        key="doc",
        target="tone",
    )
    store = {"io_manager": HiveParquetIOManager(root=str(tmp_path / "tables"))}
    location = make(*parts, *gathering(parts), truth, *measured, resources=store)
    assert location.run("truth").success
    assert location.run(f"{PARTS}_batch").success
    for _ in range(2):
        location.emulator.settle()
        location.run(PARTS, f"{PARTS}_rejects")
    assert location.run(PARTS, f"{PARTS}_rejects").success
    assert location.run(DOCS, f"{DOCS}_rejects").success
    assert location.run("quality").success
    [row] = location.repository.load_asset_value(dg.AssetKey("quality"), instance=location.instance).to_pylist()
    assert (row["n_gold"], row["n_labeled"], row["accuracy"]) == (3, 2, 0.5)


def words_of(page: str) -> str:
    return " ".join(html.unescape(re.sub("<[^>]+>", "", page)).split())


@pytest.mark.slow
def test_the_page_of_review_shows_gathered_rows_their_parts_and_their_mistakes(make, desk, tmp_path):
    """It runs a Dagster, and reads its tables as the command does."""
    gold = pa.table({"doc": ["a", "b"], "tone": ["bad", "bad"]})

    @dg.asset
    def truth() -> pa.Table:
        return gold

    parts = parts_of(desk, partitions_def=None)
    measured = evaluation_assets(
        name="quality",
        candidates={DOCS: DOCS},
        rejects={DOCS: f"{DOCS}_rejects"},
        gold="truth",
        key="doc",
        target="tone",
    )
    store = {"io_manager": HiveParquetIOManager(root=str(tmp_path / "tables"))}
    location = make(*parts, *gathering(parts), truth, *measured, resources=store)
    for names in (["truth"], [f"{PARTS}_batch"]):
        assert location.run(*names).success
    for _ in range(2):
        location.emulator.settle()
        location.run(PARTS, f"{PARTS}_rejects")
    for names in ([PARTS, f"{PARTS}_rejects"], [DOCS, f"{DOCS}_rejects"]):
        assert location.run(*names).success
    assert location.run("quality", "quality_mistakes", "quality_per_class", "quality_failures").success
    engine = location.engine()
    code = cli.CodeLocation(SimpleNamespace(), location.repository, location.instance)
    tables = list(_stored_assets(SimpleNamespace(code=code, engine=engine)))
    reviewed = ReviewedDeployment(
        "here", engine.ledger, engine.payloads, "default", lambda: tables, forms=_forms(SimpleNamespace(code=code))
    )
    client = TestClient(review_app(reviewed, Door("X-User"), ["testserver"]), headers={"X-User": "ada"})

    def shown(path: str) -> str:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    first, row, reject = shown("/"), shown(f"/row/{DOCS}?by=doc&key=a"), shown(f"/row/{DOCS}_rejects?by=doc&key=b")
    mistake, part = shown("/row/quality_mistakes?by=doc&key=a"), shown(f"/row/{PARTS}?by=part_key&key=a%232")
    engine.ledger.close()
    # One of two rows has a label, and it is wrong. A row without a label is a mistake, too.
    summary = words_of(first.partition("<bdi>reports</bdi></h2>")[2].partition("</section>")[0])
    assert "0% right (0% to 98%) in column tone, by 2 gold rows in quality" in summary
    assert "1 of 2 rows" in summary
    assert "See 2 mistakes" in summary
    assert 'href="/prompts/report_parts"' in first.partition("<bdi>reports</bdi></h2>")[2]
    assert re.findall(r'href="(/row/report_parts[^"]*)"><bdi>([^<]*)<', row) == [
        (f"/row/report_parts?by=part_key&amp;key=a%23{n}", f"a#{n}") for n in (1, 2, 3)
    ]
    assert 'href="/row/report_parts_rejects?by=part_key&amp;key=b%232"><bdi>b#2<' in reject
    assert "1 of 2 parts have no label" in words_of(reject)
    # The basis of the label is the rest of the gathered answer.
    assert 'href="/row/reports?by=doc&amp;key=a"><bdi>reports<' in mistake
    assert 'names: ["Ann", "Bob", "Cid"]' in words_of(mistake)
    assert "Bob is bad" in words_of(part)


class Mails(Desk):
    """A text whose two addresses and card number are cut in the middle where no mask keeps them whole."""

    mask = Mask(columns=["text"], restore=["names"])

    def rows(self, _context: Any) -> Any:
        rows = [{"doc": "a", "title": "A", "text": f"ann@x.org has {CARD} and {CARD} of bob@x.org."}]
        return split_rows(rows, Split("text", tokens=12, by="token"), key="doc", mask=self.mask)

    def answer(self, body: Any, _endpoint: str) -> Any:
        text = last_user_text(body)
        self.asked.append(text)
        return {"names": re.findall(r"\[\w+\]", text), "tone": "good"}


@pytest.mark.slow
def test_values_of_masked_parts_are_sent_as_placeholders_and_gathered_as_values(instance, tmp_path):
    """Run a Dagster. Each part has an [EMAIL_1], and these are two people."""
    desk = Mails()
    parts = parts_of(desk, prompt=Prompt(user="{{ text }}", mask=desk.mask))
    store = {"io_manager": HiveParquetIOManager(root=str(tmp_path / "tables"))}
    with Emulator(answer=desk.answer) as emulator:
        location = CodeLocation(emulator, instance, *parts, *gathering(parts), resources=store)
        land(location)
        assert len(desk.asked) > 1
        assert not re.search(r"1111|x\.org", "".join(desk.asked))
        [one] = stored(location, DOCS)
    assert one["names"] == ["ann@x.org", CARD, "bob@x.org"]


@pytest.mark.parametrize(
    ("parts", "gathered", "said"),
    [
        ({"keep": ["doc", "title"]}, {}, "To gather its parts it needs key='part_key' and keep="),
        ({"key": "doc", "keep": KEEP[1:]}, {}, "has the key 'doc'"),
        ({}, {"keep": ["absent"]}, "'absent'"),
        ({"cascade": Cascade(oracle="openai/gpt-5", target="tone"), "response": Sure}, {}, "is a cascade"),
        ({}, {"gather": Gather("vote")}, "'names' of the response"),
    ],
)
def test_datasets_that_cannot_be_gathered_are_refused_when_definitions_load(desk, parts, gathered, said):
    with pytest.raises(ConfigError, match=said):
        gathering(parts_of(desk, **parts), **gathered)
