"""A reply becomes typed columns or a reason, and never raises an exception."""

from __future__ import annotations

import json
import warnings
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, Literal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, RootModel, computed_field, field_validator

from dagster_llm_batch.core.fixed_responses import Embedding
from dagster_llm_batch.core.response import Reader, response_format
from dagster_llm_batch.errors import ConfigError, ResponseSchemaError
from dagster_llm_batch.types import ResponseKind
from tests.tables import table


class Mood(StrEnum):
    GOOD = "good"
    BAD = "bad"


class Part(BaseModel):
    name: str
    when: date | None = None
    scores: list[float] = []


class Everything(BaseModel):
    """One field of each kind."""

    mood: Mood
    size: Literal[1, 2, 3]
    note: str | None = None
    day: date
    days: list[date] = []
    parts: list[Part] = []
    main: Part | None = None
    mixed: int | str = 0
    number: int | float = 0
    free: dict[str, int] = {}
    anything: Any = None
    renamed: Annotated[str, Field(alias="re-named")] = ""
    chosen: Annotated[str, Field(validation_alias=AliasChoices("chosen", "picked"))] = ""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def is_good(self) -> bool:
        return self.mood is Mood.GOOD


REPLY = {
    "mood": "good",
    "size": 2,
    "note": None,
    "day": "2026-01-31",
    "days": ["2026-01-01", "2026-01-02"],
    "parts": [{"name": "a", "when": "2026-01-03", "scores": [1, 2.5]}, {"name": "b"}],
    "main": {"name": "c", "when": None},
    "mixed": "x",
    "number": 3,
    "free": {"k": 1},
    "anything": [1, None],
    "re-named": "r",
    "picked": "p",
}


def read(reader: Reader, *texts: str | None) -> tuple[pa.Table, list[str | None]]:
    reading = reader.read(texts, [None] * len(texts))
    assert reading.columns.schema == reader.schema
    assert len(reading.columns) == len(reading.reasons) == len(texts)
    reading.columns.validate(full=True)
    return reading.columns, reading.reasons


def test_a_pydantic_model_becomes_typed_columns() -> None:
    columns, reasons = read(Reader(Everything), json.dumps(REPLY))
    assert reasons == [None]
    [row] = columns.to_pylist()
    part = {"name": "a", "when": date(2026, 1, 3), "scores": [1.0, 2.5]}
    assert row == {
        "mood": "good",
        "size": 2,
        "note": None,
        "day": date(2026, 1, 31),
        "days": [date(2026, 1, 1), date(2026, 1, 2)],
        "parts": [part, {"name": "b", "when": None, "scores": []}],
        "main": {"name": "c", "when": None, "scores": []},
        "mixed": '"x"',
        "number": 3.0,
        "free": '{"k":1}',
        "anything": "[1,null]",
        "re-named": "r",
        "chosen": "p",
        "is_good": True,
    }
    types = {field.name: field.type for field in columns.schema}
    assert types["day"] == pa.date32()
    assert types["days"] == pa.list_(pa.date32())
    assert types["size"] == pa.int64()
    assert types["number"] == pa.float64()
    assert types["mixed"] == types["free"] == types["anything"] == pa.string()


SCHEMA = {
    "type": "object",
    "title": "Label it",
    "properties": {
        "topic": {"enum": ["a", "b", None]},
        "count": {"type": "integer", "minimum": 0},
        "day": {"type": "string", "format": "date"},
        "either": {"type": ["integer", "null"]},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        "any": True,
        "fixed": {"const": "x"},
        "loop": {"$ref": "#"},
    },
    "required": ["topic", "count"],
    "additionalProperties": False,
    "$defs": {"item": {"type": "object", "properties": {"x": {"type": "number"}, "d": {"format": "date"}}}},
}


def test_a_json_schema_becomes_typed_columns() -> None:
    reader = Reader(SCHEMA)
    assert reader.format.name == "Label it"
    good = {"topic": "a", "count": 1.0, "day": "2026-02-01", "either": None, "items": [{"x": 1}], "any": [1]}
    columns, reasons = read(reader, json.dumps(good), '{"topic": null, "count": 2, "loop": {"topic":"b","count":1}}')
    assert reasons == [None, None]
    assert columns["count"].to_pylist() == [1, 2]
    assert columns["day"].to_pylist() == [date(2026, 2, 1), None]
    assert columns["any"].to_pylist() == ["[1]", None]
    assert columns["loop"].to_pylist()[1] == '{"count":1,"topic":"b"}'


