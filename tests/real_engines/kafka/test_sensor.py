"""Windows as partitions, from a real broker: each message in one window, and labeled once, whatever is killed when."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import dagster as dg
import pyarrow as pa
import pytest
from kafka_location import CodeLocation, Ticket, labeled

from dagster_llm_batch.errors import ConfigError, InputError, MessagesLostError
from dagster_llm_batch.streams import KafkaTopic, KafkaWindow, build_kafka_sensor, kafka_assets

NOW = timedelta(0)


@pytest.fixture
def make(broker, emulator, stored):
    """Make a code location: the messages' asset, labels of them or straight of the topic, and a sensor named kafka."""

    def with_topic(name, *, on_lost="stop", straight=False, **sensor):
        topic = KafkaTopic(name, Ticket, on_lost=on_lost)
        messages = [] if straight else kafka_assets(name="messages", topic=topic)
        labels = labeled(topic) if straight else labeled(topic, rows="messages", required_resource_keys=None)
        usual = {"name": "kafka", "max_messages": 10, "max_wait": NOW, "target": [*messages, *labels]}
        return CodeLocation(
            broker, emulator, stored, [*messages, *labels], [build_kafka_sensor(topic, **{**usual, **sensor})]
        )

    return with_topic


def tickets(count, start=0):
    return [{"text": f"Where is my invoice {n}?"} for n in range(start, start + count)]


def keys(ticked):
    return [key for request in ticked.dynamic_partitions_requests or () for key in request.partition_keys]


def asked(ticked):
    return [request.partition_key for request in ticked.run_requests or ()]


def land(location, partitions):
    location.emulator.settle()
    return [location.run("labels", "labels_rejects", partition=one) for one in partitions]


def test_every_message_is_labeled_once_and_each_that_cannot_be_read_is_a_reject(make, broker, topic):
    name = topic(partitions=2)
    broker.produce(name, [*tickets(17), "no json"])
    broker.produce(name, tickets(7, 100), partition=1)
    location = make(name)
    ticked = location.tick("kafka")
    windows = location.add(ticked)
    assert windows == asked(ticked) == [f"{name}@0.0-10", f"{name}@0.10-18_1.0-2", f"{name}@1.2-7"]
    assert all(run.success for run in location.launch(ticked))
    assert all(run.success for run in land(location, windows))
    labels = pa.concat_tables([location.load("labels", one) for one in windows])
    assert sorted(labels["message_id"].to_pylist()) == sorted(
        [f"{name}-0-{n}" for n in range(17)] + [f"{name}-1-{n}" for n in range(7)]
    )
    rejects = pa.concat_tables([location.load("messages_rejects", one) for one in windows])
    assert [(row["message_id"], row["kafka_value"]) for row in rejects.to_pylist()] == [(f"{name}-0-17", b"no json")]
    assert sum(one.billed for one in location.emulator.books.executions) == 24
    assert keys(location.tick("kafka", ticked.cursor)) == []


@pytest.mark.parametrize("killed", ["before anything", "after partitions", "after runs"])
def test_a_daemon_that_is_killed_in_a_tick_and_begins_it_again_leaves_no_gap_and_no_overlap(
    make, broker, topic, killed
):
    name = topic()
    broker.produce(name, tickets(14))
    location = make(name, straight=True, max_messages=12)
    first = location.tick("kafka", None)
    if killed != "before anything":
        location.add(first)
    if killed == "after runs":
        location.launch(first)
    broker.produce(name, tickets(9, 50))  # meanwhile
    again = location.tick("kafka", None)  # with the old cursor
    location.add(again)
    location.launch(again)
    windows = [KafkaWindow.parse(one) for one in location.instance.get_dynamic_partitions(f"kafka_{name}")]
    held = sorted(n for one in windows for r in one.ranges for n in range(r.start, r.end))
    assert held == list(range(23))
    assert location.instance.get_materialized_partitions(dg.AssetKey("labels_batch")) == {one.key for one in windows}
    location.emulator.settle()
    asked_for = [one.body_digest for one in location.emulator.books.executions]
    assert len(asked_for) == len(set(asked_for)) == 23


def test_either_windows_or_cursor_is_memory_enough(make, broker, topic):
    name = topic()
    broker.produce(name, tickets(10))
    location = make(name)
    ticked = location.tick("kafka")
    assert location.add(ticked) == [f"{name}@0.0-10"]
    broker.produce(name, tickets(10, 10))
    assert keys(location.tick("kafka", None)) == [f"{name}@0.10-20"]
    location.instance.delete_dynamic_partition(f"kafka_{name}", f"{name}@0.0-10")
    assert keys(location.tick("kafka", ticked.cursor)) == [f"{name}@0.10-20"]
    with pytest.raises(Exception, match="is not its own"):
        location.tick("kafka", "[]")


