"""Labels in real time against labels in batches: figures computed by hand, and rows that cannot be compared."""

from __future__ import annotations

import pyarrow as pa
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.metrics import Target
from dagster_llm_batch.metrics.skew import side_by_side, skew_between, skew_markdown, skew_to_arrow


def batch(labels, column="topic", model="small-1"):
    """Return labels of rows 0, 1, …, each from a separate request."""
    n = len(labels)
    ids = [f"request-{at}" for at in range(n)]
    table = {"id": list(range(n)), column: labels, "llm_request_id": ids, "llm_model": [model] * n}
    return pa.table({**table, column: pa.array(labels, pa.float64() if column == "price" else pa.string())})


def realtime(labels, *, column="topic", changed=(), failed=(), model="small-1"):
    table = batch(labels, column, model)
    ids = [f"other-{at}" if at in changed else one for at, one in enumerate(table["llm_request_id"].to_pylist())]
    outcomes = ["invalid" if at in failed else "succeeded" for at in range(len(labels))]
    more = {
        "llm_outcome": outcomes,
        "llm_reason": ["no JSON" if at in failed else None for at in range(len(labels))],
        "llm_cost_usd": [None] * len(labels),
    }
    return pa.table({**{name: table[name] for name in table.column_names}, "llm_request_id": ids, **more})


def skew(one, other, target=None):
    return skew_between(one, other, key="id", target=target or Target("topic"))


class TestSkew:
    def test_agreement_is_over_rows_that_are_the_same_request_and_have_a_reply_both_ways(self):
        one = skew(batch(["a", "b", "b", "a", "b"]), realtime(["a", "a", "b", "a", None], changed=[3], failed=[4]))
        assert (one.n_sampled, one.n_changed, one.n_unanswered, one.n_compared, one.n_same) == (5, 1, 1, 3, 2)
        assert one.agreement == pytest.approx(2 / 3)
        exact = scipy.stats.binomtest(2, 3).proportion_ci(0.95, method="exact")
        assert (one.agreement_low, one.agreement_high) == pytest.approx((exact.low, exact.high))
        # observed 2/3, by chance (1 * 2 + 2 * 1) / 9
        assert one.kappa == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))

    def test_rows_of_one_request_are_one_answer(self):
        ids = ["r0"] * 8 + ["r1", "r2"]
        one, other = (
            table.set_column(table.column_names.index("llm_request_id"), "llm_request_id", [ids])
            for table in (batch(["a"] * 10), realtime(["b"] * 8 + ["a"] * 2))
        )
        found = skew(one, other)
        assert (found.n_compared, found.n_same, found.n_requests, found.n_requests_same) == (10, 2, 3, 2)
        assert found.agreement_high > scipy.stats.binomtest(2, 10).proportion_ci(0.95, method="exact").high

    def test_a_row_that_is_gone_counts_as_changed(self):
        one = skew(batch(["a", "b"]), realtime(["a", "b"]).slice(1))
        assert (one.n_changed, one.n_compared) == (1, 1)

    def test_two_nulls_are_the_same_and_one_is_not(self):
        one = skew(batch(["a", None, None]), realtime([None, None, "a"]))
        assert (one.n_compared, one.n_same) == (3, 1)

    def test_numbers_differ_by_a_distance_and_in_a_direction(self):
        one = skew(
            batch([1.0, 2.0, 4.0], "price"),
            realtime([1.0, 2.5, 2.5], column="price"),
            Target("price", kind="numeric"),
        )
        assert (one.n_same, one.kappa) == (1, None)
        assert one.mean_difference == pytest.approx((0.5 - 1.5) / 3)
        assert one.mean_absolute_difference == pytest.approx(2 / 3)

    def test_another_model_that_answers_is_named(self):
        one = skew(batch(["a"]), realtime(["a"], model="small-2"))
        assert (one.batch_models, one.realtime_models) == (("small-1",), ("small-2",))
        assert "| small-1 | small-2 |" in skew_markdown([one])
        assert skew_to_arrow([one])["realtime_models"].to_pylist() == ["small-2"]

    def test_nothing_to_compare_is_none_and_never_zero(self):
        for one in (skew(batch([]), realtime([])), skew(batch(["a"]), realtime(["a"], changed=[0]))):
            assert (one.n_compared, one.agreement, one.agreement_low, one.kappa) == (0, None, None, None)

    def test_keys_of_other_types_are_refused(self):
        other = realtime(["a"])
        other = other.set_column(0, "id", pa.array(["0"]))
        with pytest.raises(InputError, match="int64 in the batch and string in real time"):
            skew(batch(["a"]), other)

    @pytest.mark.slow
    @given(st.lists(st.tuples(*[st.sampled_from(["a", "b", None])] * 2), max_size=20), st.sets(st.integers(0, 19)))
    def test_every_row_is_counted_once_in_figures_and_side_by_side_alike(self, pairs, odd):
        one, other = batch([p[0] for p in pairs]), realtime([p[1] for p in pairs], changed=odd, failed={2, 3})
        found = skew(one, other)
        assert found.n_sampled == found.n_changed + found.n_unanswered + found.n_compared == len(pairs)
        side = side_by_side(one, other, key="id", targets=["topic"])
        same = side["llm_same"].to_pylist()
        assert (same.count(True), same.count(None)) == (found.n_same, found.n_sampled - found.n_compared)
        assert side["llm_changed"].to_pylist().count(True) == found.n_changed

    def test_side_by_side_is_in_order_of_keys_and_says_why_there_is_no_label(self):
        one, other = batch(["a", "b"]).take([1, 0]), realtime(["a", None], failed=[1])
        assert side_by_side(one, other, key="id", targets=["topic"]).to_pylist() == [
            {
                "id": 0, "topic": "a", "topic_realtime": "a", "llm_same": True, "llm_changed": False,
                "llm_outcome": "succeeded", "llm_reason": None, "llm_model": "small-1", "llm_cost_usd": None,
            },
            {
                "id": 1, "topic": "b", "topic_realtime": None, "llm_same": None, "llm_changed": False,
                "llm_outcome": "invalid", "llm_reason": "no JSON", "llm_model": "small-1", "llm_cost_usd": None,
            },
        ]  # fmt: skip

    def test_labels_that_a_store_gave_back_without_types_since_all_were_rejects_are_a_table_without_rows(self):
        one, other = batch([]), realtime([])
        untyped = one.set_column(one.column_names.index("topic"), "topic", pa.nulls(0))
        side = side_by_side(untyped, other, key="id", targets=["topic"])
        assert side.to_pylist() == []
        assert side.schema.field("topic").type == side.schema.field("topic_realtime").type == pa.string()
