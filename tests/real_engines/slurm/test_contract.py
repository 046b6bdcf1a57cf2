"""The contract of all providers, held on real Slurm with and without accounting."""

from __future__ import annotations

import pytest
from sample_batches import until
from slurm_batches import provider_on

from dagster_llm_batch.testing.contracts import ProviderContract, ProviderUnderTest
from dagster_llm_batch.types import RequestSpec


@pytest.mark.parametrize("cluster", ["plain", "accounted"], indirect=True)
class TestSlurm(ProviderContract):
    @pytest.fixture
    def subject(self, cluster, tmp_path, monkeypatch) -> ProviderUnderTest:
        monkeypatch.setenv("TOKEN", "secret-token")
        provider = provider_on(
            tmp_path, export=["TOKEN"], requests_per_task=8, lag_seconds=3.0
        )  # 20 requests are three tasks

        def finish() -> None:
            ids = [path.name for path in tmp_path.iterdir()]
            until(lambda: all(report.status.is_terminal for report in provider.poll(ids).values()))

        return ProviderUnderTest(provider, RequestSpec("m"), finish, ["secret-token"], unreported=["failed"])
