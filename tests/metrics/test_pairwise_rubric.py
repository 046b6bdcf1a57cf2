"""Judged answers: the judge's questions, and sums of verdicts and scores. Expected figures are computed by hand."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics.clusters import Units
from dagster_llm_batch.metrics.intervals import EFFECTIVE, EXACT, mean_interval, share_interval, sign_test
from dagster_llm_batch.metrics.numeric import pairwise_cases, rubric_cases
from dagster_llm_batch.metrics.pairwise import compare_pairs, pairwise_markdown, pairwise_to_arrow
from dagster_llm_batch.metrics.pairwise_plots import pairwise_png
from dagster_llm_batch.metrics.rubric import rubric_markdown, rubric_to_arrow, score_rubric

ROWS = pa.table({"id": [3, 1, 2], "question": ["c?", "a?", "b?"]})
MINE = pa.table({"id": [1, 2, 3], "answer": ["x", "y", "z"]})
OTHER = pa.table({"id": [1, 2, 4], "answer": ["x", "yy", "zz"]})


def cases(kind=pairwise_cases, rows=ROWS, target=("answer",), sample=None, **answers):
    return kind(rows, answers, key="id", target=list(target), sample=sample)


def verdicts_of(pairs):
    """Return cases and verdicts of candidates a and b: for each row, the verdict with a shown first, and with b."""
    rows = [
        (f"{first}/{second}/{n}", n, first, second, False, pair[at])
        for n, pair in enumerate(pairs)
        for at, (first, second) in enumerate([("a", "b"), ("b", "a")])
    ]
    columns = list(zip(*rows, strict=True)) or [[]] * 6
    names = ("case_id", "id", "first", "second", "identical", "verdict")
    table = pa.table({name: list(values) for name, values in zip(names, columns, strict=True)})
    return table.drop_columns("verdict"), table.select(["case_id", "verdict"])


def compared(pairs):
    found, said = verdicts_of(pairs)
    [one] = compare_pairs(found, said, ["a", "b"], key="id")
    return one


class TestCases:
    def test_each_pair_is_asked_in_both_orders_and_equal_answers_once_as_identical(self):
        found = cases(mine=MINE, other=OTHER)
        assert found.to_pylist() == [
            {
                "case_id": "mine/other/1", "id": 1, "first": "mine", "second": "other", "identical": True,
                "answer_a": "x", "answer_b": "x", "question": "a?",
            },
            {
                "case_id": "mine/other/2", "id": 2, "first": "mine", "second": "other", "identical": False,
                "answer_a": "y", "answer_b": "yy", "question": "b?",
            },
            {
                "case_id": "other/mine/2", "id": 2, "first": "other", "second": "mine", "identical": False,
                "answer_a": "yy", "answer_b": "y", "question": "b?",
            },
        ]  # fmt: skip

    def test_a_rubric_asks_about_each_answer_that_is_there(self):
        found = cases(rubric_cases, mine=MINE, other=OTHER)
        assert found["case_id"].to_pylist() == ["mine/1", "mine/2", "mine/3", "other/1", "other/2"]
        assert found["answer"].to_pylist() == ["x", "y", "z", "x", "yy"]
        assert found["question"].to_pylist() == ["a?", "b?", "c?", "a?", "b?"]

    def test_a_row_that_a_candidate_has_no_answer_for_is_not_asked_about(self):
        silent = pa.table({"id": [1, 2], "answer": pa.array([None, "y"], pa.string())})
        assert cases(rubric_cases, mine=silent)["case_id"].to_pylist() == ["mine/2"]
        assert cases(mine=MINE, other=silent)["id"].to_pylist() == [2]

    def test_several_columns_are_shown_as_one_json_object_and_values_as_json(self):
        table = pa.table({"id": [1], "topic": ["bug"], "urgency": [3]})
        assert cases(rubric_cases, target=("topic", "urgency"), mine=table)["answer"].to_pylist() == [
            '{"topic":"bug","urgency":3}'
        ]
        assert cases(rubric_cases, target=("urgency",), mine=table)["answer"].to_pylist() == ["3"]

    def test_cases_do_not_depend_on_the_order_of_rows_in_any_table(self):
        again = cases(rows=ROWS.take([2, 0, 1]), mine=MINE.take([1, 2, 0]), other=OTHER.take([2, 0, 1]))
        assert again.equals(cases(mine=MINE, other=OTHER))

    def test_a_sample_is_of_rows_the_same_for_all_candidates_and_grows_with_its_size(self):
        many = pa.table({"id": list(range(100)), "question": ["?"] * 100})
        one = pa.table({"id": list(range(100)), "answer": [f"a{n}" for n in range(100)]})
        other = pa.table({"id": list(range(100)), "answer": [f"b{n}" for n in range(100)]})
        ids = [set(cases(rows=many, sample=size, mine=one, other=other)["id"].to_pylist()) for size in (10, 20, 200)]
        assert [len(one) for one in ids] == [10, 20, 100]
        assert ids[0] < ids[1]
        assert set(cases(rubric_cases, rows=many, sample=10, mine=one)["id"].to_pylist()) == ids[0]

    @pytest.mark.parametrize(
        ("wrong", "error", "says"),
        [
            ({"mine": OTHER.rename_columns(["id", "text"])}, ConfigError, "candidate 'mine' has no column 'answer'"),
            ({"mine": pa.table({"id": ["1"], "answer": ["x"]})}, InputError, "int64 in the rows and string in cand"),
            ({"mine": pa.table({"id": [1, 1], "answer": ["x", "y"]})}, InputError, "candidate 'mine' is not unique"),
            ({"rows": ROWS.append_column("answer", ROWS["question"])}, InputError, r"have columns answer,"),
        ],
        ids=["no column", "key type", "repeated key", "a column of ours"],
    )
    def test_tables_that_do_not_fit_are_refused(self, wrong, error, says):
        with pytest.raises(error, match=says):
            cases(rubric_cases, **{"mine": MINE, **wrong})

    def test_names_under_which_two_cases_would_be_one_are_refused(self):
        ids = pa.array(["1", "a/1"])
        table = pa.table({"id": ids, "answer": ["x", "y"]})
        with pytest.raises(ConfigError, match="names without '/'"):
            cases(rubric_cases, rows=pa.table({"id": ids}), **{"a": table, "a/a": table})


class TestPairwise:
    def test_a_win_is_a_win_in_both_orders_and_what_changes_with_the_order_is_inconsistent(self):
        one = compared(
            [
                ("A", "B"),  # a, a
                ("A", "B"),
                ("B", "A"),  # b, b
                ("tie", "tie"),
                ("A", "A"),  # the first shown wins
                ("B", "B"),  # the second shown wins
                ("A", "tie"),
                ("A", None),
                (None, None),
            ]
        )
        assert (one.n_rows, one.n_identical, one.n_unjudged, one.n_judged) == (9, 0, 2, 7)
        assert (one.n_a_wins, one.n_b_wins, one.n_ties, one.n_inconsistent) == (2, 1, 1, 3)
        assert one.win_rate_a == pytest.approx((2 + 4 / 2) / 7)
        assert one.inconsistent_rate == pytest.approx(3 / 7)
        assert one.p_value == pytest.approx(1.0)  # 2 of 3

    def test_the_position_bias_is_that_of_the_rows_that_flip(self):
        fair = compared([("A", "B")] * 9 + [("B", "A")])
        assert (fair.first_rate, fair.n_both_first, fair.position_p_value) == (0.5, 0, 1.0)
        biased = compared([("A", "B")] * 4 + [("A", "A")] * 6)
        assert biased.first_rate == pytest.approx((4 + 12) / 20)
        assert (biased.n_both_first, biased.n_both_second) == (6, 0)
        assert biased.position_p_value == pytest.approx(2 / 2**6)
        assert compared([("B", "B")] * 5).first_rate == 0

    def test_identical_answers_are_ties_that_widen_nothing_else(self):
        found, said = verdicts_of([("A", "B")])
        same = pa.table({"case_id": ["a/b/9"], "id": [9], "first": ["a"], "second": ["b"], "identical": [True]})
        [one] = compare_pairs(pa.concat_tables([found, same]), said, ["a", "b"], key="id")
        assert (one.n_rows, one.n_identical, one.n_judged, one.inconsistent_rate) == (2, 1, 1, 0)
        assert one.win_rate_a == pytest.approx(0.75)

    def test_nothing_to_measure_is_none_and_never_zero(self):
        one = compared([(None, "A")])
        assert (one.n_unjudged, one.win_rate_a, one.win_rate_a_low, one.first_rate, one.inconsistent_rate) == (
            1, None, None, None, None,
        )  # fmt: skip
        assert (one.p_value, one.position_p_value) == (1.0, 1.0)

    def test_three_candidates_are_three_pairs_in_their_order(self):
        third = pa.table({"id": [1, 2], "answer": ["u", "v"]})
        found = cases(x=MINE, y=OTHER, z=third)
        said = pa.table({"case_id": found["case_id"], "verdict": ["B"] * len(found)})
        pairs = compare_pairs(found, said, ["x", "y", "z"], key="id")
        assert [(one.a, one.b) for one in pairs] == [("x", "y"), ("x", "z"), ("y", "z")]
        assert [one.n_both_second for one in pairs] == [1, 2, 2]

    def test_a_verdict_that_is_none_is_refused(self):
        found, said = verdicts_of([("A", "better")])
        with pytest.raises(InputError, match=r"'better'.*none of A, B, tie"):
            compare_pairs(found, said, ["a", "b"], key="id")

    @given(st.lists(st.tuples(*[st.sampled_from(["A", "B", "tie", None])] * 2), max_size=30))
    def test_exchanging_the_candidates_exchanges_the_figures(self, pairs):
        one, other = compared(pairs), compared([(second, first) for first, second in pairs])
        assert (one.n_a_wins, one.n_b_wins) == (other.n_b_wins, other.n_a_wins)
        assert (one.first_rate, one.inconsistent_rate, one.p_value) == (
            other.first_rate, other.inconsistent_rate, other.p_value,
        )  # fmt: skip
        assert one.n_rows == one.n_unjudged + one.n_judged
        assert one.n_judged == one.n_a_wins + one.n_b_wins + one.n_ties + one.n_inconsistent
        if one.win_rate_a is not None:
            assert one.win_rate_a + other.win_rate_a == pytest.approx(1)
            assert one.win_rate_a_low + other.win_rate_a_high == pytest.approx(1)
            assert 0 <= one.win_rate_a_low <= one.win_rate_a <= one.win_rate_a_high <= 1

    @given(st.lists(st.sampled_from(["A", "B", "tie"]), max_size=30))
    def test_a_judge_that_never_heeds_the_position_is_consistent_and_prefers_none(self, verdicts):
        mirrored = {"A": "B", "B": "A", "tie": "tie"}
        one = compared([(said, mirrored[said]) for said in verdicts])
        assert one.n_inconsistent == one.n_both_first == one.n_both_second == 0
        assert one.first_rate in (None, 0.5)

    def test_the_table_and_the_text_say_the_same(self):
        one = compared([("A", "B"), ("A", "A")])
        [row] = pairwise_to_arrow([one]).to_pylist()
        assert (row["a"], row["n_inconsistent"], row["win_rate_a"]) == ("a", 1, 0.75)
        assert "| a | b | 75.0% (" in pairwise_markdown([one])


class TestPicture:
    def test_a_picture_shows_each_pair_that_was_compared_and_is_the_same_for_the_same_figures(self):
        one, other = compared([("A", "B"), ("A", "A"), (None, "A")]), compared([("tie", "tie")] * 300)
        picture = pairwise_png([one, other])
        image = Image.open(io.BytesIO(picture))
        assert (image.format, image.width) == ("PNG", 896)
        assert Image.open(io.BytesIO(pairwise_png([one]))).height < image.height
        assert pairwise_png([one, compared([(None, None)])]) == pairwise_png([one])
        assert pairwise_png([one, other]) == picture

    def test_the_bars_are_as_long_as_their_counts(self):
        image = Image.open(io.BytesIO(pairwise_png([compared([("A", "B")] * 3 + [("B", "A")])])))
        pixels = np.asarray(image.convert("RGB"))
        blue, green = ((pixels == color).all(axis=-1).sum() for color in [(0x25, 0x63, 0xA6), (0x00, 0x9E, 0x73)])
        assert blue / (blue + green) == pytest.approx(0.75, abs=0.02)

    def test_nothing_judged_is_nothing_to_draw(self):
        with pytest.raises(ConfigError, match="nothing to draw"):
            pairwise_png([compared([(None, "A")])])


class TestRubric:
    def scored(self, **scores):
        found = cases(rubric_cases, mine=MINE, other=OTHER)
        given = pa.table({"case_id": ["mine/1", "mine/2", "mine/3", "other/1", "gone/1"], **scores})
        criteria = [name for name in scores if name != "llm_request_id"]
        return score_rubric(found, given, ["mine", "other"], criteria, scale=(1, 5))

    def test_means_are_of_the_scored_answers_of_each_candidate_and_criterion(self):
        mine, _, other, _ = self.scored(true=[5, 3, 4, 2, 1], short=[1, None, 1, None, 5])
        assert (mine.candidate, mine.criterion, mine.n_cases, mine.n_scored, mine.mean) == ("mine", "true", 3, 3, 4.0)
        assert (mine.lowest, mine.highest) == (3, 5)
        assert 1 < mine.mean_low < mine.mean < mine.mean_high < 5
        assert (other.n_cases, other.n_scored, other.mean) == (2, 1, 2.0)
        assert other.mean_high - other.mean_low > 3  # one score of the four steps is little evidence

    def test_scores_at_the_ceiling_leave_an_interval_of_some_width(self):
        [mine, _] = self.scored(true=[5, 5, 5, 2, 1])
        assert (mine.mean, mine.mean_high) == (5.0, 5.0)
        assert mine.mean_low < 4

    def test_answers_of_one_request_are_one_score(self):
        scores = {"true": [5, 3, 4, 2, 1]}
        [alone, _], [shared, _] = self.scored(**scores), self.scored(**scores, llm_request_id=["r", "r", "r", "s", "t"])
        assert shared.mean == alone.mean
        assert shared.mean_low < alone.mean_low
        assert shared.mean_high > alone.mean_high

    def test_no_score_is_no_mean(self):
        *_, short = self.scored(true=[5, 3, 4, 2, 1], short=[1, None, 1, None, 5])
        assert (short.candidate, short.n_scored, short.mean, short.lowest) == ("other", 0, None, None)
        assert "| other | short | - | - | - | 0 of 2 (0.0%) |" in rubric_markdown([short])
        assert rubric_to_arrow([short])["mean"].to_pylist() == [None]


class TestIntervals:
    @given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_a_share_of_independent_rows_has_the_exact_interval_of_scipy(self, counts):
        right, n = counts
        expected = scipy.stats.binomtest(right, n).proportion_ci(0.95, method="exact")
        found = share_interval(np.array([1.0, 0.0]), Units(np.array([right, n - right], float), np.array([-1, -1])))
        assert found.ends == pytest.approx((expected.low, expected.high), abs=1e-9)
        assert found.method == EXACT

    def test_the_interval_of_a_mean_agrees_with_a_bootstrap_of_many_values(self):
        values = np.array([1, 2, 2, 3, 3, 3, 4, 4, 5, 5] * 20, float)
        found = mean_interval(values, Units(np.ones(200), np.full(200, -1)), lowest=1, highest=5)
        drawn = scipy.stats.bootstrap(
            (values,), lambda x, axis: x.mean(axis=axis), rng=0, n_resamples=2000
        ).confidence_interval
        assert found.ends == pytest.approx((drawn.low, drawn.high), abs=0.03)
        assert found.method == EFFECTIVE

    def test_the_sign_test_is_exact(self):
        assert sign_test(0, 0) == 1.0
        assert sign_test(5, 0) == pytest.approx(2 / 32)
        assert sign_test(0, 5) == sign_test(5, 0)


def test_a_sample_is_drawn_from_rows_that_can_be_judged():
    rows = pa.table({"id": [f"q{number}" for number in range(100)]})
    few = pa.table({"id": ["q7", "q70"], "answer": ["one", "two"]})
    more = pa.table({"id": ["q7", "q8", "q70"], "answer": ["three", "four", "five"]})
    asked = {"key": "id", "target": ["answer"], "sample": 2}
    assert rubric_cases(rows, {"few": few}, **asked)["id"].to_pylist() == ["q7", "q70"]
    paired = pairwise_cases(rows, {"few": few, "more": more}, **asked)["id"].to_pylist()
    assert set(paired) == {"q7", "q70"}
