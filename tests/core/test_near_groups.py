"""Groups of near copies: exact similarity, any order of rows, and rows of later days."""

from __future__ import annotations

import hashlib
import random
import sys

import pytest

from dagster_llm_batch.core.near_copies import EarlierGroups, NearCopies, NearCopy
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
