"""A dataset of two days with its evaluation, as tables for the pages, and a sample of its rows to judge."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dagster_llm_batch.metrics import compare, evaluations_to_arrow
from dagster_llm_batch.metrics.failures import failures_to_arrow, find_failures
from dagster_llm_batch.review.forms import LabelForm
from dagster_llm_batch.review.tables import StoredAsset

FORM = LabelForm("tickets", "id", {"properties": {"topic": {"enum": ["bug", "billing"]}}, "required": ["topic"]})
GOLD = ["bug"] * 30 + ["billing"] * 10
LABELS = ["bug"] * 27 + ["billing"] * 3 + ["billing"] * 10
BEFORE = {"llm_batch/accuracy of tickets": 0.9}
MATERIALIZED = datetime(2026, 5, 4, 3, 2, tzinfo=UTC)

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92ef"
    "0000000049454e44ae426082"
)
"""An image of one pixel."""


def store_dataset(folder: Path) -> tuple[Sequence[StoredAsset], StoredAsset]:
    """Write the tables as Parquet. Return the tables of the dataset, and the sample."""
    ids = [f"t{number}" for number in range(40)]
    labels = pa.table({"id": ids, "body": [f"Text <i>{each}" for each in ids], "topic": LABELS})
    gold = pa.table({"id": ids, "topic": GOLD})
    rules = labels.set_column(2, "topic", pa.array(["billing"] * 40)).append_column("confidence", pa.array([0.25] * 40))
    candidates = {"tickets": labels, "rules": rules}
    report = compare(gold, candidates, key="id", targets=["topic"])
    evaluated = {
        "quality": evaluations_to_arrow(report.evaluations),
        "quality_mistakes": report.mistakes,
        "quality_failures": failures_to_arrow(find_failures(report.joined, candidates)),
        "quality_per_class": report.per_class,
    }
    sample = pa.table({"id": ids[:5], "why": ["random"] * 5, "sample_weight": [8.0] * 5, "sample_rows": [40] * 5})
    others = {"sample": sample, "d1": labels.slice(0, 30), "d2": labels.slice(30), "rules": rules}
    rejects = labels.slice(30, 2).select(["id"])
    for name, table in {**evaluated, **others, "rejects": rejects}.items():
        pq.write_table(table, folder / f"{name}.parquet")

    def place(name: str) -> str:
        return str(folder / f"{name}.parquet")

    days = {day: place(day) for day in ("d1", "d2")}
    assets = [
        StoredAsset("shop/tickets", "tickets", "labels", "id", days, at=MATERIALIZED),
        StoredAsset("rules", "rules", "labels", "id", {"": place("rules")}),
        StoredAsset("shop/tickets_rejects", "tickets", "rejects", "id", {"d2": place("rejects")}),
        *(
            StoredAsset(name, role="evaluation", files={"": place(name)}, before=lambda _partition: BEFORE)
            for name in evaluated
        ),
    ]
    return assets, StoredAsset("to_judge", role="evaluation", files={"": place("sample")}, may_grow=True)
