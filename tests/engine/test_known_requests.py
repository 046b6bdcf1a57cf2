"""Any number of earlier requests is recognized exactly, whichever of their batches have ended."""

from __future__ import annotations

import random
import tracemalloc

import polars as pl
import pytest
from workspace import Workspace, billed, labeling, tickets

from dagster_llm_batch.core.identity import REQUEST_ID_BYTES, packed
from dagster_llm_batch.engine import Realtime
from dagster_llm_batch.files.request_files import write_answers_so_far
from dagster_llm_batch.loop.known_requests import KnownRequests
from dagster_llm_batch.types import Lane

URGENT = labeling(response=None, realtime=Realtime(urgent="is_urgent"))


@pytest.mark.parametrize("few", [0, 1 << 12], ids=["many", "few"])
def test_of_any_number_of_requests_each_is_known_by_all_of_its_digest(few: int) -> None:
    dice = random.Random(7)
    ids = [f"{dice.getrandbits(160):040x}" for _ in range(1_200)]
    # Some digests share the first bytes, which are compared first. Some end with zeros, which C strings cannot do.
    ids += [ids[0][:16] + f"{number:024x}" for number in range(4)] + ["0" * 40, "0" * 38 + "01", "f" * 40]
    dice.shuffle(ids)
    settled, in_flight, others = ids[:500], ids[400:800], ids[800:]
    known = KnownRequests(packed(settled), packed(in_flight), few=few)
    expected = {**dict.fromkeys(in_flight, False), **dict.fromkeys(settled, True)}
    assert known.find(ids) == [expected.get(one) for one in ids]
    assert [one in known for one in others] == [False] * len(others)
    assert known.find([]) == []
    assert known
    assert not KnownRequests(few=few)
    assert KnownRequests(few=few).find(ids[:3]) == [None] * 3


def test_of_many_requests_only_what_finds_them_is_in_memory_beside_their_ids() -> None:
    count, head_bytes = 100_000, 8
    ids = bytearray(random.Random(7).randbytes(count * REQUEST_ID_BYTES))
    # Load numpy first: the memory that it takes for itself does not count.
    assert KnownRequests(ids[: 2 * REQUEST_ID_BYTES], few=0)
    tracemalloc.start()
    try:
        known = KnownRequests(ids, few=0)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert known
    assert most_bytes < 1.1 * count * head_bytes


def rows(count: int, urgent_from: int) -> pl.DataFrame:
    return tickets(count).with_columns(is_urgent=pl.Series([at >= urgent_from for at in range(count)]))


def test_answers_so_far_of_a_newer_submission_do_not_hide_those_of_older_ones(workspace: Workspace) -> None:
    workspace.run(URGENT, rows(4, urgent_from=4))
    engine = workspace.engine()
    newer = engine.plan(URGENT, rows(6, urgent_from=4))
    [shard] = engine.ledger.shards.of_submission(newer.submission_id)
    assert (shard.lane, shard.requests) == (Lane.REALTIME, 2)
    # A process was killed when it had one of two answers.
    write_answers_so_far(engine.payloads, shard, {0: b"{}\n"})
    preview = workspace.engine().preview(URGENT, rows(7, urgent_from=4))
    assert (preview.requests, preview.reused) == (7, 5)


@pytest.mark.parametrize("few", [0, 1 << 12], ids=["many", "few"])
def test_what_is_on_its_way_or_answered_is_not_asked_again(workspace: Workspace, few: int) -> None:
    workspace.bounds = {"few_known": few}
    definition = labeling(response=None)
    workspace.run(definition, tickets(20))
    engine = workspace.engine()
    flying = engine.plan(definition, tickets(30))
    engine.submit(definition, flying.submission_id)
    newest = workspace.engine().plan(definition, tickets(35))
    assert newest.requests - newest.reused == 5
    workspace.engine().submit(definition, newest.submission_id)
    workspace.finish(definition, flying.submission_id)
    assert workspace.finish(definition, newest.submission_id).submission.outcomes == {"succeeded": 35}
    assert len(billed(workspace)) == len(set(billed(workspace))) == 35
