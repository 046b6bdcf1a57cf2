"""The stream layer: a student answers messages as they come, and sends on those it is unsure of, or that have drifted.

    topic ─▶ student ─┬─ sure ─────────────▶ results        in one transaction, with the group's offsets
                      ├─ unsure, drifting ─▶ review         for the real-time lane (`RealTimeLane`), or for the next
                      └─ a change is seen ─▶ drift events   batch (`build_kafka_sensor` over it)

Each message has one result or is sent on once, even if the process is killed and started again; several processes share
the topic's partitions. This layer never calls the LLM, so sure rows do not wait for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.student import Student
from dagster_llm_batch.streams.client import Connection, as_ours, confluent, is_end, kafka_errors
from dagster_llm_batch.streams.consumer import resume, watermarks_in
from dagster_llm_batch.streams.drift import DriftEvent, DriftWatch
from dagster_llm_batch.streams.messages import KEY
from dagster_llm_batch.streams.producer import Outgoing, produce, transaction
from dagster_llm_batch.streams.results import REASON, SAID, SINCE, SOURCE, StreamResult, now_ms, outgoing
from dagster_llm_batch.streams.topic import KafkaTopic
from dagster_llm_batch.streams.windows import positions

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message, TopicPartition

__all__ = ["Counts", "StreamLabeler"]

# Wait for further messages: a larger transaction is cheaper for each of them.
_LINGER_SECONDS = 0.01
_PLACE = (KEY, "kafka_partition", "kafka_offset")


@dataclass
class Counts:
    """Counts of a labeler's work since its start."""

    messages: int = 0
    answered: int = 0
    sent_on: int = 0
    unreadable: int = 0
    lost: int = 0
    drifts: int = 0


