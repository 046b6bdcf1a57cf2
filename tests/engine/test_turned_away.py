"""A provider that turns calls in real time away holds a run for minutes and not for hours; the rest is asked later."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from house import House, assert_total, billed, labeling, tickets

from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.engine.realtime_sample import answer_now
from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.states import Move
from dagster_llm_batch.storage.ledger.ledger import Ledger
from dagster_llm_batch.testing.emulator import WireFault

CHAT = "POST /v1/chat/completions"


class Run:
    """An engine whose sleep lets time pass; `slept` is how long it was held."""

    def __init__(self, house: House) -> None:
        self.slept = 0.0
        ledger = Ledger(house.tmp_path / "ledger.sqlite")  # its leases go by the time that really passes
        self._house = house
        self.engine = Engine(
            Deployment(house.providers, ledger, house.engine().payloads, "test", clock=house.now, sleep=self._sleep)
        )

    def _sleep(self, seconds: float) -> None:
        self.slept += seconds
        self._house.skipped += timedelta(seconds=seconds)


def urgent(count: int, start: int = 0) -> pl.DataFrame:
    return tickets(count, start).with_columns(pl.lit(True).alias("now"))


def definition(**changes: Any) -> Any:
    return labeling(urgent="now", realtime_concurrency=1, **changes)


def calls(house: House) -> int:
    return house.emulator.books.calls_to("POST", "/v1/chat/completions")


def planned(house: House, rows: Any, **changes: Any) -> str:
    return house.engine().plan(definition(**changes), rows).submission_id


def turn_away(house: House, *, skip: int = 0, times: int | None = None, after: Any = "3600") -> None:
    house.emulator.inject(WireFault(kind="status", route=CHAT, status=429, skip=skip, times=times, retry_after=after))


def test_an_hour_that_the_provider_names_is_not_waited_for_and_the_rest_is_asked_after_it(house: House) -> None:
    turn_away(house, skip=40)
    one, run = planned(house, urgent(100)), Run(house)
    status = run.engine.advance(definition(), one)
    assert (run.slept, calls(house), len(billed(house))) == (0, 41, 40)
    assert status.states == {"collected": 1, "planned": 3}
    [told] = [shard.reason for shard in status.shards if shard.reason]
    assert "openai/gpt-4o is asked for the rest after 2" in told
    later = Run(house)
    for _ in range(3):  # whoever comes before makes no call
        [progress] = later.engine.ledger.progress("test")
        assert not later.engine.can_advance(progress)
        later.engine.advance(definition(), one)
    assert calls(house) == 41
    house.skipped += timedelta(hours=1)
    house.emulator.clear_faults()
    [progress] = later.engine.ledger.progress("test")
    assert later.engine.can_advance(progress)
    settled = later.engine.advance(definition(), one)
    assert (settled.submission.outcomes, settled.submission.waves) == ({"succeeded": 100}, 1)
    assert len(billed(house)) == len(set(billed(house))) == 100
    assert settled.submission.cost_usd is not None
    assert not [name for name in house.files() if ".sofar." in name]
    assert_total(house, definition(), one, 100)


@pytest.mark.parametrize("after", ["60", None], ids=["a minute each time", "without a time"])
def test_a_provider_that_turns_everything_away_holds_a_run_no_longer_than_its_patience(
    house: House, after: str | None
) -> None:
    turn_away(house, after=after)
    one, run = planned(house, urgent(100)), Run(house)
    status = run.engine.advance(definition(), one)
    assert 0 < run.slept <= 300
    assert status.states["planned"] >= 3
    assert billed(house) == []
    house.emulator.clear_faults()
    house.skipped += timedelta(hours=1)
    assert house.finish(definition(), one).submission.outcomes == {"succeeded": 100}
    assert len(billed(house)) == 100


def test_the_patience_is_for_all_submissions_of_a_run_together(house: House) -> None:
    turn_away(house)
    run = Run(house)
    ids = [run.engine.plan(definition(), urgent(3, 3 * n), partition=f"p{n}").submission_id for n in range(4)]
    for one in ids:
        run.engine.advance(definition(), one)
    assert (run.slept, calls(house)) == (0, 1)
    assert all(run.engine.outlook().unavailable_since(one) is not None for one in ids)


def test_answers_earn_patience_back_so_that_a_slow_provider_is_waited_for(house: House) -> None:
    rows = 60
    for n in range(rows):  # every other call is turned away for two seconds: more than the patience in all
        turn_away(house, skip=n, times=1, after="2")
    one, run = planned(house, urgent(rows), realtime_patience=timedelta(seconds=70)), Run(house)
    settled = run.engine.advance(definition(realtime_patience=timedelta(seconds=70)), one)
    assert settled.submission.outcomes == {"succeeded": rows}
    assert run.slept > 70


def test_a_process_that_is_killed_after_it_was_turned_away_leaves_what_was_answered(house: House) -> None:
    turn_away(house, skip=2)
    one = planned(house, urgent(5))
    engine = house.engine()
    engine.advance(definition(), one)
    [shard] = engine.ledger.shards(one)
    engine.ledger.move_shard(
        shard.shard_id, Move.SEND, sent_at=house.now()
    )  # by a process that dies before its first call
    house.emulator.clear_faults()
    settled = house.finish(definition(), one)
    assert (settled.submission.outcomes, settled.submission.waves) == ({"succeeded": 5}, 2)
    assert len(billed(house)) == len(set(billed(house))) == 5


def test_answers_of_a_submission_that_is_canceled_meanwhile_land(house: House) -> None:
    turn_away(house, skip=2)
    one = planned(house, urgent(5))
    house.engine().advance(definition(), one)
    house.engine().cancel(one)
    settled = house.finish(definition(), one)
    assert settled.submission.outcomes == {"succeeded": 2, "canceled": 3}
    assert_total(house, definition(), one, 5)


def test_answers_of_a_submission_whose_rows_change_meanwhile_are_not_bought_again(house: House) -> None:
    turn_away(house, skip=2)
    first = planned(house, urgent(5))
    house.engine().advance(definition(), first)
    house.emulator.clear_faults()
    second = planned(house, urgent(7))
    house.engine().advance(definition(), first)
    settled = house.finish(definition(), second)
    assert settled.submission.outcomes == {"succeeded": 7}
    assert len(billed(house)) == len(set(billed(house))) == 7
    assert_total(house, definition(), second, 7)


def test_no_connection_is_no_lost_answer(house: House) -> None:
    there = house.providers["openai"]
    one = planned(house, urgent(12))
    house.providers["openai"] = house.openai_at("http://127.0.0.1:1/v1", account=there.account)
    run = Run(house)
    status = run.engine.advance(definition(), one)
    assert status.states == {"planned": 1}
    assert run.slept <= 300
    house.providers["openai"] = there
    house.skipped += timedelta(hours=1)
    settled = house.finish(definition(), one)
    assert (settled.submission.outcomes, settled.submission.waves) == ({"succeeded": 12}, 1)


def test_who_asks_now_or_never_is_told_until_when_the_provider_takes_nothing(house: House) -> None:
    turn_away(house)
    one, run = planned(house, urgent(3)), Run(house)
    with pytest.raises(TransientError, match=r"not all of it was answered now\. openai/gpt-4o is asked .* after 2"):
        answer_now(run.engine, definition(), one)
    assert (run.slept, calls(house)) == (0, 1)
