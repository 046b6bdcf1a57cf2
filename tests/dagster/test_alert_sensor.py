"""The sensor that sends alerts: each failed check and each failed tick once, and nothing else."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from code_location import LABELS, CodeLocation, labeled
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.errors import DagsterUserCodeProcessError
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.remote_representation.external_data import SensorExecutionErrorSnap
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._grpc.impl import get_external_sensor_execution
from dagster._utils.error import serializable_error_info_from_exc_info
from test_batch_sensor import change
from test_landing_runs import FullDisk

from dagster_llm_batch import LLMBatchResource, Resend, build_llm_batch_alert_sensor, build_llm_batch_sensor
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.testing.emulator import RowFault


class Alerts:
    """The sensor over a code location, and its alerts."""

    def __init__(self, location: CodeLocation) -> None:
        self.told: list[str] = []
        self.is_away = False
        self.refused: str | None = None
        self.cursor: str | None = None
        self._location = location
        self.tell_seconds = 30.0

    def _notify(self, text: str) -> None:
        if self.is_away or (self.refused and self.refused in text):
            raise ConnectionError("Slack does not answer")
        self.told.append(text)

    def tick(self) -> Any:
        """Evaluate the sensor once. A daemon keeps the cursor only of a tick that succeeded."""
        with dg.build_sensor_context(
            instance=self._location.instance, repository_def=self._location.repository, cursor=self.cursor
        ) as context:
            result = build_llm_batch_alert_sensor(self._notify, tell_seconds=self.tell_seconds)(context)
            self.cursor = context.cursor
            return result


@pytest.fixture
def location(stored, emulator):
    emulator.inject(RowFault(containing="Subject t 1", status_code=400, message="not this one"))
    return CodeLocation(emulator, stored, *labeled(resend=Resend(max_waves=1)))


ORIGIN = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(python_file="x.py"), "x.py")


def error_of_tick(instance: dg.DagsterInstance, repository: dg.RepositoryDefinition, name: str) -> Any:
    """Return the error of a sensor that fails in Dagster's evaluation, as the daemon gets it from the code location."""
    result = get_external_sensor_execution(
        repository, ORIGIN, instance.get_ref(), name, None, None, None, None, time.time()
    )
    assert isinstance(result, SensorExecutionErrorSnap), result
    try:
        raise DagsterUserCodeProcessError.from_error_info(result.error)
    except DagsterUserCodeProcessError:
        return serializable_error_info_from_exc_info(sys.exc_info())


def failed_tick(
    instance: dg.DagsterInstance, name: str, error: str, repository: dg.RepositoryDefinition | None = None
) -> None:
    """Store a failed tick as the daemon does: of the sensor of a repository, or of one that raises `error`."""

    @dg.sensor(name=name)
    def failing(_context: dg.SensorEvaluationContext) -> None:
        raise LLMBatchError(error)

    repository = repository or dg.Definitions(sensors=[failing]).get_repository_def()
    origin = ORIGIN
    sensor = RemoteInstigatorOrigin(RemoteRepositoryOrigin(origin, "__repository__"), name)
    state = InstigatorState(sensor, InstigatorType.SENSOR, InstigatorStatus.RUNNING, SensorInstigatorData())
    if instance.get_instigator_state(state.instigator_origin_id, state.selector_id) is None:
        instance.add_instigator_state(state)
    told = error_of_tick(instance, repository, name)
    which = (state.instigator_origin_id, name, InstigatorType.SENSOR, TickStatus.FAILURE, time.time())
    instance.create_tick(TickData(*which, error=told, selector_id=state.selector_id))


def test_a_failed_tick_is_told_once_with_its_reason_and_those_of_other_sensors_are_not(location):
    failed_tick(location.instance, "llm_batch_sensor", "long ago")
    alerts = Alerts(location)
    alerts.tick()
    failed_tick(location.instance, "llm_batch_sensor", "1 part of the tick failed:\nbatch b-1 is overdue")
    failed_tick(location.instance, "another_sensor", "not ours")
    alerts.tick()
    assert alerts.told == ["llm_batch_sensor: its tick failed. 1 part of the tick failed: batch b-1 is overdue"]
    failed_tick(location.instance, "llm_batch_sensor", "again")
    alerts.tick()
    alerts.tick()
    assert [text.rpartition(" ")[2] for text in alerts.told] == ["overdue", "again"]


def test_failed_ticks_of_all_sensors_of_the_code_location_that_poll_are_told_whatever_their_names(location):
    @dg.sensor(name="another_sensor")
    def another(_context: dg.SensorEvaluationContext) -> None:
        pass

    sensors = [build_llm_batch_sensor("support_llm_batches"), build_llm_batch_sensor("sales_llm_batches"), another]
    resources = {"llm_batch": LLMBatchResource()}
    repository = dg.Definitions(sensors=sensors, resources=resources).get_repository_def()
    alerts = Alerts(SimpleNamespace(instance=location.instance, repository=repository))
    alerts.tick()
    for name in ("support_llm_batches", "another_sensor", "sales_llm_batches", "elsewhere"):
        failed_tick(location.instance, name, f"reason of {name}")
    alerts.tick()
    assert sorted(alerts.told) == [
        f"{name}: its tick failed. reason of {name}" for name in ("sales_llm_batches", "support_llm_batches")
    ]


