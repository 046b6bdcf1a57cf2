"""Guarantees at any moment and at the end: about rows, money, waits and the data of others."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from dagster_llm_batch.engine import Engine
from dagster_llm_batch.engine.condition_facts import read_facts
from dagster_llm_batch.engine.conditions import find_conditions
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import Shard, Submission, SubmissionState
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Cause, Outcome
from tests.batch_records import broken_records
from tests.machine.dataset_kinds import KINDS, TOPICS, Place, Rows
from tests.machine.world import HOUR, NAMESPACE, OTHERS, World

__all__ = ["Neighbor", "check_money", "check_records", "finish"]

# Turns of an hour come first. Turns of half a day follow until each wait is reported.
_SHORT_TURNS, _MOST_TURNS = 6, 60
_LONG_TURN = timedelta(hours=12)
# Results that could not be read are asked for daily after a person gave them up.
_MORE_THAN_A_DAY = timedelta(hours=25)
_OUTCOMES = {outcome.value for outcome in Outcome}


class Neighbor:
    """Another deployment on the same ledger, payload store and account, with a batch whose results it has not read.

    A foreign file lies among the deployment's own, too.
    """

    def __init__(self, world: World) -> None:
        self._world, self._rows = world, Rows(count=2)
        self._labeling = KINDS["plain"].labeling("neighbor", world.vendor)
        engine = self._engine()
        submission = engine.plan(self._labeling, self._rows.table(Place("neighbor", "")))
        engine.submit(self._labeling, submission.submission_id)
        self._submission_id = submission.submission_id
        world.emulator.settle()
        self._root = world.folder / "payloads"
        self._note = self._root / NAMESPACE / "notes.parquet"
        self._note.parent.mkdir()
        self._note.write_bytes(b"of somebody else")
        self._before = self._look()

    def _engine(self) -> Engine:
        return self._world.engine(namespace=OTHERS)

    def _look(self) -> Any:
        """Return its records and files."""
        ledger, own = self._engine().ledger, self._root / NAMESPACE
        records = [
            (
                submission,
                ledger.shards.of_submission(submission.submission_id),
                ledger.events.of_submission(submission.submission_id),
            )
            for submission in ledger.submissions.list_all(OTHERS)
        ]
        others = [path for path in self._root.rglob("*") if path.is_file() and not path.is_relative_to(own)]
        return records, {str(path): path.read_bytes() for path in [*others, self._note] if path.exists()}

    def check(self) -> None:
        """Check that its data has not changed."""
        now = self._look()
        assert now == self._before, (now, self._before)

    def finish(self) -> None:
        """Check that its batch was left alone at the vendor, too: its results can be read."""
        self.check()
        status = self._engine().advance(self._labeling, self._submission_id)
        assert status.submission.outcomes == {"succeeded": self._rows.count}, status


def check_records(world: World) -> None:
    """Check the shards and batches of the ledger."""
    broken = broken_records(world.engine().ledger)
    assert not broken, broken


def check_money(world: World) -> None:
    """Check that each request was billed once for each model, except those that may be paid again."""
    again: Counter[str] = Counter()
    for (dataset, _, _), times in list(world.answered.items()):
        again[dataset] += times - 1
    too_often = {dataset: (times, world.may_pay_again[dataset]) for dataset, times in again.items()}
    assert all(times <= allowed for times, allowed in too_often.values()), (too_often, world.answered)


def finish(world: World, neighbor: Neighbor | None = None) -> None:
    """End the faults and continue as a sensor does, until all is settled; then judge."""
    world.thaw()
    world.ahead = timedelta()
    world.end_faults(lasting=False)
    world.pass_time(HOUR)
    for place, numbers in world.erased.items():
        for number in sorted(numbers):
            world.erase(place, number)
    _go_on(world)
    if world.lasting:
        # With the rows of abandoned batches, before late answers arrive.
        _judge(world)
    world.end_faults(lasting=True)
    _take_late_answers(world)
    _judge(world)
    if neighbor is not None:
        neighbor.finish()


def _go_on(world: World) -> None:
    """Take turns until all is settled. A person gets a report of each wait that needs one, and follows it."""
    log: list[str] = []
    waits = _Waits(world)
    for turn in range(_MOST_TURNS):
        if turn == 0:
            log += [f"plan {place}: {world.plan(place)}" for place in world.places]
        log += _advance_all(world)
        engine = world.engine()
        found = [engine.latest(*place) for place in world.places]
        if all(newest is not None and newest.is_settled for newest in found):
            return
        if turn > 0:
            waits.check()
            world.resolve()
            world.give_up()
            log.append(f"poll: {world.poll()}")
        world.emulator.settle()
        world.pass_time(HOUR if turn < _SHORT_TURNS else _LONG_TURN)
    raise AssertionError(f"not settled: {log[-3 * len(world.places) :]}")


def _advance_all(world: World) -> list[str]:
    """Advance all undelivered submissions, as the sensor's runs do; return how each run ended."""
    log = []
    for progress in world.engine().ledger.submissions.progress(NAMESPACE):
        one = progress.submission
        how = world.advance(Place(one.asset, one.partition), submission_id=one.submission_id)
        log.append(f"advance {one.place}: {how}")
    return log


