"""The rows of a gold sample with the texts that people judge, and people's answers so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.forms import LabelForm
from dagster_llm_batch.review.queue import RowAddress, answer_text
from dagster_llm_batch.review.tables import PARTITION, Page, StoredRow

__all__ = ["JUDGMENTS", "SAMPLE_COLUMNS", "with_texts"]

SAMPLE_COLUMNS = {"sample_weight", "sample_rows", "why"}
"""The columns that each gold sample has."""

JUDGMENTS = "judgments"
"""The column of people's answers, each with its author."""


def with_texts(deployment: ReviewedDeployment, page: Page) -> tuple[Page, list[str]]:
    """Return a page of a sample whose rows have their texts and judgments, and the names of these columns."""
    forms = [form for form in deployment.forms_of(page.key) if form.dataset in (deployment.judged or [form.dataset])]
    if not forms or not set(page.columns) >= SAMPLE_COLUMNS:
        return page, []
    texts = _texts(deployment, forms[0], page.rows)
    names = [*dict.fromkeys(name for found in texts.values() for name in found if name not in page.columns), JUDGMENTS]
    rows = []
    for row in page.rows:
        said = deployment.judgments(page.key, row.key, row.partition or None)
        told = "; ".join(f"{each.annotator}: {answer_text(each.answer) if each.answer else each.kind}" for each in said)
        own = texts.get((row.partition, row.key), {})
        rows.append(replace(row, columns={**row, **{name: own.get(name) for name in names}, JUDGMENTS: told or None}))
    return replace(page, rows=tuple(rows)), names


def _texts(
    deployment: ReviewedDeployment, form: LabelForm, rows: Sequence[StoredRow]
) -> Mapping[RowAddress, Mapping[str, Any]]:
    """Return the columns that a dataset keeps of a sample's rows, without labels, by the sample's partition and key.

    A partition that the dataset does not have leaves the key alone, which counts if one partition contains it.
    """
    hidden = form.hidden | {PARTITION, form.key}
    assets = [asset for asset in deployment.assets() if asset.dataset == form.dataset]
    partitions = {partition for asset in assets for partition in asset.partitions}
    keys: dict[str, list[str]] = {}
    for row in rows:
        keys.setdefault(row.partition, []).append(row.key)
    found: dict[RowAddress, Mapping[str, Any]] = {}
    for partition, wanted in keys.items():
        inside = partition if partition in partitions else None
        by_key: dict[str, dict[str, Mapping[str, Any]]] = {}
        for asset in assets:
            if inside is not None and inside not in asset.partitions:
                continue
            try:
                same = deployment.browser.find_all(asset, form.key, wanted, inside)
            except LLMBatchError:
                continue
            for row in same:
                kept = {
                    name: value for name, value in row.items() if name not in hidden and not name.startswith("llm_")
                }
                by_key.setdefault(row.key, {}).setdefault(row.partition, kept)
        found |= {(partition, key): next(iter(each.values())) for key, each in by_key.items() if len(each) == 1}
    return found
