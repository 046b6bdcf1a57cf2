"""`list`, `show`, `watch` and `cost` show the ledger's records, with and without definitions."""

from __future__ import annotations

import csv
import io
import json
import time
from datetime import timedelta
from decimal import Decimal
from functools import partial
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.types import DaemonHeartbeat
from dagster_shared.error import SerializableErrorInfo
from project import DAYS
from rich.console import Console

from dagster_llm_batch.cli.output import money, table
from dagster_llm_batch.cli.watch import Snapshot, show_until
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.testing.emulator import BatchFault, RowFault, WireFault
from tests.emulator_pace import settles_after

REPOSITORY = RemoteRepositoryOrigin(
    ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(python_file="support.py"), "support.py"),
    "__repository__",
)


@pytest.mark.parametrize("way", ["definitions", "address"])
def test_list_shows_what_is_under_way_and_with_all_what_has_landed(project, way):
    where = ["-f", str(project.file)] if way == "definitions" else project.by_address
    project.land()
    project.submit("daily_labels", DAYS[0])
    under_way = json.loads(project.cli("list", *where, "--json").stdout)
    assert [(one["asset"], one["shards"]) for one in under_way["submissions"]] == [("daily_labels", {"submitted": 2})]
    everything = json.loads(project.cli("list", "--all", *where, "--json").stdout)["submissions"]
    assert [one["asset"] for one in everything] == ["daily_labels", "ticket_labels"]  # newest first
    assert everything[1]["outcomes"] == {"succeeded": 3}
    text = project.cli("list", "--all", *where).stdout
    assert "settled, materialized" in text
    assert "2 submitted" in text


@pytest.mark.slow
def test_list_takes_filters_and_a_limit(project):
    for day in DAYS:
        project.submit("daily_labels", day)
    project.submit()

    def listed(*arguments):
        return [one["partition"] for one in project.json("list", *arguments)["submissions"]]

    assert listed("--asset", "daily_labels") == DAYS[::-1]
    assert listed("--asset", "daily_labels", "-n", "2") == DAYS[:0:-1]
    assert listed("-p", DAYS[1]) == [DAYS[1]]
    assert listed("--state", "settled") == []


def test_an_empty_list_says_why(project):
    project.land()

    def said(*words):
        return project.on_file("list", *words).stderr.splitlines()[-1]

    assert said() == "No submission found. With --all, it also lists submissions whose labels are materialized."
    assert said("--all", "-p", "nope") == "No submission found."
    assert said("--asset", "nope") == "Nothing was submitted as 'nope'; assets that have submissions: ticket_labels."
    assert said("--namespace", "nope") == "Nothing was submitted in namespace 'nope'."


def test_costs_of_an_asset_that_nothing_was_submitted_as_say_so(project):
    project.submit()
    said = project.on_file("cost", "--namespace", "empty").stderr.splitlines()[-1]
    assert said == "Nothing was submitted in namespace 'empty'."
    assert "Nothing was submitted" not in project.on_file("cost", "--asset", "ticket_labels").stderr
    said = project.on_file("cost", "--asset", "nope", "--asset", "ticket_labels").stderr.splitlines()[-1]
    assert said == "Nothing was submitted as 'nope'; assets that have submissions: ticket_labels."


@pytest.mark.slow
def test_show_takes_an_id_a_beginning_of_it_or_an_asset_with_its_partition(project):
    project.submit("daily_labels", DAYS[0])
    project.submit("daily_labels", DAYS[1])
    by_asset = project.json("show", "daily_labels", "-p", DAYS[0])
    submission_id = by_asset["submission"]["submission_id"]
    assert project.json("show", submission_id) == project.json("show", submission_id[:8]) == by_asset
    assert [one["state"] for one in by_asset["shards"]] == ["submitted", "submitted"]
    assert by_asset["events"][0]["kind"] == "opened"
    assert [one["kind"] for one in project.json("show", submission_id, "--events", "1")["events"]] == ["accepted"]
    assert project.json("show", submission_id, "--events", "0")["events"] == []
    text = project.on_file("show", submission_id).stdout
    for part in (submission_id, "openai/gpt-4o", "submitted", "batch_"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["daily_labels"], 2, "has several partitions; say which with --partition: 2026-01-02, 2026-01-01"),
        (["daily_labels", "-p", "2026-01-03"], 1, "Nothing was submitted for partition '2026-01-03'"),
        (["nothing"], 1, "Assets that have: daily_labels"),
        (["0000"], 1, "neither a submission in namespace 'test'"),
    ],
)
def test_a_target_that_is_not_one_submission_is_answered_with_what_there_is(project, arguments, code, said):
    project.submit("daily_labels", DAYS[0])
    project.submit("daily_labels", DAYS[1])
    assert said in project.on_file("show", *arguments, code=code).stderr


