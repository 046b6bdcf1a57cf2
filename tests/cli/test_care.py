"""`doctor` finds problems before they cost anything, `prune` asks before it deletes. Secrets are never printed."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from project import DAYS

from dagster_llm_batch.advice.end_forecast import EndScore
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.cli.doctor import judge_end_forecasts
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, WireFault


def findings(project, code=0, **options):
    document = project.json("doctor", code=code, **options)
    assert document["healthy"] is (code == 0)
    return {one["check"]: one for one in document["findings"]}


def pass_days(project, days, *more):
    """Move all times in the ledger this many days back, also these columns of shards."""
    with closing(sqlite3.connect(project.ledger)) as connection:
        for table, columns in {
            "submission": ["created_at", "settled_at", "delivered_at"],
            "shard": ["looked_at", "ended_at", *more],
            "batch": ["sent_at", "submitted_at", "polled_at", "ended_at"],
        }.items():
            for column in columns:
                for key, value in connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall():
                    if value is not None:
                        moved = datetime.fromisoformat(value) - timedelta(days=days)
                        text = moved.strftime("%Y-%m-%d %H:%M:%S.%f")
                        connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (text, key))
        connection.commit()


def test_a_sound_deployment_has_no_problem_and_nothing_is_sent_or_left(project):
    project.land()
    files, batches = project.files(), len(project.emulator.books.batches)
    found = findings(project)
    # DAGSTER_HOME is not set here, so it is unknown whether a daemon runs
    assert {name for name, one in found.items() if one["verdict"] != "ok"} == {"sensor"}
    assert {"definitions", "ledger", "payload store", "provider openai", "dataset daily_labels", "price book"} <= set(
        found
    )
    assert "at most 50,000 requests" in found["dataset ticket_labels"]["said"]
    assert project.files() == files
    assert len(project.emulator.books.batches) == batches


def test_files_that_are_gone_or_damaged_are_named_with_what_becomes_of_them(project):
    project.land()
    assert "present and undamaged" in findings(project)["stored files"]["said"]
    [results, *_] = sorted(Path(project.ledger).parent.rglob("*.results.parquet"))
    whole = results.read_bytes()
    results.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    found = findings(project)["stored files"]
    assert (found["verdict"], results.name in found["said"]) == ("warning", True)
    [raw, *_] = sorted(Path(project.ledger).parent.rglob("*.raw.jsonl.zst"))
    raw.unlink()
    found = findings(project, code=3)["stored files"]
    assert (found["verdict"], raw.name in found["said"]) == ("problem", True)
    assert "2 of" in found["said"]
    assert "fetched from the provider again" in found["then"]


def test_before_the_first_submission_there_is_no_ledger_and_none_is_made(project):
    assert "the first submission creates it" in findings(project)["ledger"]["said"]
    assert "batches/ledger.sqlite" not in project.files()


def test_a_key_that_is_not_accepted_is_a_problem_and_is_not_printed(project, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-and-secret")
    found = findings(project, code=3)
    assert found["provider openai"]["verdict"] == "problem"
    assert "does not accept the API key" in found["provider openai"]["said"]
    text = project.on_file("doctor", code=3)
    assert "sk-wrong" not in text.output
    assert "sk-wrong" not in json.dumps(found)


def test_the_region_of_a_dataset_is_shown_and_one_that_is_not_allowed_is_a_problem(project, monkeypatch):
    address = f"the address '{project.emulator.openai_base_url}' of OpenAI names no region"
    assert f"region: unknown, since {address}" in findings(project)["dataset ticket_labels"]["said"]
    project.change("timeout_seconds=10", 'timeout_seconds=10, runs_in=dg.EnvVar("REGION")')
    project.change("LLMBatchResource(", 'LLMBatchResource(allowed_regions=["eu"], ')
    monkeypatch.setenv("REGION", "eu")
    assert findings(project)["dataset ticket_labels"]["said"].endswith("; region: eu")
    monkeypatch.setenv("REGION", "us")
    refused = project.on_file("doctor", code=1)
    assert "would send rows to openai/gpt-4o, which runs in 'us'" in refused.output
    monkeypatch.delenv("REGION")
    found = findings(project, code=3)["dataset ticket_labels"]
    assert found["verdict"] == "problem"
    assert "environment variable REGION, which is not set" in found["said"]


def test_a_provider_that_does_not_answer_is_a_problem(project):
    project.emulator.inject(WireFault(kind="status", status=503, route="*", times=None))
    assert "Error code: 503" in findings(project, code=3)["provider openai"]["said"]


def test_a_payload_store_that_cannot_be_written_is_a_problem(project):
    (project.folder / "batches").mkdir()
    (project.folder / "batches" / "payloads").write_text("a file where a folder should be")
    assert findings(project, code=3)["payload store"]["verdict"] == "problem"


def test_what_a_provider_refuses_in_a_definition_is_a_problem(project):
    project.change('"params": {"max_tokens": 50}', '"params": {"stream": True}')
    assert findings(project, code=3)["dataset ticket_labels"]["verdict"] == "problem"


def test_a_provider_that_is_not_configured_and_a_price_that_nobody_knows_are_told(project):
    project.change('"model": "openai/gpt-4o"', '"model": "anthropic/claude-haiku-4-5"')
    assert "No provider 'anthropic' is configured" in findings(project, code=3)["dataset ticket_labels"]["said"]
    project.change('"anthropic/claude-haiku-4-5"', '"openai/no-such-llm"')
    project.change('"max_cost_usd": 1,', "")
    assert findings(project)["dataset ticket_labels"]["verdict"] == "warning"


def test_labels_that_no_sensor_lands_are_a_warning(project):
    project.change("sensors=[build_llm_batch_sensor()],", "")
    found = findings(project)["sensor"]
    assert (found["verdict"], "ticket_labels" in found["said"]) == ("warning", True)


def test_a_batch_that_nobody_asks_about_and_a_shard_in_doubt_are_problems_that_say_what_to_do(project):
    project.submit()
    project.change('"You label tickets."', '"You label more tickets."')
    project.emulator.inject(
        WireFault(kind="close", route="POST /v1/batches"),
        WireFault(kind="status", status=503, route="GET /v1/batches", times=None),
    )
    project.submit()
    project.emulator.clear_faults()
    assert "polling" not in findings(project)
    pass_days(project, 2)
    found = findings(project, code=3)
    assert "switch the sensor on" in found["polling"]["then"]
    assert "dagster-llm-batch resolve" in found["shards in doubt"]["then"]
    assert found["overdue batches"]["verdict"] == "problem"
    assert "--lost" in found["overdue batches"]["then"]
    by_address = project.cli("doctor", *project.by_address, code=3).stdout
    assert "shards in doubt" in by_address


@pytest.mark.slow
def test_a_batch_that_was_canceled_is_named_until_it_has_ended(project):
    project.submit()
    project.on_file("cancel", "ticket_labels", "--yes")
    assert findings(project)["canceled batches"]["said"].startswith("1 of 1 batches were asked to stop")
    project.settle()
    assert "canceled batches" not in findings(project)
    assert "rows without a label" not in findings(project)  # rows that a person canceled need no warning


def test_a_budget_says_what_is_committed_and_warns_when_little_is_left(project):
    project.submit()
    project.change("import os\n", "import os\n\nfrom dagster_llm_batch.resources import Budget\n")
    project.change('namespace="test",', 'namespace="test", budgets=[Budget(max_usd=100), Budget(max_usd=0.001)],')
    told = [one for one in project.json("doctor")["findings"] if one["check"] == "budget"]
    assert [one["verdict"] for one in told] == ["ok", "warning"]
    assert told[0]["said"].startswith("budget of $100.00")
    amounts = "per month: $0.00095 billed or expected, $0.0057 at most"
    assert told[0]["said"].endswith(amounts)


def test_batches_of_an_account_that_is_not_configured_any_more_are_a_problem(project):
    project.submit()
    project.change("timeout_seconds=10", 'timeout_seconds=10, account="another"')
    assert "wait; another is configured" in findings(project, code=3)["accounts"]["said"]


def test_what_is_under_way_for_an_asset_that_is_gone_is_told(project):
    project.submit()
    assert "assets" not in findings(project)
    project.change('name="ticket_labels"', 'name="renamed_labels"')
    told = findings(project)["assets"]
    assert told["verdict"] == "warning"
    assert (
        "1 submission is under way for ticket_labels, and these definitions have no such labeled asset" in told["said"]
    )


def keep_money(project, submission_id, usd):
    """Reserve money as a process that is killed right before it sends."""
    with project.engine() as engine:
        [shard] = engine.ledger.shards.of_submission(submission_id)
        assert engine.ledger.money.reserve({shard.shard_id: Decimal(usd)}, [])


@pytest.mark.slow
def test_money_that_is_kept_for_what_nobody_sends_is_told_with_what_frees_it(project):
    with project.engine() as engine:
        labeling = dataset_of(project.module()["ticket_labels"]).labeling
        submission = engine.plan(labeling, [{"ticket_id": "a", "body": "Where?"}])
    keep_money(project, submission.submission_id, "0.25")
    by_address = [*project.by_address, "--json"]
    assert "kept money" not in findings(project)
    [listed] = project.json("list")["submissions"]
    assert (listed["kept_usd"], listed["kept_in_vain"], listed["freed_by"]) == ("0.25", None, None)
    assert listed["kept_since"] is not None
    project.change('name="ticket_labels"', 'name="renamed_labels"')
    command = f"dagster-llm-batch cancel {submission.submission_id}"
    told = findings(project)["kept money"]
    assert told["verdict"] == "warning"
    assert told["said"].startswith("$0.25 of the limits is reserved for ticket_labels since 20")
    assert command in told["then"]
    [listed] = project.json("list")["submissions"]
    assert (listed["kept_usd"], listed["freed_by"]) == ("0.25", command)
    assert "no such labeled asset" in listed["kept_in_vain"]
    text = " ".join(project.on_file("list").stdout.split())
    assert "reserved" in text
    assert "$0.25 of the limits is reserved for ticket_labels" in text
    assert command in text
    assert f"`{command}` frees it" in " ".join(project.on_file("show", submission.submission_id).stdout.split())
    # Without definitions, only time can show that the money is reserved in vain.
    [listed] = json.loads(project.cli("list", *by_address).stdout)["submissions"]
    assert (listed["kept_usd"], listed["kept_in_vain"]) == ("0.25", None)
    with closing(sqlite3.connect(project.ledger)) as connection:
        connection.execute("UPDATE event SET at = '2026-01-01 00:00:00.000000'")
        connection.commit()
    [listed] = json.loads(project.cli("list", *by_address).stdout)["submissions"]
    assert "no process has worked on it for " in listed["kept_in_vain"]
    found = {one["check"] for one in json.loads(project.cli("doctor", *by_address).stdout)["findings"]}
    assert "kept money" in found
    project.on_file(*command.split()[1:], "--yes")
    assert "kept money" not in findings(project)
    [listed] = project.json("list")["submissions"]
    assert (listed["kept_usd"], listed["freed_by"]) == (None, None)


def test_money_of_a_wave_that_is_not_planned_yet_is_kept_too(project):
    submission_id = project.submit()
    with closing(sqlite3.connect(project.ledger)) as connection:
        connection.execute("UPDATE submission SET reserved_usd = '0.5'")
        connection.commit()
    project.change("sensors=[build_llm_batch_sensor()]", "sensors=[]")
    told = findings(project)["kept money"]
    assert told["said"].startswith("$0.50 of the limits is reserved for ticket_labels since 20")
    assert told["said"].endswith("it is not being sent: no sensor of these definitions targets it")
    assert submission_id in told["then"]


def test_a_ledger_that_does_not_answer_is_refused_without_its_password(project):
    where = ["--ledger", "postgresql://me:secret@127.0.0.1:1/db", "--payloads", f"{project.folder}/p"]
    result = project.cli("doctor", *where, code=3)
    assert "postgresql://me:***@127.0.0.1:1/db" in result.stdout
    assert "secret" not in result.output


def replaced(project):
    """Make a delivered submission and its replacement, both long ago."""
    project.land()
    project.change('"You label tickets."', '"You label other tickets."')
    project.land()
    pass_days(project, 40)


@pytest.mark.slow
def test_prune_shows_and_deletes_only_where_told_and_after_asking(project):
    replaced(project)
    files = project.files()
    for arguments, code in [([], 0), (["--delete"], 1), (["--older-than", "50", "--delete"], 0)]:
        result = project.on_file("prune", *arguments, code=code, input="n\n")
        assert project.files() == files
        assert ("Delete 6 files" in result.stderr) is (arguments == ["--delete"])
    assert "replaced" in project.on_file("prune").stdout
    document = json.loads(project.cli("prune", "--delete", "--yes", "--json", *project.by_address).stdout)
    assert (document["deleted"], document["files"], document["submissions_kept"]) == (True, 6, 1)
    assert len(project.files()) == len(files) - 6
    assert project.json("show", "ticket_labels")["submission"]["outcomes"] == {"succeeded": 3}
    assert "Nothing was deleted.\n" in project.on_file("prune", "--delete").stdout


def test_labels_whose_raw_results_are_kept_no_longer_are_as_before_and_doctor_misses_nothing(project):
    submission_id = project.land()
    pass_days(project, 40)
    labeling = dataset_of(project.module()["ticket_labels"]).labeling

    def labels():
        with project.engine() as engine:
            return engine.labels(labeling, submission_id, run_id="r", reread=True).labels

    before = labels()
    document = project.json("prune", "--raw-older-than", "30", "--delete", "--yes")
    gone = sorted(file[0].rpartition("/")[2] for file in document["aged"][submission_id])
    assert gone == ["wave-1-0000.raw.jsonl.zst", "wave-1-0000.requests.jsonl.lz4"]
    project.emulator.inject(WireFault(kind="status", status=404, route="GET /v1/batches/*", times=None))
    assert labels().equals(before)
    project.emulator.clear_faults()
    [stored] = [one for one in project.json("doctor")["findings"] if one["check"] == "stored files"]
    assert stored["verdict"] == "ok"


def test_prune_tells_of_files_that_another_ledger_may_own(project):
    project.land()
    [raw] = project.folder.rglob("*.raw.jsonl.zst")
    theirs = raw.parent.with_name("0" * 32)
    theirs.mkdir()
    (theirs / raw.name).write_bytes(raw.read_bytes())
    assert "1 file stays: the ledger has no record of them" in project.on_file("prune").stderr


@pytest.mark.slow
def test_no_command_prints_a_credential(project):
    project.land()
    for arguments in (
        ["list", "--all"],
        ["show", "ticket_labels"],
        ["watch", "--once", "--poll"],
        ["plan", "ticket_labels"],
        ["export", "ticket_labels", "-o", "-"],
        *(["cost"], ["prune"], ["resolve"], ["doctor"]),
    ):
        assert DEFAULT_KEY not in project.on_file(*arguments).output, arguments


@pytest.mark.slow
def test_prune_deletes_request_files_at_providers_and_results_only_on_request(project):
    project.land()

    def deleted():
        return sum(call.method == "DELETE" for call in project.emulator.books.calls)

    assert project.json("prune", "--delete", "--yes")["request_files"] == 0
    pass_days(project, 4, "collected_at")
    # Deletion at providers needs the definitions, which have the providers. Commands by address do not offer it.
    assert "request_files" not in project.cli("prune", *project.by_address).stdout
    batches = len(project.emulator.books.batches)
    assert f"request files of {batches} batch are to go" in project.on_file("prune").stdout
    assert findings(project)["request files"]["verdict"] == "warning"
    assert deleted() == 0
    assert project.json("prune", "--delete", "--yes")["request_files"] == batches
    assert "request files" not in findings(project)
    assert deleted() == batches
    removed = project.json("prune", "--older-than", "3", "--provider-results", "--delete", "--yes")
    assert (removed["request_files"], removed["provider_results"], removed["troubles"]) == (0, batches, {})
    assert deleted() > batches
    refused = project.cli("prune", "--provider-results", *project.by_address, code=2)
    assert "give the definitions" in refused.output


def test_doctor_says_how_often_forecasts_of_the_end_were_right_and_warns_where_too_many_were_not(project):
    project.land()
    assert "forecasts of ends" not in findings(project)
    with closing(sqlite3.connect(project.ledger)) as connection:
        [[ended]] = connection.execute("SELECT max(ended_at) FROM batch").fetchall()
        connection.execute("UPDATE submission SET p50_end_at = ?, p90_end_at = ?", (ended, ended))
        connection.commit()
    found = findings(project)["forecasts of ends"]
    assert (found["verdict"], found["then"]) == ("ok", None)
    assert "too few forecasts (1)" in found["said"]
    for held, verdict in ((18, "ok"), (17, "ok"), (14, "warning")):
        judged = judge_end_forecasts(EndScore(judged_p50=20, held_p50=9, judged_p90=20, held_p90=held))
        assert judged is not None
        assert judged.said == f"of earlier forecasts {held} of 20 ended by their p90, 9 of 20 by their p50"
        assert (judged.verdict, judged.then is not None) == (verdict, verdict == "warning")


def test_a_partition_that_is_gone_in_flight_is_told_by_doctor_and_watch_with_the_same_words(project):
    project.submit("daily_labels", DAYS[0])
    assert "partitions" not in findings(project)
    project.change('dg.DailyPartitionsDefinition("2026-01-01"', 'dg.DailyPartitionsDefinition("2026-01-02"')
    told = findings(project, code=3)["partitions"]
    assert (
        told["said"]
        == f"daily_labels {DAYS[0]}: partition {DAYS[0]} no longer exists, so its labels cannot be materialized"
    )
    assert f"dagster-llm-batch cancel daily_labels --partition {DAYS[0]}" in told["then"]
    [note] = [one for one in project.json("watch", "--once")["notes"] if "no longer exists" in one]
    assert note == f"{told['said']}. {told['then'].rstrip('.')}"


def test_a_dataset_that_is_gone_in_flight_is_told_by_watch_too(project):
    project.submit()
    project.change('name="ticket_labels"', 'name="renamed_labels"')
    said = findings(project)["assets"]["said"]
    assert any(said in note for note in project.json("watch", "--once")["notes"])


def test_a_database_that_cannot_store_the_labels_is_told_by_doctor_and_plan(project):
    manager = '__import__("dagster_duckdb_pandas").DuckDBPandasIOManager(database=f"{here}/db")'
    project.change('"plain": "no LLMBatchResource"', f'"io_manager": {manager}')
    reason = 'frame="arrow" gives it pyarrow.Table. Give frame="pandas".'
    assert reason in findings(project, code=3)["IO manager of ticket_labels"]["said"]
    assert reason in project.on_file("plan", "ticket_labels", code=1).output


def test_the_last_line_counts_checks_warnings_and_problems(project):
    found = project.json("doctor", code=0)["findings"]
    last = project.on_file("doctor").stdout.splitlines()[-1]
    warnings = sum(finding["verdict"] == "warning" for finding in found)
    fine = sum(finding["verdict"] == "ok" for finding in found)
    assert last == f"{len(found)} checks: {fine} ok, {warnings} warning{'s' * (warnings != 1)}, 0 problems."
