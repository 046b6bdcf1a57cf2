"""Erased rows disappear from all of our stores and never return; all other data is unchanged."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from comparison import Pickled
from workspace import Workspace, billed, labeling, texts

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Limits, Realtime, Resend
from dagster_llm_batch.errors import PayloadError, RefusedError
from dagster_llm_batch.files.request_files import (
    answers_so_far,
    halve,
    request_ids,
    split_requests,
    write_answers_so_far,
)
from dagster_llm_batch.providers.command.provider import CommandProvider
from dagster_llm_batch.states import Transition
from dagster_llm_batch.storage.ledger.shards import WORDS_ERASED
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import BatchFault, Emulator, FileFault, RowFault
from dagster_llm_batch.testing.emulator.answers import last_user_text

SECRET = "Ines Quispe lives at 7 Rua do Ouro"
ECHO = labeling(
    response=None,
    prompt=Prompt(system="Repeat it.", user="{{ body }}"),
    keep=["subject"],
    limits=Limits(max_requests_per_batch=4),
)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """Run an emulator whose model repeats its prompt, so that replies hold the values of rows."""
    with Emulator(answer=lambda body, _: f"You said: {last_user_text(body)}") as running:
        yield running


def rows(count: int = 10, *, without: tuple[str, ...] = ()) -> pl.DataFrame:
    """Return rows; t3 holds the secret in its key, its text, and a column that is kept."""
    keys = [f"t{n}" for n in range(count)]
    table = pl.DataFrame(
        {
            "ticket_id": keys,
            "subject": [f"{SECRET}, in a kept column" if key == "t3" else f"Subject {key}" for key in keys],
            "body": [f"{SECRET}: my invoice?" if key == "t3" else f"Where is invoice {key}?" for key in keys],
        }
    )
    return table.filter(~pl.col("ticket_id").is_in(list(without)))


def stored(workspace: Workspace) -> bytes:
    """Return the content of the payload store and the ledger, unpacked and as stored."""
    ledger = [path.read_bytes() for path in workspace.tmp_path.glob("ledger.sqlite*")]
    return b"\n".join([stored_files(workspace), *ledger])


def stored_files(workspace: Workspace) -> bytes:
    found = []
    for path in (workspace.tmp_path / "payloads").rglob("*"):
        if path.is_file():
            found += [str(path).encode(), path.read_bytes(), unpacked(workspace, path)]
    return b"\n".join(found)


def unpacked(workspace: Workspace, path: Any) -> bytes:
    payloads = PayloadStore(str(workspace.tmp_path / "payloads"))
    name = str(path.relative_to(workspace.tmp_path / "payloads"))
    if name.endswith(".parquet"):
        return json.dumps(payloads.read_table(name).to_pylist(), default=str, ensure_ascii=False).encode()
    with payloads.reader(name) as file:
        return file.read()


def holds(workspace: Workspace) -> bool:
    return SECRET.encode() in stored(workspace)


def erase(workspace: Workspace, *keys: str, partitions: Any = None, asset: str = "ticket_labels") -> Any:
    eraser = workspace.engine().eraser
    eraser.add_tombstones(asset, keys, partitions)
    return eraser.erase(asset)


def all_whole(workspace: Workspace) -> bool:
    payloads = PayloadStore(str(workspace.tmp_path / "payloads"))
    return all(payloads.is_whole(name) for name in workspace.files())


def table(workspace: Workspace, definition: Any, submission_id: str) -> pa.Table:
    return workspace.engine().labels(definition, submission_id, run_id="r").labels


def test_an_erased_row_is_nowhere_and_the_others_are_as_they_were(workspace):
    submission = workspace.run(ECHO, rows()).submission
    before = table(workspace, ECHO, submission.submission_id)
    assert holds(workspace)
    assert erase(workspace, "t3") == []
    assert not holds(workspace)
    assert all_whole(workspace)
    after = table(workspace, ECHO, submission.submission_id)
    assert after.equals(before.filter(pc.not_equal(before["ticket_id"], "t3")))
    now = workspace.engine().ledger.submissions.get(submission.submission_id)
    assert (now.rows, now.requests, dict(now.outcomes)) == (9, 9, {"succeeded": 9})
    assert now.cost_usd == submission.cost_usd
    for shard in workspace.engine().ledger.shards.of_submission(submission.submission_id):
        with workspace.engine().payloads.checked(shard.path, shard.digest) as plain:
            lines = plain().read()
        assert (len(lines), lines.count(b"\n")) == (shard.bytes, shard.requests)


def test_nothing_brings_an_erased_row_back(workspace):
    submission = workspace.run(ECHO, rows()).submission
    erase(workspace, "t3")
    asked = len(billed(workspace))
    engine = workspace.engine()
    # The row is still in the input, and then removed: both inputs match the submission.
    for frame in (rows(), rows(without=("t3",))):
        assert engine.plan(ECHO, frame).submission_id == submission.submission_id
        assert engine.preview(ECHO, frame).known is not None
    labels = engine.labels(ECHO, submission.submission_id, reread=True).labels
    assert texts(labels) == texts(rows(without=("t3",)).to_arrow())
    again = workspace.run(ECHO, rows(12))
    assert (again.submission.rows, len(billed(workspace))) == (11, asked + 2)
    renamed = labeling(**{**vars_of(ECHO), "asset": "tickets_now", "resend": Resend(former_names=["ticket_labels"])})
    assert engine.preview(renamed, rows(12)).erased_rows == 1
    assert workspace.engine().plan(renamed, rows(12)).rows == 11
    assert len(billed(workspace)) == asked + 2
    assert not holds(workspace)


def vars_of(definition: Any) -> dict[str, Any]:
    names = ("prompt", "response", "keep", "limits")
    return {name: getattr(definition, name) for name in names}


def test_a_tombstone_is_taken_back_in_one_partition_alone(workspace):
    for partition in ("a", "b"):
        workspace.run(ECHO, rows(), partition=partition)
    erase(workspace, "t3", partitions=["a", "b"])
    assert workspace.engine().eraser.take_back_tombstones("ticket_labels", ["t3"], ["a"]) == 1
    erased = [workspace.engine().preview(ECHO, rows(), partition=one).erased_rows for one in ("a", "b")]
    assert erased == [0, 1]


def test_a_row_whose_tombstone_is_taken_back_is_asked_again(workspace):
    workspace.run(ECHO, rows())
    erase(workspace, "t3", "t4")
    eraser = workspace.engine().eraser
    assert eraser.take_back_tombstones("ticket_labels", ["t3"], None) == 1
    asked = len(billed(workspace))
    submission = workspace.run(ECHO, rows()).submission
    assert len(billed(workspace)) == asked + 1
    assert "t3" in texts(table(workspace, ECHO, submission.submission_id))
    assert "t4" not in texts(table(workspace, ECHO, submission.submission_id))


@pytest.mark.parametrize("when", ["planned", "sent", "ended"])
def test_a_row_that_is_under_way_does_not_land_and_is_not_sent_again(workspace, when):
    engine = workspace.engine()
    # Without an answer the row would be asked again, up to the limit of `Resend`.
    workspace.emulator.inject(RowFault(containing=SECRET, status_code=500, message=f"I cannot read '{SECRET}'"))
    submission = engine.plan(ECHO, rows())
    if when != "planned":
        engine.submit(ECHO, submission.submission_id)
    if when == "ended":
        workspace.emulator.settle()
    left = erase(workspace, "t3")
    assert bool(left) == (when != "planned")
    if when == "planned":
        assert not holds(workspace)
        engine.submit(ECHO, submission.submission_id)
    sent = len(workspace.emulator.books.batches)
    status = workspace.finish(ECHO, submission.submission_id)
    assert len(workspace.emulator.books.batches) == sent
    assert status.submission.rows == sum(status.submission.outcomes.values()) == 9
    assert texts(table(workspace, ECHO, submission.submission_id)) == texts(rows(without=("t3",)).to_arrow())
    assert not holds(workspace)
    assert all_whole(workspace)


def test_what_a_killed_erasure_left_of_a_settled_submission_goes_when_a_run_comes_by(workspace):
    older = workspace.run(ECHO, rows()).submission
    workspace.run(ECHO, rows(without=("t3",)))
    engine = workspace.engine()
    # It was killed after this.
    engine.eraser.add_tombstones("ticket_labels", ["t3"], None)
    assert SECRET.encode() in stored_files(workspace)
    # A run that materializes the newer one also advances the older one.
    assert engine.advance(ECHO, older.submission_id).is_settled
    assert SECRET.encode() not in stored_files(workspace)


def test_a_request_that_another_row_has_too_stays_with_it(workspace):
    same = rows().with_columns(body=pl.lit("The same text"))
    submission = workspace.run(ECHO, same).submission
    [found] = workspace.engine().eraser.find("ticket_labels", ["t3"], None)
    assert (found.rows, found.shared) == (1, 1)
    erase(workspace, "t3")
    assert len(table(workspace, ECHO, submission.submission_id)) == 9
    now = workspace.engine().ledger.submissions.get(submission.submission_id)
    assert (now.rows, now.requests) == (9, 1)
    erase(workspace, *[f"t{n}" for n in range(10)])
    assert b"The same text" not in stored(workspace)
    assert len(table(workspace, ECHO, submission.submission_id)) == 0


def test_one_partition_can_be_chosen(workspace):
    first = workspace.run(ECHO, rows(), partition="a").submission
    second = workspace.run(ECHO, rows(), partition="b").submission
    erase(workspace, "t3", partitions=["a"])
    assert len(table(workspace, ECHO, first.submission_id)) == 9
    assert len(table(workspace, ECHO, second.submission_id)) == 10
    assert workspace.engine().preview(ECHO, rows(), partition="b").erased_rows == 0
    assert workspace.engine().preview(ECHO, rows(), partition="a").erased_rows == 1


def test_rows_for_a_fallback_and_answers_so_far_are_erased_too(workspace):
    definition = labeling(
        **{**vars_of(ECHO), "resend": Resend(fallback=["openai/gpt-4o-mini"]), "limits": Limits()},
        realtime=Realtime(urgent="is_urgent"),
    )
    frame = rows().with_columns(is_urgent=pl.lit(value=True))
    submission = workspace.run(definition, frame).submission
    assert holds(workspace)
    erase(workspace, "t3")
    assert not holds(workspace)
    assert len(table(workspace, definition, submission.submission_id)) == 9


def test_the_vendor_deletes_what_it_has_of_ended_batches_alone(workspace):
    submission = workspace.run(ECHO, rows()).submission
    erase(workspace, "t3")
    engine = workspace.engine()
    [there] = engine.eraser.erase_at_providers("ticket_labels")
    assert there.left is None
    shard = next(shard for shard in engine.ledger.shards.of_submission(submission.submission_id) if shard.erased)
    assert engine.ledger.shards.at_providers("test", "ticket_labels") == []
    provider = workspace.providers["openai"]
    with pytest.raises(RefusedError):
        list(provider.fetch(shard.batch.batch_id))
    others = [other for other in engine.ledger.shards.of_submission(submission.submission_id) if not other.erased]
    assert len(others) == 2
    assert all(list(provider.fetch(other.batch.batch_id)) for other in others)


def test_without_its_manifest_nothing_is_sent_or_landed_and_it_is_said(workspace):
    submission = workspace.run(ECHO, rows()).submission
    (workspace.tmp_path / "payloads" / submission.manifest_path).unlink()
    [left] = erase(workspace, "t3")
    assert "manifest" in left.reason
    with pytest.raises(PayloadError, match="submits 'ticket_labels' again"):
        workspace.engine().labels(ECHO, submission.submission_id)


def test_a_tombstone_does_not_hold_the_key(workspace):
    key = "a.very.private@key.example"
    workspace.engine().eraser.add_tombstones("ticket_labels", [key], None)
    assert key.encode() not in stored(workspace)
    assert workspace.engine().preview(ECHO, rows().with_columns(ticket_id=pl.lit(key)).head(1)).erased_rows == 1


def test_workers_leave_erased_rows_out_as_one_process_does(workspace):
    workspace.engine().eraser.add_tombstones("ticket_labels", ["t3", "t7"], None)
    alone = workspace.engine().preview(ECHO, rows())
    spread = workspace.engine().plan(replace(ECHO, workers=Pickled()), rows())
    assert (spread.rows, spread.requests) == (alone.rows, alone.requests) == (8, 8)
    assert workspace.engine().left_out_rows(spread) == (0, alone.erased_rows, 0) == (0, 2, 0)
    assert not holds(workspace)


def test_answers_so_far_stay_with_their_requests(workspace):
    definition = labeling(**vars_of(ECHO), realtime=Realtime(urgent="is_urgent"))
    engine = workspace.engine()
    submission = engine.plan(definition, rows().with_columns(is_urgent=pl.lit(value=True)))
    [shard] = engine.ledger.shards.of_submission(submission.submission_id)
    ids = request_ids(engine.payloads, shard)
    answers = {at: f"answer to {ids[at]}\n".encode() for at in (1, 3, 8)}
    write_answers_so_far(engine.payloads, shard, answers)
    assert erase(workspace, "t3", "t6") == []
    [shard] = engine.ledger.shards.of_submission(submission.submission_id)
    left = request_ids(engine.payloads, shard)
    assert (shard.requests, shard.erased, len(left)) == (8, 2, 8)
    assert {left[at]: line for at, line in answers_so_far(engine.payloads, shard).items()} == {
        ids[at]: answers[at] for at in (1, 8)
    }


def test_a_batch_all_of_whose_rows_are_erased_is_not_sent(workspace):
    engine = workspace.engine()
    submission = engine.plan(ECHO, rows(3))
    assert erase(workspace, "t0", "t1", "t2") == []
    status = engine.advance(ECHO, submission.submission_id)
    assert status.is_settled
    assert (status.submission.rows, len(workspace.emulator.books.batches)) == (0, 0)
    assert len(engine.labels(ECHO, submission.submission_id).labels) == 0


@pytest.mark.sample
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "its request is that of another row, too"])
def test_the_example_of_what_does_not_fit_goes_with_the_erased_row(workspace, shared):
    workspace.emulator.inject(FileFault(kind="missing", times=None))
    named = rows(20).with_columns(ticket_id=pl.format("{} of Ines", "ticket_id"))
    if shared:
        named = pl.concat([named, named.with_columns(ticket_id=pl.format("{} again", "ticket_id"))])
    submission_id = workspace.run(ECHO, named).submission.submission_id
    engine = workspace.engine()
    [example] = [key for key in named["ticket_id"] if f"'{key}'" in engine.unsent(submission_id).stopped]
    erase(workspace, example)
    assert example not in engine.unsent(submission_id).stopped
    assert "20 of 20 requests" in engine.unsent(submission_id).stopped
    assert "retry" in engine.unsent(submission_id).stopped
    events, holds_of = engine.ledger.events.of_submission(submission_id), engine.ledger.holds.of([submission_id])
    assert example not in f"{events} {holds_of}"


def test_words_of_the_provider_go_with_the_rows_that_they_may_quote(workspace):
    words, definition = f"Line 4 is '{SECRET}'", replace(ECHO, limits=Limits())
    workspace.emulator.inject(BatchFault(kind="fails", batches=[0], code="internal_error", message=words))
    submission = workspace.run(definition, rows()).submission
    erase(workspace, "t3")
    ledger = workspace.engine().ledger
    shards, events = (
        ledger.shards.of_submission(submission.submission_id),
        ledger.events.of_submission(submission.submission_id),
    )
    assert [event.detail for event in events if event.kind == "failed"] == [WORDS_ERASED]
    # The ledger is checked by records, not bytes: a database may keep freed pages.
    assert SECRET not in f"{shards} {events}"
    assert SECRET.encode() not in stored_files(workspace)


def sent_together(workspace: Workspace, code: str) -> tuple[Any, list[str]]:
    """Send two partitions in one batch, which fails with an error that quotes a row of the first."""
    definition = replace(ECHO, limits=Limits(), resend=Resend(max_waves=1))
    workspace.emulator.inject(BatchFault(kind="fails", batches=[0], code=code, message=f"Line 4 is '{SECRET}'"))
    engine = workspace.engine()
    monday = engine.plan(definition, rows(), partition="monday").submission_id
    tuesday = engine.plan(definition, rows(4, without=("t3",)), partition="tuesday").submission_id
    engine.submit_together(definition, [monday, tuesday])
    assert len(workspace.emulator.books.batches) == 1
    return definition, [monday, tuesday]


def test_words_of_the_provider_go_from_the_partitions_that_shared_the_batch_too(workspace):
    definition, ids = sent_together(workspace, "internal_error")
    _, before = (workspace.finish(definition, submission_id).submission for submission_id in ids)
    engine = workspace.engine()
    assert SECRET in str(engine.labels(definition, ids[1]).rejects["llm_reason"])
    # While another process works on the submission that shares the batch, the erasure is not reported as done.
    with engine.deployment.leased(ids[1]):
        left = erase(workspace, "t3", partitions=["monday"])
    assert {one.submission.partition for one in left} == {"monday", "tuesday"}
    assert workspace.engine().eraser.erase("ticket_labels") == []
    assert SECRET not in f"{engine.ledger.shards.of_submission(ids[1])} {engine.ledger.events.of_submission(ids[1])}"
    assert SECRET.encode() not in stored_files(workspace)
    assert engine.ledger.submissions.get(ids[1]).outcomes == before.outcomes == {"errored": 3}
    assert all_whole(workspace)


def test_words_on_a_batch_that_was_put_back_go_from_all_that_were_in_it(workspace):
    definition, ids = sent_together(workspace, "token_limit_exceeded")
    workspace.emulator.settle()
    workspace.skipped += timedelta(hours=1)
    engine = workspace.engine()
    engine.collect(definition, ids[1])
    assert SECRET in str(engine.ledger.shards.of_submission(ids[1]))
    assert erase(workspace, "t3", partitions=["monday"]) == []
    for submission_id in ids:
        assert SECRET not in f"{engine.ledger.shards.of_submission(submission_id)}"
        assert SECRET not in f"{engine.ledger.events.of_submission(submission_id)}"
    assert workspace.finish(definition, ids[1]).submission.outcomes == {"succeeded": 3}


def test_partitions_that_shared_a_batch_are_sent_together_again_after_one_is_erased(workspace):
    definition, ids = sent_together(workspace, "token_limit_exceeded")
    workspace.emulator.settle()
    workspace.skipped += timedelta(hours=1)
    engine = workspace.engine()
    engine.collect(definition, ids[1])
    workspace.skipped += timedelta(hours=1)
    # Another process works on both when rows are erased, so the next process that sends them erases first.
    with engine.deployment.leased(*ids):
        assert len(erase(workspace, "t3", partitions=["monday"])) == 2
    workspace.engine().submit_together(definition, ids)
    assert SECRET not in f"{engine.ledger.shards.of_submission(ids[1])} {engine.ledger.events.of_submission(ids[1])}"
    for submission_id, rows_left in ((ids[1], 3), (ids[0], 9)):
        assert workspace.finish(definition, submission_id).submission.outcomes == {"succeeded": rows_left}


def test_own_machines_are_not_asked_again_for_results_that_were_deleted_there(workspace):
    labeler = Path(__file__).parents[1] / "providers" / "labeler.py"
    words = [sys.executable, "-S", str(labeler), "-i", "{input}", "-o", "{output}", "--model", "{model}"]
    workspace.providers["command"] = CommandProvider(words, str(workspace.tmp_path / "jobs"))
    definition, engine = replace(ECHO, model="command/own"), workspace.engine()
    submission_id = engine.plan(definition, rows()).submission_id
    while not engine.advance(definition, submission_id).is_settled:
        pass
    assert erase(workspace, "t3") == []
    assert [copy.left for copy in engine.eraser.erase_at_providers("ticket_labels")] == [None]
    [first, *_] = engine.ledger.shards.of_submission(submission_id)
    assert first.batch.erased_there_at is not None
    for path in (first.results_path, first.raw_path):
        (workspace.tmp_path / "payloads" / path).unlink()
    # Results that cannot arrive are reported as lost and wait for a person: they are neither awaited nor sent again.
    assert len(engine.labels(definition, submission_id).labels) == 6
    assert engine.ledger.shards.get(first.shard_id).waits_for_person


def test_what_is_left_is_read_by_the_definition_that_asked_for_it(workspace):
    submission_id = workspace.run(ECHO, rows()).submission.submission_id
    erase(workspace, "t3")
    labels = workspace.engine().labels(labeling(), submission_id).labels
    assert len(labels) == 9
    assert labels["text"].null_count == 0


def test_of_pruned_submissions_what_was_left_goes_and_what_others_need_stays(workspace):
    first = workspace.run(ECHO, rows()).submission
    second = workspace.run(ECHO, rows(12)).submission
    engine = workspace.engine()
    # Store the event of a prune without deleting files, as if a plan reused its answers at the same time.
    engine.ledger.submissions.mark_pruned(first.submission_id, files=1, size=1)
    assert erase(workspace, "t3") == []
    assert len(table(workspace, ECHO, second.submission_id)) == 11
    assert not holds(workspace)
    # Leave the state of a prune that was killed between two files.
    third = workspace.run(ECHO, rows(), partition="z").submission
    engine.ledger.submissions.mark_pruned(third.submission_id, files=1, size=1)
    (workspace.tmp_path / "payloads" / third.manifest_path).unlink()
    assert erase(workspace, "t4") == []
    assert not [name for name in workspace.files() if third.submission_id in name]


def test_requests_of_a_shard_that_was_split_go_too_where_the_process_was_killed_after_that(workspace):
    definition, engine = replace(ECHO, limits=Limits()), workspace.engine()
    submission = engine.plan(definition, rows())
    [planned] = engine.ledger.shards.of_submission(submission.submission_id)
    engine.ledger.shards.move(planned.shard_id, Transition.SEND)
    whole = engine.ledger.shards.move(planned.shard_id, Transition.NOT_SENT, reason=f"No room for '{SECRET}'")
    # Between this and the removal of the whole's file it dies.
    engine.ledger.shards.split(whole, *split_requests(engine.payloads, whole, 1, halve(whole, 1)))
    assert erase(workspace, "t3") == []
    assert SECRET.encode() not in stored_files(workspace)
    assert SECRET not in str(engine.ledger.shards.of_submission(submission.submission_id))
    assert SECRET not in str(engine.ledger.events.of_submission(submission.submission_id))
    assert workspace.finish(definition, submission.submission_id).submission.outcomes == {"succeeded": 9}
    assert all_whole(workspace)


def test_words_of_the_provider_are_in_no_receipt_of_a_later_sending(workspace):
    words = f"No room for '{SECRET}'"
    workspace.emulator.inject(BatchFault(kind="fails", batches=[0], code="token_limit_exceeded", message=words))
    workspace.run(replace(ECHO, limits=Limits()), rows())
    assert len(workspace.emulator.books.batches) > 1
    erase(workspace, "t3")
    assert SECRET.encode() not in stored_files(workspace)
    ledger = workspace.engine().ledger
    [submission] = ledger.submissions.list_all("test")
    assert SECRET not in f"{ledger.shards.of_submission(submission.submission_id)}"
    assert SECRET not in f"{ledger.events.of_submission(submission.submission_id)}"
