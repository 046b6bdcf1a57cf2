"""The current code continues with batches of every kind from 0.1.0, as 0.1.0 would: same labels, same calls, no more.

The tests read the columns of the old ledger from the unchanged file of 0.1.0. The rest goes through the engine and the
emulator.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.schema import to_row
from tests.archives import unpack_archive
from tests.batch_records import broken_records
from tests.crash.postgres import postgres
from tests.golden.kept_batches import (
    KINDS,
    STORE,
    STORES,
    Landed,
    billed,
    go_on,
    labeling,
    partitions,
    reopened,
    rows,
)
from tests.golden.moved_ledger import move_ledger

LEFT = {
    "shared, landed": "shared collected",
    "shared, one landed": "shared ended",
    "shared, ended": "shared ended",
    "shared, second wave planned": "wave-2 planned",
    "shared, second wave running": "wave-2 shared submitted",
    "shared, running": "shared submitted",
    "shared, given up": "shared given-up ended",
    "shared, given up and landed": "shared given-up collected",
    "shared, in doubt, arrived": "shared submitting",
    "shared, in doubt, lost": "shared submitting",
    "canceled": "stopped submitted",
    "planned": "unsent planned",
    "queue, landed": "collected",
    "put back, sent again, landed": "shared put-back sent-twice collected",
    "put back, sent again, running": "shared put-back sent-twice submitted",
    "put back, sent again, in doubt": "shared put-back sent-twice submitting",
    "put back, without room": "put-back no-room planned",
    "split, landed": "put-back split sent-twice collected",
    "split, half sent": "split unsent no-room planned",
    "too large": "put-back no-room planned",
    "its turn, running": "submitted",
    "its turn, waiting": "waits unsent planned",
    "sample, running": "split waits unsent planned",
    "budget, running": "submitted",
    "budget, waiting": "waits for-money unsent planned",
    "real time, landed": "real-time collected",
    "real time, ended": "real-time ended",
    "real time, turned away": "real-time so-far planned",
    "real time, in doubt": "real-time submitting",
    "padded, landed": "padded collected",
    "padded, ended": "padded ended",
    "padded, shared, running": "padded shared submitted",
    "padded, in doubt": "padded submitting",
}
"""The state of each kind's shards in the ledger of 0.1.0."""
ASKED_AGAIN = 1
"""Requests that may be paid twice: it is unknown whether the frozen process's call in real time was answered."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Unpack the store, which stays unopened."""
    folder = tmp_path_factory.mktemp("store")
    unpack_archive(STORES / f"{STORE}.tar.gz", folder)
    return folder


def _read(store, query):
    with closing(sqlite3.connect(f"file:{store}/ledger.sqlite?mode=ro", uri=True)) as ledger:
        ledger.row_factory = sqlite3.Row
        return [dict(row) for row in ledger.execute(query)]


_SHARDS = """
    SELECT shard.*, partition,
        (SELECT count(*) FROM event WHERE event.shard_id = shard.shard_id AND kind = 'send') AS sends,
        (SELECT count(*) FROM event WHERE event.shard_id = shard.shard_id AND kind = 'put_back') AS put_back,
        (SELECT count(*) FROM event WHERE event.submission_id = shard.submission_id AND kind = 'split') AS split,
        (SELECT count(*) FROM event WHERE event.submission_id = shard.submission_id AND kind = 'waits') AS waits,
        (SELECT count(*) FROM shard AS other WHERE other.carrier = shard.shard_id) AS carries
    FROM shard JOIN submission USING (submission_id)
"""


