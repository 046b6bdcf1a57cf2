"""A stream layer that dies by kill -9: `python labeler_process.py ADDRESS TOPIC MESSAGES [in a transaction]`."""

from __future__ import annotations

import os
import signal
import sys

from kafka_location import Ticket
from texts import labeling, student

from dagster_llm_batch.streams import KafkaResource, KafkaTopic, StreamLabeler, labeler

QUICK = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "500"}


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(address: str, topic: str, messages: str, how: str = "") -> None:
    one = StreamLabeler(
        KafkaResource(bootstrap_servers=address, timeout_seconds=10, settings=QUICK).connection(),
        topic=KafkaTopic(topic, Ticket),
        results=f"{topic}-results",
        review=f"{topic}-review",
        events=f"{topic}-events",
        labeling=labeling(),
        text="text",
        students=student,
        at_once=20,
    )

    real = labeler.produce

    def produce_and_die(producer, name, outgoing) -> None:  # type: ignore[no-untyped-def]
        real(producer, name, outgoing)
        if name.endswith("-results") and one.counts.messages >= int(messages):
            producer.flush(5)  # they are in the log, but not committed
            die()

    def enough(counts: labeler.Counts) -> bool:
        if counts.messages >= int(messages) and not how:
            die()
        return False

    if how:
        labeler.produce = produce_and_die
    one.run(enough)


if __name__ == "__main__":
    main(*sys.argv[1:])
