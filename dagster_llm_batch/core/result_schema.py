"""The columns of a results table, which has one row for each request of a shard."""

from __future__ import annotations

import pyarrow as pa

from dagster_llm_batch.core.pricing import MONEY

__all__ = ["FENCED", "REPEATING", "RESULT_SCHEMA", "SHARED"]

RESULT_SCHEMA = pa.schema(
    [
        ("llm_request_id", pa.string()),
        ("llm_outcome", pa.string()),
        ("llm_reason", pa.string()),
        ("llm_retryable", pa.bool_()),
        ("llm_reply", pa.string()),
        ("llm_finish_reason", pa.string()),
        ("llm_model", pa.string()),
        ("llm_input_tokens", pa.int64()),
        ("llm_output_tokens", pa.int64()),
        ("llm_cache_read_tokens", pa.int64()),
        ("llm_cost_usd", MONEY),
        ("llm_realtime_usd", MONEY),
        ("llm_price_basis", pa.string()),
        ("llm_provider", pa.string()),
        ("llm_batch_id", pa.string()),
        ("llm_attempt", pa.int32()),
        ("llm_lane", pa.string()),
        ("llm_submitted_at", pa.timestamp("us", "UTC")),
        ("llm_completed_at", pa.timestamp("us", "UTC")),
    ]
)
"""One row per request; the columns of the response follow. `llm_reply` is kept where the outcome is not SUCCEEDED."""

REPEATING = [name for name in RESULT_SCHEMA.names if name not in ("llm_request_id", "llm_reason", "llm_reply")]
"""Columns with few values in all results of a shard."""

SHARED = RESULT_SCHEMA.names[RESULT_SCHEMA.get_field_index("llm_provider") :]
"""Columns with one value in all results of a shard."""

FENCED = "read out of the Markdown fences in which the reply stood"
"""The reason of a reply that fits without its fences. Its outcome is SUCCEEDED; the raw line still has the fences.

No other result has both that outcome and a reason, so the wording decides nothing.
"""
