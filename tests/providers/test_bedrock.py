"""The Bedrock provider through boto3 over sockets, files in a real S3: no second job, no lost record."""

from __future__ import annotations

import io
import json
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import boto3
import pytest
from bedrock_emulator import BUCKET, CREATE, HAIKU, SECRET, SPEC, SPECS, TAG, batch_file, emulator_over, over

from dagster_llm_batch.errors import (
    AmbiguousError,
    ConfigError,
    CredentialsError,
    ProviderError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.providers.answers import UnknownIdError
from dagster_llm_batch.providers.bedrock.provider import BedrockProvider
from dagster_llm_batch.providers.jsonlines import cut_heads
from dagster_llm_batch.testing.contracts import OneWayStream
from dagster_llm_batch.testing.emulator import (
    DEFAULT_KEY,
    BatchFault,
    Emulator,
    FileFault,
    ManualClock,
    RowFault,
    VendorLimits,
    WireFault,
    local_s3,
)
from dagster_llm_batch.types import Absent, BatchStatus, FindHints, Found, Outcome, RequestSpec, StatusUnknown

GET = "GET /bedrock/model-invocation-job/*"
LIST = "GET /bedrock/model-invocation-jobs"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    with local_s3(BUCKET) as url:
        yield url


def s3_client(url: str):
    return boto3.client("s3", "us-east-1", endpoint_url=url, aws_access_key_id="x", aws_secret_access_key="x")


@pytest.fixture
def s3_url(s3_server) -> str:
    """Return the URL of the server after emptying its bucket, since each emulator gives the same ids."""
    for key in keys(s3_server):
        s3_client(s3_server).delete_object(Bucket=BUCKET, Key=key)
    return s3_server


@pytest.fixture
def emulator(s3_url) -> Iterator[Emulator]:
    with emulator_over(s3_url) as emulator:
        yield emulator


@pytest.fixture
def provider(emulator, s3_url) -> BedrockProvider:
    return over(emulator, s3_url)


def submit(provider: BedrockProvider, tag: str = TAG, count: int = 3, spec: RequestSpec = SPEC) -> str:
    return provider.submit(batch_file(provider.codec(spec), count), spec, tag)


def hints(requests: int = 3) -> FindHints:
    return FindHints(datetime.now(UTC), requests, "n")


def report(provider: BedrockProvider, batch_id: str):
    return provider.poll([batch_id])[batch_id]


def results(provider: BedrockProvider, batch_id: str, spec: RequestSpec = SPEC):
    return [provider.codec(spec).decode(line) for line in provider.fetch(batch_id)]


def creates(emulator: Emulator) -> int:
    return emulator.books.calls_to("POST", "/bedrock/model-invocation-job")


def gets(emulator: Emulator) -> int:
    return sum(call.method == "GET" for call in emulator.books.calls)


def keys(s3_url: str, prefix: str = "") -> list[str]:
    return sorted(
        item["Key"] for item in s3_client(s3_url).list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())
    )


# Submit and find


@pytest.mark.slow
def test_a_submit_uploads_below_its_own_prefix_and_creates_once_with_name_and_token(emulator, provider, s3_url):
    batch_id = submit(provider, "my_tag")
    (batch,) = emulator.books.batches
    assert batch.id == batch_id
    name = batch.metadata["jobName"]
    assert batch.metadata == {"jobName": name, "clientRequestToken": name}
    assert "_" not in name
    assert creates(emulator) == 1
    emulator.settle()
    assert keys(s3_url, f"llm/{name}/") == [
        f"llm/{name}/requests.jsonl",
        f"llm/{name}/results/{batch_id[-12:]}/manifest.json.out",
        f"llm/{name}/results/{batch_id[-12:]}/requests.jsonl.out",
    ]


def test_what_is_uploaded_has_ids_and_bodies_and_nothing_else(emulator, provider, s3_url):
    submit(provider, "tag-upload")
    s3 = s3_client(s3_url)
    data = s3.get_object(Bucket=BUCKET, Key="llm/tag-upload/requests.jsonl")["Body"].read()
    records = [json.loads(line) for line in data.splitlines()]
    assert [set(record) for record in records] == [{"recordId", "modelInput"}] * 3


