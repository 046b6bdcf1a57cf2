"""The form in which a person says what is right: made from a response model, read back into an answer that fits it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema

from dagster_llm_batch.errors import InputError

__all__ = ["Field", "LabelForm"]

_TYPES = {"integer": "integer", "number": "number", "string": "text"}


@dataclass(frozen=True)
class Field:
    """One question. `kind` is choice, number, integer, text or json; a choice's values are JSON."""

    name: str
    kind: str
    choices: tuple[tuple[str, str], ...] = ()
    description: str = ""
    is_optional: bool = False


@dataclass(frozen=True)
class LabelForm:
    """The questions that a dataset's rows are asked.

    Args:
        dataset: Its name in the ledger.
        key: Its column that names a row.
        schema: JSON Schema of the response; None for one of text.
        columns: The response's columns, where there is no schema.
    """

    dataset: str
    key: str
    schema: Mapping[str, Any] | None
    columns: tuple[str, ...] = ()

    @property
    def fields(self) -> list[Field]:
        """The questions, in the order of the response."""
        if self.schema is None:
            return [Field(name, "text") for name in self.columns]
        required = self.schema.get("required", [])
        properties: Mapping[str, Any] = self.schema.get("properties", {})
        return [self._field(name, spec, is_optional=name not in required) for name, spec in properties.items()]

    @property
    def is_one_choice(self) -> bool:
        """Whether one key answers it."""
        return [field.kind for field in self.fields] == ["choice"]

    def answer(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Return the answer that a form holds, by names of fields. Raises InputError where it does not fit."""
        answer = {
            field.name: _value(field, given.get(field.name, ""))
            for field in self.fields
            if given.get(field.name, "") or not field.is_optional
        }
        if self.schema is not None:
            error = next(iter(jsonschema.Draft202012Validator(dict(self.schema)).iter_errors(answer)), None)
            if error is not None:
                where = ".".join(map(str, error.absolute_path)) or "the answer"
                raise InputError(f"{where}: {error.message}.")
        return answer

    def _field(self, name: str, spec: Mapping[str, Any], *, is_optional: bool) -> Field:
        said = str(spec.get("description") or self._plain(spec).get("description") or "")
        options = list(self._options(spec))
        if options and all(option is not None for option in options):
            choices = [value for option in options for value in option or ()]
            may_be_null = None in choices
            shown = tuple((json.dumps(value), _shown(value)) for value in choices if value is not None)
            return Field(name, "choice", shown, said, is_optional or may_be_null)
        plain = [each for each in self._alternatives(spec) if each.get("type") != "null"]
        kind = _TYPES.get(str(plain[0].get("type")), "json") if len(plain) == 1 else "json"
        return Field(name, kind, (), said, is_optional or len(plain) < len(list(self._alternatives(spec))))

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
        """Return what a reference within the schema names."""
        reference = str(spec.get("$ref", ""))
        if not reference.startswith("#/"):
            return spec
        found: Any = self.schema
        for part in reference[2:].split("/"):
            found = found.get(part, {})
        return {**found, **{name: value for name, value in spec.items() if name != "$ref"}}


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value(field: Field, text: str) -> Any:
    """Return a field's value as JSON has it."""
    if field.kind == "text":
        return text
    if not text.strip():
        if field.is_optional:
            return None
        raise InputError(f"{field.name} is not answered.")
    if field.kind in ("number", "integer"):
        try:
            return int(text) if field.kind == "integer" else float(text)
        except ValueError:
            raise InputError(
                f"{field.name} is {'a whole' if field.kind == 'integer' else 'a'} number; got {text!r}."
            ) from None
    try:
        return json.loads(text)
    except ValueError:
        raise InputError(f"{field.name} is JSON; got {text[:80]!r}.") from None
