"""What a label is, here."""

from typing import Literal

from pydantic import BaseModel


class Label(BaseModel):
    row: int
    label: Literal["positive", "negative", "neutral", "mixed"]
    score: float
    topics: list[str]
    rationale: str
