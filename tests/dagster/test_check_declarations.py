"""Checks of labels are declared in one place. Results depend neither on wordings of reasons nor on a check's place."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from code_location import DAILY, DAYS, LABELS, REJECTS, labeled
from test_batch_sensor import change, tick

from dagster_llm_batch import Prompt, checks
from dagster_llm_batch.checks import CHECKS, COVERAGE, Check, CheckOutcome, PartitionFacts, RowsBehind, final_check
from dagster_llm_batch.core import label_join, left_out
from dagster_llm_batch.core.label_join import REJECT_COLUMNS, Labeled
from dagster_llm_batch.core.left_out import waiting_reason
from dagster_llm_batch.core.result_schema import RESULT_SCHEMA
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.label_stats import LabelStats
from dagster_llm_batch.storage.ledger.records import Batch, Bill, Shard
from dagster_llm_batch.types import BatchStatus, Cause, Outcome


def judge_fences(check: Check, facts: PartitionFacts) -> CheckOutcome:
    return check.outcome(passed=not facts.stats.fenced, description=f"{facts.stats.fenced} fences.")


FENCES = Check(
    name="fences",
    describe=lambda wanted, labeling: "No label was read out of fences.",
    judge=judge_fences,
    severity=dg.AssetCheckSeverity.WARN,
    rows=RowsBehind("rejects"),
)


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_check_that_is_declared_has_a_spec_a_result_and_the_link_to_its_rows(make, monkeypatch, where):
    monkeypatch.setattr(checks, "CHECKS", (FENCES, *CHECKS) if where == "first" else (*CHECKS, FENCES))
    location = make(*labeled(partitions_def=DAILY), review_url="http://127.0.0.1:3001")
    landed = location.land(span=(DAYS[0], DAYS[1]))
    told = [one for one in landed.get_asset_check_evaluations() if one.check_name == "fences"]
    assert [(one.partition, one.passed, one.description) for one in told] == [
        (day, True, "0 fences.") for day in DAYS[:2]
    ]
    assert all(REJECTS in one.metadata["llm_batch/rows_behind"].value for one in told)
    final = final_check(dg.AssetKey(LABELS)).name
    reported = [one.check_name for one in landed.get_asset_check_evaluations() if one.partition == DAYS[1]]
    assert [name for name in reported if name in {"fences", COVERAGE, final}][-1] == final


def test_labels_have_landed_whatever_the_order_in_which_checks_are_declared(make, monkeypatch):
    location = make(*labeled())
    location.land()
    # This is like a run that died before it updated the ledger.
    change(location, "delivered_at = null", "submission")
    monkeypatch.setattr(checks, "CHECKS", tuple(reversed(CHECKS)))
    assert tick(location).run_requests == []
    assert location.engine().ledger.submissions.progress(location.engine().namespace) == []


def test_labels_whose_final_check_is_not_stored_land_again(make):
    location = make(*labeled())
    location.land()
    change(location, "delivered_at = null", "submission")
    instance = location.instance
    with instance.event_log_storage.index_connection() as connection:
        connection.exec_driver_sql(
            "delete from asset_check_executions where check_name = ?", (final_check(dg.AssetKey(LABELS)).name,)
        )
    assert len(tick(location).run_requests) == 1


# --- wording ---

REWORDED = "Der Anbieter schweigt, und zwar {}"


def reword(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the wording of all stored reasons of rejects."""
    for number, cause in enumerate(left_out._WAITING_FOR):
        monkeypatch.setitem(left_out._WAITING_FOR, cause, REWORDED.format(number))
    for status, (outcome, _) in left_out.LEFT_OUT.items():
        monkeypatch.setitem(left_out.LEFT_OUT, status, (outcome, REWORDED.format(status)))
    monkeypatch.setattr(left_out, "_UNREAD", REWORDED.format("ungelesen"))
    monkeypatch.setattr(left_out, "ASK_AGAIN", "")
    monkeypatch.setattr(left_out, "MAY_HAVE_RUN", REWORDED.format("vielleicht"))
    monkeypatch.setattr(label_join, "LOST", REWORDED.format("verloren"))
    monkeypatch.setattr(label_join, "_NOT_SENT", REWORDED.format("ungesandt"))


def stop(location: Any, how: str) -> None:
    """End the batch of a submission so that its rows wait for a person."""
    engine = location.engine()
    [shard] = engine.ledger.shards.of_submission(engine.latest(LABELS).submission_id)
    if how == "given up":
        engine.give_up(shard.shard_id)
    else:
        engine.provider("openai").cancel(shard.batch.batch_id)
    engine.ledger.close()


