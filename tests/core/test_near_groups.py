"""Groups of near copies: exact similarity, any order of rows, and rows of later days."""

from __future__ import annotations

import hashlib
import random
import sys

import numpy as np
import pytest

from dagster_llm_batch.core.near_copies import EarlierGroups, NearCopies, NearCopy, NearVectors
from dagster_llm_batch.errors import ConfigError

WORDS = [f"{first}{second}{third}" for first in "bdfgk" for second in "aeiou" for third in ("ral", "mit", "son", "ver")]


def text(number: int, copy: int = 0) -> str:
    chosen = random.Random(number).choices(WORDS, k=30)
    if copy:
        chosen[copy % 30] = f"copy{copy}"
    return " ".join(chosen)


def request_id(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:40]


def grouped(
    texts: list[str], earlier: EarlierGroups | None = None, similarity: float = 0.8, **more: str
) -> dict[str, NearCopy]:
    copies = NearCopies(similarity, more.get("shingles", "characters"))  # type: ignore[arg-type]
    copies.add([request_id(one) for one in texts], texts, [more.get("context", "").encode()] * len(texts))
    return {copy.request_id: copy for copy in copies.groups(earlier)}


def shingles(content: str) -> set[str]:
    """Return the shingles as the documentation defines them."""
    normal = " ".join(content.lower().split())
    return {normal[at : at + 5] for at in range(len(normal) - 4)}


def jaccard(one: str, other: str) -> float:
    ones, others = shingles(one), shingles(other)
    return len(ones & others) / len(ones | others)


TEXTS = [text(number, copy) for number in range(60) for copy in range(4)]


def test_each_copy_is_as_similar_to_its_leader_as_it_says_and_a_leader_is_no_copy() -> None:
    of, found = {request_id(one): one for one in TEXTS}, grouped(TEXTS)
    assert len(found) > 150
    for copy in found.values():
        assert copy.similarity == pytest.approx(jaccard(of[copy.request_id], of[copy.leader]))
        assert copy.similarity >= 0.8
        assert copy.leader not in found


def test_most_pairs_above_the_threshold_are_found() -> None:
    found = grouped(TEXTS)
    leaders = [one for one in TEXTS if request_id(one) not in found]
    overlooked = [
        (one, other) for at, one in enumerate(leaders) for other in leaders[at + 1 :] if jaccard(one, other) >= 0.8
    ]
    assert len(overlooked) <= 0.1 * len(found)


def test_the_order_of_rows_changes_no_group() -> None:
    shuffled = random.Random(1).sample(TEXTS, len(TEXTS))
    assert grouped(shuffled) == grouped(TEXTS)


def test_rows_of_later_days_join_earlier_leaders_and_change_no_earlier_group() -> None:
    first = [one for at, one in enumerate(TEXTS) if at % 4 < 2]
    before = grouped(first)
    leaders = frozenset(request_id(one) for one in first) - before.keys()
    earlier = EarlierGroups(leaders, {one: (copy.leader, copy.similarity) for one, copy in before.items()})
    after = grouped(TEXTS, earlier)
    assert {one: after[one] for one in before} == before
    assert leaders.isdisjoint(after)
    joined = [copy for one, copy in after.items() if one not in before]
    assert sum(copy.leader in leaders for copy in joined) > 100


def test_copies_of_a_leader_that_is_gone_get_another_leader_or_lead() -> None:
    before = grouped(TEXTS)
    gone = next(iter(before.values())).leader
    earlier = EarlierGroups(
        frozenset(map(request_id, TEXTS)) - before.keys(),
        {one: (copy.leader, copy.similarity) for one, copy in before.items()},
    )
    left = [one for one in TEXTS if request_id(one) != gone]
    after = grouped(left, earlier)
    assert all(copy.leader != gone for copy in after.values())
    others = {one: copy for one, copy in before.items() if copy.leader != gone}
    assert {one: after[one] for one in others} == others


def test_a_copy_of_a_copy_that_differs_more_from_the_leader_does_not_join_it() -> None:
    base = text(1).split()
    chain = [" ".join(base[:at] + [f"new{n}" for n in range(at)] + base[2 * at :]) for at in range(8)]
    found, of = grouped(chain), {request_id(one): one for one in chain}
    assert all(jaccard(of[copy.request_id], of[copy.leader]) >= 0.8 for copy in found.values())
    assert len(found) < len(chain) - 1


def test_texts_with_different_contexts_are_never_compared() -> None:
    copies = NearCopies(0.8)
    texts = [text(1), text(1, 1), text(1, 2), text(1, 3)]
    copies.add([request_id(one) for one in texts], texts, [b"a", b"b", b"a", b"b"])
    context = dict(zip(map(request_id, texts), "abab", strict=True))
    found = copies.groups()
    assert len(found) == 2
    assert all(context[copy.request_id] == context[copy.leader] for copy in found)


