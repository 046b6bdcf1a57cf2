"""`cancel`, `resolve` and `retry` do what was asked, once, after they have asked; `export` writes what came of it."""

from __future__ import annotations

import csv
import json

import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk
from project import DAYS
from tfrecord import tfrecord_iterator

from dagster_llm_batch.testing.emulator import RowFault, WireFault

UNLISTED = WireFault(kind="status", status=503, route="GET /v1/batches", times=None)


def in_doubt(project, when):
    """Submit with a create call of unknown end; the shard that waits for a person's word."""
    project.emulator.inject(WireFault(kind="close", route="POST /v1/batches", when=when), UNLISTED)
    project.submit()
    project.emulator.clear_faults()
    [orphan] = project.json("resolve")["orphans"]
    return orphan["shard"]["shard_id"]


@pytest.mark.parametrize("answer", ["n\n", ""], ids=["no", "no terminal"])
def test_cancel_asks_first_and_without_a_yes_changes_nothing(project, answer):
    project.submit()
    result = project.on_file("cancel", "ticket_labels", code=1, input=answer)
    assert "Cancel submission" in result.stderr
    assert project.json("show", "ticket_labels")["submission"]["state"] == "open"


def test_cancel_stops_one_partition_and_leaves_its_neighbour(project):
    project.submit("daily_labels", DAYS[0])
    project.submit("daily_labels", DAYS[1])
    document = project.json("cancel", "daily_labels", "-p", DAYS[0], "--yes")
    assert document["submission"]["state"] == "canceled"
    assert project.json("show", "daily_labels", "-p", DAYS[1])["submission"]["state"] == "open"
    assert sum(call.path.endswith("/cancel") for call in project.emulator.books.calls) == 2  # its two batches


def test_cancel_of_what_is_settled_is_refused_and_says_so(project):
    project.land()
    assert "cannot become 'canceled'" in project.on_file("cancel", "ticket_labels", "--yes", code=1).stderr


def test_cancel_stops_nothing_that_the_provider_does_not_let_it_see_and_says_so(project):
    shard = in_doubt(project, "after")
    project.emulator.inject(WireFault(kind="status", status=403, route="GET /v1/batches", times=None))
    assert "CredentialsError" in project.on_file("cancel", "ticket_labels", "--yes", code=1).stderr
    assert project.json("resolve")["orphans"][0]["shard"]["shard_id"] == shard


def test_resolve_lists_shards_in_doubt_by_definitions_and_by_address(project):
    project.submit()
    assert project.on_file("resolve").stdout == "No shard is in doubt.\n"
    project.change('"You label tickets."', '"You label other tickets."')
    shard = in_doubt(project, "after")
    text = project.cli("resolve", *project.by_address).stdout
    assert shard in text
    assert "ticket_labels" in text


@pytest.mark.parametrize("exists", [True, False], ids=["batch", "no batch"])
def test_a_resolved_shard_goes_on_and_nothing_is_paid_twice(project, exists):
    shard = in_doubt(project, "after" if exists else "before")
    word = ["--batch-id", project.emulator.books.batches[0].id] if exists else ["--no-batch"]
    result = project.cli("resolve", shard, *word, *project.by_address)
    assert ("submitted" if exists else "planned") in result.stdout
    project.settle()
    assert project.json("show", "ticket_labels")["submission"]["outcomes"] == {"succeeded": 3}
    assert len(project.emulator.books.batches) == 1
    assert project.emulator.books.billed_twice() == {}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--no-batch"], 2, "Name the shard"),
        (["abcd"], 2, "Give either --batch-id"),
        (["abcd", "--no-batch", "--batch-id", "batch_1"], 2, "Give either --batch-id"),
        (["abcd", "--no-batch"], 1, "The ledger has no shard abcd"),
    ],
)
def test_a_word_that_is_not_clear_is_refused(project, arguments, code, said):
    project.submit()
    assert said in project.on_file("resolve", *arguments, code=code).stderr


def test_a_shard_that_is_not_in_doubt_cannot_be_resolved(project):
    project.submit()
    [shard] = project.json("show", "ticket_labels")["shards"]
    assert "IllegalMoveError" in project.on_file("resolve", shard["shard_id"], "--no-batch", code=1).stderr


