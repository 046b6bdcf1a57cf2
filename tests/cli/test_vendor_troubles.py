"""`doctor` and `plan` report a provider's trouble for this provider only, and show all others."""

import json
import sys

import dagster as dg
import pytest

from dagster_llm_batch.errors import LLMBatchError

DEFINITIONS = """
import os
from pathlib import Path

import dagster as dg

from dagster_llm_batch import (
    AnthropicBatchResource,
    BedrockBatchResource,
    CommandBatchResource,
    GeminiBatchResource,
    LLMBatchResource,
    OpenAIBatchResource,
    OpenRouterBatchResource,
    Prompt,
    VertexBatchResource,
    build_llm_batch_sensor,
    llm_batch_assets,
    preset,
)

FORM, TROUBLE = os.environ["FORM"], os.environ["TROUBLE"]
wrong = "sk-wrong-and-secret-42424242"
key = {"unset": dg.EnvVar("KEY_OF_NOBODY"), "empty": "", "wrong": wrong}.get(TROUBLE, "sk-emulator")
away = "http://127.0.0.1:9"


def at(path):
    return away if TROUBLE == "away" else os.environ["EMULATOR_URL"] + path


quick = {"timeout_seconds": 3.0}
without_file = TROUBLE == "no file"
aws = {"region_name": "us-east-1", "max_attempts": 1}
if without_file:
    # Each looks for them in files, which are not there.
    aws["profile_name"] = "nobody"
else:
    aws |= {"aws_access_key_id": key, "aws_secret_access_key": key}
place = {"role_arn": "arn:aws:iam::123456789012:role/batch", "s3_uri": "s3://bucket/folder"}
makers = {
    "openai": lambda: OpenAIBatchResource(api_key=key, base_url=at("/v1"), **quick),
    "anthropic": lambda: AnthropicBatchResource(api_key=key, base_url=at(""), **quick),
    "gemini": lambda: GeminiBatchResource(api_key=key, base_url=at("/gemini"), **quick),
    "openrouter": lambda: OpenRouterBatchResource(api_key=key, base_url=at("/api/v1"), **quick),
    "vertex": lambda: VertexBatchResource(
        project="p",
        location="us-central1",
        bucket="b",
        access_token=None if without_file else key,
        base_url=at("/vertex"),
        storage_url=at("/gcs"),
        **quick,
    ),
    "bedrock": lambda: BedrockBatchResource(
        endpoint_url=at("/bedrock"), s3_endpoint_url=at("/s3"), **place, **aws, **quick
    ),
    "mistral": lambda: preset("mistral", api_key=key, base_url=at("/mistral/v1"), **quick),
    "command": lambda: CommandBatchResource(
        command=["/no/such/program" if without_file else "true", "{input}", "{output}"]
    ),
}
models = {
    "openai": "gpt-4o",
    "anthropic": "claude-haiku-4-5",
    "gemini": "gemini-2.5-flash",
    "openrouter": "openai/gpt-4o",
    "vertex": "gemini-2.5-flash",
    "bedrock": "anthropic.claude-haiku-4-5-20251001-v1:0",
    "mistral": "mistral-small-2603",
    "command": "m",
}
healthy = os.environ["HEALTHY"]
troubled = [kind for kind in makers if kind not in (healthy, "command")]
if without_file:
    troubled = ["vertex", "bedrock", "command"]
by_name = {kind: f"{kind}_eu" if FORM == "name" or kind == "mistral" else kind for kind in troubled}
given = {by_name[kind]: makers[kind]() for kind in troubled}
key, TROUBLE, without_file = "sk-emulator", "none", False
aws |= {"aws_access_key_id": key, "aws_secret_access_key": key}
fields = {healthy: makers[healthy]()}
named = {name: settings for name, settings in given.items() if name.endswith("_eu")}
fields |= {name: settings for name, settings in given.items() if name not in named}


def rows(context):
    return [{"id": n, "body": f"row {n}"} for n in range(3)]


def labeled(name, model):
    limit = "max_output_tokens" if "gemini" in model else "max_tokens"
    return llm_batch_assets(
        name=name, model=model, rows=rows, key="id", prompt=Prompt(user="{{ body }}"), params={limit: 50}
    )


healthy_labels = labeled("healthy_labels", f"{healthy}/{models[healthy]}")
others = [asset for kind in troubled for asset in labeled(f"{kind}_labels", f"{by_name[kind]}/{models[kind]}")]
here = f"{Path.cwd()}/batches"
defs = dg.Definitions(
    assets=[*healthy_labels, *others],
    sensors=[build_llm_batch_sensor()],
    resources={
        "llm_batch": LLMBatchResource(
            ledger_url=f"sqlite:///{here}/ledger.sqlite", payload_root=f"{here}/payloads", providers=named, **fields
        )
    },
)
"""
KINDS = ("openai", "anthropic", "gemini", "openrouter", "vertex", "bedrock", "mistral")
# Providers whose credentials or program are files.
OF_FILES = ("vertex", "bedrock", "command")
SDKS = ("openai", "anthropic", "google.genai", "google.cloud.storage", "boto3")
# Troubles that prevent the creation of a provider, so that it has no plan. Others appear with the first call.
UNMADE = ("unset", "empty")


