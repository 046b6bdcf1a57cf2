"""Two teams with a code location and a namespace each, on one Dagster, ledger, payload store and vendor's account.

Both have sensors of the same names. Dagster evaluates these as it does for its daemon.
"""

from __future__ import annotations

import time

import dagster as dg
import pytest
from code_location import CodeLocation, labeled
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.remote_representation.external_data import SensorExecutionErrorSnap
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._grpc.impl import get_external_sensor_execution
from test_batch_sensor import change

from dagster_llm_batch import Resend, build_llm_batch_alert_sensor, build_llm_batch_sensor
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.testing.emulator import Emulator, RowFault

pytestmark = pytest.mark.slow

POLLS, ALERTS = "llm_batch_sensor", "llm_batch_alert_sensor"


class Team:
    """A team's code location, and the texts that its alert sensor sends."""

    def __init__(self, name: str, emulator: Emulator, instance: dg.DagsterInstance) -> None:
        self.name, self.told = name, list[str]()
        self.labels = f"{name}_labels"
        assets = labeled(name=self.labels, resend=Resend(max_waves=1))
        self.location = CodeLocation(emulator, instance, *assets, namespace=name)
        sensors = [build_llm_batch_sensor(), build_llm_batch_alert_sensor(self.told.append)]
        self.location.defs = dg.Definitions(assets=assets, sensors=sensors, resources=self.location.resources)
        self.location.repository = self.location.defs.get_repository_def()
        target = LoadableTargetOrigin(python_file=f"{name}.py")
        self._origin = ManagedGrpcPythonEnvCodeLocationOrigin(target, name)
        self._cursors: dict[str, str | None] = {}

    def tick(self, sensor: str) -> SensorExecutionData | SensorExecutionErrorSnap:
        """Evaluate a sensor, and store its tick as the daemon does."""
        instance, repository = self.location.instance, self.location.repository
        given = (sensor, None, None, self._cursors.get(sensor), None, None)
        found = get_external_sensor_execution(repository, self._origin, instance.get_ref(), *given)
        error = found.error if isinstance(found, SensorExecutionErrorSnap) else None
        origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(self._origin, "__repository__"), sensor)
        state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, SensorInstigatorData())
        if instance.get_instigator_state(state.instigator_origin_id, state.selector_id) is None:
            instance.add_instigator_state(state)
        status = TickStatus.SUCCESS if error is None else TickStatus.FAILURE
        which = (state.instigator_origin_id, sensor, InstigatorType.SENSOR, status, time.time())
        run_ids: list[str] | None = [] if error is None else None
        instance.create_tick(TickData(*which, run_ids=run_ids, error=error, selector_id=state.selector_id))
        if isinstance(found, SensorExecutionData):
            self._cursors[sensor] = found.cursor
        return found

    def asked(self, *, succeeds: bool = True) -> list[str]:
        """Tick the sensor that polls, and launch the runs that it requests; return the names of their assets."""
        found = self.tick(POLLS)
        assert isinstance(found, SensorExecutionData), found
        for request in found.run_requests or ():
            assert self.location.launch(request).success is succeeds
        keys = [key for request in found.run_requests or () for key in request.asset_selection or ()]
        return sorted(key.to_user_string() for key in keys)

    def states(self) -> list[ShardState]:
        """Return the states of the team's shards."""
        engine = self.location.engine()
        submissions = engine.ledger.submissions.list_all(self.name)
        shards = [shard for one in submissions for shard in engine.ledger.shards.of_submission(one.submission_id)]
        engine.ledger.close()
        return [shard.state for shard in shards]

    def submit(self) -> None:
        assert self.location.run(f"{self.labels}_batch").success


@pytest.fixture
def teams(emulator: Emulator, stored: dg.DagsterInstance) -> tuple[Team, Team]:
    support, sales = Team("support", emulator, stored), Team("sales", emulator, stored)
    for team in (support, sales):
        # Failures before its first tick are not reported.
        team.tick(ALERTS)
    return support, sales


def test_each_sensor_collects_the_batches_of_its_own_team(teams: tuple[Team, Team], emulator: Emulator) -> None:
    support, sales = teams
    for team in teams:
        team.submit()
    emulator.settle()
    for team, other in ((support, sales), (sales, support)):
        before = other.states()
        assert team.asked() == [team.labels, f"{team.labels}_rejects"]
        assert (team.states(), other.states()) == ([ShardState.COLLECTED], before)
        # Nothing is left for it, also while the other team has labels to materialize.
        assert team.asked() == []
    assert sales.states() == support.states() == [ShardState.COLLECTED]
    assert [len(team.location.materializations(team.labels)) for team in teams] == [1, 1]


def test_each_alert_sensor_reports_the_failed_checks_and_ticks_of_its_own_team(
    teams: tuple[Team, Team], emulator: Emulator
) -> None:
    support, sales = teams
    emulator.inject(RowFault(containing="Subject t 1", times=1))
    support.submit()
    emulator.settle()
    # The check blocks, so it fails the run.
    assert support.asked(succeeds=False) != []
    sales.submit()
    change(sales.location, "submitted_at = datetime('now', '-3 days') || '.000000' WHERE state = 'running'")
    assert isinstance(sales.tick(POLLS), SensorExecutionErrorSnap)
    assert isinstance(support.tick(POLLS), SensorExecutionData)
    for team in (*teams, *teams):
        assert isinstance(team.tick(ALERTS), SensorExecutionData)
    assert [text.partition(".")[0] for text in support.told] == [f"{support.labels}: the check coverage failed"]
    assert [text.partition(" needs")[0] for text in sales.told] == [f"{POLLS}: its tick failed. {sales.labels}"]
