"""The statistics of a stream: pure, no broker; and a student with them, as an asset."""

from __future__ import annotations

from decimal import Decimal

import dagster as dg
import pyarrow as pa
import pytest
from kafka_location import CodeLocation, labeled
from texts import labeling, texts, topic_of

from dagster_llm_batch import HiveParquetIOManager, evaluation_assets, student_assets, student_of
from dagster_llm_batch.streams import KafkaTopic, stream_dashboard_asset
from dagster_llm_batch.streams.drift import DriftWatch
from dagster_llm_batch.streams.results import StreamResult, outgoing
from dagster_llm_batch.streams.stream_stats import compute_stream_stats, latency_png, stats_markdown
from dagster_llm_batch.testing.emulator import Emulator


def test_detectors_are_quiet_on_a_steady_stream_and_see_a_change_of_each_kind():
    def seen(*lines):
        watch = DriftWatch(["a", "b"])
        return [signal for line in lines for signal in watch.see(*line)]

    steady = [("ab"[n % 2], 0.9 + n % 5 / 100, 1.0, 50 + n % 7) for n in range(1_000)]
    assert seen(*steady) == []
    for changed, signal in (
        (("a", 0.92, 1.0, 53), "share of b"),
        (("ab", 0.5, 1.0, 53), "confidence"),
        (("ab", 0.92, 0.2, 53), "known words"),
        (("ab", 0.92, 1.0, 5_000), "length"),
    ):
        after = [(changed[0][n % len(changed[0])], *changed[1:]) for n in range(400)]
        assert signal in seen(*steady, *after)


def result(n, **given):
    usual = {"message_id": f"t-0-{n}", "label": "a", "by": "student", "since_ms": 1_000, "done_ms": 1_000 + n}
    return StreamResult(**{**usual, "cost_usd": "0", **given})


def test_figures_of_a_stream_count_each_message_once_by_its_last_result():
    results = [result(n) for n in range(100)]
    results += [result(0, by="none", label=None, cost_usd=None, done_ms=1_500)]
    results += [
        result(n, by="llm", label="b", student_label="ab"[n % 2], cost_usd="0.002", done_ms=3_000) for n in (1, 2)
    ]
    everything, own, llm, none = compute_stream_stats(results, {"t-0-1": "b", "t-0-5": "b", "gone": "a"})
    assert (everything.n, own.n, llm.n, none.n) == (100, 97, 2, 1)
    assert (llm.share, llm.student_agreement, llm.truth_agreement) == (0.02, 0.5, 1.0)
    assert (everything.n_truth, everything.truth_agreement) == (2, 0.5)
    # Of a sample, the message that is right stands for one, and the wrong one for three.
    [weighted, *_] = compute_stream_stats(results, {"t-0-1": "b", "t-0-5": "b"}, {"t-0-1": 1.0, "t-0-5": 3.0})
    assert (weighted.n_truth, weighted.truth_agreement) == (2, 0.25)
    assert (own.p50_ms, own.p99_ms, llm.p99_ms) == (51, 99, 2000)
    assert everything.cost_usd == Decimal("0.004")
    assert everything.cost_per_1000_usd == Decimal("0.04")
    assert own.per_second == pytest.approx(96 * 1000 / 96)
    assert "| student |" in stats_markdown([everything, own, llm, none])
    assert latency_png(results).startswith(b"\x89PNG")
    assert [one.n for one in compute_stream_stats([], {})] == [0]


def test_a_cost_that_is_not_known_is_null_never_zero():
    [everything, _, _] = compute_stream_stats([result(1), result(2, by="llm", cost_usd=None)], {})
    assert everything.cost_usd is None
    assert "-" in stats_markdown([everything])


def test_the_student_is_an_asset_that_is_evaluated_beside_the_llm_and_the_stream_has_a_dashboard(
    broker, stored, topic, tmp_path
):
    source = KafkaTopic(topic(), None)
    known = texts(150, seed=6)
    broker.produce(source.name, [text for text, _ in known])
    window = f"{source.name}@0.0-150"
    stored.add_dynamic_partitions(source.partitions_def.name, [window])
    labels = labeled(source, keep=["text"])
    learned = student_assets(name="student", labels=labels, text="text", target="topic")

    @dg.asset
    def gold():
        ids = [f"{source.name}-0-{n}" for n in range(150)]
        return pa.table({"message_id": ids, "topic": [name for _, name in known]})

    candidates = {"llm": labels, "student": "student_labels"}
    scores = evaluation_assets(name="scores", gold=gold, candidates=candidates, key="message_id", target="topic")
    results = topic("results", **{"retention.ms": "-1"})
    broker.produce(results, [outgoing(result(99)).value], timestamp=1_700_000_000_000)  # years ago
    said = [outgoing(result(n, message_id=f"{source.name}-0-{n}", label=known[n][1])) for n in range(5)]
    for one in said:
        broker.produce(results, [one.value])
    dashboard = stream_dashboard_asset(name="dashboard", results=results, truth="labels", target="topic")
    assets = [*labels, *learned, gold, *scores, dashboard]
    with Emulator(answer=lambda body, _: {"topic": topic_of(body["messages"][-1]["content"])}) as llm:
        tables = HiveParquetIOManager(root=str(tmp_path / "tables"))
        location = CodeLocation(broker, llm, stored, assets, [], io_manager=tables)
        assert location.run("labels_batch", partition=window).success
        llm.settle()
        assert location.run("labels", "labels_rejects", partition=window).success
        assert location.run("student", "student_labels", "gold").success
        assert location.run("scores", "scores_per_class", "dashboard").success
    loaded = student_of(location.load("student"))
    assert (loaded.rows, loaded.code_version) == (150, labeling().code_version)
    measured = {row["candidate"]: row for row in location.load("scores").to_pylist()}
    assert measured["llm"]["accuracy"] == 1
    assert measured["student"]["accuracy"] > 0.9
    assert (measured["student"]["n_labeled"], measured["student"]["cost_usd"]) == (150, 0)
    everything = location.load("dashboard").to_pylist()[0]
    assert (everything["n"], everything["n_truth"], everything["truth_agreement"]) == (5, 5, 1.0)
