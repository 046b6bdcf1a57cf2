"""Submissions and shards with every required field, and races between real processes."""

from __future__ import annotations

from collections import deque
from dataclasses import fields
from datetime import UTC, datetime

import sqlalchemy as sa

from dagster_llm_batch.errors import LedgerError
from dagster_llm_batch.states import TRANSITIONS, ShardState, Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.batch_rows import shard_row
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.ledger.schema import SHARD_ROW, with_columns
from tests.processes import PROCESSES

OWN_FIELDS = {field.name for field in fields(Shard)}


def a_submission(submission_id="s1", **changes):
    values = {
        "submission_id": submission_id, "namespace": "prod", "asset": "tickets", "partition": "2026-01-01",
        "fingerprint": "f1", "config_fingerprint": "c1", "provider": "openai", "account": "api.openai.com/org-1",
        "model": "gpt-5-mini", "rows": 10, "requests": 8, "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    return Submission(**{**values, **changes})


def a_shard(shard_id="h1", submission_id="s1", **changes):
    values = {
        "shard_id": shard_id, "submission_id": submission_id, "wave": 1, "number": 1, "nonce": "n1", "requests": 8,
        "bytes": 800, "path": "a/b.jsonl.zst", "digest": "00ff",
    }  # fmt: skip
    own = {name: changes.pop(name) for name in OWN_FIELDS & changes.keys()}
    return with_columns(Shard(**{**values, **own}), changes)


OLD_SHARD = sa.table(
    "shard",
    *(sa.column(column.name, column.type) for column in SHARD_ROW.c),
    *(sa.column("padding", sa.BigInteger), sa.column("retryable", sa.Boolean)),
)
"""The table of shards before version 10 of the ledger."""


def old_shard_row(shard):
    """Return a shard that was never sent, as a row of OLD_SHARD."""
    new = ("batch_key", "place", "sends", "sent_requests", "looked_at", "reason_kind", "has_uploads")
    row = {name: value for name, value in shard_row(shard).items() if name not in new}
    row |= {"padding": 0, "retryable": False, "planned_at": a_submission().created_at}
    return row | {"state": shard.state, "ended_at": shard.ended_at}


def fields_for(move, shard_id):
    """Return the required fields of a move."""
    return {"batch_id": f"batch-{shard_id}"} if move is Transition.ACCEPTED else {}


def path_to(state):
    """Find the shortest moves from `planned` to `state`."""
    queue = deque([(ShardState.PLANNED, ())])
    while queue:
        here, path = queue.popleft()
        if here is state:
            return path
        queue.extend((to, (*path, move)) for move, (sources, to) in TRANSITIONS.items() if here in sources)
    raise AssertionError(state)


def bring_to(ledger, shard_id, state):
    for move in path_to(state):
        ledger.shards.move(shard_id, move, **fields_for(move, shard_id))


def race(act, url, processes=2):
    """Run `act(ledger, number)` in several real processes at the same moment; return each result or refusal."""
    barrier = PROCESSES.Barrier(processes)
    answers = PROCESSES.Queue()
    racers = [
        PROCESSES.Process(target=_racer, args=(act, url, number, barrier, answers)) for number in range(processes)
    ]
    for racer in racers:
        racer.start()
    found = [answers.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join()
    return found


def _racer(act, url, number, barrier, answers):
    ledger = Ledger(url)
    barrier.wait()
    try:
        answers.put(("won", act(ledger, number)))
    except LedgerError as error:
        answers.put((type(error).__name__, str(error)))
