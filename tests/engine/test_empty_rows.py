"""A row without anything to ask about is not sent: it is a reject, with a reason. `empty="ask"` sends it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from workspace import Workspace, assert_total, labeling, tickets

from dagster_llm_batch.core.label_join import EMPTY
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.row_files import NO_FILES
from dagster_llm_batch.files.row_renderer import RowRenderer
from dagster_llm_batch.types import SKIPPED

MESSY = pl.DataFrame(
    {
        "ticket_id": ["t0", "t1", "t2", "t3", "t4", "t5"],
        "subject": ["Refund", None, "", "Broken", "\u00a0\n", None],
        "body": ["Where is it?", None, " \t", None, None, "Only a body"],
    }
)
EMPTY_KEYS = {"t1", "t2", "t4"}


def asked_keys(prompt: Prompt, rows: Any, key: str = "ticket_id") -> set[str]:
    """Return the keys of the rows that are sent."""
    batch = pa.RecordBatch.from_pylist(rows)
    renderer = RowRenderer(labeling(prompt=prompt, key=key), batch.schema, NO_FILES)
    keys = batch.column(key).to_pylist()
    chunks = list(renderer.requests(batch, keys))
    return {k for chunk, requests in chunks for k, request in zip(chunk, requests, strict=True) if request is not None}


def test_empty_rows_are_not_sent_and_each_row_ends_with_exactly_one_outcome(workspace: Workspace) -> None:
    status = workspace.run(labeling(), MESSY)
    submission = status.submission
    labels, rejects = assert_total(workspace, labeling(), submission.submission_id, 6)
    assert set(labels["ticket_id"].to_pylist()) == {"t0", "t3", "t5"}
    assert rejects["ticket_id"].to_pylist() == ["t1", "t2", "t4"]
    assert set(rejects["llm_outcome"].to_pylist()) == {SKIPPED}
    assert set(rejects["llm_reason"].to_pylist()) == {EMPTY}
    assert rejects["llm_request_id"].null_count == 3
    assert [float(cost) for cost in rejects["llm_cost_usd"].to_pylist()] == [0, 0, 0]
    assert (submission.rows, submission.requests, sum(shard.requests for shard in status.shards)) == (6, 3, 3)
    assert workspace.engine().left_out_rows(submission) == (3, 0, 0)


def test_they_are_asked_about_where_the_definition_says_so(workspace: Workspace) -> None:
    status = workspace.run(labeling(empty="ask"), MESSY)
    _, rejects = assert_total(workspace, labeling(), status.submission.submission_id, 6)
    assert rejects.num_rows == 0
    assert workspace.engine().left_out_rows(status.submission) == (0, 0, 0)
    # blank texts of other lengths are other requests; nothing else changes, so that answers are used again
    again = workspace.run(labeling(), MESSY)
    assert (again.shards, again.submission.reused) == ([], 3)
    _, rejects = assert_total(workspace, labeling(), again.submission.submission_id, 6)
    assert set(rejects["ticket_id"].to_pylist()) == EMPTY_KEYS


def test_rows_that_are_all_empty_cost_nothing_and_all_are_rejects(workspace: Workspace) -> None:
    nothing = MESSY.filter(pl.col("ticket_id").is_in(EMPTY_KEYS))
    status = workspace.run(labeling(), nothing)
    labels, rejects = assert_total(workspace, labeling(), status.submission.submission_id, 3)
    assert (labels.num_rows, rejects.num_rows, status.shards) == (0, 3, [])
    assert workspace.engine().plan(labeling(), nothing).submission_id == status.submission.submission_id


def test_labels_in_parts_and_after_another_wave_have_them_too(workspace: Workspace) -> None:
    rows = pl.concat([MESSY, tickets(40, start=6)])
    workspace.bounds = {"part_rows": 10}
    first = workspace.run(labeling(), rows.head(20))
    second = workspace.run(labeling(), rows)
    assert second.submission.reused_from == (first.submission.submission_id,)
    parts = list(workspace.engine().label_batches(labeling(), second.submission.submission_id))
    rejects = pa.concat_tables([part.rejects for part in parts])
    assert len(parts) > 1
    assert set(rejects["ticket_id"].to_pylist()) == EMPTY_KEYS
    assert sum(len(part.labels) for part in parts) == 43
    assert second.submission.outcomes == {"succeeded": 43}


def test_a_preview_counts_them_and_names_the_longest_rows(workspace: Workspace) -> None:
    long = MESSY.with_columns(body=pl.when(pl.col("ticket_id") == "t3").then(pl.lit("x" * 9_000)).otherwise("body"))
    preview = workspace.engine().preview(labeling(), MESSY)
    assert (preview.rows, preview.skipped, preview.requests, preview.to_send) == (6, 3, 3, 3)
    longest = workspace.engine().preview(labeling(), long).longest
    assert longest[0].key == "t3"
    assert longest[0].tokens > 500 > longest[1].tokens
    assert preview.context_tokens == 128_000


def test_data_without_empty_rows_has_the_fingerprint_that_it_had_when_they_were_asked(workspace: Workspace) -> None:
    skip = workspace.engine().plan(labeling(), tickets(5))
    ask = workspace.engine().plan(labeling(empty="ask"), tickets(5))
    assert skip.submission_id == ask.submission_id


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        (Prompt("{{ text }}"), {"a"}),
        (Prompt("{{ ticket_id }}: {{ text }}"), {"a"}),
        (Prompt("{{ row['text'] }}{{ row.other }}"), {"a", "b"}),
        (Prompt("{% for name in row %}{{ row[name] }}{% endfor %}"), {"a", "b", "c"}),
        (Prompt("{{ text }}", system="About {{ other }}"), {"a", "b"}),
        (Prompt("{{ text }}", images=["picture"]), {"a", "c"}),
        (Prompt("{{ ticket_id }}"), {"a", "b", "c", "d"}),
        (Prompt("the same for all"), {"a", "b", "c", "d"}),
        (Prompt("{{ count }}"), {"a"}),
        (Prompt("{{ tags | join(',') }}"), {"a"}),
    ],
)
def test_a_row_is_empty_where_nothing_that_the_prompt_reads_has_content(prompt: Prompt, asked: set[str]) -> None:
    rows = [
        {"ticket_id": "a", "text": "A", "other": None, "picture": None, "count": 0.0, "tags": ["x"]},
        {"ticket_id": "b", "text": " ", "other": "B", "picture": None, "count": float("nan"), "tags": []},
        {"ticket_id": "c", "text": None, "other": "", "picture": b"\x89PNG\r\n\x1a\n", "count": None, "tags": None},
        {"ticket_id": "d", "text": "", "other": None, "picture": None, "count": None, "tags": []},
    ]
    assert asked_keys(prompt, rows) == asked


@pytest.mark.parametrize("kind", ["polars", "pandas", "arrow", "dicts"])
def test_what_is_missing_in_any_frame_is_nothing_in_any_prompt(workspace: Workspace, kind: str) -> None:
    columns = {
        "ticket_id": ["t0", "t1"],
        "subject": ["Hello", None],
        "score": [1.5, float("nan")],
        "at": [np.datetime64("2026-01-02"), np.datetime64("NaT")],
    }
    dated = {**columns, "at": [pd.Timestamp("2026-01-02"), None]}
    rows: Any = {
        "polars": lambda: pl.DataFrame(dated),
        "pandas": lambda: pd.DataFrame(columns),
        "arrow": lambda: pa.table(dated),
        "dicts": lambda: pd.DataFrame(columns).to_dict("records"),
    }[kind]()
    template = "{{ subject }}|{{ score }}|{{ at }}|{{ subject | upper }}|{{ 'x' ~ score }}|{% if at %}y{% endif %}"
    definition = labeling(prompt=Prompt(template), empty="ask", response=None)
    engine = workspace.engine()
    [shard] = engine.status(engine.plan(definition, rows).submission_id).shards
    lines = map(json.loads, engine.payloads.lines(shard.path))
    texts = [line["body"]["messages"][-1]["content"] for line in lines]
    assert texts == ["Hello|1.5|2026-01-02 00:00:00|HELLO|x1.5|y", "||||x|"]
