"""Properties of every vendor in failures: each batch is paid once, all rows arrive, and keys stay hidden."""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from bedrock_emulator import BUCKET
from cloud_vendors import VENDORS, EmulatedVendor, Vendor

from dagster_llm_batch.errors import (
    AmbiguousError,
    ConfigError,
    CredentialsError,
    NoConnectionError,
    ProviderError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.testing.emulator import (
    BatchFault,
    Emulator,
    FileFault,
    VendorLimits,
    WireFault,
    local_s3,
    lost_create_reply,
    rate_limited,
)
from dagster_llm_batch.types import Absent, BatchStatus, FindHints, Found, Outcome, Undecided
from tests.tables import table

TAG = "tag-1"
TEXTS = ["text 0", "text 1", "text 2"]
WITH_FILES = [name for name, vendor in VENDORS.items() if vendor.download]
NOTHING_SAID = (408, 409, 500, 502, 503, 504)


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with local_s3(BUCKET) as url:
        yield url


@pytest.fixture(params=VENDORS)
def vendor(request) -> Vendor:
    return VENDORS[request.param]


@pytest.fixture
def emulated(vendor, s3_url) -> Iterator[EmulatedVendor]:
    with emulator_of(vendor, s3_url) as emulator:
        yield EmulatedVendor(vendor, emulator, s3_url)


def emulator_of(vendor: Vendor, s3_url: str) -> Emulator:
    is_bedrock = vendor is VENDORS["bedrock"]
    return Emulator(s3_url=s3_url if is_bedrock else None, limits=VendorLimits(bedrock_min_records=1))


def hints(requests: int = len(TEXTS)) -> FindHints:
    return FindHints(datetime.now(UTC), requests, "n")


# Create


@pytest.mark.parametrize("how", ["500", "close", "hang"])
def test_a_create_whose_reply_is_lost_is_ambiguous_made_once_and_found(emulated, how):
    impatient, subject = emulated.provider_with(timeout_seconds=1.0), emulated.subject
    emulated.emulator.inject(lost_create_reply(how, route=emulated.vendor.create))
    with pytest.raises(AmbiguousError, match="Look for the batch"):
        impatient.submit(TEXTS, TAG)
    [batch] = emulated.emulator.books.batches
    assert emulated.calls_to(emulated.vendor.create) == 1
    # a vendor without tags recognizes a batch by its results
    assert subject.provider.find(TAG, hints()) in (Found(batch.id), Undecided((batch.id,)))
    emulated.emulator.settle()
    assert subject.provider.find(TAG, hints()) == Found(batch.id)
    assert subject.provider.poll([batch.id])[batch.id].status is BatchStatus.ENDED
    assert len(subject.results(batch.id)) == len(TEXTS)


def test_a_create_answered_with_a_status_that_says_nothing_is_ambiguous_and_made_once(emulated):
    statuses = (*NOTHING_SAID, *emulated.vendor.silent_statuses)
    for number, status in enumerate(statuses, 1):
        emulated.emulator.inject(WireFault(kind="status", route=emulated.vendor.create, status=status))
        with pytest.raises(AmbiguousError, match="Look for the batch"):
            emulated.subject.submit(TEXTS, TAG)
        assert emulated.calls_to(emulated.vendor.create) == number, status
    assert emulated.subject.provider.find(TAG, hints()) == Absent()


def test_a_create_whose_reply_is_cut_is_ambiguous(emulated):
    emulated.emulator.inject(WireFault(kind="cut", route=emulated.vendor.create))
    with pytest.raises(AmbiguousError):
        emulated.subject.submit(TEXTS, TAG)


def test_too_many_requests_means_not_created_and_says_how_long_to_wait(emulated):
    emulated.emulator.inject(rate_limited(emulated.vendor.create, retry_after=7))
    with pytest.raises(TransientError, match="too many requests") as caught:
        emulated.subject.submit(TEXTS, TAG)
    assert caught.value.retry_after_seconds == 7
    assert emulated.emulator.books.batches == []
    assert emulated.subject.provider.find(TAG, hints()) == Absent()


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refused_create_is_refused_with_the_vendors_words(emulated, status):
    emulated.emulator.inject(
        WireFault(kind="status", route=emulated.vendor.create, status=status, message="No, never.")
    )
    with pytest.raises(RefusedError, match=r"No, never\."):
        emulated.subject.submit(TEXTS, TAG)
    assert emulated.emulator.books.batches == []


def test_no_connection_means_not_created(vendor, s3_url):
    with emulator_of(vendor, s3_url) as emulator:
        subject = EmulatedVendor(vendor, emulator, s3_url).subject
    with pytest.raises(NoConnectionError, match="no connection"):
        subject.submit(TEXTS, TAG)
    with pytest.raises(NoConnectionError, match="no connection"):
        subject.provider.find(TAG, hints())


# Keys and addresses


def test_a_wrong_key_is_a_credentials_error_that_names_its_provider_and_never_shows_it(emulated):
    key = "wrong-0123456789-abcdef"
    subject = emulated.provider_with(**emulated.vendor.with_key(key))
    message = f"{key} is no key, and {emulated.vendor.other_key} is none."
    batch_id = emulated.subject.submit(TEXTS, TAG)
    emulated.emulator.inject(WireFault(kind="status", status=401, message=message, times=None))
    for call in (
        lambda: subject.submit(TEXTS, TAG),
        lambda: subject.provider.find(TAG, hints()),
        lambda: subject.provider.poll([batch_id]),
        lambda: list(subject.provider.fetch(batch_id)),
        lambda: subject.provider.cancel(batch_id),
        lambda: subject.provider.respond(subject.lines(["x"])),
    ):
        with pytest.raises(CredentialsError) as caught:
            call()
        # Two accounts of one vendor have the same address.
        assert f"provider '{subject.provider.name}' (" in str(caught.value)
        shown = "".join(traceback.format_exception(caught.value))
        # the SDK of Vertex AI first tries to get another token, which a ready-made one does not support
        assert "*** is no key" in shown or "refresh the access token" in shown
        assert key not in shown
        assert emulated.vendor.other_key[-6:] not in shown


@table("name", ["openai", "anthropic", "gemini", "openrouter"])
@table("key", ["", "sk-a b", "sk-a\n", "sk-é"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(name, key):
    with Emulator() as emulator, pytest.raises(ConfigError, match="API key") as caught:
        VENDORS[name].make(emulator, "", api_key=key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://host/v1", "api.vendor.com/v1", "https://"])
def test_an_address_that_is_none_is_refused(emulated, url):
    option = "endpoint_url" if emulated.vendor is VENDORS["bedrock"] else "base_url"
    with pytest.raises(ConfigError, match="no web address"):
        emulated.provider_with(**{option: url})


def test_an_sdk_is_imported_on_use_only_and_its_absence_names_the_extra():
    code = """
import sys
from dagster_llm_batch.errors import MissingExtraError
from dagster_llm_batch.providers.registry import PROVIDERS, provider_class
role, place = "arn:aws:iam::123456789012:role/x", "s3://bucket/x"
settings = {
    "openai": (("sk-x",), "openai"),
    "anthropic": (("sk-x",), "anthropic"),
    "gemini": (("AI-x",), "google.genai"),
    "vertex": (("project", "us-central1", "bucket"), "google.genai"),
    "bedrock": (("us-east-1", role, place), "boto3"),
    "openrouter": (("sk-x",), "openai"),
}
for name, (arguments, sdk) in settings.items():
    provider = provider_class(name)(*arguments)
    assert not {sdk, "botocore"} & sys.modules.keys(), f"{sdk} was imported too early"
    sys.modules[sdk] = None
    try:
        provider.poll(["abcdefghijkl"])
    except MissingExtraError as error:
        assert f"pip install 'dagster-llm-batch[{PROVIDERS[name].extra}]'" in str(error), error
        print(name)
    del sys.modules[sdk]
"""
    env = {"PYTHONPATH": ":".join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    assert out.split() == list(VENDORS)


# Find and poll


@pytest.mark.parametrize("status", [200, 429, 500, 503])  # 200: an error's body, as some proxies give
def test_find_is_transient_where_the_list_cannot_be_read(emulated, status):
    emulated.subject.submit(TEXTS, TAG)
    fault = WireFault(kind="status", route=emulated.vendor.listing, status=status, times=None, retry_after=0)
    emulated.emulator.inject(fault)
    with pytest.raises(TransientError):
        emulated.subject.provider.find(TAG, hints())


def test_poll_reads_few_one_by_one_and_many_from_a_page(emulated):
    ids = [emulated.subject.submit(["a"], f"tag-{i}") for i in range(8)]
    before = emulated.gets()
    assert list(emulated.subject.provider.poll(ids[:3])) == ids[:3]
    assert emulated.gets() - before == 3
    assert list(emulated.subject.provider.poll(ids)) == ids
    assert emulated.gets() - before == 4


def test_poll_leaves_out_what_cannot_be_read_and_raises_where_nothing_can(emulated):
    ids = [emulated.subject.submit(["a"], f"tag-{i}") for i in range(3)]
    emulated.emulator.inject(WireFault(kind="status", route=emulated.vendor.single, status=500))
    assert list(emulated.subject.provider.poll(ids)) == ids[1:]
    emulated.emulator.inject(WireFault(kind="status", route=emulated.vendor.single, status=503, times=None))
    with pytest.raises(TransientError):
        emulated.subject.provider.poll(ids)


def test_poll_falls_back_to_single_reads_where_the_list_fails(emulated):
    ids = [emulated.subject.submit(["a"], f"tag-{i}") for i in range(6)]
    emulated.emulator.inject(WireFault(kind="status", route=emulated.vendor.listing, status=500))
    assert list(emulated.subject.provider.poll(ids)) == ids


def test_an_unknown_status_is_running_and_is_named(emulated):
    emulated.emulator.inject(BatchFault(kind="status", status="brand_new"))
    batch_id = emulated.subject.submit(TEXTS, TAG)
    running = emulated.subject.provider.poll([batch_id])[batch_id]
    assert running.status is BatchStatus.RUNNING
    assert "brand_new" in (running.reason or "")


# Fetch


@pytest.mark.parametrize("where", [{"after_lines": 2}, {"after_bytes": 700}], ids=["between lines", "within a line"])
@pytest.mark.parametrize("vendor", [VENDORS[name] for name in WITH_FILES], ids=WITH_FILES)
def test_a_download_that_is_cut_is_transient_even_where_the_cut_cannot_be_seen(emulated, where):
    subject = emulated.file_subject
    batch_id = subject.submit([f"text {i}" for i in range(9)], TAG)
    emulated.emulator.settle()
    for framing in emulated.vendor.framings:
        emulated.emulator.inject(WireFault(kind="cut", route=emulated.vendor.download, framing=framing, **where))
        with pytest.raises(TransientError):
            list(subject.provider.fetch(batch_id))
        assert len(list(subject.provider.fetch(batch_id))) == 9


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_a_download_that_ends_with_the_connection_and_is_whole_is_taken(name, s3_url):
    with Emulator() as emulator:
        emulated = EmulatedVendor(VENDORS[name], emulator, s3_url)
        batch_id = emulated.subject.submit(TEXTS[:2], TAG)
        emulator.settle()
        emulator.inject(WireFault(kind="cut", route=emulated.vendor.download, framing="close", after_lines=2))
        assert len(list(emulated.subject.provider.fetch(batch_id))) == 2


@pytest.mark.parametrize(("kind", "status"), [("expires", BatchStatus.EXPIRED), ("cancels", BatchStatus.CANCELED)])
def test_a_batch_that_is_cut_short_keeps_its_finished_rows_and_no_other_is_one(emulated, kind, status):
    emulated.emulator.inject(BatchFault(kind=kind, fraction=0.5))
    batch_id = emulated.subject.submit([f"text {number}" for number in range(10)], TAG)
    emulated.emulator.settle()
    report = emulated.subject.provider.poll([batch_id])[batch_id]
    outcomes = Counter(result.outcome for result in emulated.subject.results(batch_id))
    # Gemini gives nothing of such a batch.
    finished = 0 if emulated.vendor is VENDORS["gemini"] else 5
    assert (report.status, outcomes.pop(Outcome.SUCCEEDED, 0)) == (status, finished)
    assert set(outcomes) <= {Outcome.EXPIRED, Outcome.CANCELED}


@pytest.mark.parametrize(
    ("kind", "lines", "read"),
    [
        ("duplicate", 4, 4),
        ("missing", 2, 2),
        ("foreign", 4, 4),
        ("malformed", 3, 2),
        ("extra_fields", 3, 3),
        ("u2028", 3, 3),
        ("bom", 3, 3),
        ("crlf", 3, 3),
        ("blank_lines", 6, 3),
    ],
)
@pytest.mark.parametrize("vendor", [VENDORS[name] for name in WITH_FILES], ids=WITH_FILES)
def test_a_bent_file_passes_through_and_its_good_rows_are_read(emulated, kind, lines, read):
    subject = emulated.file_subject
    emulated.emulator.inject(FileFault(kind=kind))
    batch_id = subject.submit(TEXTS, TAG)
    emulated.emulator.settle()
    raw = list(subject.provider.fetch(batch_id))
    assert len(raw) == lines
    assert all(line.endswith(b"\n") for line in raw)
    results = [subject.codec.decode(line) for line in raw]
    assert sum(result.custom_id is None for result in results) == lines - read
    succeeded = [result.custom_id for result in results if result.outcome is Outcome.SUCCEEDED]
    assert len(succeeded) == read
    assert len({f"n-{i}" for i in range(3)} - set(succeeded)) == (read == 2)


def test_the_results_of_an_unknown_batch_are_refused(emulated):
    with pytest.raises(RefusedError, match="abcdefghijkl"):
        list(emulated.subject.provider.fetch("abcdefghijkl"))


# Cancel and respond


def test_canceling_what_is_unreachable_raises(emulated):
    batch_id = emulated.subject.submit(TEXTS, TAG)
    emulated.emulator.inject(WireFault(kind="status", status=500, times=None))
    with pytest.raises(TransientError):
        emulated.subject.provider.cancel(batch_id)


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (413, False), (429, True), (503, True)])
def test_an_http_error_in_real_time_is_a_result_line(emulated, status, retryable):
    own = [silent for silent in emulated.vendor.silent_statuses if silent > status == 503]
    for code in (status, *own):
        fault = WireFault(kind="status", route=emulated.vendor.answer, status=code, message="no, no", retry_after=0)
        emulated.emulator.inject(fault)
        result = emulated.subject.codec.decode(emulated.subject.provider.respond(emulated.subject.lines(["a"])))
        assert (result.custom_id, result.outcome, result.retryable) == ("n-0", Outcome.ERRORED, retryable)
        assert "no, no" in (result.reason or "")


def test_every_error_of_a_verb_is_a_provider_error(emulated):
    subject = emulated.subject
    batch_id = subject.submit(TEXTS, TAG)
    emulated.emulator.inject(WireFault(kind="close", times=None))
    for call in (
        lambda: subject.provider.find(TAG, hints()),
        lambda: subject.provider.poll([batch_id]),
        lambda: list(subject.provider.fetch(batch_id)),
        lambda: subject.provider.cancel(batch_id),
        lambda: subject.provider.respond(subject.lines(["a"])),
    ):
        with pytest.raises(ProviderError):
            call()
