"""The mock's answers. A label contains the number of its row, so that a client can check its join."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import msgspec

LABELS = ("positive", "negative", "neutral", "mixed")
TOPICS = ("price", "quality", "delivery", "battery", "noise", "size", "service", "colour")
_WHY = (
    "The reviewer describes the item in concrete terms, and the overall tone follows from the specific complaints and "
    "the praise that the body of the text gives, rather than from any single word of it."
)
ROW = re.compile(rb"#ROW:(\d+)#")


class Answer(NamedTuple):
    """A reply: the JSON text, the text as a JSON string, and the numbers of tokens, one for each 4 bytes."""

    text: bytes
    quoted: bytes
    input_tokens: int
    output_tokens: int


def label(row: int) -> dict[str, object]:
    """Return the label of a row, which never changes."""
    number = zlib.crc32(b"%d" % row)
    return {
        "row": row,
        "label": LABELS[number & 3],
        "score": number % 1000 / 1000,
        "topics": [TOPICS[number >> 3 & 7], TOPICS[number >> 6 & 7]],
        "rationale": _WHY[: 90 + number % 90],
    }


def nested(row: int) -> dict[str, object]:
    """Return an answer with lists of objects, lists of lists, and one of fifty topics."""
    number = zlib.crc32(b"%d" % row)
    scores = [0.1, 0.25, number % 100 / 100]
    items = [{"name": f"item {k}", "tags": ["a", f"b{number % 9}", "c"], "scores": scores} for k in range(4)]
    matrix = [[number % 7, 2, 3], [4, 5], []]
    return {"row": row, "topic": f"topic_{number % 50:02d}", "items": items, "matrix": matrix, "note": None}


def choice(row: int) -> dict[str, object]:
    """Return the label of a row, which is one of fifty."""
    return label(row) | {"label": f"topic_{zlib.crc32(b'%d' % row) % 50:02d}"}


FORMS: dict[str, Callable[[int], dict[str, object]]] = {"label": label, "nested": nested, "choice": choice}


def answer(request: bytes, form: str = "label") -> Answer:
    """Return the answer to a request in any vendor's format."""
    found = ROW.search(request)
    text = msgspec.json.encode(FORMS[form](int(found[1]) if found else 0))
    return Answer(text, msgspec.json.encode(text.decode()), len(request) // 4, len(text) // 4)


def embedding(request: bytes) -> bytes:
    """Return a vector with the length of a small model's, in JSON: one of sixteen, chosen by the row."""
    found = ROW.search(request)
    return _vectors()[int(found[1]) % 16 if found else 0]


@cache
def _vectors() -> list[bytes]:
    dice = random.Random(1)
    return [b"[" + b",".join(b"%.10f" % dice.uniform(-0.1, 0.1) for _ in range(1_536)) + b"]" for _ in range(16)]
