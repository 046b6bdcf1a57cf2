"""Batch and stream in one definition, on this machine: a real broker, real tweets, and a student model in training.

    tweets (topic) ─▶ windows ─▶ stream_labels_batch ─▶ stream_labels ─┬─▶ student ─┐          the batch layer
    tweet_gold ────────────────────────────────────────────────────────┴─▶ eval     │

    tweets (topic) ─▶ student: sure ─▶ results, unsure or drifting ─▶ review ─▶ LLM, now        the stream layer
                              └─▶ drift events ─▶ windows labeled in a batch ─▶ student again ◀─┘

Real: the broker process (noida-db), the tweets and their human labels, the student, all labels, all latencies. The
VADER lexicon replaces the LLM, behind this package's emulator of OpenAI's protocol. The answers are the lexicon's own,
and the prices per token are typical of a small LLM. This process makes the ticks of sensors, like a daemon.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # its stubs do not export it
from rich.console import Console

from dagster_llm_batch import LLMBatchResource, OpenAIBatchResource, student_of
from dagster_llm_batch.streams import KafkaResource, RealTimeLane, StreamLabeler, labeling_of
from dagster_llm_batch.streams.dashboard import stream_results
from dagster_llm_batch.streams.stream_stats import latency_png
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.text import money_text
from example_project import data, settings, stream_definitions
from example_project.labelers.vader import answering
from example_project.parquet import ParquetIOManager
from example_project.standstill import Patience, StandstillError
from example_project.stream_definitions import EVENTS, RESULTS, REVIEW, TOPIC

__all__ = ["broker", "go", "lexicon", "travel"]

HISTORY, STREAM, OTHER = 1_200, 900, 300
"""Numbers of texts: tweets before the start, tweets in the stream, and sentences of newspapers after them."""
PER_SECOND = 150
_QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
_LIFELINE = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
broker = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
sys.stdin.read()
broker.kill()
"""  # the broker ends with this process, even if it is killed, because the pipe closes
_START_SECONDS, _PATIENCE_SECONDS = 20, 300

