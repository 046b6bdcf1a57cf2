"""Schemas may come from others: references are not fetched, and patterns have bounded time."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dagster_llm_batch.core.json_schema import Fit, check_json_schema
from dagster_llm_batch.errors import InputError, ResponseSchemaError
from dagster_llm_batch.review.forms import LabelForm

# Python's own engine takes hours for it.
ENDLESS = r"^(a+)+$"
TEXT = "a" * 40 + "!"


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


class _Asked(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silent."""


def test_a_reference_is_fetched_neither_from_the_network_nor_from_a_disk(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "string"}')
    with ThreadingHTTPServer(("127.0.0.1", 0), _Asked) as server:
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for address in (f"http://127.0.0.1:{server.server_port}/s.json", (tmp_path / "s.json").as_uri()):
            schema = of(n={"$ref": address})
            with pytest.raises(ResponseSchemaError, match="must point into the schema"):
                Fit(schema).misfit({"n": "x"})
            with pytest.raises(InputError, match="must point into the schema"):
                LabelForm("d", "id", schema).answer({"n": '"x"'})
        server.shutdown()
    assert server.asked == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("schema", "fits", "misfits"),
    [
        (of(n={"pattern": ENDLESS}), {"n": "aaa"}, {"n": TEXT}),
        ({"type": "object", "patternProperties": {ENDLESS: False}}, {TEXT: 1}, {"aaa": 1}),
        (
            {"type": "object", "patternProperties": {ENDLESS: True}, "additionalProperties": False},
            {"aaa": 1},
            {TEXT: 1},
        ),
        (of(n={"pattern": "^(?!b)a"}), {"n": "ab"}, {"n": "ba"}),
    ],
)
def test_a_pattern_is_matched_in_time(schema: dict[str, Any], fits: Any, misfits: Any) -> None:
    assert Fit(schema).misfit(fits) is None
    assert Fit(schema).misfit(misfits) is not None


@pytest.mark.parametrize("pattern", [r"^(?=a)(a+)+$", r"(?=a)(a|b*)*c", r"(?=.)a*a*a*b", r"(a+)+\1"])
def test_a_pattern_that_may_run_without_end_is_refused_where_it_is_declared_and_else_not_looked_at(
    pattern: str,
) -> None:
    schema = of(n={"type": "string", "pattern": pattern})
    with pytest.raises(ResponseSchemaError, match="may run without end"):
        check_json_schema(schema)
    assert Fit(schema).misfit({"n": TEXT * 1_000}) is None


def test_a_long_text_is_no_misfit_of_a_pattern_that_is_run_on_short_ones_alone() -> None:
    assert Fit(of(n={"pattern": r"^(?!x)[a-z]+$"})).misfit({"n": "y" * 2_000}) is None
    assert Fit(of(n={"pattern": r"^(?!x)"})).misfit({"n": "x" * 2_000}) is not None


@pytest.mark.parametrize("pattern", [r"^\d{3}-\d+$", r"^(?!x)[a-z]+$", r"(\w+) \1", r"^(a+)+$"])
def test_usual_patterns_are_taken(pattern: str) -> None:
    check_json_schema(of(n={"type": "string", "pattern": pattern}))


@pytest.mark.parametrize(
    "schema",
    [
        {**of(n={"$ref": "#/properties/n"})},
        {**of(n={"$ref": "#/$defs/a"}), "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    ],
)
def test_a_reference_that_leads_back_to_itself_is_refused_where_it_is_declared(schema: dict[str, Any]) -> None:
    with pytest.raises(ResponseSchemaError, match="leads back to itself"):
        check_json_schema(schema)


def test_a_reply_that_is_nested_too_deeply_to_be_checked_does_not_fit() -> None:
    tree = {"type": "object", "properties": {"below": {"$ref": "#/$defs/tree"}}}
    schema = {**of(n={"$ref": "#/$defs/tree"}), "$defs": {"tree": tree}}
    check_json_schema(schema)
    reply: dict[str, Any] = {}
    assert Fit(schema).misfit({"n": {"below": reply}}) is None
    for _ in range(400):
        reply = {"below": reply}
    assert Fit(schema).misfit({"n": reply}) == "$: it is nested too deeply to be checked"


def test_a_value_of_the_users_with_a_key_pattern_is_no_pattern():
    answer = {"enum": [{"pattern": "("}], "default": {"pattern": "["}, "examples": [{"pattern": "*"}]}
    check_json_schema({"type": "object", "properties": {"answer": answer}, "required": ["answer"]})
