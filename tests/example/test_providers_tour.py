"""One labeling through all emulated clouds, as `python3 -m example_project providers` does it."""

from __future__ import annotations

from collections import Counter

import pytest
from rich.console import Console

from dagster_llm_batch.testing.emulator import DEFAULT_KEY
from example_project import providers_tour, settings

ROWS = 100
PROVIDERS = ["openai", "azure", "anthropic", "bedrock", "vertex", "gemini", "openrouter", "mistral"]


@pytest.mark.slow
def test_all_providers_label_all_rows_are_billed_once_and_end_in_one_table(tmp_path, monkeypatch):
    """Start eight emulators, and load the SDKs of all vendors."""
    monkeypatch.delenv("EXAMPLE_ROWS_PER_DAY", raising=False)
    with providers_tour.clouds() as clouds:
        table = providers_tour.tour(clouds, tmp_path)
        books = clouds.emulator.books
        seen_keys = {call.key for call in books.calls}
    assert table["provider"].to_list() == PROVIDERS
    assert table["labeled"].to_list() == table["rows"].to_list() == [ROWS] * len(PROVIDERS)
    assert dict(zip(table["provider"], table["basis"], strict=True)) == {
        **dict.fromkeys(PROVIDERS, "batch"),
        "bedrock": "rule:half",
    }
    assert all(0 < row["cost_usd"] < row["realtime_usd"] for row in table.to_dicts())

    billed = Counter(one.batch_id for one in books.executions if one.billed)
    assert list(billed.values()) == [ROWS] * len(PROVIDERS)
    assert set(billed) == {batch.id for batch in books.batches}
    assert set(books.billed_counts().values()) == {1}
    assert seen_keys == {DEFAULT_KEY}

    console = Console(width=80)
    with console.capture() as capture:
        console.print(providers_tour.show(table))
    lines = capture.get().splitlines()
    assert providers_tour.SIMULATED in lines[1]
    assert [line.split()[0] for line in lines if f" {ROWS}/{ROWS} " in line] == PROVIDERS


def test_too_few_rows_for_bedrock_are_refused_before_anything_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("EXAMPLE_ROWS_PER_DAY", "99")
    with pytest.raises(settings.SettingError, match="EXAMPLE_ROWS_PER_DAY=99 is too few"):
        providers_tour.tour(None, tmp_path)