def test_a_create_with_the_same_tag_makes_no_second_job(emulator, provider):
    assert submit(provider) == submit(provider)
    assert len(emulator.books.batches) == 1


def test_a_token_used_with_other_parameters_is_ambiguous(emulator, provider, s3_url):
    submit(provider)
    with pytest.raises(AmbiguousError):
        submit(over(emulator, s3_url, timeout_hours=48))


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (429, "ThrottlingException", TransientError),
        (400, "ServiceQuotaExceededException", TransientError),
        (400, "ValidationException", RefusedError),
        (403, "AccessDeniedException", CredentialsError),
    ],
)
def test_a_create_that_was_refused_leaves_nothing_behind(emulator, provider, s3_url, status, code, kind):
    emulator.inject(WireFault(kind="status", route=CREATE, status=status, code=code))
    with pytest.raises(kind) as raised:
        submit(provider, f"refused-{code}")
    assert not isinstance(raised.value, AmbiguousError)
    assert keys(s3_url, f"llm/refused-{code}/") == []


def test_too_many_jobs_at_work_is_a_matter_of_time(s3_url):
    with Emulator(s3_url=s3_url, limits=VendorLimits(bedrock_min_records=1, bedrock_jobs=1)) as emulator:
        provider = over(emulator, s3_url)
        submit(provider, "tag-1")
        with pytest.raises(TransientError, match="jobs for now"):
            submit(provider, "tag-2")
        emulator.settle()
        assert submit(provider, "tag-2")


def test_find_knows_a_job_among_others_whose_names_hold_its_own(emulator, provider):
    longer = submit(provider, f"{TAG}-more")
    assert provider.find(TAG, hints()) == Absent()
    own = submit(provider, TAG)
    assert provider.find(TAG, hints()) == Found(own)
    assert provider.find(f"{TAG}-more", hints()) == Found(longer)


def test_a_failed_job_still_counts_as_found(emulator, provider):
    emulator.inject(BatchFault(kind="fails"))
    batch_id = submit(provider)
    emulator.settle()
    assert provider.find(TAG, hints()) == Found(batch_id)


def test_a_listing_that_fails_says_nothing(emulator, provider):
    emulator.inject(WireFault(kind="status", route=LIST, status=500))
    with pytest.raises(TransientError):
        provider.find(TAG, hints())


# The minimum of records


def test_a_batch_below_the_minimum_is_refused_before_anything_is_sent(emulator, s3_url):
    provider = over(emulator, s3_url, min_requests=100)
    with pytest.raises(RefusedError, match=r"3 requests is below Bedrock's minimum of 100.*below_minimum='pad'"):
        submit(provider, "tag-small")
    assert keys(s3_url, "llm/tag-small/") == []
    assert creates(emulator) == 0


def test_the_minimum_is_read_from_the_accounts_quotas(s3_url):
    name = "Minimum number of records per batch inference job for Claude Haiku 4.5"
    others = {f"(Flows) Something per second {n}": 1.0 for n in range(250)}  # more than one page
    with Emulator(
        s3_url=s3_url, limits=VendorLimits(bedrock_min_records=2, bedrock_quotas={**others, name: 2.0})
    ) as emulator:
        provider = over(emulator, s3_url, min_requests=100)
        assert provider.codec(SPEC).limits.min_requests == 2
        assert provider.codec(SPECS["nova"]).limits.min_requests == 100
        assert submit(provider, count=2)
        assert emulator.books.calls_to("POST", "/bedrock") == 3  # three pages, once


def test_quotas_that_may_not_be_read_leave_the_defaults(emulator, provider):
    emulator.inject(WireFault(kind="status", route="POST /bedrock", status=403, code="AccessDeniedException"))
    assert provider.codec(SPEC).limits.max_requests == 50_000


def test_a_codec_makes_no_call_before_its_limits_are_asked_for(emulator, provider):
    batch_file(provider.codec(SPEC))
    assert emulator.books.calls == []


