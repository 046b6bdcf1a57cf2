"""Jobs of the launchpad: a submission is canceled, a shard is resolved, and shards in doubt are on the run's page.

The schedule that deletes stored files by their age.
"""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from code_location import BATCH, DAILY, DAYS, LABELS, CodeLocation, failure, labeled
from test_batch_sensor import change

from dagster_llm_batch import build_llm_batch_jobs, build_llm_batch_retention
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.storage.ledger.records import SubmissionState
from dagster_llm_batch.testing.emulator import WireFault

LOST = WireFault(kind="close", route="POST /v1/batches", when="after")
NOT_CREATED = WireFault(kind="close", route="POST /v1/batches")
UNLISTED = WireFault(kind="status", status=503, route="GET /v1/batches", times=None)


def launch(location: CodeLocation, job: str, **config) -> dg.ExecuteInProcessResult:
    """Run a job from the launchpad, with this configuration of its op."""
    defs = dg.Definitions(assets=location.defs.assets, jobs=build_llm_batch_jobs(), resources=location.resources)
    op = {"llm_batch_cancel": "cancel_submission", "llm_batch_resolve": "resolve_shard"}[job]
    run_config = {"ops": {op: {"config": config}}} if config else None
    return defs.resolve_job_def(job).execute_in_process(
        instance=location.instance, run_config=run_config, raise_on_error=False
    )


def shown(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    """Return the metadata on the run's page."""
    [output] = [event.step_output_data for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    return {name: value.value for name, value in output.metadata.items()}


def in_doubt(location: CodeLocation, lost: WireFault) -> str:
    """Submit with a create call of unknown end; return the shard that needs a decision."""
    location.emulator.inject(lost, UNLISTED)
    assert location.submit().success
    location.emulator.clear_faults()
    [shard] = location.engine().ledger.shards.in_flight("default")
    assert shard.state.value == "submitting"
    return shard.shard_id


def test_a_partition_is_canceled_by_asset_and_its_neighbour_goes_on(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(span=(DAYS[0], DAYS[1]))
    result = launch(location, "llm_batch_cancel", asset=LABELS, partition=DAYS[0])
    assert result.success
    engine = location.engine()
    canceled, other = engine.latest(LABELS, DAYS[0]), engine.latest(LABELS, DAYS[1])
    assert (canceled.state, other.state) == (SubmissionState.CANCELED, SubmissionState.OPEN)
    assert shown(result)["llm_batch/submission_id"] == canceled.submission_id
    emulator.settle()
    assert location.collect(partition=DAYS[1]).success
    assert {one.batch_id for one in emulator.books.executions} == set(engine.status(other.submission_id).batch_ids)


def test_a_submission_is_canceled_by_its_id(make):
    location = make(*labeled())
    location.submit()
    submission_id = location.engine().latest(LABELS).submission_id
    assert launch(location, "llm_batch_cancel", submission_id=submission_id).success
    assert location.engine().latest(LABELS).state is SubmissionState.CANCELED


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"asset": LABELS, "partition": "2026-02-01"}, f"Submitted partitions: {DAYS[0]}"),
        ({"asset": "nothing"}, "Submitted partitions: none at all"),
        ({"submission_id": "0123"}, "The ledger has no submission 0123"),
        ({}, "Give either submission_id, or asset"),
        ({"submission_id": "0123", "asset": LABELS}, "Give either submission_id, or asset"),
    ],
)
def test_a_cancel_that_names_no_submission_says_what_there_is_and_changes_nothing(make, config, said):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(partition=DAYS[0])
    result = launch(location, "llm_batch_cancel", **config)
    assert not result.success
    assert said in failure(result)
    assert location.engine().latest(LABELS, DAYS[0]).state is SubmissionState.OPEN


def test_without_a_shard_the_job_lists_those_in_doubt_and_changes_nothing(make):
    location = make(*labeled())
    assert shown(launch(location, "llm_batch_resolve"))["llm_batch/orphans"] == 0
    shard_id = in_doubt(location, LOST)
    result = launch(location, "llm_batch_resolve")
    assert result.success
    metadata = shown(result)
    assert metadata["llm_batch/orphans"] == 1
    assert shard_id in metadata["llm_batch/orphan_shards"]
    assert LABELS.replace("_", "\\_") in metadata["llm_batch/orphan_shards"]
    assert location.engine().ledger.shards.get(shard_id).state.value == "submitting"


