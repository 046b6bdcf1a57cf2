"""Results in a topic: each once, whatever is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import polars as pl
import pyarrow as pa
import pytest
from broker import Broker
from confluent_kafka import Producer
from kafka_location import CodeLocation
from producing_process import AT_ONCE, COUNT, main, numbers, work

from dagster_llm_batch.errors import ConfigError, TransientError
from dagster_llm_batch.streams import KafkaTopic, kafka_assets, kafka_sink_asset, stream_dashboard_asset
from dagster_llm_batch.streams.producer import Outgoing, produce_again, produce_once


def process(broker: Broker, topic: str, when: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name("producing_process.py")), broker.address, topic, when]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def values(broker, topic, **how):
    return sorted(int(message.value()) for message in broker.consume(topic, **how))


@pytest.mark.parametrize("when", ["between transactions", "in a transaction", "after the last one"])
def test_a_producer_that_is_killed_and_made_again_leaves_each_message_once(broker, topic, when):
    name = topic(partitions=2)
    assert process(broker, name, when).returncode == -9
    assert main(broker.address, name, "") < COUNT
    assert values(broker, name) == list(range(COUNT))
    assert main(broker.address, name, "") == 0


def test_a_process_that_was_taken_for_dead_is_fenced(broker, topic):
    name = topic()
    connection = broker.resource().connection()

    def zombie():
        yield from (Outgoing(None, b"0") for _ in range(AT_ONCE))
        main(broker.address, name, "")  # another process does the same work meanwhile, to its end
        yield Outgoing(None, b"999")

    with pytest.raises(TransientError, match="Another process produces the same"):
        produce_once(connection, work(name), zombie(), at_once=AT_ONCE)
    assert 999 not in values(broker, name)


def test_a_message_that_is_too_large_is_told_so_also_behind_others(broker, topic):
    linger = {"linger.ms": "1000", "message.max.bytes": "2000"}  # the first still waits when the second is refused
    connection = broker.resource(settings=linger).connection()
    messages = [Outgoing(None, b"0"), Outgoing(None, b"0" * 5_000)]
    with pytest.raises(ConfigError, match="MSG_SIZE_TOO_LARGE"):
        produce_once(connection, work(topic()), messages)


def test_another_version_is_produced_as_a_whole(broker, topic):
    name = topic()
    assert main(broker.address, name, "") == COUNT
    connection = broker.resource().connection()
    assert produce_once(connection, work(name, "v2"), numbers("")) == COUNT
    assert values(broker, name) == sorted([*range(COUNT), *range(COUNT)])


def test_a_broker_that_is_killed_in_the_middle_forgets_nothing_that_was_committed(own_broker):
    name = own_broker.topic("out")
    connection = own_broker.resource(timeout_seconds=3.0).connection()

    def killing():
        for n, one in enumerate(numbers("")):
            if n == 2 * AT_ONCE:
                own_broker.kill()
            yield one

    with pytest.raises(TransientError):
        produce_once(connection, work(name), killing(), at_once=AT_ONCE)
    own_broker.start()
    produce_once(own_broker.resource().connection(), work(name), numbers(""), at_once=AT_ONCE)
    assert values(own_broker, name) == list(range(COUNT))


def test_without_transactions_a_repeated_message_is_the_same_message(broker, topic):
    name = topic()
    for _ in range(2):
        assert produce_again(broker.resource().connection(), work(name), numbers("")) == COUNT
    assert values(broker, name) == sorted([*range(COUNT), *range(COUNT)])


def test_labels_are_produced_by_an_asset_once_a_version_also_after_its_run_was_lost(broker, emulator, stored, topic):
    name = topic()
    table = {"rows": pa.table({"id": ["b", "a"], "label": ["x", "y"], "extra": [1, 2]})}

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["p"]))
    def labels():
        return table["rows"]

    sink = kafka_sink_asset(
        name="sink",
        labels=labels,
        topic=name,
        key="id",
        columns=["label"],
        partitions_def=dg.StaticPartitionsDefinition(["p"]),
    )
    location = CodeLocation(broker, emulator, stored, [labels, sink], [])
    assert location.run("labels", "sink", partition="p").success
    first = broker.consume(name)
    assert [(m.key(), json.loads(m.value())) for m in first] == [(b"a", {"label": "y"}), (b"b", {"label": "x"})]
    headers = dict(first[0].headers())
    assert headers["dedup-id"] == b"a:" + headers["llm-version"]
    stored.wipe_assets([dg.AssetKey("sink")])  # as after a kill between the commit and Dagster's note
    table["rows"] = pl.DataFrame(table["rows"].to_pylist()).sort("id").to_arrow()  # another order, the same rows
    assert location.run("sink", partition="p").success
    assert len(broker.consume(name)) == 2
    table["rows"] = pa.table({"id": ["a"], "label": ["z"], "extra": [1]})
    assert location.run("labels", "sink", partition="p").success
    assert [json.loads(m.value())["label"] for m in broker.consume(name)] == ["y", "x", "z"]
    assert location.run("sink", partition="p").success
    assert len(broker.consume(name)) == 3


def test_readers_do_not_wait_for_a_transaction_that_failed(broker, topic):
    name = topic()

    def broken():
        yield from (Outgoing(None, b"1") for _ in range(AT_ONCE))
        raise RuntimeError("the rows")

    with pytest.raises(RuntimeError, match="the rows"):
        produce_once(broker.resource().connection(), work(name), broken(), at_once=2 * AT_ONCE)
    other = Producer(broker.conf)
    other.produce(name, b"5")
    assert other.flush(10) == 0
    assert values(broker, name) == [5]  # or it gives up after 20 s, far below the time-out of a transaction


class _AwayOnce(dg.IOManager):
    """Tables in memory; each of these assets cannot be stored, or `read`, the first time."""

    def __init__(self, *fails: str) -> None:
        self.fails, self.tables = set(fails), {}

    def _answer(self, what: str) -> None:
        if what in self.fails:
            self.fails.remove(what)
            raise OSError("The store is away.")

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        self._answer(context.asset_key.to_user_string())
        self.tables[context.asset_key] = obj

    def load_input(self, context: dg.InputContext) -> object:
        self._answer(f"{context.asset_key.to_user_string()} read")
        return self.tables[context.asset_key]


def test_steps_at_kafka_are_tried_again_as_their_retry_policy_says(broker, emulator, stored, topic):
    source, results = KafkaTopic(topic(), None), topic("results", **{"retention.ms": "-1"})
    broker.produce(source.name, ["one", "two"])
    window = f"{source.name}@0.0-2"
    stored.add_dynamic_partitions(source.partitions_def.name, [window])

    @dg.asset
    def truth():
        return pa.table({"message_id": ["a"], "topic": ["x"]})

    retries = {"retry_policy": dg.RetryPolicy(max_retries=1)}
    target = {"topic": results, "key": "message_id", "columns": ["topic"]}
    assets = [
        truth,
        *kafka_assets(name="messages", topic=source, **retries),
        kafka_sink_asset(name="sink", labels=truth, **target, **retries),
        stream_dashboard_asset(name="board", results=topic("other"), **retries),
    ]
    store = _AwayOnce("messages", "truth read", "board")
    location = CodeLocation(broker, emulator, stored, assets, [], io_manager=store)
    assert location.run("truth").success
    done = [location.run("messages", partition=window), location.run("sink"), location.run("board")]
    assert [result.success for result in done] == [True] * 3
    again = [
        event.step_key for result in done for event in result.all_events if "UP_FOR_RETRY" in event.event_type_value
    ]
    assert again == ["messages", "sink", "board"]
    assert store.fails == set()
    assert len(broker.consume(results)) == 1
