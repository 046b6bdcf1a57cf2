"""The real-time lane of a stream: asks the LLM about messages that the student is unsure of, by the same definition.

    review ─▶ a window of some messages ─▶ the engine's real-time lane ─▶ results and the window's end, at once

Requests use the labeled dataset's own prompt, response and provider, and go through ledger and budgets: a window is a
submission. A killed process finds its window in the ledger when it starts again, and takes the same one: answered
messages are not sent, or paid, again, and each message has one result.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.engine.realtime_sample import answer_now, in_real_time, marked
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.streams.client import Connection, confluent, kafka_errors
from dagster_llm_batch.streams.consumer import Watermarks, resume, watermarks_of
from dagster_llm_batch.streams.messages import KEY
from dagster_llm_batch.streams.producer import Outgoing, produce, transaction
from dagster_llm_batch.streams.results import REASON, SAID, SINCE, StreamResult, now_ms, outgoing
from dagster_llm_batch.streams.topic import KafkaTopic
from dagster_llm_batch.streams.windows import KafkaWindow, cut_windows
from dagster_llm_batch.types import Outcome

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["RealTimeLane", "labeling_of"]


def labeling_of(labels: Iterable[dg.AssetsDefinition]) -> Labeling:
    """Return the definition of the assets from `llm_batch_assets`: stream and batch use the same one."""
    return dataset_of(labels).labeling


class RealTimeLane:
    """One process that answers a review topic. A second one of the same name fences the first.

    Args:
        connection: `KafkaResource(...).connection()`.
        review: The topic that StreamLabeler sends on to: `topic.sent_on_to("…")`.
        results: Name of the results' topic.
        engine: `LLMBatchResource(...).engine()`; ledger, budgets and provider are its.
        labeling: The definition, as `labeling_of(labels)` gives it.
        target: Column of the response that is the result's label.
        name: Of the lane, in the ledger and at the broker.
        at_once: Most messages of one window.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        review: KafkaTopic,
        results: str,
        engine: Engine,
        labeling: Labeling,
        target: str,
        name: str | None = None,
        at_once: int = 32,
        poll_seconds: float = 0.1,
    ) -> None:
        if target not in labeling.reader.schema.names:
            columns = ", ".join(labeling.reader.schema.names)
            raise ConfigError(f"target={target!r} is no column of the response. Its columns: {columns}.")
        self.windows = 0
        self._connection, self._engine = connection, engine
        self._review, self._results, self._target = review, results, target
        self._name = name or f"{labeling.asset}/stream"
        self._at_once, self._poll = at_once, poll_seconds
        self._labeling = in_real_time(labeling, self._name, key=KEY)

    def run(self, until: Callable[[int], bool]) -> int:
        """Answer until `until` returns true, which gets the number of waiting messages; return the number of answers.

        Raises TransientError like StreamLabeler, and the errors of the engine: after a BudgetError the messages stay in
        the topic, for the next batch or a larger budget.
        """
        seconds, answered = self._connection.timeout_seconds, 0
        stops = self._review.on_lost == "stop"
        consumer = self._connection.consumer(group_id=self._name)
        producer = self._connection.producer(transactional_id=self._name)
        try:
            with kafka_errors(f"Answering the topic '{self._review.name}'"):
                producer.init_transactions(seconds)
                has_looked = False
                while True:
                    marks = watermarks_of(consumer, self._review.name, seconds)
                    begins, _ = resume(consumer, self._review.name, marks, seconds, stops_when_lost=stops)
                    waiting = sum(mark.end - begins[number] for number, mark in marks.items())
                    if until(waiting):
                        return answered
                    # The window of a predecessor that was killed comes first. The ledger is asked for it once: later
                    # windows are this process's own.
                    window = (None if has_looked else self._unfinished(begins)) or self._next(begins, marks)
                    has_looked = True
                    if window is None:
                        time.sleep(self._poll)
                        continue
                    results, submission_id = self._answers(window)
                    ends = [
                        confluent().TopicPartition(window.topic, offsets.partition, offsets.end)
                        for offsets in window.ranges
                    ]
                    with transaction(producer, seconds):
                        produce(producer, self._results, results)
                        producer.send_offsets_to_transaction(ends, consumer.consumer_group_metadata(), seconds)
                    # Only after the commit: a process that dies in between leaves a window whose offsets are committed,
                    # and its successor marks it (`_unfinished`).
                    if submission_id is not None:
                        self._engine.ledger.submissions.mark_delivered(submission_id)
                    self.windows += 1
                    answered += len(results)
        finally:
            consumer.close()

    def _unfinished(self, begins: Mapping[int, int]) -> KafkaWindow | None:
        """Return the window that a process was killed in, if there is one. Windows whose results are produced are
        marked.
        """
        window_ = None
        for progress in self._engine.ledger.submissions.progress(self._engine.namespace):
            submission = progress.submission
            if submission.asset != self._name:
                continue
            window = KafkaWindow.parse(submission.partition)
            if all(offsets.end <= begins.get(offsets.partition, 0) for offsets in window.ranges):
                self._engine.ledger.submissions.mark_delivered(submission.submission_id)
            elif all(offsets.start <= begins.get(offsets.partition, -1) for offsets in window.ranges):
                # This holds also where retention has deleted the first messages of the window meanwhile.
                window_ = window
        return window_

    def _next(self, begins: Mapping[int, int], marks: Mapping[int, Watermarks]) -> KafkaWindow | None:
        ends = {number: mark.end for number, mark in marks.items()}
        return next(cut_windows(self._review.name, begins, ends, self._at_once, rest=True), None)

    def _answers(self, window: KafkaWindow) -> tuple[list[Outgoing], str | None]:
        """Return a result for each message of the window, and its submission, if there was something to ask."""
        parts = list(self._review.read(self._connection, window))
        rows = pa.Table.from_batches([part for part, _ in parts])
        results = [_result(row, None, reason=row["reason"]) for _, rejects in parts for row in rejects.to_pylist()]
        if not len(rows):
            return results, None
        labeled, submission_id = self._ask(window.key, rows)
        # The reader of the results sees it there: a lane has no checks.
        given_up = self._engine.unsent(submission_id).over_budget or ""
        asked = [_result(row, labeled[row[KEY]], self._target, given_up) for row in rows.to_pylist()]
        return [*results, *asked], submission_id

    def _ask(self, partition: str, rows: pa.Table) -> tuple[dict[str, Any], str]:
        submission = self._engine.plan(self._labeling, map(marked, rows.to_batches()), partition=partition)
        answer_now(self._engine, self._labeling, submission.submission_id)
        labeled = self._engine.labels(self._labeling, submission.submission_id)
        answers = [*labeled.labels.to_pylist(), *labeled.rejects.to_pylist()]
        return {row[KEY]: row for row in answers}, submission.submission_id


def _result(row: Mapping[str, Any], answer: Mapping[str, Any] | None, target: str = "", reason: str = "") -> Outgoing:
    headers = {header["name"]: header["value"] for header in row["kafka_headers"] or ()}
    since = headers.get(SINCE)
    student = json.loads(headers.get(SAID, b"{}"))
    good = answer is not None and answer["llm_outcome"] == Outcome.SUCCEEDED.value
    said = str((answer or {}).get("llm_reason") or "").rstrip(". ")
    cause = headers.get(REASON, b"asked").decode() if good else ". ".join(filter(None, [said, reason]))
    cost = None if answer is None else answer["llm_cost_usd"]
    return outgoing(
        StreamResult(
            message_id=row[KEY],
            label=str(answer[target]) if answer is not None and good else None,
            by="llm" if good else "none",
            reason=cause,
            student=student.get("student"),
            student_label=student.get("student_label"),
            confidence=student.get("confidence"),
            since_ms=int(since) if since else None,
            done_ms=now_ms(),
            cost_usd=None if cost is None else str(cost),
        )
    )
