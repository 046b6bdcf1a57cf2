"""Checks by partition, and automation that starts from labels: exactly the good partitions, of any age, once."""

from typing import Any

import dagster as dg
import polars as pl
import pytest
from code_location import BATCH, DAILY, DAYS, LABELS, LANDING, CodeLocation, failure, labeled, tickets
from test_landing_runs import FullDisk

from dagster_llm_batch import Checks, Realtime, Resend, Spend, on_labels_ready
from dagster_llm_batch._dagster_private import check_history
from dagster_llm_batch.check_events import NOT_JUDGED, _is_empty
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.testing.emulator import Emulator, FileFault, Reply, RowFault, WireFault

SPAN = (DAYS[0], DAYS[3])


@dg.asset(partitions_def=DAILY, ins={"labels": dg.AssetIn(LABELS)}, automation_condition=on_labels_ready())
def scores(labels: Any) -> None: ...


class Automation:
    """The automation sensor, tick by tick."""

    def __init__(self, location):
        self.location = location
        self.cursor = None

    def requested(self):
        result = dg.evaluate_automation_conditions(self.location.defs, self.location.instance, cursor=self.cursor)
        self.cursor = result.cursor
        return result.get_requested_partitions(dg.AssetKey("scores"))


def spoil(emulator, day):
    """Let one of the three rows of a day be refused, so that its coverage is 67 %."""
    emulator.inject(RowFault(containing=f"{day}-1?", status_code=400))


def test_labels_of_old_partitions_start_what_waits_for_them_and_only_once(make):
    location = make(*labeled(partitions_def=DAILY), scores)
    automation = Automation(location)
    assert automation.requested() == set()
    location.land(partition=DAYS[1])
    assert automation.requested() == {DAYS[1]}
    assert location.run("scores", partition=DAYS[1]).success
    assert automation.requested() == set()


def test_labels_that_land_while_a_run_is_at_it_start_another(make):
    location = make(*labeled(partitions_def=DAILY), scores)
    automation = Automation(location)
    automation.requested()
    location.land(partition=DAYS[1])
    assert automation.requested() == {DAYS[1]}
    assert location.collect(partition=DAYS[1]).success
    assert location.run("scores", partition=DAYS[1]).success, "which read what was there before, and ends after it"
    assert automation.requested() == {DAYS[1]}
    assert automation.requested() == set()


def test_a_submission_alone_or_an_early_collection_starts_nothing(make):
    location = make(*labeled(partitions_def=DAILY), scores)
    automation = Automation(location)
    automation.requested()
    location.submit(partition=DAYS[1])
    assert automation.requested() == set()
    location.collect(partition=DAYS[1])
    assert automation.requested() == set()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["range run", "single runs"])
def test_a_partition_whose_check_failed_is_held_back_and_its_neighbours_go_on(make, emulator, how):
    spoil(emulator, DAYS[1])
    location = make(*labeled(partitions_def=DAILY), scores)
    automation = Automation(location)
    automation.requested()
    location.submit(span=SPAN)
    emulator.settle()
    if how == "range run":
        location.collect(span=SPAN)
    else:
        for day in DAYS[:4]:
            location.collect(partition=day)
    assert location.landed() == set(DAYS[:4])
    assert automation.requested() == {DAYS[0], DAYS[2], DAYS[3]}
    assert automation.requested() == set()


@pytest.mark.slow
def test_a_partition_that_is_mended_goes_on_after_all(make, emulator):
    emulator.inject(RowFault(containing=f"{DAYS[1]}-1?", status_code=400, times=1))
    location = make(*labeled(partitions_def=DAILY), scores)
    automation = Automation(location)
    automation.requested()
    location.submit(span=SPAN)
    emulator.settle()
    location.collect(span=SPAN)
    assert DAYS[1] not in automation.requested()
    again = {"run_config": {"ops": {BATCH: {"config": {"again": True}}}}}
    assert location.run(BATCH, partition=DAYS[1], **again).success
    emulator.settle()
    assert location.collect(partition=DAYS[1]).success
    assert automation.requested() == {DAYS[1]}


