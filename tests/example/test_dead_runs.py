"""A run that was killed with its Dagster does not hold up the next one."""

from __future__ import annotations

import dagster as dg
import pytest

from example_project.dagster_dev import end_dead_runs


@pytest.mark.parametrize(
    "status", [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.NOT_STARTED]
)
def test_only_runs_that_had_begun_and_have_not_ended_are_ended(tmp_path, status):
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        run = instance.create_run_for_job(dg.job(name="j")(lambda: None), status=status)
        end_dead_runs(tmp_path)
        after = instance.get_run_by_id(run.run_id)
    assert after is not None
    began = status is dg.DagsterRunStatus.STARTED
    assert after.status is (dg.DagsterRunStatus.CANCELED if began else status)
