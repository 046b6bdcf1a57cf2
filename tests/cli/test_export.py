"""`export` writes files of every format, and refuses wrong requests."""

from __future__ import annotations

import csv
import json

import dagster as dg
import pyarrow.parquet as pq
import pytest
from project import DAYS
from tfrecord import tfrecord_iterator

from dagster_llm_batch.testing.emulator import RowFault


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
    # these rows have no run of Dagster, which the column's description explains
    assert {row["llm_run_id"] for row in (*lines, *rows)} == {""}
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


def test_labels_are_exported_as_records_of_tensorflow_and_as_a_dataset_of_hugging_face(project, monkeypatch):
    from datasets import config, load_dataset, load_from_disk

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    project.land()
    records = exported(project, "ticket_labels", name="labels.tfrecord")
    assert len(list(tfrecord_iterator(str(records)))) == 3
    folder = exported(project, "ticket_labels", "--format", "huggingface", name="dataset")
    assert load_from_disk(str(folder))["ticket_id"][:] == ["all-0", "all-1", "all-2"]
    hub = exported(project, "ticket_labels", "--format", "hub", name="hub")
    read = load_dataset(str(hub), split="train", cache_dir=str(project.folder / "cache"))
    assert read["ticket_id"][:] == ["all-0", "all-1", "all-2"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-o", "x.csv", "--format", "openai"], 2, "openai is for --what fine-tuning"),
        (["-o", "-", "--format", "tfrecord"], 2, "Tfrecord is not for standard output"),
        (["-o", "x.csv", "--what", "fine-tuning"], 2, "written as openai or anthropic"),
        (["-o", "-", "--format", "parquet"], 2, "Parquet is not for standard output"),
        (["-o", "-", "--json"], 2, "both write to standard output"),
        (["-o", "labels.xlsx"], 2, "labels.xlsx has an unknown ending; known are .parquet, .csv, .jsonl, .tfrecord."),
        (["-o", "no/such/folder.csv"], 2, "There is no folder no/such"),
        (["-o", "x.csv"], 1, "not complete; it has no labels yet"),
    ],
)
def test_an_export_that_cannot_be_writes_nothing(project, arguments, code, said):
    project.submit()
    assert said in project.on_file("export", "ticket_labels", *arguments, code=code).stderr
    assert not (project.folder / "x.csv").exists()


@pytest.mark.slow
def test_an_export_whose_results_are_gone_makes_them_anew_and_without_a_manifest_names_the_submission(project):
    submission_id = project.land()
    [results] = project.folder.rglob("*.results.parquet")
    results.unlink()
    assert project.json("export", "ticket_labels", "-o", "x.csv")["rows"] == 3
    assert "3 labels in z.csv" in project.on_file("export", "ticket_labels", "-o", "z.csv").stdout
    [manifest] = project.folder.rglob("manifest.parquet")
    manifest.unlink()
    said = project.on_file("export", "ticket_labels", "-o", "y.csv", code=1).stderr
    assert submission_id in said


def test_an_export_into_a_folder_that_cannot_be_written_says_which_file(project):
    project.land()
    (project.folder / "x.csv").mkdir()
    assert "x.csv" in project.on_file("export", "ticket_labels", "-o", "x.csv", code=2).stderr


def test_an_export_of_what_was_never_submitted_says_so(project):
    project.submit()
    said = project.on_file("export", "daily_labels", "-p", DAYS[0], "-o", "x.csv", code=1).stderr
    assert f"Nothing was submitted for daily_labels {DAYS[0]}" in said


def test_a_file_that_is_there_is_replaced_only_where_told(project):
    project.land()
    for file in ("labels.csv", "train.provenance.jsonl"):
        (project.folder / file).write_text("mine")
    for arguments in (["-o", "labels.csv"], ["--what", "fine-tuning", "-o", "train.jsonl"]):
        said = project.on_file("export", "ticket_labels", *arguments, code=2).stderr
        assert "already. Name another one, or give --force to replace it" in said
    assert {(project.folder / file).read_text() for file in ("labels.csv", "train.provenance.jsonl")} == {"mine"}
    assert not (project.folder / "train.jsonl").exists()
    project.on_file("export", "ticket_labels", "-o", "labels.csv", "--force")
    assert (project.folder / "labels.csv").read_text().startswith('"ticket_id"')


