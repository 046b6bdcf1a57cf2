"""`cancel`, `resolve` and `retry` act once, after a question; `export` writes the results."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing

import pytest
from project import DAYS
from test_care import pass_days

from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.core.identity import make_request
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, RowFault, WireFault

UNLISTED = WireFault(kind="status", status=503, route="GET /v1/batches", times=None)


def in_doubt(project, when):
    """Submit with a create call of unknown end, and return the shard that needs a decision."""
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
    assert sum(call.path.endswith("/cancel") for call in project.emulator.books.calls) == 2  # the day's two batches


def test_cancel_of_what_is_settled_is_refused_and_says_so(project):
    project.land()
    assert "cannot become 'canceled'" in project.on_file("cancel", "ticket_labels", "--yes", code=1).stderr


def test_cancel_stops_nothing_that_the_provider_does_not_let_it_see_and_says_so(project):
    shard = in_doubt(project, "after")
    project.emulator.inject(WireFault(kind="status", status=403, route="GET /v1/batches", times=None))
    assert "does not accept the API key" in project.on_file("cancel", "ticket_labels", "--yes", code=1).stderr
    assert project.json("resolve")["orphans"][0]["shard"]["shard_id"] == shard


def test_resolve_lists_shards_in_doubt_by_definitions_and_by_address(project):
    project.submit()
    assert project.on_file("resolve").stdout == "No shard is in doubt, overdue or unreadable.\n"
    project.change('"You label tickets."', '"You label other tickets."')
    shard = in_doubt(project, "after")
    text = project.cli("resolve", *project.by_address).stdout
    assert shard in text
    assert "ticket_labels" in text


def test_doctor_and_watch_name_a_shard_in_doubt_as_soon_as_resolve_does_and_what_to_do(project):
    shard = in_doubt(project, "after")
    [orphan] = project.json("resolve")["orphans"]
    doctor = {one["check"]: one for one in project.json("doctor")["findings"]}
    assert "batches under way" not in doctor
    assert doctor["shards in doubt"]["verdict"] == "warning"
    notes = project.json("watch", "--once")["notes"]
    [note] = [note for note in notes if shard in note]
    since = orphan["shard"]["sent_at"][:16].replace("T", " ")
    for told in (note, " ".join([doctor["shards in doubt"]["said"], doctor["shards in doubt"]["then"]])):
        assert f"shard {shard} is in doubt since {since} UTC" in told
        assert "looks for it again" in told
        assert "dagster-llm-batch resolve" in told
    assert note in json.loads(project.cli("watch", "--once", "--json", *project.by_address).stdout)["notes"]


@pytest.mark.slow
def test_a_shard_that_a_living_process_sends_is_in_doubt_nowhere(project):
    in_doubt(project, "after")
    submission_id = project.json("show", "ticket_labels")["submission"]["submission_id"]
    with project.engine() as engine, engine.deployment.leased(submission_id):
        assert project.on_file("resolve").stdout == "No shard is in doubt, overdue or unreadable.\n"
        assert "shards in doubt" not in str(project.json("doctor"))
        assert "in doubt" not in str(project.json("watch", "--once")["notes"])


@pytest.mark.parametrize("exists", [True, False], ids=["batch", "no batch"])
def test_a_resolved_shard_goes_on_and_nothing_is_paid_twice(project, exists):
    shard = in_doubt(project, "after" if exists else "before")
    word = ["--batch-id", project.emulator.books.batches[0].id] if exists else ["--no-batch"]
    result = project.cli("resolve", shard, *word, "--yes", *project.by_address)
    assert ("submitted" if exists else "planned") in result.stdout
    project.settle()
    assert project.json("show", "ticket_labels")["submission"]["outcomes"] == {"succeeded": 3}
    assert len(project.emulator.books.batches) == 1
    assert project.emulator.books.billed_twice() == {}


@pytest.mark.parametrize("answer", ["n\n", ""], ids=["no", "no terminal"])
@pytest.mark.parametrize(
    ("word", "asked"),
    [
        (["--no-batch"], "It is paid a second time if the provider has a batch for it after all."),
        (["--batch-id", "batch_1"], "Take the batch batch_1 for shard"),
        (["--lost"], "Its rows are materialized without a label"),
    ],
)
def test_resolve_asks_first_and_without_a_yes_changes_nothing(project, word, asked, answer):
    if word == ["--lost"]:
        project.submit()
        [shard] = [one["shard_id"] for one in project.json("show", "ticket_labels")["shards"]]
    else:
        shard = in_doubt(project, "after")
    before = project.json("show", "ticket_labels")
    said = project.cli("resolve", shard, *word, *project.by_address, code=1, input=answer).stderr
    assert asked in said
    assert f"{shard} of ticket_labels" in said
    assert project.json("show", "ticket_labels") == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--no-batch"], 2, "Name the shard"),
        (["abcd"], 2, "Give one of --batch-id"),
        (["abcd", "--no-batch", "--batch-id", "batch_1"], 2, "Give one of --batch-id"),
        (["abcd", "--no-batch"], 1, "The ledger has no shard abcd"),
        (["abcd", "--lost"], 1, "The ledger has no shard abcd"),
        (["--lost"], 2, "Name the shard"),
        (["abcd", "--lost", "--no-batch"], 2, "Give one of --batch-id"),
    ],
)
def test_a_word_that_is_not_clear_is_refused(project, arguments, code, said):
    project.submit()
    assert said in project.on_file("resolve", *arguments, code=code).stderr


@pytest.mark.slow
def test_a_batch_that_never_ends_is_given_up_and_a_retry_shows_the_price_and_asks_again(project):
    project.submit()
    pass_days(project, 2)
    assert "overdue" in project.cli("resolve", *project.by_address).stdout
    [told] = project.json("resolve")["overdue"]
    given_up = project.cli("resolve", told["shard"]["shard_id"], "--lost", "--yes", *project.by_address).stdout
    assert "'ended' now" in given_up
    assert project.on_file("resolve").stdout == "No shard is in doubt, overdue or unreadable.\n"
    with project.engine() as engine:
        labeling = dataset_of(project.module()["ticket_labels"]).labeling
        assert engine.advance(labeling, told["submission"]["submission_id"]).is_settled
    shown = project.json("show", "ticket_labels")
    assert shown["submission"]["outcomes"] == {"missing": 3}
    assert shown["shards"][0]["cause"] == "given_up"
    [finding] = [one for one in project.json("doctor")["findings"] if one["check"] == "rows without a label"]
    assert "was abandoned" in finding["said"]
    assert "dagster-llm-batch retry ticket_labels" in finding["then"]
    asked = project.on_file("retry", "ticket_labels", input="y\n").output
    assert "$0.00" in asked  # the price comes before the question
    assert "Send 3 requests?" in asked
    assert len(project.emulator.books.batches) == 2
    assert "rows without a label" not in str(project.json("doctor"))


@pytest.mark.slow
def test_a_shard_that_is_not_in_doubt_cannot_be_resolved(project):
    project.submit()
    [shard] = project.json("show", "ticket_labels")["shards"]
    for settled in (False, True):
        if settled:
            project.settle()
        for word in (["--no-batch"], ["--batch-id", "batch_x"], ["--lost"] if settled else []):
            if word:
                said = project.on_file("resolve", shard["shard_id"], *word, "--yes", code=1).stderr
                assert "IllegalTransitionError" not in said
                assert ("is collected: what it has is stored; " if settled else "is in flight; ") in said
                assert "not_sent" not in said
                assert "`dagster-llm-batch resolve` alone lists" in said


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_renamed_asset_keeps_its_answers_once_a_person_says_so(project):
    project.land()
    assert "is in the definitions still" in project.on_file("rename", "ticket_labels", "topics", code=1).stderr
    project.change('name="ticket_labels"', 'name="topics"')
    assert project.json("plan", "topics")["plans"][0]["requests_to_send"] == 3
    assert "'elsewhere' is no labeled asset" in project.on_file("rename", "ticket_labels", "elsewhere", code=2).stderr
    assert "Nothing was submitted as 'never_was'" in project.on_file("rename", "never_was", "topics", code=1).stderr
    project.on_file("rename", "ticket_labels", "topics", code=1, input="n\n")
    assert project.json("plan", "topics")["plans"][0]["requests_to_send"] == 3
    said = project.on_file("rename", "ticket_labels", "topics", input="y\n").stdout
    assert "1 partition is those of 'topics' now" in said
    assert project.json("plan", "topics")["plans"][0]["requests_to_send"] == 0
    assert project.json("export", "topics", "-o", "topics.jsonl")["rows"] == 3


def test_a_name_that_no_asset_can_have_is_refused_where_there_are_no_definitions_to_ask(project):
    project.submit()
    for name in ("my labels", "thèmes", "support//topics", "", "topics/", 'a"b', "x\ny"):
        said = project.cli("rename", "ticket_labels", name, "--yes", *project.by_address, code=2).stderr
        assert "can be no asset: Dagster takes letters" in " ".join(said.split())
    project.cli("rename", "ticket_labels", "support-2/topics.v1", "--yes", *project.by_address)


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


@pytest.mark.slow
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


def put_back(project, backup):
    for file in project.batches.glob("ledger.sqlite*"):
        file.unlink()
    (project.batches / "ledger.sqlite").write_bytes(backup)


@pytest.fixture
def restored(project):
    """Make a project whose ledger was restored from a backup made before two of its partitions were sent."""
    project.land("daily_labels", DAYS[0])
    with closing(sqlite3.connect(project.ledger)) as source, closing(sqlite3.connect(":memory:")) as copy:
        source.backup(copy)
        backup = copy.serialize()
    sent = [project.submit("daily_labels", day) for day in DAYS[1:]]
    project.emulator.settle()
    put_back(project, backup)
    return sent


@pytest.mark.slow
def test_doctor_names_what_a_restored_ledger_has_no_record_of_and_recover_recovers_it_unpaid(project, restored):
    doctor = {one["check"]: one for one in project.json("doctor", code=3)["findings"]}["ledger and payloads"]
    assert doctor["verdict"] == "problem"
    assert "4 shards were sent since" in doctor["said"]
    assert all(f"daily_labels {day}" in doctor["said"] for day in DAYS[1:])
    assert "dagster-llm-batch recover" in doctor["then"]
    taken = json.loads(project.cli("recover", "--yes", "--json", *project.by_address).stdout)["shards"]
    assert {shard["submission_id"] for shard in taken} == set(restored)
    assert {shard["state"] for shard in taken} == {"submitting"}
    doctor = {one["check"]: one for one in project.json("doctor")["findings"]}
    assert doctor["ledger and payloads"]["verdict"] == "ok"
    assert project.on_file("recover", "--yes").stdout == "The ledger has a record of all that was sent.\n"
    project.settle()
    for submission_id in restored:
        with project.engine() as engine:
            assert engine.ledger.submissions.get(submission_id).outcomes == {"succeeded": 3}
    assert len(project.emulator.books.batches) == 6
    assert project.emulator.books.billed_twice() == {}


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["n\n", ""], ids=["no", "no terminal"])
def test_recover_asks_first_and_without_a_yes_changes_nothing(project, restored, answer):
    before = project.files()
    result = project.on_file("recover", code=1, input=answer)
    assert "4 shards were sent, of daily_labels" in result.stderr
    assert project.files() == before
    assert "4 shards are in doubt now" in project.on_file("recover", input="y\n").stdout


def sent_elsewhere(project, day):
    """Send all rows of a day except the last by a script. Return the batch's id, and the file that the script kept."""
    labeling = dataset_of(project.module()["daily_labels"]).labeling
    provider = OpenAIProvider(DEFAULT_KEY, project.emulator.openai_base_url)
    codec = provider.codec(labeling.spec)
    texts = [f"Where is my invoice {day} {number}?" for number in range(2)]
    lines = [codec.encode(make_request("You label tickets.", text), f"row-{text[-2]}") for text in texts]
    kept = project.folder / "requests.jsonl"
    kept.write_bytes(b"".join(lines))
    return provider.submit(io.BytesIO(kept.read_bytes()), labeling.spec, "theirs"), str(kept)


