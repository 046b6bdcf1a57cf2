"""Vertex AI by way of BigQuery tables, over the SDKs and a socket: the same abilities as with a bucket."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
from google.api_core.exceptions import NotFound
from google.cloud import bigquery
from google.oauth2.credentials import Credentials
from google_emulator import vertex, vertex_in_tables

from dagster_llm_batch.core.identity import make_request
from dagster_llm_batch.errors import AmbiguousError, ConfigError, RefusedError, TransientError
from dagster_llm_batch.providers.answers import UnknownIdError
from dagster_llm_batch.providers.google import vertex_bigquery as vertex_tables
from dagster_llm_batch.providers.google.files import upload_copy
from dagster_llm_batch.providers.google.vertex_batches import inputs_of, output_of
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, BatchFault, Emulator, RowFault, WireFault, lost_create_reply
from dagster_llm_batch.types import BatchStatus, Outcome, RequestSpec

SPEC = RequestSpec("gemini-2.5-flash", params={"max_output_tokens": 50})
CREATE = "POST /vertex/*/batchPredictionJobs"
LOAD = "POST /bigquery/upload/*"
ROWS = "GET /bigquery/*/data"


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as one:
        yield one


def request_file(provider, rows: int, text: str = "text") -> io.BytesIO:
    codec = provider.codec(SPEC)
    lines = [codec.encode(make_request(None, f"{text} {n}"), f"r-{n:04}") for n in range(rows)]
    return io.BytesIO(b"".join(lines))


def client(emulator: Emulator) -> bigquery.Client:
    options = {"api_endpoint": emulator.bigquery_url}
    return bigquery.Client("p", credentials=Credentials(token=DEFAULT_KEY), client_options=options)


def outcomes(provider, batch_id: str) -> dict[str, Outcome]:
    codec = provider.codec(SPEC)
    results = [codec.decode(line) for line in provider.fetch(batch_id)]
    assert len({one.custom_id for one in results}) == len(results)
    return {one.custom_id: one.outcome for one in results}


def test_ids_that_the_input_table_has_come_back_in_the_output_table(emulator):
    provider = vertex_in_tables(emulator)
    emulator.inject(RowFault(containing="text 3", status_code=503))
    batch_id = provider.submit(request_file(provider, 5), SPEC, "dlb-1234-r0")
    emulator.settle()
    wanted = {f"r-{n:04}": Outcome.ERRORED if n == 3 else Outcome.SUCCEEDED for n in range(5)}
    assert outcomes(provider, batch_id) == wanted
    [report] = provider.poll([batch_id]).values()
    assert (report.status, report.done, report.failed) == (BatchStatus.ENDED, 5, 1)


def test_the_job_names_tables_of_its_own_that_hold_id_and_request_alone(emulator):
    provider = vertex_in_tables(emulator)
    batch_ids = [provider.submit(request_file(provider, 2), SPEC, "dlb-1234-r0") for _ in range(2)]
    first, second = (provider._batch(batch_id) for batch_id in batch_ids)
    assert first["inputConfig"] == second["inputConfig"], "an equal request table is written once more, not beside"
    assert first["outputConfig"] != second["outputConfig"]
    table = client(emulator).get_table(first["inputConfig"]["bigquerySource"]["inputUri"].removeprefix("bq://"))
    assert table.table_id.startswith("dlb_1234_r0_")
    assert [(column.name, column.field_type) for column in table.schema] == [
        ("custom_id", "STRING"),
        ("request", "JSON"),
    ]
    other = provider._batch(provider.submit(request_file(provider, 3), SPEC, "dlb-1234-r0"))
    assert other["inputConfig"] != first["inputConfig"], "other rows have a table of their own"


def test_pages_and_uploads_larger_than_a_part_arrive_whole(emulator):
    provider = vertex_in_tables(emulator, timeout_seconds=60.0, table_page_rows=50)
    batch_id = provider.submit(request_file(provider, 120, text="x" * 100_000), SPEC, "t")  # beyond 5 MB: resumable
    emulator.settle()
    assert set(outcomes(provider, batch_id).values()) == {Outcome.SUCCEEDED}
    calls = [(call.method, call.path.rpartition("/")[2]) for call in emulator.books.calls]
    assert ("PUT", "jobs") in calls
    assert calls.count(("GET", "data")) == 3


@pytest.mark.parametrize("how", ["500", "close"])
def test_a_lost_reply_is_ambiguous_and_the_batch_is_found(emulator, how):
    provider = vertex_in_tables(emulator)
    emulator.inject(lost_create_reply(how, route=CREATE))
    with pytest.raises(AmbiguousError):
        provider.submit(request_file(provider, 3), SPEC, "dlb-tag")
    emulator.settle()
    [batch] = emulator.books.batches
    assert len(outcomes(provider, batch.id)) == 3


def test_a_table_of_a_create_that_was_refused_is_removed(emulator):
    provider = vertex_in_tables(emulator)
    emulator.inject(WireFault(kind="status", route=CREATE, status=400))
    with pytest.raises(RefusedError):
        provider.submit(request_file(provider, 3), SPEC, "t")
    assert [call.path.partition("/tables/")[2][:2] for call in emulator.books.calls if call.method == "DELETE"] == [
        "t_"
    ]


def test_a_load_that_fails_creates_no_batch(emulator):
    missing = vertex_in_tables(emulator, bigquery_dataset="elsewhere")
    with pytest.raises(RefusedError, match="elsewhere"):
        missing.submit(request_file(missing, 3), SPEC, "t")
    provider = vertex_in_tables(emulator)
    emulator.inject(WireFault(kind="status", route=LOAD, status=503, times=None))
    with pytest.raises(TransientError):
        provider.submit(request_file(provider, 3), SPEC, "t")
    assert emulator.books.batches == []


@pytest.mark.parametrize("kind", ["expires", "cancels"])
def test_a_job_cut_short_keeps_the_rows_that_finished(emulator, kind):
    provider = vertex_in_tables(emulator)
    emulator.inject(BatchFault(kind=kind, fraction=0.5))
    batch_id = provider.submit(request_file(provider, 10), SPEC, "t")
    emulator.settle()
    assert list(outcomes(provider, batch_id).values()) == [Outcome.SUCCEEDED] * 5


def test_a_job_that_wrote_no_table_has_no_results(emulator):
    provider = vertex_in_tables(emulator)
    emulator.inject(BatchFault(kind="fails", code="13"))
    batch_id = provider.submit(request_file(provider, 2), SPEC, "t")
    emulator.settle()
    assert outcomes(provider, batch_id) == {}


def test_a_table_of_results_that_was_deleted_is_no_job_without_results(emulator):
    provider = vertex_in_tables(emulator)
    emulator.inject(BatchFault(kind="no_output_file"))
    batch_id = provider.submit(request_file(provider, 2), SPEC, "t")
    emulator.settle()
    with pytest.raises(UnknownIdError, match="they were deleted"):
        list(provider.fetch(batch_id))


def test_results_that_cannot_be_read_now_are_transient(emulator):
    provider = vertex_in_tables(emulator)
    batch_id = provider.submit(request_file(provider, 2), SPEC, "t")
    emulator.settle()
    emulator.inject(WireFault(kind="status", route=ROWS, status=503, times=None))
    with pytest.raises(TransientError):
        list(provider.fetch(batch_id))


def test_a_batch_made_by_way_of_the_other_place_is_fetched_all_the_same(emulator):
    provider = vertex_in_tables(emulator)
    batch_id = provider.submit(request_file(provider, 2), SPEC, "t")
    emulator.settle()
    moved = vertex(emulator, emulator.gemini_base_url, bigquery_url=emulator.bigquery_url)
    assert moved.account == provider.account
    assert len(outcomes(moved, batch_id)) == 2


@pytest.mark.parametrize("places", [{"bucket": None}, {"bigquery_dataset": "d"}])
def test_one_place_is_needed_and_not_two(emulator, places):
    with pytest.raises(ConfigError, match=r"bucket=.*bigquery_dataset="):
        vertex(emulator, emulator.gemini_base_url, **places)


def test_columns_of_text_are_read_as_the_json_that_they_hold():
    row = {"custom_id": "r", "request": '{"contents":[]}', "response": '{"candidates":[]}', "status": "", "x": None}
    read = json.loads(vertex_tables._line(row.items()))
    assert read == {"custom_id": "r", "request": {"contents": []}, "response": {"candidates": []}, "status": ""}


def test_tables_of_a_job_that_a_script_has_sent_are_never_deleted(emulator: Emulator) -> None:
    provider = vertex_in_tables(emulator)
    with upload_copy(request_file(provider, 3), SPEC.model) as (file, size):
        _, places = provider._upload(file, size, "all_our_tickets")
    job = {"displayName": "nightly", "model": "publishers/google/models/gemini-2.5-flash", **places}
    batch_id = provider._api.call("post", "batchPredictionJobs", "create a job", job)["name"]
    emulator.settle()
    uris = [places["inputConfig"]["bigquerySource"]["inputUri"]]
    uris += [places["outputConfig"]["bigqueryDestination"]["outputUri"]]
    provider.delete_request_file(batch_id)
    assert provider.delete(batch_id) == f"tables that were not made here stay: {', '.join(uris)}"
    for uri in uris:
        assert client(emulator).get_table(uri.removeprefix("bq://")).num_rows == 3
    own = provider.submit(request_file(provider, 3), SPEC, "dlb-0123abcd-r0123456789abcdef")
    emulator.settle()
    own_uris = inputs_of(provider._batch(own))[0], output_of(provider._batch(own))[0]
    assert provider.delete(own) is None
    for uri in own_uris:
        with pytest.raises(NotFound):
            client(emulator).get_table(uri.removeprefix("bq://"))
