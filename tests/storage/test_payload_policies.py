"""The policies of the payload bucket in docs/policies allow exactly the calls that the store makes."""

from __future__ import annotations

import json
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from aiobotocore.session import AioSession

from dagster_llm_batch.cli.doctor import _payload_store as probe_store
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.engine.label_files import write_labels
from dagster_llm_batch.errors import PayloadError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, local_gcs, local_s3

POLICIES = Path(__file__).resolve().parents[2] / "docs" / "policies"
BUCKET = "bucket"
LABELS = Labeling(asset="labels", model="openai/gpt-4o", key="id", prompt=Prompt(user="{{ text }}"), response=None)
ROWS = pa.table({"id": ["t0", "t1", "t2"], "text": ["One.", "Two.", "Three."]})


def work(root: str, options: dict[str, Any], emulator: Emulator, folder: Path) -> None:
    """Make every kind of call that a deployment makes: a labeling, tables, doctor, erase, prune, a file moved."""
    provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)
    payloads = PayloadStore(f"{root}/payloads", **options)
    engine = Engine(
        Deployment({"openai": provider}, Ledger(folder / "ledger.db"), payloads, "test", sleep=lambda _: None)
    )
    submission = engine.plan(LABELS, ROWS)
    engine.submit(LABELS, submission.submission_id)
    emulator.settle()
    assert engine.advance(LABELS, submission.submission_id).is_settled
    tables = [PayloadStore(f"{root}/tables/{name}", **options) for name in ("labels", "rejects")]
    for run_id in ("first", "second"):
        # The second run removes the files of the first.
        write_labels(engine._assembler(LABELS, submission.submission_id, reread=False), *tables, run_id)
    engine.ledger.submissions.mark_delivered(submission.submission_id)
    engine.eraser.add_tombstones("labels", ["t0"], None)
    assert engine.eraser.erase("labels") == []
    engine.prune(timedelta(days=1), timedelta(days=1), delete=True)
    probe_store(payloads, root)
    with payloads.writer("moved") as file:
        file.write(b"x")
    payloads.move("moved", "there")
    payloads.delete("there")
    engine.ledger.close()


def upload_in_parts(payloads: PayloadStore) -> None:
    """Write a file large enough that s3fs sends it in parts: from twice 50 MiB on."""
    with payloads.writer("large") as file:
        # Random bytes do not compress.
        for _ in range(101):
            file.write(os.urandom(1 << 20))


# https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html: the rights of operations with
# other names. Parts of an upload need the right to put the object; to copy one is to read and to put it.
_S3 = {
    "ListObjectsV2": {"s3:ListBucket"},
    "HeadObject": {"s3:GetObject"},
    "CopyObject": {"s3:GetObject", "s3:PutObject"},
    "CreateMultipartUpload": {"s3:PutObject"},
    "UploadPart": {"s3:PutObject"},
    "CompleteMultipartUpload": {"s3:PutObject"},
    "DeleteObjects": {"s3:DeleteObject"},
}


@pytest.mark.slow
def test_the_policy_of_an_s3_bucket_allows_what_the_store_calls_and_nothing_else(tmp_path: Path) -> None:
    """Upload 101 MiB in parts, twice."""
    called: set[tuple[str, str]] = set()
    broken: list[str] = []
    session = AioSession()

    def note(model: Any, params: Any, **_: Any) -> None:
        # A listing has its prefix in the query, next to the path.
        listed = params["query_string"].get("prefix")
        path = params["url_path"].partition("?")[0].lstrip("/").removeprefix(f"{BUCKET}/")
        called.add((model.name, path if listed is None else listed))
        if model.name in broken:
            raise PermissionError(model.name)

    session.register("before-call.s3", note)
    options = {"key": "x", "secret": "x", "session": session, "skip_instance_cache": True}
    root = f"s3://{BUCKET}/llm-batch"
    with local_s3(BUCKET) as url, Emulator() as emulator:
        work(root, {**options, "endpoint_url": url}, emulator, tmp_path)
        payloads = PayloadStore(f"{root}/payloads", endpoint_url=url, **options)
        upload_in_parts(payloads)
        broken.append("UploadPart")
        with pytest.raises(PayloadError):
            upload_in_parts(payloads)
    names = {name for name, _ in called}
    assert {"CopyObject", "CompleteMultipartUpload", "AbortMultipartUpload", "ListObjectsV2"} <= names
    needed = set().union(*(_S3.get(name, {f"s3:{name}"}) for name in names))
    files, bucket = json.loads((POLICIES / "payloads-s3.json").read_text(encoding="utf-8"))["Statement"]
    assert {*files["Action"], bucket["Action"]} == needed
    # Calls stay within the prefix, which is the only one that the policy names.
    assert files["Resource"] == "arn:aws:s3:::BUCKET/llm-batch/*"
    assert bucket["Condition"] == {"StringLike": {"s3:prefix": "llm-batch/*"}}
    assert [call for call in called if not call[1].startswith("llm-batch/")] == []


# https://cloud.google.com/storage/docs/access-control/iam-json; the first that matches holds
_GCS = (
    (r"(POST|PUT) /gcs/upload/storage/v1/b/[^/]+/o", {"storage.objects.create"}),
    (r"GET /gcs/storage/v1/b/[^/]+/o", {"storage.objects.list"}),
    (r"GET /gcs/(download/)?storage/v1/b/[^/]+/o/.+", {"storage.objects.get"}),
    (r"POST /gcs/storage/v1/b/[^/]+/o/.+/(rewriteTo|copyTo)/.+", {"storage.objects.get", "storage.objects.create"}),
    (r"DELETE /gcs/storage/v1/b/[^/]+/o/.+", {"storage.objects.delete"}),
    (r"POST /gcs/batch/storage/v1", {"storage.objects.delete"}),
)


def test_the_role_of_a_cloud_storage_bucket_allows_what_the_store_calls_and_nothing_else(tmp_path: Path) -> None:
    with local_gcs(BUCKET) as storage_url, Emulator(gcs_url=storage_url) as emulator:
        options = {"token": "anon", "endpoint_url": emulator.gcs_relay_url, "skip_instance_cache": True}
        work(f"gs://{BUCKET}/llm-batch", options, emulator, tmp_path)
        calls = {f"{call.method} {call.path}" for call in emulator.books.calls if call.path.startswith("/gcs")}
    needed = {call: next((rights for form, rights in _GCS if re.fullmatch(form, call)), None) for call in calls}
    assert {call for call, rights in needed.items() if rights is None} == set()
    role = yaml.safe_load((POLICIES / "payloads-gcs-role.yaml").read_text(encoding="utf-8"))
    assert set(role["includedPermissions"]) == set().union(*(rights for rights in needed.values() if rights))
