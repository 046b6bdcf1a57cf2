"""The quicker reader of replies gives what pydantic gives, or leaves the reply to it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field, field_validator

from dagster_llm_batch.core.plain_replies import plain_decoder


class Plain(BaseModel):
    row: int
    label: Literal["good", "bad"]
    score: float
    sure: bool
    topics: list[str]
    note: str | None = None
    numbers: list[int | None] | None = None


def given_by_pydantic(text: str) -> Any:
    try:
        return Plain.model_validate_json(text).model_dump(mode="json")
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
    decode = plain_decoder(Plain)
    assert decode is not None
    try:
        found = decode(text)
    except ValueError:
        return
    wanted = given_by_pydantic(text)
    assert {**dict.fromkeys(Plain.model_fields), **found} == wanted
    assert [type(found[name]) for name in FITTING] == [type(wanted[name]) for name in FITTING]


def test_it_takes_what_fits() -> None:
    reply = {"row": 1, "label": "good", "score": 0.5, "sure": True, "topics": ["a"], "note": "n", "numbers": [1, None]}
    decode = plain_decoder(Plain)
    assert decode is not None
    assert decode(json.dumps(reply)) == reply


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int


class Trimmed(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)
    a: str


class Bounded(BaseModel):
    a: Annotated[int, Field(ge=1)]


class Named(BaseModel):
    a: int = Field(alias="b")


class Defaulted(BaseModel):
    a: int = 3


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


class Nested(BaseModel):
    a: Plain


class Numbered(BaseModel):
    a: Literal[1, 2]


OTHERS = [Strict, Trimmed, Bounded, Named, Defaulted, Checked, Computed, After, Nested, Numbered]


@pytest.mark.parametrize("model", OTHERS, ids=lambda model: model.__name__)
def test_a_model_with_ways_of_its_own_is_left_to_pydantic(model: type[BaseModel]) -> None:
    assert plain_decoder(model) is None
