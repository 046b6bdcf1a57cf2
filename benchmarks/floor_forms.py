"""The forms of answers that the floor reads, by name: types for msgspec, and columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, TypedDict

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct

# The same as in `benchmarks.labels`, which the floor does not import because it loads pydantic.
_TOPIC_NAMES = tuple(f"topic_{number:02d}" for number in range(50))
_TEXT, _INTEGER, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}


class _Label(Struct, gc=False):
    row: int
    label: Literal["positive", "negative", "neutral", "mixed"]
    score: float
    topics: list[str]
    rationale: str


class _Choice(Struct, gc=False):
    row: int
    label: Literal[_TOPIC_NAMES]  # type: ignore[valid-type]
    score: float
    topics: list[str]
    rationale: str


class _Item(TypedDict):
    """A dict, which Arrow takes without conversion."""

    name: str
    tags: list[str]
    scores: list[float]


class _Nested(Struct, gc=False):
    row: int
    topic: Literal[_TOPIC_NAMES]  # type: ignore[valid-type]
    items: list[_Item]
    matrix: list[list[int]]
    note: str | None


def _array(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@dataclass(frozen=True)
class Form:
    """A form of answers: `fields` are its columns, and `read` converts the texts of replies to them.

    `schema` is the JSON schema in requests; a vector does not have one.
    """

    fields: Sequence[tuple[str, pa.DataType]]
    schema: dict[str, Any] | None
    read: Callable[[Sequence[Any]], list[pa.Array]]


def _form(struct: type[Struct], types: Sequence[pa.DataType], **properties: Any) -> Form:
    names = struct.__struct_fields__
    fields = list(zip(names, types, strict=True))
    decode = msgspec.json.Decoder(struct).decode
    getters = [(attrgetter(name), kind) for name, kind in fields]

    def read(texts: Sequence[str]) -> list[pa.Array]:
        replies = list(map(decode, texts))
        return [pa.array(list(map(get, replies)), kind) for get, kind in getters]

    return Form(fields, _object(**properties), read)


def _read_vectors(vectors: Sequence[Sequence[float]]) -> list[pa.Array]:
    values = np.array(vectors, dtype=np.float32)
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return [pa.ListArray.from_arrays(offsets, values.ravel())]


_TYPES = (pa.int64(), pa.string(), pa.float64(), pa.list_(pa.string()), pa.string())
_ITEM_TYPE = pa.struct({"name": pa.string(), "tags": pa.list_(pa.string()), "scores": pa.list_(pa.float64())})
_NESTED_TYPES = (pa.int64(), pa.string(), pa.list_(_ITEM_TYPE), pa.list_(pa.list_(pa.int64())), pa.string())


def _label_properties(labels: Sequence[str]) -> dict[str, Any]:
    choice = {**_TEXT, "enum": labels}
    return {"row": _INTEGER, "label": choice, "score": _NUMBER, "topics": _array(_TEXT), "rationale": _TEXT}


FORMS = {
    "label": _form(_Label, _TYPES, **_label_properties(("positive", "negative", "neutral", "mixed"))),
    "choice": _form(_Choice, _TYPES, **_label_properties(_TOPIC_NAMES)),
    "nested": _form(
        _Nested,
        _NESTED_TYPES,
        row=_INTEGER,
        topic={**_TEXT, "enum": _TOPIC_NAMES},
        items=_array(_object(name=_TEXT, tags=_array(_TEXT), scores=_array(_NUMBER))),
        matrix=_array(_array(_INTEGER)),
        note={"anyOf": [_TEXT, {"type": "null"}]},
    ),
    "embedding": Form([("embedding", pa.list_(pa.float32()))], None, _read_vectors),
}