def test_show_has_no_dash_for_what_an_event_or_a_shard_does_not_have_and_no_column_of_nothing(project, monkeypatch):
    project.land()
    project.submit("daily_labels", DAYS[0])
    for width in ("80", "240"):
        monkeypatch.setenv("COLUMNS", width)
        landed, flying = (project.on_file("show", name).stdout for name in ("ticket_labels", "daily_labels"))
        for told in (landed, flying):
            assert "-" not in told.split()
        events = [line.split() for line in landed.partition("\nEvents")[2].splitlines()]
        assert ["at", "(UTC)", "shard", "what", "then", "detail"] in events
        assert ["opened", "open"] in [words[2:] for words in events]
        assert ["status", "unknown", "->", "ended"] in [words[3:] for words in events]
        events = [line.split() for line in flying.partition("\nEvents")[2].splitlines()]
        assert ["at", "(UTC)", "shard", "what", "then"] in events
        shards = flying.partition("\nShards")[2].partition("\nEvents")[0]
        assert "submitted" in shards
        assert not {"done", "failed", "cost", "cause", "reason"} & set(shards.split())


def test_what_a_provider_says_stays_one_line_of_plain_text(project):
    nasty = "bad [bold]line[/]\x1b[31m\nwith \u202ean end"
    project.emulator.inject(BatchFault(kind="fails", message=nasty))
    project.submit()
    project.emulator.settle()
    project.on_file("watch", "--poll", "--once")
    text = project.on_file("show", "ticket_labels").stdout
    assert "bad [bold]line[/]" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_watch_asks_the_providers_only_where_told_to_and_ends_when_batches_have(project):
    project.submit()
    project.emulator.settle()
    calls = len(project.emulator.books.calls)
    [look] = json.loads(project.on_file("watch", "--once", "--json").stdout)["submissions"]
    assert (look["requests_done"], look["shards"]) == (0, {"submitted": 1})
    assert (look["expected_end_at"], look["has_too_few_days"]) == (None, True)
    assert "too few days" in " ".join(project.on_file("watch", "--once").stdout.split())
    assert len(project.emulator.books.calls) == calls
    result = project.on_file("watch", "--poll", "--until", "ended", "--interval", "0.05", "--json")
    [line] = result.stdout.splitlines()
    [look] = json.loads(line)["submissions"]
    assert (look["requests_done"], look["requests_total"], look["shards"]) == (3, 3, {"ended": 1})
    assert len(project.emulator.books.batches) == 1


def test_watch_follows_a_batch_to_its_end_a_line_for_each_change(project):
    project.submit()
    polls = partial(project.emulator.books.calls_to, "GET", f"/v1/batches/{project.emulator.books.batches[0].id}")
    with settles_after(project.emulator, lambda: polls() > 2):
        text = project.on_file("watch", "ticket_labels", "--poll", "--until", "ended", "--interval", "0.05").stdout
    lines = text.splitlines()
    assert lines[0].startswith("ticket_labels: round 1: 1 batch submitted; 0 of 3 requests done (0 %); oldest 0 m")
    assert lines[-1].startswith("ticket_labels: round 1: 1 batch ended; 3 of 3 requests done (100 %)")
    assert len(lines) < polls()


def test_watch_looks_until_there_is_nothing_to_wait_for_and_sleeps_between():
    progress = SimpleNamespace(states={ShardState.SUBMITTED: 1})
    ended = SimpleNamespace(states={ShardState.ENDED: 1})
    looks = [Snapshot([(one, None)], []) for one in (progress, progress, ended)] + [Snapshot([], [])]
    for until, seen in {"looked": 1, "ended": 3, "landed": 4}.items():
        left, shown, naps = iter(looks), [], []
        show_until(lambda left=left: next(left), shown.append, until, 7.0, naps.append)
        assert (shown, naps) == (looks[:seen], [7.0] * (seen - 1))


def test_of_rows_that_are_all_answered_watch_says_that_there_is_nothing_to_send(project):
    project.land()
    project.change("range(3)", "range(2)")
    project.submit()
    told, *_ = project.on_file("watch", "--until", "ended").stdout.splitlines()
    assert told == "ticket_labels: round 1: nothing to send"
    shown = project.on_file("show", "ticket_labels").stdout
    assert "Events" in shown
    assert "Shards" not in shown


