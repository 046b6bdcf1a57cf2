"""Skew checks in a real Dagster: a sample asked in real time over the official SDK and the emulator, once, bounded."""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta

import dagster as dg
import polars as pl
import pyarrow as pa
import pytest
from code_location import DAYS, LABELS, CodeLocation, failure, labeled, tickets

from dagster_llm_batch import AssetRows, AtLeast, Near, Realtime, Resend, Reuse, skew_assets
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics import Target
from dagster_llm_batch.testing.emulator import Emulator, Reply, WireFault
from dagster_llm_batch.testing.emulator.answers import last_user_text

TWO = dg.StaticPartitionsDefinition(DAYS[:2])
N = 30


class Model:
    """Answers by the text; `off` texts get another answer from then on."""

    def __init__(self):
        self.off, self.broken, self.asked = set(), set(), Counter()
        self.is_dear = False

    def __call__(self, body, _endpoint):
        text = last_user_text(body)
        self.asked[text] += 1
        number = int(re.search(r"(\d+)\?", text)[1])
        if number in self.broken:
            return Reply(text="no JSON")
        if self.is_dear:
            return Reply(text='{"topic": "billing", "urgency": 1}', input_tokens=1_400, output_tokens=50)
        return {"topic": "bug" if number in self.off else "billing", "urgency": 1 + (number in self.off)}


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def workspace(model, instance, tmp_path):
    with Emulator(answer=model) as emulator:
        yield SkewWorkspace(emulator, instance, tmp_path)


class SkewWorkspace:
    def __init__(self, emulator, instance, tmp_path):
        self.emulator, self.instance = emulator, instance
        self.tables = {"io_manager": dg.FilesystemIOManager(base_dir=str(tmp_path / "tables"))}
        self.places = {
            "ledger_url": f"sqlite:///{tmp_path}/ledger.sqlite", "payload_root": str(tmp_path / "payloads"),
        }  # fmt: skip

    def location(self, labels, *others, **more):
        usual = {"name": "skew", "candidates": labels, "target": ["topic", "urgency"], "sample_size": 10}
        return CodeLocation(
            self.emulator,
            self.instance,
            *labels,
            *others,
            *skew_assets(**{**usual, **more}),
            resources=dict(self.tables),
            **self.places,
        )

    @property
    def calls(self):
        """Billed answers in real time."""
        return [one for one in self.emulator.books.executions if one.billed and one.batch_id is None]


def rows(_context):
    return tickets(N)


def usual(**changes):
    return labeled(**{"rows": rows, "resend": Resend(invalid_waves=1), **changes})


def check(location, **where):
    return location.run("skew", "skew_sample", **where)


def stored(location, name="skew", partition=None):
    frame = location.defs.load_asset_value(name, instance=location.instance, partition_key=partition)
    return frame.to_dicts() if isinstance(frame, pl.DataFrame) else pa.table(frame).to_pylist()


