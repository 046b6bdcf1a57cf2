"""Joins of gold and candidates: valid labels, and every way in which two tables cannot be compared."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from dagster_llm_batch.core.label_join import PROVENANCE
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics import Target, evaluate, join
from dagster_llm_batch.metrics.joining import CANDIDATE_COLUMNS

GOLD = pa.table({"id": [1, 2, 3, 4, 5, 6], "topic": ["a", "b", "a", None, "b", "a"]})


def joined(gold, candidate, target="topic"):
    return join(gold, candidate, key="id", target=target, candidate_name="haiku")


def test_every_gold_row_is_labeled_or_has_one_counted_reason_why_not():
    candidate = pa.table(
        {
            "id": [6, 5, 3, 1, 99, 4],
            "topic": ["a", None, "b", "a", "a", "a"],
            "llm_outcome": ["succeeded", "succeeded", "invalid", "succeeded", "succeeded", "succeeded"],
        }
    )
    got = joined(GOLD, candidate)
    assert got.keys.to_pylist() == [1, 2, 3, 5, 6]
    assert got.gold.to_pylist() == ["a", "b", "a", "b", "a"]
    assert got.predicted.to_pylist() == ["a", None, None, None, "a"]
    assert (got.n_gold, got.n_labeled) == (5, 2)
    assert (got.n_absent, got.n_rejected, got.n_empty) == (1, 1, 1)
    assert got.n_gold_null == 1  # key 4
    assert got.n_ignored == 2  # key 99 is not in gold, key 4 has no gold value


def test_without_outcomes_a_value_is_a_label():
    no_column = pa.table({"id": [1, 2], "topic": ["a", "b"]})
    nulls = no_column.append_column("llm_outcome", pa.array([None, "succeeded"]))
    assert joined(GOLD, no_column).n_labeled == joined(GOLD, nulls).n_labeled == 2


@pytest.mark.parametrize("outcome", ["errored", "canceled", "expired", "missing", "invalid"])
def test_only_a_succeeded_row_is_labeled(outcome):
    got = joined(GOLD, pa.table({"id": [1], "topic": ["a"], "llm_outcome": [outcome]}))
    assert (got.n_labeled, got.n_rejected, got.n_absent) == (0, 1, 4)


def test_an_unknown_outcome_is_refused_with_the_allowed_ones():
    with pytest.raises(InputError, match=r"llm_outcome.*cancelled.*allowed: succeeded.*canceled"):
        joined(GOLD, pa.table({"id": [1], "topic": ["a"], "llm_outcome": ["cancelled"]}))


def test_cost_counts_the_rows_that_met_gold_rejected_ones_too():
    costs = pa.array([Decimal("0.10"), Decimal("0.02"), Decimal("7.00")], pa.decimal128(20, 9))
    candidate = pa.table(
        {"id": [1, 2, 99], "topic": ["a", None, "a"], "llm_outcome": ["succeeded", "invalid", "succeeded"]}
    ).append_column("llm_cost_usd", costs)
    assert (joined(GOLD, candidate).cost_usd, joined(GOLD, candidate).n_cost_unknown) == (Decimal("0.12"), 0)


def test_unknown_costs_are_counted_and_never_zero():
    table = pa.table({"id": [1, 2], "topic": ["a", "b"]})
    no_column = joined(GOLD, table)
    assert (no_column.cost_usd, no_column.n_cost_unknown) == (None, 2)
    all_null = joined(GOLD, table.append_column("llm_cost_usd", pa.nulls(2, pa.float64())))
    assert (all_null.cost_usd, all_null.n_cost_unknown) == (None, 2)
    one = joined(GOLD, table.append_column("llm_cost_usd", pa.array([0.1, float("nan")])))
    assert (one.cost_usd, one.n_cost_unknown) == (Decimal("0.1"), 1)


def test_float_costs_sum_to_the_decimal_a_person_expects():
    table = pa.table({"id": [1, 2, 3], "topic": ["a"] * 3, "llm_cost_usd": [0.1, 0.1, 0.1]})
    assert joined(GOLD, table).cost_usd == pytest.approx(Decimal("0.3"), abs=Decimal("1e-15"))


def test_models_are_those_that_gave_labels():
    candidate = pa.table(
        {
            "id": [1, 2, 3, 99],
            "topic": ["a", "a", None, "a"],
            "llm_model": pa.array(["m2", "m1", "no label", "no gold"]).dictionary_encode(),
        }
    )
    assert joined(GOLD, candidate).models == ("m1", "m2")
    assert joined(GOLD, candidate.drop(["llm_model"])).models == ()


def test_gold_may_name_its_column_otherwise():
    gold = GOLD.rename_columns(["id", "human"])
    got = joined(gold, pa.table({"id": [1], "topic": ["a"]}), Target("topic", gold_column="human"))
    assert got.n_labeled == 1


@pytest.mark.parametrize(
    ("gold_key", "candidate_key"),
    [
        (pa.array([1, 2], pa.int32()), pa.array([2, 1], pa.int64())),
        (pa.array([1, 2], pa.uint64()), pa.array([2, 1], pa.int8())),
        (pa.array([2**64 - 1, 2], pa.uint64()), pa.array([2, 2**64 - 1], pa.uint64())),
        (pa.array(["x", "y"], pa.string()), pa.array(["y", "x"], pa.large_string())),
        (pa.array(["x", "y"], pa.string_view()), pa.array(["y", "x"]).dictionary_encode()),
        (pa.array([date(2026, 1, 1), date(2026, 1, 2)]), pa.array([date(2026, 1, 2), date(2026, 1, 1)])),
    ],
)
def test_keys_of_one_kind_match_whatever_their_width(gold_key, candidate_key):
    gold = pa.table({"id": gold_key, "topic": ["first", "second"]})
    candidate = pa.table({"id": candidate_key, "topic": ["second", "first"]})
    got = joined(gold, candidate)
    assert got.n_labeled == 2
    assert got.gold.equals(got.predicted)


def test_frames_of_pandas_and_polars_compare():
    pandas = pa.Table.from_pandas(pd.DataFrame({"id": [1, 2, 3], "topic": [1, 2, None]}))  # integers become float
    polars = pl.DataFrame({"id": [1, 2, 3], "topic": [1, 2, 3]}).to_arrow()
    assert pa.types.is_floating(pandas.schema.field("topic").type)
    got = joined(polars, pandas)
    assert got.predicted.to_pylist() == [1, 2, None]
    enum = pl.DataFrame({"id": [1, 2], "topic": ["a", "b"]}, schema_overrides={"topic": pl.Enum(["a", "b"])})
    assert joined(GOLD, enum.to_arrow()).n_labeled == 2


def test_chunked_tables_compare():
    half = pa.table({"id": [1], "topic": ["a"]})
    other = pa.table({"id": [6], "topic": ["a"]})
    assert joined(GOLD, pa.concat_tables([half, other])).n_labeled == 2


def test_integer_and_string_keys_are_refused_naming_both_types():
    with pytest.raises(InputError, match=r"int64 in gold and string in candidate 'haiku'.*Cast"):
        joined(GOLD, pa.table({"id": ["1"], "topic": ["a"]}))


@pytest.mark.parametrize("whose", ["gold", "candidate 'haiku'"])
@pytest.mark.parametrize(
    ("ids", "message"),
    [([3, 3, 1, 1, 7], r"not unique: 2 values.*1, 3"), ([1, None, 2, None, 3], r"null in 2 of 5 rows")],
)
def test_repeated_and_null_keys_are_refused_with_examples(whose, ids, message):
    bad = pa.table({"id": ids, "topic": ["a"] * 5})
    sides = (bad, GOLD) if whose == "gold" else (GOLD, bad)
    with pytest.raises(InputError, match=f"{whose}.*{message}"):
        joined(*sides)


def test_repeated_keys_are_refused_even_where_their_gold_is_null():
    with pytest.raises(InputError, match="not unique"):
        joined(pa.table({"id": [1, 1], "topic": ["a", None]}), GOLD)


def test_measured_keys_are_refused():
    with pytest.raises(ConfigError, match=r"Key 'id' of gold is double"):
        joined(pa.table({"id": [1.0], "topic": ["a"]}), GOLD)


@pytest.mark.parametrize("missing", ["id", "topic"])
def test_a_missing_column_is_named_beside_those_there_are(missing):
    with pytest.raises(ConfigError, match=rf"candidate 'haiku' has no column '{missing}'.*Its columns: "):
        joined(GOLD, GOLD.drop([missing]))


def test_a_column_name_that_stands_twice_is_refused():
    twice = pa.Table.from_arrays([pa.array([1]), pa.array(["a"]), pa.array(["b"])], names=["id", "topic", "topic"])
    with pytest.raises(ConfigError, match="more than one column 'topic'"):
        joined(GOLD, twice)


@pytest.mark.parametrize(
    ("gold", "candidate", "names"),
    [
        ([1], ["1"], "int64 in gold and string in"),
        (["true"], [True], "string in gold and bool in"),
        ([1], [True], "int64 in gold and bool in"),
    ],
)
def test_labels_of_another_type_than_gold_are_refused(gold, candidate, names):
    with pytest.raises(InputError, match=names):
        joined(pa.table({"id": [1], "topic": gold}), pa.table({"id": [1], "topic": candidate}))


@pytest.mark.parametrize("values", [[["a", "b"]], [{"x": 1}]])
def test_multi_valued_targets_are_refused(values):
    with pytest.raises(ConfigError, match="multi-valued targets are not evaluated"):
        joined(pa.table({"id": [1], "topic": values}), GOLD)


def test_fractions_are_no_classes():
    with pytest.raises(InputError, match=r"not all values are whole numbers.*kind='numeric'"):
        joined(pa.table({"id": [1], "topic": [0.5]}), pa.table({"id": [1], "topic": [1]}))


def test_dates_are_no_classes():
    with pytest.raises(ConfigError, match="classes are strings, integers or booleans"):
        joined(pa.table({"id": [1], "topic": [date(2026, 1, 1)]}), GOLD)


def test_text_is_no_number():
    with pytest.raises(ConfigError, match="kind='numeric' takes numbers"):
        joined(GOLD, GOLD, Target("topic", kind="numeric"))


def test_whole_decimals_are_integers():
    gold = pa.table({"id": [1], "topic": pa.array([Decimal("2.00")])})
    assert joined(gold, pa.table({"id": [1], "topic": [2]})).gold.to_pylist() == [2]


def test_numbers_that_are_not_finite_are_no_labels():
    gold = pa.table({"id": [1, 2, 3], "topic": [1, 2, 3]})
    candidate = pa.table({"id": [1, 2, 3], "topic": [float("nan"), float("inf"), 2.5]})
    got = joined(gold, candidate, Target("topic", kind="numeric"))
    assert got.predicted.to_pylist() == [None, None, 2.5]
    assert got.n_empty == 2


@pytest.mark.parametrize("gold", [{"id": [], "topic": []}, {"id": [1, 2], "topic": [None, None]}])
@pytest.mark.parametrize(
    "candidate", [{"id": [], "topic": []}, {"id": [1], "topic": ["a"]}, {"id": [1], "topic": [None]}]
)
def test_no_gold_is_no_error(gold, candidate):
    got = joined(pa.table(gold), pa.table(candidate))
    assert (got.n_gold, got.n_labeled) == (0, 0)
    assert got.n_ignored == len(candidate["id"])


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="'categorical' or 'numeric'"):
        Target("t", kind="text")
    with pytest.raises(ConfigError, match="'linear' or 'quadratic' or None"):
        Target("t", kappa_weights="cubic")
    with pytest.raises(ConfigError, match="kappa is for classes"):
        Target("t", kind="numeric", kappa_weights="linear")


def test_what_is_read_of_a_candidate_is_what_labeled_tables_carry() -> None:
    assert set(CANDIDATE_COLUMNS) < set(PROVENANCE)


@pytest.mark.parametrize("share", [0.01, 0.1])
@pytest.mark.parametrize("stored", ["float16", "float32", "sum"])
def test_numbers_that_differ_by_rounding_alone_are_right(stored, share):
    rng, rows = np.random.default_rng(0), 300
    cents = rng.integers(1, 300, (rows, 20))
    amounts = cents.sum(axis=1) / 100
    said = np.where(np.arange(rows) < share * rows, 10 * amounts, amounts)
    rounded = (cents / 100).sum(axis=1) if stored == "sum" else amounts.astype(stored)
    assert (rounded.astype(float) != amounts).mean() > 0.3
    candidate, target = pa.table({"id": range(rows), "price": said}), Target("price", kind="numeric")
    exact, got = (
        evaluate(joined(pa.table({"id": range(rows), "price": gold}), candidate, target)) for gold in (amounts, rounded)
    )
    assert got.rmse_interval == exact.rmse_interval
    # three wrong rows show no squares
    assert (got.rmse_low is None) == (share == 0.01)
    for figure in ("mae", "mae_low", "mae_high", "rmse", *(("rmse_low", "rmse_high") if share == 0.1 else ())):
        assert getattr(got, figure) == pytest.approx(getattr(exact, figure), rel=1e-2), figure


def test_whole_numbers_that_differ_by_one_are_wrong_however_large_they_are():
    gold, candidate = (pa.table({"id": [1], "price": pa.array([value])}) for value in (2**53 - 1, 2**53 - 2))
    assert evaluate(joined(gold, candidate, Target("price", kind="numeric"))).mae == 1
