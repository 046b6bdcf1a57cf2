"""Keys in the path of an address, and credentials in a bucket's address: refused, or hidden wherever it is shown."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch import (
    AnthropicBatchResource,
    BedrockBatchResource,
    GeminiBatchResource,
    HiveParquetIOManager,
    LLMBatchResource,
    OpenAIBatchResource,
    OpenRouterBatchResource,
    RayBatchResource,
    VertexBatchResource,
    preset,
)
from dagster_llm_batch.cli import doctor
from dagster_llm_batch.cli.main import main
from dagster_llm_batch.core.address_secrets import hide_secrets, quote_address, refuse_credentials, secret_parts
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.row_files import RowFiles
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import ConfigError, InputError, LLMBatchError
from dagster_llm_batch.files.prompt_files import FilesBelow
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.anthropic.platforms import refuse_unbatched
from dagster_llm_batch.providers.dialogue import Recorder, recording_to
from dagster_llm_batch.providers.registry import SERVER_FOLDERS
from dagster_llm_batch.sensors.provider_access import ProviderAccess
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import DocumentRules, Request, RequestSpec
from tests.faults.test_origins import Answer, Asked, Server
from tests.faults.test_secrets import JSON, Told, echoing, stored
from tests.faults.vendor_workspace import rows
from tests.faults.vendors import VENDORS
from tests.tables import table

MARK = "RECOGNISE"
KEY = f"k7{MARK}4242x9Qz4242"
SECRET_KEY = f"{MARK}/secret/4242"
CLOUDS = {vendor.name: vendor for vendor in VENDORS[:-1]}
CREDENTIALS = f"AKIA{MARK}42:{SECRET_KEY}"

READABLE = [
    "https://api.openai.com/v1",
    "https://name.openai.azure.com/openai/deployments/gpt-4o-mini",
    "https://name.openai.azure.com/openai/deployments/gpt-4o-mini-2024-07-18/v1",
    "https://gateway.example/api/v1/projects/123456789012",
    "http://llm:8000/meta-llama-3.1-70b-instruct/mixtral-8x7b-instruct-v0.1/claude-haiku-4-5-20251001",
    "llm:8000/v1?organization=org-ABCDEFGH12345678901234&project=proj_ABC123456789012345678",
    "bedrock.us-east-1.amazonaws.com/123456789012",
    "s3://bucket/3f2b8c1d4e5f60718293a4b5c6d7e8f9/folder",
    "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/a@b",
    "abfss://container@account.dfs.core.windows.net/folder",
    "sftp://me@host:22/a@b",
    "/data/payloads",
]


@table("address", READABLE)
def test_an_ordinary_address_is_shown_as_it_is(address: str) -> None:
    assert hide_secrets(address) == address
    assert secret_parts(address) == []
    refuse_credentials(address, "root")


ALPHABETS = ["0123456789abcdef", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"]
RANDOM_KEYS = st.one_of([st.text(alphabet, min_size=20, max_size=60) for alphabet in ALPHABETS]).filter(
    # Others may be words and numbers by chance.
    lambda key: sum({a.isdigit(), b.isdigit()} == {True, False} for a, b in pairwise(key) if (a + b).isalnum()) > 4
)


@given(key=st.one_of([RANDOM_KEYS, st.uuids(version=4).map(str)]), before=st.sampled_from(["", "/v1", "/openai/v1"]))
def test_a_random_key_in_a_path_is_hidden_at_every_place(key: str, before: str) -> None:
    for address in (
        f"https://gw.example:8443{before}/{key}/v1",
        f"gw.example{before}/{key}",
        f"http://h{before}/{key}",
    ):
        assert hide_secrets(address) == address.replace(key, "***")
        assert key in secret_parts(address)


@pytest.mark.parametrize("part", ["sk-4f9a8c7d6e5b4", f"key={MARK}", f"api-token={MARK}", "AKIA4242424242424242"])
def test_what_begins_as_keys_do_is_hidden_though_it_is_short(part: str) -> None:
    assert hide_secrets(f"https://gw.example/v1/{part}/x") == "https://gw.example/v1/***/x"


def test_users_and_passwords_in_front_of_hosts_and_in_queries_are_hidden() -> None:
    assert hide_secrets(f"s3://{CREDENTIALS}@bucket/folder") == "s3://***@bucket/folder"
    assert hide_secrets(f"simplecache::s3://{CREDENTIALS}@bucket/f") == "simplecache::s3://***@bucket/f"
    assert hide_secrets(f"gs://{MARK}@bucket") == "gs://***@bucket"
    assert hide_secrets(f"sftp://me:{MARK}@host/f") == "sftp://***@host/f"
    assert hide_secrets(f"s3://bucket/f?secret_key={MARK}&region=eu") == "s3://bucket/f?secret_key=***&region=eu"
    assert hide_secrets(f"https://me:{MARK}@host/v1?key={MARK}") == "https://***@host/v1?key=***"


PLACES = [
    f"s3://{CREDENTIALS}@bucket/folder",
    f"s3a://AKIA42:{MARK}@bucket/folder",
    f"gs://{MARK}@bucket/folder",
    f"sftp://me:{MARK}@host/folder",
    f"s3://bucket/folder?access_key={MARK}&secret_key={MARK}",
]
BEDROCK = {"role_arn": "arn:aws:iam::123456789012:role/r", "region_name": "us-east-1"}
RAY = {"address": "http://r:1", "call": "m:f"}
VERTEX = {"project": "p", "location": "us-central1"}
TAKERS: dict[str, Callable[[str], Any]] = {
    "payload store": PayloadStore,
    "payload_root": lambda place: LLMBatchResource(payload_root=place),
    "payload_root, from the environment": lambda place: LLMBatchResource.model_construct(
        **{**vars(LLMBatchResource()), "payload_root": place}
    ).engine(),
    "IO manager": lambda place: HiveParquetIOManager(root=place),
    "storage of Ray": lambda place: RayBatchResource(**RAY, storage=place),
    "s3_uri": lambda place: BedrockBatchResource(s3_uri=place, **BEDROCK),
    "s3_uri, from the environment": lambda place: (
        BedrockBatchResource(s3_uri="s3://bucket/f", **BEDROCK).model_copy(update={"s3_uri": place}).provider()
    ),
    "storage of Ray, from the environment": lambda place: (
        RayBatchResource(address="http://r:1", storage="/s", call="m:f")
        .model_copy(update={"storage": place})
        .provider()
    ),
    "bucket": lambda place: VertexBatchResource(bucket=place, **VERTEX).provider(),
    "bigquery_dataset": lambda place: VertexBatchResource(bigquery_dataset=place, **VERTEX).provider(),
    "image_root": lambda place: FilesBelow(place, "image_root"),
    "file_root": lambda place: FilesBelow(place, "file_root"),
}


@table("place", PLACES)
@table("taker", TAKERS)
def test_an_address_of_files_with_credentials_is_refused_without_showing_them(taker: str, place: str) -> None:
    with pytest.raises(ConfigError) as refused:
        TAKERS[taker](place)
    assert MARK not in f"{refused.value}{refused.value!r}"
    assert "holds credentials" in str(refused.value)


def test_a_bucket_by_its_name_alone_is_refused_with_credentials_too() -> None:
    with pytest.raises(ConfigError, match="holds credentials") as refused:
        VertexBatchResource(bucket=f"{CREDENTIALS}@bucket", **VERTEX).provider()
    assert MARK not in str(refused.value)


SIGNED = f"X-Amz-Credential=AKIA{MARK}42&X-Amz-Signature={MARK}"
ADDRESSES = [
    f"https://bucket.s3.amazonaws.com/a.pdf?{SIGNED}",
    f"HTTPS://host/a.pdf?sig={MARK}",
    f"s3://{CREDENTIALS}@bucket/a.pdf",
    f"folder/a.pdf?{SIGNED}",
    f"../a.pdf?{SIGNED}",
]


def _out_of_order(path: str) -> bytes:
    raise RuntimeError(path)


def _loaders(root: str) -> dict[str, Callable[[str], bytes] | None]:
    return {"no root": None, "root": FilesBelow(root, "file_root"), "store out of order": _out_of_order}


@table("address", ADDRESSES)
@table("loader", _loaders("memory://folder"))
def test_no_reason_shows_the_secrets_in_the_address_of_a_document(loader: str, address: str) -> None:
    rules = [DocumentRules("A vendor", ("application/pdf",))]
    load = _loaders("memory://folder")[loader]
    renderer = Prompt("x", documents=["a"]).renderer(["a"], RowFiles(load_document=load, rules=rules))
    with pytest.raises(InputError, match=r"a\.pdf|\*\*\*@bucket") as refused:
        renderer.render({"a": address}, 7)
    assert MARK not in str(refused.value)
    assert "***" in str(refused.value)


def test_a_file_that_is_named_by_its_digest_is_shown() -> None:
    path = f"papers/{'3f2b8c1d4e5f6071' * 4}.pdf"
    assert quote_address(path) == repr(path)
    assert len(quote_address("a/" * 5_000)) == 202


def resource_at(name: str, url: str) -> Any:
    """Return the settings of a vendor, with the key in each of its addresses."""
    at = f"{url}/{KEY}"
    common = {"timeout_seconds": 10.0}
    match name:
        case "openai":
            return OpenAIBatchResource(api_key="k" * 16, base_url=f"{at}/v1", **common)
        case "anthropic":
            return AnthropicBatchResource(api_key="k" * 16, base_url=at, **common)
        case "openrouter":
            return OpenRouterBatchResource(api_key="k" * 16, base_url=f"{at}/api/v1", **common)
        case "gemini":
            return GeminiBatchResource(api_key="k" * 16, base_url=at, **common)
        case "vertex":
            urls = {"base_url": at, "storage_url": at, "bigquery_url": at}
            return VertexBatchResource(bucket="b", access_token="t" * 16, **VERTEX, **urls, **common)
        case "bedrock":
            urls = {"endpoint_url": at, "s3_endpoint_url": at, "quotas_endpoint_url": at}
            keys = dict.fromkeys(("aws_access_key_id", "aws_secret_access_key"), "k" * 16)
            few = {"read_quotas": False, "max_attempts": 1}
            return BedrockBatchResource(s3_uri="s3://bucket/folder", **BEDROCK, **urls, **keys, **few, **common)
    assert name in ("azure", *SERVER_FOLDERS)
    return preset(name, api_key="k" * 16, base_url=f"{at}/v1", **common)


@pytest.fixture
def told(tmp_path: Path, caplog: Any, capfd: Any) -> Told:
    caplog.set_level(logging.INFO)
    return Told(tmp_path, caplog, capfd)


@pytest.mark.parametrize("status", [400, 401, 404, 500])
@pytest.mark.parametrize("name", CLOUDS)
def test_no_verb_and_no_repr_shows_the_key_in_an_address_that_the_vendor_echoes(
    tmp_path: Path, told: Told, name: str, status: int
) -> None:
    vendor = CLOUDS[name]
    spec = RequestSpec(vendor.model, params=vendor.params)

    def answer(asked: Asked) -> Answer:
        said = f"No {asked.method} {asked.path} at {KEY} here."
        error = {"message": said, "code": status, "status": "INVALID_ARGUMENT", "type": "invalid_request_error"}
        return status, JSON, json.dumps({"type": "error", "error": error, "message": said}).encode()

    with Server(answer) as server:
        resource = resource_at(name, server.url)
        provider: Provider = resource.provider()
        line = provider.codec(spec).encode(Request("r", None, "text"), "n-0")
        calls: list[Callable[[], Any]] = [
            lambda: provider.submit(io.BytesIO(line), spec, "tag"),
            lambda: provider.poll(["abcdefghijkl"]),
            lambda: list(provider.fetch("abcdefghijkl")),
            lambda: provider.cancel("abcdefghijkl"),
            lambda: provider.delete("abcdefghijkl"),
            lambda: provider.respond(line),
            lambda: doctor._provider(name, provider),
        ]
        for call in calls:
            try:
                told.said.append(repr(call()))
            except LLMBatchError as error:
                told.error(error)
        assert server.asked
    shared = LLMBatchResource(providers={"other": resource})
    told.said += [repr(provider), repr(resource), str(resource), repr(shared), str([shared])]
    told.assert_clean()


@table("name", CLOUDS)
@table("wrong", ["htps://{}", "https://h/{}/v1?key={}", "https://h:x/{}", "https://h/{}/ v1"])
def test_a_wrong_address_is_refused_without_its_key(name: str, wrong: str) -> None:
    usual = resource_at(name, "http://127.0.0.1:1")
    setting = "endpoint_url" if name == "bedrock" else "base_url"
    address = wrong.format(f"h/{KEY}", KEY) if wrong.startswith("htps") else wrong.format(KEY, KEY)
    try:
        shown = repr(usual.model_copy(update={setting: address}).provider())
    except (ConfigError, ValueError) as error:
        shown = f"{error!r}{error}"
    assert MARK not in shown


def test_doctor_names_an_account_without_the_key_in_its_address() -> None:
    with Server(lambda _asked: (200, JSON, b'{"object": "list", "data": [], "has_more": false}')) as server:
        finding = doctor._provider("openai", resource_at("openai", server.url).provider())
    assert "/***/v1 answers" in finding.said
    assert MARK not in repr(finding)


def test_a_server_that_can_hold_no_batches_is_named_without_its_key() -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_unbatched(f"https://name.services.ai.azure.com/{KEY}/anthropic")
    assert MARK not in str(refused.value)


@pytest.mark.parametrize("fails", [True, False], ids=["a batch", "its rows"])
def test_the_key_in_an_address_is_in_no_text_of_the_ledger_and_no_payload(
    tmp_path: Path, told: Told, fails: bool
) -> None:
    vendor, behind = CLOUDS["openai"], echoing(KEY, fails=fails)

    def gateway(asked: Asked) -> Answer:
        assert asked.path.startswith(f"/{KEY}/")
        return behind(asked._replace(path=asked.path.removeprefix(f"/{KEY}")))

    ledger = Ledger(tmp_path / "ledger.sqlite")
    with Server(gateway) as server:
        resource = resource_at("openai", server.url)
        payloads = PayloadStore(str(tmp_path / "payloads"))
        recorder = Recorder(tmp_path / "dialogue.jsonl", {"vendor": "openai"})
        provider = resource.provider()
        # The account does not change: fingerprints and running batches are identified by it.
        assert provider.account == f"{server.url.removeprefix('http://')}/{KEY}/v1"
        engine = Engine(Deployment({"openai": provider}, ledger, payloads, "x", sleep=lambda _: None))
        definition = Labeling(
            asset="labels", model=f"openai/{vendor.model}", key="id", prompt=Prompt(user="{{ text }}"), response=None
        )
        submission = engine.plan(definition, rows())
        with recording_to(recorder):
            for _ in range(6):
                try:
                    engine.advance(definition, submission.submission_id)
                except LLMBatchError as error:
                    told.error(error)
    told.said += [str(event) for event in ledger.events.of_submission(submission.submission_id)]
    shards = list(ledger.shards.of_submission(submission.submission_id))
    assert shards
    told.said += [str(shard).replace(provider.account, "ACCOUNT") for shard in shards]
    told.said += [text.replace(provider.account, "ACCOUNT") for text in stored(payloads, tmp_path / "payloads")]
    # Another account is configured: each message names both.
    other = resource.model_copy(update={"base_url": resource.base_url.replace("/v1", "/v2")}).provider()
    moved = Engine(Deployment({"openai": other}, ledger, payloads, "x", sleep=lambda _: None))
    with pytest.raises(ConfigError, match="was made with the openai account") as refused:
        moved.deployment.provider_of(shards[0])
    told.error(refused.value)
    access = ProviderAccess(moved, lambda _what, _error: None)
    told.said.append(str(access.reason_not_to_ask(shards[0])))
    told.said.append((tmp_path / "dialogue.jsonl").read_text())
    assert "/***/v2" in "".join(told.said)
    assert "/v1/files" in told.said[-1]
    places = ["--ledger", str(tmp_path / "ledger.sqlite"), "--payloads", str(tmp_path / "payloads")]
    for command in (["show", submission.submission_id], ["list"]):
        for form in ([], ["--json"]):
            shown = CliRunner().invoke(main, [*command, *places, "--namespace", "x", *form])
            assert shown.exit_code == 0, shown.output
            told.said.append(shown.output)
    assert sum("/***/v1" in text for text in told.said[-4:]) >= 2
    ledger.close()
    (tmp_path / "ledger.sqlite").unlink()
    told.assert_clean()


def test_dagster_shows_and_keeps_neither_keys_nor_credentials_of_addresses() -> None:
    vendors = {name: resource_at(name, "http://127.0.0.1:1") for name in CLOUDS}
    ray = RayBatchResource(address=f"http://r:1/{KEY}", storage="/s", base_url=f"http://llm/{KEY}/v1")
    resources = {**vendors, "ray": ray, "llm": LLMBatchResource(openai=vendors["openai"], providers={"own": ray})}

    @dg.asset(required_resource_keys=set(resources))
    def labels() -> None: ...

    defs = dg.Definitions(assets=[labels], resources=resources)
    job = defs.resolve_implicit_global_asset_job_def()
    assert MARK not in dg.serialize_value(job.get_job_snapshot())
    for name, resource in resources.items():
        shown = f"{resource!r} {resource}"
        assert MARK not in shown, name
        assert "***" in shown, name
        assert resource.get_resource_definition() is resource.get_resource_definition()
    assert MARK not in repr(ray.provider())
    assert ray.provider().console_url("job") is None
    # Resources that a run receives have complete addresses.
    assert KEY in vendors["openai"].base_url