def test_watch_says_when_nothing_is_under_way(project):
    project.land()
    assert project.on_file("watch").stdout.startswith("Nothing is under way.\n")
    assert project.cli("watch", *project.by_address).stdout == "Nothing is under way.\n"
    assert "--poll asks providers" in project.cli("watch", "--poll", *project.by_address, code=2).stderr


def test_a_provider_that_does_not_answer_is_noted_and_watching_goes_on(project):
    project.submit()
    project.emulator.close()
    look = json.loads(project.on_file("watch", "--poll", "--once", "--json").stdout)
    assert look["notes"][0].startswith("A provider could not be asked: ")
    assert look["submissions"][0]["requests_done"] == 0


def test_batches_of_another_account_are_not_asked_about_and_counted(project):
    project.submit()
    project.emulator.settle()
    project.change("timeout_seconds=10", 'timeout_seconds=10, account="another"')
    look = json.loads(project.on_file("watch", "--poll", "--once", "--json").stdout)
    assert look["notes"][0] == "1 batch is of an account not configured here"
    assert look["submissions"][0]["shards"] == {"submitted": 1}


@pytest.mark.slow
def test_costs_are_summed_exactly_by_what_is_asked_and_estimates_stand_apart(project):
    project.change('"max_cost_usd": 1,', '"max_cost_usd": 1, "tags": {"team": "support"},')
    project.land()
    project.land("daily_labels", DAYS[0])
    project.submit("daily_labels", DAYS[1])
    everything = project.json("list", "--all")["submissions"]
    settled = [one for one in everything if one["cost_usd"] is not None]
    told = project.json("cost")
    total = told["total"]
    assert Decimal(total["cost_usd"]) == sum(Decimal(one["cost_usd"]) for one in settled) > 0
    assert Decimal(total["realtime_usd"]) == 2 * Decimal(total["cost_usd"])
    assert Decimal(total["saved_usd"]) == Decimal(total["cost_usd"])
    assert (total["wasted_usd"], total["requests_unknown"], total["requests_again"]) == ("0", 0, 0)
    [flying] = [one for one in everything if one["cost_usd"] is None]
    assert Decimal(total["open_usd"]) == Decimal(flying["estimated_usd"])
    assert told["forecast"]["reason"] == "0 complete days are too few, 14 are needed"
    assert Decimal(told["forecast"]["so_far_usd"]) == Decimal(total["cost_usd"]) + Decimal(total["open_usd"])
    charges = [*csv.DictReader(io.StringIO(project.on_file("cost", "--format", "focus").stdout))]
    assert sum(Decimal(one["BilledCost"]) for one in charges) == Decimal(total["cost_usd"])
    assert {json.loads(one["Tags"])["team"] for one in charges} == {"support"}
    assert "Leave out --by" in project.on_file("cost", "--format", "focus", "--by", "asset", code=2).stderr
    groups = project.json("cost", "--by", "asset,partition")["groups"]
    assert [(one["asset"], one["partition"], one["submissions"]) for one in groups] == [
        ("daily_labels", DAYS[0], 1),
        ("daily_labels", DAYS[1], 1),
        ("ticket_labels", "", 1),
    ]
    [group] = project.json("cost", "--by", "model, tag:team")["groups"]
    assert (group["model"], group["tag:team"], group["requests"]) == ("openai/gpt-4o", "support", 9)
    for by in ("provider", "day", "month", "tag", "provider, model,day"):
        assert len(project.json("cost", "--by", by)["groups"]) == 1
    assert project.json("cost", "--since", "2099-01-01")["total"]["requests"] == 0
    assert project.json("cost", "--until", "2099-01-01", "--asset", "ticket_labels")["total"]["submissions"] == 1
    past = project.json("cost", "--month", "2026-01")
    assert (past["total"]["requests"], past["forecast"]["expected_usd"]) == (0, "0.000000")
    assert "not both" in project.on_file("cost", "--month", "2026-01", "--since", "2026-01-01", code=2).stderr


def test_a_table_of_costs_can_be_read_in_80_columns(project, monkeypatch):
    project.land()
    project.land("daily_labels", DAYS[0])
    monkeypatch.setenv("COLUMNS", "80")
    shown = project.on_file("cost").stdout
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Costs in namespace test"
    assert lines[1].split() == ["asset", "requests", "cost", "in", "real", "time", "saved"]
    assert [line.split()[0] for line in lines[2:5]] == ["daily_labels", "ticket_labels", "total"]
    assert "Tokens and waste" in shown
    assert "so far; no forecast: 0 complete days are too few" in " ".join(shown.split())


