"""The labeled rows, few but with every kind of content, and the definitions that label them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, Field

from tests.golden.package import Labeling, Prompt, Realtime, Split, split_rows

ODD, CUT, REFUSED, BUSY, WRONG = "[odd]", "[cut]", "[refused]", "[busy]", "[wrong]"
"""Marks in the body of a row, each for another ending at the emulator."""

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_BODIES = (
    "Where is my invoice?",
    "Ich hätte gern „Rechnung“ Nr. 7 — naïve café, 東京, Ω≈ç√, \U0001f9fe\U0001f469\u200d\U0001f4bb",
    'Line one\r\nline two\ttabbed\u2028separated\u2029\x07 and {{ not a template }} <b>&amp;</b> "quoted" \\ back',
    "Where is my invoice?",  # asked already
    "عربى עברית \u202eright to left\u202c, combining e\u0301 and é",
    f"The app crashes {ODD}",
    f"The app crashes again {BUSY}",
    f"How do I export? {CUT}",
    f"A rude one {REFUSED}",
    f"Too long {WRONG}",
    "",
    "x" * 150,
)
_TAGS = (None, [], ["billing"], None, ["a", None, "ü"])
_MORE = (None, {"lang": "de", "score": 0.1, "seen": [1, 2]}, {"lang": None, "score": 1e-07, "seen": None})
KEYS: dict[str, tuple[pa.DataType, Any]] = {
    "text": (pa.string(), lambda n: f"t{n:02d}" if n != 4 else "schlüssel/4 ☃"),
    "large text": (pa.large_string(), lambda n: f"L{n:02d}"),
    "integer": (pa.int64(), lambda n: n * 10**17 - 3),
    "small integer": (pa.uint8(), lambda n: n),
    "date": (pa.date32(), lambda n: date(2024, 2, 28) + timedelta(days=n)),
    "instant": (pa.timestamp("us", "UTC"), lambda n: datetime(2025, 10, 26, 0, 59, 59, 7, UTC) + timedelta(minutes=n)),
    "local time": (pa.timestamp("ms"), lambda n: datetime(1969, 12, 31, 23) + timedelta(hours=n)),  # noqa: DTZ001
    "time of day": (pa.time64("us"), lambda n: time(n % 24, n // 24, 0, n)),
}
"""Kinds of keys: their type, and the key of a row."""


class Part(BaseModel):
    """A part of a ticket."""

    name: str
    count: Annotated[int, Field(ge=0)]


class TicketLabel(BaseModel):
    """What is wanted of each row."""

    topic: Literal["billing", "bug", "how_to"]
    urgency: Annotated[int, Field(ge=1, le=5)]
    sure: float
    parts: list[Part]
    spam: bool | None = None


class Quotes(BaseModel):
    """Quotes of a text, and its topic."""

    topic: Literal["billing", "bug", "how_to"]
    said: list[str]


def _paper(pages: int, words: str = "") -> bytes:
    """Return a PDF with so many pages, each with these words. No library writes it, so that its bytes never change."""
    kids = range(3, 3 + pages)
    resources = "<</Font<</F<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>"
    more, shown = (f"/Contents {3 + pages} 0 R/Resources{resources}", f"BT /F 12 Tf 72 720 Td ({words}) Tj ET")
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Count {pages}/Kids[{' '.join(f'{kid} 0 R' for kid in kids)}]>>",
        *(f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]{more if words else ''}>>" for _ in kids),
        *([f"<</Length {len(shown)}>>stream\n{shown}\nendstream "] if words else []),
    ]
    text, places = "%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(f"{len(text):010} 00000 n \n")
        text += f"{number} 0 obj{one}endobj\n"
    table = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{''.join(places)}"
    return f"{text}{table}trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{len(text)}\n%%EOF\n".encode()


PAPERS = (_paper(1), _paper(2), None)
# Two letters, a picture, which is no document, and none.
LETTERS = (_paper(1, "Total: 12 EUR"), "Grüße. Total: 7 EUR".encode(), PIXEL, None)


def tickets(
    numbers: range, key: str = "text", *, changed: bool = False, papers: Sequence[bytes | None] = ()
) -> pa.Table:
    """Return rows of these numbers; `changed` rewrites one of them. With `papers`, the rows have these documents."""
    kind, key_of = KEYS[key]
    bodies = [_BODIES[n] if n < len(_BODIES) else f"Where is invoice {n}?" for n in numbers]
    if changed:
        bodies[-1] += " It has changed."
    return pa.table(
        {
            "ticket_id": pa.array([key_of(n) for n in numbers], kind),
            "subject": pa.array([None if n % 5 == 2 else f"Subject {n % 3 and 1}" for n in numbers], pa.string()),
            "body": bodies,
            "tags": pa.array([_TAGS[n % len(_TAGS)] if n > 3 else None for n in numbers], pa.list_(pa.string())),
            "more": pa.array(
                [_MORE[n % len(_MORE)] if n > 3 else None for n in numbers],
                pa.struct([("lang", pa.string()), ("score", pa.float64()), ("seen", pa.list_(pa.int16()))]),
            ),
            "photo": pa.array([PIXEL if n == 1 else None for n in numbers], pa.binary()),
            "now": [n == 2 for n in numbers],
            **({"paper": pa.array([papers[n % len(papers)] for n in numbers], pa.binary())} if papers else {}),
        }
    )


def parts(numbers: range, key: str = "text", **options: Any) -> pa.Table:
    """Return the rows in parts of few words, one word of which two parts have."""
    rows = tickets(numbers, key, **options).select(["ticket_id", "subject", "body"])
    return pa.Table.from_batches(split_rows(rows, Split("body", tokens=12, overlap=2, by="token"), key="ticket_id"))


PROMPT = Prompt(
    system="You label support tickets. Grüße!",
    user=(
        "{{ subject }}\n\n{{ body }}{% if tags %}\nTags: {{ tags | join(', ') }}{% endif %}"
        "{% if more %}\n{{ more.lang }} {{ more.score }}{% endif %}"
    ),
)
SEEING = Prompt(system=PROMPT.system, user=PROMPT.user, images=["photo"])
TAUGHT = Prompt(
    system=PROMPT.system,
    user=PROMPT.user,
    examples=[("Where is my refund?", '{"topic":"billing","urgency":2,"sure":0.5,"parts":[],"spam":null}')],
    cache_prefix=True,
    images=["photo"],
)
ATTACHED, READING, READ = (
    Prompt(system=PROMPT.system, user=PROMPT.user, documents=["paper"], documents_as=way)
    for way in ("file", "upload", "text")
)
SECOND = Prompt(user="Is it urgent? {{ subject }} {{ tags | join(', ') }}")
BARE = Prompt(user="{{ body }} {{ subject }}", version="two words")


def labeling(model: str, **changes: Any) -> Labeling:
    """Return a definition with these changes."""
    usual: dict[str, Any] = {
        "asset": "ticket_labels",
        "model": model,
        "key": "ticket_id",
        "prompt": PROMPT,
        "response": TicketLabel,
        "params": {"max_tokens": 80},
        "keep": ["subject", "tags", "more"],
        "realtime": Realtime(concurrency=1),
    }
    return Labeling(**{**usual, **changes})
