"""One label from several people's: the majority, and Dawid and Skene's model, compared with a library."""

from __future__ import annotations

import numpy as np
import pytest

from dagster_llm_batch.metrics.annotation import MOST_CLASSES, Votes, agreed_labels, dawid_skene

LIBRARY = (
    "111001111000000021120010000210000012001001011100010000001020111010001010110122000200110000010000000021001001001202"
    "011000011010000020002020011001020002111112000002101001020110001110211020010000000100201110001200000110110110211011"
    "110111001002000100011020000001000100002001100101011110001000110011122110"
)
"""Labels by crowd-kit 1.4.2 for `drawn()`: DawidSkene(n_iter=200).fit_predict."""


def drawn() -> tuple[Votes, np.ndarray]:
    """Draw votes of five people on most of 300 rows, and the true labels; the worst person mostly guesses."""
    rng = np.random.default_rng(7)
    truth, right = rng.choice(3, 300, p=[0.6, 0.3, 0.1]), [0.95, 0.9, 0.8, 0.7, 0.4]
    said = []
    for rater, share in enumerate(right):
        said += [
            (row, rater, int(truth[row] if rng.random() < share else rng.integers(3)))
            for row in range(300)
            if rng.random() < 0.7
        ]
    return votes(said, 300, 5, 3), truth


def votes(said: list[tuple[int, int, int]], n_rows: int, n_raters: int, n_classes: int) -> Votes:
    rows, raters, codes = np.array(said, dtype=np.int64).reshape(-1, 3).T
    return Votes(rows, raters, codes, n_rows, n_raters, n_classes)


def test_the_model_says_of_each_row_what_the_library_says():
    said, _ = drawn()
    likely, _ = dawid_skene(said)
    assert "".join(map(str, likely.argmax(axis=1))) == LIBRARY


def test_it_is_right_more_often_than_the_majority_and_knows_who_errs():
    said, truth = drawn()
    modeled, majority = agreed_labels(said), agreed_labels(said, "majority")
    assert (modeled.method, majority.method) == ("dawid_skene", "majority")
    assert (modeled.codes == truth).mean() > (majority.codes == truth).mean() + 0.03
    assert modeled.right is not None
    # A guess is right in a third.
    assert modeled.right == pytest.approx([0.97, 0.93, 0.87, 0.8, 0.6], abs=0.06)
    assert majority.right is None


def test_what_all_who_saw_a_row_said_stays_however_rare_it_is():
    """Add one row of a class that occurs only there, labeled by one person who is often wrong elsewhere."""
    said = [(row, rater, 0) for row in range(100) for rater in range(3)]
    said += [(row, 3, row % 2) for row in range(100)] + [(100, 3, 1)]
    agreed = agreed_labels(votes(said, 101, 4, 2))
    assert agreed.codes.tolist() == [0] * 100 + [1]


def test_two_people_decide_by_majority_and_a_tie_is_no_label():
    agreed = agreed_labels(votes([(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1), (2, 0, 0)], 4, 2, 2))
    assert agreed.method == "majority"
    assert agreed.codes.tolist() == [-1, 1, 0, -1]
    assert agreed.share.tolist() == [0, 1, 1, 0]


def test_free_texts_are_not_modeled():
    said = [(row, rater, row) for row in range(MOST_CLASSES + 1) for rater in range(3)]
    assert agreed_labels(votes(said, MOST_CLASSES + 1, 3, MOST_CLASSES + 1)).method == "majority"
