"""The quick reader of replies gives the same values as pydantic, or leaves the reply to pydantic."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, StrEnum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    computed_field,
    create_model,
    field_validator,
)

from dagster_llm_batch.core.plain_model import plain_decoder
from dagster_llm_batch.core.response import Reader
from tests.tables import table


def decoder_of(model: type[BaseModel]) -> Callable[[str], dict[str, Any]] | None:
    """Return a function that decodes a reply to its fields, or None."""
    decode = plain_decoder(model, list(model.model_fields))
    return None if decode is None else lambda text: msgspec.to_builtins(decode(text))


class Plain(BaseModel):
    row: int
    label: Literal["good", "bad"]
    score: float
    sure: bool
    topics: list[str]
    note: str | None = None
    numbers: list[int | None] | None = None


class Kind(StrEnum):
    NEW = "new"
    OLD = "old"


class Bounded(BaseModel):
    urgency: Annotated[int, Field(ge=1, le=5)]
    beyond: Annotated[int, Field(gt=-3, lt=3)]
    share: Annotated[float, Field(ge=0, le=1)]
    inside: Annotated[float, Field(gt=-0.5, lt=0.5)]
    title: Annotated[str, Field(min_length=1, max_length=3)]
    tags: Annotated[list[Annotated[str, Field(max_length=2)]], Field(min_length=1, max_length=2)]
    grade: Literal[1, 2]
    kind: Kind
    rank: int | None = Field(default=None, ge=0)


def given_by_pydantic(text: str, model: type[BaseModel] = Plain) -> Any:
    try:
        return model.model_validate_json(text).model_dump(mode="json")
    except ValidationError:
        return None


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=6)
)
VALUES = st.one_of(SCALARS, st.sampled_from(["good", "bad", "1", "true", "1.0"]), st.lists(SCALARS, max_size=3))
FITTING = {
    "row": st.integers(),
    "label": st.sampled_from(["good", "bad"]),
    "score": st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers()),
    "sure": st.booleans(),
    "topics": st.lists(st.text(max_size=6), max_size=3),
}
REPLIES = st.builds(
    lambda fits, more: {**fits, **more},
    st.fixed_dictionaries(FITTING, optional={"note": st.none() | st.text(max_size=6)}),
    st.dictionaries(st.sampled_from([*Plain.model_fields, "other"]), VALUES, max_size=2),
).map(json.dumps)


@given(REPLIES)
@example('{"row":1,"label":"good","score":1,"sure":true,"topics":[],"row":2}')
@example('{"row":1,"row":1,"row":1,"row":1,"row":1}')
@example(' {"row":1,"label":"good","score":-0,"sure":true,"topics":["\\u0000"],"other":{"row":[1]}}\n')
@example('{"row":1.0,"label":"good","score":1e400,"sure":1,"topics":[]}')
@example('{"row":1,"label":"good","score":NaN,"sure":true,"topics":[]}')
@example('{"row":1,"label":"good","score":1,"sure":true,"topics":["\\ud800"]}')
@example(
    '{"row":123456789012345678901234567890,"label":"bad","score":123456789012345678901234567890,"sure":true,"topics":[]}'
)
@example('{"row":1,"label":"good","score":1,"sure":true,"topics":[]} and more')
def test_what_it_takes_has_the_values_that_pydantic_gives(text: str) -> None:
    decode = decoder_of(Plain)
    assert decode is not None
    try:
        found = decode(text)
    except ValueError:
        return
    wanted = given_by_pydantic(text)
    assert found == wanted
    assert [type(found[name]) for name in FITTING] == [type(wanted[name]) for name in FITTING]


EDGES = [
    *(-0.5, -0.0, 0.0, 0.5, 1.0, 5e-324, math.nextafter(-0.5, 0), math.nextafter(0.5, 0), math.nextafter(0.5, 1)),
    *(math.nextafter(0.0, -1), math.nextafter(1.0, 0), math.nextafter(1.0, 2), 1e308, 2.0, 5.0),
]
WHOLE = st.integers(-7, 7) | st.integers() | st.sampled_from([1 << 63, -(1 << 63), 1 << 64, 10**30, -(10**30)])
REAL = st.sampled_from(EDGES) | WHOLE | st.floats(-2, 2) | st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(max_size=4) | st.sampled_from(["", "e\u0301", "\U0001f600" * 3, "\U0001f600" * 4, "\0", "new", "NEW"])
BOUNDED = st.fixed_dictionaries(
    {
        "urgency": st.integers(1, 5),
        "beyond": st.integers(-2, 2),
        "share": st.floats(0, 1),
        "inside": st.floats(-0.5, 0.5, exclude_min=True, exclude_max=True),
        "title": st.text(min_size=1, max_size=3),
        "tags": st.lists(st.text(max_size=2), min_size=1, max_size=2),
        "grade": st.sampled_from([1, 2]),
        "kind": st.sampled_from([one.value for one in Kind]),
    },
    optional={"rank": st.none() | st.integers(min_value=0)},
)


OWN: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(["urgency", "beyond", "grade"], (int,)),
    **dict.fromkeys(["share", "inside"], (int, float)),
    **dict.fromkeys(["title", "kind"], (str,)),
    "tags": (list,),
    "rank": (int, type(None)),
}
"""Both readers agree on these types; the quick reader leaves replies that pydantic coerces."""


@given(
    BOUNDED,
    st.sampled_from([*Bounded.model_fields, None]),
    WHOLE | REAL | WORDS | st.lists(WORDS, max_size=3) | st.booleans() | st.none(),
)
def test_bounds_decide_as_those_of_pydantic(reply: dict[str, Any], name: str | None, value: Any) -> None:
    decode = decoder_of(Bounded)
    assert decode is not None
    text = json.dumps(reply if name is None else {**reply, name: value})
    wanted = given_by_pydantic(text, Bounded)
    try:
        found = decode(text)
    except ValueError:
        assert wanted is None or (name is not None and type(value) not in OWN[name]), text
        return
    assert wanted is not None, text
    assert found == wanted
    assert [type(found[field]) for field in reply] == [type(wanted[field]) for field in reply]


def test_it_takes_what_fits() -> None:
    reply = {"row": 1, "label": "good", "score": 0.5, "sure": True, "topics": ["a"], "note": "n", "numbers": [1, None]}
    decode = decoder_of(Plain)
    assert decode is not None
    assert decode(json.dumps(reply)) == reply


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class StrictModel(BaseModel):
    model_config = ConfigDict(strict=True)
    a: int


class Trimmed(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)
    a: str


class Patterned(BaseModel):
    a: Annotated[str, Field(pattern="^a")]


class Multiple(BaseModel):
    a: Annotated[int, Field(multiple_of=2)]


class Stripped(BaseModel):
    a: Annotated[str, StringConstraints(strip_whitespace=True, max_length=3)]


class FarBounded(BaseModel):
    a: Annotated[int, Field(ge=1 << 70)]


class StrictField(BaseModel):
    a: Annotated[int, Field(strict=True, ge=1)]


class Named(BaseModel):
    a: int = Field(alias="b")


class Defaulted(BaseModel):
    a: list[int] = [3]


class Made(BaseModel):
    a: list[int] = Field(default_factory=lambda: [3])


class Checked(BaseModel):
    a: int

    @field_validator("a")
    @classmethod
    def _more(cls, value: int) -> int:
        return value + 1


class Computed(BaseModel):
    a: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def b(self) -> int:
        return self.a + 1


class After(BaseModel):
    a: int

    def model_post_init(self, _: Any) -> None:
        self.a += 1


class Containing(BaseModel):
    a: list[Checked]


class ContainingTwice(BaseModel):
    a: Computed
    b: Computed | None = None


class Endless(BaseModel):
    a: list[Endless]


class Shown(BaseModel):
    a: Annotated[int, PlainSerializer(lambda value: value + 1)]


class ContainingShown(BaseModel):
    a: Shown


class Flagged(BaseModel):
    a: Literal[True]


class Numbers(Enum):
    ONE = 1


class Enumerated(BaseModel):
    a: Numbers


OTHERS = [
    *(Open, StrictModel, Trimmed, Patterned, Multiple, Stripped, FarBounded, StrictField, Named, Defaulted, Made),
    *(Checked, Computed, After, Containing, ContainingTwice, Endless, Shown, ContainingShown, Flagged, Enumerated),
]


@table("model", OTHERS, ids=lambda model: model.__name__)
def test_a_model_with_ways_of_its_own_is_left_to_pydantic(model: type[BaseModel]) -> None:
    assert decoder_of(model) is None


class Turned(BaseModel):
    """Its JSON Schema has another order."""

    model_config = ConfigDict(json_schema_extra=lambda schema: _turn(schema["properties"]))
    a: int
    b: str


def _turn(properties: dict[str, Any]) -> None:
    properties["a"] = properties.pop("a")


class Fewer(BaseModel):
    """Its JSON Schema has less."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema["properties"].pop("a"))
    a: int
    b: str


