"""Rows of a CSV or Parquet file in real runs; a wrong file is refused before anything is sent."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from code_location import DAILY, DAYS, LABELS, failure, labeled

from dagster_llm_batch import FileRows
from dagster_llm_batch.errors import ConfigError, InputError

TICKETS = "ticket_id,subject,body,day\n"


@pytest.fixture
def csv(tmp_path):
    """Write six tickets, three a day; a text has a comma, quotes and a line break."""
    lines = [f'00{i},Subject {i},"Body {i}, ""late""\nagain",{DAYS[i % 2]}T08:0{i}\n' for i in range(6)]
    path = tmp_path / "tickets.csv"
    path.write_text(TICKETS + "".join(lines), encoding="utf-8")
    return path


def read(
    rows: FileRows, partition: str | None = None, partitions_def: dg.PartitionsDefinition = DAILY
) -> list[dict[str, Any]]:
    @dg.asset(partitions_def=partitions_def)
    def reader() -> None: ...

    graph = dg.Definitions([reader]).get_repository_def().asset_graph
    context: Any = SimpleNamespace(
        partition_key=partition, upstream=SimpleNamespace(graph=graph, reader=dg.AssetKey("reader"))
    )
    return [row for batch in rows(context) for row in batch.to_pylist()]


def test_labels_of_a_file_land_by_the_partitions_of_a_column(make, csv):
    location = make(*labeled(rows=FileRows(path=str(csv), partition_column="day"), partitions_def=DAILY))
    for number, day in enumerate(DAYS[:2]):
        assert location.land(partition=day).success
        records = location.metadata(LABELS, day)["llm_batch/preview"].records
        assert {record.data["ticket_id"] for record in records} == {f"00{i}" for i in range(6) if i % 2 == number}
    assert read(FileRows(path=str(csv)))[5]["body"] == 'Body 5, "late"\nagain'


def test_each_value_of_a_csv_is_text_exactly_as_written(tmp_path):
    path = tmp_path / "odd.tsv"
    path.write_text('\ufeffid;n;when;text\n007;1.50;2026-01-01;NULL\n008;;;""\n', encoding="utf-8")
    assert read(FileRows(path=str(path), delimiter=";")) == [
        {"id": "007", "n": "1.50", "when": "2026-01-01", "text": "NULL"},
        {"id": "008", "n": "", "when": "", "text": ""},
    ]


def test_values_of_parquet_keep_their_types_and_dates_and_times_are_days(tmp_path):
    times = [datetime(2026, 1, 1, 9, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)]
    for number, days in enumerate(([time.date() for time in times], times)):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"id": [1, 2], "day": days}), path)
        rows = FileRows(path=str(path), partition_column="day")
        assert read(rows, "2026-01-02") == [{"id": 2, "day": days[1]}]
        assert read(rows, "2026-01-03") == []
        assert rows.read().column("id").to_pylist() == [1, 2]


def test_static_partitions_are_the_values_themselves(tmp_path):
    path = tmp_path / "shops.csv"
    path.write_text("id,shop\n1,de\n2,de-at\n3,de\n")
    rows = FileRows(path=str(path), partition_column="shop")
    static = dg.StaticPartitionsDefinition(["de", "de-at"])
    assert [row["id"] for row in read(rows, "de", static)] == ["1", "3"]
    assert [row["id"] for row in read(rows, "de-at", static)] == ["2"]


def test_static_partitions_that_look_like_days_are_the_values_themselves(tmp_path):
    path = tmp_path / "releases.csv"
    path.write_text("id,release\n1,2026-01-31\n2,2026-01-31-hotfix\n3,next\n")
    rows = FileRows(path=str(path), partition_column="release")
    static = dg.StaticPartitionsDefinition(["2026-01-31", "2026-01-31-hotfix", "next"])
    assert [[row["id"] for row in read(rows, key, static)] for key in static.get_partition_keys()] == [
        ["1"],
        ["2"],
        ["3"],
    ]


@pytest.mark.parametrize("rows_before", [0, 150_000])
def test_a_csv_has_rows_of_megabytes(tmp_path, rows_before):
    """Fill more than a block with short rows before the long one: they are read twice, and returned once."""
    lengths = [20] * rows_before + [3_000_000, 1, 40_000_000, 2]
    path = tmp_path / "long.csv"
    path.write_text("id,body\n" + "".join(f'{at},"{"x" * length}"\n' for at, length in enumerate(lengths)))
    table = FileRows(path=str(path)).read()
    assert table["id"].to_pylist() == [str(at) for at in range(len(lengths))]
    assert pc.utf8_length(table["body"]).to_pylist() == lengths


@pytest.mark.parametrize(
    ("last", "value"),
    [
        ('"two\nlines"', "two\nlines"),
        ('"two\nlines"\n', "two\nlines"),
        ('"two\nlines, ""quoted"""\r\n\n', 'two\nlines, "quoted"'),
        ('5" pipe\n', '5" pipe'),
        ('"5"" pipe"', '5" pipe'),
    ],
)
def test_the_last_value_of_a_csv_may_have_quotes_and_several_lines(tmp_path, last, value):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,body\n1,one\n2," + last.encode())
    assert read(FileRows(path=str(path)))[1] == {"id": "2", "body": value}


