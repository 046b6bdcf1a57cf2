"""The guarantees of filters, precision and recall: exact levels, and simulated tables of all kinds."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from dagster_llm_batch.core.cascade import Cascade, Precision, Recall, Rolling
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.thresholds import (
    NOTHING,
    Place,
    are_kept,
    count_allowed_false,
    count_allowed_lost,
    count_least,
    find_threshold,
)
from dagster_llm_batch.definition.labeling import Labeling, _cascade_of_json
from dagster_llm_batch.errors import ConfigError
from tests.tables import table

CONFIDENCE = 0.95


@table("share", [0.8, 0.9, 0.95, 0.99])
@table("seen", [0, 1, 58, 59, 100, 400, 900])
def test_as_many_errors_are_allowed_as_the_exact_tests_say(share, seen):
    rest = 1 - share
    false = stats.nbinom.cdf(np.arange(200), seen, share) if seen else np.ones(1)
    assert count_allowed_false(seen, share, CONFIDENCE) == int((false <= 1 - CONFIDENCE).sum()) - 1
    lost = stats.binom.cdf(np.arange(seen + 1), seen, rest)
    assert count_allowed_lost(seen, share, CONFIDENCE) == int((lost <= 1 - CONFIDENCE).sum()) - 1


@pytest.mark.simulation
@pytest.mark.parametrize("confidence", [0.3, 0.6, 0.95])
def test_no_size_of_the_unknown_group_makes_the_allowed_errors_more_probable_than_the_risk(confidence):
    # The group that errors are compared with has an unknown size, so each size must keep the level.
    for share, seen in product((0.6, 0.8, 0.9, 0.95), (1, 2, 5, 14, 29, 60, 130)):
        lost, rest = count_allowed_lost(seen, share, confidence), round(1 - share, 9)
        for size in range(seen, seen + 600):
            too_many = int(rest * size + 1e-9) + 1
            assert stats.hypergeom.cdf(lost, size, too_many, seen) <= 1 - confidence + 1e-9
        # With precision, the accepted errors are part of the seen rows.
        allowed = max((k for k in range(seen) if k <= count_allowed_false(seen - k, share, confidence)), default=-1)
        for true in range(1, 600):
            too_many = int(rest / share * true + 1e-9) + 1
            if true + too_many >= seen:
                chance = stats.hypergeom.cdf(allowed, true + too_many, too_many, seen)
                assert chance <= 1 - confidence + 1e-9


def simulated_tables(rate, generator, rows):
    """Yield the name, the cheap yes, the oracle's yes, the scores and the tie groups of tables of each kind."""
    yes = generator.random(rows) < rate
    logit = np.log(rate / (1 - rate)) + np.where(yes, 1, -1) * 2.0 + generator.normal(0, 2, rows)
    probability = 1 / (1 + np.exp(-logit))
    cheap, score = probability > min(0.5, 4 * rate), np.abs(logit)
    own = np.arange(rows)
    yield "informative", cheap, yes, score, own
    yield "tied", cheap, yes, np.round(np.minimum(score, 4) / 2), own
    wrong = cheap != yes
    yield "misleading", cheap, yes, np.where(wrong, 1.0, 0.5), own
    # Twenty rows share a request, and so its labels and its score.
    clusters = own // 20
    first = clusters * 20
    yield "clusters", cheap[first], yes[first], score[first], clusters
    # Just more errors than the guarantee allows, all of them sure.
    for name, is_precision in (("precision", True), ("recall", False)):
        errors = int(yes.sum() * (0.1 / 0.9 if is_precision else 0.1)) + 1
        wrong_ones = np.flatnonzero(yes != is_precision)[:errors]
        made = yes.copy()
        made[wrong_ones] = is_precision
        yield f"just too many for {name}", made, yes, np.ones(rows), own


def breaks(is_precision, drawn, cheap, yes, score, digests, share, *, by_eye=False):
    """Return whether a filter delivers a table that breaks its guarantee, and the share of rows it spares."""
    free = ~cheap if is_precision else cheap
    errors = ~free & (cheap != yes)
    if is_precision:
        seen = int((cheap & yes)[drawn].sum())
        allowed = count_allowed_false(seen, share, CONFIDENCE)
        if by_eye:
            allowed = int(seen * (1 - share) / share)
    else:
        seen = int(yes[drawn].sum())
        allowed = int(seen * (1 - share)) if by_eye else count_allowed_lost(seen, share, CONFIDENCE)
    place = find_threshold(score[drawn], digests[drawn], errors[drawn], allowed)
    kept = are_kept(score, digests, place, free)
    # The guarantee holds even before the sampled rows get the oracle's labels.
    delivered = np.where(kept, cheap, yes)
    kept[drawn] = False
    group = delivered if is_precision else yes
    return bool(group.any() and (delivered & yes).sum() < share * group.sum() - 1e-9), float(kept.mean())


@pytest.mark.simulation
@pytest.mark.parametrize("is_precision", [True, False], ids=["precision", "recall"])
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.5])
def test_at_most_one_in_twenty_tables_breaks_the_guarantee_of_a_filter(rate, is_precision):
    rows, sample, runs, share = 4_000, 400, 400, 0.9
    failures = dict[str, int]()
    spared = dict[str, float]()
    generator = np.random.default_rng(17)
    for _ in range(runs):
        for name, cheap, yes, score, groups in simulated_tables(rate, generator, rows):
            digests = generator.integers(0, 1 << 63, rows).astype(np.uint64)[groups]
            drawn = generator.choice(rows, sample, replace=False)
            broken, kept = breaks(is_precision, drawn, cheap, yes, score, digests, share)
            failures[name] = failures.get(name, 0) + broken
            spared[name] = spared.get(name, 0) + kept / runs
    # Three standard errors above 5 %.
    assert max(failures.values()) <= 33, failures
    if rate == 0.5:
        assert spared["informative"] > 0.4
    if rate == 0.001:
        # Too few yes: the oracle answers all rows.
        assert max(spared.values()) == 0


@pytest.mark.simulation
@pytest.mark.parametrize("is_precision", [True, False], ids=["precision", "recall"])
def test_a_threshold_by_eye_breaks_the_guarantee_of_a_filter_much_more_often(is_precision):
    rows, generator, failures = 4_000, np.random.default_rng(18), 0
    for _ in range(200):
        name = f"just too many for {'precision' if is_precision else 'recall'}"
        tables = {one: of for one, *of in simulated_tables(0.5, generator, rows)}
        cheap, yes, score, _ = tables[name]
        digests = generator.integers(0, 1 << 63, rows).astype(np.uint64)
        drawn = generator.choice(rows, 400, replace=False)
        failures += breaks(is_precision, drawn, cheap, yes, score, digests, 0.9, by_eye=True)[0]
    assert failures > 40


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
