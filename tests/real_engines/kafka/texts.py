"""Texts whose topic their words give away, and a student of them."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from functools import cache
from typing import Any

from kafka_location import Topic

from dagster_llm_batch import Prompt
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.metrics.student import Student, train

WORDS = {
    "billing": ["invoice", "charge", "refund", "card", "payment", "receipt", "price", "bill"],
    "bug": ["crash", "error", "white", "broken", "freeze", "exception", "fails", "slow"],
    "how_to": ["how", "where", "find", "change", "setting", "export", "guide", "explain"],
}
FILLER = ["please", "the", "my", "account", "today", "again", "with", "after", "for", "some", "page", "thanks"]
STRANGE = ["quantum", "glacier", "sonata", "trebuchet", "lagoon", "saffron", "nebula", "obelisk"]


def texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, topic), of the three topics in turn."""
    draw = random.Random(seed)
    found = []
    for n in range(count):
        topic = list(WORDS)[n % 3]
        words = draw.choices(WORDS[topic], k=4) + draw.choices(FILLER, k=4)
        draw.shuffle(words)
        found.append((" ".join(words), topic))
    return found


def strange(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(STRANGE, k=6)) for _ in range(count)]


def topic_of(text: str) -> str:
    """Return an LLM's topic, by the words."""
    counts = {topic: sum(text.count(word) for word in words) for topic, words in WORDS.items()}
    return max(counts, key=lambda topic: counts[topic])


def labeling(**changes: Any) -> Labeling:
    usual: dict[str, Any] = {
        "asset": "labels",
        "model": "openai/gpt-4o",
        "key": "message_id",
        "prompt": Prompt(system="You label tickets.", user="{{ text }}"),
        "response": Topic,
        "params": {"max_tokens": 50},
    }
    return Labeling(**{**usual, **changes})


@cache
def student(rows: int = 240) -> Student:
    known = texts(rows, seed=1)
    version = labeling().code_version
    lines, topics = [text for text, _ in known], [topic for _, topic in known]
    return train(lines, topics, code_version=version, target="topic", trained_at=datetime.now(UTC))