def test_a_job_below_the_minimum_fails_at_bedrock_with_the_reason(s3_url):
    with emulator_over(s3_url, least=100) as emulator:
        provider = over(emulator, s3_url)  # believes that one record is enough
        batch_id = submit(provider)
        emulator.settle()
        found = report(provider, batch_id)
        assert found.status is BatchStatus.FAILED
        assert "below the model's minimum of 100" in (found.reason or "")
        assert list(provider.fetch(batch_id)) == []


# Poll


def test_a_job_is_pending_then_running_then_ended_with_counts(emulator, provider):
    batch_id = submit(provider)
    seen = [report(provider, batch_id).status]
    while emulator.tick():
        seen.append(report(provider, batch_id).status)
    assert list(dict.fromkeys(seen)) == [BatchStatus.PENDING, BatchStatus.RUNNING, BatchStatus.ENDED]
    found = report(provider, batch_id)
    assert (found.total, found.done, found.failed) == (3, 3, 0)
    assert found.created_at is not None
    assert found.ended_at is not None
    assert found.ended_at.tzinfo is UTC


def test_counts_come_from_the_manifest_where_the_job_tells_none(emulator, provider):
    emulator.inject(BatchFault(kind="no_counts"), RowFault(custom_ids=["n-1"]))
    batch_id = submit(provider)
    assert report(provider, batch_id).done is None
    emulator.settle()
    found = report(provider, batch_id)
    assert (found.total, found.done, found.failed) == (3, 3, 1)
    many = provider.poll([batch_id, *(submit(provider, f"tag-{n}") for n in range(5))])
    assert many[batch_id].done == 3


def test_a_job_that_bedrock_does_not_know_is_not_found(provider):
    arn = "arn:aws:bedrock:us-east-1:123456789012:model-invocation-job/abcdefghijkl"
    reports = provider.poll([arn, "abcdefghijkl", "no such form", "x" * 5_000])
    assert {one.status for one in reports.values()} == {BatchStatus.NOT_FOUND}
    assert all("does not find this job" in (one.reason or "") for one in reports.values())


@pytest.mark.parametrize(
    ("message", "retryable"), [("An internal error occurred.", True), ("Your role cannot read the bucket.", False)]
)
def test_a_failed_job_tells_why_and_whether_it_can_pass_later(emulator, provider, message, retryable):
    emulator.inject(BatchFault(kind="fails", message=message))
    batch_id = submit(provider)
    emulator.settle()
    found = report(provider, batch_id)
    assert (found.status, found.reason, found.retryable) == (BatchStatus.FAILED, message, retryable)


# Early ends: finished rows are kept


def test_a_job_whose_time_is_over_has_ended_with_what_finished(s3_url):
    clock = ManualClock(datetime.now(UTC).timestamp())
    with emulator_over(s3_url, clock=clock, work_steps=2) as emulator:
        provider = over(emulator, s3_url)
        batch_id = submit(provider, count=10)
        while report(provider, batch_id).done != 5:
            emulator.tick()
        assert len(results(provider, batch_id)) == 5  # results are there while the job runs
        clock.advance(24 * 3600)
        emulator.settle()
        assert emulator.books.walk(batch_id)[-1] == "PartiallyCompleted"
        found = report(provider, batch_id)
        assert (found.status, found.total, found.done) == (BatchStatus.ENDED, 10, 5)
        assert "processed" in (found.reason or "")
        assert len(results(provider, batch_id)) == 5


def test_a_job_that_never_began_expires_with_nothing(s3_url):
    clock = ManualClock(datetime.now(UTC).timestamp())
    with emulator_over(s3_url, clock=clock) as emulator:
        provider = over(emulator, s3_url)
        batch_id = submit(provider)
        clock.advance(25 * 3600)
        emulator.settle()
        assert report(provider, batch_id).status is BatchStatus.EXPIRED
        assert list(provider.fetch(batch_id)) == []