def define(project, monkeypatch, **variables):
    """Write the definitions: one healthy provider, and all others in trouble."""
    project.file.write_text(DEFINITIONS)
    for name, value in {**variables, "EMULATOR_URL": project.emulator.anthropic_base_url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("KEY_OF_NOBODY", raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(project.file.parent / "no_such_file.json"))


def troubled_beside(healthy, trouble):
    """Return the providers that are in trouble."""
    return [kind for kind in (OF_FILES if trouble == "no file" else KINDS) if kind != healthy]


@pytest.mark.parametrize("form", ["field", "name"])
@pytest.mark.parametrize("trouble", ["unset", "empty", "wrong", "no extra", "away", "no file"])
@pytest.mark.parametrize("healthy", ["openai", "command"])
def test_every_troubled_provider_has_its_line_and_the_healthy_one_is_checked_and_planned(
    project, monkeypatch, healthy, trouble, form
):
    if trouble == "no extra":
        if healthy != "command":
            pytest.skip("an SDK that is missing is missing for all providers that need it")
        for name in SDKS:
            monkeypatch.setitem(sys.modules, name, None)
    if trouble == "no file" and healthy == "command":
        pytest.skip("the command is in trouble itself")
    define(project, monkeypatch, FORM=form, TROUBLE=trouble, HEALTHY=healthy)
    troubled = troubled_beside(healthy, trouble)
    names = {kind: f"{kind}_eu" if form == "name" or kind == "mistral" else kind for kind in troubled}

    told = project.on_file("doctor", "--json", code=3)
    assert "sk-wrong" not in told.output
    findings = {finding["check"]: finding for finding in json.loads(told.stdout)["findings"]}
    assert findings[f"provider {healthy}"]["verdict"] != "problem"
    assert findings["dataset healthy_labels"]["verdict"] != "problem"
    verdicts = {kind: findings[f"provider {name}"]["verdict"] for kind, name in names.items()}
    assert verdicts == dict.fromkeys(troubled, "problem")
    if trouble == "unset":
        assert all("KEY_OF_NOBODY" in findings[f"provider {name}"]["said"] for name in names.values())
    assert {f"dataset {kind}_labels" for kind in troubled} <= findings.keys()
    assert {"ledger", "payload store", "price book", "price rules"} <= findings.keys()

    # Boto's client is created before a row is read, other clients with the first call. A program is looked up, too.
    unplanned = {*UNMADE, "no extra", "no file"}
    planned = json.loads(project.on_file("plan", "--json", code=1 if trouble in unplanned else 0).stdout)
    assets = {plan["asset"] for plan in planned["plans"]}
    left = {failure["asset"] for failure in planned["not_planned"]}
    assert "healthy_labels" in assets
    assert assets | left == {"healthy_labels", *(f"{kind}_labels" for kind in troubled)}
    assert not assets & left
    assert project.on_file("plan", "healthy_labels").exit_code == 0


@pytest.mark.parametrize("form", ["field", "name"])
@pytest.mark.parametrize("trouble", ["unset", "empty", "wrong", "away", "no file"])
def test_a_healthy_provider_is_sent_to_and_its_labels_land_by_the_sensor_beside_troubled_ones(
    project, home, monkeypatch, trouble, form
):
    """Run the assets of all providers and four ticks of the sensor in a real instance."""
    define(project, monkeypatch, FORM=form, TROUBLE=trouble, HEALTHY="openai")
    defs = project.module()["defs"]
    repository, job = defs.get_repository_def(), defs.resolve_implicit_global_asset_job_def()
    labels = ["healthy_labels", *(f"{kind}_labels" for kind in troubled_beside("openai", trouble))]
    with dg.DagsterInstance.get() as instance:

        def run(*names):
            keys = {dg.AssetKey(name) for name in names}
            part = job.get_subset(asset_selection=keys)
            return part.execute_in_process(instance=instance, raise_on_error=False).success

        def tick():
            context = dg.build_sensor_context(
                instance=instance,
                instance_ref=instance.get_ref(),
                repository_def=repository,
                sensor_name="llm_batch_sensor",
                resources=repository.get_top_level_resources(),
            )
            try:
                with context:
                    return repository.get_sensor_def("llm_batch_sensor").evaluate_tick(context).run_requests or ()
            except LLMBatchError:
                # The tick reports the other providers.
                return ()

        assert {name: run(f"{name}_batch") for name in labels}["healthy_labels"]
        requested = dict.fromkeys(labels, 0)
        for _ in range(4):
            project.emulator.settle()
            for request in tick():
                names = [key.to_user_string() for key in request.asset_selection]
                requested[names[0]] += 1
                run(*names)
        assert instance.get_latest_materialization_event(dg.AssetKey("healthy_labels")) is not None
        assert all(requested[name] <= 1 for name in labels[1:]), requested
