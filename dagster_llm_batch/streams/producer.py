"""Rows to a topic, each once, even if the process is killed in the middle and starts again.

    begin ─▶ some rows ─▶ their end, in a consumer group's offset ─▶ commit        (one transaction)

The messages and the mark of their production are one transaction: the mark is an offset that is committed with them, in
a separate group of this work, with a digest of the rows. A process that starts again reads the mark and goes on after
it. The transactional id is the work's name: an earlier process that still runs is fenced, and can no longer commit.
Consumers with `isolation.level=read_committed` see each row once. Brokers drop marks after `offsets.retention.minutes`
(a week, by default): the caller must have recorded the end by then.

If the broker lacks transactions, `produce_again` produces all of it again after a kill; each message then has the same
`dedup-id` header.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from dagster_llm_batch.core.memory import chunks
from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.streams.client import Connection, as_ours, confluent, kafka_errors

if TYPE_CHECKING:
    from confluent_kafka import Producer

__all__ = ["Delivery", "Outgoing", "Work", "flush", "produce", "produce_again", "produce_once", "transaction"]

Delivery = Literal["exactly_once", "at_least_once"]

# The message was not sent, since its transaction was aborted for a reason that another error reports.
_ABORTED = ("_PURGE_QUEUE", "_PURGE_INFLIGHT")
# The mark is an offset that is committed for this partition of the target topic. It counts rows of the work, and is no
# place in the log.
_MARKED_PARTITION = 0


@dataclass(frozen=True)
class Outgoing:
    """One message to produce."""

    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass(frozen=True)
class Work:
    """The work to produce once: `version` is a digest of all its messages, in their order."""

    name: str
    topic: str
    version: str

    @property
    def transactional_id(self) -> str:
        """Kafka's limit is 249 bytes of any text; names of partitions may be longer."""
        digest = hashlib.blake2b(self.name.encode(), digest_size=8).hexdigest()
        return f"{self.name[:200]}-{digest}"


def produce_once(connection: Connection, work: Work, messages: Iterable[Outgoing], *, at_once: int = 5_000) -> int:
    """Produce the missing part of the work; return the number of these messages.

    `messages` are the same, in the same order, at each call with the same version. Raises TransientError if another
    process does the same work, or the broker is away: committed messages stay, and the next call goes on from there.
    """
    client, seconds = confluent(), connection.timeout_seconds
    marker = connection.consumer(group_id=work.transactional_id)
    producer = connection.producer(transactional_id=work.transactional_id)
    produced = 0
    try:
        with kafka_errors(f"Producing {work.name} to topic '{work.topic}'"):
            # This ends an open transaction of an earlier process, and fences that process.
            producer.init_transactions(seconds)
            place = client.TopicPartition(work.topic, _MARKED_PARTITION)
            [mark] = marker.committed([place], timeout=seconds)
            # A mark of another version is of rows that have changed since: all of the present ones are produced.
            done = mark.offset if mark.offset >= 0 and mark.metadata == work.version else 0
            there = done
            for batch in chunks(islice(messages, done, None), at_once):
                there += len(batch)
                reached = client.TopicPartition(work.topic, _MARKED_PARTITION, there, work.version)
                with transaction(producer, seconds):
                    produce(producer, work.topic, batch)
                    producer.send_offsets_to_transaction([reached], marker.consumer_group_metadata(), seconds)
                produced += len(batch)
    finally:
        marker.close()
    return produced


@contextmanager
def transaction(producer: Producer, seconds: float) -> Iterator[None]:
    """Run a block as one transaction. It is aborted after an error: left open, it would hold readers back until it
    times out.
    """
    producer.begin_transaction()
    try:
        yield
        producer.commit_transaction(seconds)
    except BaseException as error:
        try:
            if isinstance(error, confluent().KafkaException):
                # The error of a commit shows only that it failed. Serving the delivery reports raises the reason of the
                # refusal.
                producer.poll(0)
        finally:
            # A producer that is fenced, or whose broker is away, cannot abort: the broker does this on its own.
            with suppress(confluent().KafkaException):
                producer.abort_transaction(5)
        raise


def produce_again(connection: Connection, work: Work, messages: Iterable[Outgoing]) -> int:
    """Produce all of it, idempotently within this process; a next call produces all of it again."""
    producer = connection.producer()
    produced = 0
    with kafka_errors(f"Producing {work.name} to topic '{work.topic}'"):
        for batch in chunks(messages, 5_000):
            produce(producer, work.topic, batch)
            flush(producer, connection.timeout_seconds, work.name)
            produced += len(batch)
    return produced


def flush(producer: Producer, seconds: float, doing: str) -> None:
    """Wait until the broker has all of it, or raise TransientError."""
    left = producer.flush(seconds)
    if left:
        raise TransientError(
            f"{doing}: the broker has not acknowledged {left} messages within {seconds:g} s; try again."
        )


def produce(producer: Producer, topic: str, messages: Sequence[Outgoing]) -> None:
    """Hand messages to the client. Only a commit, or `flush`, confirms that the broker has them."""

    def delivered(error: Any, _: Any) -> None:
        if error is not None and error.name() not in _ABORTED:
            # This is raised in whatever call of the client serves the report.
            raise as_ours(error, f"Producing to topic '{topic}'")

    for message in messages:
        given: dict[str, Any] = {"key": message.key, "headers": list(message.headers), "on_delivery": delivered}
        try:
            producer.produce(topic, message.value, **given)
        except BufferError:
            # the client's queue is full
            producer.flush(30)
            producer.produce(topic, message.value, **given)
        producer.poll(0)
