"""What the mock answers: a label that names the row it is for, so that a client can show that it joined them right."""

from __future__ import annotations

import re
import zlib
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
    """A reply: the JSON text, and that text as a JSON string; tokens as a vendor would count them, one for 4 bytes."""

    text: bytes
    quoted: bytes
    input_tokens: int
    output_tokens: int


def label(row: int) -> dict[str, object]:
    """The label of a row: always the same."""
    number = zlib.crc32(b"%d" % row)
    return {
        "row": row,
        "label": LABELS[number & 3],
        "score": number % 1000 / 1000,
        "topics": [TOPICS[number >> 3 & 7], TOPICS[number >> 6 & 7]],
        "rationale": _WHY[: 90 + number % 90],
    }


def answer(request: bytes) -> Answer:
    """The answer to a request, whatever its form."""
    found = ROW.search(request)
    text = msgspec.json.encode(label(int(found[1]) if found else 0))
    return Answer(text, msgspec.json.encode(text.decode()), len(request) // 4, len(text) // 4)
