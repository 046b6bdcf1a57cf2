"""Submissions that Dagster has as sent, but the ledger lacks, are recovered, or refused with a message, unsent."""

import sqlite3
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest
from code_location import BATCH, DAILY, DAYS, LABELS, failure, labeled
from test_batch_sensor import tick
from test_sensor_troubles import failing_tick


def ledger_file(location):
    return Path(location.instance.storage_directory()) / "llm_batch" / "ledger.sqlite"


def copied(location):
    with closing(sqlite3.connect(ledger_file(location))) as source, closing(sqlite3.connect(":memory:")) as copy:
        source.backup(copy)
        return copy.serialize()


def put_back(location, backup):
    for file in ledger_file(location).parent.glob("ledger.sqlite*"):
        file.unlink()
    ledger_file(location).write_bytes(backup)


@pytest.mark.slow
def test_a_restored_ledger_is_told_by_the_next_tick_and_what_was_sent_since_lands_unpaid(make, emulator):
    location = make(*labeled(partitions_def=DAILY))
    location.land(partition=DAYS[0])
    backup = copied(location)
    location.submit(partition=DAYS[1])
    location.submit(partition=DAYS[2])
    put_back(location, backup)
    told = failing_tick(location)
    for day in DAYS[1:3]:
        assert f"{LABELS} {day} needs a person: the ledger had no record of its sent requests: 1 shard(s)" in told
    assert "restored from a backup" in told
    assert "dagster-llm-batch recover" in told
    emulator.settle()
    for _ in range(3):
        for request in tick(location).run_requests or ():
            assert location.launch(request).success
    assert location.landed() == set(DAYS[:3])
    assert len(emulator.books.batches) == 3
    assert "needs a person" not in tick(location).skip_message


def test_a_batch_asset_that_is_materialized_again_fails_its_check_and_sends_nothing(make, emulator):
    location = make(*labeled())
    location.tick()
    backup = copied(location)
    location.submit()
    put_back(location, backup)
    result = location.submit()
    assert result.success
    [verdict] = [each for each in result.get_asset_check_evaluations() if each.check_name == "sent"]
    assert (verdict.passed, verdict.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert verdict.description.startswith("The ledger had no record of its sent requests: 1 shard(s), sent since")
    assert len(emulator.books.batches) == 1


def test_a_process_with_a_ledger_of_its_own_sends_nothing_until_a_person_says_so(make, emulator, tmp_path):
    assets = labeled(partitions_def=DAILY)
    make(*assets).submit(partition=DAYS[0])
    pod = make(*assets, ledger_url=f"sqlite:///{tmp_path}/pod.sqlite", payload_root=str(tmp_path / "pod"))
    for day in DAYS[:2]:
        told = failure(pod.submit(partition=day))
        assert f"Dagster recorded that {BATCH} was sent in submission" in told
        assert "an SQLite file in each pod" in told
        assert "Nothing was sent" in told
    assert f"Dagster recorded that {BATCH} was sent in submission" in failing_tick(pod)
    assert "was sent in submission" in tick(pod).skip_message  # it was reported just now
    assert len(emulator.books.batches) == 1
    assert pod.submit(partition=DAYS[1], tags={"dagster_llm_batch/new_ledger": "true"}).success
    assert pod.submit(partition=DAYS[2]).success
    assert len(emulator.books.batches) == 3
    assert "was sent in submission" not in tick(pod).skip_message


def test_processes_with_ledgers_of_their_own_and_one_payload_store_pay_nothing_twice(make, emulator, tmp_path):
    assets = labeled()
    store = {"payload_root": str(tmp_path / "payloads")}
    pods = [make(*assets, ledger_url=f"sqlite:///{tmp_path}/pod.sqlite", **store), make(*assets, **store)]
    assert pods[0].submit().success
    assert pods[1].submit().success
    assert len(emulator.books.batches) == 1
    assert "the ledger had no record of its sent requests" in failing_tick(pods[1])
