"""A condition is parsed and computed, never run; what it does not take is refused by name before anything is paid."""

from datetime import date
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from dagster_llm_batch.core.row_condition import RowCondition
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import ConfigError, InputError
from tests.tables import table

ROWS = pl.DataFrame(
    {
        "kind": ["invoice", "letter", None, "it's"],
        "amount": [10, 200, None, -5],
        "share": [0.5, float("nan"), None, 0.9],
        "urgent": [True, False, None, True],
        "late": pl.Series([None] * 4, dtype=pl.Null),
        "party": [
            {"name": "Ann", "of": {"city": "Bern"}},
            {"name": None, "of": None},
            None,
            {"name": "Bo", "of": None},
        ],
        "net amount": [1, 2, 3, 4],
        "class": ["a", "b", "a", None],
        "True": [True, True, False, False],
        "day": [date(2026, 1, 1)] * 4,
        "tags": [["a"], [], None, ["b"]],
    },
    strict=False,
)
T, F, N = True, False, None


def computed(text: str) -> list[Any]:
    [batch] = record_batches(ROWS)
    return RowCondition(text).compute(batch).to_pylist()


@table(
    "text, found",
    [
        ("urgent", [T, F, N, T]),
        ("not urgent", [F, T, N, F]),
        ("urgent == True", [T, F, N, T]),
        ("late", [N] * 4),
        ("kind == 'invoice'", [T, F, N, F]),
        ("'invoice' != kind", [F, T, N, T]),
        ('kind == "it\'s"', [F, F, N, T]),
        (" kind in ['invoice', 'letter'] ", [T, T, N, F]),
        ("kind not in ('invoice',)", [F, T, N, T]),
        ("kind is None", [F, F, T, F]),
        ("kind is not None", [T, T, F, T]),
        ("share is None", [F, T, T, F]),
        ("amount > 10.5", [F, T, N, F]),
        ("amount == -5", [F, F, N, T]),
        ("amount == -9223372036854775808", [F, F, N, F]),
        ("kind == '\\d'", [F, F, N, F]),
        ("col('True')", [T, T, F, F]),
        ("not " * 40 + "urgent", [T, F, N, T]),
        ("-10 < amount <= 10", [T, F, N, T]),
        ("amount > col('net amount')", [T, T, N, F]),
        ("late == 'x'", [N] * 4),
        ("urgent or kind == 'letter'", [T, T, N, T]),
        ("urgent and kind == 'invoice'", [T, F, N, F]),
        ("urgent or amount is None", [T, F, T, T]),
        ("not (urgent and amount > 0)", [F, T, N, T]),
        ("party.name == 'Ann'", [T, N, N, F]),
        ("party.of.city is None", [F, T, T, T]),
        ("class", None),
        ("col('class') == 'a'", [T, F, T, N]),
    ],
)
def test_a_condition_is_true_false_or_null_as_in_sql(text: str, found: list[Any] | None) -> None:
    if found is None:
        with pytest.raises(InputError, match="class is of type string, and not true or false"):
            computed(text)
    else:
        assert computed(text) == found


