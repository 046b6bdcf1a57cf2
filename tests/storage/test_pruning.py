"""Files and records that pruning keeps and removes, on both databases, and after a kill of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_builders import a_shard, a_submission, bring_to

from dagster_llm_batch.core.identity import shard_nonce
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.files.request_files import APART, PART
from dagster_llm_batch.loop.pruned import is_pruned
from dagster_llm_batch.states import ShardState, Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore, payload_path
from dagster_llm_batch.storage.stored_files import own_name, staged_name
from dagster_llm_batch.types import Cause
from dagster_llm_batch.upkeep.prune import Pruner

MONTH = timedelta(days=30)
ENDINGS = {"path": ".requests.jsonl.lz4", "raw_path": ".raw.jsonl.zst", "results_path": ".results.parquet"}


class Store:
    """One namespace's ledger and files, written as the engine writes them."""

    def __init__(self, ledger, root, clock):
        self.ledger = ledger
        self.root = root
        self.clock = clock
        self.payloads = PayloadStore(str(root))
        self.made = 0

    def path(self, submission_id, name, asset="tickets", partition="2026-01-01"):
        return payload_path("prod", asset, partition, submission_id, name)

    def write(self, path, days_old=0, content=b"content\n"):
        with self.payloads.writer(path) as file:
            file.write(content)
        if self.root is not None:
            self.age(self.root / path, days_old)

    def plan_and_die(self, submission_id, number=0, days_old=0):
        """Write a request file as a plan does before the ledger has its submission."""
        path = self.path(submission_id, f"wave-1-{number:04d}.requests.jsonl.lz4")
        self.write(path, days_old, f"{shard_nonce(submission_id, 1, number)}-{'0' * 40}\n".encode())
        return path

    def age(self, path, days_old):
        at = (self.clock() - timedelta(days=days_old)).timestamp()
        os.utime(path, (at, at))

    def submit(self, partition="2026-01-01", state=ShardState.COLLECTED, settled=True, delivered=True, **changes):
        """Add a submission with one shard and its files, dated now; then move the clock by a minute."""
        self.made += 1
        submission_id = f"s{self.made}"
        paths = {
            name: self.path(submission_id, f"wave-1-0000{end}", partition=partition) for name, end in ENDINGS.items()
        }
        manifest = self.path(submission_id, "manifest.parquet", partition=partition)
        submission = a_submission(
            submission_id,
            partition=partition,
            fingerprint=submission_id,
            manifest_path=manifest,
            created_at=self.clock(),
            **changes,
        )
        shard = a_shard(f"h{self.made}", submission_id, path=paths["path"])
        self.ledger.submissions.open(submission, [shard])
        self.write(manifest)
        self.write(paths["path"])
        if state is ShardState.COLLECTED:
            bring_to(self.ledger, shard.shard_id, ShardState.ENDED)
            self.ledger.shards.move(
                shard.shard_id, Transition.COLLECTED, raw_path=paths["raw_path"], results_path=paths["results_path"]
            )
            self.write(paths["raw_path"])
            self.write(paths["results_path"])
        else:
            bring_to(self.ledger, shard.shard_id, state)
        if settled:
            self.ledger.submissions.settle(
                submission_id, outcomes={}, cost_usd=None, realtime_usd=None, price_basis=None
            )
        if delivered:
            self.ledger.submissions.mark_delivered(submission_id)
        self.clock.pass_seconds(60)
        return submission_id

    def prune(self, older_than=MONTH, raw_older_than=None, delete=True):
        return Pruner(self.ledger, self.payloads, "prod", self.clock).prune(older_than, raw_older_than, delete=delete)

    def files(self):
        return {file.path for file in self.payloads.files("prod")}

    def files_of(self, *submission_ids):
        return {path for path in self.files() if path.split("/")[3] in submission_ids}


@pytest.fixture
def store(ledger, tmp_path, clock):
    return Store(ledger, tmp_path / "payloads", clock)


def test_only_what_a_newer_settled_one_replaced_long_ago_goes(store, clock):
    old, newer = store.submit(), store.submit()
    other_day = store.submit(partition="2026-01-02")
    clock.pass_seconds(31 * 24 * 3600)
    kept = store.files_of(newer, other_day)
    found = store.prune()
    assert set(found.replaced) == {old}
    assert store.files() == kept
    assert found.bytes > 0
    assert is_pruned(store.ledger, store.ledger.submissions.get(old))
    assert not is_pruned(store.ledger, store.ledger.submissions.get(newer))
    assert store.prune().files == ()


