"""Histories of models, on both ledgers: real runs over the emulator, and plans derived from them."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, Literal

import pyarrow as pa
import pytest
import scipy
from ledger_builders import a_shard, a_submission
from pydantic import BaseModel

from dagster_llm_batch.advice.choice import BatchEnds, Chooser
from dagster_llm_batch.advice.labeling_plan import GOLD, End, Wanted
from dagster_llm_batch.advice.model_history import ModelHistory, labeling_in_ledger, read_model_histories
from dagster_llm_batch.core.cascade import Cascade, Rolling
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.states import Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.types import Lane

TOPICS = ("billing", "bug", "how_to")
CHEAP, DEAR = "gpt-4o-mini", "gpt-4o"
ROWS, DAYS = 80, ("2026-01-01", "2026-01-02", "2026-01-03")


class SureLabel(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    confidence: float


def topic_of(model: str, number: int) -> str:
    """Label as the expensive model, mostly right, or the cheap one, wrong for half of the hard rows."""
    wrong = random.Random(f"{model} {number}").random() < {CHEAP: 0.5 if number % 4 == 0 else 0.0, DEAR: 0.02}[model]
    return TOPICS[(number + wrong) % 3]


def answer(body: Any, _url: str) -> Any:
    number = int(re.findall(r"case (\d+)", str(body))[0])
    return {"topic": topic_of(body["model"], number), "confidence": 0.6 if number % 4 == 0 else 0.9}


def definition(**changes: Any) -> Labeling:
    usual: dict[str, Any] = {
        "asset": "cheap_labels",
        "model": f"openai/{CHEAP}",
        "key": "ticket_id",
        "prompt": Prompt(user="{{ body }}"),
        "response": SureLabel,
        "params": {"max_tokens": 50},
    }
    return Labeling(**{**usual, **changes})


DEARER = definition(asset="dear_labels", model=f"openai/{DEAR}")
CASCADE = definition(
    asset="cascaded", cascade=Cascade(oracle=f"openai/{DEAR}", target="topic", agreement=0.9, sample=40)
)


def rows_of(day: str) -> list[dict[str, Any]]:
    first = DAYS.index(day) * ROWS
    return [{"ticket_id": n, "body": f"case {n}"} for n in range(first, first + ROWS)]


def run(engine: Engine, emulator: Emulator, labeling: Labeling, day: str) -> None:
    submission = engine.plan(labeling, rows_of(day), partition=day)
    engine.submit(labeling, submission.submission_id)
    for _ in range(6):
        emulator.settle()
        if engine.advance(labeling, submission.submission_id).is_settled:
            return
    raise AssertionError(f"not settled: {submission.submission_id}")


@pytest.fixture
def deployment(ledger_url, tmp_path) -> Any:
    with Emulator(answer=answer) as emulator:
        provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url, timeout_seconds=5)
        ledger = Ledger(ledger_url)
        made = Deployment({"openai": provider}, ledger, PayloadStore(str(tmp_path / "payloads")), "test")
        engine = Engine(made)
        for day in DAYS:
            for labeling in (definition(), DEARER):
                run(engine, emulator, labeling, day)
        run(engine, emulator, CASCADE, DAYS[0])
        yield made
        ledger.close()


def wanted(**changes: Any) -> Wanted:
    usual: dict[str, Any] = {
        "quality": 0.9,
        "confidence": 0.95,
        "rows": 2_000,
        "target": "topic",
        "score": "confidence",
        "against": GOLD,
        "now": datetime(2026, 2, 1, tzinfo=UTC),
    }
    return Wanted(**{**usual, **changes})


def gold(rows: int = ROWS * len(DAYS)) -> pa.Table:
    numbers = range(rows)
    return pa.table({"row": [str(n) for n in numbers], "topic": [TOPICS[n % 3] for n in numbers]})


def hours(_record: Any, lane: Lane, _requests: int) -> End:
    return End(timedelta(minutes=5) if lane is Lane.REALTIME else timedelta(hours=4), "said so")


def plans(deployment: Deployment, labelings: Any, gold_rows: pa.Table | None = None, **changes: Any) -> Any:
    records = [each for one in labelings for each in read_model_histories(deployment, one, "topic", "confidence")]
    made = Chooser(deployment, records, wanted(**changes), hours, gold_rows)
    found: dict[Any, Any] = {}
    for plan in made.plans():
        # Several cascades differ only in their sample: the cheapest one.
        found.setdefault((plan.record.model, plan.lane, plan.agreement), plan)
    return found


@pytest.mark.slow
def test_records_and_plans_are_what_the_runs_were(deployment):
    # The checks share one deployment, since its runs take longer than the checks.
    check_records(deployment)
    check_figures(deployment)
    check_judgments(deployment)
    # The checks wrote no record.
    assert len(deployment.ledger.submissions.list_all("test")) == 7
    check_lost_files(deployment)


def check_lost_files(deployment):
    for submission in deployment.ledger.submissions.list_all("test", assets=["dear_labels"])[:1]:
        [shard] = deployment.ledger.shards.of_submission(submission.submission_id)
        deployment.payloads.delete(shard.results_path)
    [left] = read_model_histories(deployment, DEARER, "topic", "confidence")
    assert (left.lost, len(left.answers), len(left.runs)) == (1, 2 * ROWS, 3)
    for submission in deployment.ledger.submissions.list_all("test", assets=["dear_labels"]):
        deployment.payloads.delete(submission.manifest)
    [none] = read_model_histories(deployment, DEARER, "topic", "confidence")
    assert (none.lost, none.answers, none.runs) == (3, None, ())
    plan = plans(deployment, (DEARER,), gold())[f"openai/{DEAR}", Lane.BATCH, None]
    assert plan.unknown[0] == f"quality: the files of 3 runs of openai/{DEAR} were pruned, or are damaged"


def check_records(deployment):
    [cheap] = read_model_histories(deployment, definition(), "topic", "confidence")
    assert [run.partition for run in cheap.runs] == list(DAYS)
    assert [(run.rows, run.requests) for run in cheap.runs] == [(ROWS, ROWS)] * 3
    answers = {row["row"]: row for row in cheap.answers.to_pylist()}
    assert {int(key): row["label"] for key, row in answers.items()} == {n: topic_of(CHEAP, n) for n in range(3 * ROWS)}
    assert all(row["is_drawn"] and row["score"] == (0.6 if int(key) % 4 == 0 else 0.9) for key, row in answers.items())

    # Both models of a cascade have a record; only the oracle's sample represents all of its rows.
    own, oracle = read_model_histories(deployment, CASCADE, "topic", "confidence")
    assert (own.model, oracle.model) == (f"openai/{CHEAP}", f"openai/{DEAR}")
    assert len(own.answers) == ROWS
    drawn = [row for row in oracle.answers.to_pylist() if row["is_drawn"]]
    assert len(drawn) == 40
    assert all(row["label"] == topic_of(DEAR, int(row["row"])) for row in drawn)
    assert oracle.runs[0].billed.replies == len(oracle.answers)

    # Runs with another prompt are counted, but are not evidence; assets found only in the ledger have records too.
    [other] = read_model_histories(deployment, definition(prompt=Prompt(user="Label: {{ body }}")), "topic", None)
    assert (other.runs, other.answers, other.otherwise) == ((), None, 3)
    other_model = read_model_histories(deployment, replace(definition(), model="openai/gpt-5"), "topic", None)
    assert [(record.model, len(record.runs)) for record in other_model] == [
        ("openai/gpt-5", 0),
        (f"openai/{CHEAP}", 3),
    ]
    assert labeling_in_ledger(deployment, "cascaded").cascade.oracle == f"openai/{DEAR}"
    assert labeling_in_ledger(deployment, "nothing") is None


def check_figures(deployment):
    both = (definition(), DEARER)
    found = plans(deployment, both, gold())
    quality = found[f"openai/{CHEAP}", Lane.BATCH, None].quality
    right = sum(topic_of(CHEAP, n) == TOPICS[n % 3] for n in range(3 * ROWS))
    # Two models, and a pair at four levels: six intervals that hold together.
    exact = scipy.stats.binomtest(right, 3 * ROWS).proportion_ci(1 - 0.05 / 6)
    assert (quality.value, quality.rows) == (right / (3 * ROWS), 3 * ROWS)
    assert (quality.low, quality.high) == pytest.approx((exact.low, exact.high))
    for model, asset in ((CHEAP, "cheap_labels"), (DEAR, "dear_labels")):
        known = [one for one in deployment.ledger.submissions.list_all("test", assets=[asset]) if one.cost_usd]
        each = sum(one.cost_usd for one in known) / sum(one.rows for one in known)
        cost = found[f"openai/{model}", Lane.BATCH, None].cost
        assert float(cost.expected) == pytest.approx(float(each * 2_000), rel=0.02)
        assert cost.low < cost.expected < cost.high < 2 * cost.expected
        in_real_time = found[f"openai/{model}", Lane.REALTIME, None].cost.expected
        assert float(in_real_time) == pytest.approx(2 * float(cost.expected))

    # A cascade against gold is measured; against the oracle it is promised, and costs less than the oracle.
    measured = found[f"openai/{CHEAP}", Lane.BATCH, 0.95]
    assert quality.value < measured.quality.value
    assert not measured.quality.is_promised
    promised = plans(deployment, both, against=f"openai/{DEAR}")
    cascade = promised[f"openai/{CHEAP}", Lane.BATCH, 0.9]
    assert (cascade.state, cascade.quality.low, cascade.quality.is_promised) == ("feasible", 0.9, True)
    assert cascade.cost.high < promised[f"openai/{DEAR}", Lane.BATCH, None].cost.expected
    assert next(iter(promised.values())) is cascade
    assert "below 0.9" in promised[f"openai/{CHEAP}", Lane.BATCH, None].broken[0]
    # Both of its waves take their time.
    assert cascade.end.p95 == timedelta(hours=8)


def check_judgments(deployment):
    both, alone = (definition(), DEARER), f"openai/{DEAR}"
    found = plans(deployment, both, gold())
    # Plans that break a limit of time or money are dropped, with the reason.
    late = plans(deployment, both, gold(), by=datetime(2026, 2, 1, 5, tzinfo=UTC))
    assert [key for key, plan in late.items() if plan.state == "feasible"] == [
        (alone, Lane.BATCH, None),
        (alone, Lane.REALTIME, None),
    ]
    assert any(
        "1 in 20 ends after 2026-02-01 08:00 UTC" in reason
        for reason in late[f"openai/{CHEAP}", Lane.BATCH, 0.95].broken
    )
    dear = found[alone, Lane.BATCH, None].cost
    poor = plans(deployment, both, gold(), max_usd=(dear.expected + dear.high) / 2)
    assert "it may cost" in poor[alone, Lane.BATCH, None].broken[0]
    assert poor[f"openai/{CHEAP}", Lane.BATCH, None].broken == found[f"openai/{CHEAP}", Lane.BATCH, None].broken

    check_samples_gold_and_deadlines(deployment, both)

    # Unknown quality has no value.
    few = plans(deployment, both, gold(15))[alone, Lane.BATCH, None]
    assert (few.state, few.quality.value, few.quality.low) == ("open", None, None)
    assert few.unknown == ("quality: too few rows: 15 have gold and an answer",)
    nobody = plans(deployment, (replace(definition(), model="openai/gpt-5"),), gold(), max_usd=Decimal(1))
    unasked = nobody["openai/gpt-5", Lane.BATCH, None]
    assert (unasked.cost.expected, unasked.quality.value) == (None, None)
    assert unasked.unknown == (
        "quality: no run of openai/gpt-5 in this ledger",
        "cost: no run of openai/gpt-5 in this ledger",
    )


def check_samples_gold_and_deadlines(deployment, both):
    records = [each for one in both for each in read_model_histories(deployment, one, "topic", "confidence")]

    def cascades(gold_rows=None, gold_asset=None, **changes):
        made = Chooser(deployment, records, wanted(**changes), hours, gold_rows, gold_asset=gold_asset)
        return [plan for plan in made.plans() if plan.oracle is not None]

    # Samples that make a difference are each a plan, the cheapest first.
    several = cascades(against=f"openai/{DEAR}", rows=50_000)
    assert len({plan.sample for plan in several}) == len(several) > 1
    costs = [plan.cost.expected for plan in several]
    assert all(later > earlier * Decimal("1.02") for earlier, later in pairwise(costs))

    # Earlier partitions replace the sample, under a stated assumption; plans that assume less come first.
    *_, rolling = cascades(against=f"openai/{DEAR}", rolls=True)
    assert (rolling.rolling, rolling.sample, rolling.state) == (Rolling(), None, "feasible")
    assert "if values of 'confidence' mean the same as in the partitions before" in rolling.quality.basis
    sampled = cascades(against=f"openai/{DEAR}")
    assert {plan.rolling for plan in sampled} == {None}
    assert rolling.cost.expected < min(plan.cost.expected for plan in sampled)
    assert not [plan for plan in cascades(gold(), rolls=True) if plan.rolling is not None]

    # Against gold, a cascade may be below its oracle by the margin that still reaches the wanted quality.
    [below, *_] = [plan for plan in cascades(gold(), "people", quality=0.85) if plan.within is not None]
    alone = plans(deployment, both, gold(), quality=0.85)[f"openai/{DEAR}", Lane.BATCH, None]
    assert below.within == pytest.approx(alone.quality.low - 0.85, abs=0.001)
    assert below.agreement is None
    assert (below.state, below.quality.is_promised, below.quality.rows) == ("feasible", True, 3 * ROWS)
    assert 0.85 <= below.quality.low < 0.851
    assert f"at most {below.within} below openai/{DEAR}, by gold" in below.quality.basis
    # The model's label is also accepted if the oracle is no better.
    assert below.accepted > 0.5
    assert not [plan for plan in cascades(gold(), None, quality=0.85) if plan.within is not None]
    assert not [plan for plan in cascades(gold(), "people", quality=0.97) if plan.within is not None]
    # A weighted sample does not represent all rows.
    weights = pa.array([1.0 + n % 2 for n in range(3 * ROWS)])
    weighed = gold().append_column("sample_weight", weights).append_column("sample_round", pa.array([1] * 3 * ROWS))
    assert not [plan for plan in cascades(weighed, "people", quality=0.8) if plan.within is not None]

    # If two waves of batches are too late, the second is in real time, from the expected end of the first.
    by = datetime(2026, 2, 1, 5, tzinfo=UTC)
    late, urgent = [
        next(plan for plan in cascades(against=f"openai/{DEAR}", by=by) if plan.lane is lane) for lane in Lane
    ]
    assert (late.state, urgent.state) == ("dropped", "feasible")
    assert urgent.deadline == timedelta(hours=4)
    assert urgent.end.p95 == timedelta(hours=4, minutes=5)
    assert urgent.sample == late.sample
    assert late.cost.expected < urgent.cost.expected < 2 * late.cost.expected
    assert all(plan.lane is Lane.BATCH for plan in cascades(against=f"openai/{DEAR}", by=by + timedelta(days=1)))


def test_an_end_is_told_by_the_batches_of_the_model_of_a_similar_size(ledger_url, clock, tmp_path):
    provider = OpenAIProvider(DEFAULT_KEY, "http://127.0.0.1:9")
    ledger = Ledger(ledger_url, clock=clock)
    deployment = Deployment({"openai": provider}, ledger, PayloadStore(str(tmp_path)), "test", clock=clock)
    owner = deployment.owner(definition())
    record = ModelHistory(definition())

    def end(requests: int, lane: Lane = Lane.BATCH) -> End:
        return BatchEnds(deployment, clock.now)(record, lane, requests)

    def take(name: str, took: timedelta | None) -> None:
        place = {"provider": owner.provider, "account": owner.account, "model": owner.model}
        ledger.submissions.open(
            a_submission(name, namespace="test", fingerprint=name, created_at=clock.now, **place),
            [a_shard(name, name, nonce=name, requests=500, lane=Lane.BATCH, **place)],
        )
        ledger.shards.move(name, Transition.SEND)
        ledger.shards.move(name, Transition.ACCEPTED, batch_id=f"batch-{name}")
        if took is not None:
            clock.now += took
            ledger.shards.move(name, Transition.ENDED)
        clock.now += timedelta(days=1)

    for number in range(9):
        take(f"s{number}", timedelta(hours=3))
    too_few = end(500)
    assert (too_few.p95, too_few.basis) == (
        None,
        f"too few days with batches of openai/{CHEAP} that ended: 9, of 10 that are needed",
    )
    for number in range(9, 15):
        take(f"s{number}", timedelta(hours=3))
    some = end(500)
    assert (some.p95, some.basis) == (
        None,
        (
            f"19 of 20 take longer than is known of 15 batches of openai/{CHEAP} that ended on 15 days; 18 such days "
            "are needed"
        ),
    )
    for number in range(15, 20):
        take(f"s{number}", timedelta(hours=3))
    known = end(500)
    assert known.p95 == timedelta(hours=3)
    assert known.basis == f"by 20 batches of openai/{CHEAP}"
    # The last of several takes longer than the known ones; real time is another lane.
    assert end(1_000_000).p95 is None
    assert "take longer than is known of 20 batches" in end(1_000_000).basis
    assert end(1_000_000).basis.endswith(" such days are needed")
    assert end(500, Lane.REALTIME).p95 is None
    # A running batch counts: the next one may take as long.
    take("runs", None)
    clock.now += timedelta(days=2)
    assert end(500).p95 is None
    assert end(500).basis.endswith("ended on 20 days, and 1 that still run; 24 such days are needed")
    ledger.close()
