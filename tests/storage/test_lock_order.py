"""PostgreSQL transactions that change the same rows lock them in one order, so that they cannot deadlock.

Two threads meet behind a row that a third transaction has locked. If the first takes the rows in another order than the
second, each then holds a row that the other needs, and the database ends one of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from ledger_builders import a_shard, a_submission
from pg_cluster import Cluster

from dagster_llm_batch.errors import IllegalTransitionError, LeaseError, LLMBatchError
from dagster_llm_batch.states import Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.schema import BATCH, LEASE, SHARD_ROW

_WAITING = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
_FIRST, _LAST = "h1", "h2"


@pytest.fixture
def ledger(postgres_cluster: Cluster, clock: Any) -> Iterator[Ledger]:
    ledger = Ledger(postgres_cluster.new_database(), clock)
    yield ledger
    ledger.close()


def meet(ledger: Ledger, row: Any, *works: Callable[[], object]) -> list[LLMBatchError]:
    """Let each work begin and wait behind a row, one after the other; free the row, and return the raised errors."""
    raised: list[LLMBatchError] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except LeaseError:
            pass
        except LLMBatchError as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    with ledger._database.write() as connection:
        connection.execute(row.with_for_update())
        for count, thread in enumerate(threads, 1):
            thread.start()
            while connection.execute(_WAITING).scalar_one() < count:
                assert all(each.is_alive() for each in threads[:count]), raised
                time.sleep(0.01)
    for thread in threads:
        thread.join()
    return raised


def move_to_the_end(ledger: Ledger, table: sa.Table, column: sa.Column[Any], name: str, **values: Any) -> None:
    """Move a row to the end of its table, so that a statement without an order reaches it last."""
    with ledger._database.write() as connection:
        connection.execute(sa.update(table).where(column == name).values(**values))


@pytest.mark.parametrize("verb", ["renew", "_give_back"])
def test_a_lease_of_several_names_that_expired_meets_who_takes_them(ledger: Ledger, clock: Any, verb: str) -> None:
    with ledger.leases.hold("a", "b") as lease:
        move_to_the_end(ledger, LEASE, LEASE.c.name, "a", expires_at=clock.now - timedelta(seconds=1))

        def take() -> None:
            with ledger.leases.hold("a", "b"):
                pass

        row = sa.select(LEASE).where(LEASE.c.name == "b")
        assert meet(ledger, row, getattr(lease, verb), take) == []


def _keep_places(ledger: Ledger, clock: Any) -> None:
    ledger.queues.keep_places("prod", ["tickets"], now=clock.now, unless_since=clock.now - timedelta(minutes=10))


@pytest.mark.parametrize(
    "verb",
    [
        _keep_places,
        lambda ledger, _: ledger.money.release([_LAST, _FIRST]),
        lambda ledger, _: ledger.shards.forget_raw("s1", "kept for 30 days"),
    ],
    ids=["keep_places", "release_money", "forget_raw"],
)
def test_what_changes_several_shards_meets_who_moves_them(
    ledger: Ledger, clock: Any, verb: Callable[[Ledger, Any], object]
) -> None:
    shards = [a_shard(name, number=at, nonce=name, reserved_usd=1) for at, name in enumerate((_LAST, _FIRST))]
    ledger.submissions.open(a_submission(), shards)
    clock.pass_seconds(3_600)
    for name in (_LAST, _FIRST):
        move_to_the_end(ledger, SHARD_ROW, SHARD_ROW.c.shard_id, name, raw_path="raw")
    row = sa.select(SHARD_ROW).where(SHARD_ROW.c.shard_id == _LAST)
    move = partial(ledger.shards.move_all, [_FIRST, _LAST], Transition.CANCELED)
    assert meet(ledger, row, partial(verb, ledger, clock), move) == []


def test_of_two_that_end_one_batch_by_different_shards_the_second_reads_what_the_first_wrote(ledger: Ledger) -> None:
    shards = [a_shard(name, number=at, nonce=name) for at, name in enumerate((_FIRST, _LAST))]
    ledger.submissions.open(a_submission(), shards)
    ledger.shards.move_all([_FIRST, _LAST], Transition.SEND)
    ledger.shards.move_all([_FIRST, _LAST], Transition.ACCEPTED, batch_id="b")
    works = [
        partial(ledger.shards.move, _FIRST, Transition.ENDED),
        partial(ledger.shards.move, _LAST, Transition.FAILED),
    ]
    [refused] = meet(ledger, sa.select(BATCH).where(BATCH.c.batch_id == "b"), *works)
    assert isinstance(refused, IllegalTransitionError)
    assert len({shard.state for shard in ledger.shards.of_submission("s1")}) == 1