def test_a_stop_keeps_what_ran_and_is_idempotent(s3_url):
    with emulator_over(s3_url, work_steps=2) as emulator:
        provider = over(emulator, s3_url)
        batch_id = submit(provider, count=10)
        while report(provider, batch_id).done != 5:
            emulator.tick()
        provider.cancel(batch_id)
        assert report(provider, batch_id).status is BatchStatus.CANCELING
        provider.cancel(batch_id)
        emulator.settle()
        provider.cancel(batch_id)
        assert report(provider, batch_id).status is BatchStatus.CANCELED
        assert len(results(provider, batch_id)) == 5


# Fetch


def test_records_that_fail_alone_say_why_and_whether_they_can_pass(emulator, provider):
    emulator.inject(
        RowFault(custom_ids=["n-0"], status_code=429, message="slow down"),
        RowFault(custom_ids=["n-1"], status_code=400, message="bad request"),
        RowFault(custom_ids=["n-2"], kind="refusal"),
        RowFault(custom_ids=["n-3"], kind="truncated"),
    )
    batch_id = submit(provider, count=4)
    emulator.settle()
    found = {result.custom_id: result for result in results(provider, batch_id)}
    assert (found["n-0"].outcome, found["n-0"].retryable) == (Outcome.ERRORED, True)
    assert (found["n-1"].reason, found["n-1"].retryable) == ("400: bad request", False)
    assert found["n-2"].outcome is Outcome.INVALID
    assert (found["n-3"].outcome, found["n-3"].finish_reason) == (Outcome.SUCCEEDED, "max_tokens")


def test_lines_come_as_they_are_and_are_read_all_the_same(emulator, provider):
    emulator.inject(
        FileFault(kind="bom"),
        FileFault(kind="crlf"),
        FileFault(kind="blank_lines"),
        FileFault(kind="u2028", times=None),
        FileFault(kind="extra_fields", times=None),
        FileFault(kind="duplicate", custom_ids=["n-0"]),
        FileFault(kind="malformed", custom_ids=["n-1"]),
        FileFault(kind="foreign", custom_ids=["n-2"]),
    )
    batch_id = submit(provider)
    emulator.settle()
    lines = list(provider.fetch(batch_id))
    assert all(line.endswith(b"\n") for line in lines)
    assert any("\u2028".encode() in line for line in lines)
    read = [result.custom_id for result in results(provider, batch_id)]
    assert sorted(one for one in read if one) == ["foreign-custom-id", "n-0", "n-0", "n-2"]


@pytest.mark.parametrize("fault", [(), (BatchFault(kind="no_counts"),)], ids=["counts", "no counts"])
def test_an_ended_job_without_output_has_lost_it(emulator, provider, fault):
    emulator.inject(BatchFault(kind="no_output_file"), *fault)
    batch_id = submit(provider)
    emulator.settle()
    with pytest.raises(UnknownIdError, match="they were deleted"):
        list(provider.fetch(batch_id))


def test_another_jobs_results_below_the_same_output_are_not_read(emulator, provider, s3_url):
    batch_id = submit(provider, "tag-shared")
    s3 = s3_client(s3_url)
    s3.put_object(Bucket=BUCKET, Key="llm/tag-shared/results/zzzzzzzzzzzz/requests.jsonl.out", Body=b"{}\n")
    emulator.settle()
    assert len(results(provider, batch_id)) == 3


def test_a_job_that_failed_for_now_is_followed_by_another_of_the_same_tag_and_each_is_known(emulator, provider):
    emulator.inject(BatchFault(kind="fails", batches=[0], message="Internal error, try again."))
    first = submit(provider)
    emulator.settle()
    assert report(provider, first).retryable
    second = submit(provider)
    emulator.settle()
    assert second != first
    assert report(provider, second).status is BatchStatus.ENDED
    assert provider.find(TAG, replace(hints(), known=frozenset({first}))) == Found(second)
    assert isinstance(provider.find(TAG, hints()), StatusUnknown)


# Real time


@pytest.mark.parametrize("name", SPECS)
def test_an_error_in_real_time_is_a_line_as_in_a_batch(emulator, provider, name):
    spec = SPECS[name]
    line = batch_file(provider.codec(spec), 1).read()
    emulator.inject(WireFault(kind="status", route="POST /bedrock/model/*", status=503))
    result = provider.codec(spec).decode(provider.respond(line))
    assert (result.custom_id, result.outcome, result.retryable) == ("n-0", Outcome.ERRORED, True)