@pytest.mark.slow
def test_landing_the_same_partition_in_range_runs_again_and_again_keeps_its_checks_readable(make):
    location = make(*labeled(partitions_def=DAILY), scores)
    automation = Automation(location)
    automation.requested()
    location.land(span=SPAN)
    for _ in range(2):
        result = location.collect(span=SPAN)
        assert result.success
        assert all(location.checks(result).values())
    assert automation.requested() == set(DAYS[:4])


def check_records(location, name):
    """Return Dagster's records of a check: (partition, status, evaluation), newest first."""
    key = dg.AssetCheckKey(dg.AssetKey(LABELS if name != "sent" else BATCH), name)
    records = location.instance.event_log_storage.get_asset_check_execution_history(key, limit=100)
    return [(record.partition, record.status.value, record.evaluation) for record in records]


@pytest.mark.parametrize("where", [{}, {"partition": DAYS[1]}, {"span": SPAN}], ids=["whole", "one", "range"])
@pytest.mark.parametrize("how", ["too early", "not submitted", "cannot be stored"])
def test_every_check_that_dagster_has_planned_on_a_landing_ends(make, emulator, where, how):
    options = {"partitions_def": DAILY} if where else {}
    location = make(*labeled(**options), resources={"io_manager": FullDisk(DAYS[1] if where else None)})
    if how != "not submitted":
        location.submit(**where)
    if how == "cannot be stored":
        emulator.settle()
    result = location.collect(**where)
    assert result.success is (how != "cannot be stored")
    partitions = DAYS[:4] if "span" in where else [where.get("partition")]
    bad = set() if result.success else {DAYS[1]} & {*partitions} or {None}
    for name in ("coverage", "parse_rate", "spend"):
        found = {partition: status for partition, status, _ in check_records(location, name)}
        assert found == {
            partition: "FAILED" if name == "coverage" and partition in bad else "SUCCEEDED" for partition in partitions
        }
    if bad:
        [text] = {told.description for _, status, told in check_records(location, "coverage") if status == "FAILED"}
        assert text == f"Run {result.run_id[:8]} failed: OSError: No space left on device"
        others = {told.description for partition, _, told in check_records(location, "spend") if partition in bad}
        assert others == {"Nothing was materialized; the check coverage shows the reason."}
        assert bad & {*location.landed()} == set()


@pytest.mark.slow
def test_a_run_that_lands_nothing_leaves_the_last_verdict_as_it_is(make, emulator):
    spoil(emulator, DAYS[1])
    location = make(*labeled(partitions_def=DAILY), scores)
    automation = Automation(location)
    automation.requested()
    location.land(partition=DAYS[1])
    emulator.clear_faults()
    again = {"run_config": {"ops": {BATCH: {"config": {"again": True}}}}}
    assert location.run(BATCH, partition=DAYS[1], **again).success
    for where in ({"partition": DAYS[1]}, {"span": SPAN}):
        assert location.collect(**where).success
        verdicts = [told for partition, _, told in check_records(location, "coverage") if partition == DAYS[1]]
        assert {(told.passed, told.description) for told in verdicts} == {(False, verdicts[-1].description)}
    assert automation.requested() == set()
    emulator.settle()
    assert location.collect(partition=DAYS[1]).success
    assert automation.requested() == {DAYS[1]}


def test_a_submission_that_fails_ends_its_check_with_the_reason_and_its_neighbours_pass(make):
    def rows(context):
        if context.partition_key == DAYS[1]:
            raise ConnectionError("cannot reach postgresql://me:hunter2@db/crm")
        return tickets(2, context.partition_key)

    location = make(*labeled(partitions_def=DAILY, rows=rows))
    assert not location.submit(span=SPAN).success
    found = {partition: told for partition, _, told in check_records(location, "sent")}
    assert {day: told.passed for day, told in found.items()} == {day: day != DAYS[1] for day in DAYS[:4]}
    assert "ConnectionError: cannot reach postgresql://me:***@db/crm" in found[DAYS[1]].description


