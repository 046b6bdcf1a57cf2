"""`Mask(restore=[…])`: the labeled table has values where answers name placeholders, and other places do not."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import polars as pl
import pyarrow as pa
import pytest
from code_location import BATCH, DAILY, DAYS, LABELS, LANDING, REJECTS, CodeLocation, failure, labeled
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from pydantic import BaseModel

from dagster_llm_batch import (
    AssetRows,
    Cascade,
    HiveParquetIOManager,
    Mask,
    Near,
    Prompt,
    Realtime,
    Resend,
    Reuse,
    skew_assets,
)
from dagster_llm_batch.core.masks import Found, mask_as_of
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.testing.emulator import Emulator
from dagster_llm_batch.testing.emulator.answers import last_user_text
from tests.tables import table


class Answer(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    confidence: float
    reply: str
    people: list[str]
    note: str


def answer(body: Any, _endpoint: str) -> Any:
    """Name the placeholders of the row, and one that it does not have."""
    text = last_user_text(body)
    number = int(re.findall(r"number (\d+)", text)[0]) if "number" in text else 0
    if "fails once" in text and body["model"] == "gpt-4o-mini":
        return {"topic": "none of them"}
    is_wrong = body["model"] == "gpt-4o-mini" and number % 8 == 0
    found = re.findall(r"\[[A-Z]+_\d+\]", text)
    return {
        "topic": ("billing", "bug", "how_to")[(number + is_wrong) % 3],
        "confidence": 0.2 if is_wrong else 0.9,
        "reply": f"Dear {' and '.join(found)}, not [EMAIL_9].",
        "people": found,
        "note": json.dumps({"to": found}) if "as JSON" in text else f"Seen {' '.join(found)}",
    }


def mask(restore: tuple[str, ...] = ("reply", "people")) -> Mask:
    return Mask(columns=["body"], restore=restore)


def replies(rows: Any, restored: Mask | None = None, **changes: Any) -> list[dg.AssetsDefinition]:
    usual = {
        "model": "openai/gpt-4o-mini",
        "prompt": Prompt(user="{{ subject }} {{ body }}", mask=restored or mask()),
        "keep": ["body"],
        "response": Answer,
        "rows": rows if callable(rows) or isinstance(rows, str | AssetRows) else lambda _context: rows,
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


def everything_stored(location: CodeLocation, folder: Path) -> str:
    """Return the contents of ledger, payload store and Dagster's events, as text."""
    engine = location.engine()
    texts = [part.read_bytes().decode("utf-8", "replace") for part in folder.glob("ledger.db*")]
    for file in engine.payloads.files(""):
        if file.path.endswith(".parquet"):
            texts.append(str(engine.payloads.read_table(file.path).to_pylist()))
        else:
            texts.append(b"".join(engine.payloads.lines(file.path)).decode("utf-8", "replace"))
    engine.ledger.close()
    instance = location.instance
    texts += [str(entry) for run in instance.get_run_records() for entry in instance.all_logs(run.dagster_run.run_id)]
    return "".join(texts)


URGENT = pl.col("ticket_id").is_in(["t0"]).alias("urgent")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (tickets("ann@x.org or bob@x.org?", "cleo@x.org or dan@x.org?", "Nobody"), {}),
        (tickets("ann@x.org or bob@x.org?", "cleo@x.org or dan@x.org?", "Nobody"), {"frame": "batches"}),
        (
            tickets("ann@x.org or bob@x.org?", "cleo@x.org or dan@x.org?", "Nobody").with_columns(URGENT),
            {"realtime": Realtime(urgent="urgent")},
        ),
        (
            tickets("ann@x.org or bob@x.org? fails once", "cleo@x.org or dan@x.org? fails once", "Nobody"),
            {"resend": Resend(fallback=["openai/gpt-4o"])},
        ),
    ],
)
def test_only_the_columns_that_are_named_have_values_in_each_lane_and_round(place, tmp_path, rows, changes):
    """Run a Dagster. Two rows that make one request each get their own values."""
    location = place(*replies(rows, **changes))
    land(location, times=4 if "resend" in changes else 1)
    labels = labels_of(location)
    assert labels["t0"]["reply"] == "Dear ann@x.org and bob@x.org, not [EMAIL_9]."
    assert labels["t1"]["reply"] == "Dear cleo@x.org and dan@x.org, not [EMAIL_9]."
    assert labels["t1"]["people"] == ["cleo@x.org", "dan@x.org"]
    assert labels["t2"]["reply"] == "Dear , not [EMAIL_9]."
    for row in labels.values():
        assert not re.search("@x.org", row["note"] + row["body"])
    assert labels["t0"]["llm_request_id"] == labels["t1"]["llm_request_id"] or "realtime" in changes
    shown = location.metadata(LABELS)
    assert shown["llm_batch/restored_values"] == 8
    assert shown["llm_batch/unresolved_placeholders"] == 3
    assert "@x.org" not in everything_stored(location, tmp_path)


