"""Real processes at the same moment: exactly one wins, and a killed one leaves no lock."""

from __future__ import annotations

import os
import signal
from collections import Counter
from decimal import Decimal

import pytest
import sqlalchemy as sa
from ledger_builders import a_shard, a_submission, race

from dagster_llm_batch.errors import LeaseError
from dagster_llm_batch.states import ShardState, Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.events import Other
from dagster_llm_batch.storage.ledger.migrations import LATEST
from dagster_llm_batch.storage.ledger.records import SpendLimit
from dagster_llm_batch.types import BatchStatus
from tests.processes import PROCESSES


def open_own(ledger, number):
    return ledger.submissions.open(a_submission(f"s{number}"), [a_shard(f"h{number}", f"s{number}")]).submission_id


def send(ledger, number):
    return ledger.shards.move("h1", Transition.SEND).state.value


def next_wave(ledger, number):
    return ledger.submissions.add_wave("s1", [a_shard(f"w{number}", wave=2)]).waves


def count_up(ledger, number):
    for _ in range(20):
        ledger.events.add("s1", Other("count", str(number)))
    return number


ONE_BUDGET = SpendLimit(Decimal(7), "prod")


def reserve_and_send(ledger, number):
    """Send shards while the budget has room; return their number."""
    sent = 0
    for shard in ledger.shards.of_submission("s1")[number::3]:
        if ledger.money.reserve({shard.shard_id: Decimal(1)}, [ONE_BUDGET]):
            ledger.shards.move(shard.shard_id, Transition.SEND)
            sent += 1
    return sent


def reserve_until_killed(url, is_kept):
    is_kept.send(Ledger(url).money.reserve({"a": Decimal(5)}, [ONE_BUDGET]))
    signal.pause()


def hold_until_killed(url, is_held):
    with Ledger(url).leases.hold("collect", seconds=3600):
        is_held.send(os.getpid())
        signal.pause()


@pytest.mark.slow
def test_new_ledgers_migrate_once_and_one_of_several_openers_wins(ledger_url):
    answers = race(open_own, ledger_url, processes=3)
    assert {kind for kind, _ in answers} == {"won"}
    (winner,) = {answer for _, answer in answers}
    ledger = Ledger(ledger_url)
    assert [submission.submission_id for submission in ledger.submissions.list_all("prod")] == [winner]
    assert [shard.submission_id for shard in ledger.shards.of_submission(winner)] == [winner]
    with ledger._database.read() as connection:
        assert connection.execute(sa.text("SELECT version FROM schema_version")).scalars().all() == list(
            range(1, LATEST + 1)
        )
    ledger.close()


def test_a_shard_is_sent_by_one_of_two_processes(ledger_url):
    ledger = Ledger(ledger_url)
    ledger.submissions.open(a_submission(), [a_shard()])
    answers = race(send, ledger_url)
    assert Counter(kind for kind, _ in answers) == {"won": 1, "IllegalTransitionError": 1}
    assert ledger.shards.get("h1").state is ShardState.SUBMITTING
    with ledger._database.read() as connection:
        sent = connection.execute(sa.text("SELECT batch_key, state FROM batch")).all()
    assert [tuple(row) for row in sent] == [("h1-1", "sending")]
    ledger.close()


def test_a_wave_is_added_by_one_of_two_processes(ledger_url):
    ledger = Ledger(ledger_url)
    ledger.submissions.open(a_submission(), [a_shard()])
    assert race(next_wave, ledger_url) == [("won", 2), ("won", 2)]
    assert [shard.wave for shard in ledger.shards.of_submission("s1")].count(2) == 1
    assert [event.kind for event in ledger.events.of_submission("s1")] == ["opened", "wave"]
    ledger.close()


def test_processes_that_share_a_budget_send_together_what_it_has_room_for(ledger_url):
    ledger = Ledger(ledger_url)
    ledger.submissions.open(a_submission(), [a_shard(f"h{n}", number=n, nonce=f"n{n}") for n in range(18)])
    answers = race(reserve_and_send, ledger_url, processes=3)
    assert {kind for kind, _ in answers} == {"won"}
    assert sum(sent for _, sent in answers) == ledger.money.committed_usd(ONE_BUDGET) == 7
    ledger.close()


