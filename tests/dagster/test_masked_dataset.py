"""A dataset with a mask in Dagster: the submission shows how many values were masked, and labels hold placeholders."""

from __future__ import annotations

import polars as pl
import pytest
from code_location import LABELS, labeled

from dagster_llm_batch import Mask, Prompt

PROMPT = Prompt(user="{{ subject }} {{ body }}", mask=Mask(columns=["body"]))
ROWS = pl.DataFrame(
    {
        "ticket_id": ["t1", "t2", "t3"],
        "subject": ["Invoice"] * 3,
        "body": ["Write to ann@example.com.", "ann@example.com or 10.0.0.1?", "Nothing."],
    }
)


@pytest.mark.slow
def test_metadata_and_the_check_sent_show_the_number_of_masked_values(make):
    """Run a Dagster."""
    location = make(*labeled(rows=lambda _context: ROWS, prompt=PROMPT, keep=["body"]))
    result = location.run(f"{LABELS}_batch")
    assert result.success
    shown = location.metadata(f"{LABELS}_batch")
    assert [shown[f"llm_batch/masked_{name}"] for name in ("values", "email", "ip")] == [3, 2, 1]
    [sent] = result.get_asset_check_evaluations()
    assert sent.passed
    assert sent.description.endswith("Masked values: 2 email, 1 ip.")
    assert sent.metadata["llm_batch/masked_email"].value == 2
    location.emulator.settle()
    assert location.run(LABELS, f"{LABELS}_rejects").success
    labels = location.repository.load_asset_value(LABELS, instance=location.instance)
    assert sorted(labels["body"]) == ["Nothing.", "Write to [EMAIL_1].", "[EMAIL_1] or [IP_1]?"]
    assert "ann@example.com" not in str(
        [event.to_json() if hasattr(event, "to_json") else event for event in result.all_events]
    )
