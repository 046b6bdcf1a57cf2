"""Tables of rows: each is checked, and those that fail are named."""

import pytest

from tests.tables import table

SEEN = []


@table("number", [pytest.param(1, id="one"), 2])
@table(("word", "length"), [("a", 1), ("bb", 2)], ids=str)
def check_all(number, word, length):
    SEEN.append((number, word))
    assert len(word) == length
    assert number != 2 or word != "bb", "no such pair"
    if number == 2:
        with pytest.raises(ValueError, match="never"):
            pass


def test_every_row_is_checked_and_each_failure_names_its_row():
    SEEN.clear()
    with pytest.raises(BaseExceptionGroup, match="2 of 4 rows fail") as caught:
        check_all()
    assert SEEN == [(1, "a"), (2, "a"), (1, "bb"), (2, "bb")]
    assert [failure.__notes__ for failure in caught.value.exceptions] == [["row: 0 a-1-1 2"], ["row: 1 bb-2-1 2"]]
    assert "no such pair" in str(caught.value.exceptions[1])


def test_a_row_cannot_be_skipped_and_others_with_it():
    @table("why", ["x"])
    def skip(why):
        pytest.skip(why)

    with pytest.raises(AssertionError, match=r"row 0 'x' is skipped"):
        skip()


def test_a_table_has_rows_and_none_has_a_mark_that_would_be_lost():
    with pytest.raises(AssertionError, match="a table has rows"):
        table("one", [])
    with pytest.raises(AssertionError, match="mark"):
        table("one", [pytest.param(1, marks=pytest.mark.slow)])
