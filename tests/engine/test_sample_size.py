"""Other partitions decide the sample size of a cascade, if that saves money, and its promise holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_cascade_waves import answer, cascade, definition
from workspace import Workspace, tickets

from benchmarks.truth.cascade import populations
from dagster_llm_batch.cascade.sample_size import Samples, choose_sample_size, read_samples
from dagster_llm_batch.core.cascade import Cascade
from dagster_llm_batch.core.thresholds import (
    are_above,
    choose_sample,
    count_allowed,
    find_threshold,
    look_confidence,
    relative_cost,
)
from dagster_llm_batch.files.request_files import CALIBRATION, levels_of
from dagster_llm_batch.metrics.replay import Pool
from dagster_llm_batch.testing.emulator import Emulator

ROWS, CHEAP = 5_000, 0.1

# The confidence of the first look at the rows, so that all looks together keep 95 %.
CONFIDENCE = look_confidence(0.95, 1)


@pytest.fixture
def workspace(tmp_path: Any) -> Iterator[Workspace]:
    with Emulator(answer=answer) as emulator:
        yield Workspace(tmp_path, emulator)


def promise(agreement: float) -> Cascade:
    return Cascade(oracle="openai/gpt-4o", target="topic", agreement=agreement)


def pool_of(name: str, rows: int = 2_000) -> Pool:
    generator = np.random.default_rng(3)
    [(_, scores, wrong)] = [one for one in populations(20_000, generator) if one[0] == name]
    drawn = generator.choice(len(scores), rows, replace=False)
    return Pool(scores[drawn], wrong[drawn] & np.isfinite(scores[drawn]))


def choose(known: Samples, agreement: float = 0.9, rows: int = ROWS) -> tuple[int | None, str]:
    usual = choose_sample(rows, agreement, CONFIDENCE)
    return choose_sample_size(known, rows, usual, 1, promise(agreement), CHEAP)


def test_a_model_that_is_nearly_good_enough_is_sampled_less_and_says_why() -> None:
    value, evidence = choose(Samples(pool_of("good"), 6))
    assert value is not None
    assert value < choose_sample(ROWS, 0.9, CONFIDENCE) / 1.9
    assert f"a sample of {value:,} rows: expected to cost at least " in evidence
    usual = choose_sample(ROWS, 0.9, CONFIDENCE)
    assert f"less than the usual {usual} by each half of 2,000 sampled rows of 6 other partitions" in evidence


def test_where_the_cost_is_flat_the_sample_is_as_usual() -> None:
    value, evidence = choose(Samples(pool_of("calibrated"), 6))
    assert value is None
    assert "a sample of 444 rows, as usual: the cost is flat between" in evidence


@pytest.mark.parametrize("known", [Samples(pool_of("good"), 4), Samples(pool_of("good", 999), 9)], ids=["days", "rows"])
def test_with_too_little_history_the_sample_is_as_usual(known: Samples) -> None:
    value, evidence = choose(known)
    assert (value, "too few to choose by" in evidence) == (None, True)


@pytest.mark.slow
def test_no_size_is_chosen_that_could_accept_nothing_or_that_is_nearly_the_whole_table() -> None:
    for name in ("good", "useless", "one score", "surest but wrong"):
        for rows in (200, 1_000, 100_000):
            value, _ = choose(Samples(pool_of(name), 6), 0.95, rows)
            assert value is None or (59 <= value <= rows / 2)


@pytest.mark.simulation
@pytest.mark.parametrize("agreement", [0.9, 0.95])
def test_a_size_that_was_chosen_by_earlier_partitions_keeps_the_promise_and_costs_no_more(agreement: float) -> None:
    generator = np.random.default_rng(11)
    usual = choose_sample(ROWS, agreement, CONFIDENCE)
    failures: dict[tuple[str, int], int] = {}
    saved: dict[str, float] = {}
    for name, scores, wrong in populations(ROWS, generator):
        chosen = []
        for _ in range(10):
            # Five earlier partitions of the same kind, each with a separate sample.
            drawn = np.concatenate([generator.choice(ROWS, usual, replace=False) for _ in range(5)])
            known = Samples(Pool(scores[drawn], wrong[drawn] & np.isfinite(scores[drawn])), 5)
            chosen.append(choose(known, agreement)[0] or usual)
        costs = dict.fromkeys({usual, *chosen}, 0.0)
        for size in costs:
            allowed = count_allowed(size, ROWS, agreement, CONFIDENCE)
            failures[name, size] = 0
            for _ in range(400):
                digests = generator.integers(0, 1 << 63, ROWS).astype(np.uint64)
                sample = generator.choice(ROWS, size, replace=False)
                place = find_threshold(scores[sample], digests[sample], wrong[sample], allowed)
                accepted = are_above(scores, digests, place)
                costs[size] += relative_cost(CHEAP, 1.0, size, ROWS, float(accepted.mean()))
                failures[name, size] += int((accepted & wrong).sum() > (1 - agreement) * ROWS)
        saved[name] = 1 - float(np.mean([costs[size] for size in chosen])) / costs[usual]
    # Of 400 runs of each 20 may fail as a mean: of so many sizes and kinds of scores some have up to 35 by chance.
    assert max(failures.values()) <= 35, failures
    assert sum(failures.values()) <= 0.05 * 400 * len(failures), failures
    assert min(saved.values()) >= -0.02, saved
    assert saved["good"] >= (0.2 if agreement == 0.9 else -0.01), saved


@pytest.mark.slow
def test_a_plan_takes_the_size_from_other_partitions_and_a_sample_that_is_set_stays(workspace: Workspace) -> None:
    asked = definition(cascade(sample=200, agreement=0.8))
    for number in range(5):
        assert workspace.run(asked, tickets(400, 1_000 * number), partition=f"p{number}").is_settled
    engine = workspace.engine(tune=True)
    by_itself = replace(asked, cascade=cascade(sample="auto", agreement=0.8))
    known = read_samples(engine.deployment, by_itself, "p9")
    assert (len(known.pool.scores), known.partitions) == (1_000, 5)
    # One of six labels is wrong, and its score is the lowest; some replies do not fit.
    assert known.pool.are_wrong.mean() == pytest.approx(1 / 6, abs=0.03)
    assert set(known.pool.scores[known.pool.are_wrong]) == {0.4}
    assert np.isneginf(known.pool.scores).any()
    # The partition's own sample never decides on its size.
    assert read_samples(engine.deployment, by_itself, "p3").partitions == 4
    preview = engine.preview(by_itself, tickets(1_000, 10_000), partition="p9")
    submission = engine.plan(by_itself, tickets(1_000, 10_000), partition="p9")
    assert submission.tuning == preview.tuning
    assert submission.tuning is not None
    levels = levels_of(engine.payloads, submission)
    assert levels is not None
    assert levels.sample == submission.tuning["sample"] < choose_sample(1_000, 0.8, CONFIDENCE)
    assert "less than the usual" in submission.tuning["evidence"][-1]
    engine.submit(by_itself, submission.submission_id)
    status = workspace.finish(by_itself, submission.submission_id)
    assert sum(status.submission.outcomes.values()) == status.submission.requests == 1_000
    # A named size is the user's choice, and tuning is off unless asked for.
    for named, tune in ((asked, True), (by_itself, False)):
        planned = workspace.engine(tune=tune).plan(named, tickets(500, 20_000), partition=f"named {tune}")
        found = levels_of(engine.payloads, planned)
        assert found is not None
        assert found.sample == (200 if tune else choose_sample(500, 0.8, CONFIDENCE))
        assert (planned.tuning or {}).get("sample") is None


@pytest.mark.parametrize("tune", [True, False])
def test_a_damaged_file_of_another_partition_keeps_no_partition_from_its_plan(
    workspace: Workspace, *, tune: bool
) -> None:
    asked = definition(cascade=cascade(sample="auto", agreement=0.8))
    settled = workspace.run(asked, tickets(200), partition="p0").submission
    engine = workspace.engine(tune=tune)
    [stored] = [file.path for file in engine.payloads.files(settled.folder or "") if file.path.endswith(CALIBRATION)]
    (workspace.tmp_path / "payloads" / stored).write_bytes(b"half of wh")
    assert engine.plan(asked, tickets(200, 1_000), partition="p1").requests == 200
