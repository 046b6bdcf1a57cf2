"""One tick: poll what is due, find what a run can bring further, and say what there is to wait for.

Bounded in time, and in queries: those on the ledger are as many for ten thousand batches as for ten.

Each provider, batch and dataset is looked after by itself. Whatever is raised for one of them, of ours or not, is
logged with its traceback and said at the end of the tick, and the others go on. A tick fails as a whole where the
ledger cannot be read, since nothing can be known then; and at its end, when there was nothing to ask for, after an
error that is none of ours: such a one does not pass by itself, and a skipped tick is read by nobody.

For the same reason it fails where a submission waits for a person: a batch is overdue, or finds no room in its
provider's queue, credentials are refused, another account is configured, nobody can tell whether a batch exists, the
ledger had no record of what was sent. It says what to do, every six hours until that is done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import dagster as dg

from dagster_llm_batch.assets.dataset import datasets_in
from dagster_llm_batch.assets.submission import newest_submission
from dagster_llm_batch.engine import Status
from dagster_llm_batch.engine.condition_facts import read_facts
from dagster_llm_batch.engine.conditions import (
    GOES_ON,
    TOLD_BY_A_CHECK,
    Condition,
    ConditionKind,
    find_conditions,
    find_gone,
    split_by_dataset,
)
from dagster_llm_batch.errors import CannotTellError, ConfigError, LeaseError, LLMBatchError, RefusedError
from dagster_llm_batch.loop.poll import find_spacing, is_due
from dagster_llm_batch.loop.progress import Pace, pace
from dagster_llm_batch.loop.status import advise_on_unknown
from dagster_llm_batch.metadata import progress_observations, status_metadata
from dagster_llm_batch.progress import end_history, end_of, is_further, pace_of, pace_text, together
from dagster_llm_batch.sensors.provider_access import ProviderAccess
from dagster_llm_batch.sensors.request_files import remove_request_files
from dagster_llm_batch.sensors.run_requests import Group, Partitions, Ready, joined
from dagster_llm_batch.sensors.runs import LostRuns, TickBounds, UnfinishedRuns, deliver_landed
from dagster_llm_batch.states import IN_FLIGHT, ShardState
from dagster_llm_batch.storage.ledger.records import Progress, Shard, Submission
from dagster_llm_batch.text import short_run
from dagster_llm_batch.types import BatchStatus, Cause

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine
    from dagster_llm_batch.loop.activity import Outlook
    from dagster_llm_batch.storage.ledger.queues import QueueLines

__all__ = ["Tick"]

_NOTES_AT_MOST = 20

# What waits for a person is told again after this.
_TELL_EVERY = timedelta(hours=6)

# When a person was told of what has no place in the ledger to note that.
_told_of: dict[str, datetime] = {}

# Batches that were given up are asked about after this: most of them never end.
_AWAITED_EVERY = timedelta(hours=1)
_ASKED_TO_STOP = (BatchStatus.CANCELING, BatchStatus.NOT_FOUND)


class Tick:
    """One evaluation of the sensor, over all labeled assets of this code location."""

    def __init__(
        self,
        context: dg.SensorEvaluationContext,
        engine: Engine,
        labels: Mapping[str, Partitions],
        bounds: TickBounds,
    ) -> None:
        self._context = context
        self._bounds = bounds
        self._engine = engine
        self._ledger = engine.ledger
        self._labels = labels
        self._now = engine.now()
        self._began = monotonic()
        self._notes: dict[str, None] = {}
        self._troubles: dict[str, Exception] = {}
        self._access = ProviderAccess(engine, self._trouble)
        # What waits for a person, by submission_id.
        self._needs: dict[str, str] = {}
        # Of these, the first of each dataset and kind of condition.
        self._first: set[str] = set()
        # The same of what has no place in the ledger to note that a person was told: submissions that it does not know,
        # and datasets that these definitions do not have.
        self._unknown: dict[str, str] = {}
        self._before = {progress.submission.submission_id: progress for progress in self._progress()}
        self._after: list[Progress] = []
        # Those of datasets whose partitions cannot be read.
        self._unplaced: list[Progress] = []
        self._flying: list[Shard] = []
        # None until they are found.
        self._conditions: list[Condition] | None = None
        self._recovered = False
        # Those that `ready` has found.
        self._runs: UnfinishedRuns
        self._lost = LostRuns(context.instance, engine, self._now, bounds)

    def _progress(self) -> list[Progress]:
        """Return undelivered submissions. Those of other code locations on the same ledger are looked after there."""
        undelivered = self._ledger.progress(self._engine.namespace, unreadable=self._unreadable)
        self._others = [progress for progress in undelivered if progress.submission.asset not in self._labels]
        return [progress for progress in undelivered if progress.submission.asset in self._labels]

    def _unreadable(self, row_id: str, error: Exception) -> None:
        self._trouble(f"the ledger's row {row_id}", error)

    @contextmanager
    def apart(self, subject: str) -> Iterator[None]:
        """Keep whatever is raised inside to `subject`: it is noted, and the tick goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - of SDKs, Dagster and the user's code: anything may come
            self._trouble(subject, error)

    def _trouble(self, subject: str, error: Exception) -> None:
        ours = isinstance(error, LLMBatchError)
        note = f"{subject}: {error}" if ours else f"{subject}: {type(error).__name__}: {error}"
        if note in self._notes:
            return
        self.note(note)
        self._context.log.error(note, exc_info=error)
        if not ours:
            self._troubles[subject] = error

    def raise_trouble(self) -> None:
        """Fail the tick for errors that do not pass by themselves. To be called when all else is done."""
        if self._troubles:
            first = next(iter(self._troubles.values()))
            count = "1 part" if len(self._troubles) == 1 else f"{len(self._troubles)} parts"
            msg = f"{count} of the tick failed, everything else was done; see its log. {self.summary()}"
            raise LLMBatchError(msg) from first

    def _needs_person(self, submission: Submission, reason: object) -> None:
        """Note what a person has to do, of one kind for each submission."""
        note = f"{submission.place} needs a person: {str(reason).rstrip('.')}"
        if self._needs.setdefault(submission.submission_id, note) == note:
            self.note(note)

    def tell_person(self) -> None:
        """Fail the tick for what waits for a person and was not told lately. To be called when all else is done."""
        told = self._engine.told_since(self._now - _TELL_EVERY) if self._needs else set()
        due = {submission_id: note for submission_id, note in self._needs.items() if submission_id not in told}
        unknown = {each: note for each, note in self._unknown.items() if self._is_untold(each)}
        first = {submission_id: note for submission_id, note in due.items() if submission_id in self._first}
        if due or unknown:
            if due:
                self._engine.note_told(list(due))
            _told_of.update(dict.fromkeys(unknown, self._now))
            notes = [*unknown.values(), *first.values(), *(due[each] for each in due if each not in first)]
            shown = max(_NOTES_AT_MOST, len(unknown) + len(first))
            more = [f"And {len(notes) - shown} submissions more"] if len(notes) > shown else []
            raise LLMBatchError(". ".join([*notes[:shown], *more]) + ".")

    def _has_time(self) -> bool:
        return self._is_within(self._bounds.tick_seconds)

    def _is_within(self, seconds: float) -> bool:
        return monotonic() - self._began < seconds

    def recover_sends(self) -> None:
        """Recover what Dagster has as sent and the ledger has no record of; note what is in neither.

        A ledger that was restored from a backup learns it from the payload store. Where that has nothing of it either,
        another ledger was used: nobody would ever land it.
        """
        with self.apart("what Dagster has as sent"):
            keys = [labels.dataset.batch_key for labels in self._labels.values()]
            records = self._context.instance.get_asset_records(keys) if keys else []
            entries = [record.asset_entry for record in records]
            newest = [(entry.asset_key, newest_submission(entry.last_materialization)) for entry in entries]
            batches = {found[0]: key.to_user_string() for key, found in newest if found is not None}
            unknown = batches.keys() - self._ledger.known_submissions(batches)
            # Which lists the whole payload store.
            if any(map(self._is_untold, unknown)) and self._engine.recover_all_sends():
                self._before = {progress.submission.submission_id: progress for progress in self._progress()}
                unknown -= self._ledger.known_submissions(unknown)
            for submission_id in unknown:
                advice = advise_on_unknown(batches[submission_id], submission_id, self._ledger)
                self._unknown[submission_id] = str(advice)
                self.note(str(advice))

    def _is_untold(self, submission_id: str) -> bool:
        """Return whether nobody was told lately of a submission that the ledger does not know."""
        told_at = _told_of.get(submission_id)
        return told_at is None or self._has_passed(_TELL_EVERY, told_at)

    def poll(self) -> None:
        """Ask the providers about batches in flight whose turn it is."""
        flying = self._ledger.shards_in_flight(self._engine.namespace, unreadable=self._unreadable)
        self._flying = flying
        flying = [shard for shard in flying if shard.submission_id in self._before]
        # Late batches first: the rows of one that is stopped are answered in real time, and somebody waits for them.
        self._stop_late(flying)
        due: dict[str, list[Shard]] = defaultdict(list)
        for shard in flying:
            if is_due(shard, self._now) and self._can_ask(shard):
                due[shard.provider].append(shard)
        longest = 0.0
        for shards in due.values():
            for start in range(0, len(shards), self._bounds.polled_batches):
                began = monotonic()
                if not self._is_within(self._bounds.poll_seconds - longest):
                    self.note(f"{len(shards) - start} batches wait for the next tick")
                    break
                if not self._engine.poll(shards[start : start + self._bounds.polled_batches], self._not_polled):
                    break
                longest = max(longest, monotonic() - began)
        if self._is_within(self._bounds.poll_seconds - longest):
            with self.apart("batches that were given up"):
                self._engine.poll_awaited(list(self._labels), self._now - _AWAITED_EVERY)
        with self.apart("request files at providers"):
            in_time = partial(self._is_within, self._bounds.poll_seconds)
            remove_request_files(self._context, self._engine, self._now, in_time)
        # Also of those that cannot be asked: their account may be closed.
        self._engine.give_up_forgotten(flying)

    def _not_polled(self, shards: Sequence[Shard], error: Exception) -> None:
        if isinstance(error, RefusedError | ConfigError):
            for submission_id in {shard.submission_id for shard in shards}:
                self._needs_person(self._before[submission_id].submission, error)
        if isinstance(error, LLMBatchError):
            self._trouble("polling failed", error)
            return
        place = self._before[shards[0].submission_id].submission.place
        self._trouble(
            f"polling failed for {place}" + (f" and {len(shards) - 1} batches more" if shards[1:] else ""), error
        )

    def _stop_late(self, flying: Iterable[Shard]) -> None:
        """Ask batches to stop that run past their deadline, or that could not be asked before."""
        running = [s for s in flying if s.state is ShardState.SUBMITTED and s.status not in _ASKED_TO_STOP]
        unasked = {shard.submission_id for shard in running if shard.cause is Cause.STOPPED}
        for submission_id in dict.fromkeys(shard.submission_id for shard in running):
            submission = self._before[submission_id].submission
            is_late = submission.deadline_at is not None and submission.deadline_at <= self._now
            if is_late or submission_id in unasked:
                if not self._is_within(self._bounds.poll_seconds / 2):
                    self.note("late batches wait for the next tick to be stopped")
                    return
                with self.apart(submission.place):
                    self._engine.stop_late(submission_id, self._not_stopped)

    def _not_stopped(self, shards: Sequence[Shard], error: Exception) -> None:
        self._trouble(f"batch {shards[0].batch_id} could not be stopped, and is asked again", error)

    def _has_passed(self, pause: timedelta, since: datetime) -> bool:
        """Return whether so much time has passed. A time that lies ahead was set by a clock that was wrong: yes."""
        return not timedelta() <= self._now - since < pause

    def _can_ask(self, shard: Shard) -> bool:
        if (reason := self._access.reason_not_to_ask(shard)) is not None:
            self._needs_person(self._before[shard.submission_id].submission, reason)
        return reason is None

    def note(self, text: str) -> None:
        """Add a text to what the tick says at its end."""
        self._notes[text] = None

    def ready(self) -> list[Ready]:
        """Return the partitions that a run can advance, those of the oldest submissions first."""
        with self.apart("places in queues"):
            self._engine.keep_places(list(self._labels))
        # Read anew: polling has moved shards since the tick began.
        self._after = self._progress()
        if not self._after:
            if find_gone(self._others, self._datasets()):
                self._tell_of_conditions(self._engine.outlook(self._unreadable))
            return []
        # in this order: who planned what is there now still runs, and who has landed it meanwhile has said so
        self._runs = UnfinishedRuns(
            self._context.instance,
            self._repository(),
            self._labels,
            self._engine.runs_at_work(),
            self._now,
            lambda: self._is_within(self._bounds.poll_seconds),
            self._bounds,
        )
        if not self._runs.seen_all:
            self.note("not all runs in the queue were looked at")
        going = self._going(self._readable_labels())
        outlook = self._engine.outlook(self._unreadable)
        self._tell_of_conditions(outlook)
        later = outlook.reading_later(self._after, self._now)
        going = [each for each in going if each.submission_id not in later and self._is_free(each, outlook)]
        if turns := [submission.submission_id for submission in going if outlook.waited(submission.submission_id)]:
            self._engine.note_turns(turns)
            outlook = self._engine.outlook(self._unreadable)
        by_place: dict[tuple[str, str], Ready] = {}
        for submission in going:
            with self.apart(submission.place):
                if (ready := self._ready(submission, outlook)) is None:
                    continue
                place = (submission.asset, submission.partition)
                # An earlier submission of the partition is taken home too.
                if (other := by_place.get(place)) is not None:
                    submissions = (*other.submissions, *ready.submissions)
                    ready = replace(ready, run_key=joined([other.run_key, ready.run_key]), submissions=submissions)
                by_place[place] = ready
        return list(by_place.values())

    def _tell_of_conditions(self, outlook: Outlook) -> None:
        """Note the conditions of submissions, and what a person has to do about those that are due."""
        with self.apart("what may need a person"):
            undelivered = [*self._after, *self._unplaced, *self._others]
            partitions = {name: self._labels[name].keys for name in {one.submission.asset for one in self._after}}
            facts = read_facts(
                self._engine,
                partitions,
                self._datasets(),
                undelivered=undelivered,
                outlook=outlook,
                flying=self._flying_now(),
                unreadable=self._unreadable,
            )
            self._conditions = find_conditions(facts)
            first, rest = split_by_dataset(self._conditions)
            self._first = {condition.submission.submission_id for condition in first}
            # Of each submission a person is told one: what holds it up comes before what does not.
            for condition in sorted([*first, *rest], key=lambda condition: condition.kind in GOES_ON):
                if condition.submission.asset in self._labels or condition.kind is ConditionKind.NO_DATASET:
                    self._tell_of(condition)

    def _flying_now(self) -> list[Shard]:
        """Return the shards in flight, read anew where some may need a person: these may have ended just now."""
        in_doubt = any(ShardState.SUBMITTING in progress.states for progress in (*self._after, *self._unplaced))
        if in_doubt or any(self._engine.deployment.is_overdue(shard) for shard in self._flying):
            return self._ledger.shards_in_flight(self._engine.namespace, unreadable=self._unreadable)
        return self._flying

    def _tell_of(self, condition: Condition) -> None:
        submission = condition.submission
        if not condition.is_due(self._now):
            # Another code location may have a dataset of which nothing is due.
            if condition.kind is not ConditionKind.NO_DATASET:
                self.note(f"{submission.place}: {condition.advice}")
        elif condition.kind is ConditionKind.NO_DATASET:
            # Its submission may be another code location's, whose sensor tells of it by a mark in the ledger.
            note = f"{submission.place} needs a person: {str(condition.advice).rstrip('.')}"
            self._unknown[submission.submission_id] = note
            self.note(note)
        elif condition.kind in TOLD_BY_A_CHECK:
            self.note(f"{submission.place} waits for a person: {condition.advice}")
        elif not self._is_told_once(condition):
            self._needs_person(submission, condition.advice)

    def _is_told_once(self, condition: Condition) -> bool:
        """Return whether a person was told of a condition for good: nothing more comes of stored answers."""
        submission = condition.submission
        if condition.kind is not ConditionKind.NO_PARTITION or not submission.is_settled:
            return False
        return submission.submission_id in self._engine.told_since(submission.settled_at or submission.created_at)

    def _datasets(self) -> Collection[str]:
        return datasets_in(self._repository().assets_defs_by_key.values())

    def _repository(self) -> dg.RepositoryDefinition:
        assert self._context.repository_def is not None
        return self._context.repository_def

    def _readable_labels(self) -> set[str]:
        """Return the assets whose partition keys can be read: a definition of the user's own may raise."""
        readable = set()
        for asset in dict.fromkeys(progress.submission.asset for progress in self._after):
            with self.apart(f"partitions of {asset}"):
                _ = self._labels[asset].places
                readable.add(asset)
        self._unplaced = [progress for progress in self._after if progress.submission.asset not in readable]
        self._after = [progress for progress in self._after if progress.submission.asset in readable]
        return readable

    def _ready(self, submission: Submission, outlook: Outlook) -> Ready | None:
        submission_id = submission.submission_id
        if not outlook.is_open(submission_id):
            return None
        if not self._exists(submission):
            self._end_without_partition(submission)
            return None
        if outlook.stranded(submission_id) is not None:
            return None
        lost = self._lost.count(submission_id, outlook)
        labels = self._labels[submission.asset]
        # A partition that made a run fail, or may have killed two, takes no neighbours into the next one.
        is_alone = lost > 1 or submission_id in outlook.failed
        return Ready(
            labels.dataset.key,
            labels.dataset.rejects_key,
            submission.partition or None,
            None if is_alone else labels.places.get(submission.partition),
            outlook.run_key(submission_id),
            (submission_id,),
            lost,
            outlook.refused(submission_id),
        )

    def _going(self, readable: Collection[str]) -> list[Submission]:
        """Return the submissions that a run can advance. Those whose labels have landed are marked delivered."""
        moving: list[Submission] = []
        lines = self._engine.queue_lines()
        for progress in self._after:
            submission = progress.submission
            place = submission.place
            with self.apart(place):
                try:
                    if self._can_go(progress, lines):
                        moving.append(submission)
                except (CannotTellError, RefusedError, ConfigError) as error:
                    self._context.log.exception("A submission needs a person.")
                    self._needs_person(submission, error)
                except LeaseError:
                    continue
        home: set[str] = set()
        unknown: set[str] = set()
        settled: dict[str, list[Submission]] = defaultdict(list)
        for submission in moving:
            if submission.is_settled:
                settled[submission.asset].append(submission)
        for asset, submissions in settled.items():
            late = {submission.submission_id for submission in submissions}
            with self.apart(asset):
                dataset = self._labels[asset].dataset
                done, late = deliver_landed(self._runs, self._engine, dataset, submissions, self._has_time)
                home |= done
            unknown |= late
        if unknown:
            self.note(f"{len(unknown)} settled submissions wait for the next tick")
        after = self._progress() if self._recovered else self._after
        self._after = [
            progress
            for progress in after
            if progress.submission.submission_id not in home and progress.submission.asset in readable
        ]
        return [submission for submission in moving if submission.submission_id not in home | unknown]

    def _can_go(self, progress: Progress, lines: QueueLines) -> bool:
        submission = progress.submission
        if (run := self._runs.submitting(submission.asset, submission.partition)) is not None:
            # half of what it will send is planned, and what it sends has no record yet: all of that is its own to do
            self.note(f"{submission.asset}: run {short_run(run.run_id)} is at work on its submission")
            return False
        if not self._engine.needs_recovery(progress):
            return self._engine.can_advance(progress, lines)
        if self._has_time():
            self._recovered = True
            self._engine.recover_batches(submission.submission_id)
        # It can move when its batches are found, or known to be absent: at a later tick.
        return False

    def _is_free(self, submission: Submission, outlook: Outlook) -> bool:
        """Return whether no run is at it, and its provider may be asked again."""
        if not outlook.is_open(submission.submission_id) or outlook.is_busy(submission.submission_id):
            return False
        if (run := self._runs.landing(submission.asset, submission.partition)) is not None:
            self.note(f"{submission.asset}: run {short_run(run.run_id)} is landing it")
            return False
        since = outlook.unavailable_since(submission.submission_id)
        if since is not None and not self._has_passed(find_spacing(submission.created_at, self._now), since):
            return False
        return self._is_served(submission, outlook)

    def _is_served(self, submission: Submission, outlook: Outlook) -> bool:
        """Return whether the providers that a run would use can be used. Else it would fail, again and again."""
        is_in_trouble = outlook.is_in_trouble(submission.submission_id)
        labeling = self._labels[submission.asset].dataset.labeling
        names = {submission.provider, *(one.provider for one in labeling.models)}
        if not is_in_trouble and all(self._access.reason_not_to_use(name) is None for name in names):
            return True
        needed = [submission.provider, *([labeling.models[1].provider] if labeling.cascade is not None else [])]
        shards = self._ledger.shards(submission.submission_id)
        reason, passes = self._access.reason_not_to_run(needed, shards, is_in_trouble=is_in_trouble)
        if reason is not None and passes:
            self.note(f"{submission.place} waits: {reason}")
        elif reason is not None:
            self._needs_person(submission, reason)
        return reason is None

    def _exists(self, submission: Submission) -> bool:
        """Return whether its asset has the partition that it is of."""
        partitions = self._labels[submission.asset]
        return submission.partition in partitions.places or not (submission.partition or partitions.are_there)

    def _end_without_partition(self, submission: Submission) -> None:
        """Mark a submission without a partition to land in delivered, unless a person is to be told of it."""
        if self._conditions is None:
            return
        kind, submission_id = ConditionKind.NO_PARTITION, submission.submission_id
        own = (one for one in self._conditions if one.kind is kind and one.submission.submission_id == submission_id)
        if all(map(self._is_told_once, own)):
            self._ledger.mark_delivered(submission_id)

    def is_new(self, group: Group) -> bool:
        """Return whether this group was not asked for yet. Dagster would drop a repeated request without a word."""
        if not self._has_time():
            self.note("further runs are asked for at the next ticks")
            return False
        is_new = False
        with self.apart(str(group)):
            reason = self._lost.reason_not_to_ask(group)
            is_new = reason is None
            if reason is not None:
                self.note(f"{group}: {reason}")
        return is_new

    def observe(self, asked: Iterable[Group]) -> None:
        """Show in the UI what has moved notably in this tick: some of it where that is much.

        Of what these groups' runs will land, few: the runs wait for the end of the tick, and show it themselves.
        """
        landing = {submission_id for group in asked for ready in group.ready for submission_id in ready.submissions}
        moved = [progress.submission for progress in self._after if self._is_news(progress)]
        others = [submission for submission in moved if submission.submission_id not in landing]
        few = [submission for submission in moved if submission.submission_id in landing]
        shown = [*others, *few[: self._bounds.observed_landings]][: self._bounds.observations]
        with self.apart("what has moved"):
            known = self._ledger.submissions_with_shards([submission.submission_id for submission in shown])
            for submission in shown:
                if not self._has_time():
                    return
                with self.apart(submission.place):
                    self._observe(Status(*known[submission.submission_id]))

    def _is_news(self, progress: Progress) -> bool:
        """Return whether a submission has moved notably, and may be shown."""
        submission = progress.submission
        before = self._before.get(submission.submission_id)
        if before is None or submission.provider not in self._engine.providers:
            return False
        return is_further(before, progress) and self._exists(submission)

    def _observe(self, status: Status) -> None:
        submission = status.submission
        provider = self._engine.provider(submission.provider)
        metadata = status_metadata(status, provider, pace_of(self._engine, status))
        key = self._labels[submission.asset].dataset.key
        for observation in progress_observations(self._context.instance, key, submission.partition or None, metadata):
            self._context.instance.report_runless_asset_event(observation)

    def summary(self) -> str:
        """Return one line on what is in flight, for the skip reason of the tick."""
        flying = [p for p in self._after if p.oldest_submitted_at is not None]
        if not flying:
            return "; ".join(["no batches in flight", *self._told()])
        batches = sum(count for p in flying for state, count in p.states.items() if state in IN_FLIGHT)
        counted = "1 batch" if batches == 1 else f"{batches:,} batches"
        paces = self._paces(flying)
        how_far = [pace_text(together(paces))] if paces else []
        return "; ".join([f"{counted} in flight", *how_far, *self._told()])

    def _told(self) -> list[str]:
        notes = list(self._notes)
        more = len(notes) - _NOTES_AT_MOST
        return notes if more <= 0 else [*notes[:_NOTES_AT_MOST], f"and {more} notes more"]

    def _paces(self, flying: list[Progress]) -> list[Pace]:
        history = end_history(self._ledger, self._engine.namespace, self._now)
        paces: list[Pace] = []
        for progress in flying:
            with self.apart(progress.submission.place):
                paces.append(pace(progress, self._now, end_of(history, progress, self._now)))
        return paces