def test_a_tick_that_needs_a_person_is_told_with_its_reason_and_the_next_command(location):
    alerts = Alerts(location)
    alerts.tick()
    location.submit()
    change(location, "submitted_at = datetime('now', '-3 days') || '.000000'")
    failed_tick(location.instance, "llm_batch_sensor", "", location.repository)
    alerts.tick()
    [text] = alerts.told
    assert text.startswith(f"llm_batch_sensor: its tick failed. {LABELS} needs a person: batch ")
    assert "which is overdue. Look at the provider's console. `dagster-llm-batch resolve " in text


@pytest.mark.slow
def test_a_failed_check_is_told_once_with_what_it_says(location):
    alerts = Alerts(location)
    assert "nothing to send" in alerts.tick().skip_message
    location.land()
    assert "sent 1" in alerts.tick().skip_message
    [text] = alerts.told
    assert text.startswith(f"{LABELS}: the check coverage failed. 2 of 3 rows have a label")
    assert "nothing to send" in alerts.tick().skip_message


@pytest.mark.slow
def test_what_failed_before_the_first_look_is_history(location):
    location.land()
    alerts = Alerts(location)
    alerts.tick()
    alerts.tick()
    assert alerts.told == []


@pytest.mark.slow
def test_what_could_not_be_told_is_told_at_the_next_look(location):
    alerts = Alerts(location)
    alerts.tick()
    location.land()
    alerts.is_away = True
    with pytest.raises(ConnectionError):
        alerts.tick()
    alerts.is_away = False
    alerts.tick()
    assert len(alerts.told) == 1


def test_a_text_that_is_refused_holds_up_no_other_and_makes_none_be_told_twice(location):
    alerts = Alerts(location)
    alerts.tick()
    for reason in ("first", "refused", "last"):
        failed_tick(location.instance, "llm_batch_sensor", reason)
    alerts.refused = "refused"
    assert "sent 2" in alerts.tick().skip_message
    with pytest.raises(ConnectionError):
        alerts.tick()
    alerts.refused = None
    assert "sent 1" in alerts.tick().skip_message
    assert "nothing to send" in alerts.tick().skip_message
    assert [text.rpartition(" ")[2] for text in alerts.told] == ["first", "last", "refused"]


@pytest.mark.slow
def test_of_very_many_failures_all_are_told_also_by_a_sensor_that_has_little_time(location):
    alerts = Alerts(location)
    alerts.tick()
    location.land()
    with location.instance.event_log_storage.index_connection() as connection:
        columns = "asset_key, check_name, execution_status, evaluation_event, create_timestamp"
        failed = "FROM asset_check_executions WHERE execution_status = 'FAILED' LIMIT 1"
        copy = f"INSERT INTO asset_check_executions ({columns}, run_id) SELECT {columns}, :run {failed}"
        connection.execute(sa.text(copy), [{"run": f"run {number}"} for number in range(204)])
    failed_tick(location.instance, "llm_batch_sensor", "of 205")
    with location.instance.schedule_storage.connect() as connection:
        columns = "job_origin_id, selector_id, status, type, timestamp, tick_body"
        copy = f"INSERT INTO job_ticks ({columns}) SELECT {columns} FROM job_ticks LIMIT 1"
        connection.execute(sa.text(copy), [{}] * 204)
    alerts.tell_seconds = 0.0
    assert "sent 1; 409 follow at the next tick" in alerts.tick().skip_message
    alerts.tell_seconds = 30.0
    assert "sent 409" in alerts.tick().skip_message
    assert [text.split(":")[0] for text in alerts.told].count(LABELS) == 205
    assert "nothing to send" in alerts.tick().skip_message


@pytest.mark.slow
def test_a_landing_that_fails_is_told_once_with_its_reason(stored, emulator):
    location = CodeLocation(emulator, stored, *labeled(), resources={"io_manager": FullDisk(None)})
    alerts = Alerts(location)
    alerts.tick()
    result = location.land()
    alerts.tick()
    told = f"Run {result.run_id[:8]} failed: OSError: No space left on device"
    assert alerts.told == [f"{LABELS}: the check coverage failed. {told}"]


@pytest.mark.slow
def test_a_verdict_that_a_run_without_news_repeats_is_not_told_again(location, emulator):
    alerts = Alerts(location)
    alerts.tick()
    location.land()
    alerts.tick()
    location.submit(run_config={"ops": {"ticket_labels_batch": {"config": {"again": True}}}})
    assert location.collect().success  # too early
    assert "nothing to send" in alerts.tick().skip_message
    assert len(alerts.told) == 1


def test_checks_of_other_assets_are_not_told(stored, emulator):
    @dg.asset(check_specs=[dg.AssetCheckSpec("theirs", asset="other")])
    def other():
        yield dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=False, check_name="theirs")])

    location = CodeLocation(emulator, stored, *labeled(), other)
    alerts = Alerts(location)
    alerts.tick()
    location.run("other")
    alerts.tick()
    assert alerts.told == []
