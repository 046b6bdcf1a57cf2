"""The expected requests of a shard, compared with a plain set of texts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.core.identity import custom_id, make_request, packed, request_id_of, unpacked
from dagster_llm_batch.core.results import Expected

NONCE = "r0123456789abcdef"
ALIKE = [f"{'ab' * 8}{number:024x}" for number in range(2)]  # the first 8 bytes of both are the same
IDS = [make_request(None, str(number)).request_id for number in range(5)] + ALIKE
NAMES = [custom_id(NONCE, one) for one in IDS]
ONE, OTHER, *_ = NAMES
NO_NAMES = [
    None,
    "",
    "\ud800",
    ONE[:-1],
    ONE[:-1] + "\u00e9",
    ONE.upper(),
    custom_id(NONCE, IDS[0].upper()),
    custom_id(NONCE, f"{IDS[0][:2]} {IDS[0][2:]}"),
    custom_id(NONCE, IDS[0][:38] + "  "),
    custom_id("r0123456789abcdee", IDS[0]),
    IDS[0],
    custom_id(NONCE, "f" * 40),
    f"{ONE}\n{OTHER}",
    f"\n{ONE}",
    f"{ONE}\n",
    custom_id(NONCE, ""),
]


@settings(max_examples=500, deadline=None)
@given(
    expected=st.lists(st.sampled_from(IDS), unique=True),
    chunks=st.lists(st.lists(st.sampled_from(NAMES) | st.sampled_from([*NAMES, *NO_NAMES]), min_size=1, max_size=4)),
)
def test_some_at_once_are_as_one_by_one(expected: list[str], chunks: list[list[str | None]]) -> None:
    found, are_open = Expected(NONCE, packed(expected)), set(expected)
    for names in chunks:
        ids = [request_id_of(name, NONCE) for name in names]
        together = found.take(names)
        if together is not None:
            assert unpacked(together) == ids
            assert len({*ids} & are_open) == len(ids)
            are_open -= {*ids}  # type: ignore[arg-type]  # all are texts, as was seen
            continue
        for request_id in ids:
            if request_id is not None:
                assert found.take_one(request_id) == (request_id in are_open)
                assert (request_id in found) == (request_id in expected)
                are_open.discard(request_id)
    assert unpacked(found.left()) == [one for one in expected if one in are_open]


def test_they_are_taken_together_where_nothing_is_odd() -> None:
    found = Expected(NONCE, packed(IDS))
    assert found.take([NAMES[3], NAMES[1], NAMES[4]]) == packed([IDS[3], IDS[1], IDS[4]])
    assert found.take([NAMES[0], NAMES[1]]) is None  # one is taken
    assert found.take([NAMES[0], NAMES[0]]) is None
    assert found.take([NAMES[2], NAMES[0]]) == packed([IDS[2], IDS[0]])
    assert unpacked(found.left()) == ALIKE
