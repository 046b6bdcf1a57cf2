"""The ids stored with a request file: they show which requests it has, without reading them again."""

from __future__ import annotations

import pytest
from workspace import Workspace, assert_total, labeling, tickets

from dagster_llm_batch.core.identity import packed, unpacked
from dagster_llm_batch.engine import Limits, Realtime
from dagster_llm_batch.files.request_files import IDS, beside, delete_requests, request_ids, requests_of
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.testing.emulator import RowFault


def planned(workspace: Workspace, **changes) -> list[Shard]:
    """Plan seven rows; return the shards."""
    engine = workspace.engine()
    return engine.ledger.shards.of_submission(engine.plan(labeling(**changes), tickets(7)).submission_id)


def from_lines(workspace: Workspace, shard: Shard) -> list[str]:
    return [one for one, _ in requests_of(workspace.engine().payloads, shard.path, shard.nonce)]


def test_what_is_packed_comes_out_again() -> None:
    ids = [f"{number:040x}" for number in (0, 1, 255, 16**40 - 1)]
    assert unpacked(packed(ids)) == ids
    assert len(packed(ids)) == 80
    assert unpacked(packed([])) == []


def test_they_are_those_of_the_lines(workspace: Workspace) -> None:
    shards = planned(workspace, limits=Limits(max_requests_per_batch=3))
    assert [shard.requests for shard in shards] == [3, 3, 1]
    for shard in shards:
        lines = from_lines(workspace, shard)
        (workspace.tmp_path / "payloads" / shard.path).unlink()  # they are not read
        assert request_ids(workspace.engine().payloads, shard) == lines


def test_they_are_there_in_real_time_too_so_that_none_of_an_earlier_plan_are_taken_for_them(
    workspace: Workspace,
) -> None:
    engine = workspace.engine()
    rows = tickets(40).with_columns(now=True)
    shards = engine.ledger.shards.of_submission(
        engine.plan(labeling(realtime=Realtime(urgent="now")), rows).submission_id
    )
    assert [shard.requests for shard in shards] == [32, 8]
    for shard in shards:
        lines = from_lines(workspace, shard)
        (workspace.tmp_path / "payloads" / shard.path).unlink()
        assert request_ids(workspace.engine().payloads, shard) == lines


@pytest.mark.parametrize("harm", ["gone", "empty", "cut", "another byte", "of another shard"])
def test_where_they_are_not_whole_the_lines_are_read(workspace: Workspace, harm: str) -> None:
    shard, other, _ = planned(workspace, limits=Limits(max_requests_per_batch=3))
    lines = from_lines(workspace, shard)
    stored = workspace.engine().payloads
    file = workspace.tmp_path / "payloads" / beside(shard, IDS)
    if harm == "gone":  # as after a plan of an older version
        file.unlink()
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "of another shard":
        file.write_bytes((workspace.tmp_path / "payloads" / beside(other, IDS)).read_bytes())
    else:
        with stored.reader(beside(shard, IDS)) as source:
            data = source.read()
        with stored.writer(beside(shard, IDS)) as out:
            out.write(data[:-20] if harm == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    assert request_ids(stored, shard) == lines


def test_a_submission_that_an_older_version_planned_comes_home(workspace: Workspace) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=3))
    submission_id = workspace.engine().plan(definition, tickets(7)).submission_id
    for shard in workspace.engine().ledger.shards.of_submission(submission_id):
        workspace.engine().payloads.delete(beside(shard, IDS))
    workspace.engine().submit(definition, submission_id)
    workspace.finish(definition, submission_id)
    labels, _ = assert_total(workspace, definition, submission_id, 7)
    assert len(labels) == 7


def test_every_wave_has_them_and_results_need_no_request_file(workspace: Workspace) -> None:
    workspace.emulator.inject(RowFault(containing="number 1?", status_code=503, times=1))
    definition = labeling()
    submission_id = workspace.engine().plan(definition, tickets(4)).submission_id
    workspace.engine().submit(definition, submission_id)
    workspace.emulator.settle()
    workspace.engine().advance(definition, submission_id)
    retried = workspace.engine().ledger.shards.of_submission(submission_id)[-1]
    assert (retried.wave, retried.requests) == (2, 1)
    assert request_ids(workspace.engine().payloads, retried) == from_lines(workspace, retried)
    workspace.emulator.settle()
    workspace.engine().payloads.delete(retried.path)
    workspace.finish(definition, submission_id)
    labels, _ = assert_total(workspace, definition, submission_id, 4)
    assert len(labels) == 4


def test_they_go_with_the_requests(workspace: Workspace) -> None:
    shards = planned(workspace, limits=Limits(max_requests_per_batch=3))
    for shard in shards:
        delete_requests(workspace.engine().payloads, shard)
    assert not [name for name in workspace.files() if "wave-" in name]
