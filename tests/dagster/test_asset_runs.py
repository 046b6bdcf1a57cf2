"""Runs over one partition and over many: each partition has its own outcome, and an early run does no harm."""

from dataclasses import replace
from itertools import product

import dagster as dg
import polars as pl
import pytest
from code_location import (
    BATCH,
    DAILY,
    DAYS,
    LABELS,
    LANDING,
    REJECTS,
    CodeLocation,
    failure,
    labeled,
    observations,
    tag,
    tickets,
)
from dagster._cli.utils import get_possibly_temporary_instance_for_cli

from dagster_llm_batch import Prompt
from dagster_llm_batch.files.request_files import RAW, beside
from dagster_llm_batch.testing.emulator import Emulator, RowFault, rate_limited, simulated_answer

ALL = (DAYS[0], DAYS[-1])
FIRST_FOUR = (DAYS[0], DAYS[3])


@pytest.mark.slow
def test_one_run_over_thirty_partitions_gives_each_its_own_submission_version_metadata_and_checks(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    assert location.submit(span=ALL).success
    assert len(emulator.books.batches) == 1  # all partitions share it
    emulator.settle()
    result = location.collect(span=ALL)
    assert result.success
    landed = location.materializations(LABELS)
    assert sorted(landed) == DAYS
    assert len({one.metadata["llm_batch/submission_id"].value for one in landed.values()}) == len(DAYS)
    assert len({tag(one) for one in landed.values()}) == len(DAYS)
    assert sorted(location.materializations(REJECTS)) == DAYS
    assert location.checks(result) == {
        (day, check): True for day in DAYS for check in ("coverage", "parse_rate", "spend")
    }
    assert emulator.books.billed_twice() == {}


class Meanwhile(dg.IOManager):
    """Stores tables; something else happens before the first one."""

    def __init__(self):
        self.happens = None
        self.stored = {}

    def handle_output(self, context, obj):
        happens, self.happens = self.happens, None
        if happens is not None:
            happens()
        if context.asset_key.to_user_string() == LABELS:
            self.stored[context.partition_key] = obj

    def load_input(self, context):
        return None


def test_labels_that_another_run_has_landed_meanwhile_are_not_replaced_by_older_ones(make, emulator):
    prefixes = dict.fromkeys(DAYS[:2], "old")
    store = Meanwhile()
    location = make(
        *labeled(rows=lambda context: tickets(2, prefixes[context.partition_key]), partitions_def=DAILY),
        resources={"io_manager": store},
    )

    def label_second_day_anew():
        prefixes[DAYS[1]] = "new"
        assert location.land(partition=DAYS[1]).success

    location.submit(span=(DAYS[0], DAYS[1]))
    emulator.settle()
    store.happens = label_second_day_anew
    assert location.collect(span=(DAYS[0], DAYS[1])).success
    assert store.stored[DAYS[0]]["ticket_id"].to_list() == ["old-0", "old-1"]
    assert store.stored[DAYS[1]]["ticket_id"].to_list() == ["new-0", "new-1"]


def test_a_bad_partition_fails_in_submission_and_its_neighbours_land(make, emulator):
    def rows(context):
        return (
            pl.concat([tickets(1, "twice")] * 2)
            if context.partition_key == DAYS[1]
            else tickets(2, context.partition_key)
        )

    location = make(*labeled(rows=rows, partitions_def=DAILY))
    result = location.submit(span=FIRST_FOUR)
    assert not result.success
    assert "1 of 4 partitions failed; the others are done" in failure(result)
    assert f"{DAYS[1]}: InputError: The key column 'ticket_id' has duplicate values: 'twice-0'" in failure(result)
    good = {DAYS[0], DAYS[2], DAYS[3]}
    assert location.landed(BATCH) == good
    assert location.failed(DAYS, DAILY, BATCH) == {DAYS[1]}
    emulator.settle()
    assert location.collect(span=FIRST_FOUR).success
    assert location.landed() == good
    assert location.failed(DAYS, DAILY) == set()


def test_an_error_of_the_rows_function_itself_fails_its_partition_only(make):
    def rows(context):
        if context.partition_key == DAYS[0]:
            raise ZeroDivisionError("no such warehouse")
        return tickets(2, context.partition_key)

    location = make(*labeled(rows=rows, partitions_def=DAILY))
    result = location.submit(span=FIRST_FOUR)
    assert f"{DAYS[0]}: ZeroDivisionError: no such warehouse" in failure(result)
    assert location.landed(BATCH) == set(DAYS[1:4])


def test_a_partition_that_the_io_manager_refuses_fails_and_its_neighbours_land(make, emulator):
    class Picky(dg.IOManager):
        def handle_output(self, context: dg.OutputContext, obj):
            if context.has_partition_key and context.partition_key == DAYS[2] and context.asset_key.path[-1] == LABELS:
                raise OSError("disk full")

        def load_input(self, context):
            raise NotImplementedError

    location = make(*labeled(partitions_def=DAILY), resources={"io_manager": Picky()})
    location.submit(span=FIRST_FOUR)
    emulator.settle()
    result = location.collect(span=FIRST_FOUR)
    assert f"{DAYS[2]}: OSError: disk full" in failure(result)
    assert location.landed() == {DAYS[0], DAYS[1], DAYS[3]}
    assert location.failed(DAYS, DAILY) == {DAYS[2]}
    assert [one.submission.partition for one in location.engine().ledger.submissions.progress("default")] == [DAYS[2]]


def test_a_range_of_multi_partitions_lands_each(make, emulator):
    multi = dg.MultiPartitionsDefinition({"day": DAILY, "land": dg.StaticPartitionsDefinition(["de", "fr"])})
    location = make(*labeled(partitions_def=multi))
    span = ("2026-01-01|de", "2026-01-02|de")
    assert location.submit(span=span).success
    emulator.settle()
    assert location.collect(span=span).success
    assert location.landed() == location.landed(BATCH)
    assert {"2026-01-01|de", "2026-01-02|de"} <= location.landed()
    assert len(emulator.books.batches) == 1


def test_a_range_of_one_partition_has_checks_of_that_partition(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    span = (DAYS[4], DAYS[4])
    location.submit(span=span)
    emulator.settle()
    result = location.collect(span=span)
    assert result.success
    assert {partition for partition, _ in location.checks(result)} == {DAYS[4]}
    assert location.landed() == {DAYS[4]}


@pytest.mark.parametrize("where", [{"partition": DAYS[0]}, {"span": FIRST_FOUR}], ids=["one", "range"])
@pytest.mark.parametrize("submitted", [True, False], ids=["batches running", "nothing submitted"])
def test_collecting_too_early_is_a_green_run_that_observes_and_skips_downstream(make, where, submitted):
    @dg.asset(partitions_def=DAILY, ins={"labels": dg.AssetIn(LABELS)}, backfill_policy=dg.BackfillPolicy.single_run())
    def after(labels) -> None: ...

    location = make(*labeled(partitions_def=DAILY), after)
    if submitted:
        assert location.submit(**where).success
    result = location.run(*LANDING, "after", **where)
    assert result.success
    seen = observations(result)
    assert {one.partition for one in seen} == set(DAYS[:1] if "partition" in where else DAYS[:4])
    said = {one.metadata["llm_batch/progress"].value for one in seen}
    assert said == (
        {"round 1: 1 batch submitted; 0 of 3 requests done (0 %); oldest 0 m"}
        if submitted
        else {"nothing was submitted yet"}
    )
    assert location.landed() == set()
    assert location.landed("after") == set()
    assert all(location.checks(result).values())  # each check passes without rows


def test_of_a_range_the_ready_partitions_land_and_the_others_are_observed(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(span=(DAYS[0], DAYS[1]))
    emulator.settle()
    location.submit(span=(DAYS[2], DAYS[3]))
    result = location.collect(span=FIRST_FOUR)
    assert result.success
    assert location.landed() == {DAYS[0], DAYS[1]}
    assert {one.partition for one in observations(result)} == {DAYS[2], DAYS[3]}


def test_materializing_settled_labels_again_sends_nothing_and_keeps_their_data_version(make, emulator):
    location = make(*labeled())
    location.land()
    first = location.materializations(LABELS)[None]
    assert location.submit().success
    assert location.collect().success
    second = location.materializations(LABELS)[None]
    assert second is not first
    assert tag(second) == tag(first)
    assert len(emulator.books.batches) == 1


def test_submitting_while_batches_run_attaches_to_them(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.submit(span=FIRST_FOUR)
    location.submit(span=FIRST_FOUR)
    location.submit(partition=DAYS[0])
    assert len(emulator.books.batches) == 1
    versions = location.materializations(BATCH)
    assert len({tag(one) for one in versions.values()}) == 4


def test_in_wait_mode_one_run_goes_from_rows_to_downstream(instance):
    @dg.asset(ins={"labels": dg.AssetIn(LABELS)})
    def after(labels: pl.DataFrame) -> int:
        return len(labels)

    with Emulator(pace=0.05) as emulator:
        location = CodeLocation(emulator, instance, *labeled(mode="wait"), after, poll_seconds=0.05)
        result = location.run(BATCH, *LANDING, "after")
        assert result.success
        assert result.output_for_node("after") == 3


def test_in_wait_mode_one_run_over_days_goes_from_rows_to_downstream_and_materializes_each_day_once(instance):
    @dg.asset(ins={"labels": dg.AssetIn(LABELS)}, partitions_def=DAILY, backfill_policy=dg.BackfillPolicy.single_run())
    def after(labels: dict[str, pl.DataFrame]) -> None:
        seen.extend(sorted(labels))

    seen: list[str] = []
    with Emulator(pace=0.05) as emulator:
        assets = [*labeled(mode="wait", partitions_def=DAILY), after]
        location = CodeLocation(emulator, instance, *assets, poll_seconds=0.05)
        result = location.run(BATCH, *LANDING, "after", span=FIRST_FOUR)
        assert result.success
    assert seen == DAYS[:4]
    for name in (BATCH, *LANDING):
        events = instance.fetch_materializations(dg.AssetKey(name), limit=100).records
        assert sorted(str(event.partition_key) for event in events) == DAYS[:4]


def test_in_wait_mode_nothing_downstream_begins_where_a_day_of_the_run_has_no_labels(instance):
    @dg.asset(deps=[LABELS], partitions_def=DAILY, backfill_policy=dg.BackfillPolicy.single_run())
    def after() -> None:
        seen.append("after")

    seen: list[str] = []
    with Emulator(pace=0.05) as emulator:
        assets = [*labeled(mode="wait", partitions_def=DAILY), after]
        location = CodeLocation(emulator, instance, *assets, poll_seconds=0.05)
        assert location.submit(partition=DAYS[1]).success
        location.run(*LANDING, "after", span=(DAYS[0], DAYS[1]))
        assert location.landed() == {DAYS[1]}
        assert seen == []


def test_in_wait_mode_retries_go_on_in_the_same_run(instance):
    with Emulator(pace=0.05, faults=[RowFault(containing="t-1", status_code=500, times=1)]) as emulator:
        location = CodeLocation(emulator, instance, *labeled(mode="wait"), poll_seconds=0.05)
        assert location.run(BATCH, *LANDING).success
        assert location.metadata()["llm_batch/attempts"] == 2
        assert location.metadata()["llm_batch/rows_succeeded"] == 3


def test_in_wait_mode_a_batch_that_is_overdue_fails_the_run_and_says_what_to_do(make):
    location = make(*labeled(mode="wait"), poll_seconds=0.01, overdue_after_hours=1e-6)
    told = failure(location.run(BATCH, *LANDING))
    assert "which is overdue" in told
    assert "--lost` abandons it" in told


def test_labels_in_markdown_fences_are_read_counted_and_not_asked_again(instance):
    def answer(body, endpoint):
        reply = simulated_answer(body, endpoint)
        return replace(reply, text=f"```json\n{reply.text}\n```") if "t-1" in str(body) else reply

    with Emulator(answer=answer) as emulator:
        location = CodeLocation(emulator, instance, *labeled())
        assert location.land().success
        metadata = location.metadata()
        assert (metadata["llm_batch/rows_succeeded"], metadata["llm_batch/rows_read_from_fences"]) == (3, 1)
        assert len(emulator.books.executions) == 3
        engine = location.engine()
        [submission] = engine.ledger.submissions.list_all("default")
        [shard] = engine.ledger.shards.of_submission(submission.submission_id)
        assert b"```json" in b"".join(engine.payloads.lines(shard.raw_path))
        engine.ledger.close()


def test_asking_again_sends_only_rows_without_a_label(make, emulator):
    emulator.inject(RowFault(containing="t-1", status_code=400, times=1))
    location = make(*labeled())
    location.land()
    assert location.metadata()["llm_batch/rows_rejected"] == 1
    assert location.run(BATCH, run_config={"ops": {BATCH: {"config": {"again": True}}}}).success
    emulator.settle()
    assert location.collect().success
    assert location.metadata()["llm_batch/rows_succeeded"] == 3
    assert [one.status_code for one in emulator.books.executions].count(200) == 3
    assert len(emulator.books.executions) == 4


def test_rows_that_changed_while_batches_ran_are_submitted_anew_and_the_earlier_answers_come_home(make, emulator):
    rows = [tickets(2)]
    location = make(*labeled(rows=lambda context: rows[-1]))
    location.submit()
    emulator.settle()
    rows.append(tickets(3))
    location.submit()
    emulator.settle()
    assert location.collect().success
    assert location.metadata()["dagster/partition_row_count"] == 3
    engine = location.engine()
    newer, older = engine.ledger.submissions.of_partition("default", LABELS)
    assert older.is_settled
    assert older.cost_usd > 0
    assert older.delivered_at is not None
    assert newer.delivered_at is not None
    engine.ledger.close()


def test_a_changed_prompt_supersedes_what_is_in_flight_and_never_reads_its_answers(make, emulator):
    make(*labeled()).submit()
    emulator.settle()
    location = make(*labeled(prompt=Prompt(user="Other words: {{ body }}")))
    assert location.submit().success
    emulator.settle()
    assert location.collect().success
    engine = location.engine()
    newer, older = engine.ledger.submissions.of_partition("default", LABELS)
    assert location.metadata()["llm_batch/submission_id"] == newer.submission_id
    assert older.delivered_at is not None
    [shard] = engine.ledger.shards.of_submission(older.submission_id)
    assert engine.payloads.exists(beside(shard, RAW))  # stored, but not read
    engine.ledger.close()
    assert len(emulator.books.executions) == 6


def test_a_busy_provider_leaves_batches_planned_and_the_submission_green(make, emulator):
    emulator.inject(rate_limited("POST /v1/batches", times=3, retry_after=0))
    location = make(*labeled())
    result = location.submit()
    assert result.success
    assert location.metadata(BATCH)["llm_batch/batches_when_sent"] == "1 shard planned"
    assert location.collect().success  # the run sends it
    emulator.settle()
    assert location.collect().success
    assert location.metadata()["dagster/partition_row_count"] == 3


def test_a_wrong_key_fails_the_run_and_the_right_one_goes_on(make, emulator):
    wrong = make(*labeled(), openai={"api_key": "sk-wrong"})
    result = wrong.submit()
    assert "CredentialsError" in failure(result)
    assert "sk-wrong" not in failure(result)
    location = make(*labeled())
    assert location.land().success
    assert len(emulator.books.batches) == 1


def test_a_budget_that_is_too_small_refuses_before_anything_is_sent(make, emulator):
    result = make(*labeled(max_cost_usd="0.00001")).submit()
    assert "exceeds max_cost_usd=0.00001. Nothing was sent" in failure(result)
    assert emulator.books.creates_seen == 0


def temporary_home_warnings(instance, run_id):
    said = [event.user_message for event in instance.all_logs(run_id) if "removes when it ends" in event.user_message]
    assert all("Set DAGSTER_HOME to a folder that stays" in words for words in said)
    return said


@pytest.mark.slow
def test_a_home_that_goes_with_dagster_is_warned_of_once_a_run(emulator, tmp_path):
    ledger, payloads = {"ledger_url": f"sqlite:///{tmp_path}/ledger.sqlite"}, {"payload_root": f"{tmp_path}/payloads"}
    kept = [
        ({}, [": the ledger and the payload store will go with its temporary folder"]),
        (ledger, [": the payload store will go with its temporary folder"]),
        (payloads, [": the ledger will go with its temporary folder"]),
        (ledger | payloads, []),
    ]
    with dg.DagsterInstance.ephemeral() as memory, get_possibly_temporary_instance_for_cli() as temporary:
        assert not temporary.is_ephemeral
        for number, (instance, (places, told)) in enumerate(product((memory, temporary), kept)):
            labels = labeled(name=f"labels_{number}", partitions_def=DAILY)
            run = CodeLocation(emulator, instance, *labels, **places).run(f"labels_{number}_batch", span=FIRST_FOUR)
            assert run.success
            said = temporary_home_warnings(instance, run.run_id)
            assert [words in one for words, one in zip(told, said, strict=True)] == [True] * len(told)


def test_of_a_home_that_stays_nothing_is_said(emulator, stored):
    run = CodeLocation(emulator, stored, *labeled()).submit()
    assert run.success
    assert temporary_home_warnings(stored, run.run_id) == []
