"""A request in real time is one call, with every vendor's SDK: a second call by the SDK would be paid again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from dagster_llm_batch.errors import LLMBatchError, NoConnectionError, TransientError
from dagster_llm_batch.testing.emulator import Emulator, WireFault
from dagster_llm_batch.types import Outcome, Request, RequestSpec
from tests.faults.vendors import VENDORS, Vendor


@pytest.mark.parametrize("vendor", VENDORS[:-1], ids=lambda vendor: vendor.name)
@pytest.mark.parametrize(
    "fault",
    [
        WireFault(kind="hang", when="after"),
        WireFault(kind="close", when="after"),
        WireFault(kind="status", when="after", status=500),
        WireFault(kind="status", status=429, retry_after="0.01"),
    ],
    ids=["the answer never comes", "the connection breaks", "500", "429"],
)
def test_a_request_is_sent_and_billed_no_more_than_once(vendor: Vendor, fault: WireFault, tmp_path: Path) -> None:
    addresses = {"s3_url": "http://127.0.0.1:1", "gcs_url": "http://127.0.0.1:1"}  # files are not needed
    with Emulator(faults=[fault], **addresses) as emulator:
        provider = vendor.provider(emulator, tmp_path, 0.5)
        codec = provider.codec(RequestSpec(vendor.model, params=vendor.params))
        with suppress(LLMBatchError):
            provider.respond(codec.encode(Request("r", None, "text"), "n-0"))
        assert emulator.struck(fault) == 1
        assert len(emulator.books.calls) == 1
        assert sum(one.billed for one in emulator.books.executions) == (fault.when == "after")


@pytest.mark.parametrize(
    "vendor", [one for one in VENDORS[:-1] if one.name != "bedrock"], ids=lambda vendor: vendor.name
)
def test_a_wait_that_the_vendor_names_comes_with_the_answer(vendor: Vendor, tmp_path: Path) -> None:
    """Bedrock's answers contain no wait, so it is left out."""
    with Emulator(faults=[WireFault(kind="status", status=429, retry_after="7")], s3_url=None) as emulator:
        provider = vendor.provider(emulator, tmp_path, 5.0)
        codec = provider.codec(RequestSpec(vendor.model, params=vendor.params))
        with pytest.raises(TransientError) as told:
            provider.respond(codec.encode(Request("r", None, "text"), "n-0"))
    assert told.value.retry_after_seconds == 7
    assert told.value.answer is not None
    result = codec.decode(told.value.answer)
    assert (result.custom_id, result.outcome, result.retryable) == ("n-0", Outcome.ERRORED, True)


@pytest.mark.parametrize("vendor", VENDORS[:-1], ids=lambda vendor: vendor.name)
def test_a_call_that_found_nobody_is_known_to_have_had_no_effect(vendor: Vendor, tmp_path: Path) -> None:
    addresses = {"s3_url": "http://127.0.0.1:1", "gcs_url": "http://127.0.0.1:1"}
    with Emulator(**addresses) as emulator:
        provider = vendor.provider(emulator, tmp_path, 0.5)
    codec = provider.codec(RequestSpec(vendor.model, params=vendor.params))
    with pytest.raises(NoConnectionError):
        provider.respond(codec.encode(Request("r", None, "text"), "n-0"))
