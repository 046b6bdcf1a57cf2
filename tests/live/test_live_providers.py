"""The smallest real batch at each vendor. It costs money, so it runs only when asked to, with your own credentials.

    DLB_LIVE=1 OPENAI_API_KEY=… .venv/bin/python -m pytest -m live -rs tests/live

CONTRIBUTING.md lists the environment variables. A provider's test is skipped if one is missing, and names it.
A batch is sent only if its estimate is at most `CAP_USD`, and the billed amount is checked against it.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

import polars as pl
import pytest
from pydantic import BaseModel

from dagster_llm_batch import (
    AnthropicBatchResource,
    BedrockBatchResource,
    GeminiBatchResource,
    OpenAIBatchResource,
    Prompt,
    Resend,
    VertexBatchResource,
)
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore

CAP_USD = Decimal("0.01")
_POLL_SECONDS = 15.0


class Sentiment(BaseModel):
    label: Literal["positive", "negative", "neutral"]


@dataclass(frozen=True)
class Live:
    """A vendor's required settings, its model, resource and parameters, and the least number of rows that it takes."""

    needs: tuple[str, ...]
    model: str
    resource: Any
    params: dict[str, Any] = field(default_factory=dict)
    rows: int = 1


def env(name: str) -> str | None:
    return os.environ.get(name) or None


def openai() -> Any:
    return OpenAIBatchResource(api_key=os.environ["OPENAI_API_KEY"], base_url=env("OPENAI_BASE_URL"))


def anthropic() -> Any:
    return AnthropicBatchResource(api_key=os.environ["ANTHROPIC_API_KEY"], base_url=env("ANTHROPIC_BASE_URL"))


def gemini() -> Any:
    return GeminiBatchResource(api_key=os.environ["GEMINI_API_KEY"], base_url=env("GOOGLE_GEMINI_BASE_URL"))


def vertex() -> Any:
    return VertexBatchResource(
        project=os.environ["GOOGLE_CLOUD_PROJECT"],
        location=os.environ["GOOGLE_CLOUD_LOCATION"],
        bucket=os.environ["DLB_LIVE_VERTEX_BUCKET"],
        base_url=env("GOOGLE_VERTEX_BASE_URL"),
        storage_url=env("STORAGE_EMULATOR_HOST"),
        access_token=env("DLB_LIVE_VERTEX_TOKEN"),
    )


def bedrock() -> Any:
    """Take keys, profile and addresses from the environment and AWS's files, as boto3 does."""
    return BedrockBatchResource(
        role_arn=os.environ["DLB_LIVE_BEDROCK_ROLE_ARN"], s3_uri=os.environ["DLB_LIVE_BEDROCK_S3_URI"]
    )


PROVIDERS = {
    "openai": Live(("OPENAI_API_KEY",), "gpt-5-nano", openai, {"max_completion_tokens": 2000}),
    "anthropic": Live(("ANTHROPIC_API_KEY",), "claude-haiku-4-5", anthropic, {"max_tokens": 64}),
    "gemini": Live(("GEMINI_API_KEY",), "gemini-2.5-flash-lite", gemini, {"max_output_tokens": 64}),
    "vertex": Live(
        ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "DLB_LIVE_VERTEX_BUCKET"),
        "gemini-2.5-flash-lite",
        vertex,
        {"max_output_tokens": 64},
    ),
    "bedrock": Live(
        ("AWS_DEFAULT_REGION", "DLB_LIVE_BEDROCK_ROLE_ARN", "DLB_LIVE_BEDROCK_S3_URI"),
        "openai.gpt-oss-20b-1:0",  # cheap, with structured outputs
        bedrock,
        {"max_tokens": 400},
        rows=100,  # AWS's minimum
    ),
}


@pytest.mark.live
@pytest.mark.timeout(0)  # batches take minutes to hours; DLB_LIVE_MINUTES is the limit
@pytest.mark.parametrize("name", PROVIDERS)
def test_the_smallest_real_batch_is_labeled_and_priced_within_the_cap(tmp_path, name):
    live = PROVIDERS[name]
    if os.environ.get("DLB_LIVE") != "1":
        pytest.skip("real batches cost money: set DLB_LIVE=1 to send them")
    if missing := [one for one in live.needs if not os.environ.get(one)]:
        pytest.skip(f"no credentials of {name}: set {', '.join(missing)}")
    labeling = Labeling(
        asset="live",
        model=f"{name}/{os.environ.get(f'DLB_LIVE_{name.upper()}_MODEL') or live.model}",
        key="id",
        prompt=Prompt(system="You label the sentiment of short texts.", user="{{ text }}"),
        response=Sentiment,
        params=live.params,
        resend=Resend(max_waves=1, invalid_waves=1),
        max_cost_usd=CAP_USD,
    )
    run = uuid.uuid4().hex  # unique texts, so that the vendor cannot have a stored answer
    rows = pl.DataFrame({"id": range(live.rows), "text": [f"I love this! ({run}-{n})" for n in range(live.rows)]})
    ledger = Ledger(tmp_path / "ledger.sqlite")
    payloads = PayloadStore(str(tmp_path / "payloads"))
    engine = Engine(Deployment({name: live.resource().provider()}, ledger, payloads, f"live-{run[:8]}"))
    try:
        submission_id = engine.plan(labeling, rows).submission_id
        finish(engine, labeling, submission_id)
        labeled = engine.labels(labeling, submission_id)
        settled = engine.status(submission_id).submission
    finally:
        ledger.close()
    assert labeled.labels.num_rows + labeled.rejects.num_rows == live.rows
    assert labeled.labels.num_rows >= 0.9 * live.rows, labeled.rejects.to_pylist()[:5]  # models err; our code must not
    assert set(labeled.labels["label"].to_pylist()) <= {"positive", "negative", "neutral"}
    assert settled.cost_usd is not None
    assert 0 < settled.cost_usd <= CAP_USD


def finish(engine: Engine, labeling: Labeling, submission_id: str) -> None:
    """Send, and wait for the end. In any case, cancel batches that still run."""
    minutes = float(os.environ.get("DLB_LIVE_MINUTES") or 60)
    until = time.monotonic() + 60 * minutes
    try:
        print(engine.submit(labeling, submission_id).batch_ids)  # for the vendor's console if all else fails
        while not (status := engine.advance(labeling, submission_id)).is_settled:
            if time.monotonic() > until:
                pytest.fail(
                    f"{status.batch_ids} did not end within {minutes:g} minutes, and were canceled. Vendors promise 24 "
                    "hours; set DLB_LIVE_MINUTES higher."
                )
            time.sleep(min(_POLL_SECONDS, max(0.0, until - time.monotonic())))
    finally:
        if not engine.status(submission_id).is_settled:
            engine.cancel(submission_id)