def test_a_shard_that_is_said_to_have_its_batch_is_labeled_and_paid_once(make, emulator):
    location = make(*labeled())
    shard_id = in_doubt(location, LOST)
    [batch] = emulator.books.batches
    assert launch(location, "llm_batch_resolve", shard_id=shard_id, batch_id=batch.id).success
    emulator.settle()
    assert location.collect().success
    assert location.materializations(LABELS)
    assert len(emulator.books.batches) == 1
    assert emulator.books.billed_twice() == {}


def test_a_shard_that_is_said_to_have_no_batch_is_sent_by_the_next_run(make, emulator):
    location = make(*labeled())
    shard_id = in_doubt(location, NOT_CREATED)
    assert launch(location, "llm_batch_resolve", shard_id=shard_id, no_batch=True).success
    assert location.run(BATCH).success
    emulator.settle()
    assert location.collect().success
    assert len(emulator.books.batches) == 1
    assert len(location.materializations(LABELS)) == 1


def test_a_batch_that_never_ends_is_given_up_and_its_rows_land_without_a_label(make, emulator):
    location = make(*labeled())
    location.submit()
    [shard] = location.engine().ledger.shards.in_flight("default")
    change(location, "submitted_at = datetime('now', '-3 days') || '.000000'")
    listed = shown(launch(location, "llm_batch_resolve"))
    assert listed["llm_batch/batches_overdue"] == 1
    assert shard.shard_id in listed["llm_batch/orphan_shards"]
    assert launch(location, "llm_batch_resolve", shard_id=shard.shard_id, lost=True).success
    location.collect()
    assert location.metadata()["llm_batch/rows_missing"] == 3
    assert len(emulator.books.batches) == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"shard_id": "abcd", "no_batch": True}, "The ledger has no shard abcd"),
        ({"shard_id": "SHARD"}, "Give one of batch_id"),
        ({"shard_id": "SHARD", "batch_id": "batch_1", "no_batch": True}, "Give one of batch_id"),
        ({"no_batch": True}, "Which shard? Shards that wait for a decision: "),
    ],
)
def test_a_resolve_that_does_not_say_what_became_of_which_shard_lists_them_and_changes_nothing(make, config, said):
    location = make(*labeled())
    shard_id = in_doubt(location, LOST)
    config = {name: shard_id if value == "SHARD" else value for name, value in config.items()}
    result = launch(location, "llm_batch_resolve", **config)
    assert not result.success
    text = failure(result)
    assert said in text
    assert shard_id in text
    assert location.engine().ledger.shards.get(shard_id).state.value == "submitting"


def retained(location: CodeLocation, schedule: dg.ScheduleDefinition, **config) -> dict[str, object]:
    """Run the request of a schedule's tick, or `config` from the launchpad; return the metadata on the run's page."""
    defs = dg.Definitions(assets=location.defs.assets, schedules=[schedule], resources=location.resources)
    with dg.build_schedule_context(instance=location.instance, scheduled_execution_time=datetime.now(UTC)) as context:
        [request] = schedule.evaluate_tick(context).run_requests
    run_config = {"ops": {"prune_payloads": {"config": config}}} if config else request.run_config or None
    result = defs.resolve_job_def(schedule.job_name).execute_in_process(
        instance=location.instance, run_config=run_config
    )
    return shown(result)


