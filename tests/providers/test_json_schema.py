"""Rules of all vendors' schemas: shapes that replies cannot have are refused by name and path."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from dagster_llm_batch.errors import ResponseSchemaError
from dagster_llm_batch.providers.anthropic.schema import ANTHROPIC_RULES
from dagster_llm_batch.providers.bedrock.schema import BEDROCK_RULES
from dagster_llm_batch.providers.google.schema import GOOGLE_RULES, claude_on_vertex_schema
from dagster_llm_batch.providers.json_schema import lower_schema
from dagster_llm_batch.providers.openai_api.schema import STRICT_RULES
from tests.tables import table

RULES = (STRICT_RULES, ANTHROPIC_RULES, BEDROCK_RULES, GOOGLE_RULES)
LOWER = {
    **{rules.vendor: partial(lower_schema, rules=rules) for rules in RULES},
    "Claude on Vertex AI": claude_on_vertex_schema,
}
RECURSION = ["Anthropic", "Bedrock", "Gemini", "Claude on Vertex AI"]  # these refuse it


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Node(BaseModel):
    children: list[Node] = []


def of(part: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": part}, **more}


A = "$.properties.a"
TEXT = {"type": "string"}
NAMED_A = {"$ref": "#/$defs/A"}
REFUSED = [
    ({"type": "array", "items": TEXT}, "$", "type 'array'"),
    (TEXT, "$", "type 'string'"),
    ({"anyOf": [of(TEXT)]}, "$", "'anyOf'"),
    ({"oneOf": [of(TEXT)]}, "$", "'anyOf'"),
    ({"type": "object"}, "$", "an object without properties"),
    ({"type": "object", "properties": {}}, "$", "an object without properties"),
    (Open.model_json_schema(), "$", "'additionalProperties', a map with free keys"),
    (of(TEXT, **{"if": {}}), "$", "'if'"),
    (of(TEXT, dependentRequired={"a": ["b"]}), "$", "'dependentRequired'"),
    (of(TEXT, required=["b"]), "$", "the required property 'b'"),
    (of({"type": "object"}), A, "an object without 'properties', a map with free keys"),
    (of({"type": "object", "additionalProperties": TEXT}), A, "'additionalProperties', a map with free keys"),
    (of({"type": "object", "patternProperties": {"a": {}}}), A, "'patternProperties'"),
    (of({"type": "array", "prefixItems": [TEXT]}), A, "'prefixItems'"),
    (of({"type": "array", "items": [TEXT]}), f"{A}.items", "a tuple"),
    (of({"type": "array", "items": {"not": {}}}), f"{A}.items", "'not'"),
    (of({"type": "array"}), A, "an array without 'items'"),
    (of({"allOf": [TEXT, {"pattern": "x"}]}), A, "'allOf' of several schemas"),
    (of({}), A, "a value of any type"),
    (of(True), A, "the schema True"),
    (of({"type": "text"}), A, "the type 'text'"),
    (of({"enum": [["x"]]}), A, "value"),
    (of({"enum": []}), A, "an empty enum"),
    (of({"anyOf": []}), A, "an empty 'anyOf'"),
    (of({"anyOf": [TEXT], "properties": {"b": TEXT}}), A, "'anyOf' beside 'properties'"),
    (of({"anyOf": [TEXT], "oneOf": [TEXT]}), A, "'oneOf' beside 'anyOf'"),
    (of({"$ref": "other.json"}), A, "the reference 'other.json'"),
    (of({"$ref": "#/$defs/No"}), A, "the reference '#/$defs/No'"),
]


@table("vendor", LOWER)
@table(("schema", "path", "construct"), REFUSED, ids=[f"{p[-8:]} {c}" for _, p, c in REFUSED])
def test_what_changes_the_shape_of_a_reply_is_refused_with_vendor_construct_and_path(vendor, schema, path, construct):
    with pytest.raises(ResponseSchemaError) as caught:
        LOWER[vendor](schema)
    message = str(caught.value)
    assert message.startswith(f"{vendor} cannot take this response schema: ")
    assert construct in message
    assert f" at {path};" in message


@table("vendor", RECURSION)
@table(
    ("schema", "construct"),
    [
        (Node.model_json_schema(), "the recursive definition 'Node'"),
        (of(NAMED_A, **{"$defs": {"A": of(NAMED_A)}}), "the recursive definition 'A'"),
        (of({"$ref": "#"}), "the recursive reference '#'"),
    ],
)
def test_recursion_is_refused_where_no_dialect_has_it(vendor, schema, construct):
    with pytest.raises(ResponseSchemaError, match=construct):
        LOWER[vendor](schema)


@pytest.mark.parametrize("vendor", LOWER)
def test_a_type_beside_alternatives_is_that_of_each_and_the_callers_schema_is_not_changed(vendor):
    schema = of({"type": "string", "anyOf": [{"minLength": 1}, {"pattern": "a+"}]})
    lowered = LOWER[vendor](schema)
    assert [part["type"].lower() for part in lowered["properties"]["a"]["anyOf"]] == ["string", "string"]
    assert schema == of({"type": "string", "anyOf": [{"minLength": 1}, {"pattern": "a+"}]})
