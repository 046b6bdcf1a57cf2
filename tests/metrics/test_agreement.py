"""Agreement among several labelers: published examples, the library's own alpha, and the definitions as loops."""

from __future__ import annotations

from itertools import combinations, permutations

import krippendorff
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics import Labels, Target, agreement_among, agreement_of_pairs
from dagster_llm_batch.metrics import agreement as labelers

NOMINAL, ORDINAL = Target("t"), Target("t", kappa_weights="quadratic")


def labels(*said, target=NOMINAL):
    """Return labels with one sequence for each labeler; None is a missing label."""
    kind = pa.array([one for each in said for one in each]).type
    keys = pa.array(range(len(said[0])), pa.int64())
    return Labels.of(target, {f"l{i}": (keys, pa.array(each, kind)) for i, each in enumerate(said)})


def matrix(text):
    return [[None if one == "*" else int(one) for one in row] for row in text.split()]


KRIPPENDORFF_2011 = matrix("123321412*** 1233224125*3 *3332342251* 12332441251*")
"""Computing Krippendorff's alpha-reliability (2011), section C: four observers, twelve units, values 1 to 5."""

FLEISS_1971 = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
"""The worked example of Fleiss' kappa: ten subjects, fourteen raters, five categories; kappa is 0.210."""


def test_alpha_is_the_published_one():
    assert agreement_among(labels(*KRIPPENDORFF_2011), "all").alpha == pytest.approx(0.743, abs=0.0005)
    assert agreement_among(labels(*KRIPPENDORFF_2011, target=ORDINAL), "all").alpha == pytest.approx(0.849, abs=0.0005)


def test_fleiss_kappa_is_the_published_one():
    raters = list(zip(*[[c for c, n in enumerate(row) for _ in range(n)] for row in FLEISS_1971], strict=True))
    got = agreement_among(labels(*raters), "all")
    assert got.fleiss_kappa == pytest.approx(0.210, abs=0.0005)
    assert (got.n_labelers, got.n_rows, got.n_complete, got.n_labels) == (14, 10, 10, 140)


def test_rows_with_one_label_say_nothing_and_incomplete_ones_have_no_part_in_fleiss():
    got = agreement_among(labels("abba", ["a", "b", None, None], ["a", "a", None, "a"]), "all")
    assert (got.n_rows, got.n_labels, got.n_complete) == (3, 8, 2)
    assert got.agreement == pytest.approx(5 / 7)  # pairs: 3 of 3, 1 of 3, 1 of 1


def test_one_class_leaves_nothing_to_chance():
    got = agreement_among(labels("aaa", "aaa"), "all")
    assert (got.agreement, got.alpha, got.alpha_low, got.fleiss_kappa) == (1, None, None, None)
    elsewhere = agreement_among(labels(["a", "a", "b"], ["a", "a", None]), "all")  # the other class is on no common row
    assert (elsewhere.alpha, elsewhere.agreement) == (None, 1)


def test_without_a_common_row_there_are_no_figures():
    got = agreement_among(labels(["a", None], [None, "b"]), "all")
    assert (got.n_rows, got.agreement, got.alpha, got.alpha_high, got.fleiss_kappa) == (0, None, None, None, None)


def test_intervals_hold_the_figure_and_shrink_with_more_rows():
    few, many = ("aabbabab" * n for n in (1, 40))
    got = [agreement_among(labels(one, one[:-2] + "ba"), "all") for one in (few, many)]
    assert all(one.alpha_low <= one.alpha <= one.alpha_high for one in got)
    assert got[1].alpha_high - got[1].alpha_low < got[0].alpha_high - got[0].alpha_low


def test_labelers_are_met_by_key_and_not_by_position():
    a = (pa.array([1, 2, 3]), pa.array(["x", "y", "x"]))
    b = (pa.array([3, 1, 9]), pa.array(["x", "x", "y"]))
    [pair] = agreement_of_pairs(Labels.of(NOMINAL, {"a": a, "b": b}))
    assert (pair.a, pair.b, pair.n_both, pair.n_same) == ("a", "b", 2, 2)


def test_pairs_are_all_and_their_kappa_is_cohens():
    from sklearn.metrics import cohen_kappa_score

    a, b, c = "aabbc", "abbbc", "ccbba"
    pairs = agreement_of_pairs(labels(a, b, c))
    assert [(one.a, one.b) for one in pairs] == [("l0", "l1"), ("l0", "l2"), ("l1", "l2")]
    for pair, (one, other) in zip(pairs, combinations([a, b, c], 2), strict=True):
        assert pair.kappa == pytest.approx(cohen_kappa_score(list(one), list(other)))
        assert pair.kappa_low <= pair.kappa <= pair.kappa_high


