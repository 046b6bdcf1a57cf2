"""Produces numbers once, and dies by kill -9 at WHEN: `python producing_process.py ADDRESS TOPIC WHEN`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from dagster_llm_batch.streams import KafkaResource, producer
from dagster_llm_batch.streams.producer import Outgoing, Work, produce_once

COUNT, AT_ONCE = 250, 50


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def numbers(when: str) -> Iterator[Outgoing]:
    """Yield messages. The producer takes them after the commit of a transaction and before the next one begins."""
    for n in range(COUNT):
        if when == "between transactions" and n == 2 * AT_ONCE:
            die()
        yield Outgoing(str(n).encode(), str(n).encode())
    if when == "after the last one":
        die()


def work(topic: str, version: str = "v1") -> Work:
    return Work("numbers:a", topic, version)


def main(address: str, topic: str, when: str) -> int:
    real = producer.produce

    def produce_and_die(producer: Any, topic: str, messages: Sequence[Outgoing]) -> None:
        if messages[0].value == str(3 * AT_ONCE).encode():
            real(producer, topic, messages[:20])
            producer.flush(5)  # they are in the log, but not committed
            die()
        real(producer, topic, messages)

    if when == "in a transaction":
        producer.produce = produce_and_die
    connection = KafkaResource(bootstrap_servers=address, timeout_seconds=10).connection()
    return produce_once(connection, work(topic), numbers(when), at_once=AT_ONCE)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