def test_codecs_of_equal_settings_are_told_apart_in_real_time(emulator, provider):
    specs = [RequestSpec(HAIKU, params={"max_tokens": 5}), RequestSpec(f"us.{HAIKU}", params={"max_tokens": 5})]
    lines = [batch_file(provider.codec(spec), 1).read() for spec in specs]
    for line in lines:
        provider.respond(line)
    assert [one.endpoint for one in emulator.books.executions] == [HAIKU, f"us.{HAIKU}"]


# Configuration


@pytest.mark.parametrize(
    "changes",
    [
        {"role_arn": "batch"},
        {"s3_uri": "bucket/x"},
        {"s3_uri": "s3://bucket/a=b"},
        {"timeout_hours": 12},
        {"families": {"x": "gpt"}},
    ],
)
def test_a_wrong_configuration_is_refused_by_its_name(changes):
    usual = {"region_name": "r", "role_arn": "arn:aws:iam::123456789012:role/x", "s3_uri": "s3://bucket"}
    with pytest.raises(ConfigError, match=next(iter(changes))):
        BedrockProvider(**{**usual, **changes})


def test_the_account_is_region_and_account_id_whatever_the_keys(emulator, s3_url):
    assert over(emulator, s3_url, endpoint_url=None).account == "bedrock.us-east-1.amazonaws.com/123456789012"


def test_the_console_is_known_only_for_aws_itself(emulator, s3_url):
    assert over(emulator, s3_url).console_url("x") is None
    assert "us-east-1" in (over(emulator, s3_url, endpoint_url=None).console_url("x") or "")


def test_a_named_family_goes_before_the_id(emulator, s3_url):
    provider = over(emulator, s3_url, families={"amazon.nova-lite-v1:0": "converse"})
    batch_id = submit(provider, spec=SPECS["nova"])
    client = boto3.client(
        "bedrock",
        "us-east-1",
        endpoint_url=emulator.bedrock_url,
        aws_access_key_id=DEFAULT_KEY,
        aws_secret_access_key="x",
    )
    assert client.get_model_invocation_job(jobIdentifier=batch_id)["modelInvocationType"] == "Converse"


def test_wrong_credentials_are_said_without_showing_them(emulator, s3_url):
    session = {"aws_access_key_id": "AKIAWRONGWRONGWRONG1", "aws_secret_access_key": SECRET}
    provider = over(emulator, s3_url, session_options=session)
    with pytest.raises(CredentialsError) as raised:
        provider.poll(["abcdefghijkl"])
    shown = "".join(traceback.format_exception(raised.value))
    assert "AKIAWRONG" not in shown
    assert SECRET not in shown


def test_a_message_that_echoes_the_keys_is_redacted(emulator, provider):
    emulator.inject(WireFault(kind="status", route=CREATE, status=400, message=f"Credential={SECRET} ASIA123456789012"))
    with pytest.raises(ProviderError) as raised:
        submit(provider)
    assert not [secret for secret in (SECRET, "ASIA1234") if secret in str(raised.value)]


def test_a_one_way_stream_is_taken(emulator, provider):
    data = batch_file(provider.codec(SPEC), 50).read()
    batch_id = provider.submit(OneWayStream(data), SPEC, TAG)
    emulator.settle()
    assert len(results(provider, batch_id)) == 50


def test_a_file_of_several_parts_arrives_whole(emulator, provider, s3_url):
    filler = io.BytesIO()
    codec = provider.codec(SPEC)
    line = batch_file(codec, 1).read()
    for number in range(20):  # more than one part of 5 MiB
        filler.write(line.replace(b"text 0", b"%d" % number * 500_000))
    filler.seek(0)
    sent = b"".join(cut_heads(io.BytesIO(filler.getvalue()), codec.head))
    provider.submit(filler, SPEC, "tag-parts")
    s3 = s3_client(s3_url)
    stored = s3.get_object(Bucket=BUCKET, Key="llm/tag-parts/requests.jsonl")
    assert stored["Body"].read() == sent
    assert "-" in stored["ETag"]  # in parts
