"""A replay of the emulator with drawn latencies: each submission stores the forecast from the submissions before it.

`benchmarks.truth` checks on simulated distributions that such forecasts hold in nine of ten cases, and in half.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from workspace import Workspace, labeling, tickets

from dagster_llm_batch.advice.end_forecast import EndHistory
from dagster_llm_batch.core.durations import forecast_end
from dagster_llm_batch.testing.emulator import Emulator
from dagster_llm_batch.testing.emulator.lifecycle import ManualClock
from dagster_llm_batch.types import Span

pytestmark = pytest.mark.slow

DAYS = 24
DAY = timedelta(days=1)


class Replay(Workspace):
    """A workspace whose clock is the emulator's."""

    def __init__(self, tmp_path: Path, emulator: Emulator, clock: ManualClock) -> None:
        super().__init__(tmp_path, emulator)
        self.clock = clock

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)


def test_each_submission_is_forecast_from_those_before_it_as_the_emulator_took_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    # A vendor that takes some hours, and twice as long from the sixteenth day on.
    hours = np.minimum(np.exp(rng.normal(np.log(3), 0.6, DAYS)), 10) * np.where(np.arange(DAYS) < 16, 1, 2)
    clock = ManualClock()
    known: list[Span] = []
    with Emulator(clock=clock) as emulator:
        workspace = Replay(tmp_path, emulator, clock)
        engine = workspace.engine()
        definition = labeling()
        for day, taken in enumerate(hours.tolist()):
            began = workspace.now()
            said = forecast_end(known, began)
            submission = engine.plan(definition, tickets(3, start=3 * day), partition=f"day {day}")
            # One batch of the model is not enough: a forecast needs ten batches that have ended.
            took = [
                None if at is None else at - submission.created_at
                for at in (submission.p50_end_at, submission.p90_end_at)
            ]
            assert took == [said.p50, said.p90]
            assert (submission.end_basis or {}).get("ended", 0) == said.ended == min(day, 40)
            engine.submit(definition, submission.submission_id)
            # The vendor reports ends in whole seconds.
            clock.advance(float(round(taken * 3600)))
            emulator.settle()
            status = engine.collect(definition, submission.submission_id)
            while not status.is_settled:
                status = engine.collect(definition, submission.submission_id)
            known.append(Span(began, workspace.now(), has_ended=True, requests=3))
            clock.advance((began + DAY - workspace.now()).total_seconds())
        score = EndHistory(engine.ledger, engine.namespace, workspace.now()).score("ticket_labels")
        ends = [each.p90_end_at for each in engine.ledger.submissions.list_all(engine.namespace)]
    told = [(at, span) for at, span in zip(ends, known, strict=True) if at is not None and at <= workspace.now()]
    assert score.judged_p90 == len(told) >= DAYS - 14
    assert score.held_p90 == sum(span.until is not None and span.until <= at for at, span in told)
    assert score.held_p90 < score.judged_p90  # the step came unforeseen
