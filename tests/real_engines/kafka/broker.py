"""A real broker on loopback, in a separate process: noida-db, which keeps topics, groups and transactions on disk.

It writes to disk about once a second. `kill` waits for this, since a broker keeps the messages that it acknowledged.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import noida_db
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from dagster_llm_batch.streams import KafkaResource

PROGRAM = Path(noida_db.__file__).parent / "noida-db"
QUIET = {"log_level": 0}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Broker:
    """One broker. A `start` after `kill` continues with its old data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def conf(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.address, **QUIET}

    def resource(self, **more: Any) -> KafkaResource:
        quick = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "500"}
        return KafkaResource(bootstrap_servers=self.address, **{"timeout_seconds": 10.0, "settings": quick, **more})

    def start(self) -> Broker:
        command = [str(PROGRAM), "start", "--only", "kafka", "--kafka-port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, "--data-dir", str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
            except OSError:
                time.sleep(0.05)
            else:
                return self
        raise RuntimeError(f"noida-db does not listen on {self.address}")

    def kill(self) -> None:
        """Kill with SIGKILL, after its next write to disk."""
        assert self._process is not None
        file, now = self.folder / "kafka.json", time.time()
        until = time.monotonic() + 10
        producer = Producer(self.conf)
        producer.produce("written", b"x")  # makes it write
        producer.flush(5)
        while time.monotonic() < until and not (file.exists() and file.stat().st_mtime > now):
            time.sleep(0.05)
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def topic(self, name: str, partitions: int = 1, **config: str) -> str:
        admin = AdminClient(self.conf)
        [made] = admin.create_topics([NewTopic(name, partitions, 1, config=config)]).values()
        made.result(10)
        return name

    def produce(self, topic: str, values: Iterable[Any], partition: int = 0, **more: Any) -> None:
        """Produce texts and bytes unchanged, None as a tombstone, and everything else as JSON."""
        producer = Producer(self.conf)
        for value in values:
            plain = value if value is None or isinstance(value, str | bytes) else json.dumps(value)
            producer.produce(topic, plain, partition=partition, **more)
        assert producer.flush(10) == 0

    def delete_before(self, topic: str, offset: int, partition: int = 0) -> None:
        """Delete records like retention."""
        admin = AdminClient(self.conf)
        [done] = admin.delete_records([TopicPartition(topic, partition, offset)]).values()
        done.result(10)

    def consume(self, topic: str, isolation: str = "read_committed") -> list[Any]:
        """Return all messages that a consumer can read now, from the beginning to the end."""
        settings = {"group.id": "look", "enable.partition.eof": True, "isolation.level": isolation}
        consumer = Consumer({**self.conf, **settings, "auto.offset.reset": "earliest", "enable.auto.commit": False})
        numbers = set(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
        found, until = [], time.monotonic() + 20
        while numbers and time.monotonic() < until:
            for message in consumer.consume(500, 0.5):
                if message.error() is None:
                    found.append(message)
                else:
                    numbers.discard(message.partition())
        consumer.close()
        assert not numbers
        return found