class Optional(BaseModel):
    a: int | None = None
    b: str


class Score(BaseModel):
    """Its defaults are of other types than its fields."""

    share: float = 1
    most: float | None = True
    rank: int = True
    either: Literal["a", 1] = "a"


class Scores(BaseModel):
    """A column of JSON text, because its fields allow texts and numbers."""

    scores: list[list[Score]]


def test_defaults_are_written_as_pydantic_writes_them() -> None:
    reader = Reader(Scores)
    assert reader._plain is not None
    text = '{"scores":[[{}]]}'
    wanted = '[[{"share":1.0,"most":1.0,"rank":1,"either":"a"}]]'
    assert Scores.model_validate_json(text).model_dump_json() == f'{{"scores":{wanted}}}'
    # Such a column has its names sorted.
    wanted = '[[{"either":"a","most":1.0,"rank":1,"share":1.0}]]'
    assert reader.read([text], [None]).columns["scores"].to_pylist() == [wanted]


MODELS = [Plain, Bounded, Turned, Fewer, Optional]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_columns_hold_their_own_fields(model: type[BaseModel]) -> None:
    replies = {
        Plain: ['{"topics":["x"],"sure":true,"score":2,"label":"bad","row":7}'],
        Bounded: ['{"kind":"old","grade":2,"tags":["b"],"title":"t","inside":0,"share":1,"beyond":2,"urgency":3}'],
        Turned: ['{"a":1,"b":"x"}'],
        Fewer: ['{"a":1,"b":"x"}'],
        Optional: ['{"b":"x"}', '{"b":"y","a":2}'],
    }[model]
    texts = [*replies, None, *replies]
    reading = Reader(model).read(texts, [None] * len(texts))
    assert reading.reasons == [None] * len(texts)
    names = reading.columns.column_names
    wanted = [{} if text is None else given_by_pydantic(text, model) for text in texts]
    assert reading.columns.to_pylist() == [{name: one.get(name) for name in names} for one in wanted]


