"""A module that another thread is still importing is waited for."""

from __future__ import annotations

import subprocess
import sys

import pytest

_CODE = """
import sys, threading
from importlib.machinery import PathFinder

entered, goes_on, told = threading.Event(), threading.Event(), []


class Slow:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "httpx":
            return None
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            entered.set()
            goes_on.wait(60)
            run(module)

        spec.loader.exec_module = exec_module
        return spec


def create():
    try:
        provider.poll(["batch_1"])
    except BaseException as error:
        told.append(repr(error))


from dagster_llm_batch.resources import preset

import openai.resources.batches  # of its own imports nothing is left

provider = preset("{name}", api_key="sk-x", base_url="http://127.0.0.1:9/v1", timeout_seconds=1.0).provider()
sys.meta_path.insert(0, Slow)
importing = threading.Thread(target=__import__, args=("httpx",))
importing.start()
entered.wait(60)
creating = threading.Thread(target=create)
creating.start()
creating.join(1)
goes_on.set()
creating.join(60)
importing.join(60)
# nobody listens there
assert "connect" in told[0].lower(), told
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["groq", "openrouter"])
def test_a_client_waits_for_httpx_that_another_sdk_is_importing(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CODE.replace("{name}", name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_httpx_is_loaded_without_its_command_line_which_can_be_loaded_after_it() -> None:
    code = (
        "import sys; from dagster_llm_batch.providers.http import load_httpx; load_httpx(); "
        "assert 'httpx' in sys.modules and 'rich' not in sys.modules; import httpx._main"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