def test_an_export_without_a_single_example_is_refused_and_leaves_no_file(project):
    project.land()
    project.change("Where is my invoice {prefix}", "I lost my password {prefix}")
    said = project.on_file("export", "ticket_labels", "--what", "fine-tuning", "-o", "train.jsonl", code=1).stderr
    assert "no row of 'ticket_labels', as it is now, makes a request that has a label" in said
    assert not list(project.folder.glob("*train*"))


EVALUATION = """
@dg.asset
def gold() -> list:
    return [{"ticket_id": f"all-{n}", "topic": ["billing", "bug", "billing"][n]} for n in range(3)]

class Ours(LLMBatchTranslator):
    def get_asset_spec(self, data):
        return data.spec.replace_attributes(key="wrong") if data.role == "mistakes" else data.spec

quality = evaluation_assets(
    name="quality", gold=gold, candidates=ticket_labels, key="ticket_id", target="topic", translator=Ours()
)

defs = dg.Definitions(
    assets=[gold, *quality,"""


@pytest.mark.slow
def test_mistakes_of_an_evaluation_are_exported(project, home):
    project.change("defs = dg.Definitions(\n    assets=[", EVALUATION)
    project.change("    llm_batch_assets,", "    LLMBatchTranslator,\n    evaluation_assets,\n    llm_batch_assets,")
    wrong = [*("quality", "--what", "mistakes", "-o", "mistakes.csv")]
    assert "The asset wrong is not materialized" in project.on_file("export", *wrong, code=1).stderr
    module = project.module()
    assets = [module["gold"], *module["ticket_labels"], *module["quality"]]
    for names in (["gold", "ticket_labels_batch"], ["ticket_labels", "ticket_labels_rejects"], [*module["quality"]]):
        with dg.DagsterInstance.get() as instance:
            resources = module["defs"].resources
            assert dg.materialize(assets, instance=instance, resources=resources, selection=names).success
        project.emulator.settle()
    project.on_file("export", *wrong)
    hint = project.on_file("export", "quality", "-o", "quality.csv", code=2).stderr
    assert "'quality' is an evaluation, which has no labels." in hint
    assert "add --what mistakes" in " ".join(hint.split())
    labels = [json.loads(line) for line in exported(project, "ticket_labels", name="labels.jsonl").open()]
    topics = ["billing", "bug", "billing"]
    expected = {row["ticket_id"] for row, topic in zip(labels, topics, strict=True) if row["topic"] != topic}
    with (project.folder / "mistakes.csv").open() as file:
        assert {row["ticket_id"] for row in csv.DictReader(file)} == expected != set()
    said = project.on_file("export", "ticket_labels", *wrong[1:], "--force", code=2).stderr
    assert "is no evaluation of the file" in said
    assert "those that have: quality." in said


def test_answers_of_a_definition_before_are_exported_with_its_columns_and_prompt(project):
    submission_id = project.land()
    project.change('topic: Literal["billing", "bug"]', "mood: int")
    project.change("You label tickets.", "You feel with people.")
    old = ["ticket_labels", "--submission", submission_id[:12]]
    table = pq.read_table(exported(project, *old, name="old.parquet"))
    assert table.schema.names[:2] == ["ticket_id", "topic"]
    assert {*table["llm_outcome"].to_pylist()} == {"succeeded"}
    path = exported(project, *old, "--what", "fine-tuning", name="train.jsonl")
    examples = [json.loads(line)["messages"] for line in path.open()]
    assert [one[0]["content"] for one in examples] == ["You label tickets."] * 3
    other = project.on_file("export", "daily_labels", *old[1:], "-o", "x.csv", code=2).stderr
    assert "is a submission of 'ticket_labels', not of 'daily_labels'" in other
    both = project.on_file("export", "daily_labels", *old[1:], "-p", DAYS[0], "-o", "x.csv", code=2).stderr
    assert "--submission names one submission of a labeled asset" in both


def test_an_export_to_csv_tells_how_many_texts_got_an_apostrophe(project):
    project.emulator.inject(RowFault(containing="all 1", status_code=400, message="no"))
    project.change('"ticket_id": f"{prefix}-{n}"', '"ticket_id": f"={prefix}-{n}"')
    project.land()
    told = project.on_file("export", "ticket_labels", "-o", "labels.csv").stderr
    assert "2 texts got an apostrophe in front, since a spreadsheet would run them as a formula" in told
    with (project.folder / "labels.csv").open() as file:
        assert [row["ticket_id"] for row in csv.DictReader(file)] == ["'=all-0", "'=all-2"]
    assert "apostrophe" not in project.on_file("export", "ticket_labels", "-o", "labels.parquet").stderr