class TestSkew:
    @pytest.mark.slow
    def test_a_label_whose_row_no_longer_meets_the_condition_is_asked(self, workspace):
        is_open = [True]

        @dg.asset
        def upstream() -> pl.DataFrame:
            return tickets(N).with_columns(is_open=pl.lit(is_open[0]))

        location = workspace.location(usual(rows=AssetRows(asset=upstream, when="is_open")), upstream)
        assert location.run("upstream").success
        assert location.land().success
        is_open[0] = False
        assert location.run("upstream").success
        assert check(location).success is True
        assert [row["n_compared"] for row in stored(location)] == [10, 10]

    @pytest.mark.slow
    def test_a_sample_is_asked_in_real_time_and_compared_with_its_batch_labels(self, workspace, model):
        location = workspace.location(usual(), min_agreement=0.9)
        assert location.land().success
        model.off = set(range(0, N, 2))  # the model has changed since
        result = check(location)
        assert result.success is True
        topic, urgency = stored(location)
        side = stored(location, "skew_sample")
        differ = sum(int(row["ticket_id"][2:]) % 2 == 0 for row in side)
        assert 0 < differ < 10
        assert (topic["n_sampled"], topic["n_compared"], topic["n_same"]) == (10, 10, 10 - differ)
        assert urgency["n_same"] == 10 - differ
        assert [row["llm_same"] for row in side] == [int(row["ticket_id"][2:]) % 2 == 1 for row in side]
        assert {row["topic"] for row in side} == {"billing"}
        assert topic["agreement_high"] < 0.9
        assert location.checks(result) == {(None, "agreement"): False}
        assert len(workspace.calls) == 10

    def test_the_requests_are_those_of_the_batch_byte_for_byte(self, workspace, model):
        location = workspace.location(usual())
        assert location.land().success
        check(location)
        bodies = Counter(one.body_digest for one in workspace.emulator.books.executions)
        assert sorted(bodies.values()) == [1] * (N - 10) + [2] * 10
        assert {row["n_changed"] for row in stored(location)} == {0}

    @pytest.mark.slow
    def test_it_is_paid_once_at_the_price_of_real_time(self, workspace):
        location = workspace.location(usual())
        assert location.land().success
        check(location)
        before = location.materializations("skew_sample")[None].tags["dagster/data_version"]
        shown = location.metadata("skew")
        costs = [row["llm_cost_usd"] for row in stored(location, "skew_sample")]
        labels = {row["ticket_id"]: row for row in stored(location, "ticket_labels")}
        assert shown["llm_batch/cost_usd"] == pytest.approx(float(sum(costs)))
        for row in stored(location, "skew_sample"):
            assert row["llm_cost_usd"] == labels[row["ticket_id"]]["llm_realtime_usd"]
        assert check(location).success
        assert len(workspace.calls) == 10
        assert location.materializations("skew_sample")[None].tags["dagster/data_version"] == before

    def test_what_is_given_up_for_money_fails_the_check_though_the_rest_agrees(self, workspace, model):
        location = workspace.location(usual(), min_agreement=0.5, max_cost_usd="0.02")
        assert location.land().success
        model.is_dear = True
        result = check(location)
        assert 0 < len(workspace.calls) < 10
        [agreement] = result.get_asset_check_evaluations()
        assert not agreement.passed
        assert "Abandoned for money: " in agreement.description
        assert "requests are not sent: max_cost_usd=0.02 has $0.00" in agreement.description

    def test_over_budget_nothing_is_asked(self, workspace):
        location = workspace.location(usual(), max_cost_usd="0.000001")
        assert location.land().success
        assert "exceeds max_cost_usd" in failure(check(location))
        assert not workspace.calls

    @pytest.mark.slow
    def test_a_reply_that_does_not_fit_is_unanswered_and_says_so(self, workspace, model):
        location = workspace.location(usual(), sample_size=None)
        assert location.land().success
        model.broken = {3, 4}
        assert check(location).success
        [topic, _] = stored(location)
        assert (topic["n_unanswered"], topic["n_compared"], topic["agreement"]) == (2, N - 2, 1.0)
        reasons = {row["ticket_id"]: row["llm_reason"] for row in stored(location, "skew_sample") if row["llm_reason"]}
        assert set(reasons) == {"t-3", "t-4"}

    @pytest.mark.slow
    def test_an_answer_that_says_later_is_asked_again(self, workspace):
        location = workspace.location(usual(), sample_size=3, realtime=Realtime(concurrency=1))
        assert location.land().success
        fault = WireFault(kind="status", route="POST /v1/chat/completions", status=503, times=3)
        workspace.emulator.inject(fault)
        assert check(location).success
        assert stored(location)[0]["n_compared"] == 3
        assert workspace.emulator.struck(fault) == 3

    @pytest.mark.slow
    def test_partitions_are_sampled_one_by_one_in_one_run(self, workspace, model):
        location = workspace.location(
            usual(rows=lambda c: tickets(8, c.partition_key), partitions_def=TWO), sample_size=5
        )
        for day in DAYS[:2]:
            assert location.land(partition=day).success
        assert check(location, span=(DAYS[0], DAYS[1])).success
        for day in DAYS[:2]:
            side = stored(location, "skew_sample", day)
            assert len(side) == 5
            assert {row["partition"] for row in side} == {day}
        assert len(workspace.calls) == 10

    @pytest.mark.slow
    def test_a_check_that_fails_surely_can_hold_back_what_is_downstream(self, workspace, model):
        labels = usual()
        location = workspace.location(labels, sample_size=N, min_agreement=0.9, blocking=True)
        assert location.land().success
        model.off = set(range(N))
        result = check(location)
        assert location.checks(result) == {(None, "agreement"): False}
        assert result.success is False

    def test_a_bound_fails_where_the_sample_does_not_show_that_as_many_are_the_same(self, workspace):
        location = workspace.location(usual(), min_agreement=AtLeast(0.9, confidence=0.95))
        assert location.land().success
        result = check(location)
        [verdict] = result.get_asset_check_evaluations()
        assert location.checks(result) == {(None, "agreement"): False}
        # All ten are the same: a share below 0.05 ** (1 / 10) would show that less than once in twenty.
        assert (
            "topic: 1.000 of 10 are the same, surely 0.741 or more; required: at least 0.9, with 0.95"
            in verdict.description
        )

    @pytest.mark.slow
    def test_only_labels_of_batches_are_drawn(self, workspace):
        def half_urgent(_context):
            return tickets(8).with_columns(now=pl.Series([n < 4 for n in range(8)]))

        location = workspace.location(usual(rows=half_urgent, realtime=Realtime(urgent="now")), sample_size=8)
        assert location.land().success
        assert check(location).success
        assert {row["ticket_id"] for row in stored(location, "skew_sample")} == {f"t-{n}" for n in range(4, 8)}

    @pytest.mark.slow
    def test_only_labels_of_their_own_requests_are_drawn_from_near_copies(self, workspace):
        near = Near(text="body", target="topic", similarity=0.5, error=0.5, confidence=0.9, sample=4)
        one_topic = usual(
            rows=lambda _context: tickets(N).with_columns(subject=pl.lit("One")), resend=Resend(reuse=Reuse(near=near))
        )
        location = workspace.location(one_topic)
        assert location.land().success
        found = location.defs.load_asset_value(LABELS, instance=location.instance)
        own = set(found.filter(found["llm_reuse"].is_null())["ticket_id"])
        assert 0 < len(own) < N
        assert check(location).success
        drawn = {row["ticket_id"] for row in stored(location, "skew_sample")}
        assert drawn <= own
        n = min(10, len(own))
        assert [(row["n_sampled"], row["n_changed"], row["n_compared"]) for row in stored(location)] == [(n, 0, n)] * 2
        assert len(workspace.calls) == n