MISFITS = [
    "",
    " ",
    "null",
    "[]",
    '"text"',
    "5",
    "I think it is: a",
    '```json\n{"topic": "a", "count": 1}\n```',
    '{"topic": "a", "count": 1',
    '{"topic": "a", "coun',
    '{"topic": "a", "count": 1} and more',
    '{"topic": "a"}',
    '{"topic": "c", "count": 1}',
    '{"topic": "a", "count": "one"}',
    '{"topic": "a", "count": -1}',
    '{"topic": "a", "count": 1.5}',
    '{"topic": "a", "count": 1, "extra": 1}',
    '{"topic": "a", "count": 99999999999999999999999999999999}',
    '{"topic": "a", "count": ' + "9" * 5_000 + "}",
    '{"topic": "a", "count": 1e400}',
    '{"topic": "a", "count": NaN}',
    '{"topic": "a", "count": -Infinity}',
    '{"topic": "a", "count": 1, "day": "2026-02-30"}',
    '{"topic": "a", "count": 1, "day": "soon"}',
    '{"topic": "\ud800", "count": 1}',
    '{"topic": "\\ud800", "count": 1}',
    '{"topic": "a\x00", "count": 1}',
    "[" * 100_000,
    '{"loop":' * 5_000,
    '{"topic": "a", "count": 1, "loop": ' * 2_000 + "{}" + "}" * 2_000,
    "\ufeff{}",
]


class Strict(BaseModel):
    """SCHEMA as a model."""

    model_config = ConfigDict(extra="forbid")
    topic: Literal["a", "b"] | None
    count: Annotated[int, Field(ge=0)]
    day: date | None = None
    loop: Strict | None = None


@pytest.mark.parametrize("response", [Strict, SCHEMA], ids=["model", "schema"])
def test_what_does_not_fit_has_a_reason_and_leaves_its_neighbours_alone(response: Any) -> None:
    reader = Reader(response)
    good = '{"topic": "a", "count": 7}'
    texts = [part for text in MISFITS for part in (text, good)]
    columns, reasons = read(reader, *texts)
    for text, reason in zip(MISFITS, reasons[::2], strict=True):
        assert reason, text[:60]
        assert len(reason) <= 500
        reason.encode()  # can be stored
    assert reasons[1::2] == [None] * len(MISFITS)
    assert columns["count"].to_pylist()[1::2] == [7] * len(MISFITS)


GOOD = '{"topic": "a", "count": 7}'
FENCED = [
    f"```json\n{GOOD}\n```",
    f"```\n{GOOD}\n```",
    f" \n```JSON\n{GOOD}\n```\n\n",
    f"```json{GOOD}```",
    f"```json\r\n{GOOD}\r\n```",
]
NOT_FENCED = [
    f"Here it is:\n```json\n{GOOD}\n```",
    f"```json\n{GOOD}",
    f"{GOOD}\n```",
    f"```json\n{GOOD}\n```\n```json\n{GOOD}\n```",
    '```json\n{"topic": "c"}\n```',
    "```json\n```",
    "``````",
    "```",
    "`" + GOOD + "`",
]


class Loose(BaseModel):
    """A plain class, so that msgspec reads it."""

    topic: Literal["a", "b"]
    count: int


@pytest.mark.parametrize("response", [Loose, Strict, SCHEMA], ids=["plain", "model", "schema"])
def test_json_in_fences_is_read_where_nobody_enforced_the_format_and_only_there(response: Any) -> None:
    texts = [part for text in [*FENCED, *NOT_FENCED] for part in (text, GOOD, None)]
    reader, nothing = Reader(response), [None] * len(texts)
    strict = reader.read(texts, nothing)
    assert [reason is None for reason in strict.reasons[::3]] == [False] * len(FENCED + NOT_FENCED)
    assert not strict.fenced
    read = reader.read(texts, nothing, may_be_fenced=True)
    assert read.reasons[: 3 * len(FENCED)] == [None] * 3 * len(FENCED)
    assert all(read.reasons[3 * len(FENCED) :: 3])
    assert list(read.fenced) == [3 * at for at in range(len(FENCED))]
    assert read.columns["count"].to_pylist()[::3] == [7] * len(FENCED) + [None] * len(NOT_FENCED)
    assert read.columns["count"].to_pylist()[1::3] == [7] * len(FENCED + NOT_FENCED)


