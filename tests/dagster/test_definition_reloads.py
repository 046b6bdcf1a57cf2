"""A code location that is reloaded with another definition, while batches of the earlier one are in flight."""

from typing import Annotated, Literal

import dagster as dg
import pytest
from code_location import BATCH, DAILY, DAYS, LABELS, LANDING, CodeLocation, failure, labeled, tickets
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from pydantic import BaseModel, Field
from test_batch_sensor import tick
from test_waiting_for_a_person import coverage

from dagster_llm_batch import Checks, Limits, Prompt
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.testing.emulator import RowFault

OTHER_WORDS = Prompt(system="You sort tickets.", user="{{ subject }}\n{{ body }}")


class MoodLabel(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    mood: Annotated[int, Field(ge=1, le=5)]


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"prompt": OTHER_WORDS}, {"params": {"max_tokens": 60}}], ids=["prompt", "params"])
def test_labels_land_by_the_definition_that_asked_and_say_so(make, emulator, change):
    old = labeled()
    make(*old).submit()
    emulator.settle()
    location = make(*labeled(**change))
    [request] = tick(location).run_requests
    landed = location.launch(request)
    assert landed.success
    assert coverage(landed).passed
    metadata = location.metadata()
    assert metadata["dagster/partition_row_count"] == 3
    assert metadata["llm_batch/changed_since_sent"] == next(iter(change))
    assert metadata["llm_batch/prompt_version"] == dataset_of(old).labeling.prompt_version
    assert tick(location).skip_message == "no batches in flight"
    assert len(emulator.books.batches) == 1
    location.land()
    assert "llm_batch/changed_since_sent" not in location.metadata()
    assert location.metadata()["llm_batch/submission_id"] != metadata["llm_batch/submission_id"]
    assert len(emulator.books.batches) == 2


@pytest.mark.slow
def test_labels_of_other_columns_do_not_land_and_a_failed_check_says_what_to_do(make, emulator):
    make(*labeled(partitions_def=DAILY)).submit(partition=DAYS[0])
    emulator.settle()
    location = make(*labeled(partitions_def=DAILY, response=MoodLabel))
    engine = location.engine()
    submission_id = engine.latest(LABELS, DAYS[0]).submission_id
    [request] = tick(location).run_requests
    refused = location.launch(request)
    assert not refused.success
    verdict = coverage(refused)
    assert not verdict.passed
    assert verdict.partition == DAYS[0]
    for told in (verdict.description, failure(refused)):
        assert "without mood, with urgency. The labels were not materialized, and nothing is lost" in told
        assert f"`dagster-llm-batch export {LABELS} --submission {submission_id}" in told
        assert f"Materialize ticket_labels_batch for {DAYS[0]}" in told
    result = tick(location)  # such a run would end in the same way
    assert result.run_requests == []
    assert f"waits for a person: the labels of {LABELS} {DAYS[0]} wait: The labels of submission" in result.skip_message
    assert location.landed() == set()
    assert engine.status(submission_id).submission.outcomes == {"succeeded": 3}  # paid answers are recorded
    location.land(partition=DAYS[0])
    assert location.landed() == {DAYS[0]}
    assert location.metadata(partition=DAYS[0])["llm_batch/submission_id"] != submission_id
    assert tick(location).skip_message == "no batches in flight"
    engine.ledger.close()


def test_a_partition_of_other_columns_keeps_no_neighbour_from_landing(make, emulator):
    make(*labeled(partitions_def=DAILY)).submit(partition=DAYS[0])
    location = make(*labeled(partitions_def=DAILY, response=MoodLabel))
    location.submit(partition=DAYS[1])
    emulator.settle()
    both = location.collect(span=(DAYS[0], DAYS[1]))
    assert "have other columns" in failure(both)
    assert location.landed() == {DAYS[1]}
    verdicts = location.checks(both)
    assert verdicts[DAYS[0], "coverage"] is False
    assert verdicts[DAYS[1], "coverage"] is True


@pytest.mark.slow
def test_kept_columns_that_have_changed_land_when_the_rows_are_planned_again_for_nothing(make, emulator):
    make(*labeled()).submit()
    emulator.settle()
    location = make(*labeled(keep=["subject"]))
    assert "without subject" in failure(location.collect())
    location.submit()
    assert location.collect().success
    assert len(emulator.books.batches) == 1


def test_rows_without_an_answer_wait_with_a_failed_check_that_holds_nothing_back(make, emulator):
    emulator.inject(RowFault(containing="t-1", status_code=503))
    enough = Checks(min_coverage=0.5)
    make(*labeled(checks=enough)).submit()
    emulator.settle()
    location = make(*labeled(checks=enough, prompt=OTHER_WORDS))
    landed = location.launch(tick(location).run_requests[0])
    assert landed.success
    verdict = coverage(landed)
    assert not verdict.passed
    assert verdict.severity is dg.AssetCheckSeverity.WARN
    assert "Held back: 1 requests are not sent again: the definition has changed (prompt)" in verdict.description
    assert "materialize the asset that submits 'ticket_labels'" in verdict.description
    assert tick(location).run_requests == []
    assert len(emulator.books.batches) == 1


