"""An erased row leaves no trace at any vendor, whether in flight or ended, and other rows keep their labels."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import boto3
import polars as pl
import pytest
import requests

from dagster_llm_batch.errors import ProviderError
from dagster_llm_batch.providers.registry import SERVER_FOLDERS
from dagster_llm_batch.testing.emulator import DEFAULT_KEY
from tests.faults.vendor_workspace import ROWS, Servers, VendorWorkspace, rows
from tests.faults.vendors import BUCKET

SECRET = "Ines Quispe of 7 Rua do Ouro"


def stored_here(workspace: VendorWorkspace) -> str:
    """Return the whole content of payload store and ledger, unpacked."""
    payloads = workspace.engine().payloads
    found = [path.read_bytes().decode("latin-1") for path in workspace.folder.glob("ledger.sqlite*")]
    for file in payloads.files("faults"):
        assert payloads.is_whole(file.path)
        if file.path.endswith(".parquet"):
            found.append(json.dumps(payloads.read_table(file.path).to_pylist(), default=str))
        else:
            with payloads.reader(file.path) as stream:
                found.append(stream.read().decode("latin-1"))
    return "\n".join(found)


def stored_there(workspace: VendorWorkspace, running: Servers, batch_id: str) -> str:
    """Return everything that the vendor, or the user's bucket, gives to an account with access."""
    provider: Any = workspace.provider
    found: list[bytes] = []
    with suppress(ProviderError):
        found += provider.fetch(batch_id)
    name = workspace.vendor.name
    if name == "command":
        found += [path.read_bytes() for path in (workspace.folder / "jobs").rglob("*") if path.is_file()]
    elif name in ("openai", *SERVER_FOLDERS):
        files = provider._client(retries=0).files
        found += [files.content(file.id).read() for file in files.list().data]
    elif name in ("anthropic", "openrouter"):
        # Requests cannot be fetched, but an existing batch contains them.
        client = provider._client(retries=0)
        if name == "anthropic":
            listed = client.messages.batches.list()
        else:
            listed = provider._batches(0).list(limit=100).parse().data
        found += [SECRET.encode() for batch in listed if batch.id == batch_id]
    elif name == "gemini":
        found.append(json.dumps(list(provider._api.pages("batches", "list", ("operations", "batches")))).encode())
    elif name == "bedrock":
        keys = {"aws_access_key_id": DEFAULT_KEY, "aws_secret_access_key": "x", "region_name": "us-east-1"}
        s3 = boto3.client("s3", endpoint_url=running.s3_url, **keys)
        objects = s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{workspace.folder.name}/").get("Contents", ())
        found += [s3.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read() for item in objects]
    else:
        address = f"{running.gcs_url}/storage/v1/b/{BUCKET}/o"
        listed = requests.get(address, params={"prefix": f"{workspace.folder.name}/"}, timeout=10).json()
        found += [requests.get(item["mediaLink"], timeout=10).content for item in listed.get("items", ())]
    return b"\n".join(found).decode("latin-1")


def finish(workspace: VendorWorkspace, submission_id: str) -> None:
    while not workspace.engine().advance(workspace.definition, submission_id).is_settled:
        workspace.settle()


@pytest.mark.parametrize("when", ["ended", "in flight"])
def test_of_an_erased_row_nothing_is_left_anywhere(workspace: VendorWorkspace, running: Servers, when: str) -> None:
    frame = rows().with_columns(
        text=pl.when(pl.col("id") == "t5").then(pl.lit(SECRET)).otherwise(pl.col("text")),
    )
    engine = workspace.engine()
    submission_id = engine.plan(workspace.definition, frame).submission_id
    engine.submit(workspace.definition, submission_id)
    [shard] = engine.ledger.shards.of_submission(submission_id)
    if when == "ended":
        finish(workspace, submission_id)
        assert SECRET in stored_here(workspace)
        # Requests in Gemini's create call cannot be fetched later.
        assert workspace.vendor.name == "gemini" or SECRET in stored_there(
            workspace, running, shard.batch.batch_id or ""
        )
    eraser = workspace.engine().eraser
    eraser.add_tombstones("labels", ["t5"], None)
    assert bool(eraser.erase("labels")) == (when == "in flight")
    if when == "ended":
        assert [one.left for one in eraser.erase_at_providers("labels")] == [None]
    else:
        finish(workspace, submission_id)
    assert eraser.erase_at_providers("labels") == []
    assert SECRET not in stored_here(workspace)
    assert SECRET not in stored_there(workspace, running, shard.batch.batch_id or "")
    labeled = workspace.engine().labels(workspace.definition, submission_id)
    keys = [key for table in (labeled.labels, labeled.rejects) for key in table["id"].to_pylist()]
    assert sorted(keys) == sorted(set(frame["id"]) - {"t5"})
    assert workspace.engine().ledger.submissions.get(submission_id).rows == ROWS - 1
