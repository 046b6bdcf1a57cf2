"""The guarantees of filters, precision and recall: exact levels, and simulated tables of all kinds."""

from itertools import product

import numpy as np
import pytest
import scipy

from benchmarks.truth.filter_tables import JUST_TOO_MANY, KINDS, Cell, measure_cell
from dagster_llm_batch.core.cascade import Cascade, Precision, Recall, Rolling
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.thresholds import (
    NOTHING,
    Place,
    are_kept,
    count_allowed_false,
    count_allowed_lost,
    count_least,
)
from dagster_llm_batch.definition.labeling import Labeling, _cascade_of_json
from dagster_llm_batch.errors import ConfigError
from tests.tables import table

CONFIDENCE = 0.95


@table("share", [0.8, 0.9, 0.95, 0.99])
@table("seen", [0, 1, 58, 59, 100, 400, 900])
def test_as_many_errors_are_allowed_as_the_exact_tests_say(share, seen):
    rest = 1 - share
    false = scipy.stats.nbinom.cdf(np.arange(200), seen, share) if seen else np.ones(1)
    assert count_allowed_false(seen, share, CONFIDENCE) == int((false <= 1 - CONFIDENCE).sum()) - 1
    lost = scipy.stats.binom.cdf(np.arange(seen + 1), seen, rest)
    assert count_allowed_lost(seen, share, CONFIDENCE) == int((lost <= 1 - CONFIDENCE).sum()) - 1


@pytest.mark.simulation
@pytest.mark.parametrize("confidence", [0.3, 0.6, 0.95])
def test_no_size_of_the_unknown_group_makes_the_allowed_errors_more_probable_than_the_risk(confidence):
    # The group that errors are compared with has an unknown size, so each size must keep the level.
    for share, seen in product((0.6, 0.8, 0.9, 0.95), (1, 2, 5, 14, 29, 60, 130)):
        lost, rest = count_allowed_lost(seen, share, confidence), round(1 - share, 9)
        for size in range(seen, seen + 600):
            too_many = int(rest * size + 1e-9) + 1
            assert scipy.stats.hypergeom.cdf(lost, size, too_many, seen) <= 1 - confidence + 1e-9
        # With precision, the accepted errors are part of the seen rows.
        allowed = max((k for k in range(seen) if k <= count_allowed_false(seen - k, share, confidence)), default=-1)
        for true in range(1, 600):
            too_many = int(rest / share * true + 1e-9) + 1
            if true + too_many >= seen:
                chance = scipy.stats.hypergeom.cdf(allowed, true + too_many, too_many, seen)
                assert chance <= 1 - confidence + 1e-9


@pytest.mark.simulation
@pytest.mark.parametrize("filters", ["precision", "recall"])
@pytest.mark.parametrize("yes", [4, 40, 400, 2_000])
def test_at_most_one_in_twenty_tables_breaks_the_guarantee_of_a_filter(yes, filters):
    spared = dict[str, float]()
    for scores in (*KINDS, JUST_TOO_MANY):
        failures, _, spared[scores], _ = measure_cell(Cell(filters, 0.9, 4_000, yes, 400, scores), 400)
        # Three standard errors above 5 %.
        assert failures <= 33, scores
    if yes == 2_000:
        assert spared["informative"] > 0.4
    if yes == 4:
        # Too few yes: the oracle answers all rows.
        assert max(spared.values()) == 0


@pytest.mark.simulation
@pytest.mark.parametrize("filters", ["precision", "recall"])
def test_a_threshold_by_eye_breaks_the_guarantee_of_a_filter_much_more_often(filters):
    *_, by_eye = measure_cell(Cell(filters, 0.9, 4_000, 2_000, 400, JUST_TOO_MANY), 200)
    assert by_eye > 40


def test_too_few_yes_in_the_sample_accept_nothing():
    for share in (0.8, 0.9, 0.95):
        least = count_least(share, CONFIDENCE)
        for count in (count_allowed_false, count_allowed_lost):
            assert count(least, share, CONFIDENCE) == 0
            assert count(least - 1, share, CONFIDENCE) == -1
            assert count(0, share, CONFIDENCE) == -1


def test_labels_that_cannot_break_the_guarantee_need_no_score_above_the_threshold():
    scores, digests = np.array([0.9, 0.2, 0.2, -np.inf]), np.arange(4, dtype=np.uint64)
    free = np.array([False, False, True, True])
    assert are_kept(scores, digests, Place(0.5, 0), free).tolist() == [True, False, True, False]
    assert are_kept(scores, digests, NOTHING, free).tolist() == [False] * 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"guarantee": Precision(0.95), "agreement": 0.9}, "two guarantees"),
        ({"guarantee": Precision(0.95), "gold": "gold", "within": 0.1}, "two guarantees"),
        ({"guarantee": Recall(0.9), "calibrate": Rolling()}, "do not go together"),
        ({"guarantee": Recall(0.9), "sample": 29}, "fewer than 30 .* at guarantee=Recall"),
    ],
)
def test_filters_that_cannot_be_kept_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        Cascade(**{"oracle": "openai/large", "target": "is_spam", **given})
    for kind in (Precision, Recall):
        with pytest.raises(ConfigError, match="make it the model"):
            kind(1.0)


@pytest.mark.parametrize(
    ("schema", "yes", "words"),
    [
        ({"type": "boolean"}, True, None),
        ({"enum": ["relevant", "other"]}, "relevant", None),
        ({"enum": ["relevant", "other"]}, True, "does not name a value"),
        ({"type": "boolean"}, "true", "does not name a value"),
        ({"type": "boolean"}, 1, "does not name a value"),
        ({"enum": ["a", "b", "c"]}, "a", "has 3 values"),
        ({"type": "integer"}, 1, "leaves its values open"),
    ],
)
def test_a_filter_needs_a_target_of_two_values_and_the_one_that_means_yes(schema, yes, words):
    properties = {"kind": schema, "confidence": {"type": "number"}}
    response = {"type": "object", "properties": properties, "required": [*properties]}
    given = {
        "asset": "labels",
        "model": "openai/small",
        "key": "id",
        "prompt": Prompt(user="{{ body }}"),
        "response": response,
        "cascade": Cascade("openai/large", "kind", guarantee=Recall(0.9, yes=yes)),
    }
    if words is None:
        known = Labeling(**given)
        # A definition that is read back from the ledger has the same cascade.
        assert _cascade_of_json(known.definition["asked"]["cascade"], None) == known.cascade
        return
    with pytest.raises(ConfigError, match=words):
        Labeling(**given)


def test_cascades_without_a_filter_keep_their_settings_and_stored_form():
    plain, own = Cascade("openai/large", "kind"), Cascade("openai/large", "kind", guarantee=Recall(0.9))
    assert plain.promise == ["kind", 0.95, 0.95, "confidence", "auto"]
    assert own.promise == [*plain.promise, "recall", 0.9, True]
    assert "guarantee" not in plain.settings()
    assert own.settings()["guarantee"] == Recall(0.9)
