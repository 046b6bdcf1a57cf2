"""What all teams share: the resources, jobs, schedules and alerts of docs/deploy/definitions.py."""

import json
import os
import urllib.request

import dagster as dg

from dagster_llm_batch import (
    Budget,
    HiveParquetIOManager,
    LLMBatchResource,
    OpenAIBatchResource,
    build_llm_batch_alert_sensor,
    build_llm_batch_jobs,
    build_llm_batch_retention,
)


def post_alert(text: str) -> None:
    """Post a failed check or tick to the webhook."""
    url = os.environ["ALERT_WEBHOOK_URL"]
    request = urllib.request.Request(url, json.dumps({"text": text}).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=10).close()


@dg.definitions
def platform() -> dg.Definitions:
    """Return everything but the datasets of the teams and their sensors."""
    return dg.Definitions(
        sensors=[build_llm_batch_alert_sensor(post_alert)] if os.environ.get("ALERT_WEBHOOK_URL") else [],
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