def test_a_look_says_what_would_go_and_changes_nothing(store, clock):
    old, _ = store.submit(), store.submit()
    clock.pass_seconds(31 * 24 * 3600)
    files, events = store.files(), store.ledger.events.of_submission(old)
    found = store.prune(delete=False)
    assert {file.path for file in found.files} == store.files_of(old)
    assert (store.files(), store.ledger.events.of_submission(old)) == (files, events)


@pytest.mark.parametrize(
    "kept",
    [
        {"delivered": False},
        {"state": ShardState.SUBMITTED, "settled": False, "delivered": False},
        {"state": ShardState.SUBMITTING, "settled": False, "delivered": False},
        {"state": ShardState.PLANNED, "settled": False, "delivered": False},
    ],
    ids=["not landed", "in flight", "in doubt", "planned"],
)
def test_what_is_under_way_keeps_its_files_however_old(store, clock, kept):
    old = store.submit(**kept)
    store.submit()
    files = store.files_of(old)
    clock.pass_seconds(400 * 24 * 3600)
    assert store.prune().replaced == {}
    assert store.files_of(old) == files


def test_the_newest_settled_one_keeps_its_files_while_a_newer_one_is_under_way_or_was_given_up(store, clock):
    settled = store.submit()
    store.submit(state=ShardState.SUBMITTED, settled=False, delivered=False)
    given_up = store.submit(state=ShardState.CANCELED, settled=False)
    clock.pass_seconds(400 * 24 * 3600)
    assert store.prune().replaced == {}
    assert len(store.files_of(settled)) == 4
    assert store.files_of(given_up)


def test_what_landed_less_than_the_given_days_ago_keeps_its_files(store, clock):
    old = store.submit()
    store.submit()
    clock.pass_seconds(29 * 24 * 3600)
    assert store.prune().replaced == {}
    clock.pass_seconds(2 * 24 * 3600)
    assert set(store.prune().replaced) == {old}


def raw_and_requests(store, *submission_ids):
    return {path for path in store.files_of(*submission_ids) if ".raw." in path or ".requests." in path}


def test_requests_and_raw_results_go_by_age_and_what_labels_come_from_stays(store, clock):
    old = store.submit(partition="2026-01-01")
    spare = store.path(old, "fallback-0123.jsonl.zst")
    store.write(spare, content=shard_nonce(old, 0, 0x123).encode())
    ids = store.path(old, "wave-1-0000.ids.lz4", partition="2026-01-01")
    store.write(ids)
    clock.pass_seconds(29 * 24 * 3600)
    young = store.submit(partition="2026-01-02")
    clock.pass_seconds(2 * 24 * 3600)
    expected = raw_and_requests(store, old) | {spare}
    found = store.prune(raw_older_than=MONTH, delete=False)
    assert {file.path for file in found.files} == expected
    assert store.prune(raw_older_than=MONTH).files == found.files
    assert {path.rpartition("/")[2] for path in store.files_of(old)} == {
        "manifest.parquet", "wave-1-0000.results.parquet", "wave-1-0000.ids.lz4",
    }  # fmt: skip
    assert len(store.files_of(young)) == 4
    [shard] = store.ledger.shards.of_submission(old)
    assert (shard.raw_path, bool(shard.results_path)) == (None, True)
    assert [event.kind for event in store.ledger.events.of_submission(old)][-1] == "raw_pruned"
    assert not is_pruned(store.ledger, store.ledger.submissions.get(old))
    assert store.prune(raw_older_than=MONTH).files == ()


@pytest.mark.parametrize(
    "kept",
    [
        {"delivered": False},
        {"state": ShardState.SUBMITTED, "settled": False, "delivered": False},
        {"state": ShardState.ENDED, "settled": False, "delivered": False},
        {"state": ShardState.PLANNED, "settled": False, "delivered": False},
    ],
    ids=["not landed", "in flight", "not collected", "planned"],
)
def test_requests_and_raw_results_of_what_is_under_way_stay_however_old(store, clock, kept):
    old = store.submit(**kept)
    files = store.files_of(old)
    clock.pass_seconds(400 * 24 * 3600)
    assert store.prune(raw_older_than=MONTH).files == ()
    assert store.files_of(old) == files


def test_requests_that_an_open_submission_or_a_person_may_ask_again_stay(store, clock):
    source, waiting = store.submit(), store.submit(partition="2026-01-02")
    store.submit(reused_from=(source,), state=ShardState.SUBMITTED, settled=False, delivered=False)
    [shard] = store.ledger.shards.of_submission(waiting)
    store.ledger.shards.set_cause([shard.shard_id], Cause.CANCELED, ShardState.COLLECTED)
    clock.pass_seconds(400 * 24 * 3600)
    assert store.prune(raw_older_than=MONTH).aged == {}