def test_ordinal_pairs_are_weighted():
    from sklearn.metrics import cohen_kappa_score

    a, b = [1, 2, 3, 4, 4], [1, 3, 3, 1, 4]
    [pair] = agreement_of_pairs(labels(a, b, target=ORDINAL))
    assert pair.kappa == pytest.approx(cohen_kappa_score(a, b, weights="quadratic"))


def test_a_group_is_some_of_the_labelers():
    three = labels("aab", "aab", "bba")
    assert agreement_among(three.only(["l0", "l1"]), "people").alpha == pytest.approx(1)
    assert agreement_among(three, "all").alpha < 0.5


def test_a_table_too_large_for_the_library_gets_the_same_alpha():
    tables = labels(*KRIPPENDORFF_2011), labels(*KRIPPENDORFF_2011, target=ORDINAL)
    by_library = [agreement_among(table, "all").alpha for table in tables]
    assert [agreement_among(table, "all", library_cells=0).alpha for table in tables] == pytest.approx(by_library)


def test_other_types_numbers_and_words_for_ordinal_classes_are_refused():
    keys = pa.array([1, 2])
    with pytest.raises(InputError, match=r"Target 't' is .*string in a, int64 in b"):
        Labels.of(NOMINAL, {"a": (keys, pa.array(["x", "y"])), "b": (keys, pa.array([1, 2]))})
    with pytest.raises(InputError, match=r"Key 'key' is int64 in a, .*string in b"):
        Labels.of(NOMINAL, {"a": (keys, pa.array(["x", "y"])), "b": (pa.array(["1"]), pa.array(["x"]))})
    with pytest.raises(InputError, match="Key 'id' of labeler 'a' is not unique"):
        Labels.of(NOMINAL, {"a": (pa.array([1, 1]), pa.array(["x", "y"]))}, key="id")
    with pytest.raises(ConfigError, match="agreement is about classes"):
        Labels.of(Target("t", kind="numeric"), {"a": (keys, pa.array([0.5, 1.5]))})
    with pytest.raises(ConfigError, match="needs integer classes"):
        Labels.of(ORDINAL, {"a": (keys, pa.array(["x", "y"]))})


column = st.lists(st.none() | st.integers(0, 3), min_size=6, max_size=6)


def alpha_by_definition(said, distance):
    """Compute observed over expected disagreement of all pairs of labels, in loops."""
    units = [[one for one in unit if one is not None] for unit in zip(*said, strict=True)]
    units = [unit for unit in units if len(unit) > 1]
    every = [one for unit in units for one in unit]
    n = len(every)
    observed = sum(sum(distance(x, y) for x, y in permutations(unit, 2)) / (len(unit) - 1) for unit in units) / n
    expected = sum(distance(x, y) for x, y in permutations(every, 2)) / (n * (n - 1))
    return 1 - observed / expected


@given(st.lists(column, min_size=2, max_size=5), st.sampled_from([NOMINAL, ORDINAL]))
@settings(max_examples=80)
def test_alpha_is_its_definition_and_that_of_the_library(said, target):
    got = agreement_among(labels(*said, target=target), "all")
    rows = labelers._Rows.of(labels(*said, target=target))
    pairable = {
        x for unit in zip(*said, strict=True) for x in unit if x is not None and len(unit) - unit.count(None) > 1
    }
    if len(pairable) < 2:
        assert got.alpha is None
        return
    distance = (lambda x, y: (x - y) ** 2) if target.kappa_weights else (lambda x, y: x != y)
    assert got.alpha == pytest.approx(alpha_by_definition(said, distance))
    assert rows.alpha() == pytest.approx(got.alpha)  # the interval uses these values
    level = "interval" if target.kappa_weights else "nominal"
    data = [[float("nan") if x is None else x for x in row] for row in said]
    assert got.alpha == pytest.approx(krippendorff.alpha(reliability_data=data, level_of_measurement=level))


@given(st.lists(st.lists(st.integers(0, 2), min_size=7, max_size=7), min_size=2, max_size=4), st.randoms())
@settings(max_examples=40)
def test_the_order_of_labelers_and_rows_does_not_count(said, rng):
    order = list(range(7))
    rng.shuffle(order)
    turned = [[row[i] for i in order] for row in reversed(said)]
    one, other = (agreement_among(labels(*each), "all") for each in (said, turned))
    assert one == other
