"""The contract, held by the Bedrock provider: over boto3, the emulator and a real S3 protocol, for each form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bedrock_emulator import BUCKET, SECRET, SPECS, emulator_over, over

from dagster_llm_batch.testing.contracts import ProviderContract, ProviderUnderTest
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, local_s3

pytestmark = pytest.mark.sample()


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with local_s3(BUCKET) as url:
        yield url


class TestBedrock(ProviderContract):
    @pytest.fixture(params=SPECS)
    def subject(self, request, s3_url) -> Iterator[ProviderUnderTest]:
        with emulator_over(s3_url) as emulator:
            # Many threads at once make a busy machine answer late.
            provider = over(emulator, s3_url, timeout_seconds=30.0)
            yield ProviderUnderTest.at_emulator(emulator, provider, SPECS[request.param], [DEFAULT_KEY, SECRET])
