"""The code location of `test_live_chain.py`: the kinds of three days' texts, and the totals of those that are invoices.

The provider is at OPENAI_BASE_URL, and the tables are below TABLES.
"""

import os
from typing import Literal

import dagster as dg
import polars as pl
from pydantic import BaseModel

from dagster_llm_batch import (
    AssetRows,
    HiveParquetIOManager,
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    build_llm_batch_sensor,
    llm_batch_assets,
    on_labels_ready,
)

days = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-04")
common = {
    "key": "id",
    "partitions_def": days,
    "model": "openai/gpt-4o",
    "params": {"max_tokens": 50},
    "max_cost_usd": 1,
}


class Kind(BaseModel):
    kind: Literal["invoice", "letter"]


class Invoice(BaseModel):
    total: int


def texts(context) -> pl.DataFrame:
    day = context.partition_key
    kinds = ("invoice", "letter", "invoice", "letter")
    return pl.DataFrame(
        {"id": [f"{day}-{n}" for n in range(4)], "text": [f"{kind} of {day} over {n}" for n, kind in enumerate(kinds)]}
    )


kinds = llm_batch_assets(
    name="kinds", rows=texts, keep=["text"], prompt=Prompt(user="Kind: {{ text }}"), response=Kind, **common
)
totals = llm_batch_assets(
    name="totals",
    rows=AssetRows(asset=kinds, when="kind == 'invoice'"),
    prompt=Prompt(user="Total: {{ text }}"),
    response=Invoice,
    automation_condition=on_labels_ready(),
    **common,
)

defs = dg.Definitions(
    assets=[*kinds, *totals],
    sensors=[
        build_llm_batch_sensor(minimum_interval_seconds=1),
        dg.AutomationConditionSensorDefinition(
            "automation",
            target=dg.AssetSelection.all(),
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=1,
        ),
    ],
    resources={
        "llm_batch": LLMBatchResource(
            openai=OpenAIBatchResource(api_key=dg.EnvVar("OPENAI_API_KEY"), base_url=dg.EnvVar("OPENAI_BASE_URL"))
        ),
        "io_manager": HiveParquetIOManager(root=os.environ["TABLES"]),
    },
    executor=dg.in_process_executor,
)
