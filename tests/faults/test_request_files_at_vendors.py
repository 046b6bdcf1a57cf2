"""Unneeded request files at vendors are deleted: after a grace period, and never before their results are stored."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests

from dagster_llm_batch.engine import Engine
from dagster_llm_batch.errors import RefusedError
from dagster_llm_batch.files.request_files import RAW, beside
from dagster_llm_batch.providers.capabilities import delete_request_file, pass_on_capabilities
from dagster_llm_batch.providers.registry import SERVER_FOLDERS
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.testing.emulator import DEFAULT_KEY
from dagster_llm_batch.upkeep.uploads import Removal, UploadRemover
from tests.faults.vendor_workspace import ROWS, Servers, VendorWorkspace, rows
from tests.faults.vendors import BUCKET, VENDORS

_DAY_SECONDS = 86_400.0
OPENAI = next(vendor for vendor in VENDORS if vendor.name == "openai")


@pytest.fixture
def openai(running: Servers, tmp_path: Path) -> Any:
    with closing(VendorWorkspace(OPENAI, running, tmp_path, 10.0)) as workspace:
        yield workspace


def request_files(workspace: VendorWorkspace, running: Servers) -> list[str]:
    """List the names of the request files at the vendor, or in the user's bucket, independently of the package."""
    provider: Any = workspace.provider
    name, folder = workspace.vendor.name, workspace.folder.name
    if name in ("openai", *SERVER_FOLDERS):
        listed = [file for file in provider._client(retries=0).files.list().data if file.purpose == "batch"]
        # Mistral's result files have the same purpose, and another type.
        return [file.id for file in listed if getattr(file, "sample_type", "batch_request") == "batch_request"]
    if name == "gemini":
        address = f"{workspace.emulator.gemini_base_url}/v1beta/files"
        listed = requests.get(address, headers={"x-goog-api-key": DEFAULT_KEY}, timeout=10).json()
        return [file["name"] for file in listed.get("files", ()) if "batch-" not in file["name"]]
    if name == "bedrock":
        keys = {"aws_access_key_id": DEFAULT_KEY, "aws_secret_access_key": "x", "region_name": "us-east-1"}
        s3 = boto3.client("s3", endpoint_url=running.s3_url, **keys)
        objects = s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder}/").get("Contents", ())
        return [item["Key"] for item in objects if item["Key"].endswith("requests.jsonl")]
    if name == "vertex":
        address = f"{running.gcs_url}/storage/v1/b/{BUCKET}/o"
        listed = requests.get(address, params={"prefix": f"{folder}/"}, timeout=10).json()
        return [item["name"] for item in listed.get("items", ()) if "/requests-" in item["name"]]
    return []


def land(workspace: VendorWorkspace) -> list[Shard]:
    workspace.inject([])
    engine = workspace.engine()
    submission_id = engine.plan(workspace.definition, rows()).submission_id
    while not engine.advance(workspace.definition, submission_id).is_settled:
        workspace.settle()
    return engine.ledger.shards.of_submission(submission_id)


def remove(engine: Engine, **more: Any) -> Removal:
    return UploadRemover(engine.deployment).remove_files(**more)


def later(workspace: VendorWorkspace, days: float = 1.1) -> None:
    workspace.pass_time(days * _DAY_SECONDS)


def test_a_request_file_goes_a_day_after_its_results_are_stored_and_results_stay(
    workspace: VendorWorkspace, running: Servers
) -> None:
    has_files = workspace.vendor.name not in ("anthropic", "openrouter", "command")
    [shard] = land(workspace)
    assert len(request_files(workspace, running)) == has_files
    assert remove(workspace.engine()).batches == []
    later(workspace)
    results = sorted(workspace.provider.fetch(shard.batch.batch_id or ""))
    assert len(request_files(workspace, running)) == has_files
    assert len(results) == ROWS
    removed = remove(workspace.engine())
    assert removed == Removal([shard.batch.batch_id])
    assert request_files(workspace, running) == []
    assert sorted(workspace.provider.fetch(shard.batch.batch_id or "")) == results
    # Once is enough.
    assert remove(workspace.engine()) == Removal()


def test_results_go_only_on_request(workspace: VendorWorkspace, running: Servers) -> None:
    if workspace.vendor.name == "command":
        pytest.skip("its folder is erased as a whole, by `erase` alone: what is left is the user's own machine")
    [shard] = land(workspace)
    later(workspace)
    remover = UploadRemover(workspace.engine().deployment)
    assert remover.remove_results(timedelta(days=2)) == Removal()
    assert remover.remove_results(timedelta(days=1)).batches == [shard.batch.batch_id]
    assert remover.remove_results(timedelta(days=1)) == Removal()
    assert remover.due() == []
    assert request_files(workspace, running) == []


