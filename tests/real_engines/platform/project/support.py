"""The team `support`: labels of tickets, in Python."""

from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel, Field

from dagster_llm_batch import Mask, Prompt, build_llm_batch_sensor, llm_batch_assets


class TicketLabel(BaseModel):
    """The answer of the model about a ticket."""

    topic: Literal["billing", "bug", "how_to"] = Field(description="What the customer writes about.")


@dg.asset(group_name="support")
def tickets() -> list[dict[str, Any]]:
    """Return the rows."""
    return [
        {"ticket_id": "t1", "body": "I was charged twice. Answer to ann.planted@example.com or +49 30 1234567."},
        {"ticket_id": "t2", "body": "It crashes at start."},
    ]


ticket_labels = llm_batch_assets(
    name="ticket_labels",
    group_name="support",
    rows=tickets,
    key="ticket_id",
    keep=["body"],
    prompt=Prompt(system="You label support tickets.", user="{{ body }}", mask=Mask(columns=["body"])),
    response=TicketLabel,
    model="openai/gpt-5-nano",
    params={"max_completion_tokens": 2_000},
    pool="llm_batch",
)
support_llm_batches = build_llm_batch_sensor("support_llm_batches", target="group:support")