def test_a_text_that_stands_in_fences_stays_as_it_is() -> None:
    read = Reader(None).read(FENCED, [None] * len(FENCED), may_be_fenced=True)
    assert read.columns["text"].to_pylist() == FENCED
    assert not read.fenced


class Measured(BaseModel):
    """All shapes that hold a number; not plain, because of its default."""

    score: float = 0.5
    scores: list[float] = []
    parts: list[dict[str, float]] = []
    odd: dict[str, float] | float = 1.0


@table("number", ["1e999", "-1e999", "9" * 400 + ".0", '"Infinity"', '"-inf"', '"nan"', "1" * 400])
@table("shape", ['"score": {}', '"scores": [1, {}]', '"parts": [{{"x": {}}}]', '"odd": {{"x": {}}}'])
def test_a_number_that_no_float_holds_does_not_fit(number: str, shape: str) -> None:
    texts = ['{"score": 1e308}', f"{{{shape.format(number)}}}", '{"odd": {"x": 2}}']
    columns, reasons = read(Reader(Measured), *texts)
    assert [bool(reason) for reason in reasons] == [False, True, False]
    assert columns["score"].to_pylist()[::2] == [1e308, 0.5]
    assert not any("nfinity" in text or "NaN" in text for text in columns["odd"].to_pylist() if text)


def test_a_vector_with_a_number_that_is_none_does_not_fit() -> None:
    parsed = Reader(Embedding()).read([None] * 3, [[1.0, 2.0], [1.0, 1e300], None])
    assert [bool(reason) for reason in parsed.reasons] == [False, True, False]
    assert parsed.columns["embedding"].to_pylist() == [[1.0, 2.0], None, None]


def test_a_reason_names_the_place() -> None:
    [reason] = read(Reader(Everything), json.dumps({**REPLY, "parts": [{"name": 5}], "mood": "odd"}))[1]
    assert reason is not None
    assert "parts.0.name" in reason
    assert "mood" in reason
    [reason] = read(Reader(SCHEMA), '{"topic": "a", "count": 1, "items": [{"x": "y"}]}')[1]
    assert reason is not None
    assert "$.items[0].x" in reason


@given(st.text(st.one_of(st.characters(codec=None), st.sampled_from('{}[]":,\ud800\udfff\0')), max_size=60))
def test_reading_never_raises_on_any_text(text: str) -> None:
    for response in (None, Strict, SCHEMA, Everything):
        columns, [reason] = read(Reader(response), text)
        if response is None and reason is None:
            assert columns["text"].to_pylist() == [text]
        elif response is not None:
            assert reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("2026-01-01"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "when", "scores", "x"]), inner)
    ),
    max_leaves=6,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys((*REPLY, *SCHEMA["properties"]), JSON)))  # type: ignore[misc]
def test_reading_never_raises_on_any_json_and_fits_are_exact(reply: dict[str, Any]) -> None:
    for response in (Everything, SCHEMA):
        columns, [reason] = read(Reader(response), json.dumps(reply))
        if reason is None and "count" in columns.schema.names:
            assert columns["count"].to_pylist() == [reply["count"]]


PIECES = [
    json.dumps(REPLY),
    json.dumps(REPLY | {"size": 9}),
    '{"mood":',
    '"',
    ",",
    "[",
    "}",
    "null",
    " ",
    "NaN",
    "\ud800",
]