def test_a_rest_waits_until_its_oldest_message_is_old_enough(make, broker, topic):
    name = topic()
    broker.produce(name, tickets(12))
    patient = make(name, max_wait=timedelta(hours=1))
    assert keys(patient.tick("kafka")) == [f"{name}@0.0-10"]
    waits = make(topic(), max_wait=timedelta(hours=1)).tick("kafka")
    assert waits.skip_message == "nothing new"
    old = int((time.time() - 7200) * 1000)
    other = topic()
    broker.produce(other, tickets(1), timestamp=old)
    broker.produce(other, tickets(2))
    assert keys(make(other, max_wait=timedelta(hours=1)).tick("kafka")) == [f"{other}@0.0-3"]


def test_windows_by_time_end_before_the_last_boundary_and_start_leaves_out_what_is_older(make, broker, topic):
    name = topic()
    now = time.time()
    hour = int(now // 3600 * 3600)
    for hours in (3, 2, 1):
        broker.produce(name, tickets(2), timestamp=int((hour - 3600 * hours + 60) * 1000))
    broker.produce(name, tickets(3), timestamp=int(max(hour, now - 1) * 1000))
    hourly = {"every": timedelta(hours=1), "max_messages": 100}
    assert keys(make(name, **hourly).tick("kafka")) == [f"{name}@0.0-6"]
    later = make(name, **hourly, start=datetime.fromtimestamp(hour - 2 * 3600, UTC))
    assert keys(later.tick("kafka")) == [f"{name}@0.2-6"]


def test_retention_before_a_window_stops_the_sensor_until_somebody_decides(make, broker, topic):
    name = topic()
    broker.produce(name, tickets(10))
    location = make(name)
    ticked = location.tick("kafka")
    location.add(ticked)
    broker.produce(name, tickets(10, 10))
    broker.delete_before(name, 14)
    with pytest.raises(MessagesLostError, match=r"offsets 10 to 13 of partition 0 .*no window holds them"):
        location.tick("kafka", ticked.cursor)
    decided = make(name, on_lost="record")
    after = decided.tick("kafka", ticked.cursor)
    [window] = decided.add(after)
    assert window == f"{name}@0.10-20"
    assert decided.run("messages", "messages_rejects", partition=window).success
    assert decided.load("messages", window)["kafka_offset"].to_pylist() == list(range(14, 20))
    assert decided.load("messages_rejects", window)["offsets"].to_pylist() == [4]


def test_a_window_that_has_landed_is_not_replaced_by_what_retention_left(make, broker, topic):
    name = topic()
    broker.produce(name, tickets(10))
    location = make(name, on_lost="record")
    [window] = location.add(location.tick("kafka"))
    assert location.run("messages", "messages_rejects", partition=window).success
    broker.delete_before(name, 5)
    assert not location.run("messages", "messages_rejects", partition=window).success
    assert len(location.load("messages", window)) == 10


def test_a_topic_that_was_made_anew_is_noticed(make, broker, topic):
    name = topic()
    broker.produce(name, tickets(4))
    location = make(name)
    cursor = json.dumps({name: {"0": 50}})
    with pytest.raises(InputError, match=r"end at offset 50 of partition 0, and it ends at 4 now"):
        location.tick("kafka", cursor)
    with pytest.raises(InputError, match=r"of partition 7, and it is gone"):
        location.tick("kafka", json.dumps({name: {"7": 5}}))


def test_rows_straight_from_the_topic_refuse_a_window_with_what_they_cannot_read(broker, emulator, stored, topic):
    name = topic()
    broker.produce(name, [*tickets(3), "no json"])
    source = KafkaTopic(name, Ticket)
    window = f"{name}@0.0-4"
    stored.add_dynamic_partitions(f"kafka_{name}", [window])
    strict = CodeLocation(broker, emulator, stored, labeled(source), [])
    assert not strict.run("labels_batch", partition=window).success
    assert emulator.books.batches == {} or not emulator.books.batches
    lenient = CodeLocation(broker, emulator, stored, labeled(source, rows=source.rows(unreadable="leave_out")), [])
    assert lenient.run("labels_batch", partition=window).success
    land(lenient, [window])
    assert lenient.load("labels", window)["message_id"].to_pylist() == [f"{name}-0-{n}" for n in range(3)]


def test_a_target_with_other_partitions_is_refused(topic):
    source = KafkaTopic("a")
    with pytest.raises(ConfigError, match=r"partitions_def=topic\.partitions_def"):
        build_kafka_sensor(source, target=kafka_assets(name="b", topic=KafkaTopic("b")))