@pytest.mark.parametrize("how", ["given up", "canceled"])
def test_rows_that_wait_fail_the_coverage_in_whatever_words(make, emulator, monkeypatch, how):
    reword(monkeypatch)
    location = make(*labeled(checks=checks.Checks(min_coverage=0)))
    location.submit()
    stop(location, how)
    emulator.settle()
    landed = location.launch(tick(location).run_requests[0])
    [coverage] = [one for one in landed.get_asset_check_evaluations() if one.check_name == COVERAGE]
    assert not coverage.passed
    cause = Cause.GIVEN_UP if how == "given up" else Cause.CANCELED
    assert f"Rows wait for a person: 3 since {left_out._WAITING_FOR[cause]}." in coverage.description


SENT_AT = datetime(2026, 1, 1, tzinfo=UTC)


def shard(number: int, cause: Cause | None, **fields: Any) -> Shard:
    usual: dict[str, Any] = {
        "shard_id": f"s{number}",
        "submission_id": "one",
        "provider": "openai",
        "wave": 1,
        "number": number,
        "nonce": "n",
        "requests": 1,
        "bytes": 1,
        "path": "p",
        "digest": "d",
        "results_path": "r",
        "ended_at": SENT_AT,
        "batch": Batch(batch_id=f"b{number}", status=BatchStatus.ENDED),
    }
    return Shard(**usual | fields, cause=cause)


def rejects_of(*rows: tuple[Outcome, str | None, Shard | None]) -> LabelStats:
    """Return statistics of these rejects, each with its outcome, its reason and its shard."""
    labeling = Labeling(asset="a", model="openai/own", key="id", prompt=Prompt(user="{{ text }}"), response=None)
    records = [
        {
            "id": "x",
            "llm_outcome": outcome.value,
            "llm_reason": reason,
            **(
                {}
                if of is None
                else {
                    "llm_provider": of.provider,
                    "llm_batch_id": of.batch.batch_id,
                    "llm_attempt": of.wave,
                    "llm_lane": of.lane.value,
                    "llm_completed_at": of.ended_at,
                }
            ),
        }
        for outcome, reason, of in rows
    ]
    fields = [RESULT_SCHEMA.field(name) for name in REJECT_COLUMNS if name in RESULT_SCHEMA.names]
    more = [pa.field(name, pa.string()) for name in ("id", "llm_prompt_version", "llm_run_id")]
    schema = pa.schema([*fields, *more])
    table = pa.Table.from_pylist(records, schema)
    labels = pa.table({name: table[name].slice(0, 0) for name in schema.names} | {"text": pa.array([], pa.string())})
    stats = LabelStats(labeling)
    stats.add(Labeled(labels, table))
    return stats


@pytest.mark.parametrize("reason", [None, "", "the words of version 0.1.0", "ganz andere Worte"])
@pytest.mark.parametrize("cause", list(Cause))
def test_rows_without_an_answer_wait_by_the_cause_of_their_shard(cause, reason):
    of = shard(1, cause)
    found = rejects_of(*[(Outcome.MISSING, reason, of)] * 7).explain_rejects([of])
    if cause.is_final:
        assert found.waiting == {waiting_reason(cause, has_ended=True): 7}
        assert not found.others
    else:
        assert not found.waiting
        assert found.others == {("missing", reason, False): 7}


def test_rows_with_an_answer_and_rows_without_a_sending_do_not_wait():
    of = shard(1, Cause.CANCELED, batch=Batch(batch_id="b1", status=BatchStatus.CANCELED))
    words = waiting_reason(Cause.CANCELED, has_ended=True)
    rows = [(Outcome.INVALID, words, of), (Outcome.ERRORED, words, of), (Outcome.MISSING, words, None)]
    found = rejects_of(*rows, (Outcome.ERRORED, words, None), (Outcome.CANCELED, "?", of)).explain_rejects([of])
    assert found.waiting == {words: 1}
    assert found.others == {
        ("invalid", words, False): 1,
        ("errored", words, False): 1,
        ("missing", words, False): 1,
        ("errored", words, True): 1,
    }


def test_shards_that_were_never_in_a_batch_are_told_apart_by_their_end():
    failed = Batch(status=BatchStatus.FAILED)
    untaken = shard(1, Cause.NOT_TAKEN, batch=failed)
    refused = shard(2, None, ended_at=SENT_AT.replace(hour=1), batch=failed)
    rows = [(Outcome.ERRORED, "?", untaken)] * 2 + [(Outcome.ERRORED, "?", refused)]
    for known in ([untaken, refused], [refused, untaken]):
        found = rejects_of(*rows).explain_rejects(known)
        assert found.waiting == {waiting_reason(Cause.NOT_TAKEN, has_ended=True): 2}
        assert found.others == {("errored", "?", False): 1}


def test_a_shard_without_answers_takes_no_row_of_another():
    of = shard(1, Cause.GIVEN_UP, batch=Batch(status=BatchStatus.ENDED))
    planned = dataclasses.replace(of, shard_id="s2", cause=None, results_path=None, bill=Bill(known_usd=Decimal(0)))
    found = rejects_of((Outcome.MISSING, "?", of)).explain_rejects([planned, of])
    assert found.waiting.total() == 1