@pytest.mark.parametrize("where", [{"partition": DAYS[1]}, {"span": SPAN}], ids=["one", "range"])
@pytest.mark.parametrize("blocking", [True, False])
def test_a_failed_blocking_check_holds_back_downstream_of_the_same_run(make, emulator, where, blocking):
    @dg.asset(partitions_def=DAILY, deps=[LABELS], backfill_policy=dg.BackfillPolicy.single_run())
    def after(context: dg.AssetExecutionContext) -> None:
        ran.append(list(context.partition_keys))

    ran: list[list[str]] = []
    spoil(emulator, DAYS[1])
    location = make(*labeled(partitions_def=DAILY, checks=Checks(blocking=blocking)), after)
    location.submit(**where)
    emulator.settle()
    result = location.run(*LANDING, "after", **where)
    assert DAYS[1] in location.landed()
    assert result.success is not blocking
    assert bool(ran) is ("partition" in where and not blocking)  # a range run leaves downstream to automation
    if blocking:
        assert "coverage" in failure(result)


def test_coverage_counts_rows_and_parse_rate_counts_replies(make, emulator):
    emulator.inject(RowFault(containing="t-1?", status_code=400), RowFault(containing="t-2?", kind="truncated"))
    location = make(*labeled(checks=Checks(min_coverage=0.3, min_parse_rate=0.9)))
    location.submit()
    for _ in range(3):  # an invalid reply is retried once
        emulator.settle()
        result = location.collect()
    assert location.checks(result) == {(None, "coverage"): True, (None, "parse_rate"): False, (None, "spend"): True}
    told = {
        event.asset_check_evaluation_data.check_name: event.asset_check_evaluation_data
        for event in result.all_events
        if event.event_type_value == "ASSET_CHECK_EVALUATION"
    }
    assert told["coverage"].description == "1 of 3 rows have a label (33.3%); required: at least 30%."
    assert told["parse_rate"].description.startswith(
        "1 of 2 replies fit (50.0%); required: at least 90%. 1 of 1: the reply was cut at its token limit"
    )
    assert told["coverage"].metadata["llm_batch/coverage"].value == pytest.approx(1 / 3)
    assert told["spend"].metadata["llm_batch/cost_usd"].value > 0


def test_a_failed_check_has_the_most_frequent_reason_and_how_many_rows_have_it(make, emulator):
    emulator.inject(RowFault(containing="t-4?", status_code=500, message="the engine is overloaded"))
    emulator.inject(RowFault(containing="Subject", status_code=400, message="unknown parameter 'top_q'"))
    location = make(*labeled(rows=lambda _: tickets(5), resend=Resend(max_waves=1)))
    landed = location.land()
    [coverage] = [one for one in landed.get_asset_check_evaluations() if one.check_name == "coverage"]
    assert coverage.description.startswith("0 of 5 rows have a label (0.0%); required: at least 95%. 4 of 5: ")
    assert "unknown parameter 'top_q'" in coverage.description