class _Waits:
    """The time since which each submission stands still."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._since: dict[str, tuple[Any, datetime]] = {}

    def check(self) -> None:
        """Check that each wait is reported within its limit, and that the message names the next step."""
        engine = self._world.engine()
        conditions = find_conditions(read_facts(engine, None, self._world.definitions))
        # For a declared queue that others hold, each dataset gets one report.
        told = {condition.submission.asset for condition in conditions if condition.is_due(engine.now())}
        assert all(condition.advice.problem and condition.advice.then for condition in conditions), conditions
        waiting = [
            one.submission for one in engine.ledger.submissions.progress(NAMESPACE) if not one.submission.is_settled
        ]
        shards = {one.submission_id: engine.ledger.shards.of_submission(one.submission_id) for one in waiting}
        for one in waiting:
            # It may wait for answers of an earlier submission of its rows.
            of_asset = [shard for each in waiting if each.asset == one.asset for shard in shards[each.submission_id]]
            waited = self._waited(engine, one, of_asset)
            assert one.asset in told or waited <= _limit(engine, of_asset), (waited, one, of_asset)

    def _waited(self, engine: Engine, submission: Submission, shards: list[Shard]) -> timedelta:
        mark = submission.waves, [(shard.shard_id, shard.state, shard.batch.batch_id) for shard in shards]
        known, since = self._since.get(submission.submission_id, (None, engine.now()))
        if known != mark:
            since = engine.now()
            self._since[submission.submission_id] = mark, since
        return engine.now() - since


def _limit(engine: Engine, shards: list[Shard]) -> timedelta:
    """Return how long a submission may stand still without a report: an hour, or the vendor's limit, plus a turn."""
    running = [shard for shard in shards if shard.state in (ShardState.PLANNED, ShardState.SUBMITTED)]
    return max([HOUR, *(engine.deployment.patience(shard) for shard in running)]) + _LONG_TURN


def _take_late_answers(world: World) -> None:
    """Check that answers of abandoned batches that ended late are used."""
    for _ in range(_SHORT_TURNS):
        ledger = world.engine().ledger
        shards = [
            shard
            for one in ledger.submissions.list_all(NAMESPACE)
            for shard in ledger.shards.of_submission(one.submission_id)
        ]
        given_up = [shard for shard in shards if shard.cause is Cause.GIVEN_UP and _may_be_read(shard)]
        unsettled = [one for one in ledger.submissions.list_all(NAMESPACE) if not one.is_settled]
        if not given_up and not unsettled:
            return
        world.emulator.settle()
        world.pass_time(_MORE_THAN_A_DAY)
        world.poll()
        log = _advance_all(world)
    raise AssertionError(f"never used, or never settled: {log}, {given_up}, {unsettled}")


def _may_be_read(shard: Shard) -> bool:
    """Return whether the vendor may have answers of a shard: an erasure deletes all of a batch's answers."""
    return shard.batch.batch_id is not None and shard.batch.erased_there_at is None


def _judge(world: World) -> None:
    """Compare rows and money with the guarantees."""
    engine = world.engine()
    for place in world.places:
        newest = engine.latest(*place)
        assert newest is not None
        _judge_rows(world, engine, place, newest)
        for shard in engine.ledger.shards.of_submission(newest.submission_id):
            assert shard.state in (ShardState.COLLECTED, ShardState.CANCELED), shard
    check_money(world)
    check_records(world)
    billed = [one for one in world.emulator.books.executions if one.billed]
    assert world.answered.total() == len(billed), (world.answered, billed)
    kept = _stored(world) if world.erased else ""
    for place, numbers in world.erased.items():
        for number in numbers:
            assert f"{world.rows[place].text(place, number)}?" not in kept, (place, number)


def _judge_rows(world: World, engine: Engine, place: Place, newest: Submission) -> None:
    definition = world.definitions[place.dataset]
    labeled = engine.labels(definition, newest.submission_id)
    both = [*labeled.labels.to_pylist(), *labeled.rejects.to_pylist()]
    found = [row["id"] for row in both]
    erased = {f"t{number}" for number in world.erased[place]}
    wanted = set(world.rows[place].table(place)["id"].to_pylist()) - erased
    assert len(found) == len(set(found)), (place, found)
    if newest.state is not SubmissionState.CANCELED:
        assert set(found) == wanted, (place, found, wanted)
    for row in both:
        assert row["llm_outcome"] in _OUTCOMES, row
    for row in labeled.labels.to_pylist():
        assert row["topic"] == TOPICS[int(row["id"][1:]) % 3], row
    assert sum(newest.outcomes.values()) == newest.requests, (place, newest.outcomes, newest.requests)
    _judge_costs(engine, place, newest, [row["llm_cost_usd"] for row in both])
    if definition.max_cost_usd is not None and newest.cost_usd is not None:
        assert newest.cost_usd <= Decimal(definition.max_cost_usd), (place, newest.cost_usd, definition.max_cost_usd)


def _judge_costs(engine: Engine, place: Place, newest: Submission, costs: list[Any]) -> None:
    """Check that the costs of rows add up to the costs of the submissions that asked them, apart from erased rows."""
    of_rows = sum(map(_money, costs))
    if newest.cost_usd is None:
        assert None in costs, (place, costs)
    elif not newest.reused and not newest.tombstones and newest.state is not SubmissionState.CANCELED:
        assert of_rows == newest.cost_usd, (place, costs, newest.cost_usd)
    else:
        billed = [each.cost_usd for each in engine.ledger.submissions.of_partition(NAMESPACE, *place)]
        assert None in billed or of_rows <= sum(map(_money, billed)), (place, costs, billed)


def _stored(world: World) -> str:
    """Return the content of all payload files, unpacked."""
    root = world.folder / "payloads" / NAMESPACE
    payloads, found = PayloadStore(str(root)), []
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_dir() or name == "notes.parquet":
            continue
        if name.endswith(".parquet"):
            found.append(str(payloads.read_table(name).to_pylist()))
        else:
            with payloads.reader(name) as file:
                found.append(file.read().decode(errors="replace"))
    return "\n".join(found)


def _money(value: Any) -> Decimal:
    return Decimal(0) if value is None else Decimal(str(value))
