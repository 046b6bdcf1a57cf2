# ruff: noqa: INP001 - a script
"""Draws the pictures of docs/images that show evaluations: `.venv/bin/python docs/pictures.py`.

The labels are simulated; the drawing is what the assets show in Dagster's UI.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa

from dagster_llm_batch.evaluation.builder import reduced
from dagster_llm_batch.metrics import (
    DayCost,
    Labels,
    Target,
    adwin_changes,
    agreement_of_pairs,
    agreement_png,
    compare,
    costs_png,
    drift_between,
    drift_png,
    pareto_png,
    reliability_png,
)
from dagster_llm_batch.metrics.estimate_plots import estimates_png
from dagster_llm_batch.metrics.estimates import estimate
from dagster_llm_batch.metrics.sequential_tests import significance_level

CLASSES = np.array(["billing", "bug", "how_to", "refund"])
TOPIC = Target("topic", confidence_column="confidence")
START = date(2026, 1, 1)
rng = np.random.default_rng(7)
gold = pa.table({"id": np.arange(600), "topic": rng.choice(CLASSES, 600, p=[0.4, 0.3, 0.2, 0.1])})


def labeled(right: float, usd: str, hours: float) -> pa.Table:
    """Draw a candidate that is right so often, and says how sure it is."""
    truth = gold["topic"].to_numpy(zero_copy_only=False)
    said = np.where(rng.random(600) < right, truth, rng.choice(CLASSES, 600))
    sure = np.clip(rng.normal(np.where(said == truth, 0.93, 0.75), 0.12), 0.05, 1)
    sent = datetime.combine(START, datetime.min.time())
    return (
        gold.set_column(1, "topic", pa.array(said))
        .append_column("confidence", pa.array(sure))
        .append_column("llm_cost_usd", pa.array([Decimal(usd)] * 600))
        .append_column("llm_submitted_at", pa.array([sent] * 600))
        .append_column("llm_completed_at", pa.array([sent + timedelta(hours=hours)] * 600))
    )


candidates = {
    "large, prompt v2": labeled(0.93, "0.009", 3.1),
    "large, prompt v1": labeled(0.86, "0.011", 2.7),
    "small, prompt v2": labeled(0.84, "0.0006", 1.2),
    "small, prompt v1": labeled(0.72, "0.0005", 1.4),
    "keywords": labeled(0.45, "0", 0.01),
}
report = compare(gold, candidates, key="id", targets=[TOPIC])
tables = {"human": gold, **candidates}
labels = Labels.of(
    TOPIC, {name: (t["id"].combine_chunks(), t["topic"].combine_chunks()) for name, t in tables.items()}, key="id"
)

days = [(START + timedelta(days=i)).isoformat() for i in range(45)]
shares = 30 * [[0.4, 0.3, 0.2, 0.1]] + 15 * [[0.22, 0.22, 0.46, 0.1]]
drawn = [rng.multinomial(400, share).tolist() for share in shares]
counts = {day: dict(zip(CLASSES.tolist(), n, strict=True)) for day, n in zip(days, drawn, strict=True)}
seen = adwin_changes(counts)
drifts = [
    drift_between(
        counts[day],
        [counts[other] for other in days[max(0, i - 7) : i]],
        partition=day,
        candidate="tickets",
        target="topic",
        against=f"{min(i, 7)} days before",
        max_psi=0.25,
        level=significance_level(i),
        earlier=[counts[other] for other in days[max(0, i - 90) : i]],
        adwin_changed=seen[day],
    )
    for i, day in enumerate(days)
]
spent = [
    DayCost(START + timedelta(days=i), dataset, usd, 2 * usd)
    for dataset, mean in (("tickets", 3.2), ("ticket_summaries", 1.1), ("reviews", 0.4))
    for i in range(30)
    for usd in [Decimal(str(round(float(rng.normal(mean, mean / 6)), 4)))]
]
known = gold.take(pa.array(rng.choice(600, 120, replace=False)))
estimates = estimate(known, candidates["small, prompt v2"], key="id", target=TOPIC, candidate_name="small, prompt v2")
PICTURES = {
    "pareto": pareto_png(report.evaluations, "topic"),
    "reliability": reliability_png(report.calibrations[0]),
    "agreement": agreement_png(agreement_of_pairs(labels)),
    "drift": drift_png("tickets", "topic", counts, drifts, max_psi=0.25),
    "costs": costs_png(spent),
    "estimates": estimates_png(estimates),
}

if __name__ == "__main__":
    for name, png in PICTURES.items():
        (Path(__file__).parent / "images" / f"evaluation-{name}.png").write_bytes(reduced(png))
