"""Erasing on both databases and on object stores: it continues after a kill at any point, and removes all row data.

Each row has a secret of its own, and the model repeats its prompt.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import labelings
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa

from dagster_llm_batch.engine import Deployment, Engine, Limits
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Tombstone
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, RowFault
from dagster_llm_batch.testing.emulator.answers import last_user_text

LABELS = replace(labelings.LABELS, keep=["note"], limits=Limits(max_requests_per_batch=15))


def secret(key: int) -> str:
    return f"secret-of-{key}-"


def rows(count: int) -> list[dict[str, object]]:
    return [{"id": key, "text": f"{secret(key)} asks", "note": f"{secret(key)} has a note"} for key in range(count)]


class Place:
    """One deployment; each process makes an engine of it."""

    def __init__(self, ledger_url: str, payloads: PayloadStore) -> None:
        self.ledger_url = ledger_url
        self.payloads = payloads
        self.providers: dict[str, OpenAIProvider] = {}

    def engine(self, days_on: int = 0) -> Engine:
        def clock() -> datetime:
            return datetime.now(UTC) + timedelta(days=days_on)

        ledger = Ledger(self.ledger_url, clock)
        return Engine(Deployment(self.providers, ledger, self.payloads, "n", clock, sleep=lambda _: None))

    def label(self, count: int, partitions: tuple[str, ...] = ("",)) -> None:
        """Label so many rows. Each fifth is asked twice."""
        fault = RowFault(containing="5- asks", status_code=500, times=count // 10)
        with Emulator(answer=lambda body, _: last_user_text(body), faults=[fault]) as emulator:
            self.providers = {"openai": OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url, timeout_seconds=5.0)}
            for partition in partitions:
                engine = self.engine()
                submission = engine.plan(LABELS, rows(count), partition=partition)
                while not engine.advance(LABELS, submission.submission_id).is_settled:
                    emulator.settle()
                engine.ledger.close()

    def labels(self, partition: str = "") -> pa.Table:
        engine = self.engine()
        found = engine.latest("labels", partition)
        assert found is not None
        table = engine.labels(LABELS, found.submission_id).labels
        engine.ledger.close()
        return table

    def stored(self) -> str:
        """Return the content of the payload store and the ledger, unpacked."""
        found = []
        for file in self.payloads.files("n"):
            if file.path.endswith(".tmp"):
                continue
            assert self.payloads.is_whole(file.path)
            if file.path.endswith(".parquet"):
                found.append(json.dumps(self.payloads.read_table(file.path).to_pylist(), default=str))
            else:
                with self.payloads.reader(file.path) as stream:
                    found.append(stream.read().decode("latin-1"))
        ledger = Ledger(self.ledger_url)
        with ledger._database.read() as connection:
            for table in sa.inspect(connection).get_table_names():
                found += [str(tuple(row)) for row in connection.execute(sa.text(f"SELECT * FROM {table}"))]
        ledger.close()
        return "\n".join(found)


def erase(place: Place, *keys: int) -> list[object]:
    engine = place.engine()
    engine.eraser.add_tombstones("labels", [str(key) for key in keys], None)
    left = engine.eraser.erase("labels")
    engine.ledger.close()
    return list(left)


def tombstones(place: Place) -> list[Tombstone]:
    engine = place.engine()
    found = engine.ledger.tombstones.list_all("n", "labels")
    engine.ledger.close()
    return found


def erase_and_die(place: Place, key: int, at: int) -> bool:
    """Erase in a process that is killed before its effect of this number; return whether it came to its end before."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    left = at

    def cross(*_: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("os.rename", "os.remove"):
            cross()

    try:
        sys.addaudithook(audit)
        sa.event.listen(sa.Engine, "commit", cross)
        erase(place, key)
    finally:
        os._exit(0 if left > 0 else 1)


@pytest.mark.slow
def test_a_killed_erasure_is_gone_on_with(ledger_url, tmp_path):
    """Kill an erasure at each of its steps, in an object store behind HTTP."""
    place = Place(ledger_url, PayloadStore(str(tmp_path / "payloads")))
    place.label(40)
    before, ended, key = place.labels(), False, -1
    while not ended:
        key += 1
        # Each second effect on one database, and those between on the other.
        ended = erase_and_die(place, key, at=2 * key + (1 if ledger_url.startswith("sqlite") else 2))
        # The next run that materializes labels continues the erasure, or a person does.
        if key % 2 and len(tombstones(place)) > key:
            assert key not in place.labels()["id"].to_pylist()
        assert erase(place, key) == []
        assert secret(key) not in place.stored()
    assert key > 9
    check_left_behind(place)
    assert place.labels().equals(before.filter(pc.greater(before["id"], key)))
    engine = place.engine()
    [submission] = engine.ledger.submissions.list_all("n")
    engine.ledger.close()
    assert submission.rows == submission.requests == sum(submission.outcomes.values()) == 39 - key


def check_left_behind(place: Place) -> None:
    """Check that half-written files of killed processes go, once no process can be writing them."""
    if not (child := os.fork()):
        folder = next(place.payloads.files("n")).path.rpartition("/")[0]
        with place.payloads.writer(f"{folder}/unfinished.zst"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    unfinished = [file for file in place.payloads.files("n") if file.path.endswith(".tmp")]
    for days_on, left in ((0, len(unfinished)), (2, 0)):
        engine = place.engine(days_on)
        assert engine.eraser.erase_left_behind() == left
        engine.ledger.close()
    assert unfinished
    assert not [file for file in place.payloads.files("n") if file.path.endswith(".tmp")]


def test_a_random_corpus_keeps_all_but_what_was_erased(ledger_url, tmp_path):
    place = Place(ledger_url, PayloadStore(str(tmp_path / "payloads")))
    check_random_corpus(place)


@pytest.mark.slow
def test_a_random_corpus_in_an_object_store(s3, tmp_path):
    root, options = s3
    place = Place(f"sqlite:///{tmp_path}/ledger.db", PayloadStore(f"{root}/{uuid.uuid4().hex}", **options))
    check_random_corpus(place)


def check_random_corpus(place: Place) -> None:
    place.label(20, ("a", "b"))
    before = {partition: place.labels(partition) for partition in "ab"}
    gone = random.Random(5).sample(range(20), 6)
    assert erase(place, *gone) == []
    found = place.stored()
    assert not [key for key in gone if secret(key) in found]
    assert all(secret(key) in found for key in set(range(20)) - set(gone))
    for partition, table in before.items():
        left = table.filter(pc.invert(pc.is_in(table["id"], pa.array(gone, table["id"].type))))
        assert place.labels(partition).equals(left)
