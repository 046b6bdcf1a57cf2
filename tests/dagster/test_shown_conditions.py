"""Ticks, alerts, `doctor`, `watch` and the checks of assets show each condition alike, with the same next step."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from code_location import DAILY, DAYS, LABELS, CodeLocation, labeled, tickets
from test_alert_sensor import Alerts, failed_tick
from test_batch_sensor import change, tick
from test_sensor_troubles import failing_tick
from test_waiting_for_a_person import LONG_AGO, coverage

import dagster_llm_batch
from dagster_llm_batch import QueueLimit, Spend
from dagster_llm_batch.cli.main import main
from dagster_llm_batch.engine import conditions
from dagster_llm_batch.engine.conditions import ConditionKind
from dagster_llm_batch.storage.ledger.events import EventData, Held, OverBudget, Recovered, Stopped
from dagster_llm_batch.testing.emulator import BatchFault, Emulator, WireFault, lost_create_reply
from tests.statements import statements

HOURS_AGO = "datetime('now', '-2 hours') || '.000000'"
CUSTOMERS = dg.DynamicPartitionsDefinition(name="customers")
UNSENT = ("12 of 12 requests are not sent: nothing fits", "Mend the cause; then `dagster-llm-batch retry` asks again")

Scene = Callable[[Emulator, dg.DagsterInstance], CodeLocation]


def submitted(emulator: Emulator, instance: dg.DagsterInstance, *faults: Any, **options: Any) -> CodeLocation:
    emulator.inject(*faults)
    location = CodeLocation(emulator, instance, *labeled(), **options)
    location.submit()
    emulator.clear_faults()
    return location


def with_event(location: CodeLocation, data: EventData) -> CodeLocation:
    engine = location.engine()
    engine.ledger.events.add(engine.latest(LABELS).submission_id, data)
    engine.ledger.close()
    return location


def without_dataset(emulator: Emulator, instance: dg.DagsterInstance) -> CodeLocation:
    submitted(emulator, instance)
    location = CodeLocation(emulator, instance, *labeled(name="others"))
    change(location, LONG_AGO)
    return location


def without_partition(emulator: Emulator, instance: dg.DagsterInstance) -> CodeLocation:
    instance.add_dynamic_partitions("customers", ["gone"])
    location = CodeLocation(emulator, instance, *labeled(partitions_def=CUSTOMERS))
    location.submit(partition="gone")
    instance.delete_dynamic_partition("customers", "gone")
    return location


def stranded(emulator: Emulator, instance: dg.DagsterInstance) -> CodeLocation:
    location = submitted(emulator, instance)
    tick(location)
    engine = location.engine()
    engine.activity.note_stranded(
        engine.latest(LABELS).submission_id, "run 1234, which should materialize them, was canceled"
    )
    engine.ledger.close()
    return location


def in_doubt(emulator: Emulator, instance: dg.DagsterInstance) -> CodeLocation:
    unread = WireFault(kind="status", route="GET /v1/batches", status=503, retry_after="0.01", times=None)
    location = submitted(emulator, instance, lost_create_reply(), unread)
    emulator.inject(unread)
    change(location, f"sent_at = {HOURS_AGO}")
    return location


def overdue(emulator: Emulator, instance: dg.DagsterInstance) -> CodeLocation:
    location = submitted(emulator, instance)
    change(location, LONG_AGO)
    return location


def unreadable(emulator: Emulator, instance: dg.DagsterInstance) -> CodeLocation:
    location = submitted(emulator, instance)
    fault = WireFault(kind="status", route="GET /v1/files/*/content", status=503, retry_after="0.01", times=None)
    emulator.inject(fault)
    emulator.settle()
    location.launch(tick(location).run_requests[0])
    change(location, f"since = {HOURS_AGO}", "hold")
    return location


def without_room(emulator: Emulator, instance: dg.DagsterInstance) -> CodeLocation:
    emulator.inject(BatchFault(kind="fails", batches=[0]))
    location = CodeLocation(emulator, instance, *labeled())
    location.submit()
    emulator.settle()
    tick(location)
    soon = "datetime('now', '+50 minutes') || '.000000'"
    change(location, f"no_room_at = '2026-01-01 00:00:00.000000', waits_until = {soon}")
    return location


def held_queue(emulator: Emulator, instance: dg.DagsterInstance) -> CodeLocation:
    limits = {"queue_limits": {"openai": QueueLimit(max_batches=1)}}
    submitted(emulator, instance, namespace="former", **limits)
    location = submitted(emulator, instance, **limits)
    change(
        location,
        f"polled_at = {HOURS_AGO}, sent_at = {HOURS_AGO}, submitted_at = {HOURS_AGO} where batch_id is not null",
    )
    return location


def not_sent(emulator: Emulator, instance: dg.DagsterInstance) -> CodeLocation:
    away = WireFault(kind="status", route="POST /v1/files", status=429, retry_after="0.01", times=None)
    location = submitted(emulator, instance, away)
    emulator.inject(away)
    change(location, f"at = {HOURS_AGO}", "event")
    # It tries again, in vain, and is due again after ten minutes.
    change(location, "created_at = '2026-01-01 00:00:00.000000'", "submission")
    location.launch(tick(location).run_requests[0])
    return location


def refused(emulator: Emulator, instance: dg.DagsterInstance) -> CodeLocation:
    return submitted(emulator, instance, WireFault(kind="status", status=400, route="POST /v1/batches", times=None))


def without_money(emulator: Emulator, instance: dg.DagsterInstance) -> CodeLocation:
    limited = labeled(
        rows=lambda _: tickets(12),
        response=None,
        params={},
        max_cost_usd="0.5",
        spend=Spend(limit="hard", expected_output_tokens=10),
    )
    location = CodeLocation(emulator, instance, *limited)
    location.submit()
    location.launch(tick(location).run_requests[0])
    return location


SCENES: dict[ConditionKind, Scene] = {
    ConditionKind.NO_DATASET: without_dataset,
    ConditionKind.NO_PARTITION: without_partition,
    ConditionKind.STRANDED: stranded,
    ConditionKind.RECOVERED: lambda *where: with_event(submitted(*where), Recovered(1, "2026-01-01 00:00")),
    ConditionKind.IN_DOUBT: in_doubt,
    ConditionKind.OVERDUE: overdue,
    ConditionKind.UNREADABLE: unreadable,
    ConditionKind.NO_ROOM: without_room,
    ConditionKind.HELD_QUEUE: held_queue,
    ConditionKind.NOT_SENT: not_sent,
    ConditionKind.REFUSED: refused,
    ConditionKind.HELD: lambda *where: with_event(submitted(*where), Held(*UNSENT)),
    ConditionKind.STOPPED: lambda *where: with_event(submitted(*where), Stopped(*UNSENT)),
    ConditionKind.OVER_BUDGET: lambda *where: with_event(submitted(*where), OverBudget(*UNSENT)),
    ConditionKind.NO_MONEY: without_money,
}

# Failed checks of labels alert people to these conditions, and ticks do not fail.
TOLD_BY_CHECKS = {
    ConditionKind.STRANDED,
    ConditionKind.REFUSED,
    ConditionKind.HELD,
    ConditionKind.STOPPED,
    ConditionKind.OVER_BUDGET,
    ConditionKind.NO_MONEY,
}

definitions: dg.Definitions


def command(name: str, tmp_path: Path, location: CodeLocation, *options: str) -> Any:
    """Run a command that looks at the location, as its user types it, and return its JSON."""
    global definitions  # noqa: PLW0603 - the file that the command loads has no other way to it
    definitions = location.defs
    file = tmp_path / "shown.py"
    file.write_text("import test_shown_conditions\n\ndefs = test_shown_conditions.definitions\n")
    result = CliRunner().invoke(main, [name, "--json", *options, "-f", str(file)])
    assert result.exit_code in {0, 3}, result.output
    return json.loads(result.stdout)


def test_each_kind_has_a_scene() -> None:
    assert set(SCENES) == set(ConditionKind)


@pytest.mark.parametrize("kind", ConditionKind, ids=lambda kind: kind.name.lower())
def test_a_condition_is_the_same_one_in_ticks_alerts_doctor_watch_and_checks(
    emulator: Emulator, stored: dg.DagsterInstance, tmp_path: Path, kind: ConditionKind
) -> None:
    location = SCENES[kind](emulator, stored)
    alerts = Alerts(location)
    alerts.tick()
    [found] = [one for one in command("doctor", tmp_path, location)["findings"] if one["check"] == kind.value]
    passes = {*TOLD_BY_CHECKS - {ConditionKind.STRANDED}, ConditionKind.RECOVERED}
    assert found["verdict"] == ("warning" if kind in passes else "problem")
    then = found["then"].rstrip(".")

    watched = command("watch", tmp_path, location, "--once")
    [shown] = [one for one in watched["conditions"] if one["kind"] == kind.value]
    assert shown["then"] == then
    assert shown["reason"] in found["said"]
    assert any(then in note for note in watched["notes"])

    if kind not in TOLD_BY_CHECKS:
        failed_tick(stored, "llm_batch_sensor", "", location.repository)
        alerts.tick()
        assert any(then in text for text in alerts.told)
    if kind is not ConditionKind.REFUSED:
        # After a refusal, the tick requests the run that materializes the labels.
        assert then in tick(location).skip_message


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ConditionKind.NOT_SENT, ConditionKind.REFUSED, ConditionKind.RECOVERED])
def test_the_check_of_a_submission_shows_the_condition_that_the_commands_show(
    emulator: Emulator, stored: dg.DagsterInstance, tmp_path: Path, kind: ConditionKind
) -> None:
    location = SCENES[kind](emulator, stored)
    [found] = [one for one in command("doctor", tmp_path, location)["findings"] if one["check"] == kind.value]
    [sent] = location.submit().get_asset_check_evaluations()
    assert not sent.passed
    assert found["then"] in (sent.description or "")


@pytest.mark.parametrize("kind", [ConditionKind.STOPPED, ConditionKind.OVER_BUDGET])
def test_the_check_of_labels_shows_the_condition_that_the_commands_show(
    emulator: Emulator, stored: dg.DagsterInstance, tmp_path: Path, kind: ConditionKind
) -> None:
    location = SCENES[kind](emulator, stored)
    [found] = [one for one in command("doctor", tmp_path, location)["findings"] if one["check"] == kind.value]
    emulator.settle()
    verdict = coverage(location.collect())
    assert not verdict.passed
    assert found["said"].partition(": ")[2][1:] in verdict.description
    assert found["then"] in verdict.description


@pytest.mark.slow
def test_a_tick_reads_the_ledger_as_often_for_many_partitions_as_for_few(
    emulator: Emulator, stored: dg.DagsterInstance
) -> None:
    location = CodeLocation(emulator, stored, *labeled(partitions_def=DAILY))
    counts = []
    for span in ((DAYS[0], DAYS[1]), (DAYS[2], DAYS[9])):
        location.submit(span=span)
        with statements() as asked:
            location.tick()
        counts.append(sum(" submission" in statement for statement in asked))
    assert counts[0] == counts[1] <= 20


def test_a_row_of_the_ledger_that_cannot_be_read_costs_the_conditions_of_its_submission_alone(
    emulator: Emulator, stored: dg.DagsterInstance, tmp_path: Path
) -> None:
    location = CodeLocation(emulator, stored, *labeled(partitions_def=DAILY))
    location.submit(span=(DAYS[0], DAYS[1]))
    emulator.inject(WireFault(kind="status", route="GET /v1/files/*/content", status=503, times=None))
    emulator.settle()
    for request in tick(location).run_requests:
        location.launch(request)
    change(location, f"since = {HOURS_AGO}", "hold")
    engine = location.engine()
    damaged = engine.latest(LABELS, DAYS[0]).submission_id
    engine.ledger.close()
    change(location, f"since = 'damaged' WHERE submission_id = '{damaged}'", "hold")
    change(location, f"at = 'damaged' WHERE kind = 'unreadable' AND submission_id = '{damaged}'", "event")
    said = failing_tick(location)
    assert f"{LABELS} {DAYS[1]} needs a person: the results of batch" in said
    # The alert was sent just now; then the tick fails because of the row.
    assert "the ledger's row" in failing_tick(location)
    found = {one["check"]: one["said"] for one in command("doctor", tmp_path, location)["findings"]}
    assert DAYS[1] in found[ConditionKind.UNREADABLE.value]
    assert "cannot be read" in found["ledger rows"]


NAMES = [f"labels_{number:02d}" for number in range(23)]


def many(emulator: Emulator, stored: dg.DagsterInstance, route: str, status: int) -> CodeLocation:
    """Make many datasets that cannot be sent, the first with four partitions."""
    options = {NAMES[0]: {"partitions_def": DAILY}}
    assets = [one for name in NAMES for one in labeled(name=name, **options.get(name, {}))]
    location = CodeLocation(emulator, stored, *assets)
    emulator.inject(WireFault(kind="status", route=route, status=status, retry_after="0.01", times=None))
    location.run(f"{NAMES[0]}_batch", span=(DAYS[0], DAYS[3]))
    location.run(*(f"{name}_batch" for name in NAMES[1:]))
    return location


@pytest.mark.slow
def test_doctor_shows_of_each_dataset_that_cannot_send_its_reason_however_many_there_are(
    emulator: Emulator, stored: dg.DagsterInstance, tmp_path: Path
) -> None:
    location = many(emulator, stored, "POST /v1/files", 429)
    change(location, f"at = {HOURS_AGO}", "event")
    findings = [one for one in command("doctor", tmp_path, location)["findings"] if one["check"] == "unsent batches"]
    assert [name for name in NAMES if not any(name in one["said"] for one in findings)] == []
    assert "3 more like these" in findings[-1]["said"]


@pytest.mark.slow
def test_a_tick_tells_of_each_dataset_that_needs_a_person_however_many_there_are(
    emulator: Emulator, stored: dg.DagsterInstance
) -> None:
    location = many(emulator, stored, "POST /v1/batches", 503)
    emulator.inject(WireFault(kind="status", route="GET /v1/batches", status=503, retry_after="0.01", times=None))
    change(location, f"sent_at = {HOURS_AGO}")
    said = failing_tick(location)
    assert [name for name in NAMES[1:] if f"{name} needs a person: shard" not in said] == []
    assert f"{NAMES[0]} {DAYS[0][:-1]}" in said  # one of its partitions
    assert "And 3 submissions more" in said


FACES = (
    "sensors/tick.py",
    "sensors/polling.py",
    "sensors/readiness.py",
    "sensors/reporting.py",
    "sensors/alerts.py",
    "cli/doctor.py",
    "cli/watch.py",
    "checks.py",
    "check_events.py",
    "assets/landing_wait.py",
    "jobs.py",
    "cli/decisions.py",
)


@pytest.mark.parametrize("face", FACES)
def test_who_shows_conditions_finds_none_by_itself(face: str) -> None:
    """Allow advice and thresholds only in the list of conditions."""
    tree = ast.parse((Path(dagster_llm_batch.__file__).parent / face).read_text(encoding="utf-8"))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    worded = {name for name in vars(conditions) if name.startswith("advise_on_")}
    assert not worded & imported
    assert not {"overdue", "unreadable", "starved", "orphans", "find_held_queues"} & (called | imported)
