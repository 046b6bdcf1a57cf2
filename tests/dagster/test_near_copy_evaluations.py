"""Evaluations of labels that near copies share: each row counts, and a shared answer is one unit.

Each figure is computed again from the delivered labels, with numpy and scipy alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
import scipy
from code_location import DAILY, DAYS, LABELS, CodeLocation, labeled

from dagster_llm_batch import (
    Near,
    Prompt,
    Resend,
    Reuse,
    drift_assets,
    estimate_assets,
    evaluation_assets,
    gold_sample_assets,
)
from dagster_llm_batch.testing.emulator import Emulator

pytestmark = pytest.mark.slow

TOPICS = ("billing", "bug", "how_to")
GROUPS = 60
COPIES = (24, 6, 6)
"""The rows of each group, by its topic: a topic with large groups has most rows, and a third of the groups."""
WORDS = [f"{first}{second}" for first in ("blink", "crane", "dusty", "flour") for second in ("able", "ing", "er", "y")]
GIVEN: dict[str, Any] = {"candidates": [LABELS], "target": "topic"}


def text(number: int, copy: int) -> str:
    chosen = Random(number).choices(WORDS, k=20)
    return f"Message {number} of many: {' '.join(chosen)} {number * 7919} copy {copy}"


def truth(number: int) -> str:
    return TOPICS[number % 3]


def number_in(body: Any) -> tuple[int, int]:
    [found] = set(re.findall(r"Message (\d+) of .* copy (\d+)", str(body)))
    return int(found[0]), int(found[1])


def answer(body: Any, _url: str) -> Any:
    """Answer all copies alike, and wrongly for every sixth message; on the third day, every second copy otherwise."""
    number, copy = number_in(body)
    later = copy % 2 if number >= 2 * GROUPS else 0
    return {"topic": TOPICS[(number + later + (number % 6 == 1)) % 3], "urgency": 3}


def messages(day: int) -> pl.DataFrame:
    numbers = range(day * GROUPS, (day + 1) * GROUPS)
    pairs = [(number, copy) for number in numbers for copy in range(COPIES[number % 3])]
    # Of some texts, three rows are the same.
    pairs += 2 * [(number, copy) for number, copy in pairs if number % 10 == copy % 10 == 3]
    return pl.DataFrame(
        {
            "ticket_id": [f"{number}/{place}" for place, (number, _) in enumerate(pairs)],
            "subject": "One",
            "body": [text(number, copy) for number, copy in pairs],
        }
    )


def right(ids: pl.Series) -> pl.Series:
    return pl.Series([truth(int(one.partition("/")[0])) for one in ids])


@dg.asset
def gold() -> pl.DataFrame:
    """Have the right topic of every fifth row."""
    ids = pl.concat([messages(0), messages(1)])["ticket_id"].gather_every(5)
    return pl.DataFrame({"ticket_id": ids, "topic": right(ids)})


@dg.asset
def sampled_gold(proposals: Any) -> pl.DataFrame:
    """Have the right topic of each proposed row."""
    found = pl.from_arrow(proposals)
    assert isinstance(found, pl.DataFrame)
    return found.with_columns(right(found["ticket_id"]).alias("topic"))


@pytest.fixture(scope="module")
def location() -> Iterator[CodeLocation]:
    """Label three days, of which two pass the audit, and evaluate them."""
    near = Near(text="body", target="topic", similarity=0.7, error=0.05)
    assets = [
        *labeled(
            rows=lambda context: messages(DAYS.index(context.partition_key)),
            partitions_def=DAILY,
            prompt=Prompt(user="{{ subject }}: {{ body }}"),
            resend=Resend(reuse=Reuse(near=near)),
        ),
        gold,
        sampled_gold,
        *evaluation_assets(name="quality", gold=gold, key="ticket_id", **GIVEN),
        *evaluation_assets(name="weighted", gold=sampled_gold, key="ticket_id", **GIVEN),
        *estimate_assets(name="totals", gold=gold, key="ticket_id", **GIVEN),
        *gold_sample_assets(name="proposals", key="ticket_id", sample_size=300, **GIVEN),
        *drift_assets(name="drift", **GIVEN),
    ]
    with Emulator(answer=answer) as emulator, dg.DagsterInstance.ephemeral() as instance:
        # The account decides which rows are drawn. Its usual name has the emulator's port.
        one = CodeLocation(emulator, instance, *assets, openai={"account": "the account"})
        assert all(one.land(partition=day).success for day in DAYS[:2])
        assert one.run("gold", "quality", "totals", "proposals").success
        assert one.run("sampled_gold", "weighted").success
        assert one.land(partition=DAYS[2]).success
        # The second round.
        emulator.settle()
        assert one.collect(partition=DAYS[2]).success
        assert one.run("drift", "drift_shares").success
        yield one


def labels(location: CodeLocation, *days: str) -> pl.DataFrame:
    found = (location.defs.load_asset_value(LABELS, instance=location.instance, partition_key=day) for day in days)
    return pl.concat(found)


def rows_of(location: CodeLocation, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = location.defs.load_asset_value(name, instance=location.instance).to_pylist()
    return found


def judged(location: CodeLocation, name: str) -> pl.DataFrame:
    """Return the labels of the gold rows, with gold."""
    of_people: pl.DataFrame = location.defs.load_asset_value(name, instance=location.instance)
    return labels(location, *DAYS[:2]).join(of_people, on="ticket_id", suffix="_gold")


def units_of(labels: pl.DataFrame) -> Any:
    return labels["llm_request_id"].rank("dense").to_numpy() - 1


def clopper_pearson(hits: float, rows: float) -> tuple[float, float]:
    low, high = scipy.stats.beta.ppf(0.025, hits, rows - hits + 1), scipy.stats.beta.ppf(0.975, hits + 1, rows - hits)
    return float(low), float(high)


def test_two_days_share_answers_and_the_third_does_not(location: CodeLocation) -> None:
    shared = [labels(location, day)["llm_reuse"].eq_missing("near").mean() for day in DAYS[:3]]
    assert min(shared[:2]) > 0.5
    assert shared[2] == 0


def test_accuracy_counts_each_row_and_its_interval_each_shared_answer(location: CodeLocation) -> None:
    rows = judged(location, "gold")
    is_right, units = (rows["topic"] == rows["topic_gold"]).to_numpy(), units_of(rows)
    [row] = rows_of(location, "quality")
    assert row["n_gold"] == len(rows) > row["n_units"] == len(set(units))
    assert row["accuracy"] == pytest.approx(is_right.mean())
    sums = np.bincount(units, is_right - is_right.mean())
    variance = (sums**2).sum() * len(sums) / (len(sums) - 1) / len(rows) ** 2
    # As many independent rows as have the variance of the sums by request.
    effective = is_right.mean() * (1 - is_right.mean()) / variance
    low, high = clopper_pearson(is_right.mean() * effective, effective)
    each = clopper_pearson(float(is_right.sum()), len(rows))
    assert row["accuracy_low"] == pytest.approx(low, abs=0.015)
    assert row["accuracy_high"] == pytest.approx(high, abs=0.015)
    assert row["accuracy_high"] - row["accuracy_low"] > 1.25 * (each[1] - each[0])


def test_estimates_from_some_gold_resample_requests(location: CodeLocation) -> None:
    """Compare with a bootstrap that draws requests with all their rows, less the rows that have gold."""
    rows, all_rows = judged(location, "gold"), labels(location, *DAYS[:2])
    units = units_of(rows)
    sizes, rng = np.bincount(units), np.random.default_rng(1)
    times = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), 4_000)
    left = (1 - len(rows) / len(all_rows)) ** 0.5
    for row in rows_of(location, "totals"):
        of = row["label"] if row["figure"] == "share" else rows["topic"]
        values = (rows["topic_gold"] == of).to_numpy().astype(float)
        means = (times @ np.bincount(units, values)) / (times @ sizes)
        low, high = np.quantile(means, [0.025, 0.975])
        assert row["n_gold"] == len(rows)
        assert row["gold_only"] == pytest.approx(values.mean())
        assert row["gold_only_high"] - row["gold_only_low"] == pytest.approx((high - low) * left, rel=0.15)


def test_gold_that_was_drawn_weighs_rows_and_its_interval_shared_answers(location: CodeLocation) -> None:
    rows, all_rows = judged(location, "sampled_gold"), labels(location, *DAYS[:2])
    is_right, weights, units = (
        (rows["topic"] == rows["topic_gold"]).to_numpy(),
        rows["sample_weight"].to_numpy(),
        units_of(rows),
    )
    [row] = rows_of(location, "weighted")
    assert len(rows) == 300
    assert weights.sum() == pytest.approx(len(all_rows), rel=0.1)
    assert row["n_units"] == len(set(units)) < 300
    assert row["accuracy"] == pytest.approx(np.average(is_right, weights=weights))
    whole = (all_rows["topic"] == right(all_rows["ticket_id"])).mean()
    assert row["accuracy_low"] < whole < row["accuracy_high"]
    residuals = np.bincount(units, weights * (is_right - row["accuracy"]))
    width = 2 * 1.96 * (residuals**2).sum() ** 0.5 / weights.sum()
    alone = 2 * 1.96 * ((weights * (is_right - row["accuracy"])) ** 2).sum() ** 0.5 / weights.sum()
    assert row["accuracy_high"] - row["accuracy_low"] == pytest.approx(width, rel=0.3)
    assert width > 1.25 * alone


def test_shares_and_drift_do_not_depend_on_the_audit(location: CodeLocation) -> None:
    of_days = [labels(location, day) for day in DAYS[:3]]
    shares = {(row["partition"], row["class"]): row["n"] for row in rows_of(location, "drift_shares")}
    counts = [[rows["topic"].eq(topic).sum() for topic in TOPICS] for rows in of_days]
    assert [[shares[day, topic] for topic in TOPICS] for day in DAYS[:3]] == counts
    _, second, third = rows_of(location, "drift")
    assert (second["n"], third["n"]) == (len(of_days[1]), len(of_days[2]))
    # So many independent labels are worth the labels of these days, by the number of labels of each answer.
    sizes = [rows["llm_request_id"].value_counts()["count"].to_numpy() for rows in of_days]
    for drift, days in ((second, ([0], [1])), (third, ([0, 1], [2]))):
        worth = []
        for some in days:
            of_classes = np.sum([counts[day] for day in some], axis=0)
            of_answers = np.concatenate([sizes[day] for day in some])
            worth.append(np.rint(of_classes * of_answers.sum() / (of_answers**2).sum()))
        by_chance = scipy.stats.chi2_contingency(worth, correction=False)
        assert drift["chi2"] == pytest.approx(by_chance.statistic)
        # With so few labels, tables are drawn.
        assert drift["p_chance"] == pytest.approx(by_chance.pvalue, abs=0.03)
