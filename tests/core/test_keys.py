"""A row has a key, and a key has one row; errors of a table are reported."""

from __future__ import annotations

import tempfile
import tracemalloc
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.core.keys import KeyGuard, keys_of
from dagster_llm_batch.errors import InputError

SAME_HASH = 2**61 - 1  # Python gives i and i + SAME_HASH one hash


def read(column: Any) -> list[Any]:
    return keys_of(pa.RecordBatch.from_pydict({"id": column}), "id")


def check(*batches: list[Any], **bounds: int) -> None:
    guard = KeyGuard("id", **bounds)
    for batch in batches:
        guard.add(batch)
    guard.check(lambda: batches)


@pytest.mark.parametrize(
    "keys",
    [
        ["a", "b"],
        [1, 2],
        [date(2026, 1, 1)],
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array(["a"], pa.large_string()),
        pa.array([1], pa.uint8()),
        pa.array([1_700_000_000], pa.timestamp("s", "UTC")),
        pa.array([1_000, 2_000], pa.int64()).cast(pa.time64("ns")),  # times in the form of polars
    ],
)
def test_text_integers_and_times_are_keys(keys: Any) -> None:
    assert len(read(keys)) == len(keys)


@pytest.mark.parametrize("keys", [[1.5], [True], [b"x"], [[1]], [{"a": 1}], [pa.MonthDayNano([1, 2, 3])]])
def test_other_types_are_no_keys(keys: Any) -> None:
    with pytest.raises(InputError, match="A key is text, an integer, a date or a time"):
        read(keys)


@pytest.mark.parametrize(
    "keys",
    [
        pa.array([2_001, 2_002], pa.int64()).cast(pa.time64("ns")),  # equal, if cut to microseconds
        pa.array([2_001, 2_002], pa.int64()).cast(pa.time64("ns")).dictionary_encode(),
        pa.array([10**12], pa.timestamp("s")),  # far after the year 9999
    ],
)
def test_times_that_python_cannot_hold_are_refused_and_not_cut(keys: Any) -> None:
    with pytest.raises(InputError, match=r"'id' is of type .*, and Python cannot hold one of its values.* into text"):
        read(keys)


@pytest.mark.parametrize(
    "keys",
    [["a", None], [None], pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a", None]))],
)
def test_null_keys_are_counted_and_placed(keys: Any) -> None:
    with pytest.raises(
        InputError, match=rf"null in 1 of {len(keys)} rows of a batch, first at its position {len(keys) - 1}"
    ):
        read(keys)


def test_duplicates_in_a_batch_are_shown_in_part() -> None:
    with pytest.raises(InputError, match=r"'id' has duplicate values: 0, 1, 2, 3, 4 and more\. A key names one row"):
        read([*range(9), *range(9)])
    with pytest.raises(InputError, match=r"'id' has duplicate values: 'b'\. A key names one row"):
        read(["a", "b", "b", "c"])


KEYS = st.integers(0, 20).flatmap(lambda one: st.sampled_from([one, one + SAME_HASH]))


@pytest.mark.parametrize(("held", "piece"), [(1, 8), (3, 16), (1_000, 1 << 18)])
@pytest.mark.parametrize("few", [0, 1_000])
@given(batches=st.lists(st.lists(KEYS, max_size=8, unique=True), max_size=6))
def test_duplicates_are_found_across_batches_and_nothing_else(
    few: int, held: int, piece: int, batches: list[list[int]]
) -> None:
    flat = [key for batch in batches for key in batch]
    again = {key for key in flat if flat.count(key) > 1}
    bounds = {"few": few, "held": held, "piece_bytes": piece}
    if not again:
        check(*batches, **bounds)
        return
    with pytest.raises(InputError) as refused:
        check(*batches, **bounds)
    told = str(refused.value).partition("values: ")[2].partition(". A key")[0]
    shown = {int(key) for key in told.removesuffix(" and more").split(", ")}
    assert shown
    assert shown <= again


def test_keys_of_one_hash_are_different_keys() -> None:
    assert hash(7) == hash(7 + SAME_HASH)
    check([7, 8], [7 + SAME_HASH])
    with pytest.raises(InputError, match=rf"duplicate values: {7 + SAME_HASH}\. A key"):
        check([7, 8], [7 + SAME_HASH], [9], [7 + SAME_HASH])


def test_many_duplicates_across_batches_are_shown_in_part() -> None:
    with pytest.raises(InputError, match=r"duplicate values: 0, 1, 2, 3, 4 and more\. A key"):
        check(list(range(9)), list(range(9)))


def test_of_many_keys_a_byte_each_is_in_memory_also_while_they_are_checked() -> None:
    count, few = 200_000, 1_000
    with tempfile.TemporaryFile() as file:
        guard = KeyGuard("id", lambda: file, few=few, piece_bytes=8 * few)
        tracemalloc.start()
        try:
            for start in range(0, count, few):
                guard.add(range(start, start + few))
            guard.check(lambda: pytest.fail("no two are alike"))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 4 * count


def test_few_keys_need_no_file() -> None:
    guard = KeyGuard("id", lambda: pytest.fail("a file was made"))
    guard.add(range(1_000))
    guard.check(lambda: pytest.fail("no two are alike"))


def test_a_missing_key_column_is_told_with_the_columns_there_are() -> None:
    with pytest.raises(InputError, match=r"no key column 'id'\. Set key= to one of their columns: a, b\."):
        keys_of(pa.RecordBatch.from_pydict({"a": [1], "b": [2]}), "id")


NIGHT = ["2026-10-25T00:30:00+00:00", "2026-10-25T01:30:00+00:00"]
"""In Berlin the clock shows half past two at both, since it goes back in between."""


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@pytest.mark.parametrize("encoded", [False, True])
def test_times_of_the_night_in_which_the_clock_goes_back_are_different_keys(unit: str, encoded: bool) -> None:
    times = [datetime.fromisoformat(time) for time in NIGHT]
    column: pa.Array = pa.array(times, pa.timestamp(unit, "Europe/Berlin"))
    keys = read(column.dictionary_encode() if encoded else column)
    check(keys)
    assert len({*keys}) == 2
    assert keys == times
    # This text is a row's name in commands, and identifies an erased row.
    assert [str(key) for key in keys] == ["2026-10-25 02:30:00+02:00", "2026-10-25 02:30:00+01:00"]


def test_the_same_time_twice_is_one_key_in_that_night_too() -> None:
    column = pa.array([datetime.fromisoformat(NIGHT[1])] * 2, pa.timestamp("us", "Europe/Berlin"))
    with pytest.raises(InputError, match="has duplicate values"):
        read(column)
