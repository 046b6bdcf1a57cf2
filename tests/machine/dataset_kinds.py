"""The kinds of datasets that the machine draws from: every lane, retry round and cascade, in one partition or two."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Literal, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, Field

from dagster_llm_batch.core.cascade import Cascade, Rolling
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.definition.labeling import Labeling, Limits, Realtime, Resend, Spend
from tests.crash.clouds import CLOUDS
from tests.faults.vendors import Vendor

__all__ = ["DEADLINE", "KINDS", "TOPICS", "Kind", "Place", "Rows", "answer", "number_of", "source_of"]

TOPICS = ("billing", "bug", "how_to")
DEADLINE = timedelta(hours=2)
_ROWS = 5
_NUMBER = re.compile(r"number (\d+)\?")
_SOURCE = re.compile(r"(\w+) of (\w+): where is number \d+\? ?!*")


class Place(NamedTuple):
    """A partition of a dataset; "" is the partition of a dataset without partitions."""

    dataset: str
    partition: str


class Label(BaseModel):
    """The response."""

    topic: Literal["billing", "bug", "how_to"]
    urgency: Annotated[int, Field(ge=1, le=5)]


def number_of(text: str) -> int:
    """Return the number of the row in this text, or in a prompt about it."""
    return int(_NUMBER.findall(text)[-1])


def source_of(text: str) -> tuple[str, str]:
    """Return the dataset of a request, and the text of its row."""
    found = list(_SOURCE.finditer(text))[-1]
    return found[1], found[0].rstrip()


def answer(number: int) -> dict[str, Any]:
    """Return the reply about a row: it follows from the row's number, so each label shows whether it is its own."""
    return {"topic": TOPICS[number % 3], "urgency": 1 + number % 5}


@dataclass
class Rows:
    """The rows of one partition: the number of the first, how many, and how often the first one's text has changed."""

    first: int = 0
    count: int = _ROWS
    edition: int = 0

    def text(self, place: Place, number: int) -> str:
        """Return the text of a row up to its question mark."""
        return f"{place.dataset} of {place.partition or 'all'}: where is number {number}"

    def table(self, place: Place) -> pa.Table:
        """Return the rows."""
        numbers = range(self.first, self.first + self.count)
        marks = [" " + "!" * self.edition if n == self.first and self.edition else "" for n in numbers]
        texts = [f"{self.text(place, n)}?{mark}" for n, mark in zip(numbers, marks, strict=True)]
        now = [n < self.first + 2 for n in numbers]
        return pa.table({"id": [f"t{n}" for n in numbers], "text": texts, "now": now})


@dataclass(frozen=True)
class Kind:
    """A kind of dataset: the changes in its labeling, from the oracle's name, and its partitions.

    is_together: its partitions are sent in one batch.
    batches_at_once: the declared limit of the provider's queue.
    """

    changes: Callable[[str], Mapping[str, Any]] = field(default=lambda _: {})
    partitions: Sequence[str] = ("",)
    is_together: bool = False
    batches_at_once: int | None = None

    def labeling(self, name: str, vendor: Vendor) -> Labeling:
        """Return the definition of a dataset of this kind."""
        limits = Limits(max_requests_per_batch=9 if self.is_together else 2)
        usual: dict[str, Any] = {"limits": limits, "spend": vendor.spend}
        return Labeling(
            asset=name,
            model=f"{vendor.name}/{vendor.model}",
            key="id",
            prompt=Prompt(user="{{ text }}"),
            response=Label,
            params=vendor.params,
            **{**usual, **self.changes(f"{vendor.name}/{CLOUDS[vendor.name].other_model}")},
        )


def _cascade(oracle: str, calibrate: Any = "partition") -> Cascade:
    return Cascade(oracle, "topic", 0.5, 0.9, "urgency", 4, calibrate)


_URGENT = Realtime(urgent="now", concurrency=1)
_LATE = Realtime(deadline=DEADLINE, concurrency=1)
# A reply is expected to cost a hundredth of a dollar, and costs half a dollar at most: five of them would be too many.
_DEAR = Spend(TokenPrice("0.001", "10000", "0.001", "10000"), expected_output_tokens=1, limit="hard")
_LIMIT = "1.6"
KINDS = {
    "plain": Kind(),
    "rounds": Kind(lambda _: {"resend": Resend(max_waves=3)}),
    "fallback": Kind(lambda oracle: {"resend": Resend(fallback=(oracle,))}),
    "urgent": Kind(lambda _: {"realtime": _URGENT}),
    "late": Kind(lambda _: {"realtime": _LATE}),
    "cascade": Kind(lambda oracle: {"cascade": _cascade(oracle)}),
    "rolling": Kind(lambda oracle: {"cascade": _cascade(oracle, Rolling(rows=4, audit=0.2))}, ("a", "b")),
    "mixed": Kind(lambda oracle: {"cascade": _cascade(oracle), "realtime": _URGENT, "resend": Resend(max_waves=2)}),
    "together": Kind(partitions=("a", "b"), is_together=True),
    "limited": Kind(lambda _: {"spend": _DEAR, "max_cost_usd": _LIMIT}),
    # The neighbor's batch is in the queue, too.
    "queued": Kind(batches_at_once=2),
}
