"""One deployment with some datasets, its vendor's emulator, and the records of rows and money.

Each step is taken by a new engine, like one of another process.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.engine.condition_facts import find_undecided
from dagster_llm_batch.engine.conditions import Condition, ConditionKind
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.testing.emulator import (
    BatchFault,
    Emulator,
    Fault,
    FileFault,
    Reply,
    RowFault,
    VendorLimits,
    WireFault,
)
from dagster_llm_batch.types import Outcome
from tests.faults.vendor_workspace import Servers, copy_ledger
from tests.faults.vendors import MATRIX_VENDORS, Vendor
from tests.machine.dataset_kinds import DEADLINE, KINDS, Place, Rows, answer, number_of, source_of
from tests.machine.mortal import Dead, End, Mortal, mortal_ledger, mortal_provider, mortal_store

__all__ = ["HOUR", "NAMESPACE", "OTHERS", "VENDOR_NAMES", "World"]

NAMESPACE = "machine"
# Of another deployment, on the same ledger, payload store and account.
OTHERS = "others"
HOUR = timedelta(hours=1)
# A command's batches end by themselves, and its books are a file: the matrices have it.
VENDOR_NAMES = tuple(vendor.name for vendor in MATRIX_VENDORS if vendor.name != "command")
# Batches cannot be stopped there.
_UNSTOPPABLE = "openrouter"
_REAL_TIME = ("POST *v1/chat/completions", "POST /v1/messages", "POST /*:generateContent", "POST /bedrock/model/*")
# Replies that are paid for, without a readable label.
_BAD_REPLIES = ("truncated", "refusal")
_LOST_LINES = ("missing", "malformed")
_RESOLVES = re.compile(r"resolve (\w+) --lost")


class World:
    """See the module's docstring."""

    def __init__(
        self,
        vendor_name: str,
        servers: Servers,
        folder: Path,
        ledger_url: str,
        datasets: Sequence[str] = ("rounds",),
    ) -> None:
        self.vendor: Vendor = next(vendor for vendor in MATRIX_VENDORS if vendor.name == vendor_name)
        self.folder, self.ledger_url = folder, ledger_url
        self._skipped = 0.0
        # The lead of the engine's clock; the vendor's is right.
        self.ahead = timedelta()
        files = {"bedrock": {"s3_url": servers.s3_url}, "vertex": {"gcs_url": servers.gcs_url}}.get(vendor_name, {})
        limits = VendorLimits(bedrock_min_records=1)
        self.emulator = Emulator(answer=self._answer, clock=self.seconds, limits=limits, **files).start()
        self.provider: Any = self.vendor.provider(self.emulator, folder, 10.0)
        # The number of billed answers, by dataset, model and text of the row.
        self.answered: Counter[tuple[str, str, str]] = Counter()
        # The number of requests of a dataset that may be paid again: because a person decided so, or unavoidably.
        self.may_pay_again: Counter[str] = Counter()
        self.frozen: list[tuple[Mortal, threading.Thread]] = []
        self.backup: str | None = None
        self.told: list[str] = []
        self.erased: defaultdict[Place, set[int]] = defaultdict(set)
        # Faults that end only after a person has done what the messages ask.
        self.lasting: list[Fault] = []
        self.arrows: list[str] = []
        at_once = [most for name in datasets if (most := KINDS[name].batches_at_once) is not None]
        self._queue_limits = {vendor_name: QueueLimit(max_batches=min(at_once))} if at_once else {}
        self.definitions = {name: KINDS[name].labeling(name, self.vendor) for name in datasets}
        self.places = [Place(name, partition) for name in datasets for partition in KINDS[name].partitions]
        self.rows = {place: Rows(10 * KINDS[place.dataset].partitions.index(place.partition)) for place in self.places}

    def close(self) -> None:
        self.thaw()
        self.emulator.close()

    def _answer(self, body: Any, _endpoint: str) -> Any:
        text = str(body)
        dataset, row = source_of(text)
        self.answered[dataset, str(body.get("model", "")), row] += 1
        reply = answer(number_of(text))
        # As long as `params` allow, for the highest cost.
        is_limited = self.definitions.get(dataset) is not None and self.definitions[dataset].max_cost_usd is not None
        return Reply(text=json.dumps(reply), output_tokens=50) if is_limited else reply

    # time -------------------------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        """Return the vendor's time, which is also the engine's, unless its clock is wrong."""
        return time.time() + self._skipped

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds(), UTC) + self.ahead

    def pass_time(self, span: timedelta) -> None:
        self._skipped += span.total_seconds()
        if span > DEADLINE:
            self._allow_for_deadlines()

    def set_clock(self, ahead: timedelta) -> None:
        """Let the engine's clock be wrong by so much."""
        self.ahead = ahead
        if ahead > DEADLINE:
            self._allow_for_deadlines()

    def _allow_for_deadlines(self) -> None:
        """Allow for deadlines: running requests are stopped and asked in real time; if unstoppable, both are billed."""
        if self.vendor.name == _UNSTOPPABLE and "late" in self.definitions:
            self.may_pay_again["late"] += self.rows[Place("late", "")].count

    # processes --------------------------------------------------------------------------------------------------------

    def engine(self, mortal: Mortal | None = None, namespace: str = NAMESPACE) -> Engine:
        """Return a new engine, as another process makes one."""
        mortal = mortal or Mortal(None)
        return Engine(
            Deployment(
                {self.vendor.name: mortal_provider(self.provider, mortal)},
                mortal_ledger(Ledger(self.ledger_url, clock=self.now), mortal),
                mortal_store(str(self.folder / "payloads"), mortal),
                namespace,
                clock=self.now,
                sleep=lambda _: None,
                lease_wait_seconds=0.0,
                transfers_at_once=1,
                queue_limits=self._queue_limits,
            )
        )

    def step(self, act: Callable[[Engine], object], end: End | None = None) -> str:
        """Take one step in a separate process; return how it ended. Errors are kept as reports to a person."""
        mortal, ended = Mortal(end), []

        def run() -> None:
            engine = self.engine(mortal)
            try:
                act(engine)
                ended.append("done")
            except LLMBatchError as error:
                self.told.append(str(error))
                ended.append(f"{type(error).__name__}: {error}")
            except Dead:
                ended.append("died")
            except KeyboardInterrupt:
                ended.append("interrupted")
            except BaseException as error:  # noqa: BLE001 - raised below, in the thread of the test
                ended.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive() and not mortal.frozen.is_set():
            thread.join(0.01)
        if mortal.frozen.is_set():
            self.frozen.append((mortal, thread))
            ended = ["froze"]
        [how] = ended
        if isinstance(how, BaseException):
            raise how
        self.arrows = list(mortal.crossed)
        return str(how)

    def thaw(self) -> None:
        """Let frozen processes continue; they find that others have taken their leases."""
        for mortal, thread in self.frozen:
            mortal.thawed.set()
            thread.join(60)
            assert not thread.is_alive()
        self.frozen.clear()

    # steps ------------------------------------------------------------------------------------------------------------

    def plan(self, place: Place, end: End | None = None, *, again: bool = False) -> str:
        def act(engine: Engine) -> None:
            definition, table = self.definitions[place.dataset], self.rows[place].table(place)
            if again:
                self._allow_for_retry(engine, place)
            engine.plan(definition, table, partition=place.partition, again=again)

        return self.step(act, end)

    def _allow_for_retry(self, engine: Engine, place: Place) -> None:
        """Allow for a person's retry: it repeats requests that were, or will be, billed without a stored answer."""
        for submission in engine.ledger.submissions.of_partition(NAMESPACE, *place):
            shards = engine.ledger.shards.of_submission(submission.submission_id)
            unseen = sum(shard.requests for shard in shards if shard.cause is not None)
            bad = sum(submission.outcomes.get(outcome, 0) for outcome in (Outcome.INVALID, Outcome.MISSING))
            self.may_pay_again[place.dataset] += max(unseen, bad)

    def send(self, place: Place, end: End | None = None) -> str:
        """Send the planned shards of a partition, or of all partitions if the dataset shares batches."""
        definition = self.definitions[place.dataset]
        if KINDS[place.dataset].is_together:
            how = self.step(lambda engine: engine.submit_together(definition, self._newest(engine, place.dataset)), end)
        else:
            how = self.on_latest(place, lambda engine, key: engine.submit(definition, key), end)
        return self._allow(place.dataset, how)

    def _newest(self, engine: Engine, dataset: str) -> list[str]:
        found = [engine.latest(*place) for place in self.places if place.dataset == dataset]
        return [submission.submission_id for submission in found if submission is not None]

    def poll(self, end: End | None = None) -> str:
        """Poll all batches, stop late ones, and look for abandoned ones, as a tick of the sensor does."""

        def tell(_: Sequence[Shard], error: Exception) -> None:
            if not isinstance(error, LLMBatchError):
                raise error
            self.told.append(str(error))

        def act(engine: Engine) -> None:
            flying = engine.ledger.shards.in_flight(NAMESPACE)
            for submission_id in sorted({shard.submission_id for shard in flying}):
                engine.stop_late(submission_id, tell)
            engine.poll(flying, tell)
            engine.poll_awaited(list(self.definitions), engine.now() - HOUR)
            engine.activity.keep_places(list(self.definitions))

        return self.step(act, end)

    def collect(self, place: Place, end: End | None = None) -> str:
        """Collect ended batches, without sending any."""
        definition = self.definitions[place.dataset]
        return self._allow(
            place.dataset,
            self.on_latest(place, lambda engine, key: engine.collect(definition, key, keeps_pauses=True), end),
        )

    def advance(self, place: Place, end: End | None = None, *, submission_id: str | None = None) -> str:
        """Advance a partition's newest submission, or the named one, as far as possible; then deliver its labels."""
        definition = self.definitions[place.dataset]

        def act(engine: Engine, key: str) -> None:
            if engine.advance(definition, key).is_settled:
                engine.labels(definition, key)
                engine.ledger.submissions.mark_delivered(key)

        if submission_id is not None:
            return self._allow(place.dataset, self.step(partial(act, key=submission_id), end))
        return self._allow(place.dataset, self.on_latest(place, act, end))

    def _allow(self, dataset: str, how: str) -> str:
        """Allow for unavoidable repeats: a call in real time, or a create call of an unstoppable batch."""
        if how in ("died", "froze", "interrupted"):
            # Some answers in real time that the process had may not be stored yet.
            self.may_pay_again[dataset] += self.arrows.count("respond: before")
            if how == "froze" and self.vendor.name == _UNSTOPPABLE and "submit: before" in self.arrows:
                self.may_pay_again[dataset] += max(shard.requests for shard in self._shards(dataset))
        return how

    def _shards(self, dataset: str) -> list[Shard]:
        ledger = self.engine().ledger
        return [shard for one in self._newest(self.engine(), dataset) for shard in ledger.shards.of_submission(one)]

    def cancel(self, place: Place, end: End | None = None) -> str:
        return self.on_latest(place, lambda engine, key: engine.cancel(key), end)

    def abandon(self, place: Place, end: End | None = None) -> str:
        """Give up a running batch, as a person may at any time."""

        def act(engine: Engine, key: str) -> None:
            for shard in engine.ledger.shards.of_submission(key):
                if shard.state is ShardState.SUBMITTED:
                    engine.give_up(shard.shard_id)
                    return

        return self.on_latest(place, act, end)

    def erase(self, place: Place, number: int, end: End | None = None) -> str:
        """Erase a row for good, as a person asks; finish() repeats an erasure that a dead process left unfinished."""
        self.erased[place].add(number)
        partitions = [place.partition] if place.partition else None

        def act(engine: Engine) -> None:
            engine.eraser.add_tombstones(place.dataset, [f"t{number}"], partitions)
            engine.eraser.erase(place.dataset)
            engine.eraser.erase_at_providers(place.dataset)

        return self.step(act, end)

    def on_latest(self, place: Place, act: Callable[[Engine, str], object], end: End | None = None) -> str:
        """Take a step with the newest submission of a partition, if it has one."""

        def chosen(engine: Engine) -> None:
            newest = engine.latest(*place)
            if newest is not None:
                act(engine, newest.submission_id)

        return self.step(chosen, end)

    def back_up(self) -> None:
        if not self.frozen:
            self.engine().ledger.submissions.list_all(NAMESPACE)
            self.backup = copy_ledger(self.ledger_url)

    def restore(self) -> None:
        """Restore an earlier copy of the ledger; all processes are stopped meanwhile."""
        if self.backup is not None and not self.frozen:
            self.ledger_url, self.backup = self.backup, None
            self.pass_time(HOUR)

    # faults -----------------------------------------------------------------------------------------------------------

    def refuse(self, call: str, status: int) -> None:
        """Let the vendor answer some calls with an error."""
        for route in self._routes(call):
            self._inject(WireFault(kind="status", route=route, status=status, times=3))

    def lose_reply(self, call: str) -> None:
        """Let the vendor execute the next call, and lose the reply."""
        for route in self._routes(call):
            self._inject(WireFault(kind="close", route=route, when="after"))
        if call == "respond":
            for name in self.definitions:
                self.may_pay_again[name] += 1

    def _routes(self, call: str) -> Sequence[str]:
        if call == "respond":
            return _REAL_TIME
        return [self.vendor.calls[call]] if call in self.vendor.calls else []

    def spoil_row(self, number: int, kind: str) -> None:
        """Let the vendor answer a request once with an error or with no label, or lose a line of its results."""
        text = f"number {number}?"
        if kind == "status":
            self._inject(RowFault(status_code=500, containing=text, times=1))
            return
        if kind in _LOST_LINES:
            self._inject(FileFault(kind=kind, containing=text, times=1))  # type: ignore[arg-type]
        else:
            self._inject(RowFault(kind=kind, containing=text, times=1))  # type: ignore[arg-type]
        # It is paid for, and asked again in the next round.
        for name in self.definitions:
            self.may_pay_again[name] += 1

    def spoil_batch(self, kind: str) -> None:
        """Let the next batch end badly, or never."""
        fault = BatchFault(kind=kind, batches={len(self.emulator.books.batches)})  # type: ignore[arg-type]
        self._inject(fault, lasts=kind == "stuck")

    def hide_results(self, status: int) -> None:
        """Make all results unreadable."""
        for route in self._routes("download"):
            self._inject(WireFault(kind="status", route=route, status=status, times=None), lasts=True)

    def _inject(self, fault: Fault, *, lasts: bool = False) -> None:
        self.emulator.inject(fault)
        if lasts:
            self.lasting.append(fault)

    def end_faults(self, *, lasting: bool) -> None:
        """End the faults, or all except lasting ones."""
        self.emulator.clear_faults()
        if lasting:
            self.lasting.clear()
        self.emulator.inject(*self.lasting)

    # people -----------------------------------------------------------------------------------------------------------

    def resolve(self, end: End | None = None) -> str:
        """Resolve shards in doubt by the vendor's console; skip those that it leaves open."""
        engine = self.engine()
        how = "done"
        for submission in engine.ledger.submissions.list_all(NAMESPACE):
            for shard in engine.ledger.shards.of_submission(submission.submission_id):
                if shard.state is ShardState.SUBMITTING:
                    batch_id, can_tell = self._look_up(shard, engine)
                    if can_tell:
                        how = self.step(partial(_resolve, shard_id=shard.shard_id, batch_id=batch_id), end)
        return how

    def give_up(self, end: End | None = None) -> str:
        """Follow the messages about batches and results that will not come."""
        how = "done"
        for condition, shard in find_undecided(self.engine()):
            if condition.kind is not ConditionKind.IN_DOUBT:
                assert _names_exit(condition, shard), str(condition.advice)
                how = self.step(partial(_give_up, shard_id=shard.shard_id), end)
        return how

    def _look_up(self, shard: Shard, engine: Engine) -> tuple[str | None, bool]:
        """Return the batch with a shard's tag in the console, if any, and whether that is certain.

        The tag is on the batch, on its request file, or in its results.
        """
        books = self.emulator.books
        files = {file.id for file in books.files if shard.nonce in str(file)}
        results = {one.batch_id for one in books.executions if str(one.custom_id).startswith(shard.nonce)}
        ledger = engine.ledger
        ids = [
            submission.submission_id for name in (NAMESPACE, OTHERS) for submission in ledger.submissions.list_all(name)
        ]
        known = {shard.batch.batch_id for submission_id in ids for shard in ledger.shards.of_submission(submission_id)}
        unknown = [batch for batch in books.batches if batch.id not in known]
        for batch in unknown:
            if shard.nonce in str(batch) or batch.input_file_id in files or batch.id in results:
                return batch.id, True
        return None, not unknown


def _names_exit(condition: Condition, shard: Shard) -> bool:
    """Return whether a message holds the command that gives up its shard, ready to copy."""
    return shard.shard_id in _RESOLVES.findall(str(condition.advice))


def _resolve(engine: Engine, shard_id: str, batch_id: str | None) -> None:
    engine.resolve(shard_id, batch_id)


def _give_up(engine: Engine, shard_id: str) -> None:
    engine.give_up(shard_id)