def test_one_that_does_not_fit_leaves_the_others_as_they_are() -> None:
    good = '{"row":%d,"label":"good","score":1,"sure":true,"topics":[]}'
    texts = [good % number for number in range(100)]
    texts[70] = '{"row":70}'
    texts[80] = good % (1 << 70)
    reading = Reader(Plain).read(texts, [None] * 100)
    rows = reading.columns["row"].to_pylist()
    assert rows == [None if number in (70, 80) else number for number in range(100)]
    assert [at for at, reason in enumerate(reading.reasons) if reason] == [70, 80]
    assert "Field required" in str(reading.reasons[70])
    assert "does not fit a column of type int64" in str(reading.reasons[80])


def _literals(values: list[Any]) -> Any:
    return Literal[tuple(values)]


CHOICES = st.lists(st.text(max_size=3) | st.integers(-3, 3), min_size=1, max_size=4, unique=True).map(_literals)
LEAVES = st.sampled_from(
    [str, int, float, bool, Kind, Annotated[int, Field(ge=0, le=9)], Annotated[str, Field(max_length=2)]]
)


def _model(fields: dict[str, tuple[Any, str]], extra: Any) -> type[BaseModel]:
    defaults: dict[str, Any] = {"needed": ..., "null": None, "one": 1, "word": "w", "empty": [], "half": 0.5}
    drawn: Any = {
        name: (kind | None if default == "null" else kind, defaults[default])
        for name, (kind, default) in fields.items()
    }
    return create_model("Drawn", __config__=ConfigDict(extra=extra), **drawn)