def test_a_killed_prune_of_raw_results_is_gone_on_with(store, clock):
    old = store.submit()
    clock.pass_seconds(31 * 24 * 3600)
    store.ledger.shards.forget_raw(old, "and then it was killed")
    assert {file.path for file in store.prune(raw_older_than=MONTH).files} == {
        store.path(old, "wave-1-0000.raw.jsonl.zst"), store.path(old, "wave-1-0000.requests.jsonl.lz4"),
    }  # fmt: skip


def test_those_whose_answers_a_kept_one_reuses_keep_their_files_through_any_number_of_steps(store, clock):
    first = store.submit()
    second = store.submit(reused_from=(first,))
    apart = store.submit()
    store.submit(reused_from=(second,))
    clock.pass_seconds(400 * 24 * 3600)
    assert set(store.prune().replaced) == {apart}
    assert len(store.files_of(first, second)) == 8


def test_a_file_that_a_kept_shard_names_in_another_folder_stays(store, clock):
    carrier = store.submit()
    raw = store.path(carrier, "wave-1-0000.raw.jsonl.zst")
    kept = store.submit(state=ShardState.ENDED, settled=False, delivered=False)
    [shard] = store.ledger.shards.of_submission(kept)
    store.ledger.shards.move(shard.shard_id, Transition.COLLECTED, raw_path=raw)
    store.submit()
    clock.pass_seconds(400 * 24 * 3600)
    assert set(store.prune().replaced) == {carrier}
    assert store.files_of(carrier) == {raw}


def test_what_a_killed_plan_left_goes_after_a_day_and_not_before(store):
    kept = store.submit()
    young, old = store.plan_and_die("unknown1", days_old=0.9), store.plan_and_die("unknown2", days_old=1.1)
    store.plan_and_die("unknown3", days_old=3)
    store.plan_and_die("unknown3", number=1)  # still being written
    folder = store.path(kept, "manifest.parquet").rpartition("/")[0]
    half = store.root / folder / staged_name(folder)
    half.write_bytes(b"half")
    store.age(half, days_old=1.1)
    found = store.prune()
    assert {file.path for file in found.left_behind} == {old, str(half.relative_to(store.root))}
    assert old not in store.files()
    assert not half.exists()
    assert young in store.files()
    assert len(store.files_of("unknown3")) == 2
    assert len(store.files_of(kept)) == 4


def test_what_a_lost_worker_left_beside_the_files_of_a_kept_submission_goes_after_a_day(store):
    kept = store.submit()
    folder = store.path(kept, "manifest.parquet").rpartition("/")[0]
    young, *old = (f"{folder}/{name}{own_name(folder)}.parquet" for name in (PART, PART, APART))
    store.write(young, days_old=0.9)
    for path in old:
        store.write(path, days_old=1.1)
    found = store.prune()
    assert {file.path for file in found.left_behind} == set(old)
    assert len(store.files_of(kept)) == 4 + 1
    assert young in store.files()


@pytest.mark.parametrize(
    "path",
    [
        "prod/labels/day=2026-01-01/part-abc-00000.parquet",
        "prod/reports/manifest.parquet",
        "prod/readme.md",
        "prod/tickets/2026-01-01/s9/model.bin",
        "prod/tickets/2026-01-01/s9/deeper/manifest.parquet",
    ],
)
def test_files_of_others_below_the_same_folder_stay(store, path):
    store.submit()
    (other := store.root / path).parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(b"not ours")
    store.age(other, days_old=9)
    found = store.prune(delete=True)
    assert (found.files, found.foreign, other.exists()) == ((), (), True)


def test_results_of_submissions_that_the_ledger_does_not_know_show_another_ledger_and_nothing_of_it_goes(store):
    store.submit()
    store.write(store.path("theirs1", "wave-1-0000.raw.jsonl.zst"), days_old=9)
    store.write(store.path("theirs2", "manifest.parquet"), days_old=9)
    found = store.prune()
    assert found.left_behind == ()
    assert {file.path for file in found.foreign} == store.files_of("theirs1", "theirs2")
    assert len(found.foreign) == 2


def test_an_empty_ledger_removes_nothing(store):
    store.write(store.path("theirs", "manifest.parquet"), days_old=9)
    found = store.prune()
    assert (len(found.foreign), found.files) == (1, ())
    assert store.files_of("theirs")


def test_a_store_that_is_not_this_ledgers_is_refused(store, clock, tmp_path):
    store.submit()
    store.submit()
    clock.pass_seconds(400 * 24 * 3600)
    old = store.path("s1", "manifest.parquet")
    store.payloads = PayloadStore(str(tmp_path / "other"))
    store.root = tmp_path / "other"
    store.write(old, days_old=9)
    with pytest.raises(ConfigError, match="no file of submission s2 of 'tickets', the newest in namespace 'prod'"):
        store.prune()
    assert old in store.files()


