"""`smoke` sends three rows through an account and reports each step; if interrupted, it resumes, and pays once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from project import DEFINITIONS

from dagster_llm_batch.cli import smoke as smoke_module
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, BatchFault, Emulator, WireFault


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """Run an emulator whose batches end after a time, since the command waits for them."""
    with Emulator(pace=0.02) as running:
        yield running


def smoke(project, *options, code=0, provider="openai"):
    return project.json("smoke", provider, "--poll-seconds", "0.05", *options, code=code)


def told(document, step):
    return [one["said"] for one in document["steps"] if one["step"] == step]


def test_every_step_is_told_and_the_price_is_that_of_the_vendors_counts(project):
    document = smoke(project)
    assert document["sound"] is True
    assert list(dict.fromkeys(one["step"] for one in document["steps"])) == [
        *("key", "plan", "create", "poll", "result", "price")
    ]
    assert project.emulator.openai_base_url.partition("//")[2].partition("/")[0] in told(document, "key")[0]
    assert "3 requests to send" in told(document, "plan")[0]
    assert "at most (batch)" in told(document, "plan")[0]
    [batch] = project.emulator.books.batches
    assert batch.id in told(document, "create")[0]
    assert len(told(document, "result")) == 3
    assert told(document, "price")[1].endswith("for the batch: the same")
    assert DEFAULT_KEY not in str(document)


def test_once_it_has_ended_it_is_told_again_and_nothing_is_sent_before_that_is_asked_for(project):
    first = smoke(project)
    second = smoke(project)
    assert len(project.emulator.books.executions) == 3
    assert "nothing is sent again" in told(second, "create")[0]
    assert told(second, "price")[0] == told(first, "price")[0]
    smoke(project, "--again")
    assert len(project.emulator.books.executions) == 6
    assert len({one.body_digest for one in project.emulator.books.executions}) == 6
    # The deployment's datasets and sensor do not see it.
    with project.engine() as engine:
        assert engine.ledger.submissions.list_all("test") == []


def test_what_can_cost_more_than_max_usd_is_never_sent_at_once(project):
    for no_amount in ("lots", "-1", "nan"):
        refused = project.on_file("smoke", "openai", "--max-usd", no_amount, code=2)
        assert f"'--max-usd': '{no_amount}' is no amount of US dollars" in " ".join(refused.output.split())
    failed = project.on_file("smoke", "openai", "--max-usd", "0.0000001", code=1)
    assert "Nothing was sent." in failed.output
    assert project.emulator.books.batches == []
    assert project.emulator.books.executions == []


def test_a_provider_or_a_model_that_is_not_there_is_refused_in_words(project):
    assert "'nobody'" in project.on_file("smoke", "nobody", code=1).output
    assert "is no JSON object" in project.on_file("smoke", "openai", "--params", "[1", code=1).output
    unknown = project.on_file("smoke", "openai", "--model", "brand-new", code=1)
    assert "Without a price, --max-usd cannot be kept" in unknown.output
    assert project.emulator.books.batches == []


def start_smoke(project, *options):
    command = [sys.executable, "-c", "from dagster_llm_batch.cli.main import main; main()"]
    arguments = ["smoke", "openai", "-f", str(project.file), *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "400"}
    return subprocess.Popen([*command, *arguments], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_while_the_provider_takes_no_batch_it_tells_the_reason_and_then_it_goes_on(project, emulator):
    """It waits half a minute, for the attempts of two rounds."""
    emulator.inject(WireFault(kind="status", route="POST /v1/files", times=None, message="The disk is full."))
    process = start_smoke(project, "--poll-seconds", "600")
    try:
        assert process.stdout is not None
        create, poll = (next(line for line in process.stdout if line.startswith(step)) for step in ("create", "poll"))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        process.stdout.close()
    assert create.split() == ["create", "no", "batch", "was", "created", "yet"]
    assert "1 shard planned; 0 of 3 requests done; not sent: " in poll
    assert "The disk is full." in poll
    emulator.clear_faults()
    assert smoke(project)["sound"] is True
    assert len(emulator.books.batches) == 1


def test_while_the_queue_is_full_it_tells_the_reason(project, monkeypatch):
    def press_ctrl_c(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(smoke_module, "time", SimpleNamespace(sleep=press_ctrl_c))
    project.emulator.inject(BatchFault(kind="fails", batches=[0]))
    project.on_file("smoke", "openai", code=4)
    project.emulator.settle()
    again = project.on_file("smoke", "openai", code=4)
    assert "1 shard planned; 0 of 3 requests done; not sent: " in again.output
    assert "token_limit_exceeded" in again.output


def test_after_kill_nine_the_same_command_goes_on_and_nothing_is_sent_or_paid_twice(project, emulator):
    process = start_smoke(project, "--poll-seconds", "600")
    try:
        assert process.stdout is not None
        assert any(line.startswith("create") for line in process.stdout)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert len(emulator.books.batches) == 1
    document = smoke(project)
    assert document["sound"] is True
    assert "nothing is sent again" in told(document, "create")[0]
    assert (len(emulator.books.batches), len(emulator.books.executions)) == (1, 3)


SERVER_TITLES = {"groq": "Groq", "openrouter": "OpenRouter", "mistral": "Mistral"}
PRESETS = {
    "groq": ("openai_base_url", "openai/gpt-oss-20b"),
    "openrouter": ("openrouter_base_url", "openai/gpt-4o-mini"),
    "mistral": ("mistral_base_url", "mistral-small-2603"),
}


@pytest.fixture(params=PRESETS)
def preset_project(project, request):
    """Make the usual project with a preset as the provider `fast`."""
    url = getattr(project.emulator, PRESETS[request.param][0])
    further = (
        f'            providers={{"fast": preset("{request.param}", api_key="{DEFAULT_KEY}", base_url="{url}")}},\n'
    )
    definitions = DEFINITIONS.replace("            **places,\n", further + "            **places,\n")
    definitions = definitions.replace("    OpenAIBatchResource,\n", "    OpenAIBatchResource,\n    preset,\n", 1)
    project.file.write_text(definitions)
    return project


def test_doctor_says_what_a_preset_was_never_seen_to_do_until_a_smoke_has_seen_it_and_it_is_recorded(
    preset_project, request, tmp_path
):
    def finding():
        findings = preset_project.json("doctor")["findings"]
        return next(one for one in findings if one["check"] == "preset of fast")

    name = request.node.callspec.params["preset_project"]
    before = finding()
    # Groq's preset was never tried on the live server.
    assert before["verdict"] == ("warning" if name == "groq" else "ok")
    assert "taken from its documents, and are not verified on the live server: " in before["said"]
    assert "the price rule of a batch" in before["said"]
    assert name != "groq" or "dagster-llm-batch smoke fast" in before["then"]
    asked = (
        "--model",
        PRESETS[name][1],
        "--params",
        '{"max_tokens": 64}',
        "--record",
        str(tmp_path / "dialogue.jsonl"),
    )
    smoke(preset_project, *asked, provider="fast")
    after = finding()
    assert (after["verdict"], "got its labels" in after["said"]) == ("ok", True)
    first, *exchanges = map(json.loads, (tmp_path / "dialogue.jsonl").read_text().splitlines())
    assert (first["kind"], first["server"]) == ("openrouter" if name == "openrouter" else "openai", SERVER_TITLES[name])
    assert len(exchanges) > 3


def test_a_dialogue_is_recorded_to_its_end_over_two_commands_and_has_no_key(project, tmp_path):
    file = tmp_path / "dialogue.jsonl"
    smoke(project, "--record", str(file))
    first, *exchanges = map(json.loads, file.read_text().splitlines())
    assert (first["dialogue"], first["kind"], first["model"], first["round"]) == (1, "openai", "gpt-4o", 1)
    assert {"POST /v1/files", "POST /v1/batches", "GET /v1/batches"} <= {
        f"{one['method']} {one['path'].partition('?')[0]}" for one in exchanges
    }
    smoke(project, "--record", str(file))
    assert DEFAULT_KEY not in file.read_text()
    assert len(project.emulator.books.batches) == 1
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    assert "something else than a dialogue" in project.on_file("smoke", "openai", "--record", str(notes), code=1).output


def test_a_parameter_is_refused_before_the_key_is_used_or_warned_of_and_an_estimate_names_its_basis(project):
    refused = project.on_file("smoke", "openai", "--params", '{"max_tokens": 64, "stream": true}', code=1)
    assert "stream" in refused.output
    assert "takes the credentials" not in refused.output
    assert project.emulator.books.batches == []
    document = smoke(project, "--params", '{"max_tokens": 64, "mood": 1}', code=3)
    [warning] = told(document, "params")
    assert "'mood'" in warning
    assert "output taken as your maximum of 64 tokens a row" in told(document, "plan")[0]