def test_the_check_of_a_canceled_partition_says_that_it_was_canceled(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(partition=DAYS[0])
    engine = location.engine()
    engine.cancel(engine.latest(LABELS, DAYS[0]).submission_id)
    engine.ledger.close()
    emulator.settle()
    landed = location.collect(partition=DAYS[0])
    [coverage] = [one for one in landed.get_asset_check_evaluations() if one.check_name == "coverage"]
    assert not coverage.passed
    assert "canceled" in coverage.description


@pytest.mark.parametrize(
    ("reported", "passes", "beside"),
    [
        (0.00175, True, 0.00525),  # 1,000 tokens at 1.25, 100 at 5.00 US dollars a million, three times
        (0.00176, True, 0.00528),
        (0.0018, False, 0.0054),
        (None, True, None),
    ],
)
def test_what_the_vendor_says_that_it_cost_stands_beside_ours_and_is_held_against_it(
    instance, reported, passes, beside
):
    def answer(body, endpoint):
        text = '{"topic": "bug", "urgency": 1}'
        return Reply(text=text, input_tokens=1_000, output_tokens=100, cost_usd=reported)

    with Emulator(answer=answer) as gateway:
        location = CodeLocation(gateway, instance, *labeled())
        result = location.land()
    told = location.metadata()
    assert told["llm_batch/cost_usd"] == pytest.approx(0.00525)
    assert told.get("llm_batch/reported_cost_usd") == (None if beside is None else pytest.approx(beside))
    [spend] = [one for one in result.get_asset_check_evaluations() if one.check_name == "spend"]
    assert spend.passed is passes
    assert ("by our prices" in spend.description) is not passes


def test_spending_over_the_limit_warns_and_does_not_block(make, emulator, instance):
    def answer(body, endpoint):
        return Reply(text='{"topic": "bug", "urgency": 1}', output_tokens=100_000)

    with Emulator(answer=answer) as dear:
        location = CodeLocation(dear, instance, *labeled(max_cost_usd="0.01"))
        result = location.land()
    assert result.success
    assert location.checks(result)[None, "spend"] is False
    assert (
        "limit: $0.01"
        in [
            event.asset_check_evaluation_data.description
            for event in result.all_events
            if event.event_type_value == "ASSET_CHECK_EVALUATION"
        ][-1]
    )


def test_an_empty_partition_passes_its_checks(make):
    location = make(*labeled(rows=lambda context: tickets(0)))
    result = location.land()
    assert set(location.checks(result).values()) == {True}
    told = {check.check_name: check for check in result.get_asset_check_evaluations()}
    # Without rows, there is no share.
    for name, subject in (("coverage", "rows"), ("parse_rate", "replies")):
        assert told[name].description == f"There are no {subject} to judge."
        assert f"llm_batch/{name}" not in told[name].metadata


@pytest.mark.parametrize(("name", "value"), [("min_coverage", 95), ("min_parse_rate", -0.1), ("min_grounded", 1.5)])
def test_a_share_that_is_none_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        Checks(**{name: value})


def test_a_submission_that_was_stopped_lands_with_a_failed_check_that_says_why_and_what_to_do(make, emulator):
    emulator.inject(FileFault(kind="renamed", times=None))
    location = make(*labeled(rows=lambda _: tickets(12), checks=Checks(min_coverage=0, min_parse_rate=0)))
    location.submit()
    emulator.settle()
    landed = location.collect()
    [coverage] = [one for one in landed.get_asset_check_evaluations() if one.check_name == "coverage"]
    assert not coverage.passed
    assert "0 of 12 rows have a label" in coverage.description
    assert "Stopped: 12 of 12 requests of round 1 got no reply that fits (12 missing)" in coverage.description
    assert "dagster-llm-batch retry" in coverage.description
    [event] = [one for one in landed.get_asset_materialization_events() if one.asset_key == dg.AssetKey(LABELS)]
    metadata = event.materialization.metadata
    assert "where 'r" in metadata["llm_batch/stopped"].value
    assert "llm_batch/cost_usd" not in metadata
    [spend] = [one for one in landed.get_asset_check_evaluations() if one.check_name == "spend"]
    assert "Cost: not known" in spend.description
    assert sum(one.billed for one in emulator.books.executions) == 12


@pytest.mark.parametrize("kind", ["hard", "measured"])
def test_what_a_limit_stops_lands_with_a_failed_check_that_says_what_is_left_and_what_to_do(instance, kind):
    def answer(body, endpoint):
        return Reply(text="word", input_tokens=60, output_tokens=16_384)

    limited = labeled(
        rows=lambda _: tickets(12),
        response=None,
        params={},
        max_cost_usd="0.5",
        spend=Spend(limit=kind, expected_output_tokens=10),
        checks=Checks(min_coverage=0),
    )
    with Emulator(answer=answer) as dear:
        location = CodeLocation(dear, instance, *limited)
        landed = location.land()
        while not location.materializations():
            dear.settle()
            landed = location.collect()
        billed = sum(one.billed for one in dear.books.executions)
    assert 0 < billed < 7
    assert location.metadata()["dagster/partition_row_count"] == billed
    [coverage] = [one for one in landed.get_asset_check_evaluations() if one.check_name == "coverage"]
    assert not coverage.passed
    assert f"{billed} of 12 rows have a label" in coverage.description
    assert (
        f"Abandoned for money: {12 - billed} requests are not sent: max_cost_usd=0.5 has $0.00" in coverage.description
    )
    assert "each of the 6 can cost $0.08" in coverage.description
    assert "Raise the limit; then `dagster-llm-batch retry ticket_labels` asks" in coverage.description
    assert location.metadata()["llm_batch/over_budget"] in coverage.description


@pytest.mark.parametrize(("lane", "least"), [("batch", 0.95), ("real time", 0.5), ("fallback", 0.5)])
def test_what_is_not_asked_again_for_money_fails_the_coverage_and_says_which_limit(instance, lane, least):
    """Let three replies of four fit. The rest of the budget does not cover a retry."""

    def answer(body, endpoint):
        fits = "Subject t 1" not in str(body)
        return Reply(text='{"topic": "bug", "urgency": 3}' if fits else "no", input_tokens=1_440, output_tokens=50)

    resend = Resend(invalid_waves=1, fallback=["openai/gpt-4.1"]) if lane == "fallback" else Resend(invalid_waves=2)
    dear = labeled(
        rows=lambda _: tickets(4).with_columns(urgent=pl.lit(value=lane == "real time")),
        max_cost_usd="0.0166" if lane == "real time" else "0.0083",
        realtime=Realtime(urgent="urgent"),
        resend=resend,
        checks=Checks(min_coverage=least),
    )
    with Emulator(answer=answer) as emulator:
        location = CodeLocation(emulator, instance, *dear)
        landed = location.land()
        while not location.materializations():
            emulator.settle()
            landed = location.collect()
        assert sum(one.billed for one in emulator.books.executions) == 4
    [coverage] = [one for one in landed.get_asset_check_evaluations() if one.check_name == "coverage"]
    assert not coverage.passed
    assert coverage.severity is (dg.AssetCheckSeverity.WARN if least < 0.75 else dg.AssetCheckSeverity.ERROR)
    assert "3 of 4 rows have a label" in coverage.description
    assert "Abandoned for money: 1 requests are not sent: max_cost_usd=0.0" in coverage.description
    assert (
        "left after bills and the maximum cost of requests in flight, and the retry is expected to cost $0.00"
        in coverage.description
    )
    assert "Raise the limit; then `dagster-llm-batch retry ticket_labels` asks" in coverage.description
    assert location.metadata()["llm_batch/over_budget"] in coverage.description


def sent_check(result):
    return [one for one in result.get_asset_check_evaluations() if one.check_name == "sent"]


@pytest.mark.slow
@pytest.mark.parametrize("where", [{}, {"partition": DAYS[0]}, {"span": SPAN}], ids=["one", "partition", "range"])
def test_a_run_whose_batches_were_not_sent_says_so_in_a_check(make, emulator, where):
    location = make(*labeled(partitions_def=DAILY if where else None))
    emulator.inject(WireFault(kind="status", route="POST /v1/files", status=429, times=None))
    waits = location.submit(**where)
    assert waits.success
    assert sent_check(waits)
    for one in sent_check(waits):
        assert not one.passed
        assert one.severity is dg.AssetCheckSeverity.WARN
        assert "429" in one.description
        assert "the sensor keeps trying" in one.description
    emulator.clear_faults()
    partitions = {one.partition for one in sent_check(waits)}
    assert partitions == ({None} if not where else {where.get("partition")} if "partition" in where else set(DAYS[:4]))


def test_a_run_whose_batches_were_sent_has_a_check_that_passed(make):
    [one] = sent_check(make(*labeled()).submit())
    assert one.passed


def test_a_refused_batch_is_an_error_with_what_the_provider_said(make, emulator):
    # A provider's text is not a template: braces in it are shown unchanged.
    emulator.inject(WireFault(kind="status", route="POST /v1/batches", status=400, message="{error} {0} {", times=None))
    [one] = sent_check(make(*labeled()).submit())
    assert not one.passed
    assert one.severity is dg.AssetCheckSeverity.ERROR
    assert "{error} {0} {" in one.description
    assert "dagster-llm-batch retry" in one.description


def execute_all(location: CodeLocation, *names: str) -> dict[str, Any]:
    """Run only checks, without a partition, as "Execute all" on a page of checks does."""
    job = location.defs.resolve_implicit_global_asset_job_def()
    keys = {key for key in job.asset_layer.asset_graph.asset_check_keys if key.asset_key.to_user_string() in names}
    subset = job.get_subset(asset_selection=set(), asset_check_selection=keys)
    result = subset.execute_in_process(instance=location.instance, raise_on_error=False)
    assert result.success
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def test_execute_all_without_a_partition_fails_for_each_partition_that_failed(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    spoil(emulator, DAYS[1])
    location.land(span=(DAYS[0], DAYS[2]))
    told = execute_all(location, LABELS)
    assert {name: check.passed for name, check in told.items()} == {
        "coverage": False,
        "parse_rate": True,
        "spend": True,
    }
    assert f"1 of 3 judged partitions fail; {len(DAYS) - 3} have no result. {DAYS[1]}: 2 of 3 rows" in (
        told["coverage"].description
    )
    assert execute_all(location, BATCH)["sent"].description.startswith("0 of 3 judged partitions fail")
    assert len(emulator.books.batches) == 1


def test_partitions_without_labels_count_as_not_judged_by_a_key_and_not_by_a_sentence(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(span=(DAYS[0], DAYS[1]))
    assert location.collect(span=(DAYS[0], DAYS[1])).success
    for _, _, evaluation in check_records(location, "coverage"):
        assert evaluation.metadata[NOT_JUDGED].value == "nothing_materialized"
        # Evaluations that earlier code stored are read likewise.
        former = {NOT_JUDGED: "nothing has landed"}
        assert _is_empty(dg.AssetCheckEvaluation(evaluation.asset_key, "coverage", passed=True, metadata=former))
    assert execute_all(location, LABELS)["coverage"].description.startswith("0 of 0 judged partitions fail")
    emulator.settle()
    assert location.collect(partition=DAYS[0]).success
    assert execute_all(location, LABELS)["coverage"].description.startswith("0 of 1 judged partitions fail")


def sent_results(location: CodeLocation) -> dict[str | None, tuple[bool, str]]:
    """Return the newest result of the check `sent` on each partition."""
    told: dict[str | None, tuple[bool, str]] = {}
    for partition, one in check_history(location.instance, dg.AssetCheckKey(dg.AssetKey(BATCH), "sent"), 100):
        told.setdefault(partition, (one.passed, one.description or ""))
    return told


def test_the_check_sent_passes_when_its_batch_was_sent_later(make, emulator):
    location = make(*labeled())
    emulator.inject(WireFault(kind="status", route="POST /v1/files", status=429, times=None))
    location.submit()
    assert not sent_results(location)[None][0]
    emulator.clear_faults()
    location.collect()
    assert sent_results(location)[None] == (True, "Each batch was accepted, or waits for its turn.")


@pytest.mark.slow
def test_the_check_sent_passes_when_a_later_run_has_sent_what_waited(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    emulator.inject(WireFault(kind="status", route="POST /v1/files", status=429, times=None))
    location.submit(partition=DAYS[0])
    assert not sent_results(location)[DAYS[0]][0]
    emulator.clear_faults()
    location.collect(partition=DAYS[0])
    assert sent_results(location)[DAYS[0]] == (True, "Each batch was accepted, or waits for its turn.")
    location.submit(partition=DAYS[1])
    location.collect(partition=DAYS[1])
    assert {passed for passed, _ in sent_results(location).values()} == {True}


def test_the_check_sent_stays_failed_where_the_provider_refused_the_batch_for_good(make, emulator):
    location = make(*labeled(resend=Resend(max_waves=1)))
    emulator.inject(WireFault(kind="status", status=400, route="POST /v1/batches", times=None))
    location.submit()
    assert not sent_results(location)[None][0]
    location.collect()
    assert not sent_results(location)[None][0]


def test_the_check_sent_of_a_canceled_submission_passes_and_says_that_it_was_canceled(make, emulator):
    location = make(*labeled())
    emulator.inject(WireFault(kind="status", route="POST /v1/files", status=429, times=None))
    location.submit()
    engine = location.engine()
    engine.cancel(engine.latest(LABELS).submission_id)
    engine.ledger.close()
    location.collect()
    assert sent_results(location)[None] == (True, "The submission was canceled; nothing more of it is sent.")