@pytest.mark.slow
def test_a_cascade_restores_labels_of_both_models(place, tmp_path):
    """Run a Dagster, and materialize 120 rows in three rounds."""
    rows = tickets(*(f"number {n} of a{n}@x.org" for n in range(120)))
    cascade = Cascade(oracle="openai/gpt-4o", target="topic", agreement=0.9, sample=50)
    location = place(*replies(rows, cascade=cascade))
    assert location.submit().success
    for _ in range(3):
        location.emulator.settle()
        assert location.collect().success
    labels = labels_of(location)
    assert len({row["llm_model"] for row in labels.values()}) == 2
    assert all(row["people"] == [f"a{n}@x.org"] for n, row in enumerate(labels[f"t{n}"] for n in range(120)))
    assert "@x.org" not in everything_stored(location, tmp_path)


WORDS = ["lorem", "ipsum", "dolor", "amet", "elit", "sed", "magna", "erat", "quis", "nunc", "urna", "velit", "odio"]


@pytest.mark.slow
def test_near_copies_have_their_own_values_in_the_answer_of_their_leader(place):
    bodies = [
        f"number {group} {' '.join(random.Random(group).choices(WORDS, k=20))} p{group}x{copy}@example.com {copy}"
        for group in range(30)
        for copy in range(5)
    ]
    resend = Resend(reuse=Reuse(near=Near("body", "topic", similarity=0.6, error=0.3, sample=40)))
    location = place(*replies(tickets(*bodies), resend=resend))
    land(location)
    labels = labels_of(location)
    shared = [row for row in labels.values() if row["llm_reuse"] == "near"]
    assert len(shared) > 50
    for key, row in labels.items():
        own = re.findall(r"p\d+x\d+@example.com", bodies[int(key[1:])])
        assert row["reply"] == f"Dear {own[0]}, not [EMAIL_9]."
        assert row["people"] == own
        assert own[0] not in row["note"]


@pytest.mark.slow
def test_what_is_restored_changes_the_labels_and_asks_nothing_again(place, tmp_path):
    """Run a Dagster."""
    rows = tickets("ann@x.org", "Nobody")
    before = place(*replies(rows, mask(())))
    land(before)
    assert labels_of(before)["t0"]["people"] == ["[EMAIL_1]"]
    after = place(*replies(rows))
    old, new = (each.repository.asset_graph for each in (before, after))
    versions = [
        [graph.get(dg.AssetKey(name)).code_version for name in (BATCH, REJECTS, LABELS)] for graph in (old, new)
    ]
    assert versions[0][:2] == versions[1][:2]
    assert versions[0][2] != versions[1][2]
    sent = len(after.emulator.books.batches)
    tags = [materialization.tags for materialization in before.materializations().values()]
    assert after.submit().success
    assert after.collect().success
    assert len(after.emulator.books.batches) == sent
    assert labels_of(after)["t0"]["people"] == ["ann@x.org"]
    assert [materialization.tags for materialization in after.materializations().values()] != tags


@pytest.mark.slow
def test_a_row_that_has_changed_or_is_gone_keeps_its_placeholders_and_is_counted(place):
    """Run a Dagster. In the last row, only the value has changed: the label has the present one."""
    bodies = [["ann@x.org", "bob@x.org", "cleo@x.org"], ["Of ann@x.org", "new@x.org"]]
    source = [tickets(*bodies[0])]
    location = place(*replies(lambda _context: source[0]))
    assert location.submit().success
    location.emulator.settle()
    source[0] = tickets(*bodies[1])
    result = location.collect()
    assert result.success
    labels = labels_of(location)
    assert [labels[key]["people"] for key in ("t0", "t1", "t2")] == [["[EMAIL_1]"], ["new@x.org"], ["[EMAIL_1]"]]
    shown = location.metadata(LABELS)
    assert (shown["llm_batch/restored_values"], shown["llm_batch/unresolved_placeholders"]) == (2, 7)