Say = Callable[[str], None]


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[str]:
    """Run a real broker process on loopback, and yield its address."""
    import noida_db  # noqa: PLC0415 - for this command alone

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = next(Path(noida_db.__file__).parent.glob("noida-db*"))  # .exe on Windows
    command = [str(program), "start", "--only", "kafka", "--kafka-port", str(port), "--data-dir", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-c", _LIFELINE, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.05)
        else:
            raise StandstillError(f"The broker does not listen on port {port} after {_START_SECONDS} s: {command}")
        yield f"127.0.0.1:{port}"
    finally:
        try:
            process.communicate(timeout=_START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


@contextlib.contextmanager
def lexicon() -> Iterator[Emulator]:
    """Run OpenAI's protocol on loopback, both lanes, with the lexicon's answers."""
    with answering("vader") as answer:

        def reply(body: dict[str, Any], _: str) -> str:
            return str(answer(body)["choices"][0]["message"]["content"])

        with Emulator(answer=reply) as emulator:
            yield emulator


class StreamSetup:
    """Dagster, the topics and the stream layer's processes, for one journey."""

    def __init__(self, address: str, llm: Emulator, folder: Path) -> None:
        self.llm = llm
        self._failed: list[BaseException] = []
        self.kafka = KafkaResource(bootstrap_servers=address)
        self.connection = self.kafka.connection()
        self.batch = LLMBatchResource(
            namespace="stream",
            ledger_url=f"sqlite:///{folder / 'ledger.sqlite'}",
            payload_root=str(folder / "payloads"),
            openai=OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=llm.openai_base_url),
        )
        (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
        self.instance = dg.DagsterInstance.local_temp(str(folder))
        self.resources = {
            "kafka": self.kafka,
            "llm_batch": self.batch,
            "io_manager": ParquetIOManager(folder=str(folder / "tables")),
        }
        self.defs = dg.Definitions(
            assets=stream_definitions.ASSETS, sensors=stream_definitions.SENSORS, resources=self.resources
        )
        self.repository = self.defs.get_repository_def()
        self._producer = Producer({"bootstrap.servers": address, "log_level": 0})
        admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
        topics = [NewTopic(TOPIC, 2, 1), *(NewTopic(name, 1, 1) for name in (RESULTS, REVIEW, EVENTS))]
        for made in admin.create_topics(topics).values():
            made.result(_START_SECONDS)

    def produce(self, texts: pl.DataFrame, per_second: float | None = None) -> None:
        """Send the texts as messages, with the text's id as a header."""
        began = time.monotonic()
        for number, row in enumerate(texts.to_dicts()):
            if per_second is not None:
                time.sleep(max(0.0, began + number / per_second - time.monotonic()))
            value = json.dumps({"text": row["text"]})
            self._producer.produce(TOPIC, value, headers=[("text-id", row["text_id"])], partition=number % 2)
            self._producer.poll(0)
        self._producer.flush(_START_SECONDS)

    def run(self, *names: str, partition: str | None = None) -> None:
        """Materialize the assets, or raise the error of the failed run."""
        dg.materialize(
            [*stream_definitions.ASSETS],
            selection=list(names),
            partition_key=partition,
            instance=self.instance,
            resources=self.resources,
            run_config=_QUIET,
        )

    def tick(self, sensor: str) -> list[str]:
        """Tick a sensor, like the daemon: add the new windows, and return the partitions of the requested runs."""
        with dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            repository_def=self.repository,
            resources=self.resources,
            sensor_name=sensor,
        ) as context:
            ticked = self.repository.get_sensor_def(sensor).evaluate_tick(context)
        for request in ticked.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        return [request.partition_key for request in ticked.run_requests or () if request.partition_key]

    def label(self, windows: Sequence[str]) -> None:
        """Label these windows in batches, from messages to labels."""
        for window in windows:
            self.run("stream_tweets", "stream_tweets_rejects", "stream_labels_batch", partition=window)
        self.llm.settle()  # takes hours elsewhere, where a sensor waits
        for window in windows:
            self.run("stream_labels", "stream_labels_rejects", partition=window)

    def load(self, name: str, partition: str | None = None) -> Any:
        with self.defs.get_asset_value_loader(self.instance) as loader:
            return loader.load_asset_value(dg.AssetKey(name), partition_key=partition)

    @contextlib.contextmanager
    def stream_layer(self, after: Sequence[str]) -> Iterator[StreamLabeler]:
        """Run the student and the real-time lane, each in a thread. In production they are separate processes."""
        done = threading.Event()
        labeling = labeling_of(stream_definitions.labels)
        student = StreamLabeler(
            self.connection,
            topic=stream_definitions.tweets,
            results=RESULTS,
            review=REVIEW,
            events=EVENTS,
            labeling=labeling,
            text="text",
            students=lambda: student_of(self.load("student")),
            least_confidence=0.6,
            after=after,
        )
        lane = RealTimeLane(
            self.connection,
            review=stream_definitions.tweets.sent_on_to(REVIEW),
            results=RESULTS,
            engine=self.batch.engine(),
            labeling=labeling,
            target="label",
        )

        def work(run: Callable[[Callable[[Any], bool]], Any]) -> None:
            try:
                run(lambda _: done.is_set())
            except BaseException as error:  # noqa: BLE001 - told below
                self._failed.append(error)

        threads = [
            threading.Thread(target=work, args=(one.run,), daemon=True, name=type(one).__name__)
            for one in (student, lane)
        ]
        for thread in threads:
            thread.start()
        try:
            yield student
        finally:
            done.set()
            for thread in threads:
                thread.join(_PATIENCE_SECONDS)
        self._raise_failed()
        if stuck := [thread.name for thread in threads if thread.is_alive()]:
            raise StandstillError(f"{' and '.join(stuck)} did not end within {_PATIENCE_SECONDS} s of being asked to.")

    def _raise_failed(self) -> None:
        if self._failed:
            raise self._failed[0]

    def wait_for(self, results: int, say: Say) -> None:
        """Wait until this number of messages have a result. Raises StandstillError if results stop coming."""

        def obstacles() -> str:
            alive = ", ".join(thread.name for thread in threading.enumerate() if thread.is_alive())
            return f"  threads at work: {alive}\n  the LLM's place was asked {len(self.llm.books.executions)} times"

        patience = Patience(obstacles, say, tell_seconds=30, stop_seconds=_PATIENCE_SECONDS)
        told = time.monotonic()
        while (there := len({one.message_id for one in stream_results(self.connection, RESULTS)})) < results:
            self._raise_failed()
            patience.look(there, f"results: {there} of {results} messages have one")
            if time.monotonic() - told > 5:  # noqa: PLR2004 - seconds
                say(f"      {there} of {results} messages have a result")
                told = time.monotonic()
            time.sleep(0.5)


def texts(scale: float = 1.0) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return the texts of the history, of the stream, and after the change."""
    tweets = data.load().sort("rank")
    sizes = [int(one * scale) for one in (HISTORY, STREAM, OTHER)]
    other = data.load("nytEditorialSnippets").sort("rank").head(sizes[2])
    return tweets.head(sizes[0]), tweets.slice(sizes[0], sizes[1]), other


def travel(setup: StreamSetup, say: Say, scale: float = 1.0) -> pl.DataFrame:
    """Run all five steps; return the dashboard's table."""
    history, coming, other = texts(scale)
    say(f"[1/5] {len(history)} tweets are in the topic; their windows are labeled in batches")
    setup.produce(history)
    setup.tick("windows")
    windows = setup.instance.get_dynamic_partitions(stream_definitions.tweets.partitions_def.name or "")
    setup.label(windows)
    say("[2/5] The student learns from the labels, and is measured on what it did not see")
    setup.run("stream_gold", "student", "student_labels")
    setup.run("stream_eval", "stream_eval_per_class")
    for row in setup.load("stream_eval").to_dicts():
        cost = f"cost {money_text(row['cost_usd'])}"
        say(f"      {row['candidate']:<8} accuracy {row['accuracy']:.2f}  kappa {row['kappa']:.2f}  {cost}")
    setup.run("stream_skew", "stream_skew_sample", partition=windows[0])
    [skew] = setup.load("stream_skew", windows[0]).to_dicts()
    say(f"      asked again in real time, {skew['n_same']} of {skew['n_compared']} labels are the same")
    say(f"[3/5] {len(coming)} tweets come, then {len(other)} sentences of newspapers, {PER_SECOND} a second")
    with setup.stream_layer(after=windows) as student:
        setup.produce(coming, PER_SECOND)
        setup.produce(other, PER_SECOND)
        setup.wait_for(len(coming) + len(other), say)
        counts = student.counts
    say(f"      the student answered {counts.answered}, sent on {counts.sent_on}, and saw {counts.drifts} changes")
    setup.tick("windows")
    drifted = setup.tick("drift")
    say(f"[4/5] The changes have {len(drifted)} more windows labeled in a batch; the student learns anew")
    if drifted:
        setup.label(drifted)
        setup.run("student", "student_labels")
    say("[5/5] The dashboard")
    setup.run("stream_dashboard")
    table: pl.DataFrame = setup.load("stream_dashboard")
    return table


def go() -> None:
    """Run the whole journey, and print it."""
    console = Console(highlight=False, soft_wrap=True)
    console.print("Batch and stream in one definition; one to three minutes.")
    with (
        tempfile.TemporaryDirectory() as folder,
        broker(Path(folder, "broker")) as address,
        lexicon() as llm,
    ):
        setup = StreamSetup(address, llm, Path(folder))
        table = travel(setup, console.print)
        with pl.Config(
            tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, tbl_cols=-1, tbl_width_chars=140
        ):
            console.print(
                table.select(
                    *("by", "n", "share", "per_second", "p50_ms", "p99_ms", "student_agreement", "truth_agreement"),
                    pl.col("cost_per_1000_usd").cast(pl.Float64),
                ),
                markup=False,
            )
        picture = settings.HOME / "stream.png"
        settings.HOME.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(latency_png(stream_results(setup.connection, RESULTS)))
        console.print(f"The picture, which is in the dashboard's metadata too: {picture}")
        billed = len(llm.books.executions)
        console.print(f"The LLM's place was asked {billed} times, by batch and in real time; its prices are assumed.")