def test_case_and_spaces_do_not_count() -> None:
    [copy] = grouped([text(1), f"  {text(1).upper()}\n"]).values()
    assert copy.similarity == 1


@pytest.mark.parametrize("shingles_", ["characters", "words"])
@pytest.mark.parametrize("odd", ["", "a", "\0", "\ud800", "😀😀", "ab cd"])
def test_odd_texts_are_grouped_too(odd: str, shingles_: str) -> None:
    found = NearCopies(0.9, shingles_)  # type: ignore[arg-type]
    found.add([request_id(str(at)) for at in range(3)], [odd, odd, text(5)], [b""] * 3)
    [copy] = found.groups()
    assert copy.similarity == 1


def test_no_texts_have_no_copies() -> None:
    assert NearCopies(0.8).groups() == []


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(ConfigError, match=r"pip install 'dagster-llm-batch\[near\]'"):
        NearCopies(0.8)


SIZE = 48
"""The length of the vectors here."""


def vectors_of(groups: int, copies: int) -> dict[str, list[float]]:
    """Return groups of vectors, whose copies are turned by up to a third of a radian, of any length."""
    draw, found = np.random.default_rng(1), {}
    for group in range(groups):
        leader = draw.standard_normal(SIZE)
        for copy in range(copies):
            turned = leader + 0.12 * copy * np.linalg.norm(leader) * draw.standard_normal(SIZE) / SIZE**0.5
            found[f"{group}-{copy}"] = (turned * draw.uniform(0.01, 100)).astype(np.float32).tolist()
    return found


def grouped_vectors(
    vectors: dict[str, list[float]], earlier: EarlierGroups | None = None, contexts: list[bytes] | None = None
) -> dict[str, NearCopy]:
    copies, lengths = NearVectors(0.95), np.array([len(one) for one in vectors.values()], np.int64)
    numbers = np.array([number for one in vectors.values() for number in one], np.float32)
    copies.add([request_id(name) for name in vectors], numbers, lengths, contexts or [b""] * len(vectors))
    return {copy.request_id: copy for copy in copies.groups(earlier)}


def cosine(one: list[float], other: list[float]) -> float:
    return float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))


VECTORS = vectors_of(80, 4)


def test_each_copy_has_the_cosine_of_its_vector_and_its_leaders() -> None:
    of, found = {request_id(name): one for name, one in VECTORS.items()}, grouped_vectors(VECTORS)
    for copy in found.values():
        assert copy.similarity == pytest.approx(cosine(of[copy.request_id], of[copy.leader]), abs=1e-5)
        assert copy.similarity >= 0.95
        assert copy.leader not in found
    leaders = [one for name, one in VECTORS.items() if request_id(name) not in found]
    pairs = [(one, other) for at, one in enumerate(leaders) for other in leaders[at + 1 :]]
    assert len(found) > 100
    assert sum(cosine(one, other) >= 0.95 for one, other in pairs) <= 0.1 * len(found)


def test_the_order_of_vectors_changes_no_group_and_more_of_them_change_no_earlier_one() -> None:
    shuffled = dict(random.Random(1).sample(list(VECTORS.items()), len(VECTORS)))
    assert grouped_vectors(shuffled) == grouped_vectors(VECTORS)
    first = {name: one for name, one in VECTORS.items() if name[-1] in "01"}
    before = grouped_vectors(first)
    leaders = frozenset(map(request_id, first)) - before.keys()
    earlier = EarlierGroups(leaders, {one: (copy.leader, copy.similarity) for one, copy in before.items()})
    after = grouped_vectors(VECTORS, earlier)
    assert {one: after[one] for one in before} == before
    assert leaders.isdisjoint(after)


def test_vectors_that_cannot_be_compared_are_no_copies() -> None:
    whole = VECTORS["0-0"]
    others = {
        "empty": [],
        "empty, too": [],
        "zero": [0.0] * SIZE,
        "zero, too": [0.0] * SIZE,
        "no number": [float("nan"), *whole[1:]],
        "no number, too": [float("nan"), *whole[1:]],
        "infinite": [float("inf"), *whole[1:]],
        "shorter": whole[1:],
        "large": [number * 1e30 for number in whole],
    }
    found = grouped_vectors({"whole": whole, **others})
    pair = {request_id("whole"), request_id("large")}
    assert {(copy.request_id, copy.leader) for copy in found.values()} <= {(one, (pair - {one}).pop()) for one in pair}
    assert len(found) == 1
    assert not grouped_vectors({"one": whole, "other": whole}, contexts=[b"a", b"b"])
    assert grouped_vectors({"one": whole, "other": whole}, contexts=[b"a", b"a"])
