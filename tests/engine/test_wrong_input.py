"""Wrong input is refused before any request is sent, with a helpful message and without side effects."""

from __future__ import annotations

import subprocess
import sys
import uuid
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pydantic import BaseModel
from workspace import TicketLabel, Workspace, assert_total, billed, labeling, tickets

from dagster_llm_batch.core.fixed_responses import Embedding, Moderation
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Limits, Realtime, Resend, Spend
from dagster_llm_batch.errors import BudgetError, ConfigError, InputError, LLMBatchError, ResponseSchemaError
from tests.tables import table


def with_prompt(user: str, **more: Any) -> dict[str, Any]:
    return {"prompt": Prompt(user, **more)}


def later_batches(*batches: dict[str, Any]) -> Any:
    return (pa.RecordBatch.from_pydict(batch) for batch in batches)


GOOD = {"ticket_id": ["t0"], "subject": ["s"], "body": ["b"]}

WRONG_ROWS: dict[str, tuple[dict[str, Any], Any, type[Exception], list[str]]] = {
    "missing key column": (
        {},
        tickets(2).rename({"ticket_id": "id"}),
        InputError,
        ["no key column 'ticket_id'", "Set key= to one of their columns: id, subject, body"],
    ),
    "python objects in polars": (
        {},
        tickets(1).with_columns(pl.Series("subject", [uuid.UUID(int=7)], dtype=pl.Object)),
        InputError,
        ["column 'subject'", "polars' type Object", "Cast it to text"],
    ),
    "python objects in pandas": (
        {},
        tickets(1).to_pandas().assign(subject=[Path("/x")]),
        InputError,
        ["column 'subject'", "as by str(value)"],
    ),
    "sets": (
        {},
        [{"ticket_id": "t0", "subject": {"b", "c"}, "body": "x"}],
        InputError,
        ["column 'subject' holds sets", "sorted lists"],
    ),
    "an unknown time zone": (
        {},
        tickets(1).to_arrow().set_column(1, "subject", pa.array([1], pa.timestamp("us", "Mars/Base"))),
        InputError,
        ["column 'subject'", "'Mars/Base'", "Convert it to UTC"],
    ),
    "a key in an unknown time zone": (
        {},
        tickets(1).to_arrow().set_column(0, "ticket_id", pa.array([1], pa.timestamp("us", "Mars/Base"))),
        InputError,
        ["key column 'ticket_id'", "'Mars/Base'", "Turn the column into text"],
    ),
    "a kept column of a type that Parquet has not": (
        {"keep": ["length"]},
        tickets(1).to_arrow().append_column("length", pa.array([(1, 2, 3)], pa.month_day_nano_interval())),
        InputError,
        ["column 'length'", "month_day_nano_interval", "leave the column out"],
    ),
    "a kept value that Parquet cannot hold": (
        {"keep": ["at"]},
        tickets(1).to_arrow().append_column("at", pa.array([2**62], pa.timestamp("s"))),
        InputError,
        ["(ticket_id, at)", "overflow", "Turn such a column into text"],
    ),
    "a kept text that is no UTF-8": (
        {"keep": ["note"]},
        tickets(1).to_arrow().append_column("note", pa.array([b"\xff"]).view(pa.string())),
        InputError,
        ["column 'note' cannot be stored", "UTF8", "leave it out of keep"],
    ),
    "a text that is no UTF-8": (
        {},
        tickets(1).to_arrow().set_column(1, "subject", pa.array([b"\xff"]).view(pa.string())),
        InputError,
        ["column 'subject'", "Python cannot hold", "Turn the column into text"],
    ),
    "a date beyond Python's": (
        {},
        tickets(1).to_arrow().set_column(1, "subject", pa.array([2**30], pa.date32())),
        InputError,
        ["column 'subject' is of type date32[day]", "Python cannot hold", "Turn the column into text"],
    ),
    "duplicate keys": (
        {},
        pl.concat([tickets(3), tickets(2)]),
        InputError,
        ["'ticket_id' has duplicate values: 't0', 't1'", "drop the duplicates"],
    ),
    "duplicate keys in a later batch": (
        {},
        later_batches(GOOD, GOOD),
        InputError,
        ["'ticket_id' has duplicate values: 't0'"],
    ),
    "duplicate keys of another type in a later batch": (
        {},
        later_batches({**GOOD, "ticket_id": [7]}, {**GOOD, "ticket_id": ["7"]}),
        InputError,
        ["'ticket_id' has duplicate values: 7"],
    ),
    "duplicate keys far apart": (
        {},
        pl.concat([tickets(40_000), tickets(2)]).lazy(),
        InputError,
        ["'ticket_id' has duplicate values: 't0', 't1'. A key names one row"],
    ),
    "null keys": (
        {},
        tickets(3).with_columns(ticket_id=pl.Series(["a", None, None])),
        InputError,
        ["is null in 2 of 3 rows", "first at its position 1", "fill or filter them"],
    ),
    "keys of floats": (
        {},
        tickets(1).with_columns(ticket_id=pl.lit(1.5)),
        InputError,
        ["'ticket_id' is of type double", "A key is text, an integer, a date or a time"],
    ),
    "unknown column in the prompt": (
        with_prompt("{{ subjct }}"),
        tickets(1),
        ConfigError,
        ["names 'subjct', which the rows do not have", "'body', 'subject', 'ticket_id'"],
    ),
    "unknown kept column": (
        {"keep": ["team"]},
        tickets(1),
        InputError,
        ["keep names team,", "ticket_id, subject, body"],
    ),
    "a filter that fails on a row": (
        with_prompt("{{ body.split('x')[1] | int // 0 }}{{ subject }}"),
        tickets(2),
        InputError,
        ["Row 't0': the user template failed", "'body', 'subject'", "nothing was sent"],
    ),
    "a filter that fails on a later row": (
        with_prompt("{{ 10 // (body | length - 2) }}"),
        [{"ticket_id": "a", "body": "long"}, {"ticket_id": "b", "body": "12"}],
        InputError,
        ["Row 'b': the user template failed: ZeroDivisionError", "'body'"],
    ),
    "a row over the byte limit": (
        {"limits": Limits(max_bytes_per_batch=2_000)},
        pl.concat([tickets(2), tickets(1, start=2).with_columns(body=pl.lit("x" * 3_000))]),
        InputError,
        ["Row 't2' makes a request of", "at most 2,000 in one", "nothing was sent"],
    ),
    "no table": ({}, 42, InputError, ["Rows came as a int", "polars, pandas or arrow frame"]),
    "nothing": ({}, None, InputError, ["Rows came as None. Rows can be a polars"]),
    "a list of other things": ({}, [{"a": 1}, 42], InputError, ["Rows came as a list with a int in it"]),
    "an iterator of rows": ({}, iter([{"a": 1}]), InputError, ["gave a dict. Let each of its items be", "one list"]),
    "an iterator of nothing": ({}, iter([None]), InputError, ["gave None. Let each of its items be an Arrow record"]),
    "dicts of mixed types": (
        {},
        [{**{k: v[0] for k, v in GOOD.items()}}, {"ticket_id": 5, "subject": "s", "body": "b"}],
        InputError,
        ["column 'ticket_id' cannot be read"],
    ),
    "a later batch that lacks a column": (
        {},
        later_batches(GOOD, {"ticket_id": ["t1"], "subject": ["s"]}),
        InputError,
        ["A later batch of rows lacks the columns body,"],
    ),
    "a later batch of other types": (
        {"keep": ["subject"]},
        later_batches({**GOOD, "subject": [1]}, {**GOOD, "ticket_id": ["t1"], "subject": ["many"]}),
        InputError,
        ["A later batch of rows has other column types"],
    ),
    "two columns of one name": (
        {},
        pa.Table.from_arrays([pa.array(["t"]), pa.array(["s"]), pa.array(["b"]), pa.array(["c"])], [*GOOD, "body"]),
        InputError,
        ["The rows have more than one column named 'body'"],
    ),
    "an image that is none": (
        with_prompt("{{ subject }}", images=["body"]),
        tickets(1).with_columns(body=pl.lit(b"no image")),
        InputError,
        ["the image in column 'body' cannot be read"],
    ),
    "a budget that is too small": (
        {"max_cost_usd": "0.001"},
        tickets(200),
        BudgetError,
        ["exceeds max_cost_usd=0.001", "Nothing was sent", "for 200 requests"],
    ),
    "a budget without a price": (
        {"max_cost_usd": 5, "model": "openai/in-house"},
        tickets(1),
        ConfigError,
        ["The price of 'openai/in-house' is unknown", "TokenPrice", "leave max_cost_usd out"],
    ),
    "a schema that OpenAI cannot take": (
        {"response": {"type": "object", "properties": {"scores": {"type": "object", "additionalProperties": True}}}},
        tickets(1),
        ResponseSchemaError,
        ["OpenAI cannot take this response schema", "$.properties.scores"],
    ),
    "an unknown provider": (
        {"model": "opnai/gpt-4o"},
        tickets(1),
        ConfigError,
        ["No provider 'opnai' is configured; configured: openai. Did you mean 'openai'?"],
    ),
    "a provider that is known, and not configured": (
        {"model": "anthropic/claude-haiku-4-5"},
        tickets(1),
        ConfigError,
        ["No provider 'anthropic' is configured", "Add it to LLMBatchResource(anthropic=...)"],
    ),
    "a parameter that is taken": (
        {"params": {"messages": []}},
        tickets(1),
        ConfigError,
        ["The parameter 'messages' cannot be set here", "comes from the prompt"],
    ),
}