def test_a_price_that_nobody_knows_is_counted_as_unknown_and_never_as_zero(project):
    project.change('"openai/gpt-4o"', '"openai/no-such-llm"')
    project.change('"max_cost_usd": 1,', "")
    project.land()
    total = project.json("cost")["total"]
    assert (total["requests_unknown"], total["cost_usd"], total["submissions"]) == (3, None, 1)
    assert total["input_tokens"] > 0
    assert project.json("list", "--all")["submissions"][0]["cost_usd"] is None
    assert project.on_file("cost").stdout.splitlines()[2].split()[:3] == ["ticket_labels", "3", "-"]


def test_an_unknown_sum_is_refused(project):
    project.submit()
    refused = project.on_file("cost", "--by", "week", code=2).stderr
    assert "there is no sum 'week'" in refused
    assert "asset, partition" in refused


def test_rejected_rows_are_in_the_outcomes(project):
    project.emulator.inject(RowFault(containing="all 1", status_code=400))
    project.land()
    assert project.json("show", "ticket_labels")["submission"]["outcomes"] == {"errored": 1, "succeeded": 2}
    assert "2 succeeded, 1 errored" in project.on_file("show", "ticket_labels").stdout


def heartbeat(instance, seconds_ago):
    instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - seconds_ago, "SENSOR", None, []))


def sensor_state(status, name="llm_batch_sensor"):
    """Return a sensor's state, as Dagster stores it when the sensor was switched on or off."""
    origin = RemoteInstigatorOrigin(REPOSITORY, name)
    return InstigatorState(origin, InstigatorType.SENSOR, status, SensorInstigatorData())


def tick(instance, state, error=None):
    status = TickStatus.SKIPPED if error is None else TickStatus.FAILURE
    instance.create_tick(
        TickData(
            state.instigator_origin_id,
            state.instigator_name,
            state.instigator_type,
            status,
            time.time(),
            error=error and SerializableErrorInfo(error, [], "Error"),
            selector_id=state.selector_id,
        )
    )


def standstill(project):
    """Return the notes of `watch` on the lack of a process that sends batches."""
    return [note for note in project.json("watch", "--once")["notes"] if note.startswith("Batches are not sent")]


def test_watch_finds_the_sensor_of_the_definitions(project, home):
    project.submit()
    assert "Dagster's daemon, which runs sensors, has never run here. Start it" in standstill(project)[0]
    project.change("sensors=[build_llm_batch_sensor()],", "")
    assert "the definitions have no sensor. Add build_llm_batch_sensor()" in standstill(project)[0]


@pytest.mark.slow
def test_watch_says_why_no_batch_is_sent(project, home):
    project.submit()
    with dg.DagsterInstance.get() as instance:
        heartbeat(instance, seconds_ago=600)
        assert "was last seen 10 m" in standstill(project)[0]
        heartbeat(instance, seconds_ago=10)
        assert "the sensor 'llm_batch_sensor' has not looked yet" in standstill(project)[0]
        state = instance.add_instigator_state(sensor_state(InstigatorStatus.STOPPED))
        assert "the sensor 'llm_batch_sensor' is switched off. Switch it on" in standstill(project)[0]
        instance.update_instigator_state(state.with_status(InstigatorStatus.RUNNING))
        tick(instance, state, "the ledger is locked")
        assert "failed at its last look: the ledger is locked" in standstill(project)[0]
        tick(instance, state)
        assert standstill(project) == []
        assert "are not materialized" not in project.on_file("watch", "--once").stdout


def queue_run(instance, asset):
    """Queue a run of this asset, which waits for Dagster's daemon."""
    job = "__ASSET_JOB"
    origin = RemoteJobOrigin(REPOSITORY, job)
    selection = frozenset([dg.AssetKey(asset)])
    queued = dg.DagsterRunStatus.QUEUED
    run = dg.DagsterRun(job, status=queued, asset_selection=selection, remote_job_origin=origin)
    return instance.add_run(run).run_id