def _grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    model = st.builds(
        _model,
        st.dictionaries(
            st.sampled_from("abc"),
            st.tuples(inner, st.sampled_from(["needed", "needed", "null", "one", "word", "empty", "half"])),
            min_size=1,
        ),
        st.sampled_from(["ignore", "forbid"]),
    )
    return model | inner.map(lambda kind: list[kind]) | inner.map(lambda kind: kind | None)


KINDS = st.recursive(LEAVES | CHOICES | st.tuples(CHOICES, CHOICES).map(lambda two: two[0] | two[1]), _grown)
DRAWN = st.builds(
    _model,
    st.dictionaries(st.sampled_from("abcd"), st.tuples(KINDS, st.sampled_from(["needed", "null", "one"])), min_size=1),
    st.sampled_from(["ignore", "forbid"]),
)
JSON = st.recursive(
    SCALARS | st.sampled_from(["new", "1", 1e400]), lambda part: st.lists(part, max_size=2), max_leaves=3
)


def _fitting(draw: st.DrawFn, schema: Any, defs: Any) -> Any:
    """Draw a value that mostly fits a JSON Schema."""
    if draw(st.integers(0, 40)) == 0:
        return draw(JSON)
    schema = defs[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if "anyOf" in schema:
        return _fitting(draw, draw(st.sampled_from(schema["anyOf"])), defs)
    if "const" in schema or "enum" in schema:
        return draw(st.sampled_from(schema.get("enum") or [schema["const"]]))
    if schema["type"] == "object":
        needed = schema.get("required", ())
        kept = {name: sub for name, sub in schema["properties"].items() if name in needed or draw(st.booleans())}
        more = {"other": 1} if draw(st.integers(0, 9)) == 0 else {}
        return {name: _fitting(draw, sub, defs) for name, sub in kept.items()} | more
    if schema["type"] == "array":
        return [_fitting(draw, schema["items"], defs) for _ in range(draw(st.integers(0, 2)))]
    bounded = st.integers(schema.get("minimum", -9), schema.get("maximum", 1 << 64))
    reals = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3)
    words = st.text(max_size=schema.get("maxLength", 5))
    kinds = {"string": words, "integer": bounded, "number": reals, "boolean": st.booleans(), "null": st.none()}
    return draw(kinds[schema["type"]])


@st.composite
def models_and_replies(draw: st.DrawFn) -> tuple[type[BaseModel], list[str]]:
    model = draw(DRAWN)
    schema = model.model_json_schema()
    count = draw(st.integers(1, 3))
    return model, [json.dumps(_fitting(draw, schema, schema.get("$defs"))) for _ in range(count)]


def test_any_plain_model_gives_the_columns_and_reasons_of_pydantic() -> None:
    """Compare drawn schemas, nested and with choices and defaults; all are plain, and both readers agree.

    By hand with more: HYPOTHESIS_EXAMPLES=20000.
    """
    quick = 0
    examples = int(os.environ.get("HYPOTHESIS_EXAMPLES", "80"))

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(models_and_replies())
    def check(drawn: tuple[type[BaseModel], list[str]]) -> None:
        nonlocal quick
        model, replies = drawn
        reader, slow = Reader(model), Reader(model)
        assert reader._plain is not None
        slow._plain = None
        with suppress(ValueError):
            quick += len(list(map(reader._plain, replies)))
        for texts in (replies, *([one] for one in replies)):
            found, wanted = (each.read(texts, [None] * len(texts)) for each in (reader, slow))
            assert found.reasons == wanted.reasons
            assert str(found.columns.to_pylist()) == str(wanted.columns.to_pylist())

    check()
    # Else this would compare refusals alone.
    assert quick
