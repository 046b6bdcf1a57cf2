"""Choices that are added to a response: answers to the older one stay allowed."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

from pydantic import Field, create_model

from dagster_llm_batch.core.json_schema import fits_all_of
from tests.tables import table


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def choice(*values: Any) -> dict[str, Any]:
    return {"enum": list(values)}


NULL = {"type": "null"}
CASES = [
    (schema(a=choice("x")), schema(a=choice("x")), True),
    (schema(a=choice("y", "x")), schema(a=choice("x")), True),
    (schema(a=choice("x")), schema(a=choice("x", "y")), False),
    (schema(a={**choice("x"), "title": "A"}), schema(a=choice("x")), True),
    (schema(a=choice("x"), b=choice("x")), schema(a=choice("x")), False),
    (schema(a=choice("x")), schema(a=choice("x"), b=choice("x")), False),
    (schema(a=choice(1, 2)), schema(a=choice(True)), False),
    (schema(a=choice(None, "x")), schema(a=choice("x")), True),
    (schema(a={"not": choice("x", "y")}), schema(a={"not": choice("x")}), False),
    (schema(a={"anyOf": [choice("x", "y"), NULL]}), schema(a={"anyOf": [choice("x"), NULL]}), True),
    (schema(a={"anyOf": [choice("x")]}), schema(a={"anyOf": [choice("x"), NULL]}), False),
    (schema(a={"items": choice("x", "y")}), schema(a={"items": choice("x")}), True),
    (schema(a={"type": "integer", "minimum": 1}), schema(a={"type": "integer"}), False),
    (schema(enum=choice("x", "y")), schema(enum=choice("x")), True),
    ({"$defs": {"T": choice("x", "y")}}, {"$defs": {"T": choice("x")}}, True),
    (None, None, True),
    (None, schema(), False),
]


@table(("present", "older", "fits"), CASES)
def test_a_schema_with_more_choices_has_a_place_for_each_older_value(present: Any, older: Any, fits: bool) -> None:
    assert fits_all_of(present, older) is fits


def test_classes_with_more_choices_have_a_place_for_each_older_value() -> None:
    def response(topics: list[str], sure: Any) -> dict[str, Any]:
        topic = Enum("Topic", {name: name for name in topics})  # type: ignore[misc]
        return create_model("Label", topic=(topic, ...), sure=(sure, Field(description=str(sure)))).model_json_schema()

    older = response(["bug"], Literal["yes", "no"])
    present = response(["bug", "other"], Literal["yes", "no", "hardly"])
    assert fits_all_of(present, older)
    assert not fits_all_of(older, present)