def test_requests_and_raw_results_go_by_age_on_a_schedule_and_labels_stay(make):
    location = make(*labeled())
    assert location.land().success
    schedule = build_llm_batch_retention(raw_older_than=timedelta(days=90), cron_schedule="30 3 * * *")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    assert retained(location, schedule)["llm_batch/files_found"] == 0
    long_ago = datetime.now(UTC) - timedelta(days=91)
    change(location, f"delivered_at = '{long_ago:%Y-%m-%d %H:%M:%S.%f}'", table="submission")
    # In the launchpad, with another age, and as a preview.
    assert retained(location, schedule, raw_older_than_days=100)["llm_batch/files_found"] == 0
    looked = retained(location, schedule, raw_older_than_days=90, delete=False)
    assert (looked["llm_batch/files_found"], looked["llm_batch/files_deleted"]) == (2, 0)
    # A value that a configuration leaves out is the schedule's.
    assert retained(location, schedule, delete=False)["llm_batch/files_found"] == 2
    metadata = retained(location, schedule)
    assert (metadata["llm_batch/files_deleted"], metadata["llm_batch/submissions_aged"]) == (2, 1)
    assert metadata["llm_batch/bytes_found"] > 0
    assert retained(location, schedule)["llm_batch/files_found"] == 0
    submission_id = location.engine().latest(LABELS).submission_id
    assert "raw_pruned" in [event.kind for event in location.engine().ledger.events.of_submission(submission_id)]


def test_the_schedule_leaves_files_of_others_alone(make):
    location = make(*labeled())
    assert location.land().success
    engine = location.engine()
    root, namespace = Path(engine.payloads._root.path), next(engine.payloads.files("")).path.partition("/")[0]
    own = root / engine.latest(LABELS).folder
    theirs = [own / "notes.md", root / namespace / "gold/2026-01/merged/train.parquet"]
    theirs += [root / namespace / f"features/2026-01/v1/{name}" for name in ("manifest.parquet", "part-0.parquet")]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"theirs")
        os.utime(path, (1, 1))
    metadata = retained(location, build_llm_batch_retention(raw_older_than=timedelta(days=1)))
    assert metadata["llm_batch/files_deleted"] == 0
    assert [path.read_bytes() for path in theirs] == [b"theirs"] * len(theirs)


def test_the_schedule_deletes_request_files_at_providers_too(make, emulator):
    location = make(*labeled())
    assert location.land().success
    schedule = build_llm_batch_retention()
    assert retained(location, schedule)["llm_batch/request_files_found"] == 0
    change(location, f"collected_at = '{datetime.now(UTC) - timedelta(hours=25):%Y-%m-%d %H:%M:%S.%f}'")
    looked = retained(location, schedule, delete=False)
    assert (looked["llm_batch/request_files_found"], looked["llm_batch/request_files_deleted"]) == (1, 0)
    assert retained(location, schedule)["llm_batch/request_files_deleted"] == 1
    assert retained(location, schedule)["llm_batch/request_files_found"] == 0


def test_an_age_below_a_day_is_refused_when_definitions_load():
    with pytest.raises(ConfigError, match="after a day at the earliest; got raw_older_than=1:00:00"):
        build_llm_batch_retention(raw_older_than=timedelta(hours=1))


def test_a_resource_of_another_kind_is_refused_by_name(make):
    location = make(*labeled())
    jobs = build_llm_batch_jobs(resource_key="other")
    defs = dg.Definitions(jobs=jobs, resources={"other": dg.ResourceDefinition.hardcoded_resource(1)})
    job = defs.resolve_job_def("other_resolve")
    result = job.execute_in_process(instance=location.instance, raise_on_error=False)
    assert "The resource 'other' is a int; it must be an LLMBatchResource" in failure(result)


def test_each_resource_has_jobs_and_a_retention_of_its_own(make):
    first, second = make(*labeled()), make(namespace="second")
    defs = dg.Definitions(
        jobs=[*build_llm_batch_jobs(), *build_llm_batch_jobs(resource_key="second")],
        schedules=[
            build_llm_batch_retention(),
            build_llm_batch_retention("second_retention", resource_key="second"),
        ],
        resources={"llm_batch": first.resource, "second": second.resource},
    )
    dg.Definitions.validate_loadable(defs)
    assert first.submit().success
    config = {"ops": {"cancel_submission": {"config": {"asset": LABELS}}}}
    for name, is_its_own in (("second_cancel", False), ("llm_batch_cancel", True)):
        job = defs.resolve_job_def(name)
        assert job.execute_in_process(config, instance=first.instance, raise_on_error=False).success == is_its_own
