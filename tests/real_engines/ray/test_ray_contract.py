"""The provider contract on a real Ray: its workers answer by a callable."""

from __future__ import annotations

import pytest
from ray_batches import shouting, until

from dagster_llm_batch.testing.contracts import ProviderContract, ProviderUnderTest
from dagster_llm_batch.types import RequestSpec


class TestRay(ProviderContract):
    @pytest.fixture
    def subject(self, cluster, tmp_path) -> ProviderUnderTest:
        provider = shouting(tmp_path / "storage", headers={"x-token": "secret-token"})

        def finish() -> None:
            jobs = [job.submission_id for job in provider._client().list_jobs()]
            ours = [one for one in jobs if one and provider.poll([one])[one].status.value != "not_found"]
            until(lambda: all(report.status.is_terminal for report in provider.poll(ours).values()))

        return ProviderUnderTest(provider, RequestSpec("m"), finish, ["secret-token"], unreported=["failed"])