@table(
    "text, said",
    [
        ("", "cannot be read"),
        ("kind = 'invoice'", "cannot be read"),
        ("kind == 'a", "cannot be read"),
        ("\0", "cannot be read"),
        ("not " * 3_000 + "a", "it takes 2,000 at most"),
        ("(" * 900 + "a" + ")" * 900, "cannot be read"),
        ("True == False", "a comparison needs a column"),
        ("'a'", "is not allowed here"),
        ("__import__('os').system('true')", "is not allowed here"),
        ("kind.upper() == 'A'", r"'kind.upper\(\)' is not allowed here"),
        ("len(kind) > 3", r"'len\(kind\)' is not allowed here"),
        ("amount + 1 > 3", "'amount [+] 1' is not allowed here"),
        ("[kind for kind in amount]", "is not allowed here"),
        ("lambda: kind", "is not allowed here"),
        ("(kind := 3) == 3", "is not allowed here"),
        ("kind[0] == 'a'", "is not allowed here"),
        ("f'{kind}' == 'a'", "is not allowed here"),
        ("kind == b'a'", "is not allowed here"),
        ("amount == 1e999", "is not allowed here"),
        ("amount == 9223372036854775808", "is not allowed here"),
        ("amount == -9223372036854775809", "is not allowed here"),
        ("amount == -True", "is not allowed here"),
        ("kind == -'a'", "is not allowed here"),
        ("True", "'True' is not allowed here"),
        ("False", "'False' is not allowed here"),
        ("None", "'None' is not allowed here"),
        ("a" + ".b" * 600 + " == 1", "in more than 50 levels"),
        ("a == -" + "+" * 300 + "1", "in more than 50 levels"),
        ("[" * 60 + "1" + "]" * 60, "in more than 50 levels"),
        (r"kind == '\ud800'", r"'\\\\ud800'\" is not allowed here"),
        ("kind == '\ud800'", "cannot be read"),
        (r"kind in ['\ud800']", "`in` takes a column, and a list of texts or numbers"),
        (r"col('\ud800') == 1", "is not allowed here"),
        ("amount == 1j", "is not allowed here"),
        ("kind == None", "Write `is None`"),
        ("kind is 'a'", "`is` takes None alone"),
        ("kind in 'abc'", "`in` takes a column, and a list of texts or numbers"),
        ("kind in []", "`in` takes a column, and a list of texts or numbers"),
        ("kind in [amount]", "`in` takes a column, and a list of texts or numbers"),
        ("'a' in tags", "`in` takes a column, and a list of texts or numbers"),
        ("col(kind) == 1", "is not allowed here"),
    ],
)
def test_a_text_outside_of_the_grammar_is_refused_when_it_is_declared(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RowCondition(text)


@table(
    "text, said",
    [
        ("knd == 'a'", "names the column 'knd', which the rows do not have. Their columns: kind, amount,"),
        ("amount", "amount is of type int64, and not true or false"),
        ("urgent and kind", "kind is of type string, and not true or false"),
        ("kind == 1", "kind is of type string, and 1 of type int64. They cannot be compared"),
        ("amount == '1'", "amount is of type int64, and '1' of type string"),
        ("amount in [1, 'x']", "amount is of type int64, and 'x' of type string"),
        ("urgent == 1", "urgent is of type bool, and 1 of type int64"),
        ("day == '2026-01-01'", r"day is of type date32\[day\], and '2026-01-01' of type string"),
        ("tags == 'a'", "of type string. They cannot be compared"),
        ("party.nme == 'a'", "which has no field 'nme'"),
        ("kind.name == 'a'", "kind is of type string, which has no field 'name'"),
    ],
)
def test_a_condition_that_does_not_fit_the_columns_is_refused_and_nothing_is_guessed(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        computed(text)


def test_a_condition_names_the_columns_that_it_reads() -> None:
    condition = RowCondition("kind == 'a' and (party.of.city is None or col('net amount') > share)")
    assert condition.columns == {"kind", "party", "net amount", "share"}
    assert condition.digest != RowCondition("kind == 'b'").digest


def test_a_table_without_rows_has_a_condition_without_rows() -> None:
    batch = pa.RecordBatch.from_pylist([], schema=pa.schema([("kind", pa.string())]))
    assert RowCondition("kind == 'a'").compute(batch).to_pylist() == []


def test_decimals_are_compared_by_their_digits() -> None:
    cents = [Decimal(number) / 100 for number in range(10_000)]
    batch = pa.RecordBatch.from_pydict({"usd": pa.array(cents, pa.decimal128(18, 2))})
    for place in range(7, 10_000, 97):
        text = str(cents[place])
        found = {
            how: RowCondition(f"usd {how}").compute(batch).to_numpy(zero_copy_only=False).nonzero()[0].tolist()
            for how in (f"== {text}", f"in [{text}]", f"<= {text}", f"> {text}")
        }
        assert list(found.values()) == [
            [place],
            [place],
            list(range(place + 1)),
            list(range(place + 1, 10_000)),
        ]


LARGE = 2**60 + 1


@table(
    "text, column, found",
    [
        ("a > 100", pa.array([Decimal("1.5"), None], pa.decimal128(38, 30)), [F, N]),
        ("a >= 1.5", pa.array([Decimal("1.5"), None], pa.decimal128(38, 30)), [T, N]),
        ("a < 1e300", pa.array([Decimal("1.5"), None], pa.decimal128(38, 30)), [T, N]),
        ("a > 1e-300", pa.array([LARGE, 0]), [T, F]),
        ("a < 1e37", pa.array([LARGE, 0]), [T, T]),
        ("a > 1e-38", pa.array([LARGE, 0]), [T, F]),
        ("a > 1.5", pa.array([LARGE, 3, 1, None]), [T, T, F, N]),
        ("a > 1", pa.array([2**64 - 1, 1, None], pa.uint64()), [T, F, N]),
        ("a > -1", pa.array([2**64 - 1, 0, None], pa.uint64()), [T, T, N]),
        ("a == -1", pa.array([2**64 - 1, 0], pa.uint64()), [F, F]),
        ("-1.5 < a", pa.array([2**64 - 1, 0], pa.uint64()), [T, T]),
        ("a in [1, 2.5]", pa.array([2**64 - 1, 1], pa.uint64()), [F, T]),
        ("a == 0.1", pa.array([0.1, 0.2]), [T, F]),
        ("a > 3", pa.array([3.5, float("nan")]), [T, F]),
        ("a > 3", pa.array([4, 2], pa.int8()), [T, F]),
    ],
)
def test_numbers_of_two_types_are_compared_for_all_their_values(text: str, column: pa.Array, found: list[Any]) -> None:
    assert RowCondition(text).compute(pa.RecordBatch.from_pydict({"a": column})).to_pylist() == found


@table(
    "other, found",
    [
        (pa.array([1.5, 1e19]), [T, F]),
        (pa.array([LARGE - 1, LARGE]), [T, F]),
        (pa.array([2**64 - 1, LARGE], pa.uint64()), [F, F]),
        (pa.array([Decimal("1.5"), Decimal(3)], pa.decimal128(38, 30)), [T, T]),
    ],
)
def test_columns_of_numbers_of_two_types_are_compared(other: pa.Array, found: list[Any]) -> None:
    batch = pa.RecordBatch.from_pydict({"a": pa.array([LARGE, LARGE]), "other": other})
    assert RowCondition("a > other").compute(batch).to_pylist() == found


@table("name", ["\ufb01", "\u00b5", "\uff21"])
def test_a_name_has_the_characters_of_the_text_and_not_those_that_python_puts_for_them(name: str) -> None:
    batch = pa.RecordBatch.from_pylist([{name: "x", "party": {name: {name: 1}}}])
    assert RowCondition(f"{name} == 'x'").compute(batch).to_pylist() == [True]
    assert RowCondition(f"(party .{name}\n.{name}) == 1 and {name} is not None").compute(batch).to_pylist() == [True]