@pytest.mark.parametrize("rows_before", [0, 10, 40_000])
@pytest.mark.parametrize("rest", ["", 'last,say ""hi""\n'])
def test_a_quote_that_is_not_closed_is_no_value_of_all_following_rows(tmp_path, rows_before, rest):
    rows = [f"{at},{'text ' * 10}\n" for at in range(40_000)]
    path = tmp_path / "open.csv"
    path.write_text("".join(["id,body\n", *rows[:rows_before], 'x,"open\n', *rows[:30_000], rest]))
    with pytest.raises(InputError, match=r"open\.csv ends within a quote that is not closed\. Nothing was sent"):
        FileRows(path=str(path)).read()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,day\n1,2026-01-01\n2,31.01.2026\n", "holds '31.01.2026', which does not begin with a date"),
        ("id,day\n1,\n", "holds nothing, which does not begin with a date"),
        ("id,when\n1,2026-01-01\n", "has no column 'day' (partition_column). Its columns: id, when"),
        ("id,day\n1\n", "cannot be read: CSV parse error"),
        (
            "id,text,day\n1,ann@x.org\n",
            "Expected 3 columns, got 2. Nothing was sent. Put quotes around each text that contains",
        ),
        ("", "Empty CSV file. Nothing was sent. The file has no header line: write the names of the columns"),
        (b"id,day\n\xff\xfe,2026-01-01\n", "invalid UTF8"),
        ("\n\n", "cannot infer number of columns. Nothing was sent. The file has no header line"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_what_to_do(tmp_path, text, said):
    path = tmp_path / "rows.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as refused:
        read(FileRows(path=str(path), partition_column="day"), "2026-01-01")
    assert said in str(refused.value)
    assert "Nothing was sent" in str(refused.value)


def test_a_run_without_the_file_fails_and_sends_nothing(make, emulator, tmp_path):
    location = make(*labeled(rows=FileRows(path=str(tmp_path / "none.csv"))))
    said = failure(location.submit())
    assert "there is no file" in said
    assert not emulator.books.batches


@pytest.mark.parametrize(
    ("rows", "partitions_def", "said"),
    [
        (FileRows(path="a.csv"), DAILY, "would send, and pay for, all rows of a.csv"),
        (FileRows(path="a.csv", partition_column="day"), None, "the dataset has no partitions"),
        (
            FileRows(path="a.csv", partition_column="day"),
            dg.WeeklyPartitionsDefinition("2026-01-04"),
            "takes daily, static or dynamic partitions, not a WeeklyPartitionsDefinition",
        ),
        (
            FileRows(path="a.csv", partition_column="day"),
            dg.DailyPartitionsDefinition("01/01/2026", fmt="%d/%m/%Y"),
            "takes days that are named as 2026-01-31; fmt='%d/%m/%Y' names them otherwise. Leave fmt out",
        ),
        (
            FileRows(path="a.csv", partition_column="day"),
            dg.DailyPartitionsDefinition("2026-01-01", hour_offset=6),
            "takes days from midnight to midnight; these start at 06:00. Leave hour_offset",
        ),
    ],
)
def test_partitions_that_a_file_cannot_give_are_refused_when_they_are_declared(rows, partitions_def, said):
    with pytest.raises(ConfigError) as refused:
        labeled(rows=rows, partitions_def=partitions_def)
    assert said in str(refused.value)


def test_another_kind_of_file_and_a_delimiter_of_two_characters_are_refused():
    with pytest.raises(ConfigError, match=r"must end in \.csv, \.tsv, \.txt or \.parquet"):
        FileRows(path="comments.xlsx")
    with pytest.raises(ConfigError, match="must be one character"):
        FileRows(path="comments.csv", delimiter="||")
