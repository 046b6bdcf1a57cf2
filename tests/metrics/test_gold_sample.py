"""Rows worth a human label: signals computed by hand, exact probabilities, and estimates that hold for all rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics.gold_sample import probabilities, propose
from dagster_llm_batch.metrics.gold_signals import disagreement, drift, gold_signals, low_confidence, rare_class
from dagster_llm_batch.metrics.key_hash import draw_keys, unit


def votes(*columns):
    return [pa.array(list(one), pa.string()) for one in columns]


def table(labels, **more):
    """Return a table with keys 0, 1, … and these labels."""
    return pa.table({"id": list(range(len(labels))), "topic": pa.array(labels, pa.string()), **more})


class TestSignals:
    def test_disagreement_is_the_share_of_pairs_of_labels_that_differ(self):
        two = disagreement(votes(["a", "a", None, None], ["a", "b", "b", None]))
        assert two.tolist() == [0, 1, 0, 0]
        three = disagreement(votes("aaaa", "aabb", ["a", "b", "c", None]))
        assert three.tolist() == pytest.approx([0, 2 / 3, 1, 1])

    def test_a_class_is_rare_by_how_far_it_is_below_an_even_share(self):
        # 8 rows, 2 classes: an even share is 4; b has 2, so 1 - 2/4
        assert rare_class(votes("aaaaaabb")).tolist() == [0] * 6 + [0.5, 0.5]
        assert rare_class(votes("abcabc")).tolist() == [0] * 6
        assert rare_class([pa.array([None, None], pa.string())]).tolist() == [0, 0]

    def test_the_candidate_for_whom_a_class_is_rarest_counts(self):
        # the second has 4 a and 1 b, and an even share is 2.5; the first has 2 b, more than half of it
        assert rare_class(votes("ababa", "aaaab")).tolist() == pytest.approx([0, 0, 0, 0, 0.6])

    def test_classes_that_are_about_even_are_not_rare_and_have_not_grown(self):
        of = votes("a" * 71 + "b" * 67 + "c" * 62)
        assert not rare_class(of).any()
        assert not drift(of, votes("a" * 68 + "b" * 70 + "c" * 62)).any()

    def test_drift_is_the_part_of_a_class_that_its_earlier_share_does_not_explain(self):
        # b has 2 of 4 here, and 1 of 5 before: (0.5 - 0.2) / 0.5; a is rarer now; c is new
        assert drift(votes("aabb"), votes("aaaab")).tolist() == pytest.approx([0, 0, 0.6, 0.6])
        assert drift(votes("aac"), votes("a")).tolist() == [0, 0, 1]
        assert drift(votes("ab"), [pa.array([], pa.string())]).tolist() == [0, 0]

    def test_low_confidence_is_that_of_the_least_sure_candidate(self):
        found = low_confidence({"x": pa.array([0.9, 0.2, None]), "y": pa.array([0.5, 1, None])})
        assert found.tolist() == pytest.approx([0.5, 0.8, 0])

    @pytest.mark.parametrize("wrong", [[95], [-0.1], [float("nan")], ["high"]])
    def test_a_confidence_that_is_no_share_is_refused(self, wrong):
        with pytest.raises(InputError, match=r"andidate 'x'"):
            low_confidence({"x": pa.array(wrong)})

    def test_all_rows_of_all_candidates_count_and_rejects_have_no_label(self):
        tables = {"x": table(["a", "b", None]), "y": table(["a", "a"]).append_column("sure", pa.array([1.0, 0.4]))}
        keys, found = gold_signals(tables, key="id", targets=["topic"], confidence=["sure"])
        assert keys.to_pylist() == [0, 1, 2]
        assert set(found) == {"disagreement", "rare_class", "low_confidence"}
        assert found["disagreement"].tolist() == [0, 1, 0]
        assert found["low_confidence"].tolist() == pytest.approx([0, 0.6, 0])

    def test_the_strongest_of_several_targets_counts(self):
        x = table(["a", "a"], tone=["u", "v"])
        y = table(["b", "a"], tone=["u", "u"])
        _, found = gold_signals({"x": x, "y": y}, key="id", targets=["topic", "tone"])
        assert found["disagreement"].tolist() == [1, 1]

    def test_one_candidate_has_nobody_to_disagree_with(self):
        _, found = gold_signals({"x": table(["a", "b"])}, key="id", targets=["topic"])
        assert set(found) == {"rare_class"}

    @pytest.mark.parametrize(
        ("tables", "error", "says"),
        [
            ({"x": table(["a"]), "y": pa.table({"id": [0], "topic": [1]})}, InputError, "int64 in y"),
            ({"x": table(["a"]), "y": pa.table({"id": ["0"], "topic": ["a"]})}, InputError, "string in candidate 'y'"),
            ({"x": pa.table({"id": [0]})}, ConfigError, "no column 'topic'"),
        ],
    )
    def test_tables_that_do_not_fit_are_refused(self, tables, error, says):
        with pytest.raises(error, match=says):
            gold_signals(tables, key="id", targets=["topic"])


class TestProbabilities:
    def test_they_go_by_weight_and_what_would_be_above_one_is_certain(self):
        assert probabilities(np.array([1, 1, 2]), 2).tolist() == pytest.approx([0.5, 0.5, 1])
        assert probabilities(np.array([1, 1, 6]), 2).tolist() == pytest.approx([0.5, 0.5, 1])
        assert probabilities(np.array([1, 2]), 5).tolist() == [1, 1]

    @given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=50), st.integers(1, 60))
    def test_they_sum_to_the_size_and_no_row_is_left_out(self, weights, size):
        found = probabilities(np.array(weights), size)
        assert found.sum() == pytest.approx(min(size, len(weights)))
        assert (found > 0).all()
        assert (found <= 1).all()


def proposals(n=40, sample_size=10, strong=(), **more):
    strength = np.array([1.0 if at in strong else 0.0 for at in range(n)])
    return propose(pa.array(range(n)), {"disagreement": strength}, key="id", sample_size=sample_size, **more)


class TestProposals:
    @given(st.lists(st.floats(0, 1), min_size=200, max_size=200))
    @settings(max_examples=30, deadline=None)
    def test_forty_proposals_have_at_most_the_variance_of_thirty_random_rows_by_default(self, strength):
        """Check each probability, for any figure: a row is at least as likely to be drawn as among 30 random ones."""
        drawn = propose(pa.array(range(200)), {"disagreement": np.array(strength)}, key="id", sample_size=40)
        assert min(drawn["probability"].to_pylist()) >= 30 / 200 * (1 - 1e-9)

    def test_each_row_says_why_it_is_there_and_with_what_probability(self):
        found = {row["id"]: row for row in proposals(strong=[3, 7], random_share=0.5).to_pylist()}
        assert len(found) == 10
        assert found[3]["why"] == found[7]["why"] == "disagreement"
        assert {row["why"] for key, row in found.items() if key not in (3, 7)} == {"random"}
        # the two would have 10 * (0.5 / 40 + 0.5 / 2) > 1: they are certain, the other 38 share 8
        assert found[3]["probability"] == 1
        assert [row["probability"] for key, row in found.items() if key not in (3, 7)] == [pytest.approx(8 / 38)] * 8
        assert all(row["sample_weight"] == pytest.approx(1 / row["probability"]) for row in found.values())
        assert found[3]["drift"] is None  # not measured

    def test_signals_share_equally_what_chance_leaves(self):
        signals = {
            "disagreement": np.array([1.0] * 50 + [0] * 50),
            "drift": np.array([0] * 90 + [1.0] * 10),
            "rare_class": np.zeros(100),  # constant, so it gets no share
        }
        found = propose(pa.array(range(100)), signals, key="id", sample_size=10, random_share=0.4)
        chance = {row["id"]: row["probability"] for row in found.to_pylist()}
        for key, one in chance.items():
            expected = 0.4 / 100 + (0.3 / 50 if key < 50 else 0) + (0.3 / 10 if key >= 90 else 0)
            assert one == pytest.approx(10 * expected)

    def test_why_is_random_unless_a_signal_weighs_as_much_as_chance(self):
        signals = {"low_confidence": np.array([0.01] * 99 + [1.0])}
        found = propose(pa.array(range(100)), signals, key="id", sample_size=50, random_share=0.5)
        assert {row["id"]: row["why"] for row in found.to_pylist()}[99] == "low confidence"
        assert set(found["why"].to_pylist()[:-1]) == {"random"}

    def test_rows_that_have_gold_are_not_proposed_and_gold_may_name_a_row_twice(self):
        found = proposals(n=10, sample_size=10, has_gold=pa.array([1, 2, 2, 77]))
        assert found["id"].to_pylist() == [0, 3, 4, 5, 6, 7, 8, 9]
        assert set(found["probability"].to_pylist()) == {1.0}

    def test_nothing_is_proposed_of_nothing(self):
        assert len(proposals(n=3, sample_size=5, has_gold=pa.array([0, 1, 2]))) == 0
        assert proposals(n=0).column_names == proposals().column_names

    def test_the_same_rows_and_seed_give_the_same_proposals_in_any_order(self):
        keys, strength = pa.array(range(40)), np.arange(40) / 40
        one = propose(keys, {"drift": strength}, key="id", sample_size=7, seed=3)
        order = np.random.default_rng(0).permutation(40)
        assert propose(keys.take(pa.array(order)), {"drift": strength[order]}, key="id", sample_size=7, seed=3).equals(
            one
        )
        assert not propose(keys, {"drift": strength}, key="id", sample_size=7, seed=4).equals(one)

    @pytest.mark.parametrize("wrong", [{"sample_size": 0}, {"random_share": 0}, {"random_share": 1.1}])
    def test_a_design_under_which_no_estimate_holds_is_refused(self, wrong):
        with pytest.raises(ConfigError, match=rf"^{next(iter(wrong))}=.* must be (at least 1|above 0)"):
            proposals(**wrong)

    @given(st.integers(1, 30), st.integers(1, 40), st.floats(0.05, 1), st.integers(0, 1000))
    def test_there_are_as_many_as_asked_for_or_all(self, n, size, random_share, seed):
        found = proposals(n=n, sample_size=size, strong=[0, 1], random_share=random_share, seed=seed)
        assert len(found) == min(n, size)
        assert len(set(found["id"].to_pylist())) == len(found)

    @pytest.mark.simulation
    def test_over_many_seeds_each_row_is_drawn_as_often_as_its_probability_says(self):
        strength = np.array([0, 0.1, 0.5, 1, 0, 0, 0, 0, 0.2, 0.9])
        expected = probabilities(0.75 / 10 + 0.25 * strength / strength.sum(), 4)
        drawn, seeds = np.zeros(10), 4000
        for seed in range(seeds):
            found = propose(pa.array(range(10)), {"drift": strength}, key="id", sample_size=4, seed=seed)
            drawn[found["id"].to_numpy()] += 1
            assert found["probability"].to_numpy() == pytest.approx(expected[found["id"].to_numpy()])
        five_sigma = 5 * np.sqrt(expected * (1 - expected) / seeds)
        assert (np.abs(drawn / seeds - expected) <= five_sigma + 1e-12).all()

    def test_weighted_accuracy_holds_for_all_rows_where_the_plain_one_is_pulled_down(self):
        """Make labels wrong exactly where candidates disagree: in 10 of 100 rows."""
        wrong, plain, weighted = set(range(10)), [], []
        for seed in range(400):
            found = proposals(n=100, sample_size=20, strong=wrong, seed=seed).to_pylist()
            plain.append(sum(row["id"] not in wrong for row in found) / 20)
            weighted.append(sum(row["sample_weight"] for row in found if row["id"] not in wrong) / 100)
        assert np.mean(plain) < 0.75
        assert np.mean(weighted) == pytest.approx(0.9, abs=0.01)


class TestDraws:
    @settings(max_examples=200)
    @given(st.one_of(st.text(), st.integers(), st.dates()), st.integers())
    def test_chance_is_a_number_from_0_below_1_that_key_and_seed_decide(self, key, seed):
        assert 0 <= unit(key, seed) < 1
        assert unit(key, seed) == unit(key, seed)

    def test_chance_is_uniform(self):
        values = np.array([unit(n, 0) for n in range(20_000)])
        counts, _ = np.histogram(values, bins=20, range=(0, 1))
        assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-squared with 19 degrees of freedom, p = 0.001

    @given(st.sets(st.integers(0, 1000), max_size=50), st.sets(st.integers(0, 1000), max_size=5), st.integers(0, 60))
    def test_rows_that_are_added_can_only_take_the_place_of_others(self, keys, more, size):
        before, after = draw_keys(keys, size, 0), draw_keys(keys | more, size, 0)
        assert len(before) == min(size, len(keys))
        assert after - before <= more
