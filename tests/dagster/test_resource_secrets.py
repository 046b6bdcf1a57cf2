"""Secrets of resources, given as plain text or as a variable: in no repr, error, event, log or snapshot of Dagster."""

import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap

from dagster_llm_batch import (
    AnthropicBatchResource,
    BedrockBatchResource,
    LLMBatchResource,
    OpenAIBatchResource,
    RayBatchResource,
    VertexBatchResource,
)
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.streams import KafkaResource

MARK = "RECOGNISE"
KEY = f"sk-plain-{MARK}-4242424242"
LEDGER = f"postgresql://me:{MARK}@db.example:5432/ledger?sslpassword={MARK}"
BEDROCK = {"role_arn": "arn:aws:iam::123456789012:role/r", "s3_uri": "s3://bucket/f", "region_name": "us-east-1"}
AWS_KEYS = dict.fromkeys(("aws_access_key_id", "aws_secret_access_key", "aws_session_token"), KEY)
OWN = {"address": "http://r:1", "storage": "/s", "call": "m:f"}
SECRETS_OF_RAY = {"token": KEY, "runtime_env": {"env_vars": {"HF_TOKEN": KEY}}}


def plain() -> dict[str, Any]:
    """Return every kind of resource, with each of its secrets as plain text."""
    openai = OpenAIBatchResource(api_key=KEY, base_url="http://127.0.0.1:1/v1")
    place = {"project": "p", "location": "l", "bucket": "b"}
    return {
        "openai": openai,
        "kafka": KafkaResource(bootstrap_servers="k:9092", password=KEY, settings={"ssl.key.password": KEY}),
        "llm_batch": LLMBatchResource(
            ledger_url=LEDGER,
            openai=openai,
            anthropic=AnthropicBatchResource(api_key=KEY),
            vertex=VertexBatchResource(access_token=KEY, service_account_json=KEY, **place),
            bedrock=BedrockBatchResource(**BEDROCK, **AWS_KEYS),
            ray=RayBatchResource(address="http://r:1", storage="/s", call="m:f", **SECRETS_OF_RAY),
            providers={"openai_eu": OpenAIBatchResource(api_key=KEY), "own": RayBatchResource(**OWN, **SECRETS_OF_RAY)},
        ),
    }


def everything(home: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file of the instance, and the decompressed contents of its databases."""
    for path in home.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()
        if path.suffix == ".db":
            with closing(sqlite3.connect(path)) as connection:
                for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    for row in connection.execute(f'SELECT * FROM "{table}"'):
                        for value in row:
                            if isinstance(value, bytes) and value[:1] == b"x":
                                yield f"{path}:{table}", zlib.decompress(value)


def test_no_repr_shows_a_secret() -> None:
    for resource in plain().values():
        for text in (repr(resource), str(resource), f"{[resource]}"):
            assert MARK not in text
    assert "ledger_url='postgresql://db.example:5432/ledger'" in repr(plain()["llm_batch"])
    assert "ledger_url='sqlite:///a.db'" in repr(LLMBatchResource(ledger_url="sqlite:///a.db"))
    assert "base_url='http://127.0.0.1:1/v1'" in repr(plain()["openai"])


def test_no_refused_value_is_shown() -> None:
    with pytest.raises(ConfigError) as misspelled:
        OpenAIBatchResource(api_key="k", apikey=KEY)
    assert MARK not in str(misspelled.value)
    wrong: list[tuple[type[Any], dict[str, Any]]] = [
        (OpenAIBatchResource, {"api_key": [KEY]}),
        (LLMBatchResource, {"openai": OpenAIBatchResource(api_key="k"), "transfers_at_once": KEY}),
        (KafkaResource, {"bootstrap_servers": "k", "password": {KEY: KEY}}),
    ]
    for kind, values in wrong:
        with pytest.raises(Exception, match=kind.__name__) as refused:
            kind(**values)
        assert MARK not in str(refused.value)


def test_dagster_keeps_and_shows_no_secret_given_as_plain_text_and_the_run_has_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T_KEY", KEY)
    seen: list[object] = []

    @dg.asset
    def labels(context: dg.AssetExecutionContext, llm_batch: LLMBatchResource, openai: OpenAIBatchResource) -> None:
        context.log.info(f"{llm_batch} and {openai}")
        nested = llm_batch.openai
        assert nested is not None
        seen.extend([llm_batch.ledger_url, nested.api_key, openai.api_key, openai.timeout_seconds])
        eu, own = llm_batch.providers["openai_eu"], llm_batch.providers["own"]
        seen.extend([vars(eu)["api_key"], vars(own)["token"]])
        context.log.info(repr([nested.provider(), *llm_batch.make_providers(tmp_path).values()]))

    @dg.asset
    def messages(kafka: KafkaResource, by_variable: OpenAIBatchResource) -> None:
        seen.extend([kafka.password, kafka.settings["ssl.key.password"], by_variable.api_key])

    resources = {**plain(), "by_variable": OpenAIBatchResource(api_key=dg.EnvVar("T_KEY"))}
    defs = dg.Definitions(assets=[labels, messages], resources=resources)
    shown = dg.serialize_value(RepositorySnap.from_def(defs.get_repository_def()))
    assert MARK not in shown
    assert "127.0.0.1:1" in shown
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        run_config = {"resources": {"openai": {"config": {"timeout_seconds": 7.0}}}}
        job = defs.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(instance=instance, run_config=run_config)
        assert result.success
        assert MARK not in "".join(str(event) for event in result.all_events)
        found = [name for name, data in everything(tmp_path) if MARK.encode() in data]
    assert found == []
    assert sorted(map(str, seen)) == sorted([LEDGER, *[KEY] * 7, "7.0"])
    assert MARK not in "".join(capfd.readouterr())


def test_a_resource_has_one_definition_and_takes_its_secret_at_the_launch_too() -> None:
    for resource in plain().values():
        assert resource.get_resource_definition() is resource.get_resource_definition()

    @dg.asset
    def labels(openai: OpenAIBatchResource) -> str:
        return openai.api_key

    late = {"openai": OpenAIBatchResource.configure_at_launch()}
    config = {"resources": {"openai": {"config": {"api_key": "given-at-the-launch"}}}}
    assert (
        dg.materialize([labels], resources=late, run_config=config).output_for_node("labels") == "given-at-the-launch"
    )