@pytest.mark.slow
def test_while_a_batch_runs_no_run_is_asked_for_that_could_send_nothing(make, emulator):
    limits = {"queue_limits": {"openai": {"max_batches": 1}}}
    old = {"limits": Limits(max_requests_per_batch=1)}
    make(*labeled(**old), **limits).submit()
    location = make(*labeled(**old, prompt=OTHER_WORDS), **limits)
    assert location.run(*LANDING).success  # too early
    assert tick(location).run_requests == []
    emulator.settle()
    [request] = tick(location).run_requests
    landed = location.launch(request)
    assert not coverage(landed).passed
    assert "2 requests are not sent: the definition has changed (prompt)" in coverage(landed).description
    assert location.metadata()["dagster/partition_row_count"] == 1
    assert len(emulator.books.batches) == 1


@pytest.mark.slow
def test_what_was_never_sent_waits_with_a_failed_check(make, emulator):
    make(*labeled()).engine().plan(dataset_of(labeled()).labeling, tickets(3))
    location = make(*labeled(prompt=OTHER_WORDS))
    refused = location.launch(tick(location).run_requests[0])
    told = "the definition has changed (prompt)"
    assert told in failure(refused)
    assert not coverage(refused).passed
    assert told in coverage(refused).description
    result = tick(location)
    assert result.run_requests == []
    assert told in result.skip_message
    assert emulator.books.batches == []
    location.land()
    assert len(emulator.books.batches) == 1


def staleness(location, partition):
    """Return the status of a partition of the labels, with its causes, as on Dagster's page."""
    graph, instance = location.repository.asset_graph, location.instance
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    causes = resolver.get_stale_causes(dg.AssetKey(LABELS), partition)
    return resolver.get_status(dg.AssetKey(LABELS), partition).value, [cause.reason for cause in causes]


def test_partitions_that_landed_in_one_run_are_stale_when_the_definition_has_changed(make, instance, emulator):
    make(*labeled(partitions_def=DAILY)).land(span=(DAYS[0], DAYS[1]))
    after = CodeLocation(emulator, instance, *labeled(partitions_def=DAILY, prompt=OTHER_WORDS))
    assert staleness(after, DAYS[1]) == ("STALE", ["has a new code version"])


@pytest.mark.slow
def test_partitions_of_an_earlier_definition_are_stale_in_dagster_however_they_landed(make, instance, emulator):
    before = make(*labeled(partitions_def=DAILY))
    before.land(partition=DAYS[0])
    before.land(span=(DAYS[1], DAYS[2]))
    before.submit(span=(DAYS[3], DAYS[4]))
    before.submit(partition=DAYS[5])
    assert {staleness(before, day)[0] for day in DAYS[:3]} == {"FRESH"}
    after = CodeLocation(
        emulator, instance, *labeled(partitions_def=DAILY, prompt=Prompt(user="Another one: {{ subject }}"))
    )
    emulator.settle()
    after.collect(span=(DAYS[3], DAYS[4]))
    after.collect(partition=DAYS[5])
    assert {day: staleness(after, day) for day in DAYS[:6]} == dict.fromkeys(
        DAYS[:6], ("STALE", ["has a new code version"])
    )
    after.land(span=(DAYS[1], DAYS[2]))
    assert {staleness(after, day)[0] for day in DAYS[1:3]} == {"FRESH"}
    after.run(BATCH, span=(DAYS[1], DAYS[2]))  # like a schedule, without new rows
    assert {staleness(after, day)[0] for day in DAYS[1:3]} == {"FRESH"}


@pytest.mark.slow
def test_a_definition_that_changes_in_a_backfill_is_reported_with_the_rows_that_are_asked_again(
    make, instance, emulator
):
    make(*labeled(partitions_def=DAILY)).land(span=(DAYS[0], DAYS[1]))
    after = CodeLocation(emulator, instance, *labeled(partitions_def=DAILY, prompt=OTHER_WORDS))
    result = after.submit(span=(DAYS[1], DAYS[2]))
    told = {one.partition: one.description for one in result.get_asset_check_evaluations()}
    assert "3 rows are sent and paid again: the definition has changed (prompt) since" in told[DAYS[1]]
    assert told[DAYS[2]] == "Each batch was accepted, or waits for its turn."
    assert after.metadata(BATCH, DAYS[1])["llm_batch/rows_asked_again"] == 3
    assert "llm_batch/rows_asked_again" not in after.metadata(BATCH, DAYS[2])
    same = after.submit(span=(DAYS[1], DAYS[2]))
    assert {one.description for one in same.get_asset_check_evaluations()} == {
        "Each batch was accepted, or waits for its turn."
    }


def test_rows_whose_batch_is_in_flight_when_the_definition_changes_are_reported_as_asked_again(
    make, instance, emulator
):
    make(*labeled(partitions_def=DAILY)).submit(partition=DAYS[0])
    after = CodeLocation(emulator, instance, *labeled(partitions_def=DAILY, prompt=OTHER_WORDS))
    [sent] = after.submit(partition=DAYS[0]).get_asset_check_evaluations()
    assert "3 rows are sent and paid again: the definition has changed (prompt) since" in sent.description
