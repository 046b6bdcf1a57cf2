"""A ledger restored from a backup lacks the requests sent since; they are found, and not paid again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from labelings import LABELS
from pydantic import BaseModel

from dagster_llm_batch.core.cascade import Cascade
from dagster_llm_batch.engine import Deployment, Engine, Labeling, Limits, Realtime
from dagster_llm_batch.errors import CredentialsError
from dagster_llm_batch.files.ownership import is_receipt
from dagster_llm_batch.files.request_files import halve, split_requests
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import SubmissionState
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, RowFault, VendorLimits, WireFault
from tests.archives import unpack_archive
from tests.batch_records import broken_records
from tests.golden.kept_batches import STORE, STORES

pytestmark = pytest.mark.slow

ROWS = [{"id": str(n), "text": f"Ticket {n}"} for n in range(6)]


class Site:
    """A deployment whose ledger can be copied, and restored from the copy while it is closed."""

    def __init__(self, emulator: Emulator, url: str, copy: Callable[[str], str], folder: Path) -> None:
        self.emulator = emulator
        self.skipped = timedelta()
        self._url, self._copy, self._folder = url, copy, folder
        self._ledgers: list[Ledger] = []

    def now(self) -> datetime:
        return datetime.now(UTC) + self.skipped

    def engine(self) -> Engine:
        """Return an engine as another process would make it."""
        ledger = Ledger(self._url, self.now)
        self._ledgers.append(ledger)
        provider = OpenAIProvider(DEFAULT_KEY, self.emulator.openai_base_url, timeout_seconds=5.0)
        payloads = PayloadStore(str(self._folder / "payloads"))
        return Engine(Deployment({"openai": provider}, ledger, payloads, "n", self.now, sleep=lambda _: None))

    def close(self) -> None:
        while self._ledgers:
            self._ledgers.pop().close()

    def back_up(self) -> str:
        """Copy the ledger; return the URL of the copy."""
        self.engine().ledger.submissions.list_all("n")
        self.close()
        return self._copy(self._url)

    def restore(self, url: str) -> None:
        self.close()
        self._url = url
        self.skipped += timedelta(hours=6)

    def send(self, rows: Sequence[Any] = ROWS, partition: str = "") -> str:
        engine = self.engine()
        submission = engine.plan(LABELS, rows, partition=partition)
        engine.submit(LABELS, submission.submission_id)
        return submission.submission_id

    def finish(self, submission_id: str, labeling: Labeling = LABELS) -> dict[str, int]:
        """Run as the sensor and its runs do, until the submission is settled; return the outcomes."""
        for _ in range(8):
            self.emulator.settle()
            self.skipped += timedelta(hours=1)
            engine = self.engine()
            for progress in engine.ledger.submissions.progress("n"):
                engine.advance(labeling, progress.submission.submission_id)
            if (submission := engine.ledger.submissions.get(submission_id)).is_settled:
                return dict(submission.outcomes)
        raise AssertionError(engine.status(submission_id))

    def restored(self, submission_id: str) -> bool:
        return any(event.kind == "recovered" for event in self.engine().ledger.events.of_submission(submission_id))


@pytest.fixture
def emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    with Emulator(limits=getattr(request, "param", None)) as running:
        yield running


@pytest.fixture
def site(emulator: Emulator, ledger_url: str, copy_ledger: Callable[[str], str], tmp_path: Path) -> Iterator[Site]:
    site = Site(emulator, ledger_url, copy_ledger, tmp_path)
    yield site
    site.close()


def test_batches_that_a_restored_ledger_has_as_planned_are_found_and_not_sent_again(site: Site) -> None:
    submission_id = site.engine().plan(LABELS, ROWS).submission_id
    backup = site.back_up()
    site.engine().submit(LABELS, submission_id)
    site.restore(backup)
    assert site.finish(submission_id) == {"succeeded": 6}
    assert len(site.emulator.books.batches) == 2
    assert site.emulator.books.billed_twice() == {}
    assert site.restored(submission_id)


def test_a_submission_that_a_restored_ledger_lacks_is_taken_up_as_it_was(site: Site) -> None:
    backup = site.back_up()
    submission_id = site.send()
    site.restore(backup)
    assert site.send() == submission_id
    assert site.finish(submission_id) == {"succeeded": 6}
    assert len(site.emulator.books.batches) == 2
    assert site.emulator.books.billed_twice() == {}
    assert site.restored(submission_id)


def test_all_that_a_restored_ledger_lacks_is_taken_up_at_once_and_lands_without_a_plan(site: Site) -> None:
    backup = site.back_up()
    sent = [site.send(partition=day) for day in ("monday", "tuesday")]
    site.restore(backup)
    assert len(site.engine().recovery.recover_all()) == 4
    assert site.engine().recovery.recover_all() == []
    assert [site.finish(submission_id) for submission_id in sent] == [{"succeeded": 6}] * 2
    assert len(site.emulator.books.batches) == 4


def read_receipts(payloads: PayloadStore) -> Iterator[dict[str, Any]]:
    for file in filter(is_receipt, payloads.files("")):
        with payloads.reader(file.path) as stored:
            yield json.loads(stored.read())


def test_the_money_of_receipts_is_recovered(site: Site) -> None:
    backup = site.back_up()
    submission_id = site.send()
    engine = site.engine()
    bills = {shard.shard_id: shard.bill for shard in engine.ledger.shards.of_submission(submission_id)}
    assert all(bill.estimated_usd and bill.bound_usd for bill in bills.values())
    site.restore(backup)
    engine = site.engine()
    engine.recovery.recover_all()
    assert {shard.shard_id: shard.bill for shard in engine.ledger.shards.of_submission(submission_id)} == bills


def test_receipts_have_all_that_version_0_1_0_reads_in_them(site: Site, tmp_path: Path) -> None:
    """Check for fields that the older version needs: without the send time or the batch, it would send again."""
    unpack_archive(STORES / f"{STORE}.tar.gz", tmp_path / "then")
    then = list(read_receipts(PayloadStore(str(tmp_path / "then" / "payloads"))))
    known = {name for receipt in then for name in receipt["shard"]}
    assert {"sent_at", "padding", "estimated_usd", "most_tokens", "carrier"} <= known
    engine = site.engine()
    ids = [engine.plan(LABELS, ROWS[:1], partition=day).submission_id for day in ("monday", "tuesday")]
    backup = site.back_up()
    engine = site.engine()
    engine.submit_together(LABELS, ids)
    sent = {shard.shard_id: shard for key in ids for shard in engine.ledger.shards.of_submission(key)}
    now = {receipt["shard"]["shard_id"]: receipt["shard"] for receipt in read_receipts(engine.payloads)}
    assert now.keys() == sent.keys()
    [first] = [key for key, shard in sent.items() if shard.batch.place == 0]
    for key, shard in now.items():
        # The first shard of a batch does not name another one.
        assert known - {"carrier"} <= shard.keys()
        assert shard.get("carrier") == (None if key == first else first)
        assert shard["sent_at"] is not None
    site.restore(backup)
    recovered = {shard.shard_id: shard for shard in site.engine().recovery.recover_all()}
    assert {key: (shard.batch.batch_key, shard.batch.place, shard.bill) for key, shard in recovered.items()} == {
        key: (shard.batch.batch_key, shard.batch.place, shard.bill) for key, shard in sent.items()
    }


def test_of_other_rows_only_what_was_not_sent_before_the_restoring_is_asked(site: Site) -> None:
    backup = site.back_up()
    unrecorded = site.send()
    site.restore(backup)
    newest = site.send([*ROWS[1:], {"id": "new", "text": "New ticket"}])
    assert newest != unrecorded
    assert site.finish(newest) == {"succeeded": 6}
    assert len({one.body_digest for one in site.emulator.books.executions}) == 7
    assert site.emulator.books.billed_twice() == {}


def test_a_submission_of_which_only_a_part_was_sent_gives_its_answers_to_the_next(site: Site) -> None:
    backup = site.back_up()
    site.emulator.inject(WireFault(kind="status", status=401, route="POST /v1/batches", times=None, skip=1))
    with pytest.raises(Exception, match="401"):
        site.send()
    site.emulator.clear_faults()
    assert len(site.emulator.books.batches) == 1
    site.restore(backup)
    newest = site.send()
    assert site.finish(newest) == {"succeeded": 6}
    assert len(site.emulator.books.batches) == 2
    assert site.emulator.books.billed_twice() == {}


def test_answers_that_are_stored_serve_where_the_provider_has_forgotten_the_batch_too(site: Site) -> None:
    backup = site.back_up()
    submission_id = site.send()
    site.finish(submission_id)
    site.restore(backup)
    none = b'{"object": "list", "data": [], "has_more": false}'
    site.emulator.inject(WireFault(kind="status", status=200, body=none, route="GET /v1/batches", times=None))
    assert site.send() == submission_id
    assert site.finish(submission_id) == {"succeeded": 6}
    assert len(site.emulator.books.batches) == 2


def test_a_second_wave_that_a_restored_ledger_lacks_is_found(site: Site) -> None:
    site.emulator.inject(RowFault(status_code=503, times=2, batches=[0]))
    submission_id = site.send()
    site.emulator.settle()
    backup = site.back_up()
    site.engine().advance(LABELS, submission_id)
    assert len(site.emulator.books.batches) == 3
    site.restore(backup)
    assert site.finish(submission_id) == {"succeeded": 6}
    assert len(site.emulator.books.batches) == 3
    assert site.emulator.books.billed_twice() == {}


def test_a_shard_that_was_put_back_before_the_backup_and_sent_after_it_is_found(site: Site) -> None:
    site.emulator.inject(WireFault(kind="status", status=429, route="POST /v1/batches", times=None))
    submission_id = site.send(ROWS[:1])
    site.emulator.clear_faults()
    backup = site.back_up()
    site.engine().submit(LABELS, submission_id)
    assert len(site.emulator.books.batches) == 1
    site.restore(backup)
    assert site.finish(submission_id) == {"succeeded": 1}
    assert len(site.emulator.books.batches) == 1
    assert site.restored(submission_id)


def test_a_batch_that_partitions_share_is_found_for_all_of_them(site: Site) -> None:
    engine = site.engine()
    sent = [engine.plan(LABELS, ROWS[n : n + 1], partition=str(n)).submission_id for n in range(3)]
    backup = site.back_up()
    engine = site.engine()
    engine.submit_together(LABELS, sent)
    assert len(site.emulator.books.batches) == 1
    site.restore(backup)
    site.engine().submit(LABELS, sent[1])
    assert [site.finish(submission_id) for submission_id in sent] == [{"succeeded": 1}] * 3
    assert len(site.emulator.books.batches) == 1


def forget(site: Site, backed_up: str, restored: str) -> str:
    """Restore an older ledger after a shard was split, once all halves are collected or some are sent."""
    backup = site.back_up()
    labeling = replace(LABELS, limits=Limits())
    submission_id = site.engine().plan(labeling, ROWS).submission_id
    for _ in range(12):
        shards = site.engine().ledger.shards.of_submission(submission_id)
        seen = {shards[0].state.value, "planned" if shards[0].room.no_room_at is None else "refused"}
        if len(shards) == 1 and backed_up in seen:
            backup = site.back_up()
        states = {shard.state.value for shard in shards}
        if len(shards) > 1 and states == ({"collected"} if restored == "all" else {"submitted", "planned"}):
            site.restore(backup)
            return submission_id
        site.engine().advance(labeling, submission_id)
        if restored == "all":
            site.emulator.settle()
        site.skipped += timedelta(hours=1)
    raise AssertionError(shards)


@pytest.mark.parametrize(
    "emulator", [VendorLimits(enqueued_tokens=8, fails_fast=True)], indirect=True, ids=["small queue"]
)
@pytest.mark.parametrize(
    ("backed_up", "restored"), [("lacking", "some"), ("planned", "all"), ("refused", "some")], ids=str
)
def test_what_was_split_after_the_backup_is_not_asked_again(site: Site, backed_up: str, restored: str) -> None:
    check_split(site, forget(site, backed_up, restored))


@pytest.mark.parametrize("emulator", [VendorLimits(enqueued_tokens=8)], indirect=True, ids=["refuses later"])
def test_what_was_under_way_at_the_backup_and_split_after_it_is_not_asked_again(site: Site) -> None:
    check_split(site, forget(site, "submitted", "all"))


@pytest.mark.parametrize("emulator", [VendorLimits(enqueued_tokens=8)], indirect=True, ids=["refuses later"])
def test_what_shared_a_batch_that_ran_nothing_with_what_was_split_is_not_asked_again(site: Site) -> None:
    labeling = replace(LABELS, limits=Limits())
    engine = site.engine()
    rows = {"large": ROWS, "small": [{"id": "s", "text": "Ticket s"}]}
    ids = [engine.plan(labeling, own, partition=name).submission_id for name, own in rows.items()]
    engine.submit_together(labeling, ids)
    shards = [engine.ledger.shards.of_submission(one)[0] for one in ids]
    assert [shard.batch.batch_key for shard in shards] == [f"{shards[0].shard_id}-1"] * 2
    backup = site.back_up()
    assert [site.finish(one, labeling) for one in ids] == [{"succeeded": 6}, {"succeeded": 1}]
    engine = site.engine()
    assert len(engine.ledger.shards.of_submission(ids[0])) > 1
    asked = len(site.emulator.books.executions)
    site.restore(backup)
    site.engine().recovery.recover_all()
    assert not broken_records(site.engine().ledger)
    assert [site.finish(one, labeling) for one in ids] == [{"succeeded": 6}, {"succeeded": 1}]
    assert not broken_records(site.engine().ledger)
    assert len(site.emulator.books.executions) == asked


@pytest.mark.parametrize(
    "emulator", [VendorLimits(enqueued_tokens=8, fails_fast=True)], indirect=True, ids=["small queue"]
)
def test_what_was_split_by_a_process_that_was_killed_then_is_not_lost_either(site: Site) -> None:
    """Kill it between the commit of the split and the receipts of its halves; one half was sent before the restore."""
    labeling = replace(LABELS, limits=Limits())
    submission_id = site.engine().plan(labeling, ROWS).submission_id
    site.engine().advance(labeling, submission_id)
    engine = site.engine()
    [whole] = engine.ledger.shards.of_submission(submission_id)
    assert whole.room.no_room_at is not None
    backup = site.back_up()
    engine = site.engine()
    engine.ledger.shards.split(whole, *split_requests(engine.payloads, whole, 1, halve(whole, 1)))
    for _ in range(6):
        site.skipped += timedelta(hours=1)
        engine.advance(labeling, submission_id)
        if len(site.emulator.books.batches) == 1:
            break
    assert sorted(shard.state.value for shard in engine.ledger.shards.of_submission(submission_id)) == [
        "planned",
        "submitted",
    ]
    site.restore(backup)
    check_split(site, submission_id)


def check_split(site: Site, submission_id: str) -> None:
    assert site.engine().recovery.find_unrecorded()
    assert site.engine().plan(replace(LABELS, limits=Limits()), ROWS).submission_id == submission_id
    assert site.finish(submission_id) == {"succeeded": 6}
    assert site.emulator.books.billed_twice() == {}
    assert sum(shard.requests for shard in site.engine().ledger.shards.of_submission(submission_id)) == 6
    assert site.engine().recovery.find_unrecorded() == []


@pytest.mark.parametrize(
    "emulator", [VendorLimits(enqueued_tokens=8, fails_fast=True)], indirect=True, ids=["small queue"]
)
@pytest.mark.parametrize("backed_up", ["lacking", "refused"])
def test_rows_are_erased_of_what_a_restored_ledger_has_no_record_of_too(site: Site, backed_up: str) -> None:
    submission_id = forget(site, backed_up, "some")
    engine = site.engine()
    engine.eraser.add_tombstones("labels", ["3"], None)
    [left] = engine.eraser.erase("labels")  # it is under way
    assert left.submission.submission_id == submission_id
    assert site.finish(submission_id) == {"succeeded": 5}
    assert site.engine().eraser.erase("labels") == []
    assert site.emulator.books.billed_twice() == {}
    for path in [file.path for file in engine.payloads.files("n") if not file.path.endswith(".parquet")]:
        with engine.payloads.reader(path) as stored:
            assert b"Ticket 3" not in stored.read()


URGENT = replace(LABELS, realtime=Realtime(urgent="is_urgent"))
URGENT_ROWS = [{**row, "is_urgent": True} for row in ROWS]


@pytest.mark.parametrize("backed_up", ["lacking", "planned"])
def test_answers_in_real_time_that_a_restored_ledger_has_no_record_of_are_not_paid_again(
    site: Site, backed_up: str
) -> None:
    backup = site.back_up()
    submission_id = site.engine().plan(URGENT, URGENT_ROWS).submission_id
    if backed_up == "planned":
        backup = site.back_up()
    site.engine().advance(URGENT, submission_id)
    assert len(site.emulator.books.executions) == 6
    site.restore(backup)
    assert site.engine().recovery.find_unrecorded()
    assert site.engine().plan(URGENT, URGENT_ROWS).submission_id == submission_id
    assert site.finish(submission_id, URGENT) == {"succeeded": 6}
    assert site.restored(submission_id)
    assert len(site.emulator.books.executions) == 6


def test_calls_in_real_time_of_unknown_end_are_asked_again_in_the_next_wave_and_a_person_is_told(site: Site) -> None:
    backup = site.back_up()
    site.emulator.inject(WireFault(kind="status", status=401, route="POST /v1/chat/completions", times=None, skip=2))
    submission_id = site.engine().plan(URGENT, URGENT_ROWS).submission_id
    with pytest.raises(CredentialsError):
        site.engine().submit(URGENT, submission_id)
    answered = len(site.emulator.books.executions)
    site.emulator.clear_faults()
    site.restore(backup)
    assert site.engine().plan(URGENT, URGENT_ROWS).submission_id == submission_id
    # The results stored before the shard was put back are used.
    assert site.finish(submission_id, URGENT) == {"succeeded": 6}
    assert site.restored(submission_id)
    assert answered <= len(site.emulator.books.executions) == 6


def test_a_ledger_with_a_record_of_everything_asks_nobody(site: Site) -> None:
    submission_id = site.send()
    site.emulator.inject(WireFault(kind="status", status=429, route="POST /v1/batches", times=2))
    again = site.send([*ROWS, {"id": "new", "text": "New ticket"}])
    site.send(partition="other")
    assert site.finish(again)
    assert not any(call.path == "/v1/batches" and call.method == "GET" for call in site.emulator.books.calls)
    engine = site.engine()
    assert engine.recovery.recover_all() == []
    assert not site.restored(submission_id)
    assert {s.state for s in engine.ledger.submissions.list_all("n")} == {
        SubmissionState.SETTLED,
        SubmissionState.CANCELED,
    }


class SureLabel(BaseModel):
    topic: Literal["billing", "bug"]
    confidence: float


CASCADING = replace(
    LABELS,
    model="openai/gpt-4o-mini",
    response=SureLabel,
    cascade=Cascade("openai/gpt-4o", "topic", agreement=0.6, sample=8),
    limits=Limits(),
)


def unsure_answer(body: Any, _url: str) -> Any:
    """Answer as the oracle, or as the model, unsure and wrong for every third row."""
    is_wrong = body["model"] == "gpt-4o-mini" and int(body["messages"][-1]["content"].split()[-1]) % 3 == 0
    return {"topic": "bug" if is_wrong else "billing", "confidence": 0.2 if is_wrong else 0.9}


@pytest.mark.parametrize("waves", [1, 2])
def test_a_cascade_goes_on_where_it_was_when_an_older_ledger_is_restored(
    waves: int, ledger_url: str, copy_ledger: Callable[[str], str], tmp_path: Path
) -> None:
    rows = [{"id": str(n), "text": f"Ticket {n}"} for n in range(24)]
    with Emulator(answer=unsure_answer) as emulator:
        site = Site(emulator, ledger_url, copy_ledger, tmp_path)
        backup = site.back_up()
        engine = site.engine()
        submission_id = engine.plan(CASCADING, rows).submission_id
        engine.submit(CASCADING, submission_id)
        if waves == 2:
            emulator.settle()
            engine.advance(CASCADING, submission_id)
            assert engine.ledger.submissions.get(submission_id).waves == 2
        site.restore(backup)
        assert site.engine().plan(CASCADING, rows).submission_id == submission_id
        restored = site.engine().ledger.submissions.get(submission_id)
        assert (restored.state, restored.waves) == (SubmissionState.OPEN, waves)
        assert site.finish(submission_id, CASCADING) == {"succeeded": 24}
        labels = site.engine().labels(CASCADING, submission_id).labels
        assert {row["topic"] for row in labels.to_pylist() if row["llm_level"] == "oracle"} == {"billing"}
        assert "escalated" in labels["llm_why"].to_pylist()
        assert emulator.books.billed_twice() == {}
        site.close()