def test_a_file_stays_until_the_results_are_stored_and_whole(openai: VendorWorkspace, running: Servers) -> None:
    engine = openai.engine()
    submission_id = engine.plan(openai.definition, rows()).submission_id
    engine.submit(openai.definition, submission_id)
    openai.settle()
    later(openai)
    assert remove(openai.engine()) == Removal()
    [shard] = land(openai)
    later(openai)
    stored = openai.folder / "payloads" / beside(shard, RAW)
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1])
    removed = remove(openai.engine())
    assert removed.batches == []
    assert "are not whole in the payload store" in removed.kept[shard.batch.batch_id or ""]
    assert len(request_files(openai, running)) == 1
    stored.write_bytes(whole)
    assert remove(openai.engine()).batches == [shard.batch.batch_id]
    assert request_files(openai, running) == []


def test_a_batch_of_two_submissions_keeps_its_file_until_both_are_collected(
    openai: VendorWorkspace, running: Servers
) -> None:
    engine = openai.engine()
    ids = [engine.plan(openai.definition, rows(), partition=day).submission_id for day in ("a", "b")]
    engine.submit_together(openai.definition, ids)
    [batch_id] = {shard.batch.batch_id for one in ids for shard in engine.ledger.shards.of_submission(one)}
    openai.settle()
    engine.collect(openai.definition, ids[0])
    later(openai)
    [uncollected] = engine.ledger.shards.of_submission(ids[1])
    first = next(s for one in ids for s in engine.ledger.shards.of_submission(one) if s.batch.place == 0)
    removed = remove(engine)
    assert removed.batches == []
    if first.submission_id == ids[0]:
        assert removed.kept == {batch_id: f"shard {uncollected.shard_id} in it is not collected"}
    assert len(request_files(openai, running)) == 1
    engine.collect(openai.definition, ids[1])
    later(openai)
    assert remove(engine).batches == [batch_id]
    assert request_files(openai, running) == []


class _Killed(BaseException):
    """An uncatchable end, like kill -9."""


class _DiesAfterDeleting:
    def __init__(self, provider: Any) -> None:
        self._provider = provider
        pass_on_capabilities(provider, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    def delete_request_file(self, batch_id: str) -> None:
        delete_request_file(self._provider, batch_id)
        raise _Killed


class _Refuses(_DiesAfterDeleting):
    def delete_request_file(self, batch_id: str) -> None:
        raise RefusedError(f"no right to delete what is of {batch_id}")


def test_a_process_that_dies_between_deleting_and_recording_leaves_it_to_the_next(
    workspace: VendorWorkspace, running: Servers
) -> None:
    [shard] = land(workspace)
    later(workspace)
    with pytest.raises(_Killed):
        remove(workspace.engine(_DiesAfterDeleting(workspace.provider)))
    assert request_files(workspace, running) == []
    assert remove(workspace.engine()).batches == [shard.batch.batch_id]


def test_a_provider_that_refuses_is_asked_once_and_named(openai: VendorWorkspace, running: Servers) -> None:
    batches = [shard.batch.batch_id for _ in range(2) for shard in land(replace_partition(openai))]
    later(openai)
    removed = remove(openai.engine(_Refuses(openai.provider)))
    assert removed == Removal(troubles={"openai": f"no right to delete what is of {batches[0]}"})
    assert remove(openai.engine(), besides=["openai"]) == Removal()
    assert remove(openai.engine(), has_time=lambda: False) == Removal()
    assert remove(openai.engine(), most=1).batches == batches[:1]
    assert remove(openai.engine()).batches == batches[1:]


def replace_partition(workspace: VendorWorkspace) -> VendorWorkspace:
    """Return the same workspace with another prompt, so that its rows are requested again."""
    prompt = workspace.definition.prompt
    workspace.definition = replace(workspace.definition, prompt=replace(prompt, user=f"{prompt.user} "))
    return workspace


def test_files_of_batches_that_were_put_back_go_with_the_last(running: Servers, tmp_path: Path) -> None:
    with closing(VendorWorkspace(OPENAI, running, tmp_path, 10.0, enqueued_tokens=24)) as workspace:
        engine = workspace.engine()
        submission_id = engine.plan(workspace.definition, rows()).submission_id
        for _ in range(30):
            if engine.advance(workspace.definition, submission_id).is_settled:
                break
            workspace.settle()
            workspace.pass_time(3_600.0)
        shards = engine.ledger.shards.of_submission(submission_id)
        assert len(request_files(workspace, running)) > len(shards)
        later(workspace)
        assert len(remove(workspace.engine()).batches) == len(shards)
        assert request_files(workspace, running) == []
