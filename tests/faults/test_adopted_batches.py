"""A batch that was sent elsewhere is adopted: its answers become labels for equal bodies. Nothing is sent."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest

from dagster_llm_batch.core.documents import PDF
from dagster_llm_batch.core.identity import make_request
from dagster_llm_batch.engine import Labeling, Limits
from dagster_llm_batch.errors import ConfigError, InputError, LeaseError, LLMBatchError, TransientError
from dagster_llm_batch.files.shard_files import RAW, beside
from dagster_llm_batch.providers.registry import SERVER_FOLDERS
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.testing.emulator import BatchFault, WireFault
from dagster_llm_batch.types import Cause, Document
from dagster_llm_batch.upkeep.adopt import Adopter, Adoption
from dagster_llm_batch.upkeep.uploads import Removal, UploadRemover
from tests.faults.test_erased_at_vendors import stored_there
from tests.faults.vendor_workspace import ROWS, Servers, VendorWorkspace, rows
from tests.faults.vendors import VENDORS, Vendor
from tests.folder_servers import models_of
from tests.pdfs import pdf

WITH_BATCHES = [vendor for vendor in VENDORS if vendor.name != "command"]
OPENAI = WITH_BATCHES[0]
OTHER_MODELS = {
    "openai": "gpt-4o-mini",
    "anthropic": "claude-sonnet-4-5",
    "bedrock": "anthropic.claude-sonnet-4-5-20250929-v1:0",
    "vertex": "gemini-2.5-pro",
    "gemini": "gemini-2.5-pro",
    "openrouter": "openai/gpt-4o-mini",
    **{name: models_of(name)[1] for name in SERVER_FOLDERS},
}


@pytest.fixture(params=WITH_BATCHES, ids=lambda vendor: vendor.name)
def there(request: pytest.FixtureRequest, running: Servers, tmp_path: Path) -> Iterator[VendorWorkspace]:
    vendor: Vendor = request.param
    with closing(VendorWorkspace(vendor, running, tmp_path, 10.0)) as workspace:
        yield workspace


@pytest.fixture
def openai(running: Servers, tmp_path: Path) -> Iterator[VendorWorkspace]:
    with closing(VendorWorkspace(OPENAI, running, tmp_path, 10.0)) as workspace:
        yield workspace


@pytest.fixture(params=["openai", "anthropic", "gemini"])
def reader(request: pytest.FixtureRequest, running: Servers, tmp_path: Path) -> Iterator[VendorWorkspace]:
    """Give a workspace at a vendor that takes documents in requests, and stores them."""
    [vendor] = [one for one in WITH_BATCHES if one.name == request.param]
    with closing(VendorWorkspace(vendor, running, tmp_path, 10.0)) as workspace:
        yield workspace


def with_papers() -> pl.DataFrame:
    """Return the rows, each with a document of its own."""
    return rows().with_columns(paper=pl.Series([pdf(1, mark=str(number)) for number in range(ROWS)]))


def reading(workspace: VendorWorkspace, way: Literal["file", "upload", "text"]) -> Labeling:
    prompt = replace(workspace.definition.prompt, documents=["paper"], documents_as=way)
    return replace(workspace.definition, prompt=prompt)


def sent_elsewhere(
    workspace: VendorWorkspace, texts: Sequence[str] | None = None, papers: Sequence[bytes] = ()
) -> tuple[str, Path]:
    """Return a batch that a script has sent with its own ids, and the file that the script has kept."""
    spec = workspace.definition.spec
    codec = workspace.provider.codec(spec)
    asked = rows()["text"].to_list() if texts is None else texts
    files = [(Document(PDF, paper, pages=1),) for paper in papers] or [()] * len(asked)
    requests = [make_request(None, text, documents=one) for text, one in zip(asked, files, strict=True)]
    lines = [codec.encode(one, f"theirs-{number}") for number, one in enumerate(requests)]
    kept = workspace.folder / "kept.jsonl"
    # Another program writes the same JSON in this way.
    kept.write_text("".join(json.dumps(json.loads(line), sort_keys=True) + "\n" for line in lines))
    return workspace.provider.submit(io.BytesIO(b"".join(lines)), spec, "a-script-of-theirs"), kept


@contextmanager
def looked(workspace: VendorWorkspace, batch_id: str, kept: Path, **more: Any) -> Iterator[tuple[Adopter, Adoption]]:
    definition = more.pop("definition", workspace.definition)
    adopter = Adopter(definition, workspace.engine().deployment)
    table = more.pop("table", rows())
    given = {"partition": "", "batch_id": batch_id, "request_file": kept, **more}
    with adopter.look(table, **given) as adoption:
        yield adopter, adoption


def adopt(workspace: VendorWorkspace, batch_id: str, kept: Path, **more: Any) -> Submission:
    with looked(workspace, batch_id, kept, **more) as (adopter, adoption):
        return adopter.store(adoption)


def created(workspace: VendorWorkspace) -> int:
    return len(workspace.emulator.books.batches)


def stored(workspace: VendorWorkspace) -> list[str]:
    return [file.path for file in workspace.engine().payloads.files("faults")]


def refusal(workspace: VendorWorkspace, batch_id: str, kept: Path, **more: Any) -> str:
    """Return the error of a refused adoption, and assert that it leaves no files or submissions."""
    files, submissions = stored(workspace), workspace.engine().ledger.submissions.list_all("faults")
    with pytest.raises(LLMBatchError) as refused:
        adopt(workspace, batch_id, kept, **more)
    assert stored(workspace) == files
    assert workspace.engine().ledger.submissions.list_all("faults") == submissions
    assert "Nothing was changed" in str(refused.value)
    return str(refused.value)


def test_answers_of_a_batch_that_was_sent_elsewhere_land_and_nothing_is_sent(there: VendorWorkspace) -> None:
    batch_id, kept = sent_elsewhere(there)
    there.settle()
    before = created(there)
    with looked(there, batch_id, kept) as (adopter, adoption):
        assert (adoption.requests, adoption.matched, adoption.answered, adoption.unused) == (ROWS, ROWS, ROWS, 0)
        submission = adopter.store(adoption)
    engine = there.engine()
    assert engine.advance(there.definition, submission.submission_id).is_settled
    labeled = engine.labels(there.definition, submission.submission_id)
    assert (labeled.labels.num_rows, labeled.rejects.num_rows) == (ROWS, 0)
    assert set(labeled.labels["llm_batch_id"].to_pylist()) == {batch_id}
    # The same rows have their submission now, and the vendor got no further batch.
    assert engine.plan(there.definition, rows()).submission_id == submission.submission_id
    assert created(there) == before
    # The sender owns the files of the batch.
    there.pass_time(40 * 86_400.0)
    remover = UploadRemover(there.engine().deployment)
    assert remover.remove_files() == remover.remove_results(timedelta(days=1)) == Removal()
    assert f"Batch {batch_id} was adopted already, as submission {submission.submission_id}" in refusal(
        there, batch_id, kept
    )
    assert "was adopted already" in refusal(there, batch_id, kept, partition="another")


def test_a_batch_with_documents_in_its_requests_is_adopted(reader: VendorWorkspace) -> None:
    batch_id, kept = sent_elsewhere(reader, papers=with_papers()["paper"].to_list())
    reader.settle()
    definition = reading(reader, "file")
    # The same texts with documents of other rows.
    swapped = with_papers().with_columns(pl.col("paper").reverse())
    assert "so its answers are for other rows" in refusal(reader, batch_id, kept, definition=definition, table=swapped)
    submission = adopt(reader, batch_id, kept, definition=definition, table=with_papers())
    assert reader.engine().advance(definition, submission.submission_id).is_settled
    assert reader.engine().labels(definition, submission.submission_id).labels.num_rows == ROWS


def test_a_dataset_that_uploads_its_documents_adopts_no_batch(reader: VendorWorkspace) -> None:
    batch_id, kept = sent_elsewhere(reader)
    reader.settle()
    said = refusal(reader, batch_id, kept, definition=reading(reader, "upload"), table=with_papers())
    assert "uploads its documents" in said
    assert "documents_as='file'" in said


def test_rows_without_an_equal_body_land_without_a_label_and_wait_for_a_person(there: VendorWorkspace) -> None:
    texts = rows()["text"].to_list()
    batch_id, kept = sent_elsewhere(there, [*texts[3:], "Of no row here."])
    there.settle()
    before = created(there)
    with looked(there, batch_id, kept) as (adopter, adoption):
        counts = (adoption.matched, adoption.answered, adoption.lines, adoption.unused)
        assert counts == (ROWS - 3, ROWS - 3, ROWS - 2, 1)
        submission = adopter.store(adoption)
    engine = there.engine()
    assert engine.advance(there.definition, submission.submission_id).is_settled
    labeled = engine.labels(there.definition, submission.submission_id)
    assert sorted(labeled.rejects["id"].to_pylist()) == ["t0", "t1", "t2"]
    assert set(labeled.rejects["llm_outcome"].to_pylist()) == {"missing"}
    assert "sent elsewhere and adopted, and has no answer" in labeled.rejects["llm_reason"][0].as_py()
    # Only on request, and only for these rows.
    assert engine.plan(there.definition, rows()).submission_id == submission.submission_id
    assert created(there) == before
    assert engine.preview(there.definition, rows(), again=True).to_send == 3


def test_a_batch_that_runs_is_adopted_when_it_has_ended(there: VendorWorkspace) -> None:
    batch_id, kept = sent_elsewhere(there)
    with pytest.raises(TransientError, match="is still"), looked(there, batch_id, kept):
        pass
    there.settle()
    adopt(there, batch_id, kept)


def test_another_accounts_batch_a_wrong_file_and_other_bodies_are_told_apart(there: VendorWorkspace) -> None:
    batch_id, kept = sent_elsewhere(there)
    there.settle()
    wrong_id = batch_id[:-4] + "0000"
    assert "another account's, or its id is wrong" in refusal(there, wrong_id, kept)
    # Another prompt: equal ids, other bodies.
    other = replace(there.definition, prompt=replace(there.definition.prompt, user="Say: {{ text }}"))
    assert "so its answers are for other rows" in refusal(there, batch_id, kept, definition=other)
    # Another model, named in the lines, or only in the batch.
    vendor = there.vendor.name
    other = replace(there.definition, model=f"{vendor}/{OTHER_MODELS[vendor]}")
    said = (
        "so its answers are for other rows"
        if vendor in ("openai", "anthropic", "openrouter", *SERVER_FOLDERS)
        else "The batch asked the model"
    )
    assert said in refusal(there, batch_id, kept, definition=other)
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    for number, line in enumerate(lines):
        line[next(name for name in ("custom_id", "key", "recordId") if name in line)] = f"of-another-file-{number}"
    another = there.folder / "another.jsonl"
    another.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert "it is another batch's file" in refusal(there, batch_id, another)
    for name, content in {"empty": "", "prose": "Dear reader\n", "table": '{"id": 1, "text": "a"}\n'}.items():
        odd = there.folder / name
        odd.write_text(content)
        with pytest.raises(InputError):
            adopt(there, batch_id, odd)
    with pytest.raises(InputError, match="cannot be read"):
        adopt(there, batch_id, there.folder / "not-there")


def test_a_batch_of_our_own_and_a_partition_under_way_are_refused(openai: VendorWorkspace) -> None:
    engine = openai.engine()
    submission_id = engine.plan(openai.definition, rows()).submission_id
    engine.submit(openai.definition, submission_id)
    [shard] = engine.ledger.shards.of_submission(submission_id)
    batch_id, kept = sent_elsewhere(openai)
    openai.settle()
    assert "is one of our own" in refusal(openai, shard.batch.batch_id or "", kept)
    assert f"is under way, as submission {submission_id}" in refusal(openai, batch_id, kept)
    while not engine.advance(openai.definition, submission_id).is_settled:
        openai.settle()
    assert "were asked already" in refusal(openai, batch_id, kept)


def test_a_batch_that_failed_is_told_with_the_vendors_words(openai: VendorWorkspace) -> None:
    openai.emulator.inject(BatchFault(kind="fails"))
    batch_id, kept = sent_elsewhere(openai)
    openai.settle()
    assert "failed as a whole, so it has no answers to adopt" in refusal(openai, batch_id, kept)


def test_what_a_killed_process_has_adopted_goes_on_and_what_it_had_not_can_be_adopted(openai: VendorWorkspace) -> None:
    batch_id, kept = sent_elsewhere(openai)
    openai.settle()
    submission = adopt(openai, batch_id, kept)
    left = stored(openai)
    # The process was killed before the ledger's record: the files exist.
    with sqlite3.connect(openai.folder / "ledger.sqlite") as ledger:
        for table in ("bill", "shard", "batch", "event", "submission"):
            ledger.execute(f"DELETE FROM {table}")
    assert adopt(openai, batch_id, kept).submission_id == submission.submission_id
    assert stored(openai) == left
    # Killed right after the record: the next run collects the batch. Nothing is left to send.
    before = created(openai)
    shards = openai.engine().ledger.shards.of_submission(submission.submission_id)
    assert {(shard.cause, shard.state.value) for shard in shards} == {(Cause.ADOPTED, "ended")}
    assert openai.engine().advance(openai.definition, submission.submission_id).is_settled
    assert created(openai) == before


@pytest.mark.parametrize("is_there", [True, False], ids=["there", "not there"])
def test_stored_answers_that_are_lost_before_they_are_collected_leave_the_batch_its_senders(
    openai: VendorWorkspace, is_there: bool
) -> None:
    batch_id, kept = sent_elsewhere(openai)
    openai.settle()
    submission = adopt(openai, batch_id, kept)
    [shard] = openai.engine().ledger.shards.of_submission(submission.submission_id)
    openai.engine().payloads.delete(beside(shard, RAW))
    if not is_there:
        openai.emulator.inject(WireFault(kind="status", route="GET /v1/files/*/content", status=404, times=None))
    settled = openai.engine().advance(openai.definition, submission.submission_id)
    assert settled.submission.outcomes == {"missing": ROWS}
    [reason] = set(
        openai.engine().labels(openai.definition, submission.submission_id).rejects["llm_reason"].to_pylist()
    )
    assert "the stored file of the answers is lost" in reason
    openai.pass_time(40 * 86_400.0)
    remover = UploadRemover(openai.engine().deployment)
    assert remover.remove_files() == remover.remove_results(timedelta(days=1)) == Removal()


def test_a_batch_that_two_adopt_at_once_is_adopted_once(openai: VendorWorkspace) -> None:
    batch_id, kept = sent_elsewhere(openai)
    openai.settle()
    with looked(openai, batch_id, kept) as (adopter, adoption):
        with pytest.raises(LeaseError):
            adopt(openai, batch_id, kept)
        submission = adopter.store(adoption)
    assert "was adopted already" in refusal(openai, batch_id, kept)
    assert openai.engine().ledger.submissions.list_all("faults") == [submission]
    assert openai.engine().advance(openai.definition, submission.submission_id).submission.outcomes == {
        "succeeded": ROWS
    }


@pytest.mark.parametrize("is_landed", [False, True], ids=["under way", "landed"])
def test_a_partition_that_a_run_plans_while_a_person_is_asked_is_refused(
    openai: VendorWorkspace, *, is_landed: bool
) -> None:
    batch_id, kept = sent_elsewhere(openai)
    openai.settle()
    engine = openai.engine()
    with looked(openai, batch_id, kept) as (adopter, adoption):
        submission_id = engine.plan(openai.definition, rows()).submission_id
        while is_landed and not engine.advance(openai.definition, submission_id).is_settled:
            openai.settle()
        files = [path for path in stored(openai) if adoption.submission.submission_id not in path]
        with pytest.raises(ConfigError, match="asked already" if is_landed else "under way"):
            adopter.store(adoption)
    # The adoption's own files are gone, and the planned submission continues.
    assert stored(openai) == files
    assert [one.submission_id for one in engine.ledger.submissions.list_all("faults")] == [submission_id]
    assert engine.ledger.submissions.get(submission_id).state.value == ("settled" if is_landed else "open")


def test_ids_that_name_two_requests_name_none_and_a_file_of_another_size_is_refused(openai: VendorWorkspace) -> None:
    batch_id, kept = sent_elsewhere(openai)
    openai.settle()
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    kept.write_text("".join(f"{json.dumps(line)}\n" for line in lines[:-1]))
    assert f"has {ROWS - 1} requests, batch {batch_id} has {ROWS}: it is another batch's file" in refusal(
        openai, batch_id, kept
    )
    # A server may accept equal ids. The answer with this id could then belong to either request.
    lines[1]["custom_id"] = lines[0]["custom_id"]
    kept.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with looked(openai, batch_id, kept) as (_, adoption):
        assert (adoption.matched, adoption.answered) == (ROWS - 2, ROWS - 2)


def test_rows_of_more_shards_than_one_share_the_batch_and_a_create_calls_body_is_a_file(
    openai: VendorWorkspace,
) -> None:

    batch_id, kept = sent_elsewhere(openai)
    openai.settle()
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    kept.write_text(json.dumps({"requests": lines}, indent=2))
    small = replace(openai.definition, limits=Limits(max_requests_per_batch=5))
    submission = adopt(openai, batch_id, kept, definition=small)
    engine = openai.engine()
    assert engine.advance(small, submission.submission_id).submission.outcomes == {"succeeded": ROWS}
    assert len(engine.ledger.shards.of_submission(submission.submission_id)) == 3
    with pytest.raises(ConfigError, match="was adopted already"):
        adopt(openai, batch_id, kept)


def test_an_erasure_leaves_what_the_vendor_has_of_an_adopted_batch_and_says_so(
    there: VendorWorkspace, running: Servers
) -> None:
    batch_id, kept = sent_elsewhere(there)
    there.settle()
    submission = adopt(there, batch_id, kept)
    assert there.engine().advance(there.definition, submission.submission_id).is_settled
    before = stored_there(there, running, batch_id)
    eraser = there.engine().eraser
    [found] = eraser.find("labels", ["t5"], None)
    assert (found.rows, found.adopted) == (1, [batch_id])
    eraser.add_tombstones("labels", ["t5"], None)
    assert eraser.erase("labels") == []
    [copy] = eraser.erase_at_providers("labels")
    assert (copy.batch_id, copy.is_ours) == (batch_id, False)
    assert "adopted" in (copy.left or "")
    assert stored_there(there, running, batch_id) == before
    # In the labels, the row is gone, and the others are unchanged.
    labeled = there.engine().labels(there.definition, submission.submission_id)
    assert sorted(labeled.labels["id"].to_pylist()) == sorted(set(rows()["id"]) - {"t5"})
