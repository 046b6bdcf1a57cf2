"""Equal content has an equal id; any change that affects an answer has another id."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.core.identity import (
    RowsDigest,
    block_digest,
    canonical_json,
    configuration_fingerprint,
    custom_id,
    custom_id_pattern,
    make_request,
    make_requests,
    request_id_of,
    shard_nonce,
)
from dagster_llm_batch.types import Endpoint, Image, RequestSpec, ResponseFormat, ResponseKind, Turn

TEXT = st.text(st.characters(codec=None), max_size=20)  # half surrogates too
KEYS = st.one_of(st.integers(), TEXT, st.dates())


@given(st.one_of(st.none(), TEXT), TEXT, st.one_of(st.none(), TEXT), TEXT)
def test_requests_are_the_same_only_where_their_content_is(a: Any, b: str, c: Any, d: str) -> None:
    one, other = make_request(a, b), make_request(c, d)
    assert (one.request_id == other.request_id) == ((a, b) == (c, d))
    assert re.fullmatch(r"[0-9a-f]{40}", one.request_id)


@given(st.one_of(st.none(), TEXT), st.lists(TEXT, max_size=5))
def test_requests_made_together_are_those_made_one_by_one(system: Any, users: list[str]) -> None:
    assert make_requests(system, iter(users)) == [make_request(system, user) for user in users]


def test_ids_and_fingerprints_are_those_that_answers_were_stored_under() -> None:
    ids = [request.request_id for request in make_requests("Label.", ["a ticket", "\ud800 ü"])]
    assert ids == ["6b64db9549547adb83e901db33c866c5367a8be5", "752e3f33794f2f71bf796d461b001142881ea33b"]
    columns = {"key": ["a", "b", "c"], "text": ["ü", None, "x" * 99], "at": [[1.5], [], None], "of": [{"n": 1}] * 3}
    block = pa.RecordBatch.from_pydict(columns).slice(1)
    assert block_digest(b"asked", block).hex() == "1f76d0e53c25504e8e7c9159e76a9a620a67fa70"
    digest = RowsDigest()
    digest.add(["t1", 7], ["0" * 40, "f" * 40])
    assert digest.fingerprint("c") == "51d90e194db48d86034f16c0d73cb85b"


def test_a_request_is_all_of_its_parts() -> None:
    images = [(), (Image("image/png", b"1"),), (Image("image/gif", b"1"),), (Image(url="1"),), (Image(url="2"),)]
    images.append((Image("image/png", b"1"), Image("image/png", b"1")))
    requests = [make_request(s, u, i) for s in (None, "", "ab", "a") for u in ("", "b", "c", "bc") for i in images]
    assert len({request.request_id for request in requests}) == len(requests)


@given(st.dictionaries(KEYS, st.text("0123456789abcdef", min_size=4, max_size=4), max_size=12), st.randoms())
def test_the_fingerprint_does_not_depend_on_the_order_of_rows(rows: dict[Any, str], shuffle: random.Random) -> None:
    def fingerprint(pairs: list[tuple[Any, str]]) -> str:
        digest = RowsDigest()
        for key, request_id in pairs:
            digest.add([key], [request_id])
        assert digest.rows == len(pairs)
        return digest.fingerprint("configuration")

    pairs = list(rows.items())
    mixed = pairs.copy()
    shuffle.shuffle(mixed)
    whole = fingerprint(pairs)
    assert fingerprint(mixed) == whole
    if pairs:
        (key, request_id), rest = pairs[0], pairs[1:]
        assert fingerprint(rest) != whole
        assert fingerprint([(key, request_id + "0"), *rest]) != whole
        assert fingerprint([(f"{key}!", request_id), *rest]) != whole
        assert fingerprint([*pairs, pairs[0]]) != whole


def test_swapping_the_requests_of_two_rows_is_another_fingerprint() -> None:
    straight, crossed = RowsDigest(), RowsDigest()
    for digest, pairs in ((straight, [("a", "1"), ("b", "2")]), (crossed, [("a", "2"), ("b", "1")])):
        for key, request_id in pairs:
            digest.add([key], [request_id])
    assert straight.fingerprint("c") != crossed.fingerprint("c")
    assert straight.fingerprint("c") != straight.fingerprint("d")


def test_a_number_and_its_text_are_different_keys() -> None:
    number, text = RowsDigest(), RowsDigest()
    number.add([1], ["r"])
    text.add(["1"], ["r"])
    assert number.fingerprint("c") != text.fingerprint("c")


SPEC = RequestSpec(
    "gpt-4o", ResponseFormat(ResponseKind.JSON, "Label", {"type": "object", "properties": {}}), params={"a": 1, "b": 2}
)
OTHERS = {
    "model": replace(SPEC, model="gpt-4o-mini"),
    "params": replace(SPEC, params={"a": 1, "b": 3}),
    "params of another type": replace(SPEC, params={"a": 1, "b": "2"}),
    "fewer params": replace(SPEC, params={"a": 1}),
    "endpoint": replace(SPEC, endpoint=Endpoint.RESPONSES),
    "turns": replace(SPEC, turns=(Turn("user", "x"),)),
    "role of a turn": replace(SPEC, turns=(Turn("assistant", "x"),)),
    "schema": replace(SPEC, response=replace(SPEC.response, json_schema={"type": "object"})),
    "name of the schema": replace(SPEC, response=replace(SPEC.response, name="Other")),
    "kind": replace(SPEC, response=ResponseFormat()),
    "dimensions": replace(SPEC, response=replace(SPEC.response, dimensions=3)),
    "cache_prefix": replace(SPEC, cache_prefix=True),
}


def test_every_part_of_a_configuration_changes_its_fingerprint() -> None:
    prints = [configuration_fingerprint("account", "openai", spec) for spec in (SPEC, *OTHERS.values())]
    prints += [configuration_fingerprint("other", "openai", SPEC), configuration_fingerprint("account", "azure", SPEC)]
    assert len(set(prints)) == len(prints)


def test_the_order_of_parameters_does_not_matter_and_that_of_properties_does_not_either() -> None:
    turned = replace(SPEC, params={"b": 2, "a": 1})
    assert configuration_fingerprint("a", "p", turned) == configuration_fingerprint("a", "p", SPEC)
    assert canonical_json({"b": [1, {"d": None, "c": True}], "a": "ä"}) == '{"a":"\\u00e4","b":[1,{"c":true,"d":null}]}'


@given(st.text(max_size=40), st.integers(1, 999), st.integers(0, 9_999), TEXT)
def test_custom_ids_keep_the_rule_and_are_found_again(submission: str, wave: int, number: int, text: str) -> None:
    nonce = shard_nonce(submission, wave, number)
    request_id = make_request(None, text).request_id
    whole = custom_id(nonce, request_id)
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", whole)
    assert request_id_of(whole, nonce) == request_id
    found = custom_id_pattern(nonce).search(f'{{"custom_id":"{whole}","x":"{whole}"}}'.encode())
    assert found is not None
    assert found[1].decode() == request_id
    assert request_id_of(whole, shard_nonce(submission, wave + 1, number)) is None
    assert request_id_of(None, nonce) is None
    assert request_id_of(nonce, nonce) is None


@pytest.mark.parametrize("other", [("t", 1, 0), ("s", 2, 0), ("s", 1, 1), ("s1", 1, 0), ("s", 11, 0)])
def test_no_two_shards_share_a_nonce(other: tuple[str, int, int]) -> None:
    assert shard_nonce(*other) != shard_nonce("s", 1, 0)
    assert len(shard_nonce(*other)) == len(shard_nonce("s", 1, 0))
