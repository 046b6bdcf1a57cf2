"""The code location of `test_live.py`: tickets of three days, their labels, gold, and an evaluation.

The provider is at OPENAI_BASE_URL.
"""

from typing import Annotated, Literal

import dagster as dg
import polars as pl
from pydantic import BaseModel, Field

from dagster_llm_batch import (
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    build_llm_batch_sensor,
    evaluation_assets,
    llm_batch_assets,
)

days = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-04")
TICKETS = 4


class TicketLabel(BaseModel):
    topic: Annotated[Literal["billing", "bug", "how_to"], Field(description="What it is about.")]
    urgency: Annotated[int, Field(ge=1, le=5, description="1 can wait, 5 is now.")]


def tickets(context) -> pl.DataFrame:
    day = context.partition_key
    return pl.DataFrame(
        {
            "ticket_id": [f"{day}-{n}" for n in range(TICKETS)],
            "subject": ["Invoice", "Crash", "Export", "Refund"],
            "body": [f"<b>Hello</b> | it's about {day}, case {n}.\nThank you." for n in range(TICKETS)],
        }
    )


@dg.asset(kinds={"table"}, group_name="tickets", description="What people say that the tickets are about.")
def ticket_gold() -> pl.DataFrame:
    keys = [f"{day}-{n}" for day in days.get_partition_keys() for n in range(TICKETS)]
    return pl.DataFrame({"ticket_id": keys, "topic": ["billing", "bug", "how_to", "billing"] * 3})


labels = llm_batch_assets(
    name="ticket_labels",
    rows=tickets,
    key="ticket_id",
    partitions_def=days,
    prompt=Prompt(system="You label support tickets.", user="{{ subject }}\n\n{{ body }}"),
    response=TicketLabel,
    model="openai/gpt-4o",
    params={"max_tokens": 50},
    max_cost_usd=1,
    frame="polars",
    group_name="tickets",
)

evaluation = evaluation_assets(
    name="ticket_eval", gold=ticket_gold, candidates=[labels], key="ticket_id", target="topic", group_name="tickets"
)

defs = dg.Definitions(
    assets=[ticket_gold, *labels, *evaluation],
    sensors=[
        build_llm_batch_sensor(minimum_interval_seconds=1),
        dg.AutomationConditionSensorDefinition(
            "automation",
            target=dg.AssetSelection.all(),
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=1,
            emit_backfills=False,
        ),
    ],
    resources={
        "llm_batch": LLMBatchResource(
            openai=OpenAIBatchResource(api_key=dg.EnvVar("OPENAI_API_KEY"), base_url=dg.EnvVar("OPENAI_BASE_URL"))
        )
    },
    executor=dg.in_process_executor,
)
