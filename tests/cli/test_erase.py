"""`erase` shows its findings, erases after a question, and lists files out of reach and remaining steps."""

from __future__ import annotations

import json
import os

import pytest
from project import DAYS
from test_decisions import sent_elsewhere

from dagster_llm_batch.assets.dataset import dataset_of


def keys(project, name="ticket_labels", partition=""):
    """Return the keys of the rows in a dataset's current labels."""
    labeling = dataset_of(project.module()[name]).labeling
    with project.engine() as engine:
        table = engine.labels(labeling, engine.latest(name, partition).submission_id).labels
    return sorted(table["ticket_id"].to_pylist())


@pytest.mark.slow
def test_erase_shows_first_asks_and_then_says_what_is_yours_to_do(project):
    project.land()
    files = project.files()
    shown = project.on_file("erase", "ticket_labels", "--key", "all-1").stdout
    assert "ticket_labels" in shown
    assert "Nothing was deleted." in shown
    assert project.files() == files
    refused = project.on_file("erase", "ticket_labels", "--key", "all-1", "--delete", code=1, input="n\n")
    assert "Erase the rows of 1 key from ticket_labels?" in refused.stderr
    assert project.files() == files
    told = project.on_file("erase", "ticket_labels", "--key", "all-1", "--delete", "--yes").stdout
    for part in (
        "Erased 1 row;",
        "of openai: deleted there.",
        "tables that IO managers stored: ticket_labels, ticket_labels_rejects",
        "dagster run delete",
        "VACUUM",
    ):
        assert part in told
    assert keys(project) == ["all-0", "all-2"]
    assert len([call for call in project.emulator.books.calls if call.method == "DELETE"]) == 2
    again = project.on_file("plan", "ticket_labels").stdout
    assert "1 more row was erased, and left out" in again
    assert project.json("plan", "ticket_labels")["plans"][0]["rows_erased"] == 1


@pytest.mark.slow
def test_keys_of_a_file_are_erased_from_chosen_partitions_and_can_be_asked_again(project):
    for day in DAYS[:2]:
        project.land("daily_labels", day)
    (project.folder / "keys.txt").write_text(f"{DAYS[0]}-0\r\n\n{DAYS[0]}-1\n{DAYS[1]}-0\n")
    found = project.json("erase", "daily_labels", "--keys-file", "keys.txt", "-p", DAYS[0], "--delete", "--yes")
    assert [(one["partition"], one["rows"]) for one in found["found"]] == [(DAYS[0], 2)]
    assert found["left"] == []
    assert keys(project, "daily_labels", DAYS[0]) == [f"{DAYS[0]}-2"]
    assert len(keys(project, "daily_labels", DAYS[1])) == 3
    undone = project.json("erase", "daily_labels", "--key", f"{DAYS[0]}-0", "-p", DAYS[0], "--undo", "--yes")
    assert undone == {"taken_back": 1}
    project.land("daily_labels", DAYS[0])
    assert keys(project, "daily_labels", DAYS[0]) == [f"{DAYS[0]}-0", f"{DAYS[0]}-2"]


def test_what_is_in_flight_or_needs_credentials_is_left_and_said(project):
    project.submit()
    told = project.cli(
        "erase", "ticket_labels", "--key", "all-1", "--delete", "--yes", *project.by_address, code=4
    ).stdout
    assert "Not yet: submission" in told
    project.settle()
    assert keys(project) == ["all-0", "all-2"]
    assert project.json("doctor")["healthy"]
    rest = project.json("erase", "ticket_labels", "--delete", "--yes")
    assert (rest["found"], rest["left"], rest["at_providers"]) == ([], [], [])


def test_by_address_the_providers_copies_wait_and_doctor_says_so(project):
    project.land()
    document = json.loads(
        project.cli(
            "erase", "ticket_labels", "--key", "all-1", "--delete", "--yes", "--json", *project.by_address, code=4
        ).stdout
    )
    assert "definitions" in document["at_providers"][0]["left"]
    findings = [one for one in project.json("doctor")["findings"] if one["check"] == "erased rows"]
    assert [one["verdict"] for one in findings] == ["warning"]
    assert "dagster-llm-batch erase ticket_labels" in findings[0]["then"]
    assert project.json("erase", "ticket_labels", "--delete", "--yes")["at_providers"][0]["left"] is None
    assert not [one for one in project.json("doctor")["findings"] if one["check"] == "erased rows"]


def test_of_an_adopted_batch_the_prompt_and_the_dry_run_say_that_it_stays(project):
    batch_id, kept = sent_elsewhere(project, DAYS[0])
    project.emulator.settle()
    project.json("adopt", "daily_labels", batch_id, kept, "-p", DAYS[0], "--yes")
    key, deleted = f"{DAYS[0]}-0", lambda: [call for call in project.emulator.books.calls if call.method == "DELETE"]
    shown = project.on_file("erase", "daily_labels", "--key", key).stdout
    assert f"Batch {batch_id} of openai stays there: it was adopted" in shown
    # The paths of rewritten files.
    assert [line for line in shown.splitlines() if line.startswith("- ") and line.endswith(".raw.jsonl.zst")]
    asked = project.on_file("erase", "daily_labels", "--key", key, "--delete", code=1, input="n\n")
    assert f"What providers store of adopted batches stays: {batch_id}." in asked.stderr
    told = project.on_file("erase", "daily_labels", "--key", key, "--delete", "--yes").stdout
    assert f"Batch {batch_id} of openai: not deleted there: it was adopted" in told
    assert deleted() == []
    assert keys(project, "daily_labels", DAYS[0]) == [f"{DAYS[0]}-1"]
    assert not [one for one in project.json("doctor")["findings"] if one["check"] == "erased rows"]


def test_a_key_that_no_row_has_and_a_prune_leave_files_of_others_alone(project):
    project.land()
    [raw] = project.folder.rglob("*.raw.jsonl.zst")
    namespace = raw.parents[3]
    theirs = [namespace / "gold/2026-01/merged/train.parquet", namespace / "features/2026-01/v1/manifest.parquet"]
    theirs += [namespace / "features/2026-01/v1/part-0.parquet", raw.with_name("notes.md")]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"theirs")
        os.utime(path, (1, 1))
    erased = project.on_file("erase", "ticket_labels", "--key", "no such key", "--delete", "--yes").stdout
    assert "Erased 0 rows: none was found. Rows with these keys are not sent if they come." in erased
    project.on_file("prune", "--older-than", "1", "--delete", "--yes")
    assert [path.read_bytes() for path in theirs] == [b"theirs"] * len(theirs)
    assert str(theirs[-1].relative_to(namespace.parent)) in project.on_file("prune").stderr
