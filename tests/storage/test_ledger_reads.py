"""Queries about one shard or queue read few other rows of the ledger, however many it has, on both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
import sqlalchemy as sa
from ledger_builders import a_shard, a_submission

from dagster_llm_batch.states import ShardState, Transition
from dagster_llm_batch.storage.ledger.records import QueueOccupancy

_OTHERS = 3_000
_STEPS = 100  # of SQLite's virtual machine


class Effort:
    """The work of queries: rows that PostgreSQL read, or hundreds of steps of SQLite."""

    def __init__(self) -> None:
        self.spent = 0

    def step(self) -> int:
        self.spent += 1
        return 0


def _looked_at(plan: dict) -> int:
    here = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0) if "Relation Name" in plan else 0
    return int(here * plan["Actual Loops"]) + sum(_looked_at(part) for part in plan.get("Plans", ()))


@contextmanager
def _effort(ledger) -> Iterator[Effort]:
    effort = Effort()
    with ledger._database.read() as connection:
        engine = connection.engine

    def before(_connection, cursor, *_):
        if engine.dialect.name == "sqlite":
            cursor.connection.set_progress_handler(effort.step, _STEPS)

    def after(_connection, cursor, statement, *_):
        if engine.dialect.name != "sqlite" and "FROM shard" in statement:
            with cursor.connection.cursor() as explained:
                explained.execute(b"EXPLAIN (ANALYZE, FORMAT JSON) " + cursor.query)
                [[[plan]]] = explained.fetchall()
                effort.spent += _looked_at((json.loads(plan) if isinstance(plan, str) else plan)["Plan"])

    sa.event.listen(engine, "before_cursor_execute", before)
    sa.event.listen(engine, "after_cursor_execute", after)
    yield effort
    sa.event.remove(engine, "before_cursor_execute", before)
    sa.event.remove(engine, "after_cursor_execute", after)


@pytest.fixture
def busy_ledger(ledger):
    """Return a ledger with two shards in one batch, and thousands of others in flight, each in its own batch."""
    others = [a_shard(f"o{n}", "others", number=n, nonce=f"o{n}") for n in range(_OTHERS)]
    ledger.submissions.open(a_submission("others", partition="others"), others)
    ledger.submissions.open(a_submission(), [a_shard("h1"), a_shard("h2", number=2, nonce="n2")])
    ledger.shards.move_all(["h1", "h2"], Transition.SEND)
    with ledger._database.write() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO batch (batch_key, tag, provider, account, model, lane, state, batch_id, requests, "
                "padding, sent_at, submitted_at, retryable) SELECT shard_id, shard_id, provider, account, model, lane, "
                "'running', 'b' || shard_id, requests, 0, planned_at, planned_at, false FROM shard "
                "WHERE submission_id = 'others'"
            )
        )
        connection.execute(
            sa.text("UPDATE shard SET state = 'sent', batch_key = shard_id WHERE submission_id = 'others'")
        )
    with ledger._database.read() as connection:
        connection.execute(sa.text("ANALYZE"))
        connection.commit()
    return ledger


def test_the_shards_of_a_create_call_of_unknown_end_are_found_without_a_look_at_what_else_is_in_flight(busy_ledger):
    with _effort(busy_ledger) as effort:
        found = busy_ledger.shards.sent_with(["s1"])
    assert [shard.shard_id for shard in found] == ["h1", "h2"]
    assert effort.spent < 100


def test_the_shards_of_a_batch_are_found_without_a_look_at_other_batches(busy_ledger):
    busy_ledger.shards.move_all(["h1", "h2"], Transition.ACCEPTED, batch_id="batch")
    with _effort(busy_ledger) as effort:
        found = [busy_ledger.shards.of_batch(busy_ledger.shards.get(shard_id)) for shard_id in ("h1", "h2")]
    assert [[shard.shard_id for shard in shards] for shards in found] == [["h1", "h2"]] * 2
    assert {shard.state for shards in found for shard in shards} == {ShardState.SUBMITTED}
    assert effort.spent < 100


def test_a_queue_is_summed_by_batches_without_the_batch_itself_and_what_is_to_wait_longer(busy_ledger, clock):
    busy_ledger.submissions.open(
        a_submission("s2", partition="2"), [a_shard("w1", "s2", nonce="w1", tokens=5), a_shard("zz", "s2", number=2)]
    )
    hour = timedelta(hours=1)
    asked = {"occupancy": QueueOccupancy.at(clock.now, 24 * hour), "longest_pause": hour}
    last = busy_ledger.shards.get("zz")
    ahead = busy_ledger.queues.count_ahead("prod", [last], **asked)
    assert (ahead.batches, ahead.requests, ahead.tokens) == (_OTHERS + 2, 8 * (_OTHERS + 3), 5)
    busy_ledger.shards.delay(["w1"], clock.now + hour, "it waits")
    assert busy_ledger.queues.count_ahead("prod", [last], **asked).batches == _OTHERS + 1
    assert busy_ledger.queues.count_ahead("prod", [last, busy_ledger.shards.get("h1")], **asked).requests == 8 * (
        _OTHERS + 1
    )
    assert busy_ledger.queues.count_ahead("prod", [last], model="another", **asked).batches == 0
    assert busy_ledger.queues.count_ahead("elsewhere", [busy_ledger.shards.get("w1")], **asked).batches == _OTHERS + 1