def _words(shard, store):
    """Describe a shard in the ledger of 0.1.0."""
    is_planned = shard["state"] == "planned"
    found = {
        "shared": shard["carrier"] is not None or shard["carries"] > 0,
        "padded": shard["padding"] > 0,
        "real-time": shard["lane"] == "realtime",
        "unsent": shard["sends"] == 0,
        "sent-twice": shard["sends"] == 2,
        "put-back": shard["put_back"] > 0,
        "split": shard["split"] > 0,
        "waits": shard["waits"] > 0,
        "no-room": shard["no_room_at"] is not None,
        "for-money": (shard["reason"] or "").startswith("it waits for money"),
        "given-up": shard["cause"] == "given_up",
        "stopped": shard["cause"] == "stopped",
        "so-far": is_planned and any((store / "payloads" / shard["path"]).parent.glob("*.sofar.*")),
    }
    return {shard["state"], f"wave-{shard['wave']}", *(word for word, holds in found.items() if holds)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_store_of_0_1_0_has_shards_of_this_kind(kind, store):
    found = [_words(shard, store) for shard in _read(store, _SHARDS) if shard["partition"] in partitions(kind)]
    assert any(set(LEFT[kind].split()) <= words for words in found), found


def test_the_store_of_0_1_0_has_the_ledger_of_0_1_0_and_each_partition_once(store):
    assert _read(store, "SELECT max(version) AS version FROM schema_version") == [{"version": 9}]
    found = Counter(row["partition"] for row in _read(store, "SELECT partition FROM submission"))
    assert found == {partition: 1 for kind in KINDS for partition in partitions(kind)}


@pytest.mark.parametrize("kind", [kind for kind, words in LEFT.items() if "shared" in words.split()])
def test_shards_of_several_submissions_of_the_store_have_one_batch(kind, store):
    own = [one for one in _read(store, _SHARDS) if one["partition"] in partitions(kind) and one["wave"] == 1]
    assert len({one["submission_id"] for one in own}) == len(own) == KINDS[kind][1] > 1
    [carrier] = [one for one in own if one["carrier"] is None]
    assert {one["carrier"] for one in own if one is not carrier} == {carrier["shard_id"]}
    assert len({one["batch_id"] for one in own}) == 1


_AS_BEFORE = (
    *("state", "batch_id", "padding", "sent_at", "submitted_at", "ended_at", "polled_at"),
    *("status", "total", "done", "failed", "retryable", "erased_there_at", "cause", "reason"),
)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def upgraded(request, tmp_path):
    """Upgrade the ledger of the store."""
    unpack_archive(STORES / f"{STORE}.tar.gz", tmp_path)
    if request.param == "sqlite":
        with closing(Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")) as ledger:
            yield ledger
        return
    if os.environ.get("DLB_TEST_POSTGRES") == "0":
        pytest.skip("DLB_TEST_POSTGRES=0")
    with postgres() as empty_database:
        url = empty_database()
        move_ledger(tmp_path / "ledger.sqlite", url)
        with closing(Ledger(url)) as ledger:
            yield ledger


def test_each_shard_has_after_the_upgrade_what_it_had_before(upgraded, store):
    def typed(name, value):
        if value is not None and name.endswith("_at"):
            return datetime.fromisoformat(value).replace(tzinfo=UTC)
        return bool(value) if name == "retryable" else value

    for before in _read(store, _SHARDS):
        after = upgraded.shards.get(before["shard_id"])
        assert {name: to_row(after)[name] for name in _AS_BEFORE} == {
            name: typed(name, before[name]) for name in _AS_BEFORE
        }
        assert after.sends == before["sends"]
        assert (after.batch.place == 0) == (before["carrier"] is None)
        sent_with = before["carrier"] or before["shard_id"]
        assert (after.batch.batch_key or f"{sent_with}-").rpartition("-")[0] == sent_with
    assert broken_records(upgraded) == []


@pytest.mark.sample
def test_a_lost_ledger_gets_its_batches_back_from_receipts_of_0_1_0(store, tmp_path):
    unpack_archive(STORES / f"{STORE}.tar.gz", tmp_path)
    (tmp_path / "ledger.sqlite").unlink()
    with reopened(tmp_path) as (workspace, _):
        ledger = workspace.engine().ledger
        recovered = {shard.shard_id: shard for shard in workspace.engine().recovery.recover_all()}
        assert broken_records(ledger) == []
        sent = [one for one in _read(store, _SHARDS) if one["sent_at"] and not one["collected_at"]]
        assert sent
        for before in sent:
            after = recovered[before["shard_id"]]
            first, _, sends = (after.batch.batch_key or "").rpartition("-")
            assert first == (before["carrier"] or before["shard_id"])
            assert (after.sends, after.batch.place == 0) == (before["sends"], before["carrier"] is None)
            assert int(sends) >= 1


class End(NamedTuple):
    """The end of the store's work, by the current code and by 0.1.0."""

    landed: dict[str, Landed]
    batches: list[Any]
    executions: list[Any]
    billed: dict[str, int]
    expected: dict[str, Any]
    run_ids: dict[str, str | None]


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def end(request, tmp_path_factory):
    """Finish the work with the current code; the ledger stays in SQLite, or its rows move to PostgreSQL."""
    folder = tmp_path_factory.mktemp("end")
    unpack_archive(STORES / f"{STORE}.tar.gz", folder)
    if request.param == "sqlite":
        yield _end(folder, None)
        return
    if os.environ.get("DLB_TEST_POSTGRES") == "0":
        pytest.skip("DLB_TEST_POSTGRES=0")
    with postgres() as empty_database:
        url = empty_database()
        move_ledger(folder / "ledger.sqlite", url)
        yield _end(folder, url)


def _end(folder, url):
    with reopened(folder, url) as (workspace, emulator):
        engine = workspace.engine()
        landed = go_on(engine, emulator, workspace)
        run_ids = {
            partition: engine.plan(labeling(asset), rows(kind, partition), partition=partition).run_id
            for kind, (asset, *_) in KINDS.items()
            for partition in partitions(kind)
        }
        books = emulator.books
        expected = json.loads((folder / "expected.json").read_text())
        return End(landed, books.batches, books.executions, billed(emulator), expected, run_ids)


def test_every_row_of_every_kind_ends_with_exactly_one_outcome(end):
    for kind in KINDS:
        for partition in partitions(kind):
            one, asked = end.landed[partition], rows(kind, partition)
            assert sorted(row["id"] for row in one.labels + one.rejects) == asked["id"].to_pylist(), partition
            assert sum(one.outcomes.values()) == len(asked), partition


def test_no_batch_is_sent_twice_and_no_request_but_one_of_unknown_end_is_paid_twice(end):
    assert len(end.batches) == end.expected["batches"]
    custom_ids = Counter(one.custom_id for one in end.executions if one.custom_id is not None)
    assert max(custom_ids.values()) == 1
    assert end.billed == end.expected["billed"]
    in_real_time = Counter(one.body_digest for one in end.executions if one.custom_id is None)
    assert sum(count - 1 for count in in_real_time.values()) == ASKED_AGAIN


def test_labels_rejects_and_costs_are_those_that_0_1_0_lands(end):
    landed = json.loads(json.dumps({name: one._asdict() for name, one in end.landed.items()}, default=str))
    for partition, expected in end.expected["landed"].items():
        for part in ("labels", "rejects"):
            columns = expected[part][0].keys() if expected[part] else ()
            found = [{name: row[name] for name in columns} for row in landed[partition][part]]
            assert found == expected[part], partition
        for part in ("outcomes", "cost_usd"):
            assert landed[partition][part] == expected[part], partition


def test_the_submissions_of_0_1_0_are_gone_on_with_and_only_the_canceled_one_is_asked_anew(end):
    assert {partition for partition, run_id in end.run_ids.items() if run_id != f"run {partition}"} == {"canceled 1"}
