"""Stored tables of IO managers: filters, search, facets and pages."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from dagster_llm_batch.addresses import FILTERS, Filter
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.io import HiveParquetIOManager
from dagster_llm_batch.review.stored_rows import StoredTableError
from dagster_llm_batch.review.tables import StoredAsset, TableBrowser, View

ROWS = pa.table(
    {
        "id": pa.array(range(120)),
        "text": [f"row {n} says {'Thanks' if n % 3 else 'NO'}" for n in range(120)],
        "label": [("good", "bad", None)[n % 3] for n in range(120)],
        "cost": pa.array([Decimal(n) / 1000 for n in range(120)], pa.decimal128(20, 12)),
        "when": pa.array([datetime(2026, 1, 1 + n % 28, tzinfo=UTC) for n in range(120)], pa.timestamp("us", "UTC")),
        "tags": [[f"t{n % 2}"] for n in range(120)],
        'odd "name".x': [n % 2 == 0 for n in range(120)],
    }
)


@pytest.fixture
def browser() -> TableBrowser:
    return TableBrowser()


@pytest.fixture
def asset(tmp_path) -> StoredAsset:
    places = {}
    for number in range(3):
        path = tmp_path / f"day-{number}.parquet"
        pq.write_table(ROWS.slice(number * 40, 40), path)
        places[f"2026-01-0{number + 1}"] = str(path)
    return StoredAsset("labels", row_key="id", files=places)


def ids(browser, asset, *filters: Filter, **view) -> list[int]:
    return [row["id"] for row in browser.read(asset, View(filters=filters, **view)).rows]


def expected(keep) -> list[int]:
    return [row["id"] for row in ROWS.to_pylist() if keep(row)][:50]


@pytest.mark.parametrize(
    ("wanted", "keep"),
    [
        (Filter("label", "is", "good"), lambda row: row["label"] == "good"),
        (Filter("label", "not", "good"), lambda row: row["label"] != "good"),
        (Filter("label", "null"), lambda row: row["label"] is None),
        (Filter("label", "some"), lambda row: row["label"] is not None),
        (Filter("text", "has", "thanks"), lambda row: "Thanks" in row["text"]),
        (Filter("cost", "ge", "0.1"), lambda row: row["cost"] >= Decimal("0.1")),
        (Filter("id", "le", "7"), lambda row: row["id"] <= 7),
        (Filter("when", "ge", "2026-01-20"), lambda row: row["when"].day >= 20),
        (Filter("tags", "has", "t1"), lambda row: row["tags"] == ["t1"]),
        (Filter('odd "name".x', "is", "true"), lambda row: row["id"] % 2 == 0),
        (Filter("partition", "is", "2026-01-02"), lambda row: 40 <= row["id"] < 80),
    ],
)
def test_a_filter_keeps_the_rows_that_python_would_keep(browser, asset, wanted, keep):
    page = browser.read(asset, View(filters=(wanted,), order="id"))
    assert [row["id"] for row in page.rows] == expected(keep)
    assert page.total == sum(map(keep, ROWS.to_pylist()))
    assert page.rows_at_all == 120


def test_search_looks_through_all_texts_and_pages_follow_each_other(browser, asset):
    found = browser.read(asset, View(search="SAYS no", order="-id"))
    assert [row["id"] for row in found.rows] == [n for n in reversed(range(120)) if n % 3 == 0]
    pages = [browser.read(asset, View(order="id", page=number)) for number in (1, 2, 3)]
    assert [row["id"] for page in pages for row in page.rows] == list(range(120))
    # The same holds without an order, and with an order in which most rows are equal.
    for order in ("", "label", "-label"):
        pages = [browser.read(asset, View(order=order, page=number)) for number in (1, 2, 3)]
        assert sorted(row["id"] for page in pages for row in page.rows) == list(range(120))
    assert browser.list_addresses(asset, "id") == [(f"2026-01-0{n // 40 + 1}", str(n)) for n in range(120)]
    assert browser.read(asset, View(order="id", page=99)).number == 3


def test_facets_count_what_passes_and_know_all_values(browser, asset):
    page = browser.read(asset, View(filters=(Filter("partition", "is", "2026-01-01"),)))
    facets = {facet.column: dict(facet.values) for facet in page.facets}
    assert facets["label"] == {"good": 14, "bad": 13, None: 13}
    assert facets["partition"] == {"2026-01-01": 40}
    assert facets['odd "name".x'] == {"true": 20, "false": 20}
    assert "text" not in facets


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Filter("nothing", "is", "x"), "no column 'nothing'; there are partition, id, text"),
        (Filter("cost", "ge", "dear"), "cost is compared with a number; got 'dear'"),
        (Filter("cost", "like", "x"), "no filter 'like'; there are is, not"),
    ],
)
def test_a_filter_that_cannot_be_is_refused_in_words(browser, asset, wanted, words):
    with pytest.raises(InputError, match=words):
        browser.read(asset, View(filters=(wanted,)))


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("text", ["'; DROP TABLE x; --", '" OR 1=1', "%", "\\", "{}", "\0", "🙂"])
def test_what_an_address_says_is_never_read_as_sql(browser, asset, kind, text):
    for column in ("text", "label", "tags"):
        page = browser.read(asset, View(search=text, filters=(Filter(column, kind, text),), order=text))
        assert page.total == 0
    assert browser.find(asset, "id", text) == []


def test_a_row_is_found_by_its_key_whatever_its_type(browser, asset):
    page = browser.read(asset, View(order="-id"))
    assert (page.key, page.rows[0].key) == ("id", "119")
    (row,) = browser.find(asset, "id", "119", "2026-01-03")
    assert row["text"] == "row 119 says Thanks"
    assert browser.find(asset, "id", "119", "2026-01-01") == []
    times = StoredAsset("labels", row_key="when", files=asset.files)
    page = browser.read(times, View(order="id"))
    assert {row["when"].day for row in browser.find(times, "when", page.rows[3].key, most=9)} == {4}


def test_partitions_whose_columns_differ_are_one_table(browser, tmp_path):
    pq.write_table(pa.table({"id": [1], "label": ["a"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"label": ["b"], "score": [0.5], "id": [2]}), tmp_path / "2.parquet")
    both = StoredAsset("labels", files={name: str(tmp_path / f"{name}.parquet") for name in "12"})
    rows = {row["id"]: row for row in browser.read(both, View()).rows}
    assert (rows[1]["score"], rows[2]["score"], rows[1]["partition"]) == (None, 0.5, "1")


def test_a_folder_with_a_file_for_each_partition_and_the_layout_of_hive(browser, tmp_path):
    for day in ("d1", "d2"):
        pq.write_table(pa.table({"id": [day]}), tmp_path / f"{day}.parquet")
    one = StoredAsset("labels", files={"d2": str(tmp_path)})
    assert [row["id"] for row in browser.read(one, View()).rows] == ["d2"]

    manager = HiveParquetIOManager(root=str(tmp_path / "hive"))
    key = dg.AssetKey("labels")
    places = {}
    for day in ("d1", "d 2"):
        context = dg.build_output_context(asset_key=key, partition_key=day)
        manager.handle_output(context, pa.table({"id": [day, "x"]}))
        places[day] = manager.folder(key, day)
    hive = StoredAsset("labels", files=places)
    page = browser.read(hive, View(filters=(Filter("partition", "is", "d 2"),)))
    assert [row["id"] for row in page.rows] == ["d 2", "x"]


def test_answers_are_kept_while_the_files_stay_as_they_are_and_no_longer(browser, tmp_path):
    files = {day: tmp_path / f"{day}.parquet" for day in ("d1", "d2")}
    for file in files.values():
        pq.write_table(pa.table({"id": ["a", "b"], "gold": ["x", "y"], "label": ["x", "x"]}), file)
    asset = StoredAsset("labels", files={day: str(file) for day, file in files.items()})

    def answers():
        return (
            browser.counts(asset)["d1"],
            browser.count_differing(asset, "label", "gold", "d1"),
            [row["id"] for row in browser.rows_with(asset, "label", "x", "d1")],
            [key for _, key in browser.list_addresses(asset, "id", None, "d1")],
            "more" in browser.columns(asset),
        )

    before = (2, 1, ["a", "b"], ["a", "b"], False)
    assert answers() == before
    told, newest = (file.stat() for file in files.values())
    other = pa.table({"id": ["c", "d"], "gold": ["y", "z"], "label": ["x", "x"]})
    pq.write_table(other, files["d1"])
    # The same size and time: nothing shows that the file has changed, so it is not read again.
    assert files["d1"].stat().st_size == told.st_size
    os.utime(files["d1"], ns=(told.st_atime_ns, told.st_mtime_ns))
    browser.forget()
    assert answers() == before
    os.utime(files["d1"], ns=(told.st_atime_ns, told.st_mtime_ns + 1_000))
    assert answers() == (2, 2, ["c", "d"], ["c", "d"], False)
    pq.write_table(other.slice(1).append_column("more", pa.array([1])), files["d1"])
    pq.write_table(other.append_column("more", pa.array([1, 2])), files["d2"])
    assert newest.st_size != files["d2"].stat().st_size
    assert answers() == (1, 1, ["d"], ["d"], True)
    files["d1"].unlink()
    assert browser.counts(asset) == {"d2": 2}
    with pytest.raises(InputError, match="files of this table are gone"):
        browser.list_addresses(asset, "id", None, "d1")


def test_answers_about_an_object_store_are_kept_until_the_next_materialization(browser):
    with UPath("memory://kept/labels.parquet").open("wb") as file:
        pq.write_table(pa.table({"id": ["a"]}), file)
    asset = StoredAsset("labels", files={"": "memory://kept/labels.parquet"}, at=datetime(2026, 1, 1, tzinfo=UTC))
    unknown = replace(asset, key="unknown", at=None)
    assert (browser.counts(asset), browser.counts(unknown)) == ({"": 1}, {"": 1})
    with UPath("memory://kept/labels.parquet").open("wb") as file:
        pq.write_table(pa.table({"id": ["a", "b"]}), file)
    assert (browser.counts(asset), browser.counts(unknown)) == ({"": 1}, {"": 1})
    browser.forget()
    assert (browser.counts(asset), browser.counts(unknown)) == ({"": 1}, {"": 2})
    assert browser.counts(replace(asset, at=datetime(2026, 1, 2, tzinfo=UTC))) == {"": 2}


def test_what_lies_elsewhere_is_loaded_one_partition_at_a_time_and_says_so(browser):
    loads: list[str] = []

    def load(partition: str) -> pa.Table:
        loads.append(partition)
        return pa.table({"id": [f"{partition}-1"]})

    asset = StoredAsset("labels", row_key="id", others=("a", "b"), load=load)
    page = browser.read(asset, View())
    assert (page.rows[0]["id"], page.rows[0]["partition"]) == ("b-1", "b")
    assert "one partition is loaded at a time, here b" in (page.told or "")
    assert [dict(row) for row in browser.find(asset, "id", "a-1", "a")] == [{"partition": "a", "id": "a-1"}]
    browser.read(asset, View())
    assert loads == ["b", "a"]
    browser.forget()
    browser.read(asset, View())
    assert loads == ["b", "a", "b"]


def test_a_table_has_its_own_columns_alone(browser, asset):
    assert browser.read(asset, View()).columns == ("partition", *ROWS.column_names)
    assert set(browser.read(asset, View()).rows[0]) == {"partition", *ROWS.column_names}


@pytest.mark.parametrize(
    "name",
    ["filename", "file_row_number", "file_index", "llm_review_key", "*", "partition", "c0", "line", "FILE", '"'],
)
def test_a_column_of_any_name_is_a_column(browser, tmp_path, name):
    for number in (1, 2):
        rows = {"id": [f"{number}a", f"{number}b"], name: [f"x{number}", f"y{number}"]}
        pq.write_table(pa.table(rows), tmp_path / f"{number}.parquet")
    stored = StoredAsset("labels", row_key="id", files={part: str(tmp_path / f"{part}.parquet") for part in "12"})
    loaded = StoredAsset("labels", row_key="id", others=("2",), load=lambda _: pa.table(rows))
    for asset, ids in ((stored, ["1b", "2b"]), (loaded, ["2b"])):
        page = browser.read(asset, View(filters=(Filter(name, "has", "y"),), search="y", order=name))
        assert [(row["id"], row[name], row.partition) for row in page.rows] == [(i, f"y{i[0]}", i[0]) for i in ids]
        assert page.total == len(ids)
        assert page.columns == (() if name == "partition" else ("partition",)) + ("id", name)
        assert [row.partition for row in browser.find(asset, name, "y2")] == ["2"]
        assert browser.list_addresses(asset, name)[-1] == ("2", "y2")


def test_columns_that_differ_by_case_are_all_there(browser, tmp_path):
    pq.write_table(pa.table({"id": ["a"], "ID": ["b"]}), tmp_path / "t.parquet")
    (row,) = browser.read(StoredAsset("t", files={"": str(tmp_path / "t.parquet")}), View()).rows
    assert list(row.columns.values()) == ["a", "b"]


@pytest.mark.parametrize("folder", ["a[bc]", "a*", "a?", "[!a]", "{a,b}"])
def test_names_of_files_are_no_patterns(browser, tmp_path, folder):
    places = {}
    for name in (folder, "ab", "ac"):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"id": [name] * 3}), tmp_path / name / f"{name}.parquet")
        places[name] = str(tmp_path / name)
    page = browser.read(StoredAsset("labels", files=places), View())
    assert (page.total, page.told) == (9, None)
    assert {(row["id"], row.partition) for row in page.rows} == {(name, name) for name in places}


@pytest.mark.parametrize(
    ("first", "second"),
    [([1, 2], ["one", None]), ([{"a": 1}, None], [3, 4]), ([["x"], []], [{"a": 1}] * 2), ([True, False], [b"x", b"y"])],
)
def test_a_column_may_change_its_type_between_partitions(browser, tmp_path, first, second):
    for part, values in (("1", first), ("2", second)):
        more = {"only": [part] * 2} if part == "2" else {}
        pq.write_table(pa.table({"id": ["a", "b"], "value": values, **more}), tmp_path / f"{part}.parquet")
    both = StoredAsset("labels", row_key="id", files={part: str(tmp_path / f"{part}.parquet") for part in "12"})
    page = browser.read(both, View())
    assert [(row["id"], row.partition, row["only"]) for row in page.rows] == [
        ("a", "1", None),
        ("b", "1", None),
        ("a", "2", "2"),
        ("b", "2", "2"),
    ]
    assert [row["value"] is None for row in page.rows] == [value is None for value in (*first, *second)]
    assert browser.read(both, View(filters=(Filter("value", "some"),), order="-value")).total >= 3


def test_damaged_files_are_left_out_and_told_and_the_rest_is_shown(browser, asset, tmp_path):
    whole = (tmp_path / "day-1.parquet").read_bytes()
    for damage in (b"", b"no Parquet", whole[: len(whole) // 2], whole[:-4] + b"PARX"):
        (tmp_path / "day-1.parquet").write_bytes(damage)
        page = browser.read(asset, View(order="id"))
        assert (page.total, [row["id"] for row in page.rows][:41]) == (80, [*range(40), 80])
        assert page.told is not None
        assert page.told.startswith("1 of 3 files cannot be read, and is left out: ")
        assert "day-1.parquet" in page.told
        with pytest.raises(StoredTableError, match="cannot be read"):
            browser.read(asset, View(), "2026-01-02")
    pages = bytearray(whole)
    pages[4:400] = b"\xff" * 396
    (tmp_path / "day-1.parquet").write_bytes(pages)
    with pytest.raises(StoredTableError, match=r"labels cannot be read: .* materialize its partition again"):
        browser.read(asset, View())


def test_an_io_manager_that_fails_is_a_sentence(browser):
    def load(_partition: str) -> pa.Table:
        raise RuntimeError("the warehouse sleeps\nTraceback of it")

    with pytest.raises(StoredTableError, match=r"labels cannot be read: the warehouse sleeps\."):
        browser.read(StoredAsset("labels", others=("",), load=load), View())


def test_files_that_are_gone_are_told(browser, tmp_path):
    gone = StoredAsset("labels", files={"": str(tmp_path / "gone.parquet")})
    with pytest.raises(InputError, match="The files of this table are gone"):
        browser.read(gone, View())
    with pytest.raises(InputError, match="nothing stored of d9"):
        browser.read(gone, View(), "d9")
