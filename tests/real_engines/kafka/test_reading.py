"""Windows are read from a real broker: exactly their messages, whatever else is in the log."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest
from broker import Broker
from confluent_kafka import Producer
from pydantic import BaseModel

from dagster_llm_batch.errors import ConfigError, InputError, MessagesLostError, TransientError
from dagster_llm_batch.streams import KafkaTopic, KafkaWindow
from dagster_llm_batch.streams.consumer import WindowReader, watermarks
from dagster_llm_batch.streams.windows import OffsetRange


class Ticket(BaseModel):
    text: str
    urgency: int | None = None


def read(broker, topic, key):
    """Readable rows and rejects of a window."""
    parts = list(topic.read(broker.resource().connection(), KafkaWindow.parse(key)))
    good = pa.Table.from_batches([one for one, _ in parts])
    return good.to_pylist(), pa.Table.from_batches([one for _, one in parts]).to_pylist()


def test_a_window_holds_its_offsets_and_no_other_with_key_headers_time_and_place(broker, topic):
    name = topic(partitions=2, **{"retention.ms": "-1"})
    at = 1_700_000_000_000
    broker.produce(name, [{"text": f"a{n}"} for n in range(8)], key="k", headers=[("h", b"v")], timestamp=at)
    broker.produce(name, [{"text": f"b{n}", "urgency": n} for n in range(8)], partition=1)
    good, bad = read(broker, KafkaTopic(name, Ticket), f"{name}@0.2-5_1.6-8")
    assert sorted((row["message_id"], row["text"]) for row in good) == [
        *((f"{name}-0-{n}", f"a{n}") for n in (2, 3, 4)),
        *((f"{name}-1-{n}", f"b{n}") for n in (6, 7)),
    ]
    first = next(row for row in good if row["kafka_offset"] == 2)
    assert first["kafka_key"] == "k"
    assert first["kafka_headers"] == [{"name": "h", "value": b"v"}]
    assert first["kafka_timestamp"].timestamp() == 1_700_000_000
    assert first["urgency"] is None
    assert bad == []


def test_each_message_that_cannot_be_read_is_a_reject_with_its_bytes_and_the_reason(broker, topic):
    name = topic()
    values = [{"text": "good"}, "no json", b"\xff", None, {"urgency": 1}, {"text": 5}, {"text": "good too"}]
    broker.produce(name, values)
    broker.produce(name, [{"text": "strange key"}], key=b"\xfe")
    good, bad = read(broker, KafkaTopic(name, Ticket), f"{name}@0.0-8")
    assert [row["text"] for row in good] == ["good", "good too"]
    assert [row["kafka_offset"] for row in bad] == [1, 2, 3, 4, 5, 7]
    assert bad[1]["kafka_value"] == b"\xff"
    for row, reason in zip(bad, ["JSON", "not UTF-8", "tombstone", "text", "text", "key is not UTF-8"], strict=True):
        assert reason in row["reason"]


def test_text_and_bytes_are_read_as_they_came(broker, topic):
    name = topic()
    broker.produce(name, ["grüße\u2028x", ""], key=b"\xfe")
    good, bad = read(broker, KafkaTopic(name, key="bytes"), f"{name}@0.0-2")
    assert [(row["text"], row["kafka_key"]) for row in good] == [("grüße\u2028x", b"\xfe"), ("", b"\xfe")]
    good, more = read(broker, KafkaTopic(name, bytes, key="bytes"), f"{name}@0.0-2")
    assert [row["value"] for row in good] == ["grüße\u2028x".encode(), b""]
    assert bad == more == []


def test_aborted_messages_and_markers_are_passed_over_and_an_open_transaction_is_not_in_reach(broker, topic):
    name = topic()
    producer = Producer({**broker.conf, "transactional.id": name})
    producer.init_transactions(10)
    for text, ends in (("a", "commit"), ("b", "abort"), ("c", "commit")):
        producer.begin_transaction()
        producer.produce(name, text)
        producer.flush(10)
        producer.commit_transaction(10) if ends == "commit" else producer.abort_transaction(10)
    producer.begin_transaction()
    producer.produce(name, "open")
    producer.flush(10)
    marks = watermarks(broker.resource().connection(), name)[0]
    assert (marks.begin, marks.end) == (0, 6)  # three messages, three markers; the open one is at 6
    good, _ = read(broker, KafkaTopic(name), f"{name}@0.0-6")
    assert [row["text"] for row in good] == ["a", "c"]
    assert read(broker, KafkaTopic(name), f"{name}@0.2-4") == ([], [])  # only aborted messages
    producer.abort_transaction(10)


def test_what_retention_deleted_stops_the_window_or_is_recorded_never_passed_over(broker, topic):
    name = topic()
    broker.produce(name, [f"m{n}" for n in range(10)])
    broker.delete_before(name, 6)
    with pytest.raises(MessagesLostError, match=r"offsets 4 to 5 of partition 0 .* deleted .* before they were read"):
        read(broker, KafkaTopic(name), f"{name}@0.4-8")
    good, bad = read(broker, KafkaTopic(name, on_lost="record"), f"{name}@0.4-8")
    assert [row["text"] for row in good] == ["m6", "m7"]
    assert [(row["message_id"], row["offsets"]) for row in bad] == [(f"{name}-0-4..5", 2)]
    good, bad = read(broker, KafkaTopic(name, on_lost="record"), f"{name}@0.0-3")
    assert (good, [row["offsets"] for row in bad]) == ([], [3])


def test_messages_with_old_timestamps_which_retention_deletes_at_once_are_told_as_lost(broker, topic):
    name = topic(**{"retention.ms": "86400000"})
    broker.produce(name, ["old", "older"], timestamp=1_700_000_000_000)
    until = time.monotonic() + 30  # the broker looks from time to time
    while not watermarks(broker.resource().connection(), name)[0].begin and time.monotonic() < until:
        time.sleep(0.2)
    broker.produce(name, ["new"])
    good, bad = read(broker, KafkaTopic(name, on_lost="record"), f"{name}@0.0-3")
    assert [row["text"] for row in good] == ["new"]
    assert [row["offsets"] for row in bad] == [2]


def test_offsets_that_compaction_removed_are_passed_over_and_are_not_lost(broker, topic):
    quick = {"min.cleanable.dirty.ratio": "0.01", "segment.ms": "100", "segment.bytes": "1000"}
    name = topic(**{"cleanup.policy": "compact", "max.compaction.lag.ms": "100", **quick})
    for n in range(30):
        broker.produce(name, [f"m{n}"], key=str(n % 3))
    until = time.monotonic() + 60  # the broker looks from time to time
    while len(broker.consume(name)) > 10 and time.monotonic() < until:
        broker.produce(name, ["later"], key="later")
        time.sleep(1)
    assert watermarks(broker.resource().connection(), name)[0].begin == 0
    source = KafkaTopic(name)
    assert read(broker, source, f"{name}@0.0-20") == ([], [])
    good, bad = read(broker, source, f"{name}@0.20-30")
    assert ([row["kafka_offset"] for row in good], bad) == ([27, 28, 29], [])
    assert [row["text"] for row in good] == ["m27", "m28", "m29"]


def test_retention_that_comes_between_looking_and_reading_is_noticed(broker, topic):
    name = topic()
    broker.produce(name, [f"m{n}" for n in range(20)])
    connection, window = broker.resource().connection(), KafkaWindow.parse(f"{name}@0.2-15")
    for stops in (False, True):
        reader = WindowReader(connection, window, stops_when_lost=stops)
        consumer = connection.consumer()
        reader._begin(consumer, window.ranges[0])
        broker.delete_before(name, 9 + stops)
        reader._assign(consumer)
        if stops:
            with pytest.raises(MessagesLostError, match="offsets 9 to 9"):
                list(reader._read(consumer))
        else:
            found = [message.offset() for some in reader._read(consumer) for message in some]
            assert (found, reader.lost) == (list(range(9, 15)), [OffsetRange(0, 2, 9)])
            window = KafkaWindow.parse(f"{name}@0.9-15")
        consumer.close()


def test_a_topic_that_ends_before_the_window_is_not_the_one_it_was_made_for(broker, topic):
    name = topic()
    broker.produce(name, ["a"])
    with pytest.raises(InputError, match=r"ends at offset 1 now, before the end of the window"):
        read(broker, KafkaTopic(name), f"{name}@0.0-2")


def test_an_unknown_topic_and_a_broker_that_is_away_are_told_apart(broker):
    with pytest.raises(ConfigError, match="Is the topic's name right"):
        watermarks(broker.resource().connection(), "nowhere")


def test_secrets_of_the_cluster_are_in_no_error(broker):
    secret = "s3cr3t-of-kafka"
    from dagster_llm_batch.streams import KafkaResource

    resource = KafkaResource(
        bootstrap_servers="127.0.0.1:9",
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        username="me",
        password=secret,
        timeout_seconds=1.0,
    )
    with pytest.raises(TransientError) as caught:
        watermarks(resource.connection(), "any")
    assert secret not in f"{caught.value!r} {caught.value.__cause__!r} {resource.connection()!r}"


def test_a_window_is_read_the_same_after_the_broker_was_killed(own_broker: Broker):
    name = own_broker.topic("kept", 2)
    own_broker.produce(name, [f"m{n}" for n in range(50)])
    key = f"{name}@0.10-40"
    before = read(own_broker, KafkaTopic(name), key)
    own_broker.kill()
    own_broker.start()
    assert read(own_broker, KafkaTopic(name), key) == before
    assert len(before[0]) == 30