@pytest.mark.slow
def test_a_batch_that_was_sent_elsewhere_is_adopted_after_asking_and_nothing_is_sent(project):
    batch_id, kept = sent_elsewhere(project, DAYS[0])
    command = ["adopt", "daily_labels", batch_id, kept, "-p", DAYS[0]]
    running = project.on_file(*command, "--yes", code=4)
    assert "is still 'pending'" in running.output
    project.emulator.settle()
    before = project.files()
    asked = project.on_file(*command, code=1, input="n\n")
    assert "2 of 3 requests of these rows have an answer in it. 1 request has no answer" in asked.output
    assert f"Adopt it for daily_labels {DAYS[0]}?" in asked.output
    assert {name for name in project.files() if "ledger" not in name} == {
        name for name in before if "ledger" not in name
    }
    adopted = project.json(*command, "--yes")
    assert (adopted["requests"], adopted["matched"], adopted["answered"]) == (3, 2, 2)
    assert adopted["submission"]["outcomes"] == {"missing": 1, "succeeded": 2}
    assert {shard["cause"] for shard in adopted["shards"]} == {"adopted"}
    assert project.on_file(*command, "--yes", code=1).output.count("was adopted already") == 1
    assert len(project.emulator.books.batches) == 1
    waiting = [one for one in project.json("doctor")["findings"] if one["check"] == "rows without a label"]
    assert "was sent elsewhere, and adopted" in waiting[0]["said"]
    assert project.json("plan", "daily_labels", "-p", DAYS[0], "--again")["plans"][0]["requests_to_send"] == 1
