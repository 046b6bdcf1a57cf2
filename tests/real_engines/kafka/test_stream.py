"""The stream layer on a real broker: the student answers, the rest is sent on, and changes are reported; each once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from confluent_kafka import Producer
from kafka_location import CodeLocation, Ticket, labeled
from texts import labeling, strange, student, texts, topic_of

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.errors import BudgetError, ConfigError, InputError, MessagesLostError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.streams import (
    KafkaTopic,
    RealTimeLane,
    StreamLabeler,
    build_drift_sensor,
    build_kafka_sensor,
    kafka_sink_asset,
)
from dagster_llm_batch.streams.client import Connection
from dagster_llm_batch.streams.dashboard import stream_results
from dagster_llm_batch.streams.drift import DriftEvent
from dagster_llm_batch.streams.drift_sensor import SeenEvents, read_events
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, Reply


class Stream:
    """A topic, and the three that the stream layer produces to."""

    def __init__(self, broker, name, partitions=1):
        self.broker, self.name = broker, broker.topic(name, partitions)
        for other in ("results", "review", "events"):
            broker.topic(f"{name}-{other}", 2)
        self.topic = KafkaTopic(name, Ticket)
        self.review = self.topic.sent_on_to(f"{name}-review")

    def produce(self, *lines, partition=0):
        self.broker.produce(self.name, [{"text": one} for one in lines], partition=partition)

    def labeler(self, **changes):
        usual = {
            "topic": self.topic,
            "results": f"{self.name}-results",
            "review": f"{self.name}-review",
            "events": f"{self.name}-events",
            "labeling": labeling(),
            "text": "text",
            "students": student,
        }
        return StreamLabeler(self.broker.resource().connection(), **{**usual, **changes})

    def run(self, messages, **changes):
        return self.labeler(**changes).run(lambda counts: counts.messages >= messages)

    def results(self):
        return stream_results(self.broker.resource().connection(), f"{self.name}-results")

    def sent_on(self):
        """Headers by the id of the message."""
        found = [dict(one.headers()) for one in self.broker.consume(f"{self.name}-review")]
        assert len({one["llm-source"] for one in found}) == len(found)
        return {one["llm-source"].decode(): one for one in found}

    def ids(self, count, partition=0):
        return {f"{self.name}-{partition}-{n}" for n in range(count)}


@pytest.fixture
def stream(broker, topic):
    return Stream(broker, topic("taken") + "-stream")


@pytest.fixture
def llm():
    """Answers by the texts' words, over OpenAI's protocol."""
    with Emulator(answer=lambda body, _: {"topic": topic_of(body["messages"][-1]["content"])}) as running:
        yield running


def test_sure_messages_have_a_result_and_the_others_are_sent_on_with_what_is_known_of_them(stream):
    known = texts(60, seed=2)
    stream.produce(*(text for text, _ in known), *strange(6))
    stream.broker.produce(stream.name, ["no json"])
    counts = stream.run(67)
    results = {one.message_id: one for one in stream.results()}
    sent_on = stream.sent_on()
    assert set(results) | set(sent_on) == stream.ids(67)
    assert not set(results) & set(sent_on)
    assert set(sent_on) >= {f"{stream.name}-0-{n}" for n in range(60, 66)}
    sure = [n for n in range(60) if f"{stream.name}-0-{n}" in results]
    assert len(sure) > 50
    assert all(results[f"{stream.name}-0-{n}"].label == known[n][1] for n in sure)
    assert (results[f"{stream.name}-0-66"].by, counts.unreadable) == ("none", 1)
    assert counts.answered + counts.sent_on == 67
    one = sent_on[f"{stream.name}-0-60"]
    assert one["llm-reason"] == b"uncertain"
    assert set(json.loads(one["llm-student"])) == {"student", "student_label", "confidence"}


def test_a_message_as_long_as_its_topic_allows_is_sent_on_and_one_too_long_for_the_next_topic_is_told(stream):
    producer = Producer({**stream.broker.conf, "message.max.bytes": 2_000_000})
    producer.produce(stream.name, json.dumps({"text": "quantum " * 130_000}))
    assert producer.flush(10) == 0
    assert stream.run(1).sent_on == 1
    narrow = stream.broker.topic(f"{stream.name}-narrow", **{"max.message.bytes": "2000"})
    stream.produce("lagoon " * 1_000)
    with pytest.raises(ConfigError, match=r"Raise max\.message\.bytes of that topic"):
        stream.run(1, review=narrow)
    assert stream.run(1).sent_on == 1, "nothing was passed over"


def test_a_message_that_is_no_result_is_told_with_its_place(stream):
    stream.broker.produce(f"{stream.name}-results", ["no result"])
    with pytest.raises(InputError, match=rf"{stream.name}-results-0-0 is no result of a stream"):
        stream.results()


def test_the_stream_layer_begins_after_the_windows_of_the_batch_layer(stream):
    stream.produce(*(text for text, _ in texts(12)))
    stream.run(5, after=[f"{stream.name}@0.0-4", f"{stream.name}@0.4-7"])
    said = {one.message_id for one in stream.results()} | set(stream.sent_on())
    assert said == stream.ids(12) - stream.ids(7)


def test_messages_with_ids_of_their_own_keep_them_on_every_way(stream):
    for name in ("first", "second"):
        stream.broker.produce(stream.name, [{"text": texts(1)[0][0]}], headers=[("id", name.encode())])
    stream.broker.produce(stream.name, [{"text": strange(1)[0]}], headers=[("id", b"third")])
    stream.broker.produce(stream.name, ["no json"], headers=[("id", b"fourth")])
    own = KafkaTopic(stream.name, Ticket, id_header="id")
    stream.run(4, topic=own)
    assert {one.message_id for one in stream.results()} == {"first", "second", "fourth"}
    assert set(stream.sent_on()) == {"third"}
    messages = stream.broker.consume(stream.review.name)
    assert stream.review.content.read(messages)[0]["message_id"].to_pylist() == ["third"]


@pytest.mark.parametrize("how", ["", "in a transaction"])
def test_a_stream_layer_that_is_killed_and_started_again_says_everything_once(stream, how):
    stream.produce(*(text for text, _ in texts(100, seed=3)))
    command = [sys.executable, str(Path(__file__).with_name("labeler_process.py")), stream.broker.address, stream.name]
    done = subprocess.run([*command, "40", *([how] if how else [])], capture_output=True, timeout=120, check=False)
    assert done.returncode == -9, done.stderr
    stream.labeler(at_once=30).run(lambda _: len(stream.results()) + len(stream.sent_on()) >= 100)
    said = [one.message_id for one in stream.results()]
    assert len(said) == len(set(said))
    assert set(said) | set(stream.sent_on()) == stream.ids(100)


def test_two_processes_share_the_partitions_and_say_everything_once(broker, topic):
    stream = Stream(broker, topic("shared") + "-stream", partitions=2)
    for partition in (0, 1):
        stream.produce(*(text for text, _ in texts(40, seed=partition)), partition=partition)
    both = [stream.labeler(instance=name, at_once=5) for name in ("a", "b")]

    def done(_):
        return len(stream.results()) + len(stream.sent_on()) >= 80

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: one.run(done), both))
    said = [one.message_id for one in stream.results()]
    assert len(said) == len(set(said))
    assert set(said) | set(stream.sent_on()) == stream.ids(40) | stream.ids(40, partition=1)
    assert sum(one.counts.messages for one in both) == 80


def test_a_process_that_comes_goes_and_comes_back_in_the_middle_loses_and_repeats_nothing(broker, topic):
    """Move partitions to another process each time. (This broker waits forever for a name that stays away.)"""
    stream = Stream(broker, topic("moving") + "-stream", partitions=2)
    first, second, again = (stream.labeler(instance=name, at_once=5) for name in ("a", "b", "b"))
    sent, all_sent = [0], threading.Event()

    def produce():
        for partition in (0, 1):
            stream.produce(*(text for text, _ in texts(20, seed=sent[0])), partition=partition)
        sent[0] += 20

    def done(_):
        return all_sent.is_set() and len(stream.results()) + len(stream.sent_on()) >= 2 * sent[0]

    with ThreadPoolExecutor(2) as pool:
        produce()
        stays = pool.submit(first.run, done)
        until = time.monotonic() + 60
        while not first.counts.messages and time.monotonic() < until:
            time.sleep(0.1)
        comes = pool.submit(second.run, lambda counts: counts.messages > 0)
        while not comes.done() and time.monotonic() < until:
            produce()
            time.sleep(0.5)
        all_sent.set()
        comes_back = pool.submit(again.run, done)
        assert stays.result(120).messages + comes.result(120).messages + comes_back.result(120).messages == 2 * sent[0]
    assert second.counts.messages > 0
    said = [one.message_id for one in stream.results()]
    assert len(said) == len(set(said))
    assert set(said) | set(stream.sent_on()) == stream.ids(sent[0]) | stream.ids(sent[0], partition=1)


def test_a_change_of_the_stream_is_told_and_what_follows_goes_to_the_llm(stream):
    plain = [text for text, _ in texts(700, seed=4)]
    stream.produce(*plain, *strange(260))
    counts = stream.run(960, drifting=40)
    assert counts.drifts >= 1
    events = list(
        read_events(stream.broker.resource().connection(), f"{stream.name}-events", SeenEvents()).open.values()
    )
    assert all(700 <= event.offset < 960 for event in events), "no alarm before the change"
    assert events[0].first_offset > 300, "ADWIN's window is coarse: it reaches back before the change"
    assert any("known words" in event.signals or "confidence" in event.signals for event in events)
    reasons = Counter(one["llm-reason"] for one in stream.sent_on().values())
    assert reasons[b"drift"] >= 40


def test_a_seen_change_has_its_windows_labeled_and_no_others(stream, emulator, stored):
    plain = [text for text, _ in texts(700, seed=4)]
    stream.produce(*plain, *strange(260))
    stream.run(960)
    labels = labeled(stream.topic)
    sensor = build_drift_sensor(f"{stream.name}-events", topic=stream.topic, labels=labels, name="drift")
    location = CodeLocation(stream.broker, emulator, stored, labels, [sensor])
    windows = [f"{stream.name}@0.{n}-{n + 240}" for n in range(0, 960, 240)]
    stored.add_dynamic_partitions(f"kafka_{stream.name}", windows)
    ticked = location.tick("drift")
    asked = [request.partition_key for request in ticked.run_requests]
    assert windows[-1] in asked
    assert windows[0] not in asked
    assert location.launch(ticked)[-1].success
    for cursor in (ticked.cursor, None):  # with None, all events are read again
        assert not location.tick("drift", cursor).run_requests
    assert SeenEvents.model_validate_json(ticked.cursor).open == {}


def test_a_change_is_read_once_and_waits_for_its_windows_to_be_made(stream, emulator, stored):
    labels = labeled(stream.topic)
    sensor = build_drift_sensor(f"{stream.name}-events", topic=stream.topic, labels=labels, after=5, name="drift")
    location = CodeLocation(stream.broker, emulator, stored, labels, [sensor])
    place = {"partition": 0, "first_offset": 8, "offset": 12}
    event = DriftEvent(topic=stream.name, signals=["confidence"], student="s", seen_ms=0, **place)
    stream.broker.produce(f"{stream.name}-events", [event.model_dump_json()])
    windows = [f"{stream.name}@0.{n}-{n + 10}" for n in range(0, 40, 10)]
    stored.add_dynamic_partitions(f"kafka_{stream.name}", windows[:1])
    first = location.tick("drift")
    assert [one.partition_key for one in first.run_requests] == windows[:1]
    stream.broker.delete_before(f"{stream.name}-events", 1)
    stored.add_dynamic_partitions(f"kafka_{stream.name}", windows[1:])
    second = location.tick("drift", first.cursor)
    assert windows[1] in [one.partition_key for one in second.run_requests]
    assert not {*windows[2:]} & {one.partition_key for one in second.run_requests}
    third = location.tick("drift", second.cursor)
    assert third.skip_message == "0 changes wait for windows that are not made yet"
    assert SeenEvents.model_validate_json(third.cursor) == SeenEvents(next={0: 1})
    with pytest.raises(Exception, match="is not its own"):
        location.tick("drift", "[]")


def test_what_the_student_is_unsure_of_goes_to_the_next_batch_and_comes_back_as_labels(stream, llm, stored):
    """Use one student, without a lane in real time: the review topic is an ordinary source of the batch layer."""
    lines = [*(text for text, _ in texts(30, seed=5)), *strange(4), "refund quantum lagoon nebula"]
    stream.produce(*lines)
    stream.broker.produce(stream.name, ["no json"])
    stream.run(36, least_confidence=0.9)
    unsure = stream.sent_on()
    labels = labeled(stream.review)
    sink = kafka_sink_asset(
        name="answered",
        labels="labels",
        topic=stream.broker.topic(f"{stream.name}-answered"),
        key="message_id",
        columns=["topic", "llm_request_id", "llm_cost_usd"],
        partitions_def=stream.review.partitions_def,
    )
    windows = build_kafka_sensor(stream.review, target=labels, max_messages=4, max_wait=timedelta(0), name="next_batch")
    location = CodeLocation(stream.broker, llm, stored, [*labels, sink], [windows])
    cursor = None
    for _ in range(2):  # the second time, all windows are known
        ticked = location.tick("next_batch", cursor)
        cursor, keys = ticked.cursor, location.add(ticked)
        assert all(run.success for run in location.launch(ticked))
        llm.settle()
        for key in keys:
            assert location.run("labels", "labels_rejects", "answered", partition=key).success
    came = {one.key().decode(): json.loads(one.value()) for one in stream.broker.consume(f"{stream.name}-answered")}
    assert set(came) == set(unsure) >= {f"{stream.name}-0-{n}" for n in range(30, 34)}
    assert {key: one["topic"] for key, one in came.items()} == {
        key: topic_of(lines[int(key.rpartition("-")[2])]) for key in came
    }
    said = [one.message_id for one in stream.results()]
    assert len(said) > 20
    assert sorted([*said, *came]) == sorted(stream.ids(36)), "each message is answered on one way"
    bodies = [one.body_digest for one in llm.books.executions if one.billed]
    assert len(bodies) == len(set(bodies)) == len(unsure)


def test_a_student_of_another_definition_is_refused_and_a_newer_one_is_taken_over(stream):
    other = labeling(prompt=Prompt(user="Another: {{ text }}"))
    with pytest.raises(ConfigError, match="other prompt, model or response"):
        stream.labeler(labeling=other)
    students = [student(rows=240), student(rows=300)]
    one = stream.labeler(students=lambda: students.pop(0), refresh_seconds=0)
    stream.produce(texts(1)[0][0])
    one.run(lambda counts: counts.messages >= 1)
    assert one._student.rows == 300


def test_what_retention_took_from_the_stream_layer_is_told_or_counted(stream):
    stream.produce(*(text for text, _ in texts(10)))
    stream.run(5, at_once=5)
    stream.produce(*(text for text, _ in texts(10)))
    stream.broker.delete_before(stream.name, 18)
    with pytest.raises(MessagesLostError, match="they have no result"):
        stream.run(1)
    lenient = stream.labeler(topic=KafkaTopic(stream.name, Ticket, on_lost="record"))
    lenient.run(lambda counts: counts.messages >= 2)
    assert 8 <= lenient.counts.lost <= 13


class Killed(BaseException):
    """Die between two statements, like kill -9."""


def engine(llm, folder, **more):
    provider = OpenAIProvider(api_key=DEFAULT_KEY, base_url=llm.openai_base_url)
    ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}")
    return Engine(Deployment({"openai": provider}, ledger, PayloadStore(str(folder / "payloads")), "test", **more))


def real_time(stream, engine, connection=None, **more):
    usual = {"review": stream.review, "results": f"{stream.name}-results", "labeling": labeling(), "target": "topic"}
    return RealTimeLane(connection or stream.broker.resource().connection(), engine=engine, **{**usual, **more})


def test_the_real_time_lane_answers_what_was_sent_on_by_the_requests_of_the_batch(stream, llm, tmp_path):
    stream.produce(*strange(5), "refund invoice lagoon nebula")
    stream.run(6, least_confidence=1.0)
    one = engine(llm, tmp_path)
    real_time(stream, one, at_once=4).run(lambda waiting: not waiting)
    results = {result.message_id: result for result in stream.results()}
    assert set(results) == stream.ids(6)
    assert all(result.by == "llm" and result.reason == "uncertain" for result in results.values())
    said = results[f"{stream.name}-0-5"]
    assert (said.label, float(said.cost_usd) > 0) == ("billing", True)
    assert said.student_label in {"billing", "bug", "how_to"}
    batch = one.plan(labeling(), [{"message_id": "a", "text": "refund invoice lagoon nebula"}], partition="b")
    digests = [execution.body_digest for execution in llm.books.executions]
    one.submit(labeling(), batch.submission_id)
    llm.settle()
    assert [execution.body_digest for execution in llm.books.executions][-1] in digests


class MortalProducer(Producer):
    """A producer whose process is killed before it produces anything, or right after its first commit."""

    def __init__(self, settings, point):
        super().__init__(settings)
        self._point = point

    def produce(self, *arguments, **options):
        if self._point == "asked":
            raise Killed
        super().produce(*arguments, **options)

    def commit_transaction(self, *arguments):
        super().commit_transaction(*arguments)
        raise Killed


class MortalConnection(Connection):
    """A connection whose producers are killed at this point."""

    def __init__(self, like, point):
        super().__init__(like._settings, like.timeout_seconds)
        self._point = point

    def producer(self, **more):
        names = {name.replace("_", "."): value for name, value in more.items()}
        return MortalProducer({"enable.idempotence": True, **self._usual, **self._settings, **names}, self._point)


def kill_at(point, stream, engine, at_once):
    """Run the lane in a process that is killed at this point."""
    mortal = MortalConnection(stream.broker.resource().connection(), point)
    with pytest.raises(Killed):
        real_time(stream, engine, connection=mortal, at_once=at_once).run(lambda waiting: not waiting)


@pytest.mark.parametrize("point", ["asked", "produced"])
def test_a_lane_that_is_killed_and_started_again_pays_once_and_says_everything_once(stream, llm, tmp_path, point):
    stream.produce(*strange(12))
    stream.run(12, least_confidence=1.0)
    one = engine(llm, tmp_path)
    kill_at(point, stream, one, at_once=5)
    real_time(stream, one, at_once=7).run(lambda waiting: not waiting)  # it would cut other windows
    said = [result.message_id for result in stream.results()]
    assert sorted(said) == sorted(stream.ids(12))
    bodies = [execution.body_digest for execution in llm.books.executions]
    assert len(bodies) == len(set(bodies))
    assert not [p for p in one.ledger.submissions.progress("test") if p.submission.asset == "labels/stream"]


def test_a_lane_that_was_killed_pays_once_also_where_retention_took_some_of_its_messages_meanwhile(
    stream, llm, tmp_path
):
    stream.topic = KafkaTopic(stream.name, Ticket, on_lost="record")
    stream.review = stream.topic.sent_on_to(f"{stream.name}-review")
    stream.produce(*strange(12))
    stream.run(12, least_confidence=1.0)
    one = engine(llm, tmp_path)
    kill_at("asked", stream, one, at_once=100)
    waiting = stream.broker.consume(stream.review.name)
    fullest = Counter(message.partition() for message in waiting).most_common(1)[0][0]
    third = [message.offset() for message in waiting if message.partition() == fullest][2]
    stream.broker.delete_before(stream.review.name, third, fullest)
    real_time(stream, one, at_once=100).run(lambda waiting: not waiting)
    said = [result.message_id for result in stream.results() if result.label]
    assert len(said) == len({*said}) == 10
    assert len(llm.books.executions) == 12


def test_messages_that_are_given_up_for_money_say_so_in_their_results(stream, tmp_path):
    stream.produce(*strange(6))
    stream.run(6, least_confidence=1.0)
    reply = Reply(text='{"topic": "billing"}', input_tokens=1_300, output_tokens=50)
    with Emulator(answer=lambda *_: reply) as dear:
        limited = labeling(max_cost_usd="0.012", params={"max_tokens": 50})
        real_time(stream, engine(dear, tmp_path), labeling=limited).run(lambda waiting: not waiting)
    results = stream.results()
    given_up = [result for result in results if result.by == "none"]
    assert 0 < len(given_up) < len(results) == 6
    told = f"{len(given_up)} requests are not sent: max_cost_usd=0.012 has $0.0"
    assert all(told in result.reason and "Raise the limit" in result.reason for result in given_up)


def test_a_budget_leaves_messages_where_they_are(stream, llm, tmp_path):
    stream.produce(*strange(3))
    stream.run(3, least_confidence=1.0)
    with pytest.raises(BudgetError):
        real_time(stream, engine(llm, tmp_path), labeling=labeling(max_cost_usd="0.00000001")).run(lambda w: not w)
    assert stream.results() == []
    assert llm.books.executions == []