def test_retry_asks_for_the_rows_without_a_label_after_it_showed_what_that_may_cost(project):
    project.emulator.inject(RowFault(containing="all 1", status_code=400))
    project.land()
    project.emulator.clear_faults()
    refused = project.on_file("retry", "ticket_labels", code=1, input="n\n")
    assert "Send 1 requests?" in refused.stderr
    assert len(project.emulator.books.batches) == 1
    document = project.json("retry", "ticket_labels", "--yes")
    assert document["plans"][0]["requests_to_send"] == 1
    assert document["submissions"][0]["submission"]["attempt"] == 2
    project.settle()
    assert project.json("show", "ticket_labels")["submission"]["outcomes"] == {"succeeded": 3}
    assert project.emulator.books.billed_twice() == {}


def test_retry_of_what_has_all_its_labels_sends_nothing(project):
    project.land()
    assert "Nothing to ask again." in project.on_file("retry", "ticket_labels").stdout
    assert project.json("retry", "ticket_labels")["submissions"] == []
    assert len(project.json("list", "--all")["submissions"]) == 1


def test_retry_that_a_budget_refuses_is_shown_and_not_asked_for(project):
    project.emulator.inject(RowFault(containing="all 1", status_code=400))
    project.land()
    project.change('"max_cost_usd": 1', '"max_cost_usd": 0.0001')
    result = project.on_file("retry", "ticket_labels", "--yes", code=1)
    assert "exceeds max_cost_usd=0.0001" in result.stdout
    assert len(project.emulator.books.batches) == 1


def test_retry_over_partitions_sends_only_those_that_lack_labels(project):
    project.emulator.inject(RowFault(containing=f"{DAYS[1]} 0", status_code=400))
    for day in DAYS:
        project.land("daily_labels", day)
    project.emulator.clear_faults()
    document = project.json("retry", "daily_labels", "--partition-range", f"{DAYS[0]}...{DAYS[2]}", "--yes")
    assert [one["submission"]["partition"] for one in document["submissions"]] == [DAYS[1]]


def test_retry_that_the_provider_does_not_take_now_ends_with_four_and_stays_planned(project):
    project.emulator.inject(RowFault(containing="all 1", status_code=400))
    project.land()
    project.emulator.clear_faults()
    project.emulator.inject(WireFault(kind="status", status=429, route="POST /v1/batches", times=None))
    result = project.on_file("retry", "ticket_labels", "--yes", code=4)
    assert "Dagster's sensor sends them" in result.stderr
    assert [one["state"] for one in project.json("show", "ticket_labels")["shards"]] == ["planned"]


def exported(project, *arguments, name):
    project.on_file("export", *arguments, "-o", name)
    return project.folder / name


