"""The emulator's storage servers, and the relay through which faults reach their calls."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from collections.abc import Iterator

import boto3
import pytest
from botocore.config import Config
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from dagster_llm_batch.testing.emulator import Emulator, WireFault, local_gcs, local_s3

BUCKET = "bucket"
CONTENT = b"".join(b"line %d\n" % number for number in range(100_000))


@pytest.fixture(scope="module")
def gcs_url() -> Iterator[str]:
    with local_gcs(BUCKET) as url:
        yield url


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with local_s3(BUCKET) as url:
        yield url


@pytest.fixture
def emulator(gcs_url: str, s3_url: str) -> Iterator[Emulator]:
    with Emulator(gcs_url=gcs_url, s3_url=s3_url) as running:
        yield running


def gcs(emulator: Emulator):
    options = {"api_endpoint": emulator.gcs_relay_url}
    client = storage.Client(project="p", credentials=AnonymousCredentials(), client_options=options)
    return client.bucket(BUCKET)


def s3(emulator: Emulator, attempts: int = 1):
    config = Config(retries={"total_max_attempts": attempts, "mode": "standard"})
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=emulator.s3_relay_url, config=config, **keys)


def test_cloud_storage_takes_more_calls_than_its_log_has_room_for(gcs_url):
    for _ in range(1_500):  # it hung after 461
        with urllib.request.urlopen(f"{gcs_url}/storage/v1/b/{BUCKET}/o", timeout=60) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("chunk_size", [None, 1 << 18], ids=["at once", "resumable"])
def test_every_call_to_cloud_storage_goes_through_the_relay(emulator, chunk_size):
    blob = gcs(emulator).blob("a folder/é.jsonl", chunk_size=chunk_size)
    blob.upload_from_file(io.BytesIO(CONTENT), size=None if chunk_size else len(CONTENT))
    assert gcs(emulator).blob("a folder/é.jsonl").download_as_bytes() == CONTENT
    [listed] = gcs(emulator).list_blobs(prefix="a folder/")
    with listed.open("rb", chunk_size=1 << 18) as file:
        assert file.read() == CONTENT
    listed.delete()
    calls = [f"{call.method} {call.path}" for call in emulator.books.calls]
    assert {call.partition("/")[0] for call in calls} >= {"POST ", "GET ", "DELETE "}
    assert sum("/upload/" in call for call in calls) == (
        1 if chunk_size is None else 1 + -(-len(CONTENT) // chunk_size)
    )
    assert sum("/download/" in call for call in calls) >= 2


def test_every_call_to_s3_goes_through_the_relay(emulator):
    client = s3(emulator)
    client.put_object(Bucket=BUCKET, Key="a/é b.jsonl", Body=CONTENT)
    assert client.head_object(Bucket=BUCKET, Key="a/é b.jsonl")["ContentLength"] == len(CONTENT)
    assert client.get_object(Bucket=BUCKET, Key="a/é b.jsonl")["Body"].read() == CONTENT
    assert [one["Key"] for one in client.list_objects_v2(Bucket=BUCKET, Prefix="a/")["Contents"]] == ["a/é b.jsonl"]
    client.delete_object(Bucket=BUCKET, Key="a/é b.jsonl")
    assert [call.method for call in emulator.books.calls] == ["PUT", "HEAD", "GET", "GET", "DELETE"]


def test_faults_strike_calls_to_storage(emulator):
    gcs(emulator).blob("x").upload_from_string(CONTENT)
    s3(emulator).put_object(Bucket=BUCKET, Key="x", Body=CONTENT)
    emulator.inject(
        WireFault(kind="status", route="GET /gcs/download/*", status=404),
        WireFault(kind="cut", route="GET /s3/*", after_lines=3),
    )
    with pytest.raises(Exception, match="404"):
        gcs(emulator).blob("x").download_as_bytes()
    with pytest.raises(Exception, match="IncompleteRead"):
        s3(emulator).get_object(Bucket=BUCKET, Key="x")["Body"].read()
    assert gcs(emulator).blob("x").download_as_bytes() == s3(emulator).get_object(Bucket=BUCKET, Key="x")["Body"].read()


def test_without_a_server_there_is_no_relay():
    with Emulator() as alone, pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{alone.s3_relay_url}/bucket/x")


def test_a_local_s3_server_starts_with_an_empty_bucket_after_another_one_of_this_process():
    for _ in range(2):
        with local_s3("again") as url:
            storage_client = boto3.client(
                "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
            )
            assert storage_client.list_object_versions(Bucket="again").get("Versions", []) == []
            storage_client.put_object(Bucket="again", Key="of the first", Body=b"1")
            enabled = {"Status": "Enabled"}
            storage_client.put_bucket_versioning(Bucket="again", VersioningConfiguration=enabled)
            for body in (b"2", b"3"):
                storage_client.put_object(Bucket="again", Key="of the first", Body=body)
            storage_client.delete_object(Bucket="again", Key="of the first")
    # A bucket that its user has deleted needs no cleaning.
    with local_s3("again") as url:
        boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
        ).delete_bucket(Bucket="again")