@pytest.mark.slow
def test_a_placeholder_that_stood_in_a_row_gets_no_value(place):
    """Run a Dagster."""
    location = place(*replies(tickets("[EMAIL_1] and [IP_7] wrote: ask ann@x.org")))
    land(location)
    assert labels_of(location)["t0"]["reply"] == "Dear [EMAIL_1] and [IP_7] and ann@x.org, not [EMAIL_9]."
    assert location.metadata()["llm_batch/unresolved_placeholders"] == 5


@pytest.mark.slow
def test_a_row_that_no_longer_meets_the_condition_has_its_values(place):
    """Run a Dagster. The label of t0 exists, whatever the condition is for its row now."""
    source = [[True, False]]

    @dg.asset
    def calls() -> pa.Table:
        return tickets("ann@x.org", "bob@x.org").with_columns(is_open=pl.Series(source[0])).to_arrow()

    location = place(calls, *replies(AssetRows(asset=calls, when="is_open")))
    assert location.run("calls").success
    assert location.submit().success
    location.emulator.settle()
    source[0] = [False, False]
    assert location.run("calls").success
    assert location.collect().success
    assert {key: row["people"] for key, row in labels_of(location).items()} == {"t0": ["ann@x.org"]}


class Quoted:
    """A masker of addresses with a name in quotes."""

    name = "quoted-1"

    def find(self, text: str) -> list[Found]:
        return [Found(*found.span(), "person") for found in re.finditer('"[^"]*" <[^>]*>', text)]


@pytest.mark.slow
def test_a_text_that_is_json_is_json_with_values_that_have_quotes(place):
    quoted = Mask(columns=["body"], by=[Quoted()], restore=["note"])
    location = place(*replies(tickets('as JSON: "Ann" <ann@x.org>'), quoted))
    land(location)
    assert json.loads(labels_of(location)["t0"]["note"]) == {"to": ['"Ann" <ann@x.org>']}


def unknown_row(_context: Any) -> Any:
    raise KeyError("ann@x.org")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (lambda _context: pl.DataFrame({"ticket_id": [7], "subject": ["Hello"]}), "Mask.columns names 'body'"),
        (unknown_row, "an error of the type KeyError"),
        (lambda _context: tickets("ann@x.org").with_columns(ticket_id=pl.lit("eve@x.org")), "of the type ArrowInvalid"),
    ],
)
def test_labels_land_with_placeholders_if_rows_cannot_be_read_and_later_with_values(place, tmp_path, rows, reason):
    """Run a Dagster. The columns are gone, the function fails, or the keys are text instead of numbers."""
    good = tickets("ann@x.org").with_columns(ticket_id=pl.lit(7))
    source: list[Any] = [lambda _context: good]

    def present(context: Any) -> Any:
        return source[0](context)

    location = place(*replies(present))
    assert location.submit().success
    location.emulator.settle()
    source[0] = rows
    assert location.collect().success
    assert labels_of(location)[7]["people"] == ["[EMAIL_1]"]
    shown = location.metadata(LABELS)
    assert (shown["llm_batch/restored_values"], shown["llm_batch/unresolved_placeholders"]) == (0, 3)
    stored = everything_stored(location, tmp_path)
    assert "3 placeholders in people, reply stay: the rows cannot be read again: " in stored
    assert reason in stored
    assert "@x.org" not in stored
    source[0] = lambda _context: good
    assert location.run(*LANDING).success
    assert labels_of(location)[7]["people"] == ["ann@x.org"]


