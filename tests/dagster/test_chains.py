"""One dataset's labels are another's rows: `AssetRows(when=…)` sends on only the rows that need it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import polars as pl
import pyarrow as pa
import pytest
from code_location import DAILY, DAYS, CodeLocation, failure, labeled
from pydantic import BaseModel
from test_batch_sensor import at_turn, tick

from dagster_llm_batch import AssetRows, Checks, HiveParquetIOManager, Prompt, Resend, llm_batch_assets, on_labels_ready
from dagster_llm_batch.assets.asset_rows import choose_rows
from dagster_llm_batch.assets.upstream import UpstreamReader
from dagster_llm_batch.core.row_condition import RowCondition
from dagster_llm_batch.distributed import RayWorkers
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.testing.emulator import Emulator
from dagster_llm_batch.testing.emulator.answers import last_user_text
from tests.tables import table

KINDS, INVOICES = "kinds", "invoices"


class Kind(BaseModel):
    kind: Literal["invoice", "letter"] | None
    urgent: bool


class Invoice(BaseModel):
    total: int


def answer(body: Any, _endpoint: str) -> Any:
    """Answer as the text asks: a row's text names its kind, and an invoice its total."""
    words = last_user_text(body).split()
    if words[0] == "Total:":
        return {"total": int(words[-1])}
    if "broken" in words:
        return {"kind": "none of them"}
    kind = next((word for word in words if word in ("invoice", "letter")), None)
    return {"kind": kind, "urgent": "urgent" in words}


def texts(context: Any) -> pl.DataFrame:
    """Return two invoices, a letter, a text of no kind, and one without a label."""
    day = context.partition_key or "t"
    return pl.DataFrame({"id": [f"{day}-{n}" for n in range(5)], "text": texts_of(day)})


def texts_of(day: str) -> list[str]:
    return [f"{day} {kind} {n}" for n, kind in enumerate(("urgent invoice", "invoice", "letter", "note", "broken"))]


def kinds(**changes: Any) -> list[dg.AssetsDefinition]:
    usual = {"name": KINDS, "rows": texts, "key": "id", "keep": ["text"], "response": Kind, "partitions_def": DAILY}
    prompt = Prompt(user="Kind: {{ text }}")
    # One of five texts never gets a label.
    checks = Checks(min_coverage=0.8, min_parse_rate=0.8)
    return labeled(**{**usual, "prompt": prompt, "resend": Resend(max_waves=1), "checks": checks, **changes})


def invoices(first: list[dg.AssetsDefinition], when: str | None, **changes: Any) -> list[dg.AssetsDefinition]:
    usual = {"name": INVOICES, "key": "id", "response": Invoice, "partitions_def": DAILY}
    prompt = Prompt(user="Total: {{ text }}")
    return labeled(**{**usual, "prompt": prompt, "rows": AssetRows(asset=first, when=when), **changes})


@pytest.fixture
def asked() -> list[str]:
    """The texts of all requests that reached the model, in order."""
    return []


@pytest.fixture
def emulator(asked: list[str]) -> Iterator[Emulator]:
    def noted(body: Any, endpoint: str) -> Any:
        asked.append(last_user_text(body))
        return answer(body, endpoint)

    with Emulator(answer=noted) as running:
        yield running


@pytest.fixture
def chained(make, tmp_path: Path) -> Any:
    """Return a function that makes a code location of `kinds`, and `invoices` of those that meet a condition."""

    def location(when: str | None = "kind == 'invoice'", first: Any = None, **changes: Any) -> CodeLocation:
        first = first or kinds()
        store = {"io_manager": HiveParquetIOManager(root=str(tmp_path / "tables"))}
        return make(*first, *invoices(first, when, **changes), resources=store)

    return location


def land(location: CodeLocation, name: str, **where: Any) -> dg.ExecuteInProcessResult:
    assert location.run(f"{name}_batch", **where).success
    location.emulator.settle()
    result = location.run(name, f"{name}_rejects", **where)
    assert result.success
    return result


def keys(location: CodeLocation, name: str, day: str) -> list[str]:
    """Return the last parts of the stored keys."""
    stored = location.repository.load_asset_value(dg.AssetKey(name), instance=location.instance, partition_key=day)
    return sorted(key.rpartition("-")[2] for key in stored["id"].to_pylist())


