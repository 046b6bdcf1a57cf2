"""Servers that speak OpenAI's Batch API: the package respects the known facts of each, if possible before sending."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import httpx2
import pytest
from bent_server import BENDS, Bend, as_openai, bent, without_metadata
from sample_batches import batch_file, odd_server

from dagster_llm_batch import (
    AzureOpenAIBatchResource,
    Embedding,
    Fallback,
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    Resend,
    llm_batch_assets,
    preset,
)
from dagster_llm_batch.core.pricing import tariff
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.errors import AmbiguousError, ConfigError, CredentialsError, QueueFullError, RefusedError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.testing.contracts import ProviderContract, ProviderUnderTest
from dagster_llm_batch.testing.emulator import (
    DEFAULT_KEY,
    Emulator,
    VendorLimits,
    WireFault,
    lost_create_reply,
)
from dagster_llm_batch.types import (
    Absent,
    BatchStatus,
    Endpoint,
    FileCount,
    FindHints,
    Found,
    Outcome,
    PriceBasis,
    RequestSpec,
    ResponseFormat,
    ResponseKind,
    StatusUnknown,
)

SPEC = RequestSpec("gpt-x")
AZURE = "https://res.openai.azure.com/openai/v1/"
TAG = "dlb-0a1b2c3d-r0123456789abcdef"
OTHER_TAG = "dlb-0a1b2c3d-rfedcba9876543210"
TOKENS = ("eyJ0eXAi.the-first-token.of-entra-id", "eyJ0eXAi.the-second-token.of-entra-id")

# Their wire is emulated by OpenAI's emulator.
OPENAI_PATHS = [name for name in SERVERS if name not in ("openai", "azure") and SERVERS[name].calls is None]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(keys=dict.fromkeys((DEFAULT_KEY, *TOKENS), "me")) as running:
        yield running


def azure(emulator: Emulator, **more) -> OpenAIProvider:
    return OpenAIProvider(
        **{"api_key": DEFAULT_KEY, "base_url": emulator.azure_base_url, "server": SERVERS["azure"], **more}
    )


def submit(provider: OpenAIProvider, tag: str = TAG) -> str:
    return provider.submit(batch_file(provider.codec(SPEC)), SPEC, tag)


def hints(*known: str) -> FindHints:
    return FindHints(datetime.now(UTC) - timedelta(seconds=1), 3, "n", frozenset(known))


# The contract, by one row of it for each server, with answers that were observed at the server.

SMOKE: dict[str, Callable[[ProviderContract, ProviderUnderTest], None]] = {
    "find": ProviderContract.test_submit_2_the_tag_is_attached_so_that_find_sees_it,
    "absent": ProviderContract.test_find_a_batch_that_was_never_created_is_absent,
    "poll": ProviderContract.test_poll_a_batch_is_reported_until_it_ends,
    "unknown": ProviderContract.test_poll_1_an_unknown_batch_is_not_found_with_a_reason,
    "fetch": ProviderContract.test_fetch_every_request_has_one_line_and_one_outcome,
    "cancel": ProviderContract.test_cancel_leads_to_an_end_that_accounts_for_what_finished,
    "delete": ProviderContract.test_delete_leaves_nothing_of_an_ended_batch_and_can_be_repeated,
}


@pytest.mark.parametrize("server", OPENAI_PATHS)
def test_the_contract_holds_at_each_server(server: str) -> None:
    bend: Bend = BENDS.get(server, as_openai)
    for duty in SMOKE.values():
        with Emulator() as running, bent(running, bend) as url:
            provider = preset(server, api_key=DEFAULT_KEY, base_url=url, timeout_seconds=10.0).provider()
            duty(ProviderContract(), ProviderUnderTest(provider, SPEC, running.settle, [DEFAULT_KEY]))


def test_a_list_without_pages_is_read_once(emulator: Emulator) -> None:
    with bent(emulator, BENDS["groq"]) as url:
        provider = OpenAIProvider(DEFAULT_KEY, url, server=SERVERS["groq"])
        ids = [submit(provider, f"tag-{number}") for number in range(6)]
        assert set(provider.poll(ids)) == set(ids)
        assert emulator.books.calls_to("GET", "/v1/batches") == 1
        assert provider.find("tag-5", hints()) == Found(ids[5])
        assert provider.find("tag-6", hints()) == Absent()
        # a list that may have pages only ends with a page that marks the end
        assert isinstance(OpenAIProvider(DEFAULT_KEY, url).find("tag-6", hints()), StatusUnknown)


# A batch without metadata


def test_a_batch_that_shows_no_metadata_is_found_by_its_request_file(emulator: Emulator) -> None:
    emulator.inject(lost_create_reply("500"))
    with pytest.raises(AmbiguousError):
        submit(azure(emulator))
    [created] = emulator.books.batches
    other = submit(azure(emulator), OTHER_TAG)
    provider = azure(emulator)
    assert provider.find(TAG, hints()) == Found(created.id)
    assert provider.find(TAG, hints(created.id)) == Absent()
    assert provider.find(OTHER_TAG, hints()) == Found(other)
    assert provider.find("dlb-0a1b2c3d-r0000000000000000", hints()) == Absent()


@pytest.mark.parametrize("is_named", [True, False])
def test_where_nobody_knows_whether_names_are_kept_only_names_of_our_form_tell(emulator: Emulator, is_named) -> None:
    with bent(emulator, without_metadata) as url:
        provider = OpenAIProvider(DEFAULT_KEY, url)
        foreign = submit(provider, "somebody-elses-file")
        ours = [submit(provider, OTHER_TAG)] if is_named else []
        found = provider.find(TAG, hints())
    assert found == (
        Absent() if ours else StatusUnknown("The provider shows no metadata, so these may be ours.", (foreign,))
    )


def test_a_request_file_that_is_gone_tells_nothing(emulator: Emulator) -> None:
    provider = azure(emulator)
    batch_id = submit(provider)
    provider._client(retries=0).files.delete(emulator.books.files[0].id)
    assert provider.find(OTHER_TAG, hints()) == StatusUnknown(
        "The provider shows no metadata, so these may be ours.", (batch_id,)
    )


# Azure


@pytest.mark.slow
def test_azure_is_told_when_the_request_file_expires_since_it_holds_500_that_do_not(emulator: Emulator) -> None:
    provider = azure(emulator)
    submit(provider)
    [stored] = provider._client(retries=0).files.list(purpose="batch").data
    assert stored.expires_at - stored.created_at == 14 * 86_400
    plain = azure(emulator, server=SERVERS["openai"])
    for _ in range(500):
        plain._client(retries=0).files.create(file=("x.jsonl", b"{}"), purpose="batch")
    with pytest.raises(RefusedError, match="exceeds its limit"):
        submit(plain)
    submit(provider, OTHER_TAG)


def test_openai_is_told_when_the_request_file_expires_and_an_unknown_server_is_not(emulator: Emulator) -> None:
    told: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        told.append(request.read())
        return httpx2.Response(403, json={"error": {"message": "no"}})

    public = OpenAIProvider("sk-x", http_client=httpx2.Client(transport=httpx2.MockTransport(answer)))
    with pytest.raises(CredentialsError):
        submit(public)
    assert b'name="expires_after[seconds]"\r\n\r\n1209600\r\n' in told[0]
    submit(OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url), TAG)
    [stored] = azure(emulator)._client(retries=0).files.list(purpose="batch").data
    assert stored.expires_at - stored.created_at == 30 * 86_400


def test_azures_request_files_are_counted_against_its_limits(emulator: Emulator) -> None:
    provider = azure(emulator)
    submit(provider)
    provider._client(retries=0).files.create(file=("x.jsonl", b"{}"), purpose="batch")
    assert provider.count_files() == [
        FileCount("request files without an expiry", 1, 500),
        FileCount("request files", 2, 10_000),
    ]
    assert azure(emulator, server=SERVERS["openai"]).count_files() == []


def test_a_deleted_request_file_hides_no_batch_that_the_ledger_knows(emulator: Emulator) -> None:
    provider = azure(emulator)
    gone = submit(provider, OTHER_TAG)
    emulator.settle()
    provider.delete_request_file(gone)
    assert isinstance(provider.find(TAG, hints()), StatusUnknown)
    assert provider.find(TAG, hints(gone)) == Absent()


def test_azures_full_queue_is_no_refusal() -> None:
    with Emulator(limits=VendorLimits(enqueued_tokens=1, fails_fast=True)) as full:
        with pytest.raises(QueueFullError, match="Enqueued token limit"):
            submit(azure(full))
        assert full.books.batches == []


def test_an_ended_batch_of_azure_has_an_empty_error_file_and_a_new_one_empty_ids(emulator: Emulator) -> None:
    provider = azure(emulator)
    batch_id = submit(provider)
    assert list(provider.fetch(batch_id)) == []
    emulator.settle()
    batch = provider._client(retries=0).batches.retrieve(batch_id)
    assert provider._client(retries=0).files.retrieve(batch.error_file_id).bytes == 0
    assert len(list(provider.fetch(batch_id))) == 3


def test_a_failed_batch_of_azure_gives_what_its_files_hold() -> None:
    """Use the documented sample: failed, with both files, completed_at, and counts that are null."""
    reply = b'{"body":{"choices":[{"message":{"content":"x"}}]},"status_code":200}'
    line = b'{"custom_id":"n-0","response":' + reply + b',"error":null}\n'
    files = {"output_file_id": "file-out", "error_file_id": "file-err"}
    times = {"completed_at": 1_770_000_000, "failed_at": None, "in_progress_at": None}
    counts = {"total": 2, "completed": None, "failed": None}
    batch = {"id": "batch_1", "endpoint": None, "status": "failed", "metadata": None, "request_counts": counts}
    batch |= {"object": "batch", **files, **times}
    answers = {"/v1/files/file-out/content": line, "/v1/files/file-err/content": b""}
    with odd_server(lambda _, path: answers.get(path, batch)) as url:
        provider = OpenAIProvider("sk-x", url, server=SERVERS["azure"])
        [result] = [provider.codec(SPEC).decode(one) for one in provider.fetch("batch_1")]
        report = provider.poll(["batch_1"])["batch_1"]
    assert (result.custom_id, result.outcome) == ("n-0", Outcome.SUCCEEDED)
    assert (report.status, report.total, report.done, report.failed) == (BatchStatus.FAILED, 2, None, None)


def test_a_token_is_asked_for_at_each_call_and_no_token_is_shown(emulator: Emulator) -> None:
    given = iter(TOKENS * 50)
    provider = azure(emulator, api_key=lambda: next(given))
    batch_id = submit(provider)
    emulator.settle()
    assert provider.poll([batch_id])[batch_id].status is BatchStatus.ENDED
    assert len(list(provider.fetch(batch_id))) == 3
    assert {call.key for call in emulator.books.calls} == set(TOKENS)
    echo = WireFault(
        kind="status", status=400, route="POST /v1/batches", message=f"bad {TOKENS[0]} {TOKENS[1]}", times=1
    )
    emulator.inject(echo)
    with pytest.raises(RefusedError) as refused:
        submit(provider, OTHER_TAG)
    assert "bad *** ***" in str(refused.value)


def test_the_first_token_is_masked_in_the_first_results_that_are_read() -> None:
    """Read in a process that has not requested a token yet."""
    line = b'{"custom_id":"n-0","response":{"status_code":400,"body":"' + TOKENS[0].encode() + b'"},"error":null}\n'
    batch = {"id": "batch_1", "object": "batch", "status": "completed", "output_file_id": "file-1"}
    with odd_server(lambda _, path: line if path.endswith("/content") else batch) as url:
        provider = OpenAIProvider(lambda: TOKENS[0], url, server=SERVERS["azure"])
        assert b"".join(provider.fetch("batch_1")) == line.replace(TOKENS[0].encode(), b"***")


@pytest.mark.parametrize("token", ["", "a token", None, OSError("no identity here")])
def test_without_a_token_nothing_is_sent(emulator: Emulator, token) -> None:
    def make_token() -> str:
        if isinstance(token, OSError):
            raise token
        return token

    with pytest.raises(CredentialsError, match="The token provider of 'azure_eu' gave no token"):
        submit(azure(emulator, api_key=make_token, name="azure_eu"))
    assert emulator.books.calls == []


def first_token() -> str:
    return TOKENS[0]


@pytest.mark.parametrize("given", [first_token, f"{__name__}:first_token"], ids=["function", "path"])
def test_a_token_provider_goes_through_dagster(emulator: Emulator, tmp_path, given) -> None:
    settings = {"base_url": emulator.azure_base_url, "token_provider": given}
    seen: list[str] = []

    @dg.asset
    def asks(llm: LLMBatchResource) -> None:
        for name in ("short", "azure"):
            provider = llm.openai.provider() if name == "short" else llm.make_providers(tmp_path)[name]
            seen.append(submit(provider, f"tag-{name}"))

    llm = LLMBatchResource(
        openai=preset("azure", **settings), providers={"azure": AzureOpenAIBatchResource(**settings)}
    )
    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize([asks], resources={"llm": llm}, instance=instance).success
    assert {call.key for call in emulator.books.calls} == {TOKENS[0]}
    assert len(seen) == 2


# Refusals when definitions load


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("azur", {}, "there is no preset 'azur'; did you mean 'azure'?"),
        ("azure", {"api_key": "k"}, "as in 'https://RESOURCE.openai.azure.com/openai/v1'"),
        ("azure", {"base_url": AZURE}, "takes no call without a key"),
        ("azure", {"base_url": AZURE, "api_key": "k", "token_provider": first_token}, "not both"),
        ("azure", {"base_url": AZURE, "api_key": "k", "completion_window": "7d"}, "it takes 24h."),
        ("doubleword", {"api_key": "k", "completion_window": "2h"}, "it takes 24h or 1h."),
        ("groq", {"api_key": "k", "completion_window": "8d"}, "it takes anything from 24h to 7d."),
        ("vllm", {}, "Give base_url, as in 'https://llm.internal/v1'."),
    ],
)
def test_what_a_server_does_not_take_is_refused_when_definitions_load(name, settings, said) -> None:
    with pytest.raises(ConfigError) as refused:
        preset(name, **settings)
    assert said in str(refused.value)


def test_windows_between_are_taken() -> None:
    assert preset("groq", api_key="k", completion_window="36h").provider().window == timedelta(hours=36)


def test_a_server_name_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="there is no server 'grok'; did you mean 'groq'"):
        OpenAIBatchResource(api_key="k", server="grok")


@pytest.mark.parametrize("given", ["no_such_module:token", "os:no_such_name", "token", "os:sep"])
def test_a_path_that_names_no_function_says_so(given) -> None:
    with pytest.raises(ConfigError, match="token_provider="):
        preset("azure", base_url=AZURE, token_provider=given).provider()


def test_an_endpoint_that_the_server_has_no_batches_of_is_refused_before_anything_is_sent() -> None:
    embeddings = RequestSpec("m", ResponseFormat(ResponseKind.EMBEDDING), Endpoint.EMBEDDINGS)
    with pytest.raises(
        ConfigError, match=r"'embeddings' are not supported here at Azure OpenAI .*; supported: chat, resp"
    ):
        preset("azure", base_url=AZURE, api_key="k").provider().codec(embeddings)


def test_an_endpoint_that_a_preset_lacks_is_refused_when_its_assets_are_declared() -> None:
    asked = {"rows": list, "key": "id", "prompt": Prompt(user="{{ text }}"), "response": str}
    with pytest.raises(ConfigError, match="'responses' are not supported here at Groq; supported: chat"):
        llm_batch_assets(name="labels", model="groq/llama", endpoint="responses", **asked)
    # A fallback's endpoint, too. A name of the user's own shows its server only at the plan.
    fallback = Fallback("azure/mine", endpoint="embeddings")
    embedding = {**asked, "response": Embedding()}
    with pytest.raises(ConfigError, match="Azure OpenAI"):
        llm_batch_assets(name="labels", model="openai/e", resend=Resend(fallback=(fallback,)), **embedding)
    llm_batch_assets(name="labels", model="my-groq/llama", endpoint="responses", **asked)
    with pytest.raises(
        ConfigError, match=r"providers\['groq'\] is of the server 'openai', and 'groq' is the name of a"
    ):
        LLMBatchResource(providers={"groq": OpenAIBatchResource(api_key="x", base_url="https://h/v1")})
    assert LLMBatchResource(providers={"groq": preset("groq", api_key="x")})


def test_a_servers_own_end_of_replies_is_in_estimates(tmp_path) -> None:
    def bound(**params: object) -> int | None:
        providers = {"parasail": preset("parasail", api_key="x")}
        resource = LLMBatchResource(
            providers=providers, ledger_url=f"sqlite:///{tmp_path}/l.sqlite", payload_root=str(tmp_path)
        )
        labeling = Labeling(
            asset="a", model="parasail/m", key="id", prompt=Prompt(user="{{ text }}"), response=str, params=params
        )
        return resource.engine().preview(labeling, [{"id": "1", "text": "a"}], partition="").output_bound

    assert bound() == 8_192
    assert bound(max_completion_tokens=50) == 50


def test_limits_are_the_servers() -> None:
    def limits(name: str, **more) -> tuple[int, int]:
        found = preset(name, api_key="k", **more).provider().codec(SPEC).limits
        return found.max_requests, found.max_bytes

    assert limits("azure", base_url=AZURE) == (100_000, 200_000_000)
    assert limits("groq") == (50_000, 100_000_000)
    assert limits("dashscope") == (50_000, 500_000_000)


# Prices


@pytest.mark.parametrize("name", ["vllm", "aibrix", "ogx"])
def test_a_server_of_ones_own_needs_no_key_and_costs_nothing(name) -> None:
    provider = preset(name, base_url="http://llm.internal/v1").provider()
    assert provider.price_book is None


@pytest.mark.parametrize(
    ("name", "model", "basis"),
    [
        ("azure", "gpt-4o", PriceBasis.BATCH),
        ("groq", "openai/gpt-oss-120b", PriceBasis.BATCH),
        ("deepinfra", "m", PriceBasis.UNKNOWN),
        ("parasail", "m", PriceBasis.UNKNOWN),
        ("dashscope", "m", PriceBasis.UNKNOWN),
    ],
)
def test_a_price_that_the_book_lacks_is_unknown_and_never_the_standard_one(name, model, basis) -> None:
    book = SERVERS[name].price_book.value
    assert tariff(book or "", model, datetime(2026, 11, 24, tzinfo=UTC)).basis is basis


def test_every_value_has_a_source_with_a_date_or_a_version() -> None:
    for name, server in SERVERS.items():
        facts = [fact for fact in [*vars(server).values(), *server.quirks] if hasattr(fact, "source")]
        assert len(facts) >= 3, name
        for fact in facts:
            assert any(char.isdigit() for char in fact.source) or "your own" in fact.source, (name, fact)
