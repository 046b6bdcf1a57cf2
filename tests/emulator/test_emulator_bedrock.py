"""Emulated Bedrock through the unchanged boto3: job states, token replay, validation, files in S3, modelled errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from dagster_llm_batch.testing.emulator import (
    BEDROCK,
    DEFAULT_KEY,
    BatchFault,
    Emulator,
    VendorLimits,
    WireFault,
    local_s3,
)

BUCKET, MODEL = "bucket", "anthropic.claude-haiku-4-5-20251001-v1:0"
ROLE = "arn:aws:iam::123456789012:role/batch"
BODY = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
CHAT_BODY = {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}
OBJECT_SCHEMA = {"type": "json_schema", "structure": {"jsonSchema": {"schema": {}}}}  # the API wants a string here


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with local_s3(BUCKET) as url:
        yield url


class EmulatorClient:
    """An emulator and the clients that most tests need."""

    def __init__(self, emulator: Emulator, s3_url: str) -> None:
        self.emulator = emulator
        self.bedrock = self.client("bedrock", emulator.bedrock_url)
        self.runtime = self.client("bedrock-runtime", emulator.bedrock_url)
        self.s3 = self.client("s3", s3_url)

    def client(self, service: str, url: str, key: str = DEFAULT_KEY, attempts: int = 1) -> Any:
        keys = {"aws_access_key_id": key, "aws_secret_access_key": "x"}
        config = Config(retries={"total_max_attempts": attempts, "mode": "standard"})
        return boto3.client(service, "us-east-1", endpoint_url=url, config=config, **keys)

    def create(self, records: list[Any] | int | bytes = 2, name: str = "job", **options: Any) -> str:
        if isinstance(records, int):
            records = [{"recordId": f"r{n}", "modelInput": BODY} for n in range(records)]
        if not isinstance(records, bytes):
            records = "".join(json.dumps(record) + "\n" for record in records).encode()
        self.s3.put_object(Bucket=BUCKET, Key=f"{name}/in.jsonl", Body=records)
        return self.bedrock.create_model_invocation_job(**self.request(name, **options))["jobArn"]

    @staticmethod
    def request(name: str = "job", **options: Any) -> dict[str, Any]:
        usual = {
            "jobName": name,
            "roleArn": ROLE,
            "modelId": MODEL,
            "inputDataConfig": {"s3InputDataConfig": {"s3Uri": f"s3://{BUCKET}/{name}/in.jsonl"}},
            "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": f"s3://{BUCKET}/{name}/out/"}},
        }
        return {**usual, **options}

    def get(self, arn: str) -> Any:
        return self.bedrock.get_model_invocation_job(jobIdentifier=arn)

    def names(self, prefix: str) -> list[str]:
        return [one["Key"] for one in self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())]

    def out(self, arn: str, name: str = "job", file: str = "in.jsonl.out") -> list[Any]:
        data = self.s3.get_object(Bucket=BUCKET, Key=f"{name}/out/{arn[-12:]}/{file}")["Body"].read()
        return [json.loads(line) for line in data.split(b"\n") if line]


@pytest.fixture
def connect(s3_url) -> Iterator[Any]:
    """Connect to a new emulator over an empty bucket, made with these arguments of `Emulator`."""
    made: list[Emulator] = []

    def make(least: int = 1, **options: Any) -> EmulatorClient:
        limits = options.pop("limits", VendorLimits(bedrock_min_records=least))
        made.append(Emulator(s3_url=s3_url, limits=limits, **options).start())
        client = EmulatorClient(made[-1], s3_url)
        for key in client.names(""):
            client.s3.delete_object(Bucket=BUCKET, Key=key)
        return client

    yield make
    for emulator in made:
        emulator.close()


def test_the_states_are_walked_in_the_documented_order(connect):
    client = connect()
    arn = client.create()
    seen = [client.get(arn)["status"]]
    while client.emulator.tick():
        seen.append(client.get(arn)["status"])
    assert seen == ["Submitted", "Validating", "Scheduled", "InProgress", "Completed"]
    assert {"PartiallyCompleted", "Expired", "Failed", "Stopped"} < set(BEDROCK.states)


def test_results_stand_in_the_jobs_own_folder_and_the_manifest_comes_last(connect):
    client = connect(work_steps=2)
    arn = client.create(4)
    client.emulator.tick(4)
    assert client.get(arn)["status"] == "InProgress"
    assert client.names("job/out/") == [f"job/out/{arn[-12:]}/in.jsonl.out"]
    assert len(client.out(arn)) == 2
    client.emulator.settle()
    assert client.out(arn, file="manifest.json.out") == [
        {
            "totalRecordCount": 4,
            "processedRecordCount": 4,
            "successRecordCount": 4,
            "errorRecordCount": 0,
            "inputTokenCount": 4,
            "outputTokenCount": sum(row["modelOutput"]["usage"]["output_tokens"] for row in client.out(arn)),
        }
    ]


def test_a_record_fails_alone_and_its_error_stands_in_the_place_of_an_output(connect):
    client = connect()
    arn = client.create([{"recordId": "good", "modelInput": BODY}, {"recordId": "bad", "modelInput": {"messages": []}}])
    client.emulator.settle()
    rows = {row["recordId"]: row for row in client.out(arn)}
    assert set(rows["good"]) == {"recordId", "modelInput", "modelOutput"}
    assert rows["bad"]["error"]["errorCode"] == 400
    assert "modelOutput" not in rows["bad"]
    assert (client.get(arn)["status"], client.get(arn)["errorRecordCount"]) == ("Completed", 1)


@pytest.mark.parametrize(
    ("body", "model", "options"),
    [
        ({**BODY, "anthropic_version": "2026-10-21"}, MODEL, {}),
        ({name: value for name, value in BODY.items() if name != "max_tokens"}, MODEL, {}),
        ({**BODY, "inferenceConfig": {}}, MODEL, {}),
        ({**BODY, "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}, MODEL, {}),
        (BODY, "amazon.nova-lite-v1:0", {}),
        ({**CHAT_BODY, "toolConfig": {"tools": []}}, MODEL, {"modelInvocationType": "Converse"}),
        (
            {**CHAT_BODY, "outputConfig": {"textFormat": OBJECT_SCHEMA}},
            MODEL,
            {"modelInvocationType": "Converse"},
        ),
        ({"prompt": ""}, "meta.llama3-1-8b-instruct-v1:0", {}),
        ({"messages": [{"role": "user", "content": "x"}]}, "amazon.titan-embed-text-v2:0", {}),
    ],
)  # fmt: skip
def test_a_body_that_its_model_does_not_take_is_a_failed_record(connect, body, model, options):
    client = connect()
    arn = client.create([{"recordId": "r", "modelInput": body}], modelId=model, **options)
    client.emulator.settle()
    [row] = client.out(arn)
    assert row["error"]["errorCode"] == 400
    assert not [execution for execution in client.emulator.books.executions if execution.billed]


@pytest.mark.parametrize(
    ("records", "words"),
    [(99, "below"), (b"{\n" * 100, "Record 1"), (b'{"recordId":"r"}\n' * 100, "modelInput"), (b"", "below")],
)
def test_an_input_that_is_wrong_as_a_whole_fails_the_job_while_it_validates(connect, records, words):
    client = connect(least=100)
    arn = client.create(records)
    assert client.get(arn)["status"] == "Submitted"
    client.emulator.settle()
    assert client.get(arn)["status"] == "Failed"
    assert words in client.get(arn)["message"]
    assert client.names("job/out/") == []


def test_an_input_that_is_not_there_fails_the_job(connect):
    client = connect()
    arn = client.bedrock.create_model_invocation_job(**client.request("nothing"))["jobArn"]
    client.emulator.settle()
    assert client.get(arn)["status"] == "Failed"


def test_a_record_without_an_id_is_given_one(connect):
    client = connect()
    arn = client.create([{"modelInput": BODY}])
    client.emulator.settle()
    assert len(client.out(arn)[0]["recordId"]) == 11


def test_a_repeated_token_makes_no_second_job_and_other_parameters_conflict(connect):
    client = connect()
    first = client.create(clientRequestToken="t1")
    assert client.create(clientRequestToken="t1") == first
    with pytest.raises(ClientError) as raised:
        client.create(clientRequestToken="t1", timeoutDurationInHours=48)
    assert raised.value.response["Error"]["Code"] == "ConflictException"
    assert len(client.emulator.books.batches) == 1


def test_boto3_repeats_a_create_with_the_same_token(connect):
    client = connect()
    client.emulator.inject(WireFault(kind="status", route="POST /bedrock/model-invocation-job", when="after"))
    client.bedrock = client.client("bedrock", client.emulator.bedrock_url, attempts=3)
    client.create()
    assert client.emulator.books.calls_to("POST", "/bedrock/model-invocation-job") == 2
    assert len(client.emulator.books.batches) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"jobName": "has_underscore"},
        {"clientRequestToken": "ends-with-"},
        {"clientRequestToken": "has_underscore"},
        {"roleArn": "role/x"},
        {"modelId": "no model!"},
        {"outputDataConfig": {"s3OutputDataConfig": {"s3Uri": "s3://bucket/a=b/"}}},
    ],
)
def test_what_botocore_lets_pass_is_refused_when_the_job_is_created(connect, wrong):
    client = connect()
    with pytest.raises(ClientError) as raised:
        client.bedrock.create_model_invocation_job(**client.request(**wrong))
    assert raised.value.response["Error"]["Code"] == "ValidationException"
    assert client.emulator.books.batches == []


def test_jobs_are_found_by_arn_and_by_id_and_others_are_not(connect):
    client = connect()
    arn = client.create()
    assert client.get(arn)["jobArn"] == client.get(arn[-12:])["jobArn"] == arn
    for wrong, code in (("abcdefghijkl", "ResourceNotFoundException"), ("no job", "ValidationException")):
        with pytest.raises(ClientError) as raised:
            client.get(wrong)
        assert raised.value.response["Error"]["Code"] == code


def test_lists_filter_sort_and_page(connect):
    client = connect()
    arns = [client.create(name=f"job-{n}") for n in range(5)]
    listed = client.bedrock.list_model_invocation_jobs
    page = listed(maxResults=2)
    assert [job["jobArn"] for job in page["invocationJobSummaries"]] == arns[:2:-1]
    pages = client.bedrock.get_paginator("list_model_invocation_jobs").paginate(PaginationConfig={"PageSize": 2})
    assert [job["jobArn"] for page in pages for job in page["invocationJobSummaries"]] == arns[::-1]
    ascending = listed(sortBy="CreationTime", sortOrder="Ascending")["invocationJobSummaries"]
    assert [job["jobArn"] for job in ascending] == arns
    assert [job["jobArn"] for job in listed(nameContains="b-3")["invocationJobSummaries"]] == [arns[3]]
    assert listed(statusEquals="Completed")["invocationJobSummaries"] == []
    assert ascending[0]["clientRequestToken"]


def test_a_stop_is_taken_once_and_not_from_an_end(connect):
    client = connect()
    arn = client.create()
    client.bedrock.stop_model_invocation_job(jobIdentifier=arn)
    assert client.get(arn)["status"] == "Stopping"
    client.bedrock.stop_model_invocation_job(jobIdentifier=arn)
    client.emulator.settle()
    assert client.get(arn)["status"] == "Stopped"
    with pytest.raises(ClientError) as raised:
        client.bedrock.stop_model_invocation_job(jobIdentifier=arn)
    assert raised.value.response["Error"]["Code"] == "ConflictException"


def test_an_unknown_key_is_nobody_and_another_account_sees_nothing(connect):
    client = connect(keys={DEFAULT_KEY: "a", "other": "b"})
    client.create()
    with pytest.raises(ClientError) as raised:
        client.client("bedrock", client.emulator.bedrock_url, "wrong").list_model_invocation_jobs()
    assert raised.value.response["Error"]["Code"] == "UnrecognizedClientException"
    theirs = client.client("bedrock", client.emulator.bedrock_url, "other").list_model_invocation_jobs()
    assert theirs["invocationJobSummaries"] == []


@pytest.mark.parametrize(("status", "code"), [(429, "ThrottlingException"), (503, "ServiceUnavailableException")])
def test_a_scripted_error_is_one_that_boto3_knows(connect, status, code):
    client = connect()
    client.emulator.inject(WireFault(kind="status", route="GET /bedrock/*", status=status))
    with pytest.raises(ClientError) as raised:
        client.bedrock.list_model_invocation_jobs()
    assert raised.value.response["Error"]["Code"] == code


@pytest.mark.parametrize("kind", ["expires", "cancels"])
def test_a_job_cut_short_has_partial_output_and_a_manifest(connect, kind):
    client = connect()
    client.emulator.inject(BatchFault(kind=kind, fraction=0.5))
    arn = client.create(4)
    client.emulator.settle()
    assert client.get(arn)["status"] == {"expires": "Expired", "cancels": "Stopped"}[kind]
    assert len(client.out(arn)) == 2
    assert client.out(arn, file="manifest.json.out")[0]["processedRecordCount"] == 2


def test_real_time_answers_as_a_batch_does(connect):
    client = connect()
    arn = client.create(1)
    client.emulator.settle()
    reply = client.runtime.invoke_model(modelId=MODEL, body=json.dumps(BODY))["body"].read()
    assert json.loads(reply)["content"] == client.out(arn)[0]["modelOutput"]["content"]
    spoken = client.runtime.converse(modelId=MODEL, messages=CHAT_BODY["messages"], inferenceConfig={"maxTokens": 2})
    assert spoken["stopReason"] == "max_tokens"
    assert client.emulator.books.billed_twice() == {}