@pytest.mark.slow
def test_rows_of_one_key_with_different_values_restore_nothing(place):
    """Run a Dagster. Only t0 has two values: t1 has the same one twice, and the second row of t2 is another request."""
    source = [tickets("ann@x.org", "bob@x.org", "cleo@x.org")]
    location = place(*replies(lambda _context: source[0]))
    assert location.submit().success
    location.emulator.settle()
    source[0] = pl.concat([source[0], tickets("eve@x.org", "bob@x.org", "Of eve@x.org")])
    assert location.collect().success
    labels = labels_of(location)
    assert [labels[key]["people"] for key in ("t0", "t1", "t2")] == [["[EMAIL_1]"], ["bob@x.org"], ["cleo@x.org"]]
    shown = location.metadata(LABELS)
    assert (shown["llm_batch/restored_values"], shown["llm_batch/unresolved_placeholders"]) == (4, 5)


@pytest.mark.slow
def test_the_data_version_changes_with_the_numbers_of_values_and_of_placeholders(place):
    """Run a Dagster. The row of t1 is gone, and then it is back with another value."""
    source = [tickets("ann@x.org", "bob@x.org")]
    location = place(*replies(lambda _context: source[0]))
    land(location)
    versions = []
    for rows in (source[0], source[0][:1], tickets("ann@x.org", "new@x.org"), source[0].clear()):
        source[0] = rows
        assert location.collect().success
        versions.append(location.materializations()[None].tags["dagster/data_version"])
    plain = versions[3]
    assert versions[:3] == [f"{plain}-restored-{n}-people-reply" for n in ("4-of-6", "2-of-6", "4-of-6")]
    assert "restored" not in plain


@pytest.mark.slow
def test_rows_of_partitioned_assets_and_resources_are_read_again(emulator, instance, tmp_path):
    """Run a Dagster. The run that materializes labels has the resources of the rows, and reads the rows' partition."""

    @dg.asset(partitions_def=DAILY)
    def calls(context) -> pl.DataFrame:
        return tickets(f"{context.partition_key} of a@x.org")

    def rows(context: Any) -> pa.Table:
        loaded = context.load("calls")
        assert context.resources.suffix == "z"
        return loaded

    dataset = replies(
        rows, deps=["calls"], partitions_def=DAILY, required_resource_keys={"suffix"}, backfill_policy=None
    )
    resources = {"io_manager": HiveParquetIOManager(root=str(tmp_path)), "suffix": "z"}
    location = CodeLocation(emulator, instance, calls, *dataset, resources=resources)
    assert location.run("calls", partition=DAYS[1]).success
    assert location.land(partition=DAYS[1]).success
    stored = location.repository.load_asset_value(LABELS, instance=instance, partition_key=DAYS[1])
    assert stored["people"].to_pylist() == [["a@x.org"]]


def staleness(location: CodeLocation, asset: str, partition: str) -> tuple[str, list[str]]:
    """Return the status of a partition on Dagster's page, with its causes."""
    resolver = CachingStaleStatusResolver(
        location.instance, location.repository.asset_graph, LoadingContextForTest(location.instance)
    )
    causes = resolver.get_stale_causes(dg.AssetKey(asset), partition)
    return resolver.get_status(dg.AssetKey(asset), partition).value, [cause.reason for cause in causes]


@pytest.mark.slow
def test_labels_of_a_range_are_fresh_until_their_rows_are_new(place):
    """Run a Dagster. Rejects do not depend on the rows, which have one asset with partitions and one without."""

    @dg.asset
    def senders() -> pl.DataFrame:
        return tickets("Somebody")

    @dg.asset(partitions_def=DAILY)
    def calls(context) -> pl.DataFrame:
        return tickets(f"{context.partition_key} of a@x.org")

    dataset = replies("calls", deps=["senders"], partitions_def=DAILY)
    location = place(senders, calls, *dataset)
    assert location.run("senders").success
    for day in DAYS[:2]:
        assert location.run("calls", partition=day).success
    assert location.land(span=(DAYS[0], DAYS[1])).success
    both = (LABELS, REJECTS)
    assert {staleness(location, asset, day)[0] for asset in both for day in DAYS[:2]} == {"FRESH"}
    assert location.run("calls", partition=DAYS[1]).success
    new = ("STALE", ["has a new dependency materialization"])
    assert [staleness(location, LABELS, day) for day in DAYS[:2]] == [("FRESH", []), new]
    assert location.run("senders").success
    assert staleness(location, LABELS, DAYS[0]) == new
    assert staleness(location, REJECTS, DAYS[0]) == ("FRESH", [])