@pytest.mark.slow
def test_before_anything_is_submitted_watch_says_which_runs_are_queued_and_that_no_daemon_starts_them(project, home):
    with dg.DagsterInstance.get() as instance:
        queued = queue_run(instance, "ticket_labels_batch")
        queue_run(instance, "tickets")
        before = project.on_file("watch").stdout
        assert "There is no ledger at" in before
        project.land()
        for told in (before, project.on_file("watch").stdout):
            assert told.startswith("Nothing is under way.\n")
            assert f"\nticket_labels: 1 run is queued: {queued[:8]}\n" in told
            assert "Batches are not sent, and labels are not materialized: Dagster's daemon" in told
            assert "has never run here. Start it" in told
            assert told.count("queued") == 1
        [finding] = [one for one in project.json("doctor")["findings"] if one["check"] == "sensor"]
        assert finding["verdict"] == "warning"
        assert "Dagster's daemon, which runs sensors, has never run here" in finding["said"]
        assert finding["then"].startswith("Start it")
        heartbeat(instance, seconds_ago=10)
        tick(instance, instance.add_instigator_state(sensor_state(InstigatorStatus.RUNNING)))
        assert "are not materialized" not in project.on_file("watch").stdout
        [finding] = [one for one in project.json("doctor")["findings"] if one["check"] == "sensor"]
        assert finding["verdict"] == "ok"


def test_where_all_labels_are_waited_for_nobody_is_missed(project):
    project.change('"max_cost_usd": 1,', '"max_cost_usd": 1, "mode": "wait",')
    project.change("sensors=[build_llm_batch_sensor()],", "")
    project.land()
    assert project.on_file("watch").stdout == "Nothing is under way.\n"
    assert "sensor" not in {one["check"] for one in project.json("doctor")["findings"]}


@pytest.mark.slow
def test_watch_says_what_the_provider_said_that_turned_a_batch_away(project):
    project.emulator.inject(WireFault(kind="status", route="POST /v1/files", status=429, times=None))
    project.submit()
    text = " ".join(project.on_file("watch", "--once").stdout.split())
    assert "ticket_labels: 1 shard is not sent since " in text
    assert "429" in text
    assert "DAGSTER_HOME is not set here" in text


@pytest.mark.parametrize("width", [50, 80, 100, 200])
def test_no_name_is_broken_however_narrow_the_terminal_is(width):
    columns = ["submission", "asset", "partition", "model", "cost", "why"]
    names = ["0123456789ab", "marketing/ticket_labels", "2026-01-01|north", "anthropic/claude-haiku-4-5-20251001"]
    rows = [[*names, money(Decimal("12.5")), "the provider takes nothing now, and says so at some length"]] * 2
    out = io.StringIO()
    Console(file=out, width=width).print(table(columns, rows, title="Two of them"))
    printed = out.getvalue()
    assert max(len(line) for line in printed.splitlines()) <= width
    for text in [*columns, *names, "$12.50"]:
        assert text in printed, printed
    assert printed.count("Two of them") == 1
    assert printed.count("provider") == 2


@pytest.mark.parametrize("width", [60, 80, 93, 100, 200])
def test_no_word_is_broken_for_the_sake_of_a_wide_column_name(width):
    columns = ["asset", "partition", "round", "batches", "done", "failed", "per minute", "age", "expected end (UTC)"]
    rows = [
        [
            "ticket_labels",
            "2026-01-03",
            1,
            "all answered; the labels are not materialized yet",
            "200 of 200 (100 %)",
            0,
        ],
        ["ticket_labels", "2026-01-05", 1, "1 submitted", "0 of 200 (0 %)", 0],
    ]
    out = io.StringIO()
    Console(file=out, width=width).print(
        table(columns, [[*row, None, timedelta(hours=27), "2026-01-05"] for row in rows])
    )
    printed = out.getvalue()
    assert all(len(line) <= width for line in printed.splitlines())
    for word in ["answered;", "expected", "(UTC)", "submitted", "2026-01-05", "200", "(100"]:
        assert word in printed, printed


def test_of_names_and_values_a_long_value_alone_is_folded():
    path = "sqlite:////var/lib/" + "x" * 90
    out = io.StringIO()
    Console(file=out, width=80).print(table(["", ""], [["answers reused", 3], ["ledger", path]]))
    first, second, *rest = [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]
    assert first == "answers reused  3"
    assert second.startswith("ledger          sqlite:////var/lib/xxx")
    assert "".join([second.split()[1], *(line.strip() for line in rest)]) == path


def test_a_fact_that_is_not_known_has_no_line_and_a_table_that_is_too_wide_no_line_for_an_empty_cell():
    out = io.StringIO()
    Console(file=out, width=20).print(table(["", ""], [["partition", None], ["asset", "moods"]]))
    Console(file=out, width=20).print(table(["asset", "partition"], [["a_name_of_some_length", None]]))
    printed = out.getvalue()
    assert "asset  moods" in printed
    assert "a_name" in printed
    assert "partition" not in printed
    assert "-" not in printed
