"""Produces numbers once, and dies by kill -9 where it is told: `python producing_process.py ADDRESS TOPIC WHEN`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

from dagster_llm_batch.streams import KafkaResource
from dagster_llm_batch.streams.producing import Outgoing, Work, produce_once

COUNT, AT_ONCE = 250, 50


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def numbers(when: str) -> Iterator[Outgoing]:
    for n in range(COUNT):
        if when == "in a transaction" and n == 3 * AT_ONCE + 20:
            die()
        yield Outgoing(str(n).encode(), str(n).encode())


def work(topic: str, version: str = "v1") -> Work:
    return Work("numbers:a", topic, version)


def main(address: str, topic: str, when: str) -> int:
    def after(there: int) -> None:
        if when == "between transactions" and there == 2 * AT_ONCE:
            die()
        if when == "after the last one" and there == COUNT:
            die()

    connection = KafkaResource(bootstrap_servers=address, timeout_seconds=10).connection()
    return produce_once(connection, work(topic), numbers(when), at_once=AT_ONCE, after_each=after)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