@pytest.mark.parametrize("wrong", WRONG_ROWS)
def test_wrong_rows_are_refused_with_a_message_that_helps_and_leave_nothing(workspace: Workspace, wrong: str) -> None:
    changes, rows, error, told = WRONG_ROWS[wrong]
    definition = labeling(**changes)
    with pytest.raises(error) as caught:
        workspace.engine().plan(definition, rows)
    assert isinstance(caught.value, LLMBatchError)
    for words in told:
        assert words in str(caught.value)
    assert workspace.files() == set()
    assert workspace.engine().ledger.submissions.list_all("test") == []
    assert workspace.emulator.books.calls == []


_OBJECTS = ("limits", "realtime", "resend", "spend")
"""Their constructors refuse wrong values, so the test constructs them."""
_BACK = timedelta(hours=-1)

WRONG_DEFINITIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a system part for embeddings": (
        {"response": Embedding(), "params": {}, "model": "gemini/gemini-embedding-001"},
        ["Embeddings take one text; the prompt has a system text", "Leave only its user part"],
    ),
    "a system part for a moderation": (
        {"response": Moderation(), "params": {}, "model": "openai/omni-moderation-latest"},
        ["Moderations take one text, and images; the prompt has a system text"],
    ),
    "model without provider": ({"model": "gpt-4o"}, ["names no provider", "'openai/gpt-5-nano'"]),
    "provider without model": ({"model": "openai/"}, ["names no provider"]),
    "keep as a string": ({"keep": "subject"}, ["it takes Sequence[str]", "Write keep=['subject']"]),
    "a response named as the key": (
        {"response": {"type": "object", "properties": {"ticket_id": {"type": "string"}}}},
        ["have ticket_id twice", "Rename one"],
    ),
    "a reserved column": ({"keep": ["llm_cost_usd"]}, ["rename llm_cost_usd."]),
    "an unknown endpoint": ({"endpoint": "completions"}, ["'chat', 'responses', 'embeddings'"]),
    "an endpoint that does not fit": ({"endpoint": "embeddings"}, ["does not go with a response of kind 'json'"]),
    "a budget that is no amount": ({"max_cost_usd": "lots"}, ["is no amount of US dollars"]),
    "a negative budget": ({"max_cost_usd": -1}, ["is no amount of US dollars"]),
    "an infinite budget": ({"max_cost_usd": float("inf")}, ["is no amount of US dollars"]),
    "batches of nothing": (
        {"limits": lambda: Limits(max_requests_per_batch=0)},
        ["Limits.max_requests_per_batch=0", "at least 1"],
    ),
    "batches of negative bytes": (
        {"limits": lambda: Limits(max_bytes_per_batch=-1)},
        ["Limits.max_bytes_per_batch=-1", "at least 1"],
    ),
    "negative output": (
        {"spend": lambda: Spend(expected_output_tokens=-5)},
        ["Spend.expected_output_tokens=-5", "at least 0"],
    ),
    "no call at once": ({"realtime": lambda: Realtime(concurrency=0)}, ["Realtime.concurrency=0", "at least 1"]),
    "a negative deadline": ({"realtime": lambda: Realtime(deadline=_BACK)}, ["Realtime.deadline=", "at least 0:00:00"]),
    "a negative patience": ({"realtime": lambda: Realtime(patience=_BACK)}, ["Realtime.patience=", "at least 0:00:00"]),
    "a negative time of a provider that is down": (
        {"resend": lambda: Resend(fallback_after=_BACK)},
        ["Resend.fallback_after=", "at least 0:00:00"],
    ),
    "a response that is none": ({"response": 5}, ["is no response format", "pydantic model class"]),
    "a schema that is none": (
        {"response": {"type": "objekt"}},
        ["is no valid JSON Schema, at $.type: there is no type 'objekt'. The types are array, boolean,"],
    ),
    "a column of a type that is none": (
        {"response": {"type": "object", "properties": {"type": {"type": ["strng", "null"]}}}},
        ["at $.properties.type.type: there is no type ['strng', 'null']."],
    ),
    "a schema of a list": ({"response": {"type": "array"}}, ["must be of type object with properties"]),
    "a schema that points nowhere": (
        {"response": {"type": "object", "properties": {"a": {"$ref": "#/$defs/Gone"}}}},
        ["'#/$defs/Gone'", "cannot be resolved"],
    ),
    "a schema that points to the web": (
        {"response": {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}}},
        ["'http://127.0.0.1:9/schema.json'", "cannot be resolved"],
    ),
    "a schema with a broken pattern": (
        {"response": {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}},
        ["is no valid JSON Schema", "pattern"],
    ),
    "a model without fields": ({"response": type("Nothing", (BaseModel,), {})}, ["has no fields"]),
}


