"""The form in which a person gives the right answer: made from a response model, and read back to fit the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dagster_llm_batch.core.json_schema import Fit
from dagster_llm_batch.core.json_values import as_json
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.errors import InputError, ResponseSchemaError
from dagster_llm_batch.types import ResponseKind

__all__ = ["Field", "LabelForm", "form_of_labeling"]

_WITHIN = "/"
_DEEPEST = 5
_DEEPEST_JSON = 100
_TYPES = {"integer": "integer", "number": "number", "string": "text"}


@dataclass(frozen=True)
class Field:
    """One question.

    `kind` is choice, choices (some of them), number, integer, text, json, or lines: a list of values of the kind in
    `items`. The values of choices are JSON. `path` leads through objects within the response.
    """

    path: tuple[str, ...]
    kind: str
    choices: tuple[tuple[str, str], ...] = ()
    description: str = ""
    is_optional: bool = False
    items: str = ""

    @property
    def name(self) -> str:
        """Its name in a form."""
        return _WITHIN.join(self.path)

    @property
    def title(self) -> str:
        """Its name for people."""
        return " / ".join(self.path)


@dataclass(frozen=True)
class LabelForm:
    """The questions that a dataset's rows are asked.

    Args:
        dataset: Its name in the ledger.
        key: Its column that names a row.
        schema: JSON Schema of the response; None for one of text.
        columns: The response's columns, which are the questions if there is no schema.
        derived: Further columns of the labeled table that tell of answers, such as the places of quotes.
    """

    dataset: str
    key: str
    schema: Mapping[str, Any] | None
    columns: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()

    @property
    def hidden(self) -> set[str]:
        """Columns of the labeled table that a person who judges its rows must not see: they tell a model's answer."""
        return {*(field.path[0] for field in self.fields), *self.columns, *self.derived}

    @property
    def fields(self) -> list[Field]:
        """The questions, in the order of the response."""
        if self.schema is None:
            return [Field((name,), "text") for name in self.columns]
        return list(self._fields(self.schema, (), ()))

    @property
    def is_one_choice(self) -> bool:
        """Whether one key press answers it."""
        return [field.kind for field in self.fields] == ["choice"]

    def answer(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Return the answer that a form holds, by names of fields. Raises InputError if it does not fit."""
        answer: dict[str, Any] = {}
        for field in self.fields:
            text = given.get(field.name, "")
            if text or not field.is_optional:
                inner = answer
                for name in field.path[:-1]:
                    inner = inner.setdefault(name, {})
                inner[field.path[-1]] = _value(field, text)
        if self.schema is not None:
            try:
                misfit = Fit(self.schema).misfit_at(answer)
            except ResponseSchemaError as error:
                raise InputError(f"The answer cannot be checked. {error}") from error
            if misfit is not None:
                where, why = misfit
                raise InputError(f"{where or 'the answer'}: {why}.")
        return answer

    def given(self, answer: Mapping[str, Any]) -> dict[str, str]:
        """Return a form's fields for this answer; without the questions that it leaves open."""
        given: dict[str, str] = {}
        for field in self.fields:
            value: Any = answer
            for name in field.path:
                value = value.get(name) if isinstance(value, Mapping) else None
            if value is None:
                continue
            if field.kind in ("choices", "lines"):
                parts = [json.dumps(each) if field.kind == "choices" else str(each) for each in value]
                given[field.name] = "\n".join(parts)
            else:
                given[field.name] = str(value) if field.kind == "text" else json.dumps(as_json(value))
        return given

    def _fields(
        self, schema: Mapping[str, Any], path: tuple[str, ...], within: tuple[str, ...], *, is_optional: bool = False
    ) -> Iterator[Field]:
        """Yield the questions of an object and of objects in it, except an object that contains its own kind."""
        required = schema.get("required", [])
        properties: Mapping[str, Any] = schema.get("properties", {})
        for name, spec in properties.items():
            may_lack = is_optional or name not in required
            inner = [each for each in self._alternatives(spec) if each.get("type") != "null"]
            options = [spec, *spec.get("anyOf", ())]
            reference = next((str(each["$ref"]) for each in options if "$ref" in each), "")
            if len(inner) == 1 and inner[0].get("properties") and reference not in within and len(path) < _DEEPEST:
                may_be_null = len(list(self._alternatives(spec))) > 1
                beneath = (*within, reference) if reference else within
                yield from self._fields(inner[0], (*path, name), beneath, is_optional=may_lack or may_be_null)
            else:
                yield self._field((*path, name), spec, is_optional=may_lack)

    def _field(self, name: tuple[str, ...], spec: Mapping[str, Any], *, is_optional: bool) -> Field:
        said = str(spec.get("description") or self._plain(spec).get("description") or "")
        options = list(self._options(spec))
        if options and all(option is not None for option in options):
            choices = [value for option in options for value in option or ()]
            may_be_null = None in choices
            shown = tuple((json.dumps(value), _shown(value)) for value in choices if value is not None)
            return Field(name, "choice", shown, said, is_optional or may_be_null)
        plain = [each for each in self._alternatives(spec) if each.get("type") != "null"]
        is_optional = is_optional or len(plain) < len(list(self._alternatives(spec)))
        if len(plain) == 1 and plain[0].get("type") == "array" and isinstance(plain[0].get("items"), Mapping):
            item = self._field(name, plain[0]["items"], is_optional=False)
            if item.kind == "choice":
                return Field(name, "choices", item.choices, said, is_optional)
            if item.kind in _TYPES.values():
                return Field(name, "lines", (), said, is_optional, item.kind)
        kind = _TYPES.get(str(plain[0].get("type")), "json") if len(plain) == 1 else "json"
        return Field(name, kind, (), said, is_optional)

    def _options(self, spec: Mapping[str, Any]) -> Iterator[Sequence[Any] | None]:
        """Yield the values of each alternative; None for one that has too many to choose from."""
        for each in self._alternatives(spec):
            if "enum" in each:
                yield each["enum"]
            elif "const" in each:
                yield [each["const"]]
            elif each.get("type") == "boolean":
                yield [True, False]
            elif each.get("type") == "null":
                yield [None]
            else:
                yield None

    def _alternatives(self, spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        plain = self._plain(spec)
        inner = plain.get("anyOf", plain.get("oneOf"))
        if inner is None:
            yield plain
        else:
            for each in inner:
                yield from self._alternatives(each)

    def _plain(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the schema to which a reference within the schema points."""
        reference = str(spec.get("$ref", ""))
        if not reference.startswith("#/"):
            return spec
        found: Any = self.schema
        for part in reference[2:].split("/"):
            found = found.get(part, {})
        return {**found, **{name: value for name, value in spec.items() if name != "$ref"}}


def form_of_labeling(dataset: str, labeling: Labeling) -> LabelForm | None:
    """Return the form for judging rows of a labeling; None for vectors, which people cannot judge."""
    reader = labeling.reader
    if reader.format.kind is ResponseKind.EMBEDDING:
        return None
    derived = [] if labeling.quoted_columns is None else labeling.quoted_columns.schema.names
    columns = tuple(field.name for field in reader.fields)
    return LabelForm(dataset, labeling.key, reader.format.json_schema, columns, tuple(derived))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value(field: Field, text: str) -> Any:
    """Return a field's value as JSON has it."""
    if field.kind == "text":
        return text
    if field.kind in ("choices", "lines"):
        one = "choice" if field.kind == "choices" else field.items
        parts = [line.strip() for line in text.splitlines() if line.strip()]
        return [_value(Field(field.path, one), part) for part in parts]
    if not text.strip():
        if field.is_optional:
            return None
        raise InputError(f"{field.title} is not answered.")
    if field.kind in ("number", "integer"):
        try:
            return int(text) if field.kind == "integer" else float(text)
        except ValueError:
            raise InputError(
                f"{field.title} is {'a whole' if field.kind == 'integer' else 'a'} number; got {text!r}."
            ) from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{field.title} is JSON; got {text[:80]!r}.") from None
    _check_json(field, value)
    return value


def _check_json(field: Field, value: Any, depth: int = 0) -> None:
    """Raise InputError for JSON that databases cannot keep: with NUL in a text, or nested too deeply."""
    if depth > _DEEPEST_JSON:
        raise InputError(f"{field.title} is nested more than {_DEEPEST_JSON} times.")
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{field.title} has a NUL character. Remove it.")
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        _check_json(field, each, depth + 1)