def test_restored_labels_depend_on_the_rows_and_not_on_gold():
    cascade = Cascade(oracle="openai/gpt-4o", target="topic", within=0.1, gold="people")
    batch, labels = replies("calls", cascade=cascade)
    deps = {key.to_user_string(): {dep.to_user_string() for dep in found} for key, found in labels.asset_deps.items()}
    assert deps == {LABELS: {BATCH, "calls"}, REJECTS: {BATCH}}
    assert {dep.to_user_string() for dep in batch.asset_deps[dg.AssetKey(BATCH)]} == {"calls", "people"}


@table(
    "restore, response, named",
    [
        (("absent",), Answer, "restore names absent, which is no column"),
        (("confidence",), Answer, "restore names confidence"),
    ],
)
def test_columns_that_hold_no_text_of_the_response_are_refused(restore, response, named):
    with pytest.raises(ConfigError, match=named):
        replies(tickets("x"), Mask(columns=["body"], restore=restore), response=response)


def test_a_skew_check_refuses_a_column_that_is_restored():
    with pytest.raises(ConfigError, match=r"target names reply, in which Mask\.restore puts"):
        skew_assets(name="skew", candidates=replies(tickets("x")), target=["topic", "reply"])


class Names:
    name = "names-1"

    def find(self, text: str) -> list[Found]:
        return [Found(found.start(), found.end(), "person") for found in re.finditer("Ann|Bob", text)]


def test_placeholders_of_ones_own_kinds_are_known_and_a_stored_masker_finds_none():
    own = Mask(columns=["text", "note"], by=[Names()])
    assert own.values_of({"text": "Bob and Ann, a@x.org", "note": "Ann"}) == {
        "[PERSON_1]": "Ann",
        "[PERSON_2]": "Bob",
        "[EMAIL_1]": "a@x.org",
    }
    assert re.fullmatch(own.placeholders, "[PERSON_2]")
    assert not re.fullmatch(Mask(columns=["text"]).placeholders, "[PERSON_2]")
    stored = mask_as_of({**own.settings(), "by": ["names-0"]}, own)
    assert stored is not None
    assert stored.is_stored
    assert not own.is_stored


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"prompt": Prompt(user="Sum up: {{ reply }}")}, "reply"),
        ({"prompt": Prompt(user="Sum up: {{ row['reply'] }}")}, "reply"),
        ({"prompt": Prompt(user="Sum up: {{ row }}")}, "people, reply"),
        ({"prompt": Prompt(user="{{ note }}"), "keep": ["reply"]}, "reply"),
        ({"prompt": Prompt(user="{{ reply }} {{ people }}", mask=Mask(columns=["reply"]))}, "people"),
        ({"prompt": Prompt(user="{{ reply }}", mask=Mask(columns=["reply"]))}, None),
        ({"prompt": Prompt(user="{{ note }} {{ body }}"), "keep": ["body"]}, None),
    ],
)
@pytest.mark.parametrize("given", ["definitions", "key"])
def test_a_chain_does_not_send_or_store_restored_values(place, given, changes, read):
    first = replies(tickets("Write to ann@example.com."))

    def second() -> list[dg.AssetsDefinition]:
        rows = AssetRows(asset=first) if given == "definitions" else LABELS
        usual = {"name": "sums", "rows": rows, "keep": [], "response": None}
        return labeled(**{**usual, **changes})

    refusal = f"'sums' reads {read} of {LABELS}"
    if given == "definitions" and read is not None:
        with pytest.raises(ConfigError, match=refusal):
            second()
        return
    location = place(*first, *second())
    land(location)
    assert "ann@example.com" in labels_of(location)["t0"]["reply"]
    result = location.run("sums_batch")
    assert result.success == (read is None)
    if read is not None:
        assert refusal in failure(result)
    payloads = location.engine().payloads
    files = [file.path for file in payloads.files("")]
    stored = [str(payloads.read_table(path).to_pylist()) for path in files if path.endswith(".parquet")]
    others = [path for path in files if not path.endswith(".parquet")]
    stored += [b"".join(payloads.lines(path)).decode(errors="replace") for path in others]
    assert any("[EMAIL_1]" in text for text in stored)
    assert not any("ann@example.com" in text for text in stored)
