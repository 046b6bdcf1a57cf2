"""One cluster without accounting and one with it, for all tests here; each test has a separate directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "providers"))  # the labeler and the batches of all providers' tests

from slurm_cluster import Cluster, missing_programs


def pytest_collection_modifyitems(items) -> None:
    if os.environ.get("DLB_TEST_SLURM") == "0":
        for item in items:
            item.add_marker(pytest.mark.skip(reason="left out: DLB_TEST_SLURM=0"))
    elif missing := missing_programs():
        pytest.exit(
            f"The tests of Slurm need {', '.join(missing)} (Debian: apt-get install slurm-wlm slurmdbd mariadb-server "
            "munge). Install them, or leave these tests out with DLB_TEST_SLURM=0.",
            returncode=1,
        )
    elif os.geteuid() != 0:
        pytest.exit("The tests of Slurm start its daemons as root. Leave them out with DLB_TEST_SLURM=0.", returncode=1)


@pytest.fixture(scope="session")
def clusters(tmp_path_factory) -> Iterator[dict[str, Cluster]]:
    ways = {"plain": False, "accounted": True}
    config = "MaxArraySize=9"  # tasks; by default 1,001
    both = {
        name: Cluster(tmp_path_factory.mktemp(name) / "s", accounting=way, config=config) for name, way in ways.items()
    }
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        yield dict(zip(both, pool.map(stack.enter_context, both.values()), strict=True))


@pytest.fixture
def cluster(request, clusters, monkeypatch) -> Iterator[Cluster]:
    """Give the cluster without accounting, or the one that the test chooses by a parameter."""
    chosen = clusters[getattr(request, "param", "plain")]
    for name, value in chosen.environment.items():
        monkeypatch.setenv(name, value)
    yield chosen
    chosen.clear()