class TestRefusals:
    def test_labels_of_another_definition_are_not_compared(self, workspace):
        location = workspace.location(usual())
        assert location.land().success
        other = workspace.location(usual(params={"max_tokens": 60}))
        assert "were made with another model, parameters" in failure(check(other))
        assert not workspace.calls

    def test_rows_that_make_other_requests_now_are_refused_before_anything_is_paid(self, workspace):
        location = workspace.location(usual())
        assert location.land().success

        def others(_context):
            return tickets(N).with_columns(body=pl.lit("Something else 7?"))

        other = workspace.location(usual(rows=others))
        assert "None of the 10 sampled labels was made from the request that its row makes now" in failure(check(other))
        assert not workspace.calls

    @pytest.mark.slow
    def test_a_few_rows_that_have_changed_are_left_out(self, workspace):
        location = workspace.location(usual(), sample_size=N)
        assert location.land().success

        def some(_context):
            return (
                tickets(N)
                .filter(pl.col("ticket_id") != "t-5")
                .with_columns(
                    body=pl.when(pl.col("ticket_id") == "t-6").then(pl.lit("Other 6?")).otherwise(pl.col("body"))
                )
            )

        other = workspace.location(usual(rows=some), sample_size=N)
        assert check(other).success
        assert [(row["n_changed"], row["n_compared"]) for row in stored(other)] == [(2, N - 2)] * 2

    def test_labels_that_are_not_there_say_what_to_do(self, workspace):
        location = workspace.location(usual())
        assert "materialize" in failure(check(location)).lower()

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"target": "subject"}, "there is no column 'subject'. The columns are topic, urgency."),
            ({"target": []}, "at least one of each"),
            ({"sample_size": 0}, "at least one of each"),
            ({"min_agreement": 95}, "between 0 and 1"),
            ({"min_agreement": AtLeast(0.9, on="labeled")}, "min_agreement takes no on='labeled'"),
            ({"realtime": Realtime(urgent="now")}, "realtime.urgent='now' is not allowed"),
            (
                {"realtime": Realtime(deadline=timedelta(hours=1))},
                "realtime.deadline=datetime.timedelta(seconds=3600) is not",
            ),
            ({"max_cost_usd": "much"}, "no amount of US dollars"),
            ({"candidates": [dg.asset(name="mine")(lambda: None)]}, "not labels of llm_batch_assets"),
        ],
    )
    def test_settings_that_cannot_work_are_refused_at_once(self, wrong, says):
        right = {"name": "skew", "candidates": usual(), "target": Target("topic")}
        with pytest.raises(ConfigError, match=re.escape(says)):
            skew_assets(**{**right, **wrong})