@given(st.lists(st.none() | st.lists(st.sampled_from(PIECES), max_size=3).map("".join), max_size=40))
def test_replies_read_together_are_read_as_each_by_itself(texts: list[str | None]) -> None:
    """Draw any replies, such as the end of one reply and the start of the next."""
    reader = Reader(Everything)
    together = reader.read(texts, [None] * len(texts))
    apart = [reader.read([text], [None]) for text in texts]
    assert together.reasons == [reading.reasons[0] for reading in apart]
    assert together.columns.to_pylist() == [reading.columns.to_pylist()[0] for reading in apart]


def test_a_validator_of_the_user_that_fails_in_any_way_is_a_reason() -> None:
    class Odd(BaseModel):
        x: int

        @field_validator("x")
        @classmethod
        def check(cls, value: int) -> int:
            return {1: 1}[value]

    columns, reasons = read(Reader(Odd), '{"x": 1}', '{"x": 2}')
    assert columns["x"].to_pylist() == [1, None]
    assert reasons[0] is None
    assert "KeyError" in (reasons[1] or "")


def test_an_integer_too_big_for_its_column_is_a_reason() -> None:
    class Big(BaseModel):
        x: int
        y: list[int] = []

    columns, reasons = read(Reader(Big), '{"x": 1}', f'{{"x": {2**70}}}', f'{{"x": 1, "y": [{2**70}]}}')
    assert columns["x"].to_pylist() == [1, None, 1]
    assert [reason is None for reason in reasons] == [True, False, False]
    assert "x: does not fit a column of type int64" in (reasons[1] or "")


def test_free_text_is_kept_as_it_is() -> None:
    columns, reasons = read(Reader(None), "a\u2028b\0", None, "", "half \ud83d")
    assert columns["text"].to_pylist() == ["a\u2028b\0", None, "", None]
    assert reasons[:3] == [None, None, None]
    assert "half a surrogate pair" in (reasons[3] or "")


def test_embeddings_of_another_length_have_a_reason() -> None:
    reader = Reader(Embedding(2))
    reading = reader.read([None] * 4, [[1.0, 2.0], [1.0], None, []])
    assert reading.columns["embedding"].to_pylist() == [[1.0, 2.0], None, None, None]
    assert [reason is None for reason in reading.reasons] == [True, False, True, False]
    assert "1 dimensions, asked for 2" in (reading.reasons[1] or "")
    assert Reader(Embedding()).read([None], [[1.0]]).reasons == [None]


def test_a_null_reply_reads_as_nulls_without_a_reason() -> None:
    columns, reasons = read(Reader(Strict), None)
    assert columns.to_pylist() == [{"topic": None, "count": None, "day": None, "loop": None}]
    assert reasons == [None]


def test_a_model_that_holds_itself_has_its_fields_as_columns() -> None:
    class Node(BaseModel):
        name: str
        children: list[Node] = []

    Node.model_rebuild(_types_namespace={"Node": Node})
    columns, reasons = read(Reader(Node), '{"name": "a", "children": [{"name": "b"}]}')
    assert reasons == [None]
    assert columns.to_pylist() == [{"name": "a", "children": '[{"children":[],"name":"b"}]'}]


def test_formats_say_what_kind_they_are() -> None:
    kinds = [response_format(response).kind for response in (None, str, Embedding(), Strict, SCHEMA)]
    assert kinds == [
        ResponseKind.TEXT,
        ResponseKind.TEXT,
        ResponseKind.EMBEDDING,
        ResponseKind.JSON,
        ResponseKind.JSON,
    ]
    assert response_format(Strict).name == "Strict"
    assert response_format({"type": "object", "properties": {"a": {}}}).name == "response"


class Listed(RootModel[list[int]]):
    pass


class NoJson(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    thing: pa.Table


@table(
    "response",
    [
        5,
        "text",
        [str],
        Strict.model_construct(topic="a", count=1),
        {"type": "array"},
        {"type": "object"},
        {"type": 7},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/gone"}}},
        {"type": "object", "properties": {"a": {"$ref": "https://example.org/x.json"}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
        Listed,
        NoJson,
    ],
)
def test_what_is_no_response_format_is_refused(response: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Reader(response)
    assert not isinstance(response, type | dict) or isinstance(caught.value, ResponseSchemaError)


def test_reading_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(Reader(Everything), json.dumps(REPLY))
        read(Reader(SCHEMA), '{"topic": "a", "count": 1}')
