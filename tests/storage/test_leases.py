"""Leases within one process: refused, renewed, passed on and lost ones."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import pytest
import sqlalchemy as sa
from ledger_builders import a_submission

from benchmarks.writes import counted
from dagster_llm_batch.errors import LeaseError, LedgerError
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.database import utc_now
from dagster_llm_batch.storage.ledger.schema import LEASE
from tests.statements import statements


def rows(ledger):
    with ledger._database.read() as connection:
        return [tuple(row) for row in connection.execute(sa.select(LEASE).where(LEASE.c.name != "machine"))]


def put(ledger, owner, expires_at, name="collect"):
    """Insert the lease of another process, without the code under test."""
    with ledger._database.write() as connection:
        connection.execute(sa.delete(LEASE).where(LEASE.c.name == name))
        connection.execute(sa.insert(LEASE).values(name=name, owner=owner, expires_at=expires_at))


def test_a_lease_is_held_for_its_block_and_given_back_also_after_an_error(ledger, clock):
    with pytest.raises(KeyError), ledger.leases.hold("collect", seconds=90) as lease:  # noqa: PT012  # the block is what fails
        assert rows(ledger) == [("collect", lease.owner, clock.now + timedelta(seconds=90))]
        lease.check()
        raise KeyError
    assert rows(ledger) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "dagster-llm-batch lease collect"]


def test_a_held_lease_is_refused_saying_who_holds_it_until_when(ledger, clock):
    with ledger.leases.hold("collect") as lease, ledger.leases.hold("another name"):
        with pytest.raises(LeaseError) as refusal, ledger.leases.hold("collect"):
            pass
        assert lease.owner in str(refusal.value)
        assert (clock.now + timedelta(seconds=60)).isoformat() in str(refusal.value)
        lease.check()
        assert f":{os.getpid()}:" in lease.owner


def test_a_lease_of_many_names_is_taken_in_one_transaction_all_of_them_or_none(ledger):
    names = [f"submission:{number}" for number in range(5)]
    # Opened, and migrated.
    ledger.leases.active()
    with statements() as asked, ledger.leases.hold(*names) as lease:
        assert {name: owner for name, owner, _ in rows(ledger)} == dict.fromkeys(names, lease.owner)
    assert sum(statement.startswith("SELECT coalesce(max(version)") for statement in asked) == 2, asked
    with ledger.leases.hold(names[3]) as other:
        with pytest.raises(LeaseError, match=names[3]), ledger.leases.hold(*names):
            pass
        assert [(name, owner) for name, owner, _ in rows(ledger)] == [(names[3], other.owner)]


def test_a_lease_of_nothing_writes_nothing_and_starts_no_heartbeat(ledger):
    threads = threading.active_count()
    with counted() as writes, ledger.leases.hold():
        assert threading.active_count() == threads
    assert writes.statements == 0


def test_a_lease_that_a_clock_ahead_dated_passes_on_unless_it_is_renewed(ledger, clock):
    ahead = timedelta(days=365)
    put(ledger, "elsewhere:7:1:a", clock.now + ahead)
    assert "collect" not in ledger.leases.active()
    with ledger.leases.hold("collect", seconds=0.3):
        assert [owner.split(":")[0] for _, owner, _ in rows(ledger)] != ["elsewhere"]
    put(ledger, "elsewhere:7:1:a", clock.now + ahead)
    renewing = iter(range(1, 1000))
    lives = threading.Event()

    def renew():
        while not lives.wait(0.1):
            put(ledger, "elsewhere:7:1:a", clock.now + ahead + timedelta(seconds=next(renewing)))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(LeaseError), ledger.leases.hold("collect", seconds=0.5):
            pass
    finally:
        lives.set()
        thread.join()


def test_looking_at_a_lease_says_whether_a_living_process_holds_it_and_takes_nothing(ledger, clock):
    assert "collect" not in ledger.leases.active()
    with ledger.leases.hold("collect"):
        assert "collect" in ledger.leases.active()
        assert "another name" not in ledger.leases.active()
    assert "collect" not in ledger.leases.active()
    put(ledger, "elsewhere:1:2:abc", clock.now + timedelta(seconds=1))
    assert "collect" in ledger.leases.active()
    clock.pass_seconds(1)
    assert "collect" not in ledger.leases.active()
    assert [owner for _, owner, _ in rows(ledger)] == ["elsewhere:1:2:abc"]


def test_a_lease_of_another_host_passes_on_only_when_it_expires(ledger, clock):
    put(ledger, "elsewhere:1:2:abc", clock.now + timedelta(seconds=1))
    with pytest.raises(LeaseError, match="elsewhere"), ledger.leases.hold("collect"):
        pass
    clock.pass_seconds(1)
    with ledger.leases.hold("collect") as lease:
        assert [owner for _, owner, _ in rows(ledger)] == [lease.owner]


def of_another_machine(ledger):
    """Return the owner text of a process on another machine: the same form, another boot."""
    with ledger.leases.hold("other") as lease:
        host, boot, space = lease.owner.rsplit(":", 3)[0].split("/")
    return f"{host}-2/{boot[::-1]}/{space}:1:2:abc"


def test_two_machines_at_work_on_one_sqlite_file_are_refused_before_anything_is_done(sqlite_url):
    ledger = Ledger(sqlite_url)
    owner = of_another_machine(ledger)
    put(ledger, owner, utc_now() + timedelta(seconds=30), name="theirs")
    threading.Timer(0.5, put, (ledger, owner, utc_now() + timedelta(seconds=60), "theirs")).start()
    with (
        pytest.raises(LedgerError, match=r"Two machines work on the ledger .*: .*-2/.*PostgreSQL"),
        ledger.leases.hold("mine"),
    ):
        pass
    assert [name for name, *_ in rows(ledger)] == ["theirs"]
    # A sensor, which takes no lease, sees it from one tick to the next.
    ledger.leases.active()
    put(ledger, owner, utc_now() + timedelta(seconds=90), name="theirs")
    with pytest.raises(LedgerError, match="Two machines"):
        ledger.leases.active()
    ledger.close()


def test_what_another_machine_left_is_no_sign_of_two(new_ledger_url):
    ledger = Ledger(new_ledger_url())
    owner = of_another_machine(ledger)
    # A lease left by an earlier process, on a restarted laptop or in a moved container.
    put(ledger, owner, utc_now() + timedelta(seconds=0.5), name="theirs")
    with ledger.leases.hold("mine") as lease, ledger.leases.hold("mine too"):
        lease.check()
        ledger.leases.active()
    ledger.close()


def test_two_machines_whose_leases_never_overlap_are_noticed_by_the_process_that_was_there_before(sqlite_url):
    ledger = Ledger(sqlite_url)
    # A lease left by an earlier process on a removed machine.
    put(ledger, of_another_machine(Ledger(f"{sqlite_url}-2")), utc_now() - timedelta(days=1), name="machine")
    ledger.leases.active()
    for _ in range(2):
        with ledger.leases.hold("mine"):
            ledger.leases.active()
    # A process there takes a lease, and gives it back.
    put(ledger, of_another_machine(ledger), utc_now(), name="machine")
    with pytest.raises(LedgerError, match=r"Two machines work on the ledger .*-2/"), ledger.leases.hold("mine"):
        pass
    with pytest.raises(LedgerError, match="Two machines"):
        ledger.leases.active()
    assert rows(ledger) == []
    ledger.close()


def test_two_machines_on_one_postgresql_ledger_work_at_once(postgres_cluster):
    ledger = Ledger(postgres_cluster.new_database())
    owner = of_another_machine(ledger)
    for seconds in (30, 60, 90):
        put(ledger, owner, utc_now() + timedelta(seconds=seconds), name="theirs")
        with ledger.leases.hold("mine"):
            assert "theirs" in ledger.leases.active()
    ledger.close()


def test_a_lease_whose_process_id_was_given_to_another_process_passes_on_at_once(ledger, clock):
    with ledger.leases.hold("other") as lease:
        host, pid, started, _ = lease.owner.rsplit(":", 3)
    put(ledger, f"{host}:{pid}:{int(started) - 1}:abc", clock.now + timedelta(hours=1))
    with ledger.leases.hold("collect") as taken:
        taken.check()
    put(ledger, f"{host}:{pid}:{started}:abc", clock.now + timedelta(hours=1))
    with pytest.raises(LeaseError), ledger.leases.hold("collect"):
        pass


def test_waiting_for_a_lease_gets_it_when_the_holder_is_done(ledger_url):
    ledger = Ledger(ledger_url)
    held, got = threading.Event(), threading.Event()

    def hold():
        with ledger.leases.hold("collect"):
            held.set()
            waiting.wait(60)

    waiting = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    threading.Timer(0.3, waiting.set).start()
    with ledger.leases.hold("collect", wait_seconds=60):
        got.set()
    holder.join()
    assert got.is_set()
    ledger.close()


def test_the_heartbeat_renews_a_lease_until_its_block_ends(sqlite_url):
    ledger = Ledger(sqlite_url)
    with ledger.leases.hold("collect", seconds=3) as lease:
        ((_, _, first),) = rows(ledger)
        renewed = first
        pause = threading.Event()
        while renewed == first:  # pytest's time limit ends this if the lease is never renewed
            pause.wait(0.05)
            ((_, _, renewed),) = rows(ledger)
        assert renewed > first
        lease.check()
    ledger.close()


def test_a_lease_that_another_process_took_is_lost_and_not_taken_back(ledger, clock):
    with ledger.leases.hold("collect") as lease:
        put(ledger, "elsewhere:1:2:abc", clock.now + timedelta(hours=1))
        with pytest.raises(LeaseError, match="was lost"):
            lease.renew()
        with pytest.raises(LeaseError, match="'collect' was lost"):
            lease.check()
    assert [owner for _, owner, _ in rows(ledger)] == ["elsewhere:1:2:abc"]


def test_a_lease_that_was_not_renewed_in_time_is_not_trusted(ledger, clock):
    with ledger.leases.hold("collect", seconds=60) as lease:
        clock.pass_seconds(59.9)
        lease.check()
        clock.pass_seconds(0.1)
        with pytest.raises(LeaseError, match="could not be renewed"):
            lease.check()
        lease.renew()  # the lease is still free
        lease.check()


def test_the_ledger_works_while_a_lease_is_held(ledger):
    with ledger.leases.hold("collect"):
        ledger.submissions.open(a_submission(), [])
    assert ledger.submissions.get("s1").submission_id == "s1"
