"""The upload sends exactly the planned requests, as one file, without copying it."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workspace import Workspace, labeling, tickets

from dagster_llm_batch.core.identity import is_padding, request_id_of
from dagster_llm_batch.engine import Limits
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.loop.submit import outgoing
from dagster_llm_batch.storage.ledger.records import Shard

ROWS = 500


def planned(workspace: Workspace, rows: int = ROWS, **changes) -> tuple[list[Shard], bytes]:
    """Plan rows; return the shards, and all of their lines."""
    engine = workspace.engine()
    shards = engine.ledger.shards.of_submission(engine.plan(labeling(**changes), tickets(rows)).submission_id)
    return shards, b"".join(b"".join(engine.payloads.lines(shard.path)) for shard in shards)


def custom_id(line: bytes) -> bytes:
    return line.partition(b'"custom_id":"')[2].partition(b'"')[0]


READ = st.tuples(st.just("read"), st.sampled_from([1, 100, 1 << 16, (1 << 16) + 1, 1 << 20]))
SEEK = st.tuples(st.just("seek"), st.integers(0, ROWS * 500))
ELSE = st.sampled_from([("start", 0), ("end", 0), ("line", 0), ("rest", 0)])


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(READ | SEEK | ELSE, max_size=12))
def test_it_is_a_file_of_all_lines(workspace: Workspace, steps: list[tuple[str, int]]) -> None:
    shards, lines = planned(workspace, limits=Limits(max_requests_per_batch=200))
    plain = io.BytesIO(lines)
    assert len(shards) == 3
    with outgoing(workspace.engine().payloads, shards, 0) as file:
        assert file.seekable()
        for step, number in steps:
            for one in (taken := [file, plain]):
                if step == "seek":
                    one.seek(number)
                elif step in ("start", "end"):
                    one.seek(0, 2 if step == "end" else 0)
            if step in ("read", "rest"):
                assert taken[0].read(number or -1) == taken[1].read(number or -1)
            if step == "line":
                assert taken[0].readline() == taken[1].readline()
            assert file.tell() == plain.tell()
        file.seek(0)
        assert list(file) == lines.splitlines(keepends=True)


def test_copies_of_the_shortest_request_fill_it_up(workspace: Workspace) -> None:
    shards, lines = planned(workspace, 12, limits=Limits(max_requests_per_batch=11))
    shortest = min(lines.splitlines(keepends=True)[:11], key=len)
    for _ in range(2):
        with outgoing(workspace.engine().payloads, shards, 5) as file:
            data = file.read()
            assert file.seek(0, 2) == len(data)
            file.seek(0)
            assert file.read() == data
    assert data.startswith(lines)
    copies = data.removeprefix(lines).splitlines(keepends=True)
    ids = [custom_id(line) for line in copies]
    assert len(set(ids)) == len(copies) == 5
    assert all(is_padding(request_id_of(custom_id.decode(), shards[0].nonce) or "") for custom_id in ids)
    bodies = {line.replace(one, b"") for line, one in zip(copies, ids, strict=True)}
    assert bodies == {shortest.replace(custom_id(shortest), b"")}


@pytest.mark.parametrize("harm", ["another byte", "cut", "gone"])
def test_a_file_that_is_not_as_planned_is_found_before_any_is_read(workspace: Workspace, harm: str) -> None:
    shards, _ = planned(workspace, limits=Limits(max_requests_per_batch=200))
    path = workspace.tmp_path / "payloads" / shards[-1].path
    data = path.read_bytes()
    path.unlink()
    if harm != "gone":
        middle = len(data) // 2
        other = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes(data[:-1] if harm == "cut" else other)
    with (
        pytest.raises(LLMBatchError, match=r"wave-1-0002\S+ cannot be read as it was planned.* Nothing was sent"),
        outgoing(workspace.engine().payloads, shards, 0),
    ):
        pytest.fail("the last of them was not looked at")


def test_a_digest_of_the_lines_themselves_as_older_versions_kept_it_serves_too(workspace: Workspace) -> None:
    [shard], lines = planned(workspace)
    older = replace(shard, digest=hashlib.blake2b(lines, digest_size=16).hexdigest())
    with outgoing(workspace.engine().payloads, [older], 0) as file:
        assert file.read() == lines
    wrong = replace(shard, digest=hashlib.blake2b(lines + b" ", digest_size=16).hexdigest())
    with pytest.raises(LLMBatchError, match="its digest differs"), outgoing(workspace.engine().payloads, [wrong], 0):
        pytest.fail("the digest was not compared")


def test_a_digest_of_a_kind_that_only_later_versions_know_is_told(workspace: Workspace) -> None:
    [shard], _ = planned(workspace)
    later, payloads = replace(shard, digest="xxh9:" + "0" * 32), workspace.engine().payloads
    with pytest.raises(LLMBatchError, match="unknown to this version: xxh9"), outgoing(payloads, [later], 0):
        pytest.fail("it was sent unchecked")


@pytest.mark.parametrize("harm", ["another byte", "cut"])
def test_what_is_read_is_what_was_compared_whatever_is_written_into_the_file_meanwhile(
    workspace: Workspace, harm: str
) -> None:
    [shard], lines = planned(workspace, 20_000)
    path = workspace.tmp_path / "payloads" / shard.path
    middle = path.stat().st_size // 2
    with outgoing(workspace.engine().payloads, [shard], 0) as file, path.open("r+b") as own:
        start = file.read(1_000)
        if harm == "cut":
            own.truncate(middle)
        else:
            own.seek(middle)
            [byte] = own.read(1)
            own.seek(middle)
            own.write(bytes([byte ^ 1]))
        own.flush()
        assert start + file.read() == lines
