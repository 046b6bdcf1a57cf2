"""Mistral: OpenAI's files and rows, but Mistral's own jobs. The contract: `test_contract.py`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sample_batches import batch_file, odd_server

from dagster_llm_batch import Embedding, Moderation, Prompt, llm_batch_assets, preset
from dagster_llm_batch.core.pricing import tariff
from dagster_llm_batch.errors import AmbiguousError, ConfigError
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, RowFault, lost_create_reply
from dagster_llm_batch.types import (
    Absent,
    BatchStatus,
    Endpoint,
    FindHints,
    Found,
    Outcome,
    Request,
    RequestSpec,
    ResponseFormat,
    ResponseKind,
    Usage,
)

SPEC = RequestSpec("mistral-x")
TAG = "dlb-0a1b2c3d-r0123456789abcdef"
OTHER_TAG = "dlb-0a1b2c3d-rfedcba9876543210"


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


def mistral(emulator: Emulator) -> Provider:
    return preset("mistral", api_key=DEFAULT_KEY, base_url=emulator.base_url("mistral")).provider()


def submit(provider: Provider, tag: str = TAG) -> str:
    return provider.submit(batch_file(provider.codec(SPEC)), SPEC, tag)


def hints() -> FindHints:
    return FindHints(datetime.now(UTC) - timedelta(seconds=1), 3, "n")


def test_moderations_are_refused_when_assets_are_declared_and_vectors_are_not() -> None:
    asked = {"rows": list, "key": "id", "prompt": Prompt(user="{{ text }}")}
    with pytest.raises(ConfigError, match="'moderations' are not supported here at Mistral; supported: chat, embeddi"):
        llm_batch_assets(name="labels", model="mistral/moderate", response=Moderation(), **asked)
    llm_batch_assets(name="labels", model="mistral/mistral-embed", response=Embedding(), **asked)


def test_vectors_of_mistral_are_read_by_their_rows_whatever_their_index_is(emulator) -> None:
    provider = mistral(emulator)
    spec = RequestSpec("codestral-embed", ResponseFormat(ResponseKind.EMBEDDING, dimensions=8), Endpoint.EMBEDDINGS)
    codec = provider.codec(spec)
    lines = [codec.encode(Request(f"r{n}", None, f"text {n}"), f"n-{n}") for n in range(3)]
    assert json.loads(lines[0])["body"] == {
        "model": "codestral-embed",
        "encoding_format": "float",
        "output_dimension": 8,
        "input": "text 0",
    }
    batch_id = provider.submit(io.BytesIO(b"".join(lines)), spec, TAG)
    emulator.settle()
    raw = [json.loads(line) for line in provider.fetch(batch_id)]
    assert sorted(row["response"]["body"]["data"][0]["index"] for row in raw) == [0, 1, 2]
    results = {one.custom_id: one for one in map(codec.decode, provider.fetch(batch_id))}
    alone = {f"n-{n}": codec.decode(provider.respond(line)).embedding for n, line in enumerate(lines)}
    assert {name: list(one.embedding) for name, one in results.items()} == {
        name: list(vector) for name, vector in alone.items()
    }
    assert len({tuple(vector) for vector in alone.values()}) == 3
    assert {len(vector) for vector in alone.values()} == {8}


@pytest.mark.parametrize(("model", "usd"), [("mistral-embed", "0.05"), ("codestral-embed", "0.075")])
def test_vectors_of_mistral_cost_half_of_the_standard_price(model, usd) -> None:
    prices = tariff("mistral", model, datetime(2026, 11, 1, tzinfo=UTC))
    assert prices.price(Usage(1_000_000, 0)).cost_usd == Decimal(usd)


def test_a_row_that_failed_at_mistral_is_read_with_its_reason_and_a_timeout_keeps_what_was_answered(emulator) -> None:
    emulator.inject(RowFault(containing="two", status_code=400, message="no such thing"))
    provider = mistral(emulator)
    batch_id = submit(provider)
    emulator.settle()
    report = provider.poll([batch_id])[batch_id]
    results = {one.custom_id: one for one in map(provider.codec(SPEC).decode, provider.fetch(batch_id))}
    assert (report.status, report.total, report.done, report.failed) == (BatchStatus.ENDED, 3, 3, 1)
    assert results["n-1"].outcome is Outcome.ERRORED
    assert "no such thing" in results["n-1"].reason
    assert {results[name].outcome for name in ("n-0", "n-2")} == {Outcome.SUCCEEDED}


def test_a_job_of_mistral_whose_create_call_gave_no_answer_is_found_and_not_made_twice(emulator) -> None:
    emulator.inject(lost_create_reply("500", route="POST /mistral/v1/batch/jobs"))
    provider = mistral(emulator)
    with pytest.raises(AmbiguousError):
        submit(provider)
    [created] = emulator.books.batches
    assert provider.find(TAG, hints()) == Found(created.id)
    assert provider.find(OTHER_TAG, hints()) == Absent()


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("QUEUED", BatchStatus.PENDING),
        ("RUNNING", BatchStatus.RUNNING),
        ("SUCCESS", BatchStatus.ENDED),
        ("FAILED", BatchStatus.FAILED),
        ("TIMEOUT_EXCEEDED", BatchStatus.EXPIRED),
        ("CANCELLATION_REQUESTED", BatchStatus.CANCELING),
        ("CANCELLED", BatchStatus.CANCELED),
        ("A_NEW_WORD", BatchStatus.RUNNING),
    ],
)
def test_the_words_of_mistrals_jobs_are_read(word, status) -> None:
    job = {"id": "job-1", "object": "batch", "status": word, "errors": [{"message": "bad file", "count": 2}]}
    with odd_server(lambda _, _path: job) as url:
        report = preset("mistral", api_key="k", base_url=url).provider().poll(["job-1"])["job-1"]
    assert report.status is status
    assert (report.reason == "bad file") == (word == "FAILED")


def test_mistrals_list_is_read_over_its_numbered_pages(emulator) -> None:
    provider = mistral(emulator)
    provider._page_size = 2
    ids = [submit(provider, f"tag-{number}") for number in range(5)]
    assert provider.find("tag-0", hints()) == Found(ids[0])
    assert set(provider.poll(ids)) == set(ids)