@table("wrong", WRONG_DEFINITIONS)
def test_a_wrong_definition_is_refused_where_it_is_written(wrong: str) -> None:
    changes, told = WRONG_DEFINITIONS[wrong]
    with pytest.raises(ConfigError) as caught:
        labeling(**{name: value() if name in _OBJECTS else value for name, value in changes.items()})
    for words in told:
        assert words in str(caught.value)


@pytest.mark.parametrize("name", ["max_waves", "invalid_waves"])
def test_what_is_sent_again_counts_from_one(name: str) -> None:
    with pytest.raises(ConfigError, match=f"Resend.{name}=0 is not allowed; it is at least 1"):
        Resend(**{name: 0})


@pytest.mark.parametrize("price", [{"input_usd": "-1", "output_usd": 1}, {"input_usd": "free", "output_usd": 1}])
def test_a_price_is_an_amount(price: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is no amount of US dollars"):
        TokenPrice(**price)


def test_an_unknown_price_without_a_budget_is_no_obstacle(workspace: Workspace) -> None:
    submission = workspace.engine().plan(labeling(model="openai/in-house"), tickets(2))
    assert submission.estimated_usd is None
    assert submission.price_basis.value == "unknown"  # type: ignore[union-attr]


def test_a_budget_counts_only_what_is_still_to_be_asked(workspace: Workspace) -> None:
    workspace.run(labeling(), tickets(200))
    with pytest.raises(BudgetError):
        workspace.engine().plan(labeling(max_cost_usd="0.005", asset="another"), tickets(201))
    assert workspace.run(labeling(max_cost_usd="0.005"), tickets(201)).submission.outcomes == {"succeeded": 201}


EMPTY: dict[str, Any] = {
    "polars": lambda: tickets(0),
    "arrow": lambda: tickets(0).to_arrow(),
    "pandas": lambda: tickets(0).to_pandas(),
    "pandas without types": lambda: pd.DataFrame({"ticket_id": [], "subject": [], "body": []}),
    "pandas without columns": pd.DataFrame,
    "a list": list,
    "an iterator": lambda: iter(()),
    "an iterator of an empty batch": lambda: iter([pa.RecordBatch.from_pylist([], tickets(0).to_arrow().schema)]),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_no_rows_are_a_settled_empty_table_without_a_call(workspace: Workspace, kind: str) -> None:
    definition = labeling(keep=["subject"])
    status = workspace.run(definition, EMPTY[kind]())
    labels, rejects = assert_total(workspace, definition, status.submission.submission_id, 0)
    assert labels.schema.names[:4] == ["ticket_id", "subject", "topic", "urgency"]
    assert rejects.schema.names[:2] == ["ticket_id", "subject"]
    assert status.submission.cost_usd == 0
    assert workspace.emulator.books.calls == []


def test_no_rows_need_no_column_that_tells_which_are_urgent(workspace: Workspace) -> None:
    definition = labeling(realtime=Realtime(urgent="is_urgent"))
    assert workspace.run(definition, []).is_settled
    assert workspace.emulator.books.calls == []


def test_keys_may_be_numbers_and_dates(workspace: Workspace) -> None:
    definition = labeling(key="day", prompt=Prompt("{{ day }} {{ number }}"), response=None, keep=["number"])
    rows = pl.DataFrame({"day": [date(2026, 1, 1), date(2026, 1, 2)], "number": [1, 2]})
    status = workspace.run(definition, rows)
    labels = workspace.engine().labels(definition, status.submission.submission_id).labels
    assert labels["day"].to_pylist() == [date(2026, 1, 1), date(2026, 1, 2)]
    assert len(billed(workspace)) == 2


@pytest.mark.slow
def test_a_missing_sdk_names_the_extra_and_leaves_the_shard_planned(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["openai"] = None  # as if it were not installed
sys.path.insert(0, sys.argv[1])
from workspace import labeling, tickets
from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.errors import MissingExtraError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
provider = OpenAIProvider(api_key="sk-x", base_url="http://127.0.0.1:9/v1")
places = Ledger(sys.argv[2] + "/l.db"), PayloadStore(sys.argv[2] + "/p")
engine = Engine(Deployment({"openai": provider}, *places, "test"))
submission = engine.plan(labeling(), tickets(2))
try:
    engine.submit(labeling(), submission.submission_id)
except MissingExtraError as error:
    print(error)
print(dict(engine.status(submission.submission_id).states))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "pip install 'dagster-llm-batch[openai]'" in done.stdout
    assert "{'planned': 1}" in done.stdout


def test_an_image_is_read_below_its_root_and_nowhere_else(workspace: Workspace, tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + b"0" * 20
    root = tmp_path / "images"
    (root / "a").mkdir(parents=True)
    (root / "a" / "cat.png").write_bytes(png)
    (tmp_path / "secret.png").write_bytes(png)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    pictures = Prompt("What is it?", images=["picture"], image_root=str(root))
    # otherwise, a row with a blank path is empty, and is not sent
    definition = labeling(prompt=pictures, response=None, empty="ask")

    def rows(path: str) -> pl.DataFrame:
        return pl.DataFrame({"ticket_id": ["t0"], "picture": [path]})

    for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "a/../../secret.png", "gone.png", ""):
        with pytest.raises(InputError, match=r"1 of 1 rows .* The first: the image in column 'picture' cannot be read"):
            workspace.engine().plan(definition, rows(path))
    status = workspace.run(definition, rows("a/cat.png"))
    assert status.submission.outcomes == {"succeeded": 1}
    without = labeling(prompt=Prompt("What is it?", images=["picture"]), response=TicketLabel)
    with pytest.raises(InputError, match=r"set Prompt\(image_root=\.\.\.\)"):
        workspace.engine().plan(without, rows("a/cat.png"))


def test_urgent_takes_a_boolean_column_that_is_there(workspace: Workspace) -> None:
    for name, words in (("nowhere", "do not have"), ("subject", "takes one of true and false")):
        with pytest.raises(InputError, match=f"urgent names.*{words}"):
            workspace.engine().plan(labeling(realtime=Realtime(urgent=name)), tickets(2))


@pytest.mark.parametrize("kind", [pl.Int64, pl.UInt8])
def test_urgent_takes_the_ones_and_zeros_of_a_database_without_booleans(workspace: Workspace, kind: Any) -> None:
    rows = tickets(3).with_columns(pl.Series("now", [1, 0, None], dtype=kind))
    workspace.run(labeling(realtime=Realtime(urgent="now")), rows)
    executions = workspace.emulator.books.executions
    assert [execution.batch_id is None for execution in executions].count(True) == 1
    with pytest.raises(InputError, match=r"urgent names.*which holds 2; it takes one of true and false, or of 1 and 0"):
        workspace.engine().plan(
            labeling(asset="other", realtime=Realtime(urgent="now")), rows.with_columns(pl.lit(2).alias("now"))
        )