def test_what_a_process_kept_that_was_killed_before_it_sent_is_kept_for_that_shard_alone(ledger_url):
    ledger = Ledger(ledger_url)
    ledger.submissions.open(a_submission(), [a_shard(name, number=n, nonce=name) for n, name in enumerate("ab")])
    here, there = PROCESSES.Pipe(duplex=False)
    killed = PROCESSES.Process(target=reserve_until_killed, args=(ledger_url, there))
    killed.start()
    assert here.recv()
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert not ledger.money.reserve({"b": Decimal(3)}, [ONE_BUDGET])
    # The process that continues the shard takes over its reservation, and does not pay a second time.
    assert ledger.money.reserve({"a": Decimal(6)}, [ONE_BUDGET])
    ledger.shards.move("a", Transition.CANCELED, status=BatchStatus.CANCELED)
    assert ledger.money.reserve({"b": Decimal(7)}, [ONE_BUDGET])
    ledger.close()


def test_writers_at_once_lose_nothing(ledger_url):
    ledger = Ledger(ledger_url)
    ledger.submissions.open(a_submission(), [])
    race(count_up, ledger_url, processes=3)
    counts = Counter(event.detail for event in ledger.events.of_submission("s1") if event.kind == "count")
    assert counts == {"0": 20, "1": 20, "2": 20}
    ledger.close()


def test_a_killed_holder_loses_its_lease_at_once_and_a_living_one_keeps_it(ledger_url):
    here, there = PROCESSES.Pipe()
    holder = PROCESSES.Process(target=hold_until_killed, args=(ledger_url, there))
    holder.start()
    pid = here.recv()
    ledger = Ledger(ledger_url)
    (refusal,) = race(try_lease, ledger_url, processes=1)
    assert refusal[0] == "LeaseError"
    assert f":{pid}:" in refusal[1]
    os.kill(pid, signal.SIGKILL)
    holder.join()
    with ledger.leases.hold("collect", seconds=3600) as lease:
        lease.check()
    ledger.close()


def try_lease(ledger, number):
    with ledger.leases.hold("collect", seconds=3600) as lease:
        lease.check()
    return number


def work_alone(ledger, number):
    """Read, wait for the other process, and write: only a process that works alone counts every step."""
    for _ in range(5):
        with ledger.leases.hold("count", seconds=3600, wait_seconds=100):
            seen = len(ledger.events.of_submission("s1"))
            ledger.events.add("s1", Other("step", str(seen)))
    return number


def test_what_is_done_under_a_lease_is_done_by_one_process_at_a_time(ledger_url):
    ledger = Ledger(ledger_url)
    ledger.submissions.open(a_submission(), [])
    assert {kind for kind, _ in race(work_alone, ledger_url)} == {"won"}
    steps = [event.detail for event in ledger.events.of_submission("s1") if event.kind == "step"]
    assert steps == [str(number) for number in range(1, 11)]
    ledger.close()


def test_of_two_processes_at_once_exactly_one_gets_the_lease(ledger_url):
    answers, tried = PROCESSES.Queue(), PROCESSES.Barrier(2)
    racers = [PROCESSES.Process(target=_race_for_lease, args=(ledger_url, tried, answers)) for _ in range(2)]
    for racer in racers:
        racer.start()
    found = sorted(answers.get(timeout=120) for _ in racers)
    for racer in racers:
        racer.join()
    assert found == ["refused", "won"]


def _race_for_lease(url, tried, answers):
    ledger = Ledger(url)
    ledger.submissions.list_all("prod")
    tried.wait(timeout=100)
    try:
        with ledger.leases.hold("collect", seconds=3600):
            tried.wait(timeout=100)  # hold it until the other has tried
            answers.put("won")
    except LeaseError:
        tried.wait(timeout=100)
        answers.put("refused")