@pytest.mark.slow
def test_only_rows_that_meet_the_condition_go_on_and_the_others_are_neither_rejects_nor_lost(chained):
    """It runs a Dagster. The row without a kind has the condition null, and the broken one never was a label."""
    location = chained(checks=Checks(min_coverage=1))
    land(location, KINDS, partition=DAYS[0])
    assert keys(location, KINDS, DAYS[0]) == ["0", "1", "2", "3"]
    result = land(location, INVOICES, partition=DAYS[0])
    assert keys(location, INVOICES, DAYS[0]) == ["0", "1"]
    assert keys(location, f"{INVOICES}_rejects", DAYS[0]) == []
    assert location.checks(result)[DAYS[0], "coverage"]
    sent = location.metadata(f"{INVOICES}_batch", DAYS[0])
    assert (sent["llm_batch/rows"], sent["llm_batch/rows_left_out_by_when"]) == (2, 2)
    labels = location.metadata(INVOICES, DAYS[0])
    assert (labels["llm_batch/rows_succeeded"], labels["llm_batch/rows_rejected"]) == (2, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("knd == 'invoice'", "names the column 'knd', which the rows do not have"),
        ("kind == 1", "kind is of type string, and 1 of type int64. They cannot be compared"),
        ("text", "text is of type string, and not true or false"),
    ],
)
def test_a_condition_that_does_not_fit_the_labels_is_refused_before_anything_is_sent(chained, asked, when, said):
    """It runs a Dagster."""
    location = chained(when)
    land(location, KINDS, partition=DAYS[0])
    assert len(asked) == 5
    refused = location.run(f"{INVOICES}_batch", partition=DAYS[0])
    assert said in failure(refused)
    assert "Nothing was sent." in failure(refused)
    assert len(location.emulator.books.batches) == 1


@table(
    "asset, when, said",
    [
        (KINDS, "kind = 'invoice'", "cannot be read"),
        (KINDS, "kind.upper() == 'A'", "is not allowed here"),
        (KINDS, 1, "AssetRows.when=1 is not allowed; it takes str or None"),
        ([dg.AssetsDefinition.from_op(dg.OpDefinition(lambda _c, _i: None, name="a"))] * 2, None, "Expected one asset"),
    ],
)
def test_a_link_that_cannot_work_is_refused_when_it_is_declared(asset: Any, when: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        llm_batch_assets(
            name=INVOICES,
            rows=AssetRows(asset=asset, when=when),
            key="id",
            prompt=Prompt(user="{{ text }}"),
            model="openai/gpt-4o",
        )


def test_a_condition_is_refused_beside_workers_which_read_the_rows_elsewhere() -> None:
    with pytest.raises(ConfigError, match="Leave workers= out, or filter the rows in an asset"):
        invoices(kinds(), "urgent", workers=RayWorkers())


def test_a_condition_is_checked_for_a_table_without_rows_unless_it_has_no_columns(instance) -> None:
    upstream = UpstreamReader(None, instance, dg.AssetKey(INVOICES), None, [], lambda _key, _partition: None)
    condition = RowCondition("knd == 'invoice'")
    with pytest.raises(InputError, match="names the column 'knd'"):
        list(choose_rows(pa.table({"kind": pa.array([], pa.string())}), condition, None, upstream))
    assert [batch.num_rows for batch in choose_rows(pa.table({}), condition, None, upstream)] == [0]


def test_the_labels_are_what_the_next_dataset_depends_on_by_their_definitions_or_their_key() -> None:
    first = kinds(key_prefix="crm")
    for asset in (first, f"crm/{KINDS}", ["crm", KINDS], dg.AssetKey(["crm", KINDS])):
        [submission, _] = invoices(first, "urgent", rows=AssetRows(asset=asset, when="urgent"))
        [spec] = submission.specs
        assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey(["crm", KINDS])]
        assert spec.metadata["llm_batch/when"] == "urgent"


def test_days_that_a_chain_cannot_map_are_refused_when_it_is_declared() -> None:
    with pytest.raises(ConfigError, match="crm/kinds has other partitions than invoices_batch"):
        invoices(kinds(key_prefix="crm"), None, partitions_def=dg.StaticPartitionsDefinition(["a"]))


def test_a_condition_is_part_of_the_code_version_of_the_submission_alone() -> None:
    versions = [
        {spec.key.path[-1]: spec.code_version for one in invoices(kinds(), when) for spec in one.specs}
        for when in (None, "urgent", "not urgent")
    ]
    assert len({one[f"{INVOICES}_batch"] for one in versions}) == 3
    assert len({one[INVOICES] for one in versions}) == 1


