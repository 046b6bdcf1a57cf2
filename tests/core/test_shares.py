"""The audit of near copies: its guarantee in simulations, and the decision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy

from dagster_llm_batch.core.reuse import Near
from dagster_llm_batch.core.shares import AUDITED, HELD, PAIRS, Shares
from dagster_llm_batch.core.thresholds import choose_sample, count_allowed
from dagster_llm_batch.errors import ConfigError

DRAWS = 1_000


def shares(pairs: list[dict[str, Any]], allowed: int = 0) -> Shares:
    return Shares(
        pairs=pa.Table.from_pylist(pairs, schema=PAIRS),
        target="topic",
        similarity=0.8,
        error=0.02,
        confidence=0.95,
        grouping="",
        look_id="",
        look=1,
        rows=len(pairs),
        sample=sum(pair["drawn"] for pair in pairs),
        allowed=allowed,
    )


def pair(name: str, leader: str | None, *, drawn: int = 0) -> dict[str, Any]:
    state = AUDITED if drawn else HELD
    return {
        "llm_request_id": name,
        "leader": leader,
        "similarity": 0.9,
        "rows": 1,
        "drawn": drawn,
        "state": state,
        "is_shared": False,
    }


def results(**topics: str | None) -> pa.Table:
    outcomes = ["errored" if topic is None else "succeeded" for topic in topics.values()]
    schema = pa.schema([(name, pa.string()) for name in ("llm_request_id", "llm_outcome", "topic")])
    rows = [*zip(topics, outcomes, topics.values(), strict=True)]
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


def shared(decided: Shares) -> set[str]:
    return {one["llm_request_id"] for one in decided.pairs.to_pylist() if one["is_shared"]}


def test_an_audit_without_differences_lets_the_held_copies_share() -> None:
    known = shares([pair("b", "a", drawn=1), pair("c", "a"), pair("d", "a")])
    decided = known.decide(results(a="x", b="x"))
    assert (decided.wrong, decided.passes, shared(decided)) == (0, True, {"c", "d"})
    assert decided.asked_next.to_pylist() == []


@pytest.mark.parametrize("own", ["y", None])
def test_a_copy_with_another_answer_or_without_one_is_wrong_and_then_all_are_asked(own: str | None) -> None:
    known = shares([pair("b", "a", drawn=1), pair("c", "a")])
    decided = known.decide(results(a="x", b=own))
    assert (decided.wrong, decided.passes, shared(decided)) == (1, False, set())
    assert decided.asked_next.to_pylist() == ["c"]


def test_each_drawn_row_of_a_request_counts() -> None:
    known = shares([pair("b", "a", drawn=3), pair("c", "a")], allowed=2)
    assert known.decide(results(a="x", b="y")).wrong == 3


def test_copies_of_a_leader_without_an_answer_are_asked_though_the_audit_passes() -> None:
    known = shares([pair("b", "a", drawn=1), pair("c", "a"), pair("f", "e")])
    decided = known.decide(results(a="x", b="x", e=None))
    assert shared(decided) == {"c"}
    assert decided.asked_next.to_pylist() == ["f"]


def test_without_any_answer_nothing_is_shared() -> None:
    decided = shares([pair("b", "a", drawn=1), pair("c", "a")]).decide(results())
    assert decided.asked_next.to_pylist() == ["c"]


def test_the_stored_form_is_read_again() -> None:
    known = shares([pair("b", "a", drawn=1), pair("c", None)])
    read = Shares.of_json(known.settings_json(), known.pairs)
    assert read == known


def test_rows_of_a_manifest_are_redirected_to_leaders_and_others_stay() -> None:
    decided = shares([pair("b", "a", drawn=1), pair("c", "a")]).decide(results(a="x", b="x"))
    manifest = pa.table({"id": [1, 2, 3, 4, 5], "llm_request_id": ["a", "b", "c", None, "c"]})
    for rows in (decided.redirect(manifest), pa.Table.from_batches([decided.redirect(manifest.to_batches()[0])])):
        assert rows["llm_request_id"].to_pylist() == ["a", "b", "a", None, "a"]
        assert rows["llm_reuse"].to_pylist() == [None, None, "near", None, "near"]
        assert rows["llm_similarity"].to_pylist() == [None, None, 0.9, None, 0.9]
        assert rows.schema == decided.extend(manifest.schema)


def test_copies_of_an_erased_leader_are_asked_and_erased_copies_are_gone() -> None:
    known = shares([pair("b", "a", drawn=1), pair("c", "a"), pair("d", "a")]).without({"a", "d"})
    decided = known.decide(results(b="x"))
    assert decided.asked_next.to_pylist() == ["c"]


@pytest.mark.parametrize(("erased", "passes"), [(0, True), (40, True), (100, False), (200, False)])
def test_an_audit_with_erased_rows_needs_enough_of_the_others(erased: int, passes: bool) -> None:
    pairs = [pair(f"c{at}", "a", drawn=int(at < 200)) for at in range(4_000)]
    known = shares(pairs).without({f"c{at}" for at in range(erased)})
    left, rows = 200 - erased, 4_000 - erased
    assert (known.sample, known.rows, known.asks_all) == (left, rows, False)
    decided = known.decide(results(a="x", **{f"c{at}": "x" for at in range(erased, 200)}))
    # One row more than allowed is wrong: how probable is an audit without a wrong row?
    unseen = scipy.stats.hypergeom.pmf(0, rows, int(0.02 * rows) + 1, left)
    assert decided.wrong == 0
    assert (decided.passes, bool(unseen <= 1 - decided.look_confidence)) == (passes, passes)
    assert len(decided.asked_next) == (0 if passes else 3_800)
    assert ("too few are left" in decided.result_text) is not passes


def test_an_erasure_after_the_decision_changes_no_decision() -> None:
    decided = shares([pair("b", "a", drawn=1), pair("c", "a"), pair("d", "a")]).decide(results(a="x", b="x"))
    assert shared(decided.without({"b", "d"})) == {"c"}


# (groups, copies of each, share of wrong copies, whether a whole group is wrong together)
POPULATIONS = [
    (3_000, 1, 0.0201, False),
    (3_000, 1, 0.03, False),
    (300, 20, 0.021, True),
    (30, 200, 0.034, True),
    (60, 100, 0.021, False),
    (200, 2, 0.0225, False),
    (4, 100, 0.0225, False),
    (50_000, 2, 0.0201, False),
    (3_000, 1, 0.3, False),
]


@pytest.mark.simulation
@pytest.mark.parametrize(("groups", "copies", "share", "together"), POPULATIONS)
def test_a_share_that_is_too_large_is_rarely_overlooked(groups: int, copies: int, share: float, together: bool) -> None:
    near, rng, rows = Near("text", "topic"), np.random.default_rng(1), groups * copies
    size = choose_sample(rows, near.agreement, near.confidence)
    allowed = count_allowed(size, rows, near.agreement, near.confidence)
    wrong = np.zeros((groups, copies), bool)
    if together:
        wrong[: int(share * groups) + 1] = True
    else:
        wrong.ravel()[: int(share * rows) + 1] = True
    flat = wrong.ravel()
    assert flat.mean() > near.error
    broken = 0
    for _ in range(DRAWS):
        drawn = rng.choice(rows, size, replace=False)
        found = int(flat[drawn].sum())
        # Audited rows get their own answers.
        broken += found <= allowed and (flat.sum() - found) / rows > near.error
    # By chance, two standard errors more.
    assert broken / DRAWS <= 0.05 + 2 * (0.05 * 0.95 / DRAWS) ** 0.5


@pytest.mark.simulation
def test_with_few_errors_most_of_30_000_copies_share() -> None:
    near, rng, rows = Near("text", "topic"), np.random.default_rng(2), 30_000
    size = choose_sample(rows, near.agreement, near.confidence)
    allowed = count_allowed(size, rows, near.agreement, near.confidence)
    passed = [rng.hypergeometric(int(0.005 * rows), int(0.995 * rows), size) <= allowed for _ in range(DRAWS)]
    assert np.mean(passed) > 0.95
    # Of 100,000 rows, 30,000 are near copies.
    assert (rows - size) / 100_000 >= 0.25


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"similarity": 0.4}, "0.5 to 1"),
        ({"error": 0.0}, "above 0 and below 1"),
        ({"confidence": 1.0}, "above 0 and below 1"),
        ({"sample": 20}, "too small"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Near("text", "topic", **changes)
