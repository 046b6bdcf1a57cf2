"""The code location of the deployment: replace the tickets by your own rows, and keep the rest."""

import json
import os
import urllib.request
from typing import Literal

import dagster as dg
from pydantic import BaseModel

from dagster_llm_batch import (
    Budget,
    HiveParquetIOManager,
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    build_llm_batch_alert_sensor,
    build_llm_batch_jobs,
    build_llm_batch_retention,
    build_llm_batch_sensor,
    llm_batch_assets,
)


class TicketLabel(BaseModel):
    """The answer of the model about a ticket."""

    topic: Literal["billing", "bug", "how_to"]


def tickets(_context: object) -> list[dict[str, str]]:
    """Return the rows: here three, in yours a query or an upstream asset."""
    bodies = ["I was charged twice.", "It crashes at start.", "How do I export?"]
    return [{"ticket_id": f"t{number}", "body": body} for number, body in enumerate(bodies)]


ticket_labels = llm_batch_assets(
    name="ticket_labels",
    rows=tickets,
    key="ticket_id",
    prompt=Prompt(system="You label support tickets.", user="{{ body }}"),
    response=TicketLabel,
    model="openai/gpt-5-nano",
    params={"max_completion_tokens": 2_000},
    pool="llm_batch",
)


def post_alert(text: str) -> None:
    """Post a failed check or tick to the webhook."""
    url = os.environ["ALERT_WEBHOOK_URL"]
    request = urllib.request.Request(url, json.dumps({"text": text}).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=10).close()


sensors = [build_llm_batch_sensor()]
if os.environ.get("ALERT_WEBHOOK_URL"):
    sensors.append(build_llm_batch_alert_sensor(post_alert))

defs = dg.Definitions(
    assets=[*ticket_labels],
    sensors=sensors,
    jobs=build_llm_batch_jobs(),
    schedules=[build_llm_batch_retention()],
    resources={
        "llm_batch": LLMBatchResource(
            namespace="support",
            ledger_url=dg.EnvVar("LLM_LEDGER_URL"),
            payload_root=dg.EnvVar("LLM_PAYLOAD_ROOT"),
            openai=OpenAIBatchResource(
                api_key=dg.EnvVar("OPENAI_API_KEY"), base_url=os.environ.get("OPENAI_BASE_URL") or None
            ),
            budgets=[Budget(max_usd=100, period="month")],
        ),
        "io_manager": HiveParquetIOManager(root=dg.EnvVar("LLM_TABLE_ROOT")),
    },
)
