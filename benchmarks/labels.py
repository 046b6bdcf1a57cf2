"""The forms of labels, by name."""

from typing import Literal

from pydantic import BaseModel

TOPIC_NAMES = tuple(f"topic_{number:02d}" for number in range(50))


class Label(BaseModel):
    row: int
    label: Literal["positive", "negative", "neutral", "mixed"]
    score: float
    topics: list[str]
    rationale: str


class Item(BaseModel):
    name: str
    tags: list[str]
    scores: list[float]


class Nested(BaseModel):
    """Lists of objects, a matrix, and a choice of fifty."""

    row: int
    topic: Literal[TOPIC_NAMES]  # type: ignore[valid-type]  # written out, these would be fifty lines
    items: list[Item]
    matrix: list[list[int]]
    note: str | None


class Choice(BaseModel):
    """A choice of fifty in an otherwise plain label."""

    row: int
    label: Literal[TOPIC_NAMES]  # type: ignore[valid-type]
    score: float
    topics: list[str]
    rationale: str


FORMS: dict[str, type[BaseModel]] = {"label": Label, "nested": Nested, "choice": Choice}
EMBEDDING = "embedding"
"""The form without a class: a vector."""