@checked
class StreamLabeler:
    """One process of the stream layer.

    Args:
        connection: `KafkaResource(...).connection()`.
        topic: The topic to label.
        results, review, events: Names of topics: for results, for messages to ask the LLM about, and for changes.
        labeling: The definition that the student learned from, as `labeling_of(labels)` gives it.
        text: Column of the message that the student reads.
        students: Returns the student; called again every `refresh_seconds`, so that a newly trained one takes over.
        least_confidence: A message below it goes to the LLM.
        drifting: Number of messages to send on after a detected change. The next student needs them.
        group: Consumer group; processes of the same group share the topic's partitions.
        instance: Name of this process in its group. Started again under its name it takes over at once its former
            partitions, and an earlier process of that name that still runs is fenced. The group waits
            `session.timeout.ms` (10 s here) for a name that does not come back.
        after: Windows (partition keys) that the batch layer labels: if the group has no position yet, it begins after
            them instead of at the first message.
        at_once: Most messages of one transaction.
        refresh_seconds: See `students`.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        topic: KafkaTopic,
        results: str,
        review: str,
        events: str,
        labeling: Labeling,
        text: str,
        students: Callable[[], Student],
        least_confidence: float = 0.8,
        drifting: int = 200,
        group: str | None = None,
        instance: str = "1",
        after: Sequence[str] = (),
        at_once: int = 200,
        refresh_seconds: float = 10.0,
    ) -> None:
        if text not in topic.content.schema.names:
            names = ", ".join(topic.content.schema.names)
            raise ConfigError(f"text={text!r} is no column of topic '{topic.name}'. Its columns: {names}.")
        self.counts = Counts()
        self._connection = connection
        self._topic = topic
        self._results, self._review, self._events = results, review, events
        self._labeling, self._text = labeling, text
        self._students = students
        self._least_confidence = least_confidence
        self._drifting = drifting
        self._group = group or f"{topic.name}-student"
        self._instance = instance
        self._first = positions(topic.name, after)
        self._at_once = at_once
        self._refresh_seconds, self._refreshed = refresh_seconds, float("-inf")
        self._student: Student
        self._watch: DriftWatch
        # Messages that are still sent on, since a change was seen.
        self._left = 0
        self._refresh()

    def _refresh(self) -> None:
        """Take over a newer student. Raises ConfigError for one that learned from another definition."""
        if monotonic() - self._refreshed < self._refresh_seconds:
            return
        self._refreshed = monotonic()
        student = self._students()
        if student.code_version != self._labeling.code_version:
            raise ConfigError(
                f"The student {student.version} learned from labels of another prompt, model or response "
                f"({student.code_version}) than '{self._labeling.asset}' has now ({self._labeling.code_version}): the "
                "stream and the LLM would label by different rules. Label and train again, or restore the definition."
            )
        if not hasattr(self, "_student") or student.version != self._student.version:
            self._student, self._left = student, 0
            self._watch = DriftWatch(student.classes)

    def run(self, until: Callable[[Counts], bool]) -> Counts:
        """Label until `until` returns true; it is called between two transactions, at least twice a second.

        Raises TransientError if the broker is away, or another process has taken over: start again, and it goes on
        after the last transaction. Raises MessagesLostError if retention was quicker and the topic's on_lost is "stop".
        """
        consumer = self._connection.consumer(group_id=self._group, group_instance_id=self._instance)
        # One transactional id for each instance: a process that was thought dead, and goes on, is fenced by its
        # successor.
        producer = self._connection.producer(transactional_id=f"{self._group}-{self._instance}")
        seconds = self._connection.timeout_seconds
        wrong: list[Exception] = []

        def assigned(given: Consumer, partitions: list[TopicPartition]) -> None:
            try:
                given.assign(self._begin(given, partitions))
            except Exception as error:  # noqa: BLE001 - what is raised in a callback is lost
                wrong.append(error)
                given.assign([])

        try:
            with kafka_errors(f"Labeling the topic '{self._topic.name}'"):
                producer.init_transactions(seconds)
                consumer.subscribe([self._topic.name], on_assign=assigned)
                while not until(self.counts):
                    messages = self._consume(consumer)
                    if wrong:
                        raise wrong[0]
                    if messages:
                        self._refresh()
                        self._label(consumer, producer, messages, seconds)
        finally:
            consumer.close()
        return self.counts

    def _begin(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        """Return where to read on: after the group's commits, or the batch layer's windows, or from the beginning."""
        name, seconds = self._topic.name, self._connection.timeout_seconds
        marks = {
            partition.partition: watermarks_in(consumer, name, partition.partition, seconds) for partition in partitions
        }
        stops = self._topic.on_lost == "stop"
        begins, lost = resume(consumer, name, marks, seconds, stops_when_lost=stops, first=self._first)
        self.counts.lost += lost
        return [confluent().TopicPartition(name, number, at) for number, at in begins.items()]

    def _consume(self, consumer: Consumer) -> list[Message]:
        """Return the next messages: the available ones after a short wait for the first."""
        messages = []
        for message in consumer.consume(self._at_once, _LINGER_SECONDS) or consumer.consume(1, 0.2):
            error = message.error()
            if error is None:
                messages.append(message)
            elif not is_end(error):
                raise as_ours(error, f"Labeling the topic '{self._topic.name}'")
        return messages

    def _label(self, consumer: Consumer, producer: Any, messages: Sequence[Message], seconds: float) -> None:
        results, review, events = self._answers(messages)
        # Results, messages to send on, events and the group's offsets are one transaction: a message has one result or
        # is sent on once, whenever the process is killed.
        with transaction(producer, seconds):
            produce(producer, self._results, results)
            produce(producer, self._review, review)
            produce(producer, self._events, events)
            ends = {(message.topic(), message.partition()): (message.offset() or 0) + 1 for message in messages}
            offsets = [confluent().TopicPartition(*place, offset) for place, offset in ends.items()]
            producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), seconds)
        self.counts.messages += len(messages)
        self.counts.answered += len(results)
        self.counts.sent_on += len(review)
        self.counts.drifts += len(events)

    def _answers(self, messages: Sequence[Message]) -> tuple[list[Outgoing], list[Outgoing], list[Outgoing]]:
        readable, rejects = self._topic.content.read(messages)
        by_place = {(message.partition(), message.offset()): message for message in messages}
        results = [
            outgoing(
                StreamResult(
                    message_id=row["message_id"],
                    by="none",
                    reason=row["reason"],
                    since_ms=_ms(by_place[row["kafka_partition"], row["kafka_offset"]]),
                    done_ms=now_ms(),
                )
            )
            for row in rejects.select([*_PLACE, "reason"]).to_pylist()
        ]
        self.counts.unreadable += len(results)
        review: list[Outgoing] = []
        events: list[Outgoing] = []
        rows = readable.select([*_PLACE, self._text]).to_pylist()
        texts = ["" if row[self._text] is None else str(row[self._text]) for row in rows]
        for row, text, answer in zip(rows, texts, self._student.answers(texts), strict=True):
            message = by_place[row["kafka_partition"], row["kafka_offset"]]
            changed = self._watch.see(answer.label, answer.confidence, answer.known, len(text))
            if changed:
                self._left = self._drifting
                events.append(self._event(message, changed))
            reason = "drift" if self._left else "uncertain" if answer.confidence < self._least_confidence else None
            self._left = max(0, self._left - 1)
            result = StreamResult(
                message_id=row["message_id"],
                label=answer.label,
                by="student",
                student=self._student.version,
                student_label=answer.label,
                confidence=round(answer.confidence, 4),
                since_ms=_ms(message),
                done_ms=now_ms(),
                cost_usd="0",
            )
            if reason is None:
                results.append(outgoing(result))
            else:
                review.append(_sent_on(message, result, reason))
        return results, review, events

    def _event(self, message: Message, changed: dict[str, int]) -> Outgoing:
        partition, offset = message.partition() or 0, message.offset() or 0
        event = DriftEvent(
            topic=self._topic.name,
            signals=sorted(changed),
            partition=partition,
            first_offset=max(0, offset + 1 - min(changed.values())),
            offset=offset,
            student=self._student.version,
            seen_ms=now_ms(),
        )
        return Outgoing(None, event.model_dump_json().encode())


def _ms(message: Message) -> int | None:
    kind, milliseconds = message.timestamp()
    return milliseconds if kind else None


def _sent_on(message: Message, result: StreamResult, reason: str) -> Outgoing:
    """Return the message unchanged, with the facts about it in headers."""
    value, key = message.value(), message.key()
    since = str(result.since_ms or "")
    # A message that was sent on before carries our headers already: the new ones replace them.
    headers: list[Any] = [
        header for header in message.headers() or [] if header[0] not in (SOURCE, REASON, SAID, SINCE)
    ]
    headers += [(SOURCE, result.message_id.encode()), (REASON, reason.encode()), (SINCE, since.encode())]
    answer = {"student": result.student, "student_label": result.student_label, "confidence": result.confidence}
    headers.append((SAID, json.dumps(answer).encode()))
    return Outgoing(
        key.encode() if isinstance(key, str) else key,
        value.encode() if isinstance(value, str) else value or b"",
        headers,
    )