def test_other_namespaces_are_left_alone(store, clock):
    store.submit()
    theirs = payload_path("dev", "tickets", "2026-01-01", "any", "manifest.parquet")
    store.write(theirs, days_old=9)
    clock.pass_seconds(400 * 24 * 3600)
    store.prune()
    assert store.payloads.exists(theirs)


def test_less_than_a_day_is_refused(store):
    with pytest.raises(ConfigError, match="after a day at the earliest"):
        store.prune(timedelta(hours=1))


def test_a_submission_that_somebody_works_on_is_passed_over(store, clock, ledger_url):
    old, _ = store.submit(), store.submit()
    clock.pass_seconds(31 * 24 * 3600)
    with Ledger(ledger_url, clock).leases.hold(f"submission:{old}"):
        assert store.prune().replaced == {}
    assert len(store.files_of(old)) == 4
    assert set(store.prune().replaced) == {old}


def test_an_object_store_is_pruned_as_a_folder_is(ledger, clock, s3):
    root, options = s3
    store = Store(ledger, None, clock)
    store.payloads = PayloadStore(f"{root}/pruning", **options)
    old, newer = store.submit(), store.submit()
    clock.pass_seconds(31 * 24 * 3600)
    assert all(file.bytes and file.modified_at for file in store.payloads.files("prod"))
    assert set(store.prune().replaced) == {old}
    assert store.files() == store.files_of(newer)
    assert len(store.files_of(newer)) == 4


DRIVER = """
import os, signal, sys
from datetime import datetime, timedelta, UTC
from dagster_llm_batch.upkeep.prune import Pruner
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore

url, root, now, left = sys.argv[1], sys.argv[2], datetime.fromisoformat(sys.argv[3]), int(sys.argv[4])

def on(event, arguments):
    global left
    if event == "os.remove" and str(arguments[0]).startswith(root):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

sys.addaudithook(on)
Pruner(Ledger(url, lambda: now), PayloadStore(root), "prod", lambda: now).prune(timedelta(days=30), delete=True)
"""


@pytest.mark.parametrize("deleted", [0, 1, 3])
def test_killed_between_two_files_the_ledger_knows_already_and_the_next_call_finishes(
    store, clock, ledger_url, deleted
):
    old, newer = store.submit(), store.submit()
    clock.pass_seconds(31 * 24 * 3600)
    arguments = [ledger_url, str(store.root), clock().isoformat(), str(deleted)]
    process = subprocess.run([sys.executable, "-W", "ignore", "-c", DRIVER, *arguments], check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(store.files_of(old)) == 4 - deleted
    assert is_pruned(store.ledger, store.ledger.submissions.get(old))
    clock.pass_seconds(3600)  # a dead process of this host has lost its lease
    assert set(store.prune().replaced) == {old}
    assert store.files() == store.files_of(newer)
    assert [event.kind for event in store.ledger.events.of_submission(old)].count("pruned") == 1


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_that_a_kept_submission_names_is_ever_removed(tmp_path_factory, clock, data):
    clock, folder = type(clock)(), tmp_path_factory.mktemp("pruning")
    store = Store(Ledger(folder / "ledger.sqlite", clock), folder / "payloads", clock)
    made = []
    for _ in range(data.draw(st.integers(1, 7))):
        kind = data.draw(st.sampled_from(["landed", "settled", "flying", "given up"]))
        reused = data.draw(st.lists(st.sampled_from(made), unique=True, max_size=2)) if made else []
        options = {
            "landed": {},
            "settled": {"delivered": False},
            "flying": {"state": ShardState.SUBMITTED, "settled": False, "delivered": False},
            "given up": {"state": ShardState.CANCELED, "settled": False},
        }[kind]
        partition = data.draw(st.sampled_from(["2026-01-01", "2026-01-02"]))
        made.append(store.submit(partition, reused_from=tuple(reused), **options))
        clock.pass_seconds(data.draw(st.sampled_from([0, 20 * 24 * 3600])))
    before = store.files()
    found = store.prune()
    gone = set(found.replaced)
    submissions = {one: store.ledger.submissions.get(one) for one in made}
    for one, submission in submissions.items():
        of_partition = [s for s in submissions.values() if s.partition == submission.partition]
        newest = of_partition[-1].submission_id
        settled = [s.submission_id for s in of_partition if s.is_settled]
        if one in {newest, *settled[-1:]} or submission.delivered_at is None:
            assert one not in gone
        if one not in gone:
            assert not gone & set(submission.reused_from)
    assert store.files() == {path for path in before if path.split("/")[3] not in gone}
    store.ledger.close()