@pytest.mark.slow
def test_a_backfill_goes_on_partition_by_partition_and_a_later_change_asks_only_what_is_new(chained, asked):
    """It runs a Dagster, whose runs cover two days. A change in the second asks nothing of the first."""
    days = (DAYS[0], DAYS[1])
    location = chained()
    land(location, KINDS, span=days)
    land(location, INVOICES, span=days)
    assert [keys(location, INVOICES, day) for day in days] == [["0", "1"]] * 2
    for day in days:
        sent = location.metadata(f"{INVOICES}_batch", day)
        assert (sent["llm_batch/rows"], sent["llm_batch/rows_left_out_by_when"]) == (2, 2)
    of_kinds = [f"Kind: {text}" for day in days for text in texts_of(day)]
    of_invoices = [f"Total: {text}" for day in days for text in texts_of(day)[:2]]
    assert sorted(asked) == sorted([*of_kinds, *of_invoices])
    version = location.metadata(KINDS, DAYS[0])["llm_batch/submission_id"]
    asked.clear()

    changed = chained(prompt=Prompt(system="Be exact.", user="Total: {{ text }}"))
    for name in (KINDS, INVOICES):
        land(changed, name, partition=DAYS[0])
    assert sorted(asked) == [f"Total: {text}" for text in sorted(texts_of(DAYS[0])[:2])]
    assert changed.metadata(KINDS, DAYS[0])["llm_batch/submission_id"] == version
    asked.clear()

    wider = chained("kind == 'letter' or urgent", prompt=Prompt(system="Be exact.", user="Total: {{ text }}"))
    land(wider, INVOICES, partition=DAYS[0])
    assert asked == [f"Total: {texts_of(DAYS[0])[2]}"]
    assert keys(wider, INVOICES, DAYS[0]) == ["0", "2"]


@pytest.mark.slow
def test_a_day_without_rows_for_the_next_step_lands_as_an_empty_table_that_costs_nothing(chained, asked):
    """It runs a Dagster."""
    location = chained("urgent and kind == 'letter'")
    land(location, KINDS, partition=DAYS[0])
    land(location, INVOICES, partition=DAYS[0])
    assert keys(location, INVOICES, DAYS[0]) == []
    assert location.metadata(f"{INVOICES}_batch", DAYS[0])["llm_batch/rows_left_out_by_when"] == 4
    assert len(asked) == 5


@pytest.mark.slow
def test_a_week_goes_on_with_the_rows_of_all_its_days_by_dagsters_own_mapping(chained):
    """It runs a Dagster."""
    weekly = dg.WeeklyPartitionsDefinition("2026-01-04", end_date="2026-02-01")
    deps = [dg.AssetDep(KINDS, metadata={"allow_missing_partitions": True})]
    location = chained("kind is not None", partitions_def=weekly, deps=deps, frame="batches")
    land(location, KINDS, span=("2026-01-05", "2026-01-06"))
    land(location, INVOICES, partition="2026-01-04")
    sent = location.metadata(f"{INVOICES}_batch", "2026-01-04")
    assert (sent["llm_batch/rows"], sent["llm_batch/rows_left_out_by_when"]) == (6, 2)
    assert (sent["llm_batch/upstream_partitions"], sent["llm_batch/upstream_partitions_missing"]) == (2, 5)


@pytest.mark.slow
def test_the_sensor_and_a_condition_take_each_day_through_both_steps_without_a_person(chained, asked):
    """It runs a Dagster: ticks of the sensor and of the automation, whose runs are launched as the daemon does."""
    location = chained(automation_condition=on_labels_ready())
    found = dg.evaluate_automation_conditions(location.defs, location.instance)
    assert location.run(f"{KINDS}_batch", span=(DAYS[0], DAYS[1])).success
    begun = []
    for _ in range(4):
        location.emulator.settle()
        at_turn(location)
        for request in location.tick().run_requests:
            begun.append(min(key.to_user_string() for key in request.asset_selection))
            assert location.launch(request).success
        found = dg.evaluate_automation_conditions(location.defs, location.instance, cursor=found.cursor)
        for day in sorted(found.get_requested_partitions(dg.AssetKey(f"{INVOICES}_batch"))):
            begun.append(f"{INVOICES}_batch {day}")
            assert location.run(f"{INVOICES}_batch", partition=day).success
    assert sorted(set(begun)) == [INVOICES, *(f"{INVOICES}_batch {day}" for day in DAYS[:2]), KINDS]
    assert [keys(location, INVOICES, day) for day in DAYS[:2]] == [["0", "1"]] * 2
    assert len(asked) == len(set(asked)) == 14
    assert tick(location).skip_message == "no batches in flight"