def test_labels_are_exported_the_same_in_every_format(project):
    project.land()
    table = pq.read_table(exported(project, "ticket_labels", name="labels.parquet"))
    lines = [json.loads(line) for line in exported(project, "ticket_labels", name="labels.jsonl").open()]
    with exported(project, "ticket_labels", name="labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_format = [table.to_pylist(), lines, rows]
    assert [[row["ticket_id"] for row in one] for one in by_format] == [["all-0", "all-1", "all-2"]] * 3
    assert len({tuple(row["topic"] for row in one) for one in by_format}) == 1
    assert {row["llm_outcome"] for row in lines} == {"succeeded"}
    stdout = project.on_file("export", "ticket_labels", "-o", "-", "--format", "jsonl").stdout
    assert [json.loads(line) for line in stdout.splitlines()] == lines
    assert list(project.folder.glob(".*.tmp")) == []


def test_rejects_are_exported_with_their_reason_and_partitions_one_after_the_other(project):
    project.emulator.inject(RowFault(containing=f"{DAYS[1]} 0", status_code=400, message="not this one"))
    for day in DAYS[:2]:
        project.land("daily_labels", day)
    days = ["--partition-range", f"{DAYS[0]}...{DAYS[1]}"]
    [reject] = pq.read_table(
        exported(project, "daily_labels", *days, "--what", "rejects", name="rejects.parquet")
    ).to_pylist()
    assert reject["ticket_id"] == f"{DAYS[1]}-0"
    assert "not this one" in reject["llm_reason"]
    assert len(pq.read_table(exported(project, "daily_labels", *days, name="labels.parquet"))) == 5


def test_fine_tuning_examples_are_the_requests_that_have_a_label_with_what_was_answered(project):
    project.emulator.inject(RowFault(containing="all 1", status_code=400))
    project.change('user="{{ body }}")', 'user="{{ body }}", examples=[("Hello?", "{}")])')
    project.land()
    labels = [json.loads(line) for line in exported(project, "ticket_labels", name="labels.jsonl").open()]
    path = exported(project, "ticket_labels", "--what", "fine-tuning", name="examples.jsonl")
    examples = [json.loads(line)["messages"] for line in path.open()]
    assert [one["role"] for one in examples[0]] == ["system", "user", "assistant", "user", "assistant"]
    assert [one[3]["content"] for one in examples] == ["Where is my invoice all 0?", "Where is my invoice all 2?"]
    assert [json.loads(one[4]["content"]) for one in examples] == [{"topic": label["topic"]} for label in labels]


def test_each_example_says_beside_it_where_it_comes_from_and_claudes_form_has_the_system_text_apart(project):
    project.land()
    form = ["--what", "fine-tuning", "--format", "anthropic"]
    path = exported(project, "ticket_labels", *form, name="train.jsonl")
    examples = [json.loads(line) for line in path.open()]
    assert [set(one) for one in examples] == [{"system", "messages"}] * 3
    origins = [json.loads(line) for line in path.with_name("train.provenance.jsonl").open()]
    assert [one["ticket_id"] for one in origins] == ["all-0", "all-1", "all-2"]
    assert all(one["llm_batch_id"] and one["llm_prompt_version"] for one in origins)


def test_labels_are_exported_as_records_of_tensorflow_and_as_a_dataset_of_hugging_face(project):
    project.land()
    records = exported(project, "ticket_labels", name="labels.tfrecord")
    assert len(list(tfrecord_iterator(str(records)))) == 3
    folder = exported(project, "ticket_labels", "--format", "huggingface", name="dataset")
    assert load_from_disk(str(folder))["ticket_id"][:] == ["all-0", "all-1", "all-2"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-o", "x.csv", "--format", "openai"], 2, "openai is for --what fine-tuning"),
        (["-o", "-", "--format", "tfrecord"], 2, "Tfrecord is not for standard output"),
        (["-o", "x.csv", "--what", "fine-tuning"], 2, "written as openai or anthropic"),
        (["-o", "-", "--format", "parquet"], 2, "Parquet is not for standard output"),
        (["-o", "-", "--json"], 2, "both write to standard output"),
        (["-o", "labels.xlsx"], 2, "labels.xlsx tells no format by its ending (.parquet, .csv, .jsonl, .tfrecord)"),
        (["-o", "no/such/folder.csv"], 2, "There is no folder no/such"),
        (["-o", "x.csv"], 1, "not settled; it has no labels yet"),
    ],
)
def test_an_export_that_cannot_be_writes_nothing(project, arguments, code, said):
    project.submit()
    assert said in project.on_file("export", "ticket_labels", *arguments, code=code).stderr
    assert not (project.folder / "x.csv").exists()


def test_an_export_whose_results_are_gone_names_the_submission(project):
    submission_id = project.land()
    [results] = project.folder.rglob("*.results.parquet")
    results.unlink()
    said = project.on_file("export", "ticket_labels", "-o", "x.csv", code=1).stderr
    assert f"A file of submission {submission_id} is not in the payload store" in said


def test_an_export_into_a_folder_that_cannot_be_written_says_which_file(project):
    project.land()
    (project.folder / "x.csv").mkdir()
    assert "x.csv" in project.on_file("export", "ticket_labels", "-o", "x.csv", code=2).stderr


def test_an_export_of_what_was_never_submitted_says_so(project):
    project.submit()
    said = project.on_file("export", "daily_labels", "-p", DAYS[0], "-o", "x.csv", code=1).stderr
    assert f"Nothing was submitted for daily_labels {DAYS[0]}" in said
